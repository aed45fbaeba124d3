//! Reads the extent tree of a file system once, and says what it holds and what is wrong with
//! it.

use std::{
    io::{self, Write},
    ops::Range,
    path::PathBuf,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use crate::{
    agent::{Disks, DisksError},
    btrfs::{
        format::{BlockPointer, ReadFailure},
        objectid,
        reader::{BlockRead, ExtentReader, ReaderError, ReaderStep},
    },
    feed::{BlockAnswer, BlockRequest, FsSlot},
    report::{BadBlock, CheckDump, CheckReporter, Checked},
};

/// Between two words on how far it is.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

/// What to check, and how.
#[derive(Clone, Debug)]
pub struct CheckConfig {
    /// A device of the file system.
    pub device: PathBuf,
    /// Others of the same one; block devices need not be named.
    pub others: Vec<PathBuf>,
    /// Read no more than so many bytes a second.
    pub io_limit_bytes: Option<u64>,
    /// Where every extent is written to.
    pub dump: Option<PathBuf>,
}

/// There can be no check.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The devices cannot be read.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// The dump cannot be written.
    #[error("cannot write the dump {path}: {source}", path = path.display())]
    Dump {
        /// Where to.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A thread cannot be started, or has failed.
    #[error("the thread that reads: {0}")]
    Thread(String),
}

/// Reads and validates; returns the exit status: a mask of 1 (the output failed), 2 (findings)
/// and 4 (not everything could be read).
///
/// A file system that is being written to is read range by range, each as it was at one
/// generation, and nothing is compared over a border between two generations.
///
/// # Errors
///
/// It cannot be begun, or the dump cannot be written.
pub fn check<W: Write>(config: &CheckConfig, reporter: CheckReporter<W>) -> Result<u8, CheckError> {
    let disks = Disks::open(&config.device, &config.others)?;
    let dump = match &config.dump {
        Some(path) => Some(CheckDump::create(path).map_err(|error| dump_error(config, error))?),
        None => None,
    };
    let (to_disks, requests) = mpsc::channel();
    let (to_us, answers) = mpsc::channel();
    thread::scope(|scope| {
        let (disks, limit) = (&disks, config.io_limit_bytes);
        let reads = thread::Builder::new()
            .name("reads".to_owned())
            .spawn_scoped(scope, move || disks.serve(&requests, &to_us, limit))
            .map_err(|error| CheckError::Thread(error.to_string()))?;
        let check = Check {
            config,
            disks,
            reader: ExtentReader::new(0..u64::MAX, 0),
            reporter,
            dump,
            checked: Checked::default(),
            generation: 0,
            complete_upto: 0,
            last_progress: Instant::now(),
        };
        let status = check.run(to_disks, &answers);
        reads.join().map_err(|_| CheckError::Thread("it has failed".to_owned()))??;
        status
    })
}

fn dump_error(config: &CheckConfig, source: io::Error) -> CheckError {
    CheckError::Dump { path: config.dump.clone().unwrap_or_default(), source }
}

/// A check under way.
struct Check<'a, W> {
    config: &'a CheckConfig,
    disks: &'a Disks,
    reader: ExtentReader,
    reporter: CheckReporter<W>,
    dump: Option<CheckDump>,
    checked: Checked,
    /// What is read now.
    generation: u64,
    /// Everything below was told.
    complete_upto: u64,
    last_progress: Instant,
}

impl<W: Write> Check<'_, W> {
    fn run(
        mut self,
        requests: Sender<Vec<BlockRequest>>,
        answers: &Receiver<Vec<BlockAnswer>>,
    ) -> Result<u8, CheckError> {
        loop {
            while let Some(step) = self.reader.next_step() {
                let is_leaf_done = matches!(step, ReaderStep::Complete { .. });
                self.take(step).map_err(|error| dump_error(self.config, error))?;
                // Not only when all that is there has been told: the devices are to have work
                // meanwhile.
                if is_leaf_done {
                    self.ask(&requests);
                }
            }
            self.ask(&requests);
            if self.reader.has_ended() {
                break;
            }
            // It ends before its time if it cannot read at all, which it says itself.
            let Ok(answers) = answers.recv() else { break };
            for answer in answers {
                self.reader.answer(answer.id, answer.data.map_err(ReadFailure::new));
            }
            self.show_progress();
        }
        drop(requests);
        if let Some(dump) = self.dump.take() {
            dump.finish().map_err(|error| dump_error(self.config, error))?;
        }
        Ok(self.reporter.end(&self.checked))
    }

    fn ask(&mut self, requests: &Sender<Vec<BlockRequest>>) {
        let wanted = self.reader.poll_requests();
        if !wanted.is_empty() {
            self.disks.expect(self.reader.devices());
            // Nobody listens only where no answer comes either.
            let _ = requests.send(wanted.into_iter().map(request).collect());
        }
    }

    fn take(&mut self, step: ReaderStep) -> io::Result<()> {
        match step {
            ReaderStep::Extent(extent) => {
                self.checked.tally.add(&extent);
                let dumped = self.dump.as_mut().map_or(Ok(()), |dump| dump.extent(&extent));
                self.reader.reuse(extent);
                return dumped;
            }
            ReaderStep::Finding(finding) => self.reporter.finding(self.generation, &finding),
            ReaderStep::Generation { generation, superblock, .. } => {
                self.generation = generation;
                self.checked.superblock = Some(superblock);
                let device = self.config.device.display().to_string();
                let dump = self.dump.as_mut();
                return dump.map_or(Ok(()), |dump| dump.generation(&device, generation));
            }
            ReaderStep::Complete { upto_bytenr, generation } => {
                self.complete(upto_bytenr, generation);
            }
            ReaderStep::MirrorFailed(fault) => self.reporter.mirror_failed(&fault),
            ReaderStep::Failed(error) => self.failed(&error),
            // Any generation will do, and nothing is passed over.
            ReaderStep::TooOld { .. } | ReaderStep::Unchanged { .. } | ReaderStep::Done { .. } => {}
        }
        Ok(())
    }

    fn complete(&mut self, upto: u64, generation: u64) {
        let from = std::mem::replace(&mut self.complete_upto, upto);
        match self.checked.read.last_mut() {
            Some((range, read_at)) if range.end == from && *read_at == generation => {
                range.end = upto;
            }
            _ => self.checked.read.push((from..upto, generation)),
        }
    }

    fn failed(&mut self, error: &ReaderError) {
        let from = self.complete_upto;
        let ReaderError::BadBlock { pointer, faults } = error else {
            self.checked.unread.push(from..u64::MAX);
            self.checked.failed = Some(error.to_string());
            return;
        };
        let bad = BadBlock { generation: self.generation, pointer, faults };
        self.reporter.bad_block(&bad);
        let rest = behind(pointer).unwrap_or(u64::MAX..u64::MAX);
        self.checked.unread.push(from..rest.start);
        self.complete_upto = rest.start;
        if !rest.is_empty() {
            self.reader.restart(rest, 0);
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share between 0 and 1"
    )]
    fn show_progress(&mut self) {
        if self.last_progress.elapsed() < PROGRESS_PERIOD {
            return;
        }
        self.last_progress = Instant::now();
        let permille = (self.reader.progress() * 1000.0) as u32;
        self.reporter.reached(permille, self.checked.tally.extents());
    }
}

/// What can be read without a block that is bad: the extents that begin behind its last
/// possible key. Where that lies within the items of an extent, the rest of them are of no use.
fn behind(pointer: &BlockPointer) -> Option<Range<u64>> {
    let end = pointer.end_key.filter(|_| pointer.tree == objectid::EXTENT_TREE)?;
    Some(end.objectid.checked_add(1)?..u64::MAX)
}

fn request(read: BlockRead) -> BlockRequest {
    let BlockRead { id, devid, offset, len_bytes } = read;
    BlockRequest { fs: FsSlot(0), id, devid, offset, len_bytes }
}
