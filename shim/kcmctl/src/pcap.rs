//! `kcmctl pcap PID -w FILE`: a capture that Wireshark opens.
//!
//! Messages are written as packets of an upper layer (link type 252): tags in front of each name
//! the protocol that Wireshark takes it apart as, and the addresses of its connection.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::out::{clean, short};
use crate::pcapng::{LinkType, Packet, Writer};
use crate::tracer::{Filter, Seen, Tracer};
use crate::wire::{HEAD_MAX, request};
use crate::{Outcome, Problem, out, process};

/// Tags in front of a message (Wireshark, "exported PDU"), in network byte order.
const TAG_END: u16 = 0;
const TAG_DISSECTOR: u16 = 12;
const TAG_IPV4_SRC: u16 = 20;
const TAG_IPV4_DST: u16 = 21;
const TAG_IPV6_SRC: u16 = 22;
const TAG_IPV6_DST: u16 = 23;
const TAG_PORT_TYPE: u16 = 24;
const TAG_SRC_PORT: u16 = 25;
const TAG_DST_PORT: u16 = 26;
/// TCP, as a port type.
const PORT_TCP: u32 = 2;

/// How often a person is told how far it is.
const PROGRESS: Duration = Duration::from_millis(200);

/// What is to be captured, and where to.
pub(crate) struct Capture<'a> {
    /// `-`: standard output.
    pub(crate) file: &'a Path,
    pub(crate) filter: Filter,
    /// Messages after which it ends.
    pub(crate) count: Option<u64>,
    /// Name of the dissector that Wireshark is to use.
    pub(crate) protocol: &'a str,
    /// Bytes to leave out of each message.
    pub(crate) skip: usize,
    /// Frames of the stack's device instead of messages.
    pub(crate) frames: bool,
}

pub(crate) fn pcap(pid: u32, capture: &Capture<'_>) -> Outcome<()> {
    let what = match capture.frames {
        true => request::FRAMES,
        false => request::MESSAGES,
    };
    let mut tracer = Tracer::start(pid, what, &capture.filter, HEAD_MAX as u64)?;
    let name = clean(capture.file.as_os_str().as_encoded_bytes());
    let failed = |err: io::Error| match err.kind() {
        io::ErrorKind::BrokenPipe => Problem::new(out::PIPE_CLOSED),
        _ => Problem(format!("{name}: {err}")),
    };
    let out: Box<dyn Write> = match capture.file.as_os_str() == "-" {
        true => Box::new(io::stdout()),
        false => Box::new(File::create(capture.file).map_err(failed)?),
    };
    let mut file = Writer::new(BufWriter::new(out)).map_err(failed)?;
    let (link, name_of) = match capture.frames {
        true => (LinkType::Ethernet, "frames of the stack"),
        false => (LinkType::UpperPdu, "KCM messages"),
    };
    file.interface(link, &format!("{name_of} of process {pid}"))
        .and_then(|()| file.flush())
        .map_err(failed)?;
    let mut addresses = Addresses::new(pid);
    let mut progress = Progress::new(if capture.frames { "frames" } else { "messages" });
    let mut left = capture.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(all) = tracer.next()? else { break };
        for seen in all.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            let dropped = progress.note(seen);
            let written = match seen.is_frame {
                true => frame(&mut file, seen, dropped),
                false => message(&mut file, seen, dropped, &mut addresses, capture),
            };
            written.map_err(failed)?;
            left -= 1;
        }
        file.flush().map_err(failed)?;
        progress.show();
    }
    progress.end();
    Ok(())
}

/// Writes one frame.
fn frame(file: &mut Writer<impl Write>, seen: &Seen, dropped: u64) -> io::Result<()> {
    file.packet(&Packet {
        interface: 0,
        time: seen.time,
        is_inbound: seen.is_rx,
        bytes: &seen.bytes,
        original: seen.len,
        comment: "",
        dropped,
    })
}

/// Writes one message, behind its tags.
fn message(
    file: &mut Writer<impl Write>,
    seen: &Seen,
    dropped: u64,
    addresses: &mut Addresses,
    capture: &Capture<'_>,
) -> io::Result<()> {
    let ends = addresses.of(seen.inode);
    let mut bytes = tags(ends, seen.is_rx, capture.protocol);
    let skipped = capture.skip.min(seen.bytes.len());
    let before = bytes.len().saturating_sub(skipped) as u64;
    bytes.extend_from_slice(seen.bytes.get(skipped..).unwrap_or_default());
    file.packet(&Packet {
        interface: 0,
        time: seen.time,
        is_inbound: seen.is_rx,
        bytes: &bytes,
        original: before + seen.len,
        comment: &format!("mux {}, kcm {}, psock {}", seen.mux, seen.kcm, seen.psock),
        dropped,
    })
}

/// What tells Wireshark where a message comes from and what it is. `ends`: local and remote address.
fn tags(ends: Option<(SocketAddr, SocketAddr)>, is_rx: bool, protocol: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    tag(&mut bytes, TAG_DISSECTOR, protocol.as_bytes());
    if let Some((local, remote)) = ends {
        let (from, to) = if is_rx {
            (remote, local)
        } else {
            (local, remote)
        };
        for (at, v4, v6) in [
            (from, TAG_IPV4_SRC, TAG_IPV6_SRC),
            (to, TAG_IPV4_DST, TAG_IPV6_DST),
        ] {
            match at.ip() {
                IpAddr::V4(ip) => tag(&mut bytes, v4, &ip.octets()),
                IpAddr::V6(ip) => tag(&mut bytes, v6, &ip.octets()),
            }
        }
        tag(&mut bytes, TAG_PORT_TYPE, &PORT_TCP.to_be_bytes());
        tag(
            &mut bytes,
            TAG_SRC_PORT,
            &u32::from(from.port()).to_be_bytes(),
        );
        tag(
            &mut bytes,
            TAG_DST_PORT,
            &u32::from(to.port()).to_be_bytes(),
        );
    }
    tag(&mut bytes, TAG_END, &[]);
    bytes
}

fn tag(bytes: &mut Vec<u8>, number: u16, value: &[u8]) {
    let length = value.len().next_multiple_of(4);
    bytes.extend(number.to_be_bytes());
    bytes.extend((length as u16).to_be_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len() + length - value.len(), 0);
}

/// Addresses of connections, looked up once each.
struct Addresses {
    pid: u32,
    known: BTreeMap<u64, Option<(SocketAddr, SocketAddr)>>,
}

impl Addresses {
    fn new(pid: u32) -> Self {
        let addresses = process::tcp_addresses(pid);
        let known = addresses
            .into_iter()
            .map(|(inode, ends)| (inode, Some(ends)));
        Self {
            pid,
            known: known.collect(),
        }
    }

    fn of(&mut self, inode: u64) -> Option<(SocketAddr, SocketAddr)> {
        if let Some(known) = self.known.get(&inode) {
            return *known;
        }
        let fresh = process::tcp_addresses(self.pid);
        self.known
            .extend(fresh.into_iter().map(|(inode, ends)| (inode, Some(ends))));
        *self.known.entry(inode).or_default()
    }
}

/// A line on a terminal about how far it is, and a last one about how far it came.
struct Progress {
    what: &'static str,
    messages: u64,
    bytes: u64,
    lost: u64,
    shown: Instant,
    is_shown: bool,
}

impl Progress {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            messages: 0,
            bytes: 0,
            lost: 0,
            shown: Instant::now(),
            is_shown: io::stderr().is_terminal(),
        }
    }

    /// Counts one more; returns how many were dropped before it.
    fn note(&mut self, seen: &Seen) -> u64 {
        let dropped = seen.lost.saturating_sub(self.lost);
        self.lost = self.lost.max(seen.lost);
        self.messages += 1;
        self.bytes += seen.len;
        dropped
    }

    fn text(&self) -> String {
        let (messages, bytes) = (short(self.messages as f64), short(self.bytes as f64));
        let what = self.what;
        format!("{messages} {what}, {bytes} bytes, {} dropped", self.lost)
    }

    fn show(&mut self) {
        if self.is_shown && self.shown.elapsed() >= PROGRESS {
            self.shown = Instant::now();
            let _ = write!(io::stderr(), "\r\x1b[K{}", self.text());
        }
    }

    fn end(&self) {
        let start = if self.is_shown { "\r\x1b[K" } else { "" };
        let _ = writeln!(io::stderr(), "{start}{}", self.text());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_whole_words_in_network_order() {
        let local = "127.0.0.1:80".parse().unwrap();
        let remote = "10.0.0.1:5000".parse().unwrap();
        let bytes = tags(Some((local, remote)), true, "dns");
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"\0\x0c\0\x04dns\0\0\x14\0\x04\x0a\0\0\x01"));
        assert!(bytes.ends_with(&[0; 4]));
    }
}
