//! `cargo fuzz run bpf_interp --features libfuzzer`: see `kcm_fuzz::bpf_interp`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| kcm_fuzz::bpf_interp::fuzz_one(data));
