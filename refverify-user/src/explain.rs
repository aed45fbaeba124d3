//! The life of one extent, from a recording.
//!
//! The whole recording is verified again: what an extent was on disk is known only to who
//! reads the tree, and which readings took place depends on every extent.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    feed::{
        FsSlot, ToVerifier,
        recording::{End, Player, PlayerError},
    },
    report::Life,
    verify::{AuditConfig, Outbox, Verifier, VerifierConfig},
};

/// A recording cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The file cannot be opened.
    #[error("cannot open the recording {}: {source}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be read.
    #[error(transparent)]
    Player(#[from] PlayerError),
    /// What is found cannot be written.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

/// Opens a recording.
///
/// # Errors
/// It cannot be opened, or is none.
pub fn open(path: &Path) -> Result<Player<BufReader<File>>, ExplainError> {
    let open = |source| ExplainError::Open { path: path.to_owned(), source };
    Ok(Player::new(BufReader::new(File::open(path).map_err(open)?))?)
}

/// Writes what a recording knows of the extent at, or around, a logical address. Returns how
/// the recording ended.
///
/// # Errors
/// The recording cannot be read, or `out` cannot be written.
pub fn explain(path: &Path, bytenr: u64, out: &mut impl Write) -> Result<End, ExplainError> {
    let mut life = Life::new(bytenr, names(open(path)?)?);
    let mut player = open(path)?;
    let audit = player.header().audit_seconds.map(AuditConfig::every);
    let mut verifier = Verifier::new(VerifierConfig { audit, ..VerifierConfig::default() });
    let mut slots = 0;
    while let Some(message) = player.next_message()? {
        if let ToVerifier::Hello(hello) = &message {
            slots = u32::try_from(hello.devices.len()).unwrap_or(0);
        }
        let told = life.message(&message);
        out.write_all(told.as_bytes())?;
        let may_read = matches!(message, ToVerifier::Block(_) | ToVerifier::Retraction { .. });
        let mut outbox = Outbox::default();
        verifier.handle(message, &mut outbox);
        for fs in (0..slots).map(FsSlot) {
            let explained = !told.is_empty() || !may_read;
            let known = verifier.extent(fs, bytenr);
            out.write_all(life.state(fs, known.as_ref(), explained).as_bytes())?;
        }
        for notice in &outbox.notices {
            out.write_all(life.notice(notice).as_bytes())?;
        }
    }
    out.write_all(life.end().as_bytes())?;
    writeln!(out, "events on it: {}", life.events)?;
    let end = player.end().cloned().unwrap_or(End::Whole);
    if let End::Cut { offset, reason } = &end {
        writeln!(out, "the recording breaks off after {offset} bytes: {reason} follows")?;
    }
    Ok(end)
}

/// The texts of all addresses: they come later than the events.
fn names(mut player: Player<BufReader<File>>) -> Result<BTreeMap<u64, Arc<str>>, PlayerError> {
    let mut names = BTreeMap::new();
    while let Some(message) = player.next_message()? {
        if let ToVerifier::Symbols(symbols) = message {
            names.extend(symbols);
        }
    }
    Ok(names)
}
