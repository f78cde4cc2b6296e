//! An interface through `AF_XDP` (af_xdp.rst): frames in memory of ours (UMEM), four rings per queue.
//!
//! ```text
//!   ours ── fill ──▶ kernel ── rx ──▶ visit ──┐      free ── fill() ── tx ──▶ kernel ── completion ──┐
//!     ▲───────────────────────────────────────┘       ▲─────────────────────────────────────────────┘
//! ```
//!
//! A five-line program on the interface redirects every frame to the socket of its queue, and passes
//! it to the kernel's stack when there is none. It lives as long as the devices do. Every queue
//! is opened, so that the kernel hears nothing more; an interface of one's own is the place for it.
//!
//! There is no place for offload state beside a frame: checksums are computed here, and a veth's
//! neighbour should not leave them partial (`ethtool -K PEER tx off`); where it does,
//! [`RxChecksum::MaybePartial`] says so.

use super::open::{Facts, patiently};
use super::sys::abi_bpf::{Attr, Insn, XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, insn};
use super::sys::call::{self, bpf, bpf_fd, fd_number};
use super::sys::mmap::Mapping;
use super::sys::ring::{Desc, Entry, Ring, RingOffsets};
use super::sys::umem::{Chunk, Umem};
use super::{
    Batch, BorrowedFd, Capabilities, Counters, DeviceError, ETHERNET_HEADER_LEN, FrameMeta, GsoSet,
    IfName, NetDevice, OpenError, OpenOptions, RX_BATCH_FRAMES, RxChecksum, RxFrame, TransmitError,
    Wait, Written, XdpMode, admit,
};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpRingOffset, XdpUmemReg,
    XdpUmemRegFlags,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
    sockopt,
};
use std::sync::Arc;

/// Entries of each ring, and chunks of each direction: 4 MiB of ordinary chunks each way.
const RING_ENTRIES: u32 = 2048;

/// Queues that are opened although fewer are asked for: 128 MiB, which the kernel keeps resident.
const QUEUES_MAX: u16 = 16;

/// What the driver keeps free in front of a received frame (`XDP_PACKET_HEADROOM`).
const HEADROOM_BYTES: usize = 256;

/// Chunk for an ordinary MTU: half a page.
const CHUNK_BYTES: usize = 2048;

/// The largest chunk the kernel allows: a page.
const CHUNK_BYTES_MAX: usize = 4096;

/// linux/socket.h: the kernel polls the driver inside our system calls.
const SO_BUSY_POLL: i32 = libc::SO_BUSY_POLL;
const SO_PREFER_BUSY_POLL: i32 = 69;
const SO_BUSY_POLL_BUDGET: i32 = 70;

/// Most frames one busy poll takes from the driver.
const BUSY_POLL_BUDGET: i32 = 64;

/// One queue of an interface, through an XDP socket.
pub struct XdpDevice {
    socket: OwnedFd,
    caps: Capabilities,
    umem: Umem,
    fill: Ring,
    rx: Ring,
    tx: Ring,
    completion: Ring,
    /// Chunks for frames to transmit.
    free: Vec<Chunk>,
    /// Descriptors written since the last kick.
    queued: u32,
    busy_poll: bool,
    counters: Counters,
    /// Detaches the program when the last queue is gone.
    _redirect: Arc<Redirect>,
}

/// The program on the interface.
struct Redirect {
    sockets: OwnedFd,
    _link: OwnedFd,
}

impl XdpDevice {
    /// Opens every queue of an interface and redirects their frames: the NIC spreads them over all its
    /// queues, and by one that nobody reads they would go to the kernel. At least `options.queues`.
    ///
    /// # Errors
    ///
    /// [`OpenError`], of every kind but `Name` and `Layout`.
    pub fn open(interface: &IfName, options: &OpenOptions) -> Result<Vec<Self>, OpenError> {
        let device = format!("xdp:{}", interface.as_str());
        let facts = Facts::of(&device, interface.as_str(), options)?;
        let have = facts.interface.queues();
        let want = options.queues.get();
        if want > have {
            return Err(OpenError::Queues { device, have, want });
        }
        let most = want.max(QUEUES_MAX);
        if have > most {
            return Err(OpenError::SurplusQueues { device, have, most });
        }
        let max = CHUNK_BYTES_MAX - HEADROOM_BYTES - ETHERNET_HEADER_LEN;
        if facts.mtu > max {
            return Err(OpenError::MtuTooLarge {
                device,
                have: facts.mtu,
                max,
            });
        }
        let redirect = Arc::new(Redirect::attach(&device, &facts, have, options)?);
        (0..u32::from(have))
            .map(|queue| Self::open_queue(&device, &facts, options, queue, Arc::clone(&redirect)))
            .collect()
    }

    fn open_queue(
        device: &str,
        facts: &Facts,
        options: &OpenOptions,
        queue: u32,
        redirect: Arc<Redirect>,
    ) -> Result<Self, OpenError> {
        let failed = |call| move |errno| sort(device, call, errno);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::XDP, SocketType::RAW, flags, None)
            .map(options.keep)
            .map_err(failed("socket(AF_XDP)"))?;
        let fd = socket.as_fd();
        let frame_len = facts.mtu + ETHERNET_HEADER_LEN + HEADROOM_BYTES;
        let chunk_bytes = if frame_len <= CHUNK_BYTES {
            CHUNK_BYTES
        } else {
            CHUNK_BYTES_MAX
        };
        let (mut umem, mut free) =
            Umem::new(2 * RING_ENTRIES, chunk_bytes).map_err(failed("mmap(UMEM)"))?;
        let (addr, len) = umem.range();
        let registration = XdpUmemReg {
            addr,
            len,
            chunk_size: chunk_bytes as u32,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        sockopt::set_xdp_umem_reg(fd, registration).map_err(failed("setsockopt(XDP_UMEM_REG)"))?;
        let rings = Rings::map(fd).map_err(failed("mmap(XDP ring)"))?;
        let Rings {
            mut fill,
            completion,
            rx,
            tx,
        } = rings;
        let for_receive = free.split_off(RING_ENTRIES as usize);
        let count = for_receive.len() as u32;
        for (ahead, chunk) in (0..).zip(for_receive) {
            fill.write(ahead, umem.give(chunk))
                .map_err(|_| OpenError::Layout {
                    device: device.into(),
                    field: "fill ring",
                })?;
        }
        fill.submit(count);
        if let Some(us) = options.busy_poll_us {
            for (name, value) in [
                (SO_PREFER_BUSY_POLL, 1),
                (SO_BUSY_POLL, i32::try_from(us).unwrap_or(i32::MAX)),
                (SO_BUSY_POLL_BUDGET, BUSY_POLL_BUDGET),
            ] {
                call::set_option(fd, libc::SOL_SOCKET, name, &value)
                    .map_err(failed("setsockopt(SO_BUSY_POLL)"))?;
            }
        }
        let mode = match options.xdp_mode {
            XdpMode::Any => SocketAddrXdpFlags::empty(),
            XdpMode::Copy => SocketAddrXdpFlags::XDP_COPY,
            XdpMode::ZeroCopy => SocketAddrXdpFlags::XDP_ZEROCOPY,
        };
        let flags = mode | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        patiently(|| bind(fd, &SocketAddrXdp::new(flags, facts.index, queue)))
            .map_err(failed("bind(AF_XDP)"))?;
        bpf(&Attr::map_update(
            &redirect.sockets,
            &queue,
            &fd_number(&socket),
        ))
        .map_err(failed("bpf(BPF_MAP_UPDATE_ELEM)"))?;
        Ok(Self {
            caps: capabilities(facts),
            socket,
            umem,
            fill,
            rx,
            tx,
            completion,
            free,
            queued: 0,
            busy_poll: options.busy_poll_us.is_some(),
            counters: Counters::default(),
            _redirect: redirect,
        })
    }

    /// Whether the NIC itself reads and writes the UMEM.
    pub fn is_zero_copy(&self) -> bool {
        sockopt::xdp_options(&self.socket).is_ok_and(|options| !options.is_empty())
    }

    /// Lends one batch. Returns how many frames there were.
    fn receive_batch(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        let limit = RX_BATCH_FRAMES.min(budget) as u32;
        let waiting = self.rx.waiting()?.min(limit);
        let mut chunks: [Option<(Chunk, Desc)>; RX_BATCH_FRAMES] = [const { None }; _];
        for (ahead, place) in (0..waiting).zip(&mut chunks) {
            let desc: Desc = self.rx.read(ahead)?;
            match self.umem.take(desc.addr) {
                Some(chunk) => *place = Some((chunk, desc)),
                None => self.counters.rx_malformed += 1,
            }
        }
        let mut batch = Batch::new();
        for (chunk, desc) in chunks.iter().flatten() {
            match self.umem.frame(chunk, desc.addr, desc.len) {
                Some(data) if data.len() >= ETHERNET_HEADER_LEN => {
                    batch.push(data, FrameMeta::NONE)
                }
                _ => self.counters.rx_malformed += 1,
            }
        }
        let received = batch.len;
        if received > 0 {
            visit(batch.as_slice());
            self.counters.received(batch.as_slice());
        }
        self.rx.release(waiting);
        // Each chunk came out of the fill ring or was in flight, so the ring has room for all.
        let mut given = 0;
        for (chunk, _) in chunks.into_iter().flatten() {
            self.fill.write(given, self.umem.give(chunk))?;
            given += 1;
        }
        self.fill.submit(given);
        Ok(received)
    }

    /// Takes back chunks of frames that have left.
    fn reap(&mut self) -> Result<(), DeviceError> {
        let done = self.completion.waiting()?;
        for ahead in 0..done {
            match self.umem.take(self.completion.read(ahead)?) {
                Some(chunk) => self.free.push(chunk),
                None => self.counters.tx_malformed += 1,
            }
        }
        self.completion.release(done);
        Ok(())
    }
}

impl Redirect {
    fn attach(
        device: &str,
        facts: &Facts,
        queues: u16,
        options: &OpenOptions,
    ) -> Result<Self, OpenError> {
        let failed = |call| move |errno| sort(device, call, errno);
        let sockets = bpf_fd(&Attr::map_create(u32::from(queues)))
            .map(options.keep)
            .map_err(failed("bpf(BPF_MAP_CREATE)"))?;
        let program = bpf_fd(&Attr::prog_load(
            &redirect_program(&sockets),
            c"Dual MIT/GPL",
        ))
        .map(options.keep)
        .map_err(failed("bpf(BPF_PROG_LOAD)"))?;
        let attach =
            |flags| bpf_fd(&Attr::link_create(&program, facts.index, flags)).map(options.keep);
        let link = attach(XDP_FLAGS_DRV_MODE).or_else(|errno| match options.xdp_mode {
            // Someone else's program stays where it is.
            _ if errno == Errno::BUSY || errno == Errno::EXIST => Err(errno),
            XdpMode::ZeroCopy => Err(errno),
            XdpMode::Any | XdpMode::Copy => attach(XDP_FLAGS_SKB_MODE),
        });
        let link = link.map_err(failed("bpf(BPF_LINK_CREATE)"))?;
        Ok(Self {
            sockets,
            _link: link,
        })
    }
}

/// `return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);`
fn redirect_program(sockets: &OwnedFd) -> [Insn; 6] {
    const LDX_W: u8 = 0x61;
    const LD_IMM64: u8 = 0x18;
    const MOV64_IMM: u8 = 0xb7;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    /// Source register 1 marks an immediate as a map's descriptor.
    const PSEUDO_MAP_FD: u8 = 1;
    const RX_QUEUE_INDEX: i16 = 16;
    const XDP_PASS: i32 = 2;
    const REDIRECT_MAP: i32 = 51;
    [
        insn(LDX_W, 2, 1, RX_QUEUE_INDEX, 0),
        insn(LD_IMM64, 1, PSEUDO_MAP_FD, 0, fd_number(sockets) as i32),
        insn(0, 0, 0, 0, 0),
        insn(MOV64_IMM, 3, 0, 0, XDP_PASS),
        insn(CALL, 0, 0, 0, REDIRECT_MAP),
        insn(EXIT, 0, 0, 0, 0),
    ]
}

/// The rings of a socket, mapped.
struct Rings {
    fill: Ring,
    completion: Ring,
    rx: Ring,
    tx: Ring,
}

impl Rings {
    fn map(socket: BorrowedFd<'_>) -> Result<Self, Errno> {
        sockopt::set_xdp_umem_fill_ring_size(socket, RING_ENTRIES)?;
        sockopt::set_xdp_umem_completion_ring_size(socket, RING_ENTRIES)?;
        sockopt::set_xdp_rx_ring_size(socket, RING_ENTRIES)?;
        sockopt::set_xdp_tx_ring_size(socket, RING_ENTRIES)?;
        let offsets = sockopt::xdp_mmap_offsets(socket)?;
        Ok(Self {
            fill: ring::<u64>(socket, &offsets.fr, XDP_UMEM_PGOFF_FILL_RING)?,
            completion: ring::<u64>(socket, &offsets.cr, XDP_UMEM_PGOFF_COMPLETION_RING)?,
            rx: ring::<Desc>(socket, &offsets.rx, XDP_PGOFF_RX_RING)?,
            tx: ring::<Desc>(socket, &offsets.tx, XDP_PGOFF_TX_RING)?,
        })
    }
}

fn ring<E: Entry>(
    socket: BorrowedFd<'_>,
    offsets: &XdpRingOffset,
    page_offset: u64,
) -> Result<Ring, Errno> {
    let at = |offset: u64| usize::try_from(offset).map_err(|_| Errno::OVERFLOW);
    let entries = at(offsets.desc)?;
    let len = entries + RING_ENTRIES as usize * E::SIZE;
    let map = Mapping::of_fd(socket, len, page_offset)?;
    let offsets = RingOffsets {
        producer: at(offsets.producer)?,
        consumer: at(offsets.consumer)?,
        // Kernels before 5.4 have no flag: an offset outside reads as "always wake".
        flags: offsets.flags.map_or(Ok(usize::MAX), at)?,
        entries,
    };
    Ok(Ring::new(map, offsets, RING_ENTRIES))
}

fn sort(device: &str, call: &'static str, errno: Errno) -> OpenError {
    let device = device.into();
    match errno {
        Errno::PERM | Errno::ACCESS => OpenError::Permission {
            device,
            needs: "AF_XDP needs CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF of the whole system, which a \
                    user namespace cannot give: run as root, or use `packet:` or `tap:`",
        },
        Errno::AFNOSUPPORT => OpenError::Missing {
            device,
            what: "this kernel has no XDP sockets (CONFIG_XDP_SOCKETS); `packet:` does without",
        },
        Errno::BUSY | Errno::EXIST => OpenError::Busy {
            device,
            holder: "another XDP program or socket has the interface or one of its queues; \
                     `ip link set IF xdp off` removes a program",
        },
        Errno::NOBUFS if call == "setsockopt(XDP_UMEM_REG)" => OpenError::Permission {
            device,
            needs: "its memory exceeds the limit on locked memory; raise it with `ulimit -l unlimited`",
        },
        Errno::OPNOTSUPP if call == "bind(AF_XDP)" => OpenError::Missing {
            device,
            what: "the driver has no zero-copy mode; open the device in copy mode",
        },
        errno => OpenError::System {
            device,
            call,
            errno,
        },
    }
}

fn capabilities(facts: &Facts) -> Capabilities {
    let is_veth = facts.interface.driver() == "veth";
    Capabilities {
        mtu: facts.mtu,
        max_frame_len: facts.mtu + ETHERNET_HEADER_LEN,
        mac: facts.mac,
        tx_checksum: false,
        rx_checksum: if is_veth {
            RxChecksum::MaybePartial
        } else {
            RxChecksum::Unverified
        },
        tx_gso: GsoSet::default(),
        rx_gro: false,
        tx_slots: RING_ENTRIES as usize,
        forwards: false,
    }
}

impl NetDevice for XdpDevice {
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
            let count = self.receive_batch(budget - received, visit)?;
            received += count;
            if count < RX_BATCH_FRAMES {
                break;
            }
        }
        if self.busy_poll || (received == 0 && self.fill.needs_wakeup()) {
            self.counters.kicks += 1;
            match recv(&self.socket, &mut [0u8; 0], RecvFlags::DONTWAIT) {
                Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::BUSY | Errno::NOBUFS) => {}
                Err(errno) => return Err(DeviceError::of("recvfrom", errno)),
            }
        }
        Ok(received)
    }

    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        if room > self.umem.chunk_bytes() {
            return Err(TransmitError::BadLength {
                len: room,
                max: self.umem.chunk_bytes(),
            });
        }
        if self.free.is_empty() {
            self.reap()?;
        }
        // The ring has as many entries as there are chunks to transmit.
        let Some(chunk) = self.free.pop() else {
            self.counters.tx_full += 1;
            return Err(TransmitError::Full);
        };
        let buffer = self.umem.fill(&chunk);
        let Some(Written { len, meta }) = write(buffer) else {
            self.free.push(chunk);
            return Ok(false);
        };
        if let Err(error) = admit(&self.caps, len, meta) {
            self.free.push(chunk);
            return Err(error);
        }
        meta.finish_checksum(buffer.get_mut(..len).unwrap_or_default());
        let desc = Desc {
            addr: self.umem.give(chunk),
            len: len as u32,
            options: 0,
        };
        self.tx.write(self.queued, desc)?;
        self.queued += 1;
        self.counters.queued(len);
        Ok(true)
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        self.tx.submit(core::mem::take(&mut self.queued));
        // In copy mode a call sends at most 32 frames.
        let mut pending = self.tx.pending()?;
        while pending > 0 && self.tx.needs_wakeup() {
            self.counters.kicks += 1;
            match send(&self.socket, &[], SendFlags::DONTWAIT) {
                Ok(_) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::INTR) => {}
                Err(errno) => return Err(DeviceError::of("sendto", errno)),
            }
            let left = self.tx.pending()?;
            if left >= pending {
                break;
            }
            pending = left;
        }
        self.reap()
    }

    fn wait_fd(&self, wait: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        Some((self.socket.as_fd(), wait))
    }

    fn counters(&self) -> Counters {
        let missed = sockopt::xdp_statistics(&self.socket)
            .map_or(0, |s| s.rx_dropped + s.rx_ring_full.unwrap_or(0));
        Counters {
            rx_missed: missed,
            ..self.counters
        }
    }
}
