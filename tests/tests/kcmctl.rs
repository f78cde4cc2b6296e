//! `kcmctl` against programs that really run under the library: every view, pages that lie, pages
//! whose writer was killed, and `top` on terminals of two sizes.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use kcm_tests::ctl::{
    Guest, Runtime, Terminal, copy_for_all, guest_program, last_picture, lock, text, tool,
};
use kcm_tests::{guest, program};

#[test]
fn every_view_shows_what_the_program_did() {
    let runtime = Runtime::new();
    let guest = Guest::start(&runtime);
    let pid = guest.pid();
    let page = runtime.pages().join(&pid);
    let mode = |path: &Path| {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode(&runtime.pages()), mode(&page)), (0o700, 0o600));

    let json = runtime.says_at_last(&["mux", &pid, "--json"], "\"TX-Msgs\":1");
    for part in [
        "\"RX-Msgs\":3",
        "\"RX-Bytes\":24",
        "\"TX-Bytes\":6",
        "\"Attach\":1",
        "\"remote\":\"127.0.0.1:",
    ] {
        assert!(json.contains(part), "no {part} in {json}");
    }
    assert!(json.contains(&format!("\"fds\":[{}]", guest.kcm)), "{json}");
    let table = runtime.says(&["mux", &pid]);
    assert!(
        table.contains("kcm-0") && table.contains("psock-0"),
        "{table}"
    );
    let list = runtime.says(&["ps"]);
    assert!(
        list.lines()
            .any(|line| line.trim_start().starts_with(&pid) && line.contains("ctl_guest")),
        "{list}"
    );
    assert!(runtime.says(&["stat", &pid]).contains("Attach"));
    let rates = runtime.says(&["stat", &pid, "-i", "0.05", "-n", "2"]);
    assert_eq!(rates.lines().count(), 3, "{rates}");
    let metrics = runtime.says(&["export"]);
    let sample = format!("kcmshim_rx_msgs_total{{pid=\"{pid}\",program=\"ctl_guest");
    assert!(
        metrics
            .lines()
            .any(|line| line.starts_with(&sample) && line.ends_with(" 3")),
        "{metrics}"
    );

    let why = runtime.says(&["explain", &pid]);
    assert!(why.contains("instructions"), "{why}");
    assert!(why.contains(&format!("fd {}: KCM", guest.kcm)), "{why}");
    assert!(
        why.contains(&format!("fd {}: attached", guest.tcp)),
        "{why}"
    );
    assert!(
        why.contains("unsupported: bind answered") && why.contains("(2 times)"),
        "{why}"
    );
    for part in [
        "setsockopt of option 15 at level 1 answered",
        "refused: socketpair(AF_KCM) answered",
        "refused: io_uring_setup answered",
    ] {
        assert!(why.contains(part), "no {part} in {why}");
    }
    assert!(
        runtime
            .says(&["explain", &pid, "0"])
            .contains("passed through")
    );
    guest.end();
    assert!(!page.exists(), "the page outlives its process");
}

#[test]
fn program_without_kcm_leaves_no_trace() {
    let runtime = Runtime::new();
    let mut command = program::under_shim("/bin/ls");
    program::run(command.env("XDG_RUNTIME_DIR", &runtime.0));
    assert!(!runtime.pages().exists());
}

#[test]
fn page_of_a_killed_process_is_removed() {
    let runtime = Runtime::new();
    let guest = Guest::start(&runtime);
    let (pid, page) = (guest.pid(), runtime.pages().join(guest.pid()));
    guest.kill();
    assert!(page.exists());
    let list = runtime.says(&["ps", "--json"]);
    assert!(!list.contains(&format!("\"pid\":{pid},")), "{list}");
    assert!(!page.exists());
}

/// Where the first record of a page stands, in words (`shim/src/publish/layout.rs`).
const FIRST_RECORD: usize = 128 + 512 * 28;

#[test]
fn pages_that_lie_cost_one_line_each() {
    let runtime = Runtime::new();
    let guest = Guest::start(&runtime);
    let honest = fs::read(runtime.pages().join(guest.pid())).expect("the page can be read");
    let word = |at: usize, value: u64| {
        let mut bytes = honest.clone();
        bytes[at * 8..at * 8 + 8].copy_from_slice(&value.to_ne_bytes());
        bytes
    };
    let cases: [(&str, Vec<u8>); 8] = [
        ("truncated", honest[..honest.len() - 1].to_vec()),
        ("truncated", honest[..24].to_vec()),
        ("not a page", b"#!/bin/sh\n".repeat(10)),
        ("newer library", word(1, 3)),
        ("older library", word(1, 1)),
        ("claims 18446744073709551615 records", word(10, u64::MAX)),
        ("never at rest", word(2, 7)),
        ("claims to be of process", honest.clone()),
    ];
    let liar = runtime.pages().join("4194305"); // beyond the largest process number
    for (wanted, bytes) in cases {
        let mut file = File::create(&liar).expect("the directory is ours");
        file.write_all(&bytes).expect("there is room");
        lock(&file);
        let output = runtime.ctl(&["ps"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines: Vec<_> = said
            .lines()
            .filter(|line| line.contains("4194305"))
            .collect();
        assert!(
            output.status.success() && lines.len() == 1 && lines[0].contains(wanted),
            "{wanted}: {said}"
        );
        assert!(String::from_utf8_lossy(&output.stdout).contains(&guest.pid()));
    }
    // Every word of the header and of the first record, made absurd: answered, never a crash.
    let file = File::create(&liar).expect("the directory is ours");
    lock(&file);
    let pid = (3, 4_194_305);
    for at in (4..128).chain(FIRST_RECORD..FIRST_RECORD + 32) {
        let mut bytes = word(at, u64::MAX);
        bytes[pid.0 * 8..pid.0 * 8 + 8].copy_from_slice(&u64::to_ne_bytes(pid.1));
        file.write_all_at(&bytes, 0).expect("there is room");
        for view in ["mux", "stat", "explain"] {
            let output = runtime.ctl(&[view, "4194305"]);
            assert!(
                output.status.code().is_some_and(|code| code <= 1),
                "{view}, word {at}: {output:?}"
            );
        }
    }
    drop(file);
    fs::remove_file(&liar).expect("it is ours");
    symlink("/etc/passwd", &liar).expect("the directory is ours");
    assert!(String::from_utf8_lossy(&runtime.ctl(&["ps"]).stderr).contains("4194305"));
    guest.end();
}

#[test]
fn page_that_is_cut_or_filled_with_chance_is_answered() {
    let runtime = Runtime::new();
    let guest = Guest::start(&runtime);
    let honest = fs::read(runtime.pages().join(guest.pid())).expect("the page can be read");
    let liar = runtime.pages().join("4194305");
    let file = File::create(&liar).expect("the directory is ours");
    lock(&file);
    let mut seed = 1u64;
    let mut chance = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..60 {
        let mut bytes = honest.clone();
        bytes[24..32].copy_from_slice(&u64::to_ne_bytes(4_194_305));
        for _ in 0..1 << (round % 12) {
            let at = 4 * 8 + chance() as usize % (bytes.len() - 4 * 8);
            bytes[at] = chance() as u8;
        }
        if round % 3 == 0 {
            bytes.truncate(chance() as usize % bytes.len());
        }
        file.set_len(0).expect("it is ours");
        file.write_all_at(&bytes, 0).expect("there is room");
        for view in [
            &["mux", "4194305"][..],
            &["explain", "4194305", "--json"],
            &["export"],
        ] {
            let output = runtime.ctl(view);
            let code = output.status.code();
            assert!(code.is_some_and(|code| code <= 1), "{view:?}: {output:?}");
        }
    }
    guest.end();
}

#[test]
fn decisions_and_sockets_that_found_no_room_are_counted() {
    let runtime = Runtime::new();
    let guest = Guest::start(&runtime);
    let mut bytes = fs::read(runtime.pages().join(guest.pid())).expect("the page can be read");
    let place = |word: usize| word * 8..word * 8 + 8;
    // Words of the header: the process, sockets left out, decisions ever made.
    let made = u64::from_ne_bytes(bytes[place(12)].try_into().expect("a word"));
    for (word, value) in [(3, 4_194_305), (11, 7), (12, made + 100)] {
        bytes[place(word)].copy_from_slice(&u64::to_ne_bytes(value));
    }
    let mut file = File::create(runtime.pages().join("4194305")).expect("the directory is ours");
    file.write_all(&bytes).expect("there is room");
    lock(&file);
    let why = runtime.says(&["explain", "4194305"]);
    let kept = format!("100 of {} decisions are not kept", made + 100);
    assert!(why.contains(&kept), "{why}");
    assert!(
        why.contains("7 sockets more than the page has room for"),
        "{why}"
    );
    let json = runtime.says(&["explain", "4194305", "--json"]);
    assert!(
        json.contains("\"overwritten\":100") && json.contains("\"sockets_left_out\":7"),
        "{json}"
    );
    guest.end();
}

/// The user and group of nobody.
const NOBODY: u32 = 65_534;

#[test]
fn other_users_see_nothing_and_root_sees_all() {
    let runtime = Runtime::new();
    let all = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&runtime.0, all).expect("it is ours");
    // SAFETY: asks, and changes nothing.
    if unsafe { libc::geteuid() } != 0 {
        let said = runtime.complains(&["mux", "1"]);
        assert!(said.contains("another user"), "{said}");
        return;
    }
    let copy = runtime.0.join("kcmctl");
    copy_for_all(tool(), &copy);
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new(&copy);
        command.args(arguments).env("XDG_RUNTIME_DIR", &runtime.0);
        command.uid(NOBODY).gid(NOBODY).output().expect("it runs")
    };
    let guest = Guest::start(&runtime);
    let pid = guest.pid();
    for arguments in [
        &["mux", &pid][..],
        &["explain", &pid],
        &["trace", &pid],
        &["pcap", &pid, "-w", "-"],
    ] {
        let output = nobody(arguments);
        let said = text(&output.stderr);
        assert!(
            said.contains("another user") && said.lines().count() == 1,
            "{said}"
        );
        assert_eq!(output.status.code(), Some(1));
    }
    let listed = text(&nobody(&["ps"]).stdout);
    assert!(!listed.contains("ctl_guest"), "{listed}");
    guest.end();

    let (library, program) = (runtime.0.join("libkcmshim.so"), runtime.0.join("guest"));
    copy_for_all(guest::library(), &library);
    copy_for_all(guest_program(), &program);
    let mut command = Command::new(program);
    command
        .env("LD_PRELOAD", library)
        .env_remove("XDG_RUNTIME_DIR");
    command.uid(NOBODY).gid(NOBODY);
    let guest = Guest::run(command);
    let pid = guest.pid();
    runtime.says_at_last(&["mux", &pid, "--json"], "\"TX-Msgs\":1");
    let list = runtime.says(&["ps", "--json"]);
    assert!(list.contains(&format!("\"pid\":{pid},")), "{list}");
    guest.end();
}

#[test]
fn socket_of_another_process_is_explained_where_it_is_used() {
    let runtime = Runtime::new();
    let mut guest = Guest::start(&runtime);
    let child = guest.obey('f');
    let why = runtime.says(&["explain", &child]);
    let owner = format!("fd {}: KCM: a socket of process {}", guest.kcm, guest.pid());
    assert!(why.contains(&owner), "{why}");
    guest.end();
}

#[test]
fn decisions_are_told_as_they_happen_if_asked_for() {
    let runtime = Runtime::new();
    let mut command = program::under_shim(guest_program());
    command.env("XDG_RUNTIME_DIR", &runtime.0);
    let quiet = program::run(&mut command);
    assert_eq!(text(&quiet.stderr), "");
    let told = program::run(command.env("KCMSHIM_LOG", "debug"));
    let told = text(&told.stderr);
    for part in [
        "KCM: socket(AF_KCM) made a SOCK_DGRAM socket",
        "attached: SIOCKCMATTACH made it psock 0 of mux 0",
        "unsupported: bind answered errno 95",
        "refused: socketpair(AF_KCM) answered errno 95",
    ] {
        let has = |line: &str| line.starts_with("kcmshim: ") && line.contains(part);
        assert!(told.lines().any(has), "no {part} in {told}");
    }
}

#[test]
fn doctor_and_run_say_what_cannot_work() {
    let runtime = Runtime::new();
    let program = guest_program().to_str().expect("paths here are text");
    assert!(runtime.says(&["doctor"]).contains("AF_KCM"));
    assert!(
        runtime
            .says(&["doctor", program])
            .contains("can run under kcmshim")
    );
    let fixed = program::build("ctl_guest", &["-static"]);
    let fixed = fixed.to_str().expect("paths here are text");
    let said = runtime.says(&["doctor", fixed]);
    assert!(said.contains("statically linked"), "{said}");
    let refused = runtime.ctl(&["doctor", "/nonexistent"]);
    assert!(!refused.status.success() && !refused.stderr.is_empty());
    // The library is looked for beside the tool.
    let installed = runtime.0.join("bin/kcmctl");
    fs::create_dir(runtime.0.join("bin")).expect("there is room");
    copy_for_all(tool(), &installed);
    let run = || {
        let mut command = Command::new(&installed);
        command.args(["run", "--", "/bin/sh", "-c", "echo $LD_PRELOAD"]);
        command.output().expect("the tool runs")
    };
    assert!(String::from_utf8_lossy(&run().stderr).contains("libkcmshim.so lies neither in"));
    fs::create_dir(runtime.0.join("lib")).expect("there is room");
    let library = runtime.0.join("lib/libkcmshim.so");
    fs::copy(guest::library(), &library).expect("there is room");
    let set = String::from_utf8_lossy(&run().stdout).trim().to_owned();
    assert_eq!(fs::canonicalize(set).ok(), fs::canonicalize(library).ok());
}

#[test]
fn run_checks_settings_with_a_sentence_each_and_passes_them_on() {
    let runtime = Runtime::new();
    let tool = runtime.install();
    let config = runtime.0.join("k.toml");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&tool);
        command.current_dir(&runtime.0).arg("run").args(arguments);
        let shown = "echo \"$KCMSHIM_CONFIG|$KCMSHIM_STACK\"";
        command.args(["--", "/bin/sh", "-c", shown]);
        let output = command.output().expect("the tool runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    };
    let line = "mem: 10.9.0.2/24";
    assert_eq!(
        run(&["--stack", line]),
        (format!("|{line}\n"), String::new())
    );

    fs::write(&config, "[[rule]]\nuse = \"kernel\"\n").expect("there is room");
    let (shown, said) = run(&["--config", "k.toml", "--stack", line]);
    assert_eq!(said, "");
    assert_eq!(shown, format!("{}|{line}\n", config.display()));

    fs::write(&config, "[[rule]]\nuse = \"kernal\"\nprot = 1\n").expect("there is room");
    let (_, said) = run(&["--config", "k.toml"]);
    let said: Vec<_> = said.lines().collect();
    let place = format!("kcmctl: {}", config.display());
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with(&format!(
        "{place}:2: use: \"kernal\" is not one of \"stack\""
    )));
    assert!(said[1].starts_with(&format!(
        "{place}:3: rule.\"prot\" is not known; allowed: name"
    )));

    let (_, said) = run(&["--stack", "packet:nosuch0 10.9.0.2/24"]);
    assert!(said.starts_with("kcmctl: packet:nosuch0: "), "{said}");
    assert!(said.contains("no such interface"), "{said}");
    let (_, said) = run(&["--config", "/nonexistent"]);
    assert!(
        said.starts_with("kcmctl: /nonexistent: No such file"),
        "{said}"
    );
}

#[test]
fn top_fits_terminals_of_either_size_and_follows_them() {
    let runtime = Runtime::new();
    let guest = Guest::start(&runtime);
    for (size, other) in [((80, 24), (60, 20)), ((200, 60), (80, 24))] {
        let mut terminal = Terminal::new(size.0, size.1);
        let before = terminal.modes();
        let mut top = terminal.spawn(runtime.command(&["top", "-i", "0.05"]));
        let mut seen = Vec::new();
        let shows = |all: &str, (columns, rows): (u16, u16), wanted: &str| {
            last_picture(all).is_some_and(|picture| {
                picture.len() == usize::from(rows)
                    && picture
                        .iter()
                        .all(|row| row.chars().count() <= usize::from(columns))
                    && picture.iter().any(|row| row.contains(wanted))
                    && picture.last().is_some_and(|row| row.starts_with("q quit"))
            })
        };
        terminal.read_until(&mut seen, |all| shows(all, size, "ctl_guest"));
        terminal.master.write_all(b"t").expect("top reads its keys");
        terminal.read_until(&mut seen, |all| shows(all, size, "by TX-Msg/s"));
        terminal.resize(other.0, other.1);
        terminal.read_until(&mut seen, |all| shows(all, other, &guest.pid()));
        terminal.master.write_all(b"q").expect("top reads its keys");
        assert!(top.wait().expect("top is our child").success());
        assert_eq!(
            terminal.modes(),
            before,
            "the terminal is left as it was found"
        );
    }
    guest.end();
}

#[test]
fn lines_are_cut_on_a_terminal_and_whole_in_a_pipe() {
    let runtime = Runtime::new();
    let guest = Guest::start(&runtime);
    let pid = guest.pid();
    for view in ["mux", "explain", "ps", "doctor"] {
        let arguments: &[&str] = match view {
            "mux" | "explain" => &[view, &pid],
            _ => &[view],
        };
        for columns in [40, 80, 200] {
            let mut terminal = Terminal::new(columns, 24);
            let child = RefCell::new(terminal.spawn(runtime.command(arguments)));
            let mut seen = Vec::new();
            // A terminal that nobody reads takes a page or so, and a machine may have many processes to show.
            let ended = || child.borrow_mut().try_wait().expect("it is our child");
            let all =
                terminal.read_until(&mut seen, |all| all.ends_with('\n') && ended().is_some());
            assert!(ended().is_some_and(|status| status.success()));
            let widest = all
                .lines()
                .map(|line| line.trim_end().chars().count())
                .max();
            assert!(widest <= Some(columns.into()), "{view}: {all}");
        }
        let piped = runtime.says(arguments);
        assert!(!piped.contains('\x1b') && !piped.contains('\r'), "{piped}");
    }
    guest.end();
}
