//! Synthetic file systems and what happens to them, from a seed.

#![expect(clippy::cast_possible_truncation, reason = "what is generated is chosen to be small")]

use std::sync::Arc;

use refverify_user::{
    btrfs::{Action, DiskExtent, ExtentKind, RefKey},
    feed::{Change, Comm, Event, FsSlot},
};

/// A generator of numbers (splitmix64).
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash(self.0)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

fn hash(value: u64) -> u64 {
    let mut z = value;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a file system holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Data, one reference each; files as they were written, so that neighbours on disk are
    /// of the same file or of one near it.
    Single,
    /// The same after long use: each extent belongs to any of four million files, at any
    /// place in it.
    Aged,
    /// As `Single`, but 30 % of the extents have 2 to 8 references: half of them shared ones
    /// from blocks of snapshots, half direct ones from reflinks and from other roots.
    Snapshots,
    /// Half tree blocks, a fifth of them shared.
    Metadata,
}

/// Where the metadata's block groups begin.
const METADATA_START: u64 = 1 << 42;

/// The extents of a file system in order of bytenr.
pub(crate) struct Disk {
    mix: Mix,
    random: Random,
    bytenr: u64,
    inode: u64,
    offset: u64,
}

impl Disk {
    pub(crate) fn new(mix: Mix) -> Self {
        Self { mix, random: Random(1), bytenr: 13_631_488, inode: 257, offset: 0 }
    }

    fn len_bytes(&mut self) -> u64 {
        // Compressed extents end at 128 KiB; small writes are the most.
        let sectors = match self.random.below(10) {
            0..5 => 1 + self.random.below(4),
            5..9 => 1 + self.random.below(32),
            _ => 1 + self.random.below(1024),
        };
        sectors * 4096
    }

    fn next_file_place(&mut self) -> (u64, u64) {
        if self.mix == Mix::Aged {
            return (257 + self.random.below(1 << 22), self.random.below(1 << 18) * 4096);
        }
        if self.random.below(8) == 0 {
            // Files are written side by side.
            self.inode = (self.inode + self.random.below(16)).saturating_sub(6).max(257);
            self.offset = 0;
        }
        (self.inode, self.offset)
    }

    /// Fills `leaf` with the next extents, and returns the range that they fill.
    pub(crate) fn next_leaf(
        &mut self,
        count: usize,
        leaf: &mut Vec<DiskExtent>,
    ) -> std::ops::Range<u64> {
        let start = self.bytenr;
        leaf.clear();
        for _ in 0..count {
            let extent = self.next_extent();
            leaf.push(extent);
        }
        start..self.bytenr
    }

    pub(crate) fn next_extent(&mut self) -> DiskExtent {
        if self.random.below(5) == 0 {
            self.bytenr += self.random.below(64) * 4096;
        }
        if self.mix == Mix::Metadata && self.random.below(2) == 0 {
            return self.tree_block();
        }
        let len_bytes = self.len_bytes();
        let (inode, offset) = self.next_file_place();
        self.offset += len_bytes;
        let mut refs = vec![(RefKey::data(5, 0, inode, offset), 1)];
        if self.mix == Mix::Snapshots && self.random.below(10) < 3 {
            self.share(&mut refs, inode, offset);
        }
        refs.sort_unstable();
        refs.dedup_by_key(|(key, _)| *key);
        self.extent(len_bytes, ExtentKind::Data, refs)
    }

    fn share(&mut self, refs: &mut Vec<(RefKey, u32)>, inode: u64, offset: u64) {
        let is_shared = self.random.below(2) == 0;
        for _ in 0..=self.random.below(7) {
            let key = if is_shared {
                RefKey::data(0, METADATA_START + self.random.below(1 << 17) * 16384, 0, 0)
            } else if self.random.below(2) == 0 {
                RefKey::data(257 + self.random.below(64), 0, inode, offset)
            } else {
                RefKey::data(
                    5,
                    0,
                    inode + self.random.below(1000),
                    self.random.below(1 << 10) * 4096,
                )
            };
            refs.push((key, 1));
        }
    }

    fn tree_block(&mut self) -> DiskExtent {
        let level = u8::from(self.random.below(64) == 0);
        let root = [2, 5, 7, 257 + self.random.below(64)][self.random.below(4) as usize];
        let mut refs = vec![(RefKey::tree(root, 0, level), 1)];
        if self.random.below(5) == 0 {
            for _ in 0..=self.random.below(3) {
                let parent = METADATA_START + self.random.below(1 << 17) * 16384;
                refs.push((RefKey::tree(0, parent, level), 1));
            }
        }
        refs.sort_unstable();
        refs.dedup_by_key(|(key, _)| *key);
        self.extent(16384, ExtentKind::TreeBlock { level }, refs)
    }

    fn extent(&mut self, len_bytes: u64, kind: ExtentKind, refs: Vec<(RefKey, u32)>) -> DiskExtent {
        let bytenr = self.bytenr;
        self.bytenr += len_bytes;
        let total_refs = refs.len() as u64;
        DiskExtent { bytenr, len_bytes, kind, total_refs, generation: 42, owner_root: None, refs }
    }
}

/// How events choose their extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Places {
    /// Any extent, every time.
    Random,
    /// Allocations fill free space in order; what is shared and freed was written lately.
    Local,
}

/// Makes events that are in order, for a file system of the mix `Single` or `Aged`.
pub(crate) struct Events {
    places: Places,
    random: Random,
    /// What each extent is: its place, length and own reference.
    extents: Vec<Known>,
    /// Where the local ones go on.
    cursor: usize,
    time_ns: u64,
    stacks: Vec<Arc<[u64]>>,
}

#[derive(Clone, Copy)]
struct Known {
    bytenr: u64,
    owner: u32,
    sectors: u32,
    offset_sectors: u32,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Used,
    Shared,
}

impl Events {
    pub(crate) fn new(places: Places, disk: &mut Disk, count: usize) -> Self {
        let known = |extent: DiskExtent| {
            let (key, _) = extent.refs[0];
            Known {
                bytenr: extent.bytenr,
                owner: key.owner as u32,
                sectors: (extent.len_bytes / 4096) as u32,
                offset_sectors: (key.offset / 4096) as u32,
                state: State::Used,
            }
        };
        Self {
            places,
            random: Random(2),
            extents: (0..count).map(|_| known(disk.next_extent())).collect(),
            cursor: 0,
            time_ns: 1_000_000_000,
            stacks: (0..300_u64)
                .map(|n| {
                    (0..24)
                        .map(|frame| 0xffff_ffff_c000_0000 + hash(n * 32 + frame) % (1 << 20))
                        .collect()
                })
                .collect(),
        }
    }

    fn place(&mut self) -> usize {
        let count = self.extents.len();
        match self.places {
            Places::Random => self.random.below(count as u64) as usize,
            Places::Local => {
                // Three of four go on at the cursor; the others follow a little behind.
                if self.random.below(4) != 0 {
                    self.cursor = (self.cursor + 1) % count;
                    self.cursor
                } else {
                    (self.cursor + count - self.random.below(10_000.min(count as u64)) as usize)
                        % count
                }
            }
        }
    }

    pub(crate) fn next(&mut self, transid: u64) -> Event {
        let place = self.place();
        let share = self.random.below(2) == 0;
        let known = &mut self.extents[place];
        let own =
            RefKey::data(5, 0, u64::from(known.owner), u64::from(known.offset_sectors) * 4096);
        let second = RefKey::data(5, 0, u64::from(known.owner) + 1000, 0);
        let (action, key) = match known.state {
            State::Free => (Action::AddExtent, own),
            State::Shared => (Action::DropRef, second),
            State::Used if share => (Action::AddRef, second),
            State::Used => (Action::DropRef, own),
        };
        known.state = match (known.state, action) {
            (State::Used, Action::AddRef) => State::Shared,
            (State::Used, _) => State::Free,
            _ => State::Used,
        };
        let (bytenr, len_bytes) = (known.bytenr, u64::from(known.sectors) * 4096);
        let kind = ExtentKind::Data;
        self.time_ns += 20_000;
        let task = self.random.below(16) as u32;
        let stack = self.stacks[self.random.below(300) as usize].clone();
        Event {
            fs: FsSlot(0),
            transid,
            time_ns: self.time_ns,
            cpu: 0,
            pid: 1000 + task,
            tid: 1000 + task,
            comm: Comm(*b"kworker/u8:1\0\0\0\0"),
            stack,
            change: Change::Ref { action, kind, bytenr, len_bytes, key, owning_root: 0 },
        }
    }
}
