//! A network namespace for one program: a veth pair, whose end `veth1` is the kernel's with 10.9.0.1 and
//! fd09::1. The other, `veth0`, has 10.9.0.2 and fd09::2, either as the kernel's or as those of the
//! stack inside the program.

use std::ffi::OsStr;
use std::process::Command;

use crate::guest;

/// Whose the addresses of `veth0` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The kernel's; nothing is preloaded.
    Kernel,
    /// The stack's.
    Stack,
}

/// The line that gives `veth0` to the stack.
pub const LINE: &str = "packet:veth0 10.9.0.2/24 fd09::2/64";

/// Makes the namespace's links, then becomes the program.
const SCRIPT: &str = "
set -e
ip link set lo up
ip link add veth0 type veth peer name veth1
ip link set veth0 up
ip link set veth1 up
ip address add 10.9.0.1/24 dev veth1
ip address add fd09::1/64 dev veth1 nodad
side=$1
shift
# Until both ends know of their carrier what is sent there is lost.
for end in veth0 veth1; do
	until ip link show dev $end | grep -q 'state UP'; do sleep 0.01; done
done
if [ $side = kernel ]; then
	ip address add 10.9.0.2/24 dev veth0
	ip address add fd09::2/64 dev veth0 nodad
else
	export LD_PRELOAD=$side
fi
exec \"$@\"
";

/// A command that runs `program` in a namespace of its own.
#[must_use]
pub fn command(side: Side, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("unshare");
    // Whoever is not root is root in a user namespace of his own.
    command.args(["--map-root-user", "--net", "sh", "-c", SCRIPT, "lab"]);
    match side {
        Side::Kernel => command.arg("kernel"),
        Side::Stack => command.arg(guest::library()).env("KCMSHIM_STACK", LINE),
    };
    command.arg(program);
    command
}
