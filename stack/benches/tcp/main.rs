//! TCP engine benchmarks, in memory, one core. `cargo bench -p kcm-stack --bench tcp -- [CASE]`.
//!
//! Cases: `echo`, `idle`, `churn`, `bulk`; all but the 10 M connections of `idle10m` without an
//! argument. Figures are medians of repeated rounds; compare only figures of one run.

#![allow(clippy::print_stdout, reason = "a benchmark reports on stdout")]

mod bulk;
mod churn;
mod echo;
mod generator;
mod idle;
mod pair;

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let on = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    if on("idle") {
        idle::run(1_000_000, true);
    }
    if on("echo") {
        echo::run(1_000);
        echo::run(100_000);
        echo::run(1_000_000);
    }
    if wanted.iter().any(|w| w == "idle10m") {
        idle::run(10_000_000, true);
    }
    if on("churn") {
        churn::run(200_000);
    }
    if wanted.iter().any(|w| w == "profile") {
        bulk::run_ours();
    }
    if on("bulk") {
        bulk::run();
    }
}
