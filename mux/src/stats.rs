//! Counters, named as the kernel names them, with right numbers (kcm-semantics §12, §13, §15.10).

use core::ops::AddAssign;

/// Messages and bytes of a KCM socket, or of a whole mux.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KcmStats {
    /// Messages finished by a receive call.
    pub rx_msgs: u64,
    /// Bytes returned by receive calls.
    pub rx_bytes: u64,
    /// Messages completed by a send call.
    pub tx_msgs: u64,
    /// Bytes accepted by send calls, open messages included.
    pub tx_bytes: u64,
}

/// Counters of a psock, or the sum over several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PsockStats {
    /// Complete messages parsed.
    pub rx_msgs: u64,
    /// Bytes consumed by the parser, each once.
    pub rx_bytes: u64,
    /// Messages handed to TCP completely.
    pub tx_msgs: u64,
    /// Bytes handed to TCP, including those of a message later restarted elsewhere.
    pub tx_bytes: u64,
    /// Times a KCM socket reserved the psock for sending.
    pub reserved: u64,
    /// Times it was released.
    pub unreserved: u64,
    /// Parsers stopped for any reason.
    pub rx_aborts: u64,
    /// Parsers stopped by their program.
    pub rx_interrupted: u64,
    /// Parsers stopped by their program with the stream lost.
    pub rx_unrecov_intr: u64,
    /// Messages dropped for want of memory.
    pub rx_mem_fail: u64,
    /// Runs of the program that asked for more bytes.
    pub rx_need_more_hdr: u64,
    /// Lengths that did not exceed what was consumed.
    pub rx_bad_hdr_len: u64,
    /// Lengths beyond SO_RCVBUF.
    pub rx_msg_too_big: u64,
    /// Assembly timers expired.
    pub rx_msg_timeouts: u64,
    /// Psocks that stopped sending.
    pub tx_aborts: u64,
}

/// Counters of a mux besides those summed over its psocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MuxStats {
    /// Messages restarted on another psock after a failed transmission.
    pub tx_retries: u64,
    /// TCP sockets attached.
    pub psock_attach: u64,
    /// TCP sockets unattached.
    pub psock_unattach: u64,
    /// TCP sockets unattached while reserved for sending.
    pub psock_unattach_rsvd: u64,
    /// Complete messages dropped by unattach.
    pub rx_ready_drops: u64,
}

impl PsockStats {
    /// All of them by the names of /proc/net/kcm_stats, in its order.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 15] {
        [
            ("RX-Msgs", self.rx_msgs),
            ("RX-Bytes", self.rx_bytes),
            ("TX-Msgs", self.tx_msgs),
            ("TX-Bytes", self.tx_bytes),
            ("Reserved", self.reserved),
            ("Unreserved", self.unreserved),
            ("RX-Aborts", self.rx_aborts),
            ("RX-Intr", self.rx_interrupted),
            ("RX-Unrecov", self.rx_unrecov_intr),
            ("RX-MemFail", self.rx_mem_fail),
            ("RX-NeedMor", self.rx_need_more_hdr),
            ("RX-BadLen", self.rx_bad_hdr_len),
            ("RX-TooBig", self.rx_msg_too_big),
            ("RX-Timeout", self.rx_msg_timeouts),
            ("TX-Aborts", self.tx_aborts),
        ]
    }
}

impl MuxStats {
    /// All of them by the names of /proc/net/kcm_stats, in its order.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 5] {
        [
            ("TX-Retries", self.tx_retries),
            ("Attach", self.psock_attach),
            ("Unattach", self.psock_unattach),
            ("UnattchRsvd", self.psock_unattach_rsvd),
            ("RX-RdyDrops", self.rx_ready_drops),
        ]
    }
}

impl AddAssign for PsockStats {
    fn add_assign(&mut self, other: Self) {
        self.rx_msgs += other.rx_msgs;
        self.rx_bytes += other.rx_bytes;
        self.tx_msgs += other.tx_msgs;
        self.tx_bytes += other.tx_bytes;
        self.reserved += other.reserved;
        self.unreserved += other.unreserved;
        self.rx_aborts += other.rx_aborts;
        self.rx_interrupted += other.rx_interrupted;
        self.rx_unrecov_intr += other.rx_unrecov_intr;
        self.rx_mem_fail += other.rx_mem_fail;
        self.rx_need_more_hdr += other.rx_need_more_hdr;
        self.rx_bad_hdr_len += other.rx_bad_hdr_len;
        self.rx_msg_too_big += other.rx_msg_too_big;
        self.rx_msg_timeouts += other.rx_msg_timeouts;
        self.tx_aborts += other.tx_aborts;
    }
}

impl AddAssign for MuxStats {
    fn add_assign(&mut self, other: Self) {
        self.tx_retries += other.tx_retries;
        self.psock_attach += other.psock_attach;
        self.psock_unattach += other.psock_unattach;
        self.psock_unattach_rsvd += other.psock_unattach_rsvd;
        self.rx_ready_drops += other.rx_ready_drops;
    }
}

/// Counters of finished muxes, and with [`Totals::add`] of live ones: /proc/net/kcm_stats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Mux counters.
    pub mux: MuxStats,
    /// Psock counters, live and unattached; their traffic is also the mux's.
    pub psock: PsockStats,
}

impl Totals {
    /// Adds the counters of `mux`: of a live one to show them, of a finished one to keep them.
    pub fn add(&mut self, mux: &crate::Mux) {
        self.mux += mux.stats();
        self.psock += mux.psock_totals();
    }
}
