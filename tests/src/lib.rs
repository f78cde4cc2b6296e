//! Cross-crate proof: guest programs on two lanes, traces compared.
//!
//! A *lane* is a way to run an unmodified guest program of `tests/programs`: on a real kernel with
//! `AF_KCM` (`ci/oracle`, whose traces are checked in under `tests/traces`), or natively under
//! `LD_PRELOAD=libkcmshim.so`. [`guest`] builds and runs guests, [`trace`] reads and compares what
//! they print. [`program`] builds and runs programs that check themselves, [`server`] those
//! that serve beside them, [`ctl`] has `kcmctl` look at them.

pub mod ctl;
pub mod guest;
pub mod lab;
pub mod netlab;
pub mod program;
pub mod server;
pub mod trace;
