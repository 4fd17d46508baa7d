//! A good client beside an attack.
//!
//! The good client posts small collections on a fixed schedule, in turn on a connection that it
//! keeps and on one of its own, and checks every answer. An attack is an entry of a table with its
//! rate and the connections it may hold. No latency is asserted here, where the build is not
//! optimised and the machine is shared: `cargo bench --bench attacks` measures. What is asserted is
//! that no good request fails, that every payload is counted once, and that nothing is left behind.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::ClientConfig;

use crate::support::h2::H2Client;
use crate::support::tls::{HOST, TlsClient};
use crate::support::{Client, PATIENCE, Reply, Server, request};

/// How long an attack goes on, unless it says otherwise.
pub const ATTACK_TIME: Duration = Duration::from_millis(1200);

/// Between two requests of the good client.
const GOOD_PERIOD: Duration = Duration::from_millis(20);

/// Below the shortest deadline of these scenarios. A good client that did not run for as long has
/// been silent on its connection, and may find it closed.
const SILENT_MAX: Duration = Duration::from_millis(400);

/// Payloads of one request of the good client.
pub const GOOD_PAYLOADS: u64 = 2;

const GOOD_ANSWER: &str = r#"{"accepted":2,"ack":"queued"}"#;

/// One way to be a bad client.
pub struct Attack {
    pub name: &'static str,
    /// How many connections it holds or opens at a time; what that means is up to `run`.
    pub connections: usize,
    /// [`Raid::turn`]s a second: requests, connections or pieces.
    pub per_second: u32,
    /// Attacks until [`Raid::turn`] says that it is over.
    pub run: fn(&mut Raid),
}

/// An attack that is going on.
pub struct Raid {
    pub server: SocketAddr,
    pub connections: usize,
    /// How clients connect that speak TLS, version 1.3 and 1.2.
    pub tls: Option<[Arc<ClientConfig>; 2]>,
    /// Payloads of the attack that were acknowledged, or must have been.
    pub accepted: u64,
    turns: u64,
    period: Duration,
    started: Instant,
    ends: Instant,
}

impl Raid {
    /// Waits until the next turn is due; false when the attack is over. A late attacker does not
    /// catch up: the rate is an upper bound.
    pub fn turn(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.ends {
            return false;
        }
        let due = self.started + self.period * self.turns as u32;
        match due.checked_duration_since(now) {
            Some(wait) => std::thread::sleep(wait),
            None => self.started += now - due,
        }
        self.turns += 1;
        true
    }

    /// A turn after the end, for an attack of which nothing was seen to happen yet: the machine may
    /// be busy. False when it is far too late.
    pub fn extra_turn(&mut self) -> bool {
        std::thread::sleep(self.period);
        self.turns += 1;
        Instant::now() < self.ends + PATIENCE
    }

    /// A connection that waits for nothing: reads give up at once, and writes soon.
    pub fn connect(&self) -> Option<Client> {
        let client = Client::try_connect(self.server)?;
        client.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        client.stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        Some(client)
    }

    /// As many connections as the attack holds.
    pub fn connect_all(&self) -> Vec<Client> {
        (0..self.connections).filter_map(|_| self.connect()).collect()
    }
}

/// What the good client was given.
#[derive(Debug, Default)]
pub struct Served {
    /// Requests answered as they should be.
    pub answered: u64,
    /// What went wrong with the others.
    pub failures: Vec<String>,
    /// From when each request was due to its answer, ascending.
    pub latencies: Vec<Duration>,
}

impl Served {
    /// The latency that `part` (0 to 1) of the requests did not exceed.
    pub fn quantile(&self, part: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * part) as usize).copied().unwrap_or_default()
    }
}

/// A client that does everything right, in a thread of its own.
pub struct GoodClient {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Served>,
}

impl GoodClient {
    /// Starts to post with `headers`, each ended by CRLF.
    pub fn start(server: SocketAddr, headers: &'static str) -> GoodClient {
        GoodClient::start_with(headers, move || Client::try_connect(server))
    }

    /// The same on connections that `connect` makes.
    fn start_with<C: GoodConnection>(
        headers: &'static str,
        connect: impl Fn() -> Option<C> + Send + 'static,
    ) -> GoodClient {
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let thread = std::thread::spawn(move || be_good(connect, headers, &stop));
        GoodClient { over, thread }
    }

    /// The client's last request is over when this returns.
    pub fn stop(self) -> Served {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("failures are counted, not panicked about")
    }
}

/// A connection of the good client.
trait GoodConnection {
    /// Sends a request; none: there is no whole answer.
    fn ask(&mut self, request: &[u8]) -> Option<Reply>;
}

impl GoodConnection for Client {
    fn ask(&mut self, request: &[u8]) -> Option<Reply> {
        self.try_request(request)
    }
}

impl GoodConnection for TlsClient {
    fn ask(&mut self, request: &[u8]) -> Option<Reply> {
        self.try_send(request).ok()?;
        self.try_reply()
    }
}

impl GoodConnection for H2Client {
    fn ask(&mut self, request: &[u8]) -> Option<Reply> {
        let body_at = request.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
        let answer = self.try_post(&request[body_at..])?;
        Some(Reply { status: answer.status, headers: Vec::new(), body: answer.body })
    }
}

fn be_good<C: GoodConnection>(
    connect: impl Fn() -> Option<C>,
    headers: &str,
    over: &AtomicBool,
) -> Served {
    let mut served = Served::default();
    let mut kept: Option<(C, Instant)> = None;
    let bytes = request(br#"{"data":[{"good":1},"good"]}"#, headers);
    let mut due = Instant::now();
    for turn in 0_u64.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let now = Instant::now();
        let (mut client, silent_since) = match if turn % 2 == 0 { kept.take() } else { None } {
            Some(kept) => kept,
            None => match connect() {
                Some(client) => (client, now),
                None => {
                    served.failures.push(format!("request {turn}: cannot connect"));
                    due += GOOD_PERIOD;
                    continue;
                }
            },
        };
        let silent = silent_since.elapsed();
        match client.ask(&bytes) {
            Some(reply) if reply.status == 200 && reply.body == GOOD_ANSWER => {
                served.answered += 1;
                served.latencies.push(due.elapsed());
                if turn % 2 == 0 {
                    kept = Some((client, Instant::now()));
                }
            }
            Some(reply) => served.failures.push(format!("request {turn}: {reply:?}")),
            None if silent > SILENT_MAX => {}
            None => served.failures.push(format!("request {turn}: no answer, or a cut one")),
        }
        due += GOOD_PERIOD;
    }
    served.latencies.sort_unstable();
    served
}

/// What an attack did and what the good client had of it.
pub struct Outcome {
    /// Payloads of the attack that were accepted.
    pub accepted: u64,
    pub good: Served,
}

/// Runs `attack` for [`ATTACK_TIME`] with a good client beside it.
///
/// # Panics
/// If the attack did not take place, or if one good request failed.
pub fn beside(server: &Server, attack: &Attack) -> Outcome {
    beside_for(server, attack, ATTACK_TIME)
}

/// The same with `headers` in every request of the good client, each ended by CRLF.
///
/// # Panics
/// As [`beside`].
pub fn beside_with(server: &Server, attack: &Attack, headers: &'static str) -> Outcome {
    run_beside(server, attack, ATTACK_TIME, headers)
}

/// The same for `time`.
///
/// # Panics
/// As [`beside`].
pub fn beside_for(server: &Server, attack: &Attack, time: Duration) -> Outcome {
    run_beside(server, attack, time, "")
}

fn run_beside(server: &Server, attack: &Attack, time: Duration, headers: &'static str) -> Outcome {
    run(server, attack, time, GoodClient::start(server.ingest, headers), None)
}

/// The same over TLS, the good client's 1.3.
///
/// # Panics
/// As [`beside`].
pub fn beside_secured(
    server: &Server,
    attack: &Attack,
    configs: &[Arc<ClientConfig>; 2],
    time: Duration,
) -> Outcome {
    let (address, config) = (server.ingest, configs[0].clone());
    let good = GoodClient::start_with("", move || {
        TlsClient::over(TcpStream::connect(address).ok()?, &config, HOST).ok()
    });
    run(server, attack, time, good, Some(configs.clone()))
}

/// The same with a good client that speaks HTTP/2, with prior knowledge.
///
/// # Panics
/// As [`beside`].
pub fn beside_over_h2(server: &Server, attack: &Attack, time: Duration) -> Outcome {
    let address = server.ingest;
    let good = GoodClient::start_with("", move || H2Client::try_connect(address));
    run(server, attack, time, good, None)
}

fn run(
    server: &Server,
    attack: &Attack,
    time: Duration,
    good: GoodClient,
    tls: Option<[Arc<ClientConfig>; 2]>,
) -> Outcome {
    let started = Instant::now();
    let mut raid = Raid {
        server: server.ingest,
        connections: attack.connections,
        tls,
        accepted: 0,
        turns: 0,
        period: Duration::from_secs(1) / attack.per_second,
        started,
        ends: started + time,
    };
    (attack.run)(&mut raid);
    let good = good.stop();
    let Attack { name, connections, per_second, .. } = attack;
    let first = &good.failures[..good.failures.len().min(3)];
    assert!(
        good.failures.is_empty(),
        "{name} ({connections} connections, {per_second} turns a second): {} of {} good requests \
         failed: {first:#?}",
        good.failures.len(),
        good.failures.len() as u64 + good.answered,
    );
    assert!(raid.turns > 0 && good.answered > 0, "{name}: nothing happened");
    // Shown with `--nocapture`.
    println!(
        "{name}: {} turns; good: {} answered, p50 {:?}, p99 {:?}, max {:?}",
        raid.turns,
        good.answered,
        good.quantile(0.5),
        good.quantile(0.99),
        good.quantile(1.0),
    );
    Outcome { accepted: raid.accepted, good }
}

/// Waits until every gauge is at zero and counts payloads: every one of the good client and of the
/// attacks once.
pub fn nothing_left(server: &Server, outcomes: &[Outcome]) {
    server.wait_idle();
    let good: u64 = outcomes.iter().map(|outcome| outcome.good.answered).sum();
    let attacks: u64 = outcomes.iter().map(|outcome| outcome.accepted).sum();
    let metrics = server.metrics();
    let accepted = metrics.sum("millrace_payloads_accepted_total");
    assert_eq!(accepted, good * GOOD_PAYLOADS + attacks);
    assert_eq!(metrics.sum("millrace_payloads_stored_total"), accepted);
}

/// Tells the attackers of a test to end when it does, also when it fails.
pub struct Ended<'a>(pub &'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
