//! Watching guests.

use std::{
    error::Error,
    fs,
    fs::File,
    io::{self, Stdout, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use refverify_user::{
    attach::{
        AgentFile, Guest, GuestAgent, SshCommand, Watching, Way, attach as connect, guests, watch,
    },
    cli::Attach,
    feed::{ToAgent, recording::Recorder},
    report::Reporter,
    run::Stop,
    session::{EXIT_SETUP, Stops},
    verify::{Share, Verifier, VerifierConfig},
};
use tokio::sync::mpsc;

use super::{Fallible, output::Output, recorder, runtime, signals::Signals, verifier_config};

/// How much of a guest's file system may wait.
const WAITING_MAX: usize = 100_000;

/// Watches guests.
pub(crate) fn attach(asked: &Attach) -> Fallible<u8> {
    let guests = named_guests(asked)?;
    let program = AgentFile::this_program()?;
    if asked.dry_run {
        return print_plan(&guests, &program, asked);
    }
    let output = Output::start(&asked.reports)?;
    if program.needs_libraries() {
        tracing::warn!(
            "this program is linked to this machine's libraries; if a guest has others, use a \
             static one"
        );
    }
    // What can go wrong here goes wrong before a guest is touched.
    let outputs = guests.iter().map(|guest| outputs(asked, guest, guests.len(), &output));
    let outputs = outputs.collect::<Fallible<Vec<_>>>()?;
    let statuses = thread::scope(|scope| {
        // Each guest has a thread: none takes another's time.
        let watched = guests.iter().zip(outputs).map(|(guest, (reporter, recorder))| {
            let program = &program;
            scope.spawn(move || watch_guest(asked, guest, program, reporter, recorder))
        });
        let threads: Vec<_> = watched.collect();
        let statuses = threads.into_iter().map(|thread| thread.join().unwrap_or(EXIT_SETUP));
        statuses.fold(0, |all, status| all | status)
    });
    Ok(statuses)
}

type Outputs = (Reporter<Stdout>, Option<Recorder<File>>);

/// Where what is learned of one of several guests goes.
fn outputs(asked: &Attach, guest: &Guest, guests: usize, output: &Output) -> Fallible<Outputs> {
    let own = |path: &Option<PathBuf>| path.as_deref().map(|path| own_file(path, guest, guests));
    let mut reports = asked.reports.clone();
    reports.ledger_dump = own(&reports.ledger_dump);
    let reporter = output.reporter(&reports, Some(guest.name.clone()))?;
    let recorder =
        recorder(own(&asked.record).as_deref(), Some(&guest.name), asked.audits.seconds)?;
    Ok((reporter, recorder))
}

fn named_guests(asked: &Attach) -> Fallible<Vec<Guest>> {
    let mut words = asked.words.clone();
    if let Some(path) = &asked.targets {
        let text = fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        words.extend(lines.flat_map(str::split_whitespace).map(str::to_owned));
    }
    let mut config = asked.ssh_config.clone();
    if let Some(cid) = asked.vng {
        // virtme-ng (virtme_ng/utils.py) writes this file, and calls its guests so.
        words.insert(0, format!("root@virtme-ng%{cid}"));
        let home = std::env::home_dir().ok_or("--vng needs a home directory")?;
        config.get_or_insert(home.join(".cache/virtme-ng/.ssh/virtme-ng-ssh.conf"));
    }
    if let Some(socket) = &asked.serial {
        let name = socket.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        words.insert(0, name);
    }
    let mut guests = guests(&words, config.as_ref())?;
    if let Some(socket) = &asked.serial {
        let agent =
            |socket: &PathBuf| GuestAgent { socket: socket.clone(), port: asked.port.clone() };
        let starter = asked.qga.as_ref().map(agent);
        guests[0].way = Way::Serial { socket: socket.clone(), starter };
    }
    Ok(guests)
}

fn agent_words(asked: &Attach, guest: &Guest) -> Vec<String> {
    let mut words = vec!["agent".to_owned(), format!("--ring-mib={}", asked.probes.ring_mib)];
    if asked.probes.no_stacks {
        words.push("--no-stacks".to_owned());
    }
    words.extend(asked.probes.io_limit.map(|bytes| format!("--io-limit={bytes}")));
    words.push("--".to_owned());
    words.extend(guest.devices.iter().cloned());
    words
}

fn print_plan(guests: &[Guest], program: &AgentFile, asked: &Attach) -> Fallible<u8> {
    let mut out = io::stdout().lock();
    for guest in guests {
        match &guest.way {
            Way::Ssh { destination, config } => {
                let command = program.command(&agent_words(asked, guest));
                let command = SshCommand::new(destination, config.as_deref(), &command);
                writeln!(out, "{command}")?;
            }
            Way::Serial { socket, starter } => {
                if let Some(GuestAgent { socket, port }) = starter {
                    let words = agent_words(asked, guest).join(" ");
                    let socket = socket.display();
                    writeln!(out, "guest-exec by {socket}: /bin/sh, on port {port}: {words}")?;
                }
                writeln!(out, "connect to {}", socket.display())?;
            }
        }
    }
    Ok(0)
}

/// The file of one of several guests.
fn own_file(path: &Path, guest: &Guest, guests: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if guests > 1 {
        name.push(".");
        name.push(guest.name.replace('/', "_"));
    }
    name.into()
}

/// One guest, on its own thread: the exit status.
fn watch_guest(
    asked: &Attach,
    guest: &Guest,
    program: &AgentFile,
    reporter: Reporter<Stdout>,
    recorder: Option<Recorder<File>>,
) -> u8 {
    let watched = || -> Fallible<u8> {
        let runtime = runtime()?;
        let mut signals = Signals::new(&runtime, &asked.reports)?;
        let status = runtime.block_on(async {
            let words = agent_words(asked, guest);
            let attached = tokio::select! {
                attached = connect(guest, program, &words) => attached?,
                () = signals.end() => return Ok(EXIT_SETUP),
            };
            let watching = Watching {
                name: guest.name.clone(),
                verifier: Verifier::new(VerifierConfig {
                    share: Some(Share {
                        memory_max_bytes: asked.memory.bytes,
                        waiting_max: WAITING_MAX,
                    }),
                    ..verifier_config(&asked.reports, asked.memory, asked.audits.seconds)
                }),
                reporter,
                stops: Stops::default(),
                recorder,
                patience: Duration::from_secs(asked.patience),
                flight_dir: asked.flight_dir.clone(),
            };
            let stop = watching.stops.ask.clone();
            let heed = |to_agent: mpsc::WeakSender<ToAgent>| {
                tokio::spawn(signals.heed(stop, Stop::WhenAllIsTold, move || {
                    if let Some(to_agent) = to_agent.upgrade() {
                        // Full means that the guest does not answer.
                        let _ = to_agent.try_send(ToAgent::Dump);
                    }
                }));
            };
            Ok::<u8, Box<dyn Error>>(watch(attached, watching, heed).await?)
        });
        runtime.shutdown_background();
        status
    };
    watched().unwrap_or_else(|error| {
        tracing::error!("{}: {error}", guest.name);
        EXIT_SETUP
    })
}
