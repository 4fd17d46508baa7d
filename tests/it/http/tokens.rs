//! Goal: with `TOKENS_FILE` only requests that carry one of its tokens are served, and a bad file
//! is refused at start.
//!
//! Method: right, wrong and missing tokens in every form JSON can give them; files that hold no
//! usable token.

use std::sync::Arc;

use crate::support::{Server, request, run};

#[test]
fn only_known_tokens_are_admitted() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("tokens"), "# ours\nalpha\n\nβ-🔑\r\n").unwrap();
    let server = Server::start_in(dir, &[("TOKENS_FILE", "tokens")]);
    let mut client = server.connect();
    for right in [r#""alpha""#, r#""\u0061lpha""#, r#""β-🔑""#, r#""\u03b2-\ud83d\udd11""#] {
        let reply = client.post(format!(r#"{{"data":["taken"],"token":{right}}}"#));
        assert_eq!(reply.status, 200, "{right}: {reply:?}");
    }
    let wrong = [
        r#""token":"wrong","#,
        r#""token":"","#,
        r#""token":"Alpha","#,
        r#""token":" alpha","#,
        r#""token":"alpha\n","#,
        r##""token":"# ours","##,
        r#""token":"alph","#,
        r#""Token":"alpha","#,
        r#""version":"alpha","#,
        "",
    ];
    for wrong in wrong {
        let reply = client.post(format!(r#"{{{wrong}"data":["no"]}}"#));
        assert_eq!(reply.status, 401, "{wrong}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert!(reply.error().contains("token"), "{}", reply.error());
        assert!(!reply.body.contains("alpha"), "an answer never shows a token");
    }
    // The token counts also where there is nothing to admit, and only the envelope's does.
    assert_eq!(client.post(r#"{"data":[]}"#).status, 401);
    assert_eq!(client.post(r#"{"data":[{"token":"alpha"}]}"#).status, 401);
    client.send(request(br#"{"data":["no"]}"#, "authorization: Bearer alpha\r\n"));
    assert_eq!(client.reply().status, 401);
    // What is no collection is 400, whoever sends it.
    assert_eq!(client.post(r#"{"token":"alpha","data":1}"#).status, 400);
    assert_eq!(client.post(r#"{"token":1,"data":[]}"#).status, 400);
    drop(client);
    server.wait_idle();
    assert_eq!(server.stored_texts(), ["\"taken\""; 4]);
    assert_eq!(server.metrics().requests(401), wrong.len() as u64 + 3);
    assert!(!server.logged("alpha"), "a log never shows a token");
}

#[test]
fn a_bad_tokens_file_is_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8], &str); 5] = [
        ("empty", b"", "no token"),
        ("comments", b"# nothing\n\n", "no token"),
        ("two-words", b"fine\nhush hush\n", "line 2"),
        ("binary", b"fine\n\xff\xfe\n", "line 2"),
        ("missing", b"", "cannot be read"),
    ];
    for (name, bytes, says) in files {
        if name != "missing" {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let settings = [
            ("TOKENS_FILE", name),
            ("LISTEN", "127.0.0.1:0"),
            ("ADMIN_LISTEN", "off"),
            ("CORES", "0"),
        ];
        let output = run(dir.path(), &[], &settings);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {text}");
        assert!(text.contains("TOKENS_FILE") && text.contains(says), "{name}: {text}");
        assert!(!text.contains("hush"), "{text}");
    }
}
