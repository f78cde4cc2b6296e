//! Pages as they are found: read, checked, taken apart. Whatever a page claims, reading it ends in
//! a [`Page`] or in one line that says what is wrong.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde_json::{Map, Value, json};

use crate::layout::{
    DECISIONS_AT, KCM_COUNTERS, MAGIC, MUX_COUNTERS, PAGE_WORDS, PSOCK_COUNTERS, RECORDS_AT,
    STACK_COUNTERS, STACK_SOCKETS, VERSION, Verdict, WORD, decision, header, record,
};
use crate::out::clean;
use crate::{Outcome, Problem, fd, places, process, tracer};

/// How often a page that is being written is read again. A writing takes microseconds.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// The statistics page of one process.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) pid: u32,
    pub(crate) created: u64,
    pub(crate) updated: u64,
    pub(crate) updated_monotonic: u64,
    pub(crate) muxes: u64,
    pub(crate) left_out: u64,
    pub(crate) program: String,
    pub(crate) release: String,
    pub(crate) totals: Totals,
    pub(crate) records: Vec<Record>,
    /// What the stack serves here; `None` while it serves nothing.
    pub(crate) stack: Option<Stack>,
    /// Records of the stack's sockets, word by word.
    pub(crate) sockets: Vec<Vec<u64>>,
    /// Decisions ever made, and the newest of them, oldest first.
    pub(crate) decided: u64,
    pub(crate) decisions: Vec<Decision>,
}

/// Counters of a whole process, ended muxes included.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) mux: [u64; MUX_COUNTERS.len()],
    pub(crate) psock: [u64; PSOCK_COUNTERS.len()],
}

/// The stack of a process: see [`STACK_COUNTERS`] and [`STACK_SOCKETS`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Stack {
    pub(crate) counters: [u64; STACK_COUNTERS.len()],
    pub(crate) sockets: [u64; STACK_SOCKETS.len()],
    /// Of each engine the rounds that the program's threads have made, and its sockets.
    pub(crate) engines: Vec<[u32; 2]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Mux,
    Kcm,
    Psock,
}

/// A mux, or one of its ends: see [`record`].
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) mux: u64,
    pub(crate) number: u64,
    pub(crate) inode: u64,
    pub(crate) first: u64,
    pub(crate) second: u64,
    pub(crate) flags: u64,
    /// The other end of a reservation for sending.
    pub(crate) reserved: Option<u64>,
    pub(crate) pending: u64,
    pub(crate) charge: u64,
    words: Vec<u64>,
}

/// See [`decision`].
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    pub(crate) time: u64,
    pub(crate) thread: u64,
    /// `None`: of a kind that a newer library knows.
    pub(crate) verdict: Option<Verdict>,
    pub(crate) fd: i64,
    pub(crate) inode: u64,
    pub(crate) answer: u64,
    pub(crate) first: u64,
    pub(crate) second: u64,
    pub(crate) times: u64,
    pub(crate) call: String,
    /// Of a decision by the plan.
    pub(crate) route: Option<Route>,
}

/// What a decision by the plan was about, and what made it.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) address: SocketAddr,
    pub(crate) rule: String,
    pub(crate) device: String,
}

impl Record {
    /// Counters by their kernel names: a mux's own come before the sums of its psocks.
    pub(crate) fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names: Vec<&'static str> = match self.kind {
            Kind::Mux => MUX_COUNTERS.into_iter().chain(PSOCK_COUNTERS).collect(),
            Kind::Kcm => PSOCK_COUNTERS[..KCM_COUNTERS].to_vec(),
            Kind::Psock => PSOCK_COUNTERS.to_vec(),
        };
        let values = self.words.get(record::COUNTERS..).unwrap_or(&[]).to_vec();
        names.into_iter().zip(values)
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.counters()
            .find(|(n, _)| *n == name)
            .map_or(0, |(_, value)| value)
    }

    pub(crate) fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// The words of the flags that are set.
    pub(crate) fn words<const N: usize>(
        &self,
        all: [(u64, &str); N],
    ) -> impl Iterator<Item = String> {
        let set = all.into_iter().filter(|(flag, _)| self.has(*flag));
        set.map(|(_, word)| word.to_owned())
    }
}

impl Stack {
    pub(crate) fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        STACK_COUNTERS.into_iter().zip(self.counters)
    }

    pub(crate) fn sockets(&self) -> impl Iterator<Item = (&'static str, u64)> {
        STACK_SOCKETS.into_iter().zip(self.sockets)
    }

    /// All of it as a JSON object.
    pub(crate) fn json(&self) -> Value {
        let engine = |[rounds, sockets]: &[u32; 2]| json!({"rounds": rounds, "sockets": sockets});
        let engines: Vec<_> = self.engines.iter().map(engine).collect();
        json!({
            "engines": engines,
            "sockets": counters_json(self.sockets()),
            "totals": counters_json(self.counters()),
        })
    }
}

impl Totals {
    pub(crate) fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let psock = PSOCK_COUNTERS.into_iter().zip(self.psock);
        MUX_COUNTERS.into_iter().zip(self.mux).chain(psock)
    }
}

/// Counters as a JSON object.
pub(crate) fn counters_json(counters: impl Iterator<Item = (&'static str, u64)>) -> Value {
    Value::Object(
        counters
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .collect::<Map<_, _>>(),
    )
}

/// Every verdict that this version knows.
const VERDICTS: [Verdict; 17] = [
    Verdict::Kcm,
    Verdict::Cloned,
    Verdict::Attached,
    Verdict::Unattached,
    Verdict::Refused,
    Verdict::Unsupported,
    Verdict::Kernel,
    Verdict::ParserGranted,
    Verdict::ParserVerified,
    Verdict::Option,
    Verdict::Inherited,
    Verdict::IoUring,
    Verdict::Stack,
    Verdict::Both,
    Verdict::LeftToKernel,
    Verdict::Denied,
    Verdict::StackFailed,
];

/// The verdict of this number; `None` for one of a later version.
fn verdict(number: u64) -> Option<Verdict> {
    let mut all = VERDICTS.into_iter();
    all.find(|verdict| *verdict as u64 == number)
}

impl Page {
    /// Reads the page at `path`, which is named after process `pid`. `None` when no process stands
    /// behind it any more; the caller's own page is then removed.
    ///
    /// # Errors
    /// What is wrong with it, or that its owner is someone else.
    pub(crate) fn read(path: &Path, pid: u32) -> Outcome<Option<Self>> {
        Self::read_file(path, pid).map_err(|Problem(what)| {
            Problem(format!(
                "{}: {what}",
                clean(path.as_os_str().as_encoded_bytes())
            ))
        })
    }

    fn read_file(path: &Path, pid: u32) -> Outcome<Option<Self>> {
        let flags = libc_flags();
        let mut options = fs::OpenOptions::new();
        let opened = options.read(true).custom_flags(flags).open(path);
        let file = match opened {
            Err(why) if why.kind() == ErrorKind::NotFound => return Ok(None), // it has just ended
            opened => opened?,
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(Problem::new("not a file"));
        }
        let me = rustix::process::geteuid();
        if meta.uid() != me.as_raw() && !me.is_root() {
            return Err(Problem::new("belongs to another user"));
        }
        // Whoever gets the lock knows that no writer has it: it is dead, or runs another program.
        let abandoned = flock(fd::of(&file), FlockOperation::NonBlockingLockShared).is_ok();
        if abandoned && is_page(&file) {
            let same = fs::symlink_metadata(path).is_ok_and(|now| now.ino() == meta.ino());
            if same && meta.uid() == me.as_raw() {
                // What cannot be removed does no harm.
                let _ = fs::remove_file(path);
                let _ = fs::remove_file(tracer::door(path));
            }
            return Ok(None);
        }
        let words = settled_words(&file)?;
        let page = Self::parse(&words)?;
        if page.pid != pid {
            return Err(Problem(format!("claims to be of process {}", page.pid)));
        }
        let start = words.get(header::START_TIME).copied();
        let same = process::start_time(pid).is_none_or(|ticks| Some(ticks) == start);
        Ok((same && !abandoned).then_some(page))
    }

    fn parse(words: &[u64]) -> Outcome<Self> {
        let word = |at: usize| words.get(at).copied().unwrap_or(0);
        let count = word(header::RECORDS);
        if count > record::MAX as u64 {
            return Err(Problem(format!(
                "damaged: claims {count} records, has room for {}",
                record::MAX
            )));
        }
        let records = words.get(RECORDS_AT..).unwrap_or(&[]);
        let records = records.chunks_exact(record::WORDS).take(count as usize);
        let (sockets, muxes): (Vec<_>, Vec<_>) =
            records.partition(|words| words[record::KIND] == record::SOCKET);
        let (sockets, muxes) = (sockets.into_iter(), muxes.into_iter());
        let ring = words.get(DECISIONS_AT..RECORDS_AT).unwrap_or(&[]);
        let mut decisions: Vec<_> = ring
            .chunks_exact(decision::WORDS)
            .filter(|words| words[decision::NUMBER] != 0)
            .collect();
        decisions.sort_by_key(|words| words[decision::NUMBER]);
        let mut totals = Totals::default();
        let counters = words.get(header::TOTALS..).unwrap_or(&[]);
        let all = totals.mux.iter_mut().chain(&mut totals.psock);
        all.zip(counters).for_each(|(to, from)| *to = *from);
        let stack = (word(header::HAS_STACK) != 0).then(|| Stack {
            counters: std::array::from_fn(|at| word(header::STACK + at)),
            sockets: std::array::from_fn(|at| word(header::SOCKETS + at)),
            engines: (0..(word(header::ENGINES) as usize).min(header::ENGINES_MAX))
                .map(|at| word(header::ENGINE + at))
                .map(|both| [both as u32, (both >> 32) as u32])
                .collect(),
        });
        Ok(Self {
            stack,
            pid: u32::try_from(word(header::PID))
                .map_err(|_| Problem::new("damaged: no process"))?,
            created: word(header::CREATED),
            updated: word(header::UPDATED),
            updated_monotonic: word(header::UPDATED_MONOTONIC),
            muxes: word(header::MUXES),
            left_out: word(header::LEFT_OUT),
            program: text(words, header::PROGRAM, header::PROGRAM_WORDS),
            release: text(words, header::RELEASE, header::RELEASE_WORDS),
            totals,
            records: muxes.map(parse_record).collect::<Outcome<_>>()?,
            sockets: sockets.map(<[u64]>::to_vec).collect(),
            decided: word(header::DECISIONS),
            decisions: decisions.into_iter().map(parse_decision).collect(),
        })
    }
}

fn parse_record(words: &[u64]) -> Outcome<Record> {
    let kind = match words[record::KIND] {
        record::MUX => Kind::Mux,
        record::KCM => Kind::Kcm,
        record::PSOCK => Kind::Psock,
        other => return Err(Problem(format!("damaged: a record of kind {other}"))),
    };
    Ok(Record {
        kind,
        mux: words[record::MUX_NUMBER],
        number: words[record::NUMBER],
        inode: words[record::INODE],
        first: words[record::FIRST],
        second: words[record::SECOND],
        flags: words[record::FLAGS],
        reserved: words[record::RESERVED].checked_sub(1),
        pending: words[record::PENDING],
        charge: words[record::CHARGE],
        words: words.to_vec(),
    })
}

fn parse_decision(words: &[u64]) -> Decision {
    Decision {
        time: words[decision::TIME],
        thread: words[decision::THREAD],
        verdict: verdict(words[decision::VERDICT]),
        fd: words[decision::FD] as i64,
        inode: words[decision::INODE],
        answer: words[decision::ANSWER],
        first: words[decision::FIRST],
        second: words[decision::SECOND],
        times: words[decision::TIMES],
        call: text(words, decision::CALL, decision::CALL_WORDS),
        route: parse_route(words),
    }
}

fn parse_route(words: &[u64]) -> Option<Route> {
    let rule = text(words, decision::RULE, decision::RULE_WORDS);
    (!rule.is_empty()).then(|| Route {
        address: address(&words[decision::ADDRESS..]),
        rule,
        device: text(words, decision::DEVICE, decision::DEVICE_WORDS),
    })
}

/// The address in three words: 16 bytes, IPv4 ones mapped, and a port.
pub(crate) fn address(words: &[u64]) -> SocketAddr {
    let word = |at: usize| words.get(at).copied().unwrap_or(0);
    let ip = Ipv6Addr::from(u128::from(word(0)) << 64 | u128::from(word(1)));
    SocketAddr::new(IpAddr::from(ip).to_canonical(), word(2) as u16)
}

/// No symbolic link, and no waiting for the writer of a FIFO that someone put there.
fn libc_flags() -> i32 {
    use rustix::fs::OFlags;
    (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32
}

fn text(words: &[u64], at: usize, count: usize) -> String {
    let words = words.get(at..at + count).unwrap_or(&[]);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    clean(&bytes[..end])
}

/// The words of a page as they were between two writings.
fn settled_words(file: &File) -> Outcome<Vec<u64>> {
    for _ in 0..ATTEMPTS {
        let before = sequence(file)?;
        let words = words(file)?;
        if before % 2 == 0 && before == sequence(file)? {
            return Ok(words);
        }
        thread::sleep(PAUSE);
    }
    Err(Problem::new("never at rest"))
}

fn is_page(file: &File) -> bool {
    let mut bytes = [0; WORD];
    file.read_exact_at(&mut bytes, 0).is_ok() && u64::from_ne_bytes(bytes) == MAGIC
}

fn sequence(file: &File) -> Outcome<u64> {
    let mut bytes = [0; WORD];
    match file.read_exact_at(&mut bytes, (header::SEQ * WORD) as u64) {
        Ok(()) => Ok(u64::from_ne_bytes(bytes)),
        Err(_) => Err(Problem::new("truncated")),
    }
}

/// All words, after what comes first has been found to be a page that this program knows.
fn words(file: &File) -> Outcome<Vec<u64>> {
    let mut bytes = Vec::new();
    let mut from_start = PositionedReader { file, at: 0 };
    from_start
        .by_ref()
        .take((PAGE_WORDS * WORD) as u64)
        .read_to_end(&mut bytes)?;
    let words: Vec<u64> = bytes
        .chunks_exact(WORD)
        .map(|chunk| u64::from_ne_bytes(chunk.try_into().unwrap_or_default()))
        .collect();
    let word = |at: usize| words.get(at).copied();
    if word(header::MAGIC) != Some(MAGIC) {
        return Err(Problem::new("not a page of kcmshim"));
    }
    match word(header::VERSION) {
        Some(VERSION) => {}
        Some(newer) if newer > VERSION => {
            return Err(Problem(format!(
                "written by a newer library (page version {newer}, this kcmctl knows {VERSION})"
            )));
        }
        _ => {
            return Err(Problem::new(
                "written by an older library, which this kcmctl does not know",
            ));
        }
    }
    if words.len() < PAGE_WORDS {
        return Err(Problem(format!(
            "truncated: {} of {} bytes",
            bytes.len(),
            PAGE_WORDS * WORD
        )));
    }
    Ok(words)
}

/// Reads a file from its start without moving its offset.
struct PositionedReader<'a> {
    file: &'a File,
    at: u64,
}

impl Read for PositionedReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read_at(buf, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Pages of processes that live, and what is wrong with the others'. Stale pages are removed.
pub(crate) fn all() -> (Vec<Page>, Vec<Problem>) {
    let (mut pages, mut problems) = (Vec::new(), Vec::new());
    for (pid, path) in places::pages() {
        match Page::read(&path, pid) {
            Ok(page) => pages.extend(page),
            Err(problem) => problems.push(problem),
        }
    }
    (pages, problems)
}

/// The page of one process.
///
/// # Errors
/// Why there is none.
pub(crate) fn of(pid: u32) -> Outcome<Page> {
    with_path(pid).map(|(page, _)| page)
}

/// The page of one process, and where it lies.
///
/// # Errors
/// As [`of`].
pub(crate) fn with_path(pid: u32) -> Outcome<(Page, PathBuf)> {
    let mut path: Option<PathBuf> = None;
    for (_, found) in places::pages()
        .into_iter()
        .filter(|(named, _)| *named == pid)
    {
        match Page::read(&found, pid) {
            Ok(Some(page)) => return Ok((page, found)),
            Ok(None) => {}
            Err(problem) => return Err(problem),
        }
        path = Some(found);
    }
    let why = if process::start_time(pid).is_none() {
        "there is no such process"
    } else {
        match process::has_library(pid) {
            None => "it belongs to another user",
            Some(false) => "it does not run under kcmshim",
            Some(true) if path.is_some() => "it has replaced its program since it used KCM",
            Some(true) => {
                "it runs under kcmshim and uses neither KCM nor the stack (or KCMSHIM_STATS=off)"
            }
        }
    };
    Err(Problem(format!("process {pid}: {why}")))
}
