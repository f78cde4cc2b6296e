//! Random calls with hostile arguments on descriptors of every kind: the library never crashes, and
//! what the kernel's own descriptors answer does not depend on it.

use std::process::Command;

use kcm_tests::program;

/// Sequences, each with its own seed; about 30 ms a run.
const SEEDS: u32 = 24;
const OPERATIONS: &str = "3000";

fn results(command: &mut Command, with: &str, seed: u32) -> String {
    let output = program::run(command.args([with, &seed.to_string(), OPERATIONS]));
    String::from_utf8(output.stdout).expect("results are text")
}

/// Fails with the first line that differs.
fn assert_same(seed: u32, what: &str, native: &str, got: &str) {
    for (number, (want, got)) in native.lines().zip(got.lines()).enumerate() {
        assert_eq!(want, got, "seed {seed}, {what}, line {}", number + 1);
    }
    assert_eq!(native.len(), got.len(), "seed {seed}, {what}");
}

#[test]
fn foreign_descriptors_answer_as_without_the_library() {
    let fuzz = program::build("fuzz_calls", &[]);
    for seed in 0..SEEDS {
        let native = results(&mut Command::new(&fuzz), "plain", seed);
        assert!(
            native.lines().count() > 1000,
            "seed {seed}: too few results"
        );
        let plain = results(&mut program::under_shim(&fuzz), "plain", seed);
        assert_same(seed, "library unused", &native, &plain);
        let kcm = results(&mut program::under_shim(&fuzz), "kcm", seed);
        assert_same(seed, "beside KCM sockets", &native, &kcm);
    }
}
