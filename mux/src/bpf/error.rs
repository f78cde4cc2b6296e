//! Why a program is refused, each reason with the errno `BPF_PROG_LOAD` fails with.

use core::fmt;

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
    /// A direct map value of a map that has not exactly one element, or is no array.
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
}

impl VerifyError {
    /// The errno `BPF_PROG_LOAD` fails with, positive.
    pub const fn errno(&self) -> i32 {
        match self {
            Self::BadLength | Self::TooManyMaps { .. } => E2BIG,
            Self::BadMapFd { .. } => EBADF,
            _ => EINVAL,
        }
    }
}

const E2BIG: i32 = 7;
const EBADF: i32 = 9;
const EINVAL: i32 = 22;

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl core::error::Error for VerifyError {}
