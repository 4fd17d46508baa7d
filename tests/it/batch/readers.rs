//! A reader from outside: goal, what is in the store can be read by those who know nothing of
//! millrace, with partitions in the Hive style and compressed as usual.
//!
//! Method: DuckDB, as a Python package, counts and sums over everything, by file and by folder, and
//! must agree with what was posted. `MILLRACE_TEST_PYTHON` names another interpreter.

use std::collections::BTreeMap;
use std::process::Command;

use crate::support::needs::{Need, skip};
use crate::support::{Server, collection};

/// `None` where it cannot run.
fn python() -> Option<String> {
    let python = std::env::var("MILLRACE_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    match Command::new(&python).args(["-c", "import duckdb; print(duckdb.__version__)"]).output() {
        Ok(output) if output.status.success() => {
            println!("duckdb {}", String::from_utf8_lossy(&output.stdout).trim());
            Some(python)
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let why = said.trim().lines().last().unwrap_or_default();
            skip(Need::Duckdb, format!("{python} has no duckdb ({why}); pip install duckdb"));
            None
        }
        Err(error) => {
            skip(Need::Duckdb, format!("no {python}: {error}"));
            None
        }
    }
}

/// Rows of `dt`, `hour`, how many, and the sum of their ids; nothing is given but the place.
const QUERY: &str = r#"
import duckdb, sys
rows = duckdb.sql(f"""
    SELECT CAST(dt AS VARCHAR), CAST(hour AS VARCHAR), count(*), CAST(sum(id) AS BIGINT), CAST(sum(length(text)) AS BIGINT)
    FROM read_json_auto('{sys.argv[1]}', hive_partitioning = true, hive_types_autocast = false)
    GROUP BY ALL ORDER BY ALL
""").fetchall()
for row in rows:
    print(*row)
"#;

/// Posts 5,000 events over three hours of two days, and compares what DuckDB finds in
/// `data/**/*.SUFFIX`.
fn read_with_duckdb(python: &str, compression: &str, suffix: &str) {
    let server = Server::start_batching(&[
        ("KEY", "dt={date:%Y-%m-%d}/hour={hour}/{unix_nanos}-{node}-{core}-{seq}.{ext}"),
        ("EVENT_TIME", "/ts"),
        ("COMPRESSION", compression),
        ("BATCH_BYTES", "64KiB"),
        ("BATCH_AGE", "200ms"),
    ]);
    let mut expected = BTreeMap::<(&str, &str), (u64, u64, u64)>::new();
    let mut rng = fastrand::Rng::with_seed(3);
    let mut client = server.connect();
    for first in (0..5_000_u64).step_by(100) {
        let payloads: Vec<String> = (first..first + 100)
            .map(|id| {
                let (ts, place) = [
                    ("2026-11-20T23:59:59Z", ("2026-11-20", "23")),
                    ("2026-11-21T00:00:00Z", ("2026-11-21", "00")),
                    ("2026-11-21T22:30:00+02:00", ("2026-11-21", "20")),
                ][rng.usize(..3)];
                let text: String = (0..rng.usize(..200)).map(|_| rng.alphanumeric()).collect();
                let sums = expected.entry(place).or_default();
                *sums = (sums.0 + 1, sums.1 + id, sums.2 + text.len() as u64);
                // Some over several lines, which are one in the object.
                let gap = if id % 7 == 0 { "\n" } else { " " };
                format!(r#"{{"id":{id},{gap}"ts":"{ts}","text":"{text}"}}"#)
            })
            .collect();
        assert_eq!(client.post(collection(&payloads)).status, 200);
    }
    drop(client);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.stored), (0, 5_000));
    let places = stopped.dir.path().join(format!("data/*/*/*.{suffix}"));
    let output = Command::new(python).args(["-c", QUERY]).arg(places).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected: String = expected
        .iter()
        .map(|((dt, hour), (count, ids, bytes))| format!("{dt} {hour} {count} {ids} {bytes}\n"))
        .collect();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{compression}");
}

#[test]
fn duckdb_reads_hive_partitions_of_every_compression() {
    let Some(python) = python() else { return };
    for (compression, suffix) in [("zstd", "ndjson.zst"), ("gzip", "ndjson.gz"), ("none", "ndjson")]
    {
        read_with_duckdb(&python, compression, suffix);
    }
}
