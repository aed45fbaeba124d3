//! An honest file system, as far as its extents and references go: it allocates, shares,
//! drops and frees at random, and reports each change as the kernel would.

#![expect(clippy::cast_possible_truncation, reason = "all numbers are small")]

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use refverify_user::{
    btrfs::{Action, ExtentKind, RefKey},
    feed::{Change, Comm, Event, FsSlot},
};

use super::image::Extent;

/// A small generator of numbers (SplitMix64): the same seed makes the same run.
pub(crate) struct Rng(pub u64);

impl Rng {
    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % bound
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}

/// The file system.
pub(crate) struct Model {
    /// What is allocated now.
    pub(crate) extents: BTreeMap<u64, Extent>,
    /// Freed, and not to be used again before this transaction is on disk.
    pinned: BTreeMap<u64, u64>,
    /// The running transaction.
    pub(crate) transid: u64,
    clock_ns: u64,
}

const FIRST_BYTENR: u64 = 1 << 30;
const SPACING_BYTES: u64 = 1 << 20;
const PLACES: u64 = 1500;

impl Model {
    /// A file system with nothing on it.
    pub(crate) fn new(transid: u64) -> Self {
        Self { extents: BTreeMap::new(), pinned: BTreeMap::new(), transid, clock_ns: 0 }
    }

    /// The file system as it is mounted after a crash.
    pub(crate) fn after_crash(&mut self, extents: BTreeMap<u64, Extent>, on_disk: u64) {
        (self.extents, self.transid) = (extents, on_disk + 1);
        self.pinned.clear();
    }

    /// Transaction `transid` is on disk: what it freed can be used again.
    pub(crate) fn durable(&mut self, transid: u64) {
        self.pinned.retain(|_, freed_in| *freed_in > transid);
    }

    /// Makes one random change, and returns its event. Some calls find nothing to do.
    pub(crate) fn step(&mut self, rng: &mut Rng) -> Option<Event> {
        match rng.below(10) {
            0..4 => self.allocate(rng),
            4..8 => self.share(rng),
            _ => self.drop_any(rng),
        }
    }

    fn allocate(&mut self, rng: &mut Rng) -> Option<Event> {
        let bytenr = FIRST_BYTENR + rng.below(PLACES) * SPACING_BYTES;
        if self.extents.contains_key(&bytenr) || self.pinned.contains_key(&bytenr) {
            return None;
        }
        let kind = match rng.below(3) {
            0 => ExtentKind::TreeBlock { level: rng.below(3) as u8 },
            _ => ExtentKind::Data,
        };
        let len_bytes = if kind == ExtentKind::Data { 4096 << rng.below(6) } else { 4096 };
        let key = random_key(kind, rng);
        let refs = BTreeMap::from([(key, 1)]);
        self.extents.insert(bytenr, Extent { len_bytes, kind, refs, total_error: 0 });
        Some(self.event(Action::AddExtent, bytenr, kind, len_bytes, key))
    }

    fn share(&mut self, rng: &mut Rng) -> Option<Event> {
        let bytenr = self.any_extent(rng)?;
        let extent = self.extents.get_mut(&bytenr)?;
        let key = random_key(extent.kind, rng);
        if extent.kind != ExtentKind::Data && extent.refs.contains_key(&key) {
            return None;
        }
        *extent.refs.entry(key).or_insert(0) += 1;
        let (kind, len_bytes) = (extent.kind, extent.len_bytes);
        Some(self.event(Action::AddRef, bytenr, kind, len_bytes, key))
    }

    fn drop_any(&mut self, rng: &mut Rng) -> Option<Event> {
        let bytenr = self.any_extent(rng)?;
        let keys: Vec<RefKey> = self.extents.get(&bytenr)?.refs.keys().copied().collect();
        Some(self.drop_ref(bytenr, rng.pick(&keys)))
    }

    /// Drops one reference, which is there.
    pub(crate) fn drop_ref(&mut self, bytenr: u64, key: RefKey) -> Event {
        let extent = self.extents.get_mut(&bytenr).expect("the extent is there");
        let count = extent.refs.get_mut(&key).expect("the reference is there");
        *count -= 1;
        if *count == 0 {
            extent.refs.remove(&key);
        }
        let (kind, len_bytes) = (extent.kind, extent.len_bytes);
        if extent.refs.is_empty() {
            self.extents.remove(&bytenr);
            self.pinned.insert(bytenr, self.transid);
        }
        self.event(Action::DropRef, bytenr, kind, len_bytes, key)
    }

    /// Adds a reference to an extent that is there.
    pub(crate) fn add_ref(&mut self, bytenr: u64, key: RefKey) -> Event {
        let extent = self.extents.get_mut(&bytenr).expect("the extent is there");
        *extent.refs.entry(key).or_insert(0) += 1;
        let (kind, len_bytes) = (extent.kind, extent.len_bytes);
        self.event(Action::AddRef, bytenr, kind, len_bytes, key)
    }

    fn any_extent(&self, rng: &mut Rng) -> Option<u64> {
        let bytenrs: Vec<u64> = self.extents.keys().copied().collect();
        (!bytenrs.is_empty()).then(|| rng.pick(&bytenrs))
    }

    /// An event of the running transaction; the model itself stays as it is.
    pub(crate) fn event(
        &mut self,
        action: Action,
        bytenr: u64,
        kind: ExtentKind,
        len_bytes: u64,
        key: RefKey,
    ) -> Event {
        self.clock_ns += 1;
        Event {
            fs: FsSlot(0),
            transid: self.transid,
            time_ns: self.clock_ns,
            cpu: 0,
            pid: 1,
            tid: 1,
            comm: Comm::default(),
            stack: Arc::from([]),
            change: Change::Ref { action, kind, bytenr, len_bytes, key, owning_root: 0 },
        }
    }

    /// The model in the form of the ledger's dump, header left out.
    pub(crate) fn dump(&self) -> String {
        self.extents.iter().map(|(&bytenr, extent)| dump_extent(bytenr, extent)).collect()
    }
}

fn dump_extent(bytenr: u64, extent: &Extent) -> String {
    let kind = match extent.kind {
        ExtentKind::Data => "data".to_owned(),
        ExtentKind::TreeBlock { level } => format!("tree level {level}"),
    };
    let total: u32 = extent.refs.values().sum();
    let mut text = format!("extent {bytenr} len {} {kind} refs {total}\n", extent.len_bytes);
    for (key, count) in &extent.refs {
        let RefKey { root, parent, owner, offset } = key;
        let _ = writeln!(
            text,
            "ref root {root} parent {parent} owner {owner} offset {offset} count {count}"
        );
    }
    text
}

fn random_key(kind: ExtentKind, rng: &mut Rng) -> RefKey {
    let root = rng.pick(&[5, 256, 257, 258, 300]);
    let parent = if rng.one_in(3) { FIRST_BYTENR + rng.below(PLACES) * SPACING_BYTES } else { 0 };
    match kind {
        ExtentKind::TreeBlock { level } => RefKey::tree(root, parent, level),
        ExtentKind::Data => {
            let offset = rng.pick(&[0, 4096, 4096_u64.wrapping_neg(), 1 << 20]);
            RefKey::data(root, parent, 256 + rng.below(20), offset)
        }
    }
}
