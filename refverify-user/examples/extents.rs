//! Prints every extent and reference of a file system that does not change, as a ledger dump
//! (`docs/ledger-dump.md`): what the reader has found, to be held against what others find.
//!
//! `extents DEVICE [OTHER...]`, where each is a block device or an image. What is wrong on disk,
//! and which device failed, goes to stderr.

use std::{
    collections::{BTreeMap, VecDeque},
    env,
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use refverify_user::{
    agent::Members,
    btrfs::{
        DiskExtent, ExtentKind, RefKey,
        format::ReadFailure,
        reader::{BlockRead, ExtentReader, ReaderStep},
    },
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut paths = env::args_os().skip(1).map(PathBuf::from);
    let named = paths.next().ok_or("usage: extents DEVICE [OTHER...]")?;
    let others: Vec<_> = paths.collect();
    let members = Members::open(&named, &others)
        .map_err(|(path, error)| format!("cannot open {}: {error}", path.display()))?;
    let mut out = BufWriter::new(io::stdout().lock());
    let written = read(&members, |line| writeln!(out, "{line}"))?;
    written.and_then(|()| out.flush()).map_err(|error| format!("cannot write: {error}"))
}

/// Reads to the end; the outer error is the reader's, the inner one that of `write`.
fn read(
    members: &Members,
    mut write: impl FnMut(String) -> io::Result<()>,
) -> Result<io::Result<()>, String> {
    let mut reader = ExtentReader::new(0..u64::MAX, 0);
    let mut wanted: VecDeque<BlockRead> = VecDeque::new();
    loop {
        while let Some(step) = reader.next_step() {
            let written = match step {
                ReaderStep::Generation { generation, .. } => {
                    let path = members.named().path().display();
                    write(format!("fs 0 device {path} state live generation {generation}"))
                }
                ReaderStep::Extent(extent) => lines(&extent).into_iter().try_for_each(&mut write),
                ReaderStep::Finding(finding) => {
                    eprintln!("finding: {finding}");
                    Ok(())
                }
                ReaderStep::MirrorFailed(fault) => {
                    eprintln!("warning: {fault}");
                    Ok(())
                }
                ReaderStep::Complete { .. } => Ok(()),
                ReaderStep::TooOld { .. } => return Err("the superblock went back".to_owned()),
                ReaderStep::Failed(error) => return Err(error.to_string()),
                ReaderStep::Done { .. } => return Ok(write("end".to_owned())),
            };
            if written.is_err() {
                return Ok(written);
            }
        }
        members.expect(reader.devices());
        wanted.extend(reader.poll_requests());
        let BlockRead { id, devid, offset, len_bytes } =
            wanted.pop_front().ok_or("the reader wants nothing and is not done")?;
        reader.answer(id, members.read(devid, offset, len_bytes).map_err(ReadFailure::new));
    }
}

fn lines(extent: &DiskExtent) -> Vec<String> {
    let DiskExtent { bytenr, len_bytes, kind, total_refs, .. } = extent;
    let kind = match kind {
        ExtentKind::Data => "data".to_owned(),
        ExtentKind::TreeBlock { level } => format!("tree level {level}"),
    };
    let mut lines = vec![format!("extent {bytenr} len {len_bytes} {kind} refs {total_refs}")];
    let mut refs: BTreeMap<RefKey, u64> = BTreeMap::new();
    for (key, count) in &extent.refs {
        *refs.entry(*key).or_default() += u64::from(*count);
    }
    lines.extend(refs.into_iter().map(|(key, count)| {
        let RefKey { root, parent, owner, offset } = key;
        format!("ref root {root} parent {parent} owner {owner} offset {offset} count {count}")
    }));
    lines
}
