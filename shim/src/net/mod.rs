//! TCP and UDP sockets of the program, served by the engine of the `kcm-stack` crate in this process.
//!
//! A socket is the kernel's until bind, listen or connect names an address that the plan gives to the
//! stack; then a stack socket takes its place behind the same number. The thread that calls does
//! the work: it moves frames between the device and the engine, whose one lock ([`cells`]) it holds.
//! A thread that has to wait sleeps on the device ([`sleep`]); while no thread is here, the
//! housekeeper answers for the engine.

pub(crate) mod address;
pub(crate) mod aside;
pub(crate) mod beneath;
mod carry;
pub(crate) mod cells;
pub(crate) mod channel;
mod claims;
mod copies;
mod decide;
mod device;
mod devices;
pub(crate) mod ending;
pub(crate) mod engine;
mod errors;
mod fixed;
pub(crate) mod guest;
pub(crate) mod handover;
mod homes;
pub(crate) mod host;
mod info;
pub(crate) mod inherited;
pub(crate) mod ioctl;
mod lease;
mod leaving;
pub(crate) mod lend;
mod listeners;
pub(crate) mod message;
pub(crate) mod name;
mod open;
pub(crate) mod options;
pub(crate) mod pristine;
pub(crate) mod psock;
pub(crate) mod question;
pub(crate) mod ready;
pub(crate) mod relay;
pub(crate) mod revive;
mod shown;
pub(crate) mod sleep;
pub(crate) mod socket;
pub(crate) mod spare;
mod spread;
pub(crate) mod steer;
pub(crate) mod stream;
pub(crate) mod transfer;
pub(crate) mod turns;
pub(crate) mod udp;

pub(crate) use decide::{bind, connect, listen, send_mmsg, send_msg, send_to};
pub(crate) use shown::{Shown, Tallies};

use crate::fd::File;
use socket::State;

/// What poll(2) shows of a stack socket now.
pub(crate) fn bits(file: &'static File) -> ready::Bits {
    let Ok(mut engine) = cells::lock(file) else {
        return 0;
    };
    match engine.socket(file).map(|s| s.state) {
        Ok(State::Connecting(id) | State::Connected(id)) => engine.conn_bits(id),
        Ok(State::Listening(id)) if listeners::is_waiting(&mut engine, id) => ready::IN,
        Ok(State::Listening(_)) if !cells::are_several() => 0,
        Ok(State::Listening(_)) => {
            drop(engine);
            match listeners::has_connection(file) {
                true => ready::IN,
                false => 0,
            }
        }
        Ok(State::Udp(id)) => engine.udp_bits(id),
        Ok(State::Unbound | State::Bound(_)) => unconnected(&mut engine, file),
        Err(_) => 0,
    }
}

fn unconnected(engine: &mut engine::Engine, file: &File) -> ready::Bits {
    let Ok(socket) = engine.socket(file) else {
        return 0;
    };
    let bits = if socket.ended {
        ready::ENDED
    } else {
        ready::UNCONNECTED
    };
    bits | if socket.error != 0 { ready::ERR } else { 0 }
}
