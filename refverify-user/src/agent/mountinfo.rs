//! What is mounted where, as `/proc/self/mountinfo` says it.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// The device that is mounted as btrfs at `mount_point`, by the contents of
/// `/proc/self/mountinfo`; of several mounts there the last one, which hides the others.
pub(super) fn btrfs_source(mountinfo: &[u8], mount_point: &Path) -> Option<PathBuf> {
    let mut lines = mountinfo.split(|&byte| byte == b'\n').filter_map(MountLine::parse);
    let last = lines.rfind(|line| line.mount_point == mount_point)?;
    (last.kind == b"btrfs").then_some(last.source)
}

/// What is of interest in one line of mountinfo (proc(5)):
/// `36 35 98:0 /root /mount/point options [optional fields] - type source super-options`.
struct MountLine {
    mount_point: PathBuf,
    kind: Vec<u8>,
    source: PathBuf,
}

impl MountLine {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|&byte| byte == b' ');
        let mount_point = path_of(words.nth(4)?);
        let mut words = words.skip_while(|word| *word != b"-").skip(1);
        let kind = words.next()?.to_vec();
        Some(Self { mount_point, kind, source: path_of(words.next()?) })
    }
}

/// Undoes the kernel's escapes: `\040` is a blank (kernel: `mangle_path`).
fn path_of(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if first == b'\\' => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_that_hides_the_others_decides_and_blanks_in_paths_are_understood() {
        let mountinfo = b"\
22 1 0:21 / /proc rw - proc proc rw\n\
40 1 0:40 / /mnt\\040one rw,relatime shared:1 - btrfs /dev/loop\\0407 rw,ssd\n\
41 1 0:41 / /mnt/two rw - btrfs /dev/loop1 rw\n\
42 41 8:1 / /mnt/two rw master:2 - ext4 /dev/sda1 rw\n\
garbage\n\
43 1 0:43 / /cut rw\n";
        let source = |path| btrfs_source(mountinfo, Path::new(path));
        assert_eq!(source("/mnt one"), Some(PathBuf::from("/dev/loop 7")));
        assert_eq!(source("/mnt/two"), None, "an ext4 lies over it");
        assert_eq!(source("/cut"), None);
        assert_eq!(source("/nowhere"), None);
    }
}
