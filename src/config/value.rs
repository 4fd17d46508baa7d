//! Parses text into typed values, one function per kind. An error says what is allowed and how to
//! write it; the caller adds the setting and the text's source.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use tracing_subscriber::EnvFilter;

use crate::coding::{Coding, Compression};
use crate::log::LogFormat;

use super::{Ack, Checksum, ConnectionPlacement, FileMode, S3Client, SignPayload, StoreUrl};

/// A parsed value, or what is allowed.
pub(super) type Parsed<T> = Result<T, String>;

/// The parser `inner`, with empty text meaning "not set".
pub(super) fn optional<T>(inner: impl Fn(&str) -> Parsed<T>) -> impl Fn(&str) -> Parsed<Option<T>> {
    move |text| if text.is_empty() { Ok(None) } else { inner(text).map(Some) }
}

/// A whole number within `range`.
pub(super) fn count(range: RangeInclusive<usize>) -> impl Fn(&str) -> Parsed<usize> {
    move |text| match text.parse() {
        Ok(n) if range.contains(&n) => Ok(n),
        _ => Err(format!("give a whole number from {} to {}", range.start(), range.end())),
    }
}

/// A size in bytes within `range`, with or without a unit.
pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(&str) -> Parsed<u64> {
    move |text| {
        let allowed = || {
            let (least, most) = (ByteSize(*range.start()), ByteSize(*range.end()));
            let all = [("64MiB", 64 << 20), ("1GB", 1_000_000_000), ("1048576 (bytes)", 1 << 20)];
            format!("give a size from {least} to {most}{}", such_as(&all, &range))
        };
        match text.parse::<ByteSize>() {
            Ok(ByteSize(bytes)) if range.contains(&bytes) => Ok(bytes),
            _ => Err(allowed()),
        }
    }
}

/// Bytes a second within `range`: a size, with or without `/s` after it.
pub(super) fn rate(range: RangeInclusive<u64>) -> impl Fn(&str) -> Parsed<u64> {
    let size = size(range.clone());
    move |text| {
        size(text.strip_suffix("/s").unwrap_or(text)).map_err(|_| {
            let (least, most) = (ByteSize(*range.start()), ByteSize(*range.end()));
            format!("give a rate from {least}/s to {most}/s, such as 256B/s or 1KiB/s")
        })
    }
}

/// A size that must also fit the address space.
pub(super) fn memory(range: RangeInclusive<u64>) -> impl Fn(&str) -> Parsed<usize> {
    let size = size(range);
    move |text| usize::try_from(size(text)?).map_err(|_| "is too large for this machine".into())
}

/// A time with its unit, within `range`; a bare `0` is a time too.
pub(super) fn time(range: RangeInclusive<Duration>) -> impl Fn(&str) -> Parsed<Duration> {
    move |text| {
        if text != "0" && !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("has no unit: write {text}ms, {text}s or {text}m"));
        }
        let parsed = if text == "0" { Ok(Duration::ZERO) } else { humantime::parse_duration(text) };
        match parsed {
            Ok(time) if range.contains(&time) => Ok(time),
            _ => {
                let (least, most) = (*range.start(), *range.end());
                let [least, most] = [least, most].map(humantime::format_duration);
                let seconds = Duration::from_secs;
                let all = [
                    ("250ms", Duration::from_millis(250)),
                    ("10s", seconds(10)),
                    ("5m", seconds(300)),
                ];
                Err(format!("give a time from {least} to {most}{}", such_as(&all, &range)))
            }
        }
    }
}

/// `, such as 10s or 5m`: those of `examples` that are allowed.
fn such_as<T: PartialOrd>(examples: &[(&str, T)], range: &RangeInclusive<T>) -> String {
    let allowed = examples.iter().filter(|(_, value)| range.contains(value));
    let allowed: Vec<&str> = allowed.map(|(text, _)| *text).collect();
    match allowed.as_slice() {
        [] => String::new(),
        [only] => format!(", such as {only}"),
        [first @ .., last] => format!(", such as {} or {last}", first.join(", ")),
    }
}

/// `IP:PORT`. Names are not resolved, because one may have several addresses.
pub(super) fn address(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| {
        let example = match text.strip_prefix(':') {
            Some(port) => format!("0.0.0.0:{port} or [::]:{port}"),
            None => "0.0.0.0:8080 or [::1]:9090".into(),
        };
        format!("give an IP address and a port, such as {example}")
    })
}

/// What begins a key or a certificate. No name of a file has it.
pub(super) const PEM: &str = "-----BEGIN";

/// Why such a text is refused as one.
pub(super) const IS_PEM: &str =
    "is a key or a certificate itself: give the name of a file that holds it";

pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    match text {
        "" => Err("give a path".into()),
        _ if text.contains('\0') => Err("a path cannot contain NUL".into()),
        _ if text.contains(PEM) => Err(IS_PEM.into()),
        _ => Ok(text.into()),
    }
}

/// Why a text is refused for which [`is_secret_itself`].
pub const IS_SECRET: &str = "may be the secret itself, for there is no such file: give the name of the file that \
                             holds it, from / or ./ on";

/// Whether a text that was given as the name of the file of a secret may be the secret: there is no
/// such file, and it is as long as a secret and consists of one word, or of parts of which one has
/// letters and digits mixed. A name that begins as a path does is a name.
pub fn is_secret_itself(text: &str) -> bool {
    const LENGTH_MIN: usize = 16;
    let is_mixed = |part: &str| {
        let has = |is: fn(&u8) -> bool| part.bytes().any(|byte| is(&byte));
        part.len() >= LENGTH_MIN && has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic)
    };
    let may_be = text.len() >= LENGTH_MIN
        && !text.starts_with(['/', '.', '~'])
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    let mut parts = text.split(|c: char| !c.is_ascii_alphanumeric());
    may_be && (!text.contains(['/', '.']) || parts.any(is_mixed)) && !Path::new(text).exists()
}

/// The file of a secret.
pub(super) fn secret_path(text: &str) -> Parsed<PathBuf> {
    if is_secret_itself(text) { Err(IS_SECRET.into()) } else { path(text) }
}

/// `all` or `0-3,8`, out of the cores that this process may use; the result is ascending.
pub(super) fn cores(allowed: &[usize]) -> impl Fn(&str) -> Parsed<Vec<usize>> {
    move |text| {
        if text == "all" {
            return Ok(allowed.to_vec());
        }
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = core_range(part.trim())?;
            // Ends at the first core that is not allowed, so `0-4000000000` is not expanded.
            for core in first..=last {
                if !allowed.contains(&core) {
                    return Err(format!(
                        "core {core} is not available to this process: give cores from {}, or all \
                         (taskset, cpusets and container limits decide what is allowed)",
                        core_list(allowed)
                    ));
                }
                if cores.contains(&core) {
                    return Err(format!("core {core} is listed twice: list it once"));
                }
                cores.push(core);
            }
        }
        cores.sort_unstable();
        Ok(cores)
    }
}

fn core_range(part: &str) -> Parsed<(usize, usize)> {
    let allowed = || format!("{part:?} is not a core: give all, or a list such as 0-3,8");
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| allowed());
    match part.split_once('-') {
        None => number(part).map(|core| (core, core)),
        Some((first, last)) => match (number(first)?, number(last)?) {
            (first, last) if first <= last => Ok((first, last)),
            (first, last) => Err(format!("range {part} runs backwards: write {last}-{first}")),
        },
    }
}

/// `0-3,8`: an ascending list of core ids as `CORES` spells it.
pub fn core_list(cores: &[usize]) -> String {
    let mut text = String::new();
    for run in cores.chunk_by(|a, b| a + 1 == *b) {
        let comma = if text.is_empty() { "" } else { "," };
        match run {
            [one] => write!(text, "{comma}{one}"),
            [first, .., last] => write!(text, "{comma}{first}-{last}"),
            [] => Ok(()),
        }
        .expect("writing to a String");
    }
    text
}

/// `file:DIR`, `s3://BUCKET/PREFIX` or `null:`.
pub(super) fn store(text: &str) -> Parsed<StoreUrl> {
    if text == "null:" {
        return Ok(StoreUrl::Null);
    }
    if let Some(rest) = text.strip_prefix("s3://") {
        if rest.starts_with("arn:") {
            let (bucket, prefix) = super::s3::access_point(rest)?;
            return Ok(StoreUrl::S3 { bucket, prefix: key_prefix(prefix)? });
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        return Ok(StoreUrl::S3 { bucket: bucket_name(bucket)?, prefix: key_prefix(prefix)? });
    }
    match text.strip_prefix("file:") {
        Some("") | Some("//") => Err("names no directory: write file:./data".into()),
        Some(rest) => match rest.strip_prefix("//") {
            None => path(rest).map(StoreUrl::File),
            Some(absolute) if absolute.starts_with('/') => path(absolute).map(StoreUrl::File),
            Some(host) => Err(format!("names a host: write file:{host} or file:///{host}")),
        },
        None if text.starts_with(['.', '/']) => {
            Err(format!("has no scheme: write file:{text} for a directory"))
        }
        None => Err("give file:DIR, s3://BUCKET/PREFIX or null:".into()),
    }
}

/// S3's rules for general-purpose buckets, plus upper case and `_`, which other stores and AWS's
/// oldest buckets have. The probe at start finds what a store refuses beyond this.
fn bucket_name(name: &str) -> Parsed<String> {
    let refuse = |why: &str| Err(format!("bucket name {name:?} {why}"));
    let plain = |b: u8| b.is_ascii_alphanumeric();
    let bytes = name.as_bytes();
    match bytes {
        [] => Err("names no bucket: write s3://BUCKET/PREFIX".into()),
        _ if !(3..=63).contains(&bytes.len()) => refuse("must be 3 to 63 characters long"),
        _ if !bytes.iter().all(|&b| plain(b) || b"-._".contains(&b)) => {
            refuse("may contain only letters, digits, - . and _")
        }
        [first, .., last] if !plain(*first) || !plain(*last) => {
            refuse("must begin and end with a letter or digit")
        }
        _ if name.contains("..") => refuse("must not hold two dots in a row"),
        _ if name.parse::<Ipv4Addr>().is_ok() => refuse("must not look like an IP address"),
        _ => Ok(name.into()),
    }
}

/// S3 keys have at most 1024 bytes. The longest name that is appended has 19 (nanoseconds) + 64
/// (node) + 4 (core) + 20 (sequence) + 3 dashes + 5 (`.json`) = 115 bytes, rounded up for future
/// names.
const PREFIX_BYTES_MAX: usize = 1024 - 124;

/// The text before every key. What clients and gateways rewrite (`//`, `.`, `..`) is refused,
/// because the object would not be under its key.
fn key_prefix(prefix: &str) -> Parsed<String> {
    let refuse = |why: &str| Err(format!("prefix {prefix:?} {why}"));
    if prefix.len() > PREFIX_BYTES_MAX {
        return refuse(&format!("is over {PREFIX_BYTES_MAX} bytes"));
    }
    if prefix.chars().any(char::is_control) {
        return refuse("contains a control character");
    }
    if prefix.starts_with('/') || prefix.contains("//") {
        return refuse("has an empty part: write single slashes");
    }
    if prefix.split('/').any(|part| part == "." || part == "..") {
        return refuse("has a part . or ..: write the path out");
    }
    Ok(prefix.into())
}

/// Text that can stand in an HTTP header as it is: visible ASCII without blanks, bounded.
pub(super) fn header_token(text: &str) -> Parsed<String> {
    match text.len() {
        1..=2048 if text.bytes().all(|b| b.is_ascii_graphic()) => Ok(text.into()),
        _ => Err("give 1 to 2048 visible ASCII characters without blanks".into()),
    }
}

/// `auto` is `None`.
pub(super) fn content_type(text: &str) -> Parsed<Option<String>> {
    if text == "auto" {
        return Ok(None);
    }
    let fits_header = text.len() <= 255 && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    let kind = text.split(';').next().unwrap_or("").trim();
    match kind.split_once('/') {
        Some((a, b)) if fits_header && !a.is_empty() && !b.is_empty() && !kind.contains(' ') => {
            Ok(Some(text.into()))
        }
        _ => Err("give a media type such as application/json, up to 255 ASCII characters, or auto"
            .into()),
    }
}

/// `OBJECT`.
pub(super) fn object_is_batch(text: &str) -> Parsed<bool> {
    match text {
        "payload" => Ok(false),
        "batch" => Ok(true),
        _ => Err("give payload or batch".into()),
    }
}

/// `COMPRESSION`; `None`: none.
pub(super) fn compression(text: &str) -> Parsed<Option<Coding>> {
    match text {
        "none" => Ok(None),
        "gzip" => Ok(Some(Coding::Gzip)),
        "zstd" => Ok(Some(Coding::Zstd)),
        _ => Err("give none, gzip or zstd".into()),
    }
}

/// `FILE_MODE`.
pub(super) fn file_mode(text: &str) -> Parsed<FileMode> {
    FileMode::parse(text).ok_or_else(|| {
        "give an octal mode of reading and writing in which the owner has both, such as 0600, 0640 or 0644".into()
    })
}

/// `COMPRESSION_MARK`.
pub(super) fn compression_mark_is_header(text: &str) -> Parsed<bool> {
    match text {
        "suffix" => Ok(false),
        "header" => Ok(true),
        _ => Err("give suffix or header".into()),
    }
}

/// `COMPRESSION_LEVEL`, for this kind of compression. Above zstd's 9, a block of 2 KiB takes longer
/// than a task may hold its core.
pub(super) fn compression_level(kind: Option<Coding>) -> impl Fn(&str) -> Parsed<Compression> {
    let level = |text: &str, default: i32, range: RangeInclusive<i32>| match text {
        "" => Ok(default),
        _ => text.parse().ok().filter(|level| range.contains(level)).ok_or_else(|| {
            format!("give a whole number from {} to {}", range.start(), range.end())
        }),
    };
    move |text| match kind {
        None if text.is_empty() => Ok(Compression::None),
        None => Err("needs COMPRESSION=gzip or zstd: set that or drop the level".into()),
        Some(Coding::Gzip) => Ok(Compression::Gzip(level(text, 6, 1..=9)?.unsigned_abs())),
        Some(Coding::Zstd) => Ok(Compression::Zstd(level(text, 1, -7..=9)?)),
    }
}

/// An amount of money.
pub(super) fn dollars(text: &str) -> Parsed<f64> {
    match text.parse::<f64>() {
        Ok(dollars) if (0.0..=1e6).contains(&dollars) => Ok(dollars),
        _ => Err("give dollars from 0 to 1000000, such as 0.005".into()),
    }
}

/// `auto` is `None`.
pub(super) fn auto_or_bool(text: &str) -> Parsed<Option<bool>> {
    match text {
        "auto" => Ok(None),
        "true" => Ok(Some(true)),
        "false" => Ok(Some(false)),
        _ => Err("give true, false or auto".into()),
    }
}

pub(super) fn boolean(text: &str) -> Parsed<bool> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("give true or false".into()),
    }
}

pub(super) fn on_or_off(text: &str) -> Parsed<bool> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("give on or off".into()),
    }
}

pub(super) fn ack(text: &str) -> Parsed<Ack> {
    Ack::named(text).ok_or_else(|| "give queued, spooled or stored".into())
}

pub(super) fn placement(text: &str) -> Parsed<ConnectionPlacement> {
    match text {
        "hash" => Ok(ConnectionPlacement::Hash),
        "cpu" => Ok(ConnectionPlacement::Cpu),
        _ => Err("give hash or cpu".into()),
    }
}

pub(super) fn checksum(text: &str) -> Parsed<Checksum> {
    match text {
        "auto" => Ok(Checksum::Auto),
        "none" => Ok(Checksum::None),
        "crc32c" => Ok(Checksum::Crc32c),
        "crc64nvme" => Ok(Checksum::Crc64Nvme),
        "sha256" => Ok(Checksum::Sha256),
        _ => Err("give auto, none, crc32c, crc64nvme or sha256".into()),
    }
}

pub(super) fn s3_client(text: &str) -> Parsed<S3Client> {
    match text {
        "direct" => Ok(S3Client::Direct),
        "sdk" => Ok(S3Client::Sdk),
        _ => Err("give direct or sdk".into()),
    }
}

pub(super) fn sign_payload(text: &str) -> Parsed<SignPayload> {
    match text {
        "auto" => Ok(SignPayload::Auto),
        "always" => Ok(SignPayload::Always),
        "never" => Ok(SignPayload::Never),
        _ => Err("give auto, always or never".into()),
    }
}

pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("give text or json".into()),
    }
}

/// A filter for `tracing-subscriber`. A single word that is not a level is refused, although the
/// library would accept it as a module: `LOG=inof` must not silence the log.
pub(super) fn log_filter(text: &str) -> Parsed<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for part in text.split(',').map(str::trim) {
        let is_level = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
        if !is_level && !part.contains(['=', '[']) {
            return Err(format!("{part:?} is not a level: give one of {}, or module=level", {
                LEVELS.join(", ")
            }));
        }
    }
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.into()),
        Err(e) => Err(format!("{e}: give a level or directives such as info,millrace=debug")),
    }
}

/// A part of object and file names: only characters that every store and file system keeps.
pub(super) fn node_id(text: &str) -> Parsed<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match text.len() {
        // As a path component these mean a directory.
        _ if matches!(text, "." | "..") => Err("is not a name: use a letter or digit".into()),
        1..=64 if text.bytes().all(plain) => Ok(text.into()),
        _ => Err("give 1 to 64 of A-Z a-z 0-9 . _ -, or random".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_units_and_plain_bytes_and_keep_their_range() {
        let size = size(1..=1 << 30);
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("1 GB"), Ok(1_000_000_000));
        assert_eq!(size("1048576"), Ok(1 << 20));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        for bad in ["", "0", "2GiB", "-1", "1e3", "MiB", "64MBit", "99999999999999EB", "½MiB"] {
            let allowed = size(bad).unwrap_err();
            assert!(allowed.contains("1.0 GiB") && allowed.contains("64MiB"), "{bad}: {allowed}");
        }
    }

    #[test]
    fn what_is_given_as_an_example_is_allowed() {
        let seconds = |range: [u64; 2]| {
            let [least, most] = range.map(Duration::from_secs);
            time(least..=most)("").unwrap_err()
        };
        for (range, expected) in [
            ([0, 300], "give a time from 0s to 5m, such as 250ms, 10s or 5m"),
            ([1, 3600], "give a time from 1s to 1h, such as 10s or 5m"),
            ([0, 60], "give a time from 0s to 1m, such as 250ms or 10s"),
            ([60, 600], "give a time from 1m to 10m, such as 5m"),
            ([1, 2], "give a time from 1s to 2s"),
        ] {
            assert_eq!(seconds(range), expected);
        }
        let small = size(0..=1 << 20)("").unwrap_err();
        assert_eq!(small, "give a size from 0 B to 1.0 MiB, such as 1048576 (bytes)");
    }

    #[test]
    fn rates_are_sizes_a_second() {
        let rate = rate(0..=1 << 20);
        for (text, bytes) in [("0", 0), ("256B/s", 256), ("256", 256), ("1KiB/s", 1024)] {
            assert_eq!(rate(text), Ok(bytes), "{text}");
        }
        for text in ["", "/s", "1KiB/m", "-1", "2MiB/s", "1 KiB / s", "fast"] {
            let error = rate(text).unwrap_err();
            assert!(error.contains("1KiB/s"), "{text}: {error}");
        }
    }

    #[test]
    fn times_need_a_unit_except_zero() {
        let time = time(Duration::ZERO..=Duration::from_secs(300));
        assert_eq!(time("0"), Ok(Duration::ZERO));
        assert_eq!(time("0ms"), Ok(Duration::ZERO));
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(time("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(time("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(time("10").unwrap_err().contains("write 10ms, 10s or 10m"));
        // `5M` is five months to humantime; the range keeps it from passing for minutes.
        for bad in ["", "6m", "5M", "fast", "-1s", "1.5.5s"] {
            assert!(time(bad).unwrap_err().contains("from 0s to 5m"), "{bad}");
        }
    }

    #[test]
    fn the_name_of_a_file_and_the_secret_that_belongs_in_it_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("0123456789abcdef0123");
        std::fs::write(&there, "").unwrap();
        for name in [
            "tokens",
            "admin-token",
            "admin-token.txt",
            "millrace-admin-token.txt",
            "secrets/millrace/admin-token",
            "certs/server-2026-11.key",
            "server-eu-west-1.example.com.key",
            "/run/secrets/0123456789abcdef0123456789abcdef",
            "./0123456789abcdef0123456789abcdef",
            "../0123456789abcdef",
            "a file with blanks 0123456789abcdef",
            there.to_str().unwrap(),
        ] {
            assert_eq!(secret_path(name), Ok(name.into()));
        }
        for secret in [
            "0123456789abcdef0123456789abcdef",
            "correct-horse-battery-staple",
            "canarySixAdminToken6EdCrFv",
            "c2VjcmV0LXNlY3JldC1zZWNyZXQ=",
            "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4IiwiZXhwIjoxfQ.c2lnbmF0dXJlMQ",
            "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgF33gx/AKZkwuBenf3",
        ] {
            assert_eq!(secret_path(secret), Err(IS_SECRET.into()), "{secret}");
        }
    }

    #[test]
    fn cores_are_checked_against_the_allowed_set() {
        let cores = cores(&[0, 1, 2, 3, 8]);
        assert_eq!(cores("all"), Ok(vec![0, 1, 2, 3, 8]));
        assert_eq!(cores("8, 0-2"), Ok(vec![0, 1, 2, 8]));
        for (bad, why) in [
            ("4", "cores from 0-3,8"),
            ("0-18446744073709551615", "core 4 is not available"),
            ("3-1", "write 1-3"),
            ("0-2,1", "core 1 is listed twice"),
            ("", "is not a core"),
            ("0,", "is not a core"),
            ("-1", "is not a core"),
            ("0-1-2", "is not a core"),
        ] {
            let error = cores(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn core_lists_are_written_as_cores_reads_them() {
        assert_eq!(core_list(&[0, 1, 2, 3, 8]), "0-3,8");
        assert_eq!(core_list(&[5]), "5");
        assert_eq!(core_list(&[]), "");
    }

    #[test]
    fn stores() {
        let s3 = |bucket: &str, prefix: &str| {
            Ok(StoreUrl::S3 { bucket: bucket.into(), prefix: prefix.into() })
        };
        assert_eq!(store("file:./data"), Ok(StoreUrl::File("./data".into())));
        assert_eq!(store("file:/srv/x"), Ok(StoreUrl::File("/srv/x".into())));
        assert_eq!(store("file:///srv/x"), Ok(StoreUrl::File("/srv/x".into())));
        assert_eq!(store("null:"), Ok(StoreUrl::Null));
        assert_eq!(store("s3://my-bucket"), s3("my-bucket", ""));
        assert_eq!(store("s3://my-bucket/"), s3("my-bucket", ""));
        assert_eq!(store("s3://Old_Bucket.x/logs/"), s3("Old_Bucket.x", "logs/"));
        assert_eq!(store("s3://abc/a/b-"), s3("abc", "a/b-"));
    }

    #[test]
    fn stores_refused_say_what_to_write() {
        for (bad, why) in [
            ("", "give file:DIR"),
            ("./data", "write file:./data"),
            ("file:", "names no directory"),
            ("file://host/x", "names a host"),
            ("s3://", "names no bucket"),
            ("s3:bucket", "give file:DIR"),
            ("s3://ab", "3 to 63"),
            ("s3://-abc", "begin and end"),
            ("s3://a..b", "two dots"),
            ("s3://192.168.1.1/x", "IP address"),
            ("s3://buck et", "only letters"),
            ("s3://abc//x", "empty part"),
            ("s3://abc/x/../y", "part . or .."),
            ("s3://arn:aws:s3:::bucket/x", "alias"),
            ("s3://abc/x\ny", "control character"),
            ("null", "give file:DIR"),
        ] {
            let error = store(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(store(&format!("s3://abc/{}", "x".repeat(PREFIX_BYTES_MAX + 1))).is_err());
    }

    #[test]
    fn header_values_cannot_break_a_header() {
        assert!(header_token("bucket-owner-full-control").is_ok());
        assert!(content_type("application/json; charset=utf-8").is_ok());
        for bad in ["", "a b", "a\r\nx-evil: 1", "ü"] {
            assert!(header_token(bad).is_err(), "{bad}");
        }
        for bad in ["", "json", "/", "a/b\r\nx: 1", "application/ü", "a b/c"] {
            assert!(content_type(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn log_filters_catch_misspelt_levels() {
        assert!(log_filter("info,millrace::upload=debug").is_ok());
        assert!(log_filter("OFF").is_ok());
        assert!(log_filter("inof").unwrap_err().contains("is not a level"));
        assert!(log_filter("millrace=loud").is_err());
    }

    #[test]
    fn node_ids_and_addresses() {
        assert!(node_id("host-1.rack_2").is_ok());
        assert!(node_id("a/b").is_err() && node_id("").is_err());
        assert!(node_id(&"x".repeat(65)).is_err());
        assert!(address(":8080").unwrap_err().contains("0.0.0.0:8080"));
        assert!(address("localhost:80").is_err());
    }
}
