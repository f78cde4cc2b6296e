//! Runs a decoded program. Every memory access is checked here as well, because programs a kernel
//! verified do not pass our verifier, and because a verifier can be wrong.
//!
//! Cost is bounded without counting instructions: control that only moves forward ends by itself,
//! so each backward transfer pays the distance it goes back out of [`INSN_BUDGET`].

use alloc::borrow::Cow;
use alloc::sync::Arc;

use super::alu::{Swap, alu32, alu64, compare, swap};
use super::decode::Code;
use super::helper::{Helper, SOCKET_COOKIE, SOCKET_UID};
use super::insn::{FP, Insn, LD_IMM64, alu, atomic, class, code, jmp, mode, pseudo};
use super::map::{self, Map, MapError};
use super::mem::{self, CTX_ADDR, Place, Region, STACK_ADDR};
use super::skb::{self, CB_WORDS, Packet};

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

    fn load(&self, addr: u64, bytes: usize) -> Result<u64, Fault> {
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

    fn store(&mut self, addr: u64, bytes: usize, value: u64) -> Result<(), Fault> {
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
    fn atomic(&mut self, insn: &Insn, bytes: usize) -> Result<(), Fault> {
        match insn.imm {
            atomic::LOAD_ACQ => {
                let value = self.load(self.address(insn.src, insn), bytes)?;
                core::sync::atomic::fence(core::sync::atomic::Ordering::Acquire);
                self.set(insn.dst, value);
                return Ok(());
            }
            atomic::STORE_REL => {
                core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
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

    /// Calls a helper with r1 to r5; its result is the new r0.
    fn helper(&mut self, number: i64) -> Result<u64, Fault> {
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

/// Up to eight bytes as a register value.
fn le_bytes(bytes: &[u8]) -> u64 {
    match *bytes {
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    }
}
