//! A connection's numbers, as TCP_INFO reports them.

use core::net::SocketAddr;
use core::time::Duration;

use super::cc::CongestionControl;
use super::state::State;

/// Fields of struct tcp_info that the engine knows, in its units. Windows and counts are bytes
/// unless named otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the tcpi_ field of its name")]
pub struct TcpInfo {
    pub state: State,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub congestion: CongestionControl,
    /// Timestamps, SACK, window scale, ECN as negotiated.
    pub timestamps: bool,
    pub sack: bool,
    pub window_scale: bool,
    pub ecn: bool,
    pub snd_wscale: u8,
    pub rcv_wscale: u8,
    pub rto: Duration,
    /// Consecutive timeouts of the data at the front.
    pub retransmits: u8,
    pub probes: u8,
    pub backoff: u8,
    pub snd_mss: u16,
    pub rcv_mss: u16,
    pub unacked: u32,
    pub sacked: u32,
    pub lost: u32,
    pub retrans: u32,
    pub total_retrans: u32,
    pub rtt: Duration,
    pub rttvar: Duration,
    pub min_rtt: Option<Duration>,
    pub snd_ssthresh: Option<u32>,
    pub snd_cwnd: u32,
    pub snd_wnd: u32,
    pub rcv_wnd: u32,
    pub rcv_space: u32,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub segs_in: u32,
    pub segs_out: u32,
    pub notsent_bytes: u32,
    pub last_data_sent: Duration,
    pub last_recv: Duration,
    pub reordering_seen: bool,
}
