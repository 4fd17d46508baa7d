//! The command line of `millrace bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser as _, ValueParser};
use clap::{Arg, ArgAction, ArgMatches};

use super::{JSON, Reads, URL, switch};
use crate::commands::bench::bodies::{
    LoadCoding, LoadContent, LoadForm, PayloadShape, header_field,
};
use crate::commands::bench::{LoadOptions, LoadTrust, LoadVolume};

const CONNECTIONS: &str = "connections";
const THREADS: &str = "threads";
const RATE: &str = "rate";
const DURATION: &str = "duration";
const WARM_UP: &str = "warm-up";
const TIMEOUT: &str = "timeout";
const PAYLOADS: &str = "payloads";
const PAYLOAD_BYTES: &str = "payload-bytes";
const SHAPE: &str = "shape";
const FORM: &str = "form";
const BODY_FILE: &str = "body-file";
const COMPRESS: &str = "compress";
const HEADER: &str = "header";
const TOKEN_FILE: &str = "token-file";
const CA: &str = "ca";
const INSECURE: &str = "insecure";
const HISTOGRAM: &str = "histogram";

/// Longest measured part, warm-up and time-out.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const WARM_UP_MAX: Duration = Duration::from_secs(60 * 60);
const TIMEOUT_MAX: Duration = Duration::from_secs(10 * 60);

const AFTER_HELP: &str = "\
Without --rate it is a closed loop: each connection sends the next request when it has the answer
to the last one, and latency is the time from sending. With --rate requests are due at that rate
whatever the answers do, and latency counts from when they were due (no coordinated omission).
A token is read from MILLRACE_TOKEN or --token-file and sent as `authorization: Bearer`.
Exit 0 if the server accepted requests, 1 if it accepted none, 2 if the run could not start.
`millrace --help` shows settings, of which this command reads none.";

pub(super) fn command() -> clap::Command {
    let url = Arg::new(URL)
        .value_name("URL")
        .required(true)
        .help("Where to POST, http:// or https:// [default path: /payloads]");
    let about = "Put load on a server, and report what it accepts and how long that takes";
    super::command("bench", about, Reads::Only(&[]))
        .arg(url)
        .args(volume_args())
        .args(content_args())
        .args(trust_args())
        .arg(switch(JSON, "json", "Print the report as JSON"))
        .arg(file(HISTOGRAM, "Write the latencies as an HdrHistogram percentile file (.hgrm)"))
        .after_help(AFTER_HELP)
}

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn file(name: &'static str, help: &'static str) -> Arg {
    option(name, "FILE", help).value_parser(ValueParser::path_buf())
}

fn number(range: std::ops::RangeInclusive<u64>) -> ValueParser {
    clap::value_parser!(u64).range(range).into()
}

/// A time from `least` to `most`.
fn time(least: Duration, most: Duration) -> ValueParser {
    ValueParser::from(move |text: &str| {
        let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
        if (least..=most).contains(&time) {
            return Ok(time);
        }
        let [least, most] = [least, most].map(humantime::format_duration);
        Err(format!("give {least} to {most}"))
    })
}

fn volume_args() -> [Arg; 6] {
    let moment = Duration::from_millis(100);
    [
        option(CONNECTIONS, "N", "Connections, each with one request at a time")
            .short('c')
            .default_value("64")
            .value_parser(number(1..=100_000)),
        option(THREADS, "N", "Threads [default: one per core, with 8 connections each or more]")
            .short('t')
            .value_parser(number(1..=1_024)),
        option(RATE, "N", "Open loop: so many requests per second, on all connections together")
            .short('r')
            .value_parser(number(1..=10_000_000)),
        option(DURATION, "TIME", "Length of the measured part")
            .short('d')
            .default_value("10s")
            .value_parser(time(moment, DURATION_MAX)),
        option(WARM_UP, "TIME", "Load before it, which is not measured")
            .default_value("2s")
            .value_parser(time(Duration::ZERO, WARM_UP_MAX)),
        option(TIMEOUT, "TIME", "How long an answer may take")
            .default_value("10s")
            .value_parser(time(moment, TIMEOUT_MAX)),
    ]
}

fn content_args() -> [Arg; 8] {
    let shape = PossibleValuesParser::new(["records", "events"]).map(|name| match &*name {
        "records" => PayloadShape::Records,
        _ => PayloadShape::Events,
    });
    let form =
        PossibleValuesParser::new(["collection", "array", "ndjson"]).map(|name| match &*name {
            "collection" => LoadForm::Collection,
            "array" => LoadForm::Array,
            _ => LoadForm::Ndjson,
        });
    let coding = PossibleValuesParser::new(["gzip", "zstd"]).map(|name| match &*name {
        "gzip" => LoadCoding::Gzip,
        _ => LoadCoding::Zstd,
    });
    let field = |text: &str| header_field(text).map(|_| text.to_owned());
    [
        option(PAYLOADS, "N", "Payloads in a request")
            .default_value("10")
            .value_parser(number(1..=1_000_000)),
        option(PAYLOAD_BYTES, "N", "Bytes of a payload; events have 700 or more")
            .default_value("150")
            .value_parser(number(50..=64 << 20)),
        option(SHAPE, "SHAPE", "What payloads are like: records of numbers, or events of a log")
            .default_value("records")
            .value_parser(shape),
        option(FORM, "FORM", "What payloads are in: {\"data\":[…]}, an array, or lines")
            .default_value("collection")
            .value_parser(form),
        file(BODY_FILE, "Send this body instead, as it is").conflicts_with_all([
            PAYLOADS,
            PAYLOAD_BYTES,
            SHAPE,
            FORM,
        ]),
        option(COMPRESS, "CODING", "Compress bodies").value_parser(coding),
        option(HEADER, "FIELD", "A further header field, 'NAME: VALUE'; may be repeated")
            .short('H')
            .action(ArgAction::Append)
            .value_parser(field),
        file(TOKEN_FILE, "File whose first line is the token [env: MILLRACE_TOKEN]"),
    ]
}

fn trust_args() -> [Arg; 2] {
    [
        file(CA, "PEM file with an authority to trust, besides those of the system"),
        switch(INSECURE, "insecure", "Accept any certificate").conflicts_with(CA),
    ]
}

pub(super) fn options(matches: &ArgMatches) -> LoadOptions {
    let number = |name| matches.get_one::<u64>(name).copied();
    let given = |name| number(name).expect("it has a default") as usize;
    let time = |name| *matches.get_one::<Duration>(name).expect("it has a default");
    let path = |name| matches.get_one::<PathBuf>(name).cloned();
    let trust = match path(CA) {
        Some(ca) => LoadTrust::Ca(ca),
        None if matches.get_flag(INSECURE) => LoadTrust::Anybody,
        None => LoadTrust::Roots,
    };
    LoadOptions {
        url: matches.get_one::<String>(URL).expect("clap requires it").clone(),
        volume: LoadVolume {
            connections: given(CONNECTIONS),
            threads: number(THREADS).map(|threads| threads as usize),
            rate: number(RATE).map(|rate| rate as u32),
            duration: time(DURATION),
            warm_up: time(WARM_UP),
            timeout: time(TIMEOUT),
        },
        content: LoadContent {
            file: path(BODY_FILE),
            payloads: given(PAYLOADS),
            payload_bytes: given(PAYLOAD_BYTES),
            shape: *matches.get_one(SHAPE).expect("it has a default"),
            form: *matches.get_one(FORM).expect("it has a default"),
            compress: matches.get_one(COMPRESS).copied(),
            headers: matches.get_many::<String>(HEADER).into_iter().flatten().cloned().collect(),
            token_file: path(TOKEN_FILE),
        },
        trust,
        json: matches.get_flag(JSON),
        histogram: path(HISTOGRAM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Command, parse};

    fn options(arguments: &[&str]) -> Result<LoadOptions, clap::Error> {
        let line = ["millrace", "bench"].iter().chain(arguments);
        match parse(line.map(std::ffi::OsString::from))?.command {
            Command::Bench(options) => Ok(options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_those_of_the_help_and_options_are_taken() {
        let usual = options(&["http://x"]).unwrap();
        assert_eq!((usual.volume.connections, usual.volume.threads), (64, None));
        assert_eq!((usual.volume.rate, usual.volume.timeout), (None, Duration::from_secs(10)));
        assert_eq!((usual.content.payloads, usual.content.payload_bytes), (10, 150));
        assert_eq!((usual.trust, usual.json), (LoadTrust::Roots, false));
        let line = "https://x -c 3 -t 2 -r 500 -d 1m --warm-up 0s --timeout 200ms --payloads 1 --payload-bytes 700 \
                    --shape events --form ndjson --compress zstd -H a:b --token-file t --ca c.pem --json --histogram h";
        let full = options(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        let expected = LoadOptions {
            url: "https://x".to_owned(),
            volume: LoadVolume {
                connections: 3,
                threads: Some(2),
                rate: Some(500),
                duration: Duration::from_secs(60),
                warm_up: Duration::ZERO,
                timeout: Duration::from_millis(200),
            },
            content: LoadContent {
                file: None,
                payloads: 1,
                payload_bytes: 700,
                shape: PayloadShape::Events,
                form: LoadForm::Ndjson,
                compress: Some(LoadCoding::Zstd),
                headers: vec!["a:b".to_owned()],
                token_file: Some("t".into()),
            },
            trust: LoadTrust::Ca("c.pem".into()),
            json: true,
            histogram: Some("h".into()),
        };
        assert_eq!(full, expected);
        let own = options(&["http://x", "--body-file", "b", "--insecure"]).unwrap();
        assert_eq!((own.content.file, own.trust), (Some("b".into()), LoadTrust::Anybody));
    }

    #[test]
    fn what_makes_no_sense_is_bad_usage_and_quotes_no_secret() {
        for (arguments, said) in [
            (&[][..], "URL"),
            (&["http://x", "-c", "0"], "1..=100000"),
            (&["http://x", "-t", "0"], "1..=1024"),
            (&["http://x", "-r", "0"], "1..=10000000"),
            (&["http://x", "-r", "1.5"], "invalid digit"),
            (&["http://x", "-d", "1ms"], "give 100ms to 1day"),
            (&["http://x", "-d", "10"], "time unit needed"),
            (&["http://x", "--payloads", "0"], "1..=1000000"),
            (&["http://x", "--payload-bytes", "49"], "50..="),
            (&["http://x", "--form", "xml"], "ndjson"),
            (&["http://x", "--compress", "br"], "zstd"),
            (&["http://x", "--body-file", "b", "--payloads", "3"], "cannot be used with"),
            (&["http://x", "--insecure", "--ca", "c"], "cannot be used with"),
            (&["http://x", "-H", "nothing"], "give NAME: VALUE"),
        ] {
            let error = options(arguments).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
            let text = error.to_string();
            assert!(text.contains(said), "{arguments:?}: {text}");
        }
    }
}
