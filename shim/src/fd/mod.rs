//! Descriptors: which of the process's fds are ours, and what stands behind them.

pub(crate) mod file;
pub(crate) mod place;
pub(crate) mod slot;
pub(crate) mod table;

pub(crate) use file::{File, Kind};
pub(crate) use table::lookup;
