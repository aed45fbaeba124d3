//! Mounted, unmounted and mounted again: unchanged, changed by others, in another namespace.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Living, Outcome, Place, churn::churn};
use crate::{
    command::{self, run, text},
    scenario::compare::flush,
};

pub(super) fn run_all(place: &Place) -> Result<Outcome> {
    let mut living = Living::new(place, 1 << 30)?;
    living.watched.mount("")?;
    living.on("mounted after the monitor came")?;
    living.unchanged()?;
    living.remounted()?;
    living.exchanged(&place.dir().join("scratch"))?;
    living.changed_offline()?;
    living.in_another_namespace()?;
    living.watched.end()
}

impl Living {
    /// Nothing changes between two mounts: what is known is kept, and nothing is read again.
    fn unchanged(&mut self) -> Result<()> {
        for time in ["", " again"] {
            let read = self.watched.said("seeding").len();
            self.rest()?;
            self.watched.mount("")?;
            let read_now = self.watched.said("seeding").len();
            ensure!(read_now == read, "what had not changed was read again");
            let seeded = self.watched.said("seeded");
            let has_fsid = |line: &Value| line["fsid"].is_string();
            ensure!(seeded.last().is_some_and(has_fsid), "it is not told what it is: {seeded:?}");
            self.on(&format!("unmounted and mounted unchanged{time}"))?;
        }
        Ok(())
    }

    /// Unmounts it, and leaves the monitor time to read its last superblock.
    fn rest(&mut self) -> Result<()> {
        self.watched.unmount()?;
        thread::sleep(Duration::from_millis(300));
        Ok(())
    }

    /// Read-only and back, on a live mount and from the beginning of one.
    fn remounted(&mut self) -> Result<()> {
        for time in ["", " again"] {
            self.remount("ro")?;
            self.watched.expect_equal(&format!("remounted read-only{time}"))?;
            self.remount("rw")?;
            self.on(&format!("remounted for writing{time}"))?;
        }
        self.watched.unmount()?;
        self.watched.mount("ro")?;
        self.watched.expect_equal("mounted read-only")?;
        self.remount("rw")?;
        self.on("which was then remounted for writing")
    }

    fn remount(&self, how: &str) -> Result<()> {
        let options = format!("remount,{how}");
        run("mount", &["-o", &options, self.watched.scratch.mount_name()]).map(drop)
    }

    /// An older image of the same file system comes back, with other contents under the same fsid;
    /// nobody else can have mounted it.
    fn exchanged(&mut self, image: &Path) -> Result<()> {
        let older = image.with_extension("older");
        self.watched.unmount()?;
        copy(image, &older)?;
        self.watched.mount("")?;
        self.on("mounted again")?;
        self.on("and worked on")?;
        self.rest()?;
        copy(&older, image)?;
        flush(&self.watched.scratch.device)?;
        let read = self.watched.said("seeding").len();
        self.watched.mount("")?;
        ensure!(self.watched.said("seeding").len() > read, "an older image was not read");
        self.watched.expect_equal("an older image is back")?;
        self.on("and worked on in another way")
    }

    /// By btrfs-progs, while nothing is mounted.
    fn changed_offline(&mut self) -> Result<()> {
        self.rest()?;
        let device = self.watched.scratch.device_name();
        run("btrfs", &["check", "--clear-space-cache", "v2", device])?;
        run("btrfs", &["rescue", "zero-log", device])?;
        self.watched.mount("")?;
        self.watched.expect_equal("changed while it was not mounted")?;
        self.on("and worked on")?;
        self.rest()?;
        run("btrfstune", &["-f", "-m", self.watched.scratch.device_name()])?;
        self.watched.mount("")?;
        self.on("given another fsid while it was not mounted")
    }

    /// The monitor's own mountinfo does not have it.
    fn in_another_namespace(&mut self) -> Result<()> {
        self.watched.unmount()?;
        let seen = self.watched.said("seeded").len();
        let namespace = Namespace::mount(
            self.watched.scratch.device_name(),
            self.watched.scratch.mount_name(),
        )?;
        self.watched.monitor.wait_for_nth("seeded", seen + 1)?;
        let ours = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!ours.contains(self.watched.scratch.mount_name()), "it is mounted here: {ours}");
        // A new round, which deletes no old one: btrfs-progs look for a path's place in their own
        // namespace when they delete.
        churn(&namespace.path(), 0)?;
        let here = std::mem::replace(&mut self.watched.scratch.mount_point, namespace.path());
        self.watched.expect_equal("mounted in another mount namespace")?;
        self.watched.scratch.mount_point = here;
        let seen = self.watched.said("unmounted").len();
        drop(namespace);
        self.watched.monitor.wait_for_nth("unmounted", seen + 1)?;
        self.watched.mount("")?;
        self.on("mounted here again")
    }
}

/// A process with a mount of its own, which goes with it.
struct Namespace {
    holder: Child,
    mount_point: PathBuf,
}

impl Namespace {
    fn mount(device: &str, mount_point: &str) -> Result<Self> {
        let script = "mount \"$1\" \"$2\" && touch \"$2/mounted\" && exec cat";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "hold"]);
        command.args([device, mount_point]).stdin(Stdio::piped());
        let holder = command.spawn().context("cannot start unshare")?;
        let namespace = Self { holder, mount_point: PathBuf::from(mount_point) };
        let end = Instant::now() + command::LIMIT;
        while !namespace.path().join("mounted").exists() {
            ensure!(Instant::now() < end, "it was not mounted in the other namespace");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(namespace)
    }

    /// The mount, seen from here.
    fn path(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.mount_point.strip_prefix("/").unwrap_or(&self.mount_point))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its end is that of its namespace, and with it of the mount.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    run("cp", &["--sparse=always", text(from)?, text(to)?]).map(drop)
}
