//! What a tracer sees: each message once, when its psock counts it.

use super::*;
use crate::limits::TAP_BYTES_MAX;
use crate::{Direction, Passed};

const K0: KcmId = KcmId(0);
const P0: PsockId = PsockId(0);

/// Direction, KCM socket, psock, length, first bytes.
type Line = (Direction, u32, u32, usize, Vec<u8>);

fn tapped(world: &mut World) -> (Vec<Line>, u64) {
    let mut lines = Vec::new();
    let lost = world.mux.take_tapped(|passed: Passed<'_>| {
        lines.push((
            passed.direction,
            passed.kcm.0,
            passed.psock.0,
            passed.len,
            passed.head.to_vec(),
        ));
    });
    (lines, lost)
}

/// A world of one psock whose tap copies `head` bytes.
fn world(kcms: usize, head: usize) -> World {
    let mut world = World::new(kcms);
    world.attach(p4());
    world.mux.set_tap(Some(head));
    world
}

#[test]
fn nothing_is_noted_while_nobody_looks() {
    let mut world = world(1, 16);
    world.mux.set_tap(None);
    let _ = world.feed(P0, &letters("ab"));
    world.send(K0, b"out", END);
    world.wire();
    assert!(!world.events().contains(&Event::Tapped));
    assert_eq!(tapped(&mut world), (Vec::new(), 0));
}

#[test]
fn received_messages_show_their_first_bytes() {
    let mut world = world(1, 5);
    let _ = world.feed(P0, &[msg(8, b'a'), msg(0, 0)].concat());
    assert!(world.events().contains(&Event::Tapped));
    let lines = [
        (Direction::Rx, 0, 0, 12, b"\0\0\0\x08a".to_vec()),
        (Direction::Rx, 0, 0, 4, b"\0\0\0\0".to_vec()),
    ];
    assert_eq!(tapped(&mut world), (lines.to_vec(), 0));
    assert_eq!(tapped(&mut world), (Vec::new(), 0));
}

#[test]
fn message_over_several_reads_is_one() {
    let mut world = world(1, TAP_BYTES_MAX / 4);
    let whole = msg(60_000, b'x');
    for part in whole.chunks(20_000) {
        let _ = world.feed(P0, part);
    }
    let (lines, _) = tapped(&mut world);
    assert_eq!(lines, [(Direction::Rx, 0, 0, whole.len(), whole)]);
}

#[test]
fn parked_message_is_seen_when_a_socket_takes_it_and_only_once() {
    let mut world = world(1, 16);
    world.mux.set_rcvbuf(K0, 1);
    let _ = world.feed(P0, &letters("ab"));
    let (lines, _) = tapped(&mut world);
    assert_eq!(lines.len(), 1, "the second has no room");
    assert_eq!(world.text(K0), "ab");
    let (lines, _) = tapped(&mut world);
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0].4[4], b'b');
    // Moving to another socket is not passing again.
    let other = world.clone_kcm();
    let _ = world.feed(P0, &letters("c"));
    assert_eq!(tapped(&mut world).0.len(), 1);
    world.close(K0);
    assert_eq!(world.text(other).len(), 1);
    assert_eq!(tapped(&mut world).0.len(), 0);
}

#[test]
fn sent_message_is_seen_with_its_last_byte() {
    let mut world = world(1, 16);
    world.send(K0, b"first", END);
    world.send(K0, b"second", END);
    let (_, offered) = world.write(TxResult::Sent(7));
    let seen = |lines: Vec<Line>| -> Vec<Vec<u8>> {
        assert!(lines.iter().all(|line| line.0 == Direction::Tx));
        lines.into_iter().map(|line| line.4).collect()
    };
    assert_eq!(offered, b"firstsecond");
    assert_eq!(seen(tapped(&mut world).0), [b"first".to_vec()]);
    world.mux.handle_writable(P0);
    assert_eq!(world.wire(), [(P0, b"cond".to_vec())]);
    assert_eq!(seen(tapped(&mut world).0), [b"second".to_vec()]);
}

#[test]
fn message_written_from_the_callers_memory_is_seen_once() {
    let mut world = world(1, 3);
    let direct = |world: &mut World, sent| {
        let parts: [&[u8]; 2] = [b"ab", b"cd"];
        let psock = world.mux.reserve_direct(K0).expect("it is free");
        world.mux.finish_direct(K0, psock, &parts, sent);
    };
    direct(&mut world, TxResult::Sent(4));
    let line = (Direction::Tx, 0, 0, 4, b"abc".to_vec());
    assert_eq!(tapped(&mut world).0, core::slice::from_ref(&line));
    direct(&mut world, TxResult::Sent(1));
    assert_eq!(tapped(&mut world).0, []);
    world.mux.handle_writable(P0);
    world.wire();
    assert_eq!(tapped(&mut world).0, [line]);
}

#[test]
fn what_finds_no_room_is_counted() {
    let mut world = world(1, 60_000);
    let whole = msg(50_000, b'x');
    for _ in 0..10 {
        let _ = world.feed(P0, &whole);
        world.text(K0);
    }
    let (lines, lost) = tapped(&mut world);
    assert_eq!(lines.len() as u64 + lost, 10);
    assert!((1..10).contains(&lost), "{lost}");
    let _ = world.feed(P0, &letters("a"));
    assert_eq!(tapped(&mut world).1, 0);
}
