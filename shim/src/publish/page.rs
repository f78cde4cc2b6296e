//! The page's file: where it lies, and how it is written.
//!
//! It is written by pwrite(2), not through a mapping: a file that someone truncates, or a full disk,
//! then costs an error and not a SIGBUS. A lock on the open file (flock) shows that its writer still
//! lives; the kernel drops it with the process and at exec.

use std::sync::OnceLock;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::{self, Errno};
use rustix::process::{Resource, geteuid, getpid, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::image::Image;
use super::journal::Journal;
use super::layout::{DECISIONS_AT, MAGIC, PAGE_WORDS, RECORDS_AT, VERSION, WORD, decision, header};
use crate::own;
use crate::sync::Mutex;

/// XDG_RUNTIME_DIR as the process got it.
static RUNTIME_DIR: OnceLock<&'static [u8]> = OnceLock::new();

/// Takes note of XDG_RUNTIME_DIR if this variable is it. Called by our constructor, where neither
/// the heap nor thread-local storage is to be touched: a sanitizer's run-time may not be up yet.
pub(crate) fn note_runtime_dir(name: &[u8], value: &'static [u8]) {
    if name == b"XDG_RUNTIME_DIR" && value.first() == Some(&b'/') {
        let _ = RUNTIME_DIR.set(value);
    }
}

/// Directories a page may lie in, best first.
fn directories() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    if let Some(value) = RUNTIME_DIR.get() {
        all.push(join(value, "kcmshim"));
    }
    all.push(format!("/tmp/kcmshim-{}", geteuid().as_raw()).into());
    all
}

fn join(directory: &[u8], name: &str) -> Vec<u8> {
    [directory, b"/", name.as_bytes()].concat()
}

/// Opens a directory that is ours alone, making it if need be.
fn open_directory(path: &[u8]) -> io::Result<OwnedFd> {
    match fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(err) => return Err(err),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = fs::open(path, flags, Mode::empty())?;
    let stat = fs::fstat(&dir)?;
    if stat.st_uid != geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        return Err(Errno::PERM);
    }
    Ok(dir)
}

/// An open page.
pub(super) struct Page {
    file: own::Kept,
    path: Vec<u8>,
    /// Under which name it lies until it is whole.
    draft: Option<Vec<u8>>,
    /// Words of the header that stay as they are.
    fixed: [u64; header::WORDS],
    /// Decisions up to this number are on the page.
    written: u64,
}

impl Page {
    /// An empty page in the first directory that allows it.
    pub(super) fn create() -> io::Result<Self> {
        let mut failed = Errno::NOENT;
        for directory in directories() {
            match Self::create_in(&directory) {
                Ok(page) => return Ok(page),
                Err(err) => failed = err,
            }
        }
        Err(failed)
    }

    fn create_in(directory: &[u8]) -> io::Result<Self> {
        may_write()?;
        let dir = open_directory(directory)?;
        let pid = getpid().as_raw_nonzero().get();
        let draft = format!(".{pid}.new");
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        // Left by an earlier process of this number that was killed.
        let _ = fs::unlinkat(&dir, draft.as_str(), AtFlags::empty());
        let file = fs::openat(&dir, draft.as_str(), flags, mode)?;
        fs::fchmod(&file, mode)?;
        fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        fs::ftruncate(&file, (PAGE_WORDS * WORD) as u64)?;
        let file = own::keep(file);
        Ok(Self {
            file,
            path: join(directory, &pid.to_string()),
            draft: Some(join(directory, &draft)),
            fixed: fixed_words(pid as u64),
            written: 0,
        })
    }

    /// Brings the file up to date with what was observed and decided.
    pub(super) fn write(&mut self, image: &Image, journal: &Mutex<Journal>) -> io::Result<()> {
        may_write()?;
        let mut head = self.fixed;
        head[header::SEQ] = self.fixed[header::SEQ] + 1;
        self.put(header::SEQ, &head[header::SEQ..=header::SEQ])?;
        for (at, record) in image.records.chunks(RECORDS_AT_ONCE).enumerate() {
            let first = RECORDS_AT + at * RECORDS_AT_ONCE * super::layout::record::WORDS;
            self.put(first, record.as_flattened())?;
        }
        let mut fresh = Vec::new();
        if let Ok(journal) = journal.lock() {
            head[header::DECISIONS] = journal.made();
            fresh.extend(journal.from(self.written).map(|(at, entry)| (at, *entry)));
        }
        for (at, entry) in &fresh {
            self.put(DECISIONS_AT + at * decision::WORDS, entry)?;
        }
        head[header::UPDATED] = nanoseconds(ClockId::Realtime);
        head[header::UPDATED_MONOTONIC] = nanoseconds(ClockId::Monotonic);
        head[header::MUXES] = image.muxes;
        head[header::RECORDS] = image.records.len() as u64;
        head[header::LEFT_OUT] = image.left_out;
        head[header::TOTALS..header::TOTALS + image.totals.len()].copy_from_slice(&image.totals);
        let stack = &image.stack;
        head[header::STACK..header::STACK + stack.counters.len()].copy_from_slice(&stack.counters);
        let sockets = header::SOCKETS..header::SOCKETS + stack.sockets.len();
        head[sockets].copy_from_slice(&stack.sockets);
        head[header::HAS_STACK] = stack.is_open.into();
        head[header::ENGINES] = stack.engines;
        head[header::ENGINE..header::ENGINE + stack.each.len()].copy_from_slice(&stack.each);
        self.put(0, &head)?; // all but the sequence number, which stays odd
        head[header::SEQ] += 1;
        self.put(header::SEQ, &head[header::SEQ..=header::SEQ])?;
        self.fixed[header::SEQ] = head[header::SEQ];
        self.written = head[header::DECISIONS];
        if let Some(draft) = self.draft.take() {
            fs::rename(draft.as_slice(), self.path.as_slice())?;
        }
        Ok(())
    }

    /// Writes words at a place of the page.
    fn put(&self, at: usize, words: &[u64]) -> io::Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let written = io::pwrite(self.file.as_fd(), &bytes, (at * WORD) as u64)?;
        if written == bytes.len() {
            Ok(())
        } else {
            Err(Errno::NOSPC)
        }
    }

    /// Where it lies once it is whole.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Takes the page away.
    pub(super) fn remove(self) {
        let _ = fs::unlink(self.draft.as_deref().unwrap_or(&self.path));
    }
}

/// Records written by one call: 16 KiB.
const RECORDS_AT_ONCE: usize = 64;

/// Beyond RLIMIT_FSIZE a write is answered by SIGXFSZ, which would end the program.
fn may_write() -> io::Result<()> {
    match getrlimit(Resource::Fsize).current {
        Some(limit) if limit < (PAGE_WORDS * WORD) as u64 => Err(Errno::FBIG),
        _ => Ok(()),
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn fixed_words(pid: u64) -> [u64; header::WORDS] {
    let mut words = [0; header::WORDS];
    for (at, word) in [
        (header::MAGIC, MAGIC),
        (header::VERSION, VERSION),
        (header::PID, pid),
        (header::START_TIME, start_time()),
        (header::UID, geteuid().as_raw().into()),
        (header::CREATED, nanoseconds(ClockId::Realtime)),
    ] {
        words[at] = word;
    }
    let program = fs::readlink("/proc/self/exe", Vec::new());
    let program = program.as_ref().map_or(&b""[..], |path| path.to_bytes());
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or(&[]);
    let room = header::PROGRAM..header::PROGRAM + header::PROGRAM_WORDS;
    put_text(&mut words[room], name);
    let room = header::RELEASE..header::RELEASE + header::RELEASE_WORDS;
    put_text(&mut words[room], env!("CARGO_PKG_VERSION").as_bytes());
    words
}

/// Fills words with the bytes of a text, cut where they end.
pub(super) fn put_text(words: &mut [u64], text: &[u8]) {
    for (word, bytes) in words.iter_mut().zip(text.chunks(WORD)) {
        let mut filled = [0; WORD];
        for (to, from) in filled.iter_mut().zip(bytes) {
            *to = *from;
        }
        *word = u64::from_ne_bytes(filled);
    }
}

/// Field 22 of /proc/self/stat (proc(5)), 0 when it cannot be read. The name before it may hold
/// anything, so fields are counted from its closing bracket, which field 3 follows.
fn start_time() -> u64 {
    let read = || -> Option<u64> {
        let file = fs::open("/proc/self/stat", OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut bytes = [0; 1024];
        let count = io::read(&file, &mut bytes).ok()?;
        let text = bytes.get(..count)?;
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let fields = core::str::from_utf8(text.get(end + 1..)?).ok()?;
        fields.split_ascii_whitespace().nth(19)?.parse().ok()
    };
    read().unwrap_or(0)
}
