//! What the program can be asked for, a file for each.

use std::{error::Error, fs::File, io, path::Path, path::PathBuf};

use refverify_user::{
    agent::AgentConfig,
    cli::{OnViolation, Probes, Reports},
    feed::recording::{Recorder, create_file},
    verify::{Share, Verifier, VerifierConfig},
};
use tokio::runtime::{Builder, Runtime};

pub(crate) mod agent;
pub(crate) mod attach;
pub(crate) mod check;
pub(crate) mod explain;
mod output;
pub(crate) mod replay;
mod signals;
pub(crate) mod watch;

/// What is shown to the user in one line, and ends the program.
pub(crate) type Fallible<T> = Result<T, Box<dyn Error>>;

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn verifier(reports: &Reports, share: Option<Share>) -> Verifier {
    let stop_on_violation = reports.on_violation == OnViolation::Stop;
    Verifier::new(VerifierConfig { stop_on_violation, share })
}

fn agent_config(probes: &Probes, devices: Vec<PathBuf>) -> AgentConfig {
    AgentConfig { ring_bytes: probes.ring_bytes(), stacks: !probes.no_stacks, devices }
}

fn recorder(path: Option<&Path>, vm: Option<&str>) -> Fallible<Option<Recorder<File>>> {
    let Some(path) = path else { return Ok(None) };
    Ok(Some(Recorder::new(create_file(path)?, vm)?))
}
