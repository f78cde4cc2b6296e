//! Counters, one per reason. In brackets the kernel's name where it has one (SNMP, TcpExt).

/// Totals since the stack was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpStats {
    /// Segments received (InSegs).
    pub segments_in: u64,
    /// Segments sent (OutSegs).
    pub segments_out: u64,
    /// Headers that could not be read (InErrs).
    pub malformed: u64,
    /// Connections that reached ESTABLISHED.
    pub established: u64,
    /// ACKs for what was never sent, or far too old.
    pub bad_ack: u64,
    /// Segments outside the receive window.
    pub out_of_window: u64,
    /// Segments refused by timestamp (PAWSEstab, PAWSActive).
    pub paws_rejected: u64,
    /// Valid resets received (EstabResets).
    pub resets_in: u64,
    /// Resets sent (OutRsts).
    pub resets_out: u64,
    /// Challenge ACKs sent (TCPChallengeACK).
    pub challenge_acks: u64,
    /// Segments retransmitted (RetransSegs).
    pub segments_retransmitted: u64,
    /// Retransmission timeouts (TCPTimeouts).
    pub timeouts: u64,
    /// Connections given up (TCPAbortOnTimeout).
    pub timeouts_fatal: u64,
    /// Fast recoveries entered (TCPSackRecovery, TCPRenoRecovery).
    pub fast_recoveries: u64,
    /// Window reductions taken back (TCPFullUndo, TCPLossUndo, TCPDSACKUndo).
    pub spurious_undone: u64,
    /// Timeouts that F-RTO found to be spurious (TCPSpuriousRTOs).
    pub spurious_timeouts: u64,
    /// Tail loss probes (TCPLossProbes).
    pub tail_probes: u64,
    /// Zero-window probes (TCPWinProbe).
    pub window_probes: u64,
    /// Keepalive probes (TCPKeepAlive).
    pub keepalive_probes: u64,
    /// Delayed ACKs sent by timer (DelayedACKs).
    pub delayed_acks: u64,
    /// ACKs without data.
    pub pure_acks_out: u64,
    /// D-SACKs received (TCPDSACKRecv).
    pub dsacks_in: u64,
    /// Segments received out of order (TCPOFOQueue).
    pub out_of_order: u64,
    /// Segments dropped because too many holes are open (TCPOFODrop).
    pub reassembly_drops: u64,
    /// Segments dropped for want of buffers (TCPRcvQDrop).
    pub memory_drops: u64,
    /// Data for a closed reader, answered by RST (TCPAbortOnData).
    pub data_after_close: u64,
    /// Segments with Congestion Experienced (InCEPkts).
    pub ecn_ce: u64,
    /// Times the segment size fell because full-sized segments vanished.
    pub black_holes: u64,
    /// Probes for a larger segment size that got through (TCPMTUPSuccess).
    pub mtu_probes_acknowledged: u64,
    /// Those that did not (TCPMTUPFail).
    pub mtu_probes_lost: u64,
    /// Segments without a connection that were left to another stack (`Strangers::Spared`).
    pub strangers_spared: u64,
    /// Connections that skipped TIME-WAIT because of its limit (TCPTimeWaitOverflow).
    pub time_wait_overflow: u64,
    /// SYNs answered by cookie (SyncookiesSent).
    pub cookies_sent: u64,
    /// Cookies that came back (SyncookiesRecv).
    pub cookies_ok: u64,
    /// ACKs to a listener that were no cookie (SyncookiesFailed).
    pub cookies_failed: u64,
    /// SYNs or final ACKs dropped because the accept queue is full (ListenOverflows).
    pub listen_overflows: u64,
    /// ICMP errors for no known segment (OutOfWindowIcmps).
    pub icmp_out_of_window: u64,
}
