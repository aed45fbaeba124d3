//! A finding as JSON.

use serde::Serialize;

use super::FileSystemBody;
use crate::{
    btrfs::{Action, DiskFinding, ExtentKind, RefKey},
    feed::{Change, Event},
    report::{sentence::sentence, watched::Name},
    verify::{ActionRecord, Cause, ExtentDump, Finding, Symbols},
};

#[derive(Serialize)]
pub(crate) struct FindingBody {
    kind: &'static str,
    message: String,
    #[serde(flatten)]
    fs: FileSystemBody,
    bytenr: u64,
    #[serde(flatten)]
    cause: CauseFields,
    extent: Option<ExtentBody>,
    withheld: u64,
}

/// The fields that an event gives; those of an item on disk are `transid` (the generation
/// that was read) and `disk`.
#[derive(Default, Serialize)]
pub(crate) struct CauseFields {
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
    /// What an audit found, of an extent that is expected to be otherwise.
    on_disk: Option<ExtentBody>,
}

#[derive(Serialize)]
struct DiskBody {
    leaf: u64,
    slot: u32,
    detail: String,
}

#[derive(Serialize)]
pub(crate) struct ExtentBody {
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

impl FindingBody {
    pub(crate) fn new(finding: &Finding, name: Name) -> Self {
        let symbols = &finding.symbols;
        let cause = match &finding.cause {
            Cause::Event(event) => CauseFields::of_event(event, symbols),
            Cause::Disk { generation, finding } => CauseFields::of_disk(*generation, finding),
            Cause::Audit { generation, on_disk, .. } => CauseFields {
                transid: *generation,
                on_disk: on_disk.as_ref().map(|dump| ExtentBody::new(dump, symbols)),
                ..CauseFields::default()
            },
        };
        Self {
            kind: finding.kind.name(),
            message: sentence(finding),
            fs: name.into(),
            bytenr: finding.bytenr(),
            cause,
            extent: finding.extent.as_ref().map(|dump| ExtentBody::new(dump, symbols)),
            withheld: finding.withheld,
        }
    }
}

impl CauseFields {
    pub(crate) fn of_event(event: &Event, symbols: &Symbols) -> Self {
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
        let detail = found.fault.to_string();
        let disk = DiskBody { leaf: found.leaf, slot: found.slot, detail };
        Self { transid: generation, disk: Some(disk), ..Self::default() }
    }
}

impl ExtentBody {
    pub(crate) fn new(dump: &ExtentDump, symbols: &Symbols) -> Self {
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

fn stack(addresses: &[u64], symbols: &Symbols) -> Vec<String> {
    addresses.iter().map(|&address| symbols.text(address).to_owned()).collect()
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
