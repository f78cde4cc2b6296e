//! `cargo fuzz run strparser --features libfuzzer`: see `kcm_fuzz::strparser`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| kcm_fuzz::strparser::fuzz_one(data));
