//! The parser VM: eBPF programs of type `SOCKET_FILTER` that delimit messages.
//!
//! [`Program::verify`] admits a program no kernel has seen, [`Program::trusted`] one a kernel
//! accepted; [`Program::run`] returns r0, whose low 32 bits are the message's length, 0 for "need
//! more bytes", or a negative errno. Programs see virtual addresses only (`mem`), every access
//! is checked as it happens, and a run is bounded ([`INSN_BUDGET`]).
//!
//! | file | what it owns |
//! |---|---|
//! | `insn` | encoding; nothing executes there |
//! | `decode` | bytes to instructions, maps and jump targets resolved |
//! | `verifier` | whether an unverified program may run |
//! | `interp` | one run |
//! | `shape` | programs a closed form replaces |
//! | `alu` | what arithmetic means |
//! | `mem` | the address space of a program |
//! | `skb` | packet and context |
//! | `helper` | helper functions by number |
//! | `map` | array and hash maps |
//! | `error` | why a program is refused |
//!
//! Not here: tail calls, per-CPU and other map types, BTF, kernel functions, callbacks
//! (`bpf_loop`), `may_goto`. Programs that need them are refused with a named reason.

use alloc::sync::Arc;

pub use self::error::VerifyError;
pub use self::interp::{Env, FRAMES_MAX, Fault, INSN_BUDGET, STACK_BYTES};
pub use self::map::{Map, MapError, MapSpec};
pub use self::shape::LengthField;
pub use self::skb::{CB_WORDS, Packet};
pub use self::verifier::COMPLEXITY_INSNS_MAX;

mod alu;
mod decode;
mod error;
mod helper;
pub mod insn;
mod interp;
pub mod map;
mod mem;
mod shape;
mod skb;
mod verifier;

/// Slots a program may have: the kernel's limit for privileged loaders.
pub const PROG_INSNS_MAX: usize = 1_000_000;
/// Different maps a program may use: the kernel's `MAX_USED_MAPS`.
pub const PROG_MAPS_MAX: usize = 64;

/// A decoded parser program, immutable and shared between threads.
#[derive(Debug)]
pub struct Program {
    code: decode::Code,
    footprint: interp::Footprint,
    field: Option<shape::Field>,
}

impl Program {
    /// Admits a program that a kernel verified: the encoding is checked, register contents are
    /// not. `insns` is the array of `struct bpf_insn` as given to `BPF_PROG_LOAD`, with map file
    /// descriptors that `map_by_fd` knows.
    ///
    /// # Errors
    /// [`VerifyError`], whose `errno` is the one to fail with.
    pub fn trusted(
        insns: &[u8],
        map_by_fd: &dyn Fn(i32) -> Option<Arc<Map>>,
    ) -> Result<Self, VerifyError> {
        Ok(Self::prepare(decode::Code::decode(insns, map_by_fd)?))
    }

    /// Admits a program no kernel verified.
    ///
    /// # Errors
    /// [`VerifyError`], whose `errno` is the one `BPF_PROG_LOAD` fails with.
    pub fn verify(
        insns: &[u8],
        map_by_fd: &dyn Fn(i32) -> Option<Arc<Map>>,
    ) -> Result<Self, VerifyError> {
        let code = decode::Code::decode(insns, map_by_fd)?;
        verifier::verify(&code)?;
        Ok(Self::prepare(code))
    }

    /// Chooses how the program will be run.
    fn prepare(code: decode::Code) -> Self {
        let footprint = interp::Footprint::of(&code);
        let field = shape::Field::of(&code.insns);
        Self {
            code,
            footprint,
            field,
        }
    }

    /// The length prefix that the program reads, if it does no more than that.
    #[must_use]
    pub fn length_field(&self) -> Option<LengthField> {
        self.field.as_ref()?.as_length()
    }

    /// Runs the program over a message. The result is r0; a caller takes its low 32 bits as
    /// `int`. A [`Fault`] gives its negative errno.
    ///
    /// `cb` is the context's five writable words; what the program stores there persists as far
    /// as the caller keeps them.
    #[inline]
    pub fn run<P: Packet + ?Sized>(&self, packet: &P, cb: &mut [u32; CB_WORDS], env: &Env) -> u64 {
        self.try_run(packet, cb, env)
            .unwrap_or_else(|fault| i64::from(fault.errno()).wrapping_neg() as u64)
    }

    /// Like [`Program::run`], with the fault as it is.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn try_run<P: Packet + ?Sized>(
        &self,
        packet: &P,
        cb: &mut [u32; CB_WORDS],
        env: &Env,
    ) -> Result<u64, Fault> {
        if let Some(field) = &self.field {
            return Ok(field.run(packet));
        }
        interp::run(&self.code, self.footprint, packet, cb, env)
    }
}

const _: () = assert!(
    cfg!(target_endian = "little"),
    "registers and memory share the byte order"
);

#[cfg(test)]
mod tests;
