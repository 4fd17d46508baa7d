//! What the control executor waits for while cores start, serve and stop. Each kind is a level, not a queue: it takes the
//! same memory however often it happens, and none is lost.

use std::cell::Cell;
use std::rc::Rc;

use futures_lite::AsyncReadExt;
use socket2::Socket;

use crate::control::signals::Signals;
use crate::http::accept::into_glommio_stream;
use crate::rt;
use crate::sync::Signal;

pub(super) enum ControlEvent {
    /// A signal to stop, each once.
    Stop,
    /// A core's state may have changed.
    CoreChanged,
}

/// Set by tasks that watch sockets, looked at by one task.
pub(super) struct Events {
    signals: Signals,
    /// Of `signals.stops()`.
    stops_seen: Cell<u32>,
    bell: Cell<bool>,
    changed: Signal,
}

impl Events {
    /// `signals.bell` is watched from now on.
    pub(super) fn new(signals: Signals) -> std::io::Result<Rc<Events>> {
        let bell = signals.bell.try_clone()?;
        let events = Rc::new(Events {
            signals,
            stops_seen: Cell::new(0),
            bell: Cell::new(false),
            changed: Signal::default(),
        });
        watch(Socket::from(std::os::fd::OwnedFd::from(bell)), events.clone(), |_| ());
        Ok(events)
    }

    /// Watches a core's doorbell.
    pub(super) fn watch_core(self: &Rc<Self>, bell: Socket) {
        watch(bell, self.clone(), |events| events.bell.set(true));
    }

    /// The cores are about to serve: stops come here from now on. `false` when one came before; then this process is
    /// being ended.
    pub(super) fn hand_over(&self) -> bool {
        self.signals.hand_over()
    }

    /// The next event; to be awaited by one task at a time.
    pub(super) async fn next(&self) -> ControlEvent {
        loop {
            if self.signals.stops() > self.stops_seen.get() {
                self.stops_seen.set(self.stops_seen.get() + 1);
                return ControlEvent::Stop;
            }
            if self.bell.take() {
                return ControlEvent::CoreChanged;
            }
            self.changed.wait().await;
        }
    }
}

/// Calls `rang` and wakes whoever waits whenever bytes come.
fn watch(socket: Socket, events: Rc<Events>, rang: fn(&Events)) {
    let mut stream = into_glommio_stream(socket);
    rt::spawn(async move {
        let mut bytes = [0; 64];
        while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {
            rang(&events);
            events.changed.raise();
        }
    })
    .detach();
}
