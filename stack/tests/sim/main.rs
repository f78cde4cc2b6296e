//! Simulation: whole stacks against each other in virtual time.

mod basic;
mod dhcp;
mod fabric;
mod features;
mod fragments;
mod fuzz;
mod goodput;
mod groups;
mod late;
mod link;
mod net;
mod path_mtu;
mod paths;
mod several;
mod shards;
mod transfer;
mod world;
