//! Ways in which a program comes to run under the library, and what it passes on.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

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

/// All that is different in a process that does not use KCM.
#[test]
fn nothing_process_wide_changes() {
    let program = program::build("process_state", &[]);
    let state = |preload: Option<&Path>| {
        let mut command = Command::new(&program);
        command.env_remove("KCMSHIM_LIB").env_remove("LD_PRELOAD");
        if let Some(library) = preload {
            command.env("LD_PRELOAD", library);
        }
        String::from_utf8(program::run(&mut command).stdout).unwrap()
    };
    let bare = state(None);
    let shimmed = state(Some(guest::library()));
    let bare: BTreeSet<&str> = bare.lines().collect();
    let shimmed: BTreeSet<&str> = shimmed.lines().collect();
    assert!(bare.len() > 80, "{bare:#?}");
    let gone: Vec<_> = bare.difference(&shimmed).collect();
    assert!(gone.is_empty(), "{gone:#?}");
    let variable = format!("variable LD_PRELOAD={}", guest::library().display());
    let file = guest::library().file_name().unwrap().to_str().unwrap();
    let library = format!("mapped {file}");
    let expected = [library.as_str(), "mapped libgcc_s.so.1", &variable];
    let new: BTreeSet<_> = shimmed.difference(&bare).copied().collect();
    assert_eq!(new, BTreeSet::from(expected));
}

/// Nor in one that does, but for descriptors out of the way and one thread.
#[test]
fn kcm_changes_nothing_process_wide() {
    let program = program::build("process_state", &[]);
    program::run(program::under_shim(program).arg("kcm"));
}

#[test]
fn late_loading_harms_nothing() {
    let program = program::build("late_load", &[]);
    program::run(Command::new(program).arg(guest::library()));
}

/// Programs that use KCM in several processes, with a further preload before and after the library.
fn beside(other: &str, arguments: &[&str], first_only: bool) {
    let program = program::build("proc_family", arguments);
    let library = guest::library().display();
    let mut lists = vec![format!("{other}:{library}")];
    if !first_only {
        lists.push(format!("{library}:{other}"));
    }
    for list in lists {
        for check in ["prefork_receives", "rights_to_another_process", "helpers"] {
            let mut command = Command::new(&program);
            let output = program::run(command.arg(check).env("LD_PRELOAD", &list));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains("cannot be preloaded"), "{said}");
        }
    }
}

#[test]
fn beside_libeatmydata() {
    beside("libeatmydata.so", &[], false);
}

#[test]
fn beside_jemalloc() {
    beside("libjemalloc.so.2", &[], false);
}

/// AddressSanitizer's runtime wants to be the first library.
#[test]
fn beside_address_sanitizer() {
    let runtime = Command::new("cc")
        .arg("-print-file-name=libasan.so")
        .output();
    let runtime = String::from_utf8(runtime.unwrap().stdout).unwrap();
    let runtime = fs::canonicalize(runtime.trim()).expect("gcc comes with it");
    beside(runtime.to_str().unwrap(), &["-fsanitize=address"], true);
}

/// Root may give files away and mount; for others there is nothing to see.
fn is_root() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        let _ = writeln!(std::io::stdout(), "not run: needs root");
    }
    root
}

fn scratch(name: &str) -> PathBuf {
    let exe = env::current_exe().unwrap();
    let folder = exe.with_file_name(format!("{name}.{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The loader ignores LD_PRELOAD for programs that get rights from their file. One that inherits a KCM
/// socket reads and writes it as any program that does not load the library.
#[test]
fn set_user_id_programs_load_nothing() {
    if !is_root() {
        return;
    }
    let folder = scratch("set-id");
    let set_user_id = |from: &Path, name: &str| {
        let program = folder.join(name);
        fs::copy(from, &program).unwrap();
        std::os::unix::fs::chown(&program, Some(65534), None).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
        program
    };
    let cat = set_user_id(Path::new("/bin/cat"), "cat");
    let mut command = program::under_shim(cat);
    let maps = program::run(command.arg("/proc/self/maps")).stdout;
    assert!(!String::from_utf8_lossy(&maps).contains("kcmshim"));
    let reader = set_user_id(&program::build("proc_reader", &[]), "reader");
    let mut command = program::under_shim(program::build("proc_exec", &["-lutil"]));
    program::run(command.arg(reader).arg("shimmed"));
    fs::remove_dir_all(folder).unwrap();
}

/// The library in /etc/ld.so.preload of a mount namespace: every program loads it, whatever its
/// environment.
#[test]
fn preloaded_by_the_system() {
    if !is_root() {
        return;
    }
    let etc = scratch("etc");
    fs::copy("/etc/ld.so.cache", etc.join("ld.so.cache")).unwrap();
    let library = guest::library().display();
    fs::write(etc.join("ld.so.preload"), format!("{library}\n")).unwrap();
    let parent = program::build("proc_exec", &["-lutil"]);
    let heir = program::build("proc_heir", &[]);
    let script =
        "mount --bind \"$1\" /etc && env -i \"$2\" \"$3\" bare && env -i cat /proc/self/maps";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]);
    command
        .args([&etc, &parent, &heir])
        .env_remove("LD_PRELOAD");
    let maps = program::run(&mut command).stdout;
    assert!(String::from_utf8_lossy(&maps).contains("kcmshim"));
    fs::remove_dir_all(etc).unwrap();
}

/// Where the system preloads the library, it is in set-user-ID programs too: whoever starts one has no say
/// there, be it to have it read a file or open a device.
#[test]
fn set_user_id_programs_hear_no_settings() {
    if !is_root() {
        return;
    }
    let etc = scratch("etc-set-id");
    fs::copy("/etc/ld.so.cache", etc.join("ld.so.cache")).unwrap();
    let library = guest::library().display();
    fs::write(etc.join("ld.so.preload"), format!("{library}\n")).unwrap();
    let cat = etc.join("cat");
    fs::copy("/bin/cat", &cat).unwrap();
    let said = |mode: u32| {
        std::os::unix::fs::chown(&cat, Some(65534), None).unwrap();
        fs::set_permissions(&cat, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$1\" /etc && KCMSHIM_NOSUCH=x exec /etc/cat /proc/self/maps";
        command.args(["--mount", "sh", "-ec", script, "sh"]);
        command.arg(&etc).env_remove("LD_PRELOAD");
        let output = program::run(&mut command);
        assert!(String::from_utf8_lossy(&output.stdout).contains("kcmshim"));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(0o755).contains("KCMSHIM_NOSUCH"));
    assert_eq!(said(0o4755), "");
    fs::remove_dir_all(etc).unwrap();
}
