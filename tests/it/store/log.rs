//! What an operator is told of a store that fails: in the log while it does, when it works again,
//! and, of what a stop left, in the dead letters and the last line.

use serde_json::Value;

use crate::support::s3::{ACCESS_KEY, BUCKET, Fault, S3Server, SECRET_KEY};
use crate::support::{Server, dead_letters, numbered, wait_for};

/// A server whose store refuses every PUT as Garage refuses a wrong secret.
fn refused(s3: &S3Server, client: &str) -> Server {
    s3.fail_when(|seen| {
        let ids = [("x-amz-request-id", "R1"), ("x-amz-id-2", "h/2=")];
        let refusal = Fault::error_with(403, "AccessDenied", "Forbidden: Invalid signature", &ids);
        (seen.method == "PUT").then_some(refusal)
    });
    Server::start(&[
        ("STORE", &format!("s3://{BUCKET}/in/")),
        ("AWS_ENDPOINT_URL_S3", &s3.url()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("HOME", "/nonexistent"),
        ("S3_CLIENT", client),
        ("MAX_WORKERS", "2"),
        ("RETRY_BASE", "50ms"),
        ("RETRY_MAX", "50ms"),
        ("DRAIN_TIMEOUT", "3s"),
    ])
}

/// The log line that holds `text`.
fn line(server: &Server, text: &str) -> Value {
    let found = |line: &Value| line["message"].as_str().is_some_and(|said| said.contains(text));
    wait_for(text, || server.log().iter().any(found));
    server.log().into_iter().find(found).unwrap()
}

const ERROR: &str =
    "AccessDenied: Forbidden: Invalid signature (x-amz-request-id R1, x-amz-id-2 h/2=)";

#[test]
fn an_outage_is_an_error_with_what_is_held_and_its_end_is_information() {
    let s3 = S3Server::start();
    let server = refused(&s3, "direct");
    let payloads = numbered(0..5);
    assert_eq!(server.post(crate::support::collection(&payloads)).status, 200);
    let bytes: usize = payloads.iter().map(String::len).sum();

    let outage = line(&server, "the store takes nothing");
    assert_eq!(outage["level"], "ERROR");
    assert!(outage["message"].as_str().unwrap().contains(ERROR), "{outage}");
    assert_eq!((&outage["payloads_held"], &outage["bytes_held"]), (&5.into(), &bytes.into()));
    assert!(outage["failed_puts"].as_u64().unwrap() > 2, "{outage}");
    let failing_for = outage["failing_for"].as_str().unwrap();
    assert!(failing_for.ends_with('s') && !failing_for.starts_with('0'), "{outage}");
    assert!(outage["mend"].as_str().unwrap().contains("AWS_SECRET_ACCESS_KEY"), "{outage}");
    // However often it is tried, within a minute that is all.
    let retries = server.metrics().sum("millrace_put_retries_total");
    server.wait("more retries", |m| m.sum("millrace_put_retries_total") > retries + 20);
    assert_eq!(server.count_logged("Invalid signature"), 2, "{:#?}", server.log());

    s3.heal();
    let recovery = line(&server, "the store works again after AccessDenied");
    assert_eq!(recovery["level"], "INFO");
    assert!(recovery["failed_puts"].as_u64().unwrap() > 20, "{recovery}");
    assert_eq!(line(&server, "the store has taken the first object")["level"], "INFO");
    server.wait_idle();
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored), (0, 5));
    let last = stopped.log.iter().find(|line| line["message"] == "stopped").unwrap();
    assert_eq!((&last["level"], &last["mend"]), (&"INFO".into(), &Value::Null));
}

#[test]
fn letters_of_a_stop_carry_the_last_error_and_the_attempts() {
    for client in ["direct", "sdk"] {
        let s3 = S3Server::start();
        let server = refused(&s3, client);
        assert_eq!(server.post_payloads(&["1", "2", "3", "4"]).status, 200);
        server.wait("tries", |m| m.sum("millrace_put_retries_total") >= 8);
        let stopped = server.stop();
        assert_eq!((stopped.status, stopped.dead_lettered, stopped.lost), (1, 4, 0));

        let directory = stopped.dir.path().join("dead-letter");
        let letters = dead_letters(&directory);
        let (tried, waiting): (Vec<_>, Vec<_>) =
            letters.iter().map(|(meta, _)| meta).partition(|meta| meta["attempts"] != 0);
        assert!(tried.len() >= 2, "two workers: {letters:?}");
        for meta in &tried {
            assert_eq!(meta["error"], ERROR);
        }
        let attempts: u64 = tried.iter().map(|meta| meta["attempts"].as_u64().unwrap()).sum();
        assert!(attempts >= 8, "{letters:?}");
        for meta in waiting {
            let error = meta["error"].as_str().unwrap();
            assert!(error.starts_with("Stopped: ") && error.ends_with(ERROR), "{error}");
        }

        let last = stopped.log.iter().find(|line| line["message"] == "stopped").unwrap();
        assert_eq!((&last["level"], &last["dead_lettered_at_stop"]), (&"WARN".into(), &4.into()));
        assert_eq!(last["dead_letter_dir"], directory.to_str().unwrap());
        assert!(last["mend"].as_str().unwrap().contains("`millrace dead-letter replay`"), "{last}");
    }
}

/// A refused object is dead-lettered while the server runs: its letter names the request as well.
#[test]
fn letters_of_refused_objects_name_the_request() {
    let s3 = S3Server::start();
    let server = refused(&s3, "direct");
    s3.fail_when(|seen| {
        let ids = [("cf-ray", "8f0-AMS")];
        let refusal = Fault::error_with(400, "EntityTooLarge", "too large", &ids);
        (seen.method == "PUT").then_some(refusal)
    });
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    wait_for("a letter", || !server.dead_letters().is_empty());
    let (meta, _) = &server.dead_letters()[0];
    assert_eq!(meta["error"], "EntityTooLarge: too large (cf-ray 8f0-AMS)");
    server.wait_logged("cf-ray 8f0-AMS");
}
