//! Clients that misbehave, some of each kind on each server, as long as the load lasts.
//!
//! What they are told counts as with good ones: an answer that is read is a promise. What they do
//! not wait for is open, and what they never send whole is refused.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::Shared;
use crate::good::{ACKS, ANSWER_WAIT, Ack, Writer};
use crate::ledger::Told;
use crate::servers::{GOOD_TOKEN, STRANGER_TOKEN};
use crate::wire::{Connection, Transport, dial};

/// What a client does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vice {
    /// Resets the connection while a request is being sent or answered.
    Aborts,
    /// Sends one request after the other and never reads.
    Ignores,
    SlowHead,
    SlowBody,
    SlowReader,
    /// Says nothing between two requests.
    Idles,
    /// Its payloads are refused by the store.
    Poisons,
    /// Its token comes and goes.
    Stranger,
    /// What it sends is no request.
    Nonsense,
    /// Breaks off TLS handshakes, or mistakes the port.
    Handshakes,
}

/// How many of each there are on each server.
const MANY: [(Vice, usize); 10] = [
    (Vice::Aborts, 3),
    (Vice::Ignores, 2),
    (Vice::SlowHead, 3),
    (Vice::SlowBody, 4),
    (Vice::SlowReader, 3),
    (Vice::Idles, 15),
    (Vice::Poisons, 1),
    (Vice::Stranger, 1),
    (Vice::Nonsense, 1),
    (Vice::Handshakes, 2),
];

/// Runs them until [`Shared::stop_bad`] says so; each ends within some seconds.
pub fn run(shared: &Arc<Shared>, seed: u64) -> JoinHandle<()> {
    let shared = shared.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let mut clients = Vec::new();
            for (server, (vice, many)) in [0, 1].into_iter().flat_map(|s| MANY.map(|of| (s, of))) {
                for _ in 0..many {
                    let rng = fastrand::Rng::with_seed(seed ^ ((clients.len() as u64) << 40));
                    let client = shared.ledger.lock().unwrap().client();
                    let writer = Writer { client, next: 0, rng };
                    let bad = BadClient { shared: shared.clone(), server, vice, writer };
                    clients.push(tokio::spawn(bad.run()));
                }
            }
            for client in clients {
                client.await.expect("a client does not panic");
            }
        });
    })
}

struct BadClient {
    shared: Arc<Shared>,
    server: usize,
    vice: Vice,
    writer: Writer,
}

/// One request of a bad client.
struct Sent {
    bytes: Vec<u8>,
    ack: Ack,
    numbers: Range<u32>,
}

impl BadClient {
    async fn run(mut self) {
        while !self.shared.stop_bad.load(Relaxed) {
            // An end that the server makes is what some of them provoke.
            let _provoked = match self.vice {
                Vice::Aborts => self.abort().await,
                Vice::Ignores => self.ignore().await,
                Vice::SlowHead => self.slow_head().await,
                Vice::SlowBody => self.slow_body().await,
                Vice::SlowReader => self.read_slowly().await,
                Vice::Idles => self.idle().await,
                Vice::Poisons => self.poison().await,
                Vice::Stranger => self.be_strange().await,
                Vice::Nonsense => self.talk_nonsense().await,
                Vice::Handshakes => self.break_handshake().await,
            };
            *self.shared.stats.lock().unwrap().vices.entry(self.vice).or_default() += 1;
        }
    }

    /// A request that is about to be sent; until it is answered it is open.
    fn request(&mut self, token: &str) -> Sent {
        let ack = ACKS[self.writer.rng.usize(..3)];
        let (request, numbers) = self.writer.request(ack, token, self.vice == Vice::Poisons);
        self.shared.sent(self.writer.client, &numbers);
        Sent { bytes: request.bytes(), ack, numbers }
    }

    async fn connect(&mut self, abrupt: bool) -> io::Result<Connection> {
        let transport = [Transport::Plain, Transport::Tls][self.writer.rng.usize(..2)];
        let target = self.shared.target(self.server);
        let open = Connection::open(target, transport, abrupt, &mut self.writer.rng);
        timeout(ANSWER_WAIT, open).await?
    }

    /// Takes the answer to a request that was sent whole, and gives its status.
    async fn answered(&mut self, connection: &mut Connection, sent: Sent) -> io::Result<u16> {
        let answer = timeout(ANSWER_WAIT, connection.answer()).await??;
        self.shared.told(self.writer.client, sent.numbers, sent.ack.told(answer.status));
        Ok(answer.status)
    }

    async fn pause(&mut self, millis: Range<u64>) {
        sleep(Duration::from_millis(self.writer.rng.u64(millis))).await;
    }

    async fn abort(&mut self) -> io::Result<()> {
        self.pause(20..200).await;
        let mut connection = self.connect(true).await?;
        let sent = self.request(GOOD_TOKEN);
        if self.writer.rng.bool() {
            connection.send(&sent.bytes).await?;
            self.pause(0..10).await;
            return Ok(());
        }
        // The end of the body is missing, so nothing of it may be found.
        self.shared.told(self.writer.client, sent.numbers, Some(Told::Refused));
        // Not even the last chunk, which is `0`.
        let part = self.writer.rng.usize(1..sent.bytes.len() - 6);
        connection.send(&sent.bytes[..part]).await?;
        self.pause(0..50).await;
        Ok(())
    }

    async fn ignore(&mut self) -> io::Result<()> {
        let abrupt = self.writer.rng.bool();
        let mut connection = self.connect(abrupt).await?;
        for _ in 0..self.writer.rng.usize(5..60) {
            let sent = self.request(GOOD_TOKEN);
            // A server that is not read any more may stop to read.
            timeout(Duration::from_secs(2), connection.send(&sent.bytes)).await??;
            self.pause(0..40).await;
        }
        self.pause(100..4_000).await;
        Ok(())
    }

    /// Some of them in time, some not within `HEADER_TIMEOUT`.
    async fn slow_head(&mut self) -> io::Result<()> {
        let mut connection = self.connect(false).await?;
        let sent = self.request(GOOD_TOKEN);
        let head = memchr::memmem::find(&sent.bytes, b"\r\n\r\n").expect("a head") + 4;
        let pause = self.writer.rng.u64(20..500);
        for piece in sent.bytes[..head].chunks(10) {
            connection.send(piece).await?;
            sleep(Duration::from_millis(pause)).await;
        }
        connection.send(&sent.bytes[head..]).await?;
        self.answered(&mut connection, sent).await?;
        Ok(())
    }

    /// Some of them in time, some not within `BODY_TIMEOUT`.
    async fn slow_body(&mut self) -> io::Result<()> {
        let mut connection = self.connect(false).await?;
        let sent = self.request(GOOD_TOKEN);
        let pieces = self.writer.rng.usize(5..60);
        let pause = self.writer.rng.u64(20..400);
        for piece in sent.bytes.chunks(sent.bytes.len() / pieces + 1) {
            connection.send(piece).await?;
            sleep(Duration::from_millis(pause)).await;
        }
        self.answered(&mut connection, sent).await?;
        Ok(())
    }

    async fn read_slowly(&mut self) -> io::Result<()> {
        let mut connection = self.connect(false).await?;
        connection.reading = (40, Duration::from_millis(20));
        let mut all = Vec::new();
        for _ in 0..self.writer.rng.usize(2..12) {
            let sent = self.request(GOOD_TOKEN);
            timeout(ANSWER_WAIT, connection.send(&sent.bytes)).await??;
            all.push(sent);
        }
        for sent in all {
            self.answered(&mut connection, sent).await?;
        }
        Ok(())
    }

    async fn idle(&mut self) -> io::Result<()> {
        let mut connection = self.connect(false).await?;
        for _ in 0..3 {
            let sent = self.request(GOOD_TOKEN);
            connection.send(&sent.bytes).await?;
            self.answered(&mut connection, sent).await?;
            if self.shared.stop_bad.load(Relaxed) {
                break;
            }
            self.pause(500..7_000).await;
        }
        Ok(())
    }

    async fn poison(&mut self) -> io::Result<()> {
        self.pause(3_000..6_000).await;
        let mut connection = self.connect(false).await?;
        let sent = self.request(GOOD_TOKEN);
        connection.send(&sent.bytes).await?;
        self.answered(&mut connection, sent).await?;
        Ok(())
    }

    async fn be_strange(&mut self) -> io::Result<()> {
        self.pause(100..500).await;
        let mut connection = self.connect(false).await?;
        let sent = self.request(STRANGER_TOKEN);
        connection.send(&sent.bytes).await?;
        let status = self.answered(&mut connection, sent).await?;
        let mut stats = self.shared.stats.lock().unwrap();
        stats.stranger_served += u64::from(status == 200);
        stats.stranger_refused += u64::from(status == 401);
        Ok(())
    }

    async fn talk_nonsense(&mut self) -> io::Result<()> {
        let token = format!("host: x\r\nauthorization: Bearer {GOOD_TOKEN}\r\n");
        let post = format!("POST /payloads HTTP/1.1\r\n{token}");
        for (text, wanted) in [
            (format!("{post}content-length: 9\r\n\r\n{{\"data\":["), 400),
            (format!("{post}content-length: 4\r\n\r\nnull"), 400),
            (format!("{post}content-length: 99999999\r\n\r\n"), 413),
            (format!("{post}transfer-encoding: chunked\r\n\r\nzz\r\n"), 400),
            (format!("{post}transfer-encoding: gzip, chunked\r\n\r\n"), 501),
            (format!("{post}content-encoding: br\r\ncontent-length: 2\r\n\r\n{{}}"), 415),
            (format!("{post}millrace-ack: soon\r\ncontent-length: 2\r\n\r\n{{}}"), 400),
            (format!("POST /elsewhere HTTP/1.1\r\n{token}content-length: 0\r\n\r\n"), 404),
            (format!("DELETE /payloads HTTP/1.1\r\n{token}\r\n"), 405),
            (
                "POST /payloads HTTP/1.1\r\nhost: x\r\nx-api-key: none\r\ncontent-length: 2\r\n\r\n{}"
                    .to_owned(),
                401,
            ),
            ("what is this\r\n\r\n".to_owned(), 400),
        ] {
            let mut connection = self.connect(false).await?;
            connection.send(text.as_bytes()).await?;
            let answer = timeout(ANSWER_WAIT, connection.answer()).await??;
            if answer.status != wanted {
                let what = format!("{} and not {wanted} for {text:?}", answer.status);
                self.shared.findings.add(what);
            }
            self.pause(50..300).await;
        }
        Ok(())
    }

    async fn break_handshake(&mut self) -> io::Result<()> {
        self.pause(100..1_000).await;
        let target = self.shared.target(self.server);
        // The beginning of a ClientHello, as any client sends it.
        let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
        let (address, bytes): (_, &[u8]) = match self.writer.rng.u8(..5) {
            0 => (target.tls, b"POST /payloads HTTP/1.1\r\nhost: x\r\n\r\n"),
            1 => (target.tls, b"\x00\x01\x02neither of them"),
            2 => (target.plain, &hello),
            3 => (target.tls, b""),
            _ => (target.tls, &hello),
        };
        let mut socket = dial(address, self.writer.rng.bool()).await?;
        socket.write_all(bytes).await?;
        let wait = Duration::from_millis(self.writer.rng.u64(1..4_000));
        let mut answer = Vec::new();
        let _either = timeout(wait, socket.read_to_end(&mut answer)).await;
        Ok(())
    }
}
