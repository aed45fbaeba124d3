//! A writer of initramfs archives: cpio in the "newc" format (kernel:
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::HashSet,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written. Directories are made as files need them.
pub(super) struct Archive<W: Write> {
    out: W,
    len_bytes: usize,
    entries: u32,
    known: HashSet<PathBuf>,
}

impl Archive<BufWriter<File>> {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self::new(BufWriter::new(file)))
    }
}

impl<W: Write> Archive<W> {
    fn new(out: W) -> Self {
        Self { out, len_bytes: 0, entries: 0, known: HashSet::new() }
    }

    /// An executable or readable file; a path that is there already is left alone.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let path = Path::new(path.trim_start_matches('/'));
        if self.known.contains(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.entry(path, REGULAR | mode, content, (0, 0))
    }

    /// A directory and those above it.
    pub(super) fn directory(&mut self, path: &Path) -> Result<()> {
        let path = path.strip_prefix("/").unwrap_or(path);
        if path == Path::new("") || self.known.contains(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.entry(path, DIRECTORY | 0o755, &[], (0, 0))
    }

    /// A character device.
    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        let path = Path::new(path.trim_start_matches('/'));
        self.directory(path.parent().unwrap_or(Path::new("")))?;
        self.entry(path, CHARACTER_DEVICE | 0o600, &[], (major, minor))
    }

    /// Writes the trailer.
    pub(super) fn finish(mut self) -> Result<W> {
        self.entry(Path::new("TRAILER!!!"), 0, &[], (0, 0))?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8], device: (u32, u32)) -> Result<()> {
        self.entries += 1;
        self.known.insert(path.to_owned());
        let name = path.to_str().context("a name in the archive is not UTF-8")?;
        let len = u32::try_from(content.len()).context("a file in the archive is too long")?;
        let name_len = u32::try_from(name.len() + 1)?;
        // magic; then ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor,
        // rdevmajor, rdevminor, namesize, check: eight hexadecimal digits each.
        let fields = [self.entries, mode, 0, 0, 1, 0, len, 0, 0, device.0, device.1, name_len, 0];
        let mut header = String::from("070701");
        header.extend(fields.iter().map(|field| format!("{field:08x}")));
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.len_bytes += bytes.len();
        self.out.write_all(bytes).context("cannot write the archive")
    }

    fn pad(&mut self) -> Result<()> {
        let gap = self.len_bytes.next_multiple_of(4) - self.len_bytes;
        self.put(&[0; 3][..gap])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_contents_are_padded_and_parents_come_first() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/bin/ab", 0o755, b"12345").unwrap();
        archive.file("/bin/ab", 0o755, b"again, and ignored").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.len() % 4, 0);
        let offsets: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(offsets.len(), 3, "bin, bin/ab and the trailer");
        assert!(offsets.iter().all(|at| at % 4 == 0));
        assert_eq!(&text[offsets[0] + 110..][..4], "bin\0");
        assert_eq!(&text[offsets[1] + 110..][..15], concat!("bin/ab", "\0\0\0\0", "12345"));
        assert_eq!(&text[offsets[1] + 14..][..8], "000081ed");
        assert_eq!(&text[offsets[1] + 54..][..8], "00000005");
        assert!(text[offsets[1]..].contains("12345\0\0\0"));
    }
}
