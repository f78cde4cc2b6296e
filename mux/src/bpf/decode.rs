//! From the kernel's instruction bytes to [`Code`]: encodings checked, maps and targets resolved.
//!
//! Everything here is checked for kernel-verified programs too; what needs knowledge of register
//! contents is the verifier's.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::error::VerifyError;
use super::helper::Helper;
use super::insn::{self, Insn, K, LD_IMM64, REG_COUNT, RawInsn, X, alu, atomic, class, jmp};
use super::insn::{mode, pseudo, size};
use super::map::{MAP_TYPE_ARRAY, Map};
use super::mem;
use super::{PROG_INSNS_MAX, PROG_MAPS_MAX};

/// A decoded program.
#[derive(Debug)]
pub(crate) struct Code {
    pub(crate) insns: Vec<Insn>,
    pub(crate) maps: Vec<Arc<Map>>,
    /// First slots of the functions, ascending; the first is 0.
    pub(crate) functions: Vec<usize>,
}

/// What a resolver finds under a map file descriptor.
pub(crate) type MapByFd<'a> = &'a dyn Fn(i32) -> Option<Arc<Map>>;

impl Code {
    /// Decodes and checks a program.
    pub(crate) fn decode(bytes: &[u8], map_by_fd: MapByFd<'_>) -> Result<Self, VerifyError> {
        let raw = bytes.chunks_exact(RawInsn::BYTES);
        if !raw.remainder().is_empty() {
            return Err(VerifyError::TruncatedInsn { pc: raw.len() });
        }
        if bytes.is_empty() || raw.len() > PROG_INSNS_MAX {
            return Err(VerifyError::BadLength);
        }
        let mut decoder = Decoder {
            code: Self {
                insns: Vec::with_capacity(bytes.len() / RawInsn::BYTES),
                maps: Vec::new(),
                functions: Vec::new(),
            },
            fds: Vec::new(),
            map_by_fd,
        };
        let mut slots = raw.filter_map(RawInsn::from_slice).enumerate();
        while let Some((pc, slot)) = slots.next() {
            let insn = if slot.code == LD_IMM64 {
                let (_, high) = slots.next().ok_or(VerifyError::TruncatedInsn { pc })?;
                decoder.wide_constant(pc, slot, high)?
            } else {
                single(pc, slot)?
            };
            decoder.code.insns.push(insn);
            if slot.code == LD_IMM64 {
                decoder.code.insns.push(HOLE);
            }
        }
        decoder.code.link()?;
        Ok(decoder.code)
    }

    /// Finds the functions and checks that control stays inside them.
    fn link(&mut self) -> Result<(), VerifyError> {
        let calls = self.insns.iter().filter(|insn| insn.is_local_call());
        let mut functions: Vec<usize> = calls.map(|insn| insn.off as usize).collect();
        functions.push(0);
        functions.sort_unstable();
        functions.dedup();
        let mut start = 0;
        for (pc, insn) in self.insns.iter().enumerate() {
            if functions.binary_search(&pc).is_ok() {
                start = pc;
            }
            let end = functions.get(functions.partition_point(|&f| f <= start));
            let end = end.copied().unwrap_or(self.insns.len());
            if let Some(target) = insn.jump_target() {
                let bounds = if insn.is_local_call() {
                    0..self.insns.len()
                } else {
                    start..end
                };
                let lands = self.insns.get(target).is_some_and(|insn| *insn != HOLE);
                if !bounds.contains(&target) || !lands {
                    return Err(VerifyError::BadJump { pc });
                }
            }
            if pc + 1 == end && !insn.ends_function() {
                return Err(VerifyError::FallsThrough { pc });
            }
        }
        self.functions = functions;
        Ok(())
    }
}

/// The second slot of `LD_IMM64`. `JCOND` is refused everywhere else, so nothing else looks so.
pub(crate) const HOLE: Insn = Insn {
    code: class::JMP | jmp::JCOND,
    dst: 0,
    src: 0,
    off: 0,
    imm: 0,
};

impl Insn {
    /// A call of another function of the program.
    pub(crate) fn is_local_call(&self) -> bool {
        self.code == class::JMP | jmp::CALL && self.src == pseudo::CALL
    }

    /// Whether this is an unconditional jump.
    pub(crate) fn is_goto(&self) -> bool {
        matches!(self.class(), class::JMP | class::JMP32) && self.op() == jmp::JA
    }

    /// Whether this is a conditional jump.
    pub(crate) fn is_branch(&self) -> bool {
        matches!(self.class(), class::JMP | class::JMP32)
            && !matches!(self.op(), jmp::JA | jmp::CALL | jmp::EXIT | jmp::JCOND)
    }

    /// Whether this is `exit`.
    pub(crate) fn is_exit(&self) -> bool {
        self.code == class::JMP | jmp::EXIT
    }

    /// Where a jump or local call may go; negative targets map outside every program.
    fn jump_target(&self) -> Option<usize> {
        (self.is_goto() || self.is_branch() || self.is_local_call())
            .then(|| usize::try_from(self.off).unwrap_or(usize::MAX))
    }

    fn ends_function(&self) -> bool {
        self.is_exit() || self.is_goto()
    }
}

struct Decoder<'a> {
    code: Code,
    /// Descriptors in the order of `code.maps`.
    fds: Vec<i32>,
    map_by_fd: MapByFd<'a>,
}

impl Decoder<'_> {
    /// `LD_IMM64`: a constant, a map, or the address of a map's value.
    fn wide_constant(
        &mut self,
        pc: usize,
        low: RawInsn,
        high: RawInsn,
    ) -> Result<Insn, VerifyError> {
        let reserved = low.off != 0 || RawInsn { imm: 0, ..high } != ZERO_SLOT;
        if reserved {
            return Err(VerifyError::ReservedField { pc });
        }
        if usize::from(low.dst) >= REG_COUNT {
            return Err(VerifyError::BadRegister { pc });
        }
        let imm = match low.src {
            0 => u64::from(low.imm as u32) | u64::from(high.imm as u32) << 32,
            pseudo::MAP_FD if high.imm == 0 => mem::map_addr(self.map(pc, low.imm)?),
            pseudo::MAP_VALUE => {
                let index = self.map(pc, low.imm)?;
                let map = self
                    .code
                    .maps
                    .get(index)
                    .ok_or(VerifyError::BadMapFd { pc, fd: low.imm })?;
                if map.spec().map_type != MAP_TYPE_ARRAY {
                    return Err(VerifyError::MapValueOfHash { pc });
                }
                if map.spec().max_entries != 1 {
                    return Err(VerifyError::MapValueUnsupported { pc });
                }
                let off = high.imm as u32 as usize;
                if off >= map.value_bytes() {
                    return Err(VerifyError::BadMapValue { pc });
                }
                mem::value_addr(index, map, 0, off)
            }
            _ => return Err(VerifyError::ReservedField { pc }),
        };
        Ok(Insn {
            code: low.code,
            dst: low.dst,
            src: low.src,
            off: 0,
            imm: imm as i64,
        })
    }

    /// The number of a map inside the program.
    fn map(&mut self, pc: usize, fd: i32) -> Result<usize, VerifyError> {
        if let Some(index) = self.fds.iter().position(|&known| known == fd) {
            return Ok(index);
        }
        let map = (self.map_by_fd)(fd).ok_or(VerifyError::BadMapFd { pc, fd })?;
        if self.fds.len() >= PROG_MAPS_MAX {
            return Err(VerifyError::TooManyMaps { pc });
        }
        self.fds.push(fd);
        self.code.maps.push(map);
        Ok(self.fds.len() - 1)
    }
}

const ZERO_SLOT: RawInsn = RawInsn {
    code: 0,
    dst: 0,
    src: 0,
    off: 0,
    imm: 0,
};

/// Decodes any instruction of one slot.
fn single(pc: usize, raw: RawInsn) -> Result<Insn, VerifyError> {
    if usize::from(raw.dst) >= REG_COUNT || usize::from(raw.src) >= REG_COUNT {
        return Err(VerifyError::BadRegister { pc });
    }
    let mut insn = Insn {
        code: raw.code,
        dst: raw.dst,
        src: raw.src,
        off: i32::from(raw.off),
        imm: i64::from(raw.imm),
    };
    let legal = match insn.class() {
        class::ALU | class::ALU64 => alu_fields(&insn),
        class::JMP | class::JMP32 => {
            resolve_target(pc, &mut insn)?;
            jump_fields(pc, &insn, raw)?
        }
        _ => memory_fields(&insn),
    };
    match legal {
        Legal::Yes => Ok(insn),
        Legal::Reserved => Err(VerifyError::ReservedField { pc }),
        Legal::No => Err(VerifyError::UnknownOpcode { pc, code: raw.code }),
    }
}

/// Whether an encoding exists.
enum Legal {
    Yes,
    /// The opcode does, a field is wrong.
    Reserved,
    No,
}

/// Arithmetic: which fields each operation may use.
fn alu_fields(insn: &Insn) -> Legal {
    let wide = insn.class() == class::ALU64;
    let ok = match insn.op() {
        alu::END => {
            if wide && insn.is_x() {
                return Legal::No;
            }
            insn.src == 0 && insn.off == 0 && matches!(insn.imm, 16 | 32 | 64)
        }
        alu::NEG => {
            if insn.is_x() {
                return Legal::No;
            }
            insn.src == 0 && insn.off == 0 && insn.imm == 0
        }
        op @ (alu::ADD..=alu::RSH | alu::MOD..=alu::ARSH) => {
            let variant = match op {
                alu::DIV | alu::MOD => matches!(insn.off, 0 | 1),
                alu::MOV if insn.is_x() => matches!(insn.off, 0 | 8 | 16) || wide && insn.off == 32,
                _ => insn.off == 0,
            };
            variant
                && if insn.is_x() {
                    insn.imm == 0
                } else {
                    insn.src == 0
                }
        }
        _ => return Legal::No,
    };
    if ok { Legal::Yes } else { Legal::Reserved }
}

/// Turns a relative jump distance into the target slot.
fn resolve_target(pc: usize, insn: &mut Insn) -> Result<(), VerifyError> {
    let distance = match (insn.is_local_call(), insn.code == class::JMP32 | jmp::JA) {
        (false, false) => i64::from(insn.off),
        _ if insn.off != 0 => return Err(VerifyError::ReservedField { pc }),
        _ => insn.imm,
    };
    if insn.jump_target().is_some() {
        let target = pc as i64 + 1 + distance;
        insn.off = i32::try_from(target).map_err(|_| VerifyError::BadJump { pc })?;
    }
    Ok(())
}

/// Jumps, calls and exit. `raw` has the fields as written.
fn jump_fields(pc: usize, insn: &Insn, raw: RawInsn) -> Result<Legal, VerifyError> {
    let narrow = insn.class() == class::JMP32;
    let ok = match insn.op() {
        jmp::JA if insn.is_x() => return Ok(Legal::No),
        jmp::JA => raw.dst == 0 && raw.src == 0 && (narrow || raw.imm == 0),
        jmp::CALL | jmp::EXIT if narrow || insn.is_x() => return Ok(Legal::No),
        jmp::EXIT => raw.dst == 0 && raw.src == 0 && raw.off == 0 && raw.imm == 0,
        jmp::CALL => {
            match raw.src {
                0 if Helper::from_number(insn.imm).is_none() => {
                    return Err(VerifyError::UnknownHelper {
                        pc,
                        number: raw.imm,
                    });
                }
                pseudo::KFUNC_CALL => return Err(VerifyError::KernelFunction { pc }),
                _ => {}
            }
            raw.dst == 0 && raw.off == 0 && raw.src <= pseudo::CALL
        }
        jmp::JEQ..=jmp::JSGE | jmp::JLT..=jmp::JSLE => {
            if insn.is_x() {
                raw.imm == 0
            } else {
                raw.src == 0
            }
        }
        _ => return Ok(Legal::No),
    };
    Ok(if ok { Legal::Yes } else { Legal::Reserved })
}

/// Loads and stores of one slot.
fn memory_fields(insn: &Insn) -> Legal {
    let wide = insn.code & size::DW == size::DW;
    let ok = match (insn.class(), insn.mode()) {
        (class::LD, mode::ABS | mode::IND) if wide => return Legal::No,
        (class::LD, mode::ABS) => insn.dst == 0 && insn.src == 0 && insn.off == 0,
        (class::LD, mode::IND) => insn.dst == 0 && insn.off == 0,
        (class::LDX, mode::MEMSX) if wide => return Legal::No,
        (class::LDX, mode::MEM | mode::MEMSX) | (class::STX, mode::MEM) => insn.imm == 0,
        (class::ST, mode::MEM) => insn.src == 0,
        (class::STX, mode::ATOMIC) => {
            let plain = matches!(insn.imm, atomic::LOAD_ACQ | atomic::STORE_REL);
            if !plain && insn.access_bytes() < 4 {
                return Legal::Reserved;
            }
            plain
                || matches!(insn.imm, atomic::XCHG | atomic::CMPXCHG)
                || matches!(
                    insn.imm & !atomic::FETCH,
                    atomic::ADD | atomic::OR | atomic::AND | atomic::XOR
                )
        }
        _ => return Legal::No,
    };
    if ok { Legal::Yes } else { Legal::Reserved }
}

const _: () = assert!(K == 0 && X == 8 && insn::FP as usize == REG_COUNT - 1);
