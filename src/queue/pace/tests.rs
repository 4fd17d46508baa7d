//! Clients that obey, in simulated time: whatever the store's speed, the number of clients and how
//! much too much they send, the store is kept busy.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::*;

/// Step of the simulated store.
const STEP: Duration = Duration::from_millis(1);
/// The share of the store's rate that is used over any ten seconds, …
const USED_LEAST: f64 = 0.9;
/// … which are these.
const OVER: usize = 10;
/// Progress is noted so often per second.
const NOTES: usize = 10;

#[derive(Clone, Copy, Debug)]
struct Case {
    /// Payloads per second that the store takes.
    store: f64,
    /// What the clients together send if nobody refuses it, per payload that the store takes.
    load: f64,
    clients: usize,
    /// Payloads per request, …
    payloads: usize,
    /// … and bytes per payload.
    bytes: usize,
    wait: Duration,
    room: Need,
}

const DEFAULT: Case = Case {
    store: 1_000.0,
    load: 2.0,
    clients: 8,
    payloads: 50,
    bytes: 100,
    wait: Duration::from_secs(1),
    room: Need { slots: 10_000, bytes: 64 << 20 },
};

/// One request on the waitlist.
struct Waiting {
    client: usize,
    until: Duration,
}

/// A server in front of a store, and clients that do what they are told.
struct Simulation {
    case: Case,
    epoch: Instant,
    now: Duration,
    /// Payloads per second that the store takes now.
    store: f64,
    pace: Pace,
    used: Need,
    /// What the store could have taken beyond whole payloads.
    credit: f64,
    waitlist: VecDeque<Waiting>,
    /// When which client posts next.
    posts: BinaryHeap<Reverse<(Duration, usize)>>,
    admitted: usize,
    refused: usize,
    retry_after_max_s: u64,
    stored: usize,
}

impl Simulation {
    fn new(case: Case) -> Simulation {
        let epoch = Instant::now();
        Simulation {
            case,
            epoch,
            now: Duration::ZERO,
            store: case.store,
            pace: Pace::new(case.room, epoch, rt::Rng::with_seed(7)),
            used: Need::default(),
            credit: 0.0,
            waitlist: VecDeque::new(),
            posts: BinaryHeap::new(),
            admitted: 0,
            refused: 0,
            retry_after_max_s: 0,
            stored: 0,
        }
    }

    fn need(&self, requests: usize) -> Need {
        let slots = requests * self.case.payloads;
        Need { slots, bytes: slots * self.case.bytes }
    }

    /// Time between two posts of one client.
    fn interval(&self) -> Duration {
        let Case { store, load, clients, payloads, .. } = self.case;
        Duration::from_secs_f64((clients * payloads) as f64 / (load * store))
    }

    /// From now on all clients post.
    fn start_clients(&mut self) {
        let interval = self.interval();
        let clients = self.case.clients;
        self.posts = (0..clients)
            .map(|client| Reverse((self.now + interval * client as u32 / clients as u32, client)))
            .collect();
    }

    /// From now on no client posts.
    fn stop_clients(&mut self) {
        self.posts.clear();
        self.waitlist.clear();
    }

    fn free(&self) -> Need {
        let Need { slots, bytes } = self.case.room;
        Need { slots: slots - self.used.slots, bytes: bytes - self.used.bytes }
    }

    fn fits(&self) -> bool {
        let (need, free) = (self.need(1), self.free());
        need.slots <= free.slots && need.bytes <= free.bytes
    }

    fn admit(&mut self, client: usize) {
        let Need { slots, bytes } = self.need(1);
        self.used.slots += slots;
        self.used.bytes += bytes;
        self.admitted += 1;
        // It does not make up for the time that it waited.
        self.posts.push(Reverse((self.now + self.interval(), client)));
    }

    fn refuse(&mut self, client: usize, retry_after_s: u64) {
        assert!((RETRY_AFTER_MIN_S..=RETRY_AFTER_MAX_S).contains(&retry_after_s));
        self.refused += 1;
        self.retry_after_max_s = self.retry_after_max_s.max(retry_after_s);
        self.posts.push(Reverse((self.now + Duration::from_secs(retry_after_s), client)));
    }

    fn post(&mut self, client: usize) {
        if self.waitlist.is_empty() && self.fits() {
            return self.admit(client);
        }
        let now = self.epoch + self.now;
        let room = QueueRoom { free: self.free(), waited_for: self.need(self.waitlist.len()) };
        self.pace.sample(now, self.used);
        match self.pace.judge(self.need(1), room, self.case.wait, now) {
            Verdict::Wait => {
                let until = self.now + self.case.wait;
                self.waitlist.push_back(Waiting { client, until });
            }
            Verdict::Refuse { retry_after_s } => self.refuse(client, retry_after_s),
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.epoch + self.now;
        self.credit += self.store * STEP.as_secs_f64();
        let take = (self.credit as usize).min(self.used.slots);
        self.credit -= self.credit.floor();
        if take > 0 {
            self.used.slots -= take;
            self.used.bytes -= take * self.case.bytes;
            self.pace.slots.freed(take, self.used.slots);
            self.pace.bytes.freed(take * self.case.bytes, self.used.bytes);
            self.stored += take;
        }
        while let Some(first) = self.waitlist.front() {
            let client = first.client;
            if self.fits() {
                self.waitlist.pop_front();
                self.admit(client);
            } else if first.until <= self.now {
                self.waitlist.pop_front();
                let room = QueueRoom { free: self.free(), waited_for: Need::default() };
                self.pace.sample(now, self.used);
                let seconds = self.pace.refuse(self.need(1), room, self.case.wait, now);
                self.refuse(client, seconds);
            } else {
                break;
            }
        }
        while let Some(Reverse((at, client))) = self.posts.peek().copied()
            && at <= self.now
        {
            self.posts.pop();
            self.post(client);
        }
        if self.now.as_millis().is_multiple_of(1_000) {
            self.pace.sample(now, self.used);
        }
    }

    /// Runs for `seconds`; returns what the store had taken after each tenth of a second.
    fn run(&mut self, seconds: usize) -> Vec<usize> {
        let begun = self.stored;
        let mut notes = vec![0];
        let steps = (1.0 / STEP.as_secs_f64()) as usize / NOTES;
        for _ in 0..seconds * NOTES {
            (0..steps).for_each(|_| self.step());
            notes.push(self.stored - begun);
        }
        notes
    }
}

/// The smallest share of the store's rate that was used over any ten seconds.
fn least_used(notes: &[usize], store: f64) -> f64 {
    let windows = notes.iter().zip(&notes[OVER * NOTES..]);
    let least = windows.map(|(from, to)| to - from).min().expect("more than ten seconds");
    least as f64 / (store * OVER as f64)
}

/// Light load, quiet, then the case's load.
fn after_quiet(case: Case, quiet_s: usize) -> (f64, Simulation) {
    let mut simulation = Simulation::new(Case { load: 0.3, ..case });
    simulation.start_clients();
    simulation.run(3);
    simulation.stop_clients();
    simulation.run(quiet_s);
    // Slow stores are still busy with the light load.
    simulation.used = Need::default();
    simulation.case.load = case.load;
    (simulation.admitted, simulation.refused) = (0, 0);
    simulation.start_clients();
    let notes = simulation.run(30);
    (least_used(&notes, case.store), simulation)
}

/// The cases in which less than [`USED_LEAST`] is used.
fn too_idle(cases: impl Iterator<Item = Case>) -> Vec<(Case, f64)> {
    let mut bad = Vec::new();
    for case in cases {
        let (used, simulation) = after_quiet(case, 5);
        let Simulation { admitted, refused, retry_after_max_s, .. } = simulation;
        println!(
            "{case:?}: {used:.3}, {admitted} admitted, {refused} refused, up to {retry_after_max_s} s"
        );
        if used < USED_LEAST {
            bad.push((case, used));
        }
    }
    bad
}

/// Stores of very different speed, loads, and numbers of clients.
fn cases(of: Case) -> impl Iterator<Item = Case> {
    let stores = [10.0, 100.0, 1_000.0, 10_000.0, 100_000.0];
    stores.into_iter().flat_map(move |store| {
        [1.0, 2.0, 10.0].into_iter().flat_map(move |load| {
            [1, 8, 64, 1_000].into_iter().map(move |clients| {
                // A simulated client posts once a step.
                let payloads = of.payloads.max((store * 0.005) as usize);
                Case { store, load, clients, payloads, ..of }
            })
        })
    })
}

#[test]
fn the_store_is_kept_busy_whatever_its_speed_and_the_load() {
    let bad = too_idle(cases(DEFAULT));
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn small_queues_keep_the_store_busy_too() {
    for slots in [1_000, 2_000] {
        let bad = too_idle(cases(Case { room: Need { slots, ..DEFAULT.room }, ..DEFAULT }));
        assert!(bad.is_empty(), "{bad:#?}");
    }
}

#[test]
fn bytes_count_like_slots() {
    // Room for 640 payloads.
    let room = Need { slots: 10_000, bytes: 64 << 20 };
    let bad = too_idle(
        cases(Case { bytes: 100 << 10, payloads: 5, room, ..DEFAULT })
            .filter(|case| case.store <= 10_000.0),
    );
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn without_waiting_a_queue_of_two_seconds_suffices() {
    let bad = too_idle(cases(DEFAULT).map(|case| {
        let slots = ((case.store * 2.0) as usize).max(2 * case.payloads);
        let room = Need { slots, ..case.room };
        Case { room, wait: Duration::ZERO, ..case }
    }));
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn after_an_outage_the_store_waits_for_clients_for_half_of_it_at_most() {
    for store in [100.0, 1_000.0, 10_000.0] {
        for clients in [1, 8, 64, 1_000] {
            for outage_s in [3, 20, 60, 300] {
                let case = Case { store, load: 10.0, clients, ..DEFAULT };
                let mut simulation = Simulation::new(case);
                simulation.start_clients();
                simulation.run(20);
                simulation.store = 0.0;
                let before = simulation.refused;
                simulation.run(outage_s);
                let tries = (simulation.refused - before) as f64 / clients as f64;
                simulation.store = store;
                let waits = (outage_s / 2 + 2).min(RETRY_AFTER_MAX_S as usize + 1);
                let notes = simulation.run(waits + 20);
                let used = least_used(&notes[waits * NOTES..], store);
                let what = format!("{case:?} {outage_s} s: {used:.3}, {tries} tries");
                println!("{what}");
                assert!(used >= USED_LEAST, "{what}");
                // Doubling, and from a minute on every 15 to 30 s.
                assert!(tries <= 12.0 + outage_s as f64 / 15.0, "{what}");
            }
        }
    }
}

#[test]
fn clients_that_never_return_do_not_keep_others_away() {
    // Ten times what the queue holds comes at once, and one client beside it.
    let mut simulation = Simulation::new(Case { clients: 1, load: 10.0, ..DEFAULT });
    simulation.start_clients();
    simulation.run(5);
    for _ in 0..2_000 {
        let now = simulation.epoch + simulation.now;
        let room = QueueRoom { free: simulation.free(), waited_for: simulation.need(20) };
        simulation.pace.refuse(simulation.need(1), room, simulation.case.wait, now);
    }
    let notes = simulation.run(60);
    let used = least_used(&notes, simulation.case.store);
    assert!(used >= USED_LEAST, "{used}");
}

#[test]
fn a_rate_is_what_was_freed_while_pressed() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let mut meter = Meter::new(1, start);
    let second = Duration::from_secs(1);
    // Light load: the queue runs empty.
    meter.freed(1_000, 0);
    meter.sample(at(1_000), second, 0);
    assert_eq!((meter.rate(), meter.pressed_for(at(1_000))), (None, Duration::ZERO));
    meter.freed(1_000, 0);
    meter.sample(at(2_000), second, 500);
    assert_eq!(meter.rate(), None, "it ran empty before");
    // From here on there is always something.
    meter.freed(100, 400);
    meter.sample(at(3_000), second, 900);
    meter.freed(300, 600);
    meter.sample(at(4_000), second, 900);
    assert_eq!(meter.rate(), Some(300.0), "the last second was faster than both");
    assert_eq!(meter.pressed_for(at(4_500)), Duration::from_millis(2_500));
    for s in 5..=10 {
        meter.sample(at(s * 1_000), second, 900);
    }
    assert_eq!((meter.rate(), meter.samples.len()), (Some(0.0), 5), "a standstill");
    assert_eq!(meter.still_for(at(10_000)), Duration::from_secs(6));
    meter.freed(900, 0);
    assert_eq!(meter.pressed_for(at(10_100)), Duration::ZERO, "at once");
    meter.sample(at(11_000), second, 0);
    assert_eq!(meter.rate(), None, "nothing is kept of it");
}

#[test]
fn waits_are_judged_by_the_measured_rate_and_returns_are_spread() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let max = Need { slots: 1_000, bytes: 1 << 20 };
    let mut pace = Pace::new(max, start, rt::Rng::with_seed(1));
    let one = Need { slots: 100, bytes: 1_000 };
    let full = |waited_for: usize| QueueRoom {
        free: Need { slots: 0, bytes: 1 << 20 },
        waited_for: Need { slots: waited_for, bytes: 0 },
    };
    let (second, refuse) = (Duration::from_secs(1), |s| Verdict::Refuse { retry_after_s: s });
    let used = Need { slots: 1_000, bytes: 10_000 };
    pace.sample(at(1_000), used);
    assert_eq!(pace.judge(one, full(900), second, at(1_000)), Verdict::Wait, "no rate is known");
    assert_eq!(pace.judge(one, full(0), Duration::ZERO, at(1_000)), refuse(1));
    for s in 2..=6 {
        pace.slots.freed(100, 900);
        pace.sample(at(s * 1_000), used);
    }
    // 100 slots a second.
    assert_eq!(pace.judge(one, full(0), second, at(6_000)), Verdict::Wait, "just in time");
    // Each refusal takes its second in the line, and may be one second early.
    let told: Vec<_> = (0..5).map(|_| pace.judge(one, full(100), second, at(6_000))).collect();
    assert_eq!(told, [1, 2, 3, 4, 5].map(refuse));
    let beyond: Vec<_> =
        (0..50).map(|_| pace.judge(one, full(100), second, at(6_000))).skip(1).collect();
    assert!(beyond.iter().all(|told| (3..=6).any(|s| *told == refuse(s))), "{beyond:?}");
    assert!((3..=6).all(|s| beyond.contains(&refuse(s))), "at random: {beyond:?}");
    // The line gets shorter as time passes.
    assert_eq!(pace.judge(one, full(100), second, at(10_000)), refuse(3));
    // Bytes are not short, so they do not count, whatever is known of them.
    assert!(pace.bytes.rate().is_none());
}
