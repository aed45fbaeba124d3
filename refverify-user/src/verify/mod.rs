//! The verifier: it holds the model of what should be in the extent tree, and judges.
//!
//! Nothing here touches the kernel or a device. All that is known comes in as
//! [`ToVerifier`](crate::feed::ToVerifier) messages; what is wanted and what is to be told goes
//! out as values. Given the same messages it does the same again.

mod audit;
mod cut;
mod dump;
mod filesystem;
mod finding;
mod gate;
mod giving_up;
mod history;
pub mod ledger;
mod notice;
mod order;
mod rules;
mod seeder;
mod spans;
mod stacks;
mod verifier;

#[cfg(test)]
mod testing;

pub use audit::AuditConfig;
pub use finding::{ActionRecord, Cause, ExtentDump, Finding, FindingKind, Symbols};
pub use notice::{BlindCause, BlindSpan, Coverage, FsState, GaveUp, Notice, Span, Summary};
pub use order::Disorder;
pub use verifier::{Outbox, Share, Verifier, VerifierConfig};
