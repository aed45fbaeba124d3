//! What people and programs read: text, JSON lines, the journal.
//!
//! Everything here turns values of [`verify`](crate::verify) into bytes. Nothing here judges,
//! and no kernel address leaves it: stacks are printed as symbols.

mod check;
mod dump_file;
mod flight;
mod journal;
mod journal_entry;
mod json;
mod label;
mod life;
mod lifecycle;
mod printable;
mod progress;
mod reporter;
mod sentence;
mod summary;
mod text;
mod watched;

pub use check::{BadBlock, CheckDump, CheckReporter, Checked};
pub use flight::{Flight, write_flight};
pub use journal::{Delivery, Entry, Journal, JournalError, SOCKET_PATH, is_journal_stream};
pub use label::{Label, Priority, finding_message_id};
pub use life::Life;
pub use progress::{Progress, StderrBesideBars};
pub use reporter::{Format, Outcome, Reporter, Settings, exit_status};
