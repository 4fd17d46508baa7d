//! What goes wrong between a core and the store, and what the worker is told.
//!
//! A real client against a real server that misbehaves on demand; each test checks the class of the
//! error and that no connection stays behind.

use std::time::{Duration, Instant, SystemTime};

use aws_smithy_types::date_time::{DateTime, Format};
use futures_lite::future;
use glommio::timer::Timer;
use millrace::internals::config::{S3Client, S3Options};
use millrace::internals::store::Class::{self, Object, StoreWide, Transient};
use millrace::internals::store::{self, Store};

use crate::support::s3::{
    ACCESS_KEY, BUCKET, Fault, S3Server, SECRET_KEY, deaf_listener, silent_port,
};
use crate::support::s3_client::{
    UNRESOLVABLE, eventually, host, idle_connections, on_both_clients, on_executor, options,
    overrides, payload, store_at, store_with, target,
};

on_both_clients!(
    answers_have_their_class,
    an_object_that_is_there_is_stored_only_where_that_was_asked,
    the_stores_own_message_is_kept,
    what_the_store_says_beside_code_and_message_is_kept,
    the_remedy_fits_the_stores_message,
    really_wrong_keys_are_store_wide,
    closed_in_the_middle_of_a_first_request_is_transient,
    a_kept_connection_that_turns_out_closed_is_retried_once,
    a_kept_connection_the_server_has_dropped_is_not_used,
    an_answer_that_breaks_off_is_not_sent_again,
    a_put_that_is_dropped_leaves_nothing_behind,
    many_at_once_share_and_bound_the_pool,
    the_next_address_is_tried,
    no_listener_no_name_no_answer_to_a_connect,
    a_temporary_redirect_is_followed_once,
    a_skewed_clock_takes_the_stores_time,
    one_wrong_clock_among_the_servers_wedges_nothing,
);

async fn put(store: &Store, key: &str) -> Result<(), (Class, String)> {
    store.put(&store::Object::of(key, &payload("{}"))).await.map_err(|e| (e.class, e.code))
}

fn failed(class: Class, code: &str) -> Result<(), (Class, String)> {
    Err((class, code.to_owned()))
}

fn answers_have_their_class(client: S3Client) {
    let table = [
        (503, "SlowDown", Transient),
        (500, "InternalError", Transient),
        (400, "RequestTimeout", Transient),
        (409, "ConditionalRequestConflict", Transient),
        (429, "TooManyRequests", Transient),
        (403, "AccessDenied", StoreWide),
        (404, "NoSuchBucket", StoreWide),
        (301, "PermanentRedirect", StoreWide),
        (400, "AuthorizationHeaderMalformed", StoreWide),
        (403, "InvalidAccessKeyId", StoreWide),
        (403, "SignatureDoesNotMatch", StoreWide),
        (400, "KMS.DisabledException", StoreWide),
        (400, "InvalidArgument", Object),
        (400, "EntityTooLarge", Object),
        (400, "KeyTooLongError", Object),
    ];
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        for (status, code, class) in table {
            server.fail_next(Fault::error(status, code));
            assert_eq!(put(&store, "k").await, failed(class, code));
        }
        // Nothing S3 about it: a gateway's page.
        let headers = vec![("content-type", "text/html".to_owned())];
        let body = "<html>bad gateway</html>".to_owned();
        server.fail_next(Fault::Reply { status: 502, headers, body });
        assert_eq!(put(&store, "k").await, failed(Transient, "Http502"));
        assert_eq!(put(&store, "k").await, Ok(()));
    });
    assert_eq!(server.accepted_connections(), 1, "an error answer costs no connection");
}

/// Each way in which a store says that a key is taken, and what looks like it.
fn an_object_that_is_there_is_stored_only_where_that_was_asked(client: S3Client) {
    let bare = |status| Fault::Reply { status, headers: vec![], body: String::new() };
    let html = || {
        let headers = vec![("content-type", "text/html".to_owned())];
        Fault::Reply { status: 412, headers, body: "<html>no</html>".to_owned() }
    };
    let worm = "Object is WORM protected and cannot be overwritten";
    type Case = (Box<dyn Fn() -> Fault>, bool, Result<(), (Class, String)>);
    let case =
        |fault: Box<dyn Fn() -> Fault>, there, otherwise| -> Case { (fault, there, otherwise) };
    let coded = |status, code: &'static str| -> Box<dyn Fn() -> Fault> {
        Box::new(move || Fault::error(status, code))
    };
    let cases = [
        case(coded(412, "PreconditionFailed"), true, failed(StoreWide, "PreconditionFailed")),
        case(Box::new(move || bare(412)), true, failed(StoreWide, "Http412")),
        case(Box::new(html), true, failed(StoreWide, "Http412")),
        case(Box::new(move || bare(304)), true, failed(StoreWide, "Http304")),
        case(coded(409, "BucketAlreadyExists"), true, failed(StoreWide, "BucketAlreadyExists")),
        case(coded(409, "FileAlreadyExists"), true, failed(StoreWide, "FileAlreadyExists")),
        case(
            coded(403, "ObjectLockedByBucketPolicy"),
            true,
            failed(Object, "ObjectLockedByBucketPolicy"),
        ),
        case(
            Box::new(move || Fault::error_with(400, "InvalidRequest", worm, &[])),
            true,
            failed(Object, "InvalidRequest"),
        ),
        case(
            coded(409, "ConditionalRequestConflict"),
            false,
            failed(Transient, "ConditionalRequestConflict"),
        ),
        case(Box::new(move || bare(409)), false, failed(Transient, "Http409")),
        // Not the store's word on the condition.
        case(coded(412, "SomethingElse"), false, failed(StoreWide, "SomethingElse")),
        case(coded(409, "InvalidBucketState"), false, failed(StoreWide, "InvalidBucketState")),
    ];
    let server = S3Server::start();
    on_executor(async {
        let (_aws, plain) = store_with(&server, options(client)).await;
        let asking = S3Options { if_none_match: true, ..options(client) };
        let (_aws, asking) = store_with(&server, asking).await;
        for (fault, there, otherwise) in &cases {
            server.fail_next(fault());
            assert_eq!(put(&plain, "k").await, *otherwise, "no condition was sent");
            server.fail_next(fault());
            let expected = if *there { Ok(()) } else { otherwise.clone() };
            assert_eq!(put(&asking, "k").await, expected, "{otherwise:?}");
        }
        assert!(server.requests().iter().all(|r| r.method == "PUT"), "nobody looks first");
        for _ in 0..2 {
            assert_eq!(put(&asking, "k").await, Ok(()), "the server's own 412 the second time");
        }
    });
    assert_eq!(server.objects().len(), 1);
}

fn what_the_store_says_beside_code_and_message_is_kept(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        let ids = [("x-amz-request-id", "R1"), ("x-amz-id-2", "h/2=")];
        // Also of a 200 that is none.
        for status in [400, 503, 200] {
            server.fail_next(Fault::error_with(status, "InternalError", "no", &ids));
            let error = store.put(&store::Object::of("k", &payload("{}"))).await.unwrap_err();
            let ids = "x-amz-request-id R1, x-amz-id-2 h/2=";
            assert_eq!(error.request_ids.as_deref(), Some(ids));
            assert_eq!(error.to_string(), format!("InternalError: no ({ids})"));
        }
        // The document says `<RequestId>1</RequestId>`.
        server.fail_next(Fault::error(503, "SlowDown"));
        let error = store.put(&store::Object::of("k", &payload("{}"))).await.unwrap_err();
        assert_eq!(error.request_ids.as_deref(), Some("RequestId 1"));
        server.fail_next(Fault::Reply { status: 502, headers: vec![], body: String::new() });
        let error = store.put(&store::Object::of("k", &payload("{}"))).await.unwrap_err();
        assert_eq!((error.request_ids, error.remedy), (None, ""));
        // Another API of the same provider.
        let body = r#"{"code": "unauthorized", "status": 401}"#.to_owned();
        server.fail_next(Fault::Reply { status: 401, headers: vec![], body: body.clone() });
        let error = store.put(&store::Object::of("k", &payload("{}"))).await.unwrap_err();
        assert_eq!((error.code, error.message), ("Http401".to_owned(), body));
    });
}

/// Garage's words for what others have codes for.
fn the_remedy_fits_the_stores_message(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        for (message, remedy) in [
            ("Forbidden: Invalid signature", "AWS_SECRET_ACCESS_KEY"),
            ("Forbidden: No such key: GK1", "AWS_ACCESS_KEY_ID"),
            ("Forbidden: Operation is not allowed for this key.", "s3:PutObject"),
            ("Forbidden: Object quota is reached, maximum objects for this bucket: 1", "quota"),
        ] {
            server.fail_next(Fault::error_with(403, "AccessDenied", message, &[]));
            let error = store.put(&store::Object::of("k", &payload("{}"))).await.unwrap_err();
            assert_eq!((error.class, error.message.as_str()), (StoreWide, message));
            assert!(error.remedy.contains(remedy), "{message}: {}", error.remedy);
        }
    });
}

fn the_stores_own_message_is_kept(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        server.fail_next(Fault::error_with(403, "AccessDenied", "User x may not PutObject", &[]));
        let error = store.put(&store::Object::of("k", &payload("{}"))).await.unwrap_err();
        assert_eq!(error.message, "User x may not PutObject");
    });
}

fn really_wrong_keys_are_store_wide(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let mut stranger = overrides(&server);
        stranger.credentials = crate::support::s3_client::keys("AKIDNOBODY", "secret");
        let (_aws, store) = store_at(target(options(client)), stranger).await;
        assert_eq!(put(&store, "k").await, failed(StoreWide, "InvalidAccessKeyId"));

        let mut mistyped = overrides(&server);
        mistyped.credentials = crate::support::s3_client::keys(ACCESS_KEY, "secret");
        let (_aws, store) = store_at(target(options(client)), mistyped).await;
        assert_eq!(put(&store, "k").await, failed(StoreWide, "SignatureDoesNotMatch"));
    });
}

fn closed_in_the_middle_of_a_first_request_is_transient(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        server.fail_next(Fault::Close);
        assert_eq!(put(&store, "k").await, failed(Transient, "ConnectionBroken"));
        assert_eq!(server.requests().len(), 1, "a new connection's failure is not retried here");

        let (_aws, store) = store_with(&server, options(client)).await;
        server.fail_next(Fault::Close);
        let large = payload(vec![7; 10_000_000]);
        let error = store.put(&store::Object::of("large", &large)).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (Transient, "ConnectionBroken"));
        eventually("all closed", || server.open_connections() == 0).await;
    });
}

fn a_kept_connection_that_turns_out_closed_is_retried_once(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        assert_eq!(put(&store, "a").await, Ok(()));
        // The server closes just as the next request comes: the client could not have known.
        server.fail_next(Fault::Close);
        assert_eq!(put(&store, "b").await, Ok(()));
        let seen: Vec<_> = server.requests().iter().map(|r| r.connection).collect();
        assert_eq!(seen, [0, 0, 1]);
        assert_eq!(server.object("b"), Some(b"{}".to_vec()));

        // Once, not for ever.
        server.fail_next(Fault::Close);
        server.fail_next(Fault::Close);
        assert_eq!(put(&store, "c").await, failed(Transient, "ConnectionBroken"));
        assert_eq!(server.requests().len(), 5);
    });
}

fn a_kept_connection_the_server_has_dropped_is_not_used(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        server.fail_next(Fault::AnswerThenClose);
        assert_eq!(put(&store, "a").await, Ok(()));
        eventually("dropped", || server.open_connections() == 0).await;
        assert_eq!(put(&store, "b").await, Ok(()));
        server.close_connections();
        eventually("dropped", || server.open_connections() == 0).await;
        assert_eq!(put(&store, "c").await, Ok(()));
        assert_eq!(server.requests().len(), 3, "each was sent once");
    });
}

fn an_answer_that_breaks_off_is_not_sent_again(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        assert_eq!(put(&store, "a").await, Ok(()));
        server.fail_next(Fault::CutAnswer);
        assert_eq!(put(&store, "b").await, failed(Transient, "ConnectionBroken"));
        assert_eq!(server.requests().len(), 2);
        eventually("closed", || server.open_connections() == 0).await;
    });
}

fn a_put_that_is_dropped_leaves_nothing_behind(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        // On a new connection, on a kept one, and with most of a large body unsent.
        let stall = Fault::Stall(Duration::from_secs(2));
        for (fault, bytes, kept) in
            [(Fault::Hang, 2, false), (Fault::Hang, 2, true), (stall, 10_000_000, true)]
        {
            if kept {
                assert_eq!(put(&store, "k").await, Ok(()));
            }
            server.fail_next(fault);
            let before = server.requests().len();
            let put = async {
                store.put(&store::Object::of("k", &payload(vec![b' '; bytes]))).await.is_ok()
            };
            let give_up = async {
                eventually("the server has seen it", || server.requests().len() > before).await;
                Timer::new(Duration::from_millis(100)).await;
                false
            };
            assert!(!future::or(put, give_up).await);
            eventually("its socket is closed", || server.open_connections() == 0).await;
            assert_eq!(idle_connections(&store), 0);
        }
        assert_eq!(put(&store, "k").await, Ok(()));
        assert_eq!(idle_connections(&store), 1);
        drop(store);
        eventually("the pool closed its own", || server.open_connections() == 0).await;
    });
}

fn many_at_once_share_and_bound_the_pool(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        let store = std::rc::Rc::new(store);
        let puts: Vec<_> = (0..32)
            .map(|i| {
                let store = store.clone();
                glommio::spawn_local(async move { put(&store, &format!("k{i}")).await })
            })
            .collect();
        for put in puts {
            assert_eq!(put.await, Ok(()));
        }
        assert_eq!(server.objects().len(), 32);
        assert_eq!(idle_connections(&store), crate::support::s3_client::IDLE_MAX);
        eventually("the rest are closed", || {
            server.open_connections() == crate::support::s3_client::IDLE_MAX
        })
        .await;
    });
}

fn the_next_address_is_tried(client: S3Client) {
    let server = S3Server::start();
    let (_nobody, closed) = silent_port();
    on_executor(async {
        let mut overrides = overrides(&server);
        overrides.endpoint_url = Some("http://store.example".into());
        overrides.hosts = vec![("store.example".into(), vec![closed, server.addr()])];
        let (_aws, store) = store_at(target(options(client)), overrides).await;
        assert_eq!(put(&store, "k").await, Ok(()));
        assert_eq!(server.last_request().header("host"), Some("store.example"));
    });
}

fn no_listener_no_name_no_answer_to_a_connect(client: S3Client) {
    let server = S3Server::start();
    let (_nobody, closed) = silent_port();
    let (_full, deaf) = deaf_listener();
    on_executor(async {
        for (url, code) in [
            (format!("http://{closed}"), "Unreachable"),
            (format!("http://{UNRESOLVABLE}"), "Unresolved"),
            (format!("http://{deaf}"), "ConnectTimeout"),
        ] {
            let mut overrides = overrides(&server);
            overrides.endpoint_url = Some(url);
            let mut options = options(client);
            options.connect_timeout = Duration::from_millis(300);
            let (_aws, store) = store_at(target(options), overrides).await;
            let started = Instant::now();
            assert_eq!(put(&store, "k").await, failed(Transient, code));
            assert!(started.elapsed() < Duration::from_secs(10));
        }
    });
}

fn a_temporary_redirect_is_followed_once(client: S3Client) {
    let (here, there) = (S3Server::start(), S3Server::start());
    on_executor(async {
        let mut overrides = overrides(&here);
        overrides.hosts = vec![host("other.example", there.addr())];
        let (_aws, store) = store_at(target(options(client)), overrides).await;
        // s3s checks the signature, which covers the host.
        let location = format!("http://other.example/{BUCKET}/a%20key");
        here.fail_next(Fault::redirect(&location));
        assert_eq!(put(&store, "a key").await, Ok(()));
        assert_eq!(there.object("a key"), Some(b"{}".to_vec()));
        assert_eq!(there.last_request().header("host"), Some("other.example"));

        here.fail_next(Fault::redirect(&location));
        there.fail_next(Fault::redirect(&location));
        assert_eq!(put(&store, "a key").await, failed(Transient, "TemporaryRedirect"));
        assert_eq!((here.requests().len(), there.requests().len()), (2, 2));

        // Nowhere to go: the refusal itself is the answer.
        here.fail_next(Fault::redirect("/relative"));
        assert_eq!(put(&store, "a key").await, failed(Transient, "TemporaryRedirect"));
        // The next put starts at the endpoint again.
        assert_eq!(put(&store, "here").await, Ok(()));
        assert_eq!(here.object("here"), Some(b"{}".to_vec()));
    });
}

fn a_skewed_clock_takes_the_stores_time(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let (_aws, store) = store_with(&server, options(client)).await;
        server.fail_next(skewed(3));
        assert_eq!(put(&store, "k").await, failed(Transient, "RequestTimeTooSkewed"));
        server.fail_next(ahead(3, 503, "SlowDown"));
        assert_eq!(put(&store, "k").await, failed(Transient, "SlowDown"));
        let ahead = signed_ahead(&server);
        assert!((10_790..=10_810).contains(&ahead), "{ahead} s");
        // The real server now finds the clock wrong, says its time, and all is well.
        assert_eq!(put(&store, "k").await, failed(Transient, "RequestTimeTooSkewed"));
        assert_eq!(put(&store, "k").await, Ok(()));
    });
}

fn skewed(hours: i64) -> Fault {
    ahead(hours, 403, "RequestTimeTooSkewed")
}

/// An answer by a server whose clock is so many hours ahead of this one's.
fn ahead(hours: i64, status: u16, code: &str) -> Fault {
    let now = DateTime::from(SystemTime::now());
    let date = DateTime::from_secs(now.secs() + hours * 3600).fmt(Format::HttpDate).unwrap();
    Fault::error_with(status, code, "injected", &[("date", &date)])
}

/// How many seconds ahead of this clock the last request was signed.
fn signed_ahead(server: &S3Server) -> i64 {
    let date = server.last_request().header("x-amz-date").unwrap().to_owned();
    let dashed = format!(
        "{}-{}-{}T{}:{}:{}Z",
        &date[..4],
        &date[4..6],
        &date[6..8],
        &date[9..11],
        &date[11..13],
        &date[13..15]
    );
    let signed = DateTime::from_str(&dashed, Format::DateTime).unwrap();
    signed.secs() - DateTime::from(SystemTime::now()).secs()
}

fn one_wrong_clock_among_the_servers_wedges_nothing(client: S3Client) {
    let server = S3Server::start();
    on_executor(async {
        let mut overrides = overrides(&server);
        let soon = SystemTime::now() + Duration::from_secs(3600);
        let keys =
            aws_credential_types::Credentials::new(ACCESS_KEY, SECRET_KEY, None, Some(soon), "t");
        overrides.credentials = Some(keys);
        let (_aws, store) = store_at(target(options(client)), overrides).await;
        // By that server's time the credentials have expired, by this host's they have not: they
        // are sent.
        server.fail_next(skewed(3));
        assert_eq!(put(&store, "k").await, failed(Transient, "RequestTimeTooSkewed"));
        assert_eq!(put(&store, "k").await, failed(Transient, "RequestTimeTooSkewed"));
        assert_eq!(put(&store, "k").await, Ok(()));
        // A time that no mistake with hours explains is not taken.
        server.fail_next(skewed(24 * 365));
        assert_eq!(put(&store, "k").await, failed(Transient, "RequestTimeTooSkewed"));
        assert_eq!(put(&store, "k").await, Ok(()));
        // Some stores refuse a wrong time in other words; any answer that agrees with this host
        // ends the mistake.
        server.fail_next(skewed(-3));
        assert_eq!(put(&store, "k").await, failed(Transient, "RequestTimeTooSkewed"));
        server.fail_next(Fault::error(403, "AccessDenied"));
        assert_eq!(put(&store, "k").await, failed(StoreWide, "AccessDenied"));
        assert_eq!(put(&store, "k").await, Ok(()));
    });
}
