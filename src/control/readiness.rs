//! Publishes to the cores whether the server is ready, for `/readyz` on the ingest port.

use std::rc::Rc;
use std::sync::Arc;

use super::admin::Admin;
use crate::http::health::{PUBLISH_PERIOD, Readiness};
use crate::rt::{self, sleep};

/// Publishes what the admin page `/readyz` says until the process ends.
pub(super) fn publish(admin: Rc<Admin>, readiness: Arc<Readiness>) {
    rt::spawn(async move {
        loop {
            readiness.publish(admin.not_ready().is_empty(), rt::now());
            sleep(PUBLISH_PERIOD).await;
        }
    })
    .detach();
}
