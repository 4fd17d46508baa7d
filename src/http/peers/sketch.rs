//! A bounded table of the peers with the most of one measure: Space-Saving (Metwally, Agrawal,
//! El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams", 2005), with
//! weights.
//!
//! With `n` the sum of all weights and a full table of `k` rows:
//!
//! - A row's count is never too low, and too high by at most its error: what the count has beyond
//!   [`Row::seen`]. That is at most `n / k`.
//! - What is not in the table has at most [`Sketch::least`], which is at most `n / k`. So every
//!   peer with more than that is in the table.
//!
//! Rows keep an indexed heap with the least count on top, so adding takes O(log k) and, once the
//! table is full, no allocation.

use std::collections::HashMap;

use super::{Activity, Measure};
use crate::http::peer::Peer;

/// Most rows of a table: a peer with more than 1/256 of a measure is always in it.
pub const ROWS_MAX: usize = 256;

/// One peer of a table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub peer: Peer,
    /// At least the peer's total of the table's measure.
    pub count: u64,
    /// What was counted since the peer entered the table.
    pub seen: Activity,
}

/// The table of one measure.
pub struct Sketch {
    measure: Measure,
    rows: Vec<Row>,
    /// Position of each row in `heap`.
    places: Vec<usize>,
    /// Indices of rows; none has a greater count than its children, at `2 i + 1` and `2 i + 2`.
    heap: Vec<usize>,
    index: HashMap<Peer, usize>,
}

impl Sketch {
    /// An empty table.
    pub fn new(measure: Measure) -> Sketch {
        Sketch {
            measure,
            rows: Vec::new(),
            places: Vec::new(),
            heap: Vec::new(),
            index: HashMap::new(),
        }
    }

    /// Adds what a peer has done. Without any of the table's measure it does not enter the table.
    pub fn add(&mut self, peer: Peer, activity: &Activity) {
        let weight = activity.of(self.measure);
        if let Some(&at) = self.index.get(&peer) {
            let row = &mut self.rows[at];
            row.count += weight;
            row.seen.add(activity);
            self.sink(self.places[at]);
        } else if weight == 0 {
            // It may be a peer that has left the table; without weight its bound still holds.
        } else if self.rows.len() < ROWS_MAX {
            let at = self.rows.len();
            self.rows.push(Row { peer, count: weight, seen: *activity });
            self.index.insert(peer, at);
            self.places.push(at);
            self.heap.push(at);
            self.rise(at);
        } else {
            let at = self.heap[0];
            let row = &mut self.rows[at];
            self.index.remove(&row.peer);
            self.index.insert(peer, at);
            *row = Row { peer, count: row.count + weight, seen: *activity };
            self.sink(0);
        }
    }

    /// The rows, in no order.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The most that a peer that is not in the table can have: the least count of a full table, 0
    /// of any other.
    pub fn least(&self) -> u64 {
        match self.heap.first() {
            Some(&at) if self.rows.len() == ROWS_MAX => self.rows[at].count,
            _ => 0,
        }
    }

    fn count_at(&self, place: usize) -> u64 {
        self.rows[self.heap[place]].count
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        self.places[self.heap[one]] = one;
        self.places[self.heap[other]] = other;
    }

    /// Restores the heap after the count at `place` has grown.
    fn sink(&mut self, mut place: usize) {
        loop {
            let children = [2 * place + 1, 2 * place + 2];
            let children = children.into_iter().filter(|child| *child < self.heap.len());
            let Some(least) = children.min_by_key(|child| self.count_at(*child)) else { return };
            if self.count_at(place) <= self.count_at(least) {
                return;
            }
            self.swap(place, least);
            place = least;
        }
    }

    /// Restores the heap after an entry was put at its end, `place`.
    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.count_at(parent) <= self.count_at(place) {
                return;
            }
            self.swap(place, parent);
            place = parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::http::peers::tests::{Stream, of_requests, seed};

    fn error(row: &Row, measure: Measure) -> u64 {
        row.count - row.seen.of(measure)
    }

    #[test]
    fn up_to_the_limit_everything_is_exact() {
        let mut sketch = Sketch::new(Measure::Requests);
        for round in 1..=3_u64 {
            for n in 0..ROWS_MAX as u32 {
                sketch.add(Peer::V4(n), &of_requests(u64::from(n) + 1));
            }
            assert_eq!((sketch.rows().len(), sketch.least()), (ROWS_MAX, round));
        }
        for row in sketch.rows() {
            let Peer::V4(n) = row.peer else { panic!("{row:?}") };
            assert_eq!((row.count, error(row, Measure::Requests)), (3 * (u64::from(n) + 1), 0));
        }
    }

    #[test]
    fn a_new_peer_replaces_the_least_and_inherits_its_count() {
        let mut sketch = Sketch::new(Measure::Requests);
        for n in 0..ROWS_MAX as u32 {
            sketch.add(Peer::V4(n), &of_requests(100 + u64::from(n)));
        }
        sketch.add(Peer::V6(7), &of_requests(5));
        let row = sketch.rows().iter().find(|row| row.peer == Peer::V6(7)).unwrap();
        assert_eq!((row.count, error(row, Measure::Requests)), (105, 100));
        assert!(sketch.rows().iter().all(|row| row.peer != Peer::V4(0)));
        assert_eq!(sketch.least(), 101);
    }

    #[test]
    fn what_has_none_of_the_measure_does_not_enter() {
        let mut sketch = Sketch::new(Measure::Refusals);
        sketch.add(Peer::V4(1), &of_requests(5));
        assert!(sketch.rows().is_empty());
    }

    /// Random streams from flat to steep, with more peers than rows: after each part of the stream
    /// all promises of the module hold.
    #[test]
    fn heavy_hitters_are_in_the_table_and_the_error_bound_holds() {
        let mut random = fastrand::Rng::with_seed(seed());
        for round in 0..12 {
            let mut stream = Stream::new(&mut random);
            for measure in Measure::ALL {
                let mut sketch = Sketch::new(measure);
                let (mut truth, mut total) = (HashMap::<Peer, u64>::new(), 0);
                for step in 1..=6_000 {
                    let (peer, activity) = stream.next(&mut random);
                    sketch.add(peer, &activity);
                    *truth.entry(peer).or_default() += activity.of(measure);
                    total += activity.of(measure);
                    if step % 2_000 == 0 {
                        let what = format!("round {round}, {measure:?}, step {step}");
                        check(&sketch, measure, &truth, total, &what);
                    }
                }
            }
        }
    }

    fn check(
        sketch: &Sketch,
        measure: Measure,
        truth: &HashMap<Peer, u64>,
        total: u64,
        what: &str,
    ) {
        let bound = total / ROWS_MAX as u64;
        assert!(sketch.rows().len() <= ROWS_MAX && sketch.least() <= bound, "{what}");
        let counts: u64 = sketch.rows().iter().map(|row| row.count).sum();
        assert_eq!(counts, total, "{what}: every weight is in exactly one row");
        let in_table: HashMap<Peer, &Row> =
            sketch.rows().iter().map(|row| (row.peer, row)).collect();
        assert_eq!(in_table.len(), sketch.rows().len(), "{what}: each peer once");
        for (peer, true_count) in truth {
            match in_table.get(peer) {
                Some(row) => {
                    let error = error(row, measure);
                    assert!(error <= bound, "{what}: {row:?}");
                    assert!(*true_count <= row.count, "{what}: {true_count} {row:?}");
                    assert!(row.count - error <= *true_count, "{what}: {true_count} {row:?}");
                }
                None => {
                    assert!(*true_count <= sketch.least(), "{what}: {peer} has {true_count}");
                    assert!(*true_count <= bound, "{what}: {peer} is a heavy hitter");
                }
            }
        }
        for (place, at) in sketch.heap.iter().enumerate() {
            assert_eq!(sketch.places[*at], place, "{what}");
        }
    }
}
