//! `cargo fuzz run engine --features libfuzzer`: see `kcm_fuzz::engine`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| kcm_fuzz::engine::fuzz_one(data));
