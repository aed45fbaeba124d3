//! Names of the watched file systems, learned from the notices as they pass.

use std::fmt;

use uuid::Uuid;

use super::printable::Printable;
use crate::{feed::FsSlot, verify::Notice};

/// What a report calls each watched file system.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// The virtual machine that they are in, made printable.
    vm: Option<String>,
    names: Vec<Name>,
}

/// A file system as reports name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Name {
    /// The device as the user gave it: [`Printable`] where a terminal may read it.
    pub(super) device: String,
    /// The fsid on disk; `None` until it was read.
    pub(super) fsid: Option<Uuid>,
    /// The virtual machine it is in; `None` for this machine.
    pub(super) vm: Option<String>,
}

/// As scp writes it: the virtual machine, a colon, the device.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(vm) = &self.vm {
            write!(f, "{vm}:")?;
        }
        write!(f, "{}", Printable(&self.device))
    }
}

impl Watched {
    /// Nothing known yet of what is watched in this virtual machine, or on this one.
    pub(super) fn of(vm: Option<&str>) -> Self {
        Self { vm: vm.map(|vm| Printable(vm).to_string()), names: Vec::new() }
    }

    /// The virtual machine, if it is one.
    pub(super) fn vm(&self) -> Option<&str> {
        self.vm.as_deref()
    }

    /// Learns what a notice says of names.
    pub(super) fn observe(&mut self, notice: &Notice) {
        match notice {
            Notice::Started(hello) => {
                let name = |device: &String| Name {
                    device: Printable(device).to_string(),
                    fsid: None,
                    vm: self.vm.clone(),
                };
                self.names = hello.devices.iter().map(name).collect();
            }
            // Another file system may have been made there since; what it is was not read yet.
            Notice::Mounted { fs, .. } => self.set_fsid(*fs, None),
            Notice::Named { fs, fsid } | Notice::Seeding { fs, fsid, .. } => {
                self.set_fsid(*fs, Some(*fsid));
            }
            _ => {}
        }
    }

    fn set_fsid(&mut self, fs: FsSlot, fsid: Option<Uuid>) {
        if let Some(name) = self.names.get_mut(fs.0 as usize) {
            name.fsid = fsid;
        }
    }

    /// The device of a slot, for a line of text.
    pub(super) fn device(&self, fs: FsSlot) -> String {
        self.name(fs).to_string()
    }

    /// The names of a slot; one that was never announced is called by its number.
    pub(super) fn name(&self, fs: FsSlot) -> Name {
        let unknown =
            || Name { device: format!("file system {}", fs.0), fsid: None, vm: self.vm.clone() };
        self.names.get(fs.0 as usize).cloned().unwrap_or_else(unknown)
    }
}
