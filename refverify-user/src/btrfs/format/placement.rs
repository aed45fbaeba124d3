//! Where the bytes of a tree block are: from a place in a chunk to places on devices.
//!
//! The mapping is that of the kernel's `btrfs_map_block` (`fs/btrfs/volumes.c`, 6.12).

use super::{
    parity::{Parity, Row},
    profile::{Profile, RAID10_COPIES},
};

/// How much of a stripe is on one device before the next device's turn (kernel:
/// `BTRFS_STRIPE_LEN`; the tree checker accepts no other).
pub(super) const STRIPE_LEN_BYTES: u64 = 64 << 10;

/// Where a chunk's stripe begins on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stripe {
    pub(super) devid: u64,
    /// In bytes.
    pub(super) offset: u64,
}

/// A part of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The btrfs device id.
    pub devid: u64,
    /// Byte offset on that device.
    pub offset: u64,
    /// Length.
    pub len_bytes: u32,
}

/// The ways to get at a tree block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The copies, each in pieces that follow one another: more than one only where a block
    /// crosses a border between stripes. What is not mapped has no copy.
    pub copies: Vec<Vec<Piece>>,
    /// How to compute it when all copies are bad; RAID5 and RAID6 only.
    pub parity: Option<Parity>,
}

impl Placement {
    /// Of the `len_bytes` at `within`, which lie in the chunk; the stripes are as many as the
    /// profile can have.
    pub(super) fn new(profile: Profile, stripes: &[Stripe], within: u64, len_bytes: u32) -> Self {
        match profile {
            Profile::Single | Profile::Copies(_) => {
                let copy = |stripe: &Stripe| {
                    vec![Piece {
                        devid: stripe.devid,
                        offset: stripe.offset.saturating_add(within),
                        len_bytes,
                    }]
                };
                Self { copies: stripes.iter().map(copy).collect(), parity: None }
            }
            Profile::Raid0 => Self::striped(stripes, 1, within, len_bytes),
            Profile::Raid10 => {
                Self::striped(stripes, usize::from(RAID10_COPIES), within, len_bytes)
            }
            Profile::Parity(parities) => {
                Self::with_parity(stripes, usize::from(parities), within, len_bytes)
            }
        }
    }

    /// Groups of `copies` stripes take turns.
    fn striped(stripes: &[Stripe], copies: usize, within: u64, len_bytes: u32) -> Self {
        let groups = stripes.len() / copies;
        let copy = |copy: usize| {
            let piece = |part: Part| {
                let (row, group) = part.row_and_column(groups);
                part.on(stripes.get(group * copies + copy)?, row)
            };
            parts(within, len_bytes).filter_map(piece).collect()
        };
        Self { copies: (0..copies).map(copy).collect(), parity: None }
    }

    /// In each row the stripes begin one device further on: first the data, then P, then Q.
    fn with_parity(stripes: &[Stripe], parities: usize, within: u64, len_bytes: u32) -> Self {
        let data = stripes.len() - parities;
        let row_of = |part: Part| {
            let (row, wanted) = part.row_and_column(data);
            let rotation = usize::try_from(row % stripes.len() as u64).unwrap_or(0);
            let pieces = stripes.iter().filter_map(|stripe| part.on(stripe, row)).collect();
            Row { pieces, rotation, wanted }
        };
        let rows: Vec<Row> = parts(within, len_bytes).map(row_of).collect();
        let copy = rows.iter().filter_map(Row::wanted_piece).collect();
        Self { copies: vec![copy], parity: Some(Parity::new(rows, parities)) }
    }
}

/// The part of a block that is in one stripe.
#[derive(Clone, Copy)]
struct Part {
    /// Counted from the chunk's beginning, over all devices.
    stripe_number: u64,
    /// From the stripe's beginning.
    within: u64,
    len_bytes: u32,
}

impl Part {
    fn row_and_column(self, columns: usize) -> (u64, usize) {
        let columns = columns as u64;
        let column = self.stripe_number % columns;
        (self.stripe_number / columns, usize::try_from(column).unwrap_or(0))
    }

    /// `None` for an address that no device can have.
    fn on(self, stripe: &Stripe, row: u64) -> Option<Piece> {
        let offset = row.checked_mul(STRIPE_LEN_BYTES)?.checked_add(self.within)?;
        let offset = stripe.offset.checked_add(offset)?;
        Some(Piece { devid: stripe.devid, offset, len_bytes: self.len_bytes })
    }
}

fn parts(within: u64, len_bytes: u32) -> impl Iterator<Item = Part> {
    let mut at = within;
    let mut left = len_bytes;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let within = at % STRIPE_LEN_BYTES;
        let room = u32::try_from(STRIPE_LEN_BYTES - within).unwrap_or(u32::MAX);
        let part = Part { stripe_number: at / STRIPE_LEN_BYTES, within, len_bytes: left.min(room) };
        at += u64::from(part.len_bytes);
        left -= part.len_bytes;
        Some(part)
    })
}
