//! Mounts and unmounts as hooks and sysfs tell them, in all the orders that races make.

use tempfile::TempDir;

use super::*;

const FS: FsSlot = FsSlot(0);
/// The generation in the superblock of the fake device.
const ON_DISK: u64 = 40;

/// One watched device `loop7`, and a sysfs of our own.
struct Fixture {
    dir: TempDir,
    mounts: Mounts,
}

impl Fixture {
    fn new(mode: HookMode, log_root: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let device = Device::fake(&dir.path().join("image"), "loop7", ON_DISK, log_root);
        let mut mounts = Mounts::new(Arc::from([device]), mode, None, None);
        mounts.sysfs = dir.path().join("sysfs");
        fs::create_dir_all(mounts.sysfs.join("features")).expect("created");
        Self { dir, mounts }
    }

    fn kprobes() -> Self {
        Self::new(HookMode::Kprobes, 0)
    }

    fn sysfs_mount(&self, fsid: &str, kname: &str, generation: Option<u64>) {
        let dir = self.mounts.sysfs.join(fsid);
        fs::create_dir_all(dir.join("devices")).expect("created");
        fs::write(dir.join("devices").join(kname), "").expect("written");
        if let Some(generation) = generation {
            fs::write(dir.join("generation"), format!("{generation}\n")).expect("written");
        }
    }

    fn sysfs_unmount(&self, fsid: &str) {
        fs::remove_dir_all(self.mounts.sysfs.join(fsid)).expect("removed");
    }

    fn look(&mut self) -> Vec<ToVerifier> {
        let look = self.mounts.look();
        self.mounts.on_look(&look)
    }

    fn signal(&mut self, signal: Signal) -> Vec<ToVerifier> {
        self.mounts.on_signal(signal)
    }

    fn mount(&self, first_usable_generation: u64) -> ToVerifier {
        let device = self.dir.path().join("image").display().to_string();
        ToVerifier::Mount(Mount { fs: FS, device, first_usable_generation })
    }
}

const fn begins(fs_info: u64) -> Signal {
    Signal::MountBegins { fs: FS, fs_info }
}

const fn seen(fs_info: u64) -> Signal {
    Signal::FsSeen { fs: FS, fs_info }
}

const fn gone(fs_info: u64) -> Signal {
    Signal::FsGone { fs: FS, fs_info }
}

const UNMOUNT: ToVerifier = ToVerifier::Unmount { fs: FS };

#[test]
fn what_is_mounted_already_is_found_by_its_device_not_by_its_fsid() {
    let mut fixture = Fixture::kprobes();
    assert_eq!(fixture.look(), []);
    fixture.sysfs_mount("clone", "loop70", Some(9));
    assert_eq!(fixture.look(), []);
    fixture.sysfs_mount("original", "loop7", Some(42));
    assert_eq!(fixture.look(), [fixture.mount(42)]);
    assert_eq!(fixture.look(), [], "told once");
    assert_eq!(fixture.signal(seen(0xa)), [], "the first event only gives its address");
}

#[test]
fn without_a_generation_in_sysfs_two_transactions_may_run_ahead_of_the_superblock() {
    let mut fixture = Fixture::kprobes();
    fixture.sysfs_mount("fsid", "loop7", None);
    assert_eq!(fixture.look(), [fixture.mount(ON_DISK + 2)]);
}

#[test]
fn a_mount_seen_from_its_beginning_misses_nothing() {
    let mut fixture = Fixture::kprobes();
    assert_eq!(fixture.signal(begins(0xa)), [fixture.mount(0)]);
    assert!(fixture.mounts.is_mounted(FS));
    assert_eq!(fixture.signal(gone(0xa)), [UNMOUNT]);
    assert!(!fixture.mounts.is_mounted(FS));
}

#[test]
fn tracepoints_wait_for_the_transaction_that_replays_a_log() {
    let mut with_log = Fixture::new(HookMode::Tracepoints, 4096);
    assert_eq!(with_log.signal(begins(0xa)), [with_log.mount(ON_DISK + 1)]);
    let mut without = Fixture::new(HookMode::Tracepoints, 0);
    assert_eq!(without.signal(begins(0xa)), [without.mount(0)]);
    let mut kprobes = Fixture::new(HookMode::Kprobes, 4096);
    assert_eq!(kprobes.signal(begins(0xa)), [kprobes.mount(0)]);
}

#[test]
fn a_remount_whose_unmount_was_missed_ends_the_mount_before() {
    let mut fixture = Fixture::kprobes();
    fixture.signal(begins(0xa));
    assert_eq!(fixture.signal(begins(0xb)), [UNMOUNT, fixture.mount(0)]);
    fixture.sysfs_mount("fsid", "loop7", Some(50));
    assert_eq!(fixture.signal(seen(0xc)), [UNMOUNT, fixture.mount(50)]);
    assert_eq!(fixture.signal(seen(0xc)), [], "a second CPU says the same");
    assert_eq!(fixture.signal(gone(0xb)), [], "of a mount that is over");
    assert!(fixture.mounts.is_mounted(FS));
}

#[test]
fn a_mount_whose_beginning_was_lost_begins_with_the_generation_that_runs() {
    let mut fixture = Fixture::kprobes();
    fixture.sysfs_mount("fsid", "loop7", Some(44));
    assert_eq!(fixture.signal(seen(0xa)), [fixture.mount(44)]);
}

#[test]
fn a_mount_that_sysfs_does_not_show_yet_is_not_taken_for_an_unmount() {
    let mut fixture = Fixture::kprobes();
    fixture.signal(begins(0xa));
    for _ in 0..5 {
        assert_eq!(fixture.look(), []);
    }
}

#[test]
fn an_unmount_that_the_hooks_missed_is_seen_in_sysfs_but_not_at_the_first_look() {
    let mut fixture = Fixture::kprobes();
    fixture.sysfs_mount("fsid", "loop7", Some(42));
    fixture.look();
    fixture.sysfs_unmount("fsid");
    assert_eq!(fixture.look(), []);
    assert_eq!(fixture.look(), [UNMOUNT]);
    assert_eq!(fixture.signal(gone(0xa)), [], "told already");
}

#[test]
fn a_commit_or_abort_is_told_once_and_never_of_an_unmounted_file_system() {
    let mut fixture = Fixture::kprobes();
    let commit = Signal::Commit { fs: FS, transid: 7 };
    let abort = Signal::Abort { fs: FS, transid: 8, errno: -5 };
    assert_eq!(fixture.signal(commit), []);
    assert_eq!(fixture.signal(abort), []);
    fixture.signal(begins(0xa));
    assert_eq!(fixture.signal(commit), [ToVerifier::Commit { fs: FS, transid: 7 }]);
    assert_eq!(fixture.signal(commit), []);
    assert_eq!(fixture.signal(abort), [ToVerifier::Abort { fs: FS, transid: 8, errno: -5 }]);
    assert_eq!(fixture.signal(abort), []);
    // An image restored to an older generation begins anew.
    fixture.signal(begins(0xb));
    assert_eq!(fixture.signal(commit).len(), 1);
}
