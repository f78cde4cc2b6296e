//! bpf(2) as the oracle needs it: maps, program load, and `BPF_PROG_TEST_RUN`.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kcm_mux::bpf::map::MapSpec;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// Bytes of `union bpf_attr` that the commands here use.
const ATTR_BYTES: usize = 128;

/// `union bpf_attr`, filled field by field at the kernel's offsets.
struct Attr([u8; ATTR_BYTES]);

impl Attr {
    fn new() -> Self {
        Self([0; ATTR_BYTES])
    }

    fn u32(mut self, off: usize, value: u32) -> Self {
        self.0[off..off + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn ptr<T>(mut self, off: usize, value: *const T) -> Self {
        self.0[off..off + 8].copy_from_slice(&(value as u64).to_ne_bytes());
        self
    }

    fn u64(mut self, off: usize, value: u64) -> Self {
        self.0[off..off + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn read_u32(&self, off: usize) -> u32 {
        word(&self.0, off)
    }

    fn call(&mut self, command: libc::c_int) -> io::Result<libc::c_long> {
        // SAFETY: every command used here reads and writes its attributes, which are ATTR_BYTES
        // long, and buffers of the lengths given in them, which the callers keep alive.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), ATTR_BYTES) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    }

    fn call_fd(&mut self, command: libc::c_int) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
    }
}

/// A map in the kernel.
#[derive(Debug)]
pub struct KernelMap {
    fd: OwnedFd,
    spec: MapSpec,
}

impl KernelMap {
    /// `BPF_MAP_CREATE`.
    pub fn create(spec: MapSpec) -> io::Result<Self> {
        let mut attr = Attr::new()
            .u32(0, spec.map_type)
            .u32(4, spec.key_size)
            .u32(8, spec.value_size)
            .u32(12, spec.max_entries)
            .u32(16, spec.flags);
        Ok(Self {
            fd: attr.call_fd(BPF_MAP_CREATE)?,
            spec,
        })
    }

    /// The descriptor, for programs.
    pub fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// What the map was created with.
    pub fn spec(&self) -> &MapSpec {
        &self.spec
    }

    fn attr(&self, key: &[u8]) -> Attr {
        assert_eq!(key.len(), self.spec.key_size as usize);
        Attr::new().u32(0, self.fd() as u32).ptr(8, key.as_ptr())
    }

    /// `BPF_MAP_LOOKUP_ELEM`.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        let mut value = vec![0; self.spec.value_size as usize];
        self.attr(key)
            .ptr(16, value.as_mut_ptr())
            .call(BPF_MAP_LOOKUP_ELEM)?;
        Ok(value)
    }

    /// `BPF_MAP_UPDATE_ELEM`.
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        assert_eq!(value.len(), self.spec.value_size as usize);
        self.attr(key)
            .ptr(16, value.as_ptr())
            .u64(24, flags)
            .call(BPF_MAP_UPDATE_ELEM)?;
        Ok(())
    }

    /// `BPF_MAP_DELETE_ELEM`.
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.attr(key).call(BPF_MAP_DELETE_ELEM)?;
        Ok(())
    }
}

/// `BPF_PROG_LOAD` of a socket filter.
pub fn load(insns: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = Attr::new()
        .u32(0, BPF_PROG_TYPE_SOCKET_FILTER)
        .u32(4, (insns.len() / 8) as u32)
        .ptr(8, insns.as_ptr())
        .ptr(16, c"GPL".as_ptr());
    attr.call_fd(BPF_PROG_LOAD)
}

/// The verifier's log for a program, for messages about it.
pub fn load_log(insns: &[u8]) -> String {
    let mut log = vec![0_u8; 1 << 18];
    let mut attr = Attr::new()
        .u32(0, BPF_PROG_TYPE_SOCKET_FILTER)
        .u32(4, (insns.len() / 8) as u32)
        .ptr(8, insns.as_ptr())
        .ptr(16, c"GPL".as_ptr())
        .u32(24, 1)
        .u32(28, log.len() as u32)
        .ptr(32, log.as_mut_ptr());
    let result = attr.call_fd(BPF_PROG_LOAD);
    let text = log.split(|&byte| byte == 0).next().unwrap_or_default();
    format!("{result:?}\n{}", String::from_utf8_lossy(text))
}

/// What `BPF_PROG_TEST_RUN` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// r0, truncated.
    pub retval: u32,
    /// The context's words after the run.
    pub cb: [u32; 5],
}

/// Bytes of `struct __sk_buff`, and where `cb` lies in it.
const SKB_BYTES: usize = 192;
const SKB_CB: usize = 48;

/// `BPF_PROG_TEST_RUN`. `frame` starts with a link header of 14 bytes, behind which the program's
/// offsets count.
pub fn test_run(program: &OwnedFd, frame: &[u8], cb: [u32; 5]) -> io::Result<TestRun> {
    let mut ctx_in = [0_u8; SKB_BYTES];
    for (word, value) in cb.iter().enumerate() {
        let at = SKB_CB + 4 * word;
        ctx_in[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    let mut ctx_out = [0_u8; SKB_BYTES];
    let mut attr = Attr::new()
        .u32(0, program.as_raw_fd() as u32)
        .u32(8, frame.len() as u32)
        .ptr(16, frame.as_ptr())
        .u32(32, 1)
        .u32(40, SKB_BYTES as u32)
        .u32(44, SKB_BYTES as u32)
        .ptr(48, ctx_in.as_ptr())
        .ptr(56, ctx_out.as_mut_ptr());
    attr.call(BPF_PROG_TEST_RUN)?;
    let mut cb = [0; 5];
    for (index, value) in cb.iter_mut().enumerate() {
        *value = word(&ctx_out, SKB_CB + 4 * index);
    }
    Ok(TestRun {
        retval: attr.read_u32(4),
        cb,
    })
}

/// The word at a byte offset.
fn word(bytes: &[u8], off: usize) -> u32 {
    bytes[off..off + 4]
        .iter()
        .rev()
        .fold(0, |word, &byte| word << 8 | u32::from(byte))
}
