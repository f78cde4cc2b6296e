//! A plan of several interfaces, several queues, and addresses by DHCP.

use kcm_tests::lab::{self, Side};
use kcm_tests::program;

/// A second pair of links beside the lab's: `veth3` is the kernel's with 10.8.0.1.
const SECOND: &str = "
ip link add veth2 numrxqueues 2 numtxqueues 2 type veth peer name veth3
ip link set veth2 up
ip link set veth3 up
for end in veth2 veth3; do
	until ip link show dev $end | grep -q 'state UP'; do sleep 0.01; done
done
ip address add 10.8.0.1/24 dev veth3
";

/// What a program printed in the lab with the stack on `line`, after `setup`, and what the library said.
/// Only the program has the library.
fn run(line: &str, setup: &str, arguments: &[&str]) -> (String, String) {
    run_with(line, None, setup, arguments)
}

/// As [`run`], with a file of rules.
fn run_with(
    line: &str,
    rules: Option<&std::path::Path>,
    setup: &str,
    arguments: &[&str],
) -> (String, String) {
    let script = format!(
        "preload=$LD_PRELOAD; unset LD_PRELOAD; set -e{setup}\nexec env LD_PRELOAD=$preload \"$@\""
    );
    let mut command = lab::command(Side::Stack, "sh");
    command.env("KCMSHIM_STACK", line);
    if let Some(rules) = rules {
        command.env("KCMSHIM_CONFIG", rules);
    }
    command.args(["-c", &script, "sh"]).args(arguments);
    let output = program::run(&mut command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn program(name: &str) -> String {
    program::build(name, &["-pthread"]).display().to_string()
}

#[test]
fn every_interface_of_the_plan_is_served() {
    let program = program("stack_interfaces");
    let line = "packet:veth0 10.9.0.2/24; packet:veth2 10.8.0.2/24 queues=2";
    let (did, said) = run(line, SECOND, &[&program, "10.9.0.1", "10.8.0.1"]);
    let wanted = "10.9.0.1 from 10.9.0.2\n10.8.0.1 from 10.8.0.2\ndone\n";
    assert_eq!((&did[..], &said[..]), (wanted, ""));
}

#[test]
fn one_interface_that_fails_fails_the_stack() {
    let program = program("stack_policy");
    let line = "packet:veth0 10.9.0.2/24; packet:nosuch0 10.8.0.2/24 on_failure=ENETDOWN";
    let (did, said) = run(line, "", &[&program]);
    assert_eq!(did, "bind ENETDOWN\nconnect ENETDOWN\n", "{said}");
    assert!(said.contains("nosuch0"), "{said}");
}

#[test]
fn the_first_socket_waits_for_a_lease() {
    let (program, server) = (program("stack_interfaces"), program("dhcp_server"));
    let setup = format!("\n{server} veth1 10.9.0.50");
    for line in ["packet:veth0 dhcp", "packet:veth0 dhcp queues=4"] {
        let (did, said) = run(line, &setup, &[&program, "10.9.0.1"]);
        let wanted = "10.9.0.1 from 10.9.0.50\ndone\n";
        assert_eq!((&did[..], &said[..]), (wanted, ""), "{line}");
    }
}

/// One of several engines asks for it; threads in all of them call from it.
#[test]
fn every_engine_has_the_leased_address() {
    let (queues, server) = (program("stack_queues"), program("dhcp_server"));
    let setup = format!(
        "\n{server} veth1 10.9.0.50\n\
         {{ tail -f /dev/null --pid=$$ | {queues} blocking 10.9.0.1 4; }} >/dev/null 2>&1 &\n\
         until grep -q :0007 /proc/net/tcp; do :; done"
    );
    for count in [1, 4] {
        let line = format!("packet:veth0 dhcp queues={count}");
        let arguments = [&queues, "call", "10.9.0.1", "4", "5"];
        assert_eq!(run(&line, &setup, &arguments), Default::default());
    }
}

#[test]
fn without_a_lease_the_failure_policy_holds() {
    let program = program("stack_policy");
    let (did, said) = run("packet:veth0 dhcp on_failure=ENETDOWN", "", &[&program]);
    assert_eq!(did, "bind ENETDOWN\nconnect ENETDOWN\n", "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("packet:veth0: no DHCP server"), "{said}");
}

#[test]
fn a_socket_hears_the_group_it_joined() {
    let program = program("stack_groups");
    let (did, said) = run(lab::LINE, "", &[&program]);
    // By IP_ADD_MEMBERSHIP, and by MCAST_JOIN_GROUP.
    let once = "join ok\nagain EADDRINUSE\nshort EINVAL\nsend ok\nhear ok\nleave ok\nagain EADDRNOTAVAIL\n";
    let wanted = format!("bind ok\n{once}{once}family EINVAL\n");
    assert_eq!((did, &said[..]), (wanted, ""));
}

/// By rule, by SO_BINDTODEVICE, by the numbers that options and addresses name interfaces with.
#[test]
fn sockets_keep_to_the_interface_they_are_given() {
    let program = program("stack_steer");
    let rules = std::path::Path::new(&program).with_extension("toml");
    let text = "[[rule]]\naddress = \"10.7.0.1\"\nport = 7101\nrole = [\"connect\", \"udp\"]\n\
                use = \"stack\"\ninterface = \"packet:veth2\"\n\
                [[rule]]\naddress = \"10.7.0.1\"\nrole = \"connect\"\nuse = \"stack\"\n";
    std::fs::write(&rules, text).expect("the target directory is writable");
    let setup = format!(
        "{SECOND}ip address add fd08::1/64 dev veth3 nodad\nip address add 10.7.0.1/32 dev lo"
    );
    let line = "packet:veth0 10.9.0.2/24 via 10.9.0.1; \
                packet:veth2 10.8.0.2/24 fd08::2/64 via 10.8.0.1";
    let (did, said) = run_with(line, Some(&rules), &setup, &[&program]);
    let wanted = "\
to 7100 by \"\" from 10.9.0.2
to 7101 by \"veth2\" from 10.8.0.2
to 7100 by \"veth2\" from 10.8.0.2
to 7101 by \"veth0\" from 10.9.0.2
to 7100 by \"lo\" from 10.7.0.1
listener at 10.9.0.2: ECONNREFUSED
listener at 10.8.0.2: accepts
by rule: r from 10.8.0.2
unbound: a from 10.9.0.1
bound: b from 10.8.0.1
IP_MULTICAST_IF 9999: EADDRNOTAVAIL
the kernel's member: m from 10.9.0.2
IP_ADD_MEMBERSHIP 9999: ENODEV
our member: g by veth2
IPv6: 6, IPV6_MULTICAST_IF kept
";
    assert_eq!((&did[..], &said[..]), (wanted, ""));
}
