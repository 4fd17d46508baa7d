//! Goal: the TLS of others gets along with ours: OpenSSL's by openssl(1), curl and Python, both
//! versions, with and without a certificate of the client.
//!
//! Method: the programs as they are installed, with an authority of the test.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use crate::support::Server;
use crate::support::needs::{Need, allowed, skip};
use crate::support::tls::{Authority, HOST, write};

/// A server and the files of its clients: `ca.pem`, `client.pem`.
fn start() -> Server {
    let (root, dir) = (Authority::new("root"), Arc::new(tempfile::tempdir().unwrap()));
    write(dir.path(), "cert.pem", root.server(&[HOST]));
    write(dir.path(), "ca.pem", root.pem());
    write(dir.path(), "client.pem", root.client("gate-7"));
    write(dir.path(), "tokens", "alpha\n");
    let settings = [
        ("LISTEN", "https://127.0.0.1:0"),
        ("TLS_CERT", "cert.pem"),
        ("TLS_CLIENT_CA", "ca.pem"),
        ("TOKENS_FILE", "tokens"),
    ];
    Server::start_in(dir, &settings)
}

fn run(server: &Server, program: &str, args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(program);
    command.current_dir(server.path("")).args(args).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

fn handshakes(server: &Server, labels: &str) -> u64 {
    server.metrics().sum_where("millrace_tls_handshakes_total", labels)
}

#[test]
fn openssl() {
    if !allowed(&["openssl", "version"]) {
        return skip(Need::Openssl, "no openssl(1)");
    }
    let server = start();
    let port = server.ingest.port().to_string();
    let address = format!("127.0.0.1:{port}");
    let common = [
        "s_client",
        "-connect",
        &address,
        "-servername",
        HOST,
        "-CAfile",
        "ca.pem",
        "-verify_return_error",
        "-verify_hostname",
        HOST,
    ];
    let body = r#"{"token":"alpha","data":[1]}"#;
    let post = format!(
        "POST /payloads HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    for (version, protocol) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let args = [&common[..], &[version, "-ign_eof", "-alpn", "http/1.1"]].concat();
        let said = text(&run(&server, "openssl", &args, post.as_bytes()));
        for part in [protocol, "Verification: OK", "ALPN protocol: http/1.1", "HTTP/1.1 200 OK"] {
            assert!(said.contains(part), "{part} not in {said}");
        }
        assert!(!said.contains("unexpected eof"), "it ends with an alert: {said}");
        // The session of one connection goes on in the next.
        let args = [&common[..], &[version, "-ign_eof", "-sess_out", "session"]].concat();
        run(&server, "openssl", &args, post.as_bytes());
        let args = [&common[..], &[version, "-ign_eof", "-sess_in", "session"]].concat();
        let said = text(&run(&server, "openssl", &args, post.as_bytes()));
        assert!(said.contains("Reused, "), "{said}");
    }
    assert_eq!(handshakes(&server, "resumed=\"yes\""), 2);
    for version in ["-tls1", "-tls1_1"] {
        let args = [&common[..], &[version, "-cipher", "ALL:@SECLEVEL=0"]].concat();
        let output = run(&server, "openssl", &args, b"");
        assert!(!output.status.success(), "{}", text(&output));
    }
    // Renegotiation, and a change of keys, which TLS 1.3 has instead.
    let args = [&common[..], &["-tls1_2"]].concat();
    let said = text(&run(&server, "openssl", &args, b"R\n"));
    assert!(said.contains("RENEGOTIATING") && !said.contains("panic"), "{said}");
    let changes = "K\nk\n".repeat(3);
    let args = [&common[..], &["-tls1_3"]].concat();
    let said = text(&run(&server, "openssl", &args, changes.as_bytes()));
    assert!(said.contains("KEYUPDATE"), "{said}");
    server.wait_idle();
    assert_eq!(server.metrics().sum("millrace_connection_panics_total"), 0);
}

#[test]
fn curl() {
    if !allowed(&["curl", "--version"]) {
        return skip(Need::Curl, "no curl(1)");
    }
    let server = start();
    let port = server.ingest.port();
    let (url, resolve) =
        (format!("https://{HOST}:{port}/payloads"), format!("{HOST}:{port}:127.0.0.1"));
    let large = format!(r#"{{"data":["{}"]}}"#, "x".repeat(900_000));
    let token = ["-H", "x-api-key: alpha"];
    for (more, expected) in [
        (&token[..], "200"),
        (&["-H", "x-api-key: alpha", "--tls-max", "1.2"], "200"),
        (&["--cert", "client.pem"], "200"),
        (&["--cert", "client.pem", "--tls-max", "1.2"], "200"),
        (&[], "401"),
    ] {
        for body in ["{\"data\":[1]}", &large] {
            let common = [
                "-sS",
                "--cacert",
                "ca.pem",
                "--resolve",
                &resolve,
                "-o",
                "/dev/null",
                "-w",
                "%{http_code} %{http_version}",
                "--data-binary",
                "@-",
                &url,
            ];
            let output = run(&server, "curl", &[&common[..], more].concat(), body.as_bytes());
            assert_eq!(text(&output), format!("{expected} 2"), "{more:?}");
        }
    }
    let names = "token=\"gate-7\",status=\"200\"";
    assert_eq!(server.metrics().sum_where("millrace_token_requests_total", names), 4);
    // Both mistakes, as a newcomer sees them.
    let plain = format!("http://127.0.0.1:{port}/payloads");
    let said = text(&run(&server, "curl", &["-sS", &plain], b""));
    assert!(said.contains("this port speaks TLS"), "{said}");
    let other = Server::start(&[]);
    let wrong = format!("https://{}/payloads", other.ingest);
    let said = text(&run(&server, "curl", &["-sS", &wrong], b""));
    assert!(said.contains("wrong version number"), "{said}");
    server.wait_idle();
}

/// Python's `ssl` and `http.client`, which send a head and its body in records of their own.
#[test]
fn python() {
    let python = std::env::var("MILLRACE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !allowed(&[&python, "-c", "import ssl"]) {
        return skip(Need::Python, "no Python with ssl");
    }
    let server = start();
    let script = r#"
import http.client, socket, ssl, sys
port = int(sys.argv[1])
for version in ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2:
    for certificate in False, True:
        context = ssl.create_default_context(cafile="ca.pem")
        context.minimum_version = context.maximum_version = version
        if certificate:
            context.load_cert_chain("client.pem")
        headers = {} if certificate else {"authorization": "Bearer alpha"}
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
        raw = socket.create_connection(("127.0.0.1", port))
        connection.sock = context.wrap_socket(raw, server_hostname="ingest.test")
        for length in 1, 1000, 20_000, 500_000:
            connection.request("POST", "/payloads", '{"data":["%s"]}' % ("x" * length), headers)
            answer = connection.getresponse()
            answer.read()
            print(answer.status)
        # Chunked.
        pieces = iter([b'{"data":', b'[2]}'])
        connection.request("POST", "/payloads", pieces, headers, encode_chunked=True)
        print(connection.getresponse().status)
        connection.close()
"#;
    let port = server.ingest.port().to_string();
    let output = run(&server, &python, &["-c", script, &port], b"");
    assert_eq!(text(&output), "200\n".repeat(4 * 5));
    server.wait("all are stored", |m| m.sum("millrace_payloads_stored_total") == 20);
    server.wait_idle();
    assert_eq!(server.stop().status, 0);
}
