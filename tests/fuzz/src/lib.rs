//! Fuzz targets as functions.
//!
//! Each module has `fuzz_one(data)`, which panics if a property does not hold. `fuzz_targets/`
//! hands them to libFuzzer; [`run_seeded`] runs them on pseudo-random input in a plain test, the
//! same input each time.

pub mod arguments;
pub mod bpf_gen;
pub mod bpf_interp;
pub mod bpf_verifier;
pub mod engine;
pub mod groups;
#[path = "../../../shim/src/route/plan/mod.rs"]
#[allow(dead_code, reason = "part of it is the library's alone")]
mod plan;
pub mod route_plan;
pub mod strparser;
#[path = "../../../shim/src/values.rs"]
#[allow(dead_code, reason = "part of it is the library's alone")]
mod values;

/// Calls `target` with `runs` inputs of up to `len_max` bytes, derived from `seed`.
pub fn run_seeded(target: impl Fn(&[u8]), seed: u64, runs: u64, len_max: usize) {
    for run in 0..runs {
        target(&bytes(seed.wrapping_add(run), len_max));
    }
}

/// Up to `len_max` pseudo-random bytes.
pub fn bytes(seed: u64, len_max: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        // splitmix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let len = next() as usize % (len_max + 1);
    (0..len).map(|_| next() as u8).collect()
}
