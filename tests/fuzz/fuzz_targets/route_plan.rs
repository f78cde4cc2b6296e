//! `cargo fuzz run route_plan --features libfuzzer`: see `kcm_fuzz::route_plan`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| kcm_fuzz::route_plan::fuzz_one(data));
