//! Simulation: whole stacks against each other in virtual time.

mod basic;
mod link;
mod net;
