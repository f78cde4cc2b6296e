//! Tells helgrind which memory accesses are ordered, and how.
//!
//! Helgrind knows pthread's locks. Of ours it sees instructions, and takes all they guard for races.
//! Built with `--cfg kcmshim_helgrind`, the library says at each of its own synchronisation objects
//! that a thread lets go of it ([`give`]) or has got it ([`take`]), and helgrind checks everything
//! that happens in between. That the objects do what is said of them is what the models of
//! `tests/tests/loom_sync.rs` show. Built without, there is nothing here.

/// What the calling thread did so far is visible to whoever takes `object` from now on.
#[inline(always)]
pub(crate) fn give<T: ?Sized>(object: *const T) {
    tell(SEND, object.addr());
}

/// What others did before they gave `object` is visible to the calling thread.
#[inline(always)]
pub(crate) fn take<T: ?Sized>(object: *const T) {
    tell(RECEIVE, object.addr());
}

/// "HG", helgrind's own requests, of which these are `USERSO_SEND_PRE` and `USERSO_RECV_POST`
/// (valgrind/helgrind.h).
const SEND: usize = 0x4847_0000 + 256 + 33;
const RECEIVE: usize = SEND + 1;

#[cfg(not(all(kcmshim_helgrind, target_arch = "x86_64")))]
#[inline(always)]
fn tell(_: usize, _: usize) {}

/// A client request of valgrind's: instructions that do nothing elsewhere (valgrind manual §3.1).
#[cfg(all(kcmshim_helgrind, target_arch = "x86_64"))]
#[allow(unsafe_code, reason = "the request is a sequence of instructions")]
fn tell(request: usize, object: usize) {
    let arguments = [request, object, 0, 0, 0, 0];
    // SAFETY: four rotations by 128 bits in all and an exchange of a register with itself; the
    // arguments are only read.
    unsafe {
        core::arch::asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") arguments.as_ptr(),
            inout("rdx") 0_usize => _,
            options(nostack),
        );
    }
}
