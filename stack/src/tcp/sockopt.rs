//! Per-socket options that are rarely changed, kept out of the connection record.

use super::conn::Flags;
use core::time::Duration;

use super::cc::CongestionControl;
use crate::limits;

/// Options of tcp(7) and socket(7) with a value. Flag options have setters of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SockOpts {
    /// SO_RCVBUF in bytes; `None` leaves auto-tuning on.
    pub rcvbuf: Option<u32>,
    /// SO_SNDBUF in bytes; `None` leaves auto-tuning on.
    pub sndbuf: Option<u32>,
    /// SO_RCVLOWAT in bytes: READABLE is signalled from this many on.
    pub rcvlowat: u32,
    /// TCP_MAXSEG: upper bound of the MSS in both directions.
    pub max_seg: Option<u16>,
    /// TCP_KEEPIDLE.
    pub keep_idle: Duration,
    /// TCP_KEEPINTVL.
    pub keep_interval: Duration,
    /// TCP_KEEPCNT.
    pub keep_count: u8,
    /// TCP_USER_TIMEOUT; `None` leaves the retry limits in charge.
    pub user_timeout: Option<Duration>,
    /// TCP_SYNCNT.
    pub syn_retries: u8,
    /// TCP_LINGER2: lifetime of an orphan in FIN-WAIT-2.
    pub fin_wait: Duration,
    /// TCP_CONGESTION.
    pub congestion: CongestionControl,
    /// SO_MAX_PACING_RATE in bytes per second; `None` sends as the window allows.
    pub pacing_rate: Option<u64>,
    /// IP_TOS or IPV6_TCLASS; the two ECN bits are the engine's.
    pub tos: u8,
    /// IP_TTL or hop limit.
    pub hop_limit: u8,
}

impl SockOpts {
    /// What a socket starts with.
    pub const DEFAULT: Self = Self {
        rcvbuf: None,
        sndbuf: None,
        rcvlowat: 1,
        max_seg: None,
        keep_idle: limits::KEEPALIVE_IDLE,
        keep_interval: limits::KEEPALIVE_INTERVAL,
        keep_count: limits::KEEPALIVE_PROBES,
        user_timeout: None,
        syn_retries: limits::SYN_RETRIES,
        fin_wait: limits::FIN_WAIT_2,
        congestion: CongestionControl::Cubic,
        pacing_rate: None,
        tos: 0,
        hop_limit: 64,
    };
}

impl Default for SockOpts {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// On/off options of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SockFlag {
    /// TCP_NODELAY.
    NoDelay,
    /// TCP_CORK.
    Cork,
    /// TCP_QUICKACK.
    QuickAck,
    /// SO_KEEPALIVE.
    KeepAlive,
    /// SO_OOBINLINE.
    OobInline,
}

impl SockFlag {
    pub(super) const fn flag(self) -> Flags {
        match self {
            Self::NoDelay => Flags::NODELAY,
            Self::Cork => Flags::CORK,
            Self::QuickAck => Flags::QUICKACK,
            Self::KeepAlive => Flags::KEEPALIVE,
            Self::OobInline => Flags::OOB_INLINE,
        }
    }
}
