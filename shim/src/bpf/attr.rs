//! `union bpf_attr` in the program's memory, by the offsets of linux/bpf.h.

use core::ffi::c_void;

use crate::errno::Outcome;
use crate::user_mem::{self, UserPtr};

/// Bytes of the commands that are served here; what lies behind is the kernel's to judge.
const BYTES: usize = 144;

/// A copy of the attributes; fields behind their end are zero, as the kernel has it.
pub(super) struct Attr {
    at: UserPtr,
    bytes: [u8; BYTES],
}

impl Attr {
    pub(super) fn read(at: UserPtr, length: u32) -> Outcome<Self> {
        let mut bytes = [0; BYTES];
        let length = (length as usize).min(BYTES);
        user_mem::read_bytes(at, bytes.get_mut(..length).unwrap_or(&mut []))?;
        Ok(Self { at, bytes })
    }

    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let field = self.bytes.get(offset..offset + N);
        field.and_then(|f| f.try_into().ok()).unwrap_or([0; N])
    }

    pub(super) fn u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.field(offset))
    }

    pub(super) fn u64(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.field(offset))
    }

    pub(super) fn pointer(&self, offset: usize) -> UserPtr {
        UserPtr::new(core::ptr::with_exposed_provenance_mut::<c_void>(
            self.u64(offset) as usize,
        ))
    }

    pub(super) fn name(&self, offset: usize) -> Name {
        self.field(offset)
    }

    /// Changes a field where the program reads the answer.
    pub(super) fn answer(&self, offset: usize, value: u32) -> Outcome<()> {
        Ok(user_mem::copy_out(self.at.offset(offset), &value)?)
    }
}

/// `char [BPF_OBJ_NAME_LEN]`.
pub(super) type Name = [u8; 16];
