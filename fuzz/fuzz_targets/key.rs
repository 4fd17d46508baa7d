//! Key templates and the keys they render: a template is refused or parsed without a panic, and
//! whatever a request or payload holds, its keys
//!
//! - are no longer than the template says, as a whole and between two slashes,
//! - have the same number of components, none of them empty, `.` or `..`, and no character that
//!   stores change,
//! - are the same each time, and differ for different numbers if the template promises so.
//!
//! How to run it is said in `segment.rs`; this target is called `key`.
//!
//! The lines of an input are `KEY`, `EVENT_TIME` (empty: not set), the value of every header, query
//! parameter and version, and the payload.

#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace::internals::key::{KeyOf, KeyTemplate, Partition, RequestValuesWriter};
use serde_json::value::RawValue;

const NODE: &str = "node-1";
const EXT: &str = "ndjson.zst";

fuzz_target!(|input: &[u8]| {
    let Ok(text) = str::from_utf8(input) else { return };
    let mut lines = text.splitn(4, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (key, event_time, value, payload) = (next(), next(), next(), next());
    let event_time = Some(event_time).filter(|text| !text.is_empty());
    let template = match KeyTemplate::parse(key, event_time) {
        Ok(template) => template,
        Err(why) => {
            assert!(!why.to_string().is_empty() && !why.setting().is_empty());
            return;
        }
    };
    let again = KeyTemplate::of_text(&template.text()).expect("its own text");
    assert_eq!(again.texts(), template.texts());
    let mut values = RequestValuesWriter::default();
    template.request_sources().iter().for_each(|source| values.add(*source, value));
    let values = values.finish();
    let payload = match serde_json::from_str::<&RawValue>(payload) {
        Ok(payload) => payload.get(),
        Err(_) => "{}",
    };
    let mut partition = Partition::default();
    let mut render = |seq: u64, core: usize| {
        let time = 1_700_000_000_000_000_000;
        let _ = template.write_partition(payload.as_bytes(), &values, time, &mut partition);
        let of = KeyOf {
            partition: partition.text(),
            unix_nanos: time,
            node: NODE,
            core,
            seq,
            count: 3,
            ext: EXT,
        };
        let mut key = String::from("what was there before");
        template.write_key(&of, &mut key);
        key
    };
    let key = render(7, 1);
    assert_eq!(render(7, 1), key);
    assert!(key.len() <= template.longest(NODE.len(), EXT.len()), "{key:?}");
    let parts: Vec<&str> = key.split('/').collect();
    let longest = template.longest_part(NODE.len(), EXT.len());
    for part in &parts {
        assert!(!matches!(*part, "" | "." | ".."), "{key:?}");
        assert!(part.len() <= longest, "{key:?}");
    }
    assert!(!key.contains(|c: char| c.is_control() || c == '\\'), "{key:?}");
    assert_eq!(parts.len(), plain_key(&template).split('/').count(), "{key:?}");
    if template.check_unique(true).is_ok() {
        for (seq, core) in [(77, 1), (7, 11), (71, 7), (17, 1)] {
            assert_ne!(render(seq, core), key, "{seq} {core}");
        }
    }
});

/// The key of a payload that has nothing.
fn plain_key(template: &KeyTemplate) -> String {
    let mut partition = Partition::default();
    let _ = template.write_partition(b"{}", &Default::default(), 0, &mut partition);
    let mut key = String::new();
    let partition = partition.text();
    let of = KeyOf { partition, unix_nanos: 0, node: "n", core: 0, seq: 0, count: 1, ext: "json" };
    template.write_key(&of, &mut key);
    key
}
