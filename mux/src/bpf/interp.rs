//! Runs a decoded program. Every memory access is checked here as well, because programs a kernel
//! verified do not pass our verifier, and because a verifier can be wrong.
//!
//! Cost is bounded without counting instructions: control that only moves forward ends by itself,
//! so each backward transfer pays the distance it goes back out of [`INSN_BUDGET`].

use alloc::sync::Arc;

use super::alu::{Swap, alu32, alu64, compare, swap};
use super::decode::Code;
use super::insn::{FP, Insn, LD_IMM64, alu, class, code, jmp, mode, pseudo};
use super::map::Map;
use super::mem::{CTX_ADDR, STACK_ADDR};
use super::skb::{self, CB_WORDS, Packet};

use self::memory::le_bytes;

mod helpers;
mod memory;

/// Instructions one run may execute, counted from above (see the module). A program the kernel
/// verifies executes at most a million (its complexity limit); sparse loop bodies pay for what
/// they skip, hence the factor. A run that uses it up takes some milliseconds.
pub const INSN_BUDGET: u32 = 4_000_000;
/// Bytes of stack a frame has: the kernel's `MAX_BPF_STACK`.
pub const STACK_BYTES: usize = 512;
/// Frames of nested calls: the kernel's `MAX_CALL_FRAMES`.
pub const FRAMES_MAX: usize = 8;

/// What a run may know of the world.
#[derive(Clone, Copy, Debug, Default)]
pub struct Env {
    /// `CLOCK_MONOTONIC` in nanoseconds, for `ktime_get_ns` and `ktime_get_coarse_ns`.
    pub now_ns: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub boot_ns: u64,
    /// The processor the caller runs on.
    pub cpu: u32,
    /// Seeds `get_prandom_u32`; numbers repeat if it does.
    pub seed: u64,
}

/// Why a run was cut short. Programs that passed the verifier meet [`Fault::Budget`] at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A load or store outside the stack, the context, `cb` (stores) or a map value.
    BadAccess,
    /// A store to a map programs may only read, or a load from one they may only write.
    MapAccess,
    /// A helper got something that is not its argument.
    BadArgument,
    /// [`INSN_BUDGET`] is used up.
    Budget,
    /// More than [`FRAMES_MAX`] nested calls.
    CallDepth,
    /// Control left the program.
    BadJump,
}

impl Fault {
    /// The errno the run's connection fails with: what a program would report itself.
    pub const fn errno(self) -> i32 {
        match self {
            Self::BadAccess | Self::MapAccess | Self::BadArgument => 14, // EFAULT
            Self::Budget => 40,                                          // ELOOP
            Self::CallDepth | Self::BadJump => 22,                       // EINVAL
        }
    }
}

/// What a local call saves.
#[derive(Clone, Copy, Default)]
struct Frame {
    return_pc: u32,
    saved: [u64; 4],
}

/// A run. `STACK` bytes for all frames together; `FRAMES` nested calls.
struct Machine<'a, P: ?Sized, const STACK: usize, const FRAMES: usize> {
    /// r0 to r10; the rest pads the array so that a masked index needs no bounds check.
    regs: [u64; 16],
    stack: [u8; STACK],
    frames: [Frame; FRAMES],
    depth: usize,
    budget: u32,
    packet: &'a P,
    cb: &'a mut [u32; CB_WORDS],
    env: &'a Env,
    maps: &'a [Arc<Map>],
    random: u64,
}

/// How much memory a run needs; chosen once per program, since clearing unused stack costs more
/// than a short parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Footprint {
    /// Never touches the frame pointer, calls nothing of its own.
    Registers,
    /// One frame.
    OneFrame,
    /// Local calls.
    Frames,
}

impl Footprint {
    /// The footprint of a program. Only an instruction that reads r10 can reach the stack.
    pub(crate) fn of(code: &Code) -> Self {
        let reads_fp = |insn: &Insn| match insn.class() {
            class::LDX => insn.src == FP,
            class::ST | class::STX => insn.dst == FP || insn.src == FP,
            class::LD => insn.mode() == mode::IND && insn.src == FP,
            _ => insn.src == FP || insn.dst == FP,
        };
        if code.functions.len() > 1 || code.insns.iter().any(Insn::is_local_call) {
            Self::Frames
        } else if code.insns.iter().any(reads_fp) {
            Self::OneFrame
        } else {
            Self::Registers
        }
    }
}

/// Runs `code`; r0 at exit, or why not.
pub(crate) fn run<P: Packet + ?Sized>(
    code: &Code,
    footprint: Footprint,
    packet: &P,
    cb: &mut [u32; CB_WORDS],
    env: &Env,
) -> Result<u64, Fault> {
    match footprint {
        Footprint::Registers => Machine::<P, 0, 0>::new(code, packet, cb, env).run(&code.insns),
        Footprint::OneFrame => {
            Machine::<P, STACK_BYTES, 0>::new(code, packet, cb, env).run(&code.insns)
        }
        Footprint::Frames => Machine::<P, { STACK_BYTES * FRAMES_MAX }, { FRAMES_MAX - 1 }>::new(
            code, packet, cb, env,
        )
        .run(&code.insns),
    }
}

impl<'a, P: Packet + ?Sized, const STACK: usize, const FRAMES: usize>
    Machine<'a, P, STACK, FRAMES>
{
    fn new(code: &'a Code, packet: &'a P, cb: &'a mut [u32; CB_WORDS], env: &'a Env) -> Self {
        let mut regs = [0; 16];
        regs[1] = CTX_ADDR;
        regs[FP as usize] = STACK_ADDR + STACK_BYTES as u64;
        Self {
            regs,
            stack: [0; STACK],
            frames: [Frame::default(); FRAMES],
            depth: 0,
            budget: INSN_BUDGET,
            packet,
            cb,
            env,
            maps: &code.maps,
            random: env.seed,
        }
    }

    #[inline(always)]
    fn reg(&self, index: u8) -> u64 {
        self.regs[usize::from(index & 15)]
    }

    #[inline(always)]
    fn set(&mut self, index: u8, value: u64) {
        self.regs[usize::from(index & 15)] = value;
    }

    /// The second operand of arithmetic and jumps.
    #[inline(always)]
    fn operand<const IS_X: bool>(&self, insn: &Insn) -> u64 {
        if IS_X {
            self.reg(insn.src)
        } else {
            insn.imm as u64
        }
    }

    /// Continues at `target`; going back costs the distance.
    #[inline(always)]
    fn transfer(&mut self, from: usize, target: usize) -> Result<usize, Fault> {
        if target <= from {
            let distance = u32::try_from(from - target + 1).unwrap_or(u32::MAX);
            self.budget = self.budget.checked_sub(distance).ok_or(Fault::Budget)?;
        }
        Ok(target)
    }

    fn run(&mut self, insns: &[Insn]) -> Result<u64, Fault> {
        let mut pc = 0;
        while let Some(insn) = insns.get(pc) {
            let insn = *insn;
            let next = pc + 1;
            pc = next;

            macro_rules! arithmetic {
                ($f:ident, $op:expr, $is_x:expr) => {{
                    let value = self.operand::<$is_x>(&insn);
                    self.set(insn.dst, $f($op, insn.off, self.reg(insn.dst), value));
                }};
            }
            macro_rules! branch {
                ($op:expr, $wide:expr, $is_x:expr) => {{
                    let value = self.operand::<$is_x>(&insn);
                    if compare($op, $wide, self.reg(insn.dst), value) {
                        pc = self.transfer(next - 1, insn.off as usize)?;
                    }
                }};
            }
            // One arm per opcode byte, so that the compiler sees each operation as a constant.
            macro_rules! dispatch {
                (alu: $($a:ident)*; jmp: $($j:ident)*; $($rest:tt)*) => {
                    match insn.code {
                        $(
                            code::alu64_k::$a => arithmetic!(alu64, alu::$a, false),
                            code::alu64_x::$a => arithmetic!(alu64, alu::$a, true),
                            code::alu32_k::$a => arithmetic!(alu32, alu::$a, false),
                            code::alu32_x::$a => arithmetic!(alu32, alu::$a, true),
                        )*
                        $(
                            code::jmp64_k::$j => branch!(jmp::$j, true, false),
                            code::jmp64_x::$j => branch!(jmp::$j, true, true),
                            code::jmp32_k::$j => branch!(jmp::$j, false, false),
                            code::jmp32_x::$j => branch!(jmp::$j, false, true),
                        )*
                        $($rest)*
                    }
                };
            }
            dispatch! {
                alu: ADD SUB MUL DIV OR AND LSH RSH NEG MOD XOR MOV ARSH;
                jmp: JEQ JGT JGE JSET JNE JSGT JSGE JLT JLE JSLT JSLE;
                code::LD_ABS_W | code::LD_ABS_H | code::LD_ABS_B => {
                    match skb::load_be(self.packet, insn.imm as i32, insn.access_bytes()) {
                        Some(value) => self.set(0, value),
                        None => match self.short_load(next - 1)? {
                            Some(back) => pc = back,
                            None => return Ok(0),
                        },
                    }
                }
                code::LD_IND_W | code::LD_IND_H | code::LD_IND_B => {
                    let off = (self.reg(insn.src) as i32).wrapping_add(insn.imm as i32);
                    match skb::load_be(self.packet, off, insn.access_bytes()) {
                        Some(value) => self.set(0, value),
                        None => match self.short_load(next - 1)? {
                            Some(back) => pc = back,
                            None => return Ok(0),
                        },
                    }
                }
                code::EXIT => match self.leave(next - 1)? {
                    Some(back) => pc = back,
                    None => return Ok(self.reg(0)),
                },
                code::JA => pc = self.transfer(next - 1, insn.off as usize)?,
                code::GOTOL => pc = self.transfer(next - 1, insn.off as usize)?,
                code::CALL if insn.src == pseudo::CALL => {
                    pc = self.enter(next, insn.off as usize)?;
                }
                code::CALL => {
                    let value = self.helper(insn.imm)?;
                    self.set(0, value);
                }
                LD_IMM64 => {
                    self.set(insn.dst, insn.imm as u64);
                    pc = next + 1;
                }
                code::LE => self.set(insn.dst, swap(Swap::ToLe, insn.imm, self.reg(insn.dst))),
                code::BE => self.set(insn.dst, swap(Swap::ToBe, insn.imm, self.reg(insn.dst))),
                code::BSWAP => {
                    self.set(insn.dst, swap(Swap::Always, insn.imm, self.reg(insn.dst)));
                }
                code::LDX_B => self.load_into::<1>(&insn)?,
                code::LDX_H => self.load_into::<2>(&insn)?,
                code::LDX_W => self.load_into::<4>(&insn)?,
                code::LDX_DW => self.load_into::<8>(&insn)?,
                code::STX_B => self.store_from::<1>(&insn, self.reg(insn.src))?,
                code::STX_H => self.store_from::<2>(&insn, self.reg(insn.src))?,
                code::STX_W => self.store_from::<4>(&insn, self.reg(insn.src))?,
                code::STX_DW => self.store_from::<8>(&insn, self.reg(insn.src))?,
                _ => self.memory(&insn)?,
            }
        }
        Err(Fault::BadJump)
    }

    /// The address of a load (`base` is the source register) or store.
    #[inline(always)]
    fn address(&self, base: u8, insn: &Insn) -> u64 {
        self.reg(base).wrapping_add(insn.off as i64 as u64)
    }

    /// `LDX`, with the stack, where most loads go, in line.
    #[inline(always)]
    fn load_into<const BYTES: usize>(&mut self, insn: &Insn) -> Result<(), Fault> {
        let addr = self.address(insn.src, insn);
        let on_stack = self.stack.get(addr.wrapping_sub(STACK_ADDR) as usize..);
        let value = match on_stack.and_then(|stack| stack.first_chunk::<BYTES>()) {
            Some(bytes) => le_bytes(bytes),
            None => self.load(addr, BYTES)?,
        };
        self.set(insn.dst, value);
        Ok(())
    }

    /// `STX`, likewise.
    #[inline(always)]
    fn store_from<const BYTES: usize>(&mut self, insn: &Insn, value: u64) -> Result<(), Fault> {
        let addr = self.address(insn.dst, insn);
        let on_stack = self.stack.get_mut(addr.wrapping_sub(STACK_ADDR) as usize..);
        match on_stack.and_then(|stack| stack.first_chunk_mut::<BYTES>()) {
            Some(bytes) => {
                bytes
                    .iter_mut()
                    .zip(value.to_le_bytes())
                    .for_each(|(d, s)| *d = s);
                Ok(())
            }
            None => self.store(addr, BYTES, value),
        }
    }

    /// The rarer loads and stores.
    fn memory(&mut self, insn: &Insn) -> Result<(), Fault> {
        let bytes = insn.access_bytes();
        match (insn.class(), insn.mode()) {
            (class::LDX, mode::MEMSX) => {
                let unused = 64 - 8 * bytes as u32;
                let value = self.load(self.address(insn.src, insn), bytes)? << unused;
                self.set(insn.dst, (value as i64 >> unused) as u64);
            }
            (class::ST, mode::MEM) => {
                self.store(self.address(insn.dst, insn), bytes, insn.imm as u64)?;
            }
            (class::STX, mode::ATOMIC) => self.atomic(insn, bytes)?,
            _ => return Err(Fault::BadJump),
        }
        Ok(())
    }

    /// Enters a function of the program.
    fn enter(&mut self, return_pc: usize, target: usize) -> Result<usize, Fault> {
        let frame = self.frames.get_mut(self.depth).ok_or(Fault::CallDepth)?;
        frame.return_pc = return_pc as u32;
        frame.saved.copy_from_slice(&self.regs[6..10]);
        self.depth += 1;
        self.regs[FP as usize] += STACK_BYTES as u64;
        self.transfer(return_pc - 1, target)
    }

    /// `exit`: back to the caller, or None from the program itself.
    #[inline(always)]
    fn leave(&mut self, from: usize) -> Result<Option<usize>, Fault> {
        if FRAMES == 0 || self.depth == 0 {
            return Ok(None);
        }
        self.depth -= 1;
        let frame = self.frames.get(self.depth).ok_or(Fault::CallDepth)?;
        self.regs[6..10].copy_from_slice(&frame.saved);
        self.regs[FP as usize] -= STACK_BYTES as u64;
        let return_pc = frame.return_pc as usize;
        self.transfer(from, return_pc).map(Some)
    }

    /// A packet load ran short: the function ends with 0.
    #[cold]
    fn short_load(&mut self, from: usize) -> Result<Option<usize>, Fault> {
        self.set(0, 0);
        self.leave(from)
    }
}
