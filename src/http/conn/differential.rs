//! The fast path against hyper alone: the same bytes to a connection of each must give the same
//! answers, payloads and counters. For tests and the fuzz targets `connection` and `h2`.

mod h2_input;
mod h2_wire;

use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{Readers, serve};
use crate::config::Config;
use crate::http::body::BodyReader;
use crate::http::body_memory::BodyMemory;
use crate::http::cors::Cors;
use crate::http::facts::FactsWanted;
use crate::http::h2::H2Bounds;
use crate::http::peers::{Measure, PeerBoard, Row};
use crate::http::quotas::{QuotaGate, SharedQuotas};
use crate::http::request::Intake;
use crate::http::secured::Entrance;
use crate::http::server::{Conns, Server};
use crate::http::split::BodySplitter;
use crate::http::tokenless::Tokenless;
use crate::http::tokens::{SharedTokens, TokenGate, TokenPlaces};
use crate::metrics::tokens::TokenId;
use crate::metrics::{self, CoreCells};
use crate::net::Net;
use crate::queue::admission::Admission;
use crate::queue::job::Stamps;
use crate::queue::job_queue::JobQueue;
use crate::quota::CONTROL_STALE;
use crate::rt;
use crate::stop::Stop;
use crate::store::faulty::ConnFaults;

pub use h2_input::H2Input;
pub use h2_wire::H2Outcome;

/// Slots of the queue. A case has fewer payloads, so that none of its requests waits for room.
const SLOTS: usize = 4 << 10;

/// Bytes of the queue, and of bodies in memory.
const BYTES: usize = 8 << 20;

/// Turns in which whatever a piece of a case causes has happened.
const TURNS: usize = 4;

/// How long the end of a connection is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server of each kind.
pub struct Lab {
    fast: Bench,
    hyper: Bench,
}

/// One of the two servers, whose connections have one reader.
struct Bench {
    server: Rc<Server>,
    queue: Rc<JobQueue>,
    cells: &'static CoreCells,
    tokens: Option<SharedTokens>,
    readers: Readers,
}

/// What came of the bytes of one case.
#[derive(Debug, PartialEq, Eq)]
pub struct CaseOutcome {
    /// What the client got, dates aside.
    pub answers: String,
    /// The payloads that were admitted.
    pub payloads: Vec<String>,
    /// Every counter of the core, all cases so far included.
    pub counters: String,
    /// What each table says of the peers, all cases so far included.
    pub peers: Vec<Vec<String>>,
}

impl Lab {
    /// Servers with these settings on the calling executor. `tokens` makes the tokens of each.
    ///
    /// # Errors
    /// This host does not allow such sockets.
    pub fn new(config: Config, tokens: Option<fn() -> SharedTokens>) -> io::Result<Lab> {
        let (net, config) = (Net::here()?, Arc::new(config));
        let bench = |readers| Bench::new(&net, &config, tokens.map(|make| make()), readers);
        Ok(Lab { fast: bench(Readers::Both), hyper: bench(Readers::Hyper) })
    }

    /// Sends these pieces, one after another, on a connection of each, and then half-closes it.
    /// The outcomes of the fast path and of hyper alone.
    pub async fn run(&self, pieces: &[&[u8]]) -> [CaseOutcome; 2] {
        [self.fast.run(pieces).await, self.hyper.run(pieces).await]
    }

    /// Sends these pieces, which may be HTTP/2, and then half-closes.
    pub async fn run_h2(&self, pieces: &[&[u8]]) -> H2Outcome {
        let answers = self.fast.exchange(pieces).await;
        let payloads = self.fast.take_payloads();
        let cells = self.fast.cells;
        let held = [&cells.h2_connections, &cells.h2_requests, &cells.body_bytes];
        H2Outcome { held: held.map(|cell| cell.value()), payloads, answers }
    }
}

impl Bench {
    fn new(
        net: &Rc<Net>,
        config: &Arc<Config>,
        tokens: Option<SharedTokens>,
        readers: Readers,
    ) -> Bench {
        // No control moves quotas here: the core has been on its own for long.
        let quotas = SharedQuotas::new(config, rt::now() - 2 * CONTROL_STALE);
        Bench::with_quotas(net, config, tokens, readers, quotas)
    }

    fn with_quotas(
        net: &Rc<Net>,
        config: &Arc<Config>,
        tokens: Option<SharedTokens>,
        readers: Readers,
        quotas: Option<SharedQuotas>,
    ) -> Bench {
        let cells = &metrics::cells(1)[0];
        let (stop, queue) = (Rc::new(Stop::default()), Rc::new(JobQueue::new(SLOTS)));
        let length_max = config.max_length;
        let intake = Intake {
            tap: None,
            config: config.clone(),
            admission: Admission::new(queue.clone(), BYTES, cells),
            stamps: Rc::new(Stamps::default()),
            spool: None,
            facts: FactsWanted::of(config),
            stop: stop.clone(),
            cells,
        };
        let gate = tokens.as_ref().map(|of| TokenGate::new(of, 0, TokenPlaces::of(config)));
        let server = Rc::new(Server {
            config: config.clone(),
            net: net.clone(),
            cells,
            conns: Conns::new(10, 1, H2Bounds::new(config, BYTES, cells)),
            bodies: BodyReader::new(BodyMemory::new(BYTES, length_max, cells), length_max),
            splitter: BodySplitter::new(SLOTS, cells),
            tokens: gate,
            quotas: quotas.map(|shared| QuotaGate::new(&shared, 0, cells)),
            tokenless: Tokenless { health: None, cors: Cors::of(config) },
            faults: ConnFaults::new(None, 0),
            stop,
            intake,
        });
        Bench { server, queue, cells, tokens, readers }
    }

    async fn run(&self, pieces: &[&[u8]]) -> CaseOutcome {
        let got = self.exchange(pieces).await;
        self.outcome(&got).await
    }

    /// Sends these pieces and half-closes. What the client got by the end of the connection.
    async fn exchange(&self, pieces: &[&[u8]]) -> Vec<u8> {
        let server = &self.server;
        let (ours, mut client) = UnixStream::pair().expect("a pair of sockets");
        for socket in [&ours, &client] {
            socket.set_nonblocking(true).expect("it is a socket");
        }
        let stream = server.net.stream(ours);
        let entrance = Rc::new(Entrance { number: 0, tls: None });
        let served = rt::spawn(serve(server.clone(), stream, entrance, self.readers));
        let mut got = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            // A server that has closed takes no more.
            while !rest.is_empty() {
                match client.write(rest) {
                    Ok(sent) => rest = &rest[sent..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
                for _ in 0..TURNS {
                    server.net.run_tasks_and_turn().await;
                }
                let _may_be_closed = read(&mut client, &mut got);
            }
        }
        let _or_closed = client.shutdown(Shutdown::Write);
        let began = rt::now();
        while !read(&mut client, &mut got) {
            assert!(rt::since(began) < PATIENCE, "open: {}", got.escape_ascii());
            server.net.run_tasks_and_turn().await;
        }
        served.await;
        got
    }

    fn take_payloads(&self) -> Vec<Vec<u8>> {
        let mut payloads = Vec::new();
        while let Some(job) = self.queue.take() {
            payloads.push(job.payload.to_vec());
            self.server.intake.admission.taken(1);
        }
        payloads
    }

    async fn outcome(&self, got: &[u8]) -> CaseOutcome {
        let payloads = self.take_payloads();
        let payloads = payloads.iter().map(|payload| payload.escape_ascii().to_string()).collect();
        let board = PeerBoard::default();
        board.ask();
        board.publish_if_asked(&self.server.conns).await;
        let snapshot = board.latest().expect("it was asked for");
        let tables = Measure::ALL.iter().zip(&snapshot.tables);
        let peers = tables.map(|(measure, table)| self.peers(*measure, &table.rows)).collect();
        let mut counters = without_latency(&format!("{:?}", self.cells));
        write!(counters, "{}", self.cells.request_latency.count()).expect("memory takes it");
        if let Some(tokens) = &self.tokens {
            let cells = tokens.metrics.core(0);
            for id in [TokenId::UNNAMED, TokenId::OTHER, TokenId::of_name(0), TokenId::of_name(1)] {
                write!(counters, "{:?}", cells.accepted(id)).expect("memory takes it");
            }
        }
        CaseOutcome { answers: without_dates(got), payloads, counters, peers }
    }

    /// What the table of `measure` says of the peers. hyper reads a part of the next request with
    /// the one before: where that may be another client's, only the sum of the bytes is the same.
    fn peers(&self, measure: Measure, rows: &[Row]) -> Vec<String> {
        let hides_bytes = self.server.config.trust.is_some();
        if hides_bytes && measure == Measure::Bytes {
            let sum: u64 = rows.iter().map(|row| row.count).sum();
            return vec![format!("all: {sum} bytes")];
        }
        let mut rows: Vec<&Row> = rows.iter().collect();
        rows.sort_by_key(|row| row.peer);
        let said = rows.into_iter().map(|row| {
            let of = row.seen;
            let bytes = (!hides_bytes).then_some(of.bytes);
            let said = (of.requests, of.payloads, bytes, of.refusals, of.tokens.most_used());
            format!("{}: {said:?}", row.peer)
        });
        said.collect()
    }
}

/// Reads what has come; true at the end.
fn read(client: &mut UnixStream, into: &mut Vec<u8>) -> bool {
    let mut piece = [0; 4 << 10];
    loop {
        match client.read(&mut piece) {
            Ok(0) => return true,
            Ok(read) => into.extend_from_slice(&piece[..read]),
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// Answers without the values of their `date` fields.
fn without_dates(answers: &[u8]) -> String {
    let text = String::from_utf8_lossy(answers);
    let lines = text.split("\r\n").map(|line| match line.strip_prefix("date: ") {
        Some(date) => format!("date: {} bytes", date.len()),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\r\n")
}

/// Counters without the times that requests took.
fn without_latency(counters: &str) -> String {
    let start = counters.find("request_latency").unwrap_or(counters.len());
    let rest = &counters[start..];
    let end = rest.find("put_latency").unwrap_or(rest.len());
    [&counters[..start], &rest[end..]].concat()
}

#[cfg(test)]
mod tests;
