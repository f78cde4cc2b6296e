//! /proc/net/kcm and /proc/net/kcm_stats in the kernel's exact format (kcm-semantics §12, §13).
//!
//! The columns hold right numbers where the kernel's are swapped, always zero or late (§15.10).

use core::fmt::{self, Write};

use crate::mux::{KcmId, Mux, PsockId};
use crate::psock::Psock;
use crate::states::{KcmState, PsockState};
use crate::stats::Totals;

/// Queue numbers of an attached TCP socket, which only its owner knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpQueues {
    /// Receive buffers queued (Recv-Q).
    pub recv_q: u32,
    /// Receive memory charged (Rmem).
    pub rmem: u32,
    /// Transmit buffers queued (Send-Q).
    pub send_q: u32,
    /// Transmit memory charged (Smem).
    pub smem: u32,
}

/// Writes the two header lines of /proc/net/kcm.
///
/// # Errors
/// Those of `out`.
pub fn write_header(out: &mut impl Write, muxes: usize) -> fmt::Result {
    writeln!(out, "*** KCM statistics ({muxes} MUX) ****")?;
    writeln!(
        out,
        "{:<14} {:<10} {:<16} {:<10} {:<16} {:<8} {:<8} {:<8} {:<8} Status",
        "Object", "RX-Msgs", "RX-Bytes", "TX-Msgs", "TX-Bytes", "Recv-Q", "Rmem", "Send-Q", "Smem"
    )
}

/// Writes one mux: its own line, its KCM sockets, its psocks.
///
/// [`Mux::account`] the batches of its KCM sockets first.
///
/// # Errors
/// Those of `out`.
pub fn write_mux(
    out: &mut impl Write,
    mux: &Mux,
    mut queues: impl FnMut(PsockId) -> TcpQueues,
) -> fmt::Result {
    let totals = mux.psock_totals();
    let (kcms, psocks) = (mux.kcms().count(), mux.psocks().count());
    write!(out, "{:<6}{:<8} ", "mux", "")?;
    write_traffic(
        out,
        [
            totals.rx_msgs,
            totals.rx_bytes,
            totals.tx_msgs,
            totals.tx_bytes,
        ],
    )?;
    writeln!(
        out,
        "{:<8} {:<8} {:<8} {:<8} KCMs: {kcms}, Psocks {psocks}",
        "-", "-", "-", "-"
    )?;
    for id in mux.kcms() {
        write_kcm(out, mux, id)?;
    }
    for id in mux.psocks() {
        if let Some(psock) = mux.psock(id) {
            write_psock(out, id, psock, queues(id))?;
        }
    }
    Ok(())
}

fn write_traffic(out: &mut impl Write, counters: [u64; 4]) -> fmt::Result {
    let [rx_msgs, rx_bytes, tx_msgs, tx_bytes] = counters;
    write!(
        out,
        "{rx_msgs:<10} {rx_bytes:<16} {tx_msgs:<10} {tx_bytes:<16} "
    )
}

fn write_kcm(out: &mut impl Write, mux: &Mux, id: KcmId) -> fmt::Result {
    let Some(kcm) = mux.kcm(id) else {
        return Ok(());
    };
    let stats = kcm.stats;
    write!(out, "   kcm-{:<7} ", id.0)?;
    write_traffic(
        out,
        [stats.rx_msgs, stats.rx_bytes, stats.tx_msgs, stats.tx_bytes],
    )?;
    let state = KcmState::from(kcm);
    write!(
        out,
        "{:<8} {:<8} {:<8} {:<8} ",
        state.rx_msgs, state.rx_charge, state.tx_msgs, "-"
    )?;
    if let Some(psock) = state.psock {
        write!(out, "Psck-{} ", psock.0)?;
    }
    write_words(
        out,
        [
            (state.tx_waiting, "TxWait "),
            (state.wait_more, "WMore "),
            (state.rx_waiting, "RxWait "),
        ],
    )?;
    writeln!(out)
}

fn write_psock(out: &mut impl Write, id: PsockId, psock: &Psock, queues: TcpQueues) -> fmt::Result {
    let stats = psock.stats;
    write!(out, "   psock-{:<5} ", id.0)?;
    write_traffic(
        out,
        [stats.rx_msgs, stats.rx_bytes, stats.tx_msgs, stats.tx_bytes],
    )?;
    let TcpQueues {
        recv_q,
        rmem,
        send_q,
        smem,
    } = queues;
    write!(out, "{recv_q:<8} {rmem:<8} {send_q:<8} {smem:<8} ")?;
    let state = PsockState::from(psock);
    write_words(
        out,
        [(state.tx_stopped, "TxStop "), (state.rx_stopped, "RxStop ")],
    )?;
    if let Some(kcm) = state.reserved_by {
        write!(out, "Rsvd-{} ", kcm.0)?;
    }
    // Bytes the mux has read ahead would lie in the kernel's TCP queue.
    let queued = recv_q > 0 || state.rx_begun;
    match (state.rx_ready, state.rx_needs) {
        (true, _) => out.write_str("RxPause RdyRx ")?,
        (false, _) if !queued => {}
        (false, 0) => out.write_str("RxWait ")?,
        (false, bytes) => write!(out, "RxWait={bytes} ")?,
    }
    writeln!(out)
}

fn write_words<const N: usize>(out: &mut impl Write, words: [(bool, &str); N]) -> fmt::Result {
    words
        .iter()
        .filter(|(shown, _)| *shown)
        .try_for_each(|(_, word)| out.write_str(word))
}

/// Writes /proc/net/kcm_stats: the counters of live and finished muxes.
///
/// # Errors
/// Those of `out`.
pub fn write_stats(out: &mut impl Write, totals: &Totals) -> fmt::Result {
    let mux = totals.mux.counters();
    let [rx_msgs, rx_bytes, tx_msgs, tx_bytes, psock @ ..] = totals.psock.counters();
    let traffic = [rx_msgs, rx_bytes, tx_msgs, tx_bytes];
    let (names, numbers) = (traffic.map(name), traffic.map(number));
    write_row(out, "MUX", names, mux.map(name))?;
    write_row(out, "", numbers, mux.map(number))?;
    write_row(out, "Psock", names, psock.map(name))?;
    write_row(out, "", numbers, psock.map(number))
}

fn name((name, _): (&'static str, u64)) -> &'static str {
    name
}

fn number((_, number): (&'static str, u64)) -> u64 {
    number
}

/// One line of kcm_stats: an object, its traffic, and columns of 10.
fn write_row<T: fmt::Display, const N: usize>(
    out: &mut impl Write,
    object: &str,
    traffic: [T; 4],
    columns: [T; N],
) -> fmt::Result {
    let [rx_msgs, rx_bytes, tx_msgs, tx_bytes] = traffic;
    write!(
        out,
        "{object:<8} {rx_msgs:<10} {rx_bytes:<16} {tx_msgs:<10} {tx_bytes:<16}"
    )?;
    columns
        .iter()
        .try_for_each(|column| write!(out, " {column:<10}"))?;
    writeln!(out)
}
