use super::pool::*;
use super::*;
use crate::secret::{Key, Rng};

#[test]
fn send_queue_is_a_byte_stream_whatever_the_chunks() {
    let mut rng = Rng::new(Key([7; 16]));
    let mut pool = BlockPool::new(1 << 20);
    let mut q = SendQueue::default();
    let (mut written, mut acked) = (0u32, 0u32);
    let byte = |i: u32| (i.wrapping_mul(31) >> 3) as u8;
    for round in 0..1_500 {
        // Quiet and bulk take turns, up to where the pool is short.
        let most = if round % 200 < 100 { 900 } else { 90_000 };
        let n = rng.below(most) as u32;
        let data: Vec<u8> = (written..written + n).map(byte).collect();
        written += q.push(&mut pool, &data) as u32;
        let off = rng.below(q.len() as u64 + 1) as usize;
        let mut out = vec![0; rng.below((q.len() - off) as u64 + 1) as usize];
        q.copy_to(off, &mut out);
        for (i, b) in out.iter().enumerate() {
            assert_eq!(*b, byte(acked + (off + i) as u32));
        }
        let drop = rng.below(q.len() as u64 + 1) as u32;
        q.advance(&mut pool, drop as usize);
        acked += drop;
        assert_eq!(q.len() as u32, written - acked);
    }
    q.clear(&mut pool);
    assert_eq!(pool.used_bytes(), 0);
}

#[test]
fn what_is_read_up_to_a_hole_leaves_no_slice() {
    let mut pool = BlockPool::new(1 << 20);
    let mut q = RecvQueue::default();
    assert!(q.write(&mut pool, 0, &[1; 1000]));
    q.commit(1000);
    assert!(q.write(&mut pool, 500, &[3; 100]));
    q.consume(&mut pool, 1000, true);
    assert_eq!(q.slices().next(), None);
    assert!(q.write(&mut pool, 0, &[2; 500]));
    q.commit(600);
    assert_eq!(q.slices().next().map(<[u8]>::len), Some(600));
}

#[test]
fn recv_queue_reassembles_whatever_the_blocks() {
    let mut rng = Rng::new(Key([8; 16]));
    let mut pool = BlockPool::new(1 << 20);
    let mut q = RecvQueue::default();
    let byte = |i: usize| ((i * 31) >> 3) as u8;
    let data = |from: usize, n: usize| (from..from + n).map(byte).collect::<Vec<u8>>();
    let mut read = 0;
    for round in 0..600 {
        let most = if round % 200 < 100 { 700 } else { 40_000 };
        let (hole, n) = (rng.below(most) as usize, 1 + rng.below(most) as usize);
        let next = read + q.len();
        let ahead = rng.below(2) == 0;
        if ahead {
            assert!(q.write(&mut pool, hole, &data(next + hole, n)));
        }
        assert!(q.write(&mut pool, 0, &data(next, hole)));
        q.commit(hole + if ahead { n } else { 0 });
        let mut out = vec![0; rng.below(q.len() as u64 + 1) as usize];
        assert_eq!(q.copy_to(0, &mut out), out.len());
        assert!(out == data(read, out.len()), "round {round}");
        let n = if round % 3 == 0 { q.len() } else { out.len() };
        q.consume(&mut pool, n, false);
        read += n;
    }
    q.clear(&mut pool);
    assert_eq!(pool.used_bytes(), 0);
}

#[test]
fn bulk_moves_to_large_blocks_and_back() {
    let mut pool = BlockPool::new(1 << 20);
    let mut q = RecvQueue::default();
    let mut blocks = |n: usize| {
        assert!(q.write(&mut pool, 0, &vec![1; n]));
        q.commit(n);
        let sizes: Vec<usize> = q.blocks.iter().flatten().map(|b| b.len()).collect();
        q.consume(&mut pool, n, false);
        sizes
    };
    assert_eq!(blocks(5_000), [BLOCK_BYTES; 2]);
    assert_eq!(blocks(LARGE_BYTES + 1)[15..], [BLOCK_BYTES, LARGE_BYTES]);
    assert_eq!(blocks(40_000), [LARGE_BYTES]);
    assert_eq!(blocks(5_000), [LARGE_BYTES], "not known yet to be quiet");
    assert_eq!(blocks(5_000), [BLOCK_BYTES; 2]);
    assert!(q.write(&mut pool, LARGE_BYTES + 1, b"far ahead"));
    let held = q.blocks.iter().flatten().map(|b| b.len());
    assert_eq!(
        held.collect::<Vec<_>>(),
        [BLOCK_BYTES],
        "no more than it needs"
    );
}

#[test]
fn recv_queue_reads_out_of_order_writes_in_order() {
    let mut pool = BlockPool::new(1 << 20);
    let mut q = RecvQueue::default();
    assert!(q.write(&mut pool, 5_000, b"tail"));
    assert_eq!(q.slices().count(), 0);
    assert!(q.write(&mut pool, 0, &[9; 5_000]));
    q.commit(5_004);
    let mut out = vec![0; 6_000];
    assert_eq!(q.copy_to(4_998, &mut out), 6);
    assert_eq!(&out[..6], b"\x09\x09tail");
    q.consume(&mut pool, 5_004, false);
    assert!(q.is_vacant());
    assert_eq!(pool.used_bytes(), 0);
}

#[test]
fn small_messages_share_a_small_block_and_outgrow_it() {
    let mut pool = BlockPool::new(1 << 20);
    let (mut tx, mut rx) = (SendQueue::default(), RecvQueue::default());
    for round in 0..3u8 {
        assert_eq!(tx.push(&mut pool, &[round; 60]), 60);
        assert!(rx.write(&mut pool, 0, &[round; 60]));
        rx.commit(60);
    }
    assert_eq!(pool.used_bytes(), 2 * SMALL_BYTES);
    tx.advance(&mut pool, 70);
    rx.consume(&mut pool, 70, false);
    assert_eq!(tx.push(&mut pool, &[9; 100]), 100);
    assert!(rx.write(&mut pool, 300, b"ahead"));
    assert_eq!(pool.used_bytes(), 2 * BLOCK_BYTES);
    let mut sent = [0; 210];
    tx.copy_to(0, &mut sent);
    let expected = [&[1; 50][..], &[2; 60], &[9; 100]].concat();
    assert_eq!(sent[..], expected);
    let mut read = [0; 210];
    assert_eq!(rx.copy_to(0, &mut read), 110);
    assert_eq!(read[..110], expected[..110]);
    tx.clear(&mut pool);
    rx.clear(&mut pool);
    assert_eq!(pool.used_bytes(), 0);
}

#[test]
fn pool_exhaustion_shortens_writes_and_recovers() {
    let mut pool = BlockPool::new(4 * BLOCK_BYTES);
    let mut q = SendQueue::default();
    assert_eq!(q.push(&mut pool, &[1; 5 * BLOCK_BYTES]), 4 * BLOCK_BYTES);
    let mut r = RecvQueue::default();
    assert!(!r.write(&mut pool, 0, b"x"));
    q.advance(&mut pool, BLOCK_BYTES);
    assert!(r.write(&mut pool, 0, b"x"));
}

#[test]
fn the_last_eighth_is_for_data_in_order() {
    let mut pool = BlockPool::new(16 * BLOCK_BYTES);
    let mut q = SendQueue::default();
    assert_eq!(q.push(&mut pool, &[1; 15 * BLOCK_BYTES]), 15 * BLOCK_BYTES);
    assert!(pool.under_pressure());
    let mut r = RecvQueue::default();
    assert!(!r.write(&mut pool, SMALL_BYTES, b"ahead"));
    assert!(r.write(&mut pool, 0, b"next"));
}
