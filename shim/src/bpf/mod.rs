//! bpf(2): parser programs and their maps, whether or not the kernel lets the program load them.
//!
//! The kernel is asked first. Where it agrees, its descriptor is the one the program gets; where
//! it refuses for want of rights (EPERM, ENOSYS), the program is verified here and gets a real
//! descriptor that stands for it. Either way the instructions are kept, since it is our VM that
//! runs them. Of a program that was loaded out of our sight only the kernel has instructions that
//! mean something, so the kernel runs it ([`kernel::KernelProgram`]), if it lets us.

mod attr;
mod kernel;
mod load;
mod map;
mod parcel;
mod query;

use std::sync::Arc;

use kcm_mux::Parser;
use rustix::event::{EventfdFlags, eventfd};

use self::attr::Attr;
use self::kernel::KernelProgram;
pub(crate) use self::parcel::{Parcel, parcel, unpack};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::sys;
use crate::user_mem::UserPtr;

/// What a descriptor of Kind::Bpf stands for.
#[derive(Clone)]
pub(crate) enum BpfObject {
    /// A SOCKET_FILTER program, the kernel's or ours.
    Program(Arc<load::Loaded>),
    /// A map that lives here: the kernel would not make it, or it mirrors one of the kernel's.
    Map(Arc<map::LocalMap>),
}

const MAP_CREATE: i32 = 0;
const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const MAP_DELETE_ELEM: i32 = 3;
const MAP_GET_NEXT_KEY: i32 = 4;
const PROG_LOAD: i32 = 5;
const PROG_TEST_RUN: i32 = 10;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const MAP_FREEZE: i32 = 22;
const PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// bpf(2) with the program's arguments; `native` makes the real call.
pub(crate) fn call(
    command: i32,
    attr: UserPtr,
    length: u32,
    native: impl FnOnce() -> i64,
) -> Outcome<i64> {
    let read = || Attr::read(attr, length);
    match command {
        PROG_LOAD => load::load(&read()?, native),
        MAP_CREATE => map::create(&read()?, native),
        MAP_LOOKUP_ELEM..=MAP_GET_NEXT_KEY => map::element(command, &read()?),
        MAP_FREEZE => map::freeze(&read()?),
        PROG_TEST_RUN => query::test_run(&read()?),
        OBJ_GET_INFO_BY_FD => query::info(&read()?),
        _ => Err(Exit::Native),
    }
}

/// Whether the kernel's refusal is about rights, not about what was asked.
fn forbidden(err: Errno) -> bool {
    matches!(err, Errno::EPERM | Errno::ENOSYS)
}

/// The object behind a descriptor that we know.
fn behind(fd: i32) -> Option<BpfObject> {
    let file = lookup(fd).filter(|f| f.kind() == Kind::Bpf)?;
    match &*file.body.lock().ok()? {
        Body::Bpf(object) => Some(object.clone()),
        _ => None,
    }
}

/// What the kernel answered: a number that it hands out may still be taken by a file of ours that was
/// closed unseen.
fn granted(answer: i64) -> i64 {
    if let Ok(fd @ 0..) = i32::try_from(answer) {
        table::fresh(fd);
    }
    answer
}

/// Puts an object behind the kernel's descriptor, or behind a placeholder.
fn publish(granted: i64, object: BpfObject) -> Outcome<i64> {
    let fd = match i32::try_from(granted) {
        Ok(fd @ 0..) => fd,
        _ => sys::hand_out(eventfd(0, EventfdFlags::CLOEXEC)?),
    };
    let file = File::new(Kind::Bpf, sys::inode(sys::borrow(fd)), Body::Bpf(object))?;
    table::install(fd, file);
    Ok(fd.into())
}

/// The parser behind the descriptor that SIOCKCMATTACH names.
///
/// # Errors
/// EBADF for no descriptor, EINVAL for one that is not a SOCKET_FILTER program. EOPNOTSUPP for a
/// program that the kernel admits and our VM cannot run. For one that was loaded out of our sight
/// the errno with which the kernel refuses to run it for us.
pub(crate) fn program(fd: i32) -> Outcome<Parser> {
    match behind(fd) {
        Some(BpfObject::Program(loaded)) => {
            return match &loaded.code {
                Ok(program) => Ok(Arc::clone(program) as Parser),
                Err(why) => {
                    crate::log::warn(&format!(
                        "SIOCKCMATTACH: the parser program cannot run: {why}"
                    ));
                    Err(Errno::EOPNOTSUPP.into())
                }
            };
        }
        Some(BpfObject::Map(_)) => return Err(Errno::EINVAL.into()),
        None => {}
    }
    if fd < 0 || !sys::is_usable(fd) {
        return Err(Errno::EBADF.into());
    }
    if !matches!(
        kernel::object(fd),
        Some(kernel::Object::Program(PROG_TYPE_SOCKET_FILTER))
    ) {
        return Err(Errno::EINVAL.into());
    }
    match KernelProgram::adopt(fd) {
        Ok(program) => Ok(Arc::new(program) as Parser),
        Err(err) => {
            crate::log::warn(&format!(
                "SIOCKCMATTACH: the program was loaded out of sight, and the kernel does not run it: {err:?}"
            ));
            Err(err.into())
        }
    }
}
