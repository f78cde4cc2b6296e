//! Simulation: whole stacks against each other in virtual time.

mod basic;
mod features;
mod fuzz;
mod goodput;
mod link;
mod net;
mod transfer;
