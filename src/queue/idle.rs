//! The workers that wait at a queue.
//!
//! All that is done here takes constant time, however many workers wait: with thousands of them,
//! mostly idle, a search through the list would cost more than the rest of an upload. The worker
//! that began to wait last is woken first, because what it uses is still in the CPU's cache.

use std::cell::RefCell;
use std::task::{Context, Waker};

/// Workers that wait, by number.
#[derive(Default)]
pub(super) struct IdleWorkers(RefCell<IdleList>);

#[derive(Default)]
struct IdleList {
    /// The last one is woken first.
    waiting: Vec<(usize, Waker)>,
    /// Where each worker is in `waiting`.
    places: Vec<Option<u32>>,
}

impl IdleWorkers {
    /// Registers `worker` to be woken once. It is listed once, however often this is called.
    pub(super) fn wait(&self, cx: &Context<'_>, worker: usize) {
        let mut list = self.0.borrow_mut();
        let IdleList { waiting, places } = &mut *list;
        if places.len() <= worker {
            places.resize(worker + 1, None);
        }
        match places[worker] {
            Some(at) => waiting[at as usize].1.clone_from(cx.waker()),
            None => {
                places[worker] = Some(waiting.len() as u32);
                waiting.push((worker, cx.waker().clone()));
            }
        }
    }

    /// `worker` no longer waits.
    pub(super) fn leave(&self, worker: usize) {
        let mut list = self.0.borrow_mut();
        let IdleList { waiting, places } = &mut *list;
        let Some(at) = places.get_mut(worker).and_then(Option::take) else { return };
        waiting.swap_remove(at as usize);
        if let Some((moved, _)) = waiting.get(at as usize) {
            places[*moved] = Some(at);
        }
    }

    /// Wakes the worker that began to wait last. Returns false if none waits.
    pub(super) fn wake_one(&self) -> bool {
        let mut list = self.0.borrow_mut();
        let Some((worker, waker)) = list.waiting.pop() else { return false };
        list.places[worker] = None;
        drop(list);
        waker.wake();
        true
    }

    /// Wakes all of them.
    pub(super) fn wake_all(&self) {
        while self.wake_one() {}
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.borrow().waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::sync::Woken;

    #[test]
    fn each_is_woken_once_per_wait_whatever_others_do() {
        const WORKERS: usize = 7;
        for seed in 0..100 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let idle = IdleWorkers::default();
            let woken: [Arc<Woken>; WORKERS] = Default::default();
            let counts = || woken.each_ref().map(|woken| woken.0.load(Relaxed));
            // Who waits, the one that began last at the end. What `leave` does to the order of the
            // others is not looked at.
            let mut waiting: Vec<usize> = Vec::new();
            for _ in 0..200 {
                let worker = rng.usize(..WORKERS);
                let before = counts();
                match rng.u8(..4) {
                    0 => {
                        idle.leave(worker);
                        waiting.retain(|other| *other != worker);
                        assert_eq!(counts(), before);
                    }
                    1 => {
                        assert_eq!(idle.wake_one(), !waiting.is_empty());
                        let after = counts();
                        let woken: Vec<usize> =
                            (0..WORKERS).filter(|at| after[*at] != before[*at]).collect();
                        assert_eq!(woken.len(), usize::from(!waiting.is_empty()), "seed {seed}");
                        for worker in woken {
                            assert_eq!(after[worker], before[worker] + 1);
                            assert!(waiting.contains(&worker), "seed {seed}");
                            waiting.retain(|other| *other != worker);
                        }
                    }
                    _ => {
                        let waker = Waker::from(woken[worker].clone());
                        idle.wait(&Context::from_waker(&waker), worker);
                        if !waiting.contains(&worker) {
                            waiting.push(worker);
                        }
                    }
                }
                assert_eq!(idle.len(), waiting.len(), "seed {seed}");
            }
            let (before, waited) = (counts(), waiting.len());
            idle.wake_all();
            let all: usize =
                counts().iter().zip(before).map(|(after, before)| after - before).sum();
            assert_eq!((all, idle.len()), (waited, 0), "seed {seed}");
        }
    }

    #[test]
    fn the_one_that_began_to_wait_last_is_woken_first() {
        let idle = IdleWorkers::default();
        let woken: [Arc<Woken>; 3] = Default::default();
        for (worker, woken) in woken.iter().enumerate() {
            let waker = Waker::from(woken.clone());
            idle.wait(&Context::from_waker(&waker), worker);
        }
        for last in [2, 1, 0] {
            assert!(idle.wake_one());
            assert_eq!(woken[last].0.load(Relaxed), 1);
        }
        assert!(!idle.wake_one());
    }
}
