//! Returns free memory to the system, on a thread of its own: on control's blocking thread it would
//! wait for a disk or a name server that does not answer.

use std::io;
use std::time::Duration;

use super::background;
use crate::alloc;

/// Returned memory that is in use again soon costs page faults; this is half as often as mimalloc
/// would do it on a busy core.
const RETURN_EVERY: Duration = Duration::from_secs(2);

/// Starts the thread, which ends with the process. To be called before the cores start: from now on
/// they do not return memory themselves.
///
/// # Errors
/// The thread cannot be created.
#[expect(clippy::disallowed_methods, reason = "the thread has nothing else to do")]
pub(super) fn keep_returning_it() -> io::Result<()> {
    background::spawn("millrace-memory", || {
        loop {
            std::thread::sleep(RETURN_EVERY);
            alloc::return_free_memory();
        }
    })?;
    alloc::return_no_memory_while_allocating();
    Ok(())
}
