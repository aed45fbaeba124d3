//! Sends each notice where it belongs: to stdout, to the journal, to the progress bar, or into
//! the dump file.

use std::{
    collections::VecDeque,
    io::{self, Write},
    path::PathBuf,
};

use super::{
    dump_file,
    journal::{Delivery, Journal},
    journal_entry, json,
    label::Label,
    lifecycle,
    progress::{Due, Progress, Reached},
    summary, text,
    watched::Watched,
};
use crate::verify::{Finding, Notice, Summary};

/// How many of the last findings are kept.
const FINDINGS_KEPT: usize = 64;

/// What goes to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text for people.
    Text {
        /// Findings stand out in red. Only for a terminal.
        colour: bool,
    },
    /// One JSON object on one line for each notice.
    Json,
    /// Nothing: stdout leads to the journal, which gets everything in its own form.
    Nothing,
}

/// What a reporter needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What goes to the output.
    pub format: Format,
    /// Where a ledger dump goes when one is asked for.
    pub ledger_dump: Option<PathBuf>,
    /// The virtual machine whose file systems these are; `None` for this machine.
    pub vm: Option<String>,
}

/// How a run ended, for the exit status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The summary; `None` when the run ended without one.
    pub summary: Option<Summary>,
    /// A report could not be written to the output for another reason than that its reader
    /// has gone.
    pub output_failed: bool,
    /// The last findings, as many as a flight record tells.
    pub findings: VecDeque<Finding>,
}

/// The exit status: a mask of 1 (the output failed), 2 (findings) and 4 (something was not
/// verified).
pub fn exit_status(outcome: &Outcome) -> u8 {
    let output = u8::from(outcome.output_failed);
    let Some(summary) = &outcome.summary else { return output | 4 };
    let findings = if summary.has_findings() { 2 } else { 0 };
    let gaps = if summary.has_gaps() { 4 } else { 0 };
    output | findings | gaps
}

/// Turns notices into reports.
#[derive(Debug)]
pub struct Reporter<W> {
    settings: Settings,
    /// `None` after a write failed.
    out: Option<W>,
    journal: Option<Journal>,
    progress: Progress,
    watched: Watched,
    outcome: Outcome,
}

impl<W: Write> Reporter<W> {
    /// Reports to `out` as the settings say, and to the journal where there is one.
    pub fn new(settings: Settings, out: W, journal: Option<Journal>, progress: Progress) -> Self {
        let (watched, outcome) = (Watched::of(settings.vm.as_deref()), Outcome::default());
        Self { settings, out: Some(out), journal, progress, watched, outcome }
    }

    /// Whether anybody can still read what is reported.
    pub fn has_readers(&self) -> bool {
        self.journal.is_some() || (self.out.is_some() && self.settings.format != Format::Nothing)
    }

    /// Reports one notice. Notices are in the order in which the verifier gave them.
    pub fn report(&mut self, notice: Notice) {
        self.watched.observe(&notice);
        let due = self.follow_progress(&notice);
        match notice {
            Notice::Dump(text) => self.dump(&text),
            // Every step of a reading would be noise; a JSON consumer gets some of them.
            Notice::Seeding { .. } if due == Due::No => {}
            Notice::Seeding { .. } if due == Due::Again => {
                if self.settings.format == Format::Json {
                    self.write(&notice, None);
                }
            }
            Notice::Summary(summary) => self.end(summary),
            notice => {
                self.post(&notice);
                self.write(&notice, None);
                self.keep(notice);
            }
        }
    }

    fn keep(&mut self, notice: Notice) {
        let Notice::Finding(finding) = notice else { return };
        if self.outcome.findings.len() == FINDINGS_KEPT {
            self.outcome.findings.pop_front();
        }
        self.outcome.findings.push_back(*finding);
    }

    /// The end: what the exit status is made of.
    pub fn finish(self) -> Outcome {
        if let Some(journal) = &self.journal {
            journal.settle();
        }
        self.outcome
    }

    fn follow_progress(&mut self, notice: &Notice) -> Due {
        match notice {
            Notice::Seeding { fs, done_permille, extents, events_waiting, .. } => {
                let device = self.watched.device(*fs);
                let reached = Reached {
                    permille: *done_permille,
                    extents: *extents,
                    events_waiting: Some(*events_waiting),
                };
                return self.progress.update(*fs, &device, reached);
            }
            Notice::Seeded { fs, .. }
            | Notice::Blind { fs, .. }
            | Notice::Aborted { fs, .. }
            | Notice::Refused { fs, .. }
            | Notice::Unmounted { fs } => self.progress.end(*fs),
            Notice::Summary(summary) => {
                for coverage in &summary.coverage {
                    self.progress.end(coverage.fs);
                }
            }
            _ => {}
        }
        Due::No
    }

    /// The summary comes last, and says how many of the entries before it reached the journal.
    fn end(&mut self, summary: Summary) {
        let delivery = self.journal.as_ref().map(Journal::settle);
        if let Some(Delivery { failed: failed @ 1.., .. }) = delivery {
            tracing::warn!("{failed} entries did not reach the journal");
        }
        let notice = Notice::Summary(summary.clone());
        if let (Some(journal), Some(label)) = (&self.journal, Label::of(&notice)) {
            let text = summary::text(&summary, &self.watched, delivery);
            let line = text.trim_end();
            journal.post(journal_entry::life_cycle(&notice, label, line, &self.watched));
        }
        self.write(&notice, delivery);
        self.outcome.summary = Some(summary);
    }

    fn post(&self, notice: &Notice) {
        let (Some(journal), Some(label)) = (&self.journal, Label::of(notice)) else { return };
        if let Notice::Finding(finding) = notice {
            journal.post(journal_entry::finding(finding, label, &self.watched));
        } else if let Some(line) = lifecycle::line(notice, &self.watched) {
            journal.post(journal_entry::life_cycle(notice, label, &line, &self.watched));
        }
    }

    fn write(&mut self, notice: &Notice, delivery: Option<Delivery>) {
        let report = match self.settings.format {
            Format::Text { colour } => self.text(notice, delivery, colour),
            Format::Json => json::line(notice, &self.watched, delivery).map(|line| line + "\n"),
            Format::Nothing => None,
        };
        let (Some(report), Some(out)) = (report, self.out.as_mut()) else { return };
        let written =
            self.progress.beside(|| out.write_all(report.as_bytes()).and_then(|()| out.flush()));
        if let Err(error) = written {
            self.out = None;
            if error.kind() == io::ErrorKind::BrokenPipe {
                tracing::info!("the reader of the reports has gone");
            } else {
                self.outcome.output_failed = true;
                tracing::error!("a report could not be written: {error}");
            }
        }
    }

    fn text(&self, notice: &Notice, delivery: Option<Delivery>, colour: bool) -> Option<String> {
        match notice {
            Notice::Finding(finding) => {
                let text = text::finding(finding, &self.watched.name(finding.fs));
                let text = if colour { first_line_red(&text) } else { text };
                Some(text + "\n")
            }
            Notice::Summary(summary) => Some(summary::text(summary, &self.watched, delivery)),
            notice => lifecycle::line(notice, &self.watched).map(|line| line + "\n"),
        }
    }

    fn dump(&self, text: &str) {
        let Some(path) = &self.settings.ledger_dump else {
            tracing::warn!("the ledger was asked for, but no --ledger-dump says where to");
            return;
        };
        match dump_file::write_atomically(path, text) {
            Ok(()) => tracing::info!("the ledger is in {}", path.display()),
            Err(error) => tracing::error!("writing the ledger to {}: {error}", path.display()),
        }
    }
}

fn first_line_red(text: &str) -> String {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    format!("\x1b[1;31m{first}\x1b[0m\n{rest}")
}
