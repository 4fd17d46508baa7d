//! The orphaned segments that one core has taken and not emptied yet.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::offers::OrphanedCore;
use crate::spool::batches::CoreDir;
use crate::spool::segment::Segment;

/// Orphaned segments that this core empties, and their directories.
#[derive(Default)]
pub(in crate::spool) struct TakenSegments {
    segments: RefCell<Vec<Rc<Segment>>>,
    dirs: RefCell<Vec<Rc<CoreDir>>>,
}

impl TakenSegments {
    pub(in crate::spool) fn add(&self, segment: Rc<Segment>) {
        self.segments.borrow_mut().push(segment);
    }

    pub(in crate::spool) fn segments(&self) -> Vec<Rc<Segment>> {
        self.segments.borrow().clone()
    }

    pub(in crate::spool) fn finished(&self) -> Option<Rc<Segment>> {
        self.segments.borrow().iter().find(|segment| segment.is_finished()).cloned()
    }

    /// When the oldest payload was admitted that was read from them, in nanoseconds since 1970.
    pub(in crate::spool) fn oldest(&self) -> Option<u64> {
        self.segments.borrow().iter().filter_map(|segment| segment.admitted()).min()
    }

    pub(in crate::spool) fn remove(&self, segment: &Rc<Segment>) {
        self.segments.borrow_mut().retain(|other| !Rc::ptr_eq(other, segment));
    }

    pub(in crate::spool) fn dirs(&self) -> Vec<Rc<CoreDir>> {
        self.dirs.borrow().clone()
    }

    /// This core's view of an orphaned core directory.
    pub(in crate::spool) fn dir_of(&self, core: &Arc<OrphanedCore>) -> Rc<CoreDir> {
        let mut dirs = self.dirs.borrow_mut();
        if let Some(known) = dirs.iter().find(|dir| dir.is_of(core)) {
            return known.clone();
        }
        let dir = CoreDir::new(core.path.clone(), Some(core.clone()));
        dirs.push(dir.clone());
        dir
    }

    /// Forgets directories without segments to empty and without open batches. May only be called
    /// once all orphaned segments are taken.
    pub(in crate::spool) fn leave_unused(&self) {
        let segments = self.segments.borrow();
        self.dirs.borrow_mut().retain(|dir| {
            let in_use =
                !dir.is_idle() || segments.iter().any(|segment| segment.is_orphaned_from(dir));
            if !in_use {
                dir.leave();
            }
            in_use
        });
    }
}
