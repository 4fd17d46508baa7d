//! The driver: the task that submits, reads completions and wakes the tasks that wait for them.

use std::io;
use std::rc::Rc;

use slab::Slab;

use super::ring::{self, Completion, OpResult, Ring};
use super::socket::{ReceiveEnd, ReceiveOp, SendState, SocketEntry, code};
use super::{Net, file};
use crate::alloc;
use crate::rt::{self, TaskKind, yield_now};

/// Bytes and connections that one turn hands to tasks. A small request takes the core 10 to 20 µs, so
/// these take half a millisecond, after which their answers leave and the rest of what has arrived
/// follows. Without a bound, 256 buffers of the pool made turns of 5 ms.
const WOKEN_MAX: usize = ring::UNREAD_ENOUGH;

/// While receives find no buffer, readers may hold this many without having read them: most of the
/// pool stays with those that do read, and a turn seldom has to look at all sockets.
const HELD_MAX: usize = ring::BUFFERS as usize / 4;

/// What came of a turn of the ring.
struct RingTurn {
    /// Anything had completed, or is to be tried again.
    completed: bool,
    /// Tasks that were woken for something new.
    woken: usize,
}

impl Net {
    /// Lets every task run that is ready, then submits what they have written.
    pub async fn run_tasks_and_turn(&self) {
        yield_now().await;
        // The driver handles whatever this turn makes ready.
        self.turn_now();
    }

    /// Takes a turn now: submits operations, reads completions and wakes the tasks that wait for
    /// them.
    pub fn turn_now(&self) {
        let RingTurn { woken, .. } = self.turn_with(Ring::turn, usize::MAX);
        rt::looked_between(woken > 0);
        self.pushed();
    }

    /// One turn that is a look; true if anything had completed.
    fn turn(&self) -> bool {
        self.look_with(Ring::turn)
    }

    /// The same, in which `enter` calls the kernel.
    fn look_with(&self, enter: impl FnOnce(&mut Ring) -> io::Result<bool>) -> bool {
        let RingTurn { completed, woken } = self.turn_with(enter, WOKEN_MAX);
        rt::looked(woken > 0);
        completed
    }

    /// One turn that calls the kernel by `enter` and wakes up to `woken_max` tasks for something
    /// new.
    fn turn_with(
        &self,
        enter: impl FnOnce(&mut Ring) -> io::Result<bool>,
        woken_max: usize,
    ) -> RingTurn {
        let mut ring = self.ring.borrow_mut();
        if !self.starved.borrow().is_empty() {
            self.refill_starved(&mut ring, &mut self.sockets.borrow_mut());
        }
        // An error here is the ring's own; the core cannot go on without its sockets.
        if !enter(&mut ring).expect("the kernel keeps accepting a ring that it created") {
            // What still finds no buffer is repeated, and not slept over.
            return RingTurn { completed: !self.starved.borrow().is_empty(), woken: 0 };
        }
        let mut sockets = self.sockets.borrow_mut();
        let mut woken = 0;
        while woken < woken_max
            && let Some(completion) = ring.next()
        {
            let brings_work = completion.brings_work();
            self.completed(&mut ring, &mut sockets, completion);
            woken += usize::from(brings_work);
        }
        RingTurn { completed: true, woken }
    }

    /// Handles one completion. It wakes tasks while `ring` and `sockets` are borrowed: a waker of
    /// glommio only queues its task and runs no code of it.
    fn completed(&self, ring: &mut Ring, sockets: &mut Slab<SocketEntry>, completion: Completion) {
        let Completion { token, result, continues } = completion;
        let result = match result {
            OpResult::Synced(synced) => {
                return file::synced(&mut self.files.borrow_mut(), token, synced);
            }
            socket_result => socket_result,
        };
        let entry = &mut sockets[token];
        entry.in_flight -= u32::from(!continues);
        let waker = match result {
            OpResult::Received(received) => {
                let was_readable = entry.receive.is_readable();
                if !continues {
                    entry.receive.operation = ReceiveOp::Idle;
                }
                match received {
                    Ok(Some(buffer)) if entry.abandoned => ring.give_back(buffer),
                    Ok(Some(buffer)) => entry.received(ring, token, buffer),
                    Err(e) if ring::is_exhausted(&e) && !entry.abandoned => {
                        entry.receive.operation = ReceiveOp::Starved;
                        self.starved.borrow_mut().push_back(token);
                    }
                    Err(e) if code(&e) == libc::ECANCELED && !entry.abandoned => {
                        entry.receive_cancelled();
                    }
                    Ok(None) => entry.receive.end = Some(ReceiveEnd::Closed),
                    Err(e) => entry.receive.end = Some(ReceiveEnd::Failed(code(&e))),
                }
                // A reader that leaves bytes unread has been woken for the first of them.
                if !was_readable && entry.receive.is_readable() { &entry.reader } else { &None }
            }
            OpResult::Sent(bytes, sent) => {
                entry.sent(ring, token, bytes, sent);
                &None
            }
            OpResult::Accepted(accepted) => {
                entry.accepted = Some(accepted);
                &entry.reader
            }
            OpResult::Connected(connected) => {
                entry.send = match connected {
                    Ok(()) => SendState::Idle,
                    Err(e) => SendState::Failed(code(&e)),
                };
                entry.wake_writer();
                &None
            }
            OpResult::Synced(_) => unreachable!("handled above"),
        };
        if let Some(waker) = waker {
            waker.wake_by_ref();
        }
        if entry.abandoned && entry.in_flight == 0 {
            sockets.remove(token);
        }
    }

    /// Called at the start of a turn if receives have found no buffer: repeats as many of them as
    /// there are buffers now, in the order in which they failed. More would only fail again, in this
    /// turn and in each that follows. If readers that do not come hold many buffers, these are copied
    /// first. So there are some as soon as no completion is left that brings one, and all completions
    /// are read before the driver sleeps.
    fn refill_starved(&self, ring: &mut Ring, sockets: &mut Slab<SocketEntry>) {
        if ring.held_buffers() > HELD_MAX {
            for (_, entry) in sockets.iter_mut() {
                entry.receive.copy_unread(ring);
            }
        }
        let mut free = ring.free_buffers();
        let mut starved = self.starved.borrow_mut();
        while free > 0
            && let Some(token) = starved.pop_front()
        {
            // By now the token may belong to another socket.
            if let Some(entry) = sockets.get_mut(token)
                && entry.receive.operation == ReceiveOp::Starved
                && !entry.abandoned
            {
                entry.receive.operation = ReceiveOp::Idle;
                // What is unread is read first.
                if !entry.receive.is_readable() {
                    entry.repeat_receive(ring, token);
                    free -= 1;
                }
            }
        }
    }
}

/// The driver: takes turns while operations complete, otherwise sleeps until one does.
pub(super) async fn drive(net: Rc<Net>, eventfd: glommio::io::BufferedFile) {
    let _watching = rt::spawn_as(TaskKind::Sockets, watch(eventfd));
    let _unmaps_in_steps = alloc::UnmapsInSteps::begin();
    net.ring.borrow_mut().enable_eventfd(false);
    loop {
        while look(&net) {
            yield_now().await;
        }
        if spin(&net).await || nap(&net).await {
            continue;
        }
        net.ring.borrow_mut().enable_eventfd(true);
        // An operation may have completed before the eventfd was enabled.
        if net.turn() {
            rt::next_turn();
        } else {
            rt::sleep_until_called().await;
        }
        net.ring.borrow_mut().enable_eventfd(false);
        yield_now().await;
    }
}

/// One turn of the ring, which ends a turn of the core and begins the next. True if there is more to
/// do.
fn look(net: &Net) -> bool {
    let completed = net.turn();
    rt::next_turn();
    let unmaps = alloc::unmap_step();
    completed || unmaps
}

/// Polls for as long as `Net::set_spin` says; true as soon as something has completed.
async fn spin(net: &Net) -> bool {
    let spin = net.spin.get();
    if spin.is_zero() {
        return false;
    }
    let since = rt::turn_now();
    while rt::turn_now() - since < spin {
        yield_now().await;
        if look(net) {
            return true;
        }
    }
    false
}

/// Sleeps in the ring itself if this executor has nothing else to do: one system call, where
/// sleeping and waking on glommio take ten. True if there is something to do now.
async fn nap(net: &Net) -> bool {
    let limit = net.nap.get();
    // The ring would not see the end of a foreign wait.
    if limit.is_zero() || rt::has_foreign_waits() {
        return false;
    }
    if !rt::is_idle().await {
        return true;
    }
    rt::end_turn();
    let nap = |ring: &mut Ring| {
        let completed = ring.nap(limit);
        // What has completed is handled in the next turn.
        rt::next_turn();
        completed
    };
    let completed = net.look_with(nap);
    if completed {
        // What these tasks write is submitted in the next turn.
        yield_now().await;
    }
    completed
}

/// Calls the driver whenever the eventfd is signalled. A task of its own, because a read of glommio
/// keeps the waker of every poll until it ends, and may outlast any number of the driver's sleeps.
async fn watch(eventfd: glommio::io::BufferedFile) {
    loop {
        eventfd.read_at(0, 8).await.expect("an event descriptor can be read");
        rt::call_driver();
    }
}
