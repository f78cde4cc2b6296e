//! Message assembly, one rule a test (kcm-semantics §9, §10), and chunking independence.

use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::error::{EMSGSIZE, ENODATA, EPIPE, EPROTO, ESTRPIPE, ETIMEDOUT};

const K0: KcmId = KcmId(0);

fn world(parser: Parser) -> (World, PsockId) {
    let mut world = World::new(1);
    let psock = world.attach(parser);
    (world, psock)
}

fn all(world: &mut World) -> Vec<Vec<u8>> {
    core::iter::from_fn(|| world.recv(K0)).collect()
}

/// Bytes the TCP fd's owner can read while the psock is attached.
fn readable(world: &mut World, psock: PsockId) -> Vec<u8> {
    world
        .mux
        .take_unread(psock)
        .iter()
        .flat_map(|slice| slice.to_vec())
        .collect()
}

#[test]
fn header_and_body_byte_by_byte_give_whole_messages() {
    let (mut world, psock) = world(p4());
    let stream = [msg(3, b'a'), msg(5, b'b')].concat();
    for byte in &stream {
        let _ = world.feed(psock, &[*byte]); // [J02]
    }
    assert_eq!(all(&mut world), [msg(3, b'a'), msg(5, b'b')]);
    let stats = world.mux.psock_stats(psock);
    assert_eq!(stats.rx_need_more_hdr, 6);
    assert_eq!(stats.rx_bytes, 16, "each byte once");
}

#[test]
fn different_lengths_in_one_read_are_cut_at_their_ends() {
    let (mut world, psock) = world(p4());
    let messages = [msg(2, b'a'), msg(10, b'b'), msg(5, b'c')];
    let _ = world.feed(psock, &messages.concat()); // [J05]
    assert_eq!(all(&mut world), messages);
}

#[test]
fn negative_result_is_posted_as_it_is() {
    for errno in [1, 71, 4095, 5000] {
        let (mut world, psock) = world(constant(-errno));
        let _ = world.feed(psock, b"x"); // [J09]
        assert_eq!(
            world.events(),
            [Event::Unread(psock), Event::PsockError(psock)]
        );
        assert_eq!(
            [world.mux.take_error(psock), world.mux.take_error(psock)],
            [errno, 0]
        );
        let stats = world.mux.psock_stats(psock);
        assert_eq!((stats.rx_interrupted, stats.rx_aborts), (1, 1));
        assert!(!world.mux.wants_read(psock));
    }
}

#[test]
fn high_words_read_as_negative_results() {
    for (header, errno) in [(0x8000_0000_u32, i32::MIN), (0xffff_fffe, 2)] {
        let (mut world, psock) = world(praw());
        let _ = world.feed(psock, &header.to_be_bytes()); // [J12]
        assert_eq!(world.mux.take_error(psock), errno);
    }
}

#[test]
fn length_that_wraps_is_the_programs_own() {
    let (mut world, psock) = world(p4());
    let _ = world.feed(psock, b"\xff\xff\xff\xffabc"); // [J13]
    assert_eq!(world.recv(K0).unwrap(), b"\xff\xff\xff");
}

#[test]
fn estrpipe_at_the_first_bytes_leaves_them_readable() {
    let (mut world, psock) = world(constant(-ESTRPIPE));
    let _ = world.feed(psock, b"hello"); // [J14]
    assert_eq!(world.mux.take_error(psock), ESTRPIPE);
    assert_eq!(readable(&mut world, psock), b"hello");
    assert_eq!(readable(&mut world, psock), b"");
    assert_eq!(world.mux.psock_stats(psock).rx_interrupted, 1);
}

#[test]
fn estrpipe_after_consumed_bytes_is_enodata() {
    let (mut world, psock) = world(parser(|msg, _| if msg.len() > 2 { -ESTRPIPE } else { 0 }));
    let _ = world.feed(psock, b"ab");
    let _ = world.feed(psock, b"cde"); // [J15]
    assert_eq!(world.mux.take_error(psock), ENODATA);
    assert_eq!(readable(&mut world, psock), b"cde");
    let stats = world.mux.psock_stats(psock);
    assert_eq!((stats.rx_interrupted, stats.rx_unrecov_intr), (0, 1)); // [K15]
}

#[test]
fn length_within_consumed_bytes_is_eproto() {
    for (len, errno) in [(3, EPROTO), (4, EPROTO), (5, 0)] {
        let (mut world, psock) = world(parser(move |msg, _| if msg.len() < 8 { 0 } else { len }));
        let _ = world.feed(psock, b"abcd");
        let _ = world.feed(psock, b"efgh"); // [J16]
        assert_eq!(world.mux.take_error(psock), errno);
        assert_eq!(
            world.mux.psock_stats(psock).rx_bad_hdr_len,
            u64::from(errno != 0)
        );
        match errno {
            0 => assert_eq!(world.recv(K0).unwrap(), b"abcde"),
            _ => assert_eq!(readable(&mut world, psock), b"efgh"),
        }
    }
}

#[test]
fn length_over_rcvbuf_asks_for_the_current_one_and_aborts_above_it() {
    for (current, errno) in [(8192, EMSGSIZE), (8193, 0)] {
        let (mut world, _) = world(p4());
        let psock = world.mux.attach(praw(), 4096, None);
        let mut message = std::vec![7; 8193];
        message[..4].copy_from_slice(&8193_u32.to_be_bytes());
        assert!(matches!(
            world.feed(psock, &message),
            ReadOutcome::NeedRcvbuf
        )); // [J17] [J18]
        assert!(!world.mux.wants_read(psock));
        world.mux.set_psock_rcvbuf(psock, current);
        assert_eq!(world.mux.take_error(psock), errno);
        assert_eq!(
            world.mux.psock_stats(psock).rx_msg_too_big,
            u64::from(errno != 0)
        );
        match errno {
            0 => assert_eq!(world.recv(K0).unwrap(), message),
            _ => assert_eq!(readable(&mut world, psock), message),
        }
    }
}

#[test]
fn program_runs_once_on_bytes_that_wait_for_rcvbuf() {
    let (mut world, _) = world(p4());
    // The first run says 5000; a second run on the same message would say 5001.
    let counting = parser(|_, cb| {
        cb[0] += 1;
        4999 + cb[0] as i32
    });
    let psock = world.mux.attach(counting, 2304, None);
    let _ = world.feed(psock, &[7; 5000]);
    world.mux.set_psock_rcvbuf(psock, 8192);
    assert_eq!(world.recv(K0).unwrap().len(), 5000);
}

#[test]
fn length_equal_to_rcvbuf_is_accepted() {
    let (mut world, _) = world(p4());
    let psock = world.mux.attach(p4(), 2304, None);
    let _ = world.feed(psock, &msg(2300, b'x')); // [J19]
    assert_eq!(world.recv(K0).unwrap().len(), 2304);
}

#[test]
fn paused_parse_that_meets_a_long_message_asks_by_event() {
    let (mut world, _) = world(p4());
    let psock = world.mux.attach(p4(), 1000, None);
    world.disable(K0, true);
    let _ = world.feed(psock, &[msg(8, b'a'), msg(2000, b'b')].concat());
    world.events();
    world.disable(K0, false);
    assert_eq!(
        world.events(),
        [Event::Readable(K0), Event::NeedRcvbuf(psock)]
    );
    world.mux.set_psock_rcvbuf(psock, 4000);
    assert_eq!(world.events(), [Event::Readable(K0), Event::Resumed(psock)]);
    assert_eq!(world.text(K0), "ab");
}

#[test]
fn header_that_never_comes_is_bounded_by_rcvbuf() {
    let (mut world, _) = world(p4());
    let psock = world.mux.attach(constant(0), 10_000, None);
    for _ in 0..5 {
        let _ = world.feed(psock, &[0; 2000]); // [J20] [J24]
        assert!(world.mux.wants_read(psock));
    }
    assert!(matches!(world.feed(psock, b"x"), ReadOutcome::NeedRcvbuf));
    world.mux.set_psock_rcvbuf(psock, 10_000);
    assert_eq!(world.mux.take_error(psock), EMSGSIZE);
}

#[test]
fn program_sees_the_length_that_arrived() {
    let (mut world, psock) = world(parser(|msg, _| msg.len() as i32));
    let _ = world.feed(psock, b"12345"); // [J23]
    let _ = world.feed(psock, b"1234567");
    assert_eq!(all(&mut world), [b"12345".to_vec(), b"1234567".to_vec()]);
}

#[test]
fn cb_persists_for_one_message_and_starts_at_zero() {
    // The third run on a message says how long it is.
    let (mut world, psock) = world(parser(|_, cb| {
        cb[0] += 1;
        if cb[0] == 3 { 3 } else { 0 }
    }));
    "abcdef"
        .bytes()
        .for_each(|byte| drop(world.feed(psock, &[byte]))); // [J25]
    assert_eq!(all(&mut world), [b"abc".to_vec(), b"def".to_vec()]);
}

#[test]
fn good_messages_before_an_abort_are_delivered_and_the_rest_stays() {
    let (mut world, psock) = world(parser(|msg, _| match be32(msg) {
        Some(len) if len < 1000 => len + 4,
        Some(_) => -74,
        None => 0,
    }));
    let bad = [&[0xff; 4][..], b"rest"].concat();
    let bad = [&[0x7f][..], &bad[1..]].concat();
    let _ = world.feed(psock, &[letters("ab"), bad.clone()].concat()); // [J33]
    assert_eq!(world.text(K0), "ab");
    let unattached = world.mux.unattach(psock); // [J34]
    assert_eq!((unread(&unattached), unattached.error), (bad, 74)); // [J35]
}

#[test]
fn partial_message_is_lost_by_unattach() {
    let (mut world, psock) = world(p4());
    let _ = world.feed(psock, &msg(8, b'a')[..6]); // [J36]
    assert!(unread(&world.mux.unattach(psock)).is_empty());
}

#[test]
fn bytes_behind_a_known_length_are_not_consumed_before_all_came() {
    let (mut world, psock) = world(p4());
    let message = msg(100, b'a');
    let _ = world.feed(psock, &message[..20]);
    let _ = world.feed(psock, &message[20..40]); // [J39]
    assert_eq!(world.mux.psock_stats(psock).rx_bytes, 20);
    assert_eq!(unread(&world.mux.unattach(psock)), message[20..40]);
}

#[test]
fn end_of_stream_mid_message_posts_epipe_and_nothing_else() {
    let (mut world, psock) = world(p4());
    let _ = world.feed(psock, &[msg(8, b'a'), msg(8, b'b')[..6].to_vec()].concat());
    let _ = world.read(psock, ReadResult::Bytes(0)); // [J37] [J38]
    assert_eq!(world.text(K0), "a");
    assert!(!world.mux.wants_read(psock));
    let unattached = world.mux.unattach(psock);
    assert_eq!((unread(&unattached), unattached.error), (Vec::new(), EPIPE));
}

#[test]
fn read_without_bytes_changes_nothing() {
    let (mut world, psock) = world(p4());
    let _ = world.feed(psock, &letters("a")[..7]);
    let _ = world.read(psock, ReadResult::WouldBlock);
    assert!(world.mux.take_free_chunk().is_some());
    let _ = world.feed(psock, &letters("a")[7..]);
    assert_eq!(world.text(K0), "a");
}

fn world_with_timeout(timeout: Nanos) -> (World, PsockId) {
    let mut world = World::new(1);
    let psock = world.mux.attach(p4(), BUF, Some(timeout));
    (world, psock)
}

#[test]
fn incomplete_message_times_out_from_its_first_bytes() {
    for first in [2, 20] {
        let (mut world, psock) = world_with_timeout(200);
        let _ = world.feed(psock, &msg(50, b'a')[..first]); // [J27] [J28]
        world.now += 100;
        let _ = world.feed(psock, &msg(50, b'a')[first..first + 1]); // [J29]
        assert_eq!(world.mux.next_deadline(), Some(1_200));
        world.mux.handle_deadline(1_199);
        assert_eq!(world.mux.pending_error(psock), 0);
        world.mux.handle_deadline(1_200);
        assert_eq!(world.mux.take_error(psock), ETIMEDOUT);
        assert_eq!(world.mux.psock_stats(psock).rx_msg_timeouts, 1);
        assert_eq!(world.mux.next_deadline(), None);
        world.send(K0, b"m", END); // [J32]
        assert_eq!(world.wire().len(), 1);
    }
}

#[test]
fn completed_message_stops_the_timer_and_the_next_partial_one_starts_it() {
    let (mut world, psock) = world_with_timeout(200);
    let stream = letters("abc");
    let _ = world.feed(psock, &stream[..2]);
    world.now += 50;
    let _ = world.feed(psock, &stream[2..30]); // [J31], without the kernel's flaw
    assert_eq!(world.mux.next_deadline(), Some(1_250));
    let _ = world.feed(psock, &stream[30..]);
    assert_eq!(world.mux.next_deadline(), None);
}

#[test]
fn timeout_set_mid_message_counts_for_the_next_one() {
    let (mut world, psock) = world(p4());
    let stream = letters("ab");
    let _ = world.feed(psock, &stream[..2]);
    world.mux.set_msg_timeout(psock, Some(200)); // [J30]
    let _ = world.feed(psock, &stream[2..4]);
    assert_eq!(world.mux.next_deadline(), None);
    let _ = world.feed(psock, &stream[4..14]);
    assert_eq!(world.mux.next_deadline(), Some(1_200));
}

#[test]
fn timer_of_a_message_found_while_paused_starts_at_the_next_deadline_call() {
    let (mut world, psock) = world_with_timeout(200);
    world.disable(K0, true);
    let _ = world.feed(psock, &letters("ab")[..18]);
    world.disable(K0, false);
    assert_eq!(world.mux.next_deadline(), Some(0));
    world.mux.handle_deadline(9_000);
    assert_eq!(world.mux.next_deadline(), Some(9_200));
    world.mux.unattach(psock);
    assert_eq!(world.mux.next_deadline(), None);
}

#[test]
fn timeout_during_a_read_leaves_its_bytes_to_the_tcp_fd() {
    let (mut world, psock) = world_with_timeout(200);
    let _ = world.feed(psock, &letters("a")[..6]);
    let mut buf = world.mux.begin_read(psock, Chunk::new());
    world.mux.handle_deadline(5_000);
    world.events();
    buf.spare()[..2].copy_from_slice(b"xy");
    let _ = world
        .mux
        .finish_read(psock, buf, ReadResult::Bytes(2), 5_000);
    assert_eq!(world.events(), [Event::Unread(psock)]);
    assert_eq!(readable(&mut world, psock), b"xy");
}

#[test]
fn large_message_spans_chunks() {
    let (mut world, psock) = world(p4());
    let message: Vec<u8> = msg(150_000, 0)
        .iter()
        .enumerate()
        .map(|(i, _)| i as u8)
        .collect();
    let message = [&150_000_u32.to_be_bytes()[..], &message[4..]].concat();
    let stream = [message.clone(), message.clone(), letters("z")].concat();
    for part in stream.chunks(60_000) {
        let _ = world.feed(psock, part);
    }
    assert_eq!(all(&mut world), [message.clone(), message, letters("z")]);
}

#[test]
fn view_reads_across_parts_and_refuses_missing_bytes() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let (mut world, psock) = world(parser(move |msg, _| {
        let mut word = [0; 4];
        let inside = msg.read(4998, &mut word);
        log.lock().unwrap().push((msg.len(), inside, word));
        assert!(!msg.read(msg.len() - 3, &mut word));
        assert!(!msg.read(usize::MAX, &mut word));
        assert!(msg.read(msg.len(), &mut []));
        if inside { msg.len() as i32 } else { 0 }
    }));
    let _ = world.feed(psock, &[1; 5000]);
    let _ = world.feed(psock, &[2; 5000]);
    let seen = seen.lock().unwrap();
    assert_eq!(
        seen.iter().map(|&(len, ..)| len).collect::<Vec<_>>(),
        [5000, 10_000]
    );
    assert_eq!((seen[1].1, seen[1].2), (true, [1, 1, 2, 2]));
}

/// What a stream becomes: messages, errno, bytes left to the TCP fd.
#[derive(Debug, PartialEq)]
struct Fate {
    messages: Vec<Vec<u8>>,
    errno: i32,
}

/// Cuts `stream` where `cuts` say and reads it so.
fn fate(stream: &[u8], cuts: &[usize]) -> Fate {
    let (mut world, psock) = world(parser(|msg, _| match be32(msg) {
        None => 0,
        Some(len) if len < 0 => len,
        Some(len) => len.saturating_add(4),
    }));
    let mut fate = Fate {
        messages: Vec::new(),
        errno: 0,
    };
    let mut left = stream;
    for cut in cuts.iter().copied().chain(core::iter::repeat(60_000)) {
        if left.is_empty() || !world.mux.wants_read(psock) {
            break;
        }
        let (now, later) = left.split_at(cut.clamp(1, 60_000).min(left.len()));
        left = later;
        if let ReadOutcome::NeedRcvbuf = world.feed(psock, now) {
            world.mux.set_psock_rcvbuf(psock, BUF);
        }
        fate.messages.extend(all(&mut world));
        // A parse that goes on because room was made may ask as well.
        if world.events().contains(&Event::NeedRcvbuf(psock)) {
            world.mux.set_psock_rcvbuf(psock, BUF);
        }
    }
    fate.errno = world.mux.pending_error(psock);
    fate
}

fn any_message() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => (0..40_usize, any::<u8>()).prop_map(|(len, fill)| msg(len, fill)),
        5 => (0..9000_usize, any::<u8>()).prop_map(|(len, fill)| msg(len, fill)),
        1 => (60_000..200_000_usize, any::<u8>()).prop_map(|(len, fill)| msg(len, fill)),
    ]
}

/// Not a message: a length over every limit, or the parser's own errno.
fn any_end() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        Just(0x7fff_0000_u32.to_be_bytes().to_vec()),
        Just(0xffff_ffb6_u32.to_be_bytes().to_vec()),
    ]
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn any_chunking_gives_the_same_messages_and_the_same_abort(
        messages in prop::collection::vec(any_message(), 0..30),
        end in any_end(),
        cuts in prop::collection::vec(prop_oneof![1..10_usize, 1..5000_usize, 1..60_000_usize], 0..60),
    ) {
        let stream = [messages.concat(), end.clone()].concat();
        let errno = match end.first() { None => 0, Some(0x7f) => EMSGSIZE, Some(_) => 74 };
        let expected = Fate { messages, errno };
        prop_assert_eq!(&fate(&stream, &[]), &expected);
        prop_assert_eq!(&fate(&stream, &cuts), &expected);
    }
}
