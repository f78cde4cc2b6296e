//! One attached TCP connection: its parser, its parked message, its transmit reservation and
//! the error posted on it.

use crate::batch::Run;
use crate::mux::{KcmId, Nanos};
use crate::stats::PsockStats;
use crate::strparser::{Parser, StreamParser};

/// Who may send on a psock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TxOwner {
    /// On the available list, or stopped.
    Nobody,
    /// Reserved: no other KCM socket sends before it is released.
    Kcm(KcmId),
    /// The KCM socket was closed while its bytes were being written.
    Closed,
}

/// The assembly timer (kcm-semantics §9.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    Off,
    /// Due to start; the call that found the incomplete message was not told the time.
    Unarmed,
    At(Nanos),
}

/// SO_RCVBUF as far as the mux knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadGate {
    Open,
    /// A message is longer than the last known SO_RCVBUF; parsing waits for the current one.
    NeedRcvbuf,
}

/// Transmit side of a psock.
#[derive(Debug)]
pub(crate) struct PsockTx {
    pub(crate) owner: TxOwner,
    /// Sending failed hard; permanent until unattach (TxStop).
    pub(crate) stopped: bool,
    /// TCP took less than offered; wait for write space.
    pub(crate) blocked: bool,
    /// On the list of psocks with bytes to write.
    pub(crate) scheduled: bool,
    /// A [`Transmit`](crate::Transmit) or a direct write is under way.
    pub(crate) in_flight: bool,
    /// Write space was reported while bytes were in flight.
    pub(crate) space_seen: bool,
}

/// One attached TCP connection.
#[derive(Debug)]
pub(crate) struct Psock {
    /// Differs from every other attachment's: an index may be reused.
    pub(crate) serial: u64,
    pub(crate) strp: StreamParser,
    /// Last known SO_RCVBUF of the TCP socket, as getsockopt reports it.
    pub(crate) rcvbuf: u32,
    pub(crate) gate: ReadGate,
    pub(crate) msg_timeout: Option<Nanos>,
    pub(crate) timer: Timer,
    /// A complete message nobody had room for; the psock is paused while it holds one.
    pub(crate) ready: Option<Run>,
    /// Between `begin_read` and `finish_read`.
    pub(crate) reading: bool,
    /// The peer's FIN was posted.
    pub(crate) fin_seen: bool,
    /// No byte follows: end of stream read, or connection dead.
    pub(crate) eof: bool,
    /// The connection was reset or timed out.
    pub(crate) dead: bool,
    /// Pending error of the TCP socket; 0 for none.
    pub(crate) error: i32,
    pub(crate) tx: PsockTx,
    pub(crate) stats: PsockStats,
}

impl Psock {
    pub(crate) fn new(serial: u64, program: Parser, rcvbuf: u32, timeout: Option<Nanos>) -> Self {
        Self {
            serial,
            strp: StreamParser::new(program),
            rcvbuf,
            gate: ReadGate::Open,
            msg_timeout: timeout,
            timer: Timer::Off,
            ready: None,
            reading: false,
            fin_seen: false,
            eof: false,
            dead: false,
            error: 0,
            tx: PsockTx {
                owner: TxOwner::Nobody,
                stopped: false,
                blocked: false,
                scheduled: false,
                in_flight: false,
                space_seen: false,
            },
            stats: PsockStats::default(),
        }
    }

    /// Whether bytes of the TCP socket are wanted now.
    pub(crate) fn wants_read(&self) -> bool {
        !self.reading
            && !self.eof
            && !self.strp.stopped()
            && self.ready.is_none()
            && self.gate == ReadGate::Open
    }
}
