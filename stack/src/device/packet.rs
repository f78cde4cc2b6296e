//! An interface through `AF_PACKET` (packet(7)): the default, works on every Linux interface.
//!
//! Receive is a version 2 memory-mapped ring: frames of ordinary size are read where the kernel put
//! them, without a system call, and each is visible as soon as it arrives (blocks of version 3 wait for
//! a timer of at least a millisecond). GRO super-frames do not fit a slot: `PACKET_COPY_THRESH` has
//! the kernel queue them whole, and they are read from the queue in their turn.
//!
//! Transmit is `sendmmsg` from an arena. The transmit ring would spare one copy, but it lends its pages
//! to socket buffers and reports them free when a veth orphans the buffer, long before the peer has
//! read it.
//!
//! `PACKET_VNET_HDR` goes with every frame, so checksums and segmentation stay where they are cheap:
//! in the NIC, or nowhere at all between two ends on one machine.

use super::fanout::{self, Choice};
use super::open::Facts;
use super::sys::abi_packet::{
    Membership, PACKET_ADD_MEMBERSHIP, PACKET_COPY_THRESH, PACKET_IGNORE_OUTGOING,
    PACKET_MR_ALLMULTI, PACKET_STATISTICS, PACKET_VERSION, PACKET_VNET_HDR, SOL_PACKET, Statistics,
    TPACKET_V2,
};
use super::sys::call::{self, LinkAddr};
use super::sys::packet_ring::{PacketRing, Slot};
use super::{
    Batch, BorrowedFd, Capabilities, Checksum, Counters, DeviceError, ETHERNET_HEADER_LEN,
    FrameMeta, GSO_FRAME_LEN_MAX, GSO_TRANSMIT_LEN_MAX, GsoSet, IfName, Ingress, NetDevice,
    OpenError, OpenOptions, RxChecksum, RxFrame, TransmitError, Wait, Written, admit,
    meta::VNET_HDR_LEN,
    parts::{ScatterList, copy_together, total_len},
};
use crate::ip::iface::IfaceId;
use crate::limits::SHARDS_MAX;
use crate::udp::SharedPorts;
use core::cell::Cell;
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::{Errno, IoSlice};
use rustix::net::{
    AddressFamily, MMsgHdr, Protocol, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags,
    SocketType, bind, recv, send, sendmmsg, sendmsg, socket_with, sockopt,
};
use std::sync::Arc;

/// Smallest receive slot: header, address and every frame of an ordinary MTU.
const RX_SLOT_BYTES_MIN: usize = 2048;

/// Largest receive slot: jumbo frames.
const RX_SLOT_BYTES_MAX: usize = 16 * 1024;

/// What a slot holds beside the IP packet: ring header, `virtio_net_hdr`, Ethernet header, alignment.
const RX_SLOT_OVERHEAD_BYTES: usize = 128;

/// The receive ring: about 5 ms of full-sized frames at 10 Gb/s.
const RX_RING_BYTES: usize = 8 << 20;

/// Frames longer than a slot the socket's queue may hold, in bytes of kernel memory.
const QUEUE_BYTES: usize = 8 << 20;

/// Room for super-frames read in one batch, headers included.
const LARGE_BYTES: usize = 4 * LARGE_FRAME_LEN;
const LARGE_FRAME_LEN: usize = (VNET_HDR_LEN + GSO_FRAME_LEN_MAX).next_multiple_of(64);

/// Frames of one `sendmmsg`.
const TX_FRAMES: usize = 64;

/// Arena they are written into: as many frames of ordinary size, or four super-frames.
const TX_BYTES: usize = 4 * LARGE_FRAME_LEN;

/// Receives that find nothing before the socket is asked for an error: each such question is a system
/// call.
const IDLE_MAX: u32 = 16;

/// From this size on, gathering in the kernel beats copying into the arena.
const GATHER_BYTES_MIN: usize = 4096;

/// What errors of a fanout group name.
const FANOUT: &str = "setsockopt(PACKET_FANOUT)";

/// One queue of an interface, through a packet socket.
pub struct PacketDevice {
    socket: OwnedFd,
    ingress: Option<Ingress>,
    caps: Capabilities,
    ring: PacketRing,
    /// Where super-frames are read to.
    large: Box<[u8]>,
    tx: TxArena,
    missed: Cell<u64>,
    /// Receives in a row that found nothing.
    idle: u32,
    /// It tells the kernel which queue of so many gets a frame.
    sorts: Option<u8>,
    counters: Counters,
}

struct TxArena {
    bytes: Box<[u8]>,
    used: usize,
    /// Where each queued frame lies, header included.
    frames: Vec<(usize, usize)>,
}

impl PacketDevice {
    /// Opens `options.queues` sockets on an interface, joined to a fanout group when there are several:
    /// each is given the frames of the [shard](crate::shard_of) of its number, the first also those that
    /// are for all; on kernels that take no program, flows by their hash.
    ///
    /// # Errors
    ///
    /// [`OpenError`], of every kind but `Name` and `Queues`.
    pub fn open(interface: &IfName, options: &OpenOptions) -> Result<Vec<Self>, OpenError> {
        let device = format!("packet:{}", interface.as_str());
        let facts = Facts::of(&device, interface.as_str(), options)?;
        match u8::try_from(options.queues.get()) {
            Ok(1) => Self::open_queue(&device, &facts, options, false).map(|only| vec![only]),
            Ok(count) if count <= SHARDS_MAX => {
                match Self::open_group(&device, &facts, options, Choice::Shard { count }) {
                    Err(OpenError::System { call: FANOUT, .. }) => {
                        Self::open_group(&device, &facts, options, Choice::Hash)
                    }
                    result => result,
                }
            }
            _ => Self::open_group(&device, &facts, options, Choice::Hash),
        }
    }

    fn open_group(
        device: &str,
        facts: &Facts,
        options: &OpenOptions,
        choice: Choice,
    ) -> Result<Vec<Self>, OpenError> {
        let failed = |errno| OpenError::System {
            device: device.into(),
            call: FANOUT,
            errno,
        };
        let mut group = fanout::Group::new(choice);
        let mut queues = Vec::new();
        for _ in 0..options.queues.get() {
            let queue = Self::open_queue(device, facts, options, true)?;
            group.join(queue.socket.as_fd()).map_err(failed)?;
            queues.push(queue);
        }
        for queue in &queues {
            fanout::let_in(queue.socket.as_fd()).map_err(failed)?;
        }
        if let (Choice::Shard { count }, Some(first)) = (choice, queues.first_mut()) {
            first.sorts = Some(count);
        }
        Ok(queues)
    }

    /// Opens a socket; one that is to join a group receives nothing before it is let in.
    fn open_queue(
        device: &str,
        facts: &Facts,
        options: &OpenOptions,
        joins: bool,
    ) -> Result<Self, OpenError> {
        let failed = |call| {
            move |errno| match errno {
                Errno::PERM | Errno::ACCESS => OpenError::Permission {
                    device: device.into(),
                    needs: "packet sockets need CAP_NET_RAW: run as root, or as any user inside \
                            `unshare --user --map-root-user --net`",
                },
                Errno::AFNOSUPPORT => OpenError::Missing {
                    device: device.into(),
                    what: "this kernel has no packet sockets; `modprobe af_packet` loads them where \
                           they are a module, and `tap:` does without",
                },
                errno => OpenError::System {
                    device: device.into(),
                    call,
                    errno,
                },
            }
        };
        // Protocol 0 receives nothing: no frame arrives before the ring and its options stand.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let none: Option<Protocol> = None;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, none)
            .map(options.keep)
            .map_err(failed("socket(AF_PACKET)"))?;
        let fd = socket.as_fd();
        let set = |name, value: i32, call| {
            call::set_option(fd, SOL_PACKET, name, &value).map_err(failed(call))
        };
        set(PACKET_VERSION, TPACKET_V2, "setsockopt(PACKET_VERSION)")?;
        set(PACKET_VNET_HDR, 1, "setsockopt(PACKET_VNET_HDR)")?;
        set(
            PACKET_COPY_THRESH,
            QUEUE_BYTES as i32,
            "setsockopt(PACKET_COPY_THRESH)",
        )?;
        set(
            PACKET_IGNORE_OUTGOING,
            1,
            "setsockopt(PACKET_IGNORE_OUTGOING)",
        )?;
        // More than the system-wide limit needs CAP_NET_ADMIN; the limit itself does otherwise.
        if sockopt::set_socket_recv_buffer_size_force(fd, QUEUE_BYTES).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(fd, QUEUE_BYTES);
        }
        let _ = sockopt::set_socket_send_buffer_size(fd, QUEUE_BYTES);
        let slot_bytes = (facts.mtu + RX_SLOT_OVERHEAD_BYTES)
            .next_power_of_two()
            .clamp(RX_SLOT_BYTES_MIN, RX_SLOT_BYTES_MAX);
        let ring = PacketRing::new(fd, slot_bytes, RX_RING_BYTES / slot_bytes)
            .map_err(failed("setsockopt(PACKET_RX_RING)"))?;
        // Neighbour discovery and group members listen to multicast addresses of their own.
        let all_multicast = Membership {
            index: facts.index as i32,
            kind: PACKET_MR_ALLMULTI,
            ..Default::default()
        };
        call::set_option(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all_multicast)
            .map_err(failed("setsockopt(PACKET_ADD_MEMBERSHIP)"))?;
        if joins {
            fanout::hold_back(fd).map_err(failed("setsockopt(SO_ATTACH_FILTER)"))?;
        }
        bind(fd, &LinkAddr::all_protocols(facts.index)).map_err(failed("bind(AF_PACKET)"))?;
        Ok(Self {
            ingress: Ingress::of(fd, facts.index),
            socket,
            caps: capabilities(facts, options),
            ring,
            large: vec![0; LARGE_BYTES].into_boxed_slice(),
            tx: TxArena {
                bytes: vec![0; TX_BYTES].into_boxed_slice(),
                used: 0,
                frames: Vec::with_capacity(TX_FRAMES),
            },
            missed: Cell::new(0),
            idle: 0,
            sorts: None,
            counters: Counters::default(),
        })
    }

    /// Lends one batch. Returns how many frames there were, and whether more may wait.
    fn receive_batch(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<(usize, bool), DeviceError> {
        let mut batch = Batch::new();
        let mut large: &mut [u8] = &mut self.large;
        let mut slots = 0;
        let mut more = true;
        while batch.len < budget && !batch.is_full() {
            let Some(slot) = self.ring.peek(slots) else {
                more = false;
                break;
            };
            let frame = match slot {
                Slot::Frame { vnet_hdr, data } => {
                    FrameMeta::from_vnet_hdr(vnet_hdr, data.len()).map(|meta| (data, meta))
                }
                Slot::InQueue if large.len() < LARGE_FRAME_LEN => break,
                Slot::InQueue => {
                    let (buffer, rest) = core::mem::take(&mut large).split_at_mut(LARGE_FRAME_LEN);
                    large = rest;
                    read_queued(self.socket.as_fd(), buffer)?
                }
                // A tagged frame belongs to a VLAN interface of the kernel's, not to this one.
                Slot::Tagged => {
                    slots += 1;
                    continue;
                }
                Slot::Truncated => {
                    slots += 1;
                    self.missed.set(self.missed.get() + 1);
                    continue;
                }
                Slot::Malformed => None,
            };
            slots += 1;
            match frame {
                Some((data, meta)) if data.len() >= ETHERNET_HEADER_LEN => batch.push(data, meta),
                _ => self.counters.rx_malformed += 1,
            }
        }
        let received = batch.len;
        if received > 0 {
            visit(batch.as_slice());
            self.counters.received(batch.as_slice());
        }
        self.ring.release(slots);
        Ok((received, more && slots > 0))
    }

    /// Sends what is queued, as far as the kernel takes it now.
    fn flush(&mut self) -> Result<(), DeviceError> {
        let mut sent = 0;
        let mut outcome = Ok(());
        while let Some(waiting) = self
            .tx
            .frames
            .get(sent..)
            .filter(|waiting| !waiting.is_empty())
        {
            self.counters.kicks += 1;
            match send_batch(self.socket.as_fd(), &self.tx.bytes, waiting) {
                Ok(count) => sent += count.max(1),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // The queue behind the interface dropped it, as a switch would.
                Err(Errno::NOBUFS | Errno::INVAL | Errno::MSGSIZE) => {
                    self.counters.tx_errors += 1;
                    sent += 1;
                }
                Err(errno) => {
                    self.counters.tx_errors += waiting.len() as u64;
                    sent = self.tx.frames.len();
                    outcome = Err(DeviceError::of("sendmmsg", errno));
                }
            }
        }
        self.tx.frames.drain(..sent);
        if self.tx.frames.is_empty() {
            self.tx.used = 0;
        }
        outcome
    }

    /// Makes room for a frame of `len` bytes with its header.
    fn make_room(&mut self, len: usize) -> Result<(), TransmitError> {
        if !self.tx.fits(len) {
            self.flush()?;
            if !self.tx.fits(len) {
                self.counters.tx_full += 1;
                return Err(TransmitError::Full);
            }
        }
        Ok(())
    }
}

impl TxArena {
    fn fits(&self, len: usize) -> bool {
        self.frames.len() < TX_FRAMES && self.used + len <= self.bytes.len()
    }
}

/// Reads a super-frame, header first. `None` when its header makes no sense.
fn read_queued<'a>(
    socket: BorrowedFd<'_>,
    buffer: &'a mut [u8],
) -> Result<Option<(&'a [u8], FrameMeta)>, DeviceError> {
    let len = match recv(socket, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
        Ok((len, full_len)) if len == full_len => len,
        // Longer than any frame can be, or gone.
        Ok(_) | Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(DeviceError::of("recvfrom", errno)),
    };
    let frame: &[u8] = buffer;
    let parts = frame.get(..len).and_then(|frame| frame.split_first_chunk());
    Ok(parts.and_then(|(hdr, data)| Some((data, FrameMeta::from_vnet_hdr(*hdr, data.len())?))))
}

fn send_batch(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    frames: &[(usize, usize)],
) -> Result<usize, Errno> {
    if let [(at, len)] = frames {
        let frame = bytes.get(*at..at + len).unwrap_or_default();
        return send(socket, frame, SendFlags::DONTWAIT).map(|_| 1);
    }
    let mut parts = [[IoSlice::new(&[])]; TX_FRAMES];
    for (part, (at, len)) in parts.iter_mut().zip(frames) {
        *part = [IoSlice::new(bytes.get(*at..at + len).unwrap_or_default())];
    }
    let mut controls: [_; TX_FRAMES] = core::array::from_fn(|_| SendAncillaryBuffer::default());
    let mut messages: Vec<MMsgHdr<'_>> = parts
        .iter()
        .zip(&mut controls)
        .take(frames.len())
        .map(|(p, c)| MMsgHdr::new(p, c))
        .collect();
    sendmmsg(socket, &mut messages, SendFlags::DONTWAIT)
}

fn capabilities(facts: &Facts, options: &OpenOptions) -> Capabilities {
    let gso = if options.offloads {
        GsoSet::ALL
    } else {
        GsoSet::default()
    };
    let wire_len = facts.mtu + ETHERNET_HEADER_LEN;
    Capabilities {
        mtu: facts.mtu,
        max_frame_len: if options.offloads {
            GSO_TRANSMIT_LEN_MAX.max(wire_len)
        } else {
            wire_len
        },
        mac: facts.mac,
        tx_checksum: options.offloads,
        // The header tells even when we do not ask for offloads: other senders on this machine do.
        rx_checksum: RxChecksum::PerFrame,
        tx_gso: gso,
        rx_gro: true,
        tx_slots: TX_FRAMES,
        forwards: false,
    }
}

impl NetDevice for PacketDevice {
    fn capabilities(&self) -> &Capabilities {
        &self.caps
    }

    fn receive(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        let mut received = 0;
        while received < budget {
            let (count, more) = self.receive_batch(budget - received, visit)?;
            received += count;
            if !more {
                break;
            }
        }
        // An error on the socket (the link went down, the interface is gone) wakes the reader and is
        // reported once. A reader that finds nothing time after time may be looking for one.
        self.idle = if received == 0 { self.idle + 1 } else { 0 };
        if self.idle == IDLE_MAX
            && let Ok(Err(errno)) = sockopt::socket_error(&self.socket)
        {
            self.idle = 0;
            return Err(DeviceError::of("recvfrom", errno));
        }
        self.idle %= IDLE_MAX;
        Ok(received)
    }

    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        if room > LARGE_FRAME_LEN - VNET_HDR_LEN {
            return Err(TransmitError::BadLength {
                len: room,
                max: LARGE_FRAME_LEN - VNET_HDR_LEN,
            });
        }
        self.make_room(VNET_HDR_LEN + room)?;
        let at = self.tx.used;
        let buffer = self
            .tx
            .bytes
            .get_mut(at..)
            .and_then(<[u8]>::split_first_chunk_mut);
        let Some((hdr, buffer)) = buffer else {
            return Err(TransmitError::Full);
        };
        let Some(Written { len, mut meta }) = write(buffer) else {
            return Ok(false);
        };
        admit(&self.caps, len, meta)?;
        if !self.caps.tx_checksum {
            meta.finish_checksum(buffer.get_mut(..len).unwrap_or_default());
            meta.csum = Checksum::Complete;
        }
        *hdr = meta.to_vnet_hdr();
        let total = VNET_HDR_LEN + len;
        self.tx.frames.push((at, total));
        self.tx.used = (at + total).next_multiple_of(64);
        self.counters.queued(len);
        Ok(true)
    }

    fn transmit_parts(&mut self, parts: &[&[u8]], meta: FrameMeta) -> Result<(), TransmitError> {
        let len = total_len(parts);
        let hdr = meta.to_vnet_hdr();
        let in_software = !self.caps.tx_checksum && meta.csum != Checksum::Complete;
        let list = ScatterList::new(&hdr, parts);
        let Some(list) = list.filter(|_| len >= GATHER_BYTES_MIN && !in_software) else {
            return self.transmit(len, meta, &mut |frame| copy_together(frame, parts));
        };
        admit(&self.caps, len, meta)?;
        self.flush()?;
        if !self.tx.frames.is_empty() {
            self.counters.tx_full += 1;
            return Err(TransmitError::Full);
        }
        let mut control = SendAncillaryBuffer::default();
        match sendmsg(
            &self.socket,
            list.as_slice(),
            &mut control,
            SendFlags::DONTWAIT,
        ) {
            Ok(_) => self.counters.queued(len),
            Err(Errno::AGAIN | Errno::INTR) => {
                self.counters.tx_full += 1;
                return Err(TransmitError::Full);
            }
            Err(Errno::NOBUFS | Errno::INVAL | Errno::MSGSIZE) => {
                self.counters.queued(len);
                self.counters.tx_errors += 1;
            }
            Err(errno) => return Err(DeviceError::of("sendmsg", errno).into()),
        }
        self.counters.kicks += 1;
        Ok(())
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        if self.tx.frames.is_empty() {
            Ok(())
        } else {
            self.flush()
        }
    }

    fn wait_fd(&self, wait: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        Some((self.socket.as_fd(), wait))
    }

    fn steer(&mut self, _iface: IfaceId, ports: &Arc<SharedPorts>) {
        // What is not to be had in the kernel is done by whoever gets the frames.
        if let Some(count) = self.sorts.filter(|count| *count == ports.count()) {
            let _ = fanout::set(self.socket.as_fd(), count, ports);
        }
    }

    fn ingress(&self) -> Option<Ingress> {
        self.ingress
    }

    fn counters(&self) -> Counters {
        // Reading the statistics resets them.
        let drops = call::option::<Statistics>(self.socket.as_fd(), SOL_PACKET, PACKET_STATISTICS)
            .map_or(0, |statistics| statistics.drops);
        self.missed.set(self.missed.get() + u64::from(drops));
        Counters {
            rx_missed: self.missed.get(),
            ..self.counters
        }
    }
}
