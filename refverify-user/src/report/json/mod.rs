//! One JSON object on one line for each notice.
//!
//! The structs here are the schema, apart from the internal types on purpose: a field is
//! renamed there without a consumer noticing. Numbers of 64 bits are numbers; what does not
//! apply is `null`.

use serde::Serialize;
use uuid::Uuid;

use super::{
    journal::Delivery,
    label::Label,
    watched::{Name, Watched},
};
use crate::{
    feed::{FsSlot, Hello, HookMode, Loss, LossSource},
    verify::{BlindCause, Disorder, GaveUp, Notice},
};
use finding::FindingBody;
use summary::{SpanBody, SummaryBody};

pub(super) mod finding;
mod summary;

/// The line, without its break; `None` for a ledger dump. `delivery` is told in the summary.
pub(super) fn line(
    notice: &Notice,
    watched: &Watched,
    delivery: Option<Delivery>,
) -> Option<String> {
    let label = Label::of(notice)?;
    let body = body(notice, watched, delivery)?;
    let line = serde_json::to_string(&Line { kind: label.name, vm: watched.vm(), body });
    Some(line.expect("structs of numbers, strings and lists always serialise"))
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    /// Only where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    vm: Option<&'a str>,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body {
    Start(StartBody),
    FileSystem(FileSystemBody),
    Mounted(MountedBody),
    WaitingForCommit(WaitingForCommitBody),
    Seeding(SeedingBody),
    Seeded(SeededBody),
    Finding(Box<FindingBody>),
    Blind(BlindBody),
    OutOfOrder(OutOfOrderBody),
    Aborted(AbortedBody),
    Undone(UndoneBody),
    GaveUp(GaveUpBody),
    MirrorFailed(MirrorFailedBody),
    Refused(RefusedBody),
    Summary(SummaryBody),
}

#[derive(Serialize)]
struct StartBody {
    kernel_release: String,
    mode: &'static str,
    hooks: Vec<String>,
    unseen: Vec<String>,
    devices: Vec<String>,
}

#[derive(Serialize)]
struct FileSystemBody {
    device: String,
    fsid: Option<String>,
}

#[derive(Serialize)]
struct MountedBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    armed_before: bool,
}

#[derive(Serialize)]
struct WaitingForCommitBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    generation: u64,
}

#[derive(Serialize)]
struct SeedingBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    generation: u64,
    done_permille: u32,
    extents: u64,
    events_waiting: u64,
}

#[derive(Serialize)]
struct SeededBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    first_generation: u64,
    generation: u64,
    extents: u64,
}

#[derive(Serialize)]
struct BlindBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    source: &'static str,
    /// Where events were lost.
    events_lost: Option<u64>,
    /// Where writes are dropped: the commit that is not on disk, and what is.
    signalled: Option<u64>,
    on_disk: Option<u64>,
    verified_upto: u64,
}

#[derive(Serialize)]
struct OutOfOrderBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    what: &'static str,
    transid: u64,
    after: u64,
}

#[derive(Serialize)]
struct UndoneBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    on_disk: u64,
    #[serde(flatten)]
    undone: SpanBody,
    findings: u64,
}

#[derive(Serialize)]
struct AbortedBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    transid: u64,
    errno: i32,
}

#[derive(Serialize)]
struct GaveUpBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    what: &'static str,
    upto: Option<u64>,
    in_use_bytes: Option<u64>,
}

#[derive(Serialize)]
struct MirrorFailedBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    devid: u64,
    reason: String,
}

#[derive(Serialize)]
struct RefusedBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    reason: String,
}

fn body(notice: &Notice, watched: &Watched, delivery: Option<Delivery>) -> Option<Body> {
    let fs = |slot: &FsSlot| FileSystemBody::from(watched.name(*slot));
    let body = match notice {
        Notice::Started(hello) => Body::Start(hello.into()),
        Notice::WaitingForMount { fs: slot }
        | Notice::Named { fs: slot, .. }
        | Notice::Unmounted { fs: slot } => Body::FileSystem(fs(slot)),
        Notice::Mounted { fs: slot, armed_before } => {
            Body::Mounted(MountedBody { fs: fs(slot), armed_before: *armed_before })
        }
        Notice::WaitingForCommit { fs: slot, generation } => {
            Body::WaitingForCommit(WaitingForCommitBody { fs: fs(slot), generation: *generation })
        }
        Notice::Seeding {
            fs: slot, generation, done_permille, extents, events_waiting, ..
        } => Body::Seeding(SeedingBody {
            fs: fs(slot),
            generation: *generation,
            done_permille: *done_permille,
            extents: *extents,
            events_waiting: *events_waiting,
        }),
        Notice::Seeded { fs: slot, first_generation, generation, extents } => {
            Body::Seeded(SeededBody {
                fs: fs(slot),
                first_generation: *first_generation,
                generation: *generation,
                extents: *extents,
            })
        }
        Notice::Finding(finding) => {
            let name = watched.name(finding.fs);
            Body::Finding(Box::new(FindingBody::new(finding, name)))
        }
        Notice::Blind { fs: slot, cause, verified_upto } => {
            Body::Blind(BlindBody::new(fs(slot), cause, *verified_upto))
        }
        Notice::Undone { fs: slot, on_disk, undone, findings } => Body::Undone(UndoneBody {
            fs: fs(slot),
            on_disk: *on_disk,
            undone: undone.into(),
            findings: *findings,
        }),
        Notice::OutOfOrder { fs: slot, disorder } => {
            Body::OutOfOrder(OutOfOrderBody::new(fs(slot), *disorder))
        }
        Notice::Aborted { fs: slot, transid, errno } => {
            Body::Aborted(AbortedBody { fs: fs(slot), transid: *transid, errno: *errno })
        }
        Notice::GaveUp { fs: slot, what } => Body::GaveUp(GaveUpBody::new(fs(slot), *what)),
        Notice::MirrorFailed { fs: slot, devid, reason } => Body::MirrorFailed(MirrorFailedBody {
            fs: fs(slot),
            devid: *devid,
            reason: reason.clone(),
        }),
        Notice::Refused { fs: slot, reason } => {
            Body::Refused(RefusedBody { fs: fs(slot), reason: reason.clone() })
        }
        Notice::Summary(summary) => Body::Summary(SummaryBody::new(summary, watched, delivery)),
        Notice::Dump(_) => return None,
    };
    Some(body)
}

impl OutOfOrderBody {
    fn new(fs: FileSystemBody, disorder: Disorder) -> Self {
        let (what, transid, after) = match disorder {
            Disorder::EventGoesBack { transid, after } => ("event_goes_back", transid, after),
            Disorder::EventIsDurable { transid, durable } => ("event_is_durable", transid, durable),
            Disorder::CommitOutOfTurn { transid, after } => ("commit_out_of_turn", transid, after),
        };
        Self { fs, what, transid, after }
    }
}

impl BlindBody {
    fn new(fs: FileSystemBody, cause: &BlindCause, verified_upto: u64) -> Self {
        let (events_lost, signalled, on_disk) = match *cause {
            BlindCause::Lost(loss) => (Some(loss.count), None, None),
            BlindCause::WritesDropped { signalled, on_disk } => {
                (None, Some(signalled), Some(on_disk))
            }
            BlindCause::NoSuperblock => (None, None, None),
        };
        let source = blind_source(cause);
        Self { fs, source, events_lost, signalled, on_disk, verified_upto }
    }
}

impl GaveUpBody {
    fn new(fs: FileSystemBody, what: GaveUp) -> Self {
        let (what, upto, in_use_bytes) = match what {
            GaveUp::Histories { upto } => ("histories", Some(upto), None),
            GaveUp::FreedExtents { upto } => ("freed_extents", Some(upto), None),
            GaveUp::Everything { in_use_bytes } => ("everything", None, Some(in_use_bytes)),
        };
        Self { fs, what, upto, in_use_bytes }
    }
}

impl From<&Hello> for StartBody {
    fn from(hello: &Hello) -> Self {
        Self {
            kernel_release: hello.kernel_release.clone(),
            mode: match hello.mode {
                HookMode::Kprobes => "kprobes",
                HookMode::Tracepoints => "tracepoints",
            },
            hooks: hello.hooks.clone(),
            unseen: hello.unseen.clone(),
            devices: hello.devices.clone(),
        }
    }
}

impl From<Name> for FileSystemBody {
    fn from(name: Name) -> Self {
        Self { device: name.device, fsid: name.fsid.as_ref().map(Uuid::to_string) }
    }
}

fn blind_source(cause: &BlindCause) -> &'static str {
    match cause {
        BlindCause::Lost(loss) => loss_source(loss),
        BlindCause::WritesDropped { .. } => "writes_dropped",
        BlindCause::NoSuperblock => "no_superblock",
    }
}

fn loss_source(loss: &Loss) -> &'static str {
    match loss.source {
        LossSource::RingBuffer => "ring_buffer",
        LossSource::ProgramMissed => "program_missed",
        LossSource::Unreadable => "unreadable",
        LossSource::OutOfOrder => "out_of_order",
    }
}
