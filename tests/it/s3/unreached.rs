//! A store, or a credential service, that is not there when the server starts: goal, with a spool
//! the server starts all the same, holds what it accepts, says in `/readyz` what it waits for, and
//! catches up by itself; without one, and for whatever an operator has to mend, the start is
//! refused as ever.
//!
//! Method: the endpoint is a port that is bound and on which the S3 server listens only later.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use http::Method;

use crate::support::s3::{ACCESS_KEY, BUCKET, Fault, Options, S3Server, SECRET_KEY, silent_port};
use crate::support::{Server, run, wait_for};

type Settings = Vec<(&'static str, String)>;

/// Everything the binary needs but credentials, with a spool.
fn settings_without_keys(endpoint: SocketAddr) -> Settings {
    vec![
        ("STORE", format!("s3://{BUCKET}/in/")),
        ("SPOOL_DIR", "spool".into()),
        ("AWS_ENDPOINT_URL_S3", format!("http://{endpoint}")),
        ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ("HOME", "/nonexistent".into()),
        ("RETRY_BASE", "10ms".into()),
        ("RETRY_MAX", "100ms".into()),
    ]
}

fn settings(endpoint: SocketAddr) -> Settings {
    let mut settings = settings_without_keys(endpoint);
    settings.push(("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()));
    settings.push(("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()));
    settings
}

fn without_spool(settings: &Settings) -> Settings {
    settings.iter().filter(|(name, _)| *name != "SPOOL_DIR").cloned().collect()
}

fn borrowed(settings: &Settings) -> Vec<(&str, &str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// What the binary says, and its exit status.
fn say(args: &[&str], settings: &Settings) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut all = borrowed(settings);
    all.extend([("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:0"), ("CORES", "0")]);
    let output = run(folder.path(), args, &all);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text)
}

/// Starts against a store that is not there, posts `"early"`, and checks that it is held for a
/// reason that holds all of `reasons`.
fn start_unreached(settings: &Settings, reasons: &[&str]) -> Server {
    let server = Server::start(&borrowed(settings));
    assert_eq!(server.admin("/healthz").status, 200);
    let reason = server.wait_ready(503);
    for wanted in ["the store s3://", "cannot be used yet"].iter().chain(reasons) {
        assert!(reason.contains(wanted), "{wanted}: {reason}");
    }
    assert_eq!(server.post_payloads(&["\"early\""]).status, 200);
    server
}

/// Waits until `server` is ready and has stored `"early"`, and stops it.
fn catches_up(server: Server, s3: &S3Server) {
    server.wait_ready(200);
    server.wait("stored", |metrics| metrics.sum("millrace_payloads_stored_total") == 1);
    assert_eq!(s3.objects().into_values().collect::<Vec<_>>(), [b"\"early\""]);
    server.wait_idle();
    server.wait_logged("can be used now");
    assert_eq!(server.count_logged("can be used now"), 1);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored, stopped.dead_lettered), (0, 1, 0));
}

#[test]
fn with_a_spool_the_server_starts_without_its_store() {
    for client in ["direct", "sdk"] {
        let (socket, addr) = silent_port();
        let mut settings = settings(addr);
        settings.push(("S3_CLIENT", client.into()));
        let server = start_unreached(&settings, &["s3://payloads/in/", "refused"]);
        let s3 = S3Server::start_with(Options { socket: Some(socket), ..Options::default() });
        catches_up(server, &s3);
    }
}

/// A spool that acknowledges needs no store: what it waits for is a remark.
#[test]
fn with_spooled_answers_the_server_is_ready_without_its_store() {
    let (socket, addr) = silent_port();
    let mut settings = settings(addr);
    settings.extend([("ACK", "spooled".into()), ("READY_STORE_GRACE", "0ms".into())]);
    let server = Server::start(&borrowed(&settings));
    let said = server.wait_ready(200);
    assert!(said.contains("cannot be used yet"), "{said}");
    assert_eq!(server.post_payloads(&["\"early\""]).status, 200);
    let s3 = S3Server::start_with(Options { socket: Some(socket), ..Options::default() });
    server.wait_logged("can be used now");
    catches_up(server, &s3);
}

#[test]
fn without_a_spool_the_start_is_refused() {
    let (_socket, addr) = silent_port();
    let (settings, reason) = (settings(addr), "cannot be reached");
    for command in ["serve", "check"] {
        let (status, text) = say(&[command], &without_spool(&settings));
        assert_eq!(status, 2, "{command}: {text}");
        assert!(text.contains(reason), "{command}: {text}");
    }
    let (status, text) = say(&["check"], &settings);
    assert_eq!(status, 0, "{text}");
    let row = text.lines().find(|line| line.contains("  probe  ")).expect(&text);
    assert!(row.starts_with("warn") && row.contains(reason), "{row}");
    // Nothing holds what a replay would put.
    let letters = tempfile::tempdir().unwrap();
    let dir = ("DEAD_LETTER_DIR", letters.path().to_str().unwrap().to_owned());
    let settings = [settings, vec![dir]].concat();
    let (status, text) = say(&["dead-letter", "replay"], &settings);
    assert_eq!(status, 2, "{text}");
    assert!(text.contains(reason), "{text}");
}

#[test]
fn what_an_operator_has_to_mend_refuses_the_start_also_with_a_spool() {
    let s3 = S3Server::start();
    for (name, value, expected) in [
        ("STORE", "s3://no-such-bucket/in/", "bucket no-such-bucket does not exist"),
        ("AWS_ENDPOINT_URL_S3", "localhost:9000", "is not usable"),
        ("AWS_SECRET_ACCESS_KEY", "mistyped", "the secret of access key"),
    ] {
        let mut settings = settings(s3.addr());
        settings.retain(|(set, _)| *set != name);
        settings.push((name, value.into()));
        for command in ["serve", "check"] {
            let (status, text) = say(&[command], &settings);
            assert_eq!(status, 2, "{command}: {text}");
            assert!(text.contains(expected), "{command}: {text}");
        }
    }
    let (status, text) = say(&["serve"], &settings_without_keys(s3.addr()));
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("no AWS credentials found"), "{text}");
}

#[test]
fn a_store_that_answers_5xx_is_waited_for() {
    let s3 = S3Server::start();
    s3.fail_when(|_| Some(Fault::error_with(500, "InternalError", "not today", &[])));
    let server = start_unreached(&settings(s3.addr()), &["the store answered 500", "not today"]);
    s3.heal();
    catches_up(server, &s3);
}

#[test]
fn a_store_that_comes_up_wrong_is_waited_for_with_its_new_reason() {
    let (socket, addr) = silent_port();
    let server = start_unreached(&settings(addr), &["refused"]);
    let s3 = S3Server::start_with(Options { socket: Some(socket), ..Options::default() });
    s3.fail_when(|_| Some(Fault::error(404, "NoSuchBucket")));
    wait_for("the new reason", || {
        server.admin("/readyz").body.contains("bucket payloads does not exist")
    });
    s3.heal();
    catches_up(server, &s3);
}

#[test]
fn a_store_that_takes_payloads_is_usable_whatever_it_says_to_the_probe() {
    let s3 = S3Server::start();
    s3.fail_when(|seen| {
        seen.path.contains("list-type").then(|| Fault::error(503, "ServiceUnavailable"))
    });
    let server = start_unreached(&settings(s3.addr()), &["503"]);
    catches_up(server, &s3);
}

/// `YYYYMMDDTHHMMSSZ`, and as an HTTP date, so many seconds from now.
fn dates(ahead_s: i64) -> (String, String) {
    let time = DateTime::from_secs(DateTime::from(std::time::SystemTime::now()).secs() + ahead_s);
    let basic = time.fmt(Format::DateTime).unwrap().replace(['-', ':'], "");
    (basic, time.fmt(Format::HttpDate).unwrap())
}

#[test]
fn the_stores_time_is_learnt_also_when_it_answers_late() {
    let (socket, addr) = silent_port();
    let server = start_unreached(&settings(addr), &["refused"]);
    let s3 = S3Server::start_with(Options { socket: Some(socket), ..Options::default() });
    let takes_puts = Arc::new(AtomicBool::new(false));
    s3.fail_when({
        let takes_puts = takes_puts.clone();
        move |seen| {
            let (ahead, date) = dates(7200);
            if seen.header("x-amz-date") < Some(&dates(3600).0) {
                return Some(Fault::error_with(
                    403,
                    "RequestTimeTooSkewed",
                    &ahead,
                    &[("date", &date)],
                ));
            }
            let list = "<ListBucketResult><Name>payloads</Name></ListBucketResult>";
            let (status, body) = match seen.method {
                Method::GET => (200, list),
                _ if takes_puts.load(Ordering::SeqCst) => (200, ""),
                _ => (503, ""),
            };
            Some(Fault::Reply { status, headers: vec![], body: body.to_owned() })
        }
    });
    server.wait_ready(200);
    // Ready a moment before that is read here.
    wait_for("the word of the clock", || {
        server.logged("can be used now; this host's clock is 2h behind")
    });
    takes_puts.store(true, Ordering::SeqCst);
    server.wait("stored", |metrics| metrics.sum("millrace_payloads_stored_total") == 1);
    assert_eq!(server.stop().status, 0);
}

/// A container agent's address, and the settings that name it.
fn with_agent(endpoint: SocketAddr, agent: SocketAddr) -> Settings {
    let mut settings = settings_without_keys(endpoint);
    let uri = format!("http://{agent}/role");
    settings.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri));
    settings
}

#[test]
fn with_a_spool_the_server_starts_without_credentials_that_are_to_come() {
    for client in ["direct", "sdk"] {
        let s3 = S3Server::start();
        let (socket, agent) = silent_port();
        let mut settings = with_agent(s3.addr(), agent);
        settings.push(("S3_CLIENT", client.into()));
        let (status, text) = say(&["check"], &without_spool(&settings));
        assert_eq!(status, 2, "{text}");
        assert!(text.contains("AWS credentials cannot be loaded"), "{text}");

        let server = start_unreached(&settings, &["AWS credentials cannot be loaded", "refused"]);
        wait_for("the put's error", || server.logged("NoCredentials"));
        assert!(s3.requests().is_empty(), "nothing is sent unsigned");
        let agent = S3Server::start_with(Options { socket: Some(socket), ..Options::default() });
        agent.fail_when(|_| {
            let body = serde_json::json!({
                "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Token": "tok",
                "Expiration": "2099-01-01T00:00:00Z",
            });
            let headers = vec![("content-type", "application/json".to_owned())];
            Some(Fault::Reply { status: 200, headers, body: body.to_string() })
        });
        catches_up(server, &s3);
    }
}

#[test]
fn a_metadata_service_that_does_not_answer_is_waited_for() {
    let (_socket, imds) = silent_port();
    let s3 = S3Server::start();
    let mut settings = settings_without_keys(s3.addr());
    settings.retain(|(name, _)| *name != "AWS_EC2_METADATA_DISABLED");
    settings.push(("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{imds}")));
    let (status, text) = say(&["check"], &without_spool(&settings));
    assert_eq!(status, 2, "{text}");
    let place = format!("the instance metadata service at http://{imds} cannot be reached");
    assert!(text.contains(&place) && !text.contains("hop limit"), "{text}");
    let server = start_unreached(&settings, &["no AWS credentials found", &place]);
    assert_eq!(server.stop().stored, 0);
}

/// A token whose packets are dropped for their hop limit: the connection stands, and nothing comes.
#[test]
fn a_metadata_service_that_is_silent_is_named_with_the_hop_limit() {
    let imds = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let s3 = S3Server::start();
    let mut settings = settings_without_keys(s3.addr());
    settings.retain(|(name, _)| *name != "AWS_EC2_METADATA_DISABLED");
    let url = format!("http://{}", imds.local_addr().unwrap());
    settings.push(("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.clone()));
    let (status, text) = say(&["check"], &without_spool(&settings));
    assert_eq!(status, 2, "{text}");
    let expected = format!(
        "the instance metadata service at {url} did not answer; in a container its hop limit must be 2: aws ec2 \
         modify-instance-metadata-options"
    );
    assert!(text.contains(&expected), "{text}");
    // On AWS the region is asked for first, of the same service.
    settings.retain(|(name, _)| *name != "AWS_ENDPOINT_URL_S3");
    let (status, text) = say(&["check"], &without_spool(&settings));
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("no AWS region is set") && text.contains(&expected), "{text}");
}
