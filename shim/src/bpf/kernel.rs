//! Our own calls of bpf(2): what the kernel knows of a descriptor, the elements of its maps, and
//! running a program whose instructions nobody can read back.

#![allow(unsafe_code)]

use kcm_mux::bpf::map::{MAP_TYPE_ARRAY, MAP_TYPE_HASH, flag};
use kcm_mux::bpf::{Env, MapSpec, Packet};
use kcm_mux::{Cb, MsgView, ParseMsg};

use super::{MAP_DELETE_ELEM, MAP_GET_NEXT_KEY, MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM};
use super::{OBJ_GET_INFO_BY_FD, PROG_TEST_RUN};
use crate::errno::Errno;
use crate::{interpose, own, sys};

/// One call; `attr` is `union bpf_attr` in words.
fn call(command: i32, attr: &mut [u64]) -> Result<i64, Errno> {
    let saved = Errno::current();
    // SAFETY: the callers put addresses of buffers of theirs into the attributes, each with the
    // length that the kernel goes by.
    let done = unsafe {
        interpose::raw::next::syscall(
            libc::SYS_bpf,
            command.into(),
            attr.as_mut_ptr() as libc::c_long,
            size_of_val(attr) as libc::c_long,
            0,
            0,
            0,
        )
    };
    let err = Errno::current();
    saved.set();
    if done < 0 { Err(err) } else { Ok(done) }
}

/// Two 32-bit fields of the attributes, the first at the lower address.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn address<T>(at: &[T]) -> u64 {
    at.as_ptr().expose_provenance() as u64
}

fn address_mut<T>(at: &mut [T]) -> u64 {
    at.as_mut_ptr().expose_provenance() as u64
}

/// What stands behind a descriptor that we did not make.
#[derive(Clone, Copy, Debug)]
pub(super) enum Object {
    /// A program of this type.
    Program(u32),
    /// A map; programs and descriptors share it by its number.
    Map { id: u32, spec: MapSpec },
}

/// Asks the kernel about a descriptor; `None` for one that is neither a program nor a map.
pub(super) fn object(fd: i32) -> Option<Object> {
    // The info of either starts with a type: only the link in /proc tells them apart.
    let link = format!("/proc/self/fd/{fd}");
    let name = rustix::fs::readlink(link.as_str(), Vec::new()).ok()?;
    let mut info = [0u32; 64];
    let mut attr = [
        pair(fd as u32, size_of_val(&info) as u32),
        address_mut(&mut info),
    ];
    call(OBJ_GET_INFO_BY_FD, &mut attr).ok()?;
    let [first, id, key_size, value_size, max_entries, flags, ..] = info;
    match name.as_bytes() {
        b"anon_inode:bpf-prog" => Some(Object::Program(first)),
        b"anon_inode:bpf-map" => {
            let spec = MapSpec {
                map_type: first,
                key_size,
                value_size,
                max_entries,
                flags,
            };
            Some(Object::Map { id, spec })
        }
        _ => None,
    }
}

/// What a mirror of a kernel's map is created with. Who may use it from outside, and by what means,
/// is for the kernel to say.
pub(super) fn mirrored(spec: MapSpec) -> Option<MapSpec> {
    /// BPF_F_MMAPABLE of linux/bpf.h.
    const MMAPABLE: u32 = 1 << 10;
    let readable = spec.flags & flag::WRONLY == 0;
    let known = matches!(spec.map_type, MAP_TYPE_ARRAY | MAP_TYPE_HASH);
    let flags = spec.flags & !(flag::RDONLY | MMAPABLE);
    (readable && known).then_some(MapSpec { flags, ..spec })
}

/// BPF_MAP_LOOKUP_ELEM.
pub(super) fn look_up(map: i32, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
    let mut attr = [map as u32 as u64, address(key), address_mut(value), 0];
    call(MAP_LOOKUP_ELEM, &mut attr).map(|_| ())
}

/// BPF_MAP_UPDATE_ELEM, whether or not the element exists.
pub(super) fn update(map: i32, key: &[u8], value: &[u8]) -> Result<(), Errno> {
    let mut attr = [map as u32 as u64, address(key), address(value), 0];
    call(MAP_UPDATE_ELEM, &mut attr).map(|_| ())
}

/// BPF_MAP_DELETE_ELEM.
pub(super) fn delete(map: i32, key: &[u8]) -> Result<(), Errno> {
    let mut attr = [map as u32 as u64, address(key)];
    call(MAP_DELETE_ELEM, &mut attr).map(|_| ())
}

/// BPF_MAP_GET_NEXT_KEY: the first key without one.
pub(super) fn next_key(map: i32, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), Errno> {
    let mut attr = [map as u32 as u64, key.map_or(0, address), address_mut(next)];
    call(MAP_GET_NEXT_KEY, &mut attr).map(|_| ())
}

/// Bytes of a message that a run shows to the program. The kernel takes what fits into a page with
/// its own headers; parsers look at the first few.
const SHOWN_BYTES: usize = 2048;
/// The link header that a frame starts with, which the program does not see. It says nothing of IPv4:
/// newer kernels then look for an IP header behind it. So the context's `protocol` is 0.
const LINK_BYTES: usize = 14;
/// Bytes of `struct __sk_buff`, and where `cb` lies in it.
const SKB_WORDS: usize = 48;
const SKB_CB: usize = 12;

/// A program that runs in the kernel, one BPF_PROG_TEST_RUN a parse: it was loaded where we could not
/// see it (by another program, from a pin, by a system call of its own), and what the kernel gives
/// back of it are instructions for that kernel alone.
pub(super) struct KernelProgram(own::Kept);

impl KernelProgram {
    /// Keeps the program behind `fd`, if the kernel lets this process run it.
    pub(super) fn adopt(fd: i32) -> Result<Self, Errno> {
        let program = Self(own::copy(sys::borrow(fd))?);
        program.run(&[0], &mut [0; 5])?; // not for its answer
        Ok(program)
    }

    fn run(&self, shown: &[u8], cb: &mut Cb) -> Result<i32, Errno> {
        let fd = sys::number(&self.0);
        let mut frame = [0; LINK_BYTES + SHOWN_BYTES];
        let length = LINK_BYTES + shown.len();
        if let Some(at) = frame.get_mut(LINK_BYTES..length) {
            at.copy_from_slice(shown);
        }
        let mut skb_in = [0u32; SKB_WORDS];
        let mut skb_out = [0u32; SKB_WORDS];
        if let Some(at) = skb_in.get_mut(SKB_CB..SKB_CB + cb.len()) {
            at.copy_from_slice(cb);
        }
        let skb_bytes = size_of_val(&skb_in) as u32;
        let mut attr = [
            pair(fd as u32, 0),
            pair(length as u32, 0),
            address(&frame),
            0,
            pair(1, 0), // once
            pair(skb_bytes, skb_bytes),
            address(&skb_in),
            address_mut(&mut skb_out),
        ];
        call(PROG_TEST_RUN, &mut attr)?;
        if let Some(after) = skb_out.get(SKB_CB..SKB_CB + cb.len()) {
            cb.copy_from_slice(after);
        }
        let [first, ..] = attr;
        Ok((first >> 32) as i32)
    }
}

impl ParseMsg for KernelProgram {
    fn parse(&self, msg: &MsgView<'_>, cb: &mut Cb, _: &Env) -> i32 {
        let mut shown = [0; SHOWN_BYTES];
        let count = Packet::len(msg).min(SHOWN_BYTES);
        let shown = shown.get_mut(..count).unwrap_or(&mut []);
        if !Packet::load(msg, 0, shown) {
            return -libc::EFAULT;
        }
        match self.run(shown, cb) {
            Ok(0) if count < Packet::len(msg) => -libc::EOPNOTSUPP, // it never gets to see more
            Ok(length) => length,
            Err(err) => -err.0,
        }
    }
}
