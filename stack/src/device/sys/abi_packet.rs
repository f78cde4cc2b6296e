//! `AF_PACKET` (linux/if_packet.h): options, and the version 2 ring's frame header.

use super::call::Plain;
use core::mem::offset_of;
use libc::tpacket2_hdr;

pub(in crate::device) const SOL_PACKET: i32 = libc::SOL_PACKET;
pub(in crate::device) const PACKET_ADD_MEMBERSHIP: i32 = libc::PACKET_ADD_MEMBERSHIP;
pub(in crate::device) const PACKET_RX_RING: i32 = libc::PACKET_RX_RING;
pub(in crate::device) const PACKET_STATISTICS: i32 = libc::PACKET_STATISTICS;
pub(in crate::device) const PACKET_COPY_THRESH: i32 = libc::PACKET_COPY_THRESH;
pub(in crate::device) const PACKET_VERSION: i32 = libc::PACKET_VERSION;
pub(in crate::device) const PACKET_VNET_HDR: i32 = libc::PACKET_VNET_HDR;
pub(in crate::device) const PACKET_FANOUT: i32 = libc::PACKET_FANOUT;
/// Linux 4.20: frames this machine sends are not shown to the socket.
pub(in crate::device) const PACKET_IGNORE_OUTGOING: i32 = 23;
pub(in crate::device) const TPACKET_V2: i32 = 1;
/// Linux 4.3: the program of `PACKET_FANOUT_CBPF`.
pub(in crate::device) const PACKET_FANOUT_DATA: i32 = 22;
/// Each frame to the member whose number a classic program returns.
pub(in crate::device) const PACKET_FANOUT_CBPF: u32 = 6;
/// Frames this machine sends are not shown to the group; older kernels ignore it.
pub(in crate::device) const PACKET_FANOUT_FLAG_IGNORE_OUTGOING: u32 = 0x4000;
/// Frames of a flow to one member, by the flow's hash.
pub(in crate::device) const PACKET_FANOUT_HASH: u32 = 0;
/// The kernel picks an identifier nobody uses (Linux 4.12).
pub(in crate::device) const PACKET_FANOUT_FLAG_UNIQUEID: u32 = 0x2000;

pub(super) const TP_STATUS_KERNEL: u32 = 0;
pub(super) const TP_STATUS_USER: u32 = 1 << 0;
pub(super) const TP_STATUS_COPY: u32 = 1 << 1;
pub(super) const TP_STATUS_VLAN_VALID: u32 = 1 << 4;

pub(super) const OFFSET_STATUS: usize = offset_of!(tpacket2_hdr, tp_status);
pub(super) const OFFSET_LEN: usize = offset_of!(tpacket2_hdr, tp_len);
pub(super) const OFFSET_SNAPLEN: usize = offset_of!(tpacket2_hdr, tp_snaplen);
pub(super) const OFFSET_MAC: usize = offset_of!(tpacket2_hdr, tp_mac);
/// First byte after the header and the address that follows it (`TPACKET2_HDRLEN`).
pub(super) const HEADER_LEN: usize =
    size_of::<tpacket2_hdr>().next_multiple_of(16) + size_of::<libc::sockaddr_ll>();

const _: () = assert!(OFFSET_STATUS == 0 && OFFSET_LEN == 4 && OFFSET_SNAPLEN == 8);
const _: () = assert!(OFFSET_MAC == 12 && HEADER_LEN == 52);

/// `struct tpacket_req`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct RingRequest {
    pub(super) block_size: u32,
    pub(super) block_count: u32,
    pub(super) frame_size: u32,
    pub(super) frame_count: u32,
}
const _: () = assert!(size_of::<RingRequest>() == size_of::<libc::tpacket_req>());
// SAFETY: four integers without padding.
unsafe impl Plain for RingRequest {}

/// `struct tpacket_stats`: counts since they were last read.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(in crate::device) struct Statistics {
    pub(in crate::device) packets: u32,
    pub(in crate::device) drops: u32,
}
// SAFETY: two integers without padding.
unsafe impl Plain for Statistics {}

/// `struct packet_mreq`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(in crate::device) struct Membership {
    pub(in crate::device) index: i32,
    pub(in crate::device) kind: u16,
    pub(in crate::device) address_len: u16,
    pub(in crate::device) address: [u8; 8],
}
const _: () = assert!(size_of::<Membership>() == size_of::<libc::packet_mreq>());
// SAFETY: integers and bytes without padding.
unsafe impl Plain for Membership {}

/// Every multicast address (`PACKET_MR_ALLMULTI`).
pub(in crate::device) const PACKET_MR_ALLMULTI: u16 = libc::PACKET_MR_ALLMULTI as u16;
