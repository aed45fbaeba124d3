//! Copies that were no good while another was: which device failed is worth a word, once.
//!
//! On a live file system a copy can be no good only because its block was freed and is being
//! used again, while the other copy is not overwritten yet. That cannot be before a newer
//! superblock is on disk: so a device is blamed only when a superblock that was read later still
//! is of the generation whose tree the block is in.

use std::collections::{BTreeMap, BTreeSet};

use super::{MirrorFault, reads::BadCopy};
use crate::btrfs::format::BlockPointer;

/// A device that may have failed.
#[derive(Debug)]
struct Suspicion {
    fault: MirrorFault,
    /// The superblock's, when it was met.
    generation: u64,
}

/// All devices that may have failed, each once.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    suspicions: BTreeMap<u64, Suspicion>,
    /// Those for which the superblock is being read.
    being_confirmed: Vec<Suspicion>,
    told: BTreeSet<u64>,
}

impl Mirrors {
    /// Takes in what was wrong with copies of a block that was good in the end.
    pub(super) fn suspect(
        &mut self,
        generation: u64,
        pointer: BlockPointer,
        bad_copies: Vec<BadCopy>,
    ) {
        for BadCopy { devid, fault } in bad_copies {
            if let Some(devid) = devid.filter(|devid| !self.told.contains(devid)) {
                let fault = MirrorFault { devid, pointer, fault };
                self.suspicions.entry(devid).or_insert(Suspicion { fault, generation });
            }
        }
    }

    /// Whether the superblock should be read now: it is asked for once at a time.
    pub(super) fn take_question(&mut self) -> bool {
        let ask = self.being_confirmed.is_empty() && !self.suspicions.is_empty();
        if ask {
            self.being_confirmed = std::mem::take(&mut self.suspicions).into_values().collect();
        }
        ask
    }

    /// Takes the generation of the superblock that was read; without one nothing is confirmed.
    pub(super) fn confirm(&mut self, generation: Option<u64>) -> Vec<MirrorFault> {
        let mut confirmed = Vec::new();
        for suspicion in std::mem::take(&mut self.being_confirmed) {
            let is_same = generation == Some(suspicion.generation);
            if is_same && self.told.insert(suspicion.fault.devid) {
                confirmed.push(suspicion.fault);
            }
        }
        confirmed
    }

    /// Whether there is nothing left to ask.
    pub(super) fn is_settled(&self) -> bool {
        self.being_confirmed.is_empty() && self.suspicions.is_empty()
    }
}
