//! All devices of a file system, found when they are asked for.
//!
//! A mounted file system's are those that sysfs names, and no others: what else has the same
//! fsid is a clone, or was left behind. Of one that is not mounted they are searched among the
//! images that the user named and all block devices, by what their superblocks say.
//!
//! Devices come and go, and their numbers are given again. So what was found is looked at again
//! every second.
//!
//! The device that the user named is not always the one whose superblock counts: a file system may
//! be mounted by a device that is stacked on it, or was under it, through which alone it is to be read
//! then; and a seed keeps its superblock when it sprouts, while the file system goes on by those of
//! the devices that were added.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use uuid::Uuid;

use super::{member::Member, sysfs};
use crate::{
    btrfs::format::{DeviceItem, Superblock},
    feed::BlockError,
};

/// For how long it is believed which device has which number.
const BELIEVED: Duration = Duration::from_secs(1);

/// How long a mount that has begun may take until sysfs shows it.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);

/// How often it is looked for meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The devices of one file system.
#[derive(Debug)]
pub struct Members {
    named: Arc<Member>,
    /// What the named device was stacked on when it was opened, by the kernel's names.
    below: Vec<String>,
    /// What the user named besides.
    others: Vec<Arc<Member>>,
    /// Where btrfs shows its mounted file systems.
    sysfs: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By device id: what was found, or that nothing was, and when.
    found: BTreeMap<u64, (Option<Arc<Member>>, Instant)>,
    /// How often all that was found was let go.
    times_let_go: u64,
    /// What the superblock of the named device said last.
    named: Option<Superblock>,
    /// What the chunk tree says of the devices.
    items: BTreeMap<u64, DeviceItem>,
    /// The fsid of the named device and the kernel's names of others that have it, when all were
    /// searched last.
    scanned: Option<(Uuid, Vec<String>)>,
    /// The kernel's names of what is stacked on the named device, and when that was looked up.
    stacked: Option<(Vec<String>, Instant)>,
}

impl Members {
    /// Opens the device or image that the user named; `others` are images or devices of the same
    /// file system, which need not be named if they are block devices.
    ///
    /// # Errors
    ///
    /// The path that cannot be opened, and why.
    pub fn open(named: &Path, others: &[PathBuf]) -> Result<Self, (PathBuf, io::Error)> {
        let open = |path: &Path| match Member::open(path) {
            Ok(member) => Ok(Arc::new(member)),
            Err(error) => Err((path.to_owned(), error)),
        };
        let named = open(named)?;
        let kname = named.rdev().and_then(|rdev| sysfs::kernel_name(rdev).ok());
        Ok(Self {
            named,
            below: kname.as_deref().map(sysfs::same_below).unwrap_or_default(),
            others: others.iter().map(|path| open(path)).collect::<Result<_, _>>()?,
            sysfs: PathBuf::from(sysfs::BTRFS),
            known: Mutex::default(),
        })
    }

    /// Reads by the device that was written last, whichever the user named: one that was away for a
    /// while is behind (kernel: `open_fs_devices` takes the one with the highest generation).
    pub(super) fn prefer_newest(&mut self) {
        let Some(named) = self.named.superblock().filter(|named| named.num_devices > 1) else {
            return;
        };
        let found = self.block_devices().into_iter();
        let found = found.filter_map(|(_, kname)| open_block_device(&kname).map(Arc::new));
        let others = self.others.iter().cloned().chain(found);
        let newer = |member: Arc<Member>| {
            let superblock = member.superblock().filter(|it| it.fsid == named.fsid)?;
            (superblock.generation > named.generation).then_some((superblock.generation, member))
        };
        if let Some((_, newest)) = others.filter_map(newer).max_by_key(|newer| newer.0) {
            let (behind, path) = (self.named.path().display(), newest.path().display());
            tracing::warn!("{behind} is behind {path}: its file system was written without it");
            self.named = newest;
        }
    }

    /// The one that the user named.
    pub fn named(&self) -> &Member {
        &self.named
    }

    /// Takes in what the chunk tree says of the devices: only so can those of a seed be told by
    /// their superblocks, which are of another file system.
    pub fn expect(&self, items: &BTreeMap<u64, DeviceItem>) {
        let mut known = self.lock();
        if known.items != *items {
            known.items.clone_from(items);
            known.found.clear();
        }
    }

    /// The file system is unmounted: a device that is held open cannot be removed, as those of
    /// device-mapper are between two mounts.
    pub(super) fn let_go(&self) {
        let mut known = self.lock();
        known.found.clear();
        known.times_let_go += 1;
    }

    /// The device whose superblock is the file system's: the one that the user named, but for what
    /// is stacked on it and what has sprouted from it, as far as sysfs shows the mount.
    pub(super) fn current(&self) -> Arc<Member> {
        let elsewhere = || Self::current_in(&self.mounted_dir()?);
        let current = if self.may_be_elsewhere() { elsewhere() } else { None };
        current.unwrap_or_else(|| Arc::clone(&self.named))
    }

    /// Waits until sysfs shows the mount that has begun, where it matters to [`Members::current`].
    /// False if it did not within two seconds.
    pub(super) fn wait_until_shown(&self) -> bool {
        let end = Instant::now() + SHOWN_WITHIN;
        while self.may_be_elsewhere() && self.mounted_dir().is_none() {
            if Instant::now() > end {
                return false;
            }
            thread::sleep(LOOK_EVERY);
        }
        true
    }

    /// Whether only sysfs can tell by which device the file system is mounted.
    fn may_be_elsewhere(&self) -> bool {
        !self.stacked().is_empty() || self.named.superblock().is_some_and(|it| it.is_seed())
    }

    /// The device of a mounted file system that has its superblock.
    fn current_in(dir: &Path) -> Option<Arc<Member>> {
        let fsid = dir.file_name()?.to_str()?;
        let mut devices = sysfs::devices_of_mounted(dir);
        // Mounted under another fsid than that on disk (`temp_fsid`), it has only one.
        if devices.len() == 1 {
            return open_block_device(&devices.remove(0)).map(Arc::new);
        }
        let has_it = |it: Superblock| it.fsid.to_string() == fsid;
        let mut members = devices.iter().filter_map(|kname| open_block_device(kname));
        members.find(|member| member.superblock().is_some_and(has_it)).map(Arc::new)
    }

    /// The kernel's names of what is stacked on the named device, or was under it.
    pub(super) fn stacked(&self) -> Vec<String> {
        let mut known = self.lock();
        let now = Instant::now();
        match &known.stacked {
            Some((stacked, at)) if now.duration_since(*at) < BELIEVED => stacked.clone(),
            _ => {
                let kname = self.kname();
                let on = |it: &String| sysfs::stacked_on(it);
                let above = kname.iter().chain(&self.below).flat_map(on);
                let mut stacked: Vec<String> = above.chain(self.below.iter().cloned()).collect();
                stacked.retain(|it| Some(it) != kname.as_ref());
                stacked.sort_unstable();
                stacked.dedup();
                known.stacked = Some((stacked.clone(), now));
                stacked
            }
        }
    }

    fn kname(&self) -> Option<String> {
        sysfs::kernel_name(self.named.rdev()?).ok()
    }

    /// Reads a part of the device with a btrfs device id; 0 is the one that has the superblock.
    ///
    /// # Errors
    ///
    /// [`BlockError::NoDevice`] if there is no such device, or as [`Member::read`] has it.
    pub fn read(&self, devid: u64, offset: u64, len_bytes: u32) -> Result<Bytes, BlockError> {
        self.member(devid)?.read(offset, len_bytes)
    }

    /// The device with a btrfs device id.
    ///
    /// # Errors
    ///
    /// [`BlockError::NoDevice`].
    pub fn member(&self, devid: u64) -> Result<Arc<Member>, BlockError> {
        if devid == 0 {
            return Ok(self.current());
        }
        // What was found, or that nothing was, not long ago.
        let believed = match self.lock().found.get(&devid) {
            Some((found, at)) if at.elapsed() < BELIEVED => Some(found.clone()),
            _ => None,
        };
        let found = believed.unwrap_or_else(|| self.find(devid));
        found.ok_or(BlockError::NoDevice { devid })
    }

    /// Reads devices, which may take its time: what is known is not locked meanwhile.
    fn find(&self, devid: u64) -> Option<Arc<Member>> {
        let dir = self.mounted_dir();
        let named = self.named.superblock();
        let (named, item, times_let_go) = {
            let mut known = self.lock();
            // One that is gone by now has said which file system it is about.
            known.named = named.or_else(|| known.named.take());
            (known.named.clone(), known.items.get(&devid).copied(), known.times_let_go)
        };
        let found = self.search(devid, dir.as_deref(), named.as_ref(), item.as_ref());
        let mut known = self.lock();
        // By now the chunk tree may say something else of it, and the file system may be unmounted.
        if known.items.get(&devid) == item.as_ref() && known.times_let_go == times_let_go {
            known.found.insert(devid, (found.clone(), Instant::now()));
        }
        found
    }

    /// All block devices that the file system has, as far as they can be found: numbers as user
    /// space writes them, with the kernel's names. Where it is not mounted all devices are
    /// searched, once; after that only those that were found are looked at, until another file
    /// system is made.
    pub(super) fn block_devices(&self) -> Vec<(u64, String)> {
        let mut all: Vec<_> = self.named.rdev().zip(self.kname()).into_iter().collect();
        all.extend(self.stacked().into_iter().filter_map(numbered));
        if let Some(dir) = self.mounted_dir() {
            all.extend(sysfs::devices_of_mounted(&dir).into_iter().filter_map(numbered));
        } else if let Some(named) = self.named.superblock().filter(|it| it.num_devices > 1) {
            let scanned = self.lock().scanned.clone();
            let candidates = match scanned {
                Some((fsid, devices)) if fsid == named.fsid => devices,
                _ => sysfs::unstacked_devices(),
            };
            let is_same = |kname: &String| {
                let superblock = open_block_device(kname).and_then(|member| member.superblock());
                superblock.is_some_and(|it| it.fsid == named.fsid && it.device != named.device)
            };
            let found: Vec<String> = candidates.into_iter().filter(is_same).collect();
            all.extend(found.iter().cloned().filter_map(numbered));
            self.lock().scanned = Some((named.fsid, found));
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // What is known is right whatever has become of another thread.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mounted_dir(&self) -> Option<PathBuf> {
        self.mounted_dir_in(&self.sysfs)
    }

    /// The directory under `btrfs` of the mounted file system that the device is of, or what is
    /// stacked on it.
    pub(super) fn mounted_dir_in(&self, btrfs: &Path) -> Option<PathBuf> {
        let knames = self.kname().into_iter().chain(self.stacked());
        knames.into_iter().find_map(|kname| sysfs::mounted_dir(btrfs, &kname))
    }

    fn search(
        &self,
        devid: u64,
        dir: Option<&Path>,
        named: Option<&Superblock>,
        item: Option<&DeviceItem>,
    ) -> Option<Arc<Member>> {
        let devices = dir.map(sysfs::devices_of_mounted);
        // Not where the mount is by what is stacked on it.
        let is_own = |devices: &Vec<String>| self.kname().is_some_and(|it| devices.contains(&it));
        let is_there = devices.as_ref().is_none_or(is_own);
        if is_there && named.is_some_and(|named| named.device.devid == devid) {
            return Some(Arc::clone(&self.named));
        }
        if let Some(devices) = devices {
            let mut members = devices.iter().filter_map(|kname| open_block_device(kname));
            let is_it = |it: Superblock| it.device.devid == devid;
            return members.find(|member| member.superblock().is_some_and(is_it)).map(Arc::new);
        }
        // The only device of its file system has no others, but perhaps clones.
        let named = named.filter(|named| named.num_devices > 1)?;
        let is_it = |found: &Superblock| match item {
            Some(item) => found.device.devid == devid && found.device.uuid == item.uuid,
            None => found.device.devid == devid && found.fsid == named.fsid,
        };
        let mut given = self.others.iter().cloned();
        let scanned = sysfs::unstacked_devices().into_iter();
        let scanned = scanned.filter_map(|kname| open_block_device(&kname).map(Arc::new));
        let candidate = |member: Arc<Member>| {
            let superblock = member.superblock().filter(is_it)?;
            Some((superblock.generation, member))
        };
        // What the user names comes first. Else, of several the newest is the one that was in
        // use last.
        let found = given.find_map(candidate);
        let found = found.or_else(|| scanned.filter_map(candidate).max_by_key(|found| found.0));
        found.map(|(_, member)| member)
    }
}

fn open_block_device(kname: &str) -> Option<Member> {
    let member = Member::open(&sysfs::device_path(kname)).ok()?;
    (member.rdev()? == sysfs::device_number(kname)?).then_some(member)
}

fn numbered(kname: String) -> Option<(u64, String)> {
    Some((sysfs::device_number(&kname)?, kname))
}
