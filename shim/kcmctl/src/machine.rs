//! What this machine offers, found by asking the kernel. Nothing is changed.

use std::fs;

use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Resource, geteuid, getrlimit};

use crate::out::clean;
use crate::{Problem, measure, run};

/// One line of the page.
pub(crate) struct Finding {
    pub(crate) topic: &'static str,
    pub(crate) what: String,
}

/// Address families that rustix has no name for (linux/socket.h).
const AF_PACKET: u16 = 17;
const AF_KCM: u16 = 41;
const AF_XDP: u16 = 44;
/// Bits of CapEff (linux/capability.h).
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_BPF: u64 = 1 << 39;

fn read(path: &str) -> Option<String> {
    Some(clean(fs::read_to_string(path).ok()?.trim_end().as_bytes()))
}

pub(crate) fn findings() -> Vec<Finding> {
    [
        ("kernel", kernel()),
        ("AF_KCM", kcm()),
        ("bpf", bpf()),
        ("user namespaces", user_namespaces()),
        ("netmap", netmap()),
        ("AF_XDP", family(AF_XDP)),
        ("AF_PACKET", family(AF_PACKET)),
        ("TAP", tap()),
        ("overcommit", overcommit()),
        ("descriptors", descriptors()),
        ("glibc", glibc()),
        ("library", library()),
        (
            "speed",
            "kcmctl bench measures KCM, kcmctl doctor --measure the stack".into(),
        ),
    ]
    .into_iter()
    .map(|(topic, what)| Finding { topic, what })
    .collect()
}

fn kernel() -> String {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into());
    format!("Linux {release}, {}", std::env::consts::ARCH)
}

fn kcm() -> String {
    match socket(AddressFamily::from_raw(AF_KCM), SocketType::DGRAM, None) {
        Ok(_) => {
            "the kernel has its own; programs under kcmshim get ours unless KCMSHIM_KCM=kernel"
                .into()
        }
        Err(_) => "not in this kernel; programs under kcmshim get it all the same".into(),
    }
}

fn family(number: u16) -> String {
    match socket(AddressFamily::from_raw(number), SocketType::RAW, None) {
        Ok(_) => "usable".into(),
        Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {
            "there, but needs CAP_NET_RAW".into()
        }
        Err(err) => format!("not usable: {err}"),
    }
}

fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0)
}

fn bpf() -> String {
    let closed = read("/proc/sys/kernel/unprivileged_bpf_disabled");
    if capabilities() & (CAP_SYS_ADMIN | CAP_BPF) != 0 {
        return "this user may load parser programs into the kernel".into();
    }
    match closed.as_deref() {
        Some("0") => "everyone may load parser programs into the kernel".into(),
        _ => {
            "the kernel refuses this user's parser programs; kcmshim verifies and runs them itself"
                .into()
        }
    }
}

fn user_namespaces() -> String {
    let is = |path: &str, value: &str| read(path).as_deref() == Some(value);
    if is("/proc/sys/user/max_user_namespaces", "0") {
        return "switched off (user.max_user_namespaces is 0)".into();
    }
    if geteuid().is_root() {
        return "allowed".into();
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return "for root only (kernel.unprivileged_userns_clone is 0)".into();
    }
    if is(
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
    ) {
        return "restricted by AppArmor".into();
    }
    match measure::try_namespace() {
        Ok(()) => "allowed: this user can make network namespaces of its own".into(),
        Err(Problem(why)) => format!("not for this user: {why}"),
    }
}

fn netmap() -> String {
    if !fs::exists("/dev/netmap").unwrap_or(false) {
        return "no module loaded".into();
    }
    // What the module calls itself; the library speaks API 14 and asks for it when it opens a port.
    let named = ["version", "srcversion"].map(|name| read(&format!("/sys/module/netmap/{name}")));
    let version = match named {
        [Some(version), _] => format!("module version {version}"),
        [None, Some(source)] => format!("module of source version {source}"),
        [None, None] => "module version unknown".into(),
    };
    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/netmap")
    {
        Ok(_) => format!("usable, {version}; the library speaks API 14"),
        Err(err) => format!("{version}, but /dev/netmap: {err}"),
    }
}

fn tap() -> String {
    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    {
        Ok(_) => "/dev/net/tun is usable".into(),
        Err(err) => format!("/dev/net/tun: {err}"),
    }
}

fn overcommit() -> String {
    match read("/proc/sys/vm/overcommit_memory").as_deref() {
        Some("0") => "heuristic (vm.overcommit_memory 0)".into(),
        Some("1") => "always (vm.overcommit_memory 1)".into(),
        Some("2") => "never (vm.overcommit_memory 2): large queues may find no memory".into(),
        _ => "unknown".into(),
    }
}

fn descriptors() -> String {
    let limit = getrlimit(Resource::Nofile);
    let show = |value: Option<u64>| value.map_or("unlimited".to_owned(), |n| n.to_string());
    format!("{} soft, {} hard", show(limit.current), show(limit.maximum))
}

/// The version that the C library of this very process names in its own file.
fn glibc() -> String {
    const BEFORE: &[u8] = b"stable release version ";
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let path = maps
        .lines()
        .filter_map(|line| Some(&line[line.find('/')?..]));
    let Some(path) = path.into_iter().find(|path| path.ends_with("/libc.so.6")) else {
        return "not found".into();
    };
    let bytes = fs::read(path).unwrap_or_default();
    let at = bytes
        .windows(BEFORE.len())
        .position(|window| window == BEFORE);
    let version = at
        .and_then(|at| bytes.get(at + BEFORE.len()..))
        .unwrap_or(&[]);
    let end = version
        .iter()
        .position(|b| !b.is_ascii_digit() && *b != b'.')
        .unwrap_or(0);
    let needed = run::library()
        .ok()
        .and_then(|path| needed_glibc(&fs::read(path).ok()?));
    let needed = needed.map_or_else(String::new, |(major, minor)| {
        format!("; the library needs {major}.{minor}")
    });
    match clean(&version[..end]).trim_end_matches('.') {
        "" => format!("{path}, version unknown{needed}"),
        version => format!("{version}{needed}"),
    }
}

/// The newest version of glibc's symbols that a library's file names.
fn needed_glibc(bytes: &[u8]) -> Option<(u32, u32)> {
    const BEFORE: &[u8] = b"\0GLIBC_";
    let starts = bytes.windows(BEFORE.len()).enumerate();
    let starts = starts.filter(|(_, window)| *window == BEFORE);
    let versions = starts.filter_map(|(at, _)| {
        let text = bytes
            .get(at + BEFORE.len()..)?
            .split(|byte| *byte == 0)
            .next()?;
        let mut numbers = str::from_utf8(text).ok()?.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    versions.max()
}

fn library() -> String {
    match run::library() {
        Ok(path) => clean(path.as_os_str().as_encoded_bytes()),
        Err(problem) => problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_symbol_version_is_what_is_needed() {
        let bytes = b"x\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.2.5\0GLIBC_PRIVATE\0";
        assert_eq!(needed_glibc(bytes), Some((2, 34)));
        assert_eq!(needed_glibc(b"nothing"), None);
    }
}
