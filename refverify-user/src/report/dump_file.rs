//! Writes a ledger dump so that a reader sees the old one or the new one, never a part.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Writes `text` to a new file beside `path`, readable by its owner only, and renames it to
/// `path`.
///
/// # Errors
///
/// What the file system says. The old file is then as it was.
pub(super) fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let mut file = NewFile::create(path)?;
    file.write_all(text.as_bytes())?;
    file.finish()
}

/// A file that gets its name when it is whole; until then, and if that fails, nothing is
/// changed.
#[derive(Debug)]
pub(super) struct NewFile {
    file: BufWriter<File>,
    /// `None` once it has its name.
    temporary: Option<PathBuf>,
    path: PathBuf,
}

impl NewFile {
    /// Makes a new file beside `path`, readable by its owner only.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let temporary = temporary_beside(path)?;
        // One may be left of an earlier run that was killed; a link that someone put there is
        // removed, not followed.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let file = BufWriter::new(file);
        Ok(Self { file, temporary: Some(temporary), path: path.to_owned() })
    }

    /// Gives it its name, in place of what had it before.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.flush()?;
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.path)?;
        }
        self.temporary = None;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "the path does not end in a file name")
    })?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", std::process::id()));
    Ok(path.with_file_name(temporary))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::write_atomically;

    #[test]
    fn a_dump_replaces_the_old_one_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        fs::write(&path, "an old and longer dump\n").unwrap();
        write_atomically(&path, "end\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "end\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary file is gone");
    }

    #[test]
    fn a_dump_that_cannot_be_renamed_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        fs::create_dir(&path).unwrap();
        write_atomically(&path, "end\n").unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
