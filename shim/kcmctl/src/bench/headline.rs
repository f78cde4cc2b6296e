//! What is measured: the groups of the README's table, and which figures are set against which.

use serde_json::Value;

use super::part::Options;

/// Alternated rounds; of a glance.
const ROUNDS: usize = 5;
const ROUNDS_QUICK: usize = 2;
/// How long one measurement sends.
const MS: u64 = 300;
const MS_QUICK: u64 = 40;
/// A 99th percentile is at the mercy of whatever else runs: many short rounds, so that the two of a
/// pair meet the same.
const PING_PONG_ROUNDS: usize = 25;
const PING_PONG_MS: u64 = 100;
/// Things that memory is measured of.
const IDLE_COUNT: usize = 4000;
const IDLE_COUNT_QUICK: usize = 100;
const IDLE_MS: u64 = 1000;
const SMALL: usize = 64;
const LARGE: usize = 16_384;

/// A program that is measured.
pub(super) struct Part {
    pub(super) options: Options,
    /// It runs under the library.
    pub(super) is_shimmed: bool,
    /// What it said, round by round; `None` where it failed.
    pub(super) results: Vec<Option<Value>>,
}

/// What a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    PerSecond,
    Micros,
    Bytes,
    Count,
    Millis,
}

/// A line of the table: one figure of one part.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// Which part of the group, and which field of what it says.
    pub(super) part: usize,
    pub(super) field: &'static str,
    pub(super) unit: Unit,
    /// Rows that it is set against.
    pub(super) against: &'static [&'static str],
}

/// Parts that take turns, under one heading.
pub(super) struct Group {
    pub(super) title: String,
    pub(super) rounds: usize,
    pub(super) parts: Vec<Part>,
    pub(super) rows: Vec<Row>,
    pub(super) failures: Vec<String>,
}

impl Group {
    fn new(title: impl Into<String>, rounds: usize) -> Self {
        Self {
            title: title.into(),
            rounds,
            parts: Vec::new(),
            rows: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// How many programs are started.
    pub(super) fn runs(&self) -> usize {
        self.rounds * self.parts.len()
    }

    fn add(&mut self, options: Options, is_shimmed: bool) -> usize {
        self.parts.push(Part {
            options,
            is_shimmed,
            results: Vec::new(),
        });
        self.parts.len() - 1
    }

    /// A part whose rate is a row; under the library if it is compared.
    fn rate(
        mut self,
        name: &'static str,
        options: Options,
        against: &'static [&'static str],
    ) -> Self {
        let part = self.add(options, !against.is_empty());
        self.rows.push(Row {
            name,
            part,
            field: "rate",
            unit: Unit::PerSecond,
            against,
        });
        self
    }

    fn row(
        mut self,
        name: &'static str,
        part: usize,
        (field, unit): (&'static str, Unit),
        against: &'static [&'static str],
    ) -> Self {
        self.rows.push(Row {
            name,
            part,
            field,
            unit,
            against,
        });
        self
    }
}

/// Names that rows refer to.
const IN_PLACE: &str = "in-place framing";
const RECVMSG: &str = "KCM recvmsg";
const RECVMMSG: &str = "KCM recvmmsg(64)";
const RAW_SEND: &str = "raw send";

/// The whole table.
pub(super) fn groups(quick: bool) -> Vec<Group> {
    let ms = if quick { MS_QUICK } else { MS };
    let rounds = if quick { ROUNDS_QUICK } else { ROUNDS };
    let part = |role: &str, size: usize| Options {
        ms,
        ..Options::new(role, size)
    };
    let shared = |role: &str| Options {
        conns: 4,
        sockets: 4,
        threads: 2,
        ..part(role, SMALL)
    };
    let receive = Group::new("receive 64 B", rounds)
        .rate(IN_PLACE, part("rx-inplace", SMALL), &[])
        .rate("header, then body", part("rx-header-body", SMALL), &[])
        .rate("reader, queue, worker", part("rx-queue", SMALL), &[])
        .rate(
            RECVMSG,
            part("rx-recvmsg", SMALL),
            &[IN_PLACE, "header, then body", "reader, queue, worker"],
        )
        .rate(RECVMMSG, part("rx-recvmmsg", SMALL), &[IN_PLACE])
        .rate("  4 x 4, 2 threads", shared("rx-recvmsg"), &[RECVMSG])
        .rate("  4 x 4, recvmmsg", shared("rx-recvmmsg"), &[RECVMMSG]);
    let receive_large = Group::new("receive 16 KiB", rounds)
        .rate(IN_PLACE, part("rx-inplace", LARGE), &[])
        .rate(RECVMSG, part("rx-recvmsg", LARGE), &[IN_PLACE]);
    let send = Group::new("send 64 B", rounds)
        .rate(RAW_SEND, part("tx-raw", SMALL), &[])
        .rate("KCM sendmsg", part("tx-sendmsg", SMALL), &[RAW_SEND])
        .rate("KCM MSG_BATCH, 64", part("tx-batch", SMALL), &[RAW_SEND])
        .rate("KCM sendmmsg(64)", part("tx-sendmmsg", SMALL), &[RAW_SEND]);
    let send_large = Group::new("send 16 KiB", rounds)
        .rate(RAW_SEND, part("tx-raw", LARGE), &[])
        .rate("KCM sendmmsg(64)", part("tx-sendmmsg", LARGE), &[RAW_SEND]);
    vec![
        receive,
        receive_large,
        send,
        send_large,
        ping_pong(quick),
        idle(quick),
    ]
}

fn ping_pong(quick: bool) -> Group {
    let rounds = if quick {
        ROUNDS_QUICK
    } else {
        PING_PONG_ROUNDS
    };
    let ms = if quick { MS_QUICK } else { PING_PONG_MS };
    let part = |role: &str| Options {
        ms,
        ..Options::new(role, SMALL)
    };
    let mut group = Group::new("ping-pong 64 B, blocking", rounds);
    let (raw, kcm) = (
        group.add(part("pingpong-raw"), false),
        group.add(part("pingpong-kcm"), true),
    );
    let (p50, p99) = (("p50_us", Unit::Micros), ("p99_us", Unit::Micros));
    group
        .row("raw TCP, p50", raw, p50, &[])
        .row("KCM, p50", kcm, p50, &["raw TCP, p50"])
        .row("raw TCP, p99", raw, p99, &[])
        .row("KCM, p99", kcm, p99, &["raw TCP, p99"])
}

fn idle(quick: bool) -> Group {
    let count = if quick { IDLE_COUNT_QUICK } else { IDLE_COUNT };
    let mut group = Group::new("idle", 1);
    let conns = Options {
        conns: count,
        ..Options::new("memory-conns", SMALL)
    };
    let sockets = Options {
        sockets: count,
        ..Options::new("memory-sockets", SMALL)
    };
    let quiet = Options {
        ms: if quick { MS_QUICK } else { IDLE_MS },
        ..Options::new("idle", SMALL)
    };
    let conns = group.add(conns, true);
    let sockets = group.add(sockets, true);
    let quiet = group.add(quiet, true);
    group
        .row(
            "memory of a connection",
            conns,
            ("bytes_each", Unit::Bytes),
            &[],
        )
        .row(
            "memory of a KCM socket",
            sockets,
            ("bytes_each", Unit::Bytes),
            &[],
        )
        .row("wake-ups", quiet, ("wakeups", Unit::Count), &[])
        .row("processor time", quiet, ("cpu_ms", Unit::Millis), &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_refer_to_rows_and_parts_that_are_there() {
        for group in groups(false).iter().chain(&groups(true)) {
            for row in &group.rows {
                assert!(row.part < group.parts.len());
                let found = |name: &&str| group.rows.iter().any(|other| other.name == *name);
                assert!(
                    row.against.iter().all(found),
                    "{}: {}",
                    group.title,
                    row.name
                );
            }
        }
    }

    #[test]
    fn whole_table_takes_less_than_a_minute() {
        let ms = |group: &Group| {
            let each: u64 = group.parts.iter().map(|part| part.options.ms).sum();
            each * group.rounds as u64
        };
        let total: u64 = groups(false).iter().map(ms).sum();
        assert!(total < 40_000, "{total} ms of measuring alone");
    }
}
