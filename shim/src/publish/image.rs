//! The counters of every mux as records of the page.

use core::sync::atomic::Ordering;

use kcm_mux::{KcmId, MuxStats, PsockId, PsockStats, SocketType};

use super::layout::{KCM_COUNTERS, MUX_COUNTERS, PSOCK_COUNTERS, flag, record};
use super::sockets::Seen;
use crate::kcm::{Engine, MuxCell};
use crate::proc_net;

pub(super) type Record = [u64; record::WORDS];
const TOTALS: usize = MUX_COUNTERS.len() + PSOCK_COUNTERS.len();

/// What the muxes looked like when they were last seen.
pub(super) struct Image {
    pub(super) records: Vec<Record>,
    pub(super) left_out: u64,
    pub(super) muxes: u64,
    pub(super) totals: [u64; TOTALS],
    /// The stack, as the housekeeper last saw it.
    pub(super) stack: Seen,
}

impl Image {
    pub(super) const fn new() -> Self {
        Self {
            records: Vec::new(),
            left_out: 0,
            muxes: 0,
            totals: [0; TOTALS],
            stack: Seen::new(),
        }
    }

    /// Looks at every mux. False, and nothing is changed, when one was in use and `patient` is not
    /// set. What sockets hold in their batches is not counted yet: the locks of batches belong to
    /// the threads that receive.
    pub(super) fn observe(&mut self, patient: bool) -> bool {
        let mut seen = Self::new();
        seen.records = Vec::with_capacity(self.records.len());
        seen.stack = match patient {
            true => Seen::look(),
            false => core::mem::replace(&mut self.stack, Seen::new()),
        };
        seen.left_out = seen.stack.left_out;
        let mut totals = proc_net::ended();
        let complete = MuxCell::observe(patient, |number, engine| {
            seen.muxes += 1;
            totals.add(&engine.mux);
            seen.add_mux(u64::from(number), engine);
        });
        if !complete {
            self.stack = seen.stack;
            return false;
        }
        let (mux, psock) = seen.totals.split_at_mut(MUX_COUNTERS.len());
        mux.copy_from_slice(&mux_counters(&totals.mux));
        psock.copy_from_slice(&psock_counters(&totals.psock));
        for at in 0..seen.stack.records.len() {
            let record = seen.stack.records.get(at).copied();
            record.into_iter().for_each(|record| seen.push(record));
        }
        *self = seen;
        true
    }

    fn push(&mut self, record: Record) {
        if self.records.len() < record::MAX {
            self.records.push(record);
        } else {
            self.left_out += 1;
        }
    }

    fn add_mux(&mut self, number: u64, engine: &Engine) {
        let mux = &engine.mux;
        let mut record = blank(record::MUX, number, 0);
        record[record::FIRST] = mux.kcms().count() as u64;
        record[record::SECOND] = mux.psocks().count() as u64;
        if mux.socket_type() == SocketType::Seqpacket {
            record[record::FLAGS] = flag::SEQPACKET;
        }
        let (own, sums) = record[record::COUNTERS..].split_at_mut(MUX_COUNTERS.len());
        own.copy_from_slice(&mux_counters(&mux.stats()));
        sums[..PSOCK_COUNTERS.len()].copy_from_slice(&psock_counters(&mux.psock_totals()));
        self.push(record);
        for id in mux.kcms() {
            self.push(kcm(number, engine, id));
        }
        for id in mux.psocks() {
            self.push(psock(number, engine, id));
        }
    }
}

fn blank(kind: u64, mux: u64, number: u32) -> Record {
    let mut record = [0; record::WORDS];
    record[record::KIND] = kind;
    record[record::MUX_NUMBER] = mux;
    record[record::NUMBER] = number.into();
    record
}

fn kcm(mux: u64, engine: &Engine, id: KcmId) -> Record {
    let mut record = blank(record::KCM, mux, id.0);
    record[record::INODE] = engine
        .kcm(id)
        .map_or(0, |file| file.ino.load(Ordering::Relaxed));
    if let Some(state) = engine.mux.kcm_state(id) {
        record[record::FIRST] = state.rx_msgs as u64;
        record[record::CHARGE] = state.rx_charge as u64;
        record[record::PENDING] = state.tx_msgs as u64;
        record[record::RESERVED] = state.psock.map_or(0, |psock| u64::from(psock.0) + 1);
        record[record::FLAGS] |= flags([
            (state.tx_waiting, flag::TX_WAIT),
            (state.wait_more, flag::WAIT_MORE),
            (state.rx_waiting, flag::RX_WAIT),
        ]);
    }
    record[record::FLAGS] |= flags([(engine.mux.rx_disabled(id), flag::RECV_DISABLED)]);
    let stats = engine.mux.kcm_stats(id);
    record[record::COUNTERS..record::COUNTERS + KCM_COUNTERS].copy_from_slice(&[
        stats.rx_msgs,
        stats.rx_bytes,
        stats.tx_msgs,
        stats.tx_bytes,
    ]);
    record
}

fn psock(mux: u64, engine: &Engine, id: PsockId) -> Record {
    let mut record = blank(record::PSOCK, mux, id.0);
    let conn = engine.connection(id);
    record[record::INODE] = conn
        .and_then(|c| c.file)
        .map_or(0, |file| file.ino.load(Ordering::Relaxed));
    record[record::FIRST] = conn.map_or(u64::MAX, |c| i64::from(c.raw_fd()) as u64);
    record[record::SECOND] = i64::from(engine.mux.pending_error(id)) as u64;
    if let Some(state) = engine.mux.psock_state(id) {
        record[record::PENDING] = state.rx_needs as u64;
        record[record::RESERVED] = state.reserved_by.map_or(0, |kcm| u64::from(kcm.0) + 1);
        record[record::FLAGS] |= flags([
            (state.tx_stopped, flag::TX_STOP),
            (state.rx_stopped, flag::RX_STOP),
            (state.rx_ready, flag::RX_READY),
            (state.rx_begun, flag::RX_BEGUN),
        ]);
    }
    record[record::FLAGS] |= flags([
        (engine.mux.wants_write(id), flag::WANTS_WRITE),
        (engine.mux.wants_read(id), flag::WANTS_READ),
    ]);
    record[record::COUNTERS..record::COUNTERS + PSOCK_COUNTERS.len()]
        .copy_from_slice(&psock_counters(&engine.mux.psock_stats(id)));
    record
}

fn flags<const N: usize>(all: [(bool, u64); N]) -> u64 {
    let set = all.iter().filter(|(is_set, _)| *is_set);
    set.fold(0, |flags, (_, flag)| flags | flag)
}

fn mux_counters(stats: &MuxStats) -> [u64; MUX_COUNTERS.len()] {
    stats.counters().map(|(_, value)| value)
}

fn psock_counters(stats: &PsockStats) -> [u64; PSOCK_COUNTERS.len()] {
    stats.counters().map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_the_page_are_those_of_a_mux_in_order() {
        let names = |(name, _)| name;
        assert_eq!(MuxStats::default().counters().map(names), MUX_COUNTERS);
        assert_eq!(PsockStats::default().counters().map(names), PSOCK_COUNTERS);
    }
}
