//! The run from start to report.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::good::{ACKS, Ack, Pace, Writer};
use crate::ledger::Account;
use crate::report::{Minute, Report};
use crate::servers::{self, GOOD_FILES, GOOD_TOKEN, NAMES, Place, SPOOL_FILES};
use crate::store::{Store, Weather};
use crate::support::tls::Authority;
use crate::support::{Server, Stopped};
use crate::watch::{DEFECTS, Descriptors, EXERCISED, Look, Watch, counter, median_resident};
use crate::weather::Cycle;
use crate::wire::Request;
use crate::{Shared, bad, good};

/// Of what the servers can take.
const LOAD: f64 = 0.7;
/// By how much resident memory may have grown since the warm-up.
const GROWTH_MAX: f64 = 1.05;
/// The same of runs of fewer minutes, which are not warm yet when they end.
const SHORT: usize = 12;
const SHORT_GROWTH_MAX: f64 = 1.25;
/// How long servers may take until nothing is left to do.
const SETTLE: Duration = Duration::from_secs(120);
/// Requests of the last burst, for each server.
const BURST: usize = 60;
/// For longer than this no server keeps a store connection that it does not use.
const STORE_IDLE: Duration = Duration::from_secs(21);
/// Requests of one payload after that: so many that each core gets some.
const AFTERWARDS: usize = 20;
/// Store connections that these leave open: one for each core, and one that was replaced.
const TO_STORE_AFTERWARDS: usize = 4;
/// Between two changes of the servers' files.
const RELOAD: Duration = Duration::from_secs(7);

pub struct Soak {
    seed: u64,
    length: Duration,
    /// A cycle of the store's weather, and a row of the report.
    minute: Duration,
    shared: Arc<Shared>,
    store: Store,
    authority: Authority,
    places: [Place; 2],
    watch: Watch,
    report: Report,
}

impl Soak {
    pub fn start(length: Duration, seed: u64) -> Soak {
        let shared = Arc::new(Shared::new());
        let store = Store::start(shared.clone(), seed);
        let authority = Authority::new("soak");
        let places = [0, 1].map(|nth| Place::new(nth, store.address, &authority));
        let minute = (length / 4).clamp(Duration::from_secs(15), Duration::from_secs(60));
        let (watch, report) = (Watch::default(), Report::default());
        Soak { seed, length, minute, shared, store, authority, places, watch, report }
    }

    /// Everything; gives what was found.
    pub fn run(mut self) -> Vec<String> {
        let servers = [0, 1].map(|nth| self.places[nth].start());
        let targets = [0, 1].map(|nth| self.places[nth].target(&servers[nth], &self.authority));
        assert!(self.shared.targets.set(targets).is_ok(), "set once");
        let before = self.places.each_ref().map(|place| place.name);
        self.report.line(format!("# Soak of {:?}, seed {}: {before:?}", self.length, self.seed));

        let rates = self.measure_capacity();
        self.settle(&servers);
        let baseline = self.descriptors(&servers);
        self.load(&servers, rates);
        // With good files: the last change may have been a bad one.
        for (place, server) in self.places.iter().zip(&servers) {
            place.reload(GOOD_FILES, server, &self.authority);
        }
        self.settle(&servers);
        self.compare_descriptors(&servers, baseline);
        self.compare_memory();
        self.check_counters(&servers);
        let logs = self.stop_and_recover(servers);
        self.replay();
        for (name, log) in NAMES.iter().zip(&logs) {
            for text in servers::unexpected(log) {
                self.shared.findings.add(format!("{name} logged: {text}"));
            }
        }
        self.finish()
    }

    /// Requests a second of each class in a closed loop, of which it gives the part to go on with.
    fn measure_capacity(&mut self) -> Vec<f64> {
        let time = (self.length / 12).clamp(Duration::from_secs(5), Duration::from_secs(20));
        let clients = good::run(&self.shared, &Pace::Closed, self.seed);
        std::thread::sleep(time);
        let served = self.shared.stats.lock().unwrap().served.clone();
        self.shared.stop_good.store(true, Relaxed);
        clients.join().expect("clients do not panic");
        self.shared.stop_good.store(false, Relaxed);
        let capacity: Vec<f64> =
            served.iter().map(|count| *count as f64 / time.as_secs_f64()).collect();
        let rates: Vec<f64> = capacity.iter().map(|each| each * LOAD).collect();
        self.report.rates(&capacity, &rates);
        *self.shared.stats.lock().unwrap() = crate::watch::Stats::new();
        rates
    }

    /// The load, a second at a time.
    fn load(&mut self, servers: &[Server; 2], rates: Vec<f64>) {
        let good = good::run(&self.shared, &Pace::Open(rates), self.seed + 1);
        let bad = bad::run(&self.shared, self.seed + 2);
        let (begin, mut cycle) = (Instant::now(), Cycle::new(self.minute));
        let (mut minute_began, mut reloads) = (begin, 0);
        while begin.elapsed() < self.length {
            let looks = self.look(servers);
            let both_full = looks.iter().all(|look| look.spool_full);
            self.store.set(cycle.at(begin.elapsed(), both_full));
            if begin.elapsed() > RELOAD * (reloads + 1) {
                for (place, server) in self.places.iter().zip(servers) {
                    place.reload(reloads as usize, server, &self.authority);
                }
                reloads += 1;
            }
            if minute_began.elapsed() >= self.minute {
                self.end_minute(minute_began.elapsed());
                minute_began = Instant::now();
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        if minute_began.elapsed() > self.minute / 2 {
            self.end_minute(minute_began.elapsed());
        }
        self.shared.stop_good.store(true, Relaxed);
        self.shared.stop_bad.store(true, Relaxed);
        self.store.set(Weather::Clear);
        good.join().expect("clients do not panic");
        bad.join().expect("clients do not panic");
    }

    fn look(&mut self, servers: &[Server; 2]) -> [Look; 2] {
        let descriptors = self.descriptors(servers);
        [0, 1].map(|nth| self.watch.look(nth, &servers[nth], descriptors[nth]))
    }

    fn end_minute(&mut self, length: Duration) {
        let (statuses, latencies) = self.shared.stats.lock().unwrap().take();
        let looks = std::mem::take(&mut self.watch.looks);
        let own = std::fs::read_to_string("/proc/self/statm").expect("this process");
        let pages = own.split(' ').nth(1).and_then(|text| text.parse::<u64>().ok());
        let own = pages.unwrap_or(0) * 4096;
        self.report.minutes.push(Minute { statuses, latencies, looks, length, own });
        println!("{}", self.report.last_row());
    }

    /// Waits until nothing is left to do: every gauge at zero.
    fn settle(&self, servers: &[Server; 2]) {
        let begin = Instant::now();
        for (name, server) in NAMES.iter().zip(servers) {
            let mut metrics = server.metrics();
            while !metrics.not_zero().is_empty() && begin.elapsed() < SETTLE {
                std::thread::sleep(Duration::from_millis(100));
                metrics = server.metrics();
            }
            for gauge in metrics.not_zero() {
                let text = format!("{name}: {gauge} is {} and not zero", metrics.sum(gauge));
                self.shared.findings.add(text);
            }
        }
    }

    fn descriptors(&self, servers: &[Server; 2]) -> [Descriptors; 2] {
        let port = self.store.address.port();
        [0, 1].map(|nth| Descriptors::of(servers[nth].pid(), port, &self.places[nth].path("spool")))
    }

    /// Sockets and other descriptors are as many as before; those to the store are as few as are
    /// needed after a silence, and those of the spool have bounds.
    fn compare_descriptors(&mut self, servers: &[Server; 2], before: [Descriptors; 2]) {
        let is_back = |after: [Descriptors; 2]| {
            let fixed = |of: &Descriptors| (of.sockets, of.others);
            before.iter().map(fixed).eq(after.iter().map(fixed))
        };
        std::thread::sleep(STORE_IDLE);
        for (nth, server) in servers.iter().enumerate() {
            let (mut writer, mut stored) = (self.writer(nth), 0);
            for _ in 0..AFTERWARDS {
                let (request, numbers) = writer.single(Ack::Stored, GOOD_TOKEN);
                stored += usize::from(self.post(server, &writer, Ack::Stored, request, numbers));
            }
            self.shared.findings.check(stored == AFTERWARDS, "a quiet server does not store");
        }
        let begin = Instant::now();
        let mut after = self.descriptors(servers);
        while !is_back(after) && begin.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(500));
            after = self.descriptors(servers);
        }
        self.report.head("Descriptors before and after the load");
        for ((name, before), after) in NAMES.iter().zip(before).zip(after) {
            self.report.line(format!("- {name}: {before:?}\n  then {after:?}"));
        }
        let findings = &self.shared.findings;
        findings.check(is_back(after), "descriptors are not what they were");
        for (after, files) in after.into_iter().zip(SPOOL_FILES) {
            // Two descriptors a file, two cores, and the lock.
            findings.check(after.spool <= 2 * 2 * files + 1, "files of the spool stay open");
            let is_bounded = after.removed <= 2 * 2 * files;
            findings.check(is_bounded, "removed files of the spool stay open");
            let few = after.to_store <= TO_STORE_AFTERWARDS;
            findings.check(few, "connections to the store stay open");
        }
    }

    /// The last three minutes against those that end at a sixth of the run, for 30 minutes with the
    /// fifth: three, because in each of them another kind of outage passes.
    fn compare_memory(&mut self) {
        let minutes = &self.report.minutes;
        let is_short = minutes.len() < SHORT;
        let warm = if is_short { 3 } else { (minutes.len() / 6).max(3) };
        let mut lines = Vec::new();
        for (nth, name) in NAMES.iter().enumerate() {
            let until = |end: usize| {
                let looks = minutes[end - 3..end].iter().flat_map(|minute| &minute.looks[nth]);
                median_resident(looks) as f64
            };
            let (first, last) = (until(warm), until(minutes.len()));
            let growth = last / first;
            lines.push(format!(
                "- {name}: {:.1} MiB until minute {warm}, {:.1} MiB at the end: {:+.1} %",
                first / f64::from(1 << 20),
                last / f64::from(1 << 20),
                100.0 * (growth - 1.0)
            ));
            let text = format!("{name}: resident memory has grown too much");
            let most = if is_short { SHORT_GROWTH_MAX } else { GROWTH_MAX };
            self.shared.findings.check(growth <= most, &text);
        }
        self.report.head("Resident memory, medians of three minutes");
        lines.iter().for_each(|line| self.report.line(line));
    }

    fn check_counters(&mut self, servers: &[Server; 2]) {
        self.report.head("What the servers counted");
        let metrics = servers.each_ref().map(Server::metrics);
        self.report.line(format!("| counter | {} | {} |\n|---|---|---|", NAMES[0], NAMES[1]));
        let findings = &self.shared.findings;
        for (name, labels) in EXERCISED {
            let [one, other] = metrics.each_ref().map(|each| counter(each, name, labels));
            self.report.line(format!("| {name} {labels} | {one} | {other} |"));
            findings.check(one > 0 && other > 0, &format!("not exercised: {name} {labels}"));
        }
        for name in DEFECTS {
            let [one, other] = metrics.each_ref().map(|each| each.sum(name));
            self.report.line(format!("| {name} | {one} | {other} |"));
            findings.check(one + other == 0, &format!("{name}: {}", one + other));
        }
    }

    /// With the store down, a last burst, a stop, a start, and the spools are emptied. Gives all
    /// lines that the servers have logged.
    fn stop_and_recover(&mut self, servers: [Server; 2]) -> [Vec<serde_json::Value>; 2] {
        self.store.set(Weather::Down);
        for (nth, server) in servers.iter().enumerate() {
            let admitted = self.burst(nth, server);
            let name = NAMES[nth];
            self.report.head(&format!("Stop of {name} with the store down"));
            self.report.line(format!("- {admitted} of {BURST} requests admitted just before"));
        }
        let stopped = servers.map(Server::stop);
        self.note_stops(&stopped);
        self.store.set(Weather::Clear);
        let servers = [0, 1].map(|nth| self.places[nth].start());
        let begin = Instant::now();
        for server in &servers {
            let is_replaying = || {
                let ready = server.admin("/readyz");
                ready.status != 200 || ready.body.contains("being replayed")
            };
            while is_replaying() && begin.elapsed() < SETTLE {
                std::thread::sleep(Duration::from_millis(100));
            }
            self.shared.findings.check(!is_replaying(), "a spool is not replayed in time");
        }
        self.settle(&servers);
        let again = servers.map(Server::stop);
        self.note_stops(&again);
        let [[a, b], [c, d]] = [stopped, again].map(|pair| pair.map(|stopped| stopped.log));
        [[a, c].concat(), [b, d].concat()]
    }

    /// Posts what can only go to the spool; gives the number of requests that were admitted.
    fn burst(&self, nth: usize, server: &Server) -> usize {
        let (mut writer, mut admitted) = (self.writer(2 + nth), 0);
        for at in 0..BURST {
            let ack = ACKS[at % 2];
            let (request, numbers) = writer.request(ack, GOOD_TOKEN, false);
            admitted += usize::from(self.post(server, &writer, ack, request, numbers));
        }
        self.shared.findings.check(admitted > 0, "nothing of the last burst was admitted");
        admitted
    }

    /// One more client; `number` tells its draws from those of others.
    fn writer(&self, number: usize) -> Writer {
        let client = self.shared.ledger.lock().unwrap().client();
        let rng = fastrand::Rng::with_seed(self.seed + 3 + number as u64);
        Writer { client, next: 0, rng }
    }

    /// Posts `request` on a connection of its own; whether the answer is 200.
    fn post(
        &self,
        server: &Server,
        writer: &Writer,
        ack: Ack,
        request: Request,
        numbers: Range<u32>,
    ) -> bool {
        self.shared.sent(writer.client, &numbers);
        let mut connection = server.connect();
        connection.send(request.bytes());
        let status = connection.reply().status;
        self.shared.told(writer.client, numbers, ack.told(status));
        status == 200
    }

    fn note_stops(&mut self, stopped: &[Stopped; 2]) {
        for (name, stopped) in NAMES.iter().zip(stopped) {
            let Stopped { status, accepted, stored, dead_lettered, lost, took, .. } = stopped;
            self.report.line(format!(
                "- {name} stopped with status {status} after {took:?}: accepted {accepted}, \
                 stored {stored}, dead-lettered {dead_lettered}, lost {lost}"
            ));
            let well = *status == 0 && *lost == 0;
            self.shared.findings.check(well, &format!("{name} stopped with {status}, lost {lost}"));
        }
    }

    /// Dead letters are read, then replayed into a store that now takes them.
    fn replay(&mut self) {
        for place in &self.places {
            for object in servers::dead_letters(place.dir.path()) {
                let Some(ids) = crate::store::payloads(&object) else {
                    self.shared.findings.add("a dead letter that is not what was sent");
                    continue;
                };
                let mut ledger = self.shared.ledger.lock().unwrap();
                ids.into_iter().for_each(|id| ledger.dead(id));
            }
        }
        self.check_account("before the replay of dead letters");
        self.store.take_poison();
        for place in &self.places {
            let output = place.run(&["dead-letter", "replay"]);
            let text = String::from_utf8_lossy(&output.stderr);
            let well = output.status.success();
            self.shared.findings.check(well, &format!("{}: replay failed: {text}", place.name));
        }
        self.shared.ledger.lock().unwrap().forget_dead();
        self.check_account("at the end");
    }

    fn check_account(&mut self, when: &str) {
        let ledger = self.shared.ledger.lock().unwrap();
        let account = ledger.account();
        self.report.account(when, &account);
        let Account { missing, unconfirmed, refused_found, .. } = account;
        let findings = &self.shared.findings;
        if missing > 0 {
            let first = ledger.first_missing(10);
            findings.add(format!("{when}: {missing} acknowledged payloads are nowhere: {first:?}"));
        }
        let text = format!("{when}: {unconfirmed} payloads are not stored after a 200 for stored");
        findings.check(unconfirmed == 0, &text);
        let text = format!("{when}: {refused_found} refused payloads are found");
        findings.check(refused_found == 0, &text);
    }

    fn finish(mut self) -> Vec<String> {
        let (put_again, second_key, objects) = {
            let ledger = self.shared.ledger.lock().unwrap();
            (ledger.put_again, ledger.second_key, ledger.objects)
        };
        self.report.line(format!(
            "- {objects} objects; put again under the same key: {put_again}; payloads under a \
             second key: {second_key}"
        ));
        self.report.table();
        self.report.clients(&self.shared.stats.lock().unwrap(), &self.watch);
        self.report.faults(self.store.faults());
        self.report.peaks(&self.watch);
        let found = self.shared.findings.lines();
        self.report.head("Findings");
        let none = vec!["none".to_owned()];
        for line in if found.is_empty() { &none } else { &found } {
            self.report.line(format!("- {line}"));
        }
        println!("{}", self.report.text);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/target/soak-report.md");
        std::fs::write(path, &self.report.text).expect("target is there");
        found
    }
}
