//! Options that tie a socket to an interface: SO_BINDTODEVICE and SO_BINDTOIFINDEX, and for what a UDP
//! socket sends to groups IP_MULTICAST_IF and IPV6_MULTICAST_IF.

use kcm_stack::{IfaceId, UdpId};

use super::cells::{self, EngineGuard};
use super::engine::Engine;
use super::socket::State;
use super::steer;
use super::udp::groups::{Place, owner, place_of};
use super::udp::ports;
use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::kcm::options::{put_bytes, put_int};
use crate::user_mem::{self, UserPtr};
use crate::values;

/// By number (linux/asm-generic/socket.h).
const SO_BINDTOIFINDEX: i32 = 62;

const BY_NAME: (i32, i32) = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
const BY_NUMBER: (i32, i32) = (libc::SOL_SOCKET, SO_BINDTOIFINDEX);
const GROUPS_V4: (i32, i32) = (libc::IPPROTO_IP, libc::IP_MULTICAST_IF);
const GROUPS_V6: (i32, i32) = (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF);

/// What SO_BINDTODEVICE or SO_BINDTOIFINDEX asks for.
enum Wanted {
    Any,
    One(IfaceId),
    /// A device of the kernel's, or none at all.
    Stranger,
}

fn wanted(option: (i32, i32), value: UserPtr, length: u32) -> Outcome<Wanted> {
    let found = if option == BY_NAME {
        let mut room = [0; steer::NAME_BYTES - 1];
        let name = values::text(user_mem::value(value, length, 0, &mut room)?);
        if name.is_empty() {
            return Ok(Wanted::Any);
        }
        steer::named(name)
    } else {
        match user_mem::int_value(value, length)? {
            0 => return Ok(Wanted::Any),
            number => steer::numbered(number as u32),
        }
    };
    Ok(found.map_or(Wanted::Stranger, Wanted::One))
}

/// Whether the option would tie the socket to a device that is none of the stack's.
pub(super) fn names_stranger(option: (i32, i32), value: UserPtr, length: u32) -> Outcome<bool> {
    match option {
        BY_NAME | BY_NUMBER => Ok(matches!(wanted(option, value, length)?, Wanted::Stranger)),
        _ => Ok(false),
    }
}

fn udp(engine: &mut Engine, file: &File) -> Outcome<Option<UdpId>> {
    Ok(match engine.socket(file)?.state {
        State::Udp(id) => Some(id),
        _ => None,
    })
}

/// getsockopt(2); `None` for any other option.
pub(super) fn get(
    engine: &mut EngineGuard,
    file: &File,
    option: (i32, i32),
    value: UserPtr,
    length: UserPtr,
) -> Outcome<Option<i32>> {
    let id = udp(engine, file)?;
    let settings = &engine.socket(file)?.settings;
    let (device, address) = (settings.device, settings.multicast_address);
    let done = match (option, id) {
        (BY_NAME, _) => {
            let Some(name) = device.and_then(steer::name) else {
                return put_bytes(&[], value, length).map(Some);
            };
            if user_mem::copy_in::<i32>(length)? < steer::NAME_BYTES as i32 {
                return Err(Errno::EINVAL.into());
            }
            let mut name = name.into_bytes();
            name.push(0);
            put_bytes(&name, value, length)
        }
        (BY_NUMBER, _) => put_int(device.map_or(0, steer::number) as i32, value, length),
        (GROUPS_V4, Some(_)) => put_bytes(&address, value, length),
        (GROUPS_V6, Some(id)) => {
            let iface = engine.stack.udp_opts(id).and_then(|o| o.multicast_iface);
            put_int(iface.map_or(0, steer::number) as i32, value, length)
        }
        _ => return Ok(None),
    };
    done.map(Some)
}

/// setsockopt(2); `None` for any other option. A device that is none of the stack's has been refused.
pub(super) fn set(
    file: &'static File,
    option: (i32, i32),
    value: UserPtr,
    length: u32,
) -> Outcome<Option<i32>> {
    match option {
        BY_NAME | BY_NUMBER => {
            let device = match wanted(option, value, length)? {
                Wanted::One(iface) => Some(iface),
                Wanted::Any | Wanted::Stranger => None,
            };
            let mut engine = cells::lock(file)?;
            engine.socket(file)?.settings.device = device;
            if let Some(id) = udp(&mut engine, file)?
                && let Some(mut opts) = engine.stack.udp_opts(id).cloned()
            {
                opts.iface = device;
                let _ = engine.stack.udp_set_opts(id, opts);
            }
            drop(engine);
            ports::changed(file);
            Ok(Some(0))
        }
        GROUPS_V4 | GROUPS_V6 => {
            {
                let mut engine = cells::lock(file)?;
                if udp(&mut engine, file)?.is_none() {
                    return Ok(None);
                }
            }
            let (iface, address) = match option {
                GROUPS_V4 => by_request(value, length)?,
                _ => {
                    let number = user_mem::int_value(value, length)? as u32;
                    (steer::numbered_or_any(number)?, None)
                }
            };
            let mut engine = cells::lock(file)?;
            let Some(id) = udp(&mut engine, file)? else {
                return Ok(None);
            };
            let mut opts = engine.stack.udp_opts(id).cloned().ok_or(Errno::EBADF)?;
            opts.multicast_iface = iface;
            let _ = engine.stack.udp_set_opts(id, opts);
            if let Some(address) = address {
                engine.socket(file)?.settings.multicast_address = address;
            }
            Ok(Some(0))
        }
        _ => Ok(None),
    }
}

/// The interface that a value of IP_MULTICAST_IF names.
pub(super) fn named_place(value: &[u8]) -> Place {
    let address = |at| value.get(at..)?.first_chunk::<4>().copied();
    let (address, number) = match value.len() {
        12.. => (address(4), address(8).map_or(0, u32::from_ne_bytes)),
        8.. => (address(4), 0),
        _ => (address(0), 0),
    };
    match (number, address) {
        (_, None) => Place::Elsewhere,
        (0, Some(address)) => place_of(address.into()),
        _ => steer::numbered(number).map_or(Place::Elsewhere, Place::Here),
    }
}

/// `struct in_addr`, `struct ip_mreq` or `struct ip_mreqn`: the interface, and the address that named it.
fn by_request(value: UserPtr, length: u32) -> Outcome<(Option<IfaceId>, Option<[u8; 4]>)> {
    let (address, number) = match length as i32 {
        12.. => {
            let [_, address, number] = user_mem::copy_in::<[[u8; 4]; 3]>(value)?;
            (address, u32::from_ne_bytes(number))
        }
        8.. => (user_mem::copy_in::<[[u8; 4]; 2]>(value)?[1], 0),
        4.. => (user_mem::copy_in::<[u8; 4]>(value)?, 0),
        _ => return Err(Errno::EINVAL.into()),
    };
    let iface = match (number, address) {
        (0, [0, 0, 0, 0]) => None,
        (0, _) => Some(owner(address.into()).ok_or(Errno::EADDRNOTAVAIL)?),
        _ => Some(steer::numbered(number).ok_or(Errno::EADDRNOTAVAIL)?),
    };
    Ok((iface, Some(address)))
}
