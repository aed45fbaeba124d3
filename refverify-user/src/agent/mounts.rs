//! Which of the watched file systems are mounted.
//!
//! Hooks tell of mounts and unmounts in the order of the ring buffer; sysfs tells of what was
//! mounted before the hooks were live, and of what they missed. A device is matched by its
//! name under `/sys/fs/btrfs/<fsid>/devices/`, never by the fsid: a clone has the same one,
//! and the kernel may mount it under another (`temp_fsid`). sysfs does not depend on the mount
//! namespace, as mountinfo does.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    chunk_trees::ChunkTrees, decode::Signal, device::Device, sysfs, watched::WatchedDevices,
};
use crate::feed::{FsSlot, HookMode, Loss, LossSource, Mount, ToVerifier};

/// In how many looks at sysfs in a row a file system must be missing to be unmounted: one
/// alone may fall into the middle of a rename.
const ABSENT_LOOKS: u8 = 2;

/// Between two looks for devices that have joined a file system.
const JOINED_EVERY: Duration = Duration::from_secs(1);

/// What is known of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unmounted,
    Mounted(Mounted),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mounted {
    /// The address of its `btrfs_fs_info`, once a hook has shown it.
    fs_info: Option<u64>,
    /// Whether sysfs has shown it: a mount that just began is not there yet.
    in_sysfs: bool,
    absent_looks: u8,
    last_commit: u64,
    last_abort: u64,
}

impl Mounted {
    const fn new(fs_info: Option<u64>, in_sysfs: bool) -> Self {
        Self { fs_info, in_sysfs, absent_looks: 0, last_commit: 0, last_abort: 0 }
    }
}

/// One look at sysfs: for each slot whether it is there.
pub(super) type Look = Vec<bool>;

/// The mounts of all watched devices.
#[derive(Debug)]
pub(super) struct Mounts {
    devices: Arc<[Device]>,
    mode: HookMode,
    states: Vec<State>,
    sysfs: PathBuf,
    /// Where hooks know a file system by it.
    chunk_trees: Option<ChunkTrees>,
    /// The devices that hooks know file systems by.
    watched: Option<WatchedDevices>,
}

impl Mounts {
    /// All slots are unmounted until something says otherwise.
    pub(super) fn new(
        devices: Arc<[Device]>,
        mode: HookMode,
        chunk_trees: Option<ChunkTrees>,
        watched: Option<WatchedDevices>,
    ) -> Self {
        let states = vec![State::Unmounted; devices.len()];
        Self { devices, mode, states, sysfs: PathBuf::from(sysfs::BTRFS), chunk_trees, watched }
    }

    /// Whether events of a slot belong to a mount that the verifier knows of.
    pub(super) fn is_mounted(&self, fs: FsSlot) -> bool {
        matches!(self.state(fs), Some(State::Mounted(_)))
    }

    /// Whether any watched file system is mounted.
    pub(super) fn is_any_mounted(&self) -> bool {
        self.states.iter().any(|state| matches!(state, State::Mounted(_)))
    }

    /// Looks at sysfs. What is seen means something only after the ring buffer has been
    /// drained: hooks fire before sysfs changes, so then they have spoken.
    pub(super) fn look(&self) -> Look {
        (0..).map(FsSlot).zip(self.devices.iter()).map(|(fs, _)| self.is_in_sysfs(fs)).collect()
    }

    fn is_in_sysfs(&self, fs: FsSlot) -> bool {
        self.device(fs).and_then(|device| device.mounted_dir(&self.sysfs)).is_some()
    }

    /// Takes in a look at sysfs, made before the last drain.
    pub(super) fn on_look(&mut self, look: &Look) -> Vec<ToVerifier> {
        let slots = (0..).map(FsSlot).zip(look);
        let mut messages = Vec::new();
        for (fs, &is_there) in slots {
            // Before the generation of an unseen mount is read.
            let loss = self.make_devices_known(fs, JOINED_EVERY);
            messages.extend(loss.map(ToVerifier::Loss));
            messages.extend(self.on_look_at(fs, is_there));
        }
        messages
    }

    /// Makes devices known that have joined a file system: it may be mounted by them next.
    fn make_devices_known(&mut self, fs: FsSlot, period: Duration) -> Option<Loss> {
        let device = usize::try_from(fs.0).ok().and_then(|slot| self.devices.get(slot))?;
        let error = self.watched.as_mut()?.tell(fs.0, device, period).err()?;
        tracing::warn!("not all devices of {} can be watched: {error}", device.path.display());
        Some(Loss { fs: Some(fs), source: LossSource::Unreadable, count: 1 })
    }

    fn on_look_at(&mut self, fs: FsSlot, is_there: bool) -> Vec<ToVerifier> {
        match self.state(fs) {
            // An unmount ends after sysfs has changed: the look may be of before its end.
            Some(State::Unmounted) if is_there && self.is_in_sysfs(fs) => self.on_unseen_mount(fs),
            Some(State::Mounted(mounted)) if is_there => {
                self.set(
                    fs,
                    State::Mounted(Mounted { in_sysfs: true, absent_looks: 0, ..mounted }),
                );
                Vec::new()
            }
            Some(State::Mounted(mounted)) if mounted.in_sysfs => {
                let absent_looks = mounted.absent_looks + 1;
                if absent_looks < ABSENT_LOOKS {
                    self.set(fs, State::Mounted(Mounted { absent_looks, ..mounted }));
                    return Vec::new();
                }
                self.set(fs, State::Unmounted);
                vec![ToVerifier::Unmount { fs }]
            }
            _ => Vec::new(),
        }
    }

    /// sysfs shows a mount that no hook told of: it was there before the hooks, or a record was
    /// lost.
    fn on_unseen_mount(&mut self, fs: FsSlot) -> Vec<ToVerifier> {
        // Before the generation is read: what the hooks do not know yet is older than that.
        let losses = [self.make_devices_known(fs, Duration::ZERO), self.make_known(fs)];
        let mount = self.mount_message(fs, self.running_generation(fs));
        self.set(fs, State::Mounted(Mounted::new(None, true)));
        [mount].into_iter().chain(losses.into_iter().flatten().map(ToVerifier::Loss)).collect()
    }

    /// Makes a file system known to hooks that know it by its chunk tree. What keeps them from it
    /// keeps the extent tree from being read too, and then the verifier says so.
    fn make_known(&mut self, fs: FsSlot) -> Option<Loss> {
        let device = usize::try_from(fs.0).ok().and_then(|slot| self.devices.get(slot))?;
        let error = self.chunk_trees.as_mut()?.tell(fs.0, device).err()?;
        tracing::warn!("the changes of {} cannot be seen: {error}", device.path.display());
        Some(Loss { fs: Some(fs), source: LossSource::Unreadable, count: 1 })
    }

    /// The module is gone, and with it every mount, whether its end was seen or not.
    pub(super) fn all_gone(&mut self) -> Vec<ToVerifier> {
        self.states.fill(State::Unmounted);
        let slots = (0..).map(FsSlot).take(self.states.len());
        slots.map(|fs| ToVerifier::Unmount { fs }).collect()
    }

    /// What a hook's signal means to the verifier: up to two messages, in order.
    pub(super) fn on_signal(&mut self, signal: Signal) -> Vec<ToVerifier> {
        match signal {
            Signal::MountBegins { fs, fs_info } => self.on_begin(fs, fs_info),
            Signal::FsSeen { fs, fs_info } => self.on_seen(fs, fs_info),
            Signal::FsGone { fs, fs_info } => self.on_gone(fs, fs_info),
            Signal::Commit { fs, transid } => self.on_commit(fs, transid),
            Signal::Abort { fs, transid, errno } => self.on_abort(fs, transid, errno),
            Signal::Retraction { fs: Some(fs), tid, errno } if self.is_mounted(fs) => {
                vec![ToVerifier::Retraction { tid, errno }]
            }
            Signal::Retraction { .. } => Vec::new(),
        }
    }

    fn on_begin(&mut self, fs: FsSlot, fs_info: u64) -> Vec<ToVerifier> {
        let first_usable = self.first_usable_of_new_mount(fs);
        self.replace(fs, fs_info, first_usable)
    }

    fn on_seen(&mut self, fs: FsSlot, fs_info: u64) -> Vec<ToVerifier> {
        match self.state(fs) {
            Some(State::Mounted(mounted)) if mounted.fs_info.is_none_or(|it| it == fs_info) => {
                let fs_info = Some(fs_info);
                self.set(fs, State::Mounted(Mounted { fs_info, ..mounted }));
                Vec::new()
            }
            _ => {
                let first_usable = self.running_generation(fs);
                self.replace(fs, fs_info, first_usable)
            }
        }
    }

    /// A new mount on a slot; the one before, if any, ended unseen.
    fn replace(&mut self, fs: FsSlot, fs_info: u64, first_usable: u64) -> Vec<ToVerifier> {
        let mut messages = Vec::new();
        if self.is_mounted(fs) {
            messages.push(ToVerifier::Unmount { fs });
        }
        messages.push(self.mount_message(fs, first_usable));
        self.set(fs, State::Mounted(Mounted::new(Some(fs_info), false)));
        messages
    }

    fn on_gone(&mut self, fs: FsSlot, fs_info: u64) -> Vec<ToVerifier> {
        match self.state(fs) {
            Some(State::Mounted(mounted)) if mounted.fs_info.is_none_or(|it| it == fs_info) => {
                self.set(fs, State::Unmounted);
                vec![ToVerifier::Unmount { fs }]
            }
            _ => Vec::new(),
        }
    }

    /// A tracepoint may fire several times for one commit; it is told once.
    fn on_commit(&mut self, fs: FsSlot, transid: u64) -> Vec<ToVerifier> {
        match self.state(fs) {
            Some(State::Mounted(mounted)) if mounted.last_commit < transid => {
                self.set(fs, State::Mounted(Mounted { last_commit: transid, ..mounted }));
                vec![ToVerifier::Commit { fs, transid }]
            }
            _ => Vec::new(),
        }
    }

    /// An abort is noticed by all who meet it; it is told once for each transaction.
    fn on_abort(&mut self, fs: FsSlot, transid: u64, errno: i32) -> Vec<ToVerifier> {
        match self.state(fs) {
            Some(State::Mounted(mounted)) if mounted.last_abort != transid => {
                self.set(fs, State::Mounted(Mounted { last_abort: transid, ..mounted }));
                vec![ToVerifier::Abort { fs, transid, errno }]
            }
            _ => Vec::new(),
        }
    }

    /// The first usable generation of a mount whose beginning the hooks saw: 0, nothing was
    /// missed. But raw tracepoints do not see what log replay allocates: then it is the
    /// transaction of the replay, the one after the superblock's. Should that be on disk
    /// already, the superblock has no log any more. Where only sysfs tells which superblock it is,
    /// that is waited for; it shows the mount before the log is replayed.
    fn first_usable_of_new_mount(&self, fs: FsSlot) -> u64 {
        if self.mode == HookMode::Kprobes {
            return 0;
        }
        if self.device(fs).is_some_and(|device| !device.members().wait_until_shown()) {
            return u64::MAX;
        }
        match self.device(fs).map(Device::super_state) {
            Some(Ok(Some(state))) if !state.has_log => 0,
            Some(Ok(Some(state))) => state.generation.saturating_add(1),
            _ => self.running_generation(fs),
        }
    }

    /// The generation of the transaction that runs now, or ran last. Read after the hooks are
    /// live, it is the last one of which events may have been missed.
    fn running_generation(&self, fs: FsSlot) -> u64 {
        let Some(device) = self.device(fs) else { return u64::MAX };
        let dir = device.mounted_dir(&self.sysfs);
        if let Some(generation) = dir.and_then(|dir| generation_in(&dir)) {
            return generation;
        }
        // Being unmounted, or no such file (before 5.11): at most two transactions are ahead of
        // the superblock, one that is being written and one that has just begun.
        match device.super_state() {
            Ok(Some(state)) => state.generation.saturating_add(2),
            _ => u64::MAX,
        }
    }

    fn mount_message(&self, fs: FsSlot, first_usable_generation: u64) -> ToVerifier {
        let device = self.device(fs).map(|device| device.path.display().to_string());
        let device = device.unwrap_or_default();
        ToVerifier::Mount(Mount { fs, device, first_usable_generation })
    }

    fn device(&self, fs: FsSlot) -> Option<&Device> {
        self.devices.get(usize::try_from(fs.0).ok()?)
    }

    fn state(&self, fs: FsSlot) -> Option<State> {
        self.states.get(usize::try_from(fs.0).ok()?).copied()
    }

    fn set(&mut self, fs: FsSlot, state: State) {
        if state == State::Unmounted
            && let Some(device) = self.device(fs)
        {
            device.members().let_go();
        }
        let slot = usize::try_from(fs.0).ok().and_then(|slot| self.states.get_mut(slot));
        if let Some(slot) = slot {
            *slot = state;
        }
    }
}

fn generation_in(dir: &Path) -> Option<u64> {
    fs::read_to_string(dir.join("generation")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests;
