//! Objects of batches, read back as a reader from outside would: by their names and headers,
//! strictly.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use super::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use super::{Metrics, Server, Stopped};

/// How an object of a batch is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// As the suffix of a key tells it.
    pub fn of_key(key: &str) -> Packing {
        match key.rsplit_once('.').map(|(_, suffix)| suffix) {
            Some("ndjson") => Packing::Plain,
            Some("gz") => Packing::Gzip,
            Some("zst") => Packing::Zstd,
            _ => panic!("no batch is called {key}"),
        }
    }

    /// As its first bytes tell it, none of which begins a JSON value.
    pub fn of_bytes(bytes: &[u8]) -> Packing {
        match bytes {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
            _ => Packing::Plain,
        }
    }

    /// As a `content-encoding` tells it.
    pub fn of_coding(coding: Option<&str>) -> Packing {
        match coding {
            None => Packing::Plain,
            Some("gzip") => Packing::Gzip,
            Some("zstd") => Packing::Zstd,
            Some(other) => panic!("content-encoding: {other}"),
        }
    }

    /// Many readers stop after the first frame or member: there must be one, and nothing behind it.
    pub fn unpack(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Packing::Plain => bytes.to_vec(),
            Packing::Gzip => {
                let (mut rest, mut plain) = (bytes, Vec::new());
                flate2::bufread::GzDecoder::new(&mut rest).read_to_end(&mut plain).unwrap();
                assert!(rest.is_empty(), "{} bytes behind the gzip member", rest.len());
                plain
            }
            Packing::Zstd => {
                let frame = zstd::zstd_safe::find_frame_compressed_size(bytes);
                assert_eq!(frame.ok(), Some(bytes.len()), "one zstd frame");
                zstd::decode_all(bytes).unwrap()
            }
        }
    }

    /// The lines of an object, every one of which is ended and is JSON.
    pub fn lines(self, bytes: &[u8]) -> Vec<String> {
        let text = String::from_utf8(self.unpack(bytes)).unwrap();
        let body = text.strip_suffix('\n').expect("a line feed ends the last line too");
        let lines: Vec<String> = body.split('\n').map(str::to_owned).collect();
        for line in &lines {
            let json = serde_json::from_str::<&serde_json::value::RawValue>(line);
            assert!(json.is_ok() && !line.contains('\r'), "{line:?}");
        }
        lines
    }
}

/// Objects by key, each as its lines.
pub type Batches = BTreeMap<String, Vec<String>>;

/// The lines of each of `objects`, by the suffixes of their keys.
pub fn batches(objects: &BTreeMap<String, Vec<u8>>) -> Batches {
    objects.iter().map(|(key, bytes)| (key.clone(), Packing::of_key(key).lines(bytes))).collect()
}

/// All lines of all objects, sorted.
pub fn all_lines(batches: &Batches) -> Vec<String> {
    let mut lines: Vec<String> = batches.values().flatten().cloned().collect();
    lines.sort();
    lines
}

impl Server {
    /// Starts with `OBJECT=batch` before `settings`.
    pub fn start_batching(settings: &[(&str, &str)]) -> Server {
        Server::start(&[&[("OBJECT", "batch")], settings].concat())
    }

    /// The same in a directory that an earlier server may have left.
    pub fn start_batching_in(dir: Arc<tempfile::TempDir>, settings: &[(&str, &str)]) -> Server {
        Server::start_in(dir, &[&[("OBJECT", "batch")], settings].concat())
    }

    /// What the `file:` store in `data`, the default, holds of batches.
    pub fn batches(&self) -> Batches {
        batches(&self.stored())
    }

    /// Waits until all of `payloads` are stored and nothing is left anywhere; then every figure
    /// must fit the `objects` that `read` gives: their lines, sizes and number, each put once.
    pub fn check_figures(
        &self,
        payloads: &[String],
        read: impl Fn() -> BTreeMap<String, Vec<u8>>,
    ) -> Metrics {
        let count = payloads.len() as u64;
        self.wait("all stored", |m| m.sum("millrace_payloads_stored_total") >= count);
        self.wait_idle();
        let (metrics, objects) = (self.metrics(), read());
        let bytes: usize = payloads.iter().map(String::len).sum();
        let stored: usize = objects.values().map(Vec::len).sum();
        for (name, expected) in [
            ("payloads_accepted_total", count),
            ("payloads_stored_total", count),
            ("bytes_stored_total", bytes as u64),
            ("objects_stored_total", objects.len() as u64),
            ("object_bytes_stored_total", stored as u64),
            ("batches_closed_total", objects.len() as u64),
            ("batch_stored_size_bytes_count", objects.len() as u64),
            ("batch_stored_size_bytes_sum", stored as u64),
            // A line feed for each.
            ("batch_raw_size_bytes_sum", bytes as u64 + count),
            ("put_latency_seconds_count", objects.len() as u64),
            ("put_retries_total", 0),
            ("payloads_dead_lettered_total", 0),
            ("payloads_lost_total", 0),
        ] {
            assert_eq!(metrics.sum(&format!("millrace_{name}")), expected, "{name}\n{}", metrics.0);
        }
        metrics
    }
}

impl Stopped {
    /// What the `file:` store in `data`, the default, holds of batches.
    pub fn batches(&self) -> Batches {
        batches(&self.stored())
    }
}

impl Metrics {
    /// Batches closed for `reason`.
    pub fn closed(&self, reason: &str) -> u64 {
        self.sum_where("millrace_batches_closed_total", &format!("reason=\"{reason}\""))
    }

    /// The reasons for which batches were closed, in the metric's order, with how many.
    pub fn closed_by_reason(&self) -> Vec<(&'static str, u64)> {
        let reasons =
            ["size", "raw_size", "age", "stored", "count", "memory", "partitions", "drain"];
        let all = reasons.map(|reason| (reason, self.closed(reason)));
        let sum: u64 = all.iter().map(|(_, count)| count).sum();
        assert_eq!(sum, self.sum("millrace_batches_closed_total"), "no other reasons\n{}", self.0);
        all.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// A metric without labels.
    pub fn value(&self, name: &str) -> f64 {
        let found = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
    }
}

/// Where [`s3_settings`] lets a server put objects: below `in/`.
pub const S3_STORE: &str = "s3://payloads/in/";

/// Settings of a store in `server`, at `url`, its address.
pub fn s3_settings(url: &str) -> Vec<(&str, &str)> {
    assert_eq!(S3_STORE, format!("s3://{BUCKET}/in/"));
    vec![
        ("STORE", S3_STORE),
        ("AWS_ENDPOINT_URL_S3", url),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("HOME", "/nonexistent"),
    ]
}

/// Every object below `in/`, by the rest of its key.
pub fn in_bucket(server: &S3Server) -> BTreeMap<String, Vec<u8>> {
    let objects = server.objects().into_iter();
    objects.map(|(key, bytes)| (key.strip_prefix("in/").unwrap().to_owned(), bytes)).collect()
}
