//! The limit on a simulated path to a store: PUTs share a link fairly, and each waits for its
//! answer.

use super::*;

/// A path to a store, and how many PUTs at a time the store accepts before it answers that it is
/// busy.
#[derive(Clone, Copy)]
struct Way {
    bytes_per_s: f64,
    latency: Duration,
    busy_above: usize,
}

impl Way {
    fn link(bytes_per_s: f64, latency_ms: u64) -> Way {
        let latency = Duration::from_millis(latency_ms);
        Way { bytes_per_s, latency, busy_above: usize::MAX }
    }
}

struct Put {
    began: Instant,
    bytes: f64,
    left: f64,
    /// What remains of its latency.
    wait: f64,
}

/// What was observed over a time.
#[derive(Debug, Default)]
struct Seen {
    stored_bytes: f64,
    refused: u64,
    least: usize,
    most: usize,
    mean: f64,
}

struct Simulation {
    limit: PutLimit,
    way: Way,
    now: Instant,
    puts: Vec<Put>,
    random: fastrand::Rng,
}

const STEP: Duration = Duration::from_millis(5);

impl Simulation {
    fn new(max: usize, way: Way) -> Simulation {
        let now = Instant::now();
        let random = fastrand::Rng::with_seed(7);
        Simulation { limit: PutLimit::new(max, now), way, now, puts: Vec::new(), random }
    }

    /// Uploads objects of about `bytes` for that many seconds; there is always another one.
    fn run(&mut self, seconds: u64, bytes: f64) -> Seen {
        let end = self.now + Duration::from_secs(seconds);
        let mut seen = Seen { least: usize::MAX, ..Seen::default() };
        while self.now < end {
            self.now += STEP;
            self.begin(bytes, &mut seen);
            self.advance(&mut seen);
            seen.least = seen.least.min(self.limit.limit());
            seen.most = seen.most.max(self.limit.limit());
            seen.mean += self.limit.limit() as f64 * STEP.as_secs_f64() / seconds as f64;
            assert!(self.limit.in_flight() <= self.limit.max);
        }
        seen
    }

    fn begin(&mut self, bytes: f64, seen: &mut Seen) {
        let mut tries = 2 * self.limit.max;
        while self.limit.has_room() && tries > 0 {
            tries -= 1;
            self.limit.begin();
            if self.puts.len() >= self.way.busy_above {
                seen.refused += 1;
                self.limit.congested(self.now, self.now + STEP);
                self.limit.end();
                continue;
            }
            let bytes = bytes * (0.5 + self.random.f64());
            let wait = self.way.latency.as_secs_f64();
            self.puts.push(Put { began: self.now, bytes, left: bytes, wait });
        }
    }

    /// All PUTs that are still sending share the link.
    fn advance(&mut self, seen: &mut Seen) {
        let sending = self.puts.iter().filter(|put| put.left > 0.0).count().max(1);
        let share = self.way.bytes_per_s * STEP.as_secs_f64() / sending as f64;
        for put in &mut self.puts {
            if put.left > 0.0 {
                put.left -= share;
            } else {
                put.wait -= STEP.as_secs_f64();
            }
        }
        let (now, limit) = (self.now, &mut self.limit);
        self.puts.retain(|put| {
            let done = put.left <= 0.0 && put.wait <= 0.0;
            if done {
                seen.stored_bytes += put.bytes;
                limit.stored(put.began, now, put.bytes as u64);
                limit.end();
            }
            !done
        });
    }
}

const MB: f64 = 1e6;

#[test]
fn a_link_is_used_and_not_crowded() {
    for (name, way, bytes, knee) in [
        ("2 MB/s, payloads", Way::link(2.0 * MB, 0), 0.9 * MB, 1.0),
        ("2 MB/s, batches", Way::link(2.0 * MB, 5), 8.0 * MB, 4.0),
        ("8 MB/s, payloads", Way::link(8.0 * MB, 0), 0.9 * MB, 1.0),
        ("64 Mbit/s + 300 ms, payloads", Way::link(8.0 * MB, 300), 0.9 * MB, 3.7),
        ("64 Mbit/s + 300 ms, batches", Way::link(8.0 * MB, 300), 8.0 * MB, 1.3),
        ("64 Mbit/s + 300 ms, small", Way::link(8.0 * MB, 300), 0.15 * MB, 17.0),
    ] {
        let mut simulation = Simulation::new(32, way);
        simulation.run(240, bytes);
        let seen = simulation.run(600, bytes);
        let share = seen.stored_bytes / (600.0 * way.bytes_per_s);
        assert!(share > 0.9, "{name}: {share:.2} of the link, {seen:?}");
        assert!(seen.mean <= f64::max(2.5 * knee, 12.0), "{name}: {seen:?}");
    }
}

#[test]
fn all_workers_are_used_when_every_put_waits_for_its_answer() {
    for latency_ms in [5, 20, 80, 300] {
        let way = Way::link(1e12, latency_ms);
        let mut simulation = Simulation::new(32, way);
        simulation.run(5, 1e3);
        assert_eq!(simulation.limit.limit(), 32, "{latency_ms} ms");
        let seen = simulation.run(60, 1e3);
        // A lower limit is tried now and then, because it might do as well.
        let least = if latency_ms < 100 { 32 } else { 24 };
        assert!(seen.least >= least, "{latency_ms} ms: {seen:?}");
    }
}

#[test]
fn a_store_that_is_busy_above_a_number_is_kept_just_below_it() {
    let way = Way { busy_above: 6, ..Way::link(1e12, 50) };
    let mut simulation = Simulation::new(32, way);
    simulation.run(30, 1e3);
    let seen = simulation.run(120, 1e3);
    let most = 120.0 / 0.055 * 6.0 * 1e3;
    assert!(seen.stored_bytes > 0.85 * most, "{:.2} of it", seen.stored_bytes / most);
    assert!(seen.refused < 20, "asked for more only now and then: {seen:?}");
}

#[test]
fn a_link_that_becomes_slower_or_faster_is_followed() {
    let mut simulation = Simulation::new(32, Way::link(100.0 * MB, 120));
    simulation.run(20, MB);
    assert!(simulation.limit.limit() > 10);
    simulation.way = Way::link(4.0 * MB, 0);
    simulation.run(240, MB);
    let seen = simulation.run(60, MB);
    assert!(seen.most <= 12, "{seen:?}");
    assert!(seen.stored_bytes > 0.9 * 60.0 * 4.0 * MB, "{seen:?}");
    simulation.way = Way::link(100.0 * MB, 120);
    simulation.run(30, MB);
    let seen = simulation.run(30, MB);
    assert!(seen.stored_bytes > 0.85 * 30.0 * 100.0 * MB, "{seen:?}");
}

/// Everything in flight fails at once: one cause, not many.
#[test]
fn puts_that_failed_together_lower_the_limit_once() {
    let start = Instant::now();
    let mut limit = PutLimit::new(32, start);
    limit.limit = 32;
    (0..32).for_each(|_| limit.begin());
    let late = start + Duration::from_secs(10);
    for _ in 0..32 {
        limit.congested(start, late);
        limit.end();
    }
    assert_eq!((limit.limit(), limit.in_flight()), (22, 0));
    let retry = late + Duration::from_millis(1);
    limit.congested(retry, retry + Duration::from_secs(10));
    assert_eq!(limit.limit(), 15);
}

#[test]
fn a_dead_store_leads_to_one_put_at_a_time_and_its_return_back_to_all() {
    let start = Instant::now();
    let mut simulation = Simulation::new(32, Way::link(1e12, 5));
    simulation.run(2, 1e3);
    assert_eq!(simulation.limit.limit(), 32);
    simulation.now += Duration::from_secs(1);
    for _ in 0..20 {
        simulation.now += Duration::from_secs(10);
        simulation.limit.congested(simulation.now - Duration::from_secs(9), simulation.now);
    }
    assert_eq!(simulation.limit.limit(), 1);
    assert!(simulation.now - start > Duration::from_secs(200));
    simulation.run(1, 1e3);
    assert_eq!(simulation.limit.limit(), 32, "within a second");
}

#[test]
fn a_limit_that_is_not_reached_stays() {
    let start = Instant::now();
    let mut limit = PutLimit::new(32, start);
    let mut now = start;
    for _ in 0..1_000 {
        limit.begin();
        let began = now;
        now += Duration::from_millis(200);
        limit.stored(began, now, 1_000);
        limit.end();
        limit.starved();
    }
    assert_eq!(limit.limit(), AT_START);
}

#[test]
fn one_worker_is_one_put() {
    let mut simulation = Simulation::new(1, Way::link(MB, 10));
    let seen = simulation.run(60, MB);
    assert_eq!((seen.least, seen.most), (1, 1));
    assert!(seen.stored_bytes > 0.9 * 60.0 * MB);
}
