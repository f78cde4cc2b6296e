//! The other end of a trace: asks a process for its messages and takes them apart. What the process
//! sends is not trusted; it ends in a [`Seen`] or in one line.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, mem};

use crate::page::{self, Kind, Page};
use crate::wire::{HEAD_MAX, MAGIC, RX, TX, VERSION, WORD, head, request};
use crate::{Outcome, Problem, out, process};

/// How long a process may take to answer before the person is told that it does not.
const SILENCE: Duration = Duration::from_secs(2);
/// Bytes read at a time.
const READ_BYTES: usize = 256 << 10;

/// The socket beside a page at which its process takes callers.
pub(crate) fn door(page: &Path) -> PathBuf {
    let mut path = page.as_os_str().to_owned();
    path.push(".trace");
    path.into()
}

/// What is to be shown.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) mux: Option<u64>,
    pub(crate) kcm: Option<u64>,
    pub(crate) psock: Option<u64>,
    /// The KCM socket or the connection behind this descriptor.
    pub(crate) fd: Option<i64>,
    pub(crate) rx_only: bool,
    pub(crate) tx_only: bool,
    pub(crate) len_min: Option<u64>,
    pub(crate) len_max: Option<u64>,
}

impl Filter {
    /// Puts what stands behind the descriptor in its place.
    fn resolved(mut self, page: &Page) -> Outcome<Self> {
        let Some(fd) = self.fd else { return Ok(self) };
        let target = process::target(page.pid, fd);
        let inode = target.as_deref().and_then(process::socket_inode);
        let mut records = page.records.iter().filter(|r| Some(r.inode) == inode);
        match records.find(|r| r.kind != Kind::Mux) {
            Some(record) => {
                self.mux = Some(record.mux);
                match record.kind {
                    Kind::Kcm => self.kcm = Some(record.number),
                    _ => self.psock = Some(record.number),
                }
                Ok(self)
            }
            None => Err(Problem(format!(
                "descriptor {fd} of process {} is neither a KCM socket nor attached to one",
                page.pid
            ))),
        }
    }

    fn words(&self, what: u64, bytes: u64) -> [u64; request::WORDS] {
        let mut words = [0; request::WORDS];
        let any = |wanted: Option<u64>| wanted.unwrap_or(request::ANY);
        for (at, word) in [
            (request::MAGIC, MAGIC),
            (request::VERSION, VERSION),
            (request::WHAT, what),
            (request::HEAD, bytes),
            (
                request::DIRECTIONS,
                if self.tx_only { 0 } else { RX } | if self.rx_only { 0 } else { TX },
            ),
            (request::LEN_MIN, self.len_min.unwrap_or(0)),
            (request::LEN_MAX, any(self.len_max)),
            (request::MUX, any(self.mux)),
            (request::KCM, any(self.kcm)),
            (request::PSOCK, any(self.psock)),
        ] {
            words[at] = word;
        }
        words
    }
}

/// One message or frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) is_frame: bool,
    /// CLOCK_REALTIME in nanoseconds.
    pub(crate) time: u64,
    /// Towards the program.
    pub(crate) is_rx: bool,
    pub(crate) len: u64,
    pub(crate) mux: u64,
    pub(crate) kcm: u64,
    pub(crate) psock: u64,
    pub(crate) inode: u64,
    /// What the process dropped since the trace began, because nobody took it fast enough.
    pub(crate) lost: u64,
    pub(crate) bytes: Vec<u8>,
}

/// A trace that is under way.
pub(crate) struct Tracer {
    stream: UnixStream,
    /// Bytes read and not taken apart.
    held: Vec<u8>,
}

impl Tracer {
    /// Switches tracing on in process `pid`, until this is dropped. `what`: a sum as
    /// [`request::WHAT`] has it; `bytes`: how many of each message.
    ///
    /// # Errors
    /// Why it cannot be traced.
    pub(crate) fn start(pid: u32, what: u64, filter: &Filter, bytes: u64) -> Outcome<Self> {
        let (page, path) = page::with_path(pid)?;
        let filter = filter.resolved(&page)?;
        let failed = |err: io::Error| {
            Problem(match err.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    format!("process {pid} takes no tracers")
                }
                _ => format!("process {pid}: {err}"),
            })
        };
        let mut stream = connect(&door(&path)).map_err(failed)?;
        let words = filter.words(what, bytes);
        let request: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        match stream.write_all(&request) {
            // It has answered already, and no.
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.map_err(failed)?,
        }
        let mut tracer = Self {
            stream,
            held: Vec::new(),
        };
        tracer.greet(pid)?;
        Ok(tracer)
    }

    /// Waits until the process has said that it traces.
    fn greet(&mut self, pid: u32) -> Outcome<()> {
        self.stream.set_read_timeout(Some(SILENCE))?;
        let mut told = false;
        loop {
            match self.read() {
                Ok(0) => return Err(Problem(format!("process {pid} does not want to be traced"))),
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    if !mem::replace(&mut told, true) {
                        out::complain(&format!(
                            "process {pid} has not answered yet: it has never attached a \
                             connection, or is stopped; waiting"
                        ));
                    }
                    continue;
                }
                Err(err) => return Err(err.into()),
            }
            let Some((words, _)) = self.take()? else {
                continue;
            };
            self.stream.set_read_timeout(None)?;
            return match words[head::KIND] {
                head::HELLO => Ok(()),
                head::BUSY => Err(Problem(format!(
                    "process {pid} is traced by as many as it allows"
                ))),
                head::STRANGE => Err(Problem(format!(
                    "process {pid} runs another version of the library, which this kcmctl cannot trace"
                ))),
                kind => Err(Problem(format!("process {pid} answers nonsense ({kind})"))),
            };
        }
    }

    fn read(&mut self) -> io::Result<usize> {
        let mut part = vec![0; READ_BYTES];
        loop {
            match self.stream.read(&mut part) {
                Ok(count) => {
                    self.held
                        .extend_from_slice(part.get(..count).unwrap_or(&[]));
                    return Ok(count);
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
    }

    /// The next whole record held, with its bytes.
    fn take(&mut self) -> Outcome<Option<([u64; head::WORDS], Vec<u8>)>> {
        let Some(first) = self.held.get(..head::WORDS * WORD) else {
            return Ok(None);
        };
        let mut words = [0; head::WORDS];
        for (word, bytes) in words.iter_mut().zip(first.chunks_exact(WORD)) {
            *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        }
        let count = words[head::BYTES];
        if count > HEAD_MAX as u64 {
            return Err(Problem(format!("damaged: a record of {count} bytes")));
        }
        let (start, count) = (head::WORDS * WORD, count as usize);
        let end = start + count.next_multiple_of(WORD);
        if self.held.len() < end {
            return Ok(None);
        }
        let bytes = self.held[start..start + count].to_vec();
        self.held.drain(..end);
        Ok(Some((words, bytes)))
    }

    /// What passed since the last call, at least one; `None` when the process has ended.
    ///
    /// # Errors
    /// What the process sends makes no sense.
    pub(crate) fn next(&mut self) -> Outcome<Option<Vec<Seen>>> {
        loop {
            let mut all = Vec::new();
            while let Some((words, bytes)) = self.take()? {
                let kind = words[head::KIND];
                if kind == head::MESSAGE || kind == head::FRAME {
                    all.push(seen(&words, bytes));
                }
            }
            if !all.is_empty() {
                return Ok(Some(all));
            }
            match self.read() {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(err) => return Err(err.into()),
            }
        }
    }
}

fn seen(words: &[u64; head::WORDS], bytes: Vec<u8>) -> Seen {
    Seen {
        is_frame: words[head::KIND] == head::FRAME,
        time: words[head::TIME],
        is_rx: words[head::DIRECTION] == RX,
        len: words[head::LEN].max(bytes.len() as u64),
        mux: words[head::MUX],
        kcm: words[head::KCM],
        psock: words[head::PSOCK],
        inode: words[head::INODE],
        lost: words[head::LOST],
        bytes,
    }
}

/// Connects to a path, through a descriptor of its directory if it is too long for an address.
fn connect(path: &Path) -> io::Result<UnixStream> {
    /// sun_path with its NUL (unix(7)).
    const ADDRESS_MAX: usize = 108;
    if path.as_os_str().len() < ADDRESS_MAX {
        return UnixStream::connect(path);
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = fs::File::open(directory)?;
    let through = format!("/proc/self/fd/{}", directory.as_raw_fd());
    UnixStream::connect(Path::new(&through).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u64, bytes: &[u8], claimed: u64) -> Vec<u8> {
        let mut words = [0; head::WORDS];
        words[head::KIND] = kind;
        words[head::BYTES] = claimed;
        words[head::DIRECTION] = RX;
        let mut record: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        record.extend_from_slice(bytes);
        record.resize(record.len().next_multiple_of(WORD), 0);
        record
    }

    fn tracer(sent: &[u8]) -> Tracer {
        let (stream, mut other) = UnixStream::pair().unwrap();
        other.write_all(sent).unwrap();
        Tracer {
            stream,
            held: Vec::new(),
        }
    }

    #[test]
    fn records_are_taken_apart_and_unknown_ones_passed_over() {
        let sent = [
            record(head::MESSAGE, b"first", 5),
            record(99, b"later library", 13),
            record(head::MESSAGE, b"", 0),
        ];
        let mut tracer = tracer(&sent.concat());
        let all = tracer.next().unwrap().unwrap();
        let bytes: Vec<_> = all.iter().map(|seen| seen.bytes.as_slice()).collect();
        assert_eq!(bytes, [&b"first"[..], b""]);
        assert_eq!(all[0].len, 5);
        assert_eq!(tracer.next().unwrap(), None);
    }

    #[test]
    fn record_cut_by_the_end_is_no_record() {
        let mut sent = record(head::MESSAGE, b"first", 5);
        sent.truncate(sent.len() - 1);
        assert_eq!(tracer(&sent).next().unwrap(), None);
    }

    #[test]
    fn absurd_length_is_an_error() {
        let sent = record(head::MESSAGE, b"", u64::MAX);
        assert!(tracer(&sent).next().is_err());
    }
}
