//! What a guest was asked, so that it can answer nothing else.

use std::collections::{HashMap, HashSet};

use crate::feed::{BlockAnswer, FsSlot, ToAgent, ToVerifier};

/// How many addresses are ever asked for: a guest that makes up stacks must not fill memory
/// with their names.
const ADDRESSES_MAX: usize = 1 << 18;

/// A guest says what it may not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// The first message is not a hello, or a later one is.
    #[error("it says hello {0}")]
    Hello(&'static str),
    /// It watches something else than what was named.
    #[error("it watches {found} devices where {wanted} were named")]
    Devices {
        /// How many it says.
        found: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// An answer without a question.
    #[error("it answers a read that was not asked for")]
    Read,
    /// An answer to another question.
    #[error("it answers a read of {wanted} bytes with {found}")]
    ReadLen {
        /// How many came.
        found: usize,
        /// How many were asked for.
        wanted: u32,
    },
    /// A name without a question.
    #[error("it names an address that was not asked for")]
    Symbol,
    /// Something is said of a file system that is not watched.
    #[error("it speaks of file system {0}, which is not watched")]
    FileSystem(u32),
}

/// Checks answers against questions.
#[derive(Debug)]
pub(super) struct Asked {
    devices: usize,
    said_hello: bool,
    reads: HashMap<(FsSlot, u64), u32>,
    addresses: HashSet<u64>,
}

impl Asked {
    pub(super) fn new(devices: usize) -> Self {
        Self { devices, said_hello: false, reads: HashMap::new(), addresses: HashSet::new() }
    }

    /// Notes a question. False: it is not to be asked.
    pub(super) fn ask(&mut self, request: &ToAgent) -> bool {
        match request {
            ToAgent::Read(read) => {
                self.reads.insert((read.fs, read.id), read.len_bytes);
            }
            ToAgent::Symbolise(addresses) => {
                if self.addresses.len() + addresses.len() > ADDRESSES_MAX {
                    return false;
                }
                self.addresses.extend(addresses);
            }
            ToAgent::Stop | ToAgent::Dump => {}
        }
        true
    }

    /// Checks a message.
    pub(super) fn check(&mut self, message: &ToVerifier) -> Result<(), Breach> {
        if !self.said_hello && !matches!(message, ToVerifier::Hello(_)) {
            return Err(Breach::Hello("too late"));
        }
        match message {
            ToVerifier::Hello(_) if self.said_hello => Err(Breach::Hello("again")),
            ToVerifier::Hello(hello) => {
                self.said_hello = true;
                let (found, wanted) = (hello.devices.len(), self.devices);
                if found == wanted { Ok(()) } else { Err(Breach::Devices { found, wanted }) }
            }
            ToVerifier::Events(events) => {
                events.iter().try_for_each(|event| self.file_system(event.fs))
            }
            ToVerifier::Block(answer) => self.block(answer),
            ToVerifier::Symbols(symbols) => {
                let asked = symbols.iter().all(|(address, _)| self.addresses.contains(address));
                if asked { Ok(()) } else { Err(Breach::Symbol) }
            }
            ToVerifier::Mount(mount) => self.file_system(mount.fs),
            ToVerifier::Commit { fs, .. }
            | ToVerifier::Abort { fs, .. }
            | ToVerifier::Unmount { fs } => self.file_system(*fs),
            ToVerifier::Loss(loss) => loss.fs.map_or(Ok(()), |fs| self.file_system(fs)),
            ToVerifier::Drained
            | ToVerifier::Retraction { .. }
            | ToVerifier::DumpWanted
            | ToVerifier::Tick { .. }
            | ToVerifier::Bye => Ok(()),
        }
    }

    fn file_system(&self, fs: FsSlot) -> Result<(), Breach> {
        if (fs.0 as usize) < self.devices { Ok(()) } else { Err(Breach::FileSystem(fs.0)) }
    }

    fn block(&mut self, answer: &BlockAnswer) -> Result<(), Breach> {
        let wanted = self.reads.remove(&(answer.fs, answer.id)).ok_or(Breach::Read)?;
        match &answer.data {
            Ok(data) if data.len() != wanted as usize => {
                Err(Breach::ReadLen { found: data.len(), wanted })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::feed::{BlockRequest, Hello, HookMode};

    fn hello(devices: usize) -> ToVerifier {
        ToVerifier::Hello(Hello {
            kernel_release: "6.18.0".into(),
            mode: HookMode::Kprobes,
            hooks: Vec::new(),
            unseen: Vec::new(),
            devices: vec!["/dev/vdb".into(); devices],
        })
    }

    fn asked() -> Asked {
        let mut asked = Asked::new(1);
        asked.check(&hello(1)).unwrap();
        let (fs, devid, offset) = (FsSlot(0), 1, 65_536);
        asked.ask(&ToAgent::Read(BlockRequest { fs, id: 7, devid, offset, len_bytes: 4096 }));
        asked.ask(&ToAgent::Symbolise(vec![1, 2]));
        asked
    }

    fn answer(id: u64, len: usize) -> ToVerifier {
        let data = Ok(Bytes::from(vec![0; len]));
        ToVerifier::Block(BlockAnswer { fs: FsSlot(0), id, data })
    }

    #[test]
    fn what_was_asked_may_be_answered_once() {
        let mut asked = asked();
        assert_eq!(asked.check(&answer(7, 4096)), Ok(()));
        assert_eq!(asked.check(&answer(7, 4096)), Err(Breach::Read));
        assert_eq!(asked.check(&ToVerifier::Symbols(vec![(2, "b".into())])), Ok(()));
    }

    #[test]
    fn what_was_not_asked_is_a_breach() {
        assert_eq!(asked().check(&answer(8, 4096)), Err(Breach::Read));
        let short = Breach::ReadLen { found: 100, wanted: 4096 };
        assert_eq!(asked().check(&answer(7, 100)), Err(short));
        let symbols = ToVerifier::Symbols(vec![(1, "a".into()), (3, "c".into())]);
        assert_eq!(asked().check(&symbols), Err(Breach::Symbol));
        assert_eq!(asked().check(&hello(1)), Err(Breach::Hello("again")));
        assert_eq!(Asked::new(1).check(&ToVerifier::Bye), Err(Breach::Hello("too late")));
        let two = Breach::Devices { found: 2, wanted: 1 };
        assert_eq!(Asked::new(1).check(&hello(2)), Err(two));
        let other = ToVerifier::Commit { fs: FsSlot(1), transid: 5 };
        assert_eq!(asked().check(&other), Err(Breach::FileSystem(1)));
    }
}
