//! The list of file systems.

use super::damage::Damage::{self, Missing, TreeBlocks, Zeroed};

/// A file system to be made, filled and read.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) devices: usize,
    pub(super) mkfs: &'static [&'static str],
    pub(super) mount: &'static str,
    pub(super) making: Making,
    /// What is done to it, one after the other, each time to what was made; after each it is read
    /// again.
    pub(super) damage: &'static [&'static [Damage]],
    /// Whether it is one of the few that `cargo xtask test` makes.
    pub(super) is_quick: bool,
}

/// How it comes about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Making {
    /// Mounted and filled.
    Filled,
    /// The same, without the balance: that would give all chunks one profile.
    FilledWithoutBalance,
    /// Filled, then one chunk of metadata converted to another profile.
    PartlyConverted(&'static str),
    /// Filled, with this run before: the arguments of `btrfs`, then the mount point.
    FilledAfter(&'static [&'static str]),
    /// By `mkfs.btrfs --rootdir` alone: this kernel does not mount it.
    RootDir,
    /// Filled, then given another fsid by `btrfstune` with this argument.
    Renamed(&'static str),
    /// A seed is filled, and another file system sprouts from it.
    Sprouted,
    /// Filled, then a device is added and the first one removed: the superblock moves.
    FirstDeviceRemoved,
    /// Filled, then the second device is replaced.
    Replaced,
    /// Filled, then changed while the second device was away.
    SecondBehind,
    /// Filled, and read by the image files, without loop devices.
    Images,
}

const BASE: Case = Case {
    name: "",
    devices: 1,
    mkfs: &[],
    mount: "",
    making: Making::Filled,
    damage: &[],
    is_quick: false,
};

/// One per profile.
const fn profile(
    name: &'static str,
    devices: usize,
    mkfs: &'static [&'static str],
    damage: &'static [&'static [Damage]],
) -> Case {
    Case { name, devices, mkfs, damage, ..BASE }
}

/// One per option of mkfs.
const fn option(name: &'static str, mkfs: &'static [&'static str]) -> Case {
    Case { name, mkfs, ..BASE }
}

/// One device, with sectors that this kernel does not mount.
const fn sectors(name: &'static str, mkfs: &'static [&'static str]) -> Case {
    Case { name, mkfs, making: Making::RootDir, ..BASE }
}

/// All of them.
pub(super) const CASES: &[Case] = &[
    profile("single", 1, &["-m", "single", "-d", "single"], &[]),
    Case {
        is_quick: true,
        ..profile("dup", 1, &["-m", "dup", "-d", "dup"], &[&[TreeBlocks { devid: 1 }]])
    },
    profile("raid0", 3, &["-m", "raid0", "-d", "raid0"], &[]),
    Case {
        is_quick: true,
        ..profile(
            "raid1",
            2,
            &["-m", "raid1", "-d", "raid1"],
            &[
                &[TreeBlocks { devid: 1 }],
                &[TreeBlocks { devid: 2 }],
                &[Zeroed { devid: 2 }],
                &[Missing { devid: 1 }],
            ],
        )
    },
    profile(
        "raid10",
        4,
        &["-m", "raid10", "-d", "raid10"],
        &[
            &[TreeBlocks { devid: 2 }],
            &[Zeroed { devid: 3 }],
            &[Missing { devid: 4 }],
            &[Missing { devid: 1 }],
        ],
    ),
    profile(
        "raid1c3",
        3,
        &["-m", "raid1c3", "-d", "raid1c3"],
        &[
            &[TreeBlocks { devid: 1 }, Zeroed { devid: 2 }],
            &[Missing { devid: 1 }, Missing { devid: 3 }],
        ],
    ),
    profile(
        "raid1c4",
        4,
        &["-m", "raid1c4", "-d", "raid1c4"],
        &[
            &[TreeBlocks { devid: 1 }, Zeroed { devid: 2 }, TreeBlocks { devid: 4 }],
            &[Missing { devid: 1 }, Missing { devid: 2 }, Missing { devid: 3 }],
        ],
    ),
    Case {
        is_quick: true,
        ..profile(
            "raid5",
            3,
            &["-m", "raid5", "-d", "raid5"],
            &[
                &[TreeBlocks { devid: 1 }],
                &[TreeBlocks { devid: 3 }],
                &[Zeroed { devid: 2 }],
                &[Missing { devid: 1 }],
            ],
        )
    },
    profile("raid5-2-devices", 2, &["-m", "raid5", "-d", "raid5"], &[&[Missing { devid: 1 }]]),
    Case {
        is_quick: true,
        ..profile(
            "raid6",
            5,
            &["-m", "raid6", "-d", "raid6"],
            &[
                &[TreeBlocks { devid: 1 }, TreeBlocks { devid: 2 }],
                &[Zeroed { devid: 3 }, TreeBlocks { devid: 5 }],
                &[Missing { devid: 1 }, Missing { devid: 4 }],
                &[Missing { devid: 2 }, TreeBlocks { devid: 4 }],
            ],
        )
    },
    profile(
        "raid6-3-devices",
        3,
        &["-m", "raid6", "-d", "raid6"],
        &[&[Missing { devid: 1 }, Zeroed { devid: 2 }]],
    ),
    profile("mixed", 1, &["--mixed", "-m", "single", "-d", "single"], &[]),
    profile(
        "mixed-raid1",
        2,
        &["--mixed", "-m", "raid1", "-d", "raid1"],
        &[&[TreeBlocks { devid: 1 }], &[TreeBlocks { devid: 2 }], &[Missing { devid: 1 }]],
    ),
    Case {
        making: Making::PartlyConverted("raid1c3"),
        ..profile(
            "several-profiles",
            4,
            &["-m", "raid5", "-d", "single"],
            &[&[TreeBlocks { devid: 1 }], &[Missing { devid: 2 }]],
        )
    },
    option("csum-xxhash64", &["--csum", "xxhash"]),
    option("csum-sha256", &["--csum", "sha256"]),
    Case { is_quick: true, ..option("csum-blake2b", &["--csum", "blake2"]) },
    option("nodes-4k", &["--nodesize", "4096"]),
    option("nodes-8k", &["--nodesize", "8192"]),
    option("nodes-32k", &["--nodesize", "32768"]),
    Case {
        damage: &[&[Missing { devid: 2 }]],
        ..profile("nodes-64k-raid5", 3, &["--nodesize", "65536", "-m", "raid5"], &[])
    },
    option("block-group-tree", &["-O", "block-group-tree"]),
    option("space-cache-v1", &["-O", "^free-space-tree,^block-group-tree"]),
    option("holes", &["-O", "^no-holes"]),
    option("no-skinny-metadata", &["-O", "^skinny-metadata"]),
    Case { making: Making::FilledAfter(&["quota", "enable"]), ..option("quotas", &[]) },
    Case { is_quick: true, ..option("simple-quotas", &["-O", "squota"]) },
    Case {
        making: Making::FilledAfter(&["quota", "enable", "--simple"]),
        ..option("simple-quotas-later", &[])
    },
    Case { making: Making::FilledWithoutBalance, ..option("no-balance", &[]) },
    Case { mount: "compress-force=lzo", ..option("compress-lzo", &[]) },
    Case { making: Making::Renamed("-m"), ..option("metadata-uuid", &[]) },
    Case { making: Making::Renamed("-u"), ..option("fsid-rewritten", &[]) },
    Case { is_quick: true, making: Making::Sprouted, ..option("seed-and-sprout", &[]) },
    Case {
        making: Making::FirstDeviceRemoved,
        ..profile("first-device-removed", 2, &["-m", "raid1", "-d", "single"], &[])
    },
    Case { making: Making::Replaced, ..profile("device-replaced", 2, &["-m", "raid1"], &[]) },
    Case {
        is_quick: true,
        making: Making::SecondBehind,
        ..profile("second-behind", 2, &["-m", "raid1", "-d", "raid1"], &[])
    },
    Case {
        is_quick: true,
        making: Making::Images,
        ..profile("images", 3, &["-m", "raid1c3"], &[])
    },
    sectors("sectors-8k", &["--sectorsize", "8192"]),
    sectors("sectors-16k", &["--sectorsize", "16384"]),
    sectors("sectors-64k", &["--sectorsize", "65536", "--nodesize", "65536"]),
    // What this kernel or mkfs.btrfs is likely to lack; then the list says so.
    option("zoned-emulated", &["-O", "zoned"]),
    Case { ..profile("raid-stripe-tree", 2, &["-O", "raid-stripe-tree", "-d", "raid1"], &[]) },
    option("extent-tree-v2", &["-O", "extent-tree-v2"]),
];
