//! `cargo fuzz run groups --features libfuzzer`: see `kcm_fuzz::groups`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| kcm_fuzz::groups::fuzz_one(data));
