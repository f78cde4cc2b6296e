//! The receive side against a naive specification.
//!
//! The specification knows whole messages only: three lists, a queue for each KCM socket, and
//! the kernel's rules as sentences. The mux must agree with it on every message, its receiver
//! and its order, on every byte that stays readable after unattach, and on its events.

use std::collections::VecDeque;
use std::vec;

use proptest::prelude::*;

use super::*;
use crate::limits::RX_MSG_OVERHEAD_BYTES;

/// A message of the specification: which connection, which number, how long.
type Msg = (u64, u32, usize);

#[derive(Default)]
struct SpecKcm {
    queue: VecDeque<Msg>,
    rcvbuf: usize,
    rcvlowat: usize,
    waiting: bool,
    disabled: bool,
}

impl SpecKcm {
    fn charge(&self) -> usize {
        self.queue
            .iter()
            .map(|&(_, _, len)| len + RX_MSG_OVERHEAD_BYTES)
            .sum()
    }

    fn has_room(&self) -> bool {
        self.charge() < self.rcvbuf
    }
}

/// One connection: its number, how far it has been fed and parsed.
#[derive(Default)]
struct SpecPsock {
    conn: u64,
    fed: usize,
    /// Start and number of the first message not yet parsed.
    start: usize,
    next: u32,
    /// Bytes of that message the program has seen while it is incomplete.
    consumed: usize,
    parked: Option<Msg>,
}

#[derive(Default)]
struct Spec {
    kcms: BTreeMap<KcmId, SpecKcm>,
    psocks: BTreeMap<PsockId, SpecPsock>,
    waiters: VecDeque<KcmId>,
    ready: VecDeque<PsockId>,
    hold: VecDeque<Msg>,
}

/// Length of message `seq` of connection `conn`: mostly short, some beyond the carry, a few
/// beyond a chunk.
fn msg_len(conn: u64, seq: u32) -> usize {
    let mix = (conn.wrapping_mul(0x9e37_79b9) ^ u64::from(seq).wrapping_mul(0x85eb_ca6b)) % 97;
    match mix {
        0 => 70_000,
        1..5 => 5_000,
        _ => 16 + mix as usize,
    }
}

fn msg_bytes(conn: u64, seq: u32) -> Vec<u8> {
    let len = msg_len(conn, seq);
    let mut bytes = (len as u32 - 4).to_be_bytes().to_vec();
    bytes.extend(conn.to_be_bytes());
    bytes.extend(seq.to_be_bytes());
    bytes.resize(len, seq as u8);
    bytes
}

/// The bytes `from..to` of a connection's stream.
fn stream(conn: u64, from: usize, to: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut start = 0;
    for seq in 0.. {
        let end = start + msg_len(conn, seq);
        if start >= to {
            break;
        }
        if end > from {
            let message = msg_bytes(conn, seq);
            bytes.extend(&message[from.saturating_sub(start)..message.len().min(to - start)]);
        }
        start = end;
    }
    bytes
}

impl Spec {
    fn next_receiver(&mut self) -> Option<KcmId> {
        while let Some(id) = self.waiters.pop_front() {
            let kcm = self.kcms.get_mut(&id).unwrap();
            if kcm.has_room() {
                return Some(id);
            }
            kcm.waiting = false;
        }
        None
    }

    /// The first message of a pass takes the head waiter; later ones follow it while it has
    /// room; at the end it goes to the tail.
    fn pass(&mut self, id: PsockId) {
        let mut receiver: Option<KcmId> = None;
        loop {
            let psock = self.psocks.get_mut(&id).unwrap();
            let len = msg_len(psock.conn, psock.next);
            if psock.parked.is_some() || psock.fed - psock.start < len {
                break;
            }
            let message = (psock.conn, psock.next, len);
            psock.start += len;
            psock.next += 1;
            psock.consumed = 0;
            if let Some(full) = receiver.filter(|id| !self.kcms[id].has_room()) {
                self.kcms.get_mut(&full).unwrap().waiting = false;
                receiver = None;
            }
            receiver = receiver.or_else(|| self.next_receiver());
            match receiver {
                Some(id) => self.kcms.get_mut(&id).unwrap().queue.push_back(message),
                None => {
                    self.psocks.get_mut(&id).unwrap().parked = Some(message);
                    self.ready.push_back(id);
                }
            }
        }
        self.waiters.extend(receiver);
        // While its length is unknown, all that came of a message is consumed.
        let psock = self.psocks.get_mut(&id).unwrap();
        if psock.parked.is_none() && psock.consumed < 4 {
            psock.consumed = psock.fed - psock.start;
        }
    }

    /// A socket receives again: hold, ready, then the tail of the waiters.
    fn resume(&mut self, id: KcmId) {
        let kcm = self.kcms.get_mut(&id).unwrap();
        if kcm.waiting || kcm.disabled {
            return;
        }
        let mut relieved = Vec::new();
        while let Some(&message) = self.hold.front() {
            if !kcm.has_room() {
                return;
            }
            kcm.queue.push_back(message);
            self.hold.pop_front();
        }
        while let Some(&psock) = self.ready.front() {
            if !kcm.has_room() {
                break;
            }
            let parked = self.psocks.get_mut(&psock).unwrap().parked.take();
            kcm.queue.extend(parked);
            self.ready.pop_front();
            relieved.push(psock);
        }
        if self.ready.is_empty() {
            kcm.waiting = true;
            self.waiters.push_back(id);
        }
        relieved.into_iter().for_each(|psock| self.pass(psock));
    }

    fn recv(&mut self, id: KcmId) -> Option<Msg> {
        let kcm = self.kcms.get_mut(&id).unwrap();
        let message = kcm.queue.pop_front()?;
        if kcm.charge() < kcm.rcvlowat {
            self.resume(id);
        }
        Some(message)
    }

    /// A socket that receives no more gives its messages to the first waiter with room.
    fn give_up(&mut self, id: KcmId) {
        self.waiters.retain(|&waiter| waiter != id);
        let kcm = self.kcms.get_mut(&id).unwrap();
        kcm.waiting = false;
        kcm.disabled = true;
        for message in core::mem::take(&mut kcm.queue) {
            while let Some(&head) = self.waiters.front()
                && !self.kcms[&head].has_room()
            {
                self.kcms.get_mut(&head).unwrap().waiting = false;
                self.waiters.pop_front();
            }
            match self.waiters.front() {
                Some(head) => self.kcms.get_mut(head).unwrap().queue.push_back(message),
                None => self.hold.push_back(message),
            }
        }
    }
}

/// What a sequence does next; numbers pick among what exists.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Feed(usize, usize),
    BeginRead(usize),
    FinishRead(usize, usize),
    Recv(usize),
    Refill(usize),
    ReturnBatch(usize),
    Disable(usize, bool),
    ToggleDisable(usize),
    Clone,
    Close(usize),
    Attach,
    Unattach(usize),
    Rcvbuf(usize, u32),
    Rcvlowat(usize, u32),
}

/// The mux and its specification, side by side.
pub(super) struct Pair {
    world: World,
    spec: Spec,
    conns: u64,
    reads: Vec<(PsockId, u64, crate::ReadBuf)>,
    drops: u64,
}

impl Pair {
    pub(super) fn new(kcms: usize, psocks: usize, rcvbuf: u32) -> Self {
        let world = World::new(1);
        let mut pair = Self {
            world,
            spec: Spec::default(),
            conns: 0,
            reads: Vec::new(),
            drops: 0,
        };
        pair.spec_clone(KcmId(0));
        pair.apply(Op::Rcvbuf(0, rcvbuf));
        for kcm in 1..kcms {
            pair.apply(Op::Clone);
            pair.apply(Op::Rcvbuf(kcm, rcvbuf));
        }
        (0..psocks).for_each(|_| pair.apply(Op::Attach));
        pair
    }

    fn spec_clone(&mut self, id: KcmId) {
        let kcm = SpecKcm {
            rcvbuf: BUF as usize,
            rcvlowat: 1,
            ..SpecKcm::default()
        };
        self.spec.kcms.insert(id, kcm);
        self.spec.resume(id);
    }

    fn kcm(&self, n: usize) -> KcmId {
        *self.spec.kcms.keys().nth(n % self.spec.kcms.len()).unwrap()
    }

    fn psock(&self, n: usize) -> Option<PsockId> {
        let len = self.spec.psocks.len();
        (len > 0).then(|| *self.spec.psocks.keys().nth(n % len).unwrap())
    }

    /// Applies `op` to both and compares everything observable.
    pub(super) fn apply(&mut self, op: Op) {
        let queued = |pair: &Self| -> Vec<(KcmId, usize)> {
            pair.spec
                .kcms
                .iter()
                .map(|(&id, kcm)| (id, kcm.queue.len()))
                .collect()
        };
        let before = queued(self);
        let paused: Vec<PsockId> = self.spec.ready.iter().copied().collect();
        self.step(op);
        let events = self.world.events();
        for (id, len) in queued(self) {
            let grew = before
                .iter()
                .any(|&(old, old_len)| old == id && old_len < len);
            assert!(
                !grew || events.contains(&Event::Readable(id)),
                "{op:?}: {id:?} has more"
            );
        }
        for id in paused {
            let reads = self.world.mux.wants_read(id);
            assert!(
                !reads
                    || events.contains(&Event::Resumed(id))
                    || matches!(op, Op::Attach | Op::Unattach(_))
            );
        }
        for (&id, psock) in &self.spec.psocks {
            let reading = self
                .reads
                .iter()
                .any(|&(read, conn, _)| (read, conn) == (id, psock.conn));
            assert_eq!(
                self.world.mux.wants_read(id),
                psock.parked.is_none() && !reading,
                "{op:?}"
            );
        }
        for (&id, kcm) in &self.spec.kcms {
            let queued = self.world.mux.rx_len(id) + self.world.batches[&id].len();
            assert_eq!(queued, kcm.queue.len(), "{op:?}: {id:?}");
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Feed(n, bytes) => {
                self.step(Op::BeginRead(n));
                self.step(Op::FinishRead(self.reads.len().saturating_sub(1), bytes));
            }
            Op::BeginRead(n) => {
                let Some(id) = self.psock(n).filter(|&id| self.world.mux.wants_read(id)) else {
                    return;
                };
                let chunk = self.world.mux.take_free_chunk().unwrap_or_default();
                let buf = self.world.mux.begin_read(id, chunk);
                self.reads.push((id, self.spec.psocks[&id].conn, buf));
            }
            Op::FinishRead(n, bytes) => self.finish_read(n, bytes),
            Op::Recv(n) => {
                let id = self.kcm(n);
                let expected = self
                    .spec
                    .recv(id)
                    .map(|(conn, seq, _)| msg_bytes(conn, seq));
                let received = self.world.recv(id);
                assert!(received == expected, "{id:?}: another message");
                self.world
                    .mux
                    .account(id, self.world.batches.get_mut(&id).unwrap());
            }
            Op::Refill(n) => {
                let id = self.kcm(n);
                self.world
                    .mux
                    .refill(id, self.world.batches.get_mut(&id).unwrap());
            }
            Op::ReturnBatch(n) => {
                let id = self.kcm(n);
                self.world
                    .mux
                    .return_batch(id, self.world.batches.get_mut(&id).unwrap());
            }
            Op::Disable(n, disabled) => {
                let id = self.kcm(n);
                self.world.disable(id, disabled);
                let kcm = self.spec.kcms.get_mut(&id).unwrap();
                if core::mem::replace(&mut kcm.disabled, disabled) != disabled {
                    match disabled {
                        true => self.spec.give_up(id),
                        false => self.spec.resume(id),
                    }
                }
            }
            Op::ToggleDisable(n) => {
                let disabled = self.spec.kcms[&self.kcm(n)].disabled;
                self.step(Op::Disable(n, !disabled));
            }
            Op::Clone => {
                let id = self.world.clone_kcm();
                self.spec_clone(id);
            }
            Op::Close(_) if self.spec.kcms.len() == 1 => {}
            Op::Close(n) => {
                let id = self.kcm(n);
                assert!(!self.world.close(id));
                self.spec.give_up(id);
                self.spec.kcms.remove(&id);
            }
            Op::Attach => {
                let id = self.world.attach(p4());
                let psock = SpecPsock {
                    conn: self.conns,
                    ..SpecPsock::default()
                };
                self.conns += 1;
                assert!(self.spec.psocks.insert(id, psock).is_none());
            }
            Op::Unattach(n) => {
                let Some(id) = self.psock(n) else { return };
                let left = unread(&self.world.mux.unattach(id));
                self.spec.ready.retain(|&ready| ready != id);
                let psock = self.spec.psocks.remove(&id).unwrap();
                self.drops += u64::from(psock.parked.is_some());
                let from = psock.start + psock.consumed;
                assert!(left == stream(psock.conn, from, psock.fed), "unread bytes");
                assert_eq!(self.world.mux.stats().rx_ready_drops, self.drops);
            }
            Op::Rcvbuf(n, bytes) => {
                let id = self.kcm(n);
                self.world.mux.set_rcvbuf(id, bytes);
                self.spec.kcms.get_mut(&id).unwrap().rcvbuf = bytes as usize;
            }
            Op::Rcvlowat(n, bytes) => {
                let id = self.kcm(n);
                self.world.mux.set_rcvlowat(id, bytes);
                self.spec.kcms.get_mut(&id).unwrap().rcvlowat = bytes.max(1) as usize;
            }
        }
    }

    fn finish_read(&mut self, n: usize, bytes: usize) {
        if self.reads.is_empty() {
            return;
        }
        let (id, conn, mut buf) = self.reads.swap_remove(n % self.reads.len());
        let spec = self
            .spec
            .psocks
            .get_mut(&id)
            .filter(|psock| psock.conn == conn);
        let from = spec.as_ref().map_or(0, |psock| psock.fed);
        let bytes = bytes.min(buf.spare().len());
        let result = match bytes {
            0 => ReadResult::WouldBlock,
            _ => ReadResult::Bytes(bytes),
        };
        let fed = stream(conn, from, from + bytes);
        buf.spare()[..bytes].copy_from_slice(&fed);
        match (self.world.mux.finish_read(id, buf, result, 0), spec) {
            (ReadOutcome::Done, Some(psock)) => {
                psock.fed += bytes;
                if bytes > 0 {
                    self.spec.pass(id);
                }
            }
            (ReadOutcome::Unattached(left), None) => {
                assert!(left.as_deref().unwrap_or_default() == fed);
            }
            (outcome, _) => panic!("{outcome:?}"),
        }
    }

    /// Lets every message through; nothing may be left.
    pub(super) fn drain(&mut self) {
        while !self.reads.is_empty() {
            self.apply(Op::FinishRead(0, 0));
        }
        for n in 0..self.spec.kcms.len() {
            self.apply(Op::Disable(n, false));
            self.apply(Op::Rcvbuf(n, BUF));
        }
        while self.spec.kcms.values().any(|kcm| !kcm.queue.is_empty()) {
            (0..self.spec.kcms.len()).for_each(|n| self.apply(Op::Recv(n)));
        }
        assert!(self.spec.hold.is_empty() && self.spec.ready.is_empty());
        assert_eq!(
            self.spec.waiters.len(),
            self.spec.kcms.len(),
            "everybody waits"
        );
    }
}

fn any_op() -> impl Strategy<Value = Op> {
    let n = || 0..4_usize;
    let bytes = || prop_oneof![3 => 1..20_usize, 6 => 20..400_usize, 2 => 400..66_000_usize];
    prop_oneof![
        12 => (n(), bytes()).prop_map(|(n, bytes)| Op::Feed(n, bytes)),
        2 => n().prop_map(Op::BeginRead),
        2 => (n(), prop_oneof![bytes(), Just(0)]).prop_map(|(n, bytes)| Op::FinishRead(n, bytes)),
        10 => n().prop_map(Op::Recv),
        1 => n().prop_map(Op::Refill),
        1 => n().prop_map(Op::ReturnBatch),
        2 => (n(), any::<bool>()).prop_map(|(n, disabled)| Op::Disable(n, disabled)),
        1 => Just(Op::Clone),
        1 => n().prop_map(Op::Close),
        1 => Just(Op::Attach),
        1 => n().prop_map(Op::Unattach),
        2 => (n(), prop_oneof![1..600_u32, Just(BUF)]).prop_map(|(n, bytes)| Op::Rcvbuf(n, bytes)),
        1 => (n(), 0..600_u32).prop_map(|(n, bytes)| Op::Rcvlowat(n, bytes)),
    ]
}

proptest! {
    #![proptest_config(cases(192))]

    #[test]
    fn receive_side_agrees_with_its_specification(
        rcvbuf in prop_oneof![1..400_u32, Just(BUF)],
        ops in prop::collection::vec(any_op(), 1..150),
    ) {
        let mut pair = Pair::new(2, 2, rcvbuf);
        ops.into_iter().for_each(|op| pair.apply(op));
        pair.drain();
    }
}

/// Every sequence of a few operations over two KCM sockets and two psocks, of which each socket
/// has room for a message or two.
#[test]
fn small_world_every_sequence_agrees_with_the_specification() {
    const OPS: [Op; 7] = [
        Op::Feed(0, 40),
        Op::Feed(1, 300),
        Op::Recv(0),
        Op::Recv(1),
        Op::ToggleDisable(0),
        Op::ToggleDisable(1),
        Op::Unattach(0),
    ];
    const DEPTH: u32 = 5;
    for sequence in 0..OPS.len().pow(DEPTH) {
        let mut pair = Pair::new(2, 2, 100);
        let ops = (0..DEPTH).map(|place| OPS[sequence / OPS.len().pow(place) % OPS.len()]);
        ops.for_each(|op| pair.apply(op));
        pair.drain();
    }
}
