//! Two network namespaces joined by a veth pair: a program on one side, its peer on the kernel's stack
//! on the other.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// Address of the side with the program, whoever serves it.
pub const GUEST: &str = "10.9.0.2";
/// Address of the peer.
pub const PEER: &str = "10.9.0.1";

/// The namespaces, until it is dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
}

/// Why no namespace can be made here, if so.
#[must_use]
pub fn missing() -> Option<&'static str> {
    let probe = Command::new("unshare")
        .args(["--net", "ip", "link"])
        .output();
    match probe {
        Ok(out) if out.status.success() => None,
        Ok(_) => Some("network namespaces need root"),
        Err(_) => Some("needs util-linux and iproute2"),
    }
}

/// Whether a namespace can be made here; if not, says why to whoever reads the log.
#[must_use]
pub fn is_runnable() -> bool {
    let why = missing();
    if let Some(why) = why {
        let _ = writeln!(io::stderr(), "not run: {why}");
    }
    why.is_none()
}

impl Lab {
    /// Makes the namespaces. The guest's side gets [`GUEST`] from the kernel only with `kernel`; the
    /// stack brings it itself.
    ///
    /// # Panics
    /// When `ip` fails.
    #[must_use]
    pub fn new(kernel: bool) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("k{}-{number}", std::process::id());
        let lab = Self { name };
        let (guest, peer) = (lab.guest(), lab.peer());
        for side in [&guest, &peer] {
            ip(&["netns", "add", side]);
            ip(&["-n", side, "link", "set", "lo", "up"]);
        }
        let veth = ["link", "add", "eth0", "netns", &guest, "type", "veth"];
        let other = ["peer", "name", "eth0", "netns", &peer];
        ip(&[&veth[..], &other[..]].concat());
        for side in [&guest, &peer] {
            ip(&["-n", side, "link", "set", "eth0", "up"]);
        }
        lab.await_carrier();
        ip(&["-n", &peer, "addr", "add", "10.9.0.1/24", "dev", "eth0"]);
        if kernel {
            ip(&["-n", &guest, "addr", "add", "10.9.0.2/24", "dev", "eth0"]);
        }
        lab
    }

    /// Waits until the kernel has noticed the carrier on both sides, which takes it up to a second and longer
    /// beside others that change links: what is sent before is lost, and a neighbour is asked for three
    /// seconds only.
    pub fn await_carrier(&self) {
        for side in [self.guest(), self.peer()] {
            await_carrier(&side, "eth0");
        }
    }

    fn guest(&self) -> String {
        format!("{}g", self.name)
    }

    fn peer(&self) -> String {
        format!("{}p", self.name)
    }

    /// A command on the guest's side.
    #[must_use]
    pub fn on_guest(&self, program: impl AsRef<OsStr>) -> Command {
        inside(&self.guest(), program)
    }

    /// A command on the guest's side, under the library with the stack on its interface if `stack`.
    #[must_use]
    pub fn on(&self, stack: bool, program: impl AsRef<OsStr>) -> Command {
        match stack {
            true => self.on_stack(program),
            false => self.on_guest(program),
        }
    }

    /// A command on the guest's side under the library, with the stack on its interface.
    #[must_use]
    pub fn on_stack(&self, program: impl AsRef<OsStr>) -> Command {
        self.on_stack_with("", program)
    }

    /// As [`on_stack`](Self::on_stack), with more words in the stack's line.
    #[must_use]
    pub fn on_stack_with(&self, words: &str, program: impl AsRef<OsStr>) -> Command {
        self.on_device("packet:eth0", words, program)
    }

    /// As [`on_stack_with`](Self::on_stack_with), with the stack on another device.
    #[must_use]
    pub fn on_device(&self, device: &str, words: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.on_guest("env");
        let library = crate::guest::library().display();
        command.arg(format!("LD_PRELOAD={library}"));
        command.arg(format!("KCMSHIM_STACK={device} {GUEST}/24 {words}"));
        command.arg(program);
        command
    }

    /// Makes a TAP on the guest's side, whose other end is the kernel's interface with the peer's address.
    ///
    /// # Panics
    /// When `ip` fails.
    pub fn add_tap(&self, name: &str) {
        let guest = self.guest();
        let tap = ["tuntap", "add", name, "mode", "tap", "vnet_hdr"];
        ip(&[&["-n", &guest][..], &tap[..]].concat());
        ip(&["-n", &guest, "link", "set", name, "up"]);
        ip(&["-n", &guest, "addr", "add", "10.9.0.1/24", "dev", name]);
    }

    /// A command on the guest's side under the library, with the kernel's TCP.
    #[must_use]
    pub fn on_shim(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.on_guest("env");
        let library = crate::guest::library().display();
        command.arg(format!("LD_PRELOAD={library}"));
        command.arg(program);
        command
    }

    /// A command on the peer's side, on the kernel's stack.
    #[must_use]
    pub fn on_peer(&self, program: impl AsRef<OsStr>) -> Command {
        inside(&self.peer(), program)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for side in [self.guest(), self.peer()] {
            let _ = Command::new("ip").args(["netns", "del", &side]).status();
        }
    }
}

fn inside(name: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name]).arg(program);
    command.stdin(Stdio::null());
    command
}

fn await_carrier(side: &str, interface: &str) {
    let is_up = || {
        let mut shown = Command::new("ip");
        shown.args(["-n", side, "link", "show", "dev", interface]);
        let shown = shown.output().expect("iproute2 is installed");
        String::from_utf8_lossy(&shown.stdout).contains("state UP")
    };
    while !is_up() {
        thread::sleep(Duration::from_millis(5));
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    let done = status.expect("iproute2 is installed").success();
    assert!(done, "ip {} failed", arguments.join(" "));
}
