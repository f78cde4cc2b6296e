//! The two languages and the decisions, by example and by generated input.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use proptest::prelude::*;

use super::plan::decide::{Role, Verdict};
use super::plan::*;

const ONE: &str = "packet:veth0 10.9.0.2/24 fd00:9::2/64 via 10.9.0.1";

fn line(text: &str) -> Result<Settings, Vec<Problem>> {
    Settings::read(None, Some(text.as_bytes()))
}

fn file(text: &str) -> Result<Settings, Vec<Problem>> {
    Settings::read(Some(("k.toml", text.as_bytes())), None)
}

/// A file with one interface and these rules.
fn rules(text: &str) -> Result<Settings, Vec<Problem>> {
    Settings::read(Some(("k.toml", text.as_bytes())), Some(ONE.as_bytes()))
}

fn said(result: Result<Settings, Vec<Problem>>) -> Vec<String> {
    let problems = result.expect_err("it is bad");
    problems.iter().map(ToString::to_string).collect()
}

fn plan(text: &str) -> Plan {
    let settings = rules(text).unwrap_or_else(|problems| panic!("{problems:?}"));
    settings.plan_for(Path::new("/usr/sbin/nginx"))
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[track_caller]
fn decides(plan: &Plan, role: Role, address: &str, verdict: Verdict, rule: &str) {
    let decision = plan.decide(&[], role, at(address));
    assert_eq!((decision.verdict, decision.rule), (verdict, rule));
}

const FIRST: Verdict = Verdict::Stack { iface: Some(0) };

#[test]
fn a_line_says_what_a_file_says() {
    let by_line = line(
        "packet:veth0 10.9.0.2/24 fd00::2/64 via 10.9.0.1 via fd00::1 route 10.0.0.0/8 via 10.9.0.7 \
         route 172.16.0.0/12 mtu=1400 queues=2 offloads=off \
         faults=2; tap:kcm0 dhcp wildcard=stack \
         on_failure=ENETDOWN",
    );
    let by_file = file(
        r#"
        [[interface]]
        device = "packet:veth0"
        addresses = ["10.9.0.2/24", "fd00::2/64"]
        gateway = ["10.9.0.1", "fd00::1"]
        mtu = 1400
        queues = 2
        offloads = false
        faults = 2
        [[interface.route]]
        to = "10.0.0.0/8"
        via = "10.9.0.7"
        [[interface.route]]
        to = "172.16.0.0/12"

        [[interface]]
        device = "tap:kcm0"
        dhcp = true

        [defaults]
        wildcard = "stack"
        on_failure = "ENETDOWN"
        "#,
    );
    assert_eq!(by_line, by_file);
    let settings = by_line.expect("it is good");
    assert_eq!(settings.interfaces.len(), 2);
    assert_eq!(settings.interfaces[0].faults, 2);
    assert_eq!(settings.on_failure, Some(OnFailure::Fail(libc::ENETDOWN)));
}

#[test]
fn both_variables_add_up() {
    let text = "[[interface]]\ndevice = \"tap:kcm0\"\ndhcp = true";
    let settings = rules(text).expect("it is good");
    let devices: Vec<_> = settings.interfaces.iter().map(|i| &i.device[..]).collect();
    assert_eq!(devices, ["tap:kcm0", "packet:veth0"]);
}

#[test]
fn defaults_follow_the_addresses() {
    use Role::{Connect, Listen, UdpBind, UdpSend};
    let plan = plan("");
    let own = "default: the stack's own address";
    let prefix = "default: a prefix of the stack";
    let rest = "default: not the stack's";
    let loopback = "default: loopback";
    decides(&plan, Listen, "10.9.0.2:80", FIRST, own);
    decides(&plan, UdpBind, "[fd00:9::2]:53", FIRST, own);
    // The kernel may have addresses of its own in the same network.
    decides(&plan, Listen, "10.9.0.1:80", Verdict::Kernel, rest);
    decides(&plan, Connect, "10.9.0.1:80", FIRST, prefix);
    decides(&plan, Connect, "[::ffff:10.9.0.1]:80", FIRST, prefix);
    decides(&plan, UdpSend, "[fd00:9::1]:53", FIRST, prefix);
    // A default gateway answers the peers of servers; it does not attract connections.
    decides(&plan, Connect, "192.0.2.1:80", Verdict::Kernel, rest);
    decides(&plan, Connect, "127.0.0.1:80", Verdict::Kernel, loopback);
    decides(&plan, Connect, "0.0.0.0:80", Verdict::Kernel, loopback);
    decides(&plan, Listen, "[::1]:80", Verdict::Kernel, loopback);
    let both = Verdict::Both { iface: None };
    decides(&plan, Listen, "0.0.0.0:80", both, "default: wildcard");
    decides(&plan, UdpBind, "[::]:0", both, "default: wildcard");
}

#[test]
fn the_first_rule_that_matches_decides() {
    let plan = plan(
        r#"
        [[rule]]
        name = "not for us"
        program = ["apache2", "/opt/*"]
        use = "refuse"
        [[rule]]
        name = "web"
        program = "ngin?"
        role = "listen"
        port = [80, "8000-8099"]
        use = "stack"
        [[rule]]
        role = ["connect", "udp"]
        address = ["192.0.2.0/24", "2001:db8::/32"]
        use = "stack"
        on_failure = "EHOSTUNREACH"
        [[rule]]
        role = "connect"
        port = 25
        use = "refuse=ECONNREFUSED"
        "#,
    );
    use Role::{Connect, Listen, UdpSend};
    let all = Verdict::Stack { iface: None };
    decides(&plan, Listen, "0.0.0.0:8042", all, "web");
    let both = Verdict::Both { iface: None };
    decides(&plan, Listen, "0.0.0.0:8100", both, "default: wildcard");
    decides(&plan, Connect, "192.0.2.9:25", FIRST, "rule 3");
    decides(&plan, UdpSend, "[2001:db8::1]:53", FIRST, "rule 3");
    let refused = Verdict::Refuse(libc::ECONNREFUSED);
    decides(&plan, Connect, "198.51.100.1:25", refused, "rule 4");
    // A rule without addresses leaves loopback alone.
    let kernel = Verdict::Kernel;
    decides(&plan, Connect, "127.0.0.1:25", kernel, "default: loopback");
    let decision = plan.decide(&[], Connect, at("192.0.2.9:25"));
    assert_eq!(decision.on_failure, OnFailure::Fail(libc::EHOSTUNREACH));
}

#[test]
fn both_is_for_sockets_of_no_address() {
    let plan = plan("[[rule]]\nname = \"b\"\nrole = [\"listen\", \"udp\"]\nuse = \"both\"");
    let both = Verdict::Both { iface: None };
    decides(&plan, Role::Listen, "[::]:80", both, "b");
    decides(&plan, Role::Listen, "10.9.0.2:80", FIRST, "b");
    decides(&plan, Role::Listen, "10.9.0.1:80", Verdict::Kernel, "b");
    decides(&plan, Role::UdpSend, "10.9.0.1:80", FIRST, "b");
}

#[test]
fn the_longest_prefix_chooses_the_interface() {
    let settings = line(
        "packet:a 10.0.0.2/8; packet:b 10.9.0.2/16 route 10.0.5.0/24 via 10.9.0.1; \
         packet:c fd00::2/64 via fd00::1",
    );
    let plan = settings.expect("it is good").plan_for(Path::new("x"));
    let iface = |address: &str| plan.decide(&[], Role::Connect, at(address)).verdict;
    assert_eq!(iface("10.9.3.3:1"), Verdict::Stack { iface: Some(1) });
    assert_eq!(iface("10.8.3.3:1"), FIRST);
    assert_eq!(iface("10.0.5.3:1"), Verdict::Stack { iface: Some(1) });
    assert_eq!(iface("[fd01::1]:1"), Verdict::Kernel);
}

#[test]
fn a_default_route_is_a_gateway() {
    let settings = line("packet:a 10.0.0.2/8 route 0.0.0.0/0 via 10.0.0.1");
    let plan = settings.expect("it is good").plan_for(Path::new("x"));
    let rest = "default: not the stack's";
    decides(&plan, Role::Connect, "192.0.2.1:1", Verdict::Kernel, rest);
}

#[test]
fn a_rule_finds_an_interface_for_what_none_covers() {
    let settings = Settings::read(
        Some(("k.toml", b"[[rule]]\nrole = \"connect\"\nuse = \"stack\"")),
        Some(b"packet:a 10.0.0.2/8; packet:b 10.9.0.2/16 via 10.9.0.1; packet:c fd00::2/64"),
    );
    let plan = settings.expect("it is good").plan_for(Path::new("x"));
    let iface = |address: &str| plan.decide(&[], Role::Connect, at(address)).verdict;
    assert_eq!(iface("192.0.2.1:1"), Verdict::Stack { iface: Some(1) });
    assert_eq!(iface("[2001:db8::1]:1"), Verdict::Stack { iface: Some(2) });
}

#[test]
fn learned_addresses_count_as_own() {
    let settings = line("tap:kcm0 dhcp").expect("it is good");
    let plan = settings.plan_for(Path::new("x"));
    let got = [vec![Prefix::parse("10.7.0.9/16").expect("a prefix")]];
    let listen = |learned| {
        plan.decide(learned, Role::Listen, at("10.7.0.9:80"))
            .verdict
    };
    assert_eq!(listen(&[]), Verdict::Kernel);
    assert_eq!(listen(&got), FIRST);
    assert_eq!(plan.owner(&got, ip("::ffff:10.7.0.9")), Some(0));
    assert_eq!(plan.owner(&got, ip("10.7.0.8")), None);
}

#[test]
fn a_bad_file_names_line_key_and_allowed_values() {
    let bad = r#"
[[interface]]
device = "veth0"
adresses = ["10.9.0.2/24"]
mtu = 20
[[rule]]
role = "server"
port = "90-80"
use = "stak"
on_failure = "EWHAT"
[defaults]
wildcard = "refuse"
"#;
    let said = said(file(bad));
    let expected = [
        "k.toml:3: device: \"veth0\": no kind of device before a colon",
        "k.toml:4: interface.\"adresses\" is not known; allowed: device, addresses, dhcp,",
        "k.toml:5: mtu: 20 is not an MTU from 68 to 65535 bytes",
        "k.toml:7: role: \"server\" is not one of \"listen\", \"connect\", \"udp\"",
        "k.toml:8: port: \"90-80\" is not a port or a range of ports",
        "k.toml:9: use: \"stak\" is not one of \"stack\", \"kernel\", \"both\", \"refuse\"",
        "k.toml:10: on_failure: \"EWHAT\" is not \"kernel\" or one of EACCES,",
        "k.toml:12: wildcard: \"refuse\" is not one of \"stack\", \"kernel\", \"both\"",
    ];
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.starts_with(expected), "{said}\n{expected}");
    }
}

#[test]
fn what_is_no_toml_names_its_line() {
    for (text, expected) in [
        ("a = 1\n[[rule]\n", "k.toml:2: "),
        ("\n\nuse =", "k.toml:3: "),
        (
            "[[rule]]\nuse = \"kernel\"\nuse = \"stack\"",
            "k.toml:3: duplicate key",
        ),
        (
            "interface = 3",
            "k.toml:1: interface is an array of tables: [[interface]]",
        ),
        (
            "[rule]\nuse = \"kernel\"",
            "k.toml:1: rule is an array of tables",
        ),
        (
            "\nstack = true",
            "k.toml:2: \"stack\" is not known; allowed: [[interface]]",
        ),
        ("\n[[rule]]\nport = 1", "k.toml:2: rule.use is missing"),
        (
            "[[rule]]\nuse = \"kernel\"\nport = []",
            "k.toml:3: port: an empty list",
        ),
        ("[[rule]]\nuse = 7", "k.toml:2: use: a text in quotes"),
        (
            "[[interface]]\nmtu = 1500",
            "k.toml:2: interface.device is missing",
        ),
        (
            "[[rule]]\nuse = \"kernel\"\nport = 0x1_0000",
            "k.toml:3: port: 65536 is not a port",
        ),
        ("", "k.toml: no interface is given"),
    ] {
        let said = said(file(text));
        let first = said.first().expect("one problem at least");
        assert!(first.starts_with(expected), "{text:?}: {said:#?}");
    }
    let said = said(Settings::read(Some(("k.toml", b"# \n\xff")), None));
    assert_eq!(said, ["k.toml:2: not UTF-8 text"]);
}

#[test]
fn a_bad_line_says_what_is_allowed() {
    for (text, expected) in [
        ("veth0", "\"veth0\": no kind of device"),
        (
            "packet:v 10.9.0.2",
            "\"10.9.0.2\" is not an address with its prefix length",
        ),
        (
            "packet:v 10.9.0.2/33",
            "\"10.9.0.2/33\" is not an address with its prefix length",
        ),
        (
            "packet:v 127.0.0.1/8",
            "\"127.0.0.1/8\" is not an address that a host can have",
        ),
        (
            "packet:v 10.9.0.2/24 via",
            "\"via\" ends the line; an address follows it",
        ),
        (
            "packet:v 10.9.0.2/24 gw 10.9.0.1",
            "\"gw\" is none of ADDRESS/LENGTH",
        ),
        ("packet:v 10.9.0.2/24 mtu=+9", "mtu=\"+9\": not a number"),
        ("packet:v 10.9.0.2/24 mtu=0", "mtu: 0 is not an MTU"),
        (
            "packet:v 10.9.0.2/24 via 10.8.0.1",
            "\"packet:v\": no prefix of the interface covers",
        ),
        ("packet:v", "\"packet:v\": no address is given"),
        (
            "packet:v dhcp; packet:v dhcp",
            "device \"packet:v\" is given twice",
        ),
        (
            "packet:v 10.9.0.2/24; packet:w 10.9.0.2/16",
            "\"packet:w\": another interface has",
        ),
        (
            "packet:v dhcp via 10.0.0.1 via 10.0.0.2",
            "\"packet:v\": more than one default",
        ),
        (
            "packet:v dhcp route 10.0.0.0/8 via fe80::1",
            "\"packet:v\": the route to 10.0.0.0/8",
        ),
        (" ; ", "no interface is given"),
        (&" ".repeat(VALUE_BYTES_MAX + 1), "longer than 4096 bytes"),
    ] {
        let said = said(line(text));
        let expected = format!("KCMSHIM_STACK: {expected}");
        assert!(
            said.iter().any(|s| s.starts_with(&expected)),
            "{text:?}: {said:#?}"
        );
    }
}

#[test]
fn rules_that_contradict_themselves_are_told() {
    for (text, expected) in [
        (
            "use = \"both\"",
            "k.toml:1: rule 1: use = \"both\" is for sockets bound to",
        ),
        (
            "use = \"stack\"\naddress = \"127.0.0.0/8\"",
            "k.toml:1: rule 1: 127.0.0.0/8: loopback addresses are the kernel's",
        ),
        (
            "use = \"stack\"\ninterface = \"tap:x\"",
            "k.toml:1: rule 1: interface = \"tap:x\" is none of the interfaces: \"packet:veth0\"",
        ),
        (
            "name = \"n\"\nuse = \"kernel\"\non_failure = \"kernel\"",
            "k.toml:1: n: on_failure needs",
        ),
    ] {
        let said = said(rules(&format!("[[rule]]\n{text}")));
        let first = said.first().expect("one problem at least");
        assert!(first.starts_with(expected), "{text:?}: {said:#?}");
    }
}

#[test]
fn problems_and_names_stay_short() {
    let long = "x".repeat(10_000);
    for text in [format!("packet:{long}"), format!("packet:v {long}")] {
        let said = said(line(&text));
        assert!(said.iter().all(|s| s.len() < 500), "{said:#?}");
    }
    let many = "[[rule]]\n".repeat(1000);
    assert_eq!(said(file(&many)).len(), PROBLEMS_MAX);
    let too_many = "[[rule]]\nuse=\"kernel\"\n".repeat(RULES_MAX + 1);
    assert_eq!(
        said(file(&too_many)),
        [format!("k.toml:1: more than {RULES_MAX} [[rule]]")]
    );
    let nested = format!("a = {}", "[".repeat(100_000));
    assert_eq!(said(file(&nested)).len(), 1);
}

/// Text that looks like a configuration, most of the time.
fn near_toml() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "[[interface]]",
        "[[rule]]",
        "[defaults]",
        "[[interface.route]]",
        "device",
        "addresses",
        "gateway",
        "mtu",
        "role",
        "port",
        "use",
        "to",
        "via",
        "=",
        "\"packet:v\"",
        "\"10.9.0.2/24\"",
        "[\"10.9.0.2/24\", 3]",
        "\"10.9.0.1\"",
        "1500",
        "-1",
        "\"1-2\"",
        "true",
        "\n",
        " ",
        "#",
        "[",
        "{",
        "}",
        "]",
        "\"stack\"",
        "\"refuse=EPERM\"",
        "\"both\"",
        "\u{0}",
        "…",
    ]);
    prop::collection::vec(key, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn any_text_is_settings_or_problems(text in near_toml(), words in "[ -~;]{0,80}") {
        for settings in [file(&text), line(&words), rules(&text), line(&format!("{ONE} {words}"))] {
            match settings {
                Ok(settings) => { let _ = settings.plan_for(Path::new("x")); }
                Err(problems) => {
                    prop_assert!(!problems.is_empty());
                    for problem in problems {
                        prop_assert!(!problem.to_string().contains('\n'));
                    }
                }
            }
        }
    }

    #[test]
    fn prefixes_are_what_they_print(bits: u128, v4: bool, len in 0u8..=128) {
        let ip = if v4 { IpAddr::from((bits as u32).to_be_bytes()) } else { IpAddr::from(bits.to_be_bytes()) };
        let prefix = Prefix { ip, len: if v4 { len % 33 } else { len } };
        prop_assert_eq!(Prefix::parse(&prefix.to_string()), Some(prefix));
        prop_assert!(prefix.contains(ip));
        prop_assert_eq!(Prefix::parse(&ip.to_string()).map(|p| p.is_host()), Some(true));
    }
}
