//! Kernel Connection Multiplexor as a sans-I/O state machine.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod bpf;
