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
    compare::read_raw,
    field::{Field, sync},
    scratch::Scratch,
    workload::{Balances, Workload},
};
use crate::{
    command::run,
    plant::{Edit, plant},
};

const ASK: &str = "/run/ask";
const ANSWER: &str = "/run/answer";

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
    listen(&field, (clone.bytenr, single.bytenr))?;
    drop(workload);
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

fn listen(field: &Field, planted: (u64, u64)) -> Result<()> {
    loop {
        thread::sleep(Duration::from_millis(50));
        for entry in fs::read_dir(ASK)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            fs::remove_file(&path)?;
            let answer = answer(field, planted, &name);
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

fn answer(field: &Field, planted: (u64, u64), asked: &str) -> Result<String> {
    let scratch: &Scratch = &field.scratch;
    match asked {
        "freeze" => {
            run("fsfreeze", &["--freeze", scratch.mount_name()])?;
            let raw = read_raw(&scratch.device)?;
            Ok(format!("{} {}\n{}", raw.generation, raw.node_len_bytes, raw.dump))
        }
        "thaw" => run("fsfreeze", &["--unfreeze", scratch.mount_name()]),
        "planted" => Ok(format!("{} {}", planted.0, planted.1)),
        "clone-again" => {
            let source = File::open(scratch.path("origin"))?;
            let target = File::options().write(true).open(scratch.path("clone"))?;
            ioctl_ficlone(&target, &source).context("cannot clone again")?;
            Ok(String::new())
        }
        "delete-single" => {
            fs::remove_file(scratch.path("single"))?;
            // The kernel aborts.
            let _ = sync(scratch);
            Ok(String::new())
        }
        "stop" => Ok(String::new()),
        other => bail!("what is {other}?"),
    }
}
