//! The transmit side against what a sender may rely on: every completed message goes out whole,
//! once, in the order of its KCM socket, on one connection; only a connection that failed, or
//! was unattached, may end in a fragment.

use std::vec;

use proptest::prelude::*;

use super::*;

/// Owner tag, number and length stand in front of each message.
const HEADER_BYTES: usize = 12;

fn message(tag: u32, seq: u32, body: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = [tag, seq, body as u32].map(u32::to_be_bytes).concat();
    bytes.resize(HEADER_BYTES + body, seq as u8);
    bytes
}

fn word(bytes: &[u8], place: usize) -> Option<u32> {
    Some(u32::from_be_bytes(
        bytes.get(4 * place..4 * place + 4)?.try_into().unwrap(),
    ))
}

/// What the model knows of one KCM socket. It outlives the socket.
#[derive(Default)]
struct Sender {
    id: Option<KcmId>,
    /// Messages completed, and the number the next whole message on a wire must have.
    completed: u32,
    on_wire: u32,
    accepted_bytes: u64,
    open: Vec<u8>,
}

/// What a peer received.
#[derive(Default)]
struct Wire {
    bytes: Vec<u8>,
    checked: usize,
    psock: Option<PsockId>,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Send {
        kcm: usize,
        body: usize,
        split: bool,
        batch: bool,
    },
    AbortOpen(usize),
    Flush(usize),
    Begin,
    /// How many hundredths of the bytes offered TCP takes; more than 100 fails.
    Finish(usize, usize),
    Direct(usize, usize),
    FinishDirect(usize, usize),
    Writable(usize),
    TakeError(usize),
    Fin(usize),
    Reset(usize),
    Attach,
    Unattach(usize),
    Clone,
    Close(usize),
    Sndbuf(usize, u32),
}

struct DirectWrite {
    kcm: KcmId,
    psock: PsockId,
    wire: usize,
    bytes: Vec<u8>,
}

struct Model {
    world: World,
    senders: Vec<Sender>,
    wires: Vec<Wire>,
    flights: Vec<(crate::Transmit, usize)>,
    directs: Vec<DirectWrite>,
}

fn result(hundredths: usize, len: usize) -> TxResult {
    match hundredths {
        0..=100 => TxResult::Sent(len * hundredths / 100),
        _ => TxResult::Failed(32),
    }
}

impl Model {
    fn new() -> Self {
        let world = World::new(1);
        let first = Sender {
            id: Some(KcmId(0)),
            ..Sender::default()
        };
        let mut model = Self {
            world,
            senders: vec![first],
            wires: Vec::new(),
            flights: Vec::new(),
            directs: Vec::new(),
        };
        [Op::Clone, Op::Attach, Op::Attach]
            .into_iter()
            .for_each(|op| model.apply(op));
        model
    }

    fn sender(&self, n: usize) -> usize {
        let open: Vec<usize> = (0..self.senders.len())
            .filter(|&tag| self.senders[tag].id.is_some())
            .collect();
        open[n % open.len()]
    }

    fn psock(&self, n: usize) -> Option<PsockId> {
        let attached: Vec<PsockId> = self.world.mux.psocks().collect();
        (!attached.is_empty()).then(|| attached[n % attached.len()])
    }

    fn wire_of(&self, psock: PsockId) -> usize {
        self.wires
            .iter()
            .position(|wire| wire.psock == Some(psock))
            .unwrap()
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Send {
                kcm,
                body,
                split,
                batch,
            } => self.send(kcm, body, split, batch),
            Op::AbortOpen(n) => {
                let tag = self.sender(n);
                let sender = &mut self.senders[tag];
                sender.accepted_bytes -= sender.open.len() as u64;
                sender.open.clear();
                self.world.mux.abort_open(sender.id.unwrap());
            }
            Op::Flush(n) => {
                let id = self.senders[self.sender(n)].id.unwrap();
                self.world.mux.flush_batch(id);
            }
            Op::Begin => {
                if let Some(transmit) = self.world.mux.begin_transmit() {
                    let wire = self.wire_of(transmit.psock());
                    self.flights.push((transmit, wire));
                }
            }
            Op::Finish(n, hundredths) if !self.flights.is_empty() => {
                let (transmit, wire) = self.flights.swap_remove(n % self.flights.len());
                let bytes: Vec<u8> = transmit.slices().flatten().copied().collect();
                let result = result(hundredths, bytes.len());
                self.carry(wire, &bytes[..result.sent()]);
                self.world.mux.finish_transmit(transmit, result);
            }
            Op::Direct(n, body) => {
                let tag = self.sender(n);
                let id = self.senders[tag].id.unwrap();
                if let Some(psock) = self.world.mux.reserve_direct(id) {
                    let sender = &mut self.senders[tag];
                    let bytes = message(tag as u32, sender.completed, body);
                    sender.completed += 1;
                    let wire = self.wire_of(psock);
                    self.directs.push(DirectWrite {
                        kcm: id,
                        psock,
                        wire,
                        bytes,
                    });
                }
            }
            Op::FinishDirect(n, hundredths) if !self.directs.is_empty() => {
                let direct = self.directs.swap_remove(n % self.directs.len());
                let result = result(hundredths, direct.bytes.len());
                self.carry(direct.wire, &direct.bytes[..result.sent()]);
                let tag = word(&direct.bytes, 0).unwrap() as usize;
                self.senders[tag].accepted_bytes += direct.bytes.len() as u64;
                let (head, tail) = direct.bytes.split_at(direct.bytes.len() / 2);
                self.world
                    .mux
                    .finish_direct(direct.kcm, direct.psock, &[head, tail], result);
            }
            Op::Finish(..) | Op::FinishDirect(..) => {}
            Op::Attach => {
                let id = self.world.attach(p4());
                self.wires.push(Wire {
                    psock: Some(id),
                    ..Wire::default()
                });
            }
            Op::Clone => {
                let id = Some(self.world.clone_kcm());
                self.senders.push(Sender {
                    id,
                    ..Sender::default()
                });
            }
            Op::Close(n) => {
                let tag = self.sender(n);
                let others = self
                    .senders
                    .iter()
                    .filter(|sender| sender.id.is_some())
                    .count()
                    > 1;
                // A direct write holds the descriptor, so its socket cannot close.
                let id = self.senders[tag].id.unwrap();
                if others && self.directs.iter().all(|direct| direct.kcm != id) {
                    self.senders[tag].id = None;
                    self.world.close(id);
                }
            }
            Op::Sndbuf(n, bytes) => {
                let id = self.senders[self.sender(n)].id.unwrap();
                self.world.mux.set_sndbuf(id, bytes);
            }
            Op::Writable(n) | Op::TakeError(n) | Op::Fin(n) | Op::Reset(n) | Op::Unattach(n) => {
                let Some(id) = self.psock(n) else { return };
                match op {
                    Op::Writable(_) => self.world.mux.handle_writable(id),
                    Op::TakeError(_) => drop(self.world.mux.take_error(id)),
                    Op::Fin(_) => self.world.mux.handle_fin(id),
                    Op::Reset(_) => self.world.mux.handle_reset(id),
                    _ => {
                        self.world.mux.unattach(id);
                        let wire = self.wire_of(id);
                        self.wires[wire].psock = None;
                    }
                }
            }
        }
    }

    fn send(&mut self, kcm: usize, body: usize, split: bool, batch: bool) {
        let tag = self.sender(kcm);
        let sender = &mut self.senders[tag];
        let id = sender.id.unwrap();
        // A direct write under way will be numbered before this message.
        let seq = sender.completed;
        let whole = message(tag as u32, seq, body);
        if sender.open.is_empty() && split {
            let half = &whole[..whole.len() / 2];
            if self.world.mux.send(id, &[half], MORE).is_ok() {
                sender.open = half.to_vec();
                sender.accepted_bytes += half.len() as u64;
            }
            return;
        }
        let flags = SendFlags { end: true, batch };
        let may_start = self.world.mux.may_start(id);
        let rest = match sender.open.len() {
            0 => whole,
            open => {
                // The open half told number and body length, unless a direct write or a
                // failure came in between, which the mux excludes.
                let body = match word(&sender.open, 2) {
                    Some(body) => body as usize,
                    None => body_for_half(open),
                };
                message(tag as u32, seq, body)[open..].to_vec()
            }
        };
        let (head, tail) = rest.split_at(rest.len() / 3);
        let sent = self.world.mux.send(id, &[head, tail], flags);
        assert_eq!(sent.is_ok(), may_start);
        if sent.is_ok() {
            sender.accepted_bytes += rest.len() as u64;
            sender.completed += 1;
            sender.open.clear();
        }
    }

    /// A peer receives `bytes`: whole messages must come in order.
    fn carry(&mut self, wire: usize, bytes: &[u8]) {
        let wire = &mut self.wires[wire];
        wire.bytes.extend(bytes);
        loop {
            let rest = &wire.bytes[wire.checked..];
            let (Some(tag), Some(seq), Some(body)) = (word(rest, 0), word(rest, 1), word(rest, 2))
            else {
                break;
            };
            let Some(whole) = rest.get(..HEADER_BYTES + body as usize) else {
                break;
            };
            assert!(
                whole == message(tag, seq, body as usize),
                "a message in one piece"
            );
            let sender = &mut self.senders[tag as usize];
            assert_eq!(seq, sender.on_wire, "in order, none lost, none twice");
            sender.on_wire += 1;
            wire.checked += whole.len();
        }
    }

    /// Heals the network: everything completed by an open socket must go out.
    fn drain(mut self) {
        while !self.flights.is_empty() {
            self.apply(Op::Finish(0, 100));
        }
        while !self.directs.is_empty() {
            self.apply(Op::FinishDirect(0, 100));
        }
        self.apply(Op::Attach);
        let psocks = self.world.mux.psocks().count();
        (0..psocks).for_each(|n| self.apply(Op::TakeError(n)));
        let open = self
            .senders
            .iter()
            .filter(|sender| sender.id.is_some())
            .count();
        (0..open).for_each(|n| self.apply(Op::AbortOpen(n)));
        (0..psocks).for_each(|n| self.apply(Op::Writable(n)));
        loop {
            self.apply(Op::Begin);
            if self.flights.is_empty() {
                break;
            }
            self.apply(Op::Finish(0, 100));
        }
        for sender in &self.senders {
            let Some(id) = sender.id else { continue };
            assert_eq!(sender.on_wire, sender.completed, "{id:?}: all sent");
            assert!(
                self.world.mux.may_start(id),
                "{id:?}: nothing stays charged"
            );
            let stats = self.world.mux.kcm_stats(id);
            assert_eq!(stats.tx_msgs, u64::from(sender.completed));
            assert_eq!(stats.tx_bytes, sender.accepted_bytes);
        }
        for wire in &self.wires {
            let fragment = wire.checked < wire.bytes.len();
            let aborted = wire
                .psock
                .is_none_or(|id| self.world.mux.psock_stats(id).tx_aborts > 0);
            assert!(
                !fragment || aborted,
                "a usable connection ends at a boundary"
            );
        }
        let written: usize = self.wires.iter().map(|wire| wire.bytes.len()).sum();
        assert_eq!(self.world.mux.psock_totals().tx_bytes, written as u64);
        let whole: u32 = self.senders.iter().map(|sender| sender.on_wire).sum();
        assert_eq!(self.world.mux.psock_totals().tx_msgs, u64::from(whole));
    }
}

/// The body length of a message whose first half is `half` bytes and lacks the length word.
fn body_for_half(half: usize) -> usize {
    2 * half - HEADER_BYTES
}

fn any_op() -> impl Strategy<Value = Op> {
    let n = || 0..4_usize;
    // Even lengths, so that a half tells the whole.
    let body = || prop_oneof![8 => 0..50_usize, 3 => 50..3_000_usize, 1 => 3_000..60_000_usize];
    let body = move || body().prop_map(|body| body * 2);
    let taken = || prop_oneof![4 => Just(100_usize), 4 => 0..100_usize, 1 => Just(101_usize)];
    prop_oneof![
        12 => (n(), body(), any::<bool>(), any::<bool>())
            .prop_map(|(kcm, body, split, batch)| Op::Send { kcm, body, split, batch }),
        1 => n().prop_map(Op::AbortOpen),
        2 => n().prop_map(Op::Flush),
        10 => Just(Op::Begin),
        10 => (n(), taken()).prop_map(|(n, taken)| Op::Finish(n, taken)),
        4 => (n(), body()).prop_map(|(n, body)| Op::Direct(n, body)),
        5 => (n(), taken()).prop_map(|(n, taken)| Op::FinishDirect(n, taken)),
        6 => n().prop_map(Op::Writable),
        2 => n().prop_map(Op::TakeError),
        1 => n().prop_map(Op::Fin),
        1 => n().prop_map(Op::Reset),
        2 => Just(Op::Attach),
        1 => n().prop_map(Op::Unattach),
        1 => Just(Op::Clone),
        1 => n().prop_map(Op::Close),
        1 => (n(), prop_oneof![1..5000_u32, Just(BUF)]).prop_map(|(n, bytes)| Op::Sndbuf(n, bytes)),
    ]
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn every_message_goes_out_whole_once_and_in_order(
        ops in prop::collection::vec(any_op(), 1..150),
    ) {
        let mut model = Model::new();
        ops.into_iter().for_each(|op| model.apply(op));
        model.drain();
    }
}

/// Every sequence of a few operations over two KCM sockets and two psocks.
#[test]
fn small_world_every_sequence_keeps_messages_whole() {
    const OPS: [Op; 7] = [
        Op::Send {
            kcm: 0,
            body: 4,
            split: false,
            batch: true,
        },
        Op::Send {
            kcm: 1,
            body: 6,
            split: false,
            batch: false,
        },
        Op::Begin,
        Op::Finish(0, 60),
        Op::Finish(0, 101),
        Op::Writable(0),
        Op::Unattach(0),
    ];
    const DEPTH: u32 = 5;
    for sequence in 0..OPS.len().pow(DEPTH) {
        let mut model = Model::new();
        let ops = (0..DEPTH).map(|place| OPS[sequence / OPS.len().pow(place) % OPS.len()]);
        ops.for_each(|op| model.apply(op));
        model.drain();
    }
}
