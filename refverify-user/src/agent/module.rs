//! Whether the btrfs module is loaded, and whether it is still the same.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// Where the kernel shows it.
const MODULE: &str = "/sys/module/btrfs";

/// One loading of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loading {
    /// The inode of its directory in sysfs: each directory there gets a number of its own (kernel:
    /// `kernfs_new_node`).
    inode: u64,
}

/// The loading that is in force; none while the module is not there, or comes, or goes. None for
/// ever where btrfs is built in.
pub(super) fn loading() -> Option<Loading> {
    loading_in(Path::new(MODULE))
}

fn loading_in(module: &Path) -> Option<Loading> {
    // Before the state: if it is another one by then, that shows in the next look.
    let inode = fs::metadata(module).ok()?.ino();
    let state = fs::read_to_string(module.join("initstate")).ok()?;
    (state.trim_end() == "live").then_some(Loading { inode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_was_loaded_again_is_another_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let load = |name: &str, state: &str| {
            let module = dir.path().join(name);
            fs::create_dir(&module).expect("created");
            fs::write(module.join("initstate"), state).expect("written");
            loading_in(&module)
        };
        let first = load("first", "live\n");
        assert!(first.is_some() && first == loading_in(&dir.path().join("first")));
        assert_ne!(first, load("second", "live\n"));
        assert_eq!(load("coming", "coming\n"), None);
        assert_eq!(loading_in(dir.path()), None, "built in");
        assert_eq!(loading_in(&dir.path().join("none")), None);
    }
}
