//! KCM sockets that more than one process holds.
//!
//! A KCM descriptor is an AF_UNIX SEQPACKET socket. Before its copies can reach another process, it
//! is *tied*: connected to a *line*, whose other end stays with the process that has the mux in
//! memory, its *owner*. From the owner's view the line tells when the last copy anywhere is gone.
//! Until another process really uses the socket, the owner's threads go on as before.
//!
//! On first use by another process the socket becomes *shared*: the kernel's queue of the AF_UNIX
//! socket is now its receive queue. The owner moves messages from the mux there, everybody,
//! shimmed or not, takes them by real receive calls, and a message sent through it arrives at the
//! owner's end, which hands it to the mux. What does not fit into messages (clone, options, parts
//! of a message) is asked of the owner over a control connection.
//!
//! `line` is the owner's end, `owner` ties, shares and answers requests (`wire`, `parcel`), `remote` is
//! the side of the other processes, `native` receives from a shared socket, `ledger` counts what was
//! taken from it, `name` makes and recognises addresses. `child` is what a fork means,
//! `broker` what the end of an owner means, `exec` what a new program means, of which `program` tells
//! whether it will load this library, and `inherit` what it finds when it does. `rights` looks after
//! sockets passed by SCM_RIGHTS. `stack` carries what is asked about stack sockets, whose sharing is
//! `net::lend`'s, and `guest` what is asked of the process that has an address of the stack.

pub(crate) mod broker;
pub(crate) mod child;
pub(crate) mod exec;
pub(crate) mod guest;
pub(crate) mod inherit;
mod ledger;
pub(crate) mod line;
pub(crate) mod name;
pub(crate) mod native;
pub(crate) mod owner;
mod parcel;
pub(crate) mod program;
pub(crate) mod remote;
pub(crate) mod rights;
pub(crate) mod stack;
mod wire;
