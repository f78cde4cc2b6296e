//! What a lock costs a thread that meets nobody. Prints; timing decides nothing:
//! `cargo test -p kcmshim --release uncontended -- --nocapture`.

use super::lock::{Lock, RawLock};
use super::{BiasedMutex, Mutex, init};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: u32 = if cfg!(debug_assertions) {
    10_000
} else {
    2_000_000
};

fn nanoseconds_a_pair<R: RawLock>(lock: &Lock<R, u64>) -> f64 {
    let start = Instant::now();
    for _ in 0..ROUNDS {
        *black_box(lock).lock().unwrap() += 1;
    }
    start.elapsed().as_nanos() as f64 / f64::from(ROUNDS)
}

#[test]
#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
fn uncontended_pairs_cost() {
    init();
    let (plain, biased) = (Mutex::new(0), BiasedMutex::new(0));
    for _ in 0..3 {
        println!(
            "lock and unlock: futex mutex {:.1} ns, biased to its owner {:.1} ns",
            nanoseconds_a_pair(&plain),
            nanoseconds_a_pair(&biased)
        );
    }
    assert_eq!(*plain.lock().unwrap(), 3 * u64::from(ROUNDS));
    assert_eq!(*biased.lock().unwrap(), 3 * u64::from(ROUNDS));
}
