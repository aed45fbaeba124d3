//! Stock Debian kernels by their long-term line, from the Debian mirror that the machine's
//! own apt is set up with.
//!
//! A configuration of apt's of our own, all under target/vm/apt, keeps the machine's lists
//! and packages untouched: another Debian release can be asked without being installed from.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{LIMIT, output, show_and_run},
    machine::{as_root, distribution, has_apt},
    test::Skip,
    workspace,
};

/// A long-term line of kernels, and the Debian release that ships it.
pub(crate) struct Line {
    /// As the user names it.
    pub(crate) name: &'static str,
    suite: &'static str,
}

/// The lines that tests run on.
pub(crate) const LINES: [Line; 3] = [
    Line { name: "5.10", suite: "bullseye" },
    Line { name: "6.1", suite: "bookworm" },
    Line { name: "6.12", suite: "trixie" },
];

/// In a kernel's directory: names its release, and says that all of it is there.
const MARKER: &str = "release-with-device-mapper";

/// An unpacked kernel package.
pub(crate) struct Kernel {
    pub(crate) line: &'static Line,
    /// As `uname -r` will say it.
    pub(crate) release: String,
    pub(crate) vmlinuz: PathBuf,
    /// The directory that holds `modules.builtin` and `kernel/`.
    pub(crate) modules: PathBuf,
}

/// The line of that name.
pub(crate) fn find(name: &str) -> Result<&'static Line> {
    LINES.iter().find(|line| line.name == name).with_context(|| {
        let known: Vec<_> = LINES.iter().map(|line| line.name).collect();
        format!("no kernel {name} here; there are: {}", known.join(", "))
    })
}

/// Why no VM can be had on this machine.
pub(crate) fn obstacle() -> Option<Skip> {
    if env::consts::ARCH != "x86_64" {
        return Some(Skip::cannot_run("the VMs are x86_64's"));
    }
    if !has_apt() {
        let reason = format!("Debian's kernels come through apt; this is {}", distribution());
        return Some(Skip::cannot_run(reason));
    }
    if LINES.iter().all(|line| dir(line).join(MARKER).is_file()) {
        return None;
    }
    let debian = distribution().starts_with("Debian");
    mirror().err().map(|error| Skip { reason: format!("{error:#}"), could_run: debian })
}

/// The line's newest kernel: from the cache where it is there, else from the mirror.
pub(crate) fn fetch(line: &'static Line) -> Result<Kernel> {
    let dir = dir(line);
    let marker = dir.join(MARKER);
    if let Ok(release) = fs::read_to_string(&marker) {
        return unpacked(line, &dir, release);
    }
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    println!("vm: fetching Debian's kernel {} ({})", line.name, line.suite);
    let apt = PrivateApt::new(line)?;
    apt.get(&["update"])?;
    let package = apt.image_package()?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    println!("vm: downloading and unpacking {package}");
    unpack(&apt.download(&package)?, &dir)?;
    // Written last: a directory without it is not whole.
    fs::write(&marker, &release)?;
    unpacked(line, &dir, release)
}

fn dir(line: &Line) -> PathBuf {
    workspace::vm().join(format!("kernel-{}", line.name))
}

fn unpacked(line: &'static Line, dir: &Path, release: String) -> Result<Kernel> {
    let vmlinuz = dir.join(format!("boot/vmlinuz-{release}"));
    // Up to bookworm /lib, from trixie on /usr/lib.
    let modules = ["lib", "usr/lib"]
        .map(|lib| dir.join(lib).join("modules").join(&release))
        .into_iter()
        .find(|path| path.is_dir())
        .with_context(|| format!("no modules of {release} in {}", dir.display()))?;
    Ok(Kernel { line, release, vmlinuz, modules })
}

/// Unpacks the kernel and those directories of modules that a VM could need.
fn unpack(package: &Path, dir: &Path) -> Result<()> {
    let script = "dpkg-deb --fsys-tarfile \"$1\" | tar -x -C \"$2\" --wildcards \
                  './boot/*' '*/modules.builtin' '*/kernel/fs/*' '*/kernel/crypto/*' \
                  '*/kernel/lib/*' '*/kernel/arch/*' '*/kernel/drivers/block/*' \
                  '*/kernel/drivers/virtio/*' '*/kernel/drivers/net/virtio_net*' \
                  '*/kernel/drivers/net/net_failover*' '*/kernel/net/core/*' \
                  '*/kernel/drivers/char/*virtio*' '*/kernel/drivers/md/dm-*' \
                  '*/kernel/drivers/dax/*'";
    output(
        Command::new("bash").args(["-o", "pipefail", "-c", script, "unpack"]).args([package, dir]),
        LIMIT,
    )?;
    Ok(())
}

/// The Debian mirror that the machine uses, as its apt has it.
fn mirror() -> Result<String> {
    if let Some(mirror) = configured_mirror()? {
        return Ok(mirror);
    }
    // apt knows whose mirror it is only once it has its lists; images come without them.
    println!("vm: apt has no lists: updating them, to learn the machine's Debian mirror");
    show_and_run(as_root("apt-get").args(["update", "-q"]))?;
    configured_mirror()?.context("apt is set up with no mirror of Debian's, where the kernels are")
}

fn configured_mirror() -> Result<Option<String>> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", format, "Created-By: Packages"]);
    let targets = output(&mut command, LIMIT)?;
    Ok(targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|")).map(str::to_owned))
}

/// A package of Debian's, unpacked into a directory that is kept; nothing is installed. It is of
/// the release whose libraries the programs of most hosts have.
pub(super) fn unpacked_package(package: &str) -> Result<PathBuf> {
    let dirs = unpacked_packages("6.1", &[package])?;
    dirs.into_iter().next().with_context(|| format!("{package} was not unpacked"))
}

/// The same for several packages of the release that ships a line of kernels.
pub(crate) fn unpacked_packages(line: &str, packages: &[&str]) -> Result<Vec<PathBuf>> {
    let line = find(line)?;
    let dir_of = |package: &&str| workspace::vm().join("packages").join(line.suite).join(package);
    let dirs: Vec<PathBuf> = packages.iter().map(dir_of).collect();
    let missing: Vec<_> = packages.iter().zip(&dirs).filter(|(_, dir)| !dir.is_dir()).collect();
    if missing.is_empty() {
        return Ok(dirs);
    }
    let apt = PrivateApt::new(line)?;
    apt.get(&["update"])?;
    for (package, dir) in missing {
        println!("vm: downloading and unpacking {package} ({})", line.suite);
        let file = apt.download(package)?;
        let partial = dir.with_extension("partial");
        fs::create_dir_all(&partial)?;
        output(Command::new("dpkg-deb").arg("-x").args([&file, &partial]), LIMIT)?;
        fs::rename(&partial, dir)?;
    }
    Ok(dirs)
}

/// apt with lists, cache and sources of its own.
struct PrivateApt {
    dir: PathBuf,
}

impl PrivateApt {
    fn new(line: &Line) -> Result<Self> {
        let dir = workspace::vm().join("apt").join(line.suite);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        fs::write(dir.join("status"), "")?;
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        if !Path::new(keyring).is_file() {
            bail!("{keyring} is missing (package debian-archive-keyring)");
        }
        let source = format!("deb [signed-by={keyring}] {} {} main\n", mirror()?, line.suite);
        fs::write(dir.join("sources.list"), source)?;
        Ok(Self { dir })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut set = |key: &str, value: &str| {
            command.arg("-o").arg(format!("{key}={value}"));
        };
        let path = |part: &str| self.dir.join(part).to_string_lossy().into_owned();
        set("Dir::State", &path(""));
        set("Dir::State::lists", &path("lists"));
        set("Dir::State::status", &path("status"));
        set("Dir::Cache", &path("cache"));
        set("Dir::Etc::sourcelist", &path("sources.list"));
        set("Dir::Etc::sourceparts", "/dev/null");
        set("APT::Architecture", "amd64");
        set("APT::Architectures", "amd64");
        set("APT::Sandbox::User", "");
        set("Acquire::Languages", "none");
        set("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false");
        // What containers' images hook in here is about the machine's own cache.
        set("APT::Update::Post-Invoke-Success::", "true");
        command.current_dir(self.dir.join("cache/archives"));
        command
    }

    fn get(&self, args: &[&str]) -> Result<String> {
        output(self.command("apt-get").arg("-q").args(args), Duration::from_mins(10))
    }

    /// The package of the line's newest kernel: what `linux-image-amd64` depends on.
    fn image_package(&self) -> Result<String> {
        let text = output(self.command("apt-cache").args(["depends", "linux-image-amd64"]), LIMIT)?;
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"))
            .map(str::to_owned)
            .with_context(|| format!("linux-image-amd64 names no kernel: {text}"))
    }

    /// The downloaded package's path.
    fn download(&self, package: &str) -> Result<PathBuf> {
        self.get(&["download", package])?;
        let archives = self.dir.join("cache/archives");
        fs::read_dir(&archives)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&format!("{package}_"))
            })
            .with_context(|| format!("{package} did not arrive in {}", archives.display()))
    }
}
