//! What is kept of the actions on one extent.

use super::ActionRecord;

/// Bounds the actions since an extent's last allocation, oldest first: the first stays, which
/// is the allocation where it was seen, and the newest stay, the drop to zero among them.
/// Those between are given up.
pub(crate) fn bound<T>(actions: &mut Vec<T>, max: usize) {
    let Some(surplus) = actions.len().checked_sub(max.max(2)) else { return };
    actions.drain(1..=surplus);
}

/// Bounds actions for a report, where `done` is how many there ever were. Returns how many
/// were given up.
pub(crate) fn bound_and_count(actions: &mut Vec<ActionRecord>, max: usize, done: u64) -> u64 {
    bound(actions, max);
    done.saturating_sub(actions.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::bound;

    #[test]
    fn the_first_and_the_newest_stay() {
        let mut actions: Vec<u32> = (0..10).collect();
        bound(&mut actions, 4);
        assert_eq!(actions, [0, 7, 8, 9]);
    }

    #[test]
    fn what_is_within_the_bound_stays_whole() {
        let mut actions: Vec<u32> = (0..4).collect();
        bound(&mut actions, 4);
        assert_eq!(actions, [0, 1, 2, 3]);
    }
}
