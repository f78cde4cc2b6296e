//! `kcmctl` and sockets that the stack serves: `ss`, `explain` with the rule that decided, `top`, `stat`
//! and `export`.

use std::fs;
use std::io::Write;

use kcm_tests::ctl::{Guest, Runtime, Terminal, last_picture, stack_address};
use kcm_tests::program;

#[test]
fn sockets_of_the_stack_are_shown_as_ss_does() {
    let runtime = Runtime::new();
    let address = stack_address();
    let guest = Guest::start_on_stack(&runtime, &address);
    let pid = guest.pid();
    let shown = runtime.says_at_last(&["ss", &pid], "bytes_received:5");
    let rows: Vec<&str> = shown.lines().collect();
    let listens = |row: &&str| {
        let words: Vec<_> = row.split_ascii_whitespace().collect();
        words[..2] == ["tcp", "LISTEN"] && words.last() == Some(&guest.kcm.as_str())
    };
    assert!(rows.iter().any(listens), "{shown}");
    let connected = |row: &&str| {
        let words: Vec<_> = row.split_ascii_whitespace().collect();
        words[..2] == ["tcp", "ESTAB"]
            && words[5] == format!("{address}:8080")
            && words.last() == Some(&guest.tcp.as_str())
    };
    let at = rows.iter().position(connected);
    let words = at.and_then(|at| rows.get(at + 1)).expect("it is shown");
    for part in [
        "cubic",
        "wscale:",
        "rto:",
        "rtt:",
        "cwnd:10",
        "bytes_acked:5",
    ] {
        assert!(words.contains(part), "no {part} in {words}");
    }
    let json = runtime.says(&["ss", &pid, "--json"]);
    assert!(json.contains("\"state\":\"ESTAB\""), "{json}");
    assert!(runtime.says(&["ps"]).contains("ctl_stack"));
    guest.end();
}

/// Rules for what `ctl_stack.c` does, with an interface; the line of each is part of the test.
fn rules(address: &str) -> String {
    format!(
        "[[interface]]
device = \"mem:\"
addresses = [\"{address}/16\"]

[[rule]]
name = \"web\"
role = \"listen\"
port = 8080
use = \"stack\"

[[rule]]
name = \"documents\"
address = \"192.0.2.0/24\"
use = \"refuse\"
"
    )
}

#[test]
fn rule_that_decided_is_named_with_its_line() {
    let runtime = Runtime::new();
    let address = &stack_address();
    let config = runtime.0.join("k.toml");
    fs::write(&config, rules(address)).expect("there is room");
    let mut command = program::under_shim(program::build("ctl_stack", &[]));
    command.env("KCMSHIM_CONFIG", &config);
    let mut guest = Guest::start_on_stack_as(&runtime, address, command);
    let (pid, listener, client) = (guest.pid(), guest.kcm.clone(), guest.tcp.clone());
    let numbers = guest.obey('r');
    let numbers: Vec<_> = numbers.split_ascii_whitespace().collect();
    let [udp, local, documents] = numbers[..] else {
        panic!("the guest said {numbers:?}");
    };
    let why = runtime.says_at_last(&["explain", &pid], "ESTAB");
    for part in [
        format!("fd {listener}: stack: tcp LISTEN 0.0.0.0:8080"),
        format!("stack: listen on {address}:8080 goes to mem:, by rule \"web\" in line 5"),
        format!("fd {client}: stack: tcp ESTAB {address}:"),
        format!("stack: connect to {address}:8080 goes to mem:, by default: a prefix of the stack"),
        "refused: setsockopt of option 19 at level 1 answered Protocol not available".to_owned(),
        format!("accepted from the listener that fd {listener} was"),
        format!("fd {udp}: stack: udp UNCONN"),
        "both: udp bind on 0.0.0.0:".to_owned(),
        " goes to the kernel and to every interface of the stack, by default: wildcard".to_owned(),
        format!("fd {local}: passed through to the kernel: socket:["),
        "passed: connect to 127.0.0.1:1 goes to the kernel, by default: loopback".to_owned(),
        format!("fd {documents}: passed through"),
        "refused: connect to 192.0.2.1:1 answered Permission denied (errno 13), by rule \"documents\" in line 11".to_owned(),
    ] {
        assert!(why.contains(&part), "no {part} in {why}");
    }
    let json = runtime.says(&["explain", &pid, documents, "--json"]);
    for part in [
        "\"rule\":\"documents\"",
        "\"line\":11",
        "\"verdict\":\"denied\"",
        "\"overwritten\":0",
    ] {
        assert!(json.contains(part), "no {part} in {json}");
    }
    guest.end();
}

#[test]
fn counters_of_the_stack_are_in_stat_and_export() {
    let runtime = Runtime::new();
    let guest = Guest::start_on_stack(&runtime, &stack_address());
    let pid = guest.pid();
    // The two ends of one connection, and one that waits for a neighbour.
    let metrics = runtime.says_at_last(&["export"], "kind=\"connections\"} 2");
    let has = |start: &str, end: &str| {
        let mut lines = metrics.lines();
        assert!(
            lines.any(|line| line.starts_with(start) && line.ends_with(end)),
            "no {start} … {end} in {metrics}"
        );
    };
    let label = format!("{{pid=\"{pid}\",program=\"ctl_stack");
    has(
        &format!("kcmshim_stack_sockets{label}"),
        "kind=\"listeners\"} 1",
    );
    has(&format!("kcmshim_stack_established_total{label}"), "} 2");
    has("# TYPE kcmshim_stack_rx_bytes_total counter", "");
    let totals = runtime.says(&["stat", &pid]);
    let insegs = totals.lines().find(|line| line.starts_with("stack InSegs"));
    assert!(insegs.is_some_and(|line| !line.ends_with(" 0")), "{totals}");
    let json = runtime.says(&["stat", &pid, "--json", "-i", "0.05", "-n", "1"]);
    for part in [
        "\"per_second\":{",
        "\"stack\":{\"RX-Bytes\":",
        "\"listeners\":1",
    ] {
        assert!(json.contains(part), "no {part} in {json}");
    }
    let rates = runtime.says(&["stat", &pid, "-i", "0.05", "-n", "2"]);
    assert!(
        rates.starts_with(" RX-Frm/s") && rates.lines().count() == 3,
        "{rates}"
    );
    let list = runtime.says(&["ps", "--json"]);
    assert!(
        list.contains("\"sockets\":{\"connections\":2,\"listeners\":1,\"udp\":0}"),
        "{list}"
    );
    guest.end();
}

#[test]
fn top_lists_who_uses_kcm_and_who_the_stack() {
    let runtime = Runtime::new();
    let kcm = Guest::start(&runtime);
    let stack = Guest::start_on_stack(&runtime, &stack_address());
    for (columns, rows) in [(80, 24), (200, 60)] {
        let mut terminal = Terminal::new(columns, rows);
        let mut top = terminal.spawn(runtime.command(&["top", "-i", "0.05"]));
        let shows = |all: &str| {
            let Some(picture) = last_picture(all) else {
                return false;
            };
            let at = |words: [&str; 2]| {
                let has = |row: &&str| words.iter().all(|word| row.contains(word));
                picture.iter().position(has)
            };
            let stack_row = at([&stack.pid(), "ctl_stack"]);
            let whole = picture.len() == usize::from(rows)
                && picture
                    .iter()
                    .all(|row| row.chars().count() <= usize::from(columns));
            let order = [at(["PSOCKS", "RX-Msg/s"]), at([&kcm.pid(), "ctl_guest"])];
            let order = [order, [at(["LISTEN", "RX-Frm/s"]), stack_row]].concat();
            // The stack's row: its number, two ends, a listener, no UDP.
            let numbers = stack_row.map(|row| picture[row].split_ascii_whitespace().skip(1));
            let counts = numbers.is_some_and(|all| all.take(3).eq(["2", "1", "0"]));
            whole && counts && order.iter().all(Option::is_some) && order.is_sorted()
        };
        terminal.read_until(&mut Vec::new(), shows);
        terminal.master.write_all(b"q").expect("top reads its keys");
        assert!(top.wait().expect("top is our child").success());
    }
    let json = runtime.says(&["top", "--json", "-i", "0.05"]);
    assert!(json.contains("\"connections\":2"), "{json}");
    kcm.end();
    stack.end();
}

#[test]
fn long_wait_for_rates_shows_a_bar() {
    let runtime = Runtime::new();
    let guest = Guest::start(&runtime);
    let mut terminal = Terminal::new(80, 24);
    let rates = ["stat", &guest.pid(), "-i", "2.1", "-n", "1"];
    let mut stat = terminal.spawn(runtime.command(&rates));
    let is_whole = |all: &str| all.contains("RX-Msg/s") && all.ends_with('\n');
    let all = terminal.read_until(&mut Vec::new(), is_whole);
    assert!(stat.wait().expect("it is our child").success());
    let (bars, lines) = all
        .rsplit_once("\r\x1b[K")
        .expect("bars come first, and go");
    assert!(bars.contains("[#") && bars.contains("next look"), "{bars}");
    assert!(
        lines.starts_with(" RX-Msg/s") && lines.lines().count() == 2,
        "{lines}"
    );
    guest.end();
}
