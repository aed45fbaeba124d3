//! Programs run with a time limit, so that none can hang a test: after an aborted
//! transaction, some btrfs commands never return.

use std::{
    io::Read,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

/// Long enough for any single step under QEMU's emulation.
pub(crate) const LIMIT: Duration = Duration::from_mins(2);

/// A finished program.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `program` with `args`; its standard output, or an error that holds its standard error.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<String> {
    output(Command::new(program).args(args), LIMIT)
}

/// Runs `command`; its standard output, or an error when it fails or exceeds `limit`.
pub(crate) fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let shown = show(command);
    let done = finish(command, limit)?;
    if !done.status.success() {
        bail!("`{shown}` ended with {}: {}", done.status, done.stderr.trim());
    }
    Ok(done.stdout)
}

/// Runs `command` to its end, whatever its status, or to `limit`.
pub(crate) fn finish(command: &mut Command, limit: Duration) -> Result<Finished> {
    let shown = show(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let status = wait(&mut child, limit)
        .with_context(|| format!("waiting for `{shown}`"))?
        .ok_or_else(|| anyhow!("`{shown}` did not end within {} s", limit.as_secs()))?;
    let text = |handle: Option<thread::JoinHandle<Vec<u8>>>| {
        let bytes = handle.map_or_else(Vec::new, |h| h.join().unwrap_or_default());
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(Finished { status, stdout: text(stdout), stderr: text(stderr) })
}

/// Runs `command` with its output on the terminal; an error when it fails.
pub(crate) fn show_and_run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    println!("    $ {shown}");
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// Waits for `child` up to `limit`, then kills it. `None`: it had to be killed.
///
/// A child that sleeps uninterruptibly in the kernel cannot be killed; it is left behind.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            thread::sleep(Duration::from_millis(200));
            let _ = child.try_wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A path as a program's argument.
pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The command as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is worth showing.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}
