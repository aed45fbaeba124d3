//! How far the reading of an extent tree is: a bar where stderr is a terminal, otherwise a
//! line in the log now and then.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::feed::FsSlot;

/// A line in the log is due after this share of the key space, in thousandths ...
const LOG_STEP_PERMILLE: u32 = 100;
/// ... or after this time.
const LOG_STEP_TIME: Duration = Duration::from_secs(5);

/// Shows how far each file system is.
#[derive(Debug, Default)]
pub struct Progress {
    /// The terminal's bars; `None` where there is no terminal.
    bars: Option<MultiProgress>,
    shown: BTreeMap<FsSlot, ProgressBar>,
    paces: BTreeMap<FsSlot, Pace>,
}

/// What a reading of the extent tree has reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    pub(super) permille: u32,
    pub(super) extents: u64,
    /// `None` where nothing happens meanwhile.
    pub(super) events_waiting: Option<u64>,
}

/// When something was last said of a reading.
#[derive(Clone, Copy, Debug)]
struct Pace {
    permille: u32,
    at: Instant,
    /// When the reading began.
    began: Instant,
}

/// Whether something is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The reading begins.
    First,
    /// Enough has happened since the last time.
    Again,
    /// Not yet.
    No,
}

impl Progress {
    /// With bars on the terminal that stderr is.
    pub fn on_terminal() -> Self {
        Self { bars: Some(MultiProgress::new()), ..Self::default() }
    }

    /// With lines in the log.
    pub fn in_log() -> Self {
        Self::default()
    }

    /// Another one, that shows other file systems at the same place.
    #[must_use]
    pub fn beside_this(&self) -> Self {
        Self { bars: self.bars.clone(), ..Self::default() }
    }

    /// A writer to stderr that does not disturb the bars; for the log.
    pub fn stderr(&self) -> StderrBesideBars {
        StderrBesideBars { bars: self.bars.clone() }
    }

    /// Takes the bars off the terminal while `write` runs.
    pub(super) fn beside<R>(&self, write: impl FnOnce() -> R) -> R {
        beside(self.bars.as_ref(), write)
    }

    /// Shows how far `fs` is, and says whether a report of it is due.
    pub(super) fn update(&mut self, fs: FsSlot, device: &str, reached: Reached) -> Due {
        let now = Instant::now();
        let due = self.due(fs, reached.permille, now);
        let elapsed = self.paces.get(&fs).map_or(Duration::ZERO, |pace| now - pace.began);
        match &self.bars {
            Some(bars) => {
                let bar = self.shown.entry(fs).or_insert_with(|| bars.add(bar(device)));
                bar.set_position(u64::from(reached.permille));
                bar.set_message(words(reached, elapsed));
            }
            None if due == Due::Again => {
                let percent = reached.permille / 10;
                let words = words(reached, elapsed);
                tracing::info!("{device}: {percent} % of the extent tree read, {words}");
            }
            None => {}
        }
        due
    }

    /// The reading of `fs` is over.
    pub(super) fn end(&mut self, fs: FsSlot) {
        self.paces.remove(&fs);
        if let Some(bar) = self.shown.remove(&fs) {
            bar.finish_and_clear();
        }
    }

    fn due(&mut self, fs: FsSlot, permille: u32, now: Instant) -> Due {
        let due = match self.paces.get(&fs) {
            None => Due::First,
            Some(last)
                if permille >= last.permille.saturating_add(LOG_STEP_PERMILLE)
                    || now.duration_since(last.at) >= LOG_STEP_TIME =>
            {
                Due::Again
            }
            Some(_) => Due::No,
        };
        if due != Due::No {
            let began = self.paces.get(&fs).map_or(now, |pace| pace.began);
            self.paces.insert(fs, Pace { permille, at: now, began });
        }
        due
    }
}

/// Writes to stderr while no bar is in the way.
#[derive(Clone, Debug)]
pub struct StderrBesideBars {
    bars: Option<MultiProgress>,
}

impl Write for StderrBesideBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        beside(self.bars.as_ref(), || io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn beside<R>(bars: Option<&MultiProgress>, write: impl FnOnce() -> R) -> R {
    match bars {
        Some(bars) => bars.suspend(write),
        None => write(),
    }
}

fn bar(device: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{wide_bar}] {percent} % {msg}")
        .expect("the template is a constant");
    ProgressBar::new(1000).with_style(style).with_prefix(device.to_owned())
}

fn words(reached: Reached, elapsed: Duration) -> String {
    let Reached { permille, extents, events_waiting } = reached;
    let mut words = format!("{extents} extents");
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    // Before, a guess would only mislead.
    if millis >= 500 && permille > 0 {
        let per_second = extents.saturating_mul(1000) / millis;
        let left = millis.saturating_mul(1000_u64.saturating_sub(permille.into()));
        let left_seconds = left / u64::from(permille) / 1000;
        let _ = write!(words, ", {per_second}/s, {left_seconds} s left");
    }
    if let Some(events) = events_waiting {
        let _ = write!(words, ", {events} events waiting");
    }
    words
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Due, FsSlot, Progress, Reached, words};

    #[test]
    fn time_left_is_guessed_from_the_share_that_is_read() {
        let reached = Reached { permille: 250, extents: 1000, events_waiting: None };
        let words = words(reached, Duration::from_secs(2));
        assert_eq!(words, "1000 extents, 500/s, 6 s left");
        let nothing_yet = Reached { permille: 0, extents: 0, events_waiting: Some(3) };
        assert_eq!(
            super::words(nothing_yet, Duration::from_secs(2)),
            "0 extents, 3 events waiting"
        );
    }

    #[test]
    fn a_reading_that_commits_interrupt_all_the_time_does_not_flood_the_log() {
        let fs = FsSlot(0);
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut progress = Progress::in_log();
        assert_eq!(progress.due(fs, 0, after(0)), Due::First);
        assert_eq!(progress.due(fs, 1, after(10)), Due::No);
        assert_eq!(progress.due(fs, 99, after(20)), Due::No);
        assert_eq!(progress.due(fs, 100, after(30)), Due::Again);
        assert_eq!(progress.due(fs, 101, after(4_000)), Due::No);
        assert_eq!(progress.due(fs, 101, after(5_030)), Due::Again);
        assert_eq!(progress.due(FsSlot(1), 0, after(5_030)), Due::First);
        progress.end(fs);
        assert_eq!(progress.due(fs, 0, after(5_040)), Due::First);
    }
}
