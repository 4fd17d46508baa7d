//! The report: what was run, a row a minute, the account of payloads, and what was found.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::good::{ACKS, classes};
use crate::ledger::Account;
use crate::servers::NAMES;
use crate::store::Faults;
use crate::watch::{Look, Stats, Watch, median_resident};

const MIB: f64 = (1 << 20) as f64;

/// One minute of the load, or what a short run has instead.
pub struct Minute {
    pub statuses: BTreeMap<u16, u64>,
    pub latencies: [[f64; 2]; 3],
    pub looks: [Vec<Look>; 2],
    pub length: Duration,
    /// Resident memory of the test itself.
    pub own: u64,
}

#[derive(Default)]
pub struct Report {
    pub text: String,
    pub minutes: Vec<Minute>,
}

impl Report {
    pub fn line(&mut self, text: impl AsRef<str>) {
        self.text.push_str(text.as_ref());
        self.text.push('\n');
    }

    pub fn head(&mut self, text: &str) {
        self.line(format!("\n## {text}\n"));
    }

    /// What the good clients reached in the closed loop, and at what rate they go on.
    pub fn rates(&mut self, capacity: &[f64], rates: &[f64]) {
        self.head("Requests a second of good clients");
        self.line("| server | transport | ack | closed loop | 70 % of it |\n|---|---|---|---|---|");
        for ((class, all), rate) in classes().iter().zip(capacity).zip(rates) {
            let (name, ack) = (NAMES[class.server], class.ack.name());
            self.line(format!("| {name} | {:?} | {ack} | {all:.1} | {rate:.1} |", class.transport));
        }
        let sums = [capacity, rates].map(|each| each.iter().sum::<f64>());
        self.line(format!("| all | | | {:.1} | {:.1} |", sums[0], sums[1]));
    }

    pub fn table(&mut self) {
        self.head("Good clients and servers, by minute");
        let acks = ACKS.map(|ack| format!("{} p50 ms | p99 | ", ack.name())).concat();
        let servers = NAMES.map(|name| format!("{name} MiB | fds | conns | spool MiB | ")).concat();
        self.line(format!("| minute | 200/s | {acks}503 % | others % | {servers}test MiB |"));
        self.line(format!("|{}", "---|".repeat(2 + 6 + 2 + 8 + 1)));
        for at in 0..self.minutes.len() {
            self.line(row(at + 1, &self.minutes[at]));
        }
    }

    /// The newest row of the table.
    pub fn last_row(&self) -> String {
        self.minutes.last().map_or_else(String::new, |minute| row(self.minutes.len(), minute))
    }

    pub fn clients(&mut self, stats: &Stats, watch: &Watch) {
        self.head("Clients");
        let all: u64 = stats.all_statuses.values().sum();
        for (status, count) in &stats.all_statuses {
            let share = 100.0 * *count as f64 / all.max(1) as f64;
            let name = if *status == 0 { "no answer".to_owned() } else { status.to_string() };
            self.line(format!("- good clients, {name}: {count} ({share:.3} %)"));
        }
        self.line(format!("- requests left out, the client being behind: {}", stats.left_out));
        let vices: Vec<String> =
            stats.vices.iter().map(|(vice, rounds)| format!("{vice:?} {rounds}")).collect();
        self.line(format!("- rounds of the others: {}", vices.join(", ")));
        let (served, refused) = (stats.stranger_served, stats.stranger_refused);
        self.line(format!("- the token that comes and goes: {served} served, {refused} refused"));
        self.line(format!("- scrapes: {}", watch.scrapes));
    }

    pub fn faults(&mut self, faults: &Faults) {
        self.head("Faults of the store");
        for (name, count) in [
            ("refused (500, 503)", &faults.refused),
            ("reset", &faults.reset),
            ("silent", &faults.silent),
            ("slow", &faults.slow),
            ("poison refused", &faults.poisoned),
            ("connections reset by a restart", &faults.restarted),
        ] {
            self.line(format!("- {name}: {}", count.load(Relaxed)));
        }
    }

    pub fn peaks(&mut self, watch: &Watch) {
        self.head("Highest values of the gauges");
        self.line(format!("| gauge | {} | {} |\n|---|---|---|", NAMES[0], NAMES[1]));
        for (name, first) in &watch.peaks[0] {
            let second = watch.peaks[1].get(name).copied().unwrap_or(0);
            if *first > 0 || second > 0 {
                self.line(format!("| {name} | {first} | {second} |"));
            }
        }
    }

    pub fn account(&mut self, when: &str, account: &Account) {
        self.head(&format!("Payloads, {when}"));
        let Account { sent, admitted, confirmed, refused, open, open_stored, .. } = account;
        let Account { stored, dead, missing, unconfirmed, refused_found, .. } = account;
        self.line(format!(
            "- sent {sent}: {admitted} acknowledged ({confirmed} of them as stored), \
             {refused} refused, {open} open ({open_stored} of these are stored)"
        ));
        self.line(format!("- in the store {stored}, in dead letters {dead}"));
        self.line(format!(
            "- acknowledged and nowhere: {missing}; `stored` and not in the store: {unconfirmed}; \
             refused and found: {refused_found}"
        ));
    }
}

fn row(number: usize, minute: &Minute) -> String {
    let all: u64 = minute.statuses.values().sum();
    let count = |status| minute.statuses.get(&status).copied().unwrap_or(0);
    let share = |part: u64| 100.0 * part as f64 / all.max(1) as f64;
    let rate = count(200) as f64 / minute.length.as_secs_f64();
    let mut text = format!("| {number} | {rate:.0} | ");
    for [p50, p99] in minute.latencies {
        let _infallible = write!(text, "{p50:.1} | {p99:.0} | ");
    }
    let others = all - count(200) - count(503);
    let _infallible = write!(text, "{:.1} | {:.2} | ", share(count(503)), share(others));
    for looks in &minute.looks {
        let most = |of: fn(&Look) -> u64| looks.iter().map(of).max().unwrap_or(0);
        let resident = median_resident(looks) as f64 / MIB;
        let spool = most(|look| look.spool_bytes) as f64 / MIB;
        let full = if looks.iter().any(|look| look.spool_full) { " full" } else { "" };
        let (fds, connections) = (most(|look| look.descriptors), most(|look| look.connections));
        let figures = format!("{resident:.1} | {fds} | {connections} | {spool:.1}{full} | ");
        text.push_str(&figures);
    }
    let _infallible = write!(text, "{:.0} |", minute.own as f64 / MIB);
    text
}
