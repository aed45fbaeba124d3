//! What runs in a guest that is attached to from outside: sshd, an honest workload, and an ear
//! for what the test outside asks: each is a file in `/run/ask`, its answer is `/run/answer`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::fs::ioctl_ficlone;

use super::{
    Outcome, Place,
    bench_path::{prepare, processor_seconds, work},
    compare::read_raw,
    field::{Field, sync},
    monitor::Monitor,
    workload::{Balances, Workload},
};
use crate::{
    command::run,
    plant::{Edit, plant},
};

const ASK: &str = "/run/ask";
const ANSWER: &str = "/run/answer";

/// Clones of the work that is measured: few, since the processors are emulated.
const CLONES: u64 = 60;

/// Ends when asked to.
pub(super) fn run_guest(place: &Place) -> Result<Outcome> {
    if !Path::new("/usr/sbin/sshd").is_file() || std::env::var_os("SSH_CLIENT").is_some() {
        return Ok(Outcome::Skipped("it is the guest's side of the scenario attach".to_owned()));
    }
    run("/bin/busybox", &["--install", "-s", "/bin"])?;
    run("/bin/ip", &["link", "set", "lo", "up"])?;
    run("/bin/ip", &["address", "add", "10.0.2.15/24", "dev", "eth0"])?;
    run("/bin/ip", &["link", "set", "eth0", "up"])?;
    let mut field = Field::new(place)?;
    // The kernel goes on after the first when it is cloned again, and aborts after the second.
    let (clone, single) = (field.clone, field.single);
    let missing = Edit::RemoveRef { inode: clone.inode, keep_total: false };
    plant(&field.scratch.device, clone.bytenr, missing)?;
    plant(&field.scratch.device, single.bytenr, Edit::RemoveItem)?;
    field.scratch.mount()?;
    fs::create_dir_all(ASK)?;
    fs::create_dir_all("/run/sshd")?;
    let _sshd = Daemon::start(Command::new("/usr/sbin/sshd").args(["-D", "-e"]))?;
    let _qemu_ga = Daemon::start(
        Command::new("/usr/sbin/qemu-ga")
            .args(["-t", "/run", "-m", "virtio-serial", "-p"])
            .arg(qga_port()?),
    )?;
    // A balance would move the broken extents, which is another story.
    let workload = Workload::start(&field.scratch.mount_point, 3, Balances::None)?;
    fs::write("/run/ready", "")?;
    let planted = (clone.bytenr, single.bytenr);
    let mut guest = Guest { place, field, planted, workload: Some(workload), monitor: None };
    guest.listen()?;
    Ok(Outcome::Passed)
}

/// The port that QEMU's guest agent speaks on, without udev, which would link it by its name.
fn qga_port() -> Result<PathBuf> {
    for port in fs::read_dir("/sys/class/virtio-ports")? {
        let port = port?;
        let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if name.trim() == "org.qemu.guest_agent.0" {
            return Ok(Path::new("/dev").join(port.file_name()));
        }
    }
    bail!("there is no port for the guest agent")
}

/// Killed when dropped.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command) -> Result<Self> {
        command.spawn().map(Self).with_context(|| format!("cannot start {command:?}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What can be asked of.
struct Guest<'a> {
    place: &'a Place,
    field: Field,
    /// Extents with a fault: the one that is cloned again, and the one that is deleted.
    planted: (u64, u64),
    workload: Option<Workload>,
    monitor: Option<Monitor>,
}

impl Guest<'_> {
    fn listen(&mut self) -> Result<()> {
        loop {
            thread::sleep(Duration::from_millis(50));
            for entry in fs::read_dir(ASK)? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                fs::remove_file(&path)?;
                let answer = self.answer(&name);
                let answer = answer.unwrap_or_else(|error| format!("failed: {error:#}"));
                // Renamed: once there, it is whole.
                fs::write("/run/answer.new", answer)?;
                fs::rename("/run/answer.new", ANSWER)?;
                if name == "stop" {
                    return Ok(());
                }
            }
        }
    }

    fn answer(&mut self, asked: &str) -> Result<String> {
        let scratch = &self.field.scratch;
        match asked {
            "freeze" => {
                run("fsfreeze", &["--freeze", scratch.mount_name()])?;
                let raw = read_raw(&scratch.device)?;
                return Ok(format!("{} {}\n{}", raw.generation, raw.node_len_bytes, raw.dump));
            }
            "thaw" => return run("fsfreeze", &["--unfreeze", scratch.mount_name()]),
            "planted" => return Ok(format!("{} {}", self.planted.0, self.planted.1)),
            "clone-again" => {
                let source = File::open(scratch.path("origin"))?;
                let target = File::options().write(true).open(scratch.path("clone"))?;
                ioctl_ficlone(&target, &source).context("cannot clone again")?;
            }
            "delete-single" => {
                fs::remove_file(scratch.path("single"))?;
                // The kernel aborts.
                let _ = sync(scratch);
            }
            "rest" => {
                self.workload.take().map(Workload::stop).transpose()?;
                prepare(scratch)?;
            }
            "work" => return Ok(work(scratch, CLONES)?.to_string()),
            "start-monitor" => {
                let mut monitor = Monitor::start(self.place, scratch.device_name(), &[])?;
                monitor.wait_for("seeded")?;
                self.monitor = Some(monitor);
            }
            "cpu-of-monitor" => {
                let monitor = self.monitor.as_ref().context("no monitor runs")?;
                return Ok(processor_seconds(monitor.pid())?.to_string());
            }
            "stop-monitor" => {
                self.monitor.take().context("no monitor runs")?.stop()?.expect_clean()?;
            }
            "stop" => {}
            other => match other.strip_prefix("cpu-of-") {
                Some(name) => return Ok(processor_seconds_of(name)?.to_string()),
                None => bail!("what is {other}?"),
            },
        }
        Ok(String::new())
    }
}

/// Of all processes of this name.
fn processor_seconds_of(name: &str) -> Result<f64> {
    let mut seconds = 0.0;
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse() else { continue };
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.trim() == name {
            // One that ends meanwhile is none that is measured.
            seconds += processor_seconds(pid).unwrap_or(0.0);
        }
    }
    Ok(seconds)
}
