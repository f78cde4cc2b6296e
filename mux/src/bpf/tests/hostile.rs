//! Programs of random words.

use proptest::prelude::*;

use super::*;
use crate::tests::cases;

/// A slot that is often an instruction.
fn any_slot() -> impl Strategy<Value = Slot> {
    let codes = (0..=255u8).filter(|&code| {
        let raw = bytes(&[(code, 1, 0, 0, 16), EXIT]);
        !matches!(
            Program::trusted(&raw, &maps),
            Err(VerifyError::UnknownOpcode { .. })
        )
    });
    let code = prop_oneof![9 => prop::sample::select(codes.collect::<Vec<_>>()), 1 => any::<u8>()];
    let imm = prop_oneof![Just(0), -4..20i32, any::<i32>()];
    (
        code,
        0..12u8,
        prop_oneof![Just(0), 0..12u8],
        prop_oneof![Just(0), -16..16i16],
        imm,
    )
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn random_programs_neither_panic_nor_fault(
        slots in prop::collection::vec(any_slot(), 0..20),
        packet in prop::collection::vec(any::<u8>(), 0..32),
    ) {
        let raw = bytes(&join(&[&[R0_ZERO, SAVE_CTX], &slots, &[EXIT]]));
        if let Ok(program) = Program::trusted(&raw, &maps) {
            let _ = program.run(&packet[..], &mut [0; 5], &Env::default());
        }
        if let Ok(program) = Program::verify(&raw, &maps) {
            let outcome = program.try_run(&packet[..], &mut [0; 5], &Env::default());
            prop_assert!(matches!(outcome, Ok(_) | Err(Fault::Budget)), "{outcome:?}");
        }
    }
}
