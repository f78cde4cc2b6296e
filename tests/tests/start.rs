//! Ways in which a program comes to run under the library, and what it passes on.

use kcm_tests::{guest, program};

/// A shell under the library, with further variables, which prints what it passes on and whether it runs
/// under the library itself.
fn shell(script: &str, variables: &[(&str, &str)]) -> String {
    let mut command = program::under_shim("/bin/sh");
    command.env_remove("KCMSHIM_LIB").arg("-c").arg(script);
    for (name, value) in variables {
        command.env(name, value);
    }
    String::from_utf8(program::run(&mut command).stdout).unwrap()
}

/// Prints the variables that concern us, and in how many places the library is mapped.
const SHOW: &str =
    "env | grep -E '^(LD_PRELOAD|KCMSHIM_)' | sort; grep -c kcmshim /proc/self/maps || true";

#[test]
fn programs_inherit_the_library() {
    let shown = shell(SHOW, &[("KCMSHIM_LOG", "error")]);
    let preload = format!(
        "KCMSHIM_LOG=error\nLD_PRELOAD={}\n",
        guest::library().display()
    );
    assert!(shown.starts_with(&preload), "{shown}");
    assert_ne!(shown.strip_prefix(&preload), Some("0\n"));
}

#[test]
fn stripped_programs_are_left_alone() {
    let strip = [("KCMSHIM_EXEC", "strip"), ("KCMSHIM_LOG", "error")];
    assert_eq!(shell(SHOW, &strip), "0\n");
}

#[test]
fn other_preloads_are_passed_on() {
    let library = guest::library().display().to_string();
    let other = "libm.so.6";
    for list in [format!("{library}:{other}"), format!("{other} {library}")] {
        let shown = shell(SHOW, &[("KCMSHIM_EXEC", "strip"), ("LD_PRELOAD", &list)]);
        assert_eq!(shown, format!("LD_PRELOAD={other}\n0\n"));
    }
}

/// What a program puts into the environment of another is its own business.
#[test]
fn explicit_environments_are_passed_on() {
    let library = guest::library().display().to_string();
    let script = format!("LD_PRELOAD={library} {SHOW}");
    let shown = shell(&script, &[("KCMSHIM_EXEC", "strip")]);
    assert_eq!(shown, format!("LD_PRELOAD={library}\n0\n"));
    assert_eq!(
        shell("env -i grep -c kcmshim /proc/self/maps || true", &[]),
        "0\n"
    );
}
