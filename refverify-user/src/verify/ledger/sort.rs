//! Puts changes in order of bytenr, or nearly.

/// Sorts pairs of a bytenr and a number by both, where the numbers already ascend.
///
/// Many are sorted digit by digit: bytenrs of one commit differ in some thirty bits, and each
/// pass takes eleven of them without a comparison.
pub(super) fn sort_by_bytenr(pairs: &mut Vec<(u64, u32)>) {
    if pairs.len() < FEW {
        pairs.sort_unstable();
        return;
    }
    let (low, differing) = spread_of(pairs);
    let mut scratch = vec![(0, 0); pairs.len()];
    let mut shift = differing.trailing_zeros();
    while shift < u64::BITS && differing >> shift != 0 {
        pass(pairs, &mut scratch, |bytenr| ((bytenr - low) >> shift) as usize % DIGITS);
        std::mem::swap(pairs, &mut scratch);
        shift += DIGIT_BITS;
    }
}

/// Sorts pairs of a bytenr and a number roughly, where the numbers already ascend: what lies near to
/// one another comes near to one another, and pairs of the same bytenr keep their order.
pub(super) fn sort_roughly(pairs: &mut Vec<(u64, u32)>) {
    if pairs.len() < FEW {
        return pairs.sort_unstable();
    }
    let (low, differing) = spread_of(pairs);
    let shift = (u64::BITS - differing.leading_zeros()).saturating_sub(DIGIT_BITS);
    let mut sorted = vec![(0, 0); pairs.len()];
    pass(pairs, &mut sorted, |bytenr| ((bytenr - low) >> shift) as usize % DIGITS);
    *pairs = sorted;
}

/// The lowest bytenr, and the bits by which the others may differ from it.
fn spread_of(pairs: &[(u64, u32)]) -> (u64, u64) {
    let low = pairs.iter().fold(u64::MAX, |low, &(bytenr, _)| low.min(bytenr));
    (low, pairs.iter().fold(0, |bits, &(bytenr, _)| bits | (bytenr - low)))
}

/// Fewer than this are sorted by comparing.
const FEW: usize = 1024;
const DIGIT_BITS: u32 = 11;
const DIGITS: usize = 1 << DIGIT_BITS;

/// Moves the pairs in order of one digit; those that have the same keep their order.
fn pass(from: &[(u64, u32)], to: &mut [(u64, u32)], digit: impl Fn(u64) -> usize) {
    let mut places = vec![0_u32; DIGITS];
    for &(bytenr, _) in from {
        places[digit(bytenr)] += 1;
    }
    let mut next = 0;
    for place in &mut places {
        next += std::mem::replace(place, next);
    }
    for &pair in from {
        let place = &mut places[digit(pair.0)];
        to[*place as usize] = pair;
        *place += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sorted_roughly_is_all_there_and_keeps_the_order_on_each_bytenr() {
        for bits in [0, 1, 10, 11, 12, 40, 64] {
            let bytenr = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).unbounded_shr(64 - bits);
            let mut pairs: Vec<_> =
                (0..3000_u32).map(|n| (bytenr(u64::from(n % 997)), n)).collect();
            let mut sorted = pairs.clone();
            sorted.sort_unstable();
            sort_roughly(&mut pairs);
            pairs.sort_by_key(|&(bytenr, _)| bytenr);
            assert_eq!(pairs, sorted, "{bits} bits");
        }
        let far = |n: u32| (u64::from(3 - n % 4) << 40, n);
        let mut pairs: Vec<_> = (0..3000).map(far).collect();
        sort_roughly(&mut pairs);
        assert!(pairs.is_sorted(), "what is far apart is in order");
        sort_roughly(&mut Vec::new());
    }

    #[test]
    fn many_are_sorted_as_few_are() {
        let spread: [fn(u64) -> u64; 4] = [
            |number| number * 7919 % 4001 * 4096,
            |number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            |_| u64::MAX,
            |number| if number % 2 == 0 { 0 } else { u64::MAX - number },
        ];
        for bytenr in spread {
            let mut pairs: Vec<_> = (0..3000_u32).map(|n| (bytenr(u64::from(n)), n)).collect();
            let mut expected = pairs.clone();
            expected.sort_unstable();
            sort_by_bytenr(&mut pairs);
            assert_eq!(pairs, expected);
        }
    }
}
