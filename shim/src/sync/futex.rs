//! Sleeping on a word. The words of our locks are pointer-sized, the kernel compares 32 bits: the
//! lower half, in which every state that is waited for differs from every state that ends the wait.

use super::atomic::AtomicUsize;

#[cfg(not(loom))]
pub(crate) use kernel::{wait, wake_one};
#[cfg(loom)]
pub(crate) use model::{wait, wake_one};

#[cfg(not(loom))]
mod kernel {
    use super::AtomicUsize;
    use core::sync::atomic::AtomicU32;
    use rustix::thread::futex::{self, Flags};

    /// Sleeps while the lower half of `word` equals that of `expected`.
    ///
    /// May return early (signal, spurious wake-up): the caller looks at the word again.
    #[cold]
    pub(crate) fn wait(word: &AtomicUsize, expected: usize) {
        // The result carries nothing the caller's next look at the word does not say better.
        let _ = futex::wait(lower_half(word), Flags::PRIVATE, expected as u32, None);
    }

    /// Wakes one thread that sleeps on `word`.
    #[cold]
    pub(crate) fn wake_one(word: &AtomicUsize) {
        // Fails only for an address that is not mapped, and a reference is.
        let _ = futex::wake(lower_half(word), Flags::PRIVATE, 1);
    }

    /// The half that the futex calls compare. Never accessed from user space.
    #[allow(unsafe_code, reason = "no safe cast between widths of atomics")]
    fn lower_half(word: &AtomicUsize) -> &AtomicU32 {
        const { assert!(cfg!(target_endian = "little")) };
        // SAFETY: on a little-endian machine the lower half lies at the word's own address, which
        // is more than aligned for it, and lives as long as the word. Only the kernel reads it,
        // so no two user-space accesses of different width ever meet.
        unsafe { AtomicU32::from_ptr(word.as_ptr().cast::<u32>()) }
    }
}

/// Twin for loom: a table lock makes look and sleep one step, as the kernel's bucket lock does. All
/// words of a model share one queue, so a model must wait on one word only, or it would accept a
/// wake-up meant for another.
#[cfg(loom)]
mod model {
    use super::AtomicUsize;
    use core::sync::atomic::Ordering::SeqCst;
    use loom::sync::{Condvar, Mutex};

    loom::lazy_static! {
        static ref BUCKET: Mutex<()> = Mutex::new(());
        static ref QUEUE: Condvar = Condvar::new();
    }

    pub(crate) fn wait(word: &AtomicUsize, expected: usize) {
        let bucket = BUCKET.lock().unwrap();
        if word.load(SeqCst) as u32 == expected as u32 {
            drop(QUEUE.wait(bucket).unwrap());
        }
    }

    pub(crate) fn wake_one(_word: &AtomicUsize) {
        let _bucket = BUCKET.lock().unwrap();
        QUEUE.notify_one();
    }
}
