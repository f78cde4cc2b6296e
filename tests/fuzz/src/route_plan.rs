//! Any configuration is settings or problems, and any settings decide about any socket.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::bpf_gen::Source;
use crate::plan::decide::{Role, Verdict};
use crate::plan::{FILE_BYTES_MAX, PROBLEMS_MAX, Settings};

/// Pieces of files: mostly whole lines, since bytes alone hardly ever get past the tokenizer.
const FILE: [&str; 40] = [
    "\n[[interface]]\ndevice=\"tap:k\"\ndhcp=true\n",
    "\n[[interface]]\ndevice=\"packet:v\"\naddresses=[\"10.9.0.2/24\",\"fd00::2/64\"]\n",
    "\n[[interface.route]]\nto=\"10.0.0.0/8\"\n",
    "\n[[rule]]\nuse=\"stack\"\n",
    "\n[[rule]]\nuse=\"kernel\"\n",
    "\n[[rule]]\nuse=\"refuse=EPERM\"\n",
    "\n[[rule]]\nuse=\"both\"\nrole=[\"listen\",\"udp\"]\n",
    "\n[[rule]]\n",
    "\n[defaults]\nwildcard=\"stack\"\n",
    "on_failure=\"ENETDOWN\"\n",
    "gateway=\"10.9.0.1\"\n",
    "gateway=[\"10.9.0.1\",\"fe80::1\"]\n",
    "mtu=1500\n",
    "queues=2\n",
    "offloads=false\n",
    "via=\"10.9.0.1\"\n",
    "name=\"n\"\n",
    "program=[\"f*z\",\"/x/*\"]\n",
    "role=\"connect\"\n",
    "role=\"listen\"\n",
    "role=\"udp\"\n",
    "address=\"10.9.0.0/16\"\n",
    "address=[\"::/0\",\"0.0.0.0/0\"]\n",
    "address=\"127.0.0.0/8\"\n",
    "port=[80,\"0-65535\"]\n",
    "port=65536\n",
    "interface=\"packet:v\"\n",
    "interface=\"tap:k\"\n",
    "use=\"stack\"\n",
    "device=",
    "to=",
    "[",
    "]",
    "{",
    "\"",
    "=",
    "\n",
    "0x",
    "1979-05-27",
    "\"\"\"",
];
/// Pieces of lines.
const LINE: [&str; 20] = [
    "packet:v 10.9.0.2/24 ",
    "packet:w 10.8.0.2/0 ",
    "tap:k dhcp ",
    "fd00::2/64 ",
    "via 10.9.0.1 ",
    "via fe80::1 ",
    "route 10.0.0.0/8 ",
    "route ::/0 ",
    "dhcp ",
    "mtu=1400 ",
    "queues=3 ",
    "offloads=off ",
    "wildcard=kernel ",
    "on_failure=EIO ",
    "; ",
    ";",
    "via ",
    "route ",
    "mtu=",
    "/",
];

/// Up to seven pieces; bytes from 240 on are taken as they are.
fn text(source: &mut Source<'_>, pieces: &[&str]) -> Vec<u8> {
    let mut text = Vec::new();
    for _ in 0..source.byte() % 8 {
        let byte = source.byte();
        match pieces.get(usize::from(byte) % pieces.len()) {
            Some(piece) if byte < 240 => text.extend_from_slice(piece.as_bytes()),
            _ => text.push(byte),
        }
    }
    text
}

/// One input: a file, a line, and sockets to decide about.
pub fn fuzz_one(data: &[u8]) {
    let mut source = Source(data);
    let (file, line) = (text(&mut source, &FILE), text(&mut source, &LINE));
    let chosen = source.byte();
    let file = (chosen & 1 == 0).then_some(("f", &file[..]));
    let line = (chosen & 2 == 0).then_some(&line[..]);
    let settings = match Settings::read(file, line) {
        Ok(settings) => settings,
        Err(problems) => {
            assert!((1..=PROBLEMS_MAX).contains(&problems.len()));
            for problem in problems {
                let said = problem.to_string();
                assert!(!said.contains('\n'), "{said}");
                assert!(said.len() < FILE_BYTES_MAX, "{said}");
            }
            return;
        }
    };
    let interfaces = settings.interfaces.len();
    assert!(interfaces > 0);
    let plan = settings.plan_for(Path::new("/usr/bin/fuzz"));
    for _ in 0..8 {
        let mut bits = [0; 16];
        bits.fill_with(|| source.byte());
        let address = SocketAddr::new(Ipv6Addr::from(bits).to_canonical(), bits[0].into());
        for role in [Role::Listen, Role::Connect, Role::UdpBind, Role::UdpSend] {
            let decision = plan.decide(&[], role, address);
            if let Verdict::Stack { iface: Some(at) } | Verdict::Both { iface: Some(at) } =
                decision.verdict
            {
                assert!(at < interfaces, "{decision:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_configuration_is_settings_or_problems() {
        crate::run_seeded(super::fuzz_one, 3, 50_000, 200);
    }
}
