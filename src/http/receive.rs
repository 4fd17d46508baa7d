//! Receives a body of known length straight from its connection's stream, without hyper.
//!
//! A small body is copied out of the buffers of the ring's pool, in which it arrives. As soon as
//! enough of it waits in the kernel, it is received into the body's own memory, which is what the
//! parser works on and what is uploaded. Memory is charged for what has arrived, never for what was
//! announced, and before bytes are written to it; the announced length only says where it need not
//! grow further.
//!
//! Deadlines, eviction and the pace are judged by the connection, as for a body that hyper reads:
//! meanwhile the bytes are in the connection's state, where
//! [`BodyMemory`](super::body_memory::BodyMemory) can take them away.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use super::body::{BodyError, BodyReader, Receiving};
use super::client_stream::ClientStream;
use super::phase::ConnState;
use crate::budget::ChargedBytes;
use crate::net::BUFFER_BYTES;
use crate::rt;

/// Fewest waiting bytes that are received into the body's memory: as many as a buffer of the pool
/// holds. Fewer are cheaper to copy than to ask for.
const OWN_LEAST: usize = BUFFER_BYTES;

/// Most bytes that are received before other tasks run, and that memory is charged for at a time:
/// 15 µs of copying in the kernel.
const OWN_MOST: usize = 128 << 10;

impl BodyReader {
    /// Receives a body of `length` bytes, none of which was read with the head. Reads nothing behind
    /// the body.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`], before anything is read; [`BodyError::MemoryExhausted`];
    /// [`BodyError::Evicted`]; [`BodyError::Disconnected`] if the client closes before the end.
    /// Nothing stays charged.
    pub(super) async fn receive(
        &self,
        state: &ConnState,
        stream: &ClientStream,
        length: usize,
    ) -> Result<ChargedBytes, BodyError> {
        self.check_announced(Some(length as u64))?;
        let receiving = Receiving::begin(&self.memory, state, self.memory.buffer(length)?);
        while state.body.received.get() < length {
            if self.receive_waiting(state, stream)? {
                rt::yield_now().await;
            } else {
                poll_fn(|cx| self.poll_delivered(cx, state, stream)).await?;
            }
        }
        let mut bytes = receiving.end()?;
        bytes.shrink();
        Ok(bytes)
    }

    /// Receives what waits in the kernel into the body's memory. False if that is too little.
    fn receive_waiting(&self, state: &ConnState, stream: &ClientStream) -> Result<bool, BodyError> {
        let mut bytes = state.body.bytes.borrow_mut();
        let bytes = bytes.as_mut().ok_or(BodyError::Evicted)?;
        if bytes.room() < OWN_LEAST {
            return Ok(false);
        }
        let waiting = stream.waiting();
        if waiting < OWN_LEAST {
            return Ok(false);
        }
        let most = waiting.min(OWN_MOST).min(bytes.room());
        self.memory.make_room_for(bytes, most, Some(state))?;
        let received = bytes.append_with(most, |bytes| stream.receive_waiting(bytes, most));
        state.tally.received_more(received);
        state.body.received.set(bytes.as_slice().len());
        Ok(received > 0)
    }

    /// Waits for a buffer of the pool, and copies what it holds of the body: at least a byte.
    fn poll_delivered(
        &self,
        cx: &mut Context<'_>,
        state: &ConnState,
        stream: &ClientStream,
    ) -> Poll<Result<(), BodyError>> {
        // Making room may need the ring, so it cannot be done while its buffer is looked at.
        let mut delivered = 0;
        let looked = ready!(stream.poll_read_with(cx, |bytes| {
            delivered = bytes.len();
            0
        }));
        if delivered == 0 {
            state.gone.set(true);
            return Poll::Ready(Err(ended(looked.err())));
        }
        let mut bytes = state.body.bytes.borrow_mut();
        let bytes = bytes.as_mut().ok_or(BodyError::Evicted)?;
        let wanted = delivered.min(bytes.room());
        self.memory.make_room_for(bytes, wanted, Some(state))?;
        let read = stream.poll_read_with(cx, |delivered| {
            bytes.extend(&delivered[..wanted]).expect("there is room for them");
            wanted
        });
        debug_assert!(matches!(read, Poll::Ready(Ok(n)) if n == wanted));
        state.tally.received_more(wanted);
        state.body.received.set(bytes.as_slice().len());
        Poll::Ready(Ok(()))
    }
}

/// The client has closed, or its socket has failed, before the end of the body.
fn ended(error: Option<io::Error>) -> BodyError {
    let text = || "the client closed the connection".to_owned();
    BodyError::Disconnected(error.map_or_else(text, |error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::rc::Rc;
    use std::time::Duration;

    use futures_lite::future::poll_once;

    use super::*;
    use crate::budget::BODY_PADDING;
    use crate::http::body_memory::BodyMemory;
    use crate::http::phase::BodyEnd;
    use crate::metrics::CoreCells;
    use crate::net::Net;

    const LENGTH_MAX: usize = 8 << 20;

    /// A connection and its client.
    struct Conn {
        state: Rc<ConnState>,
        stream: Rc<ClientStream>,
        client: TcpStream,
    }

    impl Conn {
        fn new(net: &Rc<Net>) -> Conn {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.set_nodelay(true).unwrap();
            let ours = listener.accept().unwrap().0;
            ours.set_nonblocking(true).unwrap();
            let stream = Rc::new(ClientStream::Plain(net.stream(ours)));
            let state = ConnState::new(&stream);
            state.body_begins(rt::now());
            Conn { state, stream, client }
        }

        /// Reads what is behind the body, up to the client's end.
        async fn rest(&self) -> Vec<u8> {
            let mut rest = Vec::new();
            let more = |bytes: &[u8], rest: &mut Vec<u8>| {
                rest.extend_from_slice(bytes);
                bytes.len()
            };
            while poll_fn(|cx| self.stream.poll_read_with(cx, |bytes| more(bytes, &mut rest)))
                .await
                .is_ok_and(|n| n > 0)
            {}
            rest
        }
    }

    fn reader(max: usize) -> (BodyReader, &'static CoreCells) {
        let cells = &crate::metrics::cells(1)[0];
        (BodyReader::new(BodyMemory::new(max, LENGTH_MAX, cells), LENGTH_MAX), cells)
    }

    fn body(length: usize, seed: u64) -> Vec<u8> {
        let mut rng = rt::Rng::with_seed(seed);
        let mut body = vec![0; length];
        rng.fill(&mut body);
        body
    }

    /// Sends `bytes` in pieces of random lengths, with pauses, from a thread of its own.
    fn send(client: &TcpStream, bytes: Vec<u8>, seed: u64) -> std::thread::JoinHandle<bool> {
        let mut client = client.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut rng = rt::Rng::with_seed(seed);
            let longest = [100, 5_000, 70_000, 1 << 20][rng.usize(..4)].max(bytes.len() / 300);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let piece = rng.usize(1..=longest.min(rest.len()));
                if client.write_all(&rest[..piece]).is_err() {
                    return false;
                }
                rest = &rest[piece..];
                if rng.u8(..8) == 0 {
                    std::thread::sleep(Duration::from_micros(rng.u64(..2_000)));
                }
            }
            true
        })
    }

    /// Any length in any pieces: the same bytes, exactly charged, and nothing behind them is read.
    #[test]
    fn the_bytes_are_those_that_were_sent_however_they_come() {
        let seed = rt::random();
        println!("seed {seed}");
        let mut rng = rt::Rng::with_seed(seed);
        let (reader, cells) = reader(64 << 20);
        rt::run_test(async {
            let net = Net::here().unwrap();
            for _ in 0..60 {
                let length = match rng.u8(..4) {
                    0 => rng.usize(..6_000),
                    1 => (64 << 10) - 2 + rng.usize(..5),
                    2 => rng.usize(..400_000),
                    _ => rng.usize(..LENGTH_MAX),
                };
                let conn = Conn::new(&net);
                let (whole, seed) = (body(length, rng.u64(..)), rng.u64(..));
                let sender = send(&conn.client, [&whole[..], b"NEXT"].concat(), seed);
                let received = reader.receive(&conn.state, &conn.stream, length).await;
                let mut received = received.unwrap();
                assert!(received.as_slice() == whole, "seed {seed}: {length} bytes");
                assert_eq!(cells.body_bytes.value(), received.retained() as u64);
                assert!(received.retained() >= length + BODY_PADDING);
                let longest = (length + BODY_PADDING) * 4 / 3 + 1;
                assert!(received.retained() <= longest.max(4 << 10), "it has shrunk");
                assert_eq!(&*received.padded(), whole);
                let tallied = conn.state.tally.received();
                assert_eq!(tallied, length as u64);
                assert!(sender.join().unwrap());
                conn.client.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(conn.rest().await, b"NEXT");
                drop(received);
                assert_eq!(cells.body_bytes.value(), 0);
            }
        });
    }

    #[test]
    fn what_came_with_the_head_is_one_allocation() {
        let (reader, cells) = reader(64 << 20);
        rt::run_test(async {
            let conn = Conn::new(&Net::here().unwrap());
            for length in [0, 1, 63, 64, 65, 4_031, 4_032, 4_033, 4_096, 16_000, 200_000] {
                let whole = body(length, 1);
                let received = reader.whole(&whole).unwrap();
                assert_eq!(received.as_slice(), whole);
                assert_eq!(received.retained(), length + BODY_PADDING);
            }
            let nothing = reader.receive(&conn.state, &conn.stream, 0);
            let nothing = poll_once(nothing).await.expect("it is here").unwrap();
            assert_eq!(nothing.as_slice(), b"");
            drop(nothing);
            let too_long = reader.receive(&conn.state, &conn.stream, LENGTH_MAX + 1);
            assert_eq!(too_long.await.err(), Some(BodyError::TooLarge { max: LENGTH_MAX }));
            assert_eq!(cells.body_bytes.value(), 0);
        });
    }

    /// At every moment it holds at least what has arrived, and at most four times that.
    #[test]
    fn what_was_announced_holds_nothing() {
        let (reader, cells) = reader(64 << 20);
        rt::run_test(async {
            let mut conn = Conn::new(&Net::here().unwrap());
            let state = conn.state.clone();
            let mut receiving = Box::pin(reader.receive(&state, &conn.stream, LENGTH_MAX));
            let mut sent = 0;
            for piece in [0, 10, 5_000, 50_000, 20_000, 300_000, 1_000_000, 3_000_000] {
                conn.client.set_nonblocking(true).unwrap();
                let mut left = piece;
                while left > 0 || state.body.received.get() < sent {
                    let written = conn.client.write(&vec![b' '; left.min(100_000)]).unwrap_or(0);
                    (left, sent) = (left - written, sent + written);
                    assert!(poll_once(&mut receiving).await.is_none());
                    rt::yield_now().await;
                    let (held, received) = (state.body.held().unwrap(), state.body.received.get());
                    assert!(held >= received + BODY_PADDING && received <= sent);
                    assert!(held <= (4 * (received + BODY_PADDING)).max(4 << 10), "{held}");
                    assert_eq!(cells.body_bytes.value(), held as u64);
                }
            }
            // It is given up while more comes in.
            conn.client.write_all(&[b' '; 1_000]).unwrap();
            drop(receiving);
            assert_eq!(cells.body_bytes.value(), 0);
            assert!(state.body.held().is_none());
        });
    }

    #[test]
    fn a_client_that_closes_before_the_end_is_gone_and_holds_nothing() {
        let (reader, cells) = reader(64 << 20);
        rt::run_test(async {
            let net = Net::here().unwrap();
            for (sent, resets) in [(0, false), (100, false), (500_000, false), (500_000, true)] {
                let Conn { state, stream, client } = Conn::new(&net);
                let closing = std::thread::spawn(move || {
                    assert!(send(&client, body(sent, 2), 2).join().unwrap());
                    if resets {
                        let at_once = Some(Duration::ZERO);
                        socket2::SockRef::from(&client).set_linger(at_once).unwrap();
                    }
                });
                let received = reader.receive(&state, &stream, 1_000_000).await;
                closing.join().unwrap();
                let error = received.err().expect("it is not complete");
                assert!(matches!(error, BodyError::Disconnected(_)), "{error:?}");
                assert!(state.gone.get());
                assert_eq!(cells.body_bytes.value(), 0);
            }
        });
    }

    #[test]
    fn a_stalled_body_loses_its_memory_and_a_receive_that_goes_on_says_so() {
        const LENGTH: usize = LENGTH_MAX;
        let (reader, cells) = reader(2 * (LENGTH + BODY_PADDING));
        rt::run_test(async {
            let net = Net::here().unwrap();
            let stalled = Conn::new(&net);
            let state = stalled.state.clone();
            let sender = send(&stalled.client, body(LENGTH - 1, 3), 3);
            let mut receiving = Box::pin(reader.receive(&state, &stalled.stream, LENGTH));
            while state.body.received.get() < LENGTH - 1 {
                assert!(poll_once(&mut receiving).await.is_none());
                reader.memory.body_waits(&state, rt::now());
                rt::yield_now().await;
            }
            assert!(sender.join().unwrap());
            let held = reader.memory.buffer_of(LENGTH).unwrap();
            rt::sleep(Duration::from_millis(300)).await;
            // Its memory is needed.
            let other = Conn::new(&net);
            let sender = send(&other.client, body(LENGTH, 4), 4);
            let received = reader.receive(&other.state, &other.stream, LENGTH).await.unwrap();
            assert_eq!(received.as_slice(), body(LENGTH, 4));
            assert!(sender.join().unwrap());
            assert_eq!(cells.bodies_evicted.value(), 1);
            assert_eq!(state.body_end().await, BodyEnd::Evicted);
            // Its last byte comes too late.
            (&stalled.client).write_all(b"}").unwrap();
            assert_eq!(receiving.await.err(), Some(BodyError::Evicted));
            drop((held, received));
            assert_eq!(cells.body_bytes.value(), 0);
        });
    }

    /// Many at once, of which some are given up half-way, the last ones together with the ring.
    #[test]
    fn bodies_that_are_given_up_in_flight_leave_nothing_behind() {
        let seed = rt::random();
        println!("seed {seed}");
        let (reader, cells) = reader(256 << 20);
        let reader = Rc::new(reader);
        rt::run_test(async {
            let net = Net::here().unwrap();
            let mut rng = rt::Rng::with_seed(seed);
            for _ in 0..8 {
                let mut tasks = Vec::new();
                for _ in 0..8 {
                    let Conn { state, stream, client } = Conn::new(&net);
                    let (length, seed) = (rng.usize(..3_000_000), rng.u64(..));
                    let _sender = send(&client, body(length, seed), seed);
                    let reader = reader.clone();
                    let task = rt::spawn(async move {
                        let received = reader.receive(&state, &stream, length).await;
                        assert!(received.unwrap().as_slice() == body(length, seed), "seed {seed}");
                        drop(client);
                    });
                    tasks.push((task, rng.bool()));
                }
                for (task, is_awaited) in tasks {
                    if is_awaited {
                        task.await;
                    }
                }
            }
        });
        assert_eq!(cells.body_bytes.value(), 0, "seed {seed}");
    }
}
