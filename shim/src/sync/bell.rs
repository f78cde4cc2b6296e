//! The event descriptor of a doorbell, and its twin for loom.

#[cfg(not(loom))]
pub(crate) use kernel::{Bell, copied_to, raised_to};
#[cfg(loom)]
pub(crate) use model::Bell;

#[cfg(not(loom))]
mod kernel {
    use core::sync::atomic::{AtomicI32, Ordering};
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fd::{AsFd as _, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
    use rustix::io::{self, Errno};

    /// An event descriptor, made when first needed.
    pub(crate) struct Bell {
        /// The descriptor's number plus one, so that a static array of bells costs no page until
        /// one is used; zero before that.
        fd_plus_one: AtomicI32,
    }

    impl Bell {
        pub(crate) const fn new() -> Self {
            Self {
                fd_plus_one: AtomicI32::new(0),
            }
        }

        /// The descriptor's number, if it was ever made.
        #[inline]
        pub(crate) fn raw_fd(&self) -> Option<RawFd> {
            match self.fd_plus_one.load(Ordering::Acquire) {
                0 => None,
                plus_one => Some(plus_one - 1),
            }
        }

        /// The descriptor.
        #[inline]
        #[allow(
            unsafe_code,
            reason = "the number is kept in an atomic, not in an OwnedFd"
        )]
        pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
            // SAFETY: the number came from `open`, is never -1, and is closed only by `forget`
            // in a process where nobody else uses it. A program that closes descriptors it does
            // not own makes it stale, which ends in a failed call or a stray event count.
            self.raw_fd()
                .map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
        }

        /// Makes the descriptor unless it is there, with a number of at least `floor` if possible.
        pub(crate) fn open(&self, floor: RawFd) -> Result<(), Errno> {
            if self.raw_fd().is_none() {
                let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                let fd = raised_to(made, floor).into_raw_fd();
                self.fd_plus_one.store(fd + 1, Ordering::Release);
            }
            Ok(())
        }

        /// Makes the descriptor readable.
        pub(crate) fn strike(&self) {
            if let Some(fd) = self.fd() {
                // EAGAIN says it is readable already. Any other failure means that the program
                // closed a descriptor that is not its own; there is nobody to tell.
                let _ = io::write(fd, &1_u64.to_ne_bytes());
            }
        }

        /// Makes the descriptor unreadable.
        pub(crate) fn clear(&self) {
            if let Some(fd) = self.fd() {
                // EAGAIN says it was not readable.
                let _ = io::read(fd, &mut [0_u8; 8]);
            }
        }

        /// Lets go of the descriptor, closing it if `close` says that the number is still ours.
        #[allow(
            unsafe_code,
            reason = "the number is kept in an atomic, not in an OwnedFd"
        )]
        pub(crate) fn forget(&self, close: bool) {
            let fd = self.fd_plus_one.swap(0, Ordering::AcqRel) - 1;
            if fd >= 0 && close {
                // SAFETY: the swap took the number away, so this is its only close.
                unsafe { io::close(fd) }
            }
        }
    }

    /// Moves a descriptor out of the way of the numbers a program expects: to `floor` or the next
    /// free number above, or, under a low RLIMIT_NOFILE, as high as halving the floor finds one.
    pub(crate) fn raised_to(made: OwnedFd, floor: RawFd) -> OwnedFd {
        copied_to(made.as_fd(), floor).unwrap_or(made)
    }

    /// Another descriptor, with FD_CLOEXEC, of what `fd` names, at such a number.
    pub(crate) fn copied_to(fd: BorrowedFd<'_>, floor: RawFd) -> Result<OwnedFd, Errno> {
        /// Behind the standard streams.
        const LOWEST: RawFd = 3;
        let mut floor = floor;
        loop {
            match io::fcntl_dupfd_cloexec(fd, floor) {
                Err(_) if floor > LOWEST => floor = LOWEST.max(floor / 2),
                result => return result,
            }
        }
    }
}

/// Twin for loom: a flag and a queue, the same contract as an event descriptor that is polled.
#[cfg(loom)]
mod model {
    use loom::sync::{Condvar, Mutex};

    pub(crate) struct Bell {
        readable: Mutex<bool>,
        sleepers: Condvar,
    }

    impl Bell {
        pub(crate) fn new() -> Self {
            Self {
                readable: Mutex::new(false),
                sleepers: Condvar::new(),
            }
        }

        pub(crate) fn strike(&self) {
            *self.readable.lock().unwrap() = true;
            self.sleepers.notify_all();
        }

        pub(crate) fn clear(&self) {
            *self.readable.lock().unwrap() = false;
        }

        /// Stands for `ppoll`: sleeps until the descriptor is readable.
        pub(crate) fn sleep(&self) {
            let mut readable = self.readable.lock().unwrap();
            while !*readable {
                readable = self.sleepers.wait(readable).unwrap();
            }
        }
    }
}
