//! Clients that do everything right: keep-alive, one request at a time, every answer read.
//!
//! In a closed loop they send as soon as they have an answer, which measures what the servers can
//! take. In the open loop each has a schedule of its own, with pauses drawn from an exponential
//! distribution. A latency counts from when its request was due, so a stall is paid for by every
//! request that it delays.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Shared;
use crate::ledger::{FILLER_MAX, Id, Told};
use crate::servers::GOOD_TOKEN;
use crate::streams::SharedConnection;
use crate::support::gzip;
use crate::wire::{Answer, Connection, Request, Transport};

/// Clients of each class.
const CLIENTS: usize = 4;
/// An answer that takes longer will not come: `ACK_TIMEOUT` is far below.
pub const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// A client that is further behind its schedule leaves out what it has missed.
const BEHIND_MAX: Duration = Duration::from_secs(5);
/// A connection that was silent for longer is not used again: far below `IDLE_TIMEOUT`, so that
/// the server does not close it just then.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// Pause after a 503 in the closed loop.
const BACKOFF: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    Queued,
    Spooled,
    Stored,
}

pub const ACKS: [Ack; 3] = [Ack::Queued, Ack::Spooled, Ack::Stored];

impl Ack {
    pub fn name(self) -> &'static str {
        match self {
            Ack::Queued => "queued",
            Ack::Spooled => "spooled",
            Ack::Stored => "stored",
        }
    }

    /// Answers that faults of the store explain.
    fn may_get(self, status: u16) -> bool {
        match status {
            200 | 503 => true,
            502 => self == Ack::Stored,
            504 => self != Ack::Queued,
            _ => false,
        }
    }

    /// What an answer says of a request's payloads; `None`: it leaves that open.
    pub fn told(self, status: u16) -> Option<Told> {
        match (status, self) {
            (200, Ack::Stored) => Some(Told::Stored),
            (200, _) | (502 | 504, Ack::Stored) => Some(Told::Admitted),
            (504, _) => None,
            _ => Some(Told::Refused),
        }
    }
}

/// What the clients of a class have in common.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    pub server: usize,
    pub transport: Transport,
    pub ack: Ack,
}

/// Every class: two servers, without TLS, with it, and HTTP/2 over it, three promises.
pub fn classes() -> Vec<Class> {
    let servers = [0, 1].into_iter();
    let transports = [Transport::Plain, Transport::Tls, Transport::H2];
    let both = servers.flat_map(|server| transports.map(|t| (server, t)));
    both.flat_map(|(server, transport)| ACKS.map(|ack| Class { server, transport, ack })).collect()
}

/// How clients are paced.
#[derive(Clone)]
pub enum Pace {
    Closed,
    /// Requests a second of each class.
    Open(Vec<f64>),
}

/// Runs the clients of all classes until [`Shared::stop_good`] says so.
pub fn run(shared: &Arc<Shared>, pace: &Pace, seed: u64) -> JoinHandle<()> {
    let (shared, pace) = (shared.clone(), pace.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let mut clients = Vec::new();
            for (at, class) in classes().into_iter().enumerate() {
                let every = match &pace {
                    Pace::Closed => None,
                    // A class that did nothing in the closed loop still gets a request now and then.
                    Pace::Open(rates) => Some(CLIENTS as f64 / rates[at].max(0.1)),
                };
                let h2 = SharedConnection::default();
                for nth in 0..CLIENTS {
                    let rng = fastrand::Rng::with_seed(seed ^ ((at * CLIENTS + nth) as u64) << 20);
                    let number = shared.ledger.lock().unwrap().client();
                    let writer = Writer { client: number, next: 0, rng };
                    let (shared, h2) = (shared.clone(), h2.clone());
                    let client = GoodClient { shared, at, class, every, writer, h2 };
                    clients.push(tokio::spawn(client.run()));
                }
            }
            for client in clients {
                client.await.expect("a client does not panic");
            }
        });
    })
}

struct GoodClient {
    shared: Arc<Shared>,
    /// Its class's place among all.
    at: usize,
    class: Class,
    /// Mean seconds between two requests; `None`: a closed loop.
    every: Option<f64>,
    writer: Writer,
    /// Of its class, if that is [`Transport::H2`].
    h2: SharedConnection,
}

impl GoodClient {
    async fn run(mut self) {
        let mut due = Instant::now();
        let mut answered = due;
        let mut connection = None;
        let mut left = 0;
        loop {
            due = match self.every {
                None => Instant::now(),
                Some(every) => self.next_due(due, every).await,
            };
            if self.shared.stop_good.load(Relaxed) {
                return;
            }
            if left == 0 || answered.elapsed() > IDLE_MAX {
                connection = None;
                left = self.writer.rng.usize(50..400);
            }
            left -= 1;
            let (request, numbers) = self.writer.request(self.class.ack, GOOD_TOKEN, false);
            self.shared.sent(self.writer.client, &numbers);
            let answer = self.exchange(&mut connection, &request).await;
            self.note(answer, numbers, due).await;
            answered = Instant::now();
            if answer.is_none_or(|answer| answer.closes) {
                connection = None;
            }
        }
    }

    /// Waits for the next time of the schedule.
    async fn next_due(&mut self, due: Instant, every: f64) -> Instant {
        let pause = -every * (1.0 - self.writer.rng.f64()).ln();
        let mut due = due + Duration::from_secs_f64(pause.min(every * 10.0));
        if due.elapsed() > BEHIND_MAX {
            self.shared.stats.lock().unwrap().left_out +=
                (due.elapsed().as_secs_f64() / every) as u64;
            due = Instant::now();
        }
        while due > Instant::now() && !self.shared.stop_good.load(Relaxed) {
            let look = Instant::now() + Duration::from_secs(1);
            tokio::time::sleep_until(due.min(look).into()).await;
        }
        due
    }

    async fn exchange(
        &mut self,
        connection: &mut Option<Connection>,
        request: &Request,
    ) -> Option<Answer> {
        let target = self.shared.target(self.class.server);
        let exchange = async {
            if self.class.transport == Transport::H2 {
                return self.h2.exchange(target, request, &mut self.writer.rng).await;
            }
            if connection.is_none() {
                let rng = &mut self.writer.rng;
                let opened = Connection::open(target, self.class.transport, false, rng).await?;
                *connection = Some(opened);
            }
            connection.as_mut().expect("just opened").exchange(request).await
        };
        match tokio::time::timeout(ANSWER_WAIT, exchange).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                self.shared.findings.add(format!("a good client got no answer: {error}"));
                None
            }
            Err(_) => {
                self.shared.findings.add(format!("a good client got no answer: {:?}", self.class));
                None
            }
        }
    }

    async fn note(&mut self, answer: Option<Answer>, numbers: Range<u32>, due: Instant) {
        let latency = due.elapsed();
        let status = answer.map_or(0, |answer| answer.status);
        self.shared.stats.lock().unwrap().answer(self.at, self.class.ack, status, latency);
        if status == 0 {
            return;
        }
        if !self.class.ack.may_get(status) {
            self.shared.findings.add(format!("a good client got {status} for {:?}", self.class));
        }
        self.shared.told(self.writer.client, numbers, self.class.ack.told(status));
        if status == 503 && self.every.is_none() {
            tokio::time::sleep(BACKOFF).await;
        }
    }
}

/// Makes one client's requests, of all sizes and forms.
pub struct Writer {
    pub client: u16,
    pub next: u32,
    pub rng: fastrand::Rng,
}

impl Writer {
    /// The next request of those with one payload, whose object is put alone.
    pub fn single(&mut self, ack: Ack, token: &str) -> (Request, Range<u32>) {
        loop {
            let next = self.next;
            let (request, numbers) = self.request(ack, token, false);
            if numbers.len() == 1 {
                return (request, numbers);
            }
            self.next = next;
        }
    }

    /// The next request and the numbers of its payloads.
    pub fn request(&mut self, ack: Ack, token: &str, poison: bool) -> (Request, Range<u32>) {
        let rng = &mut self.rng;
        let (payloads, filler) = match rng.u32(..1000) {
            0..850 => (rng.u32(1..6), 50..400),
            850..960 => (rng.u32(10..40), 50..400),
            960..997 => (rng.u32(10..30), 2_000..6_000),
            _ => (1, FILLER_MAX / 2..FILLER_MAX),
        };
        let numbers = self.next..self.next + payloads;
        self.next = numbers.end;
        let mut body = b"{\"version\":\"1\",\"data\":[".to_vec();
        for number in numbers.clone() {
            if number > numbers.start {
                body.push(b',');
            }
            let id = Id { client: self.client, number, poison };
            id.write(self.rng.usize(filler.clone()), &mut body);
        }
        body.extend_from_slice(b"]}");
        let name = ack.name();
        let mut headers = format!("authorization: Bearer {token}\r\nmillrace-ack: {name}\r\n");
        let form = self.rng.u32(..100);
        if form < 8 && body.len() < 20_000 {
            body = gzip(&body);
            headers.push_str("content-encoding: gzip\r\n");
        }
        (Request { headers, body, chunked: (8..16).contains(&form) }, numbers)
    }
}
