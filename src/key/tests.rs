use std::collections::{BTreeSet, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

use super::*;
use crate::queue::job::{Origin, Stamp};

mod requests;

/// 2025-11-21T20:00:00Z
const EVENING: u64 = 1_763_755_200_000_000_000;
const HOUR: u64 = 3_600_000_000_000;

fn parse(key: &str) -> KeyTemplate {
    KeyTemplate::parse(key, None).unwrap()
}

fn of(partition: &str) -> KeyOf<'_> {
    KeyOf {
        partition,
        unix_nanos: EVENING,
        node: "host-1",
        core: 3,
        seq: 42,
        count: 1000,
        ext: "ndjson.gz",
    }
}

/// Partition and key of one payload.
fn render(template: &KeyTemplate, payload: &str, version: Option<&str>) -> (String, String) {
    render_with(template, payload, &RequestValues::of_version(version.unwrap_or_default()))
}

/// The same for a payload of a request with these values.
fn render_with(template: &KeyTemplate, payload: &str, values: &RequestValues) -> (String, String) {
    let mut partition = Partition::default();
    let _ = template.write_partition(payload.as_bytes(), values, EVENING, &mut partition);
    let mut key = "what was there before".into();
    template.write_key(&of(partition.text()), &mut key);
    (partition.text, key)
}

fn key(template: &str, payload: &str) -> String {
    render(&parse(template), payload, None).1
}

#[test]
fn every_placeholder_renders() {
    for (template, expected) in [
        (DEFAULT_PAYLOAD, "1763755200000000000-host-1-3-42.json"),
        (DEFAULT_BATCH, "1763755200000000000-host-1-3-42.ndjson.gz"),
        ("{unix_ms}/{count}", "1763755200000/1000"),
        ("dt={date:%Y-%m-%d}/hour={hour}/{seq}", "dt=2025-11-21/hour=20/42"),
        ("{date:%Y/%m/%d/%H%M%S-%j%%}", "2025/11/21/200000-325%"),
        ("{date:day}", "day"),
        ("{{{node}}}{{}}", "{host-1}{}"),
        ("{version}", "unknown"),
        ("{field:/tenant}/{field:/n/1}", "acme/1.50"),
        ("{field:/none}-{field:/none|other}", "unknown-other"),
        ("{field:/a~1b~0}-{field:/|x}", "slash-empty"),
        ("Zoë/{seq}", "Zoë/42"),
    ] {
        let payload = r#"{"tenant":"acme","n":[0,1.50],"a/b~":"slash","":"empty"}"#;
        assert_eq!(key(template, payload), expected, "{template}");
    }
}

#[test]
fn the_default_is_the_key_of_a_payload_byte_for_byte() {
    let template = parse(DEFAULT_PAYLOAD);
    let mut key = String::new();
    for (node, core, unix_nanos, seq) in
        [("host-1", 0, 0, 0), ("0123456789abcdef", 1023, u64::MAX, u64::MAX), ("a", 7, EVENING, 9)]
    {
        template.write_key(&KeyOf { unix_nanos, node, core, seq, ..of("") }, &mut key);
        assert_eq!(
            key,
            Origin::new(node.into(), core).key(Stamp { unix_nanos, seq }, &b"0".to_vec().into())
        );
    }
    assert!(!template.is_partitioned() && template.request_sources().is_empty());
    assert_eq!(template.texts(), (DEFAULT_PAYLOAD, None));
}

const ALL: &str = "{unix_nanos}, {unix_ms}, {date:%Y/%m/%d}, {hour}, {node}, {core}, {seq}, {count}, \
                   {ext}, {hash:2}, {version}, {token} or {token|default}, \
                   {header:x-name} or {header:x-name|default}, {query:name} or {query:name|default}, \
                   {field:/member} or {field:/member|default}";

#[test]
fn bad_templates_are_refused_by_name() {
    let long = "x".repeat(1025);
    let wide = format!("{{field:/a|{}}}", "x".repeat(129));
    let crowded: String = (0..17).map(|n| format!("{{query:{n}}}/")).collect();
    let wide_error =
        format!("the default \"{0}x\" in KEY would be changed: write \"{0}\"", "x".repeat(128));
    for (key, expected) in [
        ("", format!("KEY is empty: write a template such as {DEFAULT_BATCH}, out of {ALL}")),
        (&long, "KEY is 1025 bytes long: write at most 1024".into()),
        (
            "a{node",
            format!(
                "KEY has {{node without its }}: close it, or write {{{{ for a brace; there are {ALL}"
            ),
        ),
        (
            "{a{node}",
            format!(
                "KEY has {{a without its }}: close it, or write {{{{ for a brace; there are {ALL}"
            ),
        ),
        (
            "{",
            format!(
                "KEY has {{ without its }}: close it, or write {{{{ for a brace; there are {ALL}"
            ),
        ),
        ("a}b", "KEY has a } without its { before \"b\": write }} for a brace".into()),
        (
            "{nodes}",
            format!(
                "{{nodes}} in KEY is not a placeholder: did you mean {{node}}? there are {ALL}"
            ),
        ),
        (
            "{unixnano}",
            format!(
                "{{unixnano}} in KEY is not a placeholder: did you mean {{unix_nanos}}? there are {ALL}"
            ),
        ),
        ("{zzz:9}", format!("{{zzz:9}} in KEY is not a placeholder: there are {ALL}")),
        ("{}", format!("{{}} in KEY is not a placeholder: there are {ALL}")),
        ("{date}", "{date} in KEY has the wrong form: write {date:%Y/%m/%d}".into()),
        ("{date:}", "{date:} in KEY has the wrong form: write {date:%Y/%m/%d}".into()),
        ("{node:1}", "{node:1} in KEY has the wrong form: write {node}".into()),
        ("{hash}", "{hash} in KEY has the wrong form: write {hash:2}".into()),
        (
            "{field}",
            "{field} in KEY has the wrong form: write {field:/member} or {field:/member|default}"
                .into(),
        ),
        (
            "{hash:0}",
            "{hash:0} in KEY has an invalid number of digits: write {hash:1} to {hash:8}".into(),
        ),
        (
            "{hash:9}",
            "{hash:9} in KEY has an invalid number of digits: write {hash:1} to {hash:8}".into(),
        ),
        (
            "{hash:+1}",
            "{hash:+1} in KEY has an invalid number of digits: write {hash:1} to {hash:8}".into(),
        ),
        (
            "{hash:1}{hash:2}",
            "KEY has {hash} twice: write it once, because both would give the same digits".into(),
        ),
        (
            "{date:%Y-%b}",
            "{date:%Y-%b} in KEY has %b: write %Y %m %d %H %M %S %j, and %% for a %".into(),
        ),
        (
            "{date:%}",
            "{date:%} in KEY has a lone %: write %Y %m %d %H %M %S %j, and %% for a %".into(),
        ),
        ("{field:tenant}", "\"tenant\" in KEY is not a JSON pointer: write /tenant".into()),
        ("{field:|x}", "\"\" in KEY is not a JSON pointer: write /".into()),
        (
            "{field:/a~2}",
            "\"/a~2\" in KEY is not a JSON pointer: write ~0 for a ~ in a name, and ~1 for a /"
                .into(),
        ),
        (
            "{header}",
            "{header} in KEY has the wrong form: write {header:x-name} or {header:x-name|default}".into(),
        ),
        (
            "{header:}",
            "KEY uses {header:}, which names no header: write a name of letters, digits and -, such as \
             header:x-request-id"
                .into(),
        ),
        (
            "{header:X-Api-Key|none}",
            "KEY uses {header:X-Api-Key}, which is a secret, and secrets are never stored: name something else, \
             or use the token's name (token)"
                .into(),
        ),
        (
            "{query:token}",
            "KEY uses {query:token}, which is a secret, and secrets are never stored: name something else, or \
             use the token's name (token)"
                .into(),
        ),
        (
            "{query:}",
            "KEY uses {query:}, which names no query parameter: write its name, such as query:tenant".into(),
        ),
        ("{query:a|/}", "the default \"/\" in KEY would be changed: write \"_\"".into()),
        ("{token|}", "the default \"\" in KEY would be changed: write \"unknown\"".into()),
        ("{token:x}", "{token:x} in KEY has the wrong form: write {token} or {token|default}".into()),
        (&crowded, "KEY uses {query:16}, one more value of requests than the 16 allowed: remove some".into()),
        ("{field:/a|}", "the default \"\" in KEY would be changed: write \"unknown\"".into()),
        ("{field:/a|b/c}", "the default \"b/c\" in KEY would be changed: write \"b_c\"".into()),
        ("{field:/a|..}", "the default \"..\" in KEY would be changed: write \"__\"".into()),
        (&wide, wide_error),
        (
            "/{seq}",
            "KEY has an empty part: write single slashes, and none at its start or end".into(),
        ),
        (
            "{seq}/",
            "KEY has an empty part: write single slashes, and none at its start or end".into(),
        ),
        (
            "a//{seq}",
            "KEY has an empty part: write single slashes, and none at its start or end".into(),
        ),
        (
            "{date:%Y//%m}",
            "KEY has an empty part: write single slashes, and none at its start or end".into(),
        ),
        ("a/../{seq}", "KEY has a part .., which clients resolve: write the path out".into()),
        ("./{seq}", "KEY has a part ., which clients resolve: write the path out".into()),
        (
            ".millrace-tmp/{seq}",
            "KEY begins in .millrace-tmp, where a file: store holds incomplete files: begin with \
             another name"
                .into(),
        ),
        (
            &"{field:/a}".repeat(33),
            "KEY has a part with 33 fields, more than 32: write a / between some, or remove some"
                .into(),
        ),
        ("a\0{seq}", "KEY contains '\\0', which stores or their clients change: remove it".into()),
        ("a\n{seq}", "KEY contains '\\n', which stores or their clients change: remove it".into()),
        ("a\\{seq}", "KEY contains '\\\\', which stores or their clients change: remove it".into()),
    ] {
        let error = KeyTemplate::parse(key, None).unwrap_err();
        assert_eq!(error.to_string(), expected, "{key}");
        assert_eq!(error.setting(), "KEY");
    }
}

#[test]
fn bad_event_times_are_refused_by_name() {
    let deep = "/a".repeat(128);
    for (key, event_time, expected) in [
        ("{hour}", "ts", "\"ts\" in EVENT_TIME is not a JSON pointer: write /ts, or received_at for the time of receipt".into()),
        ("{hour}", "", "\"\" in EVENT_TIME is not a JSON pointer: write /, or received_at for the time of receipt".into()),
        (
            "{seq}",
            "/ts",
            "EVENT_TIME is \"/ts\", but KEY contains no time: add {date:…} or {hour}".into(),
        ),
        (
            "{hour}",
            &deep,
            format!(
                "{deep:?} in EVENT_TIME is not a JSON pointer: write at most 127 names, because payloads nest no deeper"
            ),
        ),
        ("{hour}", &"/".repeat(1025), "EVENT_TIME is 1025 bytes long: write at most 1024".into()),
    ] {
        let error = KeyTemplate::parse(key, Some(event_time)).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.setting(), "EVENT_TIME");
    }
    assert!(KeyTemplate::parse("{hour}", Some(&"/a".repeat(127))).is_ok());
    let sixteen: String = (0..16).map(|i| format!("{{field:/{i}}}")).collect();
    assert!(KeyTemplate::parse(&format!("{sixteen}{{hour}}{{field:/3}}"), Some("/7")).is_ok());
    let error = KeyTemplate::parse(&format!("{sixteen}{{hour}}"), Some("/ts")).unwrap_err();
    let expected = "EVENT_TIME uses field \"/ts\", one more than the 16 allowed: remove some";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn what_could_name_two_objects_alike_is_refused_by_name() {
    let why = ", because with a fixed NODE_ID only the clock differs after a restart";
    let missing = |ids: &str, why: &str| {
        Some(format!("KEY has no {ids}, so two objects could share a key: add {ids}{why}"))
    };
    let blurred = |a: &str, b: &str| {
        Some(format!(
            "{{{a}}} and {{{b}}} run together in KEY, so two objects could share a key: write a / between them"
        ))
    };
    for (template, random, fixed) in [
        (DEFAULT_PAYLOAD, None, None),
        (DEFAULT_BATCH, None, None),
        ("{hash:2}/{node}/{core}/{seq}", None, missing("{unix_nanos}", why)),
        ("{node}-{core}-{seq}-{unix_ms}.{ext}", None, None),
        ("tenant={field:/t}/{date:%Y%m%d}/{unix_ms}-{node}-{core}-{seq}.json.gz", None, None),
        ("{seq}-{core}", missing("{node}", ""), missing("{node} and {unix_nanos}", why)),
        (
            "{ext}",
            missing("{node} and {core} and {seq}", ""),
            missing("{node} and {core} and {seq} and {unix_nanos}", why),
        ),
        ("{node}-{core}{seq}/{unix_ms}", blurred("core", "seq"), blurred("node", "core")),
        ("{node}-{core}0{seq}/{unix_ms}", blurred("core", "seq"), blurred("node", "core")),
        ("{node}{core}-{seq}/{unix_ms}", None, blurred("node", "core")),
        ("{seq}{hash:2}-{unix_ms}{hour}-{core}/{node}", None, None),
        ("{field:/t}-{node}/{core}/{seq}/{unix_ms}", None, blurred("node", "field:/t")),
        ("{node}-{core}-{field:/t}-{seq}/{unix_ms}", None, blurred("node", "core")),
        ("{node}/{core}-{field:/t}-{seq}/{unix_ms}", None, None),
        (
            "{version}{seq}/{node}/{core}/{unix_ms}",
            blurred("seq", "version"),
            blurred("seq", "version"),
        ),
        ("{version}{seq}/{node}/{core}/{seq}/{unix_ms}", None, None),
        ("{version}-{unix_ms}{count}/{node}/{core}/{seq}", None, blurred("unix_ms", "count")),
        ("{field:/a}-{unix_ms}{field:/b}/{unix_nanos}/{node}/{core}/{seq}", None, None),
        ("{unix_ms}-{node}/{core}/{seq}{ext}", blurred("seq", "ext"), blurred("seq", "ext")),
    ] {
        let template = parse(template);
        let error = |random| template.check_unique(random).err().map(|why| why.to_string());
        assert_eq!(error(true), random, "{}", template.key);
        assert_eq!(error(false), fixed, "{}", template.key);
    }
}

#[test]
fn the_longest_key_is_as_long_as_said() {
    let key = "{unix_nanos}{unix_ms}{date:%Y%m%d%j%H%M%S}/{hour}{node}{core}{seq}{count}.{ext}{hash:8}\
               {version}-{field:/a}";
    let template = parse(key);
    let wide = "x".repeat(300);
    let mut partition = Partition::default();
    let payload = format!("{{\"a\":{wide:?}}}");
    let _ = template.write_partition(
        payload.as_bytes(),
        &RequestValues::of_version(&wide),
        0,
        &mut partition,
    );
    let last = u64::MAX;
    let mut key = String::new();
    let widest =
        KeyOf { unix_nanos: last, seq: last, count: last, core: 1023, ..of(partition.text()) };
    template.write_key(&widest, &mut key);
    assert_eq!(key.len(), template.longest("host-1".len(), "ndjson.gz".len()));
}

/// A table over templates: which parts may get too long, and what is left of long values then.
#[test]
fn values_that_do_not_fit_together_are_cut_to_a_share_and_end_with_a_hash() {
    let name = |template: &str, a: &str, b: &str| {
        let payload = serde_json::json!({ "a": a, "b": b }).to_string();
        key(template, &payload)
    };
    let x = |n: usize| "x".repeat(n);
    let y = |n: usize| "y".repeat(n);
    // All that fits is left as it is, also next to what is long by itself.
    for (template, a, b) in [
        ("{field:/a}/{field:/b}/{seq}", x(128), y(128)),
        ("{field:/a}{field:/b}/{seq}", x(127), y(128)),
        ("{field:/a}-{field:/b}/{seq}", x(126), y(128)),
        ("{field:/a}-{field:/b}/{seq}", x(1), y(128)),
        ("{field:/a}{field:/b}-{unix_nanos}-{node}-{core}-{seq}.{ext}", x(64), y(64)),
    ] {
        let rest = key(&template.replace("{field:/a}", &a).replace("{field:/b}", &b), "7");
        assert_eq!(name(template, &a, &b), rest, "{template}");
    }
    // What does not is cut; the room is the same for every node and number.
    for (template, a, b, expected) in [
        ("{field:/a}{field:/b}/{seq}", x(128), y(128), format!("{}{}-", x(119), y(119))),
        ("{field:/a}-{field:/b}/{seq}", x(127), y(128), format!("{}-{}-", x(118), y(118))),
        ("{field:/a}-{field:/b}/{seq}", x(128), y(127), format!("{}-{}-", x(118), y(118))),
        (
            "{field:/a}{field:/b}{field:/a}/{seq}",
            x(128),
            y(5),
            format!("{}{}{}-", x(116), y(5), x(116)),
        ),
        (
            "{unix_nanos}-{node}-{core}-{seq}-{field:/a}{field:/b}.{ext}",
            x(128),
            y(128),
            format!("1763755200000000000-host-1-3-42-{}{}-", x(57), y(57)),
        ),
        (
            "{field:/a}--{field:/b}/{seq}",
            "日".repeat(42),
            "é".repeat(64),
            format!("{}--{}-", "日".repeat(39), "é".repeat(59)),
        ),
    ] {
        let cut = name(template, &a, &b);
        assert!(cut.starts_with(&expected), "{template}: {cut}");
        assert!(cut.split('/').all(|part| part.len() <= 255), "{cut}");
        // Whatever is different keeps another name, and the same keeps the same.
        assert_eq!(name(template, &a, &b), cut);
        let others =
            [(x(128) + "x", b.clone()), (a.clone(), b.clone() + "y"), (b.clone(), a.clone())];
        let names: BTreeSet<String> = others.iter().map(|(a, b)| name(template, a, b)).collect();
        assert!(names.len() == 3 && !names.contains(&cut), "{template}: {names:?}");
    }
}

#[test]
fn no_key_begins_in_the_temporary_directory() {
    for (template, a, expected) in [
        ("{field:/a}/{seq}", ".millrace-tmp", "_millrace-tmp/42"),
        ("{field:/a}", ".millrace-tmp", "_millrace-tmp"),
        ("{field:/a}{field:/b|p}/{seq}", ".millrace-tm", "_millrace-tmp/42"),
        (".{field:/a}/{seq}", "millrace-tmp", "_millrace-tmp/42"),
        (".millrace-{field:/a}/{seq}", "tmp", "_millrace-tmp/42"),
        ("{field:/none|.millrace-tmp}/{seq}", "", "_millrace-tmp/42"),
        // Everything else is as it was sent.
        ("{field:/a}/{seq}", ".millrace-tmp2", ".millrace-tmp2/42"),
        ("{field:/a}/{seq}", ".millrace-tm", ".millrace-tm/42"),
        ("{field:/a}/{seq}", ".Millrace-tmp", ".Millrace-tmp/42"),
        ("{field:/a}{seq}", ".millrace-tmp", ".millrace-tmp42"),
        ("x/{field:/a}/{seq}", ".millrace-tmp", "x/.millrace-tmp/42"),
    ] {
        let payload = format!("{{\"a\":{a:?}}}");
        assert_eq!(key(template, &payload), expected, "{template}");
    }
    let version = render(&parse("{version}/{seq}"), "7", Some(".millrace-tmp")).1;
    assert_eq!(version, "_millrace-tmp/42");
}

#[test]
fn a_template_knows_which_directories_its_keys_can_lie_in() {
    for (template, inside, outside) in [
        ("{seq}", &[][..], &["x", "x/y"][..]),
        ("{field:/a}/{seq}", &["x"], &["x/y"]),
        ("a/{field:/a}/{seq}", &["a", "a/x"], &["b", "b/x", "a/x/y"]),
        ("{version}-x/{date:%Y/%m}/{seq}", &["a-x"], &["x", "a-x/2025"]),
        ("{date:%Y}/{node}/{seq}", &[], &["2025", "x"]),
        (
            "t={field:/a}-{version}.d/{seq}",
            &["t=x.d", "t=-.d"],
            &["x", "t=x", "xt=x.d", "t=.", "x.d"],
        ),
        ("{hash:1}t{field:/a}/{seq}", &["0tx", "x"], &[]),
    ] {
        let lies = |names: &&str| {
            let names: Vec<&str> = names.split('/').collect();
            parse(template).can_lie_in(names.into_iter())
        };
        assert!(inside.iter().all(lies) && !outside.iter().any(lies), "{template}");
    }
}

#[test]
fn keys_that_no_file_can_have_are_changed_and_others_are_not() {
    let stamp = "1763755200000000000-host-1-3-42.ndjson.gz";
    for good in ["a", stamp, "x/.millrace-tmp/y", ".millrace-tmpx/y", &"é".repeat(127)] {
        assert_eq!(as_file_name(good), good);
    }
    assert_eq!(as_file_name(&format!(".millrace-tmp/{stamp}")), format!("_millrace-tmp/{stamp}"));
    assert_eq!(as_file_name(".millrace-tmp"), "_millrace-tmp");
    for long in ["x".repeat(256), "é".repeat(128), "日".repeat(300), "😀".repeat(200)] {
        for key in
            [format!("{long}/{stamp}"), format!("a/{long}-{stamp}"), format!("{long}/{long}")]
        {
            let fitted = as_file_name(&key);
            assert!(fitted.split('/').all(|part| part.len() <= 255), "{fitted}");
            assert_eq!(key.split('/').count(), fitted.split('/').count());
            assert!(fitted.ends_with(&key[key.ceil_char_boundary(key.len() - 100)..]), "{fitted}");
            assert_eq!(as_file_name(&fitted), fitted);
            assert_ne!(
                as_file_name(&format!("{long}x/{stamp}")),
                as_file_name(&format!("{long}y/{stamp}"))
            );
        }
    }
}

#[test]
fn payloads_name_directories_in_places_that_are_known() {
    for (template, above) in [
        ("{seq}", None),
        ("{field:/a}-{seq}", None),
        ("a/{field:/a}-{seq}", None),
        ("{field:/a}/{seq}", Some(vec![])),
        ("a/b/x{version}/{field:/a}/{seq}", Some(vec!["a", "b"])),
        ("{date:%Y}/{field:/a}/{seq}", None),
        ("a/{node}/{seq}", None),
    ] {
        let above = above.map(|names| names.into_iter().map(String::from).collect());
        assert_eq!(parse(template).above_values(), above, "{template}");
    }
}

#[test]
fn what_depends_on_the_payload_partitions() {
    let event = |key| KeyTemplate::parse(key, Some("/ts")).unwrap();
    assert!(!parse("{hash:4}{date:%Y}{hour}{node}{core}{seq}{count}{ext}").is_partitioned());
    assert!(
        parse("{version}").is_partitioned()
            && parse("{version}").request_sources() == [RequestSource::Version]
    );
    assert!(
        parse("{field:/a}").is_partitioned() && parse("{field:/a}").request_sources().is_empty()
    );
    assert!(event("{hour}").is_partitioned() && event("{date:%Y}").is_partitioned());
    assert_eq!(event("{hour}").texts(), ("{hour}", Some("/ts")));
}

#[test]
fn event_time_dates_the_key_and_the_opening_stamps_it() {
    let template = "dt={date:%Y-%m-%d}/hour={hour}/{unix_nanos}-{node}-{core}-{seq}.{ext}";
    let template = KeyTemplate::parse(template, Some("/at/ts")).unwrap();
    let mut partition = Partition::default();
    let mut key = String::new();
    let rest = "/1763755200000000000-host-1-3-42.ndjson.gz";
    for (payload, day, source) in [
        (r#"{"at":{"ts":1763751600}}"#, "dt=2025-11-21/hour=19", EventTime::Read),
        (r#"{"at":{"ts":"2024-02-29T23:59:59-01:00"}}"#, "dt=2024-03-01/hour=00", EventTime::Read),
        (r#"{"at":{"ts":"2024-03-01T00:59:59Z"}}"#, "dt=2024-03-01/hour=00", EventTime::Read),
        (r#"{"at":{"ts":null}}"#, "dt=2025-11-21/hour=22", EventTime::Unreadable),
        (r#"{"at":{"ts":-5}}"#, "dt=2025-11-21/hour=22", EventTime::Unreadable),
        ("7", "dt=2025-11-21/hour=22", EventTime::Unreadable),
    ] {
        let came = EVENING + 2 * HOUR;
        let from = template.write_partition(
            payload.as_bytes(),
            &RequestValues::default(),
            came,
            &mut partition,
        );
        assert_eq!(from, source, "{payload}");
        template.write_key(&of(partition.text()), &mut key);
        assert_eq!(key, format!("{day}{rest}"), "{payload}");
    }
    let from =
        parse("{field:/a}").write_partition(b"{}", &RequestValues::default(), 0, &mut partition);
    assert_eq!(from, EventTime::NotAsked);
}

#[test]
fn the_last_of_equal_names_counts_and_no_object_has_no_fields() {
    for (payload, expected) in [
        (r#"{"a":1,"a":2}"#, "2-none-none"),
        (r#"{"a":1,"\u0061":2}"#, "2-none-none"),
        (r#"{"b":{"c":1},"b":{"d":2}}"#, "none-none-none"),
        (r#"{"b":{"c":1},"b":3}"#, "none-none-none"),
        (r#"{"b":{"c":1,"c":2}}"#, "none-2-none"),
        (r#"{ "x":[{"a":"}"}, "]\"", {}], "b" : [0, {"e":true}] , "a":1e400 }"#, "1e400-none-true"),
        ("7", "none-none-none"),
        ("\"a\"", "none-none-none"),
        ("[{\"a\":1}]", "none-none-none"),
        ("{\"a\":1,\"b\":", "1-none-none"),
        ("", "none-none-none"),
    ] {
        let template = "{field:/a|none}-{field:/b/c|none}-{field:/b/1/e|none}";
        assert_eq!(key(template, payload), expected, "{payload}");
    }
}

#[test]
fn nesting_that_is_not_asked_for_costs_no_stack() {
    let (open, close) = ("[{\"a\":".repeat(1_000_000), "}]".repeat(1_000_000));
    assert_eq!(key("{field:/a}", &format!("{{\"x\":{open}0{close},\"a\":1}}")), "1");
}

const HASHES: [(&str, &str); 3] =
    [("x", "06a4f950"), ("a/b.json", "795e07aa"), ("Zoë", "3f8a1b87")];

#[test]
fn the_hash_is_fnv_1a_stirred_by_fmix64() {
    // Worked out apart from this program.
    for (rest, hash) in HASHES {
        assert_eq!(key(&format!("{{hash:8}}{rest}"), "{}"), format!("{hash}{rest}"));
        assert_eq!(key(&format!("{rest}{{hash:3}}"), "{}"), format!("{rest}{}", &hash[..3]));
    }
    let (rest, hash) = (
        "a/1763755200000000000-host-1-3-42",
        &key("{hash:8}a/{unix_nanos}-{node}-{core}-{seq}", "7"),
    );
    assert_eq!(hash[8..], *rest);
    assert_eq!(key(&format!("{{hash:8}}{rest}"), "7"), *hash);
}

#[test]
fn hashes_of_consecutive_objects_spread_evenly() {
    for template in
        ["{hash:2}/{node}-{core}-{seq}", "{hash:2}/{seq}-{node}-{core}.json", "{hash:2}{seq}"]
    {
        let template = parse(template);
        let mut key = String::new();
        let mut objects = HashMap::<String, usize>::new();
        for seq in 0..25_600 {
            template.write_key(&KeyOf { seq, ..of("") }, &mut key);
            *objects.entry(key[..2].into()).or_default() += 1;
        }
        assert_eq!(objects.len(), 256);
        // 100 each, give or take five standard deviations.
        let uneven = objects.iter().find(|(_, n)| !(50..=150).contains(*n));
        assert_eq!(uneven, None, "{}", template.key);
    }
}

/// JSON as text, which may name a member twice.
#[derive(Clone, Debug)]
enum Json {
    Plain(&'static str),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

const NAMES: [&str; 11] = ["a", "b", "0", "1", "01", "-", "", "a/b", "m~n", "ä\u{1F600}", "\"\\\n"];

const PLAIN: [&str; 7] = ["null", "true", "false", "0", "-0.5", "1E3", "12345678901234567890123"];

fn json() -> impl Strategy<Value = Json> {
    let leaf =
        prop_oneof![select(&PLAIN[..]).prop_map(Json::Plain), any::<String>().prop_map(Json::Text)];
    leaf.prop_recursive(5, 60, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Json::Array),
            vec((select(&NAMES[..]).prop_map(String::from), inner), 0..6).prop_map(Json::Object),
        ]
    })
}

/// `style` is a run of small choices: space, and which characters are escaped.
fn write_json(json: &Json, style: &mut impl Iterator<Item = u8>, out: &mut String) {
    let mut space = |out: &mut String| {
        out.push_str(["", "", " ", "\n\t\r "][style.next().unwrap() as usize % 4])
    };
    space(out);
    match json {
        Json::Plain(text) => out.push_str(text),
        Json::Text(text) => write_string(text, style, out),
        Json::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { "," });
                write_json(item, style, out);
            }
            out.push(']');
        }
        Json::Object(members) => {
            out.push('{');
            for (i, (name, member)) in members.iter().enumerate() {
                out.push_str(if i == 0 { " " } else { " ,\n" });
                write_string(name, style, out);
                out.push_str(" :");
                write_json(member, style, out);
            }
            out.push('}');
        }
    }
    out.push(' ');
}

fn write_string(text: &str, style: &mut impl Iterator<Item = u8>, out: &mut String) {
    let every = style.next().unwrap();
    out.push('"');
    for (i, char) in text.chars().enumerate() {
        if every < 85 && i % 2 == 0 {
            for unit in char.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04X}"));
            }
        } else {
            let quoted = serde_json::to_string(&char).unwrap();
            out.push_str(&quoted[1..quoted.len() - 1]);
        }
    }
    out.push('"');
}

fn pointer() -> impl Strategy<Value = String> {
    vec(select(&NAMES[..]), 1..5).prop_map(|names| {
        let escaped = |name: &&str| format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        names.iter().map(escaped).collect()
    })
}

/// Every pointer there is into it, so that not only misses are tried; into members that do not
/// count, too.
fn pointers_into(json: &Json, at: &str, into: &mut Vec<String>) {
    let mut step = |name: &str, json: &Json| {
        let at = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        into.push(at.clone());
        pointers_into(json, &at, into);
    };
    match json {
        Json::Object(members) => members.iter().for_each(|(name, json)| step(name, json)),
        Json::Array(items) => {
            items.iter().enumerate().for_each(|(i, json)| step(&i.to_string(), json));
        }
        _ => {}
    }
}

/// What may stand between ids: marks that keep them apart, and parts that they run together with.
const BETWEEN: [&str; 15] = [
    "-",
    "-",
    "/",
    "/",
    ".",
    "",
    "1",
    "-{count}-",
    "-{field:/a}-",
    "-{header:x-a}{query:b}-",
    "/{field:/a}{version}-",
    "{hour}-",
    "{hash:1}",
    "{ext}-",
    ".{ext}/",
];

fn template() -> impl Strategy<Value = String> {
    let ids = Just(["{node}", "{core}", "{seq}", "{unix_ms}"].to_vec()).prop_shuffle();
    (ids, vec(select(&BETWEEN[..]), 3), select(vec!["", "{ext}", ".{ext}", "{count}"])).prop_map(
        |(ids, between, end)| {
            let pairs = ids.iter().zip(between.iter().chain([&end]));
            pairs.map(|(id, between)| format!("{id}{between}")).collect()
        },
    )
}

/// Every key of a few cores and restarts, as hostile as names and values may be, by what it is the
/// key of.
fn assert_no_two_alike(template: &KeyTemplate, nodes: &[&str]) {
    let mut seen = HashMap::new();
    let (mut key, mut partition) = (String::new(), Partition::default());
    for value in ["1", "-1", "1-1", "x.ndjson", "json"] {
        let payload = format!("{{\"a\":{value:?}}}");
        let _ = template.write_partition(
            payload.as_bytes(),
            &RequestValues::of_version(value),
            0,
            &mut partition,
        );
        for node in nodes {
            for (core, seq) in [(1, 1), (1, 11), (11, 1), (11, 11), (1, 111), (111, 1)] {
                for unix_nanos in [1_000_000, 11_000_000, 111_000_000] {
                    for (count, ext) in [(1, "json"), (11, "json"), (1, "ndjson"), (11, "ndjson")] {
                        let partition = partition.text();
                        let of = KeyOf { partition, unix_nanos, node, core, seq, count, ext };
                        template.write_key(&of, &mut key);
                        // With a random node a restart is another node, and the clock need not
                        // tell.
                        let start = if nodes.len() > 3 { unix_nanos } else { 0 };
                        let id = (*node, core, seq, start);
                        let before = *seen.entry(key.clone()).or_insert(id);
                        assert_eq!(before, id, "{} renders {key} for both", template.key);
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn fields_are_what_serde_jsons_pointer_finds(
        json in json(),
        style in vec(any::<u8>(), 1..20),
        mut pointers in vec(pointer(), 1..6),
        hits in vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let mut text = String::new();
        write_json(&json, &mut style.iter().copied().cycle(), &mut text);
        let value: Value = serde_json::from_str(&text).unwrap();
        let mut into = Vec::new();
        pointers_into(&json, "", &mut into);
        if !into.is_empty() {
            pointers.extend(hits.iter().map(|hit| hit.get(&into).clone()));
        }
        let mut fields = PayloadFields::default();
        let slots: Vec<usize> = pointers.iter().map(|pointer| fields.add(pointer).unwrap()).collect();
        let found = fields.find(text.as_bytes());
        for (pointer, slot) in pointers.iter().zip(slots) {
            let raw = found.raw(slot);
            let read = (!raw.is_empty()).then(|| serde_json::from_slice::<Value>(raw).unwrap());
            prop_assert_eq!(read.as_ref(), value.pointer(pointer), "{} in {}", pointer, &text);
        }
    }

    #[test]
    fn no_bytes_make_a_search_panic_or_hang(
        bytes in vec(select(&b"{}[]\":,\\ua0 \xff"[..]), 0..40),
        pointers in vec(pointer(), 1..6),
    ) {
        let mut fields = PayloadFields::default();
        pointers.iter().for_each(|pointer| { fields.add(pointer).unwrap(); });
        fields.find(&bytes);
    }

    #[test]
    fn values_neither_add_nor_remove_components(a: String, b: String, version: String) {
        let template = parse("tenant={field:/a}/{version}/.{field:/b}{field:/a}/x{node}-{core}-{seq}");
        let payload = serde_json::json!({ "a": a, "b": b }).to_string();
        let (_, key) = render(&template, &payload, Some(&version));
        let parts: Vec<&str> = key.split('/').collect();
        prop_assert_eq!(parts.len(), 4);
        prop_assert!(parts.iter().all(|part| !part.is_empty() && *part != "." && *part != ".."));
        prop_assert!(!key.contains(|c: char| c.is_control() || c == '\\'));
        prop_assert!(key.len() <= template.longest(6, 0));
        let again = render(&template, &payload, Some(&version)).1;
        prop_assert_eq!(again, key);
    }

    #[test]
    fn equal_partitions_are_equal_parts_of_the_key(
        values in vec((select(vec!["", "a", "b", "a/b", "a_b", "ab", "\u{1f}", "_"]), 0..3_u64), 6..7),
    ) {
        let template = "{field:/a}/{field:/b}/{version}/{hour}/{seq}";
        let template = KeyTemplate::parse(template, Some("/ts")).unwrap();
        let rendered = |values: &[(&str, u64)]| {
            let payload = serde_json::json!({ "a": values[0].0, "b": values[1].0, "ts": values[0].1 * 3600 });
            render(&template, &payload.to_string(), Some(values[2].0))
        };
        let ((partition, key), (other_partition, other_key)) = (rendered(&values[..3]), rendered(&values[3..]));
        prop_assert_eq!(partition == other_partition, key == other_key);
    }

    #[test]
    fn templates_that_pass_name_no_two_objects_alike(text in template()) {
        // Refused are those with two hashes.
        let template = KeyTemplate::parse(&text, None);
        prop_assume!(template.is_ok());
        let template = template.unwrap();
        if template.check_unique(false).is_ok() {
            assert_no_two_alike(&template, &["1", "a", "a-1", "1-1", "11", "1.ndjson", "x", "xnd"]);
        }
        if template.check_unique(true).is_ok() {
            assert_no_two_alike(&template, &["0123456789abcdef", "1111111111111111", "1111111111111110"]);
        }
    }
}

#[test]
fn enough_templates_pass_for_that_to_mean_something() {
    let ids = ["{node}", "{core}", "{seq}", "{unix_ms}"];
    let marks = ["", "-", "/", "1", "-{field:/a}-", "{hash:1}", "-{count}", "{ext}/"];
    let mut passed = BTreeSet::new();
    let mut tried = 0;
    for order in 0..256 {
        let at = |i: usize| order >> (2 * i) & 3;
        if (0..4).map(at).collect::<BTreeSet<_>>().len() < 4 {
            continue;
        }
        for between in 0..marks.len().pow(3) {
            let mark = |i: u32| marks[between / marks.len().pow(i) % marks.len()];
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| ids[at(i)]);
            let text = format!("{a}{}{b}{}{c}{}{d}", mark(0), mark(1), mark(2));
            let Ok(template) = KeyTemplate::parse(&text, None) else { continue };
            tried += 1;
            if template.check_unique(false).is_ok() && passed.insert(text) {
                assert_no_two_alike(
                    &template,
                    &["1", "a", "a-1", "1-1", "a-1-1", "11", "x", "xnd"],
                );
            }
        }
    }
    assert!(passed.len() > 200 && passed.len() < tried / 2, "{} of {tried}", passed.len());
}
