//! Open file descriptions of ours: what all dups of a descriptor share.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use kcm_mux::{KcmId, PsockId, RxBatch, SocketType};
use rustix::net::AddressFamily;

use super::slot::Slot;
use crate::bpf::BpfObject;
use crate::epoll::EpollSet;
use crate::errno::{Errno, Exit, Outcome};
use crate::housekeeper;
use crate::kcm::MuxCell;
use crate::net::cells::Engines;
use crate::net::inherited::Inherited;
use crate::share;
use crate::share::remote::Remote;
use crate::sync::{self, BiasedMutex, Mutex, Rank};
use crate::sys;
use crate::tcp::Attached;
use crate::watch::Watch;

/// What stands behind a descriptor of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Nothing: the file waits to be recycled.
    Free,
    /// An AF_KCM socket.
    Kcm,
    /// A TCP socket that is, or was, attached to a mux.
    Tcp,
    /// An epoll set that holds at least one file of ours.
    Epoll,
    /// A parser program, or a map of one.
    Bpf,
    /// A TCP or UDP socket of the stack.
    Stack,
    /// A socket of a stack whose engine is in another process.
    Inherited,
    /// A descriptor the shim itself uses; to the program it is not open.
    Own,
}

/// One open file description. Files are recycled, never freed: a reference from the table stays
/// valid, and who takes one of its locks checks that the file still is what it was looked up as.
pub(crate) struct File {
    kind: AtomicU8,
    /// Descriptors that name this file, plus threads that sleep on it.
    refs: AtomicU32,
    /// Inode of the kernel object that holds the number; 0 of a stack socket that nobody has asked about.
    pub(crate) ino: AtomicU64,
    /// The mux of a KCM socket, or the one that a TCP socket is attached to.
    pub(crate) cell: Slot<MuxCell>,
    /// Index of the KCM socket in that mux; of a stack socket, which engine it lives in and its index there.
    id: AtomicU32,
    /// Of a stack socket: the engines it is in, if they are several ([`Engines`]).
    engines: AtomicU16,
    /// Index of the psock of an attached TCP socket in its mux.
    psock: AtomicU32,
    /// A stack socket, of whichever process's engine, that is, or was, attached.
    attached: AtomicBool,
    /// Of a stack socket: the kernel's socket beneath listens too.
    speaks: AtomicBool,
    /// A stack socket of type SOCK_STREAM.
    stream: AtomicBool,
    /// Of a stack socket: the family of the socket beneath, if that is as new, and nobody else's; 0 if it is not.
    plain: AtomicU16,
    /// A KCM socket of type SOCK_SEQPACKET.
    seqpacket: AtomicBool,
    /// SO_RCVTIMEO and SO_SNDTIMEO of a KCM socket in nanoseconds, 0 for none.
    pub(crate) rcvtimeo: AtomicU64,
    pub(crate) sndtimeo: AtomicU64,
    /// What is known of O_NONBLOCK, and how often it was changed: see [`File::is_nonblocking`].
    blocking: AtomicU32,
    /// KCM: messages already taken out of the mux. Lock order: before the mux.
    pub(crate) rx: BiasedMutex<RxBatch>,
    /// How far a KCM or stack socket is known to other processes.
    link: AtomicU8,
    /// Counts messages taken from the queue that processes of one family share.
    pub(crate) taken: Slot<AtomicU32>,
    /// Who wants to hear that this file became ready.
    pub(crate) watch: Watch,
    /// What only some kinds have, off the fast path.
    pub(crate) body: Mutex<Body>,
    /// The next file of [`DEFERRED`].
    next_deferred: Slot<Self>,
}

/// The part of a file that belongs to its kind.
pub(crate) enum Body {
    None,
    Tcp(Attached),
    Epoll(EpollSet),
    Bpf(BpfObject),
    Remote(Remote),
    Inherited(Inherited, Attached),
}

impl Body {
    /// What a socket that is, or was, attached has besides.
    pub(crate) fn attached(&mut self) -> Option<&mut Attached> {
        match self {
            Self::Tcp(tcp) | Self::Inherited(_, tcp) => Some(tcp),
            Self::None | Self::Epoll(_) | Self::Bpf(_) | Self::Remote(_) => None,
        }
    }
}

/// How far a KCM socket is known to other processes (see `share`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(crate) enum Link {
    /// No other process can have a copy, as far as we see.
    Private,
    /// Others may have copies, but have not used them; the mux is here.
    Tied,
    /// Others use it; the mux is here.
    Shared,
    /// The mux is with another process.
    Remote,
}

static RECYCLED: Mutex<Vec<&'static File>> = Mutex::ranked(Rank::Leaf, Vec::new());

/// Bits of `File::blocking`: the descriptor is known to block, or not to; the rest counts changes.
const BLOCKS: u32 = 1;
const BLOCKS_NOT: u32 = 2;
const CHANGE: u32 = 4;

/// Of `File::id`: the index of a stack socket, above which its engine stands.
const NET_INDEX_BITS: u32 = 28;
const NET_INDEX: u32 = (1 << NET_INDEX_BITS) - 1;

/// Files whose last descriptor was closed by a signal handler that had interrupted its thread under
/// a lock of ours: they cannot be taken down there. A list that any handler may push to.
static DEFERRED: Slot<File> = Slot::empty();

impl File {
    /// A file with one reference, which belongs to the slot it is going to be installed in.
    pub(crate) fn new(kind: Kind, ino: u64, body: Body) -> Result<&'static Self, Exit> {
        let recycled = RECYCLED.lock()?.pop();
        let file = match recycled {
            Some(file) => file,
            None => Box::leak(Box::new(Self {
                kind: AtomicU8::new(Kind::Free as u8),
                refs: AtomicU32::new(0),
                ino: AtomicU64::new(0),
                cell: Slot::empty(),
                id: AtomicU32::new(0),
                engines: AtomicU16::new(0),
                psock: AtomicU32::new(0),
                attached: AtomicBool::new(false),
                speaks: AtomicBool::new(false),
                stream: AtomicBool::new(false),
                plain: AtomicU16::new(0),
                seqpacket: AtomicBool::new(false),
                rcvtimeo: AtomicU64::new(0),
                blocking: AtomicU32::new(0),
                sndtimeo: AtomicU64::new(0),
                rx: BiasedMutex::new(RxBatch::empty()),
                link: AtomicU8::new(Link::Private as u8),
                taken: Slot::empty(),
                watch: Watch::new(),
                body: Mutex::ranked(Rank::Body, Body::None),
                next_deferred: Slot::empty(),
            })),
        };
        file.ino.store(ino, Ordering::Relaxed);
        *file.body.lock()? = body;
        file.refs.store(1, Ordering::Relaxed);
        file.kind.store(kind as u8, Ordering::Release);
        Ok(file)
    }

    /// Holds the list of spare files still for the length of a fork.
    pub(crate) fn freeze() -> impl Sized {
        RECYCLED.lock().ok()
    }

    #[inline]
    pub(crate) fn kind(&self) -> Kind {
        match self.kind.load(Ordering::Acquire) {
            1 => Kind::Kcm,
            2 => Kind::Tcp,
            3 => Kind::Epoll,
            4 => Kind::Bpf,
            5 => Kind::Stack,
            6 => Kind::Inherited,
            7 => Kind::Own,
            _ => Kind::Free,
        }
    }

    /// Whether calls that move bytes have something to do here.
    #[inline(always)]
    pub(crate) fn is_socket(&self) -> bool {
        let kind = self.kind();
        matches!(kind, Kind::Kcm | Kind::Tcp | Kind::Stack | Kind::Inherited)
    }

    /// O_NONBLOCK of the descriptor `fd`. Asked of the kernel once after each change that went
    /// through us; always, when another process may change it too.
    pub(crate) fn is_nonblocking(&self, fd: i32) -> bool {
        let known = self.blocking.load(Ordering::Acquire);
        if self.link() == Link::Private && known & (BLOCKS | BLOCKS_NOT) != 0 {
            return known & BLOCKS_NOT != 0;
        }
        let nonblocking = sys::is_nonblocking(fd);
        let answer = known | if nonblocking { BLOCKS_NOT } else { BLOCKS };
        // Fails, and the answer is not kept, when the flags changed meanwhile.
        let (ok, seen) = (Ordering::AcqRel, Ordering::Relaxed);
        let _ = self.blocking.compare_exchange(known, answer, ok, seen);
        nonblocking
    }

    /// Whether a lent file has no descriptor left in this process.
    pub(crate) fn is_only_lent(&self) -> bool {
        self.link() == Link::Tied && self.refs.load(Ordering::Acquire) == 1
    }

    /// In a process whose threads are gone, those that slept on the file among them: it has so many
    /// references.
    pub(crate) fn forget_pins(&self, refs: u32) {
        self.refs.store(refs, Ordering::Release);
    }

    /// The engine of this socket is another process's, or moves bytes for others too.
    pub(crate) fn become_inherited(&self, known: Inherited) {
        if let Ok(mut body) = self.body.lock() {
            let tcp = body.attached().map(core::mem::take).unwrap_or_default();
            *body = Body::Inherited(known, tcp);
            self.kind.store(Kind::Inherited as u8, Ordering::Release);
        }
    }

    /// The program has set file status flags.
    pub(crate) fn flags_changed(&self) {
        let next = |word: u32| Some((word & !(BLOCKS | BLOCKS_NOT)).wrapping_add(CHANGE));
        let _ = self
            .blocking
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, next);
    }

    /// The mux this file belongs to; a file closed meanwhile has none.
    #[inline]
    pub(crate) fn mux(&self) -> Outcome<&'static MuxCell> {
        self.cell.get().ok_or(Exit::Failed(Errno::EBADF))
    }

    pub(crate) fn kcm_id(&self) -> KcmId {
        KcmId(self.id.load(Ordering::Relaxed))
    }

    pub(crate) fn psock_id(&self) -> PsockId {
        PsockId(self.psock.load(Ordering::Relaxed))
    }

    /// Index of a stack socket in its engine.
    #[inline]
    pub(crate) fn net_index(&self) -> u32 {
        self.id.load(Ordering::Relaxed) & NET_INDEX
    }

    /// Which of the engines a stack socket lives in.
    #[inline]
    pub(crate) fn net_engine(&self) -> u8 {
        (self.id.load(Ordering::Acquire) >> NET_INDEX_BITS) as u8
    }

    /// The engines that a stack socket is in: the one it lives in, and those in which it listens besides.
    #[inline]
    pub(crate) fn engines(&self) -> Engines {
        Engines::one(self.net_engine()) | Engines::from_bits(self.engines.load(Ordering::Acquire))
    }

    pub(crate) fn set_engines(&self, engines: Engines) {
        self.engines.store(engines.bits(), Ordering::Release);
    }

    /// A stack socket lives in this engine, as its socket of this index.
    pub(crate) fn set_net_place(&self, engine: u8, index: u32) {
        let id = u32::from(engine) << NET_INDEX_BITS | index & NET_INDEX;
        self.id.store(id, Ordering::Release);
    }

    /// A stack socket takes the place of another's.
    pub(crate) fn share_net_place(&self, other: &Self) {
        self.id
            .store(other.id.load(Ordering::Relaxed), Ordering::Release);
    }

    pub(crate) fn bind(&'static self, cell: &'static MuxCell, id: u32) {
        self.id.store(id, Ordering::Relaxed);
        self.cell.swap(Some(cell));
    }

    /// The TCP socket is attached as `psock`.
    pub(crate) fn bind_psock(&'static self, cell: &'static MuxCell, psock: PsockId) {
        self.psock.store(psock.0, Ordering::Relaxed);
        self.note_attached();
        self.cell.swap(Some(cell));
    }

    /// From now on `tcp` knows more about the stack socket.
    pub(crate) fn note_attached(&self) {
        self.attached.store(true, Ordering::Release);
    }

    /// Whether a stack socket is, or was, attached: `tcp` knows more about it.
    #[inline]
    pub(crate) fn was_attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }

    /// Whether a stack socket is TCP's.
    #[inline]
    pub(crate) fn is_stream(&self) -> bool {
        self.stream.load(Ordering::Relaxed)
    }

    pub(crate) fn set_stream(&self, on: bool) {
        self.stream.store(on, Ordering::Relaxed);
    }

    /// The family of the socket beneath a stack socket, if it could serve another as well and the caller has the
    /// last number of it.
    pub(crate) fn plain(&self) -> Option<AddressFamily> {
        let family = self.plain.load(Ordering::Acquire);
        let is_last = || self.link() == Link::Private && self.refs.load(Ordering::Acquire) == 1;
        (family != 0 && is_last()).then(|| AddressFamily::from_raw(family))
    }

    pub(crate) fn set_plain(&self, family: AddressFamily) {
        self.plain.store(family.as_raw(), Ordering::Release);
    }

    /// Something was done to the socket beneath, or others have it too.
    pub(crate) fn not_plain(&self) {
        self.plain.store(0, Ordering::Release);
    }

    /// What the descriptor just made is known to do.
    pub(crate) fn set_nonblocking(&self, on: bool) {
        let known = if on { BLOCKS_NOT } else { BLOCKS };
        self.blocking.fetch_or(known, Ordering::AcqRel);
    }

    /// Whether a stack socket shares its address with the kernel's socket beneath.
    #[inline]
    pub(crate) fn speaks(&self) -> bool {
        self.speaks.load(Ordering::Relaxed)
    }

    pub(crate) fn set_speaks(&self, on: bool) {
        self.speaks.store(on, Ordering::Relaxed);
    }

    pub(crate) fn set_socket_type(&self, ty: SocketType) {
        self.seqpacket
            .store(ty == SocketType::Seqpacket, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn link(&self) -> Link {
        match self.link.load(Ordering::Acquire) {
            1 => Link::Tied,
            2 => Link::Shared,
            3 => Link::Remote,
            _ => Link::Private,
        }
    }

    pub(crate) fn set_link(&self, link: Link) {
        self.link.store(link as u8, Ordering::Release);
    }

    /// Type of a KCM socket.
    #[inline]
    pub(crate) fn socket_type(&self) -> SocketType {
        if self.seqpacket.load(Ordering::Relaxed) {
            SocketType::Seqpacket
        } else {
            SocketType::Dgram
        }
    }

    /// One more descriptor, or a thread about to sleep, holds this file. False when its last
    /// reference is already gone.
    pub(crate) fn retain(&self) -> bool {
        self.refs
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| {
                (n > 0).then_some(n + 1)
            })
            .is_ok()
    }

    /// Whether its last reference is gone, and what is left of it is about to go.
    pub(crate) fn is_let_go(&self) -> bool {
        self.refs.load(Ordering::Acquire) == 0
    }

    /// A descriptor or thread lets go of the file; the last one takes it down.
    pub(crate) fn release(&'static self) {
        match self.refs.fetch_sub(1, Ordering::AcqRel) {
            1 => {}
            // Perhaps only its line is left.
            2 if matches!(self.link(), Link::Tied | Link::Shared) => {
                return match self.kind() {
                    Kind::Stack => crate::net::lend::look_for_end(self),
                    _ => share::owner::look_for_end(self),
                };
            }
            _ => return,
        }
        if sync::holds_lock() || self.rx.is_mine() {
            self.defer();
            housekeeper::ring();
        } else {
            self.take_down();
            Self::take_down_deferred();
        }
    }

    fn defer(&'static self) {
        loop {
            let first = DEFERRED.get();
            self.next_deferred.swap(first);
            if DEFERRED.replace_if(first, Some(self)) {
                return;
            }
        }
    }

    /// Takes down what signal handlers could only put aside. The caller holds no lock.
    pub(crate) fn take_down_deferred() {
        if DEFERRED.get().is_none() {
            return;
        }
        let mut next = DEFERRED.swap(None);
        while let Some(file) = next {
            next = file.next_deferred.swap(None);
            file.take_down();
        }
    }

    fn take_down(&'static self) {
        match self.kind() {
            Kind::Kcm => crate::kcm::socket::last_close(self),
            Kind::Tcp | Kind::Inherited => crate::tcp::last_close(self),
            Kind::Epoll => crate::epoll::last_close(self),
            Kind::Stack => crate::net::socket::last_close(self),
            Kind::Bpf | Kind::Own | Kind::Free => {}
        }
        self.kind.store(Kind::Free as u8, Ordering::Release);
        self.cell.swap(None);
        self.taken.swap(None);
        self.set_link(Link::Private);
        self.set_speaks(false);
        self.not_plain();
        self.engines.store(0, Ordering::Relaxed);
        self.attached.store(false, Ordering::Relaxed);
        self.watch.clear();
        self.rcvtimeo.store(0, Ordering::Relaxed);
        self.flags_changed();
        self.sndtimeo.store(0, Ordering::Relaxed);
        if let Ok(mut body) = self.body.lock() {
            *body = Body::None;
        }
        if let Ok(mut rx) = self.rx.lock() {
            *rx = RxBatch::empty();
        }
        if let Ok(mut recycled) = RECYCLED.lock() {
            recycled.push(self);
        }
    }
}
