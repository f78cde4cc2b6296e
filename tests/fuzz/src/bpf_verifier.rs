//! What the verifier admits runs without a fault; what it refuses has an errno.
//!
//! The first byte chooses the program: raw bytes, a generated program, or a damaged one. The rest
//! makes the program and the packet.

use std::sync::Arc;

use kcm_mux::bpf::{Env, Fault, Map, Program};

use crate::bpf_gen::{self, MAPS, Source};

/// One input.
pub fn fuzz_one(data: &[u8]) {
    let mut source = Source(data);
    let kind = source.byte() % 4;
    let program = if kind == 0 {
        let whole = source.0.len() / 8 * 8;
        source.0[..whole].to_vec()
    } else {
        let mut insns = bpf_gen::valid(&mut source);
        if kind > 1 {
            bpf_gen::mutate(&mut insns, &mut source);
        }
        bpf_gen::to_bytes(&insns, &[0, 1, 2])
    };
    let maps = MAPS.map(|spec| Arc::new(Map::new(spec, 1).expect("the specs are fine")));
    let by_fd = |fd| {
        usize::try_from(fd)
            .ok()
            .and_then(|fd| maps.get(fd))
            .cloned()
    };
    match Program::verify(&program, &by_fd) {
        Ok(admitted) => {
            let env = Env {
                now_ns: 1,
                boot_ns: 2,
                cpu: 3,
                seed: 4,
            };
            let mut cb = [0xdead_beef; 5];
            let outcome = admitted.try_run(source.0, &mut cb, &env);
            assert!(matches!(outcome, Ok(_) | Err(Fault::Budget)), "{outcome:?}");
        }
        Err(error) => {
            assert!(error.errno() > 0, "{error}");
            assert!(kind != 1, "a generated program was refused: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn verified_programs_never_fault() {
        crate::run_seeded(super::fuzz_one, 1, 20_000, 700);
    }
}
