//! A VM that is reached from outside: with sshd, a network, and a virtio-serial port.
//!
//! Its user space is what every test VM has, busybox and sshd. The scenario `attach-guest` runs in
//! it and does what it is asked to by files in `/run/ask`.

use std::{
    fs,
    fs::File,
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    agreement,
    image::{self, Extras},
    kernel::{self, Kernel},
    qemu,
};
use crate::{command, machine, workspace};

/// Its kernel.
const KERNEL: &str = "6.1";

/// The name by which ssh, and so every report, knows it.
pub(crate) const NAME: &str = "testvm";

/// Another name for it, as if it were another.
pub(crate) const ALIAS: &str = "othervm";

/// How long it may take to do something, under emulation.
const LIMIT: Duration = Duration::from_mins(4);

/// So many lines of the console tell what has become of its kernel.
const CONSOLE_LINES: usize = 12;

/// Downloads what such a VM needs and is not there yet.
pub(crate) fn fetch() -> Result<()> {
    kernel::fetch(kernel::find(KERNEL)?)?;
    libraries()?;
    programs().map(drop)
}

/// A running VM; killed when dropped.
pub(crate) struct Guest {
    qemu: Child,
    /// For `ssh -F`.
    pub(crate) ssh_config: PathBuf,
    /// The host's end of the virtio-serial port.
    pub(crate) port_socket: PathBuf,
    /// That of its QEMU guest agent.
    pub(crate) qga_socket: PathBuf,
    /// QEMU's own monitor.
    qemu_socket: PathBuf,
    /// The console.
    pub(crate) log: PathBuf,
    _disk: tempfile::NamedTempFile,
}

impl Guest {
    /// Boots it, and waits until sshd answers. `dir` is for keys and sockets.
    pub(crate) fn boot(dir: &Path, xtask: &Path, monitor: &Path) -> Result<Self> {
        let kernel = kernel::fetch(kernel::find(KERNEL)?)?;
        let keys = Keys::make(dir)?;
        let initramfs = dir.join("initramfs.cpio");
        image::pack(&initramfs, &kernel, xtask, monitor, &extras(&keys)?)?;
        let port = free_port()?;
        let ssh_config = dir.join("ssh_config");
        fs::write(&ssh_config, keys.ssh_config(port))?;
        let port_socket = dir.join("port.sock");
        let disk = tempfile::NamedTempFile::new().context("cannot make a scratch disk")?;
        disk.as_file().set_len(agreement::DISK_LEN_BYTES)?;
        let log = workspace::vm().join(format!("{KERNEL}-attach.log"));
        let qga_socket = dir.join("qga.sock");
        let sockets = [("refverify", &*port_socket), ("org.qemu.guest_agent.0", &*qga_socket)];
        let mut command = command(&kernel, &initramfs, disk.path(), port, &sockets);
        let qemu_socket = dir.join("qemu.sock");
        let monitor = format!("unix:{},server=on,wait=off", qemu_socket.display());
        let console =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let qemu = command
            .args(["-monitor", &monitor])
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let mut guest =
            Self { qemu, ssh_config, port_socket, qga_socket, qemu_socket, log, _disk: disk };
        guest.wait_for_sshd()?;
        Ok(guest)
    }

    fn wait_for_sshd(&mut self) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            if self.ssh("test -e /run/ready").is_ok() {
                return Ok(());
            }
            if let Some(status) = self.qemu.try_wait()? {
                bail!("QEMU ended with {status} (see {})", self.log.display());
            }
            if Instant::now() > end {
                bail!("the guest does not answer by ssh (see {})", self.log.display());
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Runs a shell's command line in it.
    pub(crate) fn ssh(&self, line: &str) -> Result<String> {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(&self.ssh_config).args(["-o", "ConnectTimeout=20", NAME, line]);
        command::output(ssh.stdin(Stdio::null()), LIMIT)
    }

    /// What its agent does, and what its console said last: for whoever wonders why something
    /// failed.
    pub(crate) fn condition(&self) -> String {
        let agent = self.ssh(
            "for t in $(pidof 9 refverify-monitor | sed 's:[0-9]*:/proc/&/task/*:g'); do \
             echo \"$(cat $t/comm) waits in $(cat $t/wchan)\"; cat $t/stack; done; \
             test ! -e /run/agent.log || tail -n 20 /run/agent.log",
        );
        let agent = agent.unwrap_or_else(|error| format!("it does not answer: {error:#}"));
        let console = fs::read_to_string(&self.log).unwrap_or_default();
        let of_kernel = console.lines().filter(|line| line.starts_with('['));
        let last: Vec<&str> = of_kernel.rev().take(CONSOLE_LINES).collect();
        let console: Vec<&str> = last.into_iter().rev().collect();
        format!("{}\n{}", agent.trim(), console.join("\n"))
    }

    /// Pulls the plug of its network, or puts it in again. Nothing else of it stops.
    pub(crate) fn set_link(&self, link: Link) -> Result<()> {
        let state = match link {
            Link::Up => "on",
            Link::Cut => "off",
        };
        let mut monitor = UnixStream::connect(&self.qemu_socket)
            .with_context(|| format!("no monitor at {}", self.qemu_socket.display()))?;
        monitor.set_read_timeout(Some(Duration::from_secs(20)))?;
        let prompt = |monitor: &mut UnixStream| {
            let mut said = Vec::new();
            let mut byte = [0];
            while !said.ends_with(b"(qemu) ") {
                monitor.read_exact(&mut byte).context("QEMU's monitor does not answer")?;
                said.push(byte[0]);
            }
            anyhow::Ok(())
        };
        prompt(&mut monitor)?;
        writeln!(monitor, "set_link net {state}")?;
        prompt(&mut monitor)
    }

    /// Asks the scenario in it for something, and waits for the answer.
    pub(crate) fn ask(&self, what: &str) -> Result<String> {
        let line = format!(
            "rm -f /run/answer; touch /run/ask/{what}; \
             while ! test -e /run/answer; do sleep 0.1; done; cat /run/answer"
        );
        let answer = self.ssh(&line).with_context(|| format!("asking the guest to {what}"))?;
        match answer.strip_prefix("failed: ") {
            Some(why) => bail!("the guest cannot {what}: {why}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The scenario that runs in it.
pub(crate) const SCENARIO: &str = "attach-guest";

/// A guest's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Up,
    Cut,
}

fn command(
    kernel: &Kernel,
    initramfs: &Path,
    disk: &Path,
    port: u16,
    sockets: &[(&str, &Path)],
) -> Command {
    let append = qemu::kernel_parameters(SCENARIO);
    let mut qemu = qemu::command(&kernel.vmlinuz, initramfs, &append, disk);
    qemu.arg("-netdev")
        .arg(format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"))
        .args(["-device", "virtio-net-pci,netdev=net,romfile="])
        .args(["-device", "virtio-serial-pci"]);
    for (number, (name, socket)) in sockets.iter().enumerate() {
        let socket = socket.display();
        qemu.args(["-chardev", &format!("socket,id=c{number},server=on,wait=off,path={socket}")]);
        qemu.args(["-device", &format!("virtserialport,chardev=c{number},name={name}")]);
    }
    qemu
}

/// Free when it was asked for; nobody else asks meanwhile.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Keys of the guest and of its user, made for one run.
struct Keys {
    dir: PathBuf,
}

impl Keys {
    fn make(dir: &Path) -> Result<Self> {
        for name in ["host_key", "user_key"] {
            let path = dir.join(name);
            let path = path.to_str().context("the working directory's path is not UTF-8")?;
            command::run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", path])?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.dir.join(name)).with_context(|| format!("no {name}"))
    }

    fn ssh_config(&self, port: u16) -> String {
        format!(
            "Host {NAME} {ALIAS}\n HostName 127.0.0.1\n Port {port}\n User root\n \
             IdentityFile {}\n IdentitiesOnly yes\n StrictHostKeyChecking no\n \
             UserKnownHostsFile /dev/null\n LogLevel ERROR\n",
            self.dir.join("user_key").display()
        )
    }
}

const SSHD_CONFIG: &str = "HostKey /etc/ssh/host_key\nAuthorizedKeysFile /etc/ssh/user_key.pub\n\
                           PermitRootLogin yes\nStrictModes no\nUsePAM no\nUseDNS no\n";

/// Programs that hosts need not have: a package of Debian's is unpacked for them, and not
/// installed. Where the host has one it is taken from there.
fn programs() -> Result<Vec<(PathBuf, String)>> {
    let mut programs = Vec::new();
    for (name, package, path) in [
        ("busybox", "busybox-static", "bin/busybox"),
        ("sshd", "openssh-server", "usr/sbin/sshd"),
        ("qemu-ga", "qemu-guest-agent", "usr/sbin/qemu-ga"),
    ] {
        let program = match machine::program(name) {
            Some(program) => program,
            None => kernel::unpacked_package(package)?.join(path),
        };
        programs.push((program, format!("/{path}")));
    }
    Ok(programs)
}

/// What sshd is linked to and hosts without an sshd may not have.
fn libraries() -> Result<PathBuf> {
    Ok(kernel::unpacked_package("libwrap0")?.join("usr/lib/x86_64-linux-gnu"))
}

fn extras(keys: &Keys) -> Result<Extras> {
    let passwd = b"root::0:0:root:/:/bin/sh\nsshd:x:101:65534::/run/sshd:/bin/false\n";
    let file = |path: &str, mode, content: &[u8]| (path.to_owned(), mode, content.to_vec());
    Ok(Extras {
        files: vec![
            file("/etc/passwd", 0o644, passwd),
            file("/etc/ssh/sshd_config", 0o644, SSHD_CONFIG.as_bytes()),
            file("/etc/ssh/host_key", 0o600, &keys.read("host_key")?),
            file("/etc/ssh/user_key.pub", 0o644, &keys.read("user_key.pub")?),
        ],
        programs: programs()?,
        libraries: libraries()?,
    })
}
