//! Opening a device by its name.

use super::sys::interface::Interface;
use super::{
    DeviceError, DeviceName, Joined, MemoryDevice, MemoryOptions, NetDevice, OpenError,
    PacketDevice, TapDevice, XdpDevice, netmap,
};
use core::num::NonZeroU16;
use rustix::event::{Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

/// How to open a device. The default suits a single engine on any interface.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Queues to open, each a device of its own: `AF_PACKET` fanout members, TAP queues, XDP or netmap
    /// rings. An engine, thread or worker process takes one each.
    pub queues: NonZeroU16,
    /// MTU in bytes the interface must have. Ports that are no interface take it as theirs.
    pub mtu: Option<usize>,
    /// Whether to use checksum and segmentation offload where the device has them.
    pub offloads: bool,
    /// How frames get into an XDP socket's memory.
    pub xdp_mode: XdpMode,
    /// XDP: microseconds the kernel polls the driver on our behalf in each call (`SO_BUSY_POLL`).
    pub busy_poll_us: Option<u32>,
    /// What becomes of each descriptor right after it is made, also of those that only opening needs. The
    /// kernel gives it the lowest free number, which a library in another's program leaves to that one.
    pub keep: fn(OwnedFd) -> OwnedFd,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            queues: NonZeroU16::MIN,
            mtu: None,
            offloads: true,
            xdp_mode: XdpMode::Any,
            busy_poll_us: None,
            keep: core::convert::identity,
        }
    }
}

/// How frames get into an XDP socket's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Zero-copy where the driver can, else by copying, else on generic socket buffers.
    #[default]
    Any,
    /// By copying, in the driver or on generic socket buffers.
    Copy,
    /// By the NIC itself, or not at all.
    ZeroCopy,
}

impl OpenOptions {
    /// The interface's MTU, if it is the one that was asked for.
    pub(super) fn agreed_mtu(&self, device: &str, have: usize) -> Result<usize, OpenError> {
        match self.mtu {
            Some(want) if want != have => Err(OpenError::Mtu {
                device: device.into(),
                have,
                want,
            }),
            _ => Ok(have),
        }
    }
}

/// Opens a device by name: one [`NetDevice`] for each of `options.queues`.
///
/// `mem:` hears itself; `mem:NAME` is one end of a pair whose other end another process opens, or the
/// same one a second time. Two engines that need no name share a [`MemoryDevice::pair`].
///
/// # Errors
///
/// [`OpenError`], whose text is one sentence with the remedy.
pub fn open(name: &str, options: &OpenOptions) -> Result<Vec<Box<dyn NetDevice>>, OpenError> {
    let parsed: DeviceName = name.parse().map_err(|why| OpenError::Name {
        name: name.into(),
        why,
    })?;
    match &parsed {
        DeviceName::Netmap(port) => netmap::open(port, options).map(boxed),
        DeviceName::Packet(interface) => PacketDevice::open(interface, options).map(boxed),
        DeviceName::Xdp(interface) => {
            let queues = XdpDevice::open(interface, options)?;
            share_out(name, boxed(queues), options)
        }
        DeviceName::Tap(interface) => TapDevice::open(interface, options).map(boxed),
        DeviceName::SharedMemory(shared) => {
            netmap::open_named(shared, options).map(|device| boxed(vec![device]))
        }
        DeviceName::Memory => {
            let memory = MemoryOptions {
                mtu: options.mtu.unwrap_or(MemoryOptions::default().mtu),
                doorbell: true,
                keep: options.keep,
                ..MemoryOptions::default()
            };
            match MemoryDevice::looped(&memory) {
                Ok(device) => Ok(boxed(vec![device])),
                Err(DeviceError::System { call, errno }) => Err(OpenError::System {
                    device: name.into(),
                    call,
                    errno,
                }),
                Err(_) => Err(OpenError::Layout {
                    device: name.into(),
                    field: "memory",
                }),
            }
        }
    }
}

/// How often, and after how long each time, something is asked for that somebody else still has: two
/// seconds, where the end of a program takes milliseconds.
const BUSY_RETRIES_MAX: usize = 200;
const BUSY_RETRY_AFTER: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// Asks for what only one may have, and again while it is busy: the kernel lets go of a closed socket's
/// memory late, and a program that ended with bytes on their way left a process that sees them arrive.
pub(super) fn patiently<T>(mut ask: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..BUSY_RETRIES_MAX {
        match ask() {
            Err(Errno::BUSY) => poll(&mut [], Some(&BUSY_RETRY_AFTER)).map(drop)?,
            result => return result,
        }
    }
    ask()
}

/// Makes `options.queues` devices of all the queues that there are, which are no fewer.
fn share_out(
    name: &str,
    queues: Vec<Box<dyn NetDevice>>,
    options: &OpenOptions,
) -> Result<Vec<Box<dyn NetDevice>>, OpenError> {
    let count = usize::from(options.queues.get());
    if queues.len() <= count {
        return Ok(queues);
    }
    let mut shares: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    for (n, queue) in queues.into_iter().enumerate() {
        shares[n % count].push(queue);
    }
    let joined = shares.into_iter().map(|mut share| match share.len() {
        1 => Ok(share.remove(0)),
        _ => Joined::kept(share, options.keep).map(|joined| Box::new(joined) as Box<dyn NetDevice>),
    });
    joined
        .collect::<Result<_, _>>()
        .map_err(|error| match error {
            DeviceError::System { call, errno } => OpenError::System {
                device: name.into(),
                call,
                errno,
            },
            _ => OpenError::NoInterface {
                device: name.into(),
            },
        })
}

fn boxed<D: NetDevice + 'static>(devices: Vec<D>) -> Vec<Box<dyn NetDevice>> {
    devices
        .into_iter()
        .map(|device| Box::new(device) as _)
        .collect()
}

/// What devices on an existing interface need to know of it.
pub(super) struct Facts {
    pub(super) interface: Interface,
    pub(super) index: u32,
    pub(super) mtu: usize,
    pub(super) mac: super::MacAddr,
}

impl Facts {
    /// Looks an interface up that must exist and be up.
    pub(super) fn of(device: &str, name: &str, options: &OpenOptions) -> Result<Self, OpenError> {
        let failed = |call, errno| match errno {
            Errno::NODEV | Errno::NXIO => OpenError::NoInterface {
                device: device.into(),
            },
            errno => OpenError::System {
                device: device.into(),
                call,
                errno,
            },
        };
        let interface = Interface::named(name, options.keep)
            .map_err(|errno| failed("socket(AF_UNIX)", errno))?;
        let index = interface
            .index()
            .map_err(|errno| failed("SIOCGIFINDEX", errno))?;
        if !interface
            .is_up()
            .map_err(|errno| failed("SIOCGIFFLAGS", errno))?
        {
            return Err(OpenError::LinkDown {
                device: device.into(),
            });
        }
        let mtu = interface
            .mtu()
            .map_err(|errno| failed("SIOCGIFMTU", errno))?;
        let mac = interface
            .mac()
            .map_err(|errno| failed("SIOCGIFHWADDR", errno))?;
        Ok(Self {
            interface,
            index,
            mtu: options.agreed_mtu(device, mtu)?,
            mac,
        })
    }
}
