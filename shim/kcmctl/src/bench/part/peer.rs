//! The other end of every connection: plain sockets, a process of its own, never under the library.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Stdio};
use std::time::Instant;

use super::wire::{DATA, END, Framer, MESSAGE_MIN, Tally, fill};
use super::{Options, calls};
use crate::{Outcome, Problem, child, fd};

/// Bytes the source hands to one write.
const BATCH_BYTES: usize = 65_536;

/// The process, and what it says at its end.
pub(super) struct Peer(Child);

impl Peer {
    /// Starts a peer in `role`, and accepts its connections.
    pub(super) fn start(role: &str, options: &Options) -> Outcome<(Self, Vec<TcpStream>)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let with_port = Options {
            role: role.to_owned(),
            port: listener.local_addr()?.port(),
            ..options.clone()
        };
        let mut command = child::again(with_port.arguments());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let peer = Self(command.spawn()?);
        let mut conns = Vec::with_capacity(options.conns);
        for _ in 0..options.conns {
            let (conn, _) = listener.accept()?;
            conn.set_nodelay(true)?;
            conns.push(conn);
        }
        Ok((peer, conns))
    }

    /// What a sink has counted, once it has seen the end.
    pub(super) fn tally(&mut self) -> Outcome<Tally> {
        let mut said = String::new();
        if let Some(stdout) = &mut self.0.stdout {
            stdout.read_to_string(&mut said)?;
        }
        Tally::from_line(&said).ok_or_else(|| Problem::new("the peer ended without a report"))
    }

    /// Waits for it to end; a peer that failed is a failure.
    pub(super) fn reap(mut self) -> Outcome<()> {
        match self.0.wait()?.success() {
            true => Ok(()),
            false => Err(Problem::new("the peer failed")),
        }
    }
}

/// The peer's own main function; `None` when the role is none of a peer's.
pub(super) fn main(options: &Options) -> Option<Outcome<()>> {
    let role: fn(&Options, Vec<TcpStream>) -> Outcome<()> = match options.role.as_str() {
        "source" => source,
        "sink" => sink,
        "echo" => echo,
        "quiet" => quiet,
        _ => return None,
    };
    Some(connect(options).and_then(|conns| role(options, conns)))
}

fn connect(options: &Options) -> Outcome<Vec<TcpStream>> {
    let mut conns = Vec::with_capacity(options.conns);
    for _ in 0..options.conns {
        let conn = TcpStream::connect((Ipv4Addr::LOCALHOST, options.port))?;
        conn.set_nodelay(true)?;
        conns.push(conn);
    }
    Ok(conns)
}

/// A connection of the source: a batch, and how much of it the kernel has.
struct Outlet {
    conn: TcpStream,
    number: u16,
    batch: Vec<u8>,
    sent: usize,
    seq: u64,
}

impl Outlet {
    /// Writes what the connection takes of its batch, and fills the next one when that is out. A
    /// single connection blocks; one of several that is full must not keep the others waiting.
    fn feed(&mut self, size: usize, flags: i32) -> Outcome<bool> {
        if self.sent == self.batch.len() {
            for message in self.batch.chunks_exact_mut(size) {
                fill(message, self.number, DATA, self.seq);
                self.seq += 1;
            }
            self.sent = 0;
        }
        match calls::send(self.conn.as_fd(), &self.batch[self.sent..], flags) {
            Ok(count) => self.sent += count,
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
            Err(err) => return Err(err.into()),
        }
        Ok(true)
    }
}

/// Writes batches on all connections as they take them, then one END on each.
fn source(options: &Options, conns: Vec<TcpStream>) -> Outcome<()> {
    let len = BATCH_BYTES / options.size * options.size;
    let flags = if conns.len() > 1 {
        libc::MSG_DONTWAIT
    } else {
        0
    };
    let mut outlets: Vec<Outlet> = conns
        .into_iter()
        .zip(0..)
        .map(|(conn, number)| Outlet {
            conn,
            number,
            batch: vec![0; len],
            sent: len,
            seq: 0,
        })
        .collect();
    let stop = Instant::now() + options.duration();
    while Instant::now() < stop {
        let mut fed = false;
        for outlet in &mut outlets {
            fed |= outlet.feed(options.size, flags)?;
        }
        if !fed {
            wait_for_room(&outlets);
        }
    }
    for outlet in &mut outlets {
        let Outlet {
            conn,
            number,
            batch,
            sent,
            seq,
        } = outlet;
        conn.write_all(&batch[*sent..])?;
        let end = &mut batch[..options.size];
        fill(end, *number, END, *seq);
        conn.write_all(end)?;
    }
    // The receiver closes first: a FIN now would reach an attached socket as an error while messages
    // are under way.
    outlets
        .into_iter()
        .for_each(|outlet| until_closed(outlet.conn));
    Ok(())
}

fn wait_for_room(outlets: &[Outlet]) {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut room: Vec<_> = outlets
        .iter()
        .map(|outlet| PollFd::from_borrowed_fd(fd::of(&outlet.conn), PollFlags::OUT))
        .collect();
    let _ = poll(&mut room, None);
}

fn until_closed(mut conn: TcpStream) {
    let mut bytes = [0; 4096];
    while conn.read(&mut bytes).is_ok_and(|count| count > 0) {}
}

/// Reads one connection until its END and reports the tally on standard output.
fn sink(_: &Options, conns: Vec<TcpStream>) -> Outcome<()> {
    let (mut tally, mut framer) = (Tally::default(), Framer::new());
    let conn = conns.first().ok_or_else(|| Problem::new("no connection"))?;
    while tally.ends == 0 {
        let count = calls::recv(conn.as_fd(), framer.space(), 0)?;
        if count == 0 || !framer.take(count, |message| _ = tally.take(message)) {
            return Err(Problem::new("the stream ends, or framing is lost"));
        }
    }
    crate::out::print(&tally.to_line())
}

/// Answers each message with the same bytes until the connection closes.
fn echo(options: &Options, conns: Vec<TcpStream>) -> Outcome<()> {
    let mut message = vec![0; options.size];
    for mut conn in conns {
        while conn.read_exact(&mut message).is_ok() {
            conn.write_all(&message)?;
        }
    }
    Ok(())
}

/// One message on each connection once a byte arrives on the first, then nothing until they close.
fn quiet(_: &Options, mut conns: Vec<TcpStream>) -> Outcome<()> {
    if let Some(first) = conns.first_mut() {
        first.read_exact(&mut [0])?;
    }
    let mut message = [0; MESSAGE_MIN];
    fill(&mut message, 0, DATA, 0);
    for conn in &mut conns {
        conn.write_all(&message)?;
    }
    conns.into_iter().for_each(until_closed);
    Ok(())
}
