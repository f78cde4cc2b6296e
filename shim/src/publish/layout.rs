//! The statistics page, word by word: what the library writes and `kcmctl` reads.
//!
//! A file of 64-bit words in the machine's own byte order: a header, a ring of decisions, records of
//! muxes, KCM sockets and psocks. Texts are bytes, cut or filled up with NUL. The writer makes `SEQ`
//! odd, changes words, and makes it even: what was read while `SEQ` was odd or moved is read again.
//!
//! Both crates compile this file, and neither uses all of it. A change of any meaning is a new
//! [`VERSION`]; words beyond those named here are 0.

/// First word of every page.
pub(crate) const MAGIC: u64 = u64::from_ne_bytes(*b"KCMSHIM\n");
/// What the rest means.
pub(crate) const VERSION: u64 = 2;
/// Bytes of a word.
pub(crate) const WORD: usize = 8;

/// Words of the header, and where each stands.
pub(crate) mod header {
    pub(crate) const WORDS: usize = 128;
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const VERSION: usize = 1;
    /// Odd while the page changes.
    pub(crate) const SEQ: usize = 2;
    pub(crate) const PID: usize = 3;
    /// Start of the process in clock ticks since boot: with the pid it names a process for good.
    pub(crate) const START_TIME: usize = 4;
    /// Effective user when the page was made.
    pub(crate) const UID: usize = 5;
    /// CLOCK_REALTIME in nanoseconds: when the page was made, and when it was last written.
    pub(crate) const CREATED: usize = 6;
    pub(crate) const UPDATED: usize = 7;
    /// CLOCK_MONOTONIC in nanoseconds of the last writing: what rates are computed from.
    pub(crate) const UPDATED_MONOTONIC: usize = 8;
    /// Muxes alive.
    pub(crate) const MUXES: usize = 9;
    /// Records that follow, and those that found no room.
    pub(crate) const RECORDS: usize = 10;
    pub(crate) const LEFT_OUT: usize = 11;
    /// Decisions ever made; the ring holds the newest of them.
    pub(crate) const DECISIONS: usize = 12;
    /// Name of the program's file.
    pub(crate) const PROGRAM: usize = 16;
    pub(crate) const PROGRAM_WORDS: usize = 8;
    /// Version of the library.
    pub(crate) const RELEASE: usize = 24;
    pub(crate) const RELEASE_WORDS: usize = 4;
    /// Counters of all muxes, ended ones included: [`super::MUX_COUNTERS`], [`super::PSOCK_COUNTERS`].
    pub(crate) const TOTALS: usize = 32;
    /// Counters of the stack: [`super::STACK_COUNTERS`].
    pub(crate) const STACK: usize = 64;
    /// Sockets of the stack: [`super::STACK_SOCKETS`].
    pub(crate) const SOCKETS: usize = 96;
    /// 1 once the stack has served a socket here.
    pub(crate) const HAS_STACK: usize = 100;
    /// Engines of the stack, and for each of them one word: rounds that the program's own threads have
    /// made in the lower half, sockets in the upper.
    pub(crate) const ENGINES: usize = 101;
    pub(crate) const ENGINE: usize = 102;
    pub(crate) const ENGINES_MAX: usize = 16;
}

/// Counters of a mux, in order, as /proc/net/kcm_stats names them.
pub(crate) const MUX_COUNTERS: [&str; 5] = [
    "TX-Retries",
    "Attach",
    "Unattach",
    "UnattchRsvd",
    "RX-RdyDrops",
];

/// Counters of a psock, in order.
pub(crate) const PSOCK_COUNTERS: [&str; 15] = [
    "RX-Msgs",
    "RX-Bytes",
    "TX-Msgs",
    "TX-Bytes",
    "Reserved",
    "Unreserved",
    "RX-Aborts",
    "RX-Intr",
    "RX-Unrecov",
    "RX-MemFail",
    "RX-NeedMor",
    "RX-BadLen",
    "RX-TooBig",
    "RX-Timeout",
    "TX-Aborts",
];

/// Counters of the stack, in order: of its devices, whose bytes include the Ethernet header, then of TCP
/// and UDP by their names in /proc/net/snmp and netstat.
pub(crate) const STACK_COUNTERS: [&str; 18] = [
    "RX-Frames",
    "RX-Bytes",
    "TX-Frames",
    "TX-Bytes",
    "RX-Missed",
    "TX-Errors",
    "InSegs",
    "OutSegs",
    "RetransSegs",
    "Established",
    "EstabResets",
    "OutRsts",
    "Timeouts",
    "ListenOverflows",
    "InDatagrams",
    "OutDatagrams",
    "NoPorts",
    "RcvbufErrors",
];

/// Sockets of the stack by kind, in order.
pub(crate) const STACK_SOCKETS: [&str; 3] = ["connections", "listeners", "udp"];

/// Counters of a KCM socket, in order: the first four of a psock.
pub(crate) const KCM_COUNTERS: usize = 4;

/// A decision: one word each.
pub(crate) mod decision {
    pub(crate) const WORDS: usize = 28;
    /// Decisions that the ring holds: a program's start and its last few hundred changes.
    pub(crate) const RING: usize = 512;
    /// Counts from 1; 0 where none was made yet.
    pub(crate) const NUMBER: usize = 0;
    /// CLOCK_REALTIME in nanoseconds, of the first time.
    pub(crate) const TIME: usize = 1;
    pub(crate) const THREAD: usize = 2;
    /// A [`super::Verdict`].
    pub(crate) const VERDICT: usize = 3;
    /// The descriptor's number, as an i64, and the inode behind it.
    pub(crate) const FD: usize = 4;
    pub(crate) const INODE: usize = 5;
    /// The errno answered, 0 for success.
    pub(crate) const ANSWER: usize = 6;
    /// Two numbers whose meaning is the verdict's.
    pub(crate) const FIRST: usize = 7;
    pub(crate) const SECOND: usize = 8;
    /// How often in a row.
    pub(crate) const TIMES: usize = 9;
    /// The call's name.
    pub(crate) const CALL: usize = 10;
    pub(crate) const CALL_WORDS: usize = 4;
    /// Of a decision by the plan: the address named, 16 bytes, IPv4 ones mapped, and a port; the name
    /// of the rule or default; the device of the interface, empty where it is none or all.
    pub(crate) const ADDRESS: usize = 14;
    pub(crate) const RULE: usize = 17;
    pub(crate) const RULE_WORDS: usize = 7;
    pub(crate) const DEVICE: usize = 24;
    pub(crate) const DEVICE_WORDS: usize = 4;
}

/// What was decided about a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Verdict {
    /// A KCM socket was made, of type `FIRST`.
    Kcm = 1,
    /// A KCM socket was made by cloning. `FIRST`: its mux; `SECOND`: its index there.
    Cloned,
    /// A TCP socket was attached to mux `FIRST` as psock `SECOND`.
    Attached,
    /// A TCP socket was unattached from mux `FIRST`.
    Unattached,
    /// The call failed with `ANSWER`.
    Refused,
    /// KCM does not support the call, as in the kernel: `ANSWER`.
    Unsupported,
    /// AF_KCM was left to the kernel, as `KCMSHIM_KCM=kernel` asks.
    Kernel,
    /// A parser program of `FIRST` instructions was loaded by the kernel.
    ParserGranted,
    /// A parser program of `FIRST` instructions that the kernel refused for want of rights was
    /// verified by the library.
    ParserVerified,
    /// The call about option `SECOND` at level `FIRST` failed with `ANSWER`.
    Option,
    /// A KCM socket from another process, `FIRST`, which has its mux.
    Inherited,
    /// io_uring_setup was refused.
    IoUring,
    /// The plan gives the socket to the stack. `FIRST`, here and below: the line of its rule, 0 for a
    /// default.
    Stack,
    /// To the kernel and the stack, each for its addresses.
    Both,
    /// To the kernel.
    LeftToKernel,
    /// To nobody: the call fails with `ANSWER`.
    Denied,
    /// The plan gave it to the stack, which cannot start: the call fails with `ANSWER`, or with 0 the
    /// kernel serves the socket.
    StackFailed,
}

/// A record of a mux, a KCM socket or a psock.
pub(crate) mod record {
    pub(crate) const WORDS: usize = 32;
    /// Records that a page holds: 64 KiB, copied in some ten microseconds.
    pub(crate) const MAX: usize = 256;
    /// One of the three kinds.
    pub(crate) const KIND: usize = 0;
    pub(crate) const MUX: u64 = 1;
    pub(crate) const KCM: u64 = 2;
    pub(crate) const PSOCK: u64 = 3;
    /// A socket of the stack: its words from 1 on are [`socket`](super::socket)'s.
    pub(crate) const SOCKET: u64 = 4;
    /// Number of the mux, and of the KCM socket or psock in it.
    pub(crate) const MUX_NUMBER: usize = 1;
    pub(crate) const NUMBER: usize = 2;
    /// Inode of the socket: finds its descriptors in /proc/PID/fd and its addresses in net/tcp.
    pub(crate) const INODE: usize = 3;
    /// Mux: KCM sockets. KCM socket: messages queued. Psock: descriptor it works through.
    pub(crate) const FIRST: usize = 4;
    /// Mux: psocks. Psock: the error KCM posted.
    pub(crate) const SECOND: usize = 5;
    /// See [`flag`](super::flag).
    pub(crate) const FLAGS: usize = 6;
    /// KCM socket: one more than the psock reserved for it. Psock: one more than the KCM socket that
    /// reserved it. 0 for none.
    pub(crate) const RESERVED: usize = 7;
    /// Mux: its own counters, then its psocks' sums. KCM socket, psock: counters.
    pub(crate) const COUNTERS: usize = 8;
    /// KCM socket: messages sent and not written. Psock: bytes its parser knows to be missing.
    pub(crate) const PENDING: usize = 30;
    /// KCM socket: what its received messages are charged.
    pub(crate) const CHARGE: usize = 31;
}

/// Words of a socket of the stack. Two numbers in one word: the first is the lower half.
pub(crate) mod socket {
    /// 6 for TCP, 17 for UDP; the state as `tcpi_state` numbers it.
    pub(crate) const PROTOCOL_STATE: usize = 2;
    pub(crate) const INODE: usize = 3;
    /// Bytes to read, or connections to accept; bytes not acknowledged.
    pub(crate) const RECV_Q: usize = 4;
    pub(crate) const SEND_Q: usize = 5;
    /// Sum of the `TCPI_OPT_*` in force.
    pub(crate) const OPTIONS: usize = 6;
    /// 1 when the words from [`RTO`] on mean something.
    pub(crate) const HAS_INFO: usize = 7;
    /// Addresses: 16 bytes, IPv4 ones mapped, and a port.
    pub(crate) const LOCAL: usize = 8;
    pub(crate) const REMOTE: usize = 11;
    /// Microseconds.
    pub(crate) const RTO: usize = 14;
    pub(crate) const RTT: usize = 15;
    pub(crate) const RTTVAR: usize = 16;
    /// 0 when not measured yet.
    pub(crate) const MIN_RTT: usize = 17;
    /// Bytes: to send, received.
    pub(crate) const MSS: usize = 18;
    /// Bytes.
    pub(crate) const CWND: usize = 19;
    /// Bytes; 0 when no loss has set it yet.
    pub(crate) const SSTHRESH: usize = 20;
    /// Window scales: sent, received.
    pub(crate) const WSCALE: usize = 21;
    pub(crate) const BYTES_ACKED: usize = 22;
    pub(crate) const BYTES_RECEIVED: usize = 23;
    /// Segments: sent, received.
    pub(crate) const SEGMENTS: usize = 24;
    /// Bytes in flight that were sent again; segments ever sent again.
    pub(crate) const RETRANS: usize = 25;
    /// Bytes: held lost, selectively acknowledged.
    pub(crate) const LOST_SACKED: usize = 26;
    /// Bytes: in flight, not sent yet.
    pub(crate) const UNACKED_NOTSENT: usize = 27;
    /// Bytes: offered by the peer, offered to it.
    pub(crate) const WINDOWS: usize = 28;
    /// Milliseconds since data was last sent, received.
    pub(crate) const LAST: usize = 29;
    /// Timeouts in a row; 0 for NewReno, 1 for CUBIC, 2 for BBR.
    pub(crate) const BACKOFF_CONGESTION: usize = 30;
}

/// States in a record's flags.
pub(crate) mod flag {
    /// KCM socket, mux: SOCK_SEQPACKET.
    pub(crate) const SEQPACKET: u64 = 1;
    /// KCM socket: KCM_RECV_DISABLE is set.
    pub(crate) const RECV_DISABLED: u64 = 2;
    /// Psock: bytes wait for its TCP socket to take them.
    pub(crate) const WANTS_WRITE: u64 = 4;
    /// Psock: its parser takes bytes.
    pub(crate) const WANTS_READ: u64 = 8;
    /// KCM socket: waits for a psock (TxWait).
    pub(crate) const TX_WAIT: u64 = 16;
    /// KCM socket: messages wait for a send without MSG_BATCH (WMore).
    pub(crate) const WAIT_MORE: u64 = 32;
    /// KCM socket: receives next, or after others (RxWait).
    pub(crate) const RX_WAIT: u64 = 64;
    /// Psock: sends no more (TxStop).
    pub(crate) const TX_STOP: u64 = 128;
    /// Psock: its parser has stopped (RxStop).
    pub(crate) const RX_STOP: u64 = 256;
    /// Psock: holds a message that nobody has room for (RxPause, RdyRx).
    pub(crate) const RX_READY: u64 = 512;
    /// Psock: holds the beginning of a message (RxWait).
    pub(crate) const RX_BEGUN: u64 = 1024;
}

/// First word of the ring of decisions, of the records, and beyond the page.
pub(crate) const DECISIONS_AT: usize = header::WORDS;
pub(crate) const RECORDS_AT: usize = DECISIONS_AT + decision::RING * decision::WORDS;
pub(crate) const PAGE_WORDS: usize = RECORDS_AT + record::MAX * record::WORDS;
