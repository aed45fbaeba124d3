//! File systems of every kind, made by a current mkfs.btrfs, mounted and filled on this kernel,
//! and read whole: every extent and reference that our reader finds equals what
//! `btrfs inspect-internal dump-tree -t extent` prints. Then devices are damaged or taken away,
//! and it must still be so.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    Outcome, Place,
    compare::superblock,
    oracle::{self, Extents},
    progs::Progs,
};
use crate::command::{finish, run, text};

mod cases;
mod damage;
mod file_system;
mod fill;

use cases::{CASES, Case, Making};
use damage::Damage;
use file_system::FileSystem;

/// Length of each device: a balance needs room.
const DEVICE_LEN: u64 = 3 << 30;

/// How long reading one file system may take, unoptimised.
const LIMIT: Duration = Duration::from_mins(2);

/// Differences that an error message shows, at most.
const SHOWN_MAX: usize = 10;

/// How a case ended, besides an error.
enum Ended {
    Exact(String),
    /// mkfs or the kernel refused.
    NotMade(String),
}

/// All of them.
pub(super) fn run_all(place: &Place) -> Result<Outcome> {
    run_cases(place, |_| true)
}

/// Those that stand for the others in the tests.
pub(super) fn run_quick(place: &Place) -> Result<Outcome> {
    run_cases(place, |case| case.is_quick)
}

fn run_cases(place: &Place, is_wanted: impl Fn(&Case) -> bool) -> Result<Outcome> {
    if place.has_device() {
        return Ok(Outcome::Skipped("a VM has neither disks enough nor a current mkfs".to_owned()));
    }
    let monitor = place.monitor.clone();
    let corpus = Corpus { progs: Progs::fetch(place.dir())?, monitor };
    println!("{}", corpus.progs.run("btrfs", &["--version"])?.lines().next().unwrap_or_default());
    let (mut failed, mut not_made) = (Vec::new(), Vec::new());
    for case in CASES.iter().filter(|case| is_wanted(case)) {
        let start = Instant::now();
        let ended = corpus.run(case, place.dir());
        let seconds = start.elapsed().as_secs_f64();
        match ended {
            Ok(Ended::Exact(what)) => println!("{:22} {seconds:5.1} s  exact: {what}", case.name),
            Ok(Ended::NotMade(why)) => {
                println!("{:22} {seconds:5.1} s  not made", case.name);
                not_made.push(format!("{}: {why}", case.name));
            }
            Err(error) => {
                println!("{:22} {seconds:5.1} s  FAILED: {error:#}", case.name);
                failed.push(case.name);
            }
        }
    }
    if !not_made.is_empty() {
        println!("could not be made:\n  {}", not_made.join("\n  "));
    }
    ensure!(failed.is_empty(), "not read exactly: {}", failed.join(", "));
    Ok(Outcome::Passed)
}

struct Corpus {
    progs: Progs,
    monitor: PathBuf,
}

/// What our reader found.
struct Found {
    generation: u64,
    extents: Extents,
    /// The devids of devices that failed.
    warnings: Vec<u64>,
}

impl Corpus {
    fn run(&self, case: &Case, dir: &Path) -> Result<Ended> {
        let dir = dir.join(case.name);
        let mut file_system = FileSystem::new(dir.clone(), case.devices, DEVICE_LEN)?;
        if let Err(why) = self.make(case, &mut file_system)? {
            return Ok(Ended::NotMade(why));
        }
        // By the seed it is the seed's file system that is read.
        let seeds = usize::from(case.making == Making::Sprouted);
        let named: Vec<String> =
            file_system.devices()?.into_iter().skip(seeds).map(str::to_owned).collect();
        let (generation, expected) = self.dump(named.first().context("no device")?)?;
        let compare = |found: &Found| compare(&expected, generation, found);
        for named in &named {
            let found = self.read(&[named], &dir)?;
            compare(&found).with_context(|| format!("read by {named}"))?;
            let behind: &[u64] = if case.making == Making::SecondBehind { &[2] } else { &[] };
            let is_blamed = |devid: &u64| !behind.contains(devid);
            let blamed = found.warnings.iter().filter(|devid| is_blamed(devid)).count();
            ensure!(blamed == 0, "nothing is wrong, and yet: {:?}", found.warnings);
        }
        if case.making == Making::Images {
            self.read_images(&mut file_system, &dir, compare)?;
        }
        let mut noticed = 0;
        for &damage in case.damage {
            let found = self.read_damaged(damage, &mut file_system, &dir)?;
            compare(&found).with_context(|| format!("with {damage:?}"))?;
            noticed += usize::from(!found.warnings.is_empty());
        }
        // A copy that is not needed is not read.
        ensure!(noticed > 0 || case.damage.is_empty(), "no damage was noticed");
        let refs: usize = expected.values().map(|extent| extent.refs.len()).sum();
        let damaged = case.damage.len();
        Ok(Ended::Exact(format!(
            "{} extents, {refs} refs, generation {generation}; damaged {damaged} times, noticed \
             {noticed} times",
            expected.len()
        )))
    }

    /// Makes and fills it; it is not mounted afterwards. The inner error is why it cannot be had.
    fn make(&self, case: &Case, file_system: &mut FileSystem) -> Result<Result<(), String>> {
        let mut args = vec!["-q", "-f"];
        args.extend(case.mkfs);
        let files = file_system.mount_point();
        if case.making == Making::RootDir {
            for number in 0..2000 {
                fs::write(files.join(format!("file{number}")), vec![1; 4096 + number * 7])?;
            }
            args.extend(["--rootdir", text(&files)?]);
        }
        args.extend(file_system.devices()?);
        if let Err(why) = self.progs.try_run("mkfs.btrfs", &args)? {
            return Ok(Err(format!("mkfs.btrfs: {why}")));
        }
        if case.making == Making::RootDir {
            return Ok(Ok(()));
        }
        if let Err(error) = file_system.mount(case.mount) {
            return Ok(Err(format!("{error:#}")));
        }
        let mount_point = file_system.mount_point();
        let mount_name = text(&mount_point)?;
        if let Making::FilledAfter(args) = case.making {
            self.progs.run("btrfs", &[args, &[mount_name]].concat())?;
        }
        let balance = case.making != Making::FilledWithoutBalance;
        fill::fill(&self.progs, &mount_point, balance)?;
        self.finish_making(case.making, file_system)?;
        file_system.unmount()?;
        if let Making::Renamed(how) = case.making {
            let device = file_system.devices()?[0].to_owned();
            self.progs.run("btrfstune", &["-f", how, &device])?;
        }
        Ok(Ok(()))
    }

    /// What is done to it once it is filled.
    fn finish_making(&self, making: Making, file_system: &mut FileSystem) -> Result<()> {
        let mount_point = file_system.mount_point();
        let mount_name = text(&mount_point)?;
        let btrfs = |args: &[&str]| self.progs.run("btrfs", args).map(drop);
        let change = |name: &str| fs::write(mount_point.join(name), [9; 9000]);
        match making {
            Making::PartlyConverted(profile) => {
                let filter = format!("-mconvert={profile},limit=1");
                btrfs(&["balance", "start", &filter, mount_name])
            }
            Making::Sprouted => {
                file_system.unmount()?;
                let seed = file_system.devices()?[0].to_owned();
                self.progs.run("btrfstune", &["-f", "-S", "1", &seed])?;
                file_system.mount("ro")?;
                file_system.add_device(DEVICE_LEN)?;
                let sprout = file_system.devices()?[1].to_owned();
                btrfs(&["device", "add", "-f", &sprout, mount_name])?;
                run("mount", &["-o", "remount,rw", mount_name])?;
                for number in 0..50 {
                    change(&format!("of-the-sprout{number}"))?;
                }
                Ok(())
            }
            Making::SecondBehind => {
                file_system.unmount()?;
                let (image, old) =
                    (file_system.image(1), file_system.image(1).with_extension("old"));
                run("cp", &["--sparse=always", text(&image)?, text(&old)?])?;
                file_system.mount("")?;
                for number in 0..200 {
                    change(&format!("without-the-second{number}"))?;
                }
                file_system.unmount()?;
                file_system.detach(1)?;
                fs::rename(old, image)?;
                file_system.attach(1)
            }
            Making::FirstDeviceRemoved => {
                file_system.add_device(DEVICE_LEN)?;
                let devices: Vec<String> =
                    file_system.devices()?.into_iter().map(str::to_owned).collect();
                btrfs(&["device", "add", "-f", &devices[2], mount_name])?;
                btrfs(&["device", "remove", &devices[0], mount_name])?;
                file_system.detach(0)
            }
            Making::Replaced => {
                file_system.add_device(DEVICE_LEN)?;
                let target = file_system.devices()?[2].to_owned();
                btrfs(&["replace", "start", "-B", "-f", "2", &target, mount_name])?;
                file_system.detach(1)
            }
            _ => Ok(()),
        }
    }

    /// Generation and extents, as btrfs-progs has them.
    fn dump(&self, device: &str) -> Result<(u64, Extents)> {
        run("blockdev", &["--flushbufs", device])?;
        let superblock = superblock(Path::new(device))?;
        let args = ["inspect-internal", "dump-tree", "-t", "extent", device];
        let dump = self.progs.run("btrfs", &args)?;
        let extents = oracle::parse_dump_tree(&dump, superblock.node_len_bytes)?;
        Ok((superblock.generation, extents))
    }

    /// The same, as our reader has it.
    fn read(&self, paths: &[&str], dir: &Path) -> Result<Found> {
        let dump = dir.join("dump");
        let mut command = Command::new(&self.monitor);
        command.args(["check", "--json", "--dump", text(&dump)?]).args(paths);
        let done = finish(&mut command, LIMIT)?;
        let said = || format!("{} {}", done.stdout.trim(), done.stderr.trim());
        ensure!(done.status.success(), "`check` ended with {}: {}", done.status, said());
        let mut warnings = Vec::new();
        for line in done.stdout.lines() {
            let report: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            match report["type"].as_str() {
                Some("mirror_failed") => warnings.push(report["devid"].as_u64().context("devid")?),
                Some("check") => {}
                _ => bail!("of a sound file system `check` says: {line}"),
            }
        }
        let ledger = oracle::parse_ledger(&fs::read_to_string(&dump)?)?;
        Ok(Found { generation: ledger.generation, extents: ledger.extents, warnings })
    }

    /// By the image files, with no loop device that could be found instead.
    fn read_images(
        &self,
        file_system: &mut FileSystem,
        dir: &Path,
        compare: impl Fn(&Found) -> Result<()>,
    ) -> Result<()> {
        let images: Vec<_> =
            (0..file_system.loops.len()).map(|index| file_system.image(index)).collect();
        for index in 0..images.len() {
            file_system.detach(index)?;
        }
        let names = images.iter().map(|image| text(image)).collect::<Result<Vec<_>>>()?;
        compare(&self.read(&names, dir)?).context("read by its images")?;
        // All but one are missing.
        let found = self.read(&names[1..2], dir)?;
        compare(&found).context("read by one of its images")?;
        ensure!(!found.warnings.is_empty(), "the missing images were not noticed");
        Ok(())
    }

    /// Damages a copy of the images and reads by the last device that is left; each damaged device
    /// must be named, once, and no other.
    fn read_damaged(
        &self,
        damage: &[Damage],
        file_system: &mut FileSystem,
        dir: &Path,
    ) -> Result<Found> {
        let count = file_system.loops.len();
        let attached: Vec<bool> = file_system.loops.iter().map(Option::is_some).collect();
        let kept = |file_system: &FileSystem, index: usize| {
            file_system.image(index).with_extension("kept")
        };
        for index in 0..count {
            let image = file_system.image(index);
            run("cp", &["--sparse=always", text(&image)?, text(&kept(file_system, index))?])?;
        }
        let device = file_system.devices()?[0].to_owned();
        let args = ["inspect-internal", "dump-tree", "-t", "chunk", &device];
        let chunks = self.progs.run("btrfs", &args)?;
        damage.iter().try_for_each(|damage| damage.inflict(&chunks, file_system))?;
        let unharmed = |devid: usize| {
            let damage = damage.iter().find(|damage| usize::try_from(damage.devid()) == Ok(devid));
            damage.is_none_or(|damage| count == 1 && matches!(damage, Damage::TreeBlocks { .. }))
        };
        let mut named = (1..=count).rev().filter(|&devid| unharmed(devid));
        let named = named.find_map(|devid| file_system.loops[devid - 1].clone());
        let found = self.read(&[text(&named.context("no device is left to name")?)?], dir);
        for (index, was_attached) in attached.into_iter().enumerate() {
            file_system.detach(index)?;
            fs::rename(kept(file_system, index), file_system.image(index))?;
            if was_attached {
                file_system.attach(index)?;
            }
        }
        let found = found.with_context(|| format!("{damage:?}"))?;
        for (index, devid) in found.warnings.iter().enumerate() {
            let was_harmed = damage.iter().any(|damage| damage.devid() == *devid);
            ensure!(was_harmed, "{damage:?}, and device {devid} is blamed");
            ensure!(!found.warnings[..index].contains(devid), "device {devid} was told twice");
        }
        Ok(found)
    }
}

fn compare(expected: &Extents, generation: u64, found: &Found) -> Result<()> {
    ensure!(
        found.generation == generation,
        "read at generation {}, and the superblock's is {generation}",
        found.generation
    );
    let differences = oracle::differences(expected, &found.extents);
    let shown = &differences[..differences.len().min(SHOWN_MAX)];
    let count = differences.len();
    ensure!(count == 0, "{count} of {} extents differ:\n  {}", expected.len(), shown.join("\n  "));
    Ok(())
}
