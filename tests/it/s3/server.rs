//! The whole way: the real binary, collections over HTTP in, objects in a real S3 server out.
//!
//! Also what `serve` and `check` say when the bucket is not there to be written.

use crate::support::s3::{ACCESS_KEY, BUCKET, Fault, S3Server, SECRET_KEY};
use crate::support::{Server, run};

/// Everything the binary needs to find `server` and nothing of this machine's.
fn settings(server: &S3Server, bucket: &str) -> Vec<(&'static str, String)> {
    vec![
        ("STORE", format!("s3://{bucket}/in/")),
        ("AWS_ENDPOINT_URL_S3", server.url()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
        ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ("HOME", "/nonexistent".into()),
        ("RETRY_BASE", "10ms".into()),
        ("PUT_TIMEOUT", "2s".into()),
    ]
}

fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

#[test]
fn payloads_arrive_once_whatever_the_store_does() {
    let s3 = S3Server::start();
    let server = Server::start(&borrowed(&settings(&s3, BUCKET)));
    for fault in [
        Fault::Close,
        Fault::error(503, "SlowDown"),
        Fault::ServeThenClose,
        Fault::Hang,
        Fault::CutAnswer,
        Fault::error(403, "AccessDenied"),
        Fault::error(400, "ExpiredToken"),
    ] {
        s3.fail_next(fault);
    }
    let payloads: Vec<String> = (0..200).map(|i| format!("{{\"n\":{i}}}")).collect();
    for ten in payloads.chunks(10) {
        let reply = server.post_payloads(&ten.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(reply.status, 200);
    }
    server.wait_idle();
    let objects = s3.objects();
    assert!(objects.keys().all(|key| key.starts_with("in/") && key.ends_with(".json")));
    let mut stored: Vec<_> = objects.into_values().map(|b| String::from_utf8(b).unwrap()).collect();
    let mut sent = payloads;
    stored.sort();
    sent.sort();
    assert_eq!(stored, sent);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.accepted, stopped.stored), (0, 200, 200));
    assert_eq!((stopped.dead_lettered, stopped.lost), (0, 0));
}

#[test]
fn an_object_that_is_there_is_kept_and_counted_as_stored() {
    for (client, asked) in [("direct", true), ("sdk", true), ("direct", false)] {
        let s3 = S3Server::start();
        std::fs::create_dir(s3.bucket().join("in")).unwrap();
        // Before every PUT is served, its object is there, as after an attempt whose answer was
        // lost.
        let bucket = s3.bucket();
        s3.fail_when(move |seen| {
            let key = seen.path.split('?').next().unwrap().strip_prefix("/payloads/in/")?;
            std::fs::write(bucket.join("in").join(key), "theirs").unwrap();
            None
        });
        let mut settings = settings(&s3, BUCKET);
        settings.extend([("S3_CLIENT", client.into()), ("S3_IF_NONE_MATCH", asked.to_string())]);
        let server = Server::start(&borrowed(&settings));
        assert_eq!(server.post_payloads(&["1", "2"]).status, 200);
        server.wait("both stored", |metrics| metrics.sum("millrace_payloads_stored_total") == 2);
        let mut stored: Vec<_> = s3.objects().into_values().collect();
        stored.sort();
        let expected =
            if asked { [b"theirs".as_slice(), b"theirs"] } else { [b"1".as_slice(), b"2"] };
        assert_eq!(stored, expected, "{client}");
        let stopped = server.stop();
        assert_eq!((stopped.status, stopped.stored, stopped.dead_lettered), (0, 2, 0));
    }
}

/// What the binary says, and its exit status, when `command` meets `faults` at the bucket.
fn say(command: &str, faults: &[Fault]) -> (i32, String) {
    let s3 = S3Server::start();
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&s3, BUCKET);
    let mut all = borrowed(&settings);
    all.extend([("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:0"), ("CORES", "0")]);
    faults.iter().for_each(|fault| s3.fail_next(fault.clone()));
    let output = run(folder.path(), &[command], &all);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text)
}

#[test]
fn a_probe_that_only_warned_is_a_warning_of_check_in_the_stores_words() {
    let denied = Fault::error_with(403, "AccessDenied", "User x may not ListBucket", &[]);
    let (status, text) = say("check", &[denied]);
    assert_eq!(status, 0, "{text}");
    let row = text.lines().find(|line| line.contains("  probe  ")).expect(&text);
    assert!(row.starts_with("warn") && row.contains("User x may not ListBucket"), "{row}");
    assert!(!text.contains("can be used"), "{text}");
    let (status, text) = say("check", &[]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("can be used"), "{text}");
}

#[test]
fn a_wrong_clock_is_a_warning_at_start_and_no_trouble_at_run_time() {
    let date = "Fri, 01 Jan 2100 00:00:00 GMT";
    let far = Fault::error_with(403, "RequestTimeTooSkewed", "skewed", &[("date", date)]);
    let (status, text) = say("check", &[far.clone(), far]);
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("the clock of this host is too far from"), "{text}");

    let now = aws_smithy_types::DateTime::from(std::time::SystemTime::now());
    let later = aws_smithy_types::DateTime::from_secs(now.secs() + 7200);
    let date = later.fmt(aws_smithy_types::date_time::Format::HttpDate).unwrap();
    let skewed = Fault::error_with(403, "RequestTimeTooSkewed", "skewed", &[("date", &date)]);
    let listing = Fault::Reply {
        status: 200,
        headers: vec![("content-type", "application/xml".to_owned())],
        body: "<ListBucketResult><Name>payloads</Name></ListBucketResult>".to_owned(),
    };
    let (status, text) = say("check", &[skewed, listing]);
    assert_eq!(status, 0, "{text}");
    let row = text.lines().find(|line| line.contains("  probe  ")).expect(&text);
    assert!(row.starts_with("warn") && row.contains("behind") && row.contains("2h"), "{row}");
}

#[test]
fn a_bucket_that_is_not_there_is_exit_2_and_a_sentence() {
    let s3 = S3Server::start();
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&s3, "no-such-bucket");
    let mut all = borrowed(&settings);
    all.extend([("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:0"), ("CORES", "0")]);
    for command in ["serve", "check"] {
        let output = run(folder.path(), &[command], &all);
        assert_eq!(output.status.code(), Some(2), "{command}");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        assert!(
            text.contains("bucket no-such-bucket does not exist at http://127.0.0.1:"),
            "{text}"
        );
    }
}
