//! The journal's native protocol, and the thread that speaks it.
//!
//! An entry is one datagram to journald's socket: for each field either `NAME=value` and a
//! line feed, or, where the value has a line feed of its own, `NAME`, a line feed, the value's
//! length as 64 bits in little-endian order, the value and a line feed. An entry too long for
//! a datagram goes into a sealed memory file whose descriptor is sent instead. (systemd's
//! document "Native Journal Protocol"; seen to work with systemd 252.)
//!
//! Sending waits while journald's queue is full, so it has a thread of its own behind a
//! bounded queue. An entry that cannot be sent is counted: nothing is dropped in silence.

use std::{
    fs::File,
    io::{self, IoSlice, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::MetadataExt, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use rustix::{
    cmsg_space,
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr},
};

/// Where journald listens.
pub const SOCKET_PATH: &str = "/run/systemd/journal/socket";

/// How many entries wait at most for journald to take them. A finding with a long history is
/// some 100 KiB, so this is bounded memory, and more than a burst needs.
const QUEUE_LEN_MAX: usize = 256;

/// How long one entry may wait for room in journald's own queue.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the end of a run waits for entries that are still queued.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// No socket can be made, or nobody listens.
    #[error(
        "the journal cannot be reached at {}: {source}; start systemd-journald or leave --journal out",
        path.display()
    )]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The sending thread cannot be started.
    #[error("the thread that writes to the journal cannot be started: {0}")]
    Thread(io::Error),
}

/// An entry, already in the form of the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    frame: Vec<u8>,
}

impl Entry {
    /// Appends a field. The name is upper-case letters, digits and underscores, at most 64 of
    /// them and not beginning with an underscore or a digit: journald drops others.
    pub fn field(&mut self, name: &'static str, value: &str) {
        self.frame.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.frame.push(b'\n');
            self.frame.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.frame.push(b'=');
        }
        self.frame.extend_from_slice(value.as_bytes());
        self.frame.push(b'\n');
    }
}

/// How many entries reached journald's socket, and how many did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Taken by the socket.
    pub sent: u64,
    /// Not taken, or not even queued.
    pub failed: u64,
}

/// The way to the journal.
#[derive(Debug)]
pub struct Journal {
    queue: SyncSender<Entry>,
    tally: Arc<Tally>,
}

/// What became of the entries; `changed` is told of each.
#[derive(Debug, Default)]
struct Tally {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    posted: u64,
    sent: u64,
    failed: u64,
}

impl Journal {
    /// Starts the sending thread; [`SOCKET_PATH`] is where journald listens.
    ///
    /// # Errors
    ///
    /// When nobody listens there, or the thread cannot be started.
    pub fn start(path: &Path) -> Result<Self, JournalError> {
        let socket =
            open(path).map_err(|source| JournalError::Connect { path: path.to_owned(), source })?;
        let (queue, entries) = sync_channel(QUEUE_LEN_MAX);
        let tally = Arc::new(Tally::default());
        let (path, counted) = (path.to_owned(), Arc::clone(&tally));
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || send_all(&socket, &path, &entries, &counted))
            .map_err(JournalError::Thread)?;
        Ok(Self { queue, tally })
    }

    /// Queues an entry; never waits. One that finds the queue full counts as failed.
    pub fn post(&self, entry: Entry) {
        self.tally.count(|counts| counts.posted += 1);
        if self.queue.try_send(entry).is_err() {
            self.tally.failed("the queue of entries that wait for journald is full");
        }
    }

    /// Waits until everything posted was sent or has failed, but a few seconds at most: what
    /// still waits then counts as failed.
    pub fn settle(&self) -> Delivery {
        let counts = self.tally.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = |counts: &mut Counts| counts.sent + counts.failed < counts.posted;
        let (counts, _) = self
            .tally
            .changed
            .wait_timeout_while(counts, SETTLE_TIMEOUT, pending)
            .unwrap_or_else(PoisonError::into_inner);
        Delivery { sent: counts.sent, failed: counts.posted - counts.sent }
    }
}

impl Tally {
    fn count(&self, change: impl FnOnce(&mut Counts)) -> Counts {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut counts);
        self.changed.notify_all();
        *counts
    }

    /// Counts a failure and says it: the first, and then ever more rarely.
    fn failed(&self, why: &str) {
        let failed = self.count(|counts| counts.failed += 1).failed;
        if failed.is_power_of_two() {
            tracing::warn!("{failed} entries did not reach the journal so far: {why}");
        }
    }
}

/// A socket of our own, after seeing that somebody listens at `path`.
fn open(path: &Path) -> io::Result<UnixDatagram> {
    UnixDatagram::unbound()?.connect(path)?;
    // Not connected: a journald that is started again is a new socket at the same path.
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    Ok(socket)
}

fn send_all(socket: &UnixDatagram, path: &Path, entries: &Receiver<Entry>, tally: &Tally) {
    for entry in entries {
        match send(socket, path, &entry) {
            Ok(()) => {
                tally.count(|counts| counts.sent += 1);
            }
            Err(error) => tally.failed(&error.to_string()),
        }
    }
}

fn send(socket: &UnixDatagram, path: &Path, entry: &Entry) -> io::Result<()> {
    match socket.send_to(&entry.frame, path) {
        Ok(_) => Ok(()),
        Err(error) if is_too_long(&error) => send_as_file(socket, path, entry),
        Err(error) => Err(error),
    }
}

/// EMSGSIZE: longer than the socket's send buffer. ENOBUFS: the kernel found no memory in one
/// piece for it.
fn is_too_long(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MSGSIZE | Errno::NOBUFS))
}

fn send_as_file(socket: &UnixDatagram, path: &Path, entry: &Entry) -> io::Result<()> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("refverify-journal-entry", flags)?);
    file.write_all(&entry.frame)?;
    // journald takes a memory file only when nobody can change it any more.
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;

    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [file.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for the descriptor of the memory file"));
    }
    let address = SocketAddrUnix::new(path)?;
    let nothing: [IoSlice<'_>; 0] = [];
    sendmsg_addr(socket, &address, &nothing, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Whether `fd` is the stream to the journal that systemd gave this process: `journal_stream`
/// is the variable `JOURNAL_STREAM`, device and inode number in decimal with a colon between
/// (systemd.exec(5)). The variable alone says nothing: a child with other outputs inherits it.
pub fn is_journal_stream(fd: BorrowedFd<'_>, journal_stream: Option<&str>) -> bool {
    let Some((device, inode)) = journal_stream.and_then(|value| value.split_once(':')) else {
        return false;
    };
    let (Ok(device), Ok(inode)) = (device.parse::<u64>(), inode.parse::<u64>()) else {
        return false;
    };
    let Ok(metadata) = fd.try_clone_to_owned().and_then(|owned| File::from(owned).metadata())
    else {
        return false;
    };
    (metadata.dev(), metadata.ino()) == (device, inode)
}
