//! Which kernel modules a VM needs, in the order in which they can be loaded.
//!
//! Debian's packages leave `modules.dep` to depmod at installation, so the dependencies are
//! taken from where depmod finds most of them: the `depends=` entry that each module carries
//! in its `.modinfo` section (kernel: scripts/mod/modpost.c, `add_depends`).

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// What a VM cannot do without.
const NEEDED: [&str; 3] = ["virtio_pci", "virtio_blk", "btrfs"];

/// Checksums that btrfs asks the crypto layer for at run time (`MODULE_SOFTDEP` in
/// fs/btrfs/super.c), and loop devices: taken where the kernel has them as modules.
/// A network and a console port are for those guests that are reached from outside; `null_blk` is
/// the zoned device; device-mapper drops writes, fails them and keeps a log of them.
const WANTED: [&str; 11] = [
    "crc32c_generic",
    "crc32c_intel",
    "xxhash_generic",
    "blake2b_generic",
    "sha256_generic",
    "loop",
    "virtio_net",
    "virtio_console",
    "null_blk",
    "dm_flakey",
    "dm_log_writes",
];

/// A module, unpacked.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// The modules to load, each after those it depends on.
pub(super) fn load_order(dir: &Path) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    index(&dir.join("kernel"), &mut files)?;
    let builtin = builtin(dir)?;
    let mut order = Order { files, builtin, seen: HashSet::new(), modules: Vec::new() };
    // The checksums first: btrfs refuses to load without crc32c.
    for name in WANTED {
        if order.files.contains_key(name) {
            order.add(name)?;
        }
    }
    for name in NEEDED {
        order.add(name)?;
    }
    Ok(order.modules)
}

struct Order {
    files: HashMap<String, PathBuf>,
    builtin: HashSet<String>,
    seen: HashSet<String>,
    modules: Vec<Module>,
}

impl Order {
    /// Adds what `name` depends on, then `name`. Ends: `seen` grows by each call.
    fn add(&mut self, name: &str) -> Result<()> {
        if self.builtin.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(file) = self.files.get(name) else { bail!("the kernel has no module {name}") };
        let content = read(file)?;
        for dependency in depends(&content) {
            self.add(&dependency).with_context(|| format!("{name} needs {dependency}"))?;
        }
        self.modules.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

/// The kernel treats `-` and `_` in a module's name as one.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn index(dir: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some((name, _)) = file_name(&path).split_once(".ko") {
            files.insert(canonical(name), path.clone());
        }
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn builtin(dir: &Path) -> Result<HashSet<String>> {
    let text = fs::read_to_string(dir.join("modules.builtin"))?;
    let names =
        text.lines().map(|line| canonical(file_name(Path::new(line)).trim_end_matches(".ko")));
    Ok(names.collect())
}

/// The module's bytes, unpacked.
fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let done = Command::new("xz").arg("-dc").arg(file).output().context("cannot start xz")?;
    if !done.status.success() {
        bail!("xz cannot unpack {}: {}", file.display(), String::from_utf8_lossy(&done.stderr));
    }
    Ok(done.stdout)
}

/// The names in the `depends=` entry.
fn depends(module: &[u8]) -> Vec<String> {
    const ENTRY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(ENTRY.len()).position(|window| window == ENTRY) else {
        return Vec::new();
    };
    let value = &module[at + ENTRY.len()..];
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    let names = String::from_utf8_lossy(&value[..end]);
    names.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let module = b"\x7fELF\0license=GPL\0depends=raid6_pq,libcrc32c,xor-blocks\0name=btrfs\0";
        assert_eq!(depends(module), ["raid6_pq", "libcrc32c", "xor_blocks"]);
        assert!(depends(b"\0depends=\0name=xor\0").is_empty());
        assert!(depends(b"\0depends=").is_empty());
        assert!(depends(b"nothing").is_empty());
    }
}
