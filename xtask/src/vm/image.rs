//! What a VM's initramfs holds: this program as init, the monitor, the kernel's modules, and
//! a few of the host's own programs with the libraries they are linked to.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{agreement, initramfs::Archive, kernel::Kernel, modules};
use crate::{command, machine};

/// The host's programs that scenarios start.
const PROGRAMS: [&str; 7] =
    ["btrfs", "mkfs.btrfs", "blockdev", "fsfreeze", "losetup", "systemd-journald", "journalctl"];

/// Writes the archive.
pub(super) fn pack(path: &Path, kernel: &Kernel, xtask: &Path, monitor: &Path) -> Result<()> {
    let mut archive = Archive::create(path)?;
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
        pack_with_libraries(&mut archive, &program)?;
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

fn pack_with_libraries<W: std::io::Write>(archive: &mut Archive<W>, program: &Path) -> Result<()> {
    let name = program.to_str().context("a program's path is not UTF-8")?;
    archive.file(name, 0o755, &read(program)?)?;
    for library in libraries(&command::run("ldd", &[name])?) {
        archive.file(library, 0o755, &read(Path::new(library))?)?;
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
