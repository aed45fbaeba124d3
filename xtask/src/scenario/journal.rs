//! A real journal to write to and read back from: the machine's own where one runs, else a
//! systemd-journald that is started by hand.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command;

/// Where journald takes entries in its native protocol.
const SOCKET: &str = "/run/systemd/journal/socket";

/// How long an entry may take from the socket to journalctl.
const LIMIT: Duration = Duration::from_mins(1);

/// A journal that takes entries. One that was started here ends when dropped.
pub(crate) struct Journal {
    started: Option<Child>,
}

impl Journal {
    /// Makes sure that one is running.
    pub(crate) fn start() -> Result<Self> {
        if is_listening() {
            return Ok(Self { started: None });
        }
        fs::create_dir_all("/run/systemd/journal")?;
        let program = crate::machine::program("systemd-journald")
            .context("systemd-journald is missing; `cargo xtask setup` installs it")?;
        let child = Command::new(program)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start systemd-journald")?;
        let journal = Self { started: Some(child) };
        let end = Instant::now() + LIMIT;
        while !is_listening() {
            if Instant::now() > end {
                bail!("systemd-journald does not listen at {SOCKET}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(journal)
    }
}

/// Writes an entry of two fields in the native protocol (systemd, Journal Native Protocol).
pub(crate) fn send(message: &str, kind: &str) -> Result<()> {
    let entry = format!("MESSAGE={message}\nREFVERIFY_KIND={kind}\n");
    UnixDatagram::unbound()?
        .send_to(entry.as_bytes(), SOCKET)
        .with_context(|| format!("cannot send to {SOCKET}"))?;
    Ok(())
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Some(child) = &mut self.started {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn is_listening() -> bool {
    UnixDatagram::unbound().and_then(|socket| socket.connect(SOCKET)).is_ok()
}

/// The first entry of process `pid` in which each of `fields` has its value.
pub(crate) fn wait_for(pid: u32, fields: &[(&str, String)]) -> Result<Value> {
    let mut matches = vec![format!("_PID={pid}")];
    matches.extend(fields.iter().map(|(name, value)| format!("{name}={value}")));
    let end = Instant::now() + LIMIT;
    loop {
        let mut command = Command::new("journalctl");
        // --all: fields longer than 4096 bytes are shown too.
        command.args(["--all", "--no-pager", "--output", "json"]).args(&matches);
        let text = command::output(&mut command, command::LIMIT)?;
        if let Some(line) = text.lines().next() {
            return serde_json::from_str(line).context("journalctl printed what is no JSON");
        }
        if Instant::now() > end {
            bail!("the journal has no entry with {}", matches.join(" "));
        }
        thread::sleep(Duration::from_millis(100));
    }
}
