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
    sentence::sentence,
    watched::{Name, Watched},
};
use crate::{
    btrfs::{Action, DiskFinding, ExtentKind, RefKey},
    feed::{Change, Event, FsSlot, Hello, Loss},
    verify::{ActionRecord, Cause, Coverage, ExtentDump, Finding, Notice, Span, Summary, Symbols},
};

/// The line, without its break; `None` for a ledger dump. `delivery` is told in the summary.
pub(super) fn line(
    notice: &Notice,
    watched: &Watched,
    delivery: Option<Delivery>,
) -> Option<String> {
    let label = Label::of(notice)?;
    let body = body(notice, watched, delivery)?;
    let line = serde_json::to_string(&Line { kind: label.name, body });
    Some(line.expect("structs of numbers, strings and lists always serialise"))
}

#[derive(Serialize)]
struct Line {
    #[serde(rename = "type")]
    kind: &'static str,
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
    Aborted(AbortedBody),
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
    events_lost: u64,
    verified_upto: u64,
}

#[derive(Serialize)]
struct AbortedBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    transid: u64,
    errno: i32,
}

#[derive(Serialize)]
struct RefusedBody {
    #[serde(flatten)]
    fs: FileSystemBody,
    reason: String,
}

#[derive(Serialize)]
struct FindingBody {
    kind: &'static str,
    message: String,
    #[serde(flatten)]
    fs: FileSystemBody,
    bytenr: u64,
    #[serde(flatten)]
    cause: CauseFields,
    extent: Option<ExtentBody>,
}

/// The fields that an event gives; those of an item on disk are `transid` (the generation
/// that was read) and `disk`.
#[derive(Default, Serialize)]
struct CauseFields {
    len_bytes: Option<u64>,
    extent_kind: Option<&'static str>,
    level: Option<u8>,
    transid: u64,
    action: Option<&'static str>,
    root: Option<u64>,
    owner: Option<u64>,
    offset: Option<u64>,
    parent: Option<u64>,
    pid: Option<u32>,
    tid: Option<u32>,
    comm: Option<String>,
    cpu: Option<u32>,
    time_ns: Option<u64>,
    stack: Vec<String>,
    disk: Option<DiskBody>,
}

#[derive(Serialize)]
struct DiskBody {
    leaf: u64,
    slot: u32,
    detail: String,
}

#[derive(Serialize)]
struct ExtentBody {
    bytenr: u64,
    len_bytes: u64,
    extent_kind: &'static str,
    level: Option<u8>,
    total_refs: u64,
    from_disk: Option<u64>,
    refs: Vec<RefBody>,
    roots: Vec<RootBody>,
    actions: Vec<ActionBody>,
    actions_given_up: u64,
}

#[derive(Serialize)]
struct KeyBody {
    root: u64,
    parent: u64,
    owner: u64,
    offset: u64,
}

#[derive(Serialize)]
struct RefBody {
    #[serde(flatten)]
    key: KeyBody,
    count: u64,
}

#[derive(Serialize)]
struct RootBody {
    root: u64,
    count: u64,
}

#[derive(Serialize)]
struct ActionBody {
    action: &'static str,
    #[serde(flatten)]
    key: KeyBody,
    transid: u64,
    time_ns: u64,
    pid: u32,
    tid: u32,
    comm: String,
    stack: Vec<String>,
}

#[derive(Serialize)]
struct SummaryBody {
    file_systems: Vec<CoverageBody>,
    losses: Vec<LossBody>,
    findings: Vec<CountBody>,
    journal: Option<DeliveryBody>,
}

#[derive(Serialize)]
struct CoverageBody {
    device: String,
    fsid: Option<String>,
    state: &'static str,
    verified: Vec<SpanBody>,
    blind: Vec<SpanBody>,
    events_seen: u64,
    events_applied: u64,
    events_on_disk: u64,
    events_retracted: u64,
    extents: u64,
}

#[derive(Serialize)]
struct SpanBody {
    first: u64,
    last: u64,
}

#[derive(Serialize)]
struct LossBody {
    device: Option<String>,
    source: &'static str,
    events_lost: u64,
}

#[derive(Serialize)]
struct CountBody {
    kind: &'static str,
    count: u64,
}

#[derive(Serialize)]
struct DeliveryBody {
    sent: u64,
    failed: u64,
}

fn body(notice: &Notice, watched: &Watched, delivery: Option<Delivery>) -> Option<Body> {
    let fs = |slot: &FsSlot| FileSystemBody::from(watched.name(*slot));
    let body = match notice {
        Notice::Started(hello) => Body::Start(hello.into()),
        Notice::WaitingForMount { fs: slot } | Notice::Unmounted { fs: slot } => {
            Body::FileSystem(fs(slot))
        }
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
        Notice::Blind { fs: slot, loss, verified_upto } => Body::Blind(BlindBody {
            fs: fs(slot),
            source: loss_source(loss),
            events_lost: loss.count,
            verified_upto: *verified_upto,
        }),
        Notice::Aborted { fs: slot, transid, errno } => {
            Body::Aborted(AbortedBody { fs: fs(slot), transid: *transid, errno: *errno })
        }
        Notice::Refused { fs: slot, reason } => {
            Body::Refused(RefusedBody { fs: fs(slot), reason: reason.clone() })
        }
        Notice::Summary(summary) => Body::Summary(SummaryBody::new(summary, watched, delivery)),
        Notice::Dump(_) => return None,
    };
    Some(body)
}

impl From<&Hello> for StartBody {
    fn from(hello: &Hello) -> Self {
        use crate::feed::HookMode;
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

impl FindingBody {
    fn new(finding: &Finding, name: Name) -> Self {
        let symbols = &finding.symbols;
        let cause = match &finding.cause {
            Cause::Event(event) => CauseFields::of_event(event, symbols),
            Cause::Disk { generation, finding } => CauseFields::of_disk(*generation, finding),
        };
        Self {
            kind: finding.kind.name(),
            message: sentence(finding),
            fs: name.into(),
            bytenr: finding.bytenr(),
            cause,
            extent: finding.extent.as_ref().map(|dump| ExtentBody::new(dump, symbols)),
        }
    }
}

impl CauseFields {
    fn of_event(event: &Event, symbols: &Symbols) -> Self {
        let who = Self {
            transid: event.transid,
            pid: Some(event.pid),
            tid: Some(event.tid),
            comm: Some(event.comm.to_string()),
            cpu: Some(event.cpu),
            time_ns: Some(event.time_ns),
            stack: stack(&event.stack, symbols),
            ..Self::default()
        };
        match event.change {
            Change::Ref { action, kind, len_bytes, key, .. } => Self {
                len_bytes: Some(len_bytes),
                extent_kind: Some(extent_kind(kind)),
                level: level(kind),
                action: Some(action_name(action)),
                root: Some(key.root),
                owner: Some(key.owner),
                offset: Some(key.offset),
                parent: Some(key.parent),
                ..who
            },
            Change::RemoveGroup { len_bytes, .. } => {
                Self { len_bytes: Some(len_bytes), action: Some("remove_block_group"), ..who }
            }
        }
    }

    fn of_disk(generation: u64, found: &DiskFinding) -> Self {
        let detail = found.detail.clone();
        let disk = DiskBody { leaf: found.leaf, slot: found.slot, detail };
        Self { transid: generation, disk: Some(disk), ..Self::default() }
    }
}

impl ExtentBody {
    fn new(dump: &ExtentDump, symbols: &Symbols) -> Self {
        let roots = dump.roots.iter().map(|&(root, count)| RootBody { root, count });
        let refs = dump.refs.iter().map(|(key, count)| RefBody { key: key.into(), count: *count });
        Self {
            bytenr: dump.bytenr,
            len_bytes: dump.len_bytes,
            extent_kind: extent_kind(dump.kind),
            level: level(dump.kind),
            total_refs: dump.total_refs,
            from_disk: dump.from_disk,
            refs: refs.collect(),
            roots: roots.collect(),
            actions: dump.actions.iter().map(|record| ActionBody::new(record, symbols)).collect(),
            actions_given_up: dump.actions_given_up,
        }
    }
}

impl From<&RefKey> for KeyBody {
    fn from(&RefKey { root, parent, owner, offset }: &RefKey) -> Self {
        Self { root, parent, owner, offset }
    }
}

impl ActionBody {
    fn new(record: &ActionRecord, symbols: &Symbols) -> Self {
        Self {
            action: action_name(record.action),
            key: (&record.key).into(),
            transid: record.transid,
            time_ns: record.time_ns,
            pid: record.pid,
            tid: record.tid,
            comm: record.comm.to_string(),
            stack: stack(&record.stack, symbols),
        }
    }
}

impl SummaryBody {
    fn new(summary: &Summary, watched: &Watched, delivery: Option<Delivery>) -> Self {
        let loss = |loss: &Loss| LossBody {
            device: loss.fs.map(|slot| watched.name(slot).device),
            source: loss_source(loss),
            events_lost: loss.count,
        };
        let findings = summary.findings.iter();
        Self {
            file_systems: summary.coverage.iter().map(CoverageBody::from).collect(),
            losses: summary.losses.iter().map(loss).collect(),
            findings: findings
                .map(|(kind, &count)| CountBody { kind: kind.name(), count })
                .collect(),
            journal: delivery.map(|Delivery { sent, failed }| DeliveryBody { sent, failed }),
        }
    }
}

impl From<&Coverage> for CoverageBody {
    fn from(fs: &Coverage) -> Self {
        Self {
            device: fs.device.clone(),
            fsid: fs.fsid.as_ref().map(Uuid::to_string),
            state: fs.state.name(),
            verified: spans(&fs.verified),
            blind: spans(&fs.blind),
            events_seen: fs.events_seen,
            events_applied: fs.events_applied,
            events_on_disk: fs.events_on_disk,
            events_retracted: fs.events_retracted,
            extents: fs.extents,
        }
    }
}

fn spans(spans: &[Span]) -> Vec<SpanBody> {
    spans.iter().map(|&Span { first, last }| SpanBody { first, last }).collect()
}

fn stack(addresses: &[u64], symbols: &Symbols) -> Vec<String> {
    addresses.iter().map(|&address| symbols.text(address).to_owned()).collect()
}

fn loss_source(loss: &Loss) -> &'static str {
    use crate::feed::LossSource;
    match loss.source {
        LossSource::RingBuffer => "ring_buffer",
        LossSource::ProgramMissed => "program_missed",
        LossSource::Unreadable => "unreadable",
    }
}

fn action_name(action: Action) -> &'static str {
    match action {
        Action::AddRef => "add_ref",
        Action::DropRef => "drop_ref",
        Action::AddExtent => "add_extent",
    }
}

fn extent_kind(kind: ExtentKind) -> &'static str {
    match kind {
        ExtentKind::Data => "data",
        ExtentKind::TreeBlock { .. } => "tree_block",
    }
}

fn level(kind: ExtentKind) -> Option<u8> {
    match kind {
        ExtentKind::Data => None,
        ExtentKind::TreeBlock { level } => Some(level),
    }
}
