//! `cargo fuzz run bpf_verifier --features libfuzzer`: see `kcm_fuzz::bpf_verifier`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| kcm_fuzz::bpf_verifier::fuzz_one(data));
