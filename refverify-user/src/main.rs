//! The monitor: ties the parts together, on this machine.

use std::{
    error::Error,
    io::{self, IsTerminal, Stdout},
    os::fd::AsFd,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, error::ErrorKind};
use refverify_user::{
    agent::{Agent, AgentConfig},
    cli::{Cli, OnViolation, Watch, usage_sentence},
    report::{
        Format, Journal, Progress, Reporter, SOCKET_PATH, Settings, StderrBesideBars, exit_status,
        is_journal_stream,
    },
    run::{Ending, Link, Stop, report_all, run},
    verify::{Verifier, VerifierConfig},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter, layer::SubscriberExt, registry};

/// Usage or setup error.
const EXIT_SETUP: u8 = 1;
/// Not everything was verified.
const EXIT_GAPS: u8 = 4;

/// Messages between agent and verifier; an event message holds up to some thousand events.
const MESSAGES_MAX: usize = 256;
/// Notices that wait for a slow reader before the verifier waits for it.
const NOTICES_MAX: usize = 1024;

/// A second signal within this time is the first one, sent twice.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match monitor(cli.watch) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("refverify-monitor: {error}");
            ExitCode::from(EXIT_SETUP)
        }
    }
}

/// Help and version go to stdout; what is wrong with the command line is one sentence.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A reader that has gone does not matter.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    eprintln!("refverify-monitor: {}", usage_sentence(error));
    ExitCode::from(EXIT_SETUP)
}

fn monitor(watch: Watch) -> Result<u8, Box<dyn Error>> {
    let log_in_journal = is_journal(&io::stderr());
    let progress =
        if io::stderr().is_terminal() { Progress::on_terminal() } else { Progress::in_log() };
    start_log(progress.stderr(), log_in_journal)?;

    let use_journal = watch.journal || log_in_journal;
    let journal = use_journal.then(|| Journal::start(Path::new(SOCKET_PATH))).transpose()?;
    let stdout_in_journal = use_journal && is_journal(&io::stdout());
    let reporter =
        Reporter::new(settings(&watch, stdout_in_journal), io::stdout(), journal, progress);

    // Before the agent, which takes its time: a signal that comes meanwhile waits.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = {
        let _context = runtime.enter();
        Signals::new(watch.ledger_dump.is_some())?
    };
    let stop_on_violation = watch.on_violation == OnViolation::Stop;
    let config = AgentConfig {
        ring_bytes: watch.ring_bytes(),
        stacks: !watch.no_stacks,
        devices: watch.devices,
    };
    let agent = Agent::start(config)?;
    let verifier = Verifier::new(VerifierConfig { stop_on_violation });
    runtime.block_on(watch_until_stopped(agent, verifier, reporter, signals))
}

fn is_journal(output: &impl AsFd) -> bool {
    is_journal_stream(output.as_fd(), std::env::var("JOURNAL_STREAM").ok().as_deref())
}

fn settings(watch: &Watch, stdout_in_journal: bool) -> Settings {
    let format = if watch.json {
        Format::Json
    } else if stdout_in_journal {
        Format::Nothing
    } else {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Format::Text { colour: io::stdout().is_terminal() && !plain }
    };
    Settings { format, ledger_dump: watch.ledger_dump.clone() }
}

/// The log goes to the journal when stderr does, otherwise to stderr.
fn start_log(stderr: StderrBesideBars, in_journal: bool) -> Result<(), Box<dyn Error>> {
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

/// Three parties: the agent and the reports on threads of their own, the verifier here.
async fn watch_until_stopped(
    agent: Agent,
    verifier: Verifier,
    reporter: Reporter<Stdout>,
    signals: Signals,
) -> Result<u8, Box<dyn Error>> {
    let (to_verifier, from_agent) = mpsc::channel(MESSAGES_MAX);
    let (to_agent, from_verifier) = mpsc::channel(MESSAGES_MAX);
    let (to_reports, notices) = mpsc::channel(NOTICES_MAX);
    let (stop, stops) = mpsc::channel(4);
    let dump = Arc::new(AtomicBool::new(false));

    tokio::spawn(signals.heed(stop.clone(), Arc::clone(&dump)));
    let reports = thread::Builder::new()
        .name("reports".to_owned())
        .spawn(move || report_all(notices, reporter, &stop))?;
    let agent = thread::Builder::new()
        .name("agent".to_owned())
        .spawn(move || agent.run(to_verifier, from_verifier, dump))?;

    let ending = run(verifier, Link { from_agent, to_agent }, stops, to_reports).await;
    let cut_short = match ending {
        // It has nothing more to say, and lets the hooks go.
        Ending::Whole => agent.join().is_err(),
        Ending::CutShort => {
            wait_a_moment_for(&reports);
            true
        }
    };
    if cut_short && !reports.is_finished() {
        return Err("the reader of the reports stands still; the summary was not written".into());
    }
    let outcome = reports.join().map_err(|_| "the thread that writes the reports has failed")?;
    Ok(exit_status(&outcome) | if cut_short { EXIT_GAPS } else { 0 })
}

/// Whoever asked twice to end does not want to wait for a reader that stands still.
fn wait_a_moment_for<T>(reports: &thread::JoinHandle<T>) {
    let since = Instant::now();
    while !reports.is_finished() && since.elapsed() < SAME_SIGNAL {
        thread::sleep(Duration::from_millis(10));
    }
}

/// The signals that are heeded.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    user: Signal,
    can_dump: bool,
}

impl Signals {
    fn new(can_dump: bool) -> io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        let user = signal(SignalKind::user_defined1())?;
        Ok(Self { interrupt, terminate, user, can_dump })
    }

    async fn heed(mut self, stop: mpsc::Sender<Stop>, dump: Arc<AtomicBool>) {
        let mut first = None;
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => ask_to_stop(&stop, &mut first),
                _ = self.terminate.recv() => ask_to_stop(&stop, &mut first),
                _ = self.user.recv() => if self.can_dump {
                    dump.store(true, Ordering::Release);
                } else {
                    tracing::warn!("SIGUSR1 asks for the ledger; --ledger-dump says where to");
                },
            }
        }
    }
}

/// The first signal asks for an orderly end. A later one means that it takes too long; not one
/// that comes at once, because some senders signal the process and then its group.
fn ask_to_stop(stop: &mpsc::Sender<Stop>, first: &mut Option<Instant>) {
    let how = match *first {
        None => Stop::WhenAllIsTold,
        Some(at) if at.elapsed() < SAME_SIGNAL => return,
        Some(_) => Stop::Now,
    };
    first.get_or_insert_with(Instant::now);
    // Full means that the run is ending.
    let _ = stop.try_send(how);
}
