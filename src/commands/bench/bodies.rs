//! The requests, made before anything is measured. Different ones of equal size, so that no branch
//! predictor learns one.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use url::Url;

use super::event::event;
use crate::rt;

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadContent {
    /// A body of the operator's own, instead of payloads.
    pub file: Option<PathBuf>,
    /// Payloads in each request.
    pub payloads: usize,
    /// Of each, at least.
    pub payload_bytes: usize,
    pub shape: PayloadShape,
    pub form: LoadForm,
    pub compress: Option<LoadCoding>,
    /// Further header fields, `NAME: VALUE`, in place of the usual ones.
    pub headers: Vec<String>,
    pub token_file: Option<PathBuf>,
}

/// What a payload is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadShape {
    /// A few members and records of numbers.
    Records,
    /// An event as an application logs it; zstd's level 1 makes a third of it.
    Events,
}

/// What payloads are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadForm {
    /// `{"version":…,"data":[…]}`
    Collection,
    /// `[…]`
    Array,
    /// One per line.
    Ndjson,
}

/// A `content-encoding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadCoding {
    Gzip,
    Zstd,
}

/// The environment variable with the token: an argument would be seen by every user of the host.
pub const TOKEN_VARIABLE: &str = "MILLRACE_TOKEN";

/// All requests together: more than a cache of the client's, but no burden for its memory. Of
/// payloads of 1 kB there are then 640 before one comes again, five times as far apart as a batch's
/// zstd window is long.
const BYTES_MAX: usize = 4 << 20;
/// Longest body.
pub const BODY_MAX: usize = 64 << 20;
/// Longest token.
const TOKEN_MAX: u64 = 8 << 10;

/// Fields that say how the request is framed, and those with secrets.
const RESERVED: &[(&str, &str)] = &[
    ("host", "the URL has it"),
    ("content-length", "it is computed"),
    ("transfer-encoding", "bodies are sent with a content-length"),
    ("connection", "connections are kept"),
    ("expect", "bodies are sent at once"),
    ("content-encoding", "use --compress"),
    ("authorization", "an argument is seen by every user of the host; use --token-file"),
    ("x-api-key", "an argument is seen by every user of the host; use --token-file"),
    ("cookie", "an argument is seen by every user of the host; use --token-file"),
];

/// A whole request, head and body.
pub(super) struct LoadRequest {
    pub(super) bytes: Vec<u8>,
    pub(super) body_bytes: usize,
}

/// All requests of a run, to be sent in turn. They may hold a token.
pub(super) struct LoadRequests {
    requests: Vec<LoadRequest>,
    /// Payloads in each, if that is known.
    pub(super) payloads: Option<u64>,
}

impl LoadRequests {
    /// For `url`, with the token of `content` or of the environment.
    ///
    /// # Errors
    /// One sentence: a file cannot be read, a header field or the token is not one.
    pub(super) fn new(url: &Url, content: &LoadContent) -> Result<LoadRequests, String> {
        let token = token(content.token_file.as_deref())?;
        let head = head(url, content, token.as_deref())?;
        let whole = |body: Vec<u8>| {
            let body = compressed(content.compress, body);
            let mut bytes = format!("{head}content-length: {}\r\n\r\n", body.len()).into_bytes();
            bytes.extend_from_slice(&body);
            LoadRequest { bytes, body_bytes: body.len() }
        };
        if let Some(file) = &content.file {
            return Ok(LoadRequests { requests: vec![whole(own_body(file)?)], payloads: None });
        }
        let bytes = content.payloads.saturating_mul(content.payload_bytes);
        if bytes > BODY_MAX {
            let LoadContent { payloads, payload_bytes, .. } = content;
            return Err(format!(
                "{payloads} payloads of {payload_bytes} bytes are more than {BODY_MAX} bytes: give fewer with \
                 --payloads or --payload-bytes"
            ));
        }
        let mut rng = rt::Rng::with_seed(1);
        let count = (BYTES_MAX / bytes.max(1)).clamp(4, 64);
        let requests = (0..count).map(|_| whole(body(&mut rng, content))).collect();
        Ok(LoadRequests { requests, payloads: Some(content.payloads as u64) })
    }

    /// The `turn`th request, over and over.
    pub(super) fn get(&self, turn: usize) -> &LoadRequest {
        &self.requests[turn % self.requests.len()]
    }

    /// Mean length of a body as it is sent.
    pub(super) fn body_bytes(&self) -> f64 {
        let all: usize = self.requests.iter().map(|request| request.body_bytes).sum();
        all as f64 / self.requests.len() as f64
    }
}

/// The head up to `content-length`.
fn head(url: &Url, content: &LoadContent, token: Option<&str>) -> Result<String, String> {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut fields = vec![
        ("host", format!("{host}{port}")),
        ("user-agent", concat!("millrace-bench/", env!("CARGO_PKG_VERSION")).to_owned()),
        ("accept", "*/*".to_owned()),
        ("content-type", content.form.content_type().to_owned()),
    ];
    if let Some(coding) = content.compress {
        let name = match coding {
            LoadCoding::Gzip => "gzip",
            LoadCoding::Zstd => "zstd",
        };
        fields.push(("content-encoding", name.to_owned()));
    }
    if let Some(token) = token {
        fields.push(("authorization", format!("Bearer {token}")));
    }
    for field in &content.headers {
        let (name, value) = header_field(field)?;
        fields.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        fields.push((name, value.to_owned()));
    }
    let mut head = format!("POST {}{query} HTTP/1.1\r\n", url.path());
    fields.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    Ok(head)
}

/// Name and value of `NAME: VALUE`.
///
/// # Errors
/// It is not one, or one that the generator sets itself. A value is not quoted.
pub fn header_field(text: &str) -> Result<(&str, &str), String> {
    const GIVE: &str = "give NAME: VALUE, such as 'millrace-ack: stored'";
    let (name, value) = text.split_once(':').ok_or(GIVE)?;
    let (name, value) = (name.trim(), value.trim());
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("the name is not one of a header field: {GIVE}"));
    }
    if !value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)) {
        return Err(format!("{name}: the value has characters that no header field has"));
    }
    match RESERVED.iter().find(|(reserved, _)| name.eq_ignore_ascii_case(reserved)) {
        Some((_, why)) => Err(format!("{name} cannot be given: {why}")),
        None => Ok((name, value)),
    }
}

/// The token of the file, else of the environment.
#[expect(clippy::disallowed_methods, reason = "a command, without an executor")]
fn token(file: Option<&Path>) -> Result<Option<String>, String> {
    let (text, whence) = match file {
        Some(path) => {
            // It may be a pipe: `--token-file <(pass show ingest)`.
            let mut text = String::new();
            let read =
                File::open(path).and_then(|f| f.take(TOKEN_MAX + 1).read_to_string(&mut text));
            read.map_err(|error| format!("--token-file {}: {error}", path.display()))?;
            (text, format!("--token-file {}", path.display()))
        }
        None => match std::env::var(TOKEN_VARIABLE) {
            Ok(text) => (text, TOKEN_VARIABLE.to_owned()),
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(error) => return Err(format!("{TOKEN_VARIABLE}: {error}")),
        },
    };
    let token = text.lines().next().unwrap_or_default().trim();
    let is_token = !token.is_empty()
        && text.len() as u64 <= TOKEN_MAX
        && token.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
    if !is_token {
        return Err(format!("{whence}: the first line is not a token (visible ASCII characters)"));
    }
    Ok(Some(token.to_owned()))
}

#[expect(clippy::disallowed_methods, reason = "a command, without an executor")]
fn own_body(path: &Path) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    let read = File::open(path).and_then(|f| f.take(BODY_MAX as u64 + 1).read_to_end(&mut body));
    read.map_err(|error| format!("--body-file {}: {error}", path.display()))?;
    if body.len() > BODY_MAX {
        return Err(format!("--body-file {}: longer than {BODY_MAX} bytes", path.display()));
    }
    Ok(body)
}

fn compressed(coding: Option<LoadCoding>, body: Vec<u8>) -> Vec<u8> {
    let written = match coding {
        None => return body,
        Some(LoadCoding::Gzip) => {
            let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::default());
            gzip.write_all(&body).and_then(|()| gzip.finish())
        }
        Some(LoadCoding::Zstd) => zstd::encode_all(&*body, zstd::DEFAULT_COMPRESSION_LEVEL),
    };
    written.expect("compressing into memory does not fail")
}

impl LoadForm {
    fn content_type(self) -> &'static str {
        match self {
            LoadForm::Collection | LoadForm::Array => "application/json",
            LoadForm::Ndjson => "application/x-ndjson",
        }
    }
}

fn body(rng: &mut rt::Rng, content: &LoadContent) -> Vec<u8> {
    let payload = |rng: &mut rt::Rng| match content.shape {
        PayloadShape::Records => records(rng, content.payload_bytes),
        PayloadShape::Events => event(rng, content.payload_bytes),
    };
    let payloads: Vec<String> = (0..content.payloads).map(|_| payload(rng)).collect();
    let body = match content.form {
        LoadForm::Collection => format!(r#"{{"version":"1","data":[{}]}}"#, payloads.join(",")),
        LoadForm::Array => format!("[{}]", payloads.join(",")),
        LoadForm::Ndjson => payloads.join("\n") + "\n",
    };
    body.into_bytes()
}

/// A JSON object of `bytes` bytes (never fewer than 50) as a client might send it: a few members,
/// then as many records as fit, then filling.
pub fn records(rng: &mut rt::Rng, bytes: usize) -> String {
    const END: &str = r#"],"note":""}"#;
    let mut text = format!(r#"{{"id":"{:08x}","ok":true,"items":["#, rng.u32(..));
    loop {
        let (x, y) = (rng.u32(..1_000_000), rng.u32(1_000_000..));
        let comma = if text.ends_with('[') { "" } else { "," };
        let item = format!(r#"{comma}{{"at":{y},"kind":"view","value":{x}.25}}"#);
        if text.len() + item.len() + END.len() > bytes {
            break;
        }
        text += &item;
    }
    let filling = bytes.saturating_sub(text.len() + END.len());
    text += r#"],"note":""#;
    text.extend((0..filling).map(|_| rng.alphanumeric()));
    text + r#""}"#
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> LoadContent {
        LoadContent {
            file: None,
            payloads: 3,
            payload_bytes: 150,
            shape: PayloadShape::Records,
            form: LoadForm::Collection,
            compress: None,
            headers: Vec::new(),
            token_file: None,
        }
    }

    fn url() -> Url {
        Url::parse("http://[::1]:8080/payloads?x=1").unwrap()
    }

    /// Head and body of the request at `turn`.
    fn request(requests: &LoadRequests, turn: usize) -> (String, Vec<u8>) {
        let LoadRequest { bytes, body_bytes } = requests.get(turn);
        let (head, body) = bytes.split_at(bytes.len() - body_bytes);
        (String::from_utf8(head.to_vec()).unwrap(), body.to_vec())
    }

    #[test]
    fn bodies_of_every_form_and_shape_hold_the_payloads() {
        for shape in [PayloadShape::Records, PayloadShape::Events] {
            for form in [LoadForm::Collection, LoadForm::Array, LoadForm::Ndjson] {
                for payload_bytes in [1, 150, 2_000] {
                    let content = LoadContent { shape, form, payload_bytes, ..content() };
                    let requests = LoadRequests::new(&url(), &content).unwrap();
                    assert_eq!(requests.payloads, Some(3));
                    let (head, body) = request(&requests, 70);
                    let text = String::from_utf8(body).unwrap();
                    let values: Vec<serde_json::Value> = match form {
                        LoadForm::Ndjson => {
                            assert!(head.contains("content-type: application/x-ndjson\r\n"));
                            text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
                        }
                        LoadForm::Array => serde_json::from_str(&text).unwrap(),
                        LoadForm::Collection => {
                            let whole: serde_json::Value = serde_json::from_str(&text).unwrap();
                            whole["data"].as_array().unwrap().clone()
                        }
                    };
                    assert_eq!(values.len(), 3, "{text}");
                    if shape == PayloadShape::Records && payload_bytes > 1 {
                        assert!(text.len().abs_diff(3 * payload_bytes) < 40, "{}", text.len());
                    }
                }
            }
        }
    }

    #[test]
    fn requests_differ_and_have_one_size() {
        let requests = LoadRequests::new(&url(), &content()).unwrap();
        assert_eq!(requests.requests.len(), 64);
        assert_ne!(requests.get(0).bytes, requests.get(1).bytes);
        assert_eq!(requests.get(3).bytes, requests.get(67).bytes);
        let (head, body) = request(&requests, 0);
        assert!(requests.requests.iter().all(|r| r.body_bytes == body.len()));
        assert_eq!(requests.body_bytes(), body.len() as f64);
        assert!(
            head.starts_with(
                "POST /payloads?x=1 HTTP/1.1\r\nhost: [::1]:8080\r\nuser-agent: millrace-bench/"
            ),
            "{head}"
        );
        assert!(head.ends_with(&format!("content-length: {}\r\n\r\n", body.len())), "{head}");
    }

    #[test]
    fn compressed_bodies_are_what_they_say() {
        for (compress, name) in [(LoadCoding::Gzip, "gzip"), (LoadCoding::Zstd, "zstd")] {
            let plain = LoadRequests::new(&url(), &content()).unwrap();
            let content = LoadContent { compress: Some(compress), ..content() };
            let (head, body) = request(&LoadRequests::new(&url(), &content).unwrap(), 0);
            assert!(head.contains(&format!("content-encoding: {name}\r\n")), "{head}");
            let mut text = Vec::new();
            match compress {
                LoadCoding::Gzip => {
                    flate2::read::GzDecoder::new(&*body).read_to_end(&mut text).unwrap();
                }
                LoadCoding::Zstd => text = zstd::decode_all(&*body).unwrap(),
            }
            assert_eq!(text, request(&plain, 0).1);
        }
    }

    #[test]
    fn an_own_body_is_sent_as_it_is_and_a_token_is_in_the_head_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let own = LoadContent {
            file: path("body", "{\"data\": [1]}\n"),
            token_file: path("token", " hush-1 \nsecond\n"),
            headers: vec!["Content-Type:application/x-own".to_owned(), "x-y: z".to_owned()],
            ..content()
        };
        let requests = LoadRequests::new(&url(), &own).unwrap();
        assert_eq!(requests.payloads, None);
        let (head, body) = request(&requests, 1);
        assert_eq!(body, b"{\"data\": [1]}\n");
        assert!(head.contains("authorization: Bearer hush-1\r\n"), "{head}");
        assert!(head.contains("Content-Type: application/x-own\r\nx-y: z\r\n"), "{head}");
        assert_eq!(head.matches("ontent-").count(), 2, "{head}");
        for (content, said) in [
            (LoadContent { token_file: path("empty", "\n"), ..content() }, "is not a token"),
            (LoadContent { token_file: path("two", "a b\n"), ..content() }, "is not a token"),
            (
                LoadContent { token_file: Some(dir.path().join("none")), ..content() },
                "No such file",
            ),
            (LoadContent { file: Some(dir.path().join("none")), ..content() }, "No such file"),
            (LoadContent { payloads: 1 << 20, payload_bytes: 1 << 10, ..content() }, "give fewer"),
        ] {
            let why = LoadRequests::new(&url(), &content).err().unwrap();
            assert!(why.contains(said), "{said}: {why}");
        }
    }

    #[test]
    fn header_fields_are_fields_and_not_secrets() {
        assert_eq!(header_field("millrace-ack: stored"), Ok(("millrace-ack", "stored")));
        assert_eq!(header_field("x-empty:"), Ok(("x-empty", "")));
        for (text, said) in [
            ("nothing", "give NAME: VALUE"),
            (": x", "not one of a header field"),
            ("a b: x", "not one of a header field"),
            ("a: x\r\nb: y", "no header field has"),
            ("Content-Length: 3", "it is computed"),
            ("HOST: x", "the URL has it"),
            ("Authorization: Bearer hush", "use --token-file"),
            ("X-API-Key: hush", "use --token-file"),
        ] {
            let why = header_field(text).unwrap_err();
            assert!(why.contains(said) && !why.contains("hush"), "{text}: {why}");
        }
    }
}
