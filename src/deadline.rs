//! A wait with an end: every wait on somebody else goes through here, or says beside it why not.

use std::time::Duration;

use futures_lite::future;
use glommio::timer::Timer;

/// What `work` gives, or `late` once `limit` has passed. `work` is asked first, so what is ready at once costs no timer;
/// it is dropped when it is late.
pub async fn within<T>(
    limit: Duration,
    work: impl Future<Output = T>,
    late: impl FnOnce() -> T,
) -> T {
    let time_up = async {
        Timer::new(limit).await;
        late()
    };
    future::or(work, time_up).await
}
