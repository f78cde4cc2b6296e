//! Helper calls.

use alloc::borrow::Cow;

use super::{Fault, Machine};
use crate::bpf::helper::{Helper, SOCKET_COOKIE, SOCKET_UID};
use crate::bpf::map::{Map, MapError};
use crate::bpf::mem::{self, Place, Region};
use crate::bpf::skb::Packet;

impl<'a, P: Packet + ?Sized, const STACK: usize, const FRAMES: usize>
    Machine<'a, P, STACK, FRAMES>
{
    /// Calls a helper with r1 to r5; its result is the new r0.
    pub(super) fn helper(&mut self, number: i64) -> Result<u64, Fault> {
        let helper = Helper::from_number(number).ok_or(Fault::BadArgument)?;
        Ok(match helper {
            Helper::MapLookupElem => {
                let (index, map) = self.map_argument()?;
                let key = self.bytes_at(self.reg(2), map.key_bytes())?;
                map.find(&key)
                    .map_or(0, |elem| mem::value_addr(index, map, elem, 0))
            }
            Helper::MapUpdateElem => {
                let (_, map) = self.map_argument()?;
                let key = self.bytes_at(self.reg(2), map.key_bytes())?;
                let value = self.bytes_at(self.reg(3), map.value_bytes())?;
                if !map.prog_may_write() {
                    return Err(Fault::MapAccess);
                }
                status(map.update(&key, &value, self.reg(4)))
            }
            Helper::MapDeleteElem => {
                let (_, map) = self.map_argument()?;
                let key = self.bytes_at(self.reg(2), map.key_bytes())?;
                if !map.prog_may_write() {
                    return Err(Fault::MapAccess);
                }
                status(map.delete(&key))
            }
            Helper::KtimeGetNs | Helper::KtimeGetCoarseNs => self.env.now_ns,
            Helper::KtimeGetBootNs => self.env.boot_ns,
            Helper::GetSmpProcessorId => u64::from(self.env.cpu),
            Helper::GetPrandomU32 => {
                // splitmix64: equidistributed from any seed, one multiply chain per number.
                self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                mixed >> 32
            }
            Helper::GetSocketCookie => SOCKET_COOKIE,
            Helper::GetSocketUid => SOCKET_UID,
            Helper::SkbLoadBytes => self.skb_load_bytes(false)?,
            Helper::SkbLoadBytesRelative => self.skb_load_bytes(true)?,
        })
    }

    /// r1 as a map of the program.
    fn map_argument(&self) -> Result<(usize, &'a Map), Fault> {
        match mem::place(self.reg(1)) {
            Some(Place {
                region: Region::Map,
                map,
                off: 0,
            }) => {
                let shape = self.maps.get(map).ok_or(Fault::BadArgument)?;
                Ok((map, shape))
            }
            _ => Err(Fault::BadArgument),
        }
    }

    /// `len` bytes a helper reads, at an address in the stack or a map value.
    fn bytes_at(&self, addr: u64, len: usize) -> Result<Cow<'_, [u8]>, Fault> {
        let Place { region, map, off } = mem::place(addr).ok_or(Fault::BadArgument)?;
        match region {
            Region::Stack => {
                let bytes = off
                    .checked_add(len)
                    .and_then(|end| self.stack.get(off..end));
                bytes.map(Cow::Borrowed).ok_or(Fault::BadArgument)
            }
            Region::Value => {
                let map = self.maps.get(map).ok_or(Fault::BadArgument)?;
                let (elem, off) = mem::split_value_off(map, off);
                if !map.prog_may_read() {
                    return Err(Fault::MapAccess);
                }
                map.bytes(elem, off, len)
                    .map(Cow::Owned)
                    .ok_or(Fault::BadArgument)
            }
            Region::Ctx | Region::Map => Err(Fault::BadArgument),
        }
    }

    /// `skb_load_bytes(ctx, r2 offset, r3 to, r4 len)` and its relative form with r5 naming the
    /// header to count from. A message has no link header; its network header is its start, as
    /// it is under `BPF_PROG_TEST_RUN`. What cannot be loaded is cleared: -EFAULT.
    fn skb_load_bytes(&mut self, relative: bool) -> Result<u64, Fault> {
        let header_exists = !relative || self.reg(5) as u32 == HDR_START_NET;
        let (off, to, len) = (self.reg(2) as u32, self.reg(3), self.reg(4) as u32 as usize);
        let source = usize::try_from(off)
            .ok()
            .filter(|_| header_exists && off <= i32::MAX as u32);
        let source = source.filter(|off| {
            off.checked_add(len)
                .is_some_and(|end| end <= self.packet.len())
        });
        let Place {
            region,
            map,
            off: to,
        } = mem::place(to).ok_or(Fault::BadArgument)?;
        let copied = match region {
            Region::Stack => {
                let dst = to
                    .checked_add(len)
                    .and_then(|end| self.stack.get_mut(to..end));
                copy(self.packet, source, dst.ok_or(Fault::BadArgument)?)
            }
            Region::Value => {
                let map = self.maps.get(map).ok_or(Fault::BadArgument)?;
                if !map.prog_may_write() {
                    return Err(Fault::MapAccess);
                }
                let (elem, to) = mem::split_value_off(map, to);
                let mut bytes = map.bytes(elem, to, len).ok_or(Fault::BadArgument)?;
                let copied = copy(self.packet, source, &mut bytes);
                map.set_bytes(elem, to, &bytes).ok_or(Fault::BadArgument)?;
                copied
            }
            Region::Ctx | Region::Map => return Err(Fault::BadArgument),
        };
        Ok(if copied { 0 } else { negative(EFAULT) })
    }
}

/// `BPF_HDR_START_NET`.
const HDR_START_NET: u32 = 1;
const EFAULT: i32 = 14;

/// A helper's failure as a register value.
const fn negative(errno: i32) -> u64 {
    -(errno as i64) as u64
}

/// A map operation's result as a register value.
fn status(result: Result<(), MapError>) -> u64 {
    result.map_or_else(|error| negative(error.errno()), |()| 0)
}

/// Fills `dst` from the packet, or with zeros if there is no source.
fn copy<P: Packet + ?Sized>(packet: &P, source: Option<usize>, dst: &mut [u8]) -> bool {
    let copied = source.is_some_and(|off| packet.load(off, dst));
    if !copied {
        dst.fill(0);
    }
    copied
}
