use super::super::progress::DEPTH_MAX;
use super::super::tests::{PLAIN, padded, parse_in_segments};
use super::super::{SEGMENT_BYTES, Scratch, parse};
use super::*;

const OBJECT: BodyForm = BodyForm::ByFirstByte(ObjectBody::Payload);

/// The payloads as text, or what is wrong. The same in one go and in segments of any length.
fn split(form: BodyForm, body: impl AsRef<[u8]>) -> Result<Vec<String>, String> {
    let body = body.as_ref();
    let text = |spans: &[super::super::Span]| -> Vec<String> {
        spans.iter().map(|span| String::from_utf8(body[span.range()].to_vec()).unwrap()).collect()
    };
    let whole =
        parse(padded(body), form, &mut Scratch::default()).map(|found| text(found.payloads));
    for segment_bytes in 1..=body.len().min(60) {
        let cut = parse_in_segments(body, form, segment_bytes, usize::MAX);
        let cut = cut.map(|(_, spans)| text(&spans));
        assert_eq!(cut, whole, "{} in {segment_bytes}", body.escape_ascii());
    }
    whole.map_err(|error| error.to_string())
}

#[test]
fn the_first_byte_decides_unless_the_form_is_given() {
    let whole = r#"{"data":[1,2]}"#;
    let cases: &[(BodyForm, &str, BodyForm, &[&str])] = &[
        (PLAIN, whole, BodyForm::Collection, &["1", "2"]),
        (PLAIN, " \r\n[1,[2]]\n", BodyForm::Array, &["1", "[2]"]),
        (OBJECT, "\t{\"data\":[1,2]}\n", BodyForm::Object, &[whole]),
        (OBJECT, "[{},{\"data\":0}]", BodyForm::Array, &["{}", "{\"data\":0}"]),
        (BodyForm::Array, "[ ]", BodyForm::Array, &[]),
        (BodyForm::Object, "{}", BodyForm::Object, &["{}"]),
        (BodyForm::Lines, whole, BodyForm::Lines, &[whole]),
        (BodyForm::Lines, "[1,2]", BodyForm::Lines, &["[1,2]"]),
    ];
    for (form, body, found, payloads) in cases {
        assert_eq!(&split(*form, body).unwrap(), payloads, "{body}");
        let mut scratch = Scratch::default();
        let envelope = parse(padded(body), *form, &mut scratch).unwrap().envelope;
        assert_eq!(envelope.form, *found, "{body}");
    }
}

#[test]
fn only_a_collection_has_a_version_and_a_token() {
    let member = r#"{"version":1,"token":["t"],"data":{},"data":0}"#;
    for (form, body) in [
        (PLAIN, format!("[{member}]")),
        (OBJECT, member.to_owned()),
        (BodyForm::Object, member.to_owned()),
        (BodyForm::Lines, member.to_owned()),
        (BodyForm::Lines, format!("{member}\n")),
        (BodyForm::Array, format!("[{member}]")),
    ] {
        assert_eq!(split(form, &body), Ok(vec![member.to_owned()]), "{body}");
        let mut scratch = Scratch::default();
        let envelope = parse(padded(body), form, &mut scratch).unwrap().envelope;
        assert_eq!((envelope.version, envelope.token), (None, None));
        assert!(!envelope.form.may_be_collection());
    }
}

#[test]
fn payloads_are_the_bytes_as_received_without_the_white_space_around() {
    let odd = "{ \"b\" : 1.0 ,\t\"a\":[ 1 , 2E+400 ] , \"b\":\"\\ud800 ☃\" }";
    let cases: &[(BodyForm, String, Vec<&str>)] = &[
        (PLAIN, format!(" [ {odd} , -0\r\n, \"]\" ] "), vec![odd, "-0", "\"]\""]),
        (PLAIN, format!("[\n{odd}]"), vec![odd]),
        (OBJECT, format!("\n {odd}\r\n"), vec![odd]),
        (OBJECT, "{\n\"a\"\n:\n1\n}".to_owned(), vec!["{\n\"a\"\n:\n1\n}"]),
        (BodyForm::Lines, format!(" {odd} \n\t-0\t\r\n\"]\"  "), vec![odd, "-0", "\"]\""]),
        (BodyForm::Lines, format!("{odd}\n{odd}"), vec![odd, odd]),
    ];
    for (form, body, payloads) in cases {
        assert_eq!(&split(*form, body).unwrap(), payloads, "{body}");
    }
}

/// What is on lines, and what becomes of it.
#[test]
fn lines_end_with_lf_and_blank_ones_are_skipped() {
    let cases: &[(&str, &[&str])] = &[
        ("", &[]),
        ("\n", &[]),
        ("\n\n\r\n \t\n", &[]),
        ("  ", &[]),
        ("\r", &[]),
        ("1", &["1"]),
        ("1\n", &["1"]),
        ("1\n2", &["1", "2"]),
        ("1\r\n2\r\n", &["1", "2"]),
        ("1\r\n2\r", &["1", "2"]),
        ("\n\n1\n\n\n2\n\n", &["1", "2"]),
        (" \t1 \n\t 2\t\n", &["1", "2"]),
        ("1\r\r\n\r\n", &["1"]),
        // CR alone is white space, so it may be inside a value.
        ("{\"a\":\r1}\n[\r]\n", &["{\"a\":\r1}", "[\r]"]),
        (
            "null\ntrue\nfalse\n\"s\"\n-1.5e3\n[]\n{}\n",
            &["null", "true", "false", "\"s\"", "-1.5e3", "[]", "{}"],
        ),
        ("\"\\n\"\n\"a\\nb\"", &["\"\\n\"", "\"a\\nb\""]),
        ("{\"data\":[1]}\n{\"data\":[1]}\n", &["{\"data\":[1]}", "{\"data\":[1]}"]),
        ("\"}\"\n\"{\"\n\",\"", &["\"}\"", "\"{\"", "\",\""]),
    ];
    for (body, payloads) in cases {
        assert_eq!(&split(BodyForm::Lines, body).unwrap(), payloads, "{body:?}");
    }
}

#[test]
fn a_line_that_is_not_one_value_is_refused_by_its_number() {
    let cut = |what: &str, place: &str| {
        format!("not JSON: EOF while parsing {what} at {place}; wanted: a JSON value on each line")
    };
    let json = |what: &str, place: &str| format!("not JSON: {what} at {place}");
    let cases: &[(&[u8], String)] = &[
        // Two values on one line.
        (b"1\n1 2\n", json("trailing characters", "line 2 column 3")),
        (b"{}{}\n", json("trailing characters", "line 1 column 3")),
        (b"1\n{}\t[]", json("trailing characters", "line 2 column 4")),
        (b"1,\n2\n", json("trailing characters", "line 1 column 2")),
        (b"[1],\n[2]", json("trailing characters", "line 1 column 4")),
        (b"1\r2\n", json("trailing characters", "line 1 column 3")),
        // One value on two lines.
        (b"1\n{\n}\n", cut("an object", "line 2 column 1")),
        (b"{\"a\":1,\n\"b\":2}", cut("an object", "line 1 column 7")),
        (b"{\"a\":\n2}", cut("a value", "line 1 column 5")),
        (b"{\"a\"\n:2}", cut("an object", "line 1 column 4")),
        (b"[1\n,2]", cut("a list", "line 1 column 2")),
        (b"[\r\n1]", cut("a list", "line 1 column 2")),
        (b"\"a\nb\"", cut("a string", "line 1 column 2")),
        (b"\"a\\\nb\"", cut("a string", "line 1 column 3")),
        (b"\"\\u12\n34\"", cut("a string", "line 1 column 5")),
        (b"1\ntru\ne", cut("a value", "line 2 column 3")),
        (b"-\n1", json("invalid number", "line 1 column 1")),
        (b"1.\n5", json("invalid number", "line 1 column 2")),
        // A value that never ends.
        (b"1\n{\"a\":1", cut("an object", "line 2 column 6")),
        (b"[", cut("a list", "line 1 column 1")),
        (b"1\n\n\n\"", cut("a string", "line 4 column 1")),
        // What is no JSON.
        (b"1\nx\n", json("expected value", "line 2 column 1")),
        (b"1\n01\n", json("invalid number", "line 2 column 2")),
        (b"1\r\n\r\n}\r\n", json("expected value", "line 3 column 1")),
        (b"#\n1", json("expected value", "line 1 column 1")),
        // What some take for the end of a line, or for the begin of a record (RFC 7464).
        (b"\x1e1\n", json("expected value", "line 1 column 1")),
        (b"1\n\x1e2\n", json("expected value", "line 2 column 1")),
        (b"1\x0b2", json("trailing characters", "line 1 column 2")),
        (b"1\x0c\n2", json("trailing characters", "line 1 column 2")),
        ("1\u{85}2".as_bytes(), json("trailing characters", "line 1 column 2")),
        ("1\n\u{2028}2".as_bytes(), json("expected value", "line 2 column 1")),
        ("1\n\u{a0}2".as_bytes(), json("expected value", "line 2 column 1")),
        (b"\0", json("expected value", "line 1 column 1")),
        (b"1\n\0\n", json("expected value", "line 2 column 1")),
        (b"1\0\n", json("trailing characters", "line 1 column 2")),
        (
            b"\"\0\"\n",
            json(
                "control character (\\u0000-\\u001F) found while parsing a string",
                "line 1 column 1",
            ),
        ),
        // A byte order mark, at the start and elsewhere.
        ("\u{feff}1\n".as_bytes(), "the body starts with a byte order mark".to_owned()),
        ("1\n\u{feff}2\n".as_bytes(), json("expected value", "line 2 column 1")),
        // What is not UTF-8.
        (b"1\n\"\xff\"\n", "not UTF-8 at line 2 column 2".to_owned()),
        (b"\"\xe2\x82\n\xac\"", "not UTF-8 at line 1 column 2".to_owned()),
        (b"1\n\xff\xfe2", "not UTF-8 at line 2 column 1".to_owned()),
    ];
    for (body, expected) in cases {
        let shown = body.escape_ascii();
        assert_eq!(split(BodyForm::Lines, body).as_ref().err(), Some(expected), "{shown}");
    }
}

#[test]
fn a_body_of_another_form_is_told_what_is_wanted() {
    let lines = "wanted: {\"data\":[...]} or [...], or lines of JSON as application/x-ndjson";
    let neither =
        |place| format!("the body is neither an object nor an array, at {place}; {lines}");
    let second = |place| {
        format!(
            "not JSON: trailing characters at {place}; if each line is a payload, send it as \
             application/x-ndjson"
        )
    };
    let cases: &[(BodyForm, &str, String)] = &[
        (PLAIN, "", "the body is empty; wanted: {\"data\":[...]} or [...]".into()),
        (OBJECT, "", "the body is empty; wanted: {...} or [...]".into()),
        (BodyForm::Array, "", "the body is empty; wanted: [...]".into()),
        (BodyForm::Object, "", "the body is empty; wanted: {...}".into()),
        (PLAIN, "\n7", neither("line 2 column 1")),
        (PLAIN, "\"s\"", neither("line 1 column 1")),
        (PLAIN, "null\n{}", neither("line 1 column 1")),
        (PLAIN, "x=1", "not JSON: expected value at line 1 column 1".into()),
        (PLAIN, "{\"a\":1}\n{\"a\":2}\n", second("line 2 column 1")),
        (PLAIN, "[1]\n[2]", second("line 2 column 1")),
        (PLAIN, "[1]]", "not JSON: trailing characters at line 1 column 4".into()),
        (OBJECT, "{}{}", second("line 1 column 3")),
        (PLAIN, "[1,]", "not JSON: expected value at line 1 column 4".into()),
        (PLAIN, "[1", "not JSON: EOF while parsing a list at line 1 column 2".into()),
        (PLAIN, "[{\"a\":1]", "not JSON: expected `,` or `}` at line 1 column 8".into()),
        (
            BodyForm::Array,
            " {}",
            "the body is not an array, at line 1 column 2; wanted: [...], as content-type says"
                .into(),
        ),
        (
            BodyForm::Object,
            "[]",
            "the body is not an object, at line 1 column 1; wanted: {...}, as content-type says"
                .into(),
        ),
        (
            OBJECT,
            "1",
            "the body is neither an object nor an array, at line 1 column 1; wanted: {...} or \
             [...], or lines of JSON as application/x-ndjson"
                .into(),
        ),
    ];
    for (form, body, expected) in cases {
        assert_eq!(split(*form, body).as_ref().err(), Some(expected), "{body}");
    }
}

#[test]
fn nesting_is_counted_from_the_outermost_bracket() {
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let cases = [
        (PLAIN, deep(DEPTH_MAX), true),
        (PLAIN, deep(DEPTH_MAX + 1), false),
        (BodyForm::Lines, format!("{}\n1\n{}", deep(DEPTH_MAX), deep(DEPTH_MAX)), true),
        (BodyForm::Lines, format!("1\n{}", deep(DEPTH_MAX + 1)), false),
        (OBJECT, format!("{{\"a\":{}}}", deep(DEPTH_MAX - 1)), true),
        (OBJECT, format!("{{\"a\":{}}}", deep(DEPTH_MAX)), false),
    ];
    for (form, body, is_valid) in cases {
        match split(form, &body) {
            Ok(_) => assert!(is_valid, "{body}"),
            Err(error) => {
                assert!(!is_valid && error.starts_with("nested deeper than 127"), "{error}: {body}")
            }
        }
    }
    assert!(split(BodyForm::Lines, "[\n".repeat(300)).unwrap_err().contains("line 1 column 1"));
}

/// Bodies of `length` bytes or a few more, each of one shape in full, and whether they are valid.
fn shapes(length: usize) -> Vec<(&'static str, BodyForm, Vec<u8>, bool)> {
    use BodyForm::Lines;
    let fill = |piece: &str| piece.repeat(length / piece.len());
    let event = r#"{"id":7,"kind":"view, then","tags":["a","b"],"note":"a \"quoted\" text"}"#;
    let event_line = event.to_owned() + "\n";
    let long = format!("{{\"a\":[{}1]}}\n", "{\"b\":\"}\"},".repeat(length / 22));
    let text = format!("\"{}\"\n", "é\\n".repeat(length / 8));
    let all = |shape, form, body: String, is_valid| (shape, form, body.into_bytes(), is_valid);
    vec![
        all("one-byte lines", Lines, fill("1\n"), true),
        all("one-byte lines, then a bad one", Lines, fill("1\n") + "x", false),
        all("one-byte lines, then two values", Lines, fill("1\n") + "1 1", false),
        all("empty lines", Lines, fill("\n"), true),
        all("empty lines, then a bad one", Lines, fill("\n") + "}", false),
        all("CRLF lines", Lines, fill("[]\r\n"), true),
        all("blank lines", Lines, fill(" \r\n"), true),
        all("blanks on one line", Lines, fill(" ") + "1", true),
        all("blanks after a value", Lines, String::from("1") + &fill("\r") + "\n2", true),
        all("brackets", Lines, fill("[]\n{}\n"), true),
        all("events", Lines, fill(&event_line), true),
        all("events, then half of one", Lines, fill(&event_line) + &event[..20], false),
        all("two long lines", Lines, long.repeat(2), true),
        all("a long line that is cut", Lines, long.replace("},", "},\n"), false),
        all("two long strings", Lines, text.repeat(2), true),
        all("a long string with an LF", Lines, format!("\"{}\n\"", fill("x")), false),
        all("one long number", Lines, fill("7"), true),
        all("commas on a line", Lines, fill("1,"), false),
        all("an invalid byte at the end", Lines, fill("1\n"), true),
        all("numbers in an array", BodyForm::Array, format!("[{}1]", fill("1,")), true),
        all("objects in an array", PLAIN, format!("[{}{event}]", fill(&format!("{event},"))), true),
        all("arrays in an array", PLAIN, format!("[{}[]]", fill("[[]],")), true),
        all("an array, then garbage", PLAIN, format!("[{}1]]", fill("1,")), false),
        all("an array with a bad last element", PLAIN, format!("[{}1,x]", fill("1,")), false),
        all("blanks before an array", PLAIN, fill(" ") + "[1]", true),
        all("blanks in an array", PLAIN, format!("[1{},2]", fill(" ")), true),
        all("an object", OBJECT, format!("{{{}\"a\":1}}", fill("\"a\":[1],")), true),
        all("an object of one string", OBJECT, format!("{{\"a\":\"{}\"}}", fill("\\n")), true),
        all("a bad object", OBJECT, format!("{{{}\"a\"}}", fill("\"a\":[1],")), false),
    ]
}

#[test]
fn every_shape_is_judged_alike_in_segments_of_every_size() {
    for (shape, form, body, is_valid) in shapes(400) {
        let whole = parse_in_segments(&body, form, 1 << 20, usize::MAX);
        assert_eq!(whole.is_ok(), is_valid, "{shape}: {whole:?}");
        for segment_bytes in 1..=420 {
            let in_segments = parse_in_segments(&body, form, segment_bytes, usize::MAX);
            assert_eq!(in_segments, whole, "{shape} in {segment_bytes}");
        }
    }
}

#[test]
fn every_shape_is_parsed_in_steps_of_one_segment() {
    for (shape, form, body, is_valid) in shapes(1 << 20) {
        let found = parse_in_segments(&body, form, SEGMENT_BYTES, usize::MAX);
        assert_eq!(found.is_ok(), is_valid, "{shape}: {:?}", found.err());
    }
}
