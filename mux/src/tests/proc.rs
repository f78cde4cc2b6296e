//! /proc text, byte for byte.

use std::string::String;

use super::*;
use crate::Totals;
use crate::proc::{TcpQueues, write_header, write_mux, write_stats};

fn show(world: &World) -> String {
    let mut out = String::new();
    write_mux(&mut out, &world.mux, |_| TcpQueues::default()).unwrap();
    out
}

#[test]
fn header_has_the_kernels_columns() {
    let mut out = String::new();
    write_header(&mut out, 0).unwrap();
    assert_eq!(
        out,
        "*** KCM statistics (0 MUX) ****\n\
         Object         RX-Msgs    RX-Bytes         TX-Msgs    TX-Bytes         Recv-Q   Rmem     Send-Q   Smem     Status\n"
    );
}

#[test]
fn idle_mux_shows_one_waiting_socket_and_a_bare_psock() {
    let mut world = World::new(1);
    world.attach(p4());
    assert_eq!(
        show(&world),
        "mux            0          0                0          0                -        -        -        -        KCMs: 1, Psocks 1\n\
         \x20  kcm-0       0          0                0          0                0        0        0        -        RxWait \n\
         \x20  psock-0     0          0                0          0                0        0        0        0        \n"
    );
}

/// The status words of each line.
fn words(world: &World) -> Vec<String> {
    show(world)
        .lines()
        .skip(1)
        .map(|line| line.chars().skip(107).collect())
        .collect()
}

#[test]
fn status_words_tell_the_state() {
    let mut world = World::new(1);
    world.send(KcmId(0), b"m", BATCH); // [K09]
    assert_eq!(words(&world), ["WMore RxWait "]);
    world.send(KcmId(0), b"m", END); // [K10]
    assert_eq!(words(&world), ["TxWait RxWait "]);
    let psock = world.attach(p4());
    world.write(TxResult::Sent(1));
    assert_eq!(words(&world), ["Psck-0 RxWait ", "Rsvd-0 "]);
    world.mux.handle_reset(psock);
    assert_eq!(words(&world), ["TxWait RxWait ", "TxStop "]);
    world.disable(KcmId(0), true);
    world.spaced(psock, "a"); // [K11]
    assert_eq!(words(&world), ["TxWait ", "TxStop RxPause RdyRx "]);
    let aborted = world.attach(constant(-1));
    let _ = world.feed(aborted, b"x");
    assert_eq!(words(&world)[2], "RxStop Rsvd-0 RxWait "); // [K12]
}

#[test]
fn known_length_shows_the_bytes_not_consumed() {
    let mut world = World::new(1);
    let psock = world.attach(p4());
    let whole = msg(100, b'x');
    let _ = world.feed(psock, &whole[..20]);
    let _ = world.feed(psock, &whole[20..30]); // [K13]
    assert_eq!(words(&world)[1], "RxWait=84 ");
}

#[test]
fn queues_count_messages_in_batch_and_in_flight() {
    let mut world = World::new(1);
    let psock = world.attach(p4());
    let _ = world.feed(psock, &letters("abc"));
    world.recv(KcmId(0));
    let _ = world.feed(psock, &letters("d"));
    world
        .mux
        .account(KcmId(0), world.batches.get_mut(&KcmId(0)).unwrap());
    world.send(KcmId(0), b"m", END);
    let transmit = world.mux.begin_transmit().unwrap();
    assert!(show(&world).contains(
        "kcm-0       1          12               1          1                3        228      1        -        Psck-0 RxWait \n"
    ));
    world.mux.finish_transmit(transmit, TxResult::Sent(1));
    assert!(show(&world).contains("mux            4          48               1          1 "));
}

#[test]
fn stats_have_the_kernels_columns_and_right_numbers() {
    let mut world = World::new(1);
    let gone = world.attach(p4());
    let psock = world.attach(p4());
    world.spaced(psock, "ab");
    world.send(KcmId(0), b"xyz", END);
    world.wire();
    world.mux.unattach(gone);
    let mut totals = Totals::default();
    totals.add(&world.mux);
    let mut out = String::new();
    write_stats(&mut out, &totals).unwrap();
    assert_eq!(
        out,
        "MUX      RX-Msgs    RX-Bytes         TX-Msgs    TX-Bytes         TX-Retries Attach     Unattach   UnattchRsvd RX-RdyDrops\n\
         \x20        2          24               1          3                0          2          1          0          0         \n\
         Psock    RX-Msgs    RX-Bytes         TX-Msgs    TX-Bytes         Reserved   Unreserved RX-Aborts  RX-Intr    RX-Unrecov RX-MemFail RX-NeedMor RX-BadLen  RX-TooBig  RX-Timeout TX-Aborts \n\
         \x20        2          24               1          3                1          1          0          0          0          0          0          0          0          0          0         \n"
    );
}
