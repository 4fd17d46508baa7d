//! Returns free memory to the system.

use std::time::Duration;

use crate::alloc;
use crate::rt::{self, sleep};

/// Returned memory that is in use again soon costs page faults; this is half as often as mimalloc
/// would do it on a busy core.
const RETURN_EVERY: Duration = Duration::from_secs(2);

/// Starts the task that does so for as long as the process lives, on a thread that may block. To be
/// called before the cores start: from now on they do not do it themselves.
pub(super) fn keep_returning_it() {
    alloc::return_no_memory_while_allocating();
    rt::spawn(async {
        loop {
            sleep(RETURN_EVERY).await;
            rt::blocking(alloc::return_free_memory).await;
        }
    })
    .detach();
}
