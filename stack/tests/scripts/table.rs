//! The state × event table: what each segment and each call does in each state.

use std::fmt::Write as _;

use kcm_stack::Config;
use kcm_stack::Key;

use crate::run::Player;
use crate::wire;

/// A state, the script that leads to it, the peer's next sequence number, our next one.
struct Scene(&'static str, &'static [&'static str], u32, u32);

const SCENES: &[Scene] = &[
    Scene("CLOSED", &[], 1, 1),
    Scene("LISTEN", &["listen"], 1, 1),
    Scene("SYN-SENT", &["connect", "> S"], 0, 1),
    Scene(
        "SYN-RECEIVED (active)",
        &["connect", "> S", "< S 0:0(0) win 65535 <mss 1460>", "> S."],
        1,
        1,
    ),
    Scene(
        "SYN-RECEIVED (passive)",
        &["listen", "< S 0:0(0) win 65535 <mss 1460>", "> S."],
        1,
        1,
    ),
    Scene("ESTABLISHED", &["established"], 1, 1),
    Scene("FIN-WAIT-1", &["established", "shutdown w", "> F."], 1, 2),
    Scene(
        "FIN-WAIT-2",
        &["established", "shutdown w", "> F.", "< . 1:1(0) ack 2"],
        1,
        2,
    ),
    Scene(
        "CLOSE-WAIT",
        &["established", "< F. 1:1(0) ack 1", "> ."],
        2,
        1,
    ),
    Scene(
        "CLOSING",
        &[
            "established",
            "shutdown w",
            "> F.",
            "< F. 1:1(0) ack 1",
            "> .",
        ],
        2,
        2,
    ),
    Scene(
        "LAST-ACK",
        &[
            "established",
            "< F. 1:1(0) ack 1",
            "> .",
            "shutdown w",
            "> F.",
        ],
        2,
        2,
    ),
    Scene(
        "TIME-WAIT",
        &[
            "established",
            "shutdown w",
            "> F.",
            "< F. 1:1(0) ack 2",
            "> .",
        ],
        2,
        2,
    ),
];

/// An event; `{s}` is the peer's next sequence number, `{s+N}` one beyond, `{a}` ours.
const EVENTS: &[(&str, &str)] = &[
    ("SYN", "< S {s}:{s}(0) win 65535 <mss 1460>"),
    ("SYN,ACK", "< S. {s}:{s}(0) ack {a} win 65535 <mss 1460>"),
    ("old SYN", "< S 0:0(0) win 65535 <mss 1460>"),
    ("ACK", "< . {s}:{s}(0) ack {a}"),
    ("ACK of the unsent", "< . {s}:{s}(0) ack {a+9}"),
    ("ACK, old", "< . {s}:{s}(0) ack 1"),
    ("no ACK", "< - {s}:{s}(0)"),
    ("data", "< . {s}:{s+5}(5) ack {a}"),
    (
        "data beyond the window",
        "< . {s+900000}:{s+900005}(5) ack {a}",
    ),
    ("FIN", "< F. {s}:{s}(0) ack {a}"),
    ("RST, exact", "< R. {s}:{s}(0) ack {a}"),
    ("RST, in window", "< R {s+9}:{s+9}(0)"),
    ("RST, outside", "< R {s+900000}:{s+900000}(0)"),
    ("SEND", "send 5"),
    ("SHUTDOWN", "shutdown w"),
    ("CLOSE", "close"),
    ("ABORT", "abort"),
    ("FIN with data", "< F. {s}:{s+5}(5) ack {a}"),
    ("data after a hole", "< . {s+5}:{s+10}(5) ack {a}"),
    ("urgent data", "< U. {s}:{s+5}(5) ack {a} urg 5"),
    ("window of zero", "< . {s}:{s}(0) ack {a} win 0"),
    ("congestion echoed", "< E. {s}:{s}(0) ack {a}"),
    ("ICMP port unreachable", "icmp port"),
    ("ICMP host unreachable", "icmp host"),
    ("ICMP packet too big", "icmp frag 600"),
    ("RECEIVE", "recv ?"),
    ("SEND urgent", "sendoob 1"),
    ("SHUTDOWN of reading", "shutdown r"),
    ("OPEN, passive", "listen"),
    ("OPEN, same pair", "connect"),
    ("ACCEPT", "accept"),
    ("one second", "+1.05 nothing"),
    ("61 seconds", "+61 nothing"),
    ("20 minutes", "+1200 nothing"),
];

fn fill(event: &str, s: u32, a: u32) -> String {
    let mut out = event
        .replace("{s}", &s.to_string())
        .replace("{a}", &a.to_string());
    while let Some(at) = out.find("{") {
        let end = at + out[at..].find('}').expect("closing brace");
        let (base, plus) = (out.as_bytes()[at + 1], &out[at + 3..end]);
        let n = plus.parse::<u32>().expect("offset") + if base == b's' { s } else { a };
        out.replace_range(at..=end, &n.to_string());
    }
    out
}

fn cell(scene: &Scene, event: &str) -> String {
    let mut config = Config::new(wire::OUR_MAC, Key([9; 16]));
    config.tcp.timestamps = false;
    config.tcp.syn_cookies = false;
    let mut p = Player::new(config);
    for l in scene.1 {
        p.line(l)
            .unwrap_or_else(|e| panic!("{}: {l}: {e}", scene.0));
    }
    let (before, _) = p.outcome();
    match p.line(&fill(event, scene.2, scene.3)) {
        Ok(()) => {}
        Err(e) => match e.strip_prefix("recv gave ") {
            Some(given) => return format!("gives {given}"),
            None => return format!("refused: {e}"),
        },
    }
    let (after, sent) = p.outcome();
    let mut out = String::new();
    if after != before {
        write!(out, "→ {after}").expect("string");
    }
    for s in sent {
        if !out.is_empty() {
            out.push_str("; ");
        }
        write!(out, "sends {s}").expect("string");
    }
    if out.is_empty() { "–".into() } else { out }
}

/// Regenerate with `UPDATE_SNAPSHOTS=1 cargo test -p kcm-stack --test scripts`.
#[test]
fn the_state_event_table_is_as_recorded() {
    let mut table =
        String::from("# Effect of each event in each state; segments as in the scripts\n");
    for scene in SCENES {
        writeln!(table, "\n{}", scene.0).expect("string");
        for (name, event) in EVENTS {
            writeln!(table, "  {name:24} {}", cell(scene, event)).expect("string");
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/states.snap");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &table).expect("snapshot written");
    }
    let recorded = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(table, recorded, "the table changed");
}
