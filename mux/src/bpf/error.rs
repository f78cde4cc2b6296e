//! Why a program is refused, each reason with the errno `BPF_PROG_LOAD` fails with.

use core::fmt;

use super::helper::foreign_name;

/// A rejected program. Slots count 8-byte instructions from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerifyError {
    /// No instruction, or more than [`super::PROG_INSNS_MAX`].
    BadLength,
    /// The byte length is no multiple of eight, or the second slot of `LD_IMM64` is missing.
    TruncatedInsn {
        /// Where.
        pc: usize,
    },
    /// No instruction has this opcode, or it may not be used in a parser program.
    UnknownOpcode {
        /// Where.
        pc: usize,
        /// The opcode byte.
        code: u8,
    },
    /// A register number above 10.
    BadRegister {
        /// Where.
        pc: usize,
    },
    /// A field the instruction does not use is not zero, or has no defined meaning.
    ReservedField {
        /// Where.
        pc: usize,
    },
    /// A jump or local call leaves the program or its function, or lands inside `LD_IMM64`.
    BadJump {
        /// Where.
        pc: usize,
    },
    /// A function does not end in `exit` or an unconditional jump.
    FallsThrough {
        /// Where.
        pc: usize,
    },
    /// The map file descriptor is no map of ours.
    BadMapFd {
        /// Where.
        pc: usize,
        /// The descriptor.
        fd: i32,
    },
    /// More than [`super::PROG_MAPS_MAX`] maps.
    TooManyMaps {
        /// Where.
        pc: usize,
    },
    /// A direct map value outside the value.
    BadMapValue {
        /// Where.
        pc: usize,
    },
    /// A direct map value of a map that is no array.
    MapValueOfHash {
        /// Where.
        pc: usize,
    },
    /// A direct map value of an array that has not exactly one element.
    MapValueUnsupported {
        /// Where.
        pc: usize,
    },
    /// A helper this VM does not have.
    UnknownHelper {
        /// Where.
        pc: usize,
        /// The kernel's `BPF_FUNC_*` number.
        number: i32,
    },
    /// A call of a kernel function by BTF id.
    KernelFunction {
        /// Where.
        pc: usize,
    },
    /// A register is read that nothing was written to on some path.
    UninitRegister {
        /// Where.
        pc: usize,
        /// Which register.
        reg: u8,
    },
    /// r10 is written.
    FramePointerWrite {
        /// Where.
        pc: usize,
    },
    /// An operation that makes no sense on an address, or on this kind of it.
    PointerArithmetic {
        /// Where.
        pc: usize,
    },
    /// Arithmetic on the result of a map lookup before its null check.
    NullableArithmetic {
        /// Where.
        pc: usize,
    },
    /// A pointer moves farther than any object is large.
    PointerOffset {
        /// Where.
        pc: usize,
    },
    /// Division by the constant zero.
    DivisionByZero {
        /// Where.
        pc: usize,
    },
    /// A constant shift count not below the width.
    BadShift {
        /// Where.
        pc: usize,
    },
    /// A load or store through something that is not the address of memory.
    NotAPointer {
        /// Where.
        pc: usize,
    },
    /// A load or store through the result of a map lookup before its null check.
    NullableAccess {
        /// Where.
        pc: usize,
    },
    /// A stack access or an atomic operation off its natural alignment.
    Misaligned {
        /// Where.
        pc: usize,
    },
    /// A stack access that may fall outside the frame.
    StackOutOfBounds {
        /// Where.
        pc: usize,
    },
    /// A stack access that begins inside the frame and may end above it.
    StackOverrun {
        /// Where.
        pc: usize,
    },
    /// A stack byte is read that nothing was written to on some path.
    UninitStack {
        /// Where.
        pc: usize,
        /// Which byte.
        off: i64,
    },
    /// Part of an address is stored to the stack.
    PartialSpill {
        /// Where.
        pc: usize,
    },
    /// Part of a stored address is loaded from the stack.
    PartialFill {
        /// Where.
        pc: usize,
    },
    /// An address of a stack is stored to a caller's stack.
    ForeignStackSpill {
        /// Where.
        pc: usize,
    },
    /// A function returns an address of a stack.
    ReturnsStackPointer {
        /// Where.
        pc: usize,
    },
    /// A context field that may not be loaded or stored, or not in this width.
    BadContextAccess {
        /// Where.
        pc: usize,
        /// Which byte.
        off: i64,
    },
    /// The context is used through a pointer that was moved.
    MovedContext {
        /// Where.
        pc: usize,
    },
    /// An atomic operation on the context.
    AtomicOnContext {
        /// Where.
        pc: usize,
    },
    /// `LD_ABS` or `LD_IND` while r6 is not the context.
    PacketLoadWithoutContext {
        /// Where.
        pc: usize,
    },
    /// `LD_ABS` or `LD_IND` outside the main function.
    PacketLoadInFunction {
        /// Where.
        pc: usize,
    },
    /// A map value access that may fall outside the value.
    ValueOutOfBounds {
        /// Where.
        pc: usize,
    },
    /// The map's flags forbid programs this access.
    MapAccess {
        /// Where.
        pc: usize,
    },
    /// A helper's argument is not of the kind it takes.
    BadArgument {
        /// Where.
        pc: usize,
        /// Which register.
        reg: u8,
    },
    /// No path leads here.
    Unreachable {
        /// Where.
        pc: usize,
    },
    /// A loop that makes no progress.
    InfiniteLoop {
        /// Where.
        pc: usize,
    },
    /// More paths than the verifier explores.
    TooComplex,
    /// More functions than the kernel admits.
    TooManyFunctions,
    /// More than [`super::FRAMES_MAX`] nested calls.
    CallsTooDeep {
        /// Where.
        pc: usize,
    },
    /// The deepest chain of calls needs more than [`super::STACK_BYTES`] of stack in all.
    StacksTooDeep {
        /// What it needs.
        bytes: usize,
    },
}

impl VerifyError {
    /// The errno `BPF_PROG_LOAD` fails with, positive.
    pub const fn errno(&self) -> i32 {
        match self {
            Self::BadLength
            | Self::TooManyMaps { .. }
            | Self::TooComplex
            | Self::TooManyFunctions
            | Self::CallsTooDeep { .. } => E2BIG,
            Self::BadMapFd { .. } => EBADF,
            Self::MapValueUnsupported { .. } => ENOTSUPP,
            Self::UninitRegister { .. }
            | Self::FramePointerWrite { .. }
            | Self::PointerArithmetic { .. }
            | Self::NullableArithmetic { .. }
            | Self::NotAPointer { .. }
            | Self::NullableAccess { .. }
            | Self::Misaligned { .. }
            | Self::StackOutOfBounds { .. }
            | Self::UninitStack { .. }
            | Self::PartialSpill { .. }
            | Self::PartialFill { .. }
            | Self::BadContextAccess { .. }
            | Self::MovedContext { .. }
            | Self::AtomicOnContext { .. }
            | Self::ValueOutOfBounds { .. }
            | Self::MapAccess { .. }
            | Self::BadArgument { .. }
            | Self::StacksTooDeep { .. } => EACCES,
            Self::TruncatedInsn { .. }
            | Self::UnknownOpcode { .. }
            | Self::BadRegister { .. }
            | Self::ReservedField { .. }
            | Self::BadJump { .. }
            | Self::FallsThrough { .. }
            | Self::BadMapValue { .. }
            | Self::UnknownHelper { .. }
            | Self::KernelFunction { .. }
            | Self::MapValueOfHash { .. }
            | Self::PointerOffset { .. }
            | Self::DivisionByZero { .. }
            | Self::BadShift { .. }
            | Self::StackOverrun { .. }
            | Self::ForeignStackSpill { .. }
            | Self::ReturnsStackPointer { .. }
            | Self::PacketLoadWithoutContext { .. }
            | Self::PacketLoadInFunction { .. }
            | Self::Unreachable { .. }
            | Self::InfiniteLoop { .. } => EINVAL,
        }
    }
}

const E2BIG: i32 = 7;
const EBADF: i32 = 9;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
/// Kernel-internal, but bpf(2) lets it out.
const ENOTSUPP: i32 = 524;

impl VerifyError {
    /// The instruction it is about, as its slot number.
    pub const fn pc(&self) -> Option<usize> {
        match self {
            Self::TruncatedInsn { pc, .. }
            | Self::UnknownOpcode { pc, .. }
            | Self::BadRegister { pc, .. }
            | Self::ReservedField { pc, .. }
            | Self::BadJump { pc, .. }
            | Self::FallsThrough { pc, .. }
            | Self::BadMapFd { pc, .. }
            | Self::TooManyMaps { pc, .. }
            | Self::BadMapValue { pc, .. }
            | Self::MapValueOfHash { pc, .. }
            | Self::MapValueUnsupported { pc, .. }
            | Self::UnknownHelper { pc, .. }
            | Self::KernelFunction { pc, .. }
            | Self::UninitRegister { pc, .. }
            | Self::FramePointerWrite { pc, .. }
            | Self::PointerArithmetic { pc, .. }
            | Self::NullableArithmetic { pc, .. }
            | Self::PointerOffset { pc, .. }
            | Self::DivisionByZero { pc, .. }
            | Self::BadShift { pc, .. }
            | Self::NotAPointer { pc, .. }
            | Self::NullableAccess { pc, .. }
            | Self::Misaligned { pc, .. }
            | Self::StackOutOfBounds { pc, .. }
            | Self::StackOverrun { pc, .. }
            | Self::UninitStack { pc, .. }
            | Self::PartialSpill { pc, .. }
            | Self::PartialFill { pc, .. }
            | Self::ForeignStackSpill { pc, .. }
            | Self::ReturnsStackPointer { pc, .. }
            | Self::BadContextAccess { pc, .. }
            | Self::MovedContext { pc, .. }
            | Self::AtomicOnContext { pc, .. }
            | Self::PacketLoadWithoutContext { pc, .. }
            | Self::PacketLoadInFunction { pc, .. }
            | Self::ValueOutOfBounds { pc, .. }
            | Self::MapAccess { pc, .. }
            | Self::BadArgument { pc, .. }
            | Self::Unreachable { pc, .. }
            | Self::InfiniteLoop { pc, .. }
            | Self::CallsTooDeep { pc, .. } => Some(*pc),
            Self::BadLength
            | Self::TooComplex
            | Self::TooManyFunctions
            | Self::StacksTooDeep { .. } => None,
        }
    }

    /// What is wrong, in words.
    const fn what(&self) -> &'static str {
        match self {
            Self::UnknownHelper { .. } => "helper is not available",
            Self::BadLength => "no instructions, or more than a million",
            Self::TruncatedInsn { .. } => "the instruction is cut short",
            Self::UnknownOpcode { .. } => "unknown opcode",
            Self::BadRegister { .. } => "there is no such register",
            Self::ReservedField { .. } => "a reserved field is used",
            Self::BadJump { .. } => "jump out of the function or into an instruction",
            Self::FallsThrough { .. } => "the function does not end in exit or a jump",
            Self::BadMapFd { .. } => "the descriptor is not a map",
            Self::TooManyMaps { .. } => "too many maps",
            Self::BadMapValue { .. } => "offset behind the end of the map value",
            Self::MapValueOfHash { .. } => "direct values need an array map",
            Self::MapValueUnsupported { .. } => "direct values need an array map of one element",
            Self::KernelFunction { .. } => "kernel functions are not available",
            Self::UninitRegister { .. } => "a register is read before it is written",
            Self::FramePointerWrite { .. } => "r10 is read-only",
            Self::PointerArithmetic { .. } => "this arithmetic on an address is prohibited",
            Self::NullableArithmetic { .. } => {
                "arithmetic on a map lookup's result before its null check"
            }
            Self::PointerOffset { .. } => "the offset of an address is out of bounds",
            Self::DivisionByZero { .. } => "division by zero",
            Self::BadShift { .. } => "shift count out of range",
            Self::NotAPointer { .. } => "access through something that is not an address of memory",
            Self::NullableAccess { .. } => {
                "access through a map lookup's result before its null check"
            }
            Self::Misaligned { .. } => "misaligned access",
            Self::StackOutOfBounds { .. } => "access outside the stack",
            Self::StackOverrun { .. } => "access across the end of the stack",
            Self::UninitStack { .. } => "stack is read before it is written",
            Self::PartialSpill { .. } => "part of an address is stored",
            Self::PartialFill { .. } => "part of a stored address is loaded",
            Self::ForeignStackSpill { .. } => "a stack address is stored in a caller's stack",
            Self::ReturnsStackPointer { .. } => "a stack address is returned",
            Self::BadContextAccess { .. } => "this context access is prohibited",
            Self::MovedContext { .. } => "the context pointer was moved",
            Self::AtomicOnContext { .. } => "atomic operation on the context",
            Self::PacketLoadWithoutContext { .. } => "packet load while r6 is not the context",
            Self::PacketLoadInFunction { .. } => "packet load outside the main function",
            Self::ValueOutOfBounds { .. } => "access outside the map value",
            Self::MapAccess { .. } => "the map's flags forbid this access",
            Self::BadArgument { .. } => "a helper's argument has the wrong type or range",
            Self::Unreachable { .. } => "unreachable instruction",
            Self::InfiniteLoop { .. } => "infinite loop",
            Self::TooComplex => "the program is too complex to verify",
            Self::TooManyFunctions => "too many functions",
            Self::CallsTooDeep { .. } => "too many nested calls",
            Self::StacksTooDeep { .. } => "the nested calls' stacks are too large together",
        }
    }
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pc) = self.pc() {
            write!(f, "insn {pc}: ")?;
        }
        f.write_str(self.what())?;
        match self {
            Self::UnknownHelper { number, .. } => {
                write!(f, ": bpf_{}#{number}", foreign_name(*number))
            }
            Self::UnknownOpcode { code, .. } => write!(f, " {code:#04x}"),
            Self::BadMapFd { fd, .. } => write!(f, ": fd {fd}"),
            Self::UninitRegister { reg, .. } | Self::BadArgument { reg, .. } => {
                write!(f, ": r{reg}")
            }
            Self::UninitStack { off, .. } | Self::BadContextAccess { off, .. } => {
                write!(f, ": offset {off}")
            }
            Self::StacksTooDeep { bytes } => write!(f, ": {bytes} bytes"),
            _ => Ok(()),
        }
    }
}

impl core::error::Error for VerifyError {}
