//! The peer, always on the kernel's stack: answers, takes, or gives, as the first byte of a connection
//! asks.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::stage::{await_carrier, enter_namespace, ip};
use crate::{Outcome, Problem, out};

/// What a connection is for.
pub(super) const ECHO: u8 = b'e';
pub(super) const TAKE: u8 = b't';
pub(super) const GIVE: u8 = b'g';

/// Bytes of an echoed message, and of one read or write of a stream.
pub(super) const MESSAGE: usize = 64;
pub(super) const BLOCK: usize = 65_536;

/// Serves `address`, given with its prefix. With an interface: in a new namespace, into which the
/// caller puts it. Says a line, hears one, and says where it listens.
pub(super) fn main(address: &str, interface: &str) -> Outcome<()> {
    if !interface.is_empty() {
        enter_namespace()?;
    }
    out::print("ready\n")?;
    let mut heard = [0];
    std::io::stdin().read_exact(&mut heard)?;
    if !interface.is_empty() {
        ip(&format!("address add {address} dev {interface}"))?;
        ip(&format!("link set {interface} up"))?;
        await_carrier(interface)?;
    }
    let host = address.split('/').next().unwrap_or(address);
    let listener = TcpListener::bind((host, 0))?;
    out::print(&format!("{}\n", listener.local_addr()?))?;
    // One connection at a time: nothing else is to run beside what is measured.
    loop {
        let (stream, _) = listener.accept()?;
        // A connection that ends early is its other end's to report.
        let _ = serve(stream);
    }
}

fn serve(mut stream: TcpStream) -> Outcome<()> {
    stream.set_nodelay(true)?;
    let mut what = [0];
    stream.read_exact(&mut what)?;
    match what[0] {
        ECHO => {
            let mut message = [0; MESSAGE];
            while stream.read_exact(&mut message).is_ok() {
                stream.write_all(&message)?;
            }
        }
        TAKE => {
            let mut taken = 0u64;
            let mut block = vec![0; BLOCK];
            loop {
                match stream.read(&mut block)? {
                    0 => break,
                    count => taken += count as u64,
                }
            }
            stream.write_all(&taken.to_be_bytes())?;
        }
        GIVE => {
            let block = vec![0; BLOCK];
            while stream.write_all(&block).is_ok() {}
        }
        _ => return Err(Problem::new("a connection that asks for nothing known")),
    }
    Ok(())
}
