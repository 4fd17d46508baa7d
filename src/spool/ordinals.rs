//! A set of payload numbers of a segment: those that are complete.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of payload numbers, stored as ranges. There are at most as many ranges as incomplete
/// payloads below the highest number, so few.
///
/// Payloads are mostly completed in order, so the range that grew last is kept outside the tree,
/// where the next number costs two comparisons.
#[derive(Debug)]
pub(super) struct OrdinalSet {
    /// Start to end of all ranges but `growing`; no range is empty or touches another.
    ranges: BTreeMap<u32, u32>,
    /// The range that grew last; empty if it is in `ranges`.
    growing: Range<u32>,
    /// Where the first range of `ranges` after `growing` starts.
    next: u32,
    pub(super) count: u64,
}

impl Default for OrdinalSet {
    fn default() -> OrdinalSet {
        OrdinalSet { ranges: BTreeMap::new(), growing: 0..0, next: u32::MAX, count: 0 }
    }
}

impl OrdinalSet {
    /// Adds numbers that are not in the set.
    #[inline]
    pub(super) fn insert(&mut self, range: Range<u32>) {
        debug_assert!(!self.contains(range.start), "completed twice");
        self.count += u64::from(range.end - range.start);
        if range.start == self.growing.end && range.end < self.next {
            self.growing.end = range.end;
        } else {
            self.insert_apart(range);
        }
    }

    /// Adds a range that does not only lengthen `growing`, and makes it the one that grows.
    fn insert_apart(&mut self, range: Range<u32>) {
        self.stop_growing();
        let end = self.ranges.remove(&range.end).unwrap_or(range.end);
        let before = self.ranges.range(..range.start).next_back();
        let start = match before {
            Some((start, before)) if *before == range.start => *start,
            _ => range.start,
        };
        self.ranges.remove(&start);
        self.next = self.ranges.range(end..).next().map_or(u32::MAX, |(start, _)| *start);
        self.growing = start..end;
    }

    /// Moves `growing` to the other ranges.
    fn stop_growing(&mut self) {
        let Range { start, end } = std::mem::take(&mut self.growing);
        if start < end {
            self.ranges.insert(start, end);
        }
    }

    /// Adds the numbers of `range` that are not in the set, and returns how many were added.
    pub(super) fn fill(&mut self, range: Range<u32>) -> u64 {
        let before = self.count;
        let mut at = range.start;
        // Gap by gap, not number by number: a corrupt segment may miss a million, and this runs on
        // a core.
        while at < range.end {
            at = match self.range_around(at) {
                Some(present) => present.end,
                None => {
                    let end = self.start_after(at).min(range.end);
                    self.insert(at..end);
                    end
                }
            };
        }
        self.count - before
    }

    /// The range that contains `number`.
    fn range_around(&self, number: u32) -> Option<Range<u32>> {
        if self.growing.contains(&number) {
            return Some(self.growing.clone());
        }
        let (start, end) = self.ranges.range(..=number).next_back()?;
        (number < *end).then_some(*start..*end)
    }

    /// The start of the first range after `number`, which is in none.
    fn start_after(&self, number: u32) -> u32 {
        let next = self.ranges.range(number..).next().map_or(u32::MAX, |(start, _)| *start);
        let growing =
            (!self.growing.is_empty() && self.growing.start > number).then_some(self.growing.start);
        growing.map_or(next, |growing| growing.min(next))
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        self.range_around(number).is_some()
    }

    /// In ascending order.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u32>> {
        let of = |(start, end): (&u32, &u32)| *start..*end;
        let growing = (!self.growing.is_empty()).then(|| self.growing.clone());
        let before = self.ranges.range(..self.growing.start).map(of);
        before.chain(growing).chain(self.ranges.range(self.growing.start..).map(of))
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
