//! What the world sees of notices made by hand: text and JSON against golden files, and the
//! journal, spoken to through sockets of our own and through a real systemd-journald.

mod documented;
mod fixtures;
mod golden;
mod journal;
