//! What the ledger promises of memory: few bytes for each extent, and a ceiling that is kept by
//! giving up histories, then tombstones, never an extent in use.

#[path = "../benches/ledger/workload.rs"]
mod workload;

use refverify_user::{
    btrfs::Action,
    feed::{Change, Event},
    verify::{
        FindingKind,
        ledger::{Ledger, Limits, PackedLedger, ShardedLedger},
    },
};
use workload::{Disk, Events, Mix, Places};

const EXTENTS: usize = 300_000;

fn seeded(mix: Mix, limits: Limits) -> PackedLedger {
    seed(PackedLedger::new(limits), mix)
}

fn seed<L: Ledger>(mut ledger: L, mix: Mix) -> L {
    let mut disk = Disk::new(mix);
    let mut leaf = Vec::new();
    for _ in 0..EXTENTS / 150 {
        let range = disk.next_leaf(150, &mut leaf);
        ledger.read(range, 42, &leaf);
    }
    ledger
}

/// The bytes are counted as they are allocated; the bench measures the same as resident
/// memory. Each bound is a twentieth above what it was when it was written, so that a growth by
/// a tenth is seen.
#[test]
fn an_extent_at_rest_takes_no_more_than_it_did() {
    let bounds =
        [(Mix::Single, 10.1), (Mix::Aged, 15.1), (Mix::Snapshots, 18.5), (Mix::Metadata, 12.2)];
    for (mix, bound) in bounds {
        let ledger = seeded(mix, Limits::default());
        let hundredths = ledger.kept().total_bytes * 100 / ledger.live();
        let each = f64::from(u32::try_from(hundredths).unwrap()) / 100.0;
        println!("{mix:?}: {each:.2} bytes for each extent");
        assert!(each < bound, "{mix:?}: {each:.2} bytes for each extent, more than {bound}");
        assert!(each > bound * 0.85, "{mix:?}: {each:.2} bytes; the bound is {bound}, tighten it");
    }
}

#[test]
fn shards_cost_hardly_more_than_one_ledger() {
    let one = seeded(Mix::Single, Limits::default()).kept().total_bytes;
    let four = seed(ShardedLedger::new(Limits::default(), 4), Mix::Single).kept().total_bytes;
    // Each shard has a slab of pages and a part of the index that are not full.
    assert!(four < one + one / 20 + 4 * (80 << 10), "{one} bytes in one, {four} in four shards");
}

struct Churn {
    ledger: PackedLedger,
    events: Events,
    transid: u64,
}

impl Churn {
    fn new(limits: Limits, places: Places) -> Self {
        let ledger = seeded(Mix::Single, limits);
        let events = Events::new(places, &mut Disk::new(Mix::Single), EXTENTS / 150 * 150);
        Self { ledger, events, transid: 43 }
    }

    /// Makes changes, and commits them.
    fn run(&mut self, count: usize) -> Vec<Event> {
        let events: Vec<Event> = (0..count).map(|_| self.events.next(self.transid)).collect();
        assert!(self.ledger.apply_all(&events).wrong.is_empty(), "honest events are in order");
        self.ledger.commit(self.transid);
        self.transid += 1;
        events
    }
}

#[test]
fn the_ceiling_is_kept_and_no_extent_in_use_is_given_up_for_it() {
    let unbounded = Churn::new(Limits::default(), Places::Random);
    let in_use = unbounded.ledger.kept().total_bytes;
    // Besides the extents, which grow as they are changed, what is pending has to fit.
    let limits = Limits { memory_bytes: in_use + (8 << 20), ..Limits::default() };
    let mut bounded = Churn::new(limits, Places::Random);
    let mut unbounded = unbounded;
    for _ in 0..20 {
        bounded.run(20_000);
        unbounded.run(20_000);
        let kept = bounded.ledger.kept();
        assert!(kept.total_bytes <= limits.memory_bytes, "{kept:?}");
        assert!(!kept.over_ceiling, "{kept:?}");
    }
    let kept = bounded.ledger.kept();
    assert!(kept.history_after > 43, "histories were given up, and that is told: {kept:?}");
    assert!(kept.history_after >= kept.tombstones_after, "tombstones go last: {kept:?}");
    assert_eq!(unbounded.ledger.kept().history_after, 0);
    let contents = |ledger: &PackedLedger| {
        let mut all = Vec::new();
        ledger.visit(&mut |bytenr, extent| all.push((bytenr, extent.clone())));
        all
    };
    assert_eq!(contents(&bounded.ledger), contents(&unbounded.ledger));
}

#[test]
fn an_extent_freed_since_then_is_known_to_have_been_freed() {
    let limits = Limits { history_bytes: 2 << 20, ..Limits::default() };
    let mut churn = Churn::new(limits, Places::Random);
    let mut last_changes = std::collections::HashMap::new();
    for _ in 0..20 {
        for event in churn.run(20_000) {
            if let Change::Ref { bytenr, .. } = event.change {
                last_changes.insert(bytenr, event);
            }
        }
    }
    let kept = churn.ledger.kept();
    assert!(kept.tombstones_after > 43, "some were given up, or this shows nothing: {kept:?}");
    let mut checked = 0;
    for (bytenr, event) in last_changes {
        let is_freed = churn.ledger.as_of(bytenr, u64::MAX).is_none();
        if !is_freed || event.transid <= kept.tombstones_after || checked == 2000 {
            continue;
        }
        checked += 1;
        let again = Event { transid: churn.transid, ..event.clone() };
        let found = churn.ledger.apply(&again).expect_err("it has no reference left");
        assert_eq!(found.kind, FindingKind::ZeroRefs);
        let actions = found.extent.expect("its tombstone is shown").actions;
        let last = actions.last().expect("who freed it is told");
        assert_eq!((last.action, last.transid), (Action::DropRef, event.transid));
    }
    assert!(checked > 100, "only {checked} were there to be checked");
}

/// The same changes, in one large transaction or in many small ones, end in about the same
/// memory: how full the pages are depends on the order of the changes.
#[test]
fn memory_comes_back_after_a_large_transaction() {
    let limits = Limits { history_bytes: 1 << 20, ..Limits::default() };
    let apart_from_history = |churn: &Churn| {
        let kept = churn.ledger.kept();
        kept.total_bytes - kept.history_bytes
    };
    let mut small = Churn::new(limits, Places::Local);
    for _ in 0..200 {
        small.run(1000);
    }
    let mut large = Churn::new(limits, Places::Local);
    large.run(198_000);
    let peak = apart_from_history(&large);
    large.run(1000);
    large.run(1000);
    let (small, large) = (apart_from_history(&small), apart_from_history(&large));
    assert!(large < small + small / 8, "{large} bytes after one large, {small} after small ones");
    assert!(peak > 4 * large, "{peak} bytes at the peak are too few to show anything");
}
