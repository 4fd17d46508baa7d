//! A set of payload numbers of a segment: those that are complete.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of payload numbers, stored as ranges. There are at most as many ranges as incomplete
/// payloads below the highest number, so few.
#[derive(Debug, Default)]
pub(super) struct OrdinalSet {
    /// Start to end; no range is empty or touches another.
    ranges: BTreeMap<u32, u32>,
    pub(super) count: u64,
}

impl OrdinalSet {
    /// Adds numbers that are not in the set.
    pub(super) fn insert(&mut self, range: Range<u32>) {
        debug_assert!(!self.contains(range.start), "completed twice");
        self.count += u64::from(range.end - range.start);
        let end = self.ranges.remove(&range.end).unwrap_or(range.end);
        match self.ranges.range_mut(..range.start).next_back() {
            Some((_, before)) if *before == range.start => *before = end,
            _ => drop(self.ranges.insert(range.start, end)),
        }
    }

    /// Adds the numbers of `range` that are not in the set, and returns how many were added.
    pub(super) fn fill(&mut self, range: Range<u32>) -> u64 {
        let before = self.count;
        let mut at = range.start;
        // Gap by gap, not number by number: a corrupt segment may miss a million, and this runs on
        // a core.
        while at < range.end {
            at = match self.ranges.range(..=at).next_back() {
                Some((_, end)) if at < *end => *end,
                _ => {
                    let next =
                        self.ranges.range(at..).next().map_or(range.end, |(start, _)| *start);
                    let end = next.min(range.end);
                    self.insert(at..end);
                    end
                }
            };
        }
        self.count - before
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        self.ranges.range(..=number).next_back().is_some_and(|(_, end)| number < *end)
    }

    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u32>> {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_merge_in_any_order() {
        let mut numbers: Vec<u32> = (0..200).collect();
        let mut random = fastrand::Rng::with_seed(4);
        random.shuffle(&mut numbers);
        let mut done = OrdinalSet::default();
        for (count, number) in numbers.iter().enumerate() {
            assert!(!done.contains(*number));
            done.insert(*number..number + 1);
            assert_eq!(done.count, count as u64 + 1);
            assert!(numbers[..=count].iter().all(|number| done.contains(*number)));
            let ranges: Vec<_> = done.ranges().collect();
            assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
        }
        assert!(done.ranges().eq(std::iter::once(0..200)));
    }

    #[test]
    fn fill_adds_missing_numbers_once() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut done = OrdinalSet::default();
            let mut expected = std::collections::BTreeSet::new();
            for _ in 0..20 {
                let start = random.u32(..60);
                let range = start..start + random.u32(..20);
                let new = range.clone().filter(|number| expected.insert(*number)).count();
                assert_eq!(done.fill(range), new as u64);
                assert_eq!(done.count, expected.len() as u64);
                assert!(done.ranges().flatten().eq(expected.iter().copied()));
            }
        }
    }
}
