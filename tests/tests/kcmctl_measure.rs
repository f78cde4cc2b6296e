//! `kcmctl bench` and `kcmctl doctor --measure`, from an installed tree: what they measure is not judged,
//! that they do is.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kcm_tests::ctl::{PATIENCE, Runtime, Terminal, text};

/// The tool of an installed tree.
fn command(tool: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(tool);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// What it prints when all is well.
fn says(tool: &Path, arguments: &[&str]) -> String {
    let output = command(tool, arguments).output().expect("the tool runs");
    let said = text(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    text(&output.stdout)
}

#[test]
fn bench_measures_every_row_and_draws_them() {
    let runtime = Runtime::new();
    let (tool, chart) = (runtime.install(), runtime.0.join("chart.svg"));
    let path = chart.to_str().expect("paths here are text");
    // Settings of the user's are not those of the measurement.
    let mut bench = command(&tool, &["bench", "--quick", "--json", "--svg", path]);
    bench.env("KCMSHIM_KCM", "kernel");
    let output = bench.output().expect("the tool runs");
    let json = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stderr),
        "",
        "no bar where there is no terminal"
    );
    for title in [
        "receive 64 B",
        "receive 16 KiB",
        "send 64 B",
        "send 16 KiB",
        "ping-pong",
        "idle",
    ] {
        assert!(
            json.contains(&format!("\"title\":\"{title}")),
            "no {title} in {json}"
        );
    }
    assert!(
        !json.contains("\"median\":null") && !json.contains("\"ratio\":null"),
        "{json}"
    );
    let chart = fs::read_to_string(chart).expect("it is drawn");
    assert!(chart.starts_with("<svg ") && chart.ends_with("</svg>\n"));
    let rows = json.matches("\"field\":").count();
    assert_eq!(
        chart.matches("<rect x=").count(),
        rows,
        "a bar for each row"
    );
    let opened = |tag: &str| chart.matches(&format!("<{tag} ")).count();
    assert_eq!(opened("text"), chart.matches("</text>").count());
    assert!(
        !chart.contains("NaN") && !chart.contains("failed"),
        "{chart}"
    );

    let refused = command(&tool, &["bench", "--svg", "/nonexistent/chart.svg"]);
    complains(refused, "/nonexistent/chart.svg: No such file");
    complains(
        command(&tool, &["bench", "--only", "nothing"]),
        "no part of the table",
    );
    // The measured programs are this tool, by a word that nobody types.
    let script = says(&tool, &["completions", "bash"]);
    assert!(script.contains("--svg") && !script.contains("bench-part"));
    complains(
        command(&tool, &["bench-part", "rx-recvmsg"]),
        "to be started by it",
    );
}

/// One line on standard error, and nothing else.
fn complains(mut command: Command, wanted: &str) {
    let start = Instant::now();
    let output = command.output().expect("the tool runs");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(wanted) && said.lines().count() == 1, "{said}");
    assert_eq!(text(&output.stdout), "");
    assert!(
        start.elapsed() < PATIENCE,
        "said before anything is measured"
    );
}

#[test]
fn bench_shows_a_bar_and_then_a_table_that_fits() {
    let runtime = Runtime::new();
    let tool = runtime.install();
    for (columns, rows) in [(80, 24), (200, 60)] {
        let mut terminal = Terminal::new(columns, rows);
        let quick = ["bench", "--quick", "--only", "ping-pong"];
        let mut bench = terminal.spawn(command(&tool, &quick));
        let is_whole = |all: &str| all.trim_end().ends_with("rates.");
        let all = terminal.read_until(&mut Vec::new(), is_whole);
        assert!(bench.wait().expect("it is our child").success());
        let (bars, table) = all
            .rsplit_once("\r\x1b[K")
            .expect("bars come first, and go");
        assert!(bars.contains("[....................]   0 %"), "{bars}");
        assert!(
            bars.contains("ping-pong 64 B, blocking: KCM, p50"),
            "{bars}"
        );
        assert!(
            table.starts_with("WORK") && table.contains("raw TCP, p99"),
            "{table}"
        );
        for line in table.lines().chain(bars.split("\r\x1b[K")) {
            assert!(
                line.trim_end().chars().count() <= usize::from(columns),
                "{line}"
            );
        }
    }
}

/// Processes below this one, their children too.
fn descendants(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).unwrap_or_default();
    let children = children
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok());
    children
        .flat_map(|child| [vec![child], descendants(child)].concat())
        .collect()
}

#[test]
fn interrupted_measurement_leaves_nothing_behind() {
    let runtime = Runtime::new();
    let tool = runtime.install();
    for arguments in [&["bench"][..], &["doctor", "--measure"]] {
        let deadline = Instant::now() + PATIENCE;
        let below = loop {
            // Started in the background by a script this process ignores SIGINT, and so would the tool.
            let mut run = Command::new("env");
            run.arg("--default-signal=INT").arg(&tool).args(arguments);
            run.stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0);
            let mut child = run.spawn().expect("it starts");
            let (mut below, mut ended) = (Vec::new(), None);
            // A part and its peer, or a stage and its peer.
            while below.len() < 2 && ended.is_none() {
                assert!(Instant::now() < deadline, "{arguments:?} starts nothing");
                thread::sleep(Duration::from_millis(1));
                below = descendants(child.id());
                ended = child.try_wait().expect("it is our child");
            }
            if ended.is_none() {
                // SAFETY: the number is that of our child, which has not been waited for.
                unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
            }
            let status = child.wait().expect("it is our child");
            if ended.is_none() && !status.success() {
                break below;
            }
            // Where this process sleeps for long, the measurement is over before it is interrupted.
            assert!(status.success(), "{arguments:?}: {status}");
        };
        let gone = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rsplit(") ").next().unwrap_or_default();
            stat.is_empty() || state.starts_with('Z')
        };
        while !below.iter().all(gone) {
            assert!(
                Instant::now() < deadline,
                "{below:?} are left of {arguments:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn doctor_measures_devices_beside_the_kernel() {
    let runtime = Runtime::new();
    let tool = runtime.install();
    let line = "packet:nosuch0 10.9.0.2/24; mem: 10.9.1.2/24";
    let output = command(&tool, &["doctor", "--stack", line])
        .output()
        .expect("the tool runs");
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for part in [
        "round trip, 64 B",
        "sending",
        "receiving",
        "kernel's stack here",
        "measured on a veth pair of its own in new network namespaces; packet:nosuch0 itself",
        "mem:             cannot be measured here: a memory device has no kernel at its other end",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    let json = says(&tool, &["doctor", "--measure", "--json"]);
    assert_eq!(json.matches("\"stack_is\":\"").count(), 3, "{json}");
    complains(
        command(&tool, &["doctor", "--stack", "packet: 1"]),
        "packet:",
    );
    let both = command(&tool, &["doctor", "--measure", "/bin/ls"]).output();
    assert_eq!(both.expect("the tool runs").status.code(), Some(2));
}

#[test]
fn doctor_says_why_nothing_can_be_measured() {
    let runtime = Runtime::new();
    let tool = runtime.install();
    // A user namespace in which no network namespace may be made.
    let script = "echo 0 >/proc/sys/user/max_net_namespaces; exec \"$0\" doctor --measure";
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "sh", "-c", script])
        .arg(&tool);
    let output = command.output().expect("util-linux is installed");
    let said = text(&output.stdout);
    let wanted = "cannot be measured here: no network namespace can be made: No space left";
    assert!(
        output.status.success() && said.contains(wanted),
        "{said}{}",
        text(&output.stderr)
    );
}

#[test]
fn doctor_shows_a_bar_while_it_measures() {
    let runtime = Runtime::new();
    let tool = runtime.install();
    for (columns, rows) in [(80, 24), (200, 60)] {
        let mut terminal = Terminal::new(columns, rows);
        let mut doctor = terminal.spawn(command(&tool, &["doctor", "--measure"]));
        let all = terminal.read_until(&mut Vec::new(), |all| all.contains("namespaces."));
        assert!(doctor.wait().expect("it is our child").success());
        let (bars, table) = all
            .rsplit_once("\r\x1b[K")
            .expect("bars come first, and go");
        assert!(bars.contains("packet: round 3, the stack in the"), "{bars}");
        for line in table.lines().chain(bars.split("\r\x1b[K")) {
            assert!(
                line.trim_end().chars().count() <= usize::from(columns),
                "{line}"
            );
        }
    }
}
