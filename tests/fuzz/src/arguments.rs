//! Whatever a program passes as the value of an option, the argument of a request or control data is
//! decoded, or too short.

use std::net::IpAddr;

use crate::bpf_gen::Source;
use crate::values::{self, CONTROL_HEADER, Control, Controls, Cut, KcmRequest};

/// KCM's requests, those it refuses by name, and others.
const REQUESTS: [u32; 10] = [
    0x89e0, 0x89e1, 0x89e2, 0x541b, 0x5411, 0x8905, 0x5421, 0x89e3, 0, !0,
];

/// The int at `at`, as the program wrote it.
fn word(bytes: &[u8], at: usize) -> i32 {
    bytes[at..at + 4]
        .iter()
        .rev()
        .fold(0, |all, byte| all << 8 | i32::from(*byte))
}

fn request(source: &mut Source<'_>, argument: &[u8]) {
    let number =
        REQUESTS[usize::from(source.byte()) % REQUESTS.len()] ^ u32::from(source.byte() & 1);
    let length = KcmRequest::length(number);
    assert!(length <= KcmRequest::BYTES_MAX);
    let decoded = KcmRequest::new(number, argument);
    assert_eq!(decoded.is_none(), argument.len() < length);
    match decoded {
        Some(KcmRequest::Attach { tcp, program }) => {
            assert_eq!((tcp, program), (word(argument, 0), word(argument, 4)));
        }
        Some(KcmRequest::Unattach { tcp }) => assert_eq!(tcp, word(argument, 0)),
        Some(_) => assert_eq!(length, 0),
        None => {}
    }
}

fn options(value: &[u8]) {
    assert_eq!(
        values::int(value),
        (value.len() >= 4).then(|| word(value, 0))
    );
    match values::linger(value) {
        None => assert!(value.len() < 8),
        Some(None) => assert_eq!(word(value, 0), 0),
        Some(Some(seconds)) => assert_eq!(seconds as i32, word(value, 4).max(0)),
    }
    let text = values::text(value);
    assert!(value.starts_with(text) && !text.contains(&0));
    assert!(value.get(text.len()).is_none_or(|byte| *byte == 0));
    match values::membership_v4(value) {
        None => assert!(value.len() < 8),
        Some(wish) => {
            assert_eq!(wish.group.octets(), value[..4]);
            assert_eq!(wish.local.octets(), value[4..8]);
            let index = if value.len() < 12 { 0 } else { word(value, 8) };
            assert_eq!(wish.index, index as u32);
        }
    }
    match values::membership_v6(value) {
        None => assert!(value.len() < 20),
        Some(wish) => {
            assert_eq!(wish.group.octets(), value[..16]);
            assert_eq!(wish.index, word(value, 16) as u32);
        }
    }
    if let Some((index, group)) = values::group_request(value) {
        assert_eq!(index, word(value, 0) as u32);
        match group {
            Some(IpAddr::V4(group)) => assert_eq!(group.octets(), value[12..16]),
            Some(IpAddr::V6(group)) => assert_eq!(group.octets(), value[16..32]),
            None => assert!(value.len() >= 10),
        }
    }
    match values::source_v4(value) {
        None => assert!(value.len() < 12),
        Some(named) => {
            let at = named.map(|ip| ip.octets()).concat();
            assert_eq!(at, value[..12]);
        }
    }
    match values::filter_v4(value) {
        None => assert!(value.len() < 16),
        Some((_, mode, count)) => {
            assert_eq!([mode, count as i32], [word(value, 8), word(value, 12)]);
        }
    }
    // Behind a group's address, which takes 136 bytes.
    let long = [&[0; 136], value].concat();
    match values::group_filter(&long) {
        None => assert!(value.len() < 8),
        Some((mode, count)) => assert_eq!([mode, count as i32], [word(value, 0), word(value, 4)]),
    }
    if let Some(Some(source)) = values::source_request(&long) {
        let at = if source.is_ipv4() { 4 } else { 8 };
        let octets = match source {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        assert!(value[at..].starts_with(&octets));
    }
    let list = long.repeat(2);
    let count = values::stored_addresses(&list).count();
    assert_eq!(count, list.len() / values::STORAGE);
    assert_eq!(values::ints(value).count(), value.len() / 4);
}

/// Arbitrary control data: messages are parts of it, one behind the other.
fn controls(bytes: &[u8]) {
    let mut beyond = bytes.as_ptr().addr();
    let mut messages = Controls(bytes);
    for message in messages.by_ref().map_while(Result::ok) {
        let at = message.data.as_ptr().addr();
        assert!(at >= beyond + CONTROL_HEADER, "{message:?}");
        beyond = at + message.data.len();
        assert!(beyond <= bytes.as_ptr().addr() + bytes.len());
    }
    assert!(messages.next().is_none());
}

/// As a program writes one.
fn put(to: &mut Vec<u8>, level: i32, kind: i32, data: &[u8]) {
    to.resize(to.len().next_multiple_of(8), 0);
    to.extend_from_slice(&(CONTROL_HEADER + data.len()).to_ne_bytes());
    to.extend_from_slice(&level.to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(data);
}

/// Well-formed messages come out as they went in, and the same again when the last one is cut.
fn written(source: &mut Source<'_>) {
    let mut bytes = Vec::new();
    let mut wanted = Vec::new();
    for _ in 0..source.byte() % 5 {
        let (level, kind) = (i32::from(source.byte()), i32::from(source.byte()));
        let mut data = vec![0; usize::from(source.byte() % 40)];
        data.fill_with(|| source.byte());
        put(&mut bytes, level, kind, &data);
        wanted.push((level, kind, data));
    }
    let got: Vec<_> = Controls(&bytes).collect();
    let whole = |(level, kind, data)| Ok(Control { level, kind, data });
    let expected = wanted.iter().map(|(l, k, d)| whole((*l, *k, &d[..])));
    assert!(got.iter().copied().eq(expected));
    if let Some((.., last)) = wanted.last().filter(|(.., last)| !last.is_empty()) {
        let short = bytes.len() - 1 - usize::from(source.byte()) % last.len();
        let cut: Vec<_> = Controls(&bytes[..short]).collect();
        assert_eq!(cut[..cut.len() - 1], got[..got.len() - 1]);
        assert_eq!(cut.last(), Some(&Err(Cut)));
    }
}

/// One input.
pub fn fuzz_one(data: &[u8]) {
    let mut source = Source(data);
    let mut value = vec![0; usize::from(source.byte() % 40)];
    value.fill_with(|| source.byte());
    if let Some(family) = value.get_mut(8..10) {
        family.copy_from_slice(&source.pick(&[2_u16, 10, 0x0202]).to_ne_bytes());
    }
    request(&mut source, &value);
    options(&value);
    if let Some(family) = value.first_chunk_mut::<2>() {
        *family = source.pick(&[2_u16, 10, 0x0202]).to_ne_bytes();
        options(&value);
    }
    written(&mut source);
    controls(source.0);
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_argument_is_decoded_or_too_short() {
        crate::run_seeded(super::fuzz_one, 5, 200_000, 200);
    }
}
