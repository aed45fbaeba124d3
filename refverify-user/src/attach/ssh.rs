//! The user's own ssh: keys, agents, jump hosts and aliases work as they do elsewhere.

use std::{ffi::OsString, fmt, path::Path, process::Stdio};

use tokio::process::{Child, Command};

/// Signals that a terminal sends to all of its foreground are ours to heed: an ssh that ended
/// at once would take the agent's last words with it. It stays in the foreground, where it
/// can ask for a passphrase.
const HEEDLESS: &str = "trap '' INT QUIT; exec \"$@\"";

/// An ssh with its arguments.
#[derive(Clone, Debug)]
pub struct SshCommand {
    words: Vec<OsString>,
}

impl SshCommand {
    /// Runs `command` by the shell of the user at `destination`.
    pub fn new(destination: &str, config: Option<&Path>, command: &str) -> Self {
        let mut words: Vec<OsString> = vec!["ssh".into()];
        if let Some(config) = config {
            words.extend(["-F".into(), config.into()]);
        }
        // No terminal there, and nothing after it is an option.
        words.extend(["-T", "--", destination, command].map(OsString::from));
        Self { words }
    }

    /// Starts it, with pipes for all of its input and output.
    pub(super) fn spawn(&self) -> std::io::Result<Child> {
        Command::new("/bin/sh")
            .args(["-c", HEEDLESS, "sh"])
            .args(&self.words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }
}

/// As it could be typed into a shell.
impl fmt::Display for SshCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, word) in self.words.iter().enumerate() {
            let word = word.to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./@%:=+,".contains(c);
            let space = if at == 0 { "" } else { " " };
            if !word.is_empty() && word.chars().all(plain) {
                write!(f, "{space}{word}")?;
            } else {
                write!(f, "{space}{}", quoted(&word))?;
            }
        }
        Ok(())
    }
}

/// A word that a shell leaves as it is.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_follows_the_dashes_is_an_option() {
        let command = SshCommand::new("root@vm", Some(Path::new("/c f")), "echo 'a'");
        assert_eq!(command.to_string(), r"ssh -F '/c f' -T -- root@vm 'echo '\''a'\'''");
    }
}
