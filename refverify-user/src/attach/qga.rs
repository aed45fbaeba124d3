//! The QEMU guest agent, asked for one thing: to start a shell.
//!
//! Its protocol is JSON, an object on a line (QEMU, docs/interop/qemu-ga-ref; seen with 7.2).
//! Everything else goes over the virtio-serial port: what the guest agent returns is buffered
//! until a program ends, which is no way to carry a stream.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

/// How long the guest agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an answer may be, in bytes.
const ANSWER_LEN_MAX: u64 = 64 << 10;

/// What stands before the answer that ends old ones (`guest-sync-delimited`).
const DELIMITER: u8 = 0xff;

/// The guest agent does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum QgaError {
    /// Nobody there.
    #[error("cannot talk to the guest agent at {}: {source}", path.display())]
    Io {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is silent.
    #[error(
        "the guest agent at {} does not answer: is qemu-ga running in the guest, and is nobody \
         else connected?",
        path.display()
    )]
    Silent {
        /// Its socket.
        path: PathBuf,
    },
    /// It says something else.
    #[error("the guest agent answers what makes no sense: {0}")]
    Nonsense(String),
    /// It refuses.
    #[error("the guest agent cannot start a shell: {0}; qemu-ga must allow guest-exec")]
    Refused(String),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

/// Starts `/bin/sh` with these arguments.
///
/// # Errors
/// There is no guest agent, or it refuses.
pub(super) async fn start_shell(path: &Path, arguments: &[String]) -> Result<(), QgaError> {
    let asked = timeout(PATIENCE, ask(path, arguments)).await;
    asked.map_err(|_| QgaError::Silent { path: path.to_owned() })?
}

async fn ask(path: &Path, arguments: &[String]) -> Result<(), QgaError> {
    let failed = |source| QgaError::Io { path: path.to_owned(), source };
    let stream = UnixStream::connect(path).await.map_err(failed)?;
    let mut stream = BufReader::new(stream);
    // Whatever was said to another client comes before the delimiter.
    let sync = json!({ "execute": "guest-sync-delimited", "arguments": { "id": 1 } });
    say(&mut stream, &sync).await.map_err(failed)?;
    loop {
        let mut passed = Vec::new();
        let limited = &mut (&mut stream).take(ANSWER_LEN_MAX);
        let len = limited.read_until(DELIMITER, &mut passed).await.map_err(failed)?;
        match passed.last() {
            Some(&DELIMITER) => break,
            Some(_) if len as u64 == ANSWER_LEN_MAX => {}
            _ => return Err(QgaError::Silent { path: path.to_owned() }),
        }
    }
    answer(&mut stream).await.map_err(failed)??;
    let start = json!({
        "execute": "guest-exec",
        "arguments": { "path": "/bin/sh", "arg": arguments },
    });
    say(&mut stream, &start).await.map_err(failed)?;
    answer(&mut stream).await.map_err(failed)?
}

async fn say(stream: &mut BufReader<UnixStream>, what: &Value) -> io::Result<()> {
    stream.write_all(format!("{what}\n").as_bytes()).await?;
    stream.flush().await
}

async fn answer(stream: &mut BufReader<UnixStream>) -> io::Result<Result<(), QgaError>> {
    let mut line = Vec::new();
    stream.take(ANSWER_LEN_MAX).read_until(b'\n', &mut line).await?;
    let nonsense = || QgaError::Nonsense(line.escape_ascii().take(200).map(char::from).collect());
    Ok(match serde_json::from_slice(&line) {
        Ok(Answer { error: Some(refusal), .. }) => {
            Err(QgaError::Refused(refusal.desc.escape_debug().to_string()))
        }
        Ok(Answer { returned: Some(_), .. }) => Ok(()),
        _ => Err(nonsense()),
    })
}

#[cfg(test)]
mod tests {
    use tokio::{net::UnixListener, runtime::Builder};

    use super::*;

    /// A guest agent that has old answers left over, and answers the second question so.
    fn asked(answer: &'static [u8]) -> (Result<(), QgaError>, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qga.sock");
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = UnixListener::bind(&path).unwrap();
            let agent = async {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                stream.write_all(b"{\"return\": \"stale\"}\n\xff{\"return\": 1}\n").await.unwrap();
                line.clear();
                stream.read_line(&mut line).await.unwrap();
                stream.write_all(answer).await.unwrap();
                line
            };
            let words = ["-c".to_owned(), "it's".to_owned()];
            tokio::join!(start_shell(&path, &words), agent)
        })
    }

    #[test]
    fn a_shell_is_asked_for_past_what_is_stale() {
        let (done, question) = asked(b"{\"return\": {\"pid\": 5}}\n");
        done.unwrap();
        let question: Value = serde_json::from_str(&question).unwrap();
        assert_eq!(question["execute"], "guest-exec");
        assert_eq!(question["arguments"]["arg"][1], "it's");
    }

    #[test]
    fn a_guest_agent_that_may_not_is_told_from_one_that_is_none() {
        let refused =
            b"{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"disabled\\u001b\"}}\n";
        let text = asked(refused).0.unwrap_err().to_string();
        assert!(text.contains("cannot start a shell: disabled\\u{1b}"), "{text}");
        let text = asked(b"login:\n").0.unwrap_err().to_string();
        assert!(text.contains("makes no sense: login:"), "{text}");
        assert!(matches!(asked(b"").0, Err(QgaError::Nonsense(_))));
    }
}
