//! What the program can be asked for, a file for each.

use std::{
    error::Error,
    fs::File,
    io,
    num::NonZero,
    path::{Path, PathBuf},
    thread::available_parallelism,
};

use refverify_user::{
    agent::AgentConfig,
    cli::{Memory, OnViolation, Probes, Reports},
    feed::recording::{Recorder, create_file},
    verify::{AuditConfig, VerifierConfig, ledger::Limits},
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

/// More cores than this are left to what is watched.
const CORES_MAX: usize = 4;

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn verifier_config(
    reports: &Reports,
    memory: Memory,
    audit_seconds: Option<u32>,
) -> VerifierConfig {
    VerifierConfig {
        stop_on_violation: reports.on_violation == OnViolation::Stop,
        limits: Limits::new(memory.bytes, memory.history),
        audit: audit_seconds.map(AuditConfig::every),
        cores: available_parallelism().map_or(1, NonZero::get).min(CORES_MAX),
        ..VerifierConfig::default()
    }
}

fn agent_config(probes: &Probes, devices: Vec<PathBuf>) -> AgentConfig {
    AgentConfig {
        devices,
        stacks: !probes.no_stacks,
        ring_bytes: probes.ring_bytes(),
        io_limit_bytes: probes.io_limit,
    }
}

fn recorder(
    path: Option<&Path>,
    vm: Option<&str>,
    audit_seconds: Option<u32>,
) -> Fallible<Option<Recorder<File>>> {
    let Some(path) = path else { return Ok(None) };
    Ok(Some(Recorder::new(create_file(path)?, vm, audit_seconds)?))
}
