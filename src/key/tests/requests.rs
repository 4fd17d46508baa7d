//! Values of requests in keys, and payloads that are wrapped.

use super::*;

fn values(given: &[(RequestSource<'_>, &str)]) -> RequestValues {
    let mut values = RequestValuesWriter::default();
    for (source, value) in given {
        values.add(*source, value);
    }
    values.finish()
}

#[test]
fn values_are_rendered_by_their_names() {
    let given = values(&[
        (RequestSource::Header("x-tenant"), "acme"),
        (RequestSource::Query("a b"), "../etc"),
        (RequestSource::Token, "crawler"),
        (RequestSource::Version, "1.2"),
    ]);
    for (template, expected) in [
        ("{header:x-tenant}/{query:a b}/{token}/{version}", "acme/.._etc/crawler/1.2"),
        ("{header:X-TENANT}", "acme"),
        ("{token|none}-{version}", "crawler-1.2"),
        // What was kept under another name is not taken for it.
        ("{header:x-other}/{query:x-tenant}", "unknown/unknown"),
        ("{header:x-other|none}/{query:acme|x y}", "none/x y"),
        ("{header:x-tenant}{header:x-tenant}", "acmeacme"),
    ] {
        let template = parse(template);
        assert!(template.is_partitioned());
        assert_eq!(render_with(&template, "{}", &given).1, expected);
        assert_eq!(KeyTemplate::of_text(&template.text()).unwrap().text(), template.text());
    }
    let none = RequestValues::default();
    assert_eq!(render_with(&parse("{token}/{header:a|b}"), "{}", &none).1, "unknown/b");
}

#[test]
fn a_template_names_each_of_its_sources_once() {
    let template = parse("{token}/{header:A}{header:a|x}/{query:A}/{version}/{token}");
    let sources = [
        RequestSource::Token,
        RequestSource::Header("a"),
        RequestSource::Query("A"),
        RequestSource::Version,
    ];
    assert_eq!(template.request_sources(), sources);
}

#[test]
fn ids_do_not_run_together_with_values() {
    for text in ["{header:x}{node}-{core}/{seq}/{unix_ms}", "{seq}{token}/{node}/{core}/{unix_ms}"]
    {
        let error = parse(text).check_unique(false).unwrap_err();
        assert!(matches!(error, KeyError::RunTogether { .. }), "{text}: {error}");
    }
}

#[test]
fn the_time_of_receipt_is_an_event_time() {
    let template = KeyTemplate::parse("{date:%Y-%m-%d}/{hour}/{seq}", Some("received_at")).unwrap();
    let mut partition = Partition::default();
    let none = RequestValues::default();
    for payload in ["{}", r#"{"received_at":1}"#, "7"] {
        let source = template.write_partition(payload.as_bytes(), &none, EVENING, &mut partition);
        assert_eq!(source, EventTime::Read);
        let mut key = String::new();
        // The object is opened an hour later.
        let opened = KeyOf { unix_nanos: EVENING + HOUR, ..of(partition.text()) };
        template.write_key(&opened, &mut key);
        assert_eq!(key, "2025-11-21/20/42");
    }
    assert!(template.is_partitioned());
    let again = KeyTemplate::of_text(&template.text()).unwrap();
    assert_eq!(again.texts().1, Some("received_at"));
    let error = KeyTemplate::parse("{seq}", Some("received_at")).unwrap_err();
    assert_eq!(error, KeyError::EventTimeUnused("received_at".into()));
    let error = KeyTemplate::parse("{hour}", Some("received")).unwrap_err();
    assert_eq!(error.setting(), "EVENT_TIME");
    let error = error.to_string();
    assert!(error.ends_with("write /received, or received_at for the time of receipt"), "{error}");
}

/// As `META` writes it.
fn wrap(meta: &str, payload: &str) -> String {
    format!(r#"{{"meta":{meta},"payload":{payload}}}"#)
}

#[test]
fn fields_of_a_wrapped_payload_are_those_that_were_sent() {
    let template = KeyTemplate::parse("{hour}/{field:/a|none}/{field:/meta/a|none}", Some("/ts"));
    let template = template.unwrap();
    let mut wrapped = RequestValuesWriter::default();
    wrapped.mark_wrapped();
    let wrapped = wrapped.finish();
    for payload in [
        r#"{"a":"x","ts":"2024-01-01T05:00:00Z"}"#,
        r#"{"meta":{"a":"y"},"a":"x"}"#,
        r#"{"payload":{"a":"y"},"a":"x"}"#,
        r#"["a"]"#,
        "7",
        r#""}""#,
        "{}",
    ] {
        for meta in [
            "{}",
            r#"{"a":"wrong","ts":1}"#,
            r#"{"client":"\"},\"payload\":{\"a\":\"wrong\"}","token":null}"#,
            r#"{"x":"\\"}"#,
        ] {
            let sent = render(&template, payload, None);
            let stored = wrap(meta, payload);
            assert_eq!(render_with(&template, &stored, &wrapped), sent, "{stored}");
            assert_eq!(
                template.event_time_shape(stored.as_bytes(), &wrapped),
                template.event_time_shape(payload.as_bytes(), &RequestValues::default())
            );
        }
        // It looks like one, but nobody wrapped it.
        let sent = wrap("{}", payload);
        assert!(render(&template, &sent, None).1.contains("/none/none"), "{sent}");
    }
}

#[test]
fn what_only_claims_to_be_wrapped_has_no_fields() {
    let template = parse("{field:/a|none}");
    let mut wrapped = RequestValuesWriter::default();
    wrapped.mark_wrapped();
    let wrapped = wrapped.finish();
    for odd in ["", "{}", "7", r#"{"a":1}"#, r#"{"meta":"#, r#"{"meta":}"#, r#"{"meta":{"a":1}}"#] {
        assert_eq!(render_with(&template, odd, &wrapped).1, "none", "{odd}");
    }
}

/// What clients put into a header or a query to get out of their directory.
const HOSTILE: [&str; 14] = [
    "..",
    ".",
    "../../etc/passwd",
    "/",
    "\\..\\",
    "%2e%2e%2f",
    "a\0b",
    "\u{1f}",
    "version\u{1f}9\u{1f}",
    ".millrace-tmp",
    "\u{85}\u{202e}",
    "\r\nx: y",
    "",
    " ",
];

proptest! {
    #[test]
    fn values_of_requests_neither_add_nor_remove_components(
        odd in vec(select(&HOSTILE[..]), 4),
        any in vec(any::<String>(), 4),
        long in 0..3_usize,
    ) {
        let template =
            "{header:x-a}/h={header:x-b}{token}/.{query:q}/{query:r|none}{version}/x{node}-{core}-{seq}";
        let template = parse(template);
        for text in [odd.iter().map(|text| (*text).to_owned()).collect(), any] {
            let text: Vec<String> = text.iter().map(|text: &String| text.repeat(1 + 200 * long)).collect();
            let given = values(&[
                (RequestSource::Header("x-a"), &text[0]),
                (RequestSource::Header("x-b"), &text[1]),
                (RequestSource::Query("q"), &text[2]),
                (RequestSource::Query("r"), &text[3]),
                (RequestSource::Version, &text[0]),
                (RequestSource::Token, "a"),
            ]);
            let (partition, key) = render_with(&template, "{}", &given);
            let parts: Vec<&str> = key.split('/').collect();
            prop_assert_eq!(parts.len(), 5, "{}", key);
            prop_assert!(parts.iter().all(|part| !part.is_empty() && *part != "." && *part != ".."));
            prop_assert!(!key.contains(|c: char| c.is_control() || c == '\\'), "{}", key);
            prop_assert!(!is_in_temporary(&key));
            prop_assert!(key.len() <= template.longest(6, 0));
            // What the spool keeps renders the same.
            let read = RequestValues::of_text(given.text()).unwrap();
            prop_assert_eq!(render_with(&template, "{}", &read), (partition, key));
        }
    }

    #[test]
    fn no_bytes_in_a_wrapper_make_a_search_panic(
        bytes in vec(select(&b"{}[]\":,\\meta payload\xff"[..]), 0..60),
    ) {
        let _whatever = fields::wrapped_payload(&[b"{\"meta\":", &bytes[..], b"}"].concat());
    }
}
