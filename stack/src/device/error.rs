//! Everything that can go wrong with a device, each with one sentence that says what to do.

use super::GsoKind;
use core::fmt;
use rustix::io::Errno;

/// Why a device could not be opened. `Display` is one sentence with the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenError {
    /// The name does not parse.
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        why: NameError,
    },
    /// The interface does not exist in this network namespace.
    NoInterface {
        /// The device name.
        device: String,
    },
    /// A right is missing.
    Permission {
        /// The device name.
        device: String,
        /// What was refused, and what would allow it.
        needs: &'static str,
    },
    /// The kernel lacks a module or an option.
    Missing {
        /// The device name.
        device: String,
        /// What is missing, and how to get it.
        what: &'static str,
    },
    /// The interface is administratively down.
    LinkDown {
        /// The device name.
        device: String,
    },
    /// The interface's MTU is not the configured one.
    Mtu {
        /// The device name.
        device: String,
        /// MTU of the interface, in bytes.
        have: usize,
        /// Configured MTU, in bytes.
        want: usize,
    },
    /// The interface's frames are too long for the device.
    MtuTooLarge {
        /// The device name.
        device: String,
        /// MTU of the interface, in bytes.
        have: usize,
        /// Largest the device can serve.
        max: usize,
    },
    /// More queues were asked for than the interface has.
    Queues {
        /// The device name.
        device: String,
        /// Queues of the interface.
        have: u16,
        /// Queues asked for.
        want: u16,
    },
    /// The interface spreads frames over more queues than are read.
    SurplusQueues {
        /// The device name.
        device: String,
        /// Queues of the interface.
        have: u16,
        /// Most it may have.
        most: u16,
    },
    /// Someone else holds the device, or the part of it that was asked for.
    Busy {
        /// The device name.
        device: String,
        /// Who can hold it, and how to make it free.
        holder: &'static str,
    },
    /// The kernel's shared memory does not have the promised shape.
    Layout {
        /// The device name.
        device: String,
        /// Which field.
        field: &'static str,
    },
    /// A system call failed in a way none of the above describes.
    System {
        /// The device name.
        device: String,
        /// The call, with its distinguishing argument.
        call: &'static str,
        /// What it returned.
        errno: Errno,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { name, why } => write!(f, "device name `{name}`: {why}"),
            Self::NoInterface { device } => write!(
                f,
                "{device}: this network namespace has no such interface; `ip link` lists those it has"
            ),
            Self::Permission { device, needs } => write!(f, "{device}: permission denied, {needs}"),
            Self::Missing { device, what } => write!(f, "{device}: {what}"),
            Self::LinkDown { device } => write!(
                f,
                "{device}: the interface is down; `ip link set {} up` brings it up",
                interface_of(device)
            ),
            Self::Mtu { device, have, want } => write!(
                f,
                "{device}: the interface's MTU is {have}, the configuration says {want}; \
                 `ip link set {} mtu {want}` or a configured mtu of {have} makes them agree",
                interface_of(device)
            ),
            Self::MtuTooLarge { device, have, max } => write!(
                f,
                "{device}: the interface's MTU is {have} and this kind of device takes at most {max}; \
                 `ip link set {} mtu {max}` lowers it, `packet:` takes any",
                interface_of(device)
            ),
            Self::Queues { device, have, want } => write!(
                f,
                "{device}: {want} queues asked for, the interface has {have}; ask for at most {have}, \
                 or add some with `ethtool -L`"
            ),
            Self::SurplusQueues { device, have, most } => write!(
                f,
                "{device}: frames come by any of the interface's {have} queues; \
                 `ethtool -L {} combined {most}` leaves as many as are read",
                interface_of(device)
            ),
            Self::Busy { device, holder } => write!(f, "{device}: already in use, {holder}"),
            Self::Layout { device, field } => write!(
                f,
                "{device}: the kernel's shared memory has an impossible {field}; \
                 the module and this library disagree about the netmap or packet ABI, update the older"
            ),
            Self::System {
                device,
                call,
                errno,
            } => {
                write!(f, "{device}: {call} failed: {}", describe(*errno))
            }
        }
    }
}

impl core::error::Error for OpenError {}

/// The part of a device name between the colon and any ring suffix, for use in a command line.
fn interface_of(device: &str) -> &str {
    let port = device.split_once(':').map_or(device, |(_, port)| port);
    port.trim_end_matches(['*', '+', '^'])
}

/// What is wrong with a device name. `Display` completes a sentence that began with the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameError {
    /// There is no `kind:` prefix.
    NoKind,
    /// The prefix is none of the known ones.
    UnknownKind(String),
    /// Nothing follows the prefix.
    NoPort,
    /// The interface name is too long, in bytes.
    TooLong {
        /// Longest allowed.
        max: usize,
    },
    /// The interface name has a character no interface can have.
    BadCharacter(char),
    /// A ring or pipe suffix has no number.
    NoRing(char),
    /// A ring or pipe number is too large.
    RingTooLarge,
    /// Something follows a `*`, `+` or a number.
    Trailing(String),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KINDS: &str =
            "netmap:IF, valeX:PORT, packet:IF, xdp:IF, tap:NAME or mem:NAME, as in `packet:eth0`";
        match self {
            Self::NoKind => write!(f, "no kind of device before a colon; write {KINDS}"),
            Self::UnknownKind(kind) => {
                write!(
                    f,
                    "there is no kind of device called `{kind}`; write {KINDS}"
                )
            }
            Self::NoPort => {
                write!(
                    f,
                    "no interface after the colon; add one, `ip link` lists them"
                )
            }
            Self::TooLong { max } => {
                write!(
                    f,
                    "the interface name is too long; the kernel allows {max} bytes"
                )
            }
            Self::BadCharacter(c) => write!(
                f,
                "{c:?} cannot be part of an interface name; use the name `ip link` shows"
            ),
            Self::NoRing(c) => write!(
                f,
                "no ring number after `{c}`; write for instance `eth0-0` for a ring, `p{{1` or `p}}1` \
                 for the ends of a pipe"
            ),
            Self::RingTooLarge => write!(
                f,
                "the ring number is too large; the largest netmap knows is {}",
                super::name::RING_MAX
            ),
            Self::Trailing(text) => write!(
                f,
                "`{text}` follows the ring suffix; end the name after `*`, `+`, `^` or the number"
            ),
        }
    }
}

impl core::error::Error for NameError {}

/// Why an open device cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceError {
    /// The link is down; the device works again when it comes back.
    LinkDown,
    /// The interface is gone (unplugged, deleted, moved away); the device never works again.
    Gone,
    /// The shared memory contradicts itself; the device is not used further.
    Corrupt(&'static str),
    /// A system call failed otherwise.
    System {
        /// The call.
        call: &'static str,
        /// What it returned.
        errno: Errno,
    },
}

impl DeviceError {
    /// Sorts what a packet system call returned.
    pub(super) fn of(call: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::NETDOWN => Self::LinkDown,
            Errno::NODEV | Errno::NXIO | Errno::BADFD => Self::Gone,
            errno => Self::System { call, errno },
        }
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkDown => write!(
                f,
                "the interface is down; bring it up with `ip link set IF up`"
            ),
            Self::Gone => write!(
                f,
                "the interface is gone; recreate it and restart the program"
            ),
            Self::Corrupt(what) => {
                write!(
                    f,
                    "the other side of the shared ring wrote an impossible {what}; reopen the device"
                )
            }
            Self::System { call, errno } => write!(f, "{call} failed: {}", describe(*errno)),
        }
    }
}

impl core::error::Error for DeviceError {}

/// Why a frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransmitError {
    /// The transmit ring is full; kick and try later.
    Full,
    /// The frame is shorter than an Ethernet header or longer than the device takes, in bytes.
    BadLength {
        /// Length of the frame.
        len: usize,
        /// Longest the device takes with this offload state.
        max: usize,
    },
    /// The device does not segment frames of this kind.
    NoGso(GsoKind),
    /// The device cannot go on.
    Device(DeviceError),
}

impl From<DeviceError> for TransmitError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl fmt::Display for TransmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(
                f,
                "the transmit ring is full; kick the device and try later"
            ),
            Self::BadLength { len, max } => {
                write!(f, "a frame of {len} bytes; the device takes 14 to {max}")
            }
            Self::NoGso(kind) => {
                write!(
                    f,
                    "the device does not segment {kind:?}; segment before transmit"
                )
            }
            Self::Device(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for TransmitError {}

/// The error's text and number; `Errno`'s own `Display` needs the C library.
fn describe(errno: Errno) -> String {
    let text = match errno {
        Errno::PERM => "operation not permitted",
        Errno::ACCESS => "access denied",
        Errno::NOMEM => "out of memory",
        Errno::NOBUFS => "out of buffer space",
        Errno::INVAL => "invalid argument",
        Errno::OPNOTSUPP => "not supported by this interface",
        Errno::NOPROTOOPT => "not supported by this kernel",
        Errno::BUSY => "busy",
        Errno::MFILE => "too many open descriptors",
        Errno::NFILE => "too many open files in the system",
        _ => "unexpected error",
    };
    format!("{text} (errno {})", errno.raw_os_error())
}
