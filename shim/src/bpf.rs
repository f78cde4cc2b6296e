//! bpf(2): parser programs and their maps, whether or not the kernel lets the program load them.
//!
//! The kernel is asked first. Where it agrees, its descriptor is the one the program gets; where
//! it refuses for want of rights (EPERM, ENOSYS), the program is verified here and gets a real
//! descriptor that stands for it. Either way the instructions are kept, since it is our VM that
//! runs them.

use std::sync::Arc;

use kcm_mux::Parser;
use kcm_mux::bpf::{Map, MapSpec, Program};
use rustix::event::{EventfdFlags, eventfd};

use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::sys;
use crate::user_mem::{self, UserPtr};

/// What a descriptor of Kind::Bpf stands for.
pub(crate) enum BpfObject {
    /// A SOCKET_FILTER program.
    Program(Arc<Program>),
    /// A map that lives here, since the kernel would not make it.
    Map(Arc<Map>),
}

const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_DELETE_ELEM: i32 = 3;
const BPF_MAP_GET_NEXT_KEY: i32 = 4;
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
/// Instructions of eight bytes each; the kernel's own bound for privileged programs.
const INSNS_MAX: u32 = kcm_mux::bpf::PROG_INSNS_MAX as u32;

/// Fields of `union bpf_attr` by offset (linux/bpf.h).
struct Attr {
    bytes: [u8; 144],
    length: usize,
}

impl Attr {
    fn read(at: UserPtr, length: u32) -> Outcome<Self> {
        let mut bytes = [0; 144];
        let length = (length as usize).min(bytes.len());
        user_mem::read_bytes(at, bytes.get_mut(..length).unwrap_or(&mut []))?;
        Ok(Self { bytes, length })
    }

    fn u32(&self, at: usize) -> u32 {
        let word = self.bytes.get(at..at + 4).filter(|_| at + 4 <= self.length);
        word.and_then(|w| w.try_into().ok())
            .map_or(0, u32::from_ne_bytes)
    }

    fn pointer(&self, at: usize) -> UserPtr {
        let word = self.bytes.get(at..at + 8).filter(|_| at + 8 <= self.length);
        let word = word
            .and_then(|w| w.try_into().ok())
            .map_or(0, u64::from_ne_bytes);
        UserPtr::new(core::ptr::with_exposed_provenance_mut(word as usize))
    }
}

/// bpf(2) with the program's arguments; `native` makes the real call.
pub(crate) fn call(
    command: i32,
    attr: UserPtr,
    length: u32,
    native: impl FnOnce() -> i64,
) -> Outcome<i64> {
    match command {
        BPF_PROG_LOAD => load(&Attr::read(attr, length)?, native),
        BPF_MAP_CREATE => create_map(&Attr::read(attr, length)?, native),
        BPF_MAP_LOOKUP_ELEM..=BPF_MAP_GET_NEXT_KEY => element(command, &Attr::read(attr, length)?),
        _ => Err(Exit::Native),
    }
}

/// Whether the kernel's refusal is about rights, not about what was asked.
fn forbidden(err: Errno) -> bool {
    matches!(err, Errno::EPERM | Errno::ENOSYS)
}

fn load(attr: &Attr, native: impl FnOnce() -> i64) -> Outcome<i64> {
    if attr.u32(0) != BPF_PROG_TYPE_SOCKET_FILTER {
        return Err(Exit::Native);
    }
    let count = attr.u32(4);
    if count == 0 || count > INSNS_MAX {
        return Err(Exit::Native); // E2BIG, as the kernel finds
    }
    let mut insns = vec![0; count as usize * 8];
    user_mem::read_bytes(attr.pointer(8), &mut insns)?;
    let saved = Errno::current();
    let granted = native();
    if granted < 0 {
        let err = Errno::current();
        if !forbidden(err) {
            return Err(err.into());
        }
        saved.set();
    }
    let program = if granted >= 0 {
        Program::trusted(&insns, &map_behind)
    } else {
        Program::verify(&insns, &map_behind)
    };
    match (program, granted) {
        (Ok(program), _) => publish(granted, BpfObject::Program(Arc::new(program))),
        // The kernel runs what our VM cannot: a filter that no mux will accept.
        (Err(_), 0..) => Ok(granted),
        (Err(err), _) => Err(Errno(err.errno()).into()),
    }
}

/// The map that an instruction names by descriptor.
fn map_behind(fd: i32) -> Option<Arc<Map>> {
    let file = lookup(fd).filter(|f| f.kind() == Kind::Bpf)?;
    match &*file.body.lock().ok()? {
        Body::Bpf(BpfObject::Map(map)) => Some(Arc::clone(map)),
        _ => None,
    }
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

fn create_map(attr: &Attr, native: impl FnOnce() -> i64) -> Outcome<i64> {
    let saved = Errno::current();
    let granted = native();
    if granted >= 0 {
        return Ok(granted);
    }
    let err = Errno::current();
    if !forbidden(err) {
        return Err(err.into());
    }
    saved.set();
    let spec = MapSpec {
        map_type: attr.u32(0),
        key_size: attr.u32(4),
        value_size: attr.u32(8),
        max_entries: attr.u32(12),
        flags: attr.u32(16),
    };
    let map = Map::new(spec, sys::now()).map_err(|e| Errno(e.errno()))?;
    publish(-1, BpfObject::Map(Arc::new(map)))
}

/// The element commands on a map of ours.
fn element(command: i32, attr: &Attr) -> Outcome<i64> {
    let map = map_behind(attr.u32(0) as i32).ok_or(Exit::Native)?;
    let spec = map.spec();
    let mut key = vec![0; spec.key_size as usize];
    let key_at = attr.pointer(8);
    if command != BPF_MAP_GET_NEXT_KEY || !key_at.is_null() {
        user_mem::read_bytes(key_at, &mut key)?;
    }
    let mut value = vec![0; spec.value_size as usize];
    let failed = |e: kcm_mux::bpf::MapError| Errno(e.errno());
    match command {
        BPF_MAP_LOOKUP_ELEM => {
            map.lookup(&key, &mut value).map_err(failed)?;
            user_mem::write_bytes(attr.pointer(16), &value)?;
        }
        BPF_MAP_UPDATE_ELEM => {
            user_mem::read_bytes(attr.pointer(16), &mut value)?;
            let flags = u64::from(attr.u32(24)) | u64::from(attr.u32(28)) << 32;
            map.update(&key, &value, flags).map_err(failed)?;
        }
        BPF_MAP_DELETE_ELEM => map.delete(&key).map_err(failed)?,
        _ => {
            let after = (!key_at.is_null()).then_some(key.as_slice());
            let next = map.next_key(after).map_err(failed)?;
            user_mem::write_bytes(attr.pointer(16), &next)?;
        }
    }
    Ok(0)
}

/// The parser behind the descriptor that SIOCKCMATTACH names.
///
/// # Errors
/// EBADF for no descriptor, EINVAL for one that is not a SOCKET_FILTER program. EOPNOTSUPP for a
/// program that was loaded out of our sight: the kernel gives its instructions back rewritten.
pub(crate) fn program(fd: i32) -> Outcome<Parser> {
    if let Some(file) = lookup(fd).filter(|f| f.kind() == Kind::Bpf) {
        return match &*file.body.lock()? {
            Body::Bpf(BpfObject::Program(program)) => Ok(Arc::clone(program) as Parser),
            _ => Err(Errno::EINVAL.into()),
        };
    }
    if fd < 0 || !sys::is_usable(fd) {
        return Err(Errno::EBADF.into());
    }
    match sys::bpf_prog_type(fd) {
        Some(BPF_PROG_TYPE_SOCKET_FILTER) => {
            crate::log::warn("SIOCKCMATTACH: the program was loaded before the shim could see it");
            Err(Errno::EOPNOTSUPP.into())
        }
        _ => Err(Errno::EINVAL.into()),
    }
}
