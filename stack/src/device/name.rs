//! Device names, written as netmap users write them.
//!
//! | name | device |
//! |---|---|
//! | `netmap:eth0` | all rings of the NIC |
//! | `netmap:eth0-2` | ring pair 2 |
//! | `netmap:eth0^` | the host rings |
//! | `netmap:eth0*` or `netmap:eth0+` | NIC and host rings |
//! | `netmap:p{1`, `netmap:p}1` | the two ends of pipe 1 |
//! | `vale0:a` | port `a` of the VALE switch `vale0`; ring suffixes as above |
//! | `packet:veth0` | `AF_PACKET` on an interface |
//! | `xdp:veth0` | `AF_XDP` on an interface |
//! | `tap:kcm0` | a TAP interface, created when it does not exist |
//! | `mem:` | memory: what is sent is received |
//! | `mem:x` | memory shared with the other process that opens `mem:x` |

use super::error::NameError;
use core::{fmt, str::FromStr};

/// Longest interface name in bytes (`IFNAMSIZ` - 1, linux/if.h).
const IF_NAME_LEN_MAX: usize = 15;

/// Longest netmap port name in bytes without its ring suffix: `NETMAP_REQ_IFNAMSIZ` (64) less the
/// terminator and the longest suffix (`{4095`).
const PORT_NAME_LEN_MAX: usize = 58;

/// Largest ring or pipe number (`NETMAP_RING_MASK`, net/netmap_legacy.h).
pub(super) const RING_MAX: u16 = 0xfff;

/// A parsed device name. `Display` gives the name back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceName {
    /// A netmap port: NIC, host rings, pipe end or VALE port.
    Netmap(NetmapPort),
    /// An interface through `AF_PACKET`.
    Packet(IfName),
    /// An interface through `AF_XDP`.
    Xdp(IfName),
    /// A TAP interface.
    Tap(IfName),
    /// A memory device that receives what it sends.
    Memory,
    /// One end of a memory device that two processes share.
    SharedMemory(IfName),
}

/// A valid interface name: 1 to 15 bytes, no slash, colon or white space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IfName(String);

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A netmap port and the rings of it that are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetmapPort {
    /// Port name without ring suffix: `eth0`, `p`, or `vale0:a`.
    pub port: String,
    /// Which rings.
    pub rings: NetmapRings,
}

/// Rings of a netmap port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetmapRings {
    /// Every NIC ring pair.
    AllNic,
    /// One NIC ring pair.
    OneNic(u16),
    /// The host rings: what the kernel's own stack sends and receives.
    Host,
    /// NIC and host rings, so that frames can pass between them.
    NicAndHost,
    /// The master end of a pipe.
    PipeMaster(u16),
    /// The slave end of a pipe.
    PipeSlave(u16),
}

impl FromStr for DeviceName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let (kind, port) = name.split_once(':').ok_or(NameError::NoKind)?;
        if port.is_empty() && kind != "mem" {
            return Err(NameError::NoPort);
        }
        match kind {
            "packet" => if_name(port).map(Self::Packet),
            "xdp" => if_name(port).map(Self::Xdp),
            "tap" => if_name(port).map(Self::Tap),
            "netmap" => netmap_port("", port).map(Self::Netmap),
            "mem" if port.is_empty() => Ok(Self::Memory),
            "mem" => if_name(port).map(Self::SharedMemory),
            vale if vale.strip_prefix("vale").is_some_and(is_switch_suffix) => {
                netmap_port(&name[..=kind.len()], port).map(Self::Netmap)
            }
            other => Err(NameError::UnknownKind(other.into())),
        }
    }
}

/// What may follow `vale` in a switch's name: nothing, digits, or letters and underscores as well.
fn is_switch_suffix(suffix: &str) -> bool {
    suffix
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn if_name(name: &str) -> Result<IfName, NameError> {
    check_name(name, IF_NAME_LEN_MAX)?;
    Ok(IfName(name.into()))
}

fn check_name(name: &str, max: usize) -> Result<(), NameError> {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() {
        return Err(NameError::NoPort);
    }
    if let Some(c) = name.chars().find(|c| forbidden(*c)) {
        return Err(NameError::BadCharacter(c));
    }
    if name == "." || name == ".." {
        return Err(NameError::BadCharacter('.'));
    }
    if name.len() > max {
        Err(NameError::TooLong { max })
    } else {
        Ok(())
    }
}

/// Parses `port` and its ring suffix; `prefix` is the switch of a VALE port with its colon.
fn netmap_port(prefix: &str, port: &str) -> Result<NetmapPort, NameError> {
    let (base, rings) = ring_suffix(port)?;
    // A NIC has an interface's name; ports of switches and pipes are names of netmap's own.
    let is_nic = prefix.is_empty()
        && !matches!(
            rings,
            NetmapRings::PipeMaster(_) | NetmapRings::PipeSlave(_)
        );
    check_name(
        base,
        if is_nic {
            IF_NAME_LEN_MAX
        } else {
            PORT_NAME_LEN_MAX - prefix.len().min(32)
        },
    )?;
    Ok(NetmapPort {
        port: format!("{prefix}{base}"),
        rings,
    })
}

fn ring_suffix(port: &str) -> Result<(&str, NetmapRings), NameError> {
    if let Some(at) = port.find(['*', '+', '^']) {
        let (base, suffix) = port.split_at(at);
        let (sign, rest) = suffix.split_at(1);
        let rings = if sign == "^" {
            NetmapRings::Host
        } else {
            NetmapRings::NicAndHost
        };
        return if rest.is_empty() {
            Ok((base, rings))
        } else {
            Err(NameError::Trailing(rest.into()))
        };
    }
    if let Some((base, number)) = port.split_once('{') {
        return Ok((base, NetmapRings::PipeMaster(ring_number('{', number)?)));
    }
    if let Some((base, number)) = port.split_once('}') {
        return Ok((base, NetmapRings::PipeSlave(ring_number('}', number)?)));
    }
    // Interfaces may have dashes of their own (br-lan): only a number, or nothing, makes it a ring.
    match port.rsplit_once('-') {
        Some((_, "")) => Err(NameError::NoRing('-')),
        Some((base, digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Ok((base, NetmapRings::OneNic(ring_number('-', digits)?)))
        }
        _ => Ok((port, NetmapRings::AllNic)),
    }
}

fn ring_number(sign: char, text: &str) -> Result<u16, NameError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    if number.is_empty() {
        return Err(NameError::NoRing(sign));
    }
    if !rest.is_empty() {
        return Err(NameError::Trailing(rest.into()));
    }
    match number.parse() {
        Ok(ring) if ring <= RING_MAX => Ok(ring),
        _ => Err(NameError::RingTooLarge),
    }
}

impl NetmapPort {
    /// Whether the port belongs to a VALE switch.
    pub fn is_vale(&self) -> bool {
        self.port.contains(':')
    }
}

impl fmt::Display for NetmapPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_vale() { "" } else { "netmap:" };
        write!(f, "{kind}{}", self.port)?;
        match self.rings {
            NetmapRings::AllNic => Ok(()),
            NetmapRings::OneNic(ring) => write!(f, "-{ring}"),
            NetmapRings::Host => write!(f, "^"),
            NetmapRings::NicAndHost => write!(f, "*"),
            NetmapRings::PipeMaster(pipe) => write!(f, "{{{pipe}"),
            NetmapRings::PipeSlave(pipe) => write!(f, "}}{pipe}"),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netmap(port) => port.fmt(f),
            Self::Packet(name) => write!(f, "packet:{}", name.0),
            Self::Xdp(name) => write!(f, "xdp:{}", name.0),
            Self::Tap(name) => write!(f, "tap:{}", name.0),
            Self::Memory => write!(f, "mem:"),
            Self::SharedMemory(name) => write!(f, "mem:{}", name.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn netmap(port: &str, rings: NetmapRings) -> DeviceName {
        DeviceName::Netmap(NetmapPort {
            port: port.into(),
            rings,
        })
    }

    #[test]
    fn every_form_parses_and_prints_back() {
        let packet = |name: &str| IfName(name.into());
        let table = [
            ("netmap:eth0", netmap("eth0", NetmapRings::AllNic)),
            ("netmap:eth0-2", netmap("eth0", NetmapRings::OneNic(2))),
            ("netmap:br-lan", netmap("br-lan", NetmapRings::AllNic)),
            ("netmap:br-lan-0", netmap("br-lan", NetmapRings::OneNic(0))),
            ("netmap:eth0*", netmap("eth0", NetmapRings::NicAndHost)),
            ("netmap:eth0^", netmap("eth0", NetmapRings::Host)),
            ("netmap:p{1", netmap("p", NetmapRings::PipeMaster(1))),
            ("netmap:p}1", netmap("p", NetmapRings::PipeSlave(1))),
            ("netmap:p}4095", netmap("p", NetmapRings::PipeSlave(4095))),
            ("vale0:a", netmap("vale0:a", NetmapRings::AllNic)),
            ("vale:a", netmap("vale:a", NetmapRings::AllNic)),
            (
                "valeX_1:a{3",
                netmap("valeX_1:a", NetmapRings::PipeMaster(3)),
            ),
            ("packet:veth0", DeviceName::Packet(packet("veth0"))),
            ("xdp:veth0", DeviceName::Xdp(packet("veth0"))),
            ("tap:kcm0", DeviceName::Tap(packet("kcm0"))),
            ("mem:", DeviceName::Memory),
            ("mem:x", DeviceName::SharedMemory(packet("x"))),
        ];
        for (text, parsed) in table {
            assert_eq!(text.parse(), Ok(parsed.clone()), "{text}");
            assert_eq!(parsed.to_string(), text);
        }
        assert_eq!(
            "netmap:eth0+".parse(),
            Ok(netmap("eth0", NetmapRings::NicAndHost))
        );
    }

    #[test]
    fn every_bad_name_has_its_reason_and_one_sentence() {
        let table = [
            ("eth0", NameError::NoKind),
            ("", NameError::NoKind),
            ("pkt:eth0", NameError::UnknownKind("pkt".into())),
            (":eth0", NameError::UnknownKind(String::new())),
            ("vale-0:a", NameError::UnknownKind("vale-0".into())),
            ("packet:", NameError::NoPort),
            ("netmap:", NameError::NoPort),
            ("netmap:{1", NameError::NoPort),
            ("netmap:*", NameError::NoPort),
            ("vale0:", NameError::NoPort),
            ("packet:abcdefghijklmnop", NameError::TooLong { max: 15 }),
            ("netmap:abcdefghijklmnop-1", NameError::TooLong { max: 15 }),
            ("packet:et h0", NameError::BadCharacter(' ')),
            ("xdp:a/b", NameError::BadCharacter('/')),
            ("tap:a\0b", NameError::BadCharacter('\0')),
            ("tap:..", NameError::BadCharacter('.')),
            ("vale0:a:b", NameError::BadCharacter(':')),
            ("netmap:eth0-", NameError::NoRing('-')),
            ("netmap:p{", NameError::NoRing('{')),
            ("netmap:p}x", NameError::NoRing('}')),
            ("netmap:eth0-4096", NameError::RingTooLarge),
            ("netmap:p{99999999999999999999", NameError::RingTooLarge),
            ("netmap:p{1x", NameError::Trailing("x".into())),
            ("netmap:p{1}2", NameError::Trailing("}2".into())),
            ("netmap:eth0^3", NameError::Trailing("3".into())),
            ("netmap:eth0*^", NameError::Trailing("^".into())),
            ("mem:a/b", NameError::BadCharacter('/')),
        ];
        for (text, why) in table {
            assert_eq!(text.parse::<DeviceName>(), Err(why.clone()), "{text}");
            let sentence = why.to_string();
            assert!(
                !sentence.contains('\n') && !sentence.contains("  "),
                "{sentence}"
            );
            assert!(sentence.len() > 20, "{sentence}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_and_what_parses_prints_back(text in "\\PC{0,40}") {
            if let Ok(name) = text.parse::<DeviceName>() {
                prop_assert_eq!(name.to_string().parse::<DeviceName>(), Ok(name));
            }
        }

        #[test]
        fn anything_after_a_known_kind_is_handled(port in "[a-z0-9{}*^+:/-]{0,24}") {
            for kind in ["netmap:", "vale1:", "packet:"] {
                if let Ok(name) = format!("{kind}{port}").parse::<DeviceName>() {
                    prop_assert_eq!(name.to_string().parse::<DeviceName>(), Ok(name));
                }
            }
        }
    }
}
