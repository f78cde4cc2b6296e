//! `/dev/net/tun` (linux/if_tun.h).

use super::super::BorrowedFd;
use super::interface::{IfReq, IfReqIoctl};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, ioctl};

const TUNSETIFF: Opcode = 0x4004_54ca;
const TUNSETOFFLOAD: Opcode = 0x4004_54d0;
const TUNSETVNETHDRSZ: Opcode = 0x4004_54d8;

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_MULTI_QUEUE: u16 = 0x0100;

/// Receiver takes unfinished checksums.
pub(in crate::device) const TUN_F_CSUM: usize = 0x01;
/// Receiver takes TCP super-frames over IPv4.
pub(in crate::device) const TUN_F_TSO4: usize = 0x02;
/// Receiver takes TCP super-frames over IPv6.
pub(in crate::device) const TUN_F_TSO6: usize = 0x04;
/// Receiver takes TCP super-frames with ECN.
pub(in crate::device) const TUN_F_TSO_ECN: usize = 0x08;
/// Receiver takes UDP super-frames over IPv4 (Linux 6.2).
pub(in crate::device) const TUN_F_USO4: usize = 0x20;
/// Receiver takes UDP super-frames over IPv6 (Linux 6.2).
pub(in crate::device) const TUN_F_USO6: usize = 0x40;

/// TUNSETIFF: makes `tun` a queue of the TAP interface `name`, creating the interface when there is
/// none; frames carry a `virtio_net_hdr`.
pub(in crate::device) fn attach(
    tun: BorrowedFd<'_>,
    name: &str,
    multi_queue: bool,
) -> Result<(), Errno> {
    let mut request = IfReq::new(name).ok_or(Errno::INVAL)?;
    let queues = if multi_queue { IFF_MULTI_QUEUE } else { 0 };
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | queues;
    request.value[..2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`.
    unsafe {
        ioctl(
            tun,
            IfReqIoctl {
                opcode: TUNSETIFF,
                request: &mut request,
            },
        )
    }
}

/// TUNSETOFFLOAD: which unfinished frames we take.
pub(in crate::device) fn set_offload(tun: BorrowedFd<'_>, flags: usize) -> Result<(), Errno> {
    // SAFETY: TUNSETOFFLOAD takes its flags by value, as the argument itself.
    unsafe { ioctl(tun, IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags)) }
}

/// TUNSETVNETHDRSZ: length of the `virtio_net_hdr` in front of every frame.
pub(in crate::device) fn set_vnet_hdr_len(tun: BorrowedFd<'_>, len: i32) -> Result<(), Errno> {
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    unsafe { ioctl(tun, Setter::<TUNSETVNETHDRSZ, i32>::new(len)) }
}
