//! A writer of pcapng files (draft-ietf-opsawg-pcapng): section, interfaces, packets.

use std::io::{self, Write};

/// Block types (§4).
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
/// Tells readers the byte order of all that follows.
const ORDER: u32 = 0x1a2b_3c4d;
/// Options: of any block, of a section, of an interface, of a packet.
const OPT_END: u16 = 0;
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const EPB_DROPCOUNT: u16 = 4;
/// Timestamps count in 10⁻⁹ seconds.
const NANOSECONDS: u8 = 9;

/// What the bytes of an interface's packets are (the registry of link types).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LinkType {
    Ethernet = 1,
    /// A packet of an upper layer, behind tags that name its protocol and its addresses.
    UpperPdu = 252,
}

/// One packet.
pub(crate) struct Packet<'a> {
    /// Number of the interface, in order of their description.
    pub(crate) interface: u32,
    /// Nanoseconds since 1970.
    pub(crate) time: u64,
    pub(crate) is_inbound: bool,
    pub(crate) bytes: &'a [u8],
    /// Length before anything was cut off.
    pub(crate) original: u64,
    pub(crate) comment: &'a str,
    /// Packets missing since the one before.
    pub(crate) dropped: u64,
}

/// A file under way. Every call writes whole blocks: what is there so far can always be read.
pub(crate) struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Begins a section.
    pub(crate) fn new(out: W) -> io::Result<Self> {
        let mut body = ORDER.to_ne_bytes().to_vec();
        body.extend(1u16.to_ne_bytes()); // version 1.0
        body.extend(0u16.to_ne_bytes());
        body.extend(u64::MAX.to_ne_bytes()); // length of the section: not known
        let name = concat!("kcmctl ", env!("CARGO_PKG_VERSION"));
        option(&mut body, SHB_USERAPPL, name.as_bytes());
        option(&mut body, OPT_END, &[]);
        let mut writer = Self { out };
        writer.block(SECTION, &body)?;
        Ok(writer)
    }

    /// Describes the next interface.
    pub(crate) fn interface(&mut self, link: LinkType, name: &str) -> io::Result<()> {
        let mut body = (link as u16).to_ne_bytes().to_vec();
        body.extend([0, 0]);
        body.extend(0u32.to_ne_bytes()); // packets are cut to no common length
        option(&mut body, IF_NAME, name.as_bytes());
        option(&mut body, IF_TSRESOL, &[NANOSECONDS]);
        option(&mut body, OPT_END, &[]);
        self.block(INTERFACE, &body)
    }

    pub(crate) fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let mut body = packet.interface.to_ne_bytes().to_vec();
        body.extend(((packet.time >> 32) as u32).to_ne_bytes());
        body.extend((packet.time as u32).to_ne_bytes());
        body.extend((packet.bytes.len() as u32).to_ne_bytes());
        let original = u32::try_from(packet.original).unwrap_or(u32::MAX);
        body.extend(original.to_ne_bytes());
        padded(&mut body, packet.bytes);
        let direction: u32 = if packet.is_inbound { 1 } else { 2 };
        option(&mut body, EPB_FLAGS, &direction.to_ne_bytes());
        if packet.dropped > 0 {
            option(&mut body, EPB_DROPCOUNT, &packet.dropped.to_ne_bytes());
        }
        if !packet.comment.is_empty() {
            option(&mut body, OPT_COMMENT, packet.comment.as_bytes());
        }
        option(&mut body, OPT_END, &[]);
        self.block(PACKET, &body)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        const AROUND: usize = 12;
        let length = ((body.len() + AROUND) as u32).to_ne_bytes();
        let parts = [&kind.to_ne_bytes()[..], &length, body, &length];
        self.out.write_all(&parts.concat())
    }
}

fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend_from_slice(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    body.extend(code.to_ne_bytes());
    body.extend((value.len() as u16).to_ne_bytes());
    padded(body, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_and_say_their_length_twice() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file).unwrap();
        writer.interface(LinkType::UpperPdu, "name").unwrap();
        let packet = Packet {
            interface: 0,
            time: 1 << 32 | 7,
            is_inbound: true,
            bytes: b"hello",
            original: 50,
            comment: "a comment",
            dropped: 3,
        };
        writer.packet(&packet).unwrap();
        let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
        let (mut at, mut kinds) = (0, Vec::new());
        while at < file.len() {
            let length = word(at + 4);
            assert_eq!((length % 4, word(at + length as usize - 4)), (0, length));
            kinds.push(word(at));
            at += length as usize;
        }
        assert_eq!(kinds, [SECTION, INTERFACE, PACKET]);
        assert_eq!(at, file.len());
    }
}
