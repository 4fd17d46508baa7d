//! The names of objects: the template `KEY`, parsed once, and what it renders for payloads and batches. No I/O, no clock.
//!
//! A key is rendered in two steps. [`KeyTemplate::write_partition`] takes from a payload, its request's version and its
//! event time what the template asks for: payloads of equal text may share an object. [`KeyTemplate::write_key`] then
//! puts that text, the core's names and the object's numbers together. Neither allocates once its buffers have grown.
//!
//! Refused at start is what could name two objects alike ([`KeyTemplate::check_unique`]), and what clients, gateways or
//! file systems on the way rewrite (`//`, `.`, `..`, control characters). What comes out of a payload is made safe
//! instead (see `value`): it is one part of a path component, and neither adds nor removes one.

mod event_time;
mod fields;
mod parse;
mod unique;
mod value;

#[cfg(test)]
mod tests;

use event_time::{Calendar, TimePart};
use fields::Fields;
pub use parse::KeyError;
pub use value::VALUE_BYTES_MAX;

/// One object per payload.
pub const DEFAULT_PAYLOAD: &str = "{unix_nanos}-{node}-{core}-{seq}.json";
/// Batches.
pub const DEFAULT_BATCH: &str = "{unix_nanos}-{node}-{core}-{seq}.{ext}";

/// What a missing field, or the version of a request without one, is called.
const UNKNOWN: &str = "unknown";

/// Stands behind every value of a partition's text; no value holds a control character.
const VALUE_END: char = '\u{1f}';

/// A parsed `KEY` with its `EVENT_TIME`.
#[derive(Clone, Debug)]
pub struct KeyTemplate {
    key: String,
    event_time: Option<String>,
    parts: Vec<Part>,
    fields: Fields,
    /// Where `fields` notes the event time.
    event_time_slot: Option<usize>,
}

/// One placeholder, or the text between two. A `{date:…}` is as many parts as its format has.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    UnixNanos,
    UnixMs,
    Time(TimePart),
    Node,
    Core,
    Seq,
    Count,
    Ext,
    /// This many hex digits.
    Hash(usize),
    Version,
    Field {
        pointer: String,
        slot: usize,
        default: String,
    },
}

/// What one object's key is made of.
#[derive(Clone, Copy, Debug)]
pub struct KeyOf<'a> {
    /// [`Partition::text`] of any of its payloads, by the same template; empty if that is not partitioned.
    pub partition: &'a str,
    /// The batch's opening or the payload's admission.
    pub unix_nanos: u64,
    pub node: &'a str,
    pub core: usize,
    /// The core's counter, which never repeats while the process lives.
    pub seq: u64,
    /// Payloads in the object.
    pub count: u64,
    /// Such as `ndjson.gz`: letters, digits and dots only, and none is another with a dot and something before it.
    pub ext: &'a str,
}

/// As much of a request's `version` as keys are made of, at most [`VALUE_BYTES_MAX`] bytes: a template makes the same of it.
pub fn version(text: &str) -> Box<str> {
    let mut kept = String::new();
    value::write(text.chars(), UNKNOWN, &mut kept);
    kept.into()
}

/// Which batch a payload belongs to; keep one per core, for it also keeps what the next payload can reuse.
#[derive(Clone, Debug, Default)]
pub struct Partition {
    text: String,
    calendar: Calendar,
}

impl Partition {
    /// What of the key depends on the payload: equal bytes, same batch. Not for people to read.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Where the time in a payload's `{date:…}` and `{hour}` came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a payload under the time it came, not its own, is to be counted"]
pub enum EventTime {
    /// `EVENT_TIME` is not set: they are those of the object's opening.
    NotAsked,
    /// From the payload.
    Read,
    /// The payload has none that could be read: its object is under the time it came.
    Unreadable,
}

impl KeyTemplate {
    /// The text of `KEY`, and the JSON pointer of `EVENT_TIME` if set.
    ///
    /// # Errors
    /// One sentence: what is wrong, what was given, the remedy.
    pub fn parse(key: &str, event_time: Option<&str>) -> Result<KeyTemplate, KeyError> {
        parse::template(key, event_time)
    }

    /// Whether keys end in, or hold, what an object is.
    pub fn has_ext(&self) -> bool {
        self.parts.contains(&Part::Ext)
    }

    /// Both texts as one, which [`KeyTemplate::of_text`] reads again: kept in the spool, so that a later process renders the
    /// same keys.
    pub fn text(&self) -> String {
        let (key, event_time) = self.texts();
        format!("{key}\n{}", event_time.unwrap_or_default())
    }

    /// A template from its [`KeyTemplate::text`].
    pub fn of_text(text: &str) -> Result<KeyTemplate, KeyError> {
        let (key, event_time) = text.split_once('\n').unwrap_or((text, ""));
        KeyTemplate::parse(key, Some(event_time).filter(|pointer| !pointer.is_empty()))
    }

    /// The texts it was parsed from: written into the spool, so that a later process renders the same keys.
    pub fn texts(&self) -> (&str, Option<&str>) {
        (&self.key, self.event_time.as_deref())
    }

    /// Whether its keys are unlike any other across cores, hosts and restarts; `node_is_random` if `NODE_ID` was drawn at
    /// this process's start. Needed are `{node}`, `{core}` and `{seq}`, with a fixed `NODE_ID` also `{unix_nanos}` or
    /// `{unix_ms}` (`{seq}` starts anew with the process), and none may run together with its neighbours: `1` and `12` must
    /// not read like `11` and `2`, nor may a client bring that about with a field's value.
    ///
    /// # Errors
    /// Naming what is missing or runs together.
    pub fn check_unique(&self, node_is_random: bool) -> Result<(), KeyError> {
        unique::check(&self.parts, node_is_random)
    }

    /// Bytes of the longest key it can render. S3's end at 1024, the store's prefix included.
    pub fn longest(&self, node_bytes: usize, ext_bytes: usize) -> usize {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.len(),
                Part::UnixNanos | Part::Seq | Part::Count => 20,
                // u64::MAX nanoseconds are 14 digits of milliseconds.
                Part::UnixMs => 14,
                Part::Time(part) => part.width(),
                Part::Node => node_bytes,
                // Linux's cpu_set_t ends at core 1023.
                Part::Core => 4,
                Part::Ext => ext_bytes,
                Part::Hash(digits) => *digits,
                // A default is no longer than that either.
                Part::Version | Part::Field { .. } => VALUE_BYTES_MAX,
            })
            .sum()
    }

    /// Whether keys depend on the payload, its request's version or its event time: then batches are partitioned.
    pub fn is_partitioned(&self) -> bool {
        self.parts.iter().any(|part| self.is_of_payload(part))
    }

    /// Whether a payload's request must hand on its version.
    pub fn needs_version(&self) -> bool {
        self.parts.contains(&Part::Version)
    }

    fn is_of_payload(&self, part: &Part) -> bool {
        match part {
            Part::Version | Part::Field { .. } => true,
            Part::Time(_) => self.event_time_slot.is_some(),
            _ => false,
        }
    }

    /// Renders what depends on `payload`, which is valid JSON, into `partition`, in place of what was there.
    ///
    /// `unix_nanos` stands in for an event time that is missing or unreadable; give the payload's admission, so that a
    /// replay renders the same.
    pub fn write_partition(
        &self,
        payload: &[u8],
        version: Option<&str>,
        unix_nanos: u64,
        partition: &mut Partition,
    ) -> EventTime {
        partition.text.clear();
        let found = self.fields.find(payload);
        let (time, source) = match self.event_time_slot {
            None => (unix_nanos, EventTime::NotAsked),
            Some(slot) => match event_time::read(found.raw(slot)) {
                Some(time) => (time, EventTime::Read),
                None => (unix_nanos, EventTime::Unreadable),
            },
        };
        let Partition { text, calendar } = partition;
        for part in self.parts.iter().filter(|part| self.is_of_payload(part)) {
            match part {
                Part::Time(part) => calendar.write(*part, time, text),
                Part::Version => value::write(version.unwrap_or("").chars(), UNKNOWN, text),
                Part::Field { slot, default, .. } => {
                    value::write_json(found.raw(*slot), default, text);
                }
                _ => unreachable!("only these are a payload's"),
            }
            text.push(VALUE_END);
        }
        source
    }

    /// Renders the key of one object, in place of what is in `key`.
    ///
    /// `{hash:n}` is the first n hex digits of FNV-1a (64 bits) over the rest of the key, stirred by MurmurHash3's
    /// `fmix64`: the same on every platform and in every version, so a retry or a replay writes the same key again.
    ///
    /// # Panics
    /// If `of.partition` is another template's.
    pub fn write_key(&self, of: &KeyOf<'_>, key: &mut String) {
        key.clear();
        let mut values = of.partition.split_terminator(VALUE_END);
        let mut value = || values.next().expect("a partition of this template");
        let mut calendar = Calendar::default();
        let mut digits = itoa::Buffer::new();
        let mut hash = None;
        for part in &self.parts {
            match part {
                Part::Text(text) => key.push_str(text),
                Part::UnixNanos => key.push_str(digits.format(of.unix_nanos)),
                Part::UnixMs => key.push_str(digits.format(of.unix_nanos / 1_000_000)),
                Part::Time(part) if self.event_time_slot.is_none() => {
                    calendar.write(*part, of.unix_nanos, key);
                }
                Part::Time(_) | Part::Version | Part::Field { .. } => key.push_str(value()),
                Part::Node => key.push_str(of.node),
                Part::Core => key.push_str(digits.format(of.core)),
                Part::Seq => key.push_str(digits.format(of.seq)),
                Part::Count => key.push_str(digits.format(of.count)),
                Part::Ext => key.push_str(of.ext),
                Part::Hash(digits) => hash = Some((key.len(), *digits)),
            }
        }
        assert!(values.next().is_none(), "a partition of this template");
        if let Some((at, digits)) = hash {
            let sum = spread(key.as_bytes());
            let hex: [u8; HASH_DIGITS_MAX] =
                std::array::from_fn(|i| b"0123456789abcdef"[(sum >> (60 - 4 * i) & 15) as usize]);
            key.insert_str(at, str::from_utf8(&hex[..digits]).expect("hex is ASCII"));
        }
    }
}

/// Digits of `{hash:n}`: eight are 4 billion prefixes.
const HASH_DIGITS_MAX: usize = 8;

/// FNV-1a, 64 bits, then `fmix64`: FNV alone leaves the first digits of keys that differ in their last byte nearly alike.
fn spread(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let stirred = (fnv ^ fnv >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let stirred = (stirred ^ stirred >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    stirred ^ stirred >> 33
}
