//! One connection of HTTP/2 and its streams, in turns that the test makes long.

use std::fmt;

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

/// Of any frame that can have them.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const CANCEL: u32 = 8;
const GOOD: &[u8] = br#"{"data":[1]}"#;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// The head of a POST, as literals.
fn head(stream: u32, path: &str, ends: bool) -> Vec<u8> {
    head_with(stream, path, ends, &[])
}

fn head_with(stream: u32, path: &str, ends: bool, more: &[(&str, &str)]) -> Vec<u8> {
    let fields =
        [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x.test")];
    let fields = fields.iter().chain(more);
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
    frame(HEADERS, flags, stream, &block)
}

/// A frame that came.
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frame { kind, flags, stream, payload } = self;
        write!(f, "{kind} {flags:#x} {stream} {}", payload.escape_ascii())
    }
}

/// A client of a bench.
struct H2Peer<'a> {
    bench: &'a Bench,
    client: UnixStream,
    /// Its server's end.
    server_end: UnixStream,
    served: rt::Task<()>,
    got: Vec<u8>,
    is_closed: bool,
}

impl<'a> H2Peer<'a> {
    fn silent(bench: &'a Bench) -> H2Peer<'a> {
        let (ours, client) = UnixStream::pair().unwrap();
        for socket in [&ours, &client] {
            socket.set_nonblocking(true).unwrap();
        }
        socket2::SockRef::from(&ours).set_send_buffer_size(4 << 10).unwrap();
        let server_end = ours.try_clone().unwrap();
        let stream = bench.server.net.stream(ours);
        let entrance = Rc::new(Entrance { number: 0, tls: None });
        let served = rt::spawn(serve(bench.server.clone(), stream, entrance, Readers::Both));
        H2Peer { bench, client, server_end, served, got: Vec::new(), is_closed: false }
    }

    /// Sends preface and settings.
    async fn begin(bench: &'a Bench) -> H2Peer<'a> {
        let mut peer = H2Peer::silent(bench);
        peer.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
        peer.turns(TURNS).await;
        peer
    }

    /// In one piece.
    fn send(&mut self, bytes: &[u8]) {
        assert_eq!(self.client.write(bytes).unwrap(), bytes.len());
    }

    /// Lets the server do what it can, and reads nothing.
    async fn turns(&self, count: usize) {
        for _ in 0..count {
            self.bench.server.net.run_tasks_and_turn().await;
            rt::yield_now().await;
        }
    }

    /// The frames so far.
    fn frames(&mut self) -> Vec<Frame> {
        self.is_closed |= read(&mut self.client, &mut self.got);
        let (mut frames, mut rest) = (Vec::new(), &self.got[..]);
        while let Some((head, behind)) = rest.split_first_chunk::<9>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some((payload, behind)) = behind.split_at_checked(length) else { break };
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let (kind, flags) = (head[3], head[4]);
            frames.push(Frame { kind, flags, stream, payload: payload.to_vec() });
            rest = behind;
        }
        frames
    }

    /// Reads until `done` says so, or the server has closed.
    async fn read_until(&mut self, done: impl Fn(&[Frame]) -> bool) -> Vec<Frame> {
        let began = rt::now();
        loop {
            let frames = self.frames();
            if self.is_closed || done(&frames) {
                return frames;
            }
            assert!(rt::since(began) < PATIENCE, "{frames:#?}");
            rt::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The text of an answer.
    async fn answer(&mut self, stream: u32) -> String {
        let is_end = |frame: &Frame| {
            frame.stream == stream && (frame.kind == RST_STREAM || frame.flags & END_STREAM != 0)
        };
        let frames = self.read_until(|frames| frames.iter().any(is_end)).await;
        let ended = frames.iter().find(|frame| is_end(frame));
        assert!(ended.is_some_and(|end| end.kind != RST_STREAM), "{stream}: {frames:#?}");
        let data = frames.iter().filter(|frame| (frame.kind, frame.stream) == (DATA, stream));
        let bytes = data.flat_map(|frame| frame.payload.clone()).collect();
        String::from_utf8(bytes).unwrap()
    }

    /// Posts something on a stream.
    async fn post(&mut self, stream: u32) {
        let data = frame(DATA, END_STREAM, stream, GOOD);
        self.send(&[head(stream, "/payloads", false), data].concat());
        let text = self.answer(stream).await;
        assert!(text.contains(r#""accepted":1"#), "{stream}: {text}");
    }

    /// Waits until the connection is closed.
    async fn end(mut self) -> Vec<Frame> {
        let frames = self.read_until(|_| false).await;
        let H2Peer { served, client, .. } = self;
        drop(client);
        served.await;
        frames
    }
}

/// A turn that was long before the tasks behind this one run.
async fn long_turn() {
    std::thread::sleep(Duration::from_millis(1));
    rt::yield_now().await;
}

fn bench(more: &[(&str, &str)]) -> Bench {
    Bench::of(&[&[("H2", "all"), ALONE], more].concat(), Readers::Both)
}

#[test]
fn an_answer_of_a_long_turn_goes_out_before_a_stop_closes_its_connection() {
    rt::run_test(async {
        for streams in 1..=5 {
            let bench = bench(&[]);
            let mut peer = H2Peer::begin(&bench).await;
            let numbers: Vec<u32> = (0..streams).map(|number| 2 * number + 1).collect();
            let heads: Vec<_> =
                numbers.iter().flat_map(|stream| head(*stream, "/payloads", false)).collect();
            peer.send(&heads);
            peer.turns(TURNS).await;
            assert_eq!(bench.cells.h2_requests.value(), u64::from(streams));
            let ends: Vec<_> =
                numbers.iter().flat_map(|stream| frame(DATA, END_STREAM, *stream, GOOD)).collect();
            peer.send(&ends);
            bench.server.stop.begin(rt::now());
            bench.server.stop.closed.set(true);
            bench.server.conns.close();
            for _ in 0..50 {
                long_turn().await;
            }
            for stream in numbers {
                let text = peer.answer(stream).await;
                assert!(text.contains(r#""accepted":1"#), "{stream} of {streams}: {text}");
            }
            peer.end().await;
        }
    });
}

#[test]
fn in_a_long_turn_few_requests_begin() {
    const STREAMS: u32 = 50;
    rt::run_test(async {
        let bench = bench(&[]);
        let mut peer = H2Peer::begin(&bench).await;
        let heads: Vec<_> =
            (0..STREAMS).flat_map(|number| head(2 * number + 1, "/payloads", false)).collect();
        peer.send(&heads);
        let held = || bench.cells.body_bytes.value();
        let (mut before, mut most) = (0, 0);
        for _ in 0..20 * STREAMS {
            long_turn().await;
            most = most.max(held() - before);
            before = held();
        }
        // Each has the first 4 KiB for its body.
        let of_one = held() / u64::from(STREAMS);
        assert_eq!((of_one, bench.cells.h2_requests.value()), (4 << 10, u64::from(STREAMS)));
        assert!(most <= 2 * of_one, "{} began in one turn", most / of_one);
        drop(peer.client);
        peer.served.await;
    });
}

/// What has come of a body may be in the library when another stream of its connection needs memory.
#[test]
fn a_body_whose_bytes_have_come_keeps_its_memory() {
    rt::run_test(async {
        let bench = bench(&[]);
        let mut peer = H2Peer::begin(&bench).await;
        let (body, wants) = (1, 3);
        let begun = [GOOD, &[b' '; 2_000]].concat();
        peer.send(
            &[
                head(body, "/payloads", false),
                frame(DATA, 0, body, &begun),
                head(wants, "/payloads", false),
                frame(DATA, 0, wants, b" "),
            ]
            .concat(),
        );
        peer.turns(TURNS).await;
        let used = || bench.cells.body_bytes.value() as usize;
        assert_eq!(used(), 2 * (4 << 10));
        // All other memory is somebody's.
        let mut others = Vec::new();
        while used() < BYTES {
            let bytes = (BYTES - used()).min(32 << 10);
            others.push(bench.server.bodies.memory.buffer_of(bytes).unwrap());
        }
        // As long as a body may pause.
        rt::sleep(Duration::from_millis(300)).await;
        let more = frame(DATA, END_STREAM, wants, &[b' '; 8_000]);
        peer.send(&[more, frame(DATA, END_STREAM, body, b" ")].concat());
        let text = peer.answer(body).await;
        assert!(text.contains(r#""accepted":1"#), "{text}");
        let text = peer.answer(wants).await;
        assert!(text.contains("memory for request bodies is used up"), "{text}");
        drop(peer.client);
        peer.served.await;
        drop(others);
        assert_eq!(bench.cells.body_bytes.value(), 0);
    });
}

#[test]
fn who_waits_for_a_quota_holds_up_no_other_of_its_connection() {
    rt::run_test(async {
        let settings = [
            ("H2", "all"),
            ALONE,
            ("TRUST", "0.0.0.0"),
            ("CLIENT_RATE", "1/h"),
            ("CLIENT_BURST", "1"),
            ("BODY_TIMEOUT", "250ms"),
        ];
        let config = Arc::new(Config::from_settings(&settings).unwrap());
        let net = Net::here().unwrap();
        for waiting_length in [None, Some("12"), Some("20000")] {
            // Control is waited for, and does nothing.
            let quotas = SharedQuotas::new(&config, rt::now() + PATIENCE);
            let bench = Bench::with_quotas(&net, &config, None, Readers::Both, quotas);
            let mut peer = H2Peer::begin(&bench).await;
            let of = |stream, client, length: Option<&str>| {
                let mut fields = vec![("x-forwarded-for", client)];
                fields.extend(length.map(|length| ("content-length", length)));
                head_with(stream, "/payloads", false, &fields)
            };
            let (begun, waits, other) = (1, 5, 7);
            let first = [of(3, "192.0.2.2", None), frame(DATA, END_STREAM, 3, GOOD)];
            let one = [of(begun, "192.0.2.1", None), frame(DATA, 0, begun, &GOOD[..5])];
            peer.send(&[one.concat(), first.concat()].concat());
            peer.answer(3).await;
            peer.send(&of(waits, "192.0.2.2", waiting_length));
            peer.turns(TURNS).await;
            let rest = [of(other, "192.0.2.3", None), frame(DATA, END_STREAM, other, GOOD)];
            peer.send(&[frame(DATA, END_STREAM, begun, &GOOD[5..]), rest.concat()].concat());
            for stream in [begun, other] {
                let text = peer.answer(stream).await;
                assert!(text.contains(r#""accepted":1"#), "{stream}, {waiting_length:?}: {text}");
            }
            let waited = peer.frames().iter().all(|frame| frame.stream != waits);
            assert!(waited, "{waiting_length:?}");
            drop(peer.client);
            peer.served.await;
        }
    });
}

/// A window is the client's to say. An answer is sent once all of it is.
#[test]
fn an_answer_for_which_there_is_room_in_part_has_a_deadline() {
    rt::run_test(async {
        let bench = bench(&[("IDLE_TIMEOUT", "400ms")]);
        let mut peer = H2Peer::silent(&bench);
        let window = [&4_u16.to_be_bytes()[..], &1_u32.to_be_bytes()].concat();
        peer.send(&[PREFACE, &frame(SETTINGS, 0, 0, &window)].concat());
        peer.send(&[head(1, "/payloads", false), frame(DATA, END_STREAM, 1, GOOD)].concat());
        let began = rt::now();
        let is_reset = |frame: &Frame| (frame.kind, frame.stream) == (RST_STREAM, 1);
        // Others of its connection are served meanwhile.
        for stream in (3..).step_by(2) {
            let window = frame(8, 0, stream, &1_000_u32.to_be_bytes());
            let request = [head(stream, "/payloads", false), window];
            peer.send(&[request.concat(), frame(DATA, END_STREAM, stream, GOOD)].concat());
            peer.answer(stream).await;
            if peer.frames().iter().any(is_reset) {
                break;
            }
            assert!(rt::since(began) < PATIENCE / 4, "stream 1 is still open");
            rt::sleep(Duration::from_millis(10)).await;
        }
        let frames = peer.frames();
        let reset = frames.iter().find(|frame| is_reset(frame)).unwrap();
        assert_eq!(reset.payload, CANCEL.to_be_bytes());
        assert!(rt::since(began) >= Duration::from_millis(400));
        assert_eq!(bench.cells.h2_answers_unread.value(), 1);
        drop(peer.client);
        peer.served.await;
    });
}

/// `DATA` of streams that are closed, as far as the server knows, each of which it resets.
fn late(count: u32) -> Vec<u8> {
    let streams = (0..count).map(|number| 2 * number + 1);
    streams.flat_map(|stream| frame(DATA, 0, stream, b"x")).collect()
}

/// A stream that no [`late`] one follows.
const LAST: u32 = 100_001;

#[test]
fn nothing_is_read_of_a_client_that_takes_nothing() {
    rt::run_test(async {
        let bench = bench(&[]);
        // Answers that fill its socket.
        let deaf = async || {
            let mut peer = H2Peer::begin(&bench).await;
            let refused = |number: u32| head(LAST + 2 * number, "/nope", true);
            peer.send(&(0..60).flat_map(refused).collect::<Vec<_>>());
            peer.turns(10).await;
            peer
        };
        let mut peer = deaf().await;
        peer.send(&late(9_000));
        peer.turns(100).await;
        let unread = rustix::io::ioctl_fionread(&peer.server_end).unwrap();
        assert!(unread > 40_000, "{unread} bytes are unread");
        drop(peer.client);
        peer.served.await;
        // It goes on once the client reads.
        let mut peer = deaf().await;
        peer.send(&late(600));
        peer.turns(50).await;
        let resets =
            |frames: &[Frame]| frames.iter().filter(|frame| frame.kind == RST_STREAM).count();
        let frames = peer.read_until(|frames| resets(frames) == 600).await;
        assert_eq!(resets(&frames), 600);
        peer.post(LAST + 200).await;
        drop(peer.client);
        peer.served.await;
    });
}

/// As a proxy does when it loses the clients of requests that it has just begun.
#[test]
fn who_gives_up_many_requests_at_once_is_served() {
    rt::run_test(async {
        let bench = bench(&[]);
        let mut peer = H2Peer::begin(&bench).await;
        let cancel = CANCEL.to_be_bytes();
        let one = |number: u32| {
            let stream = 2 * number + 1;
            [head(stream, "/payloads", false), frame(RST_STREAM, 0, stream, &cancel)].concat()
        };
        peer.send(&(0..120).flat_map(one).collect::<Vec<_>>());
        peer.turns(10).await;
        peer.post(1_001).await;
        drop(peer.client);
        peer.served.await;
        assert_eq!(bench.cells.h2_requests.value(), 0);
    });
}

#[test]
fn what_comes_late_of_bodies_is_no_flood_of_resets() {
    rt::run_test(async {
        let bench = bench(&[]);
        let mut peer = H2Peer::begin(&bench).await;
        peer.post(LAST).await;
        for _ in 0..3 {
            peer.send(&late(200));
            peer.turns(10).await;
            peer.frames();
        }
        peer.post(LAST + 2).await;
        drop(peer.client);
        peer.served.await;
    });
}

#[test]
fn a_goodbye_names_no_stream_above_that_of_the_one_before() {
    rt::run_test(async {
        let bench = bench(&[]);
        let mut peer = H2Peer::begin(&bench).await;
        peer.send(&head(1, "/payloads", false));
        peer.turns(TURNS).await;
        bench.server.stop.begin(rt::now());
        bench.server.conns.wake_all();
        let is_ping = |frame: &Frame| frame.kind == PING;
        let frames = peer.read_until(|frames| frames.iter().any(is_ping)).await;
        let ping = frames.into_iter().find(is_ping).unwrap();
        peer.send(&frame(PING, ACK, 0, &ping.payload));
        let goodbyes = |frames: &[Frame]| -> Vec<u32> {
            let all = frames.iter().filter(|frame| frame.kind == GOAWAY);
            all.map(|frame| u32::from_be_bytes(*frame.payload.first_chunk().unwrap())).collect()
        };
        peer.read_until(|frames| goodbyes(frames).len() == 2).await;
        // A request that came too late, and what ends the connection.
        peer.send(
            &[head(3, "/payloads", false), frame(PING, 0, 0, &[0; 8]).repeat(1_100)].concat(),
        );
        let frames = peer.end().await;
        assert_eq!(goodbyes(&frames), [i32::MAX as u32, 1, 1], "{frames:?}");
    });
}

#[test]
fn a_preface_in_pieces_is_no_request() {
    rt::run_test(async {
        let bench = bench(&[("HEADER_TIMEOUT", "400ms"), ("IDLE_TIMEOUT", "1m")]);
        let began = rt::now();
        let mut peer = H2Peer::silent(&bench);
        // The first byte may be that of a POST.
        let (first, rest) = PREFACE.split_at(1);
        for piece in [first].into_iter().chain(rest.chunks(10)) {
            peer.send(piece);
            peer.turns(TURNS).await;
        }
        peer.send(&frame(SETTINGS, 0, 0, &[]));
        peer.end().await;
        let taken = rt::since(began);
        assert!(taken >= Duration::from_millis(400) && taken < PATIENCE / 2, "{taken:?}");
    });
}
