use super::progress::DEPTH_MAX;
use super::*;
use crate::config::ObjectBody;

/// A padded copy of a body, for as long as the test runs.
pub(super) fn padded(body: impl AsRef<[u8]>) -> Padded<'static> {
    Padded::behind(Box::leak(Box::new(body.as_ref().to_vec())))
}

/// What a body is unless its content type says more.
pub(super) const PLAIN: BodyForm = BodyForm::ByFirstByte(ObjectBody::Collection);

/// Parses a body in segments of this length, and checks that no step looks at more.
pub(super) fn parse_in_segments(
    body: &[u8],
    form: BodyForm,
    segment_bytes: usize,
    payloads_max: usize,
) -> Result<(Envelope<'static>, Vec<Span>), ParseError> {
    let (mut marks, mut payloads) = (Marks::default(), Vec::new());
    let mut parse = Parse::new(padded(body), form, payloads_max).in_segments_of(segment_bytes);
    let mut steps = 0;
    loop {
        let before = reached(&parse);
        let found = parse.step(&mut marks, &mut payloads);
        if let Some(found) = found {
            return found.map(|envelope| (envelope, payloads));
        }
        let seen = reached(&parse).saturating_sub(before);
        assert!(seen <= segment_bytes.max(bytewise::PIECE_BYTES_MIN), "{seen} bytes in one step");
        steps += 1;
        assert!(steps <= 4 * (body.len() / segment_bytes + 2), "it does not get on");
    }
}

/// The first byte that is not checked.
fn reached(parse: &Parse<'_>) -> usize {
    match &parse.way {
        Way::Walk => parse.progress.at,
        Way::Bytewise { at, .. } => at.at(),
        Way::Locate(..) => 0,
    }
}

/// The payloads as text, with the envelope's two strings.
type Parts = (Option<String>, Option<String>, Vec<String>);

fn parts(body: &[u8], scratch: &mut Scratch) -> Result<Parts, ParseError> {
    let Collection { envelope, payloads } = parse(padded(body), PLAIN, scratch)?;
    let text = |span: &Span| String::from_utf8(body[span.range()].to_vec()).unwrap();
    Ok((
        envelope.version.map(Cow::into_owned),
        envelope.token.map(Cow::into_owned),
        payloads.iter().map(text).collect(),
    ))
}

fn payloads(body: &str) -> Vec<String> {
    parts(body.as_bytes(), &mut Scratch::default()).expect(body).2
}

fn refusal(body: impl AsRef<[u8]>) -> String {
    let body = body.as_ref();
    match parse(padded(body), PLAIN, &mut Scratch::default()) {
        Ok(_) => panic!("accepted: {}", body.escape_ascii()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn payloads_are_the_bytes_as_received() {
    let cases: &[(&str, &[&str])] = &[
        (r#"{"data":[]}"#, &[]),
        (r#"{"data":[ ]}"#, &[]),
        (r#"{"data":[{}]}"#, &["{}"]),
        (r#"{"data":[[],{},"",[[]],[{}]]}"#, &["[]", "{}", r#""""#, "[[]]", "[{}]"]),
        (
            r#"{"data":[1,-0,1.50,2E+3,true,false,null]}"#,
            &["1", "-0", "1.50", "2E+3", "true", "false", "null"],
        ),
        (
            "\r\n\t {\t\"data\" \n:\r[ { \"a\" : 1 } ,\t\"x \" \n, 2\r] }\n ",
            &["{ \"a\" : 1 }", "\"x \"", "2"],
        ),
        // Structure inside strings is text.
        (
            r#"{"data":["],","\\",{"}":"\\\"]"},"\"",",:"]}"#,
            &[r#""],""#, r#""\\""#, r#"{"}":"\\\"]"}"#, r#""\"""#, r#"",:""#],
        ),
        // The envelope's keys inside payloads and inside unknown members.
        (
            r#"{"x":{"data":[9],"data":0},"data":[{"data":[1],"data":2,"version":null}]}"#,
            &[r#"{"data":[1],"data":2,"version":null}"#],
        ),
        // Any order, duplicate unknown members, names that almost match.
        (r#"{"a":1,"data":[7],"a":[2],"Data":0,"data ":1,"":{},"dat":3,"versio":4}"#, &["7"]),
        (r#"{"d\u0061ta":[1]}"#, &["1"]),
        (r#"{"\u0064\u0061\u0074\u0061":[1]}"#, &["1"]),
        // An escaped backslash does not escape what follows it.
        (r#"{"d\\u0061ta":[1],"data":[2]}"#, &["2"]),
        (
            r#"{"data":["é\u00e9","𝄞\ud834\udd1e","\u0000"]}"#,
            &[r#""é\u00e9""#, r#""𝄞\ud834\udd1e""#, r#""\u0000""#],
        ),
    ];
    for (body, expected) in cases {
        assert_eq!(&payloads(body), expected, "{body}");
    }
}

#[test]
fn what_simd_json_cannot_read_is_json_as_well() {
    let cases: &[(&str, &[&str])] = &[
        (
            "{\"data\":[18446744073709551616, -9223372036854775809 ]}",
            &["18446744073709551616", "-9223372036854775809"],
        ),
        ("{\"data\":[ 1e400,[1E+99999]\n]}", &["1e400", "[1E+99999]"]),
        (
            r#"{"data":["\ud800","\udc00 ", "\ud800\ud800"]}"#,
            &[r#""\ud800""#, r#""\udc00 ""#, r#""\ud800\ud800""#],
        ),
        // A key with such an escape is not text, so it matches no name.
        (r#"{"dat\ud800":0,"data":[{"\udfff":1}]}"#, &[r#"{"\udfff":1}"#]),
        // The value of an unknown member, after `data`.
        (r#"{"data":[1],"x":[1e999]}"#, &["1"]),
    ];
    for (body, expected) in cases {
        assert_eq!(&payloads(body), expected, "{body}");
    }
}

#[test]
fn version_and_token_are_strings_or_absent() {
    let cases: &[(&str, Option<&str>, Option<&str>)] = &[
        (r#"{"data":[]}"#, None, None),
        (r#"{"version":"","data":[],"token":" t "}"#, Some(""), Some(" t ")),
        (r#"{"token" : "a\"b\\" , "data":[]}"#, None, Some("a\"b\\")),
        (r#"{"v\u0065rsion":"\u00e9é\ud834\udd1e","data":[]}"#, Some("éé𝄞"), None),
        (r#"{"data":[1e400],"token":"t"}"#, None, Some("t")),
    ];
    for (body, version, token) in cases {
        let found = parts(body.as_bytes(), &mut Scratch::default()).expect(body);
        assert_eq!((found.0.as_deref(), found.1.as_deref()), (*version, *token), "{body}");
    }
}

#[test]
fn plain_strings_of_the_envelope_are_not_copied() {
    let body = br#"{"version":"1.0","token":"\u0074","data":[]}"#;
    let mut scratch = Scratch::default();
    let envelope = parse(padded(body), PLAIN, &mut scratch).unwrap().envelope;
    assert!(matches!(envelope.version, Some(Cow::Borrowed("1.0"))));
    assert!(matches!(envelope.token, Some(Cow::Owned(_))));
}

#[test]
fn each_wrong_envelope_has_its_own_sentence() {
    let cases: &[(&str, &str)] = &[
        ("", r#"the body is empty; wanted: {"data":[...]} or [...]"#),
        (" \n", "not JSON: EOF while parsing a value at line 2 column 0"),
        ("\u{feff}{\"data\":[]}", "the body starts with a byte order mark"),
        (
            "\n \"data\"",
            "the body is neither an object nor an array, at line 2 column 2; \
             wanted: {\"data\":[...]} or [...], or lines of JSON as application/x-ndjson",
        ),
        (
            "1e400",
            "the body is neither an object nor an array, at line 1 column 1; \
             wanted: {\"data\":[...]} or [...], or lines of JSON as application/x-ndjson",
        ),
        (
            "null",
            "the body is neither an object nor an array, at line 1 column 1; \
             wanted: {\"data\":[...]} or [...], or lines of JSON as application/x-ndjson",
        ),
        ("{}", r#""data" is missing; wanted: {"data":[...]}"#),
        (r#"{"Data":[],"x":{"data":[]}}"#, r#""data" is missing; wanted: {"data":[...]}"#),
        (
            "{\n\"data\": {}}",
            r#""data" is not an array, at line 2 column 9; wanted: {"data":[...]}"#,
        ),
        (
            r#"{"data":null}"#,
            r#""data" is not an array, at line 1 column 9; wanted: {"data":[...]}"#,
        ),
        (
            r#"{"data":"[]"}"#,
            r#""data" is not an array, at line 1 column 9; wanted: {"data":[...]}"#,
        ),
        (
            r#"{"data":[],"data":[]}"#,
            r#"a second "data" at line 1 column 12; wanted: {"data":[...]}, each member once"#,
        ),
        (
            r#"{"data":[],"d\u0061ta":1}"#,
            r#"a second "data" at line 1 column 12; wanted: {"data":[...]}, each member once"#,
        ),
        (
            r#"{"token":null,"token":""}"#,
            r#"a second "token" at line 1 column 15; wanted: {"data":[...]}, each member once"#,
        ),
        (
            r#"{"version":"","versio\u006e":0}"#,
            r#"a second "version" at line 1 column 15; wanted: {"data":[...]}, each member once"#,
        ),
        (
            r#"{"version":1.0}"#,
            r#""version" is not a string, at line 1 column 12; wanted: {"version":"...","data":[...]}"#,
        ),
        (
            r#"{"token":["t"]}"#,
            r#""token" is not a string, at line 1 column 10; wanted: {"token":"...","data":[...]}"#,
        ),
        (
            r#"{"data":[],"token":false}"#,
            r#""token" is not a string, at line 1 column 20; wanted: {"token":"...","data":[...]}"#,
        ),
        (
            r#"{"data":[],"token":"\ud800"}"#,
            "\"token\" has a surrogate escape without its pair, at line 1 column 20",
        ),
        // The first error in reading order.
        (r#"{"token":"\ud800"}"#, r#""data" is missing; wanted: {"data":[...]}"#),
        (
            r#"{"data":{},}"#,
            r#""data" is not an array, at line 1 column 9; wanted: {"data":[...]}"#,
        ),
        (r#"{"data":[1,],"data":1}"#, "not JSON: expected value at line 1 column 12"),
    ];
    for (body, expected) in cases {
        assert_eq!(&refusal(body), expected, "{body}");
    }
}

#[test]
fn what_is_not_json_is_refused_with_its_position() {
    let cases: &[&[u8]] = &[
        b"{\"data\":[]} x",
        b"{\"data\":[]}{}",
        b"{\"data\":[]} // end",
        b"{\"data\":[]}\0",
        b"\0{\"data\":[]}",
        b"{\"data\":[1\0]}",
        b"{\"data\":[\0]}",
        b"{\"data\":[\"\0\"]}",
        b"{\"data\":[\"a\nb\"]}",
        b"{\"data\":[\"\x1f\"]}",
        b"{\x0c\"data\":[]}",
        b"{\xc2\xa0\"data\":[]}",
        b"{\"data\":[\xef\xbb\xbf1]}",
        b"{\"data\":[1,]}",
        b"{\"data\":[,1]}",
        b"{\"data\":[1,,2]}",
        b"{\"data\":[1 2]}",
        b"{\"data\":[],}",
        b"{\"data\":[{\"a\"}]}",
        b"{\"data\":[{\"a\":}]}",
        b"{\"data\":[{\"a\":1]}}",
        b"{\"data\":[01]}",
        b"{\"data\":[-]}",
        b"{\"data\":[-01]}",
        b"{\"data\":[+1]}",
        b"{\"data\":[.5]}",
        b"{\"data\":[1.]}",
        b"{\"data\":[1.e5]}",
        b"{\"data\":[1e]}",
        b"{\"data\":[1e+]}",
        b"{\"data\":[0x1]}",
        b"{\"data\":[NaN]}",
        b"{\"data\":[tru]}",
        b"{\"data\":[nulll]}",
        b"{\"data\":[True]}",
        b"{\"data\":['a']}",
        b"{\"data\":[\"\\x\"]}",
        b"{\"data\":[\"\\u12g4\"]}",
        b"{\"data\":[1]",
        b"{\"data\":[",
        b"{\"data\":[\"",
        b"{\"data\":[\"\\",
        b"{data:[]}",
        b"{1:[]}",
        b"{",
    ];
    for body in cases {
        let text = refusal(body);
        let shown = body.escape_ascii();
        assert!(text.starts_with("not JSON: ") && text.contains(" at line "), "{shown}: {text}");
    }
    assert!(refusal("{\"data\":[]}\n x").ends_with(" at line 2 column 2"));
    assert!(refusal("{\"data\":[1,\n\n01]}").ends_with(" at line 3 column 2"));
}

#[test]
fn what_is_not_utf8_is_refused_with_its_position() {
    let stray = |bytes: &[u8]| [b"{\"data\":[\n\"ab", bytes, b"\"]}"].concat();
    // A stray byte, an overlong form, an encoded surrogate, beyond U+10FFFF, cut short.
    for bytes in
        [&b"\xff"[..], b"\x80", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
    {
        assert_eq!(refusal(stray(bytes)), "not UTF-8 at line 2 column 4");
    }
    assert_eq!(refusal(b"\xff\xfe{\0}\0"), "not UTF-8 at line 1 column 1");
}

#[test]
fn nesting_is_counted_over_the_whole_body() {
    let nested = |levels: usize, open: &str, first: &str, close: &str| {
        format!("{{\"data\":[{first},{}0{}]}}", open.repeat(levels), close.repeat(levels))
    };
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for first in ["1", "1e400"] {
            let deepest = nested(DEPTH_MAX - 2, open, first, close);
            assert_eq!(payloads(&deepest).len(), 2);
            let column = 11 + first.len() + (DEPTH_MAX - 2) * open.len();
            assert_eq!(
                refusal(nested(DEPTH_MAX - 1, open, first, close)),
                format!("nested deeper than 127 levels at line 1 column {column}"),
            );
        }
    }
    let outside = format!("{{\"data\":[],\"x\":{}{}}}", "[".repeat(127), "]".repeat(127));
    assert!(refusal(outside).starts_with("nested deeper than 127 levels"));
    // Bombs that never close.
    assert!(refusal(format!("{{\"x\":{}", "[".repeat(1 << 20))).starts_with("nested deeper than"));
    assert!(refusal("{\"x\":".repeat(100_000)).starts_with("nested deeper than"));
    let bomb = format!("{{\"x\":[1e400,{}{}]}}", "[".repeat(1 << 19), "]".repeat(1 << 19));
    assert!(refusal(bomb).starts_with("nested deeper than"));
}

#[test]
fn simd_json_blocks_do_not_show() {
    // Every alignment of quotes, backslashes and multi-byte characters to its 64-byte blocks.
    for shift in 0..130 {
        let pad = " ".repeat(shift);
        let backslashes = "\\\\".repeat(shift);
        let payload = format!("{{\"{backslashes}\":\"{backslashes}\\\"é]\",\"n\":12345678}}");
        let body = format!("{pad}{{{pad}\"data\":[{pad}{payload}{pad},{pad}\"{pad}é\"]}}");
        assert_eq!(payloads(&body), [payload, format!("\"{pad}é\"")]);
    }
}

#[test]
fn a_scratch_carries_nothing_over() {
    let mut scratch = Scratch::default();
    assert_eq!(
        parse(padded(br#"{"data":[1,2,3]}"#), PLAIN, &mut scratch).unwrap().payloads.len(),
        3
    );
    assert!(parse(padded(br#"{"data":[1,2"#), PLAIN, &mut scratch).is_err());
    assert_eq!(parse(padded(br#"{"data":[4]}"#), PLAIN, &mut scratch).unwrap().payloads.len(), 1);
    assert_eq!(parse(padded(br#"{"data":[]}"#), PLAIN, &mut scratch).unwrap().payloads, []);
}

#[test]
fn the_densest_bodies_take_the_memory_of_one_segment() {
    let dense = format!("{{\"data\":[1{}]}}", ",1".repeat(1 << 19));
    let mut scratch = Scratch::default();
    for body in
        [&dense, &dense[..dense.len() - 1], &"{\"x\":".repeat(1 << 18), &"[".repeat(1 << 20)]
    {
        let payloads = parse(padded(body), PLAIN, &mut scratch).map(|found| found.payloads.len());
        assert!(payloads.is_err() || payloads == Ok((1 << 19) + 1));
        assert!(scratch.marks.held_bytes() <= MARKS_BYTES_MAX, "{}", scratch.marks.held_bytes());
        let _refused = parse(padded(b"{}"), PLAIN, &mut scratch);
        assert!(scratch.payloads.capacity() <= PAYLOADS_KEPT_MAX);
    }
}

/// Bodies of `length` bytes or a few more, each of one shape in full, and whether they are valid.
fn shapes(length: usize) -> Vec<(&'static str, Vec<u8>, bool)> {
    let fill =
        |piece: &str, around: usize| piece.repeat(length.saturating_sub(around) / piece.len());
    let in_data = |inside: &str| format!("{{\"data\":[{inside}]}}").into_bytes();
    let mut bad_end = in_data(&format!("\"{}", fill("é", 16)));
    bad_end.extend(b"\xff\"]}");
    let text = |piece: &str| in_data(&format!("\"{}\"", fill(piece, 16)));
    let deep = "[".repeat(DEPTH_MAX - 2) + &"]".repeat(DEPTH_MAX - 2);
    vec![
        ("dense numbers", in_data(&(fill("1,", 16) + "1")), true),
        ("a second data", [&in_data(&(fill("1,", 16) + "1"))[..], b"x"].concat(), false),
        ("brackets", in_data(&(fill("[],", 16) + "[]")), true),
        ("deep nesting", in_data(&(fill(&(deep.clone() + ","), 300) + &deep)), true),
        ("too deep", in_data(&fill("[", 16)), false),
        ("escapes", text("\\n"), true),
        ("long escapes", text("\\u00e9"), true),
        ("a bad escape at the end", [&text("\\n")[..length - 6], b"\\x\"]}"].concat(), false),
        ("one long string", text("x"), true),
        ("one long text", text("é漢𝄞x"), true),
        ("short strings", in_data(&(fill("\"a,b\",", 32) + "1")), true),
        ("keys", in_data(&format!("{{{}\"a\":1}}", fill("\"a\":1,", 32))), true),
        ("one long key", in_data(&format!("{{\"{}\":1}}", fill("k", 32))), true),
        ("one long name", format!("{{\"{}\":1,\"data\":[]}}", fill("k", 32)).into(), true),
        ("one long number", in_data(&fill("1", 16)), true),
        ("one long fraction", in_data(&format!("1.{}e1", fill("0", 16))), true),
        ("blanks", in_data(&format!("1{},2", fill(" ", 16))), true),
        ("blanks at the end", [&in_data("1")[..], fill("\n", 16).as_bytes()].concat(), true),
        ("an invalid byte at the end", bad_end, false),
        ("commas in strings", in_data(&(fill("\"}],\\\"]\",", 32) + "1")), true),
        ("unknown members", format!("{{{}\"data\":[]}}", fill("\"a\":[{}],", 32)).into(), true),
    ]
}

#[test]
fn every_shape_is_judged_alike_in_segments_of_every_size() {
    for (shape, body, is_valid) in shapes(400) {
        let whole = parse_in_segments(&body, PLAIN, 1 << 20, usize::MAX);
        assert_eq!(whole.is_ok(), is_valid, "{shape}: {whole:?}");
        let judged = serde_json::from_slice::<&serde_json::value::RawValue>(&body).is_ok();
        assert!(judged == is_valid || shape == "too deep", "{shape}");
        for segment_bytes in 1..=420 {
            let in_segments = parse_in_segments(&body, PLAIN, segment_bytes, usize::MAX);
            assert_eq!(in_segments, whole, "{shape} in {segment_bytes}");
        }
    }
}

#[test]
fn every_shape_is_parsed_in_steps_of_one_segment() {
    for (shape, body, is_valid) in shapes(1 << 20) {
        let found = parse_in_segments(&body, PLAIN, SEGMENT_BYTES, usize::MAX);
        assert_eq!(found.is_ok(), is_valid, "{shape}: {:?}", found.err());
    }
}

#[test]
fn a_body_of_too_many_payloads_is_refused_before_its_end() {
    let body = format!("{{\"data\":[1{}]}}", ",1".repeat(99_999));
    for max in [99_999, 1_000] {
        let refused = parse_in_segments(body.as_bytes(), PLAIN, SEGMENT_BYTES, max).unwrap_err();
        let text = refused.to_string();
        assert_eq!(refused, ParseError::TooManyPayloads { max }, "{text}");
        assert!(text.contains(&format!("more payloads than MAX_QUEUE ({max})")), "{text}");
    }
    let (_, spans) = parse_in_segments(body.as_bytes(), PLAIN, SEGMENT_BYTES, 100_000).unwrap();
    assert_eq!(spans.len(), 100_000);
    // What follows is not looked at, and the spans do not grow.
    let (mut marks, mut spans) = (Marks::default(), Vec::new());
    let mut parse = Parse::new(padded(&body), PLAIN, 1_000);
    assert!(parse.step(&mut marks, &mut spans).is_some_and(|found| found.is_err()));
    assert!(spans.len() <= SEGMENT_BYTES / 2);
}

#[test]
fn a_token_or_version_that_is_too_long_is_refused() {
    for member in ["token", "version"] {
        let with =
            |length: usize| format!("{{\"{member}\":\"{}\",\"data\":[]}}", "x".repeat(length));
        let longest = with(ENVELOPE_STRING_BYTES_MAX - 2);
        assert!(parse(padded(longest), PLAIN, &mut Scratch::default()).is_ok());
        let text = refusal(with(ENVELOPE_STRING_BYTES_MAX - 1));
        assert!(text.starts_with(&format!("\"{member}\" takes more than 65536 bytes")), "{text}");
    }
}

#[test]
fn ordinary_bodies_are_walked_and_not_read_bytewise() {
    let event = r#"{"id":7,"kind":"view, then buy","tags":["a","b"],"note":"a \"quoted\" text"}"#;
    let strings = r#""one of many short strings""#;
    for payload in [event, strings, "12345.25"] {
        let payloads = vec![payload; (1 << 20) / payload.len()].join(",");
        let body = format!("{{\"token\":\"t\",\"data\":[{payloads}]}}");
        let (mut marks, mut spans) = (Marks::default(), Vec::new());
        let mut parse = Parse::new(padded(&body), PLAIN, usize::MAX);
        while parse.step(&mut marks, &mut spans).is_none() {
            assert!(matches!(parse.way, Way::Walk), "{payload}");
        }
        assert_eq!(spans.len(), (1 << 20) / payload.len());
    }
}

#[test]
fn lines_are_counted_in_steps() {
    let body = format!("{{\"data\":[{}x]}}", "1,\n".repeat(1 << 20));
    let mut parse = Parse::new(padded(&body), PLAIN, usize::MAX);
    let (mut marks, mut spans, mut counting) = (Marks::default(), Vec::new(), 0);
    let error = loop {
        counting += usize::from(matches!(parse.way, Way::Locate(..)));
        if let Some(found) = parse.step(&mut marks, &mut spans) {
            break found.unwrap_err().to_string();
        }
    };
    assert_eq!(error, format!("not JSON: expected value at line {} column 1", (1 << 20) + 1));
    assert!(counting >= 3, "{counting}");
}
