//! AF_KCM sockets: the mux of `kcm-mux` joined to real TCP descriptors.
//!
//! `cell` owns a mux and reads and writes its `connections`; `socket` creates, clones, closes,
//! attaches and unattaches; `recv` and `send` are the data path; `options` answers sockopts.

mod cell;
mod connection;
pub(crate) mod connections;
mod ioctl;
pub(crate) mod options;
pub(crate) mod recv;
pub(crate) mod send;
pub(crate) mod socket;

pub(crate) use cell::{Engine, EngineGuard, MuxCell};
pub(crate) use connection::Connection;
pub(crate) use ioctl::ioctl;

/// Address family of KCM sockets.
pub(crate) const AF_KCM: i32 = 41;
/// Level of KCM socket options.
pub(crate) const SOL_KCM: i32 = 281;
/// The one option of that level.
pub(crate) const KCM_RECV_DISABLE: i32 = 1;
