//! netmap's structures (net/netmap.h, API 14; netmap(4)).
//!
//! What is shared memory comes from the `netmap_sys` crate, which states API 11: those structures have
//! not moved since, as the asserts below pin down. The control interface has; its structures stand here.

use netmap_sys::netmap::{netmap_if, netmap_ring, netmap_slot, nmreq};
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, Updater, ioctl};
use std::mem::offset_of;

use super::super::BorrowedFd;

pub(in crate::device) use netmap_sys::netmap::{NS_BUF_CHANGED, NS_MOREFRAG};

/// The API this file speaks.
const NETMAP_API: u16 = 14;
/// The last API of the legacy call; modules since understand it.
const NETMAP_API_LEGACY: u32 = 11;

const NIOCCTRL: Opcode = 0xc058_6997;
const NIOCREGIF: Opcode = netmap_sys::netmap::NIOCREGIF as Opcode;
const NIOCTXSYNC: Opcode = netmap_sys::netmap::NIOCTXSYNC as Opcode;
const NIOCRXSYNC: Opcode = netmap_sys::netmap::NIOCRXSYNC as Opcode;
const _: () = assert!(NIOCTXSYNC == 0x6994 && NIOCRXSYNC == 0x6995);
const _: () = assert!(NIOCREGIF == 0xc03c_6992);

/// Most slots of one frame (`NETMAP_MAX_FRAGS`).
pub(in crate::device) const NETMAP_MAX_FRAGS: usize = 64;

// struct netmap_if
pub(super) const IF_TX_RINGS: usize = offset_of!(netmap_if, ni_tx_rings);
pub(super) const IF_RX_RINGS: usize = offset_of!(netmap_if, ni_rx_rings);
/// API 13 took the first two spare words for the numbers of host rings.
pub(super) const IF_HOST_TX_RINGS: usize = offset_of!(netmap_if, ni_spare1);
pub(super) const IF_HOST_RX_RINGS: usize = offset_of!(netmap_if, ni_spare1) + 4;
pub(super) const IF_RING_OFS: usize = offset_of!(netmap_if, ring_ofs);
const _: () = assert!(IF_TX_RINGS == 24 && IF_RX_RINGS == 28 && IF_HOST_TX_RINGS == 36);
const _: () = assert!(IF_RING_OFS == 56 && size_of::<netmap_if>() == 56);

// struct netmap_ring
pub(super) const RING_BUF_OFS: usize = offset_of!(netmap_ring, buf_ofs);
pub(super) const RING_NUM_SLOTS: usize = offset_of!(netmap_ring, num_slots);
pub(super) const RING_BUF_SIZE: usize = offset_of!(netmap_ring, nr_buf_size);
pub(super) const RING_HEAD: usize = offset_of!(netmap_ring, head);
pub(super) const RING_CUR: usize = offset_of!(netmap_ring, cur);
pub(super) const RING_TAIL: usize = offset_of!(netmap_ring, tail);
pub(super) const RING_SLOT: usize = offset_of!(netmap_ring, slot);
const _: () = assert!(RING_BUF_OFS == 0 && RING_NUM_SLOTS == 8 && RING_BUF_SIZE == 12);
const _: () = assert!(RING_HEAD == 20 && RING_CUR == 24 && RING_TAIL == 28 && RING_SLOT == 256);

// struct netmap_slot
pub(super) const SLOT_SIZE: usize = size_of::<netmap_slot>();
const _: () = assert!(SLOT_SIZE == 16 && offset_of!(netmap_slot, buf_idx) == 0);
const _: () = assert!(offset_of!(netmap_slot, len) == 4 && offset_of!(netmap_slot, flags) == 6);

/// What `struct nmreq_header` asks for.
#[derive(Clone, Copy)]
enum Request {
    Register = 1,
    PortHdrSet = 6,
}

/// `struct nmreq_header`.
#[repr(C)]
struct Header {
    version: u16,
    kind: u16,
    reserved: u32,
    name: [u8; 64],
    options: u64,
    body: u64,
}
const _: () = assert!(size_of::<Header>() == 88 && offset_of!(Header, body) == 80);

/// `struct nmreq_register`.
#[repr(C)]
#[derive(Default)]
pub(in crate::device) struct Register {
    /// Out: where `struct netmap_if` stands in the shared memory, in bytes.
    pub(in crate::device) offset: u64,
    /// Out: length of the shared memory in bytes.
    pub(in crate::device) memsize: u64,
    tx_slots: u32,
    rx_slots: u32,
    tx_rings: u16,
    rx_rings: u16,
    host_tx_rings: u16,
    host_rx_rings: u16,
    mem_id: u16,
    ringid: u16,
    mode: u32,
    extra_bufs: u32,
    flags: u64,
}
const _: () = assert!(size_of::<Register>() == 56 && offset_of!(Register, flags) == 48);

impl Register {
    /// Asks for the rings that `mode` (`NR_REG_*`) and `ringid` name.
    pub(in crate::device) fn new(mode: u32, ringid: u16) -> Self {
        Self {
            mode,
            ringid,
            flags: NR_ACCEPT_VNET_HDR | NR_EXCLUSIVE,
            ..Self::default()
        }
    }
}

/// `struct nmreq_port_hdr`.
#[repr(C)]
struct PortHdr {
    hdr_len: u32,
    pad: u32,
}
const _: () = assert!(size_of::<PortHdr>() == 8);

const _: () = assert!(size_of::<nmreq>() == 60 && offset_of!(nmreq, nr_flags) == 52);

pub(in crate::device) const NR_REG_ALL_NIC: u32 = 1;
pub(in crate::device) const NR_REG_SW: u32 = 2;
pub(in crate::device) const NR_REG_NIC_SW: u32 = 3;
pub(in crate::device) const NR_REG_ONE_NIC: u32 = 4;
pub(in crate::device) const NR_REG_PIPE_MASTER: u32 = 5;
pub(in crate::device) const NR_REG_PIPE_SLAVE: u32 = 6;
/// Nobody else may have the rings: two cursors on one ring would pass each other's slots on.
const NR_EXCLUSIVE: u64 = 0x800;
/// We understand ports whose frames begin with a `virtio_net_hdr`.
const NR_ACCEPT_VNET_HDR: u64 = 0x8000;

/// NIOCCTRL with `NETMAP_REQ_REGISTER`: binds `netmap` to the port `name`. The current interface.
pub(in crate::device) fn register(
    netmap: BorrowedFd<'_>,
    name: &str,
    body: &mut Register,
) -> Result<(), Errno> {
    control(
        netmap,
        Request::Register,
        name,
        core::ptr::from_mut(body) as u64,
    )
}

/// NIOCCTRL with `NETMAP_REQ_PORT_HDR_SET`: frames of the port `name` begin with `len` bytes of
/// `virtio_net_hdr`.
pub(in crate::device) fn set_port_hdr(
    netmap: BorrowedFd<'_>,
    name: &str,
    len: u32,
) -> Result<(), Errno> {
    let mut body = PortHdr {
        hdr_len: len,
        pad: 0,
    };
    control(
        netmap,
        Request::PortHdrSet,
        name,
        core::ptr::from_mut(&mut body) as u64,
    )
}

/// `body` is the address of the structure that belongs to `request`, exclusively borrowed.
fn control(netmap: BorrowedFd<'_>, request: Request, name: &str, body: u64) -> Result<(), Errno> {
    let mut header = Header {
        version: NETMAP_API,
        kind: request as u16,
        reserved: 0,
        name: [0; 64],
        options: 0,
        body,
    };
    // The last byte stays zero: the kernel reads a string.
    header.name[..63]
        .get_mut(..name.len())
        .ok_or(Errno::INVAL)?
        .copy_from_slice(name.as_bytes());
    // SAFETY: NIOCCTRL reads and writes one `struct nmreq_header`, and through `nr_body` the structure
    // of the request, which the caller borrows exclusively for the call.
    unsafe { ioctl(netmap, Updater::<NIOCCTRL, Header>::new(&mut header)) }
}

/// NIOCREGIF: the same binding by the interface of API 11, for modules that refuse ours.
pub(in crate::device) fn register_legacy(
    netmap: BorrowedFd<'_>,
    name: &str,
    body: &mut Register,
) -> Result<(), Errno> {
    let mut request = nmreq {
        nr_name: [0; 16],
        nr_version: NETMAP_API_LEGACY,
        nr_offset: 0,
        nr_memsize: 0,
        nr_tx_slots: 0,
        nr_rx_slots: 0,
        nr_tx_rings: 0,
        nr_rx_rings: 0,
        nr_ringid: body.ringid,
        nr_cmd: 0,
        nr_arg1: 0,
        nr_arg2: 0,
        nr_arg3: 0,
        nr_flags: body.mode | NR_EXCLUSIVE as u32,
        spare2: [0],
    };
    let room = request.nr_name[..15]
        .get_mut(..name.len())
        .ok_or(Errno::INVAL)?;
    for (place, byte) in room.iter_mut().zip(name.bytes()) {
        *place = byte as core::ffi::c_char;
    }
    // SAFETY: NIOCREGIF reads and writes one `struct nmreq`.
    unsafe { ioctl(netmap, Updater::<NIOCREGIF, nmreq>::new(&mut request)) }?;
    (body.offset, body.memsize) = (request.nr_offset.into(), request.nr_memsize.into());
    Ok(())
}

/// NIOCTXSYNC: tells the kernel about new `head`s of transmit rings and learns new `tail`s.
pub(in crate::device) fn tx_sync(netmap: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the call takes no argument.
    unsafe { ioctl(netmap, NoArg::<NIOCTXSYNC>::new()) }
}

/// NIOCRXSYNC: the same for receive rings.
pub(in crate::device) fn rx_sync(netmap: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the call takes no argument.
    unsafe { ioctl(netmap, NoArg::<NIOCRXSYNC>::new()) }
}
