//! A stateless peer: clients whose address says who they are, so that ten million of them need no
//! memory on this side.

use kcm_stack::{Instant, Received, Stack};

use crate::pair::{Batch, MAC};

/// Client `i` has address 11.0.0.0 + i / 50 000 and port 1 024 + i % 50 000, and ISN `i`.
const PORTS: u32 = 50_000;
pub(crate) const SERVER_PORT: u16 = 80;

const HEADERS: usize = 14 + 20 + 20;
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// One segment from client `i`. Checksums are left out: the engine is told they were verified.
pub(crate) fn segment(batch: &mut Batch, i: u32, seq: u32, ack: u32, flags: u8, payload: &[u8]) {
    let mut f = [0u8; HEADERS + 256];
    let options: &[u8] = if flags & SYN != 0 {
        &[2, 4, 5, 180]
    } else {
        &[]
    };
    let len = HEADERS + options.len() + payload.len();
    f[..6].copy_from_slice(&MAC[1]);
    f[6..12].copy_from_slice(&MAC[0]);
    f[12] = 8;
    f[14] = 0x45;
    f[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
    f[22] = 64;
    f[23] = 6;
    f[26..30].copy_from_slice(&(0x0b00_0000 + i / PORTS).to_be_bytes());
    f[30..34].copy_from_slice(&[10, 0, 0, 2]);
    let mut sum: u32 = f[14..34]
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(c[1]))
        .sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    f[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let t = &mut f[34..];
    t[..2].copy_from_slice(&port_of(i).to_be_bytes());
    t[2..4].copy_from_slice(&SERVER_PORT.to_be_bytes());
    t[4..8].copy_from_slice(&seq.to_be_bytes());
    t[8..12].copy_from_slice(&ack.to_be_bytes());
    t[12] = (((20 + options.len()) / 4) << 4) as u8;
    t[13] = flags;
    t[14..16].copy_from_slice(&60_000u16.to_be_bytes());
    t[20..20 + options.len()].copy_from_slice(options);
    t[20 + options.len()..20 + options.len() + payload.len()].copy_from_slice(payload);
    batch.push(&f[..len]);
}

/// What the server said to some client.
pub(crate) struct Reply {
    pub(crate) client: u32,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) len: u32,
}

pub(crate) fn parse(f: &[u8]) -> Option<Reply> {
    let word = |at: usize| {
        f.get(at..at + 4)
            .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    };
    if *f.get(23)? != 6 || f[12] != 8 || f[13] != 0 {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([f[16], f[17]]));
    let header = usize::from(f[46] >> 4) * 4;
    let port = u16::from_be_bytes([f[36], f[37]]);
    Some(Reply {
        client: (word(30)? - 0x0b00_0000) * PORTS + u32::from(port) - 1_024,
        seq: word(38)?,
        ack: word(42)?,
        flags: f[47],
        len: (total - 20 - header) as u32,
    })
}

/// The port client `i` calls from.
pub(crate) fn port_of(i: u32) -> u16 {
    1_024 + (i % PORTS) as u16
}

/// Opens `clients` on `server`, in batches, through the SYN queue.
pub(crate) fn open(
    server: &mut Stack,
    mut clients: impl Iterator<Item = u32>,
    now: Instant,
    mut established: impl FnMut(&mut Stack),
) {
    let mut out = Batch::default();
    let mut answer = Batch::default();
    loop {
        answer.clear();
        for i in clients.by_ref().take(500) {
            segment(&mut answer, i, i, 0, SYN, &[]);
        }
        if answer.len() == 0 {
            return;
        }
        deliver(&answer, server, now);
        out.fill(server, now, usize::MAX);
        answer.clear();
        for f in out.iter() {
            if let Some(r) = parse(f).filter(|r| r.flags & SYN != 0) {
                segment(&mut answer, r.client, r.client + 1, r.seq + 1, ACK, &[]);
            }
        }
        deliver(&answer, server, now);
        established(server);
    }
}

pub(crate) fn deliver(batch: &Batch, to: &mut Stack, now: Instant) {
    to.handle_frames(
        now,
        batch.iter().map(|f| (f, Received { checksum_ok: true })),
    );
}
