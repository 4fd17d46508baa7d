use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;
use serde_json::value::RawValue;

use super::*;

/// 2026-11-30T08:00:00.123456789Z
const TIME: u64 = 1_796_025_600_123_456_789;

fn headers(given: &[(&str, &[u8])]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, HeaderValue::from_bytes(value).unwrap());
    }
    headers
}

fn entries(names: &[&str]) -> Vec<MetaEntry> {
    let entry = |name: &&str| match name.strip_prefix("header:") {
        Some(name) => MetaEntry::Header(name.into()),
        None if *name == "client" => MetaEntry::Client,
        None if *name == "token" => MetaEntry::Token,
        None => MetaEntry::ReceivedAt,
    };
    names.iter().map(entry).collect()
}

fn wrapper(
    names: &[&str],
    headers: &HeaderMap,
    client: Option<&str>,
    token: Option<&str>,
) -> Wrapper {
    let client = client.map(|address| address.parse().unwrap());
    MetaDraft::of(&entries(names), headers, client).finish(token, TIME)
}

/// One payload, wrapped.
fn wrapped(wrapper: &Wrapper, payload: &[u8]) -> String {
    let memory = memory(1 << 24);
    let span = Span { start: 0, end: payload.len() as u32 };
    let (buffer, spans) = wrapper.wrap_small(&memory, payload, &[span]).unwrap();
    assert_eq!(buffer.as_slice().len(), wrapper.wrapped_bytes(&[span]));
    str::from_utf8(&buffer.as_slice()[spans[0].range()]).unwrap().to_owned()
}

fn memory(max: usize) -> BodyMemory {
    BodyMemory::new(max, max / 4, &crate::metrics::cells(1)[0])
}

#[test]
fn members_have_the_names_and_the_order_of_the_entries() {
    let given = headers(&[("x-request-id", b"r-1"), ("User-Agent", b"curl/8")]);
    let all = ["received_at", "client", "token", "header:x-request-id", "header:user-agent"];
    let names = wrapper(&all, &given, Some("2001:db8::7"), Some("crawler"));
    assert_eq!(
        wrapped(&names, b"{ \"a\" : 1.50 }"),
        r#"{"meta":{"received_at":"2026-11-30T08:00:00.123456Z","client":"2001:db8::7","token":"crawler","header:x-request-id":"r-1","header:user-agent":"curl/8"},"payload":{ "a" : 1.50 }}"#
    );
    let other = wrapper(&["token", "header:none", "received_at"], &given, None, Some("(other)"));
    assert_eq!(
        wrapped(&other, b"7"),
        r#"{"meta":{"token":"(other)","header:none":null,"received_at":"2026-11-30T08:00:00.123456Z"},"payload":7}"#
    );
    let nothing = wrapper(&["client", "token"], &given, None, None);
    assert_eq!(
        wrapped(&nothing, b"null"),
        r#"{"meta":{"client":null,"token":null},"payload":null}"#
    );
}

#[test]
fn times_have_equally_many_digits() {
    for (nanos, expected) in [
        (0, "\"1970-01-01T00:00:00.000000Z\""),
        (999, "\"1970-01-01T00:00:00.000000Z\""),
        (TIME, "\"2026-11-30T08:00:00.123456Z\""),
        (951_782_400_000_001_000, "\"2000-02-29T00:00:00.000001Z\""),
        (u64::MAX, "\"2554-07-21T23:34:33.709551Z\""),
    ] {
        let mut text = [0; TIME_BYTES];
        write_time(nanos, &mut text);
        assert_eq!(str::from_utf8(&text), Ok(expected));
    }
}

#[test]
fn odd_header_values_stay_json() {
    let long = vec![b'x'; META_HEADER_BYTES_MAX + 1];
    let wide = "é".repeat(META_HEADER_BYTES_MAX);
    let odd = [b"x".as_slice(), wide.as_bytes()].concat();
    let quotes = vec![b'"'; META_HEADER_BYTES_MAX];
    let joined = format!("{}, b", "a".repeat(META_HEADER_BYTES_MAX));
    for (values, expected) in [
        (&[&b"plain"[..]][..], "plain".to_owned()),
        (&[b""], String::new()),
        (&[b"a\"b\\c\td/e"], "a\"b\\c\td/e".into()),
        (&[b"a", b"b"], "a, b".into()),
        (&[b"a", b"", b"c"], "a, , c".into()),
        (&["größe 🚀".as_bytes()], "größe 🚀".into()),
        (&[b"gr\xf6\xdfe"], "gr\u{fffd}\u{fffd}e".into()),
        (&[b"\xff", b"\xf0\x9f"], "\u{fffd}, \u{fffd}".into()),
        (&["\u{85}\u{2028}".as_bytes()], "\u{85}\u{2028}".into()),
        (&[&long], "x".repeat(META_HEADER_BYTES_MAX)),
        (&[wide.as_bytes()], "é".repeat(META_HEADER_BYTES_MAX / 2)),
        // Cut between characters.
        (&[&odd], format!("x{}", "é".repeat(META_HEADER_BYTES_MAX / 2 - 1))),
        (&[&quotes], "\"".repeat(META_HEADER_BYTES_MAX)),
        (&[joined.as_bytes()], "a".repeat(META_HEADER_BYTES_MAX)),
    ] {
        let given: Vec<(&str, &[u8])> = values.iter().map(|value| ("x-odd", *value)).collect();
        let text = wrapped(&wrapper(&["header:x-odd"], &headers(&given), None, None), b"1");
        let read: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(read["meta"]["header:x-odd"], Value::from(expected), "{text}");
    }
}

#[test]
fn the_largest_meta_is_within_its_bound() {
    let quotes = vec![b'"'; 2 * META_HEADER_BYTES_MAX];
    let names: Vec<String> = (0..13).map(|n| format!("{n:064}")).collect();
    let given: Vec<(&str, &[u8])> = names.iter().map(|name| (&**name, &quotes[..])).collect();
    let mut all: Vec<String> = names.iter().map(|name| format!("header:{name}")).collect();
    all.extend(["received_at", "client", "token"].map(String::from));
    let text = all.join(",");
    assert!((940..=1024).contains(&text.len()), "{}", text.len());
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let client = Some("2001:db8:1111:2222:3333:4444:5555:6666");
    let draft = MetaDraft::of(&entries(&all), &headers(&given), client.map(|c| c.parse().unwrap()));
    let most = draft.wrapped_bytes_max(&[]);
    assert_eq!(most, 0);
    let one = Span { start: 0, end: 0 };
    let (most, name) = (draft.wrapped_bytes_max(&[one]), "n".repeat(64));
    let bytes = draft.finish(Some(&name), TIME).wrapped_bytes(&[one]);
    assert_eq!(bytes, most);
    let config = crate::config::Config::from_settings(&[("META", "client")]).unwrap();
    assert!(bytes <= config.payload_bytes_max() - config.max_length, "{bytes}");
}

#[test]
fn a_request_without_memory_is_refused() {
    crate::rt::run_test(async {
        let wrapper = wrapper(&["client"], &HeaderMap::new(), None, None);
        let body = vec![b'1'; 4096];
        let span = Span { start: 0, end: 4096 };
        let memory = memory(8192);
        let refused = wrapper.wrap_small(&memory, &body, &[span, span]).err();
        assert_eq!(refused, Some(BodyError::MemoryExhausted));
        assert!(wrapper.wrap_small(&memory, &body, &[span]).is_ok(), "nothing is left charged");
    });
}

#[test]
fn a_large_request_yields_while_it_is_wrapped() {
    crate::rt::run_test(async {
        let names = wrapper(&["received_at"], &HeaderMap::new(), None, None);
        let body = vec![b'1'; 32 << 20];
        let whole = Span { start: 0, end: 16 << 20 };
        let single = (16 << 20..17 << 20).map(|at| Span { start: at, end: at + 1 });
        let mut spans: Vec<Span> = [whole].into_iter().chain(single).collect();
        let sent = spans.clone();
        let memory = memory(1 << 30);
        let mut turns = Vec::new();
        let mut wrapping = Box::pin(names.wrap_large(&memory, &body, &mut spans));
        let buffer = loop {
            let began = std::time::Instant::now();
            let wrapped = futures_lite::future::poll_once(&mut wrapping).await;
            turns.push(began.elapsed());
            if let Some(buffer) = wrapped {
                break buffer.unwrap();
            }
        };
        drop(wrapping);
        assert!(turns.len() > 5, "{turns:?}");
        // Some are, where another thread has the CPU for a while.
        turns.sort();
        let half = turns[turns.len() / 2];
        assert!(half < std::time::Duration::from_millis(100), "a turn is not that long: {turns:?}");
        assert_eq!(buffer.as_slice().len(), names.wrapped_bytes(&sent));
        assert_eq!(wrapped_spans(buffer.as_slice(), spans.len()), spans);
    });
}

proptest! {
    #[test]
    fn what_is_wrapped_is_json_with_the_very_bytes(
        texts in vec(".{0,40}", 0..8),
        values in vec(vec((0x20_u8..=0xff).prop_filter("no header", |b| *b != 0x7f), 0..700), 0..4),
        token in prop::option::of("[A-Za-z0-9][A-Za-z0-9._-]{0,63}"),
        client in prop::option::of(any::<std::net::IpAddr>()),
    ) {
        let payloads: Vec<String> =
            texts.iter().map(|text| format!("[ {} ,1e400]", Value::from(&**text))).collect();
        let body = payloads.concat();
        let mut end = 0;
        let spans: Vec<Span> = payloads.iter().map(|payload| {
            let start = end;
            end += payload.len() as u32;
            Span { start, end }
        }).collect();
        let given: Vec<(&str, &[u8])> = values.iter().map(|value| ("x-h", &value[..])).collect();
        let names = ["header:x-h", "token", "received_at", "client", "header:x-none"];
        let draft = MetaDraft::of(&entries(&names), &headers(&given), client);
        let most = draft.wrapped_bytes_max(&spans);
        let wrapper = draft.finish(token.as_deref(), TIME);
        prop_assert!(wrapper.wrapped_bytes(&spans) <= most);
        let memory = memory(1 << 24);
        let (buffer, found) = wrapper.wrap_small(&memory, body.as_bytes(), &spans).unwrap();
        prop_assert_eq!(&wrapped_spans(buffer.as_slice(), spans.len()), &found);
        #[derive(serde::Deserialize)]
        struct Wrapped<'a> {
            meta: serde_json::Map<String, Value>,
            #[serde(borrow)]
            payload: &'a RawValue,
        }
        for (payload, span) in payloads.iter().zip(&found) {
            let text = str::from_utf8(&buffer.as_slice()[span.range()]).unwrap();
            let Wrapped { meta, payload: raw } = serde_json::from_str(text).unwrap();
            prop_assert_eq!(raw.get(), payload);
            prop_assert_eq!(meta.len(), names.len());
            prop_assert_eq!(&meta["token"], &Value::from(token.clone()));
            prop_assert_eq!(&meta["client"], &Value::from(client.map(|c| c.to_string())));
            match &meta["header:x-h"] {
                Value::Null => prop_assert!(values.is_empty()),
                value => {
                    let all = values.iter().map(|v| String::from_utf8_lossy(v).into_owned());
                    let all = all.collect::<Vec<_>>().join(", ");
                    let kept = value.as_str().unwrap();
                    prop_assert!(all.starts_with(kept));
                    prop_assert!(kept == all || kept.len() > META_HEADER_BYTES_MAX - 4);
                    prop_assert!(kept.len() <= META_HEADER_BYTES_MAX);
                }
            }
        }
    }
}
