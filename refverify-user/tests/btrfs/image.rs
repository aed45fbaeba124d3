//! Images of file systems: made by mkfs, held in memory, read by the reader.

use std::{
    collections::VecDeque,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
};

use bytes::Bytes;
use refverify_user::btrfs::{
    DiskExtent,
    checks::DiskFinding,
    format::{ReadFailure, SUPERBLOCK_OFFSET, Superblock},
    reader::{BlockRead, ExtentReader, MirrorFault, ReaderError, ReaderStep},
};

use crate::dump_tree;

/// All bytenrs.
pub(crate) const ALL: Range<u64> = 0..u64::MAX;

/// Runs a command and gives its output.
///
/// # Panics
///
/// With everything it printed, if it fails.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

/// An image file in a directory of its own, which goes with it.
pub(crate) struct ImageFile {
    dir: tempfile::TempDir,
}

impl ImageFile {
    /// A sparse file of so many bytes.
    pub(crate) fn new(len_bytes: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = std::fs::File::create(dir.path().join("image")).expect("an image file");
        file.set_len(len_bytes).expect("a sparse image file");
        Self { dir }
    }

    /// A file system made by mkfs, with the files of a directory in it.
    pub(crate) fn mkfs(len_bytes: u64, options: &[&str], files: Option<&Path>) -> Self {
        let image = Self::new(len_bytes);
        let path = image.path();
        let mut args = vec!["-q", "-f"];
        args.extend(options);
        if let Some(files) = files {
            args.extend(["--rootdir", files.to_str().expect("a UTF-8 path")]);
        }
        args.push(path.to_str().expect("a UTF-8 path"));
        run("mkfs.btrfs", &args);
        image
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What is in it now.
    pub(crate) fn load(&self) -> Image {
        Image { bytes: std::fs::read(self.path()).expect("the image can be read").into() }
    }

    /// What btrfs-progs says is in its extent tree.
    pub(crate) fn dumped_extents(&self) -> Vec<DiskExtent> {
        let path = self.path();
        let args = ["inspect-internal", "dump-tree", "-t", "extent", path.to_str().expect("UTF-8")];
        let nodesize = self.load().superblock().nodesize;
        dump_tree::parse(&run("btrfs", &args), nodesize.into()).expect("dump-tree is understood")
    }
}

/// The bytes of a device.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) bytes: Bytes,
}

impl Image {
    pub(crate) fn superblock(&self) -> Superblock {
        let at = usize::try_from(SUPERBLOCK_OFFSET).expect("small");
        Superblock::parse(&self.bytes[at..]).expect("a superblock")
    }

    pub(crate) fn read(&self, read: &BlockRead) -> Result<Bytes, ReadFailure> {
        let start = usize::try_from(read.offset).map_err(ReadFailure::new)?;
        let end = start.saturating_add(read.len_bytes as usize);
        if end > self.bytes.len() {
            return Err(ReadFailure::new("beyond the end"));
        }
        Ok(self.bytes.slice(start..end))
    }
}

/// What a reader told, taken apart.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Told {
    pub(crate) extents: Vec<DiskExtent>,
    pub(crate) findings: Vec<DiskFinding>,
    /// Generation and where it began.
    pub(crate) generations: Vec<(u64, u64)>,
    pub(crate) failed_mirrors: Vec<MirrorFault>,
    pub(crate) failed: Option<ReaderError>,
    pub(crate) too_old: Option<u64>,
    pub(crate) done: Option<u64>,
    /// What was complete, and at which generation.
    pub(crate) ranges: Vec<(Range<u64>, u64)>,
    /// What was passed over, and at which generation.
    pub(crate) unchanged: Vec<(Range<u64>, u64)>,
    /// Reads that were answered.
    pub(crate) reads: u64,
}

/// No test needs more reads; a reader that wants them does not end.
const READS_MAX: u64 = 50_000;

/// Drives a reader to its end; the oldest and the newest request are answered in turn, so that
/// answers come out of order. The rules of what a reader tells are checked on the way.
pub(crate) fn drive(
    reader: &mut ExtentReader,
    device: impl FnMut(&BlockRead) -> Result<Bytes, ReadFailure>,
) -> Told {
    drive_moving(reader, u64::MAX, device)
}

/// The same, and asks the reader to move on every so many reads.
pub(crate) fn drive_moving(
    reader: &mut ExtentReader,
    move_on_every: u64,
    mut device: impl FnMut(&BlockRead) -> Result<Bytes, ReadFailure>,
) -> Told {
    let mut told = Told::default();
    let mut wanted = VecDeque::new();
    loop {
        while let Some(step) = reader.next_step() {
            check_step(&step, &told);
            // Given back at once, so that the next extents take its memory.
            if let ReaderStep::Extent(extent) = &step {
                reader.reuse(extent.clone());
            }
            take_step(step, &mut told);
        }
        wanted.extend(reader.poll_requests());
        let next = if told.reads % 2 == 0 { wanted.pop_front() } else { wanted.pop_back() };
        let Some(read) = next else { break };
        told.reads += 1;
        assert!(told.reads <= READS_MAX, "the reader does not end");
        if told.reads.is_multiple_of(move_on_every) {
            reader.move_on();
        }
        reader.answer(read.id, device(&read));
    }
    assert!(told.done.is_some() || told.failed.is_some() || told.too_old.is_some(), "got stuck");
    told
}

fn take_step(step: ReaderStep, told: &mut Told) {
    match step {
        ReaderStep::Extent(extent) => told.extents.push(extent),
        ReaderStep::Finding(finding) => told.findings.push(finding),
        ReaderStep::Generation { generation, from_bytenr, .. } => {
            told.generations.push((generation, from_bytenr));
        }
        ReaderStep::Complete { upto_bytenr, generation } => {
            let from = told.complete_upto().unwrap_or(told.generations[0].1);
            told.ranges.push((from..upto_bytenr, generation));
        }
        ReaderStep::Unchanged { range, generation } => told.unchanged.push((range, generation)),
        ReaderStep::MirrorFailed(fault) => told.failed_mirrors.push(*fault),
        ReaderStep::TooOld { generation } => told.too_old = Some(generation),
        ReaderStep::Failed(error) => told.failed = Some(*error),
        ReaderStep::Done { generation } => told.done = Some(generation),
    }
}

impl Told {
    fn complete_upto(&self) -> Option<u64> {
        let last = |ranges: &[(Range<u64>, u64)]| ranges.last().map(|(range, _)| range.end);
        last(&self.ranges).max(last(&self.unchanged))
    }
}

fn check_step(step: &ReaderStep, told: &Told) {
    let complete_upto = told.complete_upto();
    assert!(told.done.is_none() && told.failed.is_none(), "{step:?} after the end");
    match step {
        ReaderStep::Extent(extent) => {
            let last = told.extents.last().map(|extent| extent.bytenr);
            assert!(last < Some(extent.bytenr), "{} after {last:?}", extent.bytenr);
            assert!(complete_upto <= Some(extent.bytenr), "{} was complete", extent.bytenr);
        }
        ReaderStep::Generation { generation, from_bytenr, .. } => {
            let last = told.generations.last();
            assert!(last.is_none_or(|(last, _)| last < generation), "{generation} after {last:?}");
            let upto = complete_upto.unwrap_or(*from_bytenr);
            assert_eq!(upto, *from_bytenr, "a gap or overlap between generations");
            let last = told.extents.last().map(|extent| extent.bytenr);
            assert!(last < Some(*from_bytenr) || last.is_none(), "{last:?} will be told twice");
        }
        ReaderStep::Complete { upto_bytenr, generation } => {
            assert!(complete_upto < Some(*upto_bytenr));
            assert_eq!(told.generations.last().map(|(last, _)| last), Some(generation));
            let last = told.extents.last().map(|extent| extent.bytenr);
            assert!(last < Some(*upto_bytenr));
        }
        ReaderStep::Unchanged { range, generation } => {
            assert!(range.start < range.end);
            let upto = complete_upto.unwrap_or(told.generations[0].1);
            assert_eq!(upto, range.start, "a gap before what is unchanged, or told before");
            assert_eq!(told.generations.last().map(|(last, _)| last), Some(generation));
            assert!(told.extents.last().is_none_or(|extent| extent.bytenr < range.start));
        }
        _ => {}
    }
}

/// Reads the whole extent tree of an image that does not change.
pub(crate) fn read_all(image: &Image) -> Told {
    drive(&mut ExtentReader::new(ALL, 0), |read| image.read(read))
}
