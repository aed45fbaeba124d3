//! Watching a guest from outside: an agent in the guest, everything else here.
//!
//! | file | what |
//! |---|---|
//! | `target` | what the command line means |
//! | `ssh` | reaching a guest by the user's own ssh |
//! | `qga` | reaching a guest by its QEMU guest agent |
//! | `bootstrap` | getting an agent to run there, by a shell |
//! | `asked` | what may be answered: a guest is not believed |
//! | `converse` | the talk with the agent, until one end has gone |
//! | `guest` | the connection to one guest |
//! | `watch` | one guest from begin to end, and its flight record |

mod asked;
mod bootstrap;
mod converse;
mod guest;
mod qga;
mod ssh;
mod target;
mod watch;

pub use bootstrap::{AgentFile, BootstrapError};
pub use converse::Lost;
pub use guest::{AttachError, Attached, attach};
pub use qga::QgaError;
pub use ssh::SshCommand;
pub use target::{Guest, GuestAgent, TargetError, Way, guests};
pub use watch::{Watching, watch};
