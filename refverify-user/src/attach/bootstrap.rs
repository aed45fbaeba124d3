//! Getting an agent to run in a guest by nothing but a shell.
//!
//! The script `bootstrap.sh` says what it wants in lines that begin with `refverify: `. The program is
//! sent when the guest has not the same one, judged by its hash. It runs from a directory that
//! only root can enter, made for this one run and gone before the program starts: the shell
//! holds the file open meanwhile. Nothing is left in the guest when the program ends.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::ssh::quoted;

/// Run by sh as root in the guest. `/run` is mounted noexec by some distributions.
const SCRIPT: &str = include_str!("bootstrap.sh");

/// Comes before it where the connection is a virtio-serial port.
const PORT_SCRIPT: &str = include_str!("bootstrap_port.sh");

/// What begins the script's lines.
const MARK: &str = "refverify: ";

/// How much may be said before it: what start-up files of shells print.
const NOISE_LEN_MAX: u64 = 64 << 10;

/// An agent cannot be started in a guest.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The program that is to be sent cannot be read.
    #[error("cannot read the program that is to run in the guest, {}: {source}", path.display())]
    Program {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Talking failed.
    #[error("talking to the guest's shell failed: {0}")]
    Io(#[from] io::Error),
    /// The script refused.
    #[error("the guest cannot be watched: {0}")]
    Refused(String),
    /// The shell ended, or says something else.
    #[error("no shell answers as it should{}", last_words(.0))]
    NoShell(String),
}

fn last_words(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": it said \"{said}\"") }
}

/// The program that runs in guests: this one.
#[derive(Clone, Debug)]
pub struct AgentFile {
    bytes: Vec<u8>,
    hash: String,
}

impl AgentFile {
    fn new(bytes: Vec<u8>) -> Self {
        // As sha256sum writes it.
        let mut hash = String::new();
        for byte in Sha256::digest(&bytes) {
            let _ = write!(hash, "{byte:02x}");
        }
        Self { bytes, hash }
    }

    /// Reads this very program.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn this_program() -> Result<Self, BootstrapError> {
        let path = Path::new("/proc/self/exe");
        let read = |source| BootstrapError::Program { path: path.to_owned(), source };
        let bytes = fs::read(path).map_err(read)?;
        Ok(Self::new(bytes))
    }

    /// Whether it needs libraries, which a guest may have in other versions: whether it names
    /// an interpreter (ELF: a program header of type `PT_INTERP`).
    pub fn needs_libraries(&self) -> bool {
        has_interpreter(&self.bytes).unwrap_or(false)
    }

    /// The command for the guest's login shell that starts the program with these arguments.
    pub fn command(&self, arguments: &[String]) -> String {
        let size = self.bytes.len().to_string();
        let words = ["sh", "-c", SCRIPT, "refverify", &self.hash, &size].map(quoted);
        let arguments = arguments.iter().map(|word| quoted(word));
        words.into_iter().chain(arguments).collect::<Vec<String>>().join(" ")
    }

    /// The arguments of a shell that starts the program with these arguments, on the
    /// virtio-serial port of this name.
    pub(super) fn shell_on_port(&self, port: &str, arguments: &[String]) -> Vec<String> {
        let size = self.bytes.len().to_string();
        let script = format!("{PORT_SCRIPT}{SCRIPT}");
        let words = ["-c", &script, "refverify", port, &self.hash, &size].map(str::to_owned);
        words.into_iter().chain(arguments.iter().cloned()).collect()
    }

    /// Talks to the script until the program runs. What is read after this is the program's.
    ///
    /// # Errors
    /// The guest refuses, or what answers is no shell.
    pub(super) async fn start<R, W>(
        &self,
        output: &mut R,
        input: &mut W,
    ) -> Result<(), BootstrapError>
    where
        R: AsyncBufRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match next_mark(output).await?.as_str() {
                "send" => {
                    input.write_all(&self.bytes).await?;
                    input.flush().await?;
                }
                "start" => return Ok(()),
                other => {
                    let why = other.strip_prefix("refused: ").unwrap_or(other);
                    return Err(BootstrapError::Refused(why.escape_debug().to_string()));
                }
            }
        }
    }
}

/// The script's next line, without its mark.
async fn next_mark<R: AsyncBufRead + Unpin>(output: &mut R) -> Result<String, BootstrapError> {
    let mut left = NOISE_LEN_MAX;
    let mut last = String::new();
    loop {
        let mut line = Vec::new();
        let len = (&mut *output).take(left).read_until(b'\n', &mut line).await? as u64;
        let text = String::from_utf8_lossy(&line);
        if let Some(said) = text.strip_suffix('\n').and_then(|line| line.strip_prefix(MARK)) {
            return Ok(said.to_owned());
        }
        left -= len;
        if len == 0 || left == 0 {
            return Err(BootstrapError::NoShell(last));
        }
        last = text.trim_end().escape_debug().take(200).collect();
    }
}

/// ELF64, little-endian: `e_phoff` at 32, `e_phentsize` at 54, `e_phnum` at 56; each program
/// header begins with its type (elf(5)).
fn has_interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| Some(u16::from_le_bytes(elf.get(at..)?.first_chunk().copied()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(elf.get(at..)?.first_chunk().copied()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(elf.get(at..)?.first_chunk().copied()?));
    let start = usize::try_from(u64_at(32)?).ok()?;
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    let types = (0..count).map(|n| u32_at(start.checked_add(n * size)?));
    Some(types.flatten().any(|kind| kind == PT_INTERP))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tokio::{io::BufReader, runtime::Builder};

    use super::*;

    fn answered(said: &[u8]) -> Result<String, String> {
        let runtime = Builder::new_current_thread().build().unwrap();
        let mark = runtime.block_on(next_mark(&mut BufReader::new(said)));
        mark.map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_shell_prints_first_is_passed_over() {
        assert_eq!(answered(b"Welcome!\n\x1b[1mhi\nrefverify: send\n\x89").unwrap(), "send");
    }

    #[test]
    fn what_is_no_shell_is_shown_and_not_listened_to_for_ever() {
        let error = answered(b"This account is \x1b[5mclosed.\n").unwrap_err();
        assert!(error.contains("it said \"This account is \\u{1b}[5mclosed.\""), "{error}");
        answered(&vec![b'x'; 1 << 20]).unwrap_err();
        answered(&b"y\n".repeat(1 << 20)).unwrap_err();
        answered(b"").unwrap_err();
    }

    #[test]
    fn arguments_reach_the_program_as_they_are() {
        let command =
            AgentFile::new(b"x".to_vec()).command(&["agent".into(), "/dev/a b'c$(d)".into()]);
        // Instead of the script, a program that shows its arguments.
        let command = command.replace(&quoted(SCRIPT), &quoted("printf \"<%s>\" \"$@\""));
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(shown.ends_with("<1><agent></dev/a b'c$(d)>"), "{shown}");
    }

    #[test]
    fn the_script_passes_through_any_shell_as_one_word() {
        assert!(!SCRIPT.contains('\''));
    }

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let shell = fs::read("/bin/sh").unwrap();
        assert_eq!(has_interpreter(&shell), Some(true));
        assert_eq!(has_interpreter(b"\x7fELF"), None);
    }
}
