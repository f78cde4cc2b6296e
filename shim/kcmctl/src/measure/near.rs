//! The program that is measured, on either stack: an ordinary client.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::far::{BLOCK, ECHO, GIVE, MESSAGE, TAKE};
use crate::{Outcome, Problem, out};

/// How long each figure is measured.
const SPAN: Duration = Duration::from_millis(300);
/// Round trips before the first that counts.
const WARM_UP: usize = 100;

pub(super) fn main(to: &str) -> Outcome<()> {
    out::print_json(&json!({
        "p50_us": round_trip(to)?,
        "send_gbps": sending(to)?,
        "recv_gbps": receiving(to)?,
    }))
}

fn connect(to: &str, what: u8) -> Outcome<TcpStream> {
    let failed = |err: std::io::Error| Problem(format!("connecting to the peer: {err}"));
    let mut stream = TcpStream::connect(to).map_err(failed)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[what])?;
    Ok(stream)
}

fn gigabits(bytes: u64, span: Duration) -> f64 {
    bytes as f64 * 8.0 / span.as_secs_f64() / 1e9
}

/// The median, in microseconds.
fn round_trip(to: &str) -> Outcome<f64> {
    let mut stream = connect(to, ECHO)?;
    let mut message = [0; MESSAGE];
    let mut micros = Vec::new();
    let start = Instant::now();
    for trip in 0.. {
        let before = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        if trip >= WARM_UP {
            micros.push(before.elapsed().as_secs_f64() * 1e6);
        }
        if start.elapsed() > SPAN && trip > WARM_UP {
            break;
        }
    }
    micros.sort_by(f64::total_cmp);
    let median = micros.get(micros.len() / 2).copied();
    median.ok_or_else(|| Problem::new("no round trip"))
}

fn sending(to: &str) -> Outcome<f64> {
    let mut stream = connect(to, TAKE)?;
    let block = vec![0; BLOCK];
    let start = Instant::now();
    while start.elapsed() < SPAN {
        stream.write_all(&block)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut taken = [0; 8];
    stream.read_exact(&mut taken)?;
    Ok(gigabits(u64::from_be_bytes(taken), start.elapsed()))
}

fn receiving(to: &str) -> Outcome<f64> {
    let mut stream = connect(to, GIVE)?;
    let mut block = vec![0; BLOCK];
    let (mut taken, start) = (0, Instant::now());
    while start.elapsed() < SPAN {
        match stream.read(&mut block)? {
            0 => return Err(Problem::new("the peer has gone")),
            count => taken += count as u64,
        }
    }
    Ok(gigabits(taken, start.elapsed()))
}
