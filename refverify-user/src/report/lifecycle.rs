//! One line for each notice that is neither a finding nor the summary. What the hooks cannot
//! see follows the first one on lines of its own.

use std::{fmt::Write, io};

use super::{printable::Printable, sentence::counted, watched::Watched};
use crate::{
    feed::{FsSlot, Hello, HookMode, Loss},
    verify::{BlindCause, GaveUp, Notice, Span},
};

/// The text, without its last line break; `None` for notices that are reported in other ways.
pub(super) fn line(notice: &Notice, watched: &Watched) -> Option<String> {
    let device = |fs: &FsSlot| watched.device(*fs);
    let line = match notice {
        Notice::Started(hello) => started(hello),
        Notice::WaitingForMount { fs } => {
            format!("{}: not mounted; waiting for its mount", device(fs))
        }
        Notice::Mounted { fs, armed_before: true } => {
            format!("{}: mounted, every event since the mount is seen", device(fs))
        }
        Notice::Mounted { fs, armed_before: false } => format!("{}: is mounted", device(fs)),
        Notice::WaitingForCommit { fs, generation } => format!(
            "{}: part of transaction {generation} may have been missed; its commit is waited for",
            device(fs)
        ),
        Notice::Named { fs, fsid } => format!("{}: it is {fsid}", device(fs)),
        Notice::Seeding { fs, fsid, generation, .. } => {
            format!("{}: reading the extent tree of {fsid}, generation {generation}", device(fs))
        }
        Notice::Seeded { fs, first_generation, generation, extents } => format!(
            "{}: every event is judged from here on; {} read at generations {first_generation} \
             to {generation}",
            device(fs),
            counted(*extents, "extent")
        ),
        Notice::Blind { fs, cause, verified_upto } => format!(
            "{}: blind: {}; verified up to transaction {verified_upto}, {}",
            device(fs),
            blind_words(cause),
            until(cause)
        ),
        Notice::OutOfOrder { fs, disorder } => {
            format!("{}: warning: {disorder}: what is told cannot be right", device(fs))
        }
        Notice::Undone { fs, on_disk, undone, findings } => {
            undone_words(&device(fs), *on_disk, *undone, *findings)
        }
        Notice::Aborted { fs, transid, errno } => format!(
            "{}: the kernel aborted transaction {transid} ({}); the file system is read-only \
             until it is mounted again",
            device(fs),
            errno_words(*errno)
        ),
        Notice::GaveUp { fs, what } => format!("{}: {}", device(fs), gave_up(*what)),
        Notice::MirrorFailed { fs, reason, .. } => {
            format!("{}: warning: {}", device(fs), Printable(reason))
        }
        Notice::Refused { fs, reason } => {
            format!("{}: cannot be verified: {}", device(fs), Printable(reason))
        }
        Notice::Unmounted { fs } => format!("{}: unmounted", device(fs)),
        Notice::Finding(_) | Notice::Dump(_) | Notice::Summary(_) => return None,
    };
    Some(line)
}

/// Why nothing can be judged, in a few words.
pub(super) fn blind_words(cause: &BlindCause) -> String {
    match cause {
        BlindCause::Lost(loss) => lost(loss),
        BlindCause::WritesDropped { signalled, on_disk } => format!(
            "transaction {signalled} was committed, but the superblock on disk is that of \
             {on_disk}: what is written does not reach the disk"
        ),
        BlindCause::NoSuperblock => "no superblock can be read that would tell which \
                                     transactions are on disk"
            .to_owned(),
    }
}

fn until(cause: &BlindCause) -> &'static str {
    match cause {
        BlindCause::Lost(_) => "nothing more is judged until the extent tree has been read again",
        BlindCause::WritesDropped { .. } => {
            "nothing more is judged until commits are on disk again and the extent tree has been \
             read from there"
        }
        BlindCause::NoSuperblock => "what became of the later ones is not known",
    }
}

fn undone_words(device: &str, on_disk: u64, undone: Span, findings: u64) -> String {
    let Span { first, last } = undone;
    let which = if first == last {
        format!("transaction {first}")
    } else {
        format!("transactions {first} to {last}")
    };
    let found = match findings {
        0 => String::new(),
        count => format!("; made there, and still true: {}", counted(count, "finding")),
    };
    format!(
        "{device}: {which} never reached the disk, whose superblock is that of {on_disk}; what \
         was seen of it is undone{found}"
    )
}

fn gave_up(what: GaveUp) -> String {
    match what {
        GaveUp::Histories { upto } => format!(
            "to stay within memory, actions of transactions up to {upto} are given up where \
             they explain least; more will be as new ones come"
        ),
        GaveUp::FreedExtents { upto } => format!(
            "to stay within memory, extents freed by transactions up to {upto} are no longer \
             known to have been freed; more will be forgotten as new ones come"
        ),
        GaveUp::Everything { in_use_bytes } => format!(
            "the extents in use take {} MiB, more than memory is to be used: no history is kept, \
             and every event is judged as before",
            in_use_bytes >> 20
        ),
    }
}

fn started(hello: &Hello) -> String {
    let devices = listed(hello.devices.iter().map(String::as_str));
    // A hook is `kind:name`, and the kinds are said already.
    let hooks = hello.hooks.iter().map(|hook| hook.rsplit(':').next().unwrap_or(hook));
    let hooks = listed(hooks);
    let release = Printable(&hello.kernel_release);
    let mode = mode_words(hello.mode);
    let mut said = format!("watching {devices} on kernel {release} with {mode}: {hooks}");
    for sentence in &hello.unseen {
        let _ = write!(said, "\n  not seen: {}", Printable(sentence));
    }
    said
}

fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.map(|word| Printable(word).to_string()).collect();
    words.join(", ")
}

/// The hooks' kind as a sentence names it.
fn mode_words(mode: HookMode) -> &'static str {
    match mode {
        HookMode::Kprobes => "kprobes",
        HookMode::Tracepoints => "raw tracepoints",
    }
}

/// `at least 3 events lost (ring buffer full)`.
pub(super) fn lost(loss: &Loss) -> String {
    format!("at least {} lost ({})", counted(loss.count, "event"), loss.source)
}

/// `errno -5: Input/output error (os error 5)`.
fn errno_words(errno: i32) -> String {
    let error = io::Error::from_raw_os_error(errno.saturating_neg());
    format!("errno {errno}: {error}")
}
