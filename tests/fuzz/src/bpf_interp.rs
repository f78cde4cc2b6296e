//! A program no verifier saw ends, and neither panics nor leaves its memory.
//!
//! Damaged programs are run as if a kernel had verified them.

use std::sync::Arc;

use kcm_mux::bpf::{Env, Map, Program};

use crate::bpf_gen::{self, MAPS, Source};

/// One input: the first byte chooses raw or damaged, the rest makes program and packet.
pub fn fuzz_one(data: &[u8]) {
    let mut source = Source(data);
    let program = if source.byte() % 2 == 0 {
        let whole = source.0.len() / 8 * 8;
        source.0[..whole].to_vec()
    } else {
        let mut insns = bpf_gen::valid(&mut source);
        for _ in 0..4 {
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
    if let Ok(program) = Program::trusted(&program, &by_fd) {
        let mut cb = [0; 5];
        let first = program.run(source.0, &mut cb, &Env::default());
        // Only maps and `cb` carry anything from run to run.
        let _ = (first, program.run(source.0, &mut cb, &Env::default()));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn unverified_programs_end() {
        crate::run_seeded(super::fuzz_one, 2, 5_000, 700);
    }
}
