//! `cargo fuzz run arguments --features libfuzzer`: see `kcm_fuzz::arguments`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| kcm_fuzz::arguments::fuzz_one(data));
