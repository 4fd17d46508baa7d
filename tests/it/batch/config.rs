//! Settings of batches and keys: goal, what could lose data, store two objects under one key or
//! never answer is refused before anything runs, with what was given and the remedy.
//!
//! Method: the binary's exit status and its words, exactly, for every setting's bad values and for
//! those that do not go together.

use std::path::Path;

use crate::support::{Server, run};

/// Exit status and standard error of a start with `settings`.
fn say(dir: &Path, args: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let ports = [("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:0")];
    let output = run(dir, args, &[&ports, settings].concat());
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Each start is refused for its first setting, in exactly these words.
fn refused(cases: &[(&[(&str, &str)], &str)]) {
    let dir = tempfile::tempdir().unwrap();
    for (settings, reason) in cases {
        let (status, text) = say(dir.path(), &[], settings);
        let (name, value) = settings[0];
        let expected =
            format!("{name}={value:?} (environment variable MILLRACE_{name}): {reason}\n");
        assert_eq!((status, text), (Some(2), expected), "{settings:?}");
    }
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "a refused start changes nothing");
}

const BATCH: (&str, &str) = ("OBJECT", "batch");
const ZSTD: (&str, &str) = ("COMPRESSION", "zstd");
const GZIP: (&str, &str) = ("COMPRESSION", "gzip");

#[test]
fn values_that_are_none_are_refused_with_what_is_allowed() {
    refused(&[
        (&[("OBJECT", "batches")], "give payload or batch"),
        (&[("COMPRESSION", "lz4"), BATCH], "give none, gzip or zstd"),
        (&[("COMPRESSION_MARK", "name"), BATCH], "give suffix or header"),
        (&[("COMPRESSION_LEVEL", "10"), ZSTD, BATCH], "give a whole number from -7 to 9"),
        (&[("COMPRESSION_LEVEL", "-8"), ZSTD, BATCH], "give a whole number from -7 to 9"),
        (&[("COMPRESSION_LEVEL", "0"), GZIP, BATCH], "give a whole number from 1 to 9"),
        (&[("COMPRESSION_LEVEL", "10"), GZIP, BATCH], "give a whole number from 1 to 9"),
        (&[("COMPRESSION_LEVEL", "fast"), GZIP, BATCH], "give a whole number from 1 to 9"),
        (
            &[("COMPRESSION_LEVEL", "3"), BATCH],
            "needs COMPRESSION=gzip or zstd: set that or drop the level",
        ),
        (
            &[("BATCH_BYTES", "63KiB"), BATCH],
            "give a size from 64.0 KiB to 1.0 GiB, such as 64MiB, 1GB or 1048576 (bytes)",
        ),
        (
            &[("BATCH_RAW_BYTES", "17GiB"), BATCH],
            "give a size from 64.0 KiB to 16.0 GiB, such as 64MiB, 1GB or 1048576 (bytes)",
        ),
        (&[("BATCH_AGE", "9ms"), BATCH], "give a time from 10ms to 1h, such as 250ms, 10s or 5m"),
        (&[("BATCH_AGE", "2h"), BATCH], "give a time from 10ms to 1h, such as 250ms, 10s or 5m"),
        (&[("BATCH_AGE", "5"), BATCH], "has no unit: write 5ms, 5s or 5m"),
        (&[("BATCH_COUNT", "0"), BATCH], "give a whole number from 1 to 1000000000"),
        (&[("MAX_PARTITIONS", "0"), BATCH], "give a whole number from 1 to 100000"),
        (&[("MAX_PARTITIONS", "100001"), BATCH], "give a whole number from 1 to 100000"),
        (&[("PUT_PRICE", "-1")], "give dollars from 0 to 1000000, such as 0.005"),
        (&[("PUT_PRICE", "cheap")], "give dollars from 0 to 1000000, such as 0.005"),
    ]);
}

#[test]
fn settings_that_do_not_go_together_are_refused_with_both() {
    refused(&[
        (
            &[ZSTD],
            "needs OBJECT=batch instead of OBJECT=\"payload\" (default): single payloads are stored \
             as received",
        ),
        (
            // Of 21 MiB: two batches, a payload, and 4 MiB.
            &[("BATCH_MEMORY", "21503KiB"), BATCH],
            "is below 2 × BATCH_BYTES=\"8MiB\" (default) + MAX_LENGTH + 4 MiB (22020096): one batch \
             is in flight while another is filled; raise it",
        ),
        (
            &[("COMPRESSION_MARK", "header"), BATCH, ZSTD],
            "needs a store that keeps headers, unlike STORE=\"file:./data\" (default): give suffix",
        ),
        (
            &[("KEY", "{unix_nanos}-{node}-{core}-{seq}"), BATCH, GZIP],
            "has no {ext}, so readers could not detect COMPRESSION=\"gzip\" (environment variable \
             MILLRACE_COMPRESSION): add it or .ndjson.gz, or set COMPRESSION_MARK=header",
        ),
    ]);
    let dir = tempfile::tempdir().unwrap();
    // A default that no longer goes with what was given is named as one.
    let (status, text) = say(dir.path(), &[], &[BATCH, ("BATCH_BYTES", "64MiB")]);
    assert_eq!(status, Some(2));
    let said = "BATCH_MEMORY=\"128MiB\" (default): is below 2 × BATCH_BYTES=\"64MiB\" (environment";
    assert!(text.starts_with(said), "{text}");
    // Those that just go together do.
    for fine in [
        // Whoever asks for `stored` does not wait for the age.
        &[BATCH, ("BATCH_AGE", "60s")][..],
        &[BATCH, ("BATCH_AGE", "1h"), ("ACK", "stored"), ("PUT_TIMEOUT", "29s")],
        &[BATCH, ("BATCH_MEMORY", "21504KiB")],
        &[BATCH, ZSTD, ("COMPRESSION_LEVEL", "-7")],
        &[BATCH, GZIP, ("COMPRESSION_LEVEL", "9")],
        &[("PUT_PRICE", "0")],
    ] {
        let (status, text) = say(dir.path(), &["check"], fine);
        assert_eq!(status, Some(0), "{fine:?}: {text}");
    }
}

/// The end of a key tells readers how to decode the object, whoever wrote it.
#[test]
fn an_ending_that_is_true_is_as_good_as_ext_and_any_other_is_refused() {
    const STAMP: &str = "{unix_nanos}-{node}-{core}-{seq}";
    const HEADER: (&str, &str) = ("COMPRESSION_MARK", "header");
    const NULL: (&str, &str) = ("STORE", "null:");
    let key = |ending: &str| format!("{STAMP}{ending}");
    let dir = tempfile::tempdir().unwrap();
    for (ending, settings) in [
        (".ndjson.gz", &[BATCH, GZIP][..]),
        (".json.gz", &[BATCH, GZIP]),
        (".jsonl.zst", &[BATCH, ZSTD]),
        (".gz", &[BATCH, GZIP]),
        ("-all.events.zst", &[BATCH, ZSTD]),
        (".ndjson", &[BATCH]),
        (".json", &[BATCH]),
        (".ndjson", &[BATCH, ZSTD, HEADER, NULL]),
        (".{ext}", &[BATCH, GZIP]),
        ("-{ext}.x", &[BATCH, GZIP]),
        ("", &[BATCH]),
        (".json", &[]),
        (".gzip", &[]),
    ] {
        let key = key(ending);
        let settings = [&[("KEY", key.as_str())], settings].concat();
        let (status, text) = say(dir.path(), &["check"], &settings);
        assert_eq!(status, Some(0), "{settings:?}: {text}");
    }
    let [gz, zst, lines, zstd, twice, jsonl] =
        [".ndjson.gz", ".ndjson.zst", ".ndjson", "-x.zstd", ".{ext}.gz", ".jsonl.gz"].map(key);
    let set = |name: &str, value: &str| {
        format!("{name}={value:?} (environment variable MILLRACE_{name})")
    };
    let zstd_set = set("COMPRESSION", "zstd");
    let zstd_makes =
        format!("ends in .gz, but {zstd_set} makes .ndjson.zst: write {{ext}} or .ndjson.zst");
    let header = set("COMPRESSION_MARK", "header");
    let header_makes =
        format!("ends in .zst, but {header} makes .ndjson: write {{ext}} or .ndjson");
    let none =
        "ends in .zstd, but COMPRESSION=\"none\" (default) makes .ndjson: write {ext} or .ndjson";
    let single = |said: &str| {
        format!(
            "ends in {said}, but OBJECT=\"payload\" (default) makes .json: write {{ext}} or .json, or set OBJECT=batch"
        )
    };
    refused(&[
        (&[("KEY", &gz), BATCH, ZSTD], &zstd_makes),
        (&[("KEY", &zst), BATCH, ZSTD, HEADER, NULL], &header_makes),
        (&[("KEY", &zstd), BATCH], none),
        (&[("KEY", &gz)], &single(".gz")),
        (&[("KEY", &lines)], &single(".ndjson")),
        (&[("KEY", &jsonl)], &single(".gz")),
        (
            &[("KEY", &twice), BATCH, GZIP],
            "ends in .gz behind {ext}, which says it already: remove .gz",
        ),
    ]);
}

#[test]
fn keys_that_two_objects_could_share_are_refused() {
    const STAMP: &str = "{unix_nanos}-{node}-{core}-{seq}";
    refused(&[
        (
            &[("KEY", "{date:%Y}/all.json")],
            "KEY has no {node} and {core} and {seq}, so two objects could share a key: add {node} and \
             {core} and {seq}",
        ),
        (
            &[("KEY", "{unix_nanos}-{node}-{core}"), BATCH],
            "KEY has no {seq}, so two objects could share a key: add {seq}",
        ),
        (
            &[("KEY", "{node}-{core}-{seq}"), ("NODE_ID", "fixed")],
            "KEY has no {unix_nanos}, so two objects could share a key: add {unix_nanos}, \
             because with a fixed NODE_ID only the clock differs after a restart",
        ),
        (
            &[("KEY", "{unix_nanos}-{node}-{core}{seq}")],
            "{core} and {seq} run together in KEY, so two objects could share a key: \
             write a / between them",
        ),
        (
            &[("KEY", "{field:/tenant}-{node}/{unix_nanos}-{core}-{seq}"), ("NODE_ID", "fixed")],
            "{node} and {field:/tenant} run together in KEY, so two objects could share a key: \
             write a / between them",
        ),
    ]);
    let dir = tempfile::tempdir().unwrap();
    for fine in ["{node}-{core}-{seq}", &format!("{{field:/a}}{{field:/b}}/{STAMP}")] {
        let (status, text) = say(dir.path(), &["check"], &[("KEY", fine)]);
        assert_eq!(status, Some(0), "{fine}: {text}");
    }
}

#[test]
fn keys_that_cannot_be_read_or_kept_are_refused() {
    const ALL: &str = "there are {unix_nanos}, {unix_ms}, {date:%Y/%m/%d}, {hour}, {node}, {core}, {seq}, \
        {count}, {ext}, {hash:2}, {version}, {token} or {token|default}, {header:x-name} or {header:x-name|default}, {query:name} or {query:name|default}, {field:/member} or {field:/member|default}";
    let unknown = format!("{{seqq}} in KEY is not a placeholder: did you mean {{seq}}? {ALL}");
    let unclosed =
        format!("KEY has {{seq without its }}: close it, or write {{{{ for a brace; {ALL}");
    refused(&[
        (&[("KEY", "{unix_nanos}-{node}-{core}-{seqq}")], &unknown),
        (&[("KEY", "{unix_nanos}-{node}-{core}-{seq")], &unclosed),
        (
            &[("KEY", "/{unix_nanos}-{node}-{core}-{seq}")],
            "KEY has an empty part: write single slashes, and none at its start or end",
        ),
        (
            &[("KEY", "../{unix_nanos}-{node}-{core}-{seq}")],
            "KEY has a part .., which clients resolve: write the path out",
        ),
        (
            &[("KEY", "{date:%q}/{unix_nanos}-{node}-{core}-{seq}")],
            "{date:%q} in KEY has %q: write %Y %m %d %H %M %S %j, and %% for a %",
        ),
        (
            &[("KEY", "{hash:9}/{unix_nanos}-{node}-{core}-{seq}")],
            "{hash:9} in KEY has an invalid number of digits: write {hash:1} to {hash:8}",
        ),
        (
            &[("KEY", "{field:tenant}/{unix_nanos}-{node}-{core}-{seq}")],
            "\"tenant\" in KEY is not a JSON pointer: write /tenant",
        ),
        (
            &[("KEY", "{field:/tenant|../x}/{unix_nanos}-{node}-{core}-{seq}")],
            "the default \"../x\" in KEY would be changed: write \".._x\"",
        ),
        (
            &[("EVENT_TIME", "/ts")],
            "EVENT_TIME is \"/ts\", but KEY contains no time: add {date:…} or {hour}",
        ),
        (
            &[("EVENT_TIME", "ts"), ("KEY", "{hour}/{unix_nanos}-{node}-{core}-{seq}")],
            "\"ts\" in EVENT_TIME is not a JSON pointer: write /ts, or received_at for the time of receipt",
        ),
        (
            &[("EVENT_TIME", "/a~2"), ("KEY", "{hour}/{unix_nanos}-{node}-{core}-{seq}")],
            "\"/a~2\" in EVENT_TIME is not a JSON pointer: write ~0 for a ~ in a name, and ~1 for a /",
        ),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let (status, text) = say(dir.path(), &["--key", ""], &[]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("KEY=\"\"") && text.contains("is empty: give a value"), "{text}");
}

#[test]
fn keys_longer_than_s3_takes_are_refused_with_the_prefix() {
    let seven: String = ('a'..='g').map(|name| format!("{{field:/{name}}}/")).collect();
    let key = format!("{seven}{{unix_nanos}}-{{node}}-{{core}}-{{seq}}.{{ext}}");
    // Values of 128 bytes and a slash each; 20 digits, dashes, 16 of the node, 4 of the core, 20
    // digits and the extension.
    let longest = 7 * 129 + 20 + 3 + 16 + 4 + 20 + ".ndjson".len();
    let fits = 1024 - longest;
    let store = |bytes: usize| format!("s3://bucket/{}", "p".repeat(bytes));
    let too_long = format!(
        "makes keys of up to 1025 bytes with STORE={:?} (environment variable MILLRACE_STORE), but S3 allows 1024: \
         use fewer fields or a shorter prefix",
        store(fits + 1)
    );
    refused(&[(&[("KEY", &key), BATCH, ("STORE", &store(fits + 1))], &too_long)]);
    // That prefix is no part of a file's name.
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(say(dir.path(), &["check"], &[("KEY", &key), BATCH]).0, Some(0));
}

#[test]
fn a_start_says_what_is_set_and_what_memory_batches_add() {
    let memory = |settings: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        let ports = [("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:0"), ("CORES", "0")];
        let output = run(dir.path(), &["check"], &[&ports, settings].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        for (name, value) in settings {
            let line = format!("{name}={value:?} (environment variable MILLRACE_{name})");
            assert!(text.contains(&line), "{line} in {text}");
        }
        let wanted =
            text.split(" available, ").nth(1).unwrap().split(" needed when").next().unwrap();
        let (number, unit) = wanted.split_once(' ').unwrap();
        assert!(["GiB", "MiB"].contains(&unit), "{wanted}");
        number.parse::<f64>().unwrap() * if unit == "GiB" { 1024.0 } else { 1.0 }
    };
    let [without, with] = [&[][..], &[BATCH, ("BATCH_MEMORY", "1GiB")]].map(memory);
    // To a tenth of a GiB: BATCH_MEMORY, and 24 MiB of what is kept for reuse.
    assert!((with - without - 1_048.0).abs() < 110.0, "{with} {without}");
    // And it serves.
    let server = Server::start_batching(&[("BATCH_AGE", "50ms")]);
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    server.wait_idle();
    assert_eq!(server.batches().into_values().collect::<Vec<_>>(), [["1"]]);
}
