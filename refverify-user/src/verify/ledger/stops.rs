//! Where a look-up in a page may begin, so that it need not go through the page from its
//! start: some entries, with their distance from the page's key.

/// Up to three entries of a page, about evenly spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stops([Stop; STOPS]);

/// An entry: where it is (0 is none), and how many sectors from the page's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stop {
    at: u8,
    sectors: u32,
}

const STOPS: usize = 3;
const SECTOR_BITS: u32 = 12;

impl Stops {
    /// How many bytes they take in a page.
    pub(super) const SIZE: usize = STOPS * 5;

    pub(super) fn bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (number, stop) in self.0.iter().enumerate() {
            bytes[number] = stop.at;
            let place = STOPS + number * 4;
            bytes[place..place + 4].copy_from_slice(&stop.sectors.to_le_bytes());
        }
        bytes
    }

    pub(super) fn of_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let stop = |number: usize| {
            let place = STOPS + number * 4;
            let word = [bytes[place], bytes[place + 1], bytes[place + 2], bytes[place + 3]];
            Stop { at: bytes[number], sectors: u32::from_le_bytes(word) }
        };
        Self(std::array::from_fn(stop))
    }

    /// The last entry before `bytenr` that is known, if any: where, and its bytenr.
    #[inline]
    pub(super) fn before(&self, key: u64, bytenr: u64) -> Option<(usize, u64)> {
        let mut found = None;
        for stop in &self.0 {
            let of_stop = key.wrapping_add(u64::from(stop.sectors) << SECTOR_BITS);
            if stop.at != 0 && of_stop < bytenr {
                found = Some((usize::from(stop.at), of_stop));
            }
        }
        found
    }

    /// Makes a stop of the entry at `at`, where one is wanted: `share` is how far through the
    /// page it is, in parts of `whole`.
    pub(super) fn offer(&mut self, at: usize, distance: u64, (share, whole): (usize, usize)) {
        let number = share * (STOPS + 1) / whole;
        let Some(stop) = number.checked_sub(1).and_then(|number| self.0.get_mut(number)) else {
            return;
        };
        let is_sectors = distance.trailing_zeros() >= SECTOR_BITS;
        if let (0, true, Ok(at), Ok(sectors)) =
            (stop.at, is_sectors, at.try_into(), (distance >> SECTOR_BITS).try_into())
        {
            *stop = Stop { at, sectors };
        }
    }

    /// The page changed from `from` on: the entry at `next` is elsewhere, and so is all that
    /// begins at `rest` or behind it; each is told by its old place and its new one. What was
    /// between `from` and these is gone.
    pub(super) fn moved(&mut self, from: usize, next: (usize, usize), rest: (usize, usize)) {
        for stop in &mut self.0 {
            let at = usize::from(stop.at);
            let new = match at {
                _ if at == next.0 => next.1,
                _ if at >= rest.0 => at - rest.0 + rest.1,
                _ if at >= from => 0,
                _ => at,
            };
            // Behind the page's end, nothing is.
            stop.at = new.try_into().unwrap_or(0);
        }
    }
}
