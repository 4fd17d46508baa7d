//! Receives a body of known length straight from its connection's stream, without hyper.
//!
//! A small body is copied out of the buffers of the ring's pool, in which it arrives. As soon as
//! enough of it waits in the kernel, it is received into the body's own memory, which is what the
//! parser works on and what is uploaded. Memory is charged for what has arrived, never for what was
//! announced, and before bytes are written to it; the announced length only says where it need not
//! grow further.
//!
//! A core works on one large body at a time. One whose bytes are all in the kernel waits there for
//! its turn, and is then received and parsed in one go, while it is in the cache: received side by
//! side and parsed one after another, bodies had left it. What is not there yet is received as it
//! comes and without a turn, so nobody ever waits for a slow client.
//!
//! Deadlines, eviction and the pace are judged by the connection, as for a body that hyper reads:
//! meanwhile the bytes are in the connection's state, where
//! [`BodyMemory`](super::body_memory::BodyMemory) can take them away.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use super::body::{BodyError, BodyReader, ReadBody, Receiving};
use super::client_stream::ClientStream;
use super::parse::SMALL_BODY_BYTES;
use super::phase::ConnState;
use super::split::LargeLine;
use crate::budget::Charge;
use crate::net::BUFFER_BYTES;
use crate::rt;

/// Fewest waiting bytes that are received into the body's memory: as many as a buffer of the pool
/// holds. Fewer are cheaper to copy than to ask for.
const OWN_LEAST: usize = BUFFER_BYTES;

/// Most bytes that are received by one call, after which other tasks may run: 30 to 60 µs of copying
/// in the kernel.
const OWN_MOST: usize = 256 << 10;

impl BodyReader {
    /// Receives a body of `length` bytes, none of which was read with the head. Reads nothing behind
    /// the body. A large one may wait in `line`; if that was in vain, the rest of it is read and
    /// dropped.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`], before anything is read; [`BodyError::MemoryExhausted`];
    /// [`BodyError::Evicted`]; [`BodyError::Disconnected`] if the client closes before the end.
    /// Nothing stays charged.
    pub(super) async fn receive<'a>(
        &self,
        state: &ConnState,
        stream: &ClientStream,
        length: usize,
        line: LargeLine<'a>,
    ) -> Result<ReadBody<'a>, BodyError> {
        self.check_announced(Some(length as u64))?;
        let receiving = Receiving::begin(&self.memory, state, self.memory.buffer(length)?);
        let mut turn = None;
        loop {
            let missing = length - state.body.received.get();
            if missing == 0 {
                break;
            }
            // A small rest is not asked for unless it belongs to a large body.
            let is_large = length > SMALL_BODY_BYTES;
            let waiting = if is_large || missing >= OWN_LEAST { stream.waiting() } else { 0 };
            if is_large
                && waiting >= missing
                && let Some(place) = self.place_in_kernel(missing)
            {
                // The client has done its part, so neither its deadlines nor an eviction end this.
                state.body.held().ok_or(BodyError::Evicted)?;
                state.body_is_whole();
                self.memory.body_ended(state);
                let got = line.turn().await;
                drop(place);
                let is_late = got.is_err();
                turn = Some(got);
                if is_late {
                    let bytes = receiving.end()?;
                    drop_rest(state, stream, missing).await.map_err(|error| ended(Some(error)))?;
                    return Ok(ReadBody { bytes, turn });
                }
                self.receive_rest(state, stream, length).await?;
                break;
            }
            if waiting >= OWN_LEAST && self.receive_waiting(state, stream, waiting)? > 0 {
                rt::yield_now().await;
            } else {
                poll_fn(|cx| self.poll_delivered(cx, state, stream)).await?;
                // With TLS the next ones may be there already.
                rt::yield_if_due().await;
            }
        }
        let mut bytes = receiving.end()?;
        bytes.shrink();
        Ok(ReadBody { bytes, turn })
    }

    /// Room for `bytes` more in the kernel until it is dropped, if there is as much: a core has no
    /// longer line than bodies that wait in memory would make.
    fn place_in_kernel(&self, bytes: usize) -> Option<Charge> {
        let mut place = Charge::new(&self.in_kernel);
        place.try_set(bytes).ok()?;
        Some(place)
    }

    /// Receives the rest of a body, all of which waits in the kernel, into memory that is charged and
    /// allocated at once.
    async fn receive_rest(
        &self,
        state: &ConnState,
        stream: &ClientStream,
        length: usize,
    ) -> Result<(), BodyError> {
        loop {
            let missing = length - state.body.received.get();
            if self.receive_waiting(state, stream, missing)? == 0 {
                // An error, which is told at once: bytes that wait do not go away.
                poll_fn(|cx| self.poll_delivered(cx, state, stream)).await?;
            }
            if state.body.received.get() == length {
                return Ok(());
            }
            rt::yield_if_due().await;
        }
    }

    /// Receives up to [`OWN_MOST`] of the `waiting` bytes of the kernel into the body's memory, which
    /// gets room for as many as are of this body. Returns how many.
    fn receive_waiting(
        &self,
        state: &ConnState,
        stream: &ClientStream,
        waiting: usize,
    ) -> Result<usize, BodyError> {
        let mut bytes = state.body.bytes.borrow_mut();
        let bytes = bytes.as_mut().ok_or(BodyError::Evicted)?;
        let wanted = waiting.min(bytes.room());
        self.memory.make_room_for(bytes, wanted, Some(state))?;
        let most = wanted.min(OWN_MOST);
        let received = bytes.append_with(most, |bytes| stream.receive_waiting(bytes, most));
        state.tally.received_more(received);
        state.body.received.set(bytes.as_slice().len());
        Ok(received)
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

/// Reads the next `missing` bytes of a body and drops them.
pub(super) async fn drop_rest(
    state: &ConnState,
    stream: &ClientStream,
    mut missing: usize,
) -> io::Result<()> {
    while missing > 0 {
        let read = |bytes: &[u8]| bytes.len().min(missing);
        let dropped = poll_fn(|cx| stream.poll_read_with(cx, read)).await;
        let dropped = dropped.inspect_err(|_| state.gone.set(true))?;
        if dropped == 0 {
            state.gone.set(true);
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        state.tally.received_more(dropped);
        state.body.received.set(state.body.received.get() + dropped);
        missing -= dropped;
        rt::yield_if_due().await;
    }
    Ok(())
}

/// The client has closed, or its socket has failed, before the end of the body.
fn ended(error: Option<io::Error>) -> BodyError {
    let text = || "the client closed the connection".to_owned();
    BodyError::Disconnected(error.map_or_else(text, |error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::rc::Rc;
    use std::time::Duration;

    use futures_lite::future::poll_once;

    use super::*;
    use crate::budget::{BODY_PADDING, ChargedBytes};
    use crate::http::body_memory::BodyMemory;
    use crate::http::phase::{BodyEnd, ConnPhase};
    use crate::http::split::{BodySplitter, NoTurn};
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
            // Room for all of a body of `IN_KERNEL`, as a connection has that has been in use.
            socket2::SockRef::from(&listener).set_recv_buffer_size(1 << 20).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.set_nodelay(true).unwrap();
            let ours = listener.accept().unwrap().0;
            ours.set_nonblocking(true).unwrap();
            let stream = Rc::new(ClientStream::Plain(net.stream(ours)));
            let state = ConnState::new(&stream);
            state.body_begins(rt::now());
            Conn { state, stream, client }
        }

        /// Sends `bytes` and waits until all of them are in the kernel.
        fn send_to_kernel(&self, bytes: &[u8]) {
            (&self.client).write_all(bytes).unwrap();
            let began = rt::now();
            while self.stream.waiting() < bytes.len() {
                assert!(rt::since(began) < Duration::from_secs(10), "{}", self.stream.waiting());
                std::thread::sleep(Duration::from_millis(1));
            }
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

    fn splitter(cells: &'static CoreCells) -> BodySplitter {
        BodySplitter::new(usize::MAX, cells)
    }

    /// Receives a body that no other one keeps from its turn.
    async fn alone(
        reader: &BodyReader,
        state: &ConnState,
        stream: &ClientStream,
        length: usize,
    ) -> Result<ChargedBytes, BodyError> {
        let splitter = splitter(&crate::metrics::cells(1)[0]);
        let closed = Cell::new(false);
        let read = reader.receive(state, stream, length, splitter.large_line(&closed)).await?;
        assert!(read.turn.is_none_or(|turn| turn.is_ok() && length > SMALL_BODY_BYTES));
        Ok(read.bytes)
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
                let received = alone(&reader, &conn.state, &conn.stream, length).await;
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
            let nothing = alone(&reader, &conn.state, &conn.stream, 0);
            let nothing = poll_once(nothing).await.expect("it is here").unwrap();
            assert_eq!(nothing.as_slice(), b"");
            drop(nothing);
            let too_long = alone(&reader, &conn.state, &conn.stream, LENGTH_MAX + 1);
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
            let mut receiving = Box::pin(alone(&reader, &state, &conn.stream, LENGTH_MAX));
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
                let received = alone(&reader, &state, &stream, 1_000_000).await;
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
            let mut receiving = Box::pin(alone(&reader, &state, &stalled.stream, LENGTH));
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
            let received = alone(&reader, &other.state, &other.stream, LENGTH).await.unwrap();
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

    /// A body that is received beside others, and the right to the splitter that it waits for.
    struct InLine {
        reader: BodyReader,
        cells: &'static CoreCells,
        splitter: BodySplitter,
        closed: Cell<bool>,
    }

    /// Length of a large body.
    const IN_KERNEL: usize = 80_000;

    impl InLine {
        fn new() -> InLine {
            let (reader, cells) = reader(64 << 20);
            let closed = Cell::new(false);
            InLine { reader, cells, splitter: splitter(cells), closed }
        }

        async fn receive<'a>(&'a self, conn: &Conn) -> Result<ReadBody<'a>, BodyError> {
            let line = self.splitter.large_line(&self.closed);
            self.reader.receive(&conn.state, &conn.stream, IN_KERNEL, line).await
        }
    }

    #[test]
    fn bodies_that_are_in_the_kernel_wait_there_for_their_turn() {
        let line = InLine::new();
        rt::run_test(async {
            let net = Net::here().unwrap();
            let conns = [0; 3].map(|_| Conn::new(&net));
            let before = line.splitter.large_turn(&line.closed).await.unwrap();
            let mut receiving = Vec::new();
            for (number, conn) in (0..).zip(&conns) {
                conn.send_to_kernel(&body(IN_KERNEL, number));
                let mut received = Box::pin(line.receive(conn));
                assert!(poll_once(&mut received).await.is_none(), "it is not its turn");
                assert_eq!(line.cells.large_body_waiters.value(), number + 1);
                assert_eq!(conn.state.body.received.get(), 0);
                // Nobody waits for its client any longer, nor may it lose what it has.
                assert_eq!(conn.state.phase.get(), ConnPhase::Working);
                assert!(conn.state.body.listed.get().is_none());
                receiving.push(received);
            }
            for _ in 0..3 {
                for received in &mut receiving {
                    assert!(poll_once(received).await.is_none(), "it is not its turn");
                }
            }
            drop(before);
            for (number, mut received) in (0..).zip(receiving) {
                let read = poll_once(&mut received).await.expect("it has its turn").unwrap();
                assert!(read.bytes.as_slice() == body(IN_KERNEL, number));
                assert!(matches!(read.turn, Some(Ok(_))));
                assert_eq!(read.bytes.retained(), IN_KERNEL + BODY_PADDING);
            }
            assert_eq!(line.cells.body_bytes.value(), 0);
            assert_eq!(line.cells.large_body_waiters.value(), 0);
        });
    }

    #[test]
    fn a_slow_client_has_no_turn_that_others_wait_for() {
        let line = InLine::new();
        rt::run_test(async {
            let net = Net::here().unwrap();
            let [slow, whole] = [0; 2].map(|_| Conn::new(&net));
            let sender = send(&slow.client, body(IN_KERNEL - 1, 1), 1);
            let mut slowly = Box::pin(line.receive(&slow));
            while slow.state.body.received.get() < IN_KERNEL - 1 {
                assert!(poll_once(&mut slowly).await.is_none());
                rt::yield_now().await;
            }
            assert!(sender.join().unwrap());
            assert_eq!(slow.state.phase.get(), ConnPhase::Body, "its client is waited for");
            for seed in 0..3 {
                whole.send_to_kernel(&body(IN_KERNEL, seed));
                whole.state.body_begins(rt::now());
                let read = poll_once(line.receive(&whole)).await.expect("nobody has the turn");
                let read = read.unwrap();
                assert!(matches!(read.turn, Some(Ok(_))));
                assert!(read.bytes.as_slice() == body(IN_KERNEL, seed));
                assert!(poll_once(&mut slowly).await.is_none());
            }
            (&slow.client).write_all(b"}").unwrap();
            assert_eq!(slowly.await.unwrap().bytes.as_slice().len(), IN_KERNEL);
        });
    }

    #[test]
    fn a_body_without_a_turn_is_read_all_the_same() {
        let line = InLine::new();
        rt::run_test(async {
            let net = Net::here().unwrap();
            let _others = line.splitter.large_turn(&line.closed).await.unwrap();
            for expected in [NoTurn::Late, NoTurn::Closed] {
                let conn = Conn::new(&net);
                conn.send_to_kernel(&[&body(IN_KERNEL, 1)[..], b"NEXT"].concat());
                let mut received = Box::pin(line.receive(&conn));
                assert!(poll_once(&mut received).await.is_none(), "others have the turn");
                line.closed.set(expected == NoTurn::Closed);
                let read = received.await.unwrap();
                assert_eq!(read.turn.map(|turn| turn.err()), Some(Some(expected)));
                assert!(read.bytes.as_slice().len() < IN_KERNEL, "the rest is not kept");
                assert!(line.cells.body_bytes.value() < IN_KERNEL as u64);
                conn.client.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(conn.rest().await, b"NEXT");
            }
        });
    }

    /// Bodies for which the kernel has no more room are received into charged memory, and refused if
    /// there is none either.
    #[test]
    fn as_many_bytes_wait_in_the_kernel_as_the_memory_has() {
        let line = InLine::new();
        rt::run_test(async {
            let net = Net::here().unwrap();
            let _others = line.splitter.large_turn(&line.closed).await.unwrap();
            let max = line.reader.in_kernel.max();
            let _most = line.reader.place_in_kernel(max - IN_KERNEL).unwrap();
            let conns = [(); 2].map(|()| Conn::new(&net));
            let received: Vec<_> = conns
                .iter()
                .map(|conn| {
                    conn.send_to_kernel(&body(IN_KERNEL, 1));
                    Box::pin(line.receive(conn))
                })
                .collect();
            let mut received = received.into_iter();
            let (mut first, second) = (received.next().unwrap(), received.next().unwrap());
            assert!(poll_once(&mut first).await.is_none(), "it waits in the kernel");
            let second = second.await.unwrap();
            assert!(second.turn.is_none() && second.bytes.as_slice() == body(IN_KERNEL, 1));
            assert!(line.cells.body_bytes.value() >= IN_KERNEL as u64, "it is charged");
            drop(first);
            assert_eq!(line.cells.body_kernel_bytes.value(), (max - IN_KERNEL) as u64);
        });
    }

    /// What has come of it by then is a whole body, and counts.
    #[test]
    fn a_client_that_resets_in_the_line_keeps_nobody_from_a_turn() {
        let line = InLine::new();
        rt::run_test(async {
            let net = Net::here().unwrap();
            let before = line.splitter.large_turn(&line.closed).await.unwrap();
            let conn = Conn::new(&net);
            conn.send_to_kernel(&body(IN_KERNEL, 1));
            let Conn { state, stream, client } = conn;
            let large_line = line.splitter.large_line(&line.closed);
            let mut received =
                Box::pin(line.reader.receive(&state, &stream, IN_KERNEL, large_line));
            assert!(poll_once(&mut received).await.is_none(), "it is not its turn");
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            drop((client, before));
            let read = poll_once(&mut received).await.expect("it has its turn").unwrap();
            assert!(read.bytes.as_slice() == body(IN_KERNEL, 1));
            drop(read);
            assert_eq!(line.cells.body_bytes.value(), 0);
            assert!(line.splitter.large_turn(&line.closed).await.is_ok());
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
                        let received = alone(&reader, &state, &stream, length).await;
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
