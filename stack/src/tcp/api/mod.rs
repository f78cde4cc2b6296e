//! What the application asks of TCP (RFC 9293 §3.9.1): open, send, receive, close, abort, status.

mod close;
mod open;
mod read;
mod status;
mod write;

pub(crate) use open::Binds;
pub use open::{ConnectOptions, ListenOptions};

use super::Engine;
use super::conn::{Busy, Conn, NONE};
use crate::stack::TcpId;

impl Engine {
    fn index(&self, id: TcpId) -> Option<u32> {
        self.conns
            .get(id.index)
            .filter(|c| c.generation == id.generation && c.is_owned())
            .map(|_| id.index)
    }

    fn conn(&self, id: TcpId) -> Option<&Conn> {
        self.index(id).map(|i| &self.conns[i])
    }

    fn busy_of(&self, c: &Conn) -> Option<&Busy> {
        (c.busy != NONE).then(|| &self.busy[c.busy])
    }
}
