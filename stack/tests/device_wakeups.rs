//! No wake-up is lost between two threads that sleep on a pair's descriptors: a sleep that times out is
//! a failure.

use kcm_stack::device::netmap::{self, PairOptions};
use kcm_stack::device::{
    FrameMeta, MemoryDevice, MemoryOptions, NetDevice, OpenOptions, TransmitError, Wait, open,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::thread::spawn;

/// Frames each way; the rings have few slots, so that both sides fall asleep often.
const FRAMES: u64 = 30_000;
const SLOTS: u32 = 8;

/// Far beyond what a busy machine needs to schedule a thread.
const PATIENCE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

fn sleep(device: &dyn NetDevice, wait: Wait) {
    let (fd, wait) = device.wait_fd(wait).unwrap();
    let flags = match wait {
        Wait::Readable => PollFlags::IN,
        Wait::Writable => PollFlags::IN | PollFlags::OUT,
    };
    let ready = poll(&mut [PollFd::new(&fd, flags)], Some(&PATIENCE)).unwrap();
    assert_eq!(ready, 1, "a wake-up was lost");
}

fn put(device: &mut dyn NetDevice, number: u64) -> Result<(), TransmitError> {
    device.transmit(64, FrameMeta::NONE, &mut |frame| {
        frame[14..22].copy_from_slice(&number.to_be_bytes());
    })
}

/// Takes what waits, up to `budget`, and checks that the numbers go on.
fn take(device: &mut dyn NetDevice, budget: usize, next: &mut u64) -> usize {
    let count = device.receive(budget, &mut |frames| {
        for frame in frames {
            assert_eq!(frame.data[14..22], next.to_be_bytes());
            *next += 1;
        }
    });
    count.unwrap()
}

/// One thread sends as fast as there is room, the other reads in bites of changing size.
fn stream(mut from: Box<dyn NetDevice>, mut to: Box<dyn NetDevice>) {
    let sender = spawn(move || {
        let mut none = 0;
        for number in 0..FRAMES {
            while let Err(error) = put(&mut *from, number) {
                assert_eq!(error, TransmitError::Full);
                from.kick().unwrap();
                if put(&mut *from, number).is_ok() {
                    break;
                }
                sleep(&*from, Wait::Writable);
                take(&mut *from, 9, &mut none);
            }
            if number % 5 == 0 {
                from.kick().unwrap();
            }
        }
        // What found no room leaves when there is some.
        from.kick().unwrap();
        from
    });
    let mut next = 0;
    while next < FRAMES {
        let budget = 1 + next as usize % 11;
        if take(&mut *to, budget, &mut next) == 0 && next < FRAMES {
            if sender.is_finished() && take(&mut *to, budget, &mut next) == 0 {
                break;
            }
            sleep(&*to, Wait::Readable);
        }
    }
    let mut from = sender.join().unwrap();
    while next < FRAMES {
        from.kick().unwrap();
        take(&mut *to, 100, &mut next);
    }
}

/// Both threads send one frame and sleep until the answer.
fn ping_pong(mut a: Box<dyn NetDevice>, mut b: Box<dyn NetDevice>) {
    let turns = FRAMES / 3;
    let answering = spawn(move || {
        let mut next = 0;
        while next < turns {
            if take(&mut *b, 1, &mut next) == 0 {
                sleep(&*b, Wait::Readable);
            } else {
                put(&mut *b, next - 1).unwrap();
                b.kick().unwrap();
            }
        }
    });
    let mut next = 0;
    for number in 0..turns {
        put(&mut *a, number).unwrap();
        a.kick().unwrap();
        while next == number {
            if take(&mut *a, 1, &mut next) == 0 {
                sleep(&*a, Wait::Readable);
            }
        }
    }
    answering.join().unwrap();
}

fn region() -> (Box<dyn NetDevice>, Box<dyn NetDevice>) {
    let options = PairOptions {
        slots: SLOTS,
        doorbell: true,
        ..PairOptions::default()
    };
    let (a, b) = netmap::pair(&options).unwrap();
    (Box::new(a), Box::new(b))
}

fn memory() -> (Box<dyn NetDevice>, Box<dyn NetDevice>) {
    let slots = SLOTS as usize;
    let options = MemoryOptions {
        slots,
        doorbell: true,
        ..MemoryOptions::default()
    };
    let (a, b) = MemoryDevice::pair(&options).unwrap();
    (Box::new(a), Box::new(b))
}

#[test]
fn region_streams_without_a_lost_wake_up() {
    let (a, b) = region();
    stream(a, b);
}

#[test]
fn region_answers_without_a_lost_wake_up() {
    let (a, b) = region();
    ping_pong(a, b);
}

#[test]
fn memory_streams_without_a_lost_wake_up() {
    let (a, b) = memory();
    stream(a, b);
}

#[test]
fn memory_answers_without_a_lost_wake_up() {
    let (a, b) = memory();
    ping_pong(a, b);
}

#[test]
fn shared_memory_answers_without_a_lost_wake_up() {
    let name = format!("mem:wake{}", std::process::id());
    let end = || open(&name, &OpenOptions::default()).unwrap().remove(0);
    let (a, b) = (end(), end());
    ping_pong(a, b);
}
