//! Keeps the kernel's own IP stack from frames that are for an engine's addresses.
//!
//! A packet socket is given a copy of what arrives; the frame itself goes on to the kernel's IP stack, which looks
//! up a route for an address that it does not have and drops it, or where the machine forwards even answers. That
//! is about half of what receiving costs. A program behind the packet sockets and before the kernel's stack (tcx,
//! Linux 6.6) drops such frames at once:
//!
//! ```text
//!   driver → packet sockets → tcx: ours? dropped : next → the kernel's IP stack
//! ```

use super::BorrowedFd;
use super::sys::abi_bpf::{Attr, Insn, insn};
use super::sys::call::{bpf_fd, option};
use crate::limits::ADDRESSES_MAX;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

/// `SO_NETNS_COOKIE` (asm-generic/socket.h): which network namespace a socket is in.
const SO_NETNS_COOKIE: i32 = 71;

/// A port to name in a connect(2) that sends nothing (RFC 863).
const DISCARD: u16 = 9;

/// An interface whose frames the kernel's IP stack sees beside a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ingress {
    index: u32,
    namespace: u64,
}

impl Ingress {
    /// That of the interface `index` in the network namespace of `socket`; `None` before Linux 5.14, which
    /// has no filters either.
    pub(super) fn of(socket: BorrowedFd<'_>, index: u32) -> Option<Self> {
        let namespace = namespace(socket).ok()?;
        Some(Self { index, namespace })
    }

    /// Keeps frames for `addresses` from the kernel, except for those that are the kernel's too, for as long as
    /// the descriptor is open. `None` when that leaves none. The kernel takes some ten milliseconds for it, and
    /// again to end it. `keep` as in [`OpenOptions`](super::OpenOptions::keep).
    ///
    /// # Errors
    ///
    /// `EPERM` without CAP_BPF and CAP_NET_ADMIN, `EINVAL` before Linux 6.6, `EXDEV` if the calling thread is
    /// in another network namespace than the device.
    pub fn keep_from_host(
        &self,
        addresses: &[IpAddr],
        keep: fn(OwnedFd) -> OwnedFd,
    ) -> Result<Option<OwnedFd>, Errno> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses.iter().take(ADDRESSES_MAX) {
            if self.is_hosts(*address)? {
                continue;
            }
            match address {
                IpAddr::V4(address) => v4.push(*address),
                IpAddr::V6(address) => v6.push(*address),
            }
        }
        if v4.is_empty() && v6.is_empty() {
            return Ok(None);
        }
        let program = bpf_fd(&Attr::ingress_prog_load(
            &program(&v4, &v6),
            c"Dual MIT/GPL",
        ))?;
        let program = keep(program);
        let link = bpf_fd(&Attr::ingress_link_create(&program, self.index))?;
        Ok(Some(keep(link)))
    }

    /// Whether the kernel has `address`, or may have.
    fn is_hosts(&self, address: IpAddr) -> Result<bool, Errno> {
        let family = match address {
            IpAddr::V4(_) => AddressFamily::INET,
            // Made from the hardware address, the kernel has the same.
            IpAddr::V6(address) if address.is_unicast_link_local() => return Ok(true),
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC;
        let socket = match socket_with(family, SocketType::DGRAM, flags, None) {
            Err(Errno::AFNOSUPPORT) => return Ok(false), // nor has it any address of the family
            socket => socket?,
        };
        if namespace(socket.as_fd())? != self.namespace {
            return Err(Errno::XDEV);
        }
        match bind(&socket, &SocketAddr::new(address, 0)) {
            Err(Errno::ADDRNOTAVAIL) => Ok(false),
            // A kernel without any IPv4 address takes all of them for its own, and knows no way to one.
            Ok(()) => {
                let reached = connect(&socket, &SocketAddr::new(address, DISCARD));
                Ok(reached != Err(Errno::NETUNREACH))
            }
            Err(_) => Ok(true),
        }
    }
}

fn namespace(socket: BorrowedFd<'_>) -> Result<u64, Errno> {
    option(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE)
}

// Opcodes (RFC 9669 §4 and §5) and the fields of `struct __sk_buff` (linux/bpf.h).
const LDX_W: u8 = 0x61;
const MOV64_IMM: u8 = 0xb7;
const MOV64_REG: u8 = 0xbf;
const ADD64_IMM: u8 = 0x07;
const JA: u8 = 0x05;
const JEQ_IMM: u8 = 0x15;
const JNE_IMM: u8 = 0x55;
const JEQ32_IMM: u8 = 0x16;
const JNE32_IMM: u8 = 0x56;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const SKB_PKT_TYPE: i16 = 4;
const SKB_PROTOCOL: i16 = 16;
const SKB_VLAN_PRESENT: i16 = 20;
const SKB_LOAD_BYTES: i32 = 26;
/// The frame is to the interface's own hardware address (linux/if_packet.h).
const PACKET_HOST: i32 = 0;
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// Where the IP destination of a frame lies, behind the Ethernet header.
const DESTINATION_V4: i32 = 14 + 16;
const DESTINATION_V6: i32 = 14 + 24;

/// Drops untagged IP packets to the interface and these addresses, and leaves the rest to who comes next.
fn program(v4: &[Ipv4Addr], v6: &[Ipv6Addr]) -> Vec<Insn> {
    // Where the parts begin.
    let at_v4 = 10;
    let at_v6 = at_v4 + 6 + v4.len();
    let at_next = at_v6 + 8 + 4 * v6.len();
    let at_drop = at_next + 2;
    let over = |from: usize, to: usize| (to - from - 1) as i16;
    let mut code = vec![
        insn(MOV64_REG, 6, 1, 0, 0),
        insn(MOV64_REG, 3, 10, 0, 0),
        insn(ADD64_IMM, 3, 0, 0, -16),
        insn(LDX_W, 2, 6, SKB_PKT_TYPE, 0),
        insn(JNE_IMM, 2, 0, over(4, at_next), PACKET_HOST),
        insn(LDX_W, 2, 6, SKB_VLAN_PRESENT, 0),
        insn(JNE_IMM, 2, 0, over(6, at_next), 0),
        insn(LDX_W, 2, 6, SKB_PROTOCOL, 0),
        insn(JEQ_IMM, 2, 0, over(8, at_v6), 0x86dd_u16.to_be().into()),
        insn(JNE_IMM, 2, 0, over(9, at_next), 0x0800_u16.to_be().into()),
        // at_v4
        insn(MOV64_IMM, 2, 0, 0, DESTINATION_V4),
        insn(MOV64_IMM, 4, 0, 0, 4),
        insn(CALL, 0, 0, 0, SKB_LOAD_BYTES),
        insn(JNE_IMM, 0, 0, over(at_v4 + 3, at_next), 0),
        insn(LDX_W, 1, 10, -16, 0),
    ];
    for address in v4 {
        let word = i32::from_ne_bytes(address.octets());
        code.push(insn(JEQ32_IMM, 1, 0, over(code.len(), at_drop), word));
    }
    code.push(insn(JA, 0, 0, over(code.len(), at_next), 0));
    code.extend([
        // at_v6
        insn(MOV64_IMM, 2, 0, 0, DESTINATION_V6),
        insn(MOV64_IMM, 4, 0, 0, 16),
        insn(CALL, 0, 0, 0, SKB_LOAD_BYTES),
        insn(JNE_IMM, 0, 0, over(at_v6 + 3, at_next), 0),
        insn(LDX_W, 1, 10, -16, 0),
        insn(LDX_W, 2, 10, -12, 0),
        insn(LDX_W, 3, 10, -8, 0),
        insn(LDX_W, 4, 10, -4, 0),
    ]);
    for address in v6 {
        let octets = address.octets();
        let (words, _) = octets.as_chunks::<4>();
        for (register, (word, skip)) in (1..).zip(words.iter().zip([3, 2, 1])) {
            let word = i32::from_ne_bytes(*word);
            code.push(insn(JNE32_IMM, register, 0, skip, word));
        }
        let last = words.last().copied().map_or(0, i32::from_ne_bytes);
        code.push(insn(JEQ32_IMM, 4, 0, over(code.len(), at_drop), last));
    }
    code.extend([
        // at_next
        insn(MOV64_IMM, 0, 0, 0, TCX_NEXT),
        insn(EXIT, 0, 0, 0, 0),
        // at_drop
        insn(MOV64_IMM, 0, 0, 0, TCX_DROP),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    code
}
