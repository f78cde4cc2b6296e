//! `kcmctl trace` and `kcmctl pcap` against programs that really run under the library.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use kcm_tests::ctl::{Guest, Runtime, await_file, stack_address, text};
use kcm_tests::program;

/// A trace under way.
struct Trace {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Trace {
    /// Starts one and waits for its headings: from then on nothing is missed.
    fn start(runtime: &Runtime, arguments: &[&str]) -> Self {
        let mut command = runtime.command(&["trace"]);
        command.args(arguments).stdout(Stdio::piped());
        let mut child = command.spawn().expect("kcmctl runs");
        let said = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut trace = Self { child, said };
        assert!(trace.line().contains("FIRST BYTES"));
        trace
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("a pipe can be read");
        line
    }

    /// What it still says until it ends by itself.
    fn rest(mut self) -> Vec<String> {
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).expect("it is text");
        assert!(self.child.wait().expect("it is our child").success());
        rest.lines().map(str::to_owned).collect()
    }

    fn stop(mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }
}

/// The columns of a line but its time.
fn columns(line: &str) -> Vec<&str> {
    line.split_ascii_whitespace().skip(1).collect()
}

#[test]
fn messages_are_shown_as_they_pass() {
    let runtime = Runtime::new();
    let mut guest = Guest::start(&runtime);
    let pid = guest.pid();
    let trace = Trace::start(&runtime, &[&pid, "-n", "4", "--bytes", "8"]);
    assert_eq!(guest.obey('m'), "done");
    let lines = trace.rest();
    assert_eq!(lines.len(), 4, "{lines:?}");
    for (line, last) in lines.iter().zip(["31", "32", "33"]) {
        let columns = columns(line);
        assert_eq!(columns[..5], ["0", "0", "0", "RX", "8"], "{line}");
        assert_eq!(columns[5..13].last(), Some(&last), "{line}");
    }
    assert!(lines[0].ends_with("message1"), "{}", lines[0]);
    assert_eq!(columns(&lines[3])[3..5], ["TX", "6"], "{}", lines[3]);
    assert!(lines[3].ends_with("answer"), "{}", lines[3]);
    guest.end();
}

#[test]
fn filters_are_kept() {
    let runtime = Runtime::new();
    let mut guest = Guest::start(&runtime);
    let (pid, kcm, tcp) = (guest.pid(), guest.kcm.clone(), guest.tcp.clone());
    let cases: [(&[&str], &str); 8] = [
        (&["--tx"], "TX TX"),
        (&["--rx", "-n", "4"], "RX RX RX RX"),
        (&["--min-length", "7", "--tx"], ""),
        (&["--max-length", "7"], "TX TX"),
        (&["--psock", "1"], ""),
        (&["--mux", "0", "--kcm", "0", "--tx"], "TX TX"),
        (&["--fd", &kcm, "--tx"], "TX TX"),
        (&["--fd", &tcp, "--tx"], "TX TX"),
    ];
    let traces: Vec<_> = cases
        .chunks(4) // as many tracers as a process takes
        .flat_map(|cases| {
            let started: Vec<_> = cases
                .iter()
                .map(|(filter, _)| Trace::start(&runtime, &[&[pid.as_str()], *filter].concat()))
                .collect();
            guest.obey('m');
            guest.obey('m');
            let directions = started
                .into_iter()
                .zip(cases)
                .map(|(mut trace, (_, wanted))| {
                    let count = wanted.split_ascii_whitespace().count();
                    let seen: Vec<_> = (0..count)
                        .map(|_| columns(&trace.line())[3].to_owned())
                        .collect();
                    trace.stop();
                    seen.join(" ")
                });
            directions.collect::<Vec<_>>()
        })
        .collect();
    let wanted: Vec<_> = cases.iter().map(|(_, wanted)| *wanted).collect();
    assert_eq!(traces, wanted);
    let refused = runtime.complains(&["trace", &pid, "--fd", "0"]);
    assert!(refused.contains("neither a KCM socket"), "{refused}");
    guest.end();
}

/// What the process says to a stranger at its door.
fn answer(door: &Path, request: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(door).expect("the door is open");
    stream.write_all(request).expect("there is room");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn strangers_and_crowds_are_turned_away() {
    let runtime = Runtime::new();
    let mut guest = Guest::start(&runtime);
    let pid = guest.pid();
    let door = runtime.pages().join(format!("{pid}.trace"));
    let kind = |answer: &[u8]| u64::from_ne_bytes(answer[..8].try_into().expect("eight bytes"));
    assert_eq!(kind(&answer(&door, &[0xff; 128])), 3, "no such version");
    drop(UnixStream::connect(&door).expect("the door is open")); // and says nothing
    let half = UnixStream::connect(&door).expect("the door is open");
    (&half).write_all(b"KCMTRACE").expect("there is room");
    assert_eq!(guest.obey('m'), "done");
    drop(half);
    let mut crowd: Vec<_> = (0..4).map(|_| Trace::start(&runtime, &[&pid])).collect();
    let refused = runtime.complains(&["trace", &pid]);
    assert!(refused.contains("as many as it allows"), "{refused}");
    crowd.pop().expect("there are four").stop();
    // The place is free once the process has heard of it, which it does before another caller.
    let mut again = Trace::start(&runtime, &[&pid, "-n", "1"]);
    assert_eq!(guest.obey('m'), "done");
    assert!(again.line().contains("message1"));
    crowd.into_iter().for_each(Trace::stop);
    guest.end();
    assert!(!door.exists(), "the door outlives its process");
}

/// Bytes of a record's head, and where its count of losses stands (`publish/trace/wire.rs`).
const HEAD_BYTES: usize = 12 * 8;
const LOST_AT: usize = 3 * 8;

#[test]
fn tracer_that_does_not_read_costs_messages_of_the_trace_and_nothing_else() {
    let runtime = Runtime::new();
    let mut guest = Guest::start(&runtime);
    let door = runtime.pages().join(format!("{}.trace", guest.pid()));
    let mut lazy = UnixStream::connect(&door).expect("the door is open");
    let any = u64::MAX;
    let magic = u64::from_ne_bytes(*b"KCMTRACE");
    let mut request = vec![magic, 1, 1, 8, 3, 0, any, any, any, any];
    request.resize(16, 0);
    let request: Vec<u8> = request.iter().flat_map(|word| word.to_ne_bytes()).collect();
    lazy.write_all(&request).expect("there is room");
    let mut hello = [0; HEAD_BYTES];
    lazy.read_exact(&mut hello).expect("it is greeted");
    assert_eq!(guest.obey('b'), "done");
    // What was held for it comes when it reads at last; the first record after the gap tells of it.
    let pause = Some(std::time::Duration::from_millis(50));
    lazy.set_read_timeout(pause).expect("a pause that is not 0");
    let (mut held, mut records, mut lost) = (Vec::new(), 0, 0);
    while lost == 0 {
        let mut part = [0; 4096];
        match lazy.read(&mut part) {
            Ok(count) => held.extend_from_slice(&part[..count]),
            Err(_) => _ = guest.obey('m'), // nothing is left: one more, after the gap
        }
        while held.len() >= HEAD_BYTES + 8 {
            let word = held[LOST_AT..LOST_AT + 8].try_into().expect("eight bytes");
            (records, lost) = (records + 1, u64::from_ne_bytes(word));
            held.drain(..HEAD_BYTES + 8);
        }
    }
    assert!(lost > 0 && records > 1000, "{records} came, {lost} did not");
    guest.end();
}

#[test]
fn trace_ends_with_its_process() {
    let runtime = Runtime::new();
    let mut guest = Guest::start(&runtime);
    let mut trace = Trace::start(&runtime, &[&guest.pid()]);
    guest.obey('m');
    let lines: Vec<_> = (0..4).map(|_| trace.line()).collect();
    assert!(lines[0].contains("message1"), "{lines:?}");
    guest.kill();
    assert_eq!(trace.rest().len(), 0);
}

#[test]
fn capture_is_what_tshark_takes_apart() {
    let runtime = Runtime::new();
    let mut guest = Guest::start(&runtime);
    let pid = guest.pid();
    let file = runtime.0.join("capture.pcapng");
    let path = file.to_str().expect("paths here are text");
    let mut capture = runtime
        .command(&["pcap", &pid, "-w", path, "-n", "4"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("kcmctl runs");
    // It is under way once the file has its interface.
    await_file(&file, 100);
    assert_eq!(guest.obey('m'), "done");
    let mut said = String::new();
    let stderr = capture.stderr.as_mut().expect("stderr is piped");
    stderr.read_to_string(&mut said).expect("it is text");
    assert!(capture.wait().expect("it is our child").success());
    assert_eq!(said, "4 messages, 30 bytes, 0 dropped\n");
    let fields = [
        "-T",
        "fields",
        "-e",
        "frame.comment",
        "-e",
        "data.data",
        "-e",
        "exported_pdu.ipv4_src",
        "-e",
        "frame.packet_flags_direction",
    ];
    let shown = program::run(Command::new("tshark").args(["-n", "-r", path]).args(fields));
    let shown = text(&shown.stdout);
    let rows: Vec<Vec<_>> = shown.lines().map(|row| row.split('\t').collect()).collect();
    let comment = "mux 0, kcm 0, psock 0";
    assert_eq!(rows.len(), 4, "{shown}");
    assert_eq!(
        rows[0],
        [comment, "6d65737361676531", "127.0.0.1", "0x00000001"]
    );
    assert_eq!(
        rows[3],
        [comment, "616e73776572", "127.0.0.1", "0x00000002"]
    );
    guest.end();
}

#[test]
fn frames_of_the_stack_are_what_tshark_takes_apart() {
    let runtime = Runtime::new();
    let mut guest = Guest::start_on_stack(&runtime, &stack_address());
    let file = runtime.0.join("frames.pcapng");
    let path = file.to_str().expect("paths here are text");
    let pid = guest.pid();
    let mut capture = runtime
        .command(&["pcap", &pid, "--frames", "-n", "1", "-w", path])
        .spawn()
        .expect("kcmctl runs");
    await_file(&file, 100);
    assert_eq!(guest.obey('f'), "done");
    assert!(capture.wait().expect("it is our child").success());
    let shown = program::run(Command::new("tshark").args(["-n", "-r", path]));
    let shown = text(&shown.stdout);
    assert!(
        shown.contains("ARP") && shown.contains("Who has 10.77.0.9?"),
        "{shown}"
    );
    guest.end();
}

/// What callgrind saw run: instructions of its own and calls of each function (callgrind's manual, "File
/// Format").
#[derive(Default)]
struct Profile(BTreeMap<String, (u64, u64)>);

impl Profile {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("callgrind has written it");
        let (mut names, mut all) = (BTreeMap::new(), Self::default());
        let (mut current, mut callee) = (String::new(), String::new());
        // The number of a function, and at its first time its name.
        let mut name = |word: &str| {
            let (number, name) = word.split_once(')').expect("(NUMBER) NAME");
            let known: &mut String = names.entry(number.to_owned()).or_default();
            if !name.is_empty() {
                *known = name.trim().to_owned();
            }
            known.clone()
        };
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(word) = line.strip_prefix("fn=") {
                current = name(word);
            } else if let Some(word) = line.strip_prefix("cfn=") {
                callee = name(word);
            } else if let Some(words) = line.strip_prefix("calls=") {
                let count = words
                    .split(' ')
                    .next()
                    .and_then(|count| count.parse::<u64>().ok());
                all.0.entry(callee.clone()).or_default().1 += count.expect("calls=COUNT PLACE");
                lines.next(); // what the callee took
            } else if line.starts_with([
                '+', '-', '*', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9',
            ]) && let Some(Ok(own)) = line.split(' ').nth(1).map(str::parse::<u64>)
            {
                all.0.entry(current.clone()).or_default().0 += own;
            }
        }
        all
    }

    /// Functions with this in their names: instructions of their own, and calls.
    fn of(&self, part: &str) -> (u64, u64) {
        let found = self.0.iter().filter(|(name, _)| name.contains(part));
        found.fold((0, 0), |sum, (_, of)| (sum.0 + of.0, sum.1 + of.1))
    }
}

/// A guest under callgrind, which writes to `file` when it ends.
fn counted_guest(runtime: &Runtime, file: &Path) -> Guest {
    let mut command = Command::new("valgrind");
    command.env("LD_PRELOAD", kcm_tests::guest::countable_library());
    command.args(["--quiet", "--tool=callgrind"]);
    command.arg(format!("--callgrind-out-file={}", file.display()));
    command.arg(kcm_tests::ctl::guest_program());
    Guest::start_as(runtime, command)
}

/// What notes, sorts and queues messages.
const TRACING: [&str; 4] = [
    "tap::Tap::note",
    "::note_received",
    "trace::take",
    "trace::Tracer::add",
];
/// Instructions of the test that is left, unoptimised: a call, its frame, the load and the branch.
const TEST_INSTRUCTIONS: u64 = 16;

#[test]
fn tracing_that_is_off_runs_nothing_but_its_test() {
    let runtime = Runtime::new();
    let (off, on) = (runtime.0.join("off"), runtime.0.join("on"));
    let mut guest = counted_guest(&runtime, &off);
    (0..4).for_each(|_| drop(guest.obey('m')));
    guest.end();
    let off = Profile::read(&off);
    let (instructions, calls) = off.of("::tap_received");
    assert!(calls > 0, "messages have passed");
    assert!(
        instructions <= calls * TEST_INSTRUCTIONS,
        "{instructions} instructions in {calls} tests"
    );
    for part in TRACING {
        assert_eq!(off.of(part), (0, 0), "{part} has run");
    }

    let mut guest = counted_guest(&runtime, &on);
    let trace = Trace::start(&runtime, &[&guest.pid(), "-n", "4"]);
    guest.obey('m');
    assert_eq!(trace.rest().len(), 4);
    guest.end();
    let on = Profile::read(&on);
    for part in TRACING {
        assert_ne!(on.of(part), (0, 0), "{part} has another name");
    }
}
