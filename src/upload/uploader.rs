//! What the upload tasks of one pipeline share.

use std::rc::Rc;
use std::sync::Arc;

use super::dead_letter::DeadLetterWriter;
use super::{StoreHealth, Uploads};
use crate::batch::Batches;
use crate::config::Config;
use crate::metrics::CoreCells;
use crate::queue::admission::Admission;
use crate::queue::job::{Job, Origin, Stamps};
use crate::spool::Spool;
use crate::stop::Stop;
use crate::store::Store;

/// The upload side of one pipeline.
pub struct Uploader {
    pub config: Arc<Config>,
    pub cells: &'static CoreCells,
    pub origin: Rc<Origin>,
    pub stamps: Rc<Stamps>,
    /// The source of single payloads.
    pub admission: Rc<Admission>,
    /// The source of batches; `None`: one object per payload.
    pub batches: Option<Rc<Batches>>,
    pub spool: Option<Rc<Spool>>,
    pub store: Rc<Store>,
    pub health: StoreHealth,
    pub dead_letters: DeadLetterWriter,
    pub uploads: Uploads,
    pub stop: Rc<Stop>,
}

impl Uploader {
    /// Whether nothing waits to be stored.
    pub fn holds_nothing(&self) -> bool {
        self.admission.queue().is_empty()
            && self.cells.workers_busy.value() == 0
            && self.uploads.is_empty()
            && self.batches.as_ref().is_none_or(|batches| batches.is_empty())
    }

    /// Whether everything that waits to be stored has failed before.
    pub fn holds_failed_only(&self) -> bool {
        self.admission.queue().is_empty()
            && self.uploads.holds_failed_only()
            && self.batches.as_ref().is_none_or(|batches| batches.is_empty())
    }

    /// Whether everything that waits to be stored is in the spool as well.
    pub fn holds_spooled_only(&self) -> bool {
        self.admission.queue().all(Job::is_spooled)
            && self.uploads.holds_spooled_only()
            && self.batches.as_ref().is_none_or(|batches| batches.holds_spooled_only())
    }
}
