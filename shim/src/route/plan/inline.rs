//! `KCMSHIM_STACK`: interfaces on one line.
//!
//! ```text
//! packet:veth0 10.9.0.2/24 fd00::2/64 via 10.9.0.1 mtu=1500; tap:kcm0 dhcp wildcard=stack
//! ```

use std::str::SplitAsciiWhitespace;

use super::words::{self, Word};
use super::{
    INTERFACES_MAX, Interface, Prefix, Problems, Route, Settings, VALUE_BYTES_MAX, quoted,
};

/// Where problems are.
pub(super) const VARIABLE: &str = "KCMSHIM_STACK";

/// What may stand after a device.
const WORDS: &str = "ADDRESS/LENGTH, dhcp, via ROUTER, route PREFIX [via ROUTER], mtu=BYTES, \
                     queues=COUNT, offloads=on|off, faults=PERCENT, \
                     wildcard=stack|kernel|both, on_failure=kernel|ERRNO";

pub(super) fn read(text: &[u8], settings: &mut Settings, problems: &mut Problems) {
    if text.len() > VALUE_BYTES_MAX {
        problems.add(VARIABLE, format!("longer than {VALUE_BYTES_MAX} bytes"));
        return;
    }
    let Ok(text) = str::from_utf8(text) else {
        problems.add(VARIABLE, "it is not UTF-8 text");
        return;
    };
    for part in text.split(';').filter(|part| !part.trim().is_empty()) {
        if settings.interfaces.len() >= INTERFACES_MAX {
            let what = format!("more than {INTERFACES_MAX} interfaces");
            problems.add(VARIABLE, what);
            return;
        }
        match interface(part, settings) {
            Ok(interface) => settings.interfaces.push(interface),
            Err(what) => problems.add(VARIABLE, what),
        }
    }
}

impl Interface {
    /// An interface of which nothing but the device is known.
    pub(super) const fn new(device: String) -> Self {
        Self {
            device,
            addresses: Vec::new(),
            dhcp: false,
            gateways: Vec::new(),
            routes: Vec::new(),
            mtu: None,
            queues: 1,
            offloads: true,
            faults: 0,
        }
    }
}

fn interface(part: &str, settings: &mut Settings) -> Word<Interface> {
    let mut rest = part.split_ascii_whitespace();
    let device = rest.next().unwrap_or_default();
    let mut made = Interface::new(words::device(device)?);
    // `via` after `route` is that route's router.
    let mut route_is_open = false;
    while let Some(word) = rest.next() {
        let open = core::mem::take(&mut route_is_open);
        match word {
            "dhcp" => made.dhcp = true,
            "via" => {
                let router = words::router(argument(word, "an address", &mut rest)?)?;
                match made.routes.last_mut().filter(|_| open) {
                    Some(route) => route.via = Some(router),
                    None => made.gateways.push(router),
                }
            }
            "route" => {
                let to = words::network(argument(word, "a prefix", &mut rest)?)?;
                made.routes.push(Route { to, via: None });
                route_is_open = true;
            }
            _ => match word.split_once('=') {
                Some((key, value)) => setting(key, value, &mut made, settings)?,
                None if word.contains('/') || Prefix::parse(word).is_some() => {
                    made.addresses.push(words::address(word)?);
                }
                None => return Err(format!("{} is none of {WORDS}", quoted(word))),
            },
        }
    }
    Ok(made)
}

/// The word after `word`.
fn argument<'a>(word: &str, what: &str, rest: &mut SplitAsciiWhitespace<'a>) -> Word<&'a str> {
    rest.next()
        .ok_or_else(|| format!("{word:?} ends the line; {what} follows it"))
}

fn setting(key: &str, value: &str, made: &mut Interface, settings: &mut Settings) -> Word<()> {
    let number = || {
        let digits = value.bytes().all(|b| b.is_ascii_digit());
        let parsed = value.parse::<i64>().ok().filter(|_| digits);
        parsed.ok_or_else(|| format!("{key}={}: not a number", quoted(value)))
    };
    let named = |what| format!("{key}: {what}");
    match key {
        "mtu" => made.mtu = Some(words::mtu(number()?).map_err(named)?),
        "queues" => made.queues = words::queues(number()?).map_err(named)?,
        "faults" => made.faults = words::faults(number()?).map_err(named)?,
        "offloads" => {
            made.offloads = match value {
                "on" => true,
                "off" => false,
                _ => return Err(format!("offloads={}: write on or off", quoted(value))),
            }
        }
        "wildcard" => settings.wildcard = Some(words::wildcard(value).map_err(named)?),
        "on_failure" => settings.on_failure = Some(words::on_failure(value).map_err(named)?),
        _ => return Err(format!("{} is none of {WORDS}", quoted(key))),
    }
    Ok(())
}
