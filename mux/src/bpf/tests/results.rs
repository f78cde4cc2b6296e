//! Programs with their results.

use super::*;

#[test]
fn clangs_length_prefix_parser_returns_body_plus_header() {
    let parser = [SAVE_CTX, (ABS_W, 0, 0, 0, 0), (ADD, 0, 0, 0, 4), EXIT];
    assert_eq!(run(&parser, &[0, 0, 1, 2, 9]), 0x106);
    assert_eq!(run(&parser, &[0xff; 4]), 0x1_0000_0003);
    assert_eq!(run(&parser, &[0, 0, 1]), 0);
}

#[test]
fn closed_form_equals_the_interpreter() {
    let step = |code, imm| (code, 0, 0, 0, imm);
    let programs = [
        vec![],
        vec![step(ADD, -7)],
        vec![step(class::ALU | alu::RSH | K, 8), step(ADD, 9)],
        vec![
            step(class::ALU | alu::END | X, 32),
            step(class::ALU64 | alu::MUL | K, 3),
        ],
        vec![
            step(class::ALU | alu::NEG, 0),
            step(class::ALU64 | alu::AND | K, 0xffff),
        ],
    ];
    for steps in programs {
        for size in [size::W, size::H, size::B] {
            let load = (class::LD | mode::ABS | size, 0, 0, 0, 1);
            let short = join(&[&[SAVE_CTX, load], &steps, &[EXIT]]);
            // A jump to the next instruction changes nothing but the shape.
            let long = join(&[&[SAVE_CTX, load, (JA, 0, 0, 0, 0)], &steps, &[EXIT]]);
            for packet in [&[1, 0xfe, 3, 4, 5, 6][..], &[1, 2], &[]] {
                assert_eq!(run(&short, packet), run(&long, packet), "{steps:x?}");
            }
        }
    }
}

#[test]
fn length_prefix_equals_the_program() {
    let step = |code, imm| (code, 0, 0, 0, imm);
    let (rsh32, and64) = (class::ALU | alu::RSH | K, class::ALU64 | alu::AND | K);
    let prefixes = [
        vec![],
        vec![step(ADD, -7)],
        vec![step(rsh32, 7), step(ADD, 9)],
        vec![
            step(and64, 0x7fff_ffff),
            step(class::ALU | alu::ADD | K, 4),
            step(ADD, 1),
        ],
        vec![
            step(and64, -256),
            step(rsh32, 3),
            step(and64, 0xff),
            step(ADD, i32::MAX),
        ],
    ];
    let others = [
        vec![step(ADD, 1), step(rsh32, 1)],
        vec![step(class::ALU64 | alu::MUL | K, 3)],
        vec![step(class::ALU64 | alu::RSH | K, 33)],
        vec![step(class::ALU | alu::END | X, 32)],
    ];
    let program = |size, steps: &[Slot]| {
        let load = (class::LD | mode::ABS | size, 0, 0, 0, 1);
        join(&[&[SAVE_CTX, load], steps, &[EXIT]])
    };
    for size in [size::W, size::H, size::B] {
        for steps in &prefixes {
            let program = program(size, steps);
            let prefix = verify(&program).unwrap().length_field().unwrap();
            for packet in [[9, 0xfe, 3, 0x84, 5], [0; 5], [0xff; 5]] {
                assert_eq!(prefix.length(&packet), Some(run(&program, &packet) as u32));
            }
            assert_eq!(prefix.length(&[1, 2, 3, 4]), None);
        }
        for steps in &others {
            assert_eq!(verify(&program(size, steps)).unwrap().length_field(), None);
        }
    }
}

#[test]
fn programs_give_their_results() {
    let packet: Vec<u8> = (0..40).collect();
    let alu = |op: u8, variant: i16, a: i32, b: i32| {
        vec![
            (MOV, 0, 0, 0, a),
            (MOV, 1, 0, 0, b),
            (op | X, 0, 1, variant, 0),
            EXIT,
        ]
    };
    let (wide64, narrow) = (class::ALU64, class::ALU);
    let from_stack = |store: Slot, load: Slot| vec![(MOV, 1, 0, 0, -2), store, load, EXIT];
    let element = |access: &[Slot]| {
        let skip = (JEQ, 0, 0, access.len() as i16, 0);
        join(&[&lookup(3, 1), &[skip], access, &[(MOV, 0, 0, 0, 7), EXIT]])
    };
    let stored = [(STDW, 0, 0, 8, 5), (LDXW, 0, 0, 8, 0), EXIT];
    let table: Vec<(&str, Vec<Slot>, u64)> = vec![
        ("div by zero", alu(wide64 | alu::DIV, 0, 5, 0), 0),
        ("mod by zero", alu(wide64 | alu::MOD, 0, 5, 0), 5),
        (
            "mod32 by zero",
            alu(narrow | alu::MOD, 0, -1, 0),
            0xffff_ffff,
        ),
        ("sdiv", alu(wide64 | alu::DIV, 1, -7, 2), -3i64 as u64),
        ("smod", alu(wide64 | alu::MOD, 1, -7, 2), -1i64 as u64),
        (
            "sdiv32 overflow",
            alu(narrow | alu::DIV, 1, i32::MIN, -1),
            0x8000_0000,
        ),
        (
            "smod32 overflow",
            alu(narrow | alu::MOD, 1, i32::MIN, -1),
            0,
        ),
        ("shift count wraps", alu(wide64 | alu::LSH, 0, 1, 65), 2),
        ("arsh32", alu(narrow | alu::ARSH, 0, -8, 1), 0xffff_fffc),
        (
            "movsx8",
            alu(wide64 | alu::MOV, 8, 0, 0x180),
            -128i64 as u64,
        ),
        (
            "movsx16 32",
            alu(narrow | alu::MOV, 16, 0, 0x8000),
            0xffff_8000,
        ),
        (
            "bswap16",
            vec![
                (MOV, 0, 0, 0, 0x1_0203),
                (wide64 | alu::END, 0, 0, 0, 16),
                EXIT,
            ],
            0x0302,
        ),
        (
            "to be64",
            vec![
                (MOV, 0, 0, 0, 1),
                (narrow | alu::END | X, 0, 0, 0, 64),
                EXIT,
            ],
            1 << 56,
        ),
        (
            "to le32",
            vec![(MOV, 0, 0, 0, -1), (narrow | alu::END, 0, 0, 0, 32), EXIT],
            0xffff_ffff,
        ),
        ("imm64", join(&[&wide(0, 0, 1, 2), &[EXIT]]), 0x2_0000_0001),
        (
            "gotol",
            vec![
                (class::JMP32 | jmp::JA, 0, 0, 0, 1),
                EXIT,
                R0_ZERO,
                (JA, 0, 0, -3, 0),
            ],
            0,
        ),
        (
            "load byte, sign-extended",
            from_stack(
                (STXDW, FP, 1, -8, 0),
                (class::LDX | mode::MEMSX | size::B, 0, FP, -8, 0),
            ),
            -2i64 as u64,
        ),
        (
            "xchg",
            from_stack(
                (STDW, FP, 0, -8, 9),
                (ATOMIC_DW, FP, 1, -8, atomic::XCHG as i32),
            )
            .iter()
            .copied()
            .take(3)
            .chain([(MOVX, 0, 1, 0, 0), EXIT])
            .collect(),
            9,
        ),
        (
            "cmpxchg misses",
            vec![
                (MOV, 0, 0, 0, 1),
                (MOV, 1, 0, 0, 2),
                (STDW, FP, 0, -8, 3),
                (ATOMIC_DW, FP, 1, -8, atomic::CMPXCHG as i32),
                EXIT,
            ],
            3,
        ),
        (
            "acquire what was released",
            vec![
                (MOV, 1, 0, 0, 6),
                (ATOMIC_DW, FP, 1, -8, atomic::STORE_REL as i32),
                (ATOMIC_DW, 0, FP, -8, atomic::LOAD_ACQ as i32),
                EXIT,
            ],
            6,
        ),
        (
            "ind",
            vec![SAVE_CTX, (MOV, 7, 0, 0, 4), (IND_H, 0, 7, 0, 3), EXIT],
            0x0708,
        ),
        (
            "ind below zero",
            vec![SAVE_CTX, (MOV, 7, 0, 0, 4), (IND_H, 0, 7, 0, -5), EXIT],
            0,
        ),
        (
            "net header",
            vec![SAVE_CTX, (ABS_W, 0, 0, 0, -0x10_0000), EXIT],
            0,
        ),
        ("len", vec![(LDXW, 0, 1, 0, 0), EXIT], 40),
        ("protocol", vec![(LDXW, 0, 1, 16, 0), EXIT], 8),
        (
            "cb[3], cb[2]",
            vec![(LDXDW, 0, 1, 56, 0), EXIT],
            0x4_0000_0003,
        ),
        (
            "cb[4]",
            vec![(STW, 1, 0, 64, 6), (LDXW, 0, 1, 64, 0), EXIT],
            6,
        ),
        ("ktime", vec![(CALL, 0, 0, 0, 5), EXIT], 77),
        ("boot time", vec![(CALL, 0, 0, 0, 125), EXIT], 88),
        ("cpu", vec![(CALL, 0, 0, 0, 8), EXIT], 9),
        ("cookie", vec![(CALL, 0, 0, 0, 46), EXIT], 0),
        ("uid", vec![(CALL, 0, 0, 0, 47), EXIT], 65_534),
        ("element", element(&stored), 5),
        ("no element", join(&[&lookup(4, 1), &[EXIT]]), 0),
        (
            "global",
            join(&[
                &wide(1, pseudo::MAP_VALUE, 5, 8),
                &[(STW, 1, 0, 4, 3), (LDXDW, 0, 1, 0, 0), EXIT],
            ]),
            3 << 32,
        ),
        (
            "function with its own frame",
            vec![
                (STDW, FP, 0, -8, 1),
                (MOV, 1, 0, 0, 20),
                (MOV, 6, 0, 0, 300),
                (CALL, 0, pseudo::CALL, 0, 4),
                (LDXDW, 1, FP, -8, 0),
                (ADDX, 0, 1, 0, 0),
                (ADDX, 0, 6, 0, 0),
                EXIT,
                (STXDW, FP, 1, -8, 0),
                (MOV, 6, 0, 0, 5),
                (LDXDW, 0, FP, -8, 0),
                EXIT,
            ],
            321,
        ),
    ];
    for (name, slots, expected) in table {
        assert_eq!(run(&slots, &packet), expected, "{name}");
    }
}

#[test]
fn skb_load_bytes_copies_or_clears() {
    let load = |helper, off, header| {
        let slots = [
            (STDW, FP, 0, -8, -1),
            (MOV, 2, 0, 0, off),
            (MOVX, 3, FP, 0, 0),
            (ADD, 3, 0, 0, -8),
            (MOV, 4, 0, 0, 3),
            (MOV, 5, 0, 0, header),
            (CALL, 0, 0, 0, helper),
            (LDXW, 1, FP, -8, 0),
            (ADDX, 0, 1, 0, 0),
            EXIT,
        ];
        run(&slots, &[1, 2, 3, 4, 5])
    };
    assert_eq!(load(26, 2, 0), 0xff05_0403);
    assert_eq!(load(26, 3, 0), 0xff00_0000_u64.wrapping_sub(14));
    assert_eq!(load(26, -1, 0), 0xff00_0000_u64.wrapping_sub(14));
    assert_eq!(load(68, 1, 1), 0xff04_0302);
    assert_eq!(load(68, 1, 0), 0xff00_0000_u64.wrapping_sub(14));
}

#[test]
fn unverified_programs_are_stopped_at_run_time() {
    let fault = |slots: &[Slot]| {
        let program = Program::trusted(&bytes(slots), &maps).unwrap();
        let fault = program
            .try_run(&[0u8; 4][..], &mut [0; 5], &Env::default())
            .unwrap_err();
        let r0 = program.run(&[0u8; 4][..], &mut [0; 5], &Env::default());
        assert_eq!(r0 as i32, -fault.errno());
        fault
    };
    let global = |fd, access: Slot| join(&[&wide(1, pseudo::MAP_VALUE, fd, 0), &[access, EXIT]]);
    let table = [
        (vec![(LDXDW, 0, FP, 0, 0), EXIT], Fault::BadAccess),
        (vec![(LDXDW, 0, FP, -513, 0), EXIT], Fault::BadAccess),
        (vec![(LDXDW, 0, 1, 192, 0), EXIT], Fault::BadAccess),
        (vec![(STW, 1, 0, 0, 0), EXIT], Fault::BadAccess),
        (vec![(LDXDW, 0, 0, 0, 0), EXIT], Fault::BadAccess),
        (global(5, (LDXDW, 0, 1, 57, 0)), Fault::BadAccess),
        (global(5, (ATOMIC_DW, 1, 0, 4, 0)), Fault::BadAccess),
        (global(6, (STW, 1, 0, 0, 0)), Fault::MapAccess),
        (vec![(CALL, 0, 0, 0, 1), EXIT], Fault::BadArgument),
        (vec![(JA, 0, 0, -1, 0)], Fault::Budget),
        (vec![(CALL, 0, 1, 0, -1), EXIT], Fault::CallDepth),
    ];
    for (slots, expected) in table {
        assert_eq!(fault(&slots), expected, "{slots:x?}");
    }
}

/// A message in two parts.
struct Split<'a>(&'a [u8], usize);

impl Packet for Split<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn head(&self) -> &[u8] {
        &self.0[..self.1]
    }

    fn load(&self, off: usize, dst: &mut [u8]) -> bool {
        self.0.load(off, dst)
    }
}

#[test]
fn loads_cross_the_end_of_the_head() {
    let packet = [1, 2, 3, 4, 5, 6, 7];
    for size in [size::W, size::H, size::B] {
        for off in 0..8 {
            let slots = [SAVE_CTX, (class::LD | mode::ABS | size, 0, 0, 0, off), EXIT];
            let whole = run(&slots, &packet);
            for cut in 0..=packet.len() {
                let program = verify(&slots).unwrap();
                let split = program.run(&Split(&packet, cut), &mut [0; 5], &Env::default());
                assert_eq!(split, whole, "{size:#x} at {off}, head of {cut}");
            }
        }
    }
}
