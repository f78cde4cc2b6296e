//! A TAP interface (tuntap.rst): the kernel's own network behind a file. Its interface can be routed,
//! bridged or addressed like any other; inside a user and network namespace no privilege is needed.
//!
//! A read or write moves one frame, with its `virtio_net_hdr`; there is no batch in the interface.
//! Frames read are packed densely into one arena, so that small ones share the cache.

use super::open::patiently;
use super::sys::interface::Interface;
use super::sys::tun::{
    TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6, attach, set_offload,
    set_vnet_hdr_len,
};
use super::{
    Batch, BorrowedFd, Capabilities, Checksum, Counters, DeviceError, ETHERNET_HEADER_LEN,
    FrameMeta, GSO_FRAME_LEN_MAX, GSO_TRANSMIT_LEN_MAX, GsoSet, IfName, MacAddr, NetDevice,
    OpenError, OpenOptions, RxChecksum, RxFrame, TransmitError, Wait, Written, admit,
    meta::VNET_HDR_LEN,
    parts::{ScatterList, copy_together, total_len},
};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Longest frame with its header, rounded to a cache line.
const SLOT_LEN: usize = (VNET_HDR_LEN + GSO_FRAME_LEN_MAX).next_multiple_of(64);

/// Arena for one batch: as many super-frames as keep it in the second-level cache, or a whole batch of
/// small frames and room for one more of any size.
const RX_BYTES: usize = 4 * SLOT_LEN;

/// One queue of a TAP interface.
pub struct TapDevice {
    tun: OwnedFd,
    caps: Capabilities,
    rx: Box<[u8]>,
    /// The frame being written, and the one that waits when the kernel had no room.
    tx: Box<[u8]>,
    /// Length of what waits in `tx`, header included.
    waiting: usize,
    counters: Counters,
}

impl TapDevice {
    /// Opens `options.queues` queues of a TAP interface, created when there is none, and brings it up.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: `Missing`, `Permission`, `Busy`, `Mtu`, `LinkDown` and `System`.
    pub fn open(interface: &IfName, options: &OpenOptions) -> Result<Vec<Self>, OpenError> {
        let device = format!("tap:{}", interface.as_str());
        (0..options.queues.get())
            .map(|_| Self::open_queue(&device, interface, options))
            .collect()
    }

    fn open_queue(device: &str, name: &IfName, options: &OpenOptions) -> Result<Self, OpenError> {
        let system = |call| {
            move |errno| OpenError::System {
                device: device.into(),
                call,
                errno,
            }
        };
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let tun = rustix::fs::open(c"/dev/net/tun", flags, Mode::empty()).map_err(|errno| {
            match errno {
                Errno::NOENT | Errno::NODEV | Errno::NXIO => OpenError::Missing {
                    device: device.into(),
                    what: "this system has no /dev/net/tun; `modprobe tun` makes it, in a container \
                           the device must be passed in",
                },
                Errno::ACCESS | Errno::PERM => OpenError::Permission {
                    device: device.into(),
                    needs: "/dev/net/tun is not open to this user; `chmod 666 /dev/net/tun` as root \
                            is what most systems do",
                },
                errno => system("open /dev/net/tun")(errno),
            }
        })?;
        let tun = (options.keep)(tun);
        let multi_queue = options.queues.get() > 1;
        let attached = patiently(|| attach(tun.as_fd(), name.as_str(), multi_queue));
        attached.map_err(|errno| match errno {
            Errno::PERM => OpenError::Permission {
                device: device.into(),
                needs: "a TAP interface needs CAP_NET_ADMIN: run as root, let root create it for you \
                        with `ip tuntap add mode tap user NAME`, or run inside \
                        `unshare --user --map-root-user --net`",
            },
            Errno::BUSY => OpenError::Busy {
                device: device.into(),
                holder: "another program holds the interface; stop it or name another",
            },
            Errno::INVAL => OpenError::Busy {
                device: device.into(),
                holder: "an interface of that name is no TAP or has another number of queues; \
                         delete it or name another",
            },
            errno => system("ioctl(TUNSETIFF)")(errno),
        })?;
        set_vnet_hdr_len(tun.as_fd(), VNET_HDR_LEN as i32)
            .map_err(system("ioctl(TUNSETVNETHDRSZ)"))?;
        let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
        let rx_gro = if !options.offloads {
            set_offload(tun.as_fd(), 0).map_err(system("ioctl(TUNSETOFFLOAD)"))?;
            false
        } else {
            // UDP segmentation is younger than the rest.
            set_offload(tun.as_fd(), tcp | TUN_F_USO4 | TUN_F_USO6)
                .or_else(|_| set_offload(tun.as_fd(), tcp))
                .map_err(system("ioctl(TUNSETOFFLOAD)"))?;
            true
        };
        let interface =
            Interface::named(name.as_str(), options.keep).map_err(system("socket(AF_UNIX)"))?;
        let is_up = interface.set_up().is_ok()
            || interface.is_up().map_err(system("ioctl(SIOCGIFFLAGS)"))?;
        if !is_up {
            return Err(OpenError::LinkDown {
                device: device.into(),
            });
        }
        let mtu = interface.mtu().map_err(system("ioctl(SIOCGIFMTU)"))?;
        let mtu = options.agreed_mtu(device, mtu)?;
        let kernel_mac = interface.mac().map_err(system("ioctl(SIOCGIFHWADDR)"))?;
        Ok(Self {
            tun,
            caps: capabilities(mtu, neighbour_of(kernel_mac), rx_gro),
            rx: vec![0; RX_BYTES].into_boxed_slice(),
            tx: vec![0; SLOT_LEN].into_boxed_slice(),
            waiting: 0,
            counters: Counters::default(),
        })
    }

    /// Writes the frame that waits. False when the kernel still has no room.
    fn flush(&mut self) -> Result<bool, DeviceError> {
        let Some(frame) = self
            .tx
            .get(..self.waiting)
            .filter(|frame| !frame.is_empty())
        else {
            return Ok(true);
        };
        self.counters.kicks += 1;
        let outcome = rustix::io::write(&self.tun, frame);
        self.settle(outcome)
    }

    /// Sorts the outcome of a write. False when the frame has to wait.
    fn settle(&mut self, outcome: Result<usize, Errno>) -> Result<bool, DeviceError> {
        match outcome {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(Errno::NOBUFS | Errno::NOMEM | Errno::INVAL) => self.counters.tx_errors += 1,
            Err(errno) => {
                self.waiting = 0;
                self.counters.tx_errors += 1;
                return Err(sort("write", errno));
            }
        }
        self.waiting = 0;
        Ok(true)
    }
}

/// What a TAP file returns for an interface that is down or gone.
fn sort(call: &'static str, errno: Errno) -> DeviceError {
    match errno {
        Errno::IO => DeviceError::LinkDown,
        errno => DeviceError::of(call, errno),
    }
}

/// The kernel answers to its own address on the interface, so the engine needs another: the same with
/// the last bit flipped, marked as locally administered.
fn neighbour_of(mac: MacAddr) -> MacAddr {
    let [a, b, c, d, e, f] = mac;
    [(a | 0x02) & !0x01, b, c, d, e, f ^ 1]
}

fn capabilities(mtu: usize, mac: MacAddr, offloads: bool) -> Capabilities {
    let wire_len = mtu + ETHERNET_HEADER_LEN;
    Capabilities {
        mtu,
        max_frame_len: if offloads {
            GSO_TRANSMIT_LEN_MAX.max(wire_len)
        } else {
            wire_len
        },
        mac,
        tx_checksum: offloads,
        rx_checksum: if offloads {
            RxChecksum::PerFrame
        } else {
            RxChecksum::Unverified
        },
        tx_gso: if offloads {
            GsoSet::ALL
        } else {
            GsoSet::default()
        },
        rx_gro: offloads,
        tx_slots: 1,
        forwards: false,
    }
}

impl NetDevice for TapDevice {
    fn capabilities(&self) -> &Capabilities {
        &self.caps
    }

    fn receive(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        let mut received = 0;
        let mut outcome = Ok(());
        let mut more = true;
        while more && received < budget {
            let mut batch = Batch::new();
            let mut room: &mut [u8] = &mut self.rx;
            while received + batch.len < budget && !batch.is_full() && room.len() >= SLOT_LEN {
                let len = match rustix::io::read(&self.tun, &mut *room) {
                    Ok(len) => len,
                    Err(Errno::INTR) => continue,
                    Err(errno) => {
                        more = false;
                        if errno != Errno::AGAIN {
                            outcome = Err(sort("read", errno));
                        }
                        break;
                    }
                };
                let used = len.next_multiple_of(64).min(room.len());
                let (frame, rest) = core::mem::take(&mut room).split_at_mut(used);
                room = rest;
                let parts = frame.get(..len).and_then(<[u8]>::split_first_chunk);
                let frame = parts.and_then(|(hdr, data)| {
                    Some((data, FrameMeta::from_vnet_hdr(*hdr, data.len())?))
                });
                match frame {
                    Some((data, meta)) if data.len() >= ETHERNET_HEADER_LEN => {
                        batch.push(data, meta)
                    }
                    _ => self.counters.rx_malformed += 1,
                }
            }
            if batch.len > 0 {
                visit(batch.as_slice());
                self.counters.received(batch.as_slice());
                received += batch.len;
            }
        }
        outcome.map(|()| received)
    }

    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        if room > SLOT_LEN - VNET_HDR_LEN {
            return Err(TransmitError::BadLength {
                len: room,
                max: SLOT_LEN - VNET_HDR_LEN,
            });
        }
        if !self.flush()? {
            self.counters.tx_full += 1;
            return Err(TransmitError::Full);
        }
        let Some((hdr, buffer)) = self.tx.split_first_chunk_mut() else {
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
        self.waiting = VNET_HDR_LEN + len;
        self.counters.queued(len);
        // Not there yet is fine: the frame is queued.
        self.flush()?;
        Ok(true)
    }

    fn transmit_parts(&mut self, parts: &[&[u8]], meta: FrameMeta) -> Result<(), TransmitError> {
        let len = total_len(parts);
        let hdr = meta.to_vnet_hdr();
        let in_software = !self.caps.tx_checksum && meta.csum != Checksum::Complete;
        let Some(list) = ScatterList::new(&hdr, parts).filter(|_| !in_software) else {
            return self.transmit(len, meta, &mut |frame| copy_together(frame, parts));
        };
        admit(&self.caps, len, meta)?;
        if !self.flush()? {
            self.counters.tx_full += 1;
            return Err(TransmitError::Full);
        }
        self.counters.kicks += 1;
        let outcome = rustix::io::writev(&self.tun, list.as_slice());
        if self.settle(outcome)? {
            self.counters.queued(len);
            Ok(())
        } else {
            self.counters.tx_full += 1;
            Err(TransmitError::Full)
        }
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        self.flush().map(drop)
    }

    fn wait_fd(&self, wait: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        Some((self.tun.as_fd(), wait))
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}
