//! Receive steering, one rule a test (kcm-semantics §7; case names of kcm-test-ideas in brackets).

use super::*;

const K0: KcmId = KcmId(0);
const K1: KcmId = KcmId(1);
const K2: KcmId = KcmId(2);

fn world(kcms: usize) -> (World, PsockId) {
    let mut world = World::new(kcms);
    let psock = world.attach(p4());
    (world, psock)
}

#[test]
fn three_sockets_messages_one_by_one_rotate() {
    let (mut world, psock) = world(3);
    world.spaced(psock, "abcdefghi"); // [I01]
    assert_eq!(
        [world.text(K0), world.text(K1), world.text(K2)],
        ["adg", "beh", "cfi"]
    );
    world.spaced(psock, "jkl"); // [I02]
    assert_eq!(
        [world.text(K0), world.text(K1), world.text(K2)],
        ["j", "k", "l"]
    );
}

#[test]
fn three_sockets_messages_of_one_pass_stay_together() {
    let (mut world, psock) = world(3);
    let _ = world.feed(psock, &letters("abcdefghi")); // [I03]
    let _ = world.feed(psock, &letters("jk"));
    assert_eq!(
        [world.text(K0), world.text(K1), world.text(K2)],
        ["abcdefghi", "jk", ""]
    );
}

#[test]
fn waiter_with_unread_messages_is_still_a_waiter() {
    let (mut world, psock) = world(3);
    world.spaced(psock, "ab");
    assert_eq!(world.text(K1), "b"); // [I04]
    assert_eq!(world.text(K0), "a");
    world.spaced(psock, "cde");
    assert_eq!(
        [world.text(K2), world.text(K0), world.text(K1)],
        ["c", "d", "e"]
    );
}

#[test]
fn two_psocks_share_one_rotation() {
    let (mut world, t) = world(2);
    let u = world.attach(p4());
    for (psock, letter) in [(t, "a"), (u, "A"), (t, "b"), (u, "B"), (t, "c")] {
        world.spaced(psock, letter); // [I05]
    }
    assert_eq!([world.text(K0), world.text(K1)], ["abc", "AB"]);
}

#[test]
fn clone_joins_the_tail() {
    let (mut world, psock) = world(2);
    world.spaced(psock, "abc");
    let clone = world.clone_kcm(); // [I06]
    world.spaced(psock, "ABC");
    assert_eq!(
        [world.text(K1), world.text(K0), world.text(clone)],
        ["bA", "acB", "C"]
    );
}

#[test]
fn disabled_socket_messages_append_to_the_first_waiter() {
    let (mut world, psock) = world(2);
    world.spaced(psock, "abc");
    world.disable(K0, true); // [I07]
    assert_eq!(world.text(K1), "bac");
    world.spaced(psock, "def"); // [I08]
    assert_eq!(world.text(K0), "");
    assert_eq!(world.text(K1), "def");
    world.disable(K0, false); // [I09]
    world.spaced(psock, "MNOP");
    assert_eq!([world.text(K1), world.text(K0)], ["MO", "NP"]);
}

#[test]
fn only_socket_disabled_messages_wait_and_keep_order() {
    let (mut world, psock) = world(1);
    world.spaced(psock, "ab");
    world.disable(K0, true); // [I10]
    world.spaced(psock, "c");
    assert!(!world.mux.wants_read(psock), "c is parked, d stays in TCP");
    assert_eq!(world.recv(K0), None);
    world.events();
    world.disable(K0, false);
    assert_eq!(world.events(), [Event::Readable(K0), Event::Resumed(psock)]);
    world.spaced(psock, "d");
    assert_eq!(world.text(K0), "abcd");
}

#[test]
fn disable_with_a_half_read_batch_moves_only_unread_messages() {
    let (mut world, psock) = world(1);
    let _ = world.feed(psock, &letters("abcd"));
    assert_eq!(world.recv(K0).unwrap()[4], b'a');
    world.disable(K0, true);
    world.disable(K0, true); // [I17]
    assert_eq!(world.recv(K0), None);
    world.disable(K0, false);
    world.disable(K0, false);
    assert_eq!(world.text(K0), "bcd");
}

#[test]
fn clone_takes_held_then_parked_messages() {
    let (mut world, psock) = world(1);
    world.spaced(psock, "ab");
    world.disable(K0, true);
    world.spaced(psock, "c");
    let clone = world.clone_kcm(); // [I11]
    assert_eq!(world.text(clone), "abc");
}

#[test]
fn closed_socket_messages_append_to_the_first_waiter_and_its_index_is_reused() {
    let (mut world, psock) = world(3);
    world.spaced(psock, "abcdef");
    assert!(!world.close(K0)); // [I12]
    assert_eq!(world.clone_kcm(), K0); // [I13]
    world.spaced(psock, "xyz");
    assert_eq!(
        [world.text(K1), world.text(K2), world.text(K0)],
        ["beadx", "cfy", "z"]
    );
}

#[test]
fn last_socket_closed_leaves_unparsed_bytes_to_tcp() {
    let (mut world, psock) = world(1);
    world.spaced(psock, "a");
    world.disable(K0, true);
    let _ = world.feed(psock, &letters("bc"));
    assert!(world.close(K0)); // [I14]
    let unattached = world.mux.unattach(psock);
    assert_eq!(unread(&unattached), letters("c"));
    assert_eq!(unattached.error, 0);
    assert_eq!(world.mux.stats().rx_ready_drops, 1);
}

#[test]
fn parked_message_is_dropped_by_unattach_and_counted() {
    let (mut world, psock) = world(1);
    world.disable(K0, true);
    let _ = world.feed(psock, &letters("bc"));
    assert_eq!(unread(&world.mux.unattach(psock)), letters("c")); // [I15]
    world.disable(K0, false);
    assert_eq!(world.text(K0), "");
    assert_eq!(world.mux.stats().rx_ready_drops, 1);
}

#[test]
fn both_disabled_parked_message_goes_to_the_one_enabled() {
    let (mut world, psock) = world(2);
    world.disable(K0, true);
    world.disable(K1, true);
    let _ = world.feed(psock, &letters("bc"));
    world.close(K0); // [I16]
    world.disable(K1, false);
    assert_eq!(world.text(K1), "bc");
}

#[test]
fn attach_while_disabled_parks_and_enable_delivers() {
    let (mut world, _) = world(1);
    world.disable(K0, true);
    let psock = world.attach(p4());
    world.spaced(psock, "a"); // [I22]
    world.disable(K0, false);
    assert_eq!(world.text(K0), "a");
}

#[test]
fn full_socket_leaves_the_rotation_until_it_is_empty() {
    let (mut world, psock) = world(1);
    world.mux.set_rcvbuf(K0, 100); // two messages of 12 bytes
    let _ = world.feed(psock, &letters("abcd"));
    assert!(!world.mux.wants_read(psock));
    assert_eq!(world.recv(K0).unwrap()[4], b'a'); // [I20]
    assert!(
        !world.mux.wants_read(psock),
        "one of two read changes nothing"
    );
    assert_eq!(world.recv(K0).unwrap()[4], b'b');
    assert!(world.mux.wants_read(psock));
    assert_eq!(world.text(K0), "cd");
}

#[test]
fn message_overshoots_a_nearly_full_socket() {
    let (mut world, psock) = world(1);
    world.mux.set_rcvbuf(K0, 77); // one message of 12 bytes is charged 76
    let _ = world.feed(psock, &[letters("a"), msg(50_000, b'b')].concat());
    assert!(world.mux.wants_read(psock));
    assert_eq!(world.text(K0), "ab");
}

#[test]
fn full_socket_next_waiter_takes_over_mid_pass() {
    let (mut world, psock) = world(2);
    world.mux.set_rcvbuf(K0, 100);
    world.mux.set_rcvbuf(K1, 100);
    let _ = world.feed(psock, &letters("abcdef")); // [I19]
    assert_eq!(world.recv(K0).unwrap()[4], b'a');
    assert_eq!(world.recv(K0).unwrap()[4], b'b');
    assert_eq!(world.text(K0), "ef");
    assert_eq!(world.text(K1), "cd");
}

#[test]
fn rcvlowat_lets_a_full_socket_resume_earlier() {
    let (mut world, psock) = world(1);
    world.mux.set_rcvbuf(K0, 200); // three messages
    world.mux.set_rcvlowat(K0, 153);
    let _ = world.feed(psock, &letters("abcde"));
    assert!(!world.mux.wants_read(psock));
    assert_eq!(world.recv(K0).unwrap()[4], b'a');
    world.mux.account(K0, world.batches.get_mut(&K0).unwrap());
    assert_eq!(
        world.mux.rx_len(K0),
        1,
        "two messages are charged 152, so d came"
    );
    assert_eq!(world.text(K0), "bcde");
}

#[test]
fn requeue_to_a_full_waiter_goes_on_to_the_next_and_then_holds() {
    let (mut world, psock) = world(3);
    let _ = world.feed(psock, &letters("abcdef"));
    [K1, K2]
        .into_iter()
        .for_each(|kcm| world.mux.set_rcvbuf(kcm, 100));
    world.disable(K0, true);
    assert_eq!(world.mux.rx_len(K1), 2);
    assert_eq!(world.mux.rx_len(K2), 2);
    world.disable(K0, false);
    assert_eq!(
        [world.text(K0), world.text(K1), world.text(K2)],
        ["ef", "ab", "cd"]
    );
}

#[test]
fn returned_batch_is_read_before_later_messages() {
    let (mut world, psock) = world(1);
    let _ = world.feed(psock, &letters("abc"));
    assert_eq!(world.recv(K0).unwrap()[4], b'a');
    let _ = world.feed(psock, &letters("d"));
    world
        .mux
        .return_batch(K0, world.batches.get_mut(&K0).unwrap());
    assert_eq!(world.mux.rx_len(K0), 3);
    assert_eq!(world.text(K0), "bcd");
}

#[test]
fn unattach_keeps_messages_already_delivered() {
    let (mut world, psock) = world(1);
    world.spaced(psock, "ab");
    assert!(unread(&world.mux.unattach(psock)).is_empty());
    assert_eq!(world.text(K0), "ab");
}

#[test]
fn unattach_during_a_read_hands_the_bytes_to_the_tcp_fd() {
    let (mut world, psock) = world(1);
    let _ = world.feed(psock, &letters("a")[..6]);
    let mut buf = world.mux.begin_read(psock, Chunk::new());
    assert!(
        unread(&world.mux.unattach(psock)).is_empty(),
        "six bytes were consumed"
    );
    assert_eq!(world.attach(p4()), psock, "the index is reused at once");
    buf.spare()[..3].copy_from_slice(b"xyz");
    match world.mux.finish_read(psock, buf, ReadResult::Bytes(3), 0) {
        ReadOutcome::Unattached(Some(bytes)) => assert_eq!(&*bytes, b"xyz"),
        other => panic!("{other:?}"),
    }
    assert!(
        world.mux.wants_read(psock),
        "the new attachment is not touched"
    );
}

#[test]
fn drained_idle_psock_owns_no_chunk() {
    let (mut world, psock) = world(1);
    let stream = letters("abcd").repeat(1000);
    let _ = world.feed(psock, &stream);
    assert!(world.mux.take_free_chunk().is_none(), "messages lie in it");
    while world.recv(K0).is_some() {}
    assert!(world.mux.take_free_chunk().is_some());
    assert!(world.mux.take_free_chunk().is_none());
}

#[test]
fn partial_message_does_not_pin_its_chunk() {
    let (mut world, psock) = world(1);
    let stream = letters("abcd").repeat(1000);
    let _ = world.feed(psock, &stream[..stream.len() - 5]);
    while world.recv(K0).is_some() {}
    assert!(world.mux.take_free_chunk().is_some());
    let _ = world.feed(psock, &stream[stream.len() - 5..]);
    assert_eq!(world.text(K0), "d");
}

#[test]
fn counters_follow_what_was_returned() {
    let (mut world, psock) = world(1);
    let _ = world.feed(psock, &letters("abc"));
    let batch = world.batches.get_mut(&K0).unwrap();
    assert!(world.mux.refill(K0, batch));
    batch.consume(12, true);
    batch.consume(5, false); // a short SEQPACKET read
    batch.consume(0, false); // EFAULT
    world.mux.account(K0, batch);
    let stats = world.mux.kcm_stats(K0);
    assert_eq!((stats.rx_msgs, stats.rx_bytes), (1, 17)); // [K18]
    let stats = world.mux.psock_stats(psock);
    assert_eq!((stats.rx_msgs, stats.rx_bytes), (3, 36));
}

#[test]
fn partly_consumed_message_stays_with_its_rest() {
    let (mut world, psock) = world(1);
    let large = msg(100_000, b'x');
    let _ = world.feed(psock, &letters("a"));
    large
        .chunks(60_000)
        .for_each(|part| drop(world.feed(psock, part)));
    let batch = world.batches.get_mut(&K0).unwrap();
    world.mux.refill(K0, batch);
    batch.consume_part(5);
    batch.consume_part(7); // not fewer than all that is left
    assert_eq!(
        batch.front().unwrap().contiguous(),
        Some(&letters("a")[5..])
    );
    batch.consume(7, true);
    batch.consume_part(60_010);
    let rest: Vec<u8> = batch.front().unwrap().parts().flatten().copied().collect();
    assert_eq!(rest, large[60_010..]);
    assert_eq!(batch.front().unwrap().len(), rest.len());
    batch.consume(rest.len(), true);
    assert!(!world.mux.refill(K0, world.batches.get_mut(&K0).unwrap()));
    let stats = world.mux.kcm_stats(K0);
    assert_eq!((stats.rx_msgs, stats.rx_bytes), (2, 12 + 100_004));
    assert_eq!(world.mux.kcm(K0).unwrap().rx.charge, 0);
}

#[test]
fn idle_sockets_are_small() {
    assert!(
        size_of::<crate::kcm::Kcm>() <= 512,
        "{}",
        size_of::<crate::kcm::Kcm>()
    );
    assert!(
        size_of::<crate::psock::Psock>() <= 512,
        "{}",
        size_of::<crate::psock::Psock>()
    );
}
