//! Transmit steering and failover, one rule a test (kcm-semantics §5, §6).

use super::*;
use crate::error::EPIPE;
use crate::limits::OPEN_MSG_BYTES_MAX;

const K0: KcmId = KcmId(0);
const K1: KcmId = KcmId(1);
const K2: KcmId = KcmId(2);

fn world(kcms: usize, psocks: usize) -> (World, Vec<PsockId>) {
    let mut world = World::new(kcms);
    let psocks = (0..psocks).map(|_| world.attach(p4())).collect();
    (world, psocks)
}

fn text(writes: Vec<(PsockId, Vec<u8>)>) -> Vec<(u32, std::string::String)> {
    let text = |bytes| std::string::String::from_utf8(bytes).unwrap();
    writes
        .into_iter()
        .map(|(psock, bytes)| (psock.0, text(bytes)))
        .collect()
}

#[test]
fn open_message_waits_for_its_end() {
    let (mut world, _) = world(1, 1);
    world.send(K0, b"one", MORE);
    assert_eq!(world.wire(), []);
    world.send(K0, b"two", END);
    assert_eq!(text(world.wire()), [(0, "onetwo".into())]);
    let stats = world.mux.kcm_stats(K0);
    assert_eq!((stats.tx_msgs, stats.tx_bytes), (1, 6));
}

#[test]
fn empty_end_completes_an_open_message_and_else_sends_nothing() {
    let (mut world, _) = world(1, 1);
    world.send(K0, b"", END); // [D08]
    assert_eq!(world.wire(), []);
    world.send(K0, b"five!", MORE);
    world.send(K0, b"", END); // [D09]
    assert_eq!(text(world.wire()), [(0, "five!".into())]);
    assert_eq!(world.mux.kcm_stats(K0).tx_msgs, 1);
}

#[test]
fn aborted_open_message_leaves_no_charge() {
    let (mut world, _) = world(1, 1);
    world.mux.set_sndbuf(K0, 4608);
    for _ in 0..10 {
        world.send(K0, &[b'x'; 4000], MORE); // [D24]; accounting leak of §15.7
        world.mux.abort_open(K0);
    }
    world.send(K0, b"last", END);
    assert_eq!(text(world.wire()), [(0, "last".into())]);
    assert_eq!(world.mux.kcm_stats(K0).tx_bytes, 4);
}

#[test]
fn sndbuf_is_checked_only_when_a_message_starts() {
    let (mut world, _) = world(1, 0);
    world.mux.set_sndbuf(K0, 4608);
    for len in [12, 2000, 2000, 2000] {
        world.send(K0, &std::vec![0; len], END); // [E01]
    }
    assert!(!world.mux.may_start(K0));
    assert_eq!(
        world.mux.send(K0, &[b"no"], END),
        Err(SendError::WouldBlock)
    );
    assert_eq!(world.mux.send(K0, &[], END), Err(SendError::WouldBlock));
    world.attach(p4()); // [E04]
    let writes = world.wire();
    assert_eq!(
        writes.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(),
        6012
    );
    assert!(world.mux.may_start(K0));
    assert_eq!(world.events(), [Event::Writable(K0)]);
}

#[test]
fn single_message_of_any_size_is_accepted_whole() {
    let (mut world, _) = world(1, 0);
    world.mux.set_sndbuf(K0, 4608);
    world.send(K0, &std::vec![1; 500_000], END); // [E05]
    assert_eq!(
        world.mux.send(K0, &[b"full"], END),
        Err(SendError::WouldBlock)
    );
}

#[test]
fn open_message_is_bounded_and_kept_on_refusal() {
    let (mut world, _) = world(1, 1);
    let half = std::vec![1; OPEN_MSG_BYTES_MAX / 2];
    world.send(K0, &half, MORE);
    world.send(K0, &half, MORE);
    assert_eq!(
        world.mux.send(K0, &[b"x"], MORE),
        Err(SendError::OpenMessageTooLong)
    );
    world.send(K0, b"end", END);
    let written: usize = world.wire().iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(written, OPEN_MSG_BYTES_MAX + 3);
}

#[test]
fn single_sends_rotate_over_psocks() {
    let (mut world, _) = world(1, 2);
    let mut order = Vec::new();
    for _ in 0..4 {
        world.send(K0, b"m", END);
        order.extend(world.wire().into_iter().map(|(psock, _)| psock.0));
    }
    assert_eq!(order, [0, 1, 0, 1]); // [E08]
}

#[test]
fn batched_messages_wait_and_share_one_write() {
    let (mut world, _) = world(1, 2);
    world.send(K0, b"one", BATCH);
    world.send(K0, b"two", BATCH);
    assert_eq!(world.wire(), []);
    world.send(K0, b"three", END); // [D11] [E09]
    assert_eq!(text(world.wire()), [(0, "onetwothree".into())]);
    world.send(K0, b"four", BATCH);
    world.send(K0, b"", END); // [D12]
    assert_eq!(text(world.wire()), [(1, "four".into())]);
}

#[test]
fn batched_messages_are_flushed_before_a_sender_blocks() {
    let (mut world, _) = world(1, 1);
    world.mux.set_sndbuf(K0, 1);
    world.send(K0, b"one", BATCH);
    assert_eq!(
        world.mux.send(K0, &[b"two"], END),
        Err(SendError::WouldBlock)
    );
    assert_eq!(text(world.wire()), [(0, "one".into())]);
}

#[test]
fn attach_flushes_waiting_sockets_but_not_batched_messages() {
    let (mut world, _) = world(2, 0);
    world.send(K0, b"batched", BATCH);
    world.send(K1, b"plain", END);
    world.attach(p4()); // [D14]
    assert_eq!(text(world.wire()), [(0, "plain".into())]);
    world.send(K0, b"!", END);
    assert_eq!(text(world.wire()), [(0, "batched!".into())]);
}

#[test]
fn released_psock_goes_to_the_longest_waiting_socket_which_drains() {
    let (mut world, _) = world(3, 0);
    world.send(K2, b"3333", END);
    world.send(K1, b"2222", END);
    world.send(K0, b"1111", END);
    world.send(K2, b"cccc", END);
    world.attach(p4()); // [E10]
    let stream: Vec<u8> = world
        .wire()
        .into_iter()
        .flat_map(|(_, bytes)| bytes)
        .collect();
    assert_eq!(stream, b"3333cccc22221111");
    let stats = world.mux.psock_stats(PsockId(0));
    assert_eq!(
        (
            stats.reserved,
            stats.unreserved,
            stats.tx_msgs,
            stats.tx_bytes
        ),
        (3, 3, 4, 16)
    );
}

#[test]
fn blocked_psock_stays_reserved_and_others_use_another() {
    let (mut world, psocks) = world(2, 2);
    world.send(K0, &[b'x'; 1000], END);
    world.write(TxResult::Sent(400));
    assert!(world.mux.wants_write(psocks[0]));
    world.send(K0, b"tail", END); // [E11]
    world.send(K1, b"other", END);
    assert_eq!(text(world.wire()), [(1, "other".into())]); // [E13]
    world.mux.handle_writable(psocks[0]);
    let (psock, bytes) = world.write(TxResult::Sent(604));
    assert_eq!((psock, bytes.len()), (psocks[0], 604));
    assert!(!world.mux.wants_write(psocks[0]));
}

#[test]
fn write_space_seen_during_a_write_is_not_lost() {
    let (mut world, psocks) = world(1, 1);
    world.send(K0, b"0123456789", END);
    let transmit = world.mux.begin_transmit().unwrap();
    world.mux.handle_writable(psocks[0]);
    world.mux.finish_transmit(transmit, TxResult::Sent(4));
    assert!(!world.mux.wants_write(psocks[0]));
    assert_eq!(text(world.wire()), [(0, "456789".into())]);
}

#[test]
fn messages_sent_during_a_write_follow_it() {
    let (mut world, _) = world(1, 2);
    world.send(K0, b"one", END);
    let transmit = world.mux.begin_transmit().unwrap();
    world.send(K0, b"two", END);
    assert!(
        world.mux.begin_transmit().is_none(),
        "one write at a time per socket"
    );
    world.mux.finish_transmit(transmit, TxResult::Sent(2));
    world.mux.handle_writable(PsockId(0));
    assert_eq!(text(world.wire()), [(0, "etwo".into())]);
}

#[test]
fn hard_failure_restarts_the_message_on_the_next_psock() {
    let (mut world, psocks) = world(1, 2);
    world.send(K0, b"first", BATCH);
    world.send(K0, b"second", END);
    world.write(TxResult::Sent(7)); // first + se
    world.mux.handle_writable(psocks[0]);
    world.write(TxResult::Failed(104));
    assert_eq!(text(world.wire()), [(1, "second".into())]);
    assert_eq!(world.mux.take_error(psocks[0]), EPIPE);
    assert_eq!(world.mux.take_error(psocks[0]), 0);
    let stats = world.mux.psock_stats(psocks[0]);
    assert_eq!((stats.tx_aborts, stats.tx_msgs, stats.tx_bytes), (1, 1, 7)); // [K16]
    assert_eq!(world.mux.stats().tx_retries, 1);
}

#[test]
fn hard_failure_without_another_psock_waits_for_one() {
    let (mut world, psocks) = world(1, 1);
    world.send(K0, b"one", END);
    world.write(TxResult::Failed(32));
    world.send(K0, b"two", END); // [F03]
    assert_eq!(world.wire(), []);
    assert_eq!(world.attach(p4()), PsockId(1)); // [F05]
    assert_eq!(text(world.wire()), [(1, "onetwo".into())]);
    world.mux.take_error(psocks[0]);
    world.send(K0, b"x", END);
    assert_eq!(world.wire()[0].0, PsockId(1), "TxStop lasts until unattach");
}

#[test]
fn pending_error_fails_the_next_transmission() {
    let (mut world, psocks) = world(1, 2);
    let _ = world.read(psocks[0], ReadResult::Eof);
    assert_eq!(world.mux.pending_error(psocks[0]), EPIPE); // [F01]
    world.send(K0, b"m", END); // [F09]
    assert_eq!(text(world.wire()), [(1, "m".into())]);
    assert_eq!(world.mux.psock_stats(psocks[0]).tx_aborts, 1);
}

#[test]
fn error_read_in_time_leaves_the_psock_usable() {
    let (mut world, psocks) = world(1, 1);
    let _ = world.read(psocks[0], ReadResult::Eof);
    assert_eq!(world.mux.take_error(psocks[0]), EPIPE);
    world.mux.handle_fin(psocks[0]);
    assert_eq!(world.mux.take_error(psocks[0]), 0, "one FIN, one error");
    world.send(K0, b"m", END); // [F02]
    assert_eq!(text(world.wire()), [(0, "m".into())]);
}

#[test]
fn parser_error_fails_the_next_transmission_too() {
    let (mut world, _) = world(1, 0);
    let psock = world.attach(constant(-74));
    let _ = world.feed(psock, b"x");
    assert_eq!(world.mux.pending_error(psock), 74);
    world.send(K0, b"m", END); // [F15]
    assert_eq!(world.wire(), []);
    assert_eq!(world.mux.pending_error(psock), EPIPE);
}

#[test]
fn reset_while_blocked_fails_over_at_once() {
    let (mut world, psocks) = world(1, 2);
    world.send(K0, b"message", END);
    world.write(TxResult::Sent(3));
    let _ = world.read(psocks[0], ReadResult::Failed(104)); // [F11] §15.5
    assert_eq!(text(world.wire()), [(1, "message".into())]);
    assert!(!world.mux.wants_write(psocks[0]));
}

#[test]
fn reset_during_a_short_write_fails_over_at_once() {
    let (mut world, psocks) = world(1, 2);
    world.send(K0, b"message", END);
    let transmit = world.mux.begin_transmit().unwrap();
    world.mux.handle_reset(psocks[0]);
    world.mux.finish_transmit(transmit, TxResult::Sent(3));
    assert_eq!(text(world.wire()), [(1, "message".into())]);
}

#[test]
fn fin_while_blocked_fails_when_write_space_appears() {
    let (mut world, psocks) = world(1, 2);
    world.send(K0, b"message", END);
    world.write(TxResult::Sent(3));
    let _ = world.read(psocks[0], ReadResult::Eof);
    assert_eq!(world.wire(), []);
    world.mux.handle_writable(psocks[0]);
    assert_eq!(text(world.wire()), [(1, "message".into())]);
}

#[test]
fn unattach_of_a_reserved_psock_restarts_the_message() {
    let (mut world, psocks) = world(1, 2);
    world.send(K0, b"message", END);
    world.write(TxResult::Sent(3));
    let unattached = world.mux.unattach(psocks[0]); // [F12] [F13]
    assert_eq!(unattached.error, EPIPE);
    assert_eq!(text(world.wire()), [(1, "message".into())]);
    assert_eq!(world.mux.stats().psock_unattach_rsvd, 1);
    assert_eq!(world.mux.psock_totals().tx_bytes, 10);
}

#[test]
fn connection_torn_by_unattach_carries_no_other_message() {
    let (mut world, psocks) = world(1, 1);
    world.send(K0, b"message", END);
    world.write(TxResult::Sent(3));
    assert!(world.mux.unattach(psocks[0]).torn);
    world.mux.attach_torn(p4(), 1 << 20, None); // the same TCP socket again [F14]
    assert_eq!(
        world.wire(),
        [],
        "whatever came would continue the fragment"
    );
    world.attach(p4());
    assert_eq!(text(world.wire()), [(1, "message".into())]);
}

#[test]
fn unattach_between_messages_tears_nothing() {
    let (mut world, psocks) = world(1, 1);
    world.send(K0, b"message", END);
    world.wire();
    assert!(!world.mux.unattach(psocks[0]).torn);
}

#[test]
fn unattach_during_a_write_restarts_what_it_did_not_finish() {
    let (mut world, psocks) = world(1, 2);
    world.send(K0, b"done", BATCH);
    world.send(K0, b"again", END);
    let transmit = world.mux.begin_transmit().unwrap();
    world.mux.unattach(psocks[0]);
    assert!(
        world.mux.begin_transmit().is_none(),
        "its buffers are still out"
    );
    world.mux.finish_transmit(transmit, TxResult::Sent(6));
    assert_eq!(text(world.wire()), [(1, "again".into())]);
    assert_eq!(world.mux.psock_totals().tx_msgs, 2);
}

#[test]
fn close_drops_the_queue_and_aborts_a_psock_mid_message() {
    let (mut world, psocks) = world(2, 1);
    world.send(K0, b"message", END);
    world.send(K0, b"never", END);
    world.write(TxResult::Sent(3));
    world.close(K0); // [E15]
    assert_eq!(world.mux.pending_error(psocks[0]), EPIPE);
    world.mux.take_error(psocks[0]);
    world.send(K1, b"other", END);
    assert_eq!(world.wire(), []);
    world.spaced(psocks[0], "a");
    assert_eq!(world.text(K1), "a", "reception goes on");
}

#[test]
fn close_during_a_write_frees_the_psock_at_a_message_boundary() {
    let (mut world, psocks) = world(2, 1);
    world.send(K0, b"whole", END);
    let transmit = world.mux.begin_transmit().unwrap();
    world.close(K0); // [E17]
    world.send(K1, b"next", END);
    assert!(world.mux.begin_transmit().is_none());
    world.mux.finish_transmit(transmit, TxResult::Sent(5));
    assert_eq!(text(world.wire()), [(0, "next".into())]);
    assert_eq!(world.mux.pending_error(psocks[0]), 0);
}

#[test]
fn close_during_a_write_aborts_the_psock_mid_message() {
    let (mut world, psocks) = world(2, 1);
    world.send(K0, b"whole", END);
    let transmit = world.mux.begin_transmit().unwrap();
    world.close(K0);
    assert_eq!(world.clone_kcm(), K0, "the index is reused at once");
    world.mux.finish_transmit(transmit, TxResult::Sent(4));
    assert_eq!(world.mux.pending_error(psocks[0]), EPIPE);
    world.send(K0, b"next", END);
    assert_eq!(world.wire(), []);
}

#[test]
fn close_with_open_or_batched_message_sends_nothing() {
    let (mut world, psocks) = world(2, 1);
    world.send(K0, b"batched", BATCH); // [D13]
    world.send(K0, b"open", MORE); // [E18]
    world.close(K0);
    assert_eq!(world.wire(), []);
    assert_eq!(world.mux.pending_error(psocks[0]), 0);
}

#[test]
fn direct_write_completes_without_queueing() {
    let (mut world, _) = world(1, 2);
    for psock in [0, 1, 0] {
        assert_eq!(world.mux.reserve_direct(K0), Some(PsockId(psock)));
        assert_eq!(world.mux.reserve_direct(K0), None);
        world
            .mux
            .finish_direct(K0, PsockId(psock), &[b"mes", b"sage"], TxResult::Sent(7));
    }
    assert_eq!(world.wire(), []);
    let stats = world.mux.psock_stats(PsockId(0));
    assert_eq!(
        (
            stats.tx_msgs,
            stats.tx_bytes,
            stats.reserved,
            stats.unreserved
        ),
        (2, 14, 2, 2)
    );
    assert_eq!(world.mux.kcm_stats(K0).tx_msgs, 3);
}

#[test]
fn direct_write_is_refused_behind_queued_or_open_messages() {
    let (mut world, _) = world(1, 1);
    world.send(K0, b"open", MORE);
    assert_eq!(world.mux.reserve_direct(K0), None);
    world.send(K0, b"", BATCH);
    assert_eq!(world.mux.reserve_direct(K0), None);
    world.mux.flush_batch(K0);
    assert_eq!(text(world.wire()), [(0, "open".into())]);
    assert_eq!(world.mux.reserve_direct(K0), Some(PsockId(0)));
}

#[test]
fn short_direct_write_queues_the_rest_in_front() {
    let (mut world, psocks) = world(1, 2);
    let psock = world.mux.reserve_direct(K0).unwrap();
    world.send(K0, b"behind", END);
    assert_eq!(world.wire(), []);
    world
        .mux
        .finish_direct(K0, psock, &[b"mes", b"sage"], TxResult::Sent(4));
    assert!(world.mux.wants_write(psocks[0]));
    world.mux.handle_writable(psocks[0]);
    assert_eq!(text(world.wire()), [(0, "agebehind".into())]);
}

#[test]
fn failed_direct_write_restarts_elsewhere() {
    let (mut world, psocks) = world(1, 2);
    let psock = world.mux.reserve_direct(K0).unwrap();
    world
        .mux
        .finish_direct(K0, psock, &[b"message"], TxResult::Failed(32));
    assert_eq!(text(world.wire()), [(1, "message".into())]);
    assert_eq!(world.mux.pending_error(psocks[0]), EPIPE);
}

#[test]
fn unattach_during_a_direct_write_restarts_unless_complete() {
    for (sent, expected) in [(7, ""), (3, "message")] {
        let (mut world, psocks) = world(1, 2);
        let psock = world.mux.reserve_direct(K0).unwrap();
        world.mux.unattach(psocks[0]);
        world
            .mux
            .finish_direct(K0, psock, &[b"message"], TxResult::Sent(sent));
        let stream: Vec<u8> = world
            .wire()
            .into_iter()
            .flat_map(|(_, bytes)| bytes)
            .collect();
        assert_eq!(stream, expected.as_bytes());
    }
}

#[test]
fn close_during_a_direct_write_settles_the_psock() {
    for (result, error) in [
        (TxResult::Sent(7), 0),
        (TxResult::Sent(0), 0),
        (TxResult::Sent(3), EPIPE),
        (TxResult::Failed(32), EPIPE),
    ] {
        let (mut world, psocks) = world(2, 1);
        let psock = world.mux.reserve_direct(K0).unwrap();
        world.close(K0);
        world.mux.finish_direct(K0, psock, &[b"message"], result);
        assert_eq!(world.mux.pending_error(psocks[0]), error, "{result:?}");
        assert_eq!(world.mux.reserve_direct(K1).is_some(), error == 0);
    }
}

#[test]
fn unattached_psocks_are_skipped_wherever_they_stand() {
    let (mut world, psocks) = world(1, 9);
    for psock in [0, 3, 4, 8] {
        world.mux.unattach(psocks[psock]);
    }
    assert_eq!(world.attach(p4()), psocks[0]);
    world.mux.unattach(psocks[5]);
    let mut order = Vec::new();
    for _ in 0..6 {
        world.send(K0, b"m", END);
        order.extend(world.wire().into_iter().map(|(psock, _)| psock.0));
    }
    assert_eq!(order, [1, 2, 6, 7, 0, 1]);
}

#[test]
fn local_shutdown_posts_one_error_a_call() {
    let (mut world, psocks) = world(1, 1);
    world.mux.handle_state_change(psocks[0]); // [F07]
    assert_eq!(world.events(), [Event::PsockError(psocks[0])]);
    assert_eq!(world.mux.take_error(psocks[0]), EPIPE);
    world.spaced(psocks[0], "a");
    assert_eq!(world.text(K0), "a");
}
