//! What an interface is like: netdevice(7) ioctls by name.

use super::super::{BorrowedFd, MacAddr};
use core::ffi::c_void;
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

const IFNAMSIZ: usize = 16;
const SIOCGIFINDEX: Opcode = 0x8933;
const SIOCGIFFLAGS: Opcode = 0x8913;
const SIOCSIFFLAGS: Opcode = 0x8914;
const SIOCGIFMTU: Opcode = 0x8921;
const SIOCGIFHWADDR: Opcode = 0x8927;
const SIOCETHTOOL: Opcode = 0x8946;
const IFF_UP: u16 = 1;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `struct ifreq` (linux/if.h): a name and a union of 24 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct IfReq {
    name: [u8; IFNAMSIZ],
    pub(super) value: [u8; 24],
}
const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());
const _: () = assert!(align_of::<IfReq>() == align_of::<libc::ifreq>());

impl IfReq {
    /// `None` when the name has no room for its terminator.
    pub(super) fn new(name: &str) -> Option<Self> {
        let mut request = Self {
            name: [0; IFNAMSIZ],
            value: [0; 24],
        };
        let room = request.name.get_mut(..name.len())?;
        room.copy_from_slice(name.as_bytes());
        (name.len() < IFNAMSIZ).then_some(request)
    }
}

/// An ioctl that reads and writes an [`IfReq`].
pub(super) struct IfReqIoctl<'a> {
    pub(super) opcode: Opcode,
    pub(super) request: &'a mut IfReq,
}

// SAFETY: for every opcode this type is made with, the kernel reads and writes one `struct ifreq`.
// `SIOCETHTOOL` also follows `ifr_data`, which its only user points at a buffer of the right size.
unsafe impl Ioctl for IfReqIoctl<'_> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        core::ptr::from_mut(self.request).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// An interface of this network namespace, by name.
pub(in crate::device) struct Interface {
    control: OwnedFd,
    request: IfReq,
}

impl Interface {
    /// Names an interface; it need not exist. `keep` as in [`OpenOptions`](super::super::OpenOptions).
    pub(in crate::device) fn named(
        name: &str,
        keep: fn(OwnedFd) -> OwnedFd,
    ) -> Result<Self, Errno> {
        let control = socket_with(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self {
            control: keep(control),
            request: IfReq::new(name).ok_or(Errno::NODEV)?,
        })
    }

    fn ask(&self, opcode: Opcode) -> Result<[u8; 24], Errno> {
        let mut request = self.request;
        self.call(opcode, &mut request)?;
        Ok(request.value)
    }

    fn call(&self, opcode: Opcode, request: &mut IfReq) -> Result<(), Errno> {
        let control: BorrowedFd<'_> = self.control.as_fd();
        // SAFETY: `IfReqIoctl` describes all opcodes used in this file.
        unsafe { ioctl(control, IfReqIoctl { opcode, request }) }
    }

    /// SIOCGIFINDEX; `ENODEV` when there is no such interface.
    pub(in crate::device) fn index(&self) -> Result<u32, Errno> {
        self.ask(SIOCGIFINDEX)
            .map(|v| u32::from_ne_bytes([v[0], v[1], v[2], v[3]]))
    }

    /// SIOCGIFMTU, in bytes.
    pub(in crate::device) fn mtu(&self) -> Result<usize, Errno> {
        self.ask(SIOCGIFMTU)
            .map(|v| u32::from_ne_bytes([v[0], v[1], v[2], v[3]]) as usize)
    }

    /// SIOCGIFHWADDR: family, then the address.
    pub(in crate::device) fn mac(&self) -> Result<MacAddr, Errno> {
        self.ask(SIOCGIFHWADDR)
            .map(|v| [v[2], v[3], v[4], v[5], v[6], v[7]])
    }

    /// SIOCGIFFLAGS: whether the interface is administratively up.
    pub(in crate::device) fn is_up(&self) -> Result<bool, Errno> {
        self.ask(SIOCGIFFLAGS)
            .map(|v| u16::from_ne_bytes([v[0], v[1]]) & IFF_UP != 0)
    }

    /// SIOCSIFFLAGS: brings the interface up.
    pub(in crate::device) fn set_up(&self) -> Result<(), Errno> {
        let value = self.ask(SIOCGIFFLAGS)?;
        let flags = u16::from_ne_bytes([value[0], value[1]]) | IFF_UP;
        let mut request = self.request;
        request.value[..2].copy_from_slice(&flags.to_ne_bytes());
        self.call(SIOCSIFFLAGS, &mut request)
    }

    /// ETHTOOL_GCHANNELS: receive queues the driver has now; 1 where it does not say.
    pub(in crate::device) fn queues(&self) -> u16 {
        // struct ethtool_channels: cmd, four maxima, then rx, tx, other and combined counts.
        let mut channels = [0u32; 9];
        channels[0] = ETHTOOL_GCHANNELS;
        if self.ethtool(&mut channels).is_err() {
            return 1;
        }
        u16::try_from(channels[5].saturating_add(channels[8]))
            .unwrap_or(u16::MAX)
            .max(1)
    }

    /// ETHTOOL_GDRVINFO: the driver's name; empty where it does not say.
    pub(in crate::device) fn driver(&self) -> String {
        // struct ethtool_drvinfo: cmd, then 32 bytes of driver name, 196 bytes in all.
        let mut info = [0u32; 49];
        info[0] = ETHTOOL_GDRVINFO;
        if self.ethtool(&mut info).is_err() {
            return String::new();
        }
        info[1..9]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .take_while(|byte| *byte != 0)
            .map(char::from)
            .collect()
    }

    /// SIOCETHTOOL with a command whose structure `buffer` holds.
    fn ethtool<const N: usize>(&self, buffer: &mut [u32; N]) -> Result<(), Errno> {
        let mut request = self.request;
        let address = core::ptr::from_mut(buffer) as usize;
        request.value[..size_of::<usize>()].copy_from_slice(&address.to_ne_bytes());
        self.call(SIOCETHTOOL, &mut request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::convert::identity;

    #[test]
    fn loopback_has_what_every_loopback_has() {
        let lo = Interface::named("lo", identity).unwrap();
        assert_eq!(lo.index(), Ok(1));
        assert_eq!(lo.mac(), Ok([0; 6]));
        assert!(lo.mtu().unwrap() >= 1500);
        assert_eq!(lo.queues(), 1);
    }

    #[test]
    fn missing_interface_is_enodev() {
        let none = Interface::named("kcm-none", identity).unwrap();
        assert_eq!(none.index(), Err(Errno::NODEV));
        assert!(Interface::named("sixteen-bytes-xx", identity).is_err());
    }
}
