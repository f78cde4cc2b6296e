//! Loads, stores and atomics wherever they go: stack, context, map values.

use core::sync::atomic::{Ordering, fence};

use super::{Fault, Machine};
use crate::bpf::insn::{Insn, atomic};
use crate::bpf::map;
use crate::bpf::mem::{self, Place, Region};
use crate::bpf::skb::{self, Packet};

impl<P: Packet + ?Sized, const STACK: usize, const FRAMES: usize> Machine<'_, P, STACK, FRAMES> {
    pub(super) fn load(&self, addr: u64, bytes: usize) -> Result<u64, Fault> {
        let Place { region, map, off } = mem::place(addr).ok_or(Fault::BadAccess)?;
        let value = match region {
            Region::Stack => self.stack.get(off..off + bytes).map(le_bytes),
            Region::Ctx => skb::ctx_load(off, bytes, self.packet.len(), self.cb),
            Region::Value => {
                let map = self.maps.get(map).ok_or(Fault::BadAccess)?;
                let (elem, off) = mem::split_value_off(map, off);
                if !map.prog_may_read() {
                    return Err(Fault::MapAccess);
                }
                map.load(elem, off, bytes)
            }
            Region::Map => None,
        };
        value.ok_or(Fault::BadAccess)
    }

    pub(super) fn store(&mut self, addr: u64, bytes: usize, value: u64) -> Result<(), Fault> {
        let Place { region, map, off } = mem::place(addr).ok_or(Fault::BadAccess)?;
        let stored = match region {
            Region::Stack => self.stack.get_mut(off..off + bytes).map(|dst| {
                dst.iter_mut()
                    .zip(value.to_le_bytes())
                    .for_each(|(d, s)| *d = s);
            }),
            Region::Ctx => skb::ctx_store(off, bytes, value, self.cb),
            Region::Value => {
                let map = self.maps.get(map).ok_or(Fault::BadAccess)?;
                let (elem, off) = mem::split_value_off(map, off);
                if !map.prog_may_write() {
                    return Err(Fault::MapAccess);
                }
                map.store(elem, off, bytes, value)
            }
            Region::Map => None,
        };
        stored.ok_or(Fault::BadAccess)
    }

    /// Atomic operations on the stack (nobody else sees it) and on map values.
    pub(super) fn atomic(&mut self, insn: &Insn, bytes: usize) -> Result<(), Fault> {
        match insn.imm {
            atomic::LOAD_ACQ => {
                let value = self.load(self.address(insn.src, insn), bytes)?;
                fence(Ordering::Acquire);
                self.set(insn.dst, value);
                return Ok(());
            }
            atomic::STORE_REL => {
                fence(Ordering::Release);
                return self.store(self.address(insn.dst, insn), bytes, self.reg(insn.src));
            }
            _ => {}
        }
        let (addr, operand, expected) = (
            self.address(insn.dst, insn),
            self.reg(insn.src),
            self.reg(0),
        );
        let Place { region, map, off } = mem::place(addr).ok_or(Fault::BadAccess)?;
        let old = match region {
            Region::Stack => {
                let old = self.load(addr, bytes)?;
                let low = |value: u64| {
                    if bytes == 4 {
                        u64::from(value as u32)
                    } else {
                        value
                    }
                };
                let new = map::modify(insn.imm, old, low(operand), low(expected));
                self.store(addr, bytes, new.ok_or(Fault::BadAccess)?)?;
                old
            }
            Region::Value => {
                let map = self.maps.get(map).ok_or(Fault::BadAccess)?;
                if !map.prog_may_read() || !map.prog_may_write() {
                    return Err(Fault::MapAccess);
                }
                let place = mem::split_value_off(map, off);
                map.atomic(place, bytes, insn.imm, operand, expected)
                    .ok_or(Fault::BadAccess)?
            }
            Region::Ctx | Region::Map => return Err(Fault::BadAccess),
        };
        if insn.imm == atomic::CMPXCHG {
            self.set(0, old);
        } else if insn.imm & atomic::FETCH != 0 {
            self.set(insn.src, old);
        }
        Ok(())
    }
}

/// Up to eight bytes as a register value.
pub(super) fn le_bytes(bytes: &[u8]) -> u64 {
    match *bytes {
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    }
}
