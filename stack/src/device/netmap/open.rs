//! Binding a port of the netmap module.

use super::super::open::patiently;
use super::super::sys::abi_netmap::{
    NR_REG_ALL_NIC, NR_REG_NIC_SW, NR_REG_ONE_NIC, NR_REG_PIPE_MASTER, NR_REG_PIPE_SLAVE,
    NR_REG_SW, Register, register, register_legacy, set_port_hdr,
};
use super::super::sys::interface::Interface;
use super::super::sys::mmap::Mapping;
use super::super::sys::netmap_region::Region;
use super::super::{
    Capabilities, ETHERNET_HEADER_LEN, GSO_TRANSMIT_LEN_MAX, GsoSet, MacAddr, NetmapPort,
    NetmapRings, OpenError, OpenOptions, RxChecksum, meta::VNET_HDR_LEN,
};
use super::{NetmapDevice, NewError, OtherSide};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::sync::Arc;

/// MTU of ports that are no interface and are not told otherwise.
const MTU_DEFAULT: usize = 1500;

/// Opens a netmap port: one device for each of `options.queues` NIC rings, or a single one for all the
/// rings the name asks for.
pub(in super::super) fn open(
    port: &NetmapPort,
    options: &OpenOptions,
) -> Result<Vec<NetmapDevice>, OpenError> {
    let queues = options.queues.get();
    if queues == 1 || port.rings != NetmapRings::AllNic {
        return Ok(vec![open_rings(port, options)?]);
    }
    (0..queues)
        .map(|queue| {
            let one = NetmapPort {
                port: port.port.clone(),
                rings: NetmapRings::OneNic(queue),
            };
            open_rings(&one, options)
        })
        .collect()
}

fn open_rings(port: &NetmapPort, options: &OpenOptions) -> Result<NetmapDevice, OpenError> {
    let device = port.to_string();
    let system = |call, errno| OpenError::System {
        device: device.clone(),
        call,
        errno,
    };
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open(c"/dev/netmap", flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NXIO | Errno::NODEV => OpenError::Missing {
            device: device.clone(),
            what: "the netmap kernel module is not loaded; `modprobe netmap` loads it where it is \
                   installed, and `packet:` and `xdp:` devices do without",
        },
        Errno::ACCESS | Errno::PERM => OpenError::Permission {
            device: device.clone(),
            needs: "opening /dev/netmap needs root or a `chmod` of it",
        },
        errno => system("open /dev/netmap", errno),
    })?;
    let fd = (options.keep)(fd);
    let bound = patiently(|| bind(&fd, port)).map_err(|errno| match errno {
        Errno::NXIO | Errno::NODEV => OpenError::NoInterface { device: device.clone() },
        Errno::BUSY => OpenError::Busy {
            device: device.clone(),
            holder: "another program has the same rings in netmap mode; stop it or name other rings",
        },
        Errno::PERM | Errno::ACCESS => OpenError::Permission {
            device: device.clone(),
            needs: "binding a netmap port needs CAP_NET_ADMIN",
        },
        Errno::INVAL if matches!(port.rings, NetmapRings::OneNic(_)) => OpenError::Queues {
            device: device.clone(),
            have: interface_queues(&port.port, options.keep),
            want: ring_number(port.rings) + 1,
        },
        errno => system("NIOCCTRL NETMAP_REQ_REGISTER", errno),
    })?;
    let vnet_hdr = options.offloads
        && port.is_vale()
        && set_port_hdr(fd.as_fd(), &kernel_name(port), VNET_HDR_LEN as u32).is_ok();
    let caps = capabilities(port, options, vnet_hdr, &device)?;
    let memsize = usize::try_from(bound.memsize).unwrap_or(0);
    let map = Mapping::of_fd(fd.as_fd(), memsize, 0).map_err(|errno| system("mmap", errno))?;
    let if_at = usize::try_from(bound.offset).unwrap_or(usize::MAX);
    let layout = |error: NewError| {
        let NewError::Layout(field) = error;
        OpenError::Layout {
            device: device.clone(),
            field,
        }
    };
    let region = Region::new(Arc::new(map), if_at).map_err(|bad| layout(bad.into()))?;
    NetmapDevice::new(&region, OtherSide::Kernel(fd), caps, vnet_hdr).map_err(layout)
}

/// Binds `fd` by the current interface, or by the one before for modules that do not know it.
fn bind(fd: &OwnedFd, port: &NetmapPort) -> Result<Register, Errno> {
    let (mode, ringid) = match port.rings {
        NetmapRings::AllNic | NetmapRings::PipeMaster(_) | NetmapRings::PipeSlave(_) => {
            (NR_REG_ALL_NIC, 0)
        }
        NetmapRings::OneNic(ring) => (NR_REG_ONE_NIC, ring),
        NetmapRings::Host => (NR_REG_SW, 0),
        NetmapRings::NicAndHost => (NR_REG_NIC_SW, 0),
    };
    let mut body = Register::new(mode, ringid);
    match register(fd.as_fd(), &kernel_name(port), &mut body) {
        // An older module does not know the call, or not the version in it.
        Err(Errno::NOTTY | Errno::INVAL) => {}
        result => return result.map(|()| body),
    }
    let (mode, ringid) = match port.rings {
        NetmapRings::PipeMaster(pipe) => (NR_REG_PIPE_MASTER, pipe),
        NetmapRings::PipeSlave(pipe) => (NR_REG_PIPE_SLAVE, pipe),
        _ => (mode, ringid),
    };
    let mut body = Register::new(mode, ringid);
    register_legacy(fd.as_fd(), &port.port, &mut body).map(|()| body)
}

/// The name as the module takes it: pipes are part of it, other ring suffixes are not.
fn kernel_name(port: &NetmapPort) -> String {
    match port.rings {
        NetmapRings::PipeMaster(pipe) => format!("{}{{{pipe}", port.port),
        NetmapRings::PipeSlave(pipe) => format!("{}}}{pipe}", port.port),
        _ => port.port.clone(),
    }
}

fn ring_number(rings: NetmapRings) -> u16 {
    match rings {
        NetmapRings::OneNic(ring) => ring,
        _ => 0,
    }
}

fn interface_queues(name: &str, keep: fn(OwnedFd) -> OwnedFd) -> u16 {
    Interface::named(name, keep).map_or(1, |interface| interface.queues())
}

fn capabilities(
    port: &NetmapPort,
    options: &OpenOptions,
    vnet_hdr: bool,
    device: &str,
) -> Result<Capabilities, OpenError> {
    let is_nic = !port.is_vale()
        && !matches!(
            port.rings,
            NetmapRings::PipeMaster(_) | NetmapRings::PipeSlave(_)
        );
    let interface = if is_nic {
        Interface::named(&port.port, options.keep).ok()
    } else {
        None
    };
    if let Some(interface) = &interface
        && interface.is_up() == Ok(false)
    {
        return Err(OpenError::LinkDown {
            device: device.into(),
        });
    }
    let mtu = match interface
        .as_ref()
        .and_then(|interface| interface.mtu().ok())
    {
        Some(mtu) => options.agreed_mtu(device, mtu)?,
        None => options.mtu.unwrap_or(MTU_DEFAULT),
    };
    let mac = interface
        .as_ref()
        .and_then(|i| i.mac().ok())
        .unwrap_or_else(|| made_up_mac(device));
    // A veth's neighbour leaves checksums to hardware that is not there.
    let is_veth = interface
        .as_ref()
        .is_some_and(|interface| interface.driver() == "veth");
    let wire_len = mtu + ETHERNET_HEADER_LEN;
    Ok(Capabilities {
        mtu,
        max_frame_len: if vnet_hdr {
            GSO_TRANSMIT_LEN_MAX
        } else {
            wire_len
        },
        mac,
        tx_checksum: vnet_hdr,
        rx_checksum: match (vnet_hdr, is_veth) {
            (true, _) => RxChecksum::PerFrame,
            (false, true) => RxChecksum::MaybePartial,
            (false, false) => RxChecksum::Unverified,
        },
        tx_gso: if vnet_hdr {
            GsoSet::ALL
        } else {
            GsoSet::default()
        },
        rx_gro: vnet_hdr,
        tx_slots: 0,
        forwards: false,
    })
}

/// A locally administered address for a port that has none, the same for the same name.
fn made_up_mac(name: &str) -> MacAddr {
    // FNV-1a.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    [0x02, a, b, c, d, e]
}
