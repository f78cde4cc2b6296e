//! What holds when the stack cannot be used: the kernel, or the errno that was asked for; and what rules
//! refuse. Whatever goes wrong costs one line.

use std::fs;
use std::path::Path;

use kcm_tests::lab::{self, Side};
use kcm_tests::program;

/// What the program printed, and what the library said.
fn outcome(program: &Path, line: &str, config: Option<&Path>) -> (String, String) {
    let mut command = lab::command(Side::Stack, program);
    command.env("KCMSHIM_STACK", line);
    if let Some(config) = config {
        command.env("KCMSHIM_CONFIG", config);
    }
    let output = program::run(&mut command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The kernel has neither address nor route: veth1's network is a directly connected one, so it starts
/// to connect and cannot bind.
const KERNEL: &str = "bind EADDRNOTAVAIL\nconnect EINPROGRESS\n";

#[test]
fn a_stack_that_cannot_start_leaves_the_kernel_or_the_errno() {
    let program = program::build("stack_policy", &[]);
    let device = "packet:nosuch0 10.9.0.2/24";
    let (did, said) = outcome(&program, device, None);
    assert_eq!(did, KERNEL);
    assert!(
        said.contains("nosuch0") && said.contains("no such interface"),
        "{said}"
    );

    let (did, said) = outcome(&program, &format!("{device} on_failure=ENETDOWN"), None);
    assert_eq!(did, "bind ENETDOWN\nconnect ENETDOWN\n");
    assert!(said.contains("nosuch0"), "{said}");

    let (did, said) = outcome(&program, lab::LINE, None);
    assert_eq!(
        (&did[..], &said[..]),
        ("bind ok\nconnect EINPROGRESS\n", "")
    );
}

#[test]
fn bad_settings_cost_one_line_and_leave_the_kernel() {
    let program = program::build("stack_policy", &[]);
    let (did, said) = outcome(&program, "packet:veth0 10.9.0.2/33", None);
    assert_eq!(did, KERNEL);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("KCMSHIM_STACK: \"10.9.0.2/33\" is not an address"),
        "{said}"
    );

    let config = program.with_extension("toml");
    fs::write(&config, "\n[[rule]]\nuse = \"stak\"\n").expect("the target directory is writable");
    let (did, said) = outcome(&program, lab::LINE, Some(&config));
    assert_eq!(did, KERNEL);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains(".toml:3: use: \"stak\" is not one of"),
        "{said}"
    );
    let (did, said) = outcome(&program, lab::LINE, Some(Path::new("/nonexistent")));
    assert_eq!(did, KERNEL);
    assert!(
        said.contains("/nonexistent: there is no such file"),
        "{said}"
    );
    // The tests' own variable is none of the library's business.
    assert!(!said.contains("KCMSHIM_LIB"), "{said}");
}

#[test]
fn rules_refuse_and_leave_to_the_kernel() {
    let program = program::build("stack_policy", &[]);
    let config = program.with_extension("toml");
    let rules = "[[rule]]\nrole = \"connect\"\naddress = \"10.9.0.9\"\nuse = \"refuse=EPERM\"\n\
                 [[rule]]\nprogram = \"another\"\nuse = \"refuse\"\n\
                 [[rule]]\nprogram = \"stack_policy*\"\nrole = \"udp\"\nuse = \"kernel\"\n";
    fs::write(&config, rules).expect("the target directory is writable");
    let (did, said) = outcome(&program, lab::LINE, Some(&config));
    assert_eq!(
        (&did[..], &said[..]),
        ("bind EADDRNOTAVAIL\nconnect EPERM\n", "")
    );
}
