//! A pipeline: one path for payloads through a core, from admission to the store, with limits of
//! its own.

use std::rc::Rc;
use std::sync::Arc;

use crate::rt::{self, Task, TaskKind};

use super::run::Setup;
use crate::batch::{Batches, Feed, gather};
use crate::config::Config;
use crate::http::facts::FactsWanted;
use crate::http::request::Intake;
use crate::http::tap::{CoreTap, TapBoard};
use crate::queue::admission::Admission;
use crate::queue::job::{Job, Origin, Stamps};
use crate::queue::job_queue::JobQueue;
use crate::spool::Spool;
use crate::stop::Stop;
use crate::upload::restore::{RESTORERS, restore};
use crate::upload::{
    DeadLetterWriter, InProgress, StoreHealth, Uploader, Uploads, wake_for_retries, worker_loop,
};

/// One pipeline: admission, queue, spool, batches, workers, store, dead letters.
pub(super) struct Pipeline {
    pub(super) admission: Rc<Admission>,
    pub(super) spool: Option<Rc<Spool>>,
    pub(super) batches: Option<Rc<Batches>>,
    pub(super) uploader: Rc<Uploader>,
}

impl Pipeline {
    /// A pipeline without tasks; [`Pipeline::spawn`] starts them.
    pub(super) fn new(setup: &mut Setup, stop: &Rc<Stop>) -> Pipeline {
        let (spool, core_id) = (setup.spool.take(), setup.core_id());
        let Setup { config, limits, cells, .. } = setup;
        let cells = *cells;
        let queue = Rc::new(JobQueue::new(limits.queue_slots));
        let admission = Admission::new(queue, limits.queue_bytes, cells);
        let origin = Origin::new(config.node_id.clone(), core_id);
        let origin = Rc::new(origin.with_keys(config.payload_keys().as_deref()));
        let spool = spool.map(|spool| Spool::open(spool, (*origin).clone(), admission.clone()));
        let plan = config.faults.clone();
        let store = Rc::new(setup.store.clone().build(&origin, plan, setup.index));
        let stamps = Rc::new(Stamps::default());
        let feed = Feed {
            admission: admission.clone(),
            stamps: stamps.clone(),
            origin: origin.clone(),
            store: store.clone(),
            stop: stop.clone(),
        };
        let batches = Batches::new(config, feed, cells);
        let uploader = Rc::new(Uploader {
            config: config.clone(),
            cells,
            origin,
            stamps,
            admission: admission.clone(),
            batches: batches.clone(),
            spool: spool.clone(),
            store,
            health: StoreHealth::new(cells, setup.epoch, core_id),
            dead_letters: DeadLetterWriter::new(
                setup.dead_letters.clone(),
                config.store.to_string(),
                cells,
            ),
            uploads: Uploads::new(limits.workers, cells),
            stop: stop.clone(),
        });
        Pipeline { admission, spool, batches, uploader }
    }

    /// The pipeline's entrance for requests.
    pub(super) fn intake(&self, config: &Arc<Config>, tap: Option<Arc<TapBoard>>) -> Intake {
        Intake {
            config: config.clone(),
            admission: self.admission.clone(),
            stamps: self.uploader.stamps.clone(),
            spool: self.spool.clone(),
            facts: FactsWanted::of(config),
            tap: tap.map(CoreTap::new),
            stop: self.uploader.stop.clone(),
            cells: self.uploader.cells,
        }
    }

    /// Starts the tasks that hold payloads, among them `workers` that upload.
    pub(super) fn spawn(&self, workers: usize) -> Vec<Task<()>> {
        let uploader = &self.uploader;
        let mut tasks: Vec<Task<()>> = (0..workers)
            .map(|number| rt::spawn_as(TaskKind::Worker, worker_loop(uploader.clone(), number)))
            .collect();
        tasks.push(rt::spawn_as(TaskKind::Retries, wake_for_retries(uploader.clone())));
        let gathering = |batches| rt::spawn_as(TaskKind::Batches, gather(batches));
        tasks.extend(self.batches.clone().map(gathering));
        let restoring = |_| rt::spawn_as(TaskKind::Restore, restore(uploader.clone()));
        tasks.extend((0..RESTORERS).map(restoring));
        tasks
    }

    /// Ends admission, and turns away requests that wait for room.
    pub(super) fn close(&self) {
        self.admission.close();
        if let Some(spool) = &self.spool {
            spool.close();
        }
    }

    /// After its tasks are cancelled: the uploads that workers had and those that waited for a
    /// retry, …
    pub(super) fn take_tried(&self) -> Vec<InProgress> {
        self.uploader.uploads.take_rest()
    }

    /// … and the jobs that are still queued.
    pub(super) fn take_queued(&self) -> impl Iterator<Item = Job> {
        std::iter::from_fn(|| self.admission.queue().take())
    }
}
