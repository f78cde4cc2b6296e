//! LD_PRELOAD library: AF_KCM sockets for unmodified programs.
//!
//! The life of a call: a function of `interpose` looks the descriptor up in `fd::table`. One that
//! is not ours goes to the next definition (`real`). For one that is, decoded arguments
//! (`user_mem`) go to `ops`, `message`, `ioctl`, `poll`, `epoll` or `descriptor`, and from there to
//! the kind of file: `kcm` (a mux of the `kcm-mux` crate over real TCP sockets), `tcp` (attached
//! sockets), `bpf` (parser programs). Sleeping is `wait`; work that is due while no thread of the
//! program is here is the `housekeeper`'s.

#![deny(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        dead_code,
        reason = "the C names, which reach everything, are not exported in a test build"
    )
)]

mod bpf;
mod config;
mod descriptor;
mod environment;
mod epoll;
mod errno;
mod fd;
mod heap;
mod housekeeper;
mod init;
mod interpose;
mod ioctl;
mod kcm;
mod log;
mod message;
mod net;
mod ops;
mod own;
mod poll;
mod pool;
mod proc_net;
mod process;
mod publish;
mod ready;
mod real;
#[allow(dead_code, reason = "the sockets on the engine ask it")]
mod route;
mod select;
mod share;
mod signal;
mod silence;
mod sync;
mod sys;
mod tcp;
mod transfer;
mod user_mem;
mod values;
mod variadic;
mod wait;
mod watch;
