//! Which of several packet sockets on an interface gets a frame (packet(7), `PACKET_FANOUT`): the one
//! whose engine the frame belongs to, by a program in the kernel that computes what
//! [`shard_of`](crate::shard_of) does; by the hash of its flow where the kernel takes no program.

use super::BorrowedFd;
use super::sys::abi_bpf::ClassicInsn;
use super::sys::abi_packet::{
    PACKET_FANOUT, PACKET_FANOUT_CBPF, PACKET_FANOUT_DATA, PACKET_FANOUT_FLAG_IGNORE_OUTGOING,
    PACKET_FANOUT_FLAG_UNIQUEID, PACKET_FANOUT_HASH, SOL_PACKET,
};
use super::sys::call;
use crate::stack::{GOLDEN, UDP_OF_FIRST};
use crate::udp::SharedPorts;
use libc::{
    BPF_A, BPF_ABS, BPF_ALU, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JA, BPF_JEQ, BPF_JMP, BPF_JSET,
    BPF_K, BPF_LD, BPF_LDX, BPF_MEM, BPF_MISC, BPF_MSH, BPF_MUL, BPF_RET, BPF_RSH, BPF_ST, BPF_TAX,
    BPF_W, BPF_X, BPF_XOR,
};
use rustix::io::Errno;

/// How a group chooses among its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// As [`shard_of`](crate::shard_of); what is for all goes to the first.
    Shard { count: u8 },
    /// By the kernel's hash of the flow.
    Hash,
}

/// A group that sockets join in the order of their queues.
#[derive(Debug)]
pub(super) struct Group {
    choice: Choice,
    /// The kernel's name for it, once it has a member.
    id: Option<u32>,
}

impl Group {
    pub(super) fn new(choice: Choice) -> Self {
        Self { choice, id: None }
    }

    /// Adds a bound socket. The first brings the program with it.
    pub(super) fn join(&mut self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let kind = match self.choice {
            Choice::Shard { .. } => PACKET_FANOUT_CBPF,
            Choice::Hash => PACKET_FANOUT_HASH,
        };
        let kind = kind | PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
        if let Some(id) = self.id {
            return call::set_option(socket, SOL_PACKET, PACKET_FANOUT, &(id | kind << 16));
        }
        let new = (kind | PACKET_FANOUT_FLAG_UNIQUEID) << 16;
        call::set_option(socket, SOL_PACKET, PACKET_FANOUT, &new)?;
        if let Choice::Shard { count } = self.choice {
            set(socket, count, &SharedPorts::default())?;
        }
        let id = call::option::<u32>(socket, SOL_PACKET, PACKET_FANOUT)? & 0xffff;
        self.id = Some(id);
        Ok(())
    }
}

/// From now on the group that the socket is in, of so many, gives datagrams to these ports to the sockets of
/// their shards.
pub(super) fn set(socket: BorrowedFd<'_>, count: u8, ports: &SharedPorts) -> Result<(), Errno> {
    let program = program(count, ports);
    call::set_program(socket, SOL_PACKET, PACKET_FANOUT_DATA, &program)
}

/// While sockets join, no frame arrives: one would come to each that has not joined yet.
pub(super) fn hold_back(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let nothing = [op(BPF_RET | BPF_K, 0).at(0)];
    call::set_program(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &nothing)
}

/// Ends [`hold_back`].
pub(super) fn let_in(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    call::set_option(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32)
}

const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
const TCP: u32 = 6;
const UDP: u32 = 17;

/// More fragments, or an offset.
const IS_FRAGMENT: u32 = 0x3fff;

/// An instruction that names what it jumps to by its place in the program.
#[derive(Debug, Clone, Copy)]
struct Step {
    code: u32,
    k: u32,
    /// Where to go when a comparison holds, and when it does not.
    to: Option<(usize, usize)>,
}

const fn op(code: u32, k: u32) -> Step {
    Step { code, k, to: None }
}

const fn jump(comparison: u32, k: u32, then: usize, otherwise: usize) -> Step {
    Step {
        code: BPF_JMP | comparison | BPF_K,
        k,
        to: Some((then, otherwise)),
    }
}

const fn go(to: usize) -> Step {
    jump(BPF_JEQ, 0, to, to)
}

impl Step {
    const fn at(self, here: usize) -> ClassicInsn {
        let (jt, jf) = match self.to {
            Some((then, otherwise)) => (then - here - 1, otherwise - here - 1),
            None => (0, 0),
        };
        ClassicInsn {
            code: self.code as u16,
            jt: jt as u8,
            jf: jf as u8,
            k: self.k,
        }
    }
}

// Where the program's parts begin.
const AT_V4: usize = 3;
const AT_V6: usize = 8;
const AT_PORTS: usize = 10;
const AT_TCP: usize = 12;
const AT_UDP: usize = 18;
const AT_SPREAD: usize = 20;
const AT_FIRST: usize = 25;

/// What [`shared`] is put in front of.
fn program(count: u8, ports: &SharedPorts) -> Vec<ClassicInsn> {
    let by_ports = by_ports(count);
    let mut program = shared(ports, PROGRAM_MAX - by_ports.len());
    program.extend(by_ports);
    program
}

/// Instructions of a classic program, `BPF_MAXINSNS`.
const PROGRAM_MAX: usize = 4096;

// Its parts.
const AT_V6_SOURCE: usize = 10;
const AT_MIX: usize = 23;
const AT_OTHERS: usize = 36;
const AT_SHARED: usize = 37;

/// [`SharedPorts::shard_of`] for datagrams to ports whose sockets are all alike; any other frame falls
/// through to what follows. Ports that do not fit into so many instructions are left out: whoever gets
/// their frames hands them over.
fn shared(ports: &SharedPorts, room: usize) -> Vec<ClassicInsn> {
    if ports.is_empty() {
        return Vec::new();
    }
    let xor = op(BPF_ALU | BPF_XOR | BPF_X, 0);
    let to_x = op(BPF_MISC | BPF_TAX, 0);
    let word = |at| op(BPF_LD | BPF_W | BPF_ABS, at);
    let head: [Step; AT_OTHERS] = [
        word((libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32),
        jump(BPF_JEQ, IPV6, AT_V6_SOURCE, 2),
        jump(BPF_JEQ, IPV4, 3, AT_OTHERS),
        // X is the length of the header, A the sender.
        op(BPF_LD | BPF_H | BPF_ABS, 6),
        jump(BPF_JSET, IS_FRAGMENT, AT_OTHERS, 5),
        op(BPF_LDX | BPF_B | BPF_MSH, 0),
        op(BPF_LD | BPF_B | BPF_ABS, 9),
        jump(BPF_JEQ, UDP, 8, AT_OTHERS),
        word(12),
        go(AT_MIX),
        // AT_V6_SOURCE: the same.
        op(BPF_LD | BPF_B | BPF_ABS, 6),
        jump(BPF_JEQ, UDP, 12, AT_OTHERS),
        word(8),
        to_x,
        word(12),
        xor,
        to_x,
        word(16),
        xor,
        to_x,
        word(20),
        xor,
        op(BPF_LDX | BPF_W | BPF_IMM, 40),
        // AT_MIX: with the sender's port.
        op(BPF_ALU | BPF_XOR | BPF_K, ports.seed()),
        op(BPF_ALU | BPF_MUL | BPF_K, GOLDEN),
        op(BPF_ST, 0),
        op(BPF_LD | BPF_H | BPF_IND, 2),
        op(BPF_ST, 1),
        op(BPF_LD | BPF_H | BPF_IND, 0),
        op(BPF_LDX | BPF_W | BPF_MEM, 0),
        xor,
        op(BPF_ALU | BPF_MUL | BPF_K, GOLDEN),
        op(BPF_ALU | BPF_RSH | BPF_K, 16),
        op(BPF_ST, 0),
        // A is the receiver's port.
        op(BPF_LD | BPF_W | BPF_MEM, 1),
        go(AT_SHARED),
    ];
    let mut blocks = Vec::new();
    for (port, members) in ports.plain() {
        let block = block(port, members);
        if AT_SHARED + blocks.len() + block.len() <= room {
            blocks.extend(block);
        }
    }
    let mut program: Vec<_> = (0..).zip(head).map(|(here, step)| step.at(here)).collect();
    program.push(op(BPF_JMP | BPF_JA, blocks.len() as u32).at(0)); // AT_OTHERS: further than a comparison reaches
    program.extend(blocks);
    program
}

/// For a datagram to `port` the shard of the socket that is chosen. Nothing if they are too many.
fn block(port: u16, members: impl ExactSizeIterator<Item = u8>) -> Vec<ClassicInsn> {
    /// As many instructions as a comparison reaches over.
    const MEMBERS_MAX: usize = 126;
    let count = members.len();
    if count > MEMBERS_MAX {
        return Vec::new();
    }
    let length = 1 + 3 + 2 * count;
    let mut steps = vec![
        jump(BPF_JEQ, port.into(), 1, length),
        op(BPF_LD | BPF_W | BPF_MEM, 0),
        op(BPF_ALU | BPF_MUL | BPF_K, count as u32),
        op(BPF_ALU | BPF_RSH | BPF_K, 16),
    ];
    for (nth, shard) in members.enumerate() {
        let here = steps.len();
        steps.push(jump(BPF_JEQ, nth as u32, here + 1, here + 2));
        steps.push(op(BPF_RET | BPF_K, shard.into()));
    }
    (0..).zip(steps).map(|(here, step)| step.at(here)).collect()
}

/// [`shard_of`](crate::shard_of) for `count`. A fanout program sees a frame from its network header on,
/// whatever the type of the socket; one that reads beyond the end returns 0.
fn by_ports(count: u8) -> [ClassicInsn; 26] {
    let ethertype = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32;
    let steps = [
        op(BPF_LD | BPF_W | BPF_ABS, ethertype),
        jump(BPF_JEQ, IPV6, AT_V6, 2),
        jump(BPF_JEQ, IPV4, AT_V4, AT_FIRST),
        // AT_V4: A is the protocol, X the length of the header.
        op(BPF_LD | BPF_H | BPF_ABS, 6),
        jump(BPF_JSET, IS_FRAGMENT, AT_FIRST, 5),
        op(BPF_LDX | BPF_B | BPF_MSH, 0),
        op(BPF_LD | BPF_B | BPF_ABS, 9),
        go(AT_PORTS),
        // AT_V6: the same.
        op(BPF_LDX | BPF_W | BPF_IMM, 40),
        op(BPF_LD | BPF_B | BPF_ABS, 6),
        // AT_PORTS
        jump(BPF_JEQ, UDP, AT_UDP, 11),
        jump(BPF_JEQ, TCP, AT_TCP, AT_FIRST),
        // AT_TCP: both ports.
        op(BPF_LD | BPF_H | BPF_IND, 0),
        op(BPF_ST, 0),
        op(BPF_LD | BPF_H | BPF_IND, 2),
        op(BPF_LDX | BPF_W | BPF_MEM, 0),
        op(BPF_ALU | BPF_XOR | BPF_X, 0),
        go(AT_SPREAD),
        // AT_UDP: the receiver's.
        op(BPF_LD | BPF_H | BPF_IND, 2),
        op(BPF_ALU | BPF_XOR | BPF_K, UDP_OF_FIRST as u32),
        // AT_SPREAD
        op(BPF_ALU | BPF_MUL | BPF_K, GOLDEN),
        op(BPF_ALU | BPF_RSH | BPF_K, 16),
        op(BPF_ALU | BPF_MUL | BPF_K, count as u32),
        op(BPF_ALU | BPF_RSH | BPF_K, 16),
        op(BPF_RET | BPF_A, 0),
        // AT_FIRST
        op(BPF_RET | BPF_K, 0),
    ];
    core::array::from_fn(|at| steps[at].at(at))
}
