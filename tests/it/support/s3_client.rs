//! The store under test against the in-process server: one executor that is control and core at
//! once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aws_credential_types::Credentials;
use futures_lite::future;
use glommio::timer::Timer;
use millrace::internals::config::{S3Client, S3Options};
use millrace::internals::queue::job::{Origin, Payload};
use millrace::internals::rt::Executor;
use millrace::internals::store::s3::proxies::Proxies;
use millrace::internals::store::s3::{self, Overrides, S3Control, S3Target};
use millrace::internals::store::{Store, StoreSeed};

use super::PATIENCE;
use super::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

/// Idle connections the stores here keep.
pub const IDLE_MAX: usize = 8;

/// A host that the resolver refuses by itself, without asking the network: a label of 64
/// characters.
pub const UNRESOLVABLE: &str =
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.example";

/// Runs `test` on a glommio executor of this thread; a test that hangs fails after 3 min.
pub fn on_executor<T>(test: impl Future<Output = T>) -> T {
    let executor = Executor::small().expect("io_uring is allowed here");
    executor.run(async {
        let give_up = async {
            Timer::new(Duration::from_secs(180)).await;
            panic!("the test hangs");
        };
        future::or(test, give_up).await
    })
}

/// Waits for `condition`.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        Timer::new(Duration::from_millis(10)).await;
    }
}

/// Runs each of these scenarios, functions of an [`S3Client`], on both clients: as `direct::NAME`
/// and as `sdk::NAME`.
macro_rules! on_both_clients {
    ($($scenario:ident),+ $(,)?) => {
        mod direct {
            $(#[test] fn $scenario() { super::$scenario(millrace::internals::config::S3Client::Direct); })+
        }
        mod sdk {
            $(#[test] fn $scenario() { super::$scenario(millrace::internals::config::S3Client::Sdk); })+
        }
    };
}
pub(crate) use on_both_clients;

/// The defaults of `config`, but for the client.
pub fn options(client: S3Client) -> S3Options {
    S3Options {
        client,
        content_type: "application/octet-stream".into(),
        connect_timeout: Duration::from_secs(2),
        ..S3Options::default()
    }
}

pub fn target(options: S3Options) -> S3Target {
    S3Target { bucket: BUCKET.into(), prefix: String::new(), options }
}

pub fn keys(access_key: &str, secret_key: &str) -> Option<Credentials> {
    Some(Credentials::new(access_key, secret_key, None, None, "test"))
}

/// The server's own keys and address instead of the environment's.
pub fn overrides(server: &S3Server) -> Overrides {
    Overrides {
        credentials: keys(ACCESS_KEY, SECRET_KEY),
        region: Some("us-east-1".into()),
        endpoint_url: Some(server.url()),
        // Whatever the environment of the tests says.
        proxies: Some(Proxies::none()),
        ..Overrides::default()
    }
}

/// A host that resolves to the server, port included.
pub fn host(name: &str, addr: SocketAddr) -> (String, Vec<SocketAddr>) {
    (name.to_owned(), vec![addr])
}

/// A store on `server` with `options`; keep the [`S3Control`] as long as the store.
pub async fn store_with(server: &S3Server, options: S3Options) -> (S3Control, Store) {
    store_at(target(options), overrides(server)).await
}

pub async fn store_at(target: S3Target, overrides: Overrides) -> (S3Control, Store) {
    let aws = s3::start(target, overrides).await.expect("everything is given");
    let store = store_of(&aws, IDLE_MAX);
    (aws, store)
}

/// A store with the client that `aws`'s options name.
pub fn store_of(aws: &S3Control, idle_max: usize) -> Store {
    let shared = aws.shared();
    let client = shared.target().options.client;
    let origin = Origin::new("test".into(), 0);
    let store = StoreSeed::S3 { shared, idle_max }.build(&origin, None, 0);
    match (&store, client) {
        (Store::Direct(_), S3Client::Direct) | (Store::S3(_), S3Client::Sdk) => store,
        _ => panic!("not the client that was asked for: {client:?}"),
    }
}

/// Connections of `store` that wait for a request.
pub fn idle_connections(store: &Store) -> usize {
    match store {
        Store::Direct(store) => store.idle_connections(),
        Store::S3(store) => store.idle_connections(),
        _ => panic!("no S3 store"),
    }
}

pub fn payload(bytes: impl Into<Vec<u8>>) -> Payload {
    Payload::from(bytes.into())
}
