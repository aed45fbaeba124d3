//! The connection to one guest.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, BufReader},
    net::UnixStream,
    process::{Child, ChildStderr},
    sync::mpsc,
    time::timeout,
};

use super::{
    bootstrap::{AgentFile, BootstrapError},
    converse::{Lost, converse},
    qga::{QgaError, start_shell},
    ssh::SshCommand,
    target::{Guest, GuestAgent, Way},
};
use crate::feed::{ToAgent, ToVerifier};

/// How long an ssh may take to end once nothing more is to be said.
const FAREWELL: Duration = Duration::from_secs(5);

/// How much of one line of a guest's log is shown.
const LOG_LINE_LEN_MAX: u64 = 4096;

/// A guest cannot be attached to.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// ssh cannot be started.
    #[error("cannot start ssh: {0}")]
    Ssh(io::Error),
    /// The socket of a port.
    #[error("cannot connect to {}: {source}", path.display())]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The QEMU guest agent.
    #[error(transparent)]
    GuestAgent(#[from] QgaError),
    /// No agent runs.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// No agent runs, and ssh says so by its status.
    #[error("{bootstrap} (ssh ended with {status})")]
    SshEnded {
        /// What was seen of it.
        bootstrap: BootstrapError,
        /// How it ended.
        status: ExitStatus,
    },
}

/// A guest in which an agent runs.
#[expect(missing_debug_implementations, reason = "pipes say nothing of themselves")]
pub struct Attached {
    input: Box<dyn AsyncRead + Unpin + Send>,
    output: Box<dyn AsyncWrite + Unpin + Send>,
    devices: usize,
    ssh: Option<Child>,
}

/// Gets an agent to run in a guest.
///
/// # Errors
/// The guest cannot be reached, or cannot be watched.
pub async fn attach(
    guest: &Guest,
    program: &AgentFile,
    arguments: &[String],
) -> Result<Attached, AttachError> {
    let devices = guest.devices.len();
    match &guest.way {
        Way::Ssh { destination, config } => {
            let command = program.command(arguments);
            let command = SshCommand::new(destination, config.as_deref(), &command);
            let mut ssh = command.spawn().map_err(AttachError::Ssh)?;
            let pipes = (ssh.stdin.take(), ssh.stdout.take(), ssh.stderr.take());
            let (Some(mut output), Some(input), Some(log)) = pipes else {
                return Err(AttachError::Ssh(io::ErrorKind::BrokenPipe.into()));
            };
            tokio::spawn(show_log(guest.name.clone(), log));
            let mut input = BufReader::new(input);
            if let Err(bootstrap) = program.start(&mut input, &mut output).await {
                return Err(why(bootstrap, &mut ssh).await);
            }
            Ok(Attached { ssh: Some(ssh), ..Attached::over(input, output, devices) })
        }
        Way::Serial { socket, starter } => {
            let failed = |source| AttachError::Socket { path: socket.clone(), source };
            let port = UnixStream::connect(socket).await.map_err(failed)?;
            let (input, mut output) = port.into_split();
            let mut input = BufReader::new(input);
            if let Some(GuestAgent { socket, port }) = starter {
                start_shell(socket, &program.shell_on_port(port, arguments)).await?;
                program.start(&mut input, &mut output).await?;
            }
            Ok(Attached::over(input, output, devices))
        }
    }
}

/// A shell that does not answer is an ssh that failed, mostly.
async fn why(bootstrap: BootstrapError, ssh: &mut Child) -> AttachError {
    match timeout(FAREWELL, ssh.wait()).await {
        Ok(Ok(status)) if !matches!(bootstrap, BootstrapError::Refused(_)) => {
            AttachError::SshEnded { bootstrap, status }
        }
        _ => bootstrap.into(),
    }
}

/// What ssh and the agent say on their stderr, line by line.
async fn show_log(name: String, log: ChildStderr) {
    let mut log = BufReader::new(log);
    loop {
        let mut line = Vec::new();
        match (&mut log).take(LOG_LINE_LEN_MAX).read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            _ => return,
        }
        let line = String::from_utf8_lossy(&line);
        tracing::info!("{name}: {}", line.trim_end().escape_debug());
    }
}

impl Attached {
    /// An agent that speaks over any stream, and was told to watch so many devices.
    pub fn over<R, W>(input: R, output: W, devices: usize) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        Self { input: Box::new(input), output: Box::new(output), devices, ssh: None }
    }

    /// Carries messages until one end has gone, and then waits for the ssh to end.
    ///
    /// # Errors
    /// The guest was lost: why.
    pub async fn converse(
        self,
        patience: Duration,
        to_verifier: mpsc::Sender<ToVerifier>,
        from_verifier: mpsc::Receiver<ToAgent>,
    ) -> Result<(), Lost> {
        let Self { input, output, devices, ssh } = self;
        let ended = converse(input, output, devices, patience, to_verifier, from_verifier).await;
        if let Some(mut ssh) = ssh
            && timeout(FAREWELL, ssh.wait()).await.is_err()
        {
            // It hangs on a link that is dead.
            let _ = ssh.kill().await;
        }
        ended
    }
}
