//! Counts what passed, failed and was skipped.

use std::{
    io::{Write, stdout},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::vm::Verdict;

/// How one test ended.
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    Skipped(Skip),
    /// A program that counted for itself: passed, failed, ignored.
    Counted(u64, u64, u64),
}

/// Why a test was not run.
#[derive(Clone, Debug)]
pub(crate) struct Skip {
    pub(crate) reason: String,
    /// Whether this machine could have run it, had it been set up otherwise.
    pub(crate) could_run: bool,
}

impl Skip {
    /// This machine is not able to.
    pub(crate) fn cannot_run(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), could_run: false }
    }

    /// It would be able to.
    pub(crate) fn could_run(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), could_run: true }
    }
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Passed => Self::Passed,
            Verdict::Skipped(reason) => Self::Skipped(Skip::cannot_run(reason)),
            Verdict::Failed(why) => Self::Failed(why),
        }
    }
}

/// A test that has not run yet.
pub(crate) struct Test<'a> {
    name: String,
    run: Box<dyn FnOnce() -> Result<Outcome> + Send + 'a>,
}

impl<'a> Test<'a> {
    pub(crate) fn new(name: String, run: impl FnOnce() -> Result<Outcome> + Send + 'a) -> Self {
        Self { name, run: Box::new(run) }
    }

    /// Runs it. That it could not be run is a failure.
    pub(crate) fn run(self) -> Finished {
        let start = Instant::now();
        let outcome = (self.run)().unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        Finished { name: self.name, took: start.elapsed(), outcome }
    }
}

/// A test that has run.
pub(crate) struct Finished {
    name: String,
    took: Duration,
    outcome: Outcome,
}

/// The counts, and the names of all that did not pass.
pub(crate) struct Tally {
    strict: bool,
    passed: u64,
    failed: u64,
    skipped: u64,
    not_passed: Vec<String>,
}

impl Tally {
    /// `strict`: a skip that the machine could have run is a failure.
    pub(crate) fn new(strict: bool) -> Self {
        Self { strict, passed: 0, failed: 0, skipped: 0, not_passed: Vec::new() }
    }

    /// Runs one test, saying so before and after.
    pub(crate) fn run(&mut self, name: &str, test: impl FnOnce() -> Result<Outcome> + Send) {
        print!("{name:34} ");
        let _ = stdout().flush();
        let finished = Test::new(name.to_owned(), test).run();
        self.count(finished);
    }

    /// Tells of one test that was run elsewhere.
    pub(crate) fn tell(&mut self, finished: Finished) {
        print!("{:34} ", finished.name);
        self.count(finished);
    }

    fn count(&mut self, finished: Finished) {
        print!("{:6.1} s  ", finished.took.as_secs_f64());
        self.record(&finished.name, finished.outcome);
    }

    /// Counts an outcome and ends the line.
    pub(crate) fn record(&mut self, name: &str, outcome: Outcome) {
        match outcome {
            Outcome::Passed => {
                println!("passed");
                self.passed += 1;
            }
            Outcome::Failed(why) => self.fail(name, &why),
            Outcome::Skipped(skip) if self.strict && skip.could_run => {
                self.fail(name, &format!("skipped, and could have been run: {}", skip.reason));
            }
            Outcome::Skipped(skip) => {
                println!("SKIPPED: {}", skip.reason);
                self.not_passed.push(format!("skipped: {name}: {}", skip.reason));
                self.skipped += 1;
            }
            Outcome::Counted(passed, failed, ignored) => {
                println!("{passed} passed, {failed} failed, {ignored} ignored");
                if failed + ignored > 0 {
                    self.not_passed.push(format!("{name}: {failed} failed, {ignored} ignored"));
                }
                self.passed += passed;
                self.failed += failed;
                self.skipped += ignored;
            }
        }
    }

    fn fail(&mut self, name: &str, why: &str) {
        println!("FAILED");
        println!("    {}", why.replace('\n', "\n    "));
        let first = why.lines().next().unwrap_or_default();
        self.not_passed.push(format!("FAILED: {name}: {first}"));
        self.failed += 1;
    }

    /// How many passed, failed and were skipped.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (self.passed, self.failed, self.skipped)
    }

    /// Prints the summary; the exit status says whether anything failed.
    pub(crate) fn summary(&self) -> ExitCode {
        for line in &self.not_passed {
            println!("{line}");
        }
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nobody_reads_a_skip_that_could_have_run_is_a_failure() {
        for (strict, could_run, failed) in
            [(false, true, 0), (true, true, 1), (true, false, 0), (false, false, 0)]
        {
            let mut tally = Tally::new(strict);
            let skip = Skip { reason: "no root".to_owned(), could_run };
            tally.record("test", Outcome::Skipped(skip));
            assert_eq!(tally.counts(), (0, failed, 1 - failed));
        }
    }

    #[test]
    fn an_error_is_a_failure() {
        let mut tally = Tally::new(false);
        tally.run("test", || anyhow::bail!("broken"));
        tally.run("test", || Ok(Outcome::Passed));
        assert_eq!(tally.counts(), (1, 1, 0));
    }
}
