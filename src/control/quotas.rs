//! Moves shares of quotas between the cores: see [`crate::quota`].

use crate::http::quotas::SharedQuotas;
use crate::quota::TICK;
use crate::rt::{self, sleep};

/// Starts the task that does so every [`TICK`], for as long as the process lives: during a stop,
/// too, cores serve requests.
pub(super) fn keep(shared: &SharedQuotas) {
    let mut keepers = shared.keepers();
    // Cores that start later than they were meant to are not on their own.
    keepers.iter_mut().for_each(|keeper| keeper.tick(rt::now()));
    rt::spawn(async move {
        loop {
            sleep(TICK).await;
            for keeper in &mut keepers {
                keeper.tick(rt::now());
                rt::yield_if_needed().await;
            }
        }
    })
    .detach();
}
