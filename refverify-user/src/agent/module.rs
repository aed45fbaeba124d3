//! Whether the btrfs module is loaded, and whether it is still the same.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use rustix::io::Errno;

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
pub(super) fn loading() -> io::Result<Option<Loading>> {
    loading_in(Path::new(MODULE))
}

fn loading_in(module: &Path) -> io::Result<Option<Loading>> {
    // Before the state: if it is another one by then, that shows in the next look.
    let Some(metadata) = if_there(fs::metadata(module))? else { return Ok(None) };
    let state = if_there(fs::read_to_string(module.join("initstate")))?;
    let is_live = state.is_some_and(|state| state.trim_end() == "live");
    Ok(is_live.then(|| Loading { inode: metadata.ino() }))
}

/// That something is not there is an answer; that it cannot be looked at is none.
fn if_there<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(error) => match Errno::from_io_error(&error) {
            // The second: it went between opening and reading (kernel: `kernfs_seq_start`).
            Some(Errno::NOENT | Errno::NODEV) => Ok(None),
            _ => Err(error),
        },
    }
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
            loading_in(&module).expect("looked at")
        };
        let first = load("first", "live\n");
        assert!(
            first.is_some() && first == loading_in(&dir.path().join("first")).expect("looked at")
        );
        assert_ne!(first, load("second", "live\n"));
        assert_eq!(load("coming", "coming\n"), None);
        let is_none = |module: &Path| loading_in(module).is_ok_and(|loading| loading.is_none());
        assert!(is_none(dir.path()), "built in");
        assert!(is_none(&dir.path().join("none")));
    }

    #[test]
    fn a_module_that_cannot_be_looked_at_is_not_taken_for_one_that_is_gone() {
        // What is read of the state is no text.
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("initstate")).expect("created");
        assert!(loading_in(dir.path()).is_err());
    }
}
