//! What /proc tells of a process. A process of another user tells little, one that has ended
//! nothing; both are ordinary answers.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::out::clean;

/// Longest command line shown: /proc gives what the program says of itself.
const COMMAND_MAX: usize = 4096;

/// Start in clock ticks since boot; `None` when there is no such process.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = String::from_utf8_lossy(stat.get(end + 1..)?).into_owned();
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Command line, if it can be read.
pub(crate) fn command(pid: u32) -> Option<String> {
    let mut line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    line.truncate(COMMAND_MAX);
    while line.last() == Some(&0) {
        line.pop();
    }
    let words: Vec<_> = line.split(|byte| *byte == 0).map(clean).collect();
    (!line.is_empty()).then(|| words.join(" "))
}

/// Whether the library is mapped; `None` when that cannot be seen.
pub(crate) fn has_library(pid: u32) -> Option<bool> {
    let maps = fs::read(format!("/proc/{pid}/maps")).ok()?;
    let name = b"libkcmshim.so";
    Some(maps.windows(name.len()).any(|window| window == name))
}

/// A descriptor's target as /proc names it, such as `socket:[123]`.
pub(crate) fn target(pid: u32, fd: i64) -> Option<String> {
    use std::os::unix::ffi::OsStrExt;
    let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    Some(clean(link.as_os_str().as_bytes()))
}

/// The inode in `socket:[123]`.
pub(crate) fn socket_inode(target: &str) -> Option<u64> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// Descriptors of sockets by inode.
pub(crate) fn sockets(pid: u32) -> BTreeMap<u64, Vec<i64>> {
    let mut all: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
    {
        let number = entry
            .ok()
            .and_then(|e| e.file_name().to_str()?.parse().ok());
        if let Some(fd) = number
            && let Some(inode) = target(pid, fd).as_deref().and_then(socket_inode)
        {
            all.entry(inode).or_default().push(fd);
        }
    }
    all.values_mut().for_each(|fds| fds.sort_unstable());
    all
}

/// Local and remote address of the TCP sockets in the process's network namespace, by inode.
pub(crate) fn tcp_addresses(pid: u32) -> BTreeMap<u64, (SocketAddr, SocketAddr)> {
    let mut all = BTreeMap::new();
    for name in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
        all.extend(text.lines().skip(1).filter_map(tcp_line));
    }
    all
}

/// A line of /proc/net/tcp: slot, local, remote, …, inode in the tenth column.
fn tcp_line(line: &str) -> Option<(u64, (SocketAddr, SocketAddr))> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let inode = fields.get(9)?.parse().ok()?;
    Some((inode, (address(fields.get(1)?)?, address(fields.get(2)?)?)))
}

/// `0100007F:1F90`: words of the address in the machine's byte order, the port as it is read.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..host.len()).step_by(8) {
        let word = u32::from_str_radix(host.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let host = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(host.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_net_tcp_gives_inode_and_addresses() {
        let line = "   1: 0100007F:1F90 0200007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0";
        let (inode, (local, remote)) = tcp_line(line).unwrap();
        assert_eq!(inode, 4711);
        assert_eq!(local.to_string(), "127.0.0.1:8080");
        assert_eq!(remote.to_string(), "127.0.0.2:50000");
        assert_eq!(tcp_line("   1: 0100007F 0200007F:C350"), None);
    }

    #[test]
    fn this_process_is_seen() {
        let me = std::process::id();
        assert!(start_time(me).is_some_and(|ticks| ticks > 0));
        assert!(command(me).is_some());
        assert_eq!(has_library(me), Some(false));
        assert_eq!(start_time(u32::MAX), None);
    }
}
