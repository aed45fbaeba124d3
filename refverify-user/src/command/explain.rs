//! Telling the life of an extent.

use std::io;

use refverify_user::{
    cli::Explain,
    explain::{ExplainError, explain as tell},
};

use super::Fallible;

/// Tells it on stdout.
pub(crate) fn explain(asked: &Explain) -> Fallible<u8> {
    match tell(&asked.file, asked.bytenr, &mut io::stdout().lock()) {
        // A reader that has gone has read enough.
        Err(ExplainError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(0),
    }
}
