//! A storm of findings is told in part: where the same kind comes again and again, for one extent or
//! for thousands, it is told ever more rarely. What is withheld is counted, and told with the next
//! one that is, and at the end.

use std::collections::{BTreeMap, HashMap};

use super::{Finding, FindingKind};
use crate::feed::FsSlot;

/// What has come, and what of it was told.
#[derive(Debug, Default)]
pub(crate) struct Storm {
    of_extents: HashMap<(FsSlot, FindingKind, u64), u64>,
    of_kinds: BTreeMap<(FsSlot, FindingKind), OfKind>,
}

#[derive(Debug, Default)]
struct OfKind {
    count: u64,
    /// Since the last one that was told.
    withheld: u64,
    withheld_in_all: u64,
}

impl Storm {
    /// So many of one kind are told before they are told more rarely.
    const OF_KIND_MAX: u64 = 1000;

    /// Of so many extents it is known how often each was told; with more that begins anew.
    const EXTENTS_MAX: usize = 1 << 16;

    /// Whether this one is to be told. If so, it learns how many of its kind were withheld since
    /// the last that was.
    ///
    /// Of one extent the first is told, and then each that doubles their number; the same of one
    /// kind, past the first thousand.
    pub(crate) fn lets_pass(&mut self, finding: &mut Finding) -> bool {
        if self.of_extents.len() >= Self::EXTENTS_MAX {
            self.of_extents.clear();
        }
        let extent = (finding.fs, finding.kind, finding.bytenr());
        let of_extent = self.of_extents.entry(extent).or_insert(0);
        *of_extent += 1;
        let of_kind = self.of_kinds.entry((finding.fs, finding.kind)).or_default();
        of_kind.count += 1;
        let is_rare = of_kind.count <= Self::OF_KIND_MAX || of_kind.count.is_power_of_two();
        if is_rare && of_extent.is_power_of_two() {
            finding.withheld = std::mem::take(&mut of_kind.withheld);
            return true;
        }
        of_kind.withheld += 1;
        of_kind.withheld_in_all += 1;
        false
    }

    /// How many were withheld in all, of those kinds of which any were.
    pub(crate) fn withheld(&self) -> BTreeMap<FindingKind, u64> {
        let mut withheld = BTreeMap::new();
        for ((_, kind), of_kind) in &self.of_kinds {
            if of_kind.withheld_in_all > 0 {
                *withheld.entry(*kind).or_insert(0) += of_kind.withheld_in_all;
            }
        }
        withheld
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        btrfs::Action,
        verify::{Cause, testing::data_event},
    };

    fn finding(bytenr: u64) -> Finding {
        let cause = Cause::Event(data_event(Action::DropRef, bytenr, 0, 9));
        Finding::new(FindingKind::NoEntry, FsSlot(0), cause, None)
    }

    fn told(bytenrs: impl Iterator<Item = u64>) -> (Vec<u64>, Storm) {
        let mut storm = Storm::default();
        let mut told = Vec::new();
        for bytenr in bytenrs {
            let mut finding = finding(bytenr);
            if storm.lets_pass(&mut finding) {
                told.push(finding.withheld);
            }
        }
        (told, storm)
    }

    #[test]
    fn the_same_finding_again_and_again_is_told_ever_more_rarely_and_counted() {
        let (told, storm) = told(std::iter::repeat_n(4096, 100));
        assert_eq!(told, [0, 0, 1, 3, 7, 15, 31], "the 1st, 2nd, 4th, 8th, ... 64th");
        assert_eq!(storm.withheld(), BTreeMap::from([(FindingKind::NoEntry, 93)]));
    }

    #[test]
    fn findings_of_as_many_extents_are_all_told_up_to_a_thousand() {
        let (told, storm) = told((0..5000).map(|number| number * 4096));
        assert_eq!(told.len(), 1000 + 3, "and the 1024th, 2048th and 4096th");
        assert_eq!(told[1000..], [23, 1023, 2047]);
        assert_eq!(storm.withheld(), BTreeMap::from([(FindingKind::NoEntry, 3997)]));
    }

    #[test]
    fn a_storm_does_not_fill_the_memory() {
        let (_, storm) = told((0..200_000).map(|number| number * 4096));
        assert!(storm.of_extents.len() <= Storm::EXTENTS_MAX);
    }
}
