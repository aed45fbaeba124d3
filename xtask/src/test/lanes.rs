//! Tests that may run beside others: two at a time, since a scenario waits more than it works.

use std::{
    collections::VecDeque,
    iter,
    sync::{Mutex, mpsc},
    thread,
};

use super::tally::{Finished, Tally, Test};

/// Runs `alone` in order, one after the other: they share this machine's kernel. Beside them and
/// after them run `anywhere`, of which each has a kernel of its own.
///
/// Results are told as they come.
pub(super) fn run<'a>(
    tally: &mut Tally,
    alone: impl IntoIterator<Item = Test<'a>, IntoIter: Send>,
    anywhere: impl IntoIterator<Item = Test<'a>>,
) {
    let left = Mutex::new(anywhere.into_iter().collect::<VecDeque<_>>());
    let next = || left.lock().expect("taking a test does not panic").pop_front();
    let (sender, finished) = mpsc::channel::<Finished>();
    let alone = alone.into_iter();
    thread::scope(|scope| {
        let first = sender.clone();
        scope.spawn(move || each(alone.chain(iter::from_fn(next)), &first));
        scope.spawn(move || each(iter::from_fn(next), &sender));
        for finished in finished {
            tally.tell(finished);
        }
    });
}

fn each<'a>(tests: impl Iterator<Item = Test<'a>>, to: &mpsc::Sender<Finished>) {
    for test in tests {
        // The receiver is there until both lanes have ended.
        let _ = to.send(test.run());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::test::tally::Outcome;

    #[test]
    fn every_test_of_both_kinds_runs_once_and_those_of_one_kernel_never_together() {
        let (running, runs) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let alone = (0..20).map(|number| {
            Test::new(format!("alone {number}"), || {
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
                thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                runs.fetch_add(1, Ordering::SeqCst);
                Ok(Outcome::Passed)
            })
        });
        let anywhere = (0..20).map(|number| {
            let runs = &runs;
            Test::new(format!("anywhere {number}"), move || {
                runs.fetch_add(1, Ordering::SeqCst);
                if number == 7 {
                    Ok(Outcome::Failed("it had to".to_owned()))
                } else {
                    Ok(Outcome::Passed)
                }
            })
        });
        let mut tally = Tally::new(true);
        run(&mut tally, alone, anywhere.collect::<Vec<_>>());
        assert_eq!(runs.into_inner(), 40);
        assert_eq!(tally.counts(), (39, 1, 0));
    }
}
