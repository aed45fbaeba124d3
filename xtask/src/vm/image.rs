//! What a VM's initramfs holds: this program as init, the monitor, the kernel's modules, and
//! a few of the host's own programs with the libraries they are linked to.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{agreement, initramfs::Archive, kernel::Kernel, modules};
use crate::{command, machine};

/// The host's programs that scenarios start.
const PROGRAMS: [&str; 8] = [
    "btrfs",
    "mkfs.btrfs",
    "blockdev",
    "dmsetup",
    "fsfreeze",
    "losetup",
    "systemd-journald",
    "journalctl",
];

/// What else an image is to hold. It takes the place of what every image holds.
#[derive(Default)]
pub(super) struct Extras {
    /// Path, mode, content.
    pub(super) files: Vec<(String, u32, Vec<u8>)>,
    /// A program's path here and there; with the libraries that it is linked to.
    pub(super) programs: Vec<(PathBuf, String)>,
    /// Where libraries are looked for besides the usual places.
    pub(super) libraries: PathBuf,
}

/// Writes the archive.
pub(super) fn pack(
    path: &Path,
    kernel: &Kernel,
    xtask: &Path,
    monitor: &Path,
    extras: &Extras,
) -> Result<()> {
    let mut archive = Archive::create(path)?;
    for (path, mode, content) in &extras.files {
        archive.file(path, *mode, content)?;
    }
    for (program, path) in &extras.programs {
        pack_program(&mut archive, program, path, &extras.libraries)?;
    }
    // The kernel opens it for init before anything is mounted.
    archive.device("/dev/console", 5, 1)?;
    for dir in agreement::MOUNT_POINTS {
        archive.directory(Path::new(dir))?;
    }
    archive.file("/init", 0o755, &read(xtask)?)?;
    archive.file(agreement::MONITOR, 0o755, &read(monitor)?)?;
    for (number, module) in modules::load_order(&kernel.modules)?.into_iter().enumerate() {
        // Loaded in the order of their names.
        let name = format!("{}/{number:02}-{}.ko", agreement::MODULES, module.name);
        archive.file(&name, 0o644, &module.content)?;
    }
    for name in PROGRAMS {
        let program = machine::program(name).with_context(|| format!("{name} is missing"))?;
        let path = program.to_str().context("a program's path is not UTF-8")?;
        pack_program(&mut archive, &program, path, Path::new(""))?;
    }
    archive.file("/etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/false\n")?;
    archive.file("/etc/group", 0o644, b"root:x:0:\nsystemd-journal:x:101:\n")?;
    archive.file("/etc/machine-id", 0o444, b"6d0e2a1c5b7f4e0f9a3d8c7b6a594837\n")?;
    archive.finish()?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Packs a program as `path`, with the libraries that it is linked to.
fn pack_program<W: std::io::Write>(
    archive: &mut Archive<W>,
    program: &Path,
    path: &str,
    library_dir: &Path,
) -> Result<()> {
    archive.file(path, 0o755, &read(program)?)?;
    let mut ldd = Command::new("ldd");
    ldd.arg(program).env("LD_LIBRARY_PATH", library_dir);
    let done = command::finish(&mut ldd, command::LIMIT)?;
    if let Some(missing) = done.stdout.lines().find(|line| line.ends_with("=> not found")) {
        bail!("{} needs a library that is not here: {}", program.display(), missing.trim());
    }
    // A static program is none of ldd's business.
    for library in libraries(&done.stdout) {
        let file = Path::new(library);
        // One from elsewhere goes where the loader looks.
        let there = match file.strip_prefix(library_dir) {
            Ok(name) if library_dir.is_absolute() => Path::new("/lib/x86_64-linux-gnu").join(name),
            _ => file.to_owned(),
        };
        archive.file(&there.to_string_lossy(), 0o755, &read(file)?)?;
    }
    Ok(())
}

/// The absolute paths in ldd's output: `name => /path (address)` and `/path (address)`.
fn libraries(ldd: &str) -> impl Iterator<Item = &str> {
    ldd.lines().filter_map(|line| {
        let target = line.split_once("=>").map_or(line, |(_, target)| target).trim();
        target.split_whitespace().next().filter(|path| path.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_every_form_that_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found: Vec<_> = libraries(text).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }
}
