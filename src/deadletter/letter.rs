//! The description of a dead object. Members added after the first version are omitted at their
//! default, so the dead letter of one plain payload has the same text as in the first version.

use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::coding::Coding;
use crate::rt;
use crate::store::Object;

/// What is known about one dead object: the content of the JSON file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The object key, relative to the store's prefix; a replay stores it under the same key.
    pub key: String,
    /// The store for which it was recorded, as configured.
    pub store: String,
    /// The last failure, `code: message`.
    pub error: String,
    /// Number of puts attempted.
    pub attempts: u32,
    /// When the last attempt was abandoned, seconds since 1970.
    pub unix_seconds: u64,
    /// Size of the object.
    pub bytes: u64,
    /// Number of payloads in the object; omitted if it is one.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub payloads: u64,
    /// How it is compressed, if the object has `content-encoding`; a replay sends the same header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<Coding>,
    /// The trace contexts (`traceparent`) of the requests that its payloads came in, as far as they
    /// had some; of a batch the first [`TRACES_MAX`] different ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traceparents: Vec<String>,
}

/// Most trace contexts of one dead letter.
pub const TRACES_MAX: usize = 16;

impl DeadLetter {
    /// The dead letter of `object`, which contains `payloads` payloads and is abandoned now.
    pub fn now(
        object: &Object<'_>,
        payloads: u64,
        store: String,
        error: String,
        attempts: u32,
    ) -> DeadLetter {
        let since_epoch = rt::wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
        DeadLetter {
            key: object.key.to_owned(),
            store,
            error,
            attempts,
            unix_seconds: since_epoch.as_secs(),
            bytes: object.bytes(),
            payloads,
            content_encoding: object.coding,
            traceparents: Vec::new(),
        }
    }

    /// With the trace contexts of its payloads' requests.
    #[must_use]
    pub fn traced<'a>(self, traces: impl Iterator<Item = &'a str>) -> DeadLetter {
        DeadLetter { traceparents: traces.take(TRACES_MAX).map(str::to_owned).collect(), ..self }
    }
}

fn one() -> u64 {
    1
}

fn is_one(payloads: &u64) -> bool {
    *payloads == 1
}

/// As they were before there were objects of more than one payload.
#[cfg(test)]
pub(super) const OLD: &str = r#"{"key":"a.json","store":"null:","error":"Code: message","attempts":3,"unix_seconds":1700000000,"bytes":2}"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::job::Payload;

    #[test]
    fn a_letter_of_one_plain_payload_reads_and_writes_as_ever() {
        let read: DeadLetter = serde_json::from_str(OLD).unwrap();
        assert_eq!((read.payloads, read.content_encoding), (1, None));
        assert_eq!(serde_json::to_string(&read).unwrap(), OLD);
        let payload = Payload::from(b"{}".to_vec());
        let object = Object::of("a.json", &payload);
        let now = DeadLetter::now(&object, 1, "null:".into(), "Code: message".into(), 3);
        assert_eq!(DeadLetter { unix_seconds: 1_700_000_000, ..now }, read);
    }

    #[test]
    fn many_payloads_and_a_coding_come_back() {
        let body = [b"12".to_vec(), b"345".to_vec()].map(Payload::from);
        let coding = Some(Coding::Gzip);
        let object = Object { key: "k", body: &body, coding, sums: None };
        let letter = DeadLetter::now(&object, 0, "null:".into(), "e".into(), 3);
        assert_eq!((letter.bytes, letter.content_encoding), (5, coding));
        for payloads in [0, 2] {
            let letter =
                DeadLetter { payloads, ..letter.clone() }.traced(["00-1", "00-2"].into_iter());
            let json = serde_json::to_string(&letter).unwrap();
            assert_eq!(serde_json::from_str::<DeadLetter>(&json).unwrap(), letter, "{json}");
        }
    }
}
