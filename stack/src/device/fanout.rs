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
use libc::{
    BPF_A, BPF_ABS, BPF_ALU, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K,
    BPF_LD, BPF_LDX, BPF_MEM, BPF_MSH, BPF_MUL, BPF_RET, BPF_RSH, BPF_ST, BPF_W, BPF_X, BPF_XOR,
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
            call::set_program(socket, SOL_PACKET, PACKET_FANOUT_DATA, &program(count))?;
        }
        let id = call::option::<u32>(socket, SOL_PACKET, PACKET_FANOUT)? & 0xffff;
        self.id = Some(id);
        Ok(())
    }
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

/// [`shard_of`](crate::shard_of) for `count`. A fanout program sees a frame from its network header on,
/// whatever the type of the socket; one that reads beyond the end returns 0.
fn program(count: u8) -> [ClassicInsn; 26] {
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
