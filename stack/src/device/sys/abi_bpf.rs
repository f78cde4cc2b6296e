//! bpf(2): the four commands that put a program on an interface (linux/bpf.h); and the
//! instructions of the classic programs that sockets take (linux/filter.h).

use rustix::fd::OwnedFd;

/// One instruction, encoded.
pub(in crate::device) type Insn = u64;

/// One instruction of a classic program: `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::device) struct ClassicInsn {
    pub(in crate::device) code: u16,
    /// Instructions to skip when a comparison holds, and when it does not.
    pub(in crate::device) jt: u8,
    pub(in crate::device) jf: u8,
    pub(in crate::device) k: u32,
}
const _: () = assert!(size_of::<ClassicInsn>() == size_of::<libc::sock_filter>());
const _: () = assert!(align_of::<ClassicInsn>() == align_of::<libc::sock_filter>());

const MAP_CREATE: u32 = 0;
const MAP_UPDATE_ELEM: u32 = 2;
const PROG_LOAD: u32 = 5;
const LINK_CREATE: u32 = 28;
const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
const ATTACH_TYPE_TCX_INGRESS: u32 = 46;

/// `XDP_FLAGS_SKB_MODE`: behind the driver, on socket buffers; works on every interface.
pub(in crate::device) const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`: in the driver.
pub(in crate::device) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// A command with its attributes; what they point to lives for `'a`.
pub(in crate::device) struct Attr<'a> {
    command: u32,
    /// `union bpf_attr` up to the last field any of the commands here uses.
    bytes: [u8; 56],
    len: usize,
    _points_to: core::marker::PhantomData<&'a [u8]>,
}

impl<'a> Attr<'a> {
    fn new(command: u32, words: &[u32]) -> Self {
        let mut bytes = [0; 56];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        let len = (words.len() * 4).min(bytes.len());
        Self {
            command,
            bytes,
            len,
            _points_to: core::marker::PhantomData,
        }
    }

    /// A map from receive queue to XDP socket with `entries` places.
    pub(in crate::device) fn map_create(entries: u32) -> Self {
        Self::new(MAP_CREATE, &[MAP_TYPE_XSKMAP, 4, 4, entries])
    }

    /// Puts `value` (a descriptor) at `key` (a queue).
    pub(in crate::device) fn map_update(map: &OwnedFd, key: &'a u32, value: &'a u32) -> Self {
        let [key_low, key_high] = halves(core::ptr::from_ref(key) as u64);
        let [value_low, value_high] = halves(core::ptr::from_ref(value) as u64);
        let map = super::call::fd_number(map);
        Self::new(
            MAP_UPDATE_ELEM,
            &[map, 0, key_low, key_high, value_low, value_high, 0, 0],
        )
    }

    /// Loads an XDP program.
    pub(in crate::device) fn prog_load(program: &'a [Insn], license: &'a core::ffi::CStr) -> Self {
        Self::load(PROG_TYPE_XDP, program, license)
    }

    /// Loads a program for socket buffers.
    pub(in crate::device) fn ingress_prog_load(
        program: &'a [Insn],
        license: &'a core::ffi::CStr,
    ) -> Self {
        Self::load(PROG_TYPE_SCHED_CLS, program, license)
    }

    fn load(kind: u32, program: &'a [Insn], license: &'a core::ffi::CStr) -> Self {
        let [insns_low, insns_high] = halves(program.as_ptr() as u64);
        let [license_low, license_high] = halves(license.as_ptr() as u64);
        let count = program.len() as u32;
        let words = [
            kind,
            count,
            insns_low,
            insns_high,
            license_low,
            license_high,
        ];
        Self::new(PROG_LOAD, &words)
    }

    /// Attaches `program` to the interface `index`, for as long as the link's descriptor is open.
    pub(in crate::device) fn link_create(program: &OwnedFd, index: u32, flags: u32) -> Self {
        let program = super::call::fd_number(program);
        Self::new(LINK_CREATE, &[program, index, ATTACH_TYPE_XDP, flags])
    }

    /// Attaches `program` behind those that the interface `index` has for frames that arrive, for as long as
    /// the link's descriptor is open.
    pub(in crate::device) fn ingress_link_create(program: &OwnedFd, index: u32) -> Self {
        let program = super::call::fd_number(program);
        Self::new(LINK_CREATE, &[program, index, ATTACH_TYPE_TCX_INGRESS, 0])
    }

    pub(super) fn command(&self) -> u32 {
        self.command
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// A 64-bit attribute as two words in memory order.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_ne_bytes();
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    ]
}

/// An instruction: opcode, destination and source register, offset, immediate (RFC 9669 §3).
pub(in crate::device) const fn insn(opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Insn {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = imm.to_ne_bytes();
    let registers = if cfg!(target_endian = "little") {
        src << 4 | dst
    } else {
        dst << 4 | src
    };
    u64::from_ne_bytes([opcode, registers, o0, o1, i0, i1, i2, i3])
}
