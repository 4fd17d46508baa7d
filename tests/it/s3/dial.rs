//! How connections to the store are opened and for how long they are used: dead addresses and age.

use std::time::{Duration, Instant};

use glommio::timer::Timer;
use millrace::internals::config::{S3Client, S3Options};
use millrace::internals::store::{Object, Store};

use crate::support::s3::{BUCKET, S3Server, deaf_listener};
use crate::support::s3_client::{
    on_both_clients, on_executor, options, overrides, payload, store_at, store_with, target,
};

on_both_clients!(
    a_dead_address_costs_one_connection_a_delay,
    addresses_that_all_are_dead_end_with_the_timeout,
    a_busy_connection_ends_at_its_age,
    a_connection_without_an_age_is_used_for_ever,
);

async fn put(store: &Store, key: &str) {
    store.put(&Object::of(key, &payload("{}"))).await.expect("a put");
}

fn a_dead_address_costs_one_connection_a_delay(client: S3Client) {
    let server = S3Server::start();
    let (_full, deaf) = deaf_listener();
    on_executor(async {
        let mut overrides = overrides(&server);
        overrides.endpoint_url = Some("http://store.example".into());
        overrides.hosts = vec![("store.example".into(), vec![deaf, server.addr()])];
        let mut options = options(client);
        // Each address having its share of this would take five seconds.
        options.connect_timeout = Duration::from_secs(10);
        let (_aws, store) = store_at(target(options), overrides).await;
        let started = Instant::now();
        put(&store, "k").await;
        let first = started.elapsed();
        assert!(first >= Duration::from_millis(250), "{first:?}");
        assert!(first < Duration::from_millis(4_900), "{first:?}");
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            server.close_connections();
            while server.open_connections() > 0 {
                Timer::new(Duration::from_millis(5)).await;
            }
            let started = Instant::now();
            put(&store, "k").await;
            fastest = fastest.min(started.elapsed());
        }
        let is_faster = fastest < first.saturating_sub(Duration::from_millis(150));
        assert!(
            fastest < Duration::from_millis(250) || is_faster,
            "the dead one is tried last: {fastest:?}, at first {first:?}"
        );
        assert!(server.accepted_connections() >= 6);
    });
}

fn addresses_that_all_are_dead_end_with_the_timeout(client: S3Client) {
    let server = S3Server::start();
    let (_full, deaf) = deaf_listener();
    let (_other_full, other) = deaf_listener();
    on_executor(async {
        let mut overrides = overrides(&server);
        overrides.endpoint_url = Some("http://store.example".into());
        overrides.hosts = vec![("store.example".into(), vec![deaf, other])];
        let mut options = options(client);
        options.connect_timeout = Duration::from_millis(600);
        let (_aws, store) = store_at(target(options), overrides).await;
        for _ in 0..2 {
            let started = Instant::now();
            let error = store.put(&Object::of("k", &payload("{}"))).await.unwrap_err();
            assert_eq!(error.code, "ConnectTimeout", "{error}");
            assert!(started.elapsed() >= Duration::from_millis(600));
        }
    });
}

/// Puts one after the other for `time` and until `least` connections were made; how many that took,
/// and how long.
fn connections_of(options: S3Options, time: Duration, least: u64) -> (u64, Duration) {
    let server = S3Server::start();
    let took = on_executor(async {
        let (_aws, store) = store_with(&server, options).await;
        let started = Instant::now();
        while started.elapsed() < time || server.accepted_connections() < least {
            put(&store, "k").await;
        }
        started.elapsed()
    });
    let requests = server.requests();
    assert!(requests.iter().all(|seen| seen.path.starts_with(&format!("/{BUCKET}/k"))));
    (server.accepted_connections(), took)
}

fn a_busy_connection_ends_at_its_age(client: S3Client) {
    let connection_age = Duration::from_millis(200);
    let options = S3Options { connection_age, ..options(client) };
    let (connections, took) = connections_of(options, Duration::from_millis(1_100), 3);
    // Each is used for 160 to 240 ms, or for one put that takes longer.
    let most = took.as_millis() as u64 / 160 + 1;
    assert!(connections <= most, "{connections} in {took:?}");
}

fn a_connection_without_an_age_is_used_for_ever(client: S3Client) {
    let options = S3Options { connection_age: Duration::ZERO, ..options(client) };
    assert_eq!(connections_of(options, Duration::from_millis(500), 1).0, 1);
}
