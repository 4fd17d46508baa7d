//! Cores, control and clients in simulated time, on the real boards, tables and keeper.

use std::collections::HashMap;
use std::time::Duration;

use super::*;
use crate::quota::table::{OVERFLOW, QuotaTable, QuotaVerdict, slots};
use crate::quota::{BURST_LEAST, Limit, TICK};

const BUCKETS: usize = 512;
const MS: Duration = Duration::from_millis(1);
const KEY: u64 = 0x1234_5678_9abc_def1;

struct Sim {
    tables: Vec<QuotaTable>,
    keeper: Keeper,
    now: Instant,
    next_tick: Instant,
    /// Time between two ticks, at least; `None`: control is stuck.
    ticks: Option<std::ops::Range<u64>>,
    rng: fastrand::Rng,
    /// A bucket that knows everything at once, per unit: its contents in nano-tokens.
    ideal: [i128; 2],
    ideal_at: Instant,
}

impl Sim {
    fn new(cores: usize, seed: u64) -> Sim {
        let start = Instant::now();
        let board = Arc::new(Board::new(cores, slots(BUCKETS), start));
        Sim {
            tables: (0..cores).map(|core| QuotaTable::new(board.clone(), core, BUCKETS)).collect(),
            keeper: Keeper::new(board),
            now: start,
            next_tick: start + TICK,
            ticks: Some(100..101),
            rng: fastrand::Rng::with_seed(seed),
            ideal: [0; 2],
            ideal_at: start,
        }
    }

    /// Lets time pass, with the ticks that fall into it.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(ticks) = self.ticks.clone()
            && self.next_tick <= end
        {
            self.now = self.next_tick.max(self.now);
            self.keeper.tick(self.now);
            self.next_tick = self.now + MS * self.rng.u32(ticks.start as u32..ticks.end as u32);
        }
        self.now = end;
    }

    /// A request on a core, which does not wait.
    fn ask(&mut self, core: usize, key: u64, quota: &Quota, bytes: i64) -> QuotaVerdict {
        let table = &self.tables[core];
        let id = table.find(key, quota, 1);
        table.want(id);
        let verdict = table.judge(id, self.now);
        if verdict == QuotaVerdict::Pass {
            table.spend(id, bytes);
        }
        verdict
    }

    /// A request of a key whose quota has this version.
    fn ask_as(&mut self, core: usize, key: u64, quota: &Quota, version: u64) -> QuotaVerdict {
        let table = &self.tables[core];
        let id = table.find(key, quota, version);
        table.want(id);
        let verdict = table.judge(id, self.now);
        if verdict == QuotaVerdict::Pass {
            table.spend(id, 0);
        }
        verdict
    }

    /// A request that waits as the server's do. Returns whether it passes.
    fn ask_patiently(&mut self, core: usize, key: u64, quota: &Quota) -> bool {
        let mut verdict = self.ask(core, key, quota, 0);
        let began = self.now;
        let id = self.tables[core].find(key, quota, 1);
        while verdict != QuotaVerdict::Pass {
            let first = self.now == began;
            let waits = if first {
                verdict == QuotaVerdict::Wait
            } else {
                self.tables[core].may_still_wait(id)
            };
            if !waits || self.now - began > MS * 400 {
                return false;
            }
            self.pass(MS * 10);
            verdict = self.tables[core].judge(id, self.now);
            if verdict == QuotaVerdict::Pass {
                self.tables[core].spend(id, 0);
            }
        }
        true
    }

    /// Takes `count` out of the bucket that knows everything. Returns its contents, in tokens
    /// rounded up.
    fn take_ideal(&mut self, unit: Unit, limit: Limit, count: i64) -> i64 {
        let at = unit as usize;
        let elapsed = (self.now - self.ideal_at).as_nanos() as i128;
        self.ideal_at = self.now;
        let per_token = i128::from(limit.per_s) * 1_000_000_000;
        let most = i128::from(limit.burst) * per_token;
        self.ideal[at] = (self.ideal[at] + elapsed * i128::from(limit.amount)).min(most);
        self.ideal[at] -= i128::from(count) * per_token;
        (self.ideal[at] + per_token - 1).div_euclid(per_token) as i64
    }

    /// Whole tokens in the bucket that knows everything.
    fn ideal_whole(&mut self, unit: Unit, limit: Limit) -> i64 {
        self.take_ideal(unit, limit, 0);
        let per_token = i128::from(limit.per_s) * 1_000_000_000;
        self.ideal[unit as usize].div_euclid(per_token) as i64
    }

    fn fill_ideal(&mut self, unit: Unit, limit: Limit) {
        let per_token = i128::from(limit.per_s) * 1_000_000_000;
        self.ideal[unit as usize] = i128::from(limit.burst) * per_token;
    }
}

fn requests(amount: u64, per_s: u64, burst: u64) -> Quota {
    Quota { requests: Some(Limit { amount, per_s, burst }), bytes: None }
}

fn seed() -> u64 {
    let seed = std::env::var("MILLRACE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLRACE_TEST_SEED={seed}");
    seed
}

/// Requests that pass between the seconds `from` and `to` of those that `cores` send in every
/// millisecond, `count` each.
fn passed(
    sim: &mut Sim,
    quota: &Quota,
    cores: &dyn Fn(u64) -> Vec<usize>,
    seconds: u64,
    count: usize,
) -> Vec<u64> {
    let mut by_second = vec![0; seconds as usize];
    for ms in 0..seconds * 1000 {
        for core in cores(ms) {
            for _ in 0..count {
                let passes = sim.ask(core, KEY, quota, 0) == QuotaVerdict::Pass;
                by_second[(ms / 1000) as usize] += u64::from(passes);
            }
        }
        sim.pass(MS);
    }
    by_second
}

/// Requests in a millisecond that are about twice the rate.
fn asked_for(amount: u64, per_s: u64) -> usize {
    (2 * amount / per_s / 1000 + 1) as usize
}

/// Rates with their bursts.
const RATES: [(u64, u64, u64); 7] = [
    (2, 1, 2),
    (10, 1, 10),
    (30, 60, 1),
    (333, 1, 333),
    (1000, 1, 1000),
    (1000, 1, 500),
    (5000, 1, 5000),
];

#[test]
fn one_busy_core_gets_the_whole_quota_and_all_cores_no_more() {
    for (cores, rates) in
        [(1, &RATES[..]), (2, &RATES), (3, &RATES[2..5]), (8, &RATES[2..5]), (64, &RATES[3..5])]
    {
        for (amount, per_s, burst) in rates.iter().copied() {
            let quota = requests(amount, per_s, burst);
            let wanted = 10.0 * amount as f64 / per_s as f64;
            for (name, busy) in [("one", 1), ("all", cores)] {
                let mut sim = Sim::new(cores, 1);
                let on = move |_| (0..busy).collect::<Vec<_>>();
                let count = asked_for(amount, per_s) / busy + 1;
                let got = passed(&mut sim, &quota, &on, 11, count);
                let got = got[1..].iter().sum::<u64>() as f64;
                // 30 a minute are five in ten seconds, or four and two on their way.
                let range = 0.95 * wanted - 1.0..=1.05 * wanted + 1.0;
                assert!(range.contains(&got), "{name} of {cores}, {quota:?}: {got} of {wanted}");
            }
        }
    }
}

#[test]
fn demand_that_moves_keeps_the_quota() {
    for cores in [2, 5] {
        for (amount, per_s, burst) in RATES {
            let quota = requests(amount, per_s, burst);
            let wanted = 20.0 * amount as f64 / per_s as f64;
            let mut sim = Sim::new(cores, 2);
            let on = move |ms: u64| vec![(ms / 1700) as usize % cores];
            let got = passed(&mut sim, &quota, &on, 21, asked_for(amount, per_s));
            let got = got[1..].iter().sum::<u64>() as f64;
            let range = 0.95 * wanted - 1.0..=1.05 * wanted + 1.0;
            assert!(range.contains(&got), "{cores}, {quota:?}: {got} of {wanted}");
        }
    }
}

/// Whatever clients do and however late control is, no window gets more than its rate and a burst.
#[test]
fn no_demand_gets_more_than_rate_and_burst() {
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..24 {
        let cores = rng.usize(1..9);
        let amount = 1 << rng.u32(0..13);
        let per_s = [1, 60, 3600][rng.usize(0..3)];
        let limit = Limit { amount, per_s, burst: 1 };
        let least = limit.in_time(BURST_LEAST).max(1);
        let limit = Limit { burst: least * rng.u64(1..6), ..limit };
        let quota = Quota { requests: Some(limit), bytes: None };
        let mut sim = Sim::new(cores, seed ^ round);
        sim.fill_ideal(Unit::Requests, limit);
        sim.ticks = Some([100..101, 60..300, 1..700][rng.usize(0..3)].clone());
        let mut busy = vec![0_u32; cores];
        for _ in 0..2_000 {
            if rng.u8(..) < 4 {
                let most = [0, 2, 10, 60][rng.usize(0..4)];
                busy[rng.usize(..cores)] = most;
            }
            for (core, most) in busy.clone().into_iter().enumerate() {
                let count = if most == 0 { 0 } else { rng.u32(0..most) };
                for _ in 0..count {
                    if sim.ask(core, KEY, &quota, 0) == QuotaVerdict::Pass {
                        let left = sim.take_ideal(Unit::Requests, limit, 1);
                        assert!(left >= 0, "round {round}: {cores} cores, {limit:?}, {left}");
                    }
                }
            }
            if rng.u16(..) < 20 {
                let core = rng.usize(..cores);
                sim.sweep(core);
            }
            sim.pass(MS * rng.u32(0..8));
        }
    }
}

#[test]
fn a_first_request_passes_on_every_core_and_a_second_one_too_many_on_none() {
    for cores in [1, 2, 4, 16] {
        for first in 0..cores {
            for key in [KEY, KEY + 1, KEY + 2] {
                let quota = requests(1, 60, 1);
                let mut sim = Sim::new(cores, 3);
                assert!(sim.ask_patiently(first, key, &quota), "{first} of {cores}");
                for other in 0..cores {
                    assert!(!sim.ask_patiently(other, key, &quota), "{other} after {first}");
                }
                // After a minute there is one again, for whoever comes.
                sim.pass(Duration::from_secs(60));
                let other = (first + 1) % cores;
                assert!(sim.ask_patiently(other, key, &quota), "{other} a minute after {first}");
                assert!(!sim.ask_patiently(first, key, &quota));
            }
        }
    }
}

/// A client far below its quota is never refused, whichever core it comes to. Far, because a bucket
/// that is spread over cores loses what comes between a tick and a request that makes room for it.
#[test]
fn whoever_stays_below_the_quota_is_never_refused() {
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    for (amount, per_s, burst) in [(2, 1, 2), (10, 1, 10), (100, 1, 100), (60, 60, 3), (1, 1, 1)] {
        let quota = requests(amount, per_s, burst);
        let limit = quota.requests.unwrap();
        let mut sim = Sim::new(4, seed);
        sim.fill_ideal(Unit::Requests, limit);
        for n in 0..300 {
            sim.pass(MS * rng.u32(20..2_000 * per_s as u32 * 2 / amount as u32 + 500));
            // The bucket that knows everything has a whole second one, and has had its last one for
            // some ticks.
            if sim.ideal_whole(Unit::Requests, limit) < 2.min(burst as i64) {
                sim.pass(Duration::from_secs(2 * per_s / amount + 1));
            }
            sim.pass(TICK * 5);
            sim.take_ideal(Unit::Requests, limit, 1);
            let core = rng.usize(..4);
            assert!(sim.ask_patiently(core, KEY, &quota), "{n} on {core}: {quota:?}");
        }
    }
}

#[test]
fn bodies_may_be_larger_than_what_is_left_and_are_owed() {
    const MIB: u64 = 1 << 20;
    for cores in [1, 2, 4] {
        for body in [1000, 65_536, MIB, 4 * MIB] {
            let limit = Limit { amount: 5 * MIB, per_s: 1, burst: 5 * MIB };
            let quota = Quota { requests: None, bytes: Some(limit) };
            let mut sim = Sim::new(cores, 4);
            let mut bytes = 0;
            for ms in 0..21_000 {
                for core in 0..cores {
                    while sim.ask(core, KEY, &quota, body as i64) == QuotaVerdict::Pass {
                        bytes += if ms >= 1000 { body } else { 0 };
                    }
                }
                sim.pass(MS);
            }
            let share = bytes as f64 / (20 * 5 * MIB) as f64;
            assert!((0.95..=1.05).contains(&share), "{cores} cores, bodies of {body}: {share}");
        }
    }
    // Larger than the burst: passes while there is anything, and then the rate repays it.
    let quota =
        Quota { requests: None, bytes: Some(Limit { amount: 1000, per_s: 1, burst: 1000 }) };
    let mut sim = Sim::new(2, 4);
    assert_eq!(sim.ask(0, KEY, &quota, 10_000), QuotaVerdict::Pass);
    let mut waited = 0;
    while sim.ask(0, KEY, &quota, 0) != QuotaVerdict::Pass {
        sim.pass(MS * 100);
        waited += 1;
    }
    assert!((90..=94).contains(&waited), "{waited} × 100 ms");
}

#[test]
fn a_body_is_charged_for_what_it_is() {
    let quota = Quota { requests: None, bytes: Some(Limit { amount: 100, per_s: 1, burst: 100 }) };
    let mut sim = Sim::new(1, 5);
    let id = sim.tables[0].find(KEY, &quota, 1);
    sim.tables[0].want(id);
    sim.tables[0].open(id, 1_000);
    assert_ne!(sim.ask(0, KEY, &quota, 0), QuotaVerdict::Pass, "as announced");
    sim.pass(MS * 200);
    sim.tables[0].correct(id, -990);
    sim.pass(MS * 200);
    assert_eq!(sim.ask(0, KEY, &quota, 0), QuotaVerdict::Pass, "as it was");
}

/// A bucket may be full again before a slow body, which its quota was not charged for, is whole.
#[test]
fn a_body_on_its_way_is_owed_however_many_others_come() {
    let quota = Quota { requests: None, bytes: Some(Limit { amount: 100, per_s: 1, burst: 100 }) };
    let mut sim = Sim::new(1, 5);
    let id = sim.tables[0].find(KEY, &quota, 1);
    sim.tables[0].want(id);
    sim.tables[0].open(id, 0);
    sim.pass(Duration::from_secs(2));
    for _ in 0..3 {
        sim.sweep(0);
        sim.pass(MS * 200);
    }
    // Nor do others get its slot.
    for n in 0..3 * BUCKETS as u64 {
        sim.ask(0, key_of(n), &quota, 0);
        if n % 16 == 0 {
            sim.pass(MS * 200);
        }
    }
    assert!(sim.tables[0].is_current(id));
    sim.tables[0].correct(id, 10_000);
    sim.pass(Duration::from_secs(50));
    assert_ne!(sim.ask(0, KEY, &quota, 0), QuotaVerdict::Pass, "owed");
    sim.pass(Duration::from_secs(51));
    assert_eq!(sim.ask(0, KEY, &quota, 0), QuotaVerdict::Pass, "repaid");
    // Then it is as others are.
    sim.pass(Duration::from_secs(2));
    for _ in 0..3 {
        sim.sweep(0);
        sim.pass(MS * 200);
    }
    assert!(!sim.tables[0].is_current(id));
    // A request that has waited for so long charges and keeps nobody else's.
    let other = sim.tables[0].find(key_of(9_999), &quota, 1);
    sim.tables[0].open(id, 1_000);
    sim.tables[0].correct(id, -1_000);
    assert!(sim.tables[0].is_current(other));
}

/// A core that ends, or hangs, with tokens in hand keeps them from nobody.
#[test]
fn a_core_that_dies_leaves_its_share() {
    let quota = requests(1000, 1, 1000);
    let mut sim = Sim::new(2, 6);
    passed(&mut sim, &quota, &|_| vec![0, 1], 3, 4);
    sim.pass(Duration::from_secs(2));
    let got = passed(&mut sim, &quota, &|_| vec![0], 11, 4);
    let share = got[1..].iter().sum::<u64>() as f64 / 10_000.0;
    assert!((0.95..=1.05).contains(&share), "{share}");
}

/// Without control each core has an equal share, and what it spends is settled afterwards.
#[test]
fn without_control_cores_have_equal_shares() {
    let quota = requests(1000, 1, 1000);
    let limit = quota.requests.unwrap();
    let mut sim = Sim::new(2, 7);
    sim.fill_ideal(Unit::Requests, limit);
    passed(&mut sim, &quota, &|_| vec![0], 2, 4);
    sim.ticks = None;
    let one = passed(&mut sim, &quota, &|_| vec![0], 6, 4);
    assert!(one[2..].iter().all(|count| (475..=525).contains(count)), "{one:?}");
    let both = passed(&mut sim, &quota, &|_| vec![0, 1], 4, 4);
    let sum: u64 = both[1..].iter().sum();
    assert!((2_900..=3_100).contains(&sum) || both[0] > 1_000, "{both:?}");
    assert!(
        both[1..].iter().all(|count| (950..=1_050).contains(count) || *count > 1_050),
        "{both:?}"
    );
    // Control is back.
    sim.ticks = Some(100..101);
    sim.next_tick = sim.now + TICK;
    let after = passed(&mut sim, &quota, &|_| vec![0], 11, 4);
    let share = after[1..].iter().sum::<u64>() as f64 / 10_000.0;
    assert!((0.95..=1.05).contains(&share), "{after:?}");
}

#[test]
fn slow_rates_come_without_control_too() {
    let quota = requests(2, 1, 2);
    let mut sim = Sim::new(2, 8);
    sim.ticks = None;
    let got = passed(&mut sim, &quota, &|_| vec![0, 1], 11, 1);
    let sum: u64 = got[1..].iter().sum();
    assert!((17..=21).contains(&sum), "{got:?}");
}

/// A name whose quota has changed may be used on a core that has no slot for it yet.
#[test]
fn another_quota_holds_from_its_next_use_on_any_core() {
    let of = |amount, burst| requests(amount, 1, burst);
    for (from, to, seconds_of_new) in
        [(of(1000, 1000), of(10, 10), 10), (of(10, 10), of(200, 200), 200)]
    {
        for same_tick in [false, true] {
            for (first, next) in [(0, 1), (1, 0)] {
                let mut sim = Sim::new(2, 12);
                let drain = |sim: &mut Sim, core: usize, quota: &Quota, version| {
                    let table = &sim.tables[core];
                    let id = table.find(KEY, quota, version);
                    let mut count = 0;
                    for _ in 0..60 {
                        table.want(id);
                        if table.judge(id, sim.now) == QuotaVerdict::Pass {
                            table.spend(id, 0);
                            count += 1;
                        }
                    }
                    count
                };
                drain(&mut sim, first, &from, 1);
                if !same_tick {
                    sim.pass(MS * 500);
                }
                for _ in 0..50 {
                    drain(&mut sim, next, &to, 2);
                    sim.pass(MS * 100);
                }
                let count: u64 = (0..100)
                    .map(|_| {
                        let count = drain(&mut sim, next, &to, 2);
                        sim.pass(MS * 100);
                        count
                    })
                    .sum();
                let wanted = 10 * seconds_of_new;
                assert!(
                    (wanted * 9 / 10..=wanted * 105 / 100 + 1).contains(&count),
                    "{from:?} to {to:?}, {first} {next} {same_tick}: {count} of {wanted}"
                );
            }
        }
    }
}

#[test]
fn another_quota_is_no_fresh_burst_and_forgives_nothing() {
    let mut sim = Sim::new(2, 9);
    let quota = requests(100, 1, 100);
    let drain = |sim: &mut Sim, quota: &Quota, version| {
        let mut count = 0;
        for core in 0..2 {
            let id = sim.tables[core].find(KEY, quota, version);
            for _ in 0..5_000 {
                sim.tables[core].want(id);
                if sim.tables[core].judge(id, sim.now) == QuotaVerdict::Pass {
                    sim.tables[core].spend(id, 0);
                    count += 1;
                }
            }
        }
        count
    };
    for _ in 0..5 {
        drain(&mut sim, &quota, 1);
        sim.pass(MS * 100);
    }
    // A reload every 100 ms, with one of two quotas in turn: nobody gets more than the higher rate.
    let mut count = 0;
    for version in 2..102 {
        let quota = requests(100, 1, if version % 2 == 0 { 100 } else { 1000 });
        count += drain(&mut sim, &quota, version);
        sim.pass(MS * 100);
    }
    assert!((900..=1_100).contains(&count), "{count}");
    // What is no longer limited passes, and is limited again later.
    let none = Quota::default();
    assert!(drain(&mut sim, &none, 200) < 10_000);
    sim.pass(MS * 200);
    assert_eq!(drain(&mut sim, &none, 200), 10_000);
    drain(&mut sim, &quota, 201);
    sim.pass(MS * 200);
    let mut count = 0;
    for _ in 0..100 {
        count += drain(&mut sim, &quota, 201);
        sim.pass(MS * 100);
    }
    assert!((900..=1_150).contains(&count), "{count}");
}

/// More keys than there is room for: those that owe something are not forgotten, the others make
/// room, and beyond that keys share buckets.
#[test]
fn a_full_table_forgets_nobody_who_owes() {
    let quota = requests(1, 60, 1);
    let mut sim = Sim::new(1, 10);
    let key = |n: u64| (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 60;
    let owing: Vec<u64> = (0..BUCKETS as u64 / 2).map(key).collect();
    for key in &owing {
        assert_eq!(sim.ask(0, *key, &quota, 0), QuotaVerdict::Pass);
    }
    sim.pass(MS * 200);
    // Keys that only look: full at once.
    for n in 1_000..1_000 + BUCKETS as u64 / 2 {
        sim.tables[0].find(key(n), &quota, 1);
    }
    assert_eq!(sim.tables[0].buckets_used(), BUCKETS);
    sim.pass(MS * 200);
    // They give way to others, …
    let mut passed = 0;
    for n in 10_000..10_000 + BUCKETS as u64 {
        passed += u32::from(sim.ask(0, key(n), &quota, 0) == QuotaVerdict::Pass);
        if n % 32 == 0 {
            sim.pass(MS * 200);
        }
    }
    assert!(sim.tables[0].overflowed() > 0);
    // … of which those that came too late share.
    assert!(passed as usize >= BUCKETS / 2, "{passed}");
    assert!(passed as usize <= BUCKETS / 2 + OVERFLOW, "{passed}");
    assert!(sim.tables[0].buckets_used() <= slots(BUCKETS));
    for key in &owing {
        assert_ne!(sim.ask(0, *key, &quota, 0), QuotaVerdict::Pass, "still owes");
    }
    // In the end nothing is left of them.
    sim.pass(Duration::from_secs(120));
    for _ in 0..3 {
        sim.sweep(0);
        sim.pass(MS * 200);
    }
    assert_eq!(sim.tables[0].buckets_used(), sim.tables[0].overflow_len());
    assert_eq!(sim.keeper.len(), sim.tables[0].overflow_len());
}

/// Fills the table of a core with keys that owe.
fn fill(sim: &mut Sim, core: usize) {
    let quota = requests(1, 3600, 1);
    (0..BUCKETS as u64).for_each(|n| _ = sim.ask(core, key_of(1_000_000 + n), &quota, 0));
}

/// Keys that found the table full share buckets only with keys of the same quota.
#[test]
fn shared_buckets_are_of_one_quota() {
    let mut sim = Sim::new(1, 14);
    fill(&mut sim, 0);
    let (slow, fast) = (requests(1, 3600, 1), requests(1_000_000, 1, 1_000_000));
    let (mut slow_passed, mut fast_refused) = (0, 0);
    for n in 0..2_000 {
        let id = sim.tables[0].find(key_of(n), &slow, 1);
        sim.tables[0].want(id);
        if sim.tables[0].judge(id, sim.now) == QuotaVerdict::Pass {
            sim.tables[0].spend(id, 0);
            slow_passed += 1;
        }
        let id = sim.tables[0].find(key_of(n), &fast, 2);
        sim.tables[0].want(id);
        match sim.tables[0].judge(id, sim.now) {
            QuotaVerdict::Pass => sim.tables[0].spend(id, 0),
            _ => fast_refused += 1,
        }
        sim.pass(MS * 10);
    }
    // There are too few slots for twice as many buckets: then the strictest quota holds.
    assert!(slow_passed <= OVERFLOW, "{slow_passed}");
    assert!(fast_refused < 2_000, "{fast_refused}");
    // With few keys there are enough.
    let mut sim = Sim::new(2, 15);
    for core in 0..2 {
        fill(&mut sim, core);
    }
    for n in 0..100 {
        sim.ask_as(n as usize % 2, key_of(n), &slow, 1);
        for _ in 0..20 {
            assert_eq!(sim.ask_as(n as usize % 2, key_of(n), &fast, 2), QuotaVerdict::Pass, "{n}");
        }
        sim.pass(MS * 110);
    }
    // A shared bucket that is full again is given to another quota.
    for version in 3..1_000 {
        let quota = requests(1_000 + version, 1, 1_000 + version);
        sim.pass(MS * 110);
        for _ in 0..20 {
            let verdict = sim.ask_as(0, key_of(version), &quota, version);
            assert_eq!(verdict, QuotaVerdict::Pass, "{version}");
        }
    }
}

/// Keys with more quotas than can be shared separately get the strictest, never a laxer one.
#[test]
fn more_quotas_than_shared_buckets_get_the_strictest() {
    let mut sim = Sim::new(1, 16);
    fill(&mut sim, 0);
    let mut passed = 0;
    for n in 0..5_000 {
        // Each has another quota, of one an hour.
        let bytes = Some(Limit { amount: 1_000_000 + n, per_s: 1, burst: 1_000_000 + n });
        let quota = Quota { bytes, ..requests(1, 3600, 1) };
        passed += usize::from(sim.ask_as(0, key_of(n), &quota, n + 1) == QuotaVerdict::Pass);
    }
    assert_eq!(passed, OVERFLOW);
    let (one, other) = (requests(60, 60, 7), requests(2, 1, 5));
    assert_eq!(one.strictest(&other), requests(60, 60, 5));
    assert_eq!(other.strictest(&one), requests(60, 60, 5));
    assert_eq!(one.strictest(&Quota::default()), one);
    assert_eq!(Quota::default().strictest(&one), one);
}

/// Whatever counts cores write, control goes on.
#[test]
fn no_counts_of_cores_stop_control() {
    let limit = Some(Limit { amount: 1 << 40, per_s: 1, burst: 1 << 40 });
    let quota = Quota { requests: limit, bytes: limit };
    let extremes = [i64::MAX, i64::MIN, i64::MAX / 2, i64::MIN / 2, 1, -1];
    for first in extremes {
        for second in extremes {
            let mut sim = Sim::new(2, 17);
            for core in 0..2 {
                let id = sim.tables[core].find(KEY, &quota, 1);
                for bytes in [first, second, first, first] {
                    sim.tables[core].want(id);
                    sim.tables[core].spend(id, bytes);
                    sim.pass(MS * 100);
                }
            }
            sim.pass(Duration::from_secs(5));
        }
    }
}

#[test]
fn keys_do_not_disturb_each_other() {
    let mut sim = Sim::new(3, 11);
    let mut counts: HashMap<u64, u64> = HashMap::new();
    for ms in 0..5_000 {
        for key in 0..20 {
            let quota = requests(10 * (key + 1), 1, 10 * (key + 1));
            let key = KEY.wrapping_mul(key + 1);
            let table = &sim.tables[(ms as usize + key as usize) % 3];
            let id = table.find(key, &quota, key);
            table.want(id);
            if table.judge(id, sim.now) == QuotaVerdict::Pass {
                table.spend(id, 0);
                *counts.entry(key).or_default() += 1;
            }
        }
        sim.pass(MS);
    }
    for n in 0..20 {
        let count = counts[&KEY.wrapping_mul(n + 1)] as f64;
        let wanted = (10 * (n + 1) * 6) as f64;
        assert!((0.9 * wanted..=1.02 * wanted).contains(&count), "{n}: {count} of {wanted}");
    }
}

/// Keys that differ in all their bits.
fn key_of(n: u64) -> u64 {
    (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 60
}

impl Sim {
    /// Looks at all slots of a core, so that those are freed that nobody has asked for since the
    /// last time and whose buckets are full.
    fn sweep(&self, core: usize) {
        (0..60).for_each(|_| self.tables[core].sweep());
    }

    /// A bucket that knows everything for each key: none gets more than another burst beyond it.
    fn ask_counted(&mut self, core: usize, key: u64, limit: Limit, ideals: &mut Ideals) {
        let quota = Quota { requests: Some(limit), bytes: None };
        if self.ask(core, key, &quota, 0) != QuotaVerdict::Pass {
            return;
        }
        let full = f64::from(u32::try_from(limit.burst).unwrap());
        let (left, at) = ideals.entry(key).or_insert((full, self.now));
        let rate = limit.amount as f64 / limit.per_s as f64;
        *left = (*left + (self.now - *at).as_secs_f64() * rate).min(full) - 1.0;
        *at = self.now;
        // A core that gives up its slot and claims its part again before control has seen that may
        // have it twice; it is owed.
        assert!(*left > -full - 0.001, "{key:x}: {left} of {limit:?}");
    }
}

type Ideals = HashMap<u64, (f64, Instant)>;

/// A key that returns after its slot was freed and before control has looked gets another slot,
/// which control may look at before or after the one that it had.
#[test]
fn keys_that_return_in_another_slot_are_found_there() {
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let quota = requests(1, 60, 1);
    for cores in [1, 3] {
        let mut sim = Sim::new(cores, seed);
        let mut order: Vec<u64> = (0..200).collect();
        for round in 0..6 {
            for n in &order {
                let core = (*n as usize + round) % cores;
                assert!(sim.ask_patiently(core, key_of(*n), &quota), "{n} in round {round}");
            }
            sim.pass(MS * 200);
            assert_eq!(sim.keeper.len(), order.len());
            for n in &order {
                for core in 0..cores {
                    let verdict = sim.ask(core, key_of(*n), &quota, 0);
                    assert_ne!(verdict, QuotaVerdict::Pass, "{n} on {core} in round {round}");
                }
            }
            sim.pass(Duration::from_secs(120));
            for core in (0..cores).flat_map(|core| [core; 2]) {
                sim.sweep(core);
            }
            assert!(sim.tables.iter().all(|table| table.buckets_used() == 0));
            match round {
                0 => order.reverse(),
                _ => rng.shuffle(&mut order),
            }
        }
    }
}

/// A sweep takes as long as one slot in sixty, and frees none that was asked for within a minute.
#[test]
fn sweeps_are_short_and_leave_what_was_used_lately() {
    for keys in [1, 59, 60, 61, 500] {
        let quota = requests(1, 1, 1);
        let mut sim = Sim::new(1, 13);
        for n in 0..keys {
            sim.ask(0, key_of(n), &quota, 0);
        }
        sim.pass(Duration::from_secs(2));
        let mut second = || {
            let before = sim.tables[0].buckets_used();
            sim.tables[0].sweep();
            // One that is used goes on.
            sim.ask(0, key_of(keys - 1), &quota, 0);
            sim.pass(Duration::from_secs(1));
            before.saturating_sub(sim.tables[0].buckets_used())
        };
        // The first looks only note what was asked for.
        assert_eq!((0..60).map(|_| second()).sum::<usize>(), 0, "{keys}");
        let freed: Vec<usize> = (0..60).map(|_| second()).collect();
        assert_eq!(freed.iter().sum::<usize>() as u64, keys - 1);
        assert!(freed.iter().all(|count| *count as u64 <= keys / 60 + 1), "{keys}: {freed:?}");
    }
}

/// Many keys in a small table, whose slots are freed and given to others all the time.
#[test]
fn no_key_of_many_gets_more_than_its_quota() {
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..12 {
        let cores = rng.usize(1..5);
        let keys = [20, 300, 700, 1500][rng.usize(0..4)];
        let amount = rng.u64(1..20);
        let limit = Limit { amount, per_s: 1, burst: amount * rng.u64(1..4) };
        let mut sim = Sim::new(cores, seed ^ round);
        sim.ticks = Some([100..101, 60..300, 1..700][rng.usize(0..3)].clone());
        let mut ideals = Ideals::new();
        for _ in 0..600 {
            let first = rng.u64(0..keys);
            let count = rng.u64(0..60);
            let down = rng.bool();
            for n in 0..count {
                let n = if down { count - n } else { n };
                let key = key_of((first + n) % keys);
                for _ in 0..rng.u8(1..4) {
                    sim.ask_counted(rng.usize(..cores), key, limit, &mut ideals);
                }
            }
            if rng.u8(..) < 60 {
                sim.sweep(rng.usize(..cores));
            }
            sim.pass(MS * rng.u32(0..200));
        }
        // In the end control knows nothing that cores do not.
        sim.pass(Duration::from_secs(120));
        for core in (0..cores).flat_map(|core| [core; 3]) {
            sim.sweep(core);
        }
        sim.pass(MS * 2_000);
        let shared = sim.tables.iter().map(QuotaTable::overflow_len).sum::<usize>();
        assert!(sim.keeper.len() <= shared, "round {round}");
    }
}
