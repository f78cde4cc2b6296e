//! The number domain is sound: whatever an operation yields for values inside, its abstract
//! result admits. (What the verifier as a whole refuses and admits: `bpf/tests.rs`.)

use proptest::prelude::*;

use crate::tests::cases;

use super::super::alu::{Swap, alu32, alu64, compare, swap};
use super::super::insn::{alu, jmp};
use super::scalar::Scalar;

const ALU: [u8; 11] = [
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
const JMP: [u8; 11] = [
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

fn admits(scalar: &Scalar, value: u64) -> bool {
    scalar.covers(&Scalar::exact(value))
}

/// Values near the places where ranges wrap, and any others.
fn value() -> impl Strategy<Value = u64> {
    let edges = [
        0,
        1,
        7,
        31,
        63,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        1 << 32,
        1 << 63,
    ];
    let near = (prop::sample::select(edges.to_vec()), -3i64..=3);
    prop_oneof![
        any::<u64>(),
        near.prop_map(|(edge, by): (u64, i64)| edge.wrapping_add(by as u64)),
        0u64..100,
        (0u64..100).prop_map(u64::wrapping_neg),
    ]
}

/// A value and something known about it, learned from comparisons and operations it went through.
fn known() -> impl Strategy<Value = (u64, Scalar)> {
    let steps = (
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(JMP.to_vec()),
        value(),
    );
    let masks = (any::<bool>(), prop::sample::select(ALU.to_vec()), value());
    (
        value(),
        prop::collection::vec(steps, 0..4),
        prop::collection::vec(masks, 0..3),
    )
        .prop_map(|(mut value, comparisons, operations)| {
            let mut scalar = Scalar::UNKNOWN;
            for (whole, wide, op, other) in comparisons {
                let other = if whole { other } else { other & 0xff };
                let outcome = compare(op, wide, value, other);
                let learned = Scalar::refine(op, wide, outcome, &scalar, &Scalar::exact(other));
                scalar = learned.expect("the value is inside, so there is one").0;
            }
            for (wide, op, other) in operations {
                let constant = Scalar::exact(other);
                (value, scalar) = if wide {
                    (
                        alu64(op, 0, value, other),
                        Scalar::alu64(op, &scalar, &constant),
                    )
                } else {
                    (
                        alu32(op, 0, value, other),
                        Scalar::alu32(op, &scalar, &constant),
                    )
                };
            }
            (value, scalar)
        })
}

proptest! {
    #![proptest_config(cases(4_000))]

    #[test]
    fn results_are_admitted(
        (a, sa) in known(),
        (b, sb) in known(),
        op in prop::sample::select(ALU.to_vec()),
    ) {
        prop_assert!(admits(&sa, a), "{a:#x} {sa:?}");
        let wide = Scalar::alu64(op, &sa, &sb);
        prop_assert!(admits(&wide, alu64(op, 0, a, b)), "{op:#x} {a:#x} {b:#x} {wide:?}");
        let narrow = Scalar::alu32(op, &sa, &sb);
        prop_assert!(admits(&narrow, alu32(op, 0, a, b)), "{op:#x} {a:#x} {b:#x} {narrow:?}");
        for bits in [8, 16, 32] {
            let signed = alu64(alu::MOV, bits, 0, a);
            prop_assert!(admits(&sa.sign_extend(bits), signed), "{bits} {a:#x} {sa:?}");
        }
        for kind in [Swap::ToLe, Swap::ToBe, Swap::Always] {
            for bits in [16, 32, 64] {
                let swapped = swap(kind, bits, a);
                prop_assert!(admits(&sa.swapped(kind, bits), swapped), "{kind:?} {bits} {a:#x}");
            }
        }
        for bytes in [1, 2, 4, 8] {
            let low = a & (u64::MAX >> (64 - 8 * bytes));
            prop_assert!(admits(&sa.truncated(bytes), low), "{bytes} {a:#x} {sa:?}");
        }
    }

    #[test]
    fn both_sides_of_a_comparison_stay_admitted(
        (a, sa) in known(),
        (b, sb) in known(),
        op in prop::sample::select(JMP.to_vec()),
        wide in any::<bool>(),
    ) {
        let outcome = compare(op, wide, a, b);
        let learned = Scalar::refine(op, wide, outcome, &sa, &sb);
        prop_assert!(learned.is_some(), "{op:#x} {wide} {a:#x} {b:#x} {sa:?} {sb:?}");
        let (la, lb) = learned.unwrap();
        prop_assert!(admits(&la, a) && admits(&lb, b), "{op:#x} {wide} {a:#x} {b:#x} {la:?} {lb:?}");
    }
}
