//! A pair of ports that two processes of one user share: `mem:NAME`.
//!
//! Three files in `/dev/shm`: the region, and for each side a FIFO that is its bell. The side that a
//! process plays is the FIFO it holds a lock on, so that a killed process gives its side back, and the
//! next one to come takes up the rings where they stand.

use super::super::doorbell::Doorbell;
use super::super::sys::mmap::Mapping;
use super::super::{DeviceError, IfName, OpenError, OpenOptions};
use super::NetmapDevice;
use super::pair::{Bells, PairOptions, port};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{
    CWD, FileType, FlockOperation, Mode, OFlags, flock, fstat, ftruncate, mknodat, unlink,
};
use rustix::io::Errno;
use rustix::process::{Pid, getpid};
use std::sync::Arc;

/// The files of one pair.
pub(super) struct Names {
    region: String,
    bells: [String; 2],
    /// Locked for as long as we play our side.
    ours: OwnedFd,
    side: usize,
    /// The process that plays it: its forked children have copies.
    player: Pid,
}

impl Drop for Names {
    fn drop(&mut self) {
        if getpid() != self.player {
            return;
        }
        let Ok(region) = open_locked(&self.region) else {
            return;
        };
        // A process that was forked a moment ago, and has not executed its program yet, has a copy of the
        // descriptor: closing ours would leave the lock with it.
        let _ = flock(&self.ours, FlockOperation::Unlock);
        // With the peer gone as well, nobody needs the files; the region's lock keeps newcomers out
        // until they are removed, and these look again for the name.
        let peer_gone = self
            .bells
            .get(1 - self.side)
            .and_then(|name| open_fifo(name).ok())
            .is_some_and(|peer| flock(&peer, FlockOperation::NonBlockingLockExclusive).is_ok());
        if peer_gone {
            for name in self.bells.iter().chain([&self.region]) {
                let _ = unlink(name.as_str());
            }
        }
        drop(region);
    }
}

/// Opens one side of the pair `name`, the first one that is free.
pub(in super::super) fn open_named(
    name: &IfName,
    options: &OpenOptions,
) -> Result<NetmapDevice, OpenError> {
    let device = format!("mem:{}", name.as_str());
    let system = |call| {
        let device = device.clone();
        move |errno| match errno {
            Errno::ACCESS | Errno::PERM => OpenError::Permission {
                device,
                needs: "its files in /dev/shm belong to another user; choose another name",
            },
            Errno::NOENT => OpenError::Missing {
                device,
                what: "this system has no /dev/shm; `mount -t tmpfs shm /dev/shm` makes one",
            },
            errno => OpenError::System {
                device,
                call,
                errno,
            },
        }
    };
    let shape = PairOptions {
        mtu: options.mtu.unwrap_or(PairOptions::default().mtu),
        vnet_hdr: options.offloads,
        doorbell: true,
        ..PairOptions::default()
    };
    let region_name = format!("/dev/shm/kcm-{}", name.as_str());
    let bell_names = [0, 1].map(|side| format!("{region_name}.{side}"));
    let region = open_locked(&region_name).map(options.keep);
    let region = region.map_err(system("open region"))?;
    let [first, second] = [0, 1].map(|side| open_fifo(&bell_names[side]).map(options.keep));
    let fifos = [
        first.map_err(system("open bell"))?,
        second.map_err(system("open bell"))?,
    ];
    let is_free = |fd: &OwnedFd| flock(fd, FlockOperation::NonBlockingLockExclusive).is_ok();
    let free = fifos.each_ref().map(is_free);
    let side = match free {
        [true, _] => 0,
        [false, true] => 1,
        [false, false] => {
            return Err(OpenError::Busy {
                device,
                holder: "both ends are taken by running programs; choose another name",
            });
        }
    };
    let corrupt = |error| match error {
        DeviceError::Corrupt(field) => OpenError::Layout {
            device: device.clone(),
            field,
        },
        DeviceError::System { call, errno } => system(call)(errno),
        _ => OpenError::Layout {
            device: device.clone(),
            field: "region",
        },
    };
    let len = shape.memory_len().map_err(corrupt)?;
    let is_first = free == [true, true];
    if is_first {
        // Whatever an earlier pair left is nobody's.
        ftruncate(&region, 0).map_err(system("ftruncate"))?;
        ftruncate(&region, len as u64).map_err(system("ftruncate"))?;
    } else if fstat(&region).map_err(system("fstat"))?.st_size != len as i64 {
        return Err(OpenError::Layout {
            device,
            field: "length",
        });
    }
    let map = Mapping::of_fd(region.as_fd(), len, 0).map_err(system("mmap"))?;
    if is_first {
        shape.lay_out(&map).map_err(corrupt)?;
    } else if !shape.agree_with(&map) {
        return Err(OpenError::Busy {
            device,
            holder: "and its other end has offloads switched the other way; open both ends alike",
        });
    }
    let [first, second] = fifos;
    let (ours, peers) = if side == 0 {
        (first, second)
    } else {
        (second, first)
    };
    if is_first {
        flock(&peers, FlockOperation::Unlock).map_err(system("flock"))?;
    }
    let held = rustix::io::fcntl_dupfd_cloexec(&ours, 0).map(options.keep);
    let held = held.map_err(system("dup"))?;
    let bells = Bells {
        ours: Arc::new(Doorbell::over(ours)),
        peers: Arc::new(Doorbell::over(peers)),
    };
    // Frames may wait since before we came.
    bells.ours.ring();
    let names = Names {
        region: region_name,
        bells: bell_names,
        ours: held,
        side,
        player: getpid(),
    };
    let device = port(&shape, &Arc::new(map), side, Some(bells), Some(names)).map_err(corrupt);
    // The mapping keeps the file open, and so would keep the lock.
    flock(&region, FlockOperation::Unlock).map_err(system("flock"))?;
    device
}

/// Opens a region's file and waits for its lock, under which sides are taken and files removed.
fn open_locked(name: &str) -> Result<OwnedFd, Errno> {
    loop {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(name, flags, Mode::RUSR | Mode::WUSR)?;
        flock(&file, FlockOperation::LockExclusive)?;
        // Its last user may have removed it while we waited.
        let ours = fstat(&file)?;
        match rustix::fs::lstat(name) {
            Ok(named) if (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino) => {
                return Ok(file);
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn open_fifo(name: &str) -> Result<OwnedFd, Errno> {
    match mknodat(CWD, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    // Both ways, so that neither end ever waits for, or loses, the other.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(name, flags, Mode::empty())
}
