//! A set of numbers that come nearly in order: what a counter has answered. Kept as ranges, of which there are as many as there are gaps.

/// Ranges kept; a counter whose answers leave more gaps than that is no counter.
const RANGES_MAX: usize = 65_536;

/// What `insert` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    New,
    /// It is there already.
    Twice,
    /// No room for another gap.
    Scattered,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    /// First and last number of each, in order, with a gap between any two.
    ranges: Vec<(u64, u64)>,
}

impl Ranges {
    /// Cost: a look at the last range where numbers come in order, else a binary search.
    pub(super) fn insert(&mut self, number: u64) -> Inserted {
        if let Some((_, last)) = self.ranges.last_mut()
            && number.checked_sub(1) == Some(*last)
        {
            *last = number;
            return Inserted::New;
        }
        let after = self.ranges.partition_point(|(first, _)| *first <= number);
        let joins_next = self.ranges.get(after).is_some_and(|(first, _)| first - 1 == number);
        let before = after.checked_sub(1).map(|before| (before, self.ranges[before].1));
        match before {
            Some((_, last)) if number <= last => return Inserted::Twice,
            Some((before, last)) if last + 1 == number && joins_next => {
                self.ranges[before].1 = self.ranges[after].1;
                self.ranges.remove(after);
            }
            Some((before, last)) if last + 1 == number => self.ranges[before].1 = number,
            _ if joins_next => self.ranges[after].0 = number,
            _ if self.ranges.len() == RANGES_MAX => return Inserted::Scattered,
            _ => self.ranges.insert(after, (number, number)),
        }
        Inserted::New
    }

    /// The highest number; `None` of nothing.
    pub(super) fn highest(&self) -> Option<u64> {
        self.ranges.last().map(|(_, last)| *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ranges_match_a_plain_set() {
        let mut random = crate::load::Random::new(3);
        for spread in [4, 40, 400] {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for _ in 0..2_000 {
                let number = random.below(spread * 10) as u64;
                let expected = if model.insert(number) { Inserted::New } else { Inserted::Twice };
                assert_eq!(ranges.insert(number), expected, "{number} into {ranges:?}");
                assert_eq!(ranges.highest(), model.last().copied());
                assert!(ranges.ranges.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{ranges:?}");
            }
            assert_eq!(ranges.ranges.iter().map(|(first, last)| last - first + 1).sum::<u64>(), model.len() as u64);
        }
    }

    #[test]
    fn numbers_in_any_order_end_as_one_range() {
        let mut ranges = Ranges::default();
        for number in (1..1_000).step_by(3).chain((2..1_000).step_by(3)).chain((3..1_000).step_by(3)) {
            assert_eq!(ranges.insert(number), Inserted::New);
        }
        assert_eq!(ranges.ranges, [(1, 999)]);
        assert_eq!(ranges.insert(500), Inserted::Twice);
    }

    #[test]
    fn the_ends_of_the_range_of_numbers_are_taken() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.insert(u64::MAX), Inserted::New);
        assert_eq!(ranges.insert(0), Inserted::New);
        assert_eq!((ranges.insert(0), ranges.insert(u64::MAX)), (Inserted::Twice, Inserted::Twice));
    }

    #[test]
    fn gaps_are_bounded() {
        let mut ranges = Ranges::default();
        for i in 0..RANGES_MAX as u64 {
            assert_eq!(ranges.insert(i * 2), Inserted::New);
        }
        assert_eq!(ranges.insert(RANGES_MAX as u64 * 2), Inserted::Scattered);
        assert_eq!(ranges.insert(1), Inserted::New);
    }
}
