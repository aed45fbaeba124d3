//! Writes every extent to a file, in the form of docs/ledger-dump.md.

use std::{
    fmt::Write as _,
    io::{self, Write},
    path::Path,
};

use super::super::{dump_file::NewFile, printable::Printable};
use crate::btrfs::{DiskExtent, ExtentKind};

/// A dump being written. The file appears under its name when it is whole.
#[derive(Debug)]
pub struct CheckDump {
    file: NewFile,
    text: String,
}

impl CheckDump {
    /// A new file beside `path`.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: NewFile::create(path)?, text: String::new() })
    }

    /// The extents that follow are those of this generation.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn generation(&mut self, device: &str, generation: u64) -> io::Result<()> {
        let device = Printable(device);
        let _ = writeln!(self.text, "fs 0 device {device} state read generation {generation}");
        self.flush()
    }

    /// Writes one extent.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn extent(&mut self, extent: &DiskExtent) -> io::Result<()> {
        let DiskExtent { bytenr, len_bytes, kind, total_refs, .. } = extent;
        let _ = match kind {
            ExtentKind::Data => {
                writeln!(self.text, "extent {bytenr} len {len_bytes} data refs {total_refs}")
            }
            ExtentKind::TreeBlock { level } => writeln!(
                self.text,
                "extent {bytenr} len {len_bytes} tree level {level} refs {total_refs}"
            ),
        };
        let mut refs = extent.refs.clone();
        refs.sort_unstable();
        for (key, count) in refs {
            let (root, parent, owner, offset) = (key.root, key.parent, key.owner, key.offset);
            let _ = writeln!(
                self.text,
                "ref root {root} parent {parent} owner {owner} offset {offset} count {count}"
            );
        }
        self.flush()
    }

    /// All is written; gives the file its name.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn finish(mut self) -> io::Result<()> {
        self.text.push_str("end\n");
        self.flush()?;
        self.file.finish()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(self.text.as_bytes())?;
        self.text.clear();
        Ok(())
    }
}
