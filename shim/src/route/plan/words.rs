//! Single values, as both languages spell them. Each fails with what is allowed, as the end of a
//! sentence.

use std::net::IpAddr;

use kcm_stack::device::DeviceName;

use super::{MTU_MIN, OnFailure, Prefix, QUEUES_MAX, RoleName, Use, errnos, quoted};

/// What is allowed instead.
pub(super) type Word<T> = Result<T, String>;

/// The sentence about a value that is not allowed.
fn not(text: &str, allowed: &str) -> String {
    format!("{} is not {allowed}", quoted(text))
}

pub(super) fn device(text: &str) -> Word<String> {
    match text.parse::<DeviceName>() {
        Ok(_) => Ok(text.into()),
        Err(why) => Err(format!("{}: {why}", quoted(text))),
    }
}

/// An address of ours.
pub(super) fn address(text: &str) -> Word<Prefix> {
    let Some(prefix) = Prefix::parse(text).filter(|_| text.contains('/')) else {
        return Err(not(
            text,
            "an address with its prefix length, as 10.9.0.2/24 or fd00::2/64",
        ));
    };
    if usable(prefix.ip) {
        Ok(prefix)
    } else {
        Err(not(text, "an address that a host can have"))
    }
}

fn usable(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast)
}

pub(super) fn router(text: &str) -> Word<IpAddr> {
    match text.parse() {
        Ok(ip) if usable(ip) => Ok(ip),
        _ => Err(not(text, "the address of a router, as 10.9.0.1 or fe80::1")),
    }
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Word<Prefix> {
    let allowed = "an address or prefix, as 10.9.0.7, 10.9.0.0/16 or fd00::/8";
    Prefix::parse(text).ok_or_else(|| not(text, allowed))
}

pub(super) fn mtu(number: i64) -> Word<u16> {
    u16::try_from(number)
        .ok()
        .filter(|mtu| *mtu >= MTU_MIN)
        .ok_or_else(|| {
            format!(
                "{number} is not an MTU from {MTU_MIN} to {} bytes",
                u16::MAX
            )
        })
}

pub(super) fn queues(number: i64) -> Word<u16> {
    u16::try_from(number)
        .ok()
        .filter(|n| (1..=QUEUES_MAX).contains(n))
        .ok_or_else(|| format!("{number} is not a number of queues from 1 to {QUEUES_MAX}"))
}

/// Beyond, hardly any connection stays up.
const FAULTS_MAX: u8 = 30;

pub(super) fn faults(number: i64) -> Word<u8> {
    u8::try_from(number)
        .ok()
        .filter(|n| *n <= FAULTS_MAX)
        .ok_or_else(|| format!("{number} is not a percentage from 0 to {FAULTS_MAX}"))
}

pub(super) fn port(number: i64) -> Word<(u16, u16)> {
    match u16::try_from(number) {
        Ok(port) => Ok((port, port)),
        Err(_) => Err(format!("{number} is not a port from 0 to 65535")),
    }
}

/// `8000-8099` or `80`.
pub(super) fn ports(text: &str) -> Word<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim().parse::<u16>().ok();
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err(not(text, "a port or a range of ports, as \"8000-8099\"")),
    }
}

pub(super) fn role(text: &str) -> Word<RoleName> {
    match text {
        "listen" => Ok(RoleName::Listen),
        "connect" => Ok(RoleName::Connect),
        "udp" => Ok(RoleName::Udp),
        _ => Err(not(text, "one of \"listen\", \"connect\", \"udp\"")),
    }
}

/// `refuse` alone answers [`errnos::REFUSED`], `refuse=ERRNO` what it names.
pub(super) fn serve(text: &str) -> Word<Use> {
    match text {
        "stack" => Ok(Use::Stack),
        "kernel" => Ok(Use::Kernel),
        "both" => Ok(Use::Both),
        "refuse" => Ok(Use::Refuse(errnos::REFUSED)),
        _ => match text.strip_prefix("refuse=") {
            Some(name) => errno(name).map(Use::Refuse),
            None => Err(not(
                text,
                "one of \"stack\", \"kernel\", \"both\", \"refuse\", \"refuse=ERRNO\"",
            )),
        },
    }
}

pub(super) fn wildcard(text: &str) -> Word<Use> {
    match serve(text) {
        Ok(serve) if !matches!(serve, Use::Refuse(_)) => Ok(serve),
        _ => Err(not(text, "one of \"stack\", \"kernel\", \"both\"")),
    }
}

pub(super) fn on_failure(text: &str) -> Word<OnFailure> {
    match text {
        "kernel" => Ok(OnFailure::Kernel),
        _ => match errnos::number(text) {
            Some(number) => Ok(OnFailure::Fail(number)),
            None => Err(not(
                text,
                &format!("\"kernel\" or one of {}", errnos::names()),
            )),
        },
    }
}

fn errno(name: &str) -> Word<i32> {
    errnos::number(name).ok_or_else(|| not(name, &format!("one of {}", errnos::names())))
}
