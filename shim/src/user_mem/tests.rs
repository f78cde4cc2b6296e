//! The kernel is the oracle: whatever memory is offered, a check says what a transfer through a pipe
//! says.

use core::ffi::c_void;
use core::ptr;
use std::time::Instant;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

use super::*;

const PAGE: usize = 4096;

/// A mapping of the test's, or rather the right to unmap it.
struct Pages {
    at: *mut c_void,
    len: usize,
}

impl Pages {
    fn anonymous(count: usize, prot: ProtFlags, flags: MapFlags) -> Self {
        let len = count * PAGE;
        // SAFETY: a fresh mapping touches nothing that exists.
        let at = unsafe { mmap_anonymous(ptr::null_mut(), len, prot, MapFlags::PRIVATE | flags) };
        Self {
            at: at.unwrap(),
            len,
        }
    }

    fn usable(count: usize) -> Self {
        Self::anonymous(count, ProtFlags::READ | ProtFlags::WRITE, MapFlags::empty())
    }

    fn protect(&self, page: usize, count: usize, flags: MprotectFlags) {
        // SAFETY: within the test's own mapping, to which no reference exists.
        unsafe { mprotect(self.at.wrapping_byte_add(page * PAGE), count * PAGE, flags) }.unwrap();
        invalidate();
    }

    fn page(&self, index: usize) -> UserPtr {
        UserPtr::new(self.at).offset(index * PAGE)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: within the test's own mapping, to which no reference exists.
        unsafe { munmap(self.at, self.len) }.unwrap();
        invalidate();
    }
}

/// What the kernel says when asked to move one byte through a pipe.
fn kernel_can(at: UserPtr, access: Access) -> bool {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    use rustix::fd::AsRawFd;
    match access {
        // SAFETY: the kernel copes with any pointer.
        Access::Read => unsafe { libc::write(writer.as_raw_fd(), at.0, 1) == 1 },
        Access::Write => {
            rustix::io::write(&writer, b"x").unwrap();
            // SAFETY: the kernel copes with any pointer, and the tests own what it may write to.
            unsafe { libc::read(reader.as_raw_fd(), at.0, 1) == 1 }
        }
    }
}

/// Compares both ways of probing, and the check that remembers, with the kernel.
#[track_caller]
fn agrees_with_the_kernel(what: &str, at: UserPtr, can: [bool; 2]) {
    for (access, can) in [Access::Read, Access::Write].into_iter().zip(can) {
        invalidate();
        let say = |ok| if ok { Ok(()) } else { Err(Efault) };
        assert_eq!(check(at, 1, access), say(can), "{what}: {access:?}");
        assert_eq!(
            probe::word(at.addr(), access),
            say(can),
            "{what}: {access:?} of a word"
        );
        assert_eq!(
            kernel_can(at, access),
            can,
            "{what}: {access:?} by the kernel"
        );
        assert_eq!(check(at, 1, access), say(can), "{what}: {access:?} again");
    }
}

#[test]
fn every_kind_of_mapping_is_judged_as_by_the_kernel() {
    let (rw, ro) = (ProtFlags::READ | ProtFlags::WRITE, ProtFlags::READ);
    let none = MapFlags::empty();
    let pages = Pages::usable(1);
    agrees_with_the_kernel("read and write", pages.page(0), [true, true]);
    agrees_with_the_kernel(
        "its last byte",
        pages.page(0).offset(PAGE - 1),
        [true, true],
    );
    let pages = Pages::anonymous(1, ro, none);
    agrees_with_the_kernel("read-only", pages.page(0), [true, false]);
    let pages = Pages::anonymous(1, ProtFlags::WRITE, none);
    agrees_with_the_kernel("write-only", pages.page(0), [true, true]);
    let pages = Pages::anonymous(1, ProtFlags::empty(), none);
    agrees_with_the_kernel("no access", pages.page(0), [false, false]);
    let pages = Pages::anonymous(1 << 20, rw, MapFlags::NORESERVE);
    agrees_with_the_kernel("reserved only", pages.page(1 << 19), [true, true]);
    let pages = Pages::usable(3);
    pages.protect(1, 1, MprotectFlags::empty());
    agrees_with_the_kernel("guard page", pages.page(1), [false, false]);
    agrees_with_the_kernel(
        "before the guard",
        pages.page(0).offset(PAGE - 1),
        [true, true],
    );
    agrees_with_the_kernel("behind the guard", pages.page(2), [true, true]);
    // Below vm.mmap_min_addr, where no thread can map anything meanwhile.
    let nothing = UserPtr::new(ptr::without_provenance_mut(3 * PAGE));
    agrees_with_the_kernel("unmapped", nothing, [false, false]);
}

#[test]
fn code_and_constants_are_readable_only() {
    let code = UserPtr::new(code_and_constants_are_readable_only as fn() as *mut c_void);
    agrees_with_the_kernel("code", code, [true, false]);
    let constant = UserPtr::new("constant".as_ptr().cast_mut().cast());
    agrees_with_the_kernel("constant", constant, [true, false]);
}

#[test]
fn pages_the_kernel_maps_itself_are_judged_as_by_the_kernel() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let special = maps.lines().filter(|l| l.contains("[v"));
    for line in special.filter(|l| !l.contains("vsyscall")) {
        let start = usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        let at = UserPtr::new(ptr::without_provenance_mut(start));
        let readable = kernel_can(at, Access::Read);
        agrees_with_the_kernel(line, at, [readable, false]);
    }
}

#[test]
fn file_mapping_ends_where_the_file_ends() {
    let file = memfd_create("user_mem", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, PAGE as u64 + 1).unwrap();
    for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping touches nothing that exists.
        let at = unsafe { mmap(ptr::null_mut(), 3 * PAGE, prot, flags, &file, 0) }.unwrap();
        let pages = Pages { at, len: 3 * PAGE };
        agrees_with_the_kernel("first page of the file", pages.page(0), [true, true]);
        agrees_with_the_kernel(
            "its last, partial page",
            pages.page(1).offset(2),
            [true, true],
        );
        agrees_with_the_kernel("past its end", pages.page(2), [false, false]);
        assert_eq!(check_read(pages.page(0), 3 * PAGE), Err(Efault));
    }
}

/// Runs `body` in a child process, whose only thread has the address space for itself.
fn in_child(body: impl FnOnce() -> bool) {
    // SAFETY: the child calls nothing but `body`, which does not allocate, and `_exit`.
    match unsafe { libc::fork() } {
        0 => {
            let status = if body() { 0 } else { 1 };
            // SAFETY: ends the child.
            unsafe { libc::_exit(status) }
        }
        child => {
            let mut status = -1;
            // SAFETY: `status` outlives the call.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0);
        }
    }
}

#[test]
fn page_that_the_stack_will_grow_over_is_usable() {
    // Stacks keep a megabyte's distance from their lower neighbour.
    const ROOM: usize = 1024;
    for access in [Access::Read, Access::Write] {
        in_child(|| {
            let room = Pages::anonymous(ROOM, ProtFlags::empty(), MapFlags::empty());
            let top = room.page(ROOM - 1);
            drop(room);
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::PRIVATE | MapFlags::GROWSDOWN | MapFlags::FIXED;
            // SAFETY: replaces a mapping of the test's own that is gone already.
            let stack = unsafe { mmap_anonymous(top.0, PAGE, prot, flags) };
            let below = |pages: usize| UserPtr::new(top.0.wrapping_byte_sub(pages * PAGE));
            stack.is_ok()
                && check(below(1), 1, access) == Ok(())
                && check(below(3), 8, access) == Ok(())
                && kernel_can(below(3), access)
        });
    }
}

#[test]
fn addresses_that_wrap_or_leave_user_space_are_refused_and_no_bytes_are_not() {
    for addr in [
        0,
        8,
        USER_END - 1,
        USER_END,
        usize::MAX / 2,
        usize::MAX - 1,
        usize::MAX,
    ] {
        let at = UserPtr::new(ptr::without_provenance_mut(addr));
        assert_eq!(check_read(at, 1), Err(Efault), "{addr:#x}");
        assert_eq!(check_write(at, usize::MAX), Err(Efault), "{addr:#x}");
        assert_eq!(check_write(at, 0), Ok(()), "{addr:#x}");
    }
}

#[test]
fn range_over_good_and_bad_pages_is_bad() {
    let pages = Pages::usable(4);
    pages.protect(2, 1, MprotectFlags::READ);
    assert_eq!(check_write(pages.page(0), 2 * PAGE), Ok(()));
    assert_eq!(check_write(pages.page(0), 2 * PAGE + 1), Err(Efault));
    assert_eq!(check_read(pages.page(0), 4 * PAGE), Ok(()));
    assert_eq!(check_write(pages.page(2).offset(PAGE - 1), 2), Err(Efault));
    assert_eq!(check_write(pages.page(3), PAGE), Ok(()));
}

#[test]
fn probing_for_writes_changes_nothing_and_needs_no_alignment() {
    let pages = Pages::usable(1);
    for at in 0..9 {
        write_bytes(pages.page(0).offset(at), &[at as u8 + 1]).unwrap();
    }
    for at in 0..9 {
        assert_eq!(
            probe::word(pages.page(0).offset(at).addr(), Access::Write),
            Ok(())
        );
    }
    assert_eq!(
        copy_in::<[u8; 9]>(pages.page(0)),
        Ok([1, 2, 3, 4, 5, 6, 7, 8, 9])
    );
}

#[test]
fn page_taken_away_is_refused_after_it_was_good() {
    let pages = Pages::usable(1);
    for _ in 0..3 {
        assert_eq!(check_write(pages.page(0), 8), Ok(()));
        pages.protect(0, 1, MprotectFlags::READ);
        assert_eq!(check_write(pages.page(0), 8), Err(Efault));
        assert_eq!(check_read(pages.page(0), 8), Ok(()));
        pages.protect(0, 1, MprotectFlags::READ | MprotectFlags::WRITE);
    }
}

#[test]
fn strings_end_at_their_zero_or_not_at_all() {
    let pages = Pages::usable(2);
    pages.protect(1, 1, MprotectFlags::empty());
    write_bytes(pages.page(0).offset(PAGE - 4), b"abc\0").unwrap();
    let at = pages.page(0).offset(PAGE - 4);
    assert_eq!(read_str(at, &mut [0; 8]), Some(&b"abc"[..]));
    assert_eq!(read_str(at, &mut [0; 4]), Some(&b"abc"[..]));
    assert_eq!(read_str(at, &mut [0; 3]), None);
    write_bytes(at, b"abcd").unwrap();
    assert_eq!(read_str(at, &mut [0; 8]), None);
}

#[test]
fn words_go_in_and_out() {
    let pages = Pages::usable(1);
    copy_out_words(pages.page(0).offset(4), &[1, u64::MAX]).unwrap();
    assert_eq!(
        copy_in_words(pages.page(0).offset(4), 2),
        Ok(vec![1, u64::MAX])
    );
    assert_eq!(copy_in_words(pages.page(0), 513), Err(Efault));
    assert_eq!(copy_in_words(pages.page(0), usize::MAX), Err(Efault));
}

fn cost(rounds: usize, step: impl Fn(usize)) -> f64 {
    let start = Instant::now();
    (0..rounds).for_each(step);
    start.elapsed().as_nanos() as f64 / rounds as f64
}

/// Prints; timing decides nothing:
/// `cargo test -p kcmshim --release checks_cost -- --nocapture --test-threads=1`.
#[test]
#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
fn checks_cost() {
    const ROUNDS: usize = if cfg!(debug_assertions) {
        1_000
    } else {
        1_000_000
    };
    let pages = Pages::usable(16);
    let at = |index: usize| std::hint::black_box(pages.page(index % 16));
    for _ in 0..2 {
        let hit = cost(ROUNDS, |i| check_write(at(i), 64).unwrap());
        let nothing = cost(ROUNDS, |i| assert!(!at(i).is_null()));
        let copy = cost(ROUNDS, |i| write_bytes(at(i), &[7; 64]).unwrap());
        let span = cost(ROUNDS, |_| check_write(at(0), 16 * PAGE).unwrap());
        let miss = cost(ROUNDS / 100, |i| {
            invalidate();
            check_write(at(i), 64).unwrap();
        });
        let word = cost(ROUNDS / 100, |i| {
            probe::word(at(i).addr(), Access::Write).unwrap()
        });
        println!(
            "check of a known page {hit:.1} ns (loop alone {nothing:.1}), with a copy of 64 bytes {copy:.1}, of 16 pages \
             {span:.1}; of an unknown page {miss:.0}, by futex {word:.0}"
        );
    }
}
