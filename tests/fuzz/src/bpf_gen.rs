//! Parser programs made from a string of bytes: the same bytes give the same program.
//!
//! [`valid`] composes statements a verifier accepts, over all instruction classes, with branches,
//! bounded loops, local functions, helpers and maps. [`mutate`] damages a program a little.
//! Results do not depend on addresses or clocks, so two implementations must agree on them.

use kcm_mux::bpf::insn::{
    FP, K, LD_IMM64, RawInsn, X, alu, atomic, class, jmp, mode, pseudo, size,
};
use kcm_mux::bpf::map::{MAP_TYPE_ARRAY, MAP_TYPE_HASH, MapSpec};

/// Number, in place of a descriptor, of an array map of four 16-byte values.
pub const ARRAY: i32 = 0;
/// Number of a hash map of at most four 12-byte values under 8-byte keys.
pub const HASH: i32 = 1;
/// Number of an array map of one 64-byte value, as compilers make for global variables.
pub const GLOBALS: i32 = 2;

/// The maps programs refer to by number.
pub const MAPS: [MapSpec; 3] = [
    map(MAP_TYPE_ARRAY, 4, 16, 4),
    map(MAP_TYPE_HASH, 8, 12, 4),
    map(MAP_TYPE_ARRAY, 4, 64, 1),
];

const fn map(map_type: u32, key_size: u32, value_size: u32, max_entries: u32) -> MapSpec {
    MapSpec {
        map_type,
        key_size,
        value_size,
        max_entries,
        flags: 0,
    }
}

/// Choices read from bytes; zeros behind their end.
#[derive(Debug)]
pub struct Source<'a>(pub &'a [u8]);

impl Source<'_> {
    /// One byte.
    pub fn byte(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                let first = *first;
                self.0 = rest;
                first
            }
            [] => 0,
        }
    }

    /// A number below `bound`, which is at most 256.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    /// One of some values.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// A constant, often one at an edge.
    pub fn constant(&mut self) -> i32 {
        match self.below(4) {
            0 => self.pick(&[
                0,
                1,
                -1,
                2,
                7,
                31,
                32,
                63,
                64,
                255,
                256,
                65535,
                i32::MIN,
                i32::MAX,
            ]),
            1 => i32::from(self.byte()),
            2 => -i32::from(self.byte()),
            _ => i32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()]),
        }
    }
}

/// Bytes of stack, from the frame pointer down, that hold numbers from the start.
const SLOTS_BYTES: i16 = 64;
/// Where keys, values and buffers for helpers lie.
const KEY: i16 = -72;
const VALUE: i16 = -96;
const BUFFER: i16 = -160;
/// Bytes of that buffer.
const BUFFER_BYTES: usize = 64;

/// Statements nest at most this deep.
const NESTING_MAX: usize = 3;
/// The context, all through the program.
const CTX: u8 = 6;
/// Counts loop turns; statements inside a loop leave it alone.
const COUNTER: u8 = 9;

/// Always holds a number, calls or not.
const SAVED: u8 = 7;

const ALU_OPS: [u8; 11] = [
    alu::ADD,
    alu::SUB,
    alu::MUL,
    alu::DIV,
    alu::OR,
    alu::AND,
    alu::LSH,
    alu::RSH,
    alu::MOD,
    alu::XOR,
    alu::ARSH,
];
const JMP_OPS: [u8; 11] = [
    jmp::JEQ,
    jmp::JGT,
    jmp::JGE,
    jmp::JSET,
    jmp::JNE,
    jmp::JSGT,
    jmp::JSGE,
    jmp::JLT,
    jmp::JLE,
    jmp::JSLT,
    jmp::JSLE,
];
const SIZES: [u8; 4] = [size::B, size::H, size::W, size::DW];

/// Bytes a size code stands for.
const fn bytes_of(size: u8) -> i16 {
    match size {
        size::B => 1,
        size::H => 2,
        size::W => 4,
        _ => 8,
    }
}

struct Builder<'s, 'a> {
    source: &'s mut Source<'a>,
    insns: Vec<RawInsn>,
    /// Registers that hold numbers.
    numbers: Vec<u8>,
    /// Places of calls to patch, by function.
    calls: Vec<usize>,
    in_function: bool,
    in_loop: bool,
    nesting: usize,
}

/// A program a verifier accepts.
pub fn valid(source: &mut Source<'_>) -> Vec<RawInsn> {
    let statements = 1 + source.below(12);
    let mut builder = Builder {
        source,
        insns: Vec::new(),
        numbers: Vec::new(),
        calls: Vec::new(),
        in_function: false,
        in_loop: false,
        nesting: 0,
    };
    builder.op(class::ALU64 | alu::MOV | X, CTX, 1, 0, 0);
    for reg in [0, 7, 8, COUNTER] {
        builder.define(reg);
    }
    builder.fill_slots();
    for _ in 0..statements {
        builder.statement();
    }
    builder.fold();
    if !builder.calls.is_empty() {
        builder.function();
    }
    builder.insns
}

impl Builder<'_, '_> {
    fn op(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.insns.push(RawInsn {
            code,
            dst,
            src,
            off,
            imm,
        });
    }

    fn wide(&mut self, dst: u8, src: u8, low: i32, high: i32) {
        self.op(LD_IMM64, dst, src, 0, low);
        self.op(0, 0, 0, 0, high);
    }

    fn call(&mut self, helper: i32) {
        self.op(class::JMP | jmp::CALL, 0, 0, 0, helper);
        self.numbers.retain(|reg| *reg > 5);
    }

    /// Fills the stack slots.
    fn fill_slots(&mut self) {
        for slot in 1..=SLOTS_BYTES / 8 {
            let imm = self.source.constant();
            self.op(class::ST | mode::MEM | size::DW, FP, 0, -8 * slot, imm);
        }
    }

    /// Makes r0 depend on all registers and slots, and ends the function.
    fn fold(&mut self) {
        self.need(0);
        for reg in self.numbers.clone() {
            self.op(class::ALU64 | alu::MUL | K, 0, 0, 0, 0x0100_0193);
            self.op(class::ALU64 | alu::XOR | X, 0, reg, 0, 0);
        }
        for slot in 1..=SLOTS_BYTES / 8 {
            self.op(class::LDX | mode::MEM | size::DW, 1, FP, -8 * slot, 0);
            self.op(class::ALU64 | alu::MUL | K, 0, 0, 0, 0x0100_0193);
            self.op(class::ALU64 | alu::XOR | X, 0, 1, 0, 0);
        }
        self.op(class::ALU64 | alu::MOV | X, 1, 0, 0, 0);
        self.op(class::ALU64 | alu::RSH | K, 1, 0, 0, 32);
        self.op(class::ALU64 | alu::XOR | X, 0, 1, 0, 0);
        self.op(class::JMP | jmp::EXIT, 0, 0, 0, 0);
    }

    /// The function local calls go to: numbers r1 and r2 in, a number out, its own stack.
    fn function(&mut self) {
        let start = self.insns.len();
        for &call in &self.calls {
            self.insns[call].imm = (start - call - 1) as i32;
        }
        self.in_function = true;
        self.numbers = vec![1, 2];
        for reg in [0, 7, 8, COUNTER] {
            self.define(reg);
        }
        self.fill_slots();
        for _ in 0..self.source.below(4) {
            self.statement();
        }
        self.fold();
    }

    /// A register that holds a number.
    fn number(&mut self) -> u8 {
        let numbers = self.numbers.clone();
        self.source.pick(&numbers)
    }

    /// A number register a statement may change.
    fn target(&mut self) -> u8 {
        let reg = self.number();
        if self.in_loop && reg == COUNTER {
            SAVED
        } else {
            reg
        }
    }

    fn define(&mut self, reg: u8) {
        let imm = self.source.constant();
        self.op(class::ALU64 | alu::MOV | K, reg, 0, 0, imm);
        self.numbers.push(reg);
        self.numbers.sort_unstable();
        self.numbers.dedup();
    }

    fn need(&mut self, reg: u8) {
        if !self.numbers.contains(&reg) {
            self.define(reg);
        }
    }

    fn statement(&mut self) {
        match self.source.below(22) {
            0..=4 => self.arithmetic(),
            5 => self.byte_order(),
            6 => self.moves(),
            7 => {
                let (low, high) = (self.source.constant(), self.source.constant());
                let reg = self.target();
                self.wide(reg, 0, low, high);
            }
            8 if !self.in_function => self.packet_load(),
            9 | 10 => self.stack_access(),
            11 => self.stack_atomic(),
            12 => self.stack_at_variable_offset(),
            13 if !self.in_function => self.context_access(),
            14 | 15 if self.nesting < NESTING_MAX => self.branch(),
            16 if self.nesting < NESTING_MAX && !self.in_loop => self.bounded_loop(),
            17 if !self.in_function => self.load_bytes(),
            18 => self.map_element(),
            19 => self.map_change(),
            20 => self.globals(),
            21 if !self.in_function && !self.in_loop => self.local_call(),
            _ => self.clock_or_chance(),
        }
    }

    fn arithmetic(&mut self) {
        let width = self.source.pick(&[class::ALU, class::ALU64]);
        let op = self.source.pick(&ALU_OPS);
        let (dst, src) = (self.target(), self.number());
        let signed = i16::from(matches!(op, alu::DIV | alu::MOD) && self.source.below(2) == 1);
        if self.source.below(8) == 0 {
            self.op(width | alu::NEG, dst, 0, 0, 0);
        } else if self.source.below(2) == 1 {
            self.op(width | op | X, dst, src, signed, 0);
        } else {
            let imm = match op {
                alu::LSH | alu::RSH | alu::ARSH => self.source.below(32) as i32,
                alu::DIV | alu::MOD => self.source.constant().max(1),
                _ => self.source.constant(),
            };
            self.op(width | op | K, dst, 0, signed, imm);
        }
    }

    fn byte_order(&mut self) {
        let code = self
            .source
            .pick(&[class::ALU | K, class::ALU | X, class::ALU64 | K]);
        let (reg, bits) = (self.target(), self.source.pick(&[16, 32, 64]));
        self.op(code | alu::END, reg, 0, 0, bits);
    }

    fn moves(&mut self) {
        let (dst, src) = (self.target(), self.number());
        let (width, variant) = self.source.pick(&[
            (class::ALU64, 0),
            (class::ALU64, 8),
            (class::ALU64, 16),
            (class::ALU64, 32),
            (class::ALU, 0),
            (class::ALU, 8),
            (class::ALU, 16),
        ]);
        self.op(width | alu::MOV | X, dst, src, variant, 0);
        if self.source.below(2) == 0 {
            let reg = self.source.pick(&[0, 2, 3, 4, 5]);
            self.define(reg);
        }
    }

    fn packet_load(&mut self) {
        let size = self.source.pick(&[size::B, size::H, size::W]);
        let off = self
            .source
            .pick(&[0, 1, 2, 3, 4, 8, 16, 20, 61, 64, 1000, i32::MAX]);
        if self.source.below(2) == 0 {
            self.op(class::LD | mode::ABS | size, 0, 0, 0, off);
        } else {
            let index = self.target();
            self.op(class::ALU64 | alu::AND | K, index, 0, 0, 31);
            self.op(class::LD | mode::IND | size, 0, index, 0, off & 63);
        }
        self.numbers.retain(|reg| *reg > 5);
        self.numbers.insert(0, 0);
    }

    /// A size and an aligned offset among the slots.
    fn slot(&mut self) -> (u8, i16) {
        let size = self.source.pick(&SIZES);
        let places = SLOTS_BYTES / bytes_of(size);
        let place = self.source.below(places as usize) as i16 + 1;
        (size, -place * bytes_of(size))
    }

    fn stack_access(&mut self) {
        let (size, off) = self.slot();
        let (dst, src) = (self.target(), self.number());
        match self.source.below(4) {
            0 => self.op(class::STX | mode::MEM | size, FP, src, off, 0),
            1 => {
                let imm = self.source.constant();
                self.op(class::ST | mode::MEM | size, FP, 0, off, imm);
            }
            2 if size != size::DW => self.op(class::LDX | mode::MEMSX | size, dst, FP, off, 0),
            _ => self.op(class::LDX | mode::MEM | size, dst, FP, off, 0),
        }
    }

    /// An atomic operation and the registers it takes.
    fn atomic(&mut self) -> i32 {
        let op = self.source.pick(&[
            atomic::ADD,
            atomic::OR,
            atomic::AND,
            atomic::XOR,
            atomic::ADD | atomic::FETCH,
            atomic::OR | atomic::FETCH,
            atomic::AND | atomic::FETCH,
            atomic::XOR | atomic::FETCH,
            atomic::XCHG,
            atomic::CMPXCHG,
        ]);
        if op == atomic::CMPXCHG {
            self.need(0);
        }
        op as i32
    }

    fn stack_atomic(&mut self) {
        let op = self.atomic();
        let size = self.source.pick(&[size::W, size::DW]);
        let place = self.source.below((SLOTS_BYTES / bytes_of(size)) as usize) as i16 + 1;
        let src = self.target();
        self.op(
            class::STX | mode::ATOMIC | size,
            FP,
            src,
            -place * bytes_of(size),
            op,
        );
    }

    fn stack_at_variable_offset(&mut self) {
        let (index, value) = (SAVED, 8);
        self.op(
            class::ALU64 | alu::AND | K,
            index,
            0,
            0,
            i32::from(SLOTS_BYTES - 8) & !7,
        );
        self.op(class::ALU64 | alu::MOV | X, 1, FP, 0, 0);
        self.op(
            class::ALU64 | alu::ADD | K,
            1,
            0,
            0,
            i32::from(-SLOTS_BYTES),
        );
        self.op(class::ALU64 | alu::ADD | X, 1, index, 0, 0);
        if self.source.below(2) == 0 {
            self.op(class::LDX | mode::MEM | size::DW, index, 1, 0, 0);
        } else {
            self.op(class::STX | mode::MEM | size::DW, 1, value, 0, 0);
        }
        self.numbers.retain(|reg| *reg != 1);
    }

    /// Fields that are the same in a test run and here: the length, zeros, and `cb`.
    fn context_access(&mut self) {
        let (dst, src) = (self.target(), self.number());
        match self.source.below(4) {
            0 => {
                let field = self.source.pick(&[0, 8, 20, 32]);
                let (size, within) =
                    self.source
                        .pick(&[(size::W, 0), (size::H, 0), (size::H, 2), (size::B, 3)]);
                self.op(class::LDX | mode::MEM | size, dst, CTX, field + within, 0);
            }
            1 => {
                let size = self.source.pick(&[size::B, size::H, size::W]);
                let place = self.source.below((20 / bytes_of(size)) as usize) as i16;
                self.op(
                    class::LDX | mode::MEM | size,
                    dst,
                    CTX,
                    48 + place * bytes_of(size),
                    0,
                );
            }
            2 => {
                let size = self.source.pick(&SIZES);
                let place = self.source.below((20 / bytes_of(size)) as usize) as i16;
                self.op(
                    class::STX | mode::MEM | size,
                    CTX,
                    src,
                    48 + place * bytes_of(size),
                    0,
                );
            }
            _ => {
                let (off, imm) = (4 * self.source.below(5) as i16, self.source.constant());
                self.op(class::ST | mode::MEM | size::W, CTX, 0, 48 + off, imm);
            }
        }
    }

    /// A conditional jump over a block.
    fn branch(&mut self) {
        let width = self.source.pick(&[class::JMP, class::JMP32]);
        let op = self.source.pick(&JMP_OPS);
        let (dst, src, imm) = (self.number(), self.number(), self.source.constant());
        let at = self.insns.len();
        if self.source.below(2) == 0 {
            self.op(width | op | X, dst, src, 0, 0);
        } else {
            self.op(width | op | K, dst, 0, 0, imm);
        }
        self.block();
        self.insns[at].off = (self.insns.len() - at - 1) as i16;
        if self.source.below(4) == 0 {
            // Over nothing, by the long form.
            self.op(class::JMP32 | jmp::JA, 0, 0, 0, 0);
        }
    }

    /// Some statements that may not run: what they define is not there behind them.
    fn block(&mut self) {
        let before = self.numbers.clone();
        self.nesting += 1;
        for _ in 0..=self.source.below(3) {
            self.statement();
        }
        self.nesting -= 1;
        self.numbers.retain(|reg| before.contains(reg));
    }

    /// A few turns of a block.
    fn bounded_loop(&mut self) {
        let turns = 1 + self.source.below(4) as i32;
        self.op(class::ALU64 | alu::MOV | K, COUNTER, 0, 0, turns);
        let start = self.insns.len();
        // Only what survives the body may be used at its start.
        self.numbers.retain(|reg| *reg > 5);
        self.in_loop = true;
        self.block();
        self.in_loop = false;
        self.op(class::ALU64 | alu::ADD | K, COUNTER, 0, 0, -1);
        let back = start as i64 - self.insns.len() as i64 - 1;
        self.op(class::JMP | jmp::JNE | K, COUNTER, 0, back as i16, 0);
    }

    fn load_bytes(&mut self) {
        let bytes = 1 + self.source.below(BUFFER_BYTES);
        let off = self.source.pick(&[0, 1, 4, 16, 40, 63, 64, 1000, -1]);
        self.op(class::ALU64 | alu::MOV | X, 1, CTX, 0, 0);
        self.op(class::ALU64 | alu::MOV | K, 2, 0, 0, off);
        self.op(class::ALU64 | alu::MOV | X, 3, FP, 0, 0);
        self.op(class::ALU64 | alu::ADD | K, 3, 0, 0, i32::from(BUFFER));
        self.op(class::ALU64 | alu::MOV | K, 4, 0, 0, bytes as i32);
        if self.source.below(2) == 0 {
            self.call(26);
        } else {
            self.op(class::ALU64 | alu::MOV | K, 5, 0, 0, 1);
            self.call(68);
        }
        let dst = SAVED;
        let last = BUFFER + bytes as i16 - 1;
        self.op(class::LDX | mode::MEM | size::B, dst, FP, last, 0);
        self.op(class::ALU64 | alu::XOR | X, dst, 0, 0, 0);
        self.numbers.push(0);
        self.numbers.sort_unstable();
    }

    fn key(&mut self, map: i32) {
        let key = self.source.pick(&[0, 1, 2, 3, 3, 4, 9]);
        if map == HASH {
            self.op(class::ST | mode::MEM | size::DW, FP, 0, KEY, key);
        } else {
            self.op(class::ST | mode::MEM | size::W, FP, 0, KEY, key);
        }
        self.wide(1, pseudo::MAP_FD, map, 0);
        self.op(class::ALU64 | alu::MOV | X, 2, FP, 0, 0);
        self.op(class::ALU64 | alu::ADD | K, 2, 0, 0, i32::from(KEY));
    }

    /// Looks an element up and works on its value.
    fn map_element(&mut self) {
        let map = self.source.pick(&[ARRAY, HASH]);
        self.key(map);
        self.call(1);
        let skip = self.insns.len();
        self.op(class::JMP | jmp::JEQ | K, 0, 0, 0, 0);
        self.value_access(0, 8);
        self.insns[skip].off = (self.insns.len() - skip - 1) as i16;
        // r0 may be an address here.
        self.op(class::ALU64 | alu::MOV | K, 0, 0, 0, 1);
        self.numbers.push(0);
        self.numbers.sort_unstable();
    }

    /// Accesses the first eight to `bytes` bytes behind `base`.
    fn value_access(&mut self, base: u8, bytes: i16) {
        let size = self.source.pick(&SIZES);
        let place = self.source.below((bytes / bytes_of(size)) as usize) as i16;
        let (off, src) = (place * bytes_of(size), SAVED);
        match self.source.below(5) {
            0 => self.op(class::STX | mode::MEM | size, base, src, off, 0),
            1 => {
                let imm = self.source.constant();
                self.op(class::ST | mode::MEM | size, base, 0, off, imm);
            }
            2 if matches!(size, size::W | size::DW) => {
                let op = self.source.pick(&[
                    atomic::ADD,
                    atomic::XOR | atomic::FETCH,
                    atomic::AND | atomic::FETCH,
                    atomic::XCHG,
                ]);
                self.op(class::STX | mode::ATOMIC | size, base, src, off, op as i32);
            }
            3 => {
                // Unaligned by one where there is room, at an offset the verifier must bound.
                self.op(class::ALU64 | alu::MOV | X, 3, src, 0, 0);
                self.op(class::ALU64 | alu::AND | K, 3, 0, 0, 3);
                self.op(class::ALU64 | alu::ADD | X, base, 3, 0, 0);
                self.op(class::LDX | mode::MEM | size::W, src, base, 1, 0);
            }
            _ => self.op(class::LDX | mode::MEM | size, src, base, off, 0),
        }
    }

    fn map_change(&mut self) {
        let map = self.source.pick(&[ARRAY, HASH]);
        for word in 0..3 {
            let imm = self.source.constant();
            self.op(
                class::ST | mode::MEM | size::DW,
                FP,
                0,
                VALUE + 8 * word,
                imm,
            );
        }
        self.key(map);
        if self.source.below(3) == 0 {
            self.call(3);
        } else {
            self.op(class::ALU64 | alu::MOV | X, 3, FP, 0, 0);
            self.op(class::ALU64 | alu::ADD | K, 3, 0, 0, i32::from(VALUE));
            let flags = self.source.pick(&[0, 0, 1, 2, 3]);
            self.op(class::ALU64 | alu::MOV | K, 4, 0, 0, flags);
            self.call(2);
        }
        self.numbers.push(0);
        self.numbers.sort_unstable();
    }

    fn globals(&mut self) {
        self.numbers.retain(|reg| !matches!(reg, 1 | 3));
        let off = self.source.below(48) as i32 & !7;
        self.wide(1, pseudo::MAP_VALUE, GLOBALS, off);
        self.value_access(1, 8);
        self.numbers.retain(|reg| !matches!(reg, 1 | 3));
    }

    fn local_call(&mut self) {
        for reg in [1, 2] {
            let number = self.number();
            self.op(class::ALU64 | alu::MOV | X, reg, number, 0, 0);
        }
        self.calls.push(self.insns.len());
        self.op(class::JMP | jmp::CALL, 0, pseudo::CALL, 0, 0);
        self.numbers.retain(|reg| *reg > 5);
        self.numbers.insert(0, 0);
    }

    /// Helpers whose results differ from run to run: only that they return is compared.
    fn clock_or_chance(&mut self) {
        let helper = self.source.pick(&[5, 7, 8, 125, 160, 46, 47]);
        if matches!(helper, 46 | 47) {
            if self.in_function {
                return;
            }
            self.op(class::ALU64 | alu::MOV | X, 1, CTX, 0, 0);
        }
        self.call(helper);
        self.op(class::ALU64 | alu::AND | K, 0, 0, 0, 0);
        self.numbers.push(0);
        self.numbers.sort_unstable();
    }
}

/// Damages one to three fields.
pub fn mutate(insns: &mut [RawInsn], source: &mut Source<'_>) {
    for _ in 0..=source.below(3) {
        let at = source.below(256) * 256 + source.below(256);
        let count = insns.len().max(1);
        let Some(insn) = insns.get_mut(at % count) else {
            return;
        };
        match source.below(6) {
            0 => insn.dst = source.below(11) as u8,
            1 => insn.src = source.below(11) as u8,
            2 => {
                insn.off = insn
                    .off
                    .wrapping_add(source.pick(&[1, -1, 4, 8, -8, 64, -512]))
            }
            3 => insn.imm = source.constant(),
            4 => insn.code ^= 1 << source.below(8),
            _ => insn.code = source.byte(),
        }
    }
}

/// The bytes of a program, with map numbers replaced by descriptors.
pub fn to_bytes(insns: &[RawInsn], fds: &[i32]) -> Vec<u8> {
    let with_fd = |insn: &RawInsn| match (insn.code, insn.src) {
        (LD_IMM64, pseudo::MAP_FD | pseudo::MAP_VALUE) => {
            let fd = usize::try_from(insn.imm)
                .ok()
                .and_then(|number| fds.get(number));
            RawInsn {
                imm: fd.copied().unwrap_or(-1),
                ..*insn
            }
        }
        _ => *insn,
    };
    insns
        .iter()
        .map(with_fd)
        .flat_map(RawInsn::to_bytes)
        .collect()
}
