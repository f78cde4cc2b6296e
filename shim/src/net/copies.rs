//! Numbers that dup(2) made of a socket before it was known whose it is. When one of them is given to the stack,
//! all of them are.

use crate::descriptor;
use crate::epoll::kernel_set;
use crate::fd::lookup;
use crate::net::pristine;
use crate::sys;

/// The other numbers of a socket that is not ours yet.
pub(super) struct Copies(Vec<i32>);

impl Copies {
    /// Those of what is behind `fd`. There are none of most sockets, which costs a load.
    pub(super) fn of(fd: i32) -> Self {
        let mut others = pristine::copies(fd).peekable();
        if others.peek().is_none() || lookup(fd).is_some() {
            return Self(Vec::new());
        }
        let inode = sys::inode(sys::borrow(fd));
        let is_same = |other: &i32| inode != 0 && sys::inode(sys::borrow(*other)) == inode;
        Self(others.filter(is_same).collect())
    }

    /// If `fd` has become a file of ours, they are numbers of it too.
    pub(super) fn follow(self, fd: i32) {
        let Some(file) = lookup(fd) else { return };
        for copy in self.0 {
            let Ok(descriptor) = rustix::io::fcntl_getfd(sys::borrow(copy)) else {
                continue; // closed meanwhile
            };
            let registered = kernel_set::take_registrations(copy);
            let put = || match sys::put_onto(sys::borrow(fd), copy, !descriptor.is_empty()) {
                Ok(()) => copy,
                Err(_) => -1,
            };
            if descriptor::dup_onto(fd, copy, put) >= 0 {
                kernel_set::hand_over(copy, file, registered);
            }
        }
    }
}
