//! The events that control waits for while cores start, serve and stop. Each kind is a level, not a
//! queue: it takes the same memory however often it occurs, and none is lost.

use std::cell::Cell;
use std::rc::Rc;

use futures_lite::AsyncReadExt;
use socket2::Socket;

use crate::control::signals::Signals;
use crate::http::accept::into_glommio_stream;
use crate::rt;
use crate::sync::Signal;

/// Something that control reacts to.
pub(super) enum ControlEvent {
    /// A signal to stop; each signal is one event.
    Stop,
    /// A core's state may have changed.
    CoreChanged,
}

/// Events that have occurred. Tasks that watch sockets set them, and one task reads them.
pub(super) struct Events {
    signals: Signals,
    /// How many of `signals.stops()` were returned.
    stops_seen: Cell<u32>,
    core_changed: Cell<bool>,
    changed: Signal,
}

impl Events {
    /// No events yet. Watches `signals` from now on.
    pub(super) fn new(signals: Signals) -> std::io::Result<Rc<Events>> {
        let notices = signals.notices.try_clone()?;
        let events = Rc::new(Events {
            signals,
            stops_seen: Cell::new(0),
            core_changed: Cell::new(false),
            changed: Signal::default(),
        });
        watch(Socket::from(std::os::fd::OwnedFd::from(notices)), events.clone(), |_| ());
        Ok(events)
    }

    /// Watches a core's control channel.
    pub(super) fn watch_core(self: &Rc<Self>, channel: Socket) {
        watch(channel, self.clone(), |events| events.core_changed.set(true));
    }

    /// The cores are about to serve, so stops become events from now on. `false` if one came
    /// before; then the process is ending.
    pub(super) fn hand_over(&self) -> bool {
        self.signals.hand_over()
    }

    /// Waits for the next event. Only one task may wait.
    pub(super) async fn next(&self) -> ControlEvent {
        loop {
            if self.signals.stops() > self.stops_seen.get() {
                self.stops_seen.set(self.stops_seen.get() + 1);
                return ControlEvent::Stop;
            }
            if self.core_changed.take() {
                return ControlEvent::CoreChanged;
            }
            self.changed.wait().await;
        }
    }
}

/// Calls `on_notice` and wakes the waiting task whenever bytes arrive.
fn watch(socket: Socket, events: Rc<Events>, on_notice: fn(&Events)) {
    let mut stream = into_glommio_stream(socket);
    rt::spawn(async move {
        let mut bytes = [0; 64];
        while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {
            on_notice(&events);
            events.changed.raise();
        }
    })
    .detach();
}
