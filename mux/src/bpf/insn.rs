//! Instruction encoding (RFC 9669) and the pre-decoded form. Nothing executes here.
//!
//! Opcode bytes are written as the RFC composes them: class in the low three bits, then for
//! arithmetic and jumps a source bit and an operation, for loads and stores a size and a mode.

/// Instruction classes, the low three bits of an opcode.
pub mod class {
    #![allow(missing_docs)]
    pub const LD: u8 = 0x00;
    pub const LDX: u8 = 0x01;
    pub const ST: u8 = 0x02;
    pub const STX: u8 = 0x03;
    pub const ALU: u8 = 0x04;
    pub const JMP: u8 = 0x05;
    pub const JMP32: u8 = 0x06;
    pub const ALU64: u8 = 0x07;
}

/// Source bit of arithmetic and jumps: the second operand is the immediate.
pub const K: u8 = 0x00;
/// Source bit of arithmetic and jumps: the second operand is the source register.
pub const X: u8 = 0x08;

/// Access sizes, bits 3 and 4 of loads and stores.
pub mod size {
    #![allow(missing_docs)]
    pub const W: u8 = 0x00;
    pub const H: u8 = 0x08;
    pub const B: u8 = 0x10;
    pub const DW: u8 = 0x18;
}

/// Addressing modes, the top three bits of loads and stores.
pub mod mode {
    #![allow(missing_docs)]
    pub const IMM: u8 = 0x00;
    pub const ABS: u8 = 0x20;
    pub const IND: u8 = 0x40;
    pub const MEM: u8 = 0x60;
    pub const MEMSX: u8 = 0x80;
    pub const ATOMIC: u8 = 0xc0;
}

/// Arithmetic operations, the top four bits.
pub mod alu {
    #![allow(missing_docs)]
    pub const ADD: u8 = 0x00;
    pub const SUB: u8 = 0x10;
    pub const MUL: u8 = 0x20;
    pub const DIV: u8 = 0x30;
    pub const OR: u8 = 0x40;
    pub const AND: u8 = 0x50;
    pub const LSH: u8 = 0x60;
    pub const RSH: u8 = 0x70;
    pub const NEG: u8 = 0x80;
    pub const MOD: u8 = 0x90;
    pub const XOR: u8 = 0xa0;
    pub const MOV: u8 = 0xb0;
    pub const ARSH: u8 = 0xc0;
    pub const END: u8 = 0xd0;
}

/// Jump operations, the top four bits.
pub mod jmp {
    #![allow(missing_docs)]
    pub const JA: u8 = 0x00;
    pub const JEQ: u8 = 0x10;
    pub const JGT: u8 = 0x20;
    pub const JGE: u8 = 0x30;
    pub const JSET: u8 = 0x40;
    pub const JNE: u8 = 0x50;
    pub const JSGT: u8 = 0x60;
    pub const JSGE: u8 = 0x70;
    pub const CALL: u8 = 0x80;
    pub const EXIT: u8 = 0x90;
    pub const JLT: u8 = 0xa0;
    pub const JLE: u8 = 0xb0;
    pub const JSLT: u8 = 0xc0;
    pub const JSLE: u8 = 0xd0;
    /// Conditional pseudo jump (`may_goto`), refused here.
    pub const JCOND: u8 = 0xe0;
}

/// Atomic operations, the immediate of [`mode::ATOMIC`] stores.
pub mod atomic {
    #![allow(missing_docs)]
    pub const ADD: i64 = 0x00;
    pub const OR: i64 = 0x40;
    pub const AND: i64 = 0x50;
    pub const XOR: i64 = 0xa0;
    pub const FETCH: i64 = 0x01;
    pub const XCHG: i64 = 0xe1;
    pub const CMPXCHG: i64 = 0xf1;
    pub const LOAD_ACQ: i64 = 0x100;
    pub const STORE_REL: i64 = 0x110;
}

/// Meanings of the source register field of `LD_IMM64` and `CALL`.
pub mod pseudo {
    #![allow(missing_docs)]
    pub const MAP_FD: u8 = 1;
    pub const MAP_VALUE: u8 = 2;
    pub const CALL: u8 = 1;
    pub const KFUNC_CALL: u8 = 2;
}

/// Whole opcode bytes, composed, for dispatch.
pub(crate) mod code {
    use super::{K, X, alu, class, jmp, mode, size};

    pub(crate) const LD_ABS_W: u8 = class::LD | mode::ABS | size::W;
    pub(crate) const LD_ABS_H: u8 = class::LD | mode::ABS | size::H;
    pub(crate) const LD_ABS_B: u8 = class::LD | mode::ABS | size::B;
    pub(crate) const LD_IND_W: u8 = class::LD | mode::IND | size::W;
    pub(crate) const LD_IND_H: u8 = class::LD | mode::IND | size::H;
    pub(crate) const LD_IND_B: u8 = class::LD | mode::IND | size::B;
    pub(crate) const LDX_B: u8 = class::LDX | mode::MEM | size::B;
    pub(crate) const LDX_H: u8 = class::LDX | mode::MEM | size::H;
    pub(crate) const LDX_W: u8 = class::LDX | mode::MEM | size::W;
    pub(crate) const LDX_DW: u8 = class::LDX | mode::MEM | size::DW;
    pub(crate) const STX_B: u8 = class::STX | mode::MEM | size::B;
    pub(crate) const STX_H: u8 = class::STX | mode::MEM | size::H;
    pub(crate) const STX_W: u8 = class::STX | mode::MEM | size::W;
    pub(crate) const STX_DW: u8 = class::STX | mode::MEM | size::DW;
    pub(crate) const JA: u8 = class::JMP | jmp::JA;
    pub(crate) const GOTOL: u8 = class::JMP32 | jmp::JA;
    pub(crate) const CALL: u8 = class::JMP | jmp::CALL;
    pub(crate) const EXIT: u8 = class::JMP | jmp::EXIT;
    pub(crate) const LE: u8 = class::ALU | alu::END | K;
    pub(crate) const BE: u8 = class::ALU | alu::END | X;
    pub(crate) const BSWAP: u8 = class::ALU64 | alu::END | K;

    macro_rules! opcodes {
        ($($name:ident = $bits:expr, $ops:ident: $($op:ident)*;)*) => {
            $(pub(crate) mod $name {
                use super::super::{K, X, $ops, class};
                $(pub(crate) const $op: u8 = ($bits & (K | X | 0x07)) | $ops::$op;)*
            })*
        };
    }
    opcodes! {
        alu64_k = class::ALU64 | K, alu: ADD SUB MUL DIV OR AND LSH RSH NEG MOD XOR MOV ARSH;
        alu64_x = class::ALU64 | X, alu: ADD SUB MUL DIV OR AND LSH RSH NEG MOD XOR MOV ARSH;
        alu32_k = class::ALU | K, alu: ADD SUB MUL DIV OR AND LSH RSH NEG MOD XOR MOV ARSH;
        alu32_x = class::ALU | X, alu: ADD SUB MUL DIV OR AND LSH RSH NEG MOD XOR MOV ARSH;
        jmp64_k = class::JMP | K, jmp: JEQ JGT JGE JSET JNE JSGT JSGE JLT JLE JSLT JSLE;
        jmp64_x = class::JMP | X, jmp: JEQ JGT JGE JSET JNE JSGT JSGE JLT JLE JSLT JSLE;
        jmp32_k = class::JMP32 | K, jmp: JEQ JGT JGE JSET JNE JSGT JSGE JLT JLE JSLT JSLE;
        jmp32_x = class::JMP32 | X, jmp: JEQ JGT JGE JSET JNE JSGT JSGE JLT JLE JSLT JSLE;
    }
}

/// `LD_IMM64`, the only instruction of two slots.
pub const LD_IMM64: u8 = class::LD | size::DW | mode::IMM;

/// The frame pointer, read-only.
pub const FP: u8 = 10;
/// Number of registers, r0 to r10.
pub const REG_COUNT: usize = 11;

/// One slot as the kernel's `struct bpf_insn` has it: 8 bytes, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawInsn {
    /// Opcode.
    pub code: u8,
    /// Destination register, 0 to 15 as encoded.
    pub dst: u8,
    /// Source register, 0 to 15 as encoded.
    pub src: u8,
    /// Signed offset: memory displacement, jump distance, or a variant of the operation.
    pub off: i16,
    /// Immediate.
    pub imm: i32,
}

impl RawInsn {
    /// Bytes of one slot.
    pub const BYTES: usize = 8;

    /// Reads one slot.
    pub fn from_bytes(b: [u8; Self::BYTES]) -> Self {
        let [code, regs, o0, o1, i0, i1, i2, i3] = b;
        Self {
            code,
            dst: regs & 0xf,
            src: regs >> 4,
            off: i16::from_le_bytes([o0, o1]),
            imm: i32::from_le_bytes([i0, i1, i2, i3]),
        }
    }

    /// Reads one slot. None unless it is eight bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_bytes)
    }

    /// The slot's bytes, the inverse of [`RawInsn::from_bytes`].
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let [o0, o1] = self.off.to_le_bytes();
        let [i0, i1, i2, i3] = self.imm.to_le_bytes();
        [
            self.code,
            self.dst & 0xf | self.src << 4,
            o0,
            o1,
            i0,
            i1,
            i2,
            i3,
        ]
    }
}

/// A pre-decoded instruction. Indices equal the raw program's slots, so the second slot of an
/// `LD_IMM64` stays as a hole that no jump may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Insn {
    /// The raw opcode.
    pub(crate) code: u8,
    /// Destination register, at most 10.
    pub(crate) dst: u8,
    /// Source register, at most 10; the pseudo kind of `LD_IMM64` and `CALL`.
    pub(crate) src: u8,
    /// Jumps and local calls: the target slot. Otherwise the sign-extended offset field.
    pub(crate) off: i32,
    /// Sign-extended immediate; for `LD_IMM64` the whole constant or virtual address.
    pub(crate) imm: i64,
}

impl Insn {
    /// Class bits.
    pub(crate) const fn class(&self) -> u8 {
        self.code & 0x07
    }

    /// Operation bits of arithmetic and jumps.
    pub(crate) const fn op(&self) -> u8 {
        self.code & 0xf0
    }

    /// Whether arithmetic or a jump takes its second operand from the source register.
    pub(crate) const fn is_x(&self) -> bool {
        self.code & X != 0
    }

    /// Mode bits of loads and stores.
    pub(crate) const fn mode(&self) -> u8 {
        self.code & 0xe0
    }

    /// Bytes a load or store touches.
    pub(crate) const fn access_bytes(&self) -> usize {
        match self.code & 0x18 {
            size::W => 4,
            size::H => 2,
            size::B => 1,
            _ => 8,
        }
    }
}
