//! The parts of `refverify-monitor`. ARCHITECTURE.md at the top of the workspace says how
//! they fit; the arrows between them point one way only:
//!
//! ```text
//! btrfs ◀ feed ◀ {agent, verify} ◀ report ◀ cli
//! ```

pub mod agent;
pub mod attach;
pub mod btrfs;
pub mod check;
pub mod cli;
pub mod explain;
pub mod feed;
pub mod report;
pub mod run;
pub mod serve;
pub mod session;
pub mod verify;
