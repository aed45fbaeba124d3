//! RAID5 and RAID6: computing what a device does not give.
//!
//! P is the sum of a row's data, Q the sum of each times a power of 2, in the field of 256
//! elements with the polynomial 0x11d (kernel: `lib/raid6`; H. P. Anvin, "The mathematics of
//! RAID-6").

use bytes::Bytes;

use super::Piece;

/// So many stripes of data can Q tell apart: there are no more powers of 2.
const DATA_STRIPES_MAX: usize = 255;

/// The part of a block that is in one row, with the same part of all stripes of that row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// In the order of the chunk's stripes.
    pub(super) pieces: Vec<Piece>,
    /// Which stripe holds the row's first data.
    pub(super) rotation: usize,
    /// Which of the data is part of the block.
    pub(super) wanted: usize,
}

impl Row {
    /// Which stripe holds the data of this number; behind the data are P and Q.
    fn stripe_of(&self, position: usize) -> usize {
        (position + self.rotation) % self.pieces.len().max(1)
    }

    pub(super) fn wanted_piece(&self) -> Option<Piece> {
        self.pieces.get(self.stripe_of(self.wanted)).copied()
    }
}

/// How to compute a block from the other stripes of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parity {
    rows: Vec<Row>,
    parities: usize,
}

impl Parity {
    pub(super) fn new(rows: Vec<Row>, parities: usize) -> Self {
        Self { rows, parities }
    }

    /// What has to be read: everything in the rows, row by row.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.rows.iter().flat_map(|row| row.pieces.iter().copied())
    }

    /// The block as it would be if other stripes than those that were read were bad: for each
    /// choice of as many bad stripes as there are parities (kernel: `set_rbio_raid6_extra_error`
    /// in `raid56.c` tries them in turn). `read` holds the bytes of [`Parity::pieces`], where
    /// they could be had. Which choice is right, only the block's checksum can tell.
    pub fn rebuild<'a>(&'a self, read: &'a [Option<Bytes>]) -> impl Iterator<Item = Bytes> + 'a {
        let stripes = self.rows.first().map_or(0, |row| row.pieces.len());
        let wanted = self.rows.iter().map(|row| row.stripe_of(row.wanted));
        let choices = wanted.flat_map(move |bad| {
            let others = if self.parities == 2 { 0..stripes } else { bad..bad + 1 };
            others.filter(move |other| self.parities == 1 || *other != bad).map(move |o| [bad, o])
        });
        choices.filter_map(|bad| self.rebuild_without(bad, read))
    }

    /// The block, with these stripes not used; `None` if others are missing too.
    fn rebuild_without(&self, bad: [usize; 2], read: &[Option<Bytes>]) -> Option<Bytes> {
        let mut block = Vec::new();
        let mut rest = read;
        for row in &self.rows {
            let (of_row, later) = rest.split_at_checked(row.pieces.len())?;
            rest = later;
            block.extend(self.rebuild_row(row, bad, of_row)?);
        }
        Some(block.into())
    }

    fn rebuild_row(&self, row: &Row, bad: [usize; 2], read: &[Option<Bytes>]) -> Option<Vec<u8>> {
        let data = row.pieces.len().checked_sub(self.parities)?;
        let bytes_of = |position: usize| read.get(row.stripe_of(position))?.as_deref();
        let is_bad = |position: usize| bad.contains(&row.stripe_of(position));
        if !is_bad(row.wanted) {
            return bytes_of(row.wanted).map(<[u8]>::to_vec);
        }
        let other = (0..data).find(|&position| position != row.wanted && is_bad(position));
        let mut sums = Sums::new(usize::try_from(row.pieces.first()?.len_bytes).ok()?);
        for position in (0..data).filter(|&position| position != row.wanted) {
            if Some(position) != other {
                sums.add_data(position, bytes_of(position)?);
            }
        }
        match other {
            None if !is_bad(data) => {
                sums.add_p(bytes_of(data)?);
                Some(sums.p)
            }
            _ if self.parities < 2 || data > DATA_STRIPES_MAX => None,
            None => {
                sums.add_q(bytes_of(data + 1)?);
                Some(sums.solve_q(row.wanted))
            }
            Some(other) => {
                sums.add_p(bytes_of(data)?);
                sums.add_q(bytes_of(data + 1)?);
                Some(sums.solve_both(row.wanted, other))
            }
        }
    }
}

/// What P and Q say of the data that is not known.
struct Sums {
    p: Vec<u8>,
    q: Vec<u8>,
}

impl Sums {
    fn new(len_bytes: usize) -> Self {
        Self { p: vec![0; len_bytes], q: vec![0; len_bytes] }
    }

    fn add_data(&mut self, position: usize, data: &[u8]) {
        self.add_p(data);
        let power = power_of_2(position);
        for (q, &byte) in self.q.iter_mut().zip(data) {
            *q ^= times(power, byte);
        }
    }

    fn add_p(&mut self, bytes: &[u8]) {
        self.p.iter_mut().zip(bytes).for_each(|(p, byte)| *p ^= byte);
    }

    fn add_q(&mut self, bytes: &[u8]) {
        self.q.iter_mut().zip(bytes).for_each(|(q, byte)| *q ^= byte);
    }

    /// The one piece that is missing, by Q.
    fn solve_q(&self, position: usize) -> Vec<u8> {
        let factor = inverse(power_of_2(position));
        self.q.iter().map(|&q| times(factor, q)).collect()
    }

    /// The first of two pieces that are missing: `p = x + y`, `q = 2^position x + 2^other y`.
    fn solve_both(&self, position: usize, other: usize) -> Vec<u8> {
        let of_other = power_of_2(other);
        let factor = inverse(power_of_2(position) ^ of_other);
        let solve = |(&p, &q): (&u8, &u8)| times(factor, q ^ times(of_other, p));
        self.p.iter().zip(&self.q).map(solve).collect()
    }
}

/// The powers of 2, and which power a number is.
static TABLES: ([u8; 255], [u8; 256]) = {
    let (mut powers, mut logarithms) = ([0; 255], [0; 256]);
    let (mut value, mut exponent) = (1_u8, 0_u8);
    while exponent < 255 {
        powers[exponent as usize] = value;
        logarithms[value as usize] = exponent;
        let carry = value & 0x80 != 0;
        value <<= 1;
        if carry {
            value ^= 0x1d;
        }
        exponent += 1;
    }
    (powers, logarithms)
};

fn power_of_2(exponent: usize) -> u8 {
    TABLES.0[exponent % 255]
}

fn logarithm(value: u8) -> usize {
    usize::from(TABLES.1[usize::from(value)])
}

fn times(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 { 0 } else { power_of_2(logarithm(a) + logarithm(b)) }
}

/// Of a number that is not 0.
fn inverse(value: u8) -> u8 {
    power_of_2(255 - logarithm(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplication by its definition: polynomials, without tables.
    fn times_by_definition(a: u8, b: u8) -> u8 {
        let mut sum = 0_u16;
        for bit in 0..8 {
            if b & (1 << bit) != 0 {
                sum ^= u16::from(a) << bit;
            }
        }
        for bit in (8..16).rev() {
            if sum & (1 << bit) != 0 {
                sum ^= 0x11d << (bit - 8);
            }
        }
        u8::try_from(sum).expect("reduced")
    }

    #[test]
    fn the_field_is_the_kernels() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(times(a, b), times_by_definition(a, b), "{a} * {b}");
            }
            if a != 0 {
                assert_eq!(times(a, inverse(a)), 1);
            }
        }
    }

    /// A row of so many stripes of data, 8 bytes each, in the order of the chunk's stripes.
    fn row_of(data: usize, parities: usize, rotation: usize) -> Vec<Bytes> {
        let byte = |stripe: usize, at: usize| u8::try_from((stripe * 89 + at * 31 + 7) % 256);
        let mut row: Vec<Vec<u8>> = (0..data)
            .map(|stripe| (0..8).map(|at| byte(stripe, at).expect("a byte")).collect())
            .collect();
        let sum = |factor: &dyn Fn(usize) -> u8| -> Vec<u8> {
            let of = |at: usize| {
                let terms = row.iter().enumerate();
                terms.fold(0, |sum, (i, piece)| sum ^ times_by_definition(factor(i), piece[at]))
            };
            (0..8).map(of).collect()
        };
        let power =
            |exponent: usize| (0..exponent).fold(1, |value, _| times_by_definition(value, 2));
        let parity = [sum(&|_| 1), sum(&power)];
        row.extend(parity.into_iter().take(parities));
        row.rotate_right(rotation);
        row.into_iter().map(Bytes::from).collect()
    }

    fn piece() -> Piece {
        Piece { devid: 1, offset: 0, len_bytes: 8 }
    }

    #[test]
    fn whatever_as_many_stripes_as_parities_are_lost_the_data_can_be_computed() {
        for (data, parities) in [(1, 1), (2, 1), (5, 1), (1, 2), (2, 2), (3, 2), (7, 2)] {
            let stripes = data + parities;
            for rotation in 0..stripes {
                let whole = row_of(data, parities, rotation);
                for (wanted, other) in (0..data).flat_map(|w| (0..stripes).map(move |o| (w, o))) {
                    let row = Row { pieces: vec![piece(); stripes], rotation, wanted };
                    let lost = [row.stripe_of(wanted), row.stripe_of(other)];
                    let right = whole[lost[0]].clone();
                    let parity = Parity::new(vec![row], parities);
                    let keep = |(stripe, bytes): (usize, &Bytes)| {
                        let is_lost =
                            lost.contains(&stripe) && (parities == 2 || stripe == lost[0]);
                        (!is_lost).then(|| bytes.clone())
                    };
                    let read: Vec<_> = whole.iter().enumerate().map(keep).collect();
                    let rebuilt: Vec<_> = parity.rebuild(&read).collect();
                    assert!(rebuilt.contains(&right), "{data}+{parities} {rotation} {lost:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_and_not_missing_is_found_by_trying() {
        let mut read: Vec<_> = row_of(4, 2, 3).into_iter().map(Some).collect();
        let row = Row { pieces: vec![piece(); 6], rotation: 3, wanted: 1 };
        let right = read[row.stripe_of(1)].clone().expect("there");
        for bad in [row.stripe_of(1), row.stripe_of(2)] {
            read[bad] = Some(Bytes::from(vec![0xee; 8]));
        }
        let parity = Parity::new(vec![row], 2);
        assert!(parity.rebuild(&read).any(|block| block == right));
    }
}
