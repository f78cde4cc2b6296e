//! What a loader asks about programs and maps that live here: the answers are those that a kernel
//! gives an ordinary user.

use kcm_mux::bpf::{CB_WORDS, MapSpec, Program};

use super::attr::{Attr, Name};
use super::{BpfObject, PROG_TYPE_SOCKET_FILTER, behind};
use crate::errno::{Errno, Exit, Outcome};
use crate::sys;
use crate::user_mem::{self, UserPtr};

/// Largest info that the kernel looks at: a page.
const INFO_BYTES_MAX: u32 = 4096;

/// Fields of `struct bpf_prog_info` and `struct bpf_map_info` that have an answer.
struct Info([u8; 96]);

impl Info {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        if let Some(field) = self.0.get_mut(offset..offset + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    }

    fn put_u32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_ne_bytes());
    }

    fn of_program(name: &Name) -> Self {
        let mut info = Self([0; 96]);
        info.put_u32(0, PROG_TYPE_SOCKET_FILTER);
        info.put_u32(48, rustix::process::getuid().as_raw());
        info.put(64, name);
        info
    }

    fn of_map(spec: &MapSpec, name: &Name) -> Self {
        let mut info = Self([0; 96]);
        info.put_u32(0, spec.map_type);
        info.put_u32(8, spec.key_size);
        info.put_u32(12, spec.value_size);
        info.put_u32(16, spec.max_entries);
        info.put_u32(20, spec.flags);
        info.put(24, name);
        info
    }
}

/// BPF_OBJ_GET_INFO_BY_FD.
pub(super) fn info(attr: &Attr) -> Outcome<i64> {
    let info = match behind(attr.u32(0) as i32) {
        Some(BpfObject::Program(loaded)) if !loaded.granted => Info::of_program(&loaded.name),
        Some(BpfObject::Map(local)) if !local.is_mirror() => {
            Info::of_map(local.map.spec(), &local.name)
        }
        _ => return Err(Exit::Native),
    };
    let (room, at) = (attr.u32(4), attr.pointer(8));
    if room > INFO_BYTES_MAX {
        return Err(Errno(libc::E2BIG).into());
    }
    let shown = (room as usize).min(info.0.len());
    user_mem::write_bytes(at, info.0.get(..shown).unwrap_or(&[]))?;
    attr.answer(4, shown as u32)?;
    Ok(0)
}

/// The link header that a frame starts with, which the program does not see.
const LINK_BYTES: u32 = 14;
/// Largest frame: what the kernel fits into a page with its own headers.
const FRAME_BYTES_MAX: u32 = 3584;
/// Where `cb` lies in `struct __sk_buff`, and the bytes up to its end.
const CB_AT: usize = 48;
const CB_END: u32 = 68;

/// BPF_PROG_TEST_RUN: one run over the frame, the data given back unchanged.
pub(super) fn test_run(attr: &Attr) -> Outcome<i64> {
    let program = match behind(attr.u32(0) as i32) {
        Some(BpfObject::Program(loaded)) if !loaded.granted => loaded,
        _ => return Err(Exit::Native),
    };
    let Ok(program) = &program.code else {
        return Err(Errno::EINVAL.into());
    };
    let (length, room) = (attr.u32(8), attr.u32(12));
    if !(LINK_BYTES..=FRAME_BYTES_MAX).contains(&length) {
        return Err(Errno::EINVAL.into());
    }
    let mut frame = vec![0; length as usize];
    user_mem::read_bytes(attr.pointer(16), &mut frame)?;
    let result = run(
        program,
        attr,
        frame.get(LINK_BYTES as usize..).unwrap_or(&[]),
    )?;
    let out = attr.pointer(24);
    let shown = if room == 0 { length } else { length.min(room) };
    if !out.is_null() {
        user_mem::write_bytes(out, frame.get(..shown as usize).unwrap_or(&[]))?;
    }
    attr.answer(12, length)?;
    attr.answer(4, result)?;
    attr.answer(36, 0)?; // how long it took, in nanoseconds on average
    if !out.is_null() && shown < length {
        return Err(Errno(libc::ENOSPC).into());
    }
    Ok(0)
}

/// A run with the context's `cb` as the caller gives it and wants it back.
fn run(program: &Program, attr: &Attr, message: &[u8]) -> Outcome<u32> {
    let cb_at = |context: UserPtr| context.offset(CB_AT);
    let mut cb = [0; CB_WORDS];
    let (given, wanted) = (attr.pointer(48), attr.pointer(56));
    if !given.is_null() && attr.u32(40) >= CB_END {
        cb = user_mem::copy_in(cb_at(given))?;
    }
    let result = program.run(message, &mut cb, &sys::env(sys::now()));
    if !wanted.is_null() && attr.u32(44) >= CB_END {
        user_mem::copy_out(cb_at(wanted), &cb)?;
    }
    Ok(result as u32)
}
