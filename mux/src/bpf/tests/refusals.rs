//! One program for each reason to refuse, and what is just not refused.

use super::*;

#[test]
fn every_refusal_has_a_program_and_an_errno() {
    let at = |pc| VerifyError::UninitRegister { pc, reg: 0 };
    let pc = 0;
    let exit_zero = [R0_ZERO, EXIT];
    let to_buffer = |size: i32| {
        vec![
            (MOV, 2, 0, 0, 0),
            (MOVX, 3, FP, 0, 0),
            (ADD, 3, 0, 0, -8),
            (MOV, 4, 0, 0, size),
            (CALL, 0, 0, 0, 26),
            EXIT,
        ]
    };
    let call = |body: &[Slot]| join(&[&[(CALL, 0, 1, 0, 1), EXIT], body, &exit_zero]);
    let chain = |frames: i16, bytes: i16| {
        let mut slots = Vec::new();
        for _ in 1..frames {
            slots.extend([(STDW, FP, 0, -bytes, 0), (CALL, 0, 1, 0, 1), EXIT]);
        }
        join(&[&slots, &[(STDW, FP, 0, -bytes, 0)], &exit_zero])
    };
    let functions: Vec<Slot> = (0..256)
        .map(|n| (CALL, 0, 1, 0, 257 + n))
        .chain(exit_zero)
        .chain((0..256).flat_map(|_| exit_zero))
        .collect();
    let many_maps: Vec<Slot> = (100..165)
        .flat_map(|fd| wide(1, pseudo::MAP_FD, fd, 0))
        .chain(exit_zero)
        .collect();
    let table: Vec<(Vec<Slot>, VerifyError, i32)> = vec![
        (vec![], VerifyError::BadLength, 7),
        (
            vec![(LD_IMM64, 0, 0, 0, 0)],
            VerifyError::TruncatedInsn { pc },
            22,
        ),
        (
            vec![(0xff, 0, 0, 0, 0), EXIT],
            VerifyError::UnknownOpcode { pc, code: 0xff },
            22,
        ),
        (
            vec![(MOV, 11, 0, 0, 0), EXIT],
            VerifyError::BadRegister { pc },
            22,
        ),
        (
            vec![(MOV, 0, 1, 0, 0), EXIT],
            VerifyError::ReservedField { pc },
            22,
        ),
        (
            vec![(JA, 0, 0, 1, 0), EXIT],
            VerifyError::BadJump { pc },
            22,
        ),
        (
            vec![(JA, 0, 0, -2, 0), EXIT],
            VerifyError::BadJump { pc },
            22,
        ),
        (
            join(&[&[(JEQ, 1, 0, 1, 0)], &wide(0, 0, 0, 0), &[EXIT]]),
            VerifyError::BadJump { pc },
            22,
        ),
        (vec![R0_ZERO], VerifyError::FallsThrough { pc }, 22),
        (
            join(&[&wide(1, pseudo::MAP_FD, 2, 0), &exit_zero]),
            VerifyError::BadMapFd { pc, fd: 2 },
            9,
        ),
        (many_maps, VerifyError::TooManyMaps { pc: 128 }, 7),
        (
            join(&[&wide(1, pseudo::MAP_VALUE, 5, 64), &exit_zero]),
            VerifyError::BadMapValue { pc },
            22,
        ),
        (
            join(&[&wide(1, pseudo::MAP_VALUE, 3, 0), &exit_zero]),
            VerifyError::MapValueUnsupported { pc },
            524,
        ),
        (
            join(&[&wide(1, pseudo::MAP_VALUE, 4, 0), &exit_zero]),
            VerifyError::MapValueOfHash { pc },
            22,
        ),
        (
            vec![(CALL, 0, 0, 0, 12), EXIT],
            VerifyError::UnknownHelper { pc, number: 12 },
            22,
        ),
        (
            vec![(CALL, 0, 2, 0, 1), EXIT],
            VerifyError::KernelFunction { pc },
            22,
        ),
        (vec![EXIT], at(0), 13),
        (vec![(JEQ, 1, 0, 1, 0), R0_ZERO, EXIT], at(2), 13),
        (
            vec![(MOV, FP, 0, 0, 0), EXIT],
            VerifyError::FramePointerWrite { pc },
            13,
        ),
        (
            vec![(class::ALU64 | alu::MUL | K, 1, 0, 0, 2), EXIT],
            VerifyError::PointerArithmetic { pc },
            13,
        ),
        (
            join(&[&lookup(4, 0), &[(ADD, 0, 0, 0, 1), EXIT]]),
            VerifyError::NullableArithmetic { pc: 6 },
            13,
        ),
        (
            vec![(ADD, 1, 0, 0, 1 << 29), EXIT],
            VerifyError::PointerOffset { pc },
            22,
        ),
        (
            vec![R0_ZERO, (class::ALU64 | alu::DIV | K, 0, 0, 0, 0), EXIT],
            VerifyError::DivisionByZero { pc: 1 },
            22,
        ),
        (
            vec![R0_ZERO, (class::ALU | alu::LSH | K, 0, 0, 0, 32), EXIT],
            VerifyError::BadShift { pc: 1 },
            22,
        ),
        (
            vec![R0_ZERO, (LDXW, 0, 0, 0, 0), EXIT],
            VerifyError::NotAPointer { pc: 1 },
            13,
        ),
        (
            join(&[&lookup(4, 0), &[(LDXW, 0, 0, 0, 0), EXIT]]),
            VerifyError::NullableAccess { pc: 6 },
            13,
        ),
        (
            vec![(STDW, FP, 0, -9, 0), EXIT],
            VerifyError::Misaligned { pc },
            13,
        ),
        (
            vec![(STDW, FP, 0, -520, 0), EXIT],
            VerifyError::StackOutOfBounds { pc },
            13,
        ),
        (
            vec![
                SAVE_CTX,
                (ABS_W, 0, 0, 0, 0),
                (class::ALU64 | alu::AND | K, 0, 0, 0, 0x3f8),
                (MOVX, 1, FP, 0, 0),
                (ADD, 1, 0, 0, -512),
                (ADDX, 1, 0, 0, 0),
                (STDW, 1, 0, 0, 0),
                EXIT,
            ],
            VerifyError::StackOverrun { pc: 6 },
            22,
        ),
        (to_buffer(9), VerifyError::StackOverrun { pc: 4 }, 22),
        (
            vec![(LDXDW, 0, FP, -8, 0), EXIT],
            VerifyError::UninitStack { pc, off: -8 },
            13,
        ),
        (
            vec![(STXW, FP, 1, -8, 0), EXIT],
            VerifyError::PartialSpill { pc },
            13,
        ),
        (
            vec![(STXDW, FP, 1, -8, 0), (LDXW, 0, FP, -8, 0), EXIT],
            VerifyError::PartialFill { pc: 1 },
            13,
        ),
        (
            join(&[&[(MOVX, 1, FP, 0, 0)], &call(&[(STXDW, 1, FP, -8, 0)])]),
            VerifyError::ForeignStackSpill { pc: 3 },
            22,
        ),
        (
            vec![(CALL, 0, 1, 0, 1), EXIT, (MOVX, 0, FP, 0, 0), EXIT],
            VerifyError::ReturnsStackPointer { pc: 3 },
            22,
        ),
        (
            vec![(ADD, 1, 0, 0, 4), (LDXW, 0, 1, 0, 0), EXIT],
            VerifyError::MovedContext { pc: 1 },
            13,
        ),
        (
            vec![R0_ZERO, (ATOMIC_DW, 1, 0, 48, 0), EXIT],
            VerifyError::AtomicOnContext { pc: 1 },
            13,
        ),
        (
            vec![(MOV, 6, 0, 0, 0), (ABS_W, 0, 0, 0, 0), EXIT],
            VerifyError::PacketLoadWithoutContext { pc: 1 },
            22,
        ),
        (
            call(&[SAVE_CTX, (ABS_W, 0, 0, 0, 0)]),
            VerifyError::PacketLoadInFunction { pc: 3 },
            22,
        ),
        (
            join(&[
                &wide(1, pseudo::MAP_VALUE, 5, 0),
                &[(LDXW, 0, 1, 61, 0), EXIT],
            ]),
            VerifyError::ValueOutOfBounds { pc: 2 },
            13,
        ),
        (
            join(&[
                &wide(1, pseudo::MAP_VALUE, 6, 0),
                &[(STW, 1, 0, 0, 0), EXIT],
            ]),
            VerifyError::MapAccess { pc: 2 },
            13,
        ),
        (
            join(&[
                &wide(1, pseudo::MAP_VALUE, 7, 0),
                &[(LDXW, 0, 1, 0, 0), EXIT],
            ]),
            VerifyError::MapAccess { pc: 2 },
            13,
        ),
        (to_buffer(0), VerifyError::BadArgument { pc: 4, reg: 4 }, 13),
        (
            vec![(LDXW, 0, 1, 76, 0), EXIT],
            VerifyError::BadContextAccess { pc, off: 76 },
            13,
        ),
        (
            exit_zero.iter().chain(&exit_zero).copied().collect(),
            VerifyError::Unreachable { pc: 2 },
            22,
        ),
        (
            vec![(JA, 0, 0, -1, 0)],
            VerifyError::InfiniteLoop { pc },
            22,
        ),
        (
            vec![R0_ZERO, (ADD, 0, 0, 0, 1), (JNE, 0, 0, -2, 0), EXIT],
            VerifyError::TooComplex,
            7,
        ),
        (functions, VerifyError::TooManyFunctions, 7),
        (
            vec![(CALL, 0, 1, 0, 1), EXIT, (CALL, 0, 1, 0, -1), EXIT],
            VerifyError::CallsTooDeep { pc: 2 },
            7,
        ),
        (chain(3, 256), VerifyError::StacksTooDeep { bytes: 768 }, 13),
    ];
    for (slots, expected, errno) in table {
        assert_eq!(verify(&slots).map(drop), Err(expected));
        assert_eq!(expected.errno(), errno, "{expected}");
    }
    assert!(verify(&chain(2, 256)).is_ok());
    let refused = verify(&[(CALL, 0, 0, 0, 12), EXIT]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "insn 0: helper is not available: bpf_tail_call#12"
    );
    assert!(Program::verify(&[0; 9], &maps).is_err());
}

#[test]
fn context_fields_are_readable_as_in_the_kernel() {
    let load = |code: u8, off| verify(&[(code, 0, 1, off, 0), R0_ZERO, EXIT]);
    let store = |code: u8, off| verify(&[(code, 1, 0, off, 0), R0_ZERO, EXIT]);
    let refused = |off| Err(VerifyError::BadContextAccess { pc: 0, off });
    for off in (0..192).step_by(4) {
        let readable = matches!(off, 0..=71 | 84..=87 | 164..=167 | 176..=179);
        let expected = if readable {
            Ok(())
        } else {
            refused(i64::from(off))
        };
        assert_eq!(load(LDXW, off).map(drop), expected, "load at {off}");
        let expected = if (48..68).contains(&off) {
            Ok(())
        } else {
            refused(i64::from(off))
        };
        assert_eq!(store(STW, off).map(drop), expected, "store at {off}");
    }
    assert!(load(LDXDW, 48).is_ok() && load(LDXDW, 56).is_ok());
    assert!(load(LDXDW, 64).is_err() && load(LDXDW, 0).is_err());
    assert!(load(class::LDX | mode::MEM | size::B, 3).is_ok());
    assert!(load(class::LDX | mode::MEM | size::H, 1).is_err());
    assert!(load(LDXW, -4).is_err() && load(LDXW, 192).is_err());
}

#[test]
fn equal_values_are_bounded_together() {
    // r7 = r0; if r0 > 63 goto exit; the copy indexes a 64-byte value.
    let index = [
        SAVE_CTX,
        (ABS_W, 0, 0, 0, 0),
        (MOVX, 7, 0, 0, 0),
        (STXDW, FP, 0, -8, 0),
        (class::JMP | jmp::JGT | K, 0, 0, 5, 63),
        (LDXDW, 8, FP, -8, 0),
    ];
    let global = wide(1, pseudo::MAP_VALUE, 5, 0);
    for copy in [7, 8] {
        let access = [
            (ADDX, 1, copy, 0, 0),
            (class::LDX | mode::MEM | size::B, 0, 1, 0, 0),
        ];
        let slots = join(&[&index, &global, &access, &[R0_ZERO, EXIT]]);
        assert_eq!(verify(&slots).map(drop), Ok(()));
    }
}

#[test]
fn indices_a_compiler_would_bound_are_accepted() {
    let load = [SAVE_CTX, (ABS_W, 0, 0, 0, 0), (MOVX, 7, 0, 0, 0)];
    let global = wide(1, pseudo::MAP_VALUE, 5, 0);
    // Each bounds r7 to below 64, at the edge; the jump's distance is to the exit.
    let (wide64, narrow) = (class::ALU64, class::ALU);
    let guard = |code: u8, imm: i32, behind: i16| (code, 7, 0, behind + 4, imm);
    let bounds: Vec<Vec<Slot>> = vec![
        vec![(wide64 | alu::AND | K, 7, 0, 0, 63)],
        vec![(narrow | alu::RSH | K, 7, 0, 0, 26)],
        vec![
            (narrow | alu::MOV | X, 7, 7, 0, 0),
            guard(class::JMP | jmp::JGE | K, 64, 0),
        ],
        vec![guard(class::JMP | jmp::JGT | K, 63, 0)],
        vec![
            guard(class::JMP | jmp::JSLT | K, 0, 1),
            guard(class::JMP | jmp::JSGE | K, 64, 0),
        ],
        vec![
            (narrow | alu::MOV | X, 7, 7, 0, 0),
            guard(class::JMP32 | jmp::JSGT | K, 63, 1),
            guard(class::JMP32 | jmp::JSLT | K, 0, 0),
        ],
        vec![
            (wide64 | alu::LSH | K, 7, 0, 0, 32),
            (wide64 | alu::ARSH | K, 7, 0, 0, 32),
            guard(class::JMP | jmp::JGT | K, 63, 0),
        ],
        vec![
            (wide64 | alu::AND | K, 7, 0, 0, 7),
            (wide64 | alu::MUL | K, 7, 0, 0, 8),
            (wide64 | alu::OR | K, 7, 0, 0, 7),
        ],
        vec![
            (wide64 | alu::AND | K, 7, 0, 0, 63),
            (wide64 | alu::XOR | K, 7, 0, 0, 63),
        ],
    ];
    for bound in bounds {
        let access = |off| {
            let byte = (class::LDX | mode::MEM | size::B, 0, 1, off, 0);
            join(&[
                &load,
                &bound,
                &global,
                &[(ADDX, 1, 7, 0, 0), byte, R0_ZERO, EXIT],
            ])
        };
        assert_eq!(verify(&access(0)).map(drop), Ok(()), "{bound:x?}");
        let pc = access(0).len() - 3;
        let error = Err(VerifyError::ValueOutOfBounds { pc });
        assert_eq!(verify(&access(1)).map(drop), error, "{bound:x?}");
    }
}
