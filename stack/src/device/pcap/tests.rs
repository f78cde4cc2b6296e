use super::*;
use crate::device::{FrameMeta, MemoryDevice, MemoryOptions};
use std::process::{Command, Stdio};

/// Blocks of a pcapng file: kind and body.
fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut blocks = Vec::new();
    while !file.is_empty() {
        let len = word(file, 4) as usize;
        assert_eq!(word(file, len - 4) as usize, len, "both lengths");
        assert_eq!(len % 4, 0);
        blocks.push((word(file, 0), file[8..len - 4].to_vec()));
        file = &file[len..];
    }
    blocks
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn captured() -> Vec<u8> {
    let (a, mut b) = MemoryDevice::pair(&MemoryOptions::default()).unwrap();
    let epoch = Duration::from_secs(1_700_000_000);
    let mut a = Pcap::new(a, Vec::new(), epoch).unwrap();
    a.advance(Instant::from_millis(1500));
    a.transmit_parts(&[&[0x11; 61]], FrameMeta::NONE).unwrap();
    a.kick().unwrap();
    b.transmit_parts(&[&[0x22; 64]], FrameMeta::NONE).unwrap();
    b.kick().unwrap();
    a.advance(Instant::from_millis(2500));
    assert_eq!(a.receive(9, &mut |_| {}), Ok(1));
    assert!(a.sink_error().is_none());
    a.into_parts().1
}

#[test]
fn file_has_heads_and_both_directions_with_times() {
    let blocks = blocks(&captured());
    let kinds: Vec<u32> = blocks.iter().map(|b| b.0).collect();
    assert_eq!(
        kinds,
        [BLOCK_SECTION, BLOCK_INTERFACE, BLOCK_PACKET, BLOCK_PACKET]
    );
    assert_eq!(word(&blocks[0].1, 0), BYTE_ORDER_MAGIC);
    assert_eq!(word(&blocks[1].1, 0) & 0xffff, LINK_ETHERNET);
    for ((_, body), (ms, len, fill, direction)) in blocks[2..]
        .iter()
        .zip([(1500, 61, 0x11, 2), (2500, 64, 0x22, 1)])
    {
        let micros = u64::from(word(body, 4)) << 32 | u64::from(word(body, 8));
        assert_eq!(micros, 1_700_000_000_000_000 + ms * 1000);
        assert_eq!((word(body, 12), word(body, 16)), (len, len));
        assert!(body[20..20 + len as usize].iter().all(|b| *b == fill));
        let option = 20 + (len as usize).next_multiple_of(4);
        assert_eq!(word(body, option + 4), direction);
        assert_eq!(body.len(), option + 12);
    }
}

/// An independent reader's opinion, where Wireshark's tools are installed.
#[test]
fn tshark_reads_the_file() {
    let path = std::env::temp_dir().join(format!("kcm-pcap-{}.pcapng", std::process::id()));
    std::fs::write(&path, captured()).unwrap();
    let fields = [
        "frame.time_epoch",
        "frame.len",
        "frame.packet_flags_direction",
    ];
    let mut tshark = Command::new("tshark");
    tshark
        .arg("-r")
        .arg(&path)
        .args(["-T", "fields"])
        .stderr(Stdio::null());
    for field in fields {
        tshark.args(["-e", field]);
    }
    let output = tshark.output();
    std::fs::remove_file(&path).unwrap();
    // Without the tool the test above stands alone.
    let Ok(output) = output else { return };
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    assert_eq!(rows.len(), 2, "{text}");
    assert!(
        rows[0][0].starts_with("1700000001.5") && rows[0][1] == "61",
        "{text}"
    );
    assert!(
        rows[1][0].starts_with("1700000002.5") && rows[1][1] == "64",
        "{text}"
    );
    assert!(
        rows[0][2].ends_with('2') && rows[1][2].ends_with('1'),
        "{text}"
    );
}

#[test]
fn failing_sink_stops_the_capture_and_not_the_device() {
    struct Small(usize);
    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (a, mut b) = MemoryDevice::pair(&MemoryOptions::default()).unwrap();
    let mut a = Pcap::new(a, Small(100), Duration::ZERO).unwrap();
    for _ in 0..3 {
        a.transmit_parts(&[&[0x11; 61]], FrameMeta::NONE).unwrap();
    }
    a.kick().unwrap();
    assert_eq!(a.sink_error().unwrap().kind(), io::ErrorKind::StorageFull);
    assert_eq!(b.receive(9, &mut |_| {}), Ok(3));
}
