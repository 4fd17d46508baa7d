//! The files that one core's spool created itself: segments with payloads, and empty spares.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;

use crate::sync::Semaphore;

use super::batches::CoreDir;
use super::filling::Filling;
use super::segment::Segment;

/// Empty files to keep; more are removed.
const SPARES_MAX: usize = 2;

/// Files in the core's own directory, apart from its journal.
pub(super) struct OwnFiles {
    dir: Rc<CoreDir>,
    /// Oldest first; the last one takes groups if it is not closed.
    segments: RefCell<VecDeque<Rc<Segment>>>,
    /// The last one is used next.
    spares: RefCell<Vec<Rc<Segment>>>,
    /// Held while a file is created.
    making: Semaphore,
    next_number: Cell<u64>,
    /// `SPOOL_MAX` had no room for another segment, and there is no spare.
    is_short: Cell<bool>,
    /// Finished files that could not be removed, orphaned ones too. They count in `SPOOL_MAX`, which
    /// bounds them, and each checkpoint tries again.
    pub(super) undiscarded: RefCell<Vec<Rc<Segment>>>,
    pub(super) filling: Filling,
}

impl OwnFiles {
    pub(super) fn new(dir: PathBuf) -> OwnFiles {
        OwnFiles {
            dir: CoreDir::new(dir, None),
            segments: RefCell::default(),
            spares: RefCell::default(),
            making: Semaphore::new(1),
            next_number: Cell::new(1),
            is_short: Cell::new(false),
            undiscarded: RefCell::default(),
            filling: Filling::default(),
        }
    }

    pub(super) fn dir(&self) -> &Rc<CoreDir> {
        &self.dir
    }

    /// A number for a file name or a generation's id; it never repeats while this process lives.
    pub(super) fn take_number(&self) -> u64 {
        self.next_number.replace(self.next_number.get() + 1)
    }

    /// Held while a file is created: one at a time.
    pub(super) fn making(&self) -> &Semaphore {
        &self.making
    }

    pub(super) fn is_short(&self) -> bool {
        self.is_short.get()
    }

    pub(super) fn set_short(&self, is_short: bool) {
        self.is_short.set(is_short);
    }

    /// Segments and spares together.
    pub(super) fn count(&self) -> usize {
        self.segments.borrow().len() + self.spares.borrow().len()
    }

    /// Segments that hold payloads or are not finished yet, oldest first.
    pub(super) fn segments(&self) -> Vec<Rc<Segment>> {
        self.segments.borrow().iter().cloned().collect()
    }

    /// Bytes of segments that take no payloads: all of those that are closed, and of the last one
    /// what is written.
    pub(super) fn filled_bytes(&self) -> u64 {
        self.segments.borrow().iter().map(|segment| segment.filled_bytes()).sum()
    }

    /// The part of them that payloads which are not complete take.
    pub(super) fn held_bytes(&self) -> u64 {
        self.segments.borrow().iter().map(|segment| segment.held_bytes()).sum()
    }

    pub(super) fn last(&self) -> Option<Rc<Segment>> {
        self.segments.borrow().back().cloned()
    }

    /// The segment that takes the next group, unless that needs a new one.
    pub(super) fn filling(&self) -> Option<Rc<Segment>> {
        self.last().filter(|last| last.is_filling())
    }

    /// The segment that was begun after the one with `id`.
    pub(super) fn after(&self, id: u64) -> Option<Rc<Segment>> {
        self.segments.borrow().iter().find(|segment| segment.id() > id).cloned()
    }

    pub(super) fn finished(&self) -> Option<Rc<Segment>> {
        self.segments.borrow().iter().find(|segment| segment.is_finished()).cloned()
    }

    pub(super) fn remove(&self, segment: &Rc<Segment>) {
        self.segments.borrow_mut().retain(|other| !Rc::ptr_eq(other, segment));
    }

    pub(super) fn spares(&self) -> Vec<Rc<Segment>> {
        self.spares.borrow().clone()
    }

    pub(super) fn has_spare(&self) -> bool {
        !self.spares.borrow().is_empty()
    }

    /// The spare that is used next.
    pub(super) fn next_spare(&self) -> Option<Rc<Segment>> {
        self.spares.borrow().last().cloned()
    }

    pub(super) fn add_spare(&self, spare: Rc<Segment>) {
        self.spares.borrow_mut().push(spare);
    }

    /// Keeps an empty segment as a spare. Returns false if there are enough spares.
    pub(super) fn keep_spare(&self, spare: &Rc<Segment>) -> bool {
        let mut spares = self.spares.borrow_mut();
        let keeps = spares.len() < SPARES_MAX;
        if keeps {
            spares.push(spare.clone());
        }
        keeps
    }

    /// Begins a new generation in the next spare, which takes groups from now on.
    pub(super) fn begin_spare(&self) -> Option<Rc<Segment>> {
        let segment = self.spares.borrow_mut().pop()?;
        segment.begin(self.take_number());
        self.segments.borrow_mut().push_back(segment.clone());
        Some(segment)
    }

    pub(super) fn remove_spare(&self, spare: &Rc<Segment>) {
        self.spares.borrow_mut().retain(|other| !Rc::ptr_eq(other, spare));
    }

    /// Forgets spares whose files were removed.
    pub(super) fn drop_gone_spares(&self) {
        self.spares.borrow_mut().retain(|spare| !spare.is_removed());
    }

    pub(super) fn take_spares(&self) -> Vec<Rc<Segment>> {
        self.spares.take()
    }

    /// The next file to prepare: the one being filled, then the spares in the order they are used.
    pub(super) fn next_unprepared(&self) -> Option<Rc<Segment>> {
        let (segments, spares) = (self.segments.borrow(), self.spares.borrow());
        let current = segments.back().filter(|segment| segment.is_filling());
        // Spares are taken from the end.
        let mut next = current.into_iter().chain(spares.iter().rev());
        next.find(|segment| !segment.is_prepared() && !segment.is_removed()).cloned()
    }
}
