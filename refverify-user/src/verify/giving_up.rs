//! What memory's bound has cost so far, so that it is told, and told once.

use super::{GaveUp, ledger::Kept};

/// What has been told of what was given up.
#[derive(Debug, Default)]
pub(crate) struct GivingUp {
    told_histories: bool,
    told_freed: bool,
    told_everything: bool,
}

impl GivingUp {
    /// What is to be told now, after a look at what the ledger has kept.
    pub(crate) fn news(&mut self, kept: &Kept) -> Vec<GaveUp> {
        let mut news = Vec::new();
        if kept.history_after > 0 && !self.told_histories {
            self.told_histories = true;
            news.push(GaveUp::Histories { upto: kept.history_after });
        }
        if kept.tombstones_after > 0 && !self.told_freed {
            self.told_freed = true;
            news.push(GaveUp::FreedExtents { upto: kept.tombstones_after });
        }
        if kept.over_ceiling && !self.told_everything {
            self.told_everything = true;
            news.push(GaveUp::Everything { in_use_bytes: kept.total_bytes });
        }
        news
    }
}

/// A transaction, where there was one.
pub(crate) fn given_up_to(transid: u64) -> Option<u64> {
    (transid > 0).then_some(transid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_is_told_once_and_when_it_comes() {
        let mut giving_up = GivingUp::default();
        let mut kept = Kept::default();
        assert_eq!(giving_up.news(&kept), []);
        kept.history_after = 7;
        assert_eq!(giving_up.news(&kept), [GaveUp::Histories { upto: 7 }]);
        kept.history_after = 9;
        assert_eq!(giving_up.news(&kept), []);
        kept.tombstones_after = 8;
        kept.over_ceiling = true;
        kept.total_bytes = 5;
        let all = [GaveUp::FreedExtents { upto: 8 }, GaveUp::Everything { in_use_bytes: 5 }];
        assert_eq!(giving_up.news(&kept), all);
        assert_eq!(giving_up.news(&kept), []);
    }
}
