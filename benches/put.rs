//! What one PUT costs this core: the lean client against `aws-sdk-s3`, into a sink that reads and
//! confirms.
//!
//! `cargo bench --bench put [-- [PUTS [ROUNDS]] [direct|sdk]]`: 32 puts in flight on one pinned
//! executor, both clients in turn, or the one that is named, round after round; CPU time of the
//! executor's thread alone (kernel's side of its sockets included) and allocations, per PUT.
//! Figures of one run compare; across machines they do not. The sink runs on the other CPUs.

#![expect(clippy::disallowed_methods, reason = "a bench blocks and reads /proc")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::hint::black_box;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use millrace::internals::config::{Checksum, S3Client, S3Options};
use millrace::internals::queue::job::{Origin, Payload};
use millrace::internals::rt::{Executor, Placement};
use millrace::internals::store::s3::dial;
use millrace::internals::store::s3::direct::{Destination, Identity, Put, Signer, Template};
use millrace::internals::store::s3::{self, Overrides, S3Control, S3Target};
use millrace::internals::store::{Integrity, Object, Store, StoreSeed, Sums};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const IN_FLIGHT: usize = 32;
const BODY_BYTES: usize = 512;

/// Counts this thread's allocations on top of the server's own allocator.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed to mimalloc as it came; the counter is plain thread-local data that
// allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract, and all memory is mimalloc's.
        unsafe { mimalloc::MiMalloc.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps `realloc`'s contract, and all memory is mimalloc's.
        unsafe { mimalloc::MiMalloc.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a thread has used up.
#[derive(Clone, Copy)]
struct Used {
    cpu_ns: u64,
    allocations: u64,
}

impl Used {
    fn now() -> Used {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
        let cpu_ns = text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number");
        Used { cpu_ns, allocations: ALLOCATIONS.get() }
    }

    /// CPU in µs and allocations since `self`, per one of `n`.
    fn per(self, n: usize) -> (f64, f64) {
        let now = Used::now();
        let per = |total: u64| total as f64 / n as f64;
        (per(now.cpu_ns - self.cpu_ns) / 1000.0, per(now.allocations - self.allocations))
    }
}

fn main() {
    // `cargo bench` passes `--bench`, `cargo test` does not: then it is enough to see that all this
    // works.
    let once = !std::env::args().any(|arg| arg == "--bench");
    let mut numbers = std::env::args().filter_map(|arg| arg.parse::<usize>().ok());
    let puts = numbers.next().unwrap_or(if once { 64 } else { 20_000 });
    let rounds = numbers.next().unwrap_or(if once { 1 } else { 7 });
    signing(puts, rounds);
    let sink = start_sink();
    for checksum in [Checksum::None, Checksum::Crc64Nvme] {
        let mut clients = vec![("direct", S3Client::Direct), ("sdk", S3Client::Sdk)];
        if let Some(only) = clients.iter().find(|(name, _)| std::env::args().any(|a| a == *name)) {
            clients = vec![*only];
        }
        let placement = Placement::pinned(0, &[]).unwrap_or_else(Placement::unpinned);
        let executor = Executor::placed("put", placement, Duration::from_millis(100));
        executor.expect("io_uring is allowed here").run(async {
            let mut stores = Vec::new();
            for (name, client) in clients {
                stores.push((name, store(sink, client, checksum).await));
            }
            let mut figures = vec![Vec::new(); stores.len()];
            for round in 0..=rounds {
                for ((_, (_, store)), figures) in stores.iter().zip(&mut figures) {
                    let figure = run(store, puts).await;
                    // The first connects and warms up.
                    if round > 0 {
                        figures.push(figure);
                    }
                }
            }
            let title = format!("PUT of {BODY_BYTES} B, checksum {checksum:?}");
            report(&title, stores.iter().map(|(name, _)| *name).zip(figures));
        });
    }
}

fn report<'a>(title: &str, lanes: impl Iterator<Item = (&'a str, Vec<(f64, f64)>)>) {
    println!("\n{title}\n{:<12}{:>10}{:>18}{:>14}", "", "µs CPU", "(least to most)", "allocations");
    let mut first = None;
    for (name, mut figures) in lanes {
        figures.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (cpu, allocations) = figures[figures.len() / 2];
        let (least, most) = (figures[0].0, figures[figures.len() - 1].0);
        let ratio = cpu / *first.get_or_insert(cpu);
        println!("{name:<12}{cpu:>10.2}{least:>11.2}{most:>7.2}{allocations:>14.2}   × {ratio:.2}");
    }
}

/// `puts` objects, [`IN_FLIGHT`] at a time.
async fn run(store: &Rc<Store>, puts: usize) -> (f64, f64) {
    let payload = Payload::from(vec![b'x'; BODY_BYTES]);
    let used = Used::now();
    let lanes: Vec<_> = (0..IN_FLIGHT)
        .map(|lane| {
            let (store, payload) = (store.clone(), payload.clone());
            glommio::spawn_local(async move {
                // Of a key's usual length; making it is not the client's business.
                let key = format!("1700000000000000000-00ff00ff00ff00ff-0-{lane}.json");
                let object = Object::of(&key, &payload);
                for _ in 0..puts / IN_FLIGHT {
                    store.put(&object).await.expect("the sink takes everything");
                }
            })
        })
        .collect();
    for lane in lanes {
        lane.await;
    }
    used.per(puts / IN_FLIGHT * IN_FLIGHT)
}

async fn store(sink: SocketAddr, client: S3Client, checksum: Checksum) -> (S3Control, Rc<Store>) {
    let options = S3Options {
        content_type: "application/octet-stream".into(),
        connect_timeout: Duration::from_secs(3),
        client,
        checksum,
        ..S3Options::default()
    };
    let target = S3Target { bucket: "payloads".into(), prefix: "in/".into(), options };
    let overrides = Overrides {
        credentials: Some(Credentials::new("AKIDBENCH", "a secret", None, None, "bench")),
        region: Some("us-east-1".into()),
        endpoint_url: Some(format!("http://{sink}")),
        ..Overrides::default()
    };
    let aws = s3::start(target, overrides).await.expect("everything is given");
    let seed = StoreSeed::S3 { shared: aws.shared(), idle_max: IN_FLIGHT };
    let store = seed.build(&Origin::new("bench".into(), 0), None, 0);
    (aws, Rc::new(store))
}

/// Reads requests, confirms each with as many headers as S3 sends. One thread for all connections:
/// a thread for each would make every send pay for a wake-up.
fn start_sink() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    listener.set_nonblocking(true).expect("a socket");
    let addr = listener.local_addr().expect("a bound socket");
    std::thread::spawn(move || {
        // The executor is pinned to the first CPU.
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        if let Some(other) = cores.last() {
            core_affinity::set_for_current(*other);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        runtime.expect("a runtime").block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("inside the runtime");
            loop {
                let (socket, _) = listener.accept().await.expect("a connection");
                tokio::spawn(confirm_all(socket));
            }
        });
    });
    addr
}

async fn confirm_all(mut socket: TcpStream) {
    const ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\nx-amz-id-2: WQbW6DIbPpZ0g1j6vC2a1vXcFJ0rPLm0eC1t\r\n\
        x-amz-request-id: 8C6S5CJ4YPRA0T7V\r\ndate: Fri, 01 Jan 2100 00:00:00 GMT\r\n\
        x-amz-server-side-encryption: AES256\r\netag: \"098f6bcd4621d373cade4e832627b4f6\"\r\n\
        content-length: 0\r\nserver: AmazonS3\r\n\r\n";
    let _ = socket.set_nodelay(true);
    let (mut buffer, mut filled) = (vec![0; 64 << 10], 0);
    loop {
        match socket.read(&mut buffer[filled..]).await {
            Ok(0) | Err(_) => return,
            Ok(n) => filled += n,
        }
        let Some(head) = buffer[..filled].windows(4).position(|end| end == b"\r\n\r\n") else {
            continue;
        };
        if filled == head + 4 + BODY_BYTES {
            filled = 0;
            if socket.write_all(ANSWER).await.is_err() {
                return;
            }
        }
    }
}

/// The head alone: laid out and signed, against `aws-sigv4` for the same request.
fn signing(heads: usize, rounds: usize) {
    const KEY: &str = "1700000000000000000-00ff00ff00ff00ff-0-1.json";
    let (body, options) = (
        [b'x'; BODY_BYTES],
        S3Options { content_type: "application/octet-stream".into(), ..S3Options::default() },
    );
    let server = dial::ServerAddress { https: false, host: "127.0.0.1".into(), port: 9000 };
    let destination = Destination { server: &server, path: "/payloads/", prefix: "in/" };
    let integrity = Integrity { checksum: Checksum::None, sign_payload: true };
    let template = Template::new(&destination, &options, integrity).expect("plain options");
    let mut signer = Signer::new("us-east-1", "s3");
    let who = Identity { access_key: "AKIDBENCH", secret_key: "a secret", session_token: None };
    let start_s = 1_700_000_000;
    signer.renew(start_s, 1, &who).expect("plain credentials");
    let identity = Credentials::new("AKIDBENCH", "a secret", None, None, "bench").into();
    let mut out = Vec::new();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let used = Used::now();
        for i in 0..heads {
            out.clear();
            let sums = Sums::of(&body, integrity);
            let put = Put { key: KEY, bytes: body.len() as u64, coding: None, sums: &sums };
            template.write_head(&put, start_s + i as u64 / 1000, &mut signer, &mut out);
            black_box(&out);
        }
        ours.push(used.per(heads));
        let used = Used::now();
        for _ in 0..heads {
            let params = v4::SigningParams::builder()
                .identity(&identity)
                .region("us-east-1")
                .name("s3")
                .time(SystemTime::UNIX_EPOCH + Duration::from_secs(start_s))
                .settings(SigningSettings::default())
                .build()
                .expect("complete")
                .into();
            let uri = format!("http://127.0.0.1:9000/payloads/in/{KEY}");
            let headers = [("content-type", "application/octet-stream")].into_iter();
            let body = SignableBody::Bytes(&body);
            let request = SignableRequest::new("PUT", uri, headers, body).expect("a request");
            black_box(sign(request, &params).expect("signs"));
        }
        theirs.push(used.per(heads));
    }
    report("Signature alone", [("direct", ours), ("aws-sigv4", theirs)].into_iter());
}
