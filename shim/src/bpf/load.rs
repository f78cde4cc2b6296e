//! BPF_PROG_LOAD of parser programs.

use core::cell::RefCell;
use core::fmt::Write;
use std::sync::Arc;

use kcm_mux::bpf::{Map, PROG_INSNS_MAX, Program, VerifyError};

use super::attr::{Attr, Name};
use super::{BpfObject, PROG_TYPE_SOCKET_FILTER, forbidden, map, publish};
use crate::errno::{Errno, Exit, Outcome};
use crate::user_mem;

/// Instructions of eight bytes each; the kernel's own bound for privileged programs.
const INSNS_MAX: u32 = PROG_INSNS_MAX as u32;
/// The smallest log buffer that the kernel takes.
const LOG_BYTES_MIN: u32 = 128;

/// A SOCKET_FILTER program as its loader gave it.
pub(crate) struct Loaded {
    /// The program for our VM, or why it cannot run it. Only the kernel admits such a program.
    pub(super) code: Result<Arc<Program>, VerifyError>,
    /// The program as it was given, and the maps that it names by descriptor.
    pub(super) insns: Box<[u8]>,
    pub(super) maps: Vec<(i32, Arc<Map>)>,
    pub(super) name: Name,
    /// The descriptor is the kernel's.
    pub(super) granted: bool,
}

pub(super) fn load(attr: &Attr, native: impl FnOnce() -> i64) -> Outcome<i64> {
    if attr.u32(0) != PROG_TYPE_SOCKET_FILTER {
        return Ok(super::granted(native()));
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
        check_log(attr)?;
    }
    let name = attr.name(48);
    let maps = RefCell::new(Vec::new());
    let map_by_fd = |fd| {
        let map = map::for_program(fd)?;
        maps.borrow_mut().push((fd, Arc::clone(&map)));
        Some(map)
    };
    let code = match granted {
        0.. => Program::trusted(&insns, &map_by_fd),
        _ => Program::verify(&insns, &map_by_fd),
    };
    let code = code.map(Arc::new);
    let loaded = |code, granted| {
        let mut maps = maps.take();
        maps.dedup_by_key(|(fd, _)| *fd);
        let insns = insns.into();
        BpfObject::Program(Arc::new(Loaded {
            code,
            insns,
            maps,
            name,
            granted,
        }))
    };
    if granted >= 0 {
        let made = publish(super::granted(granted), loaded(code, true));
        return crate::publish::parser(made, true, count);
    }
    match code {
        Ok(program) => {
            log(attr, format_args!("processed by kcmshim: {count} insns\n"))?;
            let made = publish(-1, loaded(Ok(program), false));
            crate::publish::parser(made, false, count)
        }
        Err(err) => {
            match err.pc() {
                Some(pc) => log(attr, format_args!("{pc}: {err}\n"))?,
                None => log(attr, format_args!("{err}\n"))?,
            }
            crate::publish::parser(Err(Errno(err.errno()).into()), false, count)
        }
    }
}

/// The kernel's checks of what a log is asked for with (`bpf_vlog_init`).
fn check_log(attr: &Attr) -> Outcome<()> {
    let (level, size, buffer) = (attr.u32(24), attr.u32(28), attr.pointer(32));
    let asked = level != 0;
    if asked == buffer.is_null() || asked != (size != 0) || asked && size < LOG_BYTES_MIN {
        return Err(Errno::EINVAL.into());
    }
    Ok(())
}

/// Writes the verifier's reason where the loader wants it. ENOSPC when it does not fit, as the
/// kernel has it.
fn log(attr: &Attr, what: core::fmt::Arguments<'_>) -> Outcome<()> {
    let room = attr.u32(28) as usize;
    if attr.u32(24) == 0 || room == 0 {
        return Ok(());
    }
    let mut text = String::new();
    let _ = text.write_fmt(what);
    let shown = text.len().min(room - 1);
    let mut bytes = text.as_bytes().get(..shown).unwrap_or(&[]).to_vec();
    bytes.push(0);
    user_mem::write_bytes(attr.pointer(32), &bytes)?;
    if shown < text.len() {
        return Err(Errno(libc::ENOSPC).into());
    }
    Ok(())
}
