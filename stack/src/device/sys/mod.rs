//! System calls, shared mappings and the rings in them: the crate's only unsafe code.
//!
//! Layering: `abi_*` states what the kernel's structures look like, with the layout asserted at compile
//! time; [`call`] makes the few system calls rustix has no function for; [`mmap`] owns mappings and
//! reads and writes single words of them; [`ring`], [`umem`], [`packet_ring`] and [`netmap_region`]
//! know who owns which part of a mapping when, and lend payload bytes accordingly.
//!
//! Two rules hold throughout:
//!
//! - Words that the other side may write (indices, lengths, flags, descriptors) are read once by an
//!   atomic load and checked before use. No reference to them ever exists.
//! - Payload is lent as a slice only while the ring's protocol gives it to us. The protocol, not its
//!   contents, is what we trust: a neighbour that writes to a frame it has handed over changes the
//!   bytes we read and nothing else, since no length or index is ever taken from payload unchecked.
#![allow(unsafe_code)]

pub(super) mod abi_bpf;
pub(super) mod abi_netmap;
pub(super) mod abi_packet;
pub(super) mod call;
pub(super) mod interface;
pub(super) mod mmap;
pub(super) mod netmap_region;
pub(super) mod packet_ring;
pub(super) mod ring;
pub(super) mod tun;
pub(super) mod umem;
