//! Where reports and log go.

use std::{
    io::{self, IsTerminal, Stdout},
    os::fd::AsFd,
    path::Path,
};

use refverify_user::{
    cli::Reports,
    report::{Format, Journal, Progress, Reporter, SOCKET_PATH, Settings, is_journal_stream},
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter, layer::SubscriberExt, registry};

use super::Fallible;

/// What all reporters of this run share.
pub(super) struct Output {
    use_journal: bool,
    stdout_in_journal: bool,
    progress: Progress,
}

impl Output {
    pub(super) fn start(reports: &Reports) -> Fallible<Self> {
        let log_in_journal = is_journal(&io::stderr());
        let progress = start_log_with_progress()?;
        let use_journal = reports.journal || log_in_journal;
        let stdout_in_journal = use_journal && is_journal(&io::stdout());
        Ok(Self { use_journal, stdout_in_journal, progress })
    }

    pub(super) fn reporter(
        &self,
        reports: &Reports,
        vm: Option<String>,
    ) -> Fallible<Reporter<Stdout>> {
        let journal =
            self.use_journal.then(|| Journal::start(Path::new(SOCKET_PATH))).transpose()?;
        let ledger_dump = reports.ledger_dump.clone();
        let settings = Settings { format: self.format(reports), ledger_dump, vm };
        Ok(Reporter::new(settings, io::stdout(), journal, self.progress.beside_this()))
    }

    fn format(&self, reports: &Reports) -> Format {
        if reports.json {
            return Format::Json;
        }
        if self.stdout_in_journal {
            return Format::Nothing;
        }
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Format::Text { colour: io::stdout().is_terminal() && !plain }
    }
}

fn is_journal(output: &impl AsFd) -> bool {
    is_journal_stream(output.as_fd(), std::env::var("JOURNAL_STREAM").ok().as_deref())
}

/// Starts the log, and what shows how far the reading of an extent tree is beside it.
pub(super) fn start_log_with_progress() -> Fallible<Progress> {
    let progress =
        if io::stderr().is_terminal() { Progress::on_terminal() } else { Progress::in_log() };
    start_log_of(&progress)?;
    Ok(progress)
}

/// Starts the log of a program that reports nothing itself.
pub(super) fn start_log() -> Fallible<()> {
    start_log_of(&Progress::in_log())
}

/// The log goes to the journal when stderr does, otherwise to stderr.
fn start_log_of(progress: &Progress) -> Fallible<()> {
    let (in_journal, stderr) = (is_journal(&io::stderr()), progress.stderr());
    let filter =
        EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    if in_journal {
        let layer = tracing_journald::layer()?;
        tracing::subscriber::set_global_default(registry().with(filter).with(layer))?;
    } else {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            .with_writer(move || stderr.clone())
            .init();
    }
    Ok(())
}
