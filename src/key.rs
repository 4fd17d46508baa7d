//! The names of objects: the template `KEY`, parsed once, and the keys it renders for payloads and
//! batches. No I/O, no clock.
//!
//! A key is rendered in two steps. [`KeyTemplate::write_partition`] renders the values that depend
//! on a payload: its fields, its request's values (see `request`), its event time. Payloads with equal text may
//! share an object. [`KeyTemplate::write_key`] combines that text with the core's names and the
//! object's numbers. Neither allocates once its buffers have grown.
//!
//! A template is refused at start if it could give two objects the same name
//! ([`KeyTemplate::check_unique`]), or if clients, gateways or file systems would rewrite its keys
//! (`//`, `.`, `..`, control characters). Values from a payload are made safe instead (see
//! `value`): each is a part of one path component, and never adds or removes a component. Nor can
//! they make a key that no file can have: see `room` for components that would be too long, and
//! [`TEMPORARY`] for the one directory of a `file:` store that no key names. All keys of a template
//! have equally many components, so none is a file where another needs a directory.

mod event_time;
mod fields;
mod parse;
mod request;
mod room;
mod unique;
mod value;

#[cfg(test)]
mod tests;

use event_time::{Calendar, TimePart};
use fields::PayloadFields;
pub use parse::KeyError;
pub use request::{
    REQUEST_VALUES_BYTES_MAX, RequestSource, RequestValues, RequestValuesWriter, header_name,
    query_value,
};
use room::Room;
pub use value::VALUE_BYTES_MAX;

/// Most bytes of a part between two slashes, where keys are names of files.
pub const PART_BYTES_MAX: usize = room::COMPONENT_BYTES_MAX;

/// The default if each payload is an object.
pub const DEFAULT_PAYLOAD: &str = "{unix_nanos}-{node}-{core}-{seq}.json";
/// The default for batches.
pub const DEFAULT_BATCH: &str = "{unix_nanos}-{node}-{core}-{seq}.{ext}";

/// The directory of a `file:` store that holds incomplete files. It is the first component of no
/// key, whatever the store: a key that would begin there has `_` for its first byte.
pub const TEMPORARY: &str = ".millrace-tmp";

/// Rendered for a missing field or value of a request, unless the placeholder has a default.
const UNKNOWN: &str = "unknown";

/// Ends every value in a partition's text; no value contains a control character.
const VALUE_END: char = '\u{1f}';

/// A parsed `KEY` with its `EVENT_TIME`.
#[derive(Clone, Debug)]
pub struct KeyTemplate {
    key: String,
    event_time: Option<String>,
    parts: Vec<Part>,
    fields: PayloadFields,
    event_time_source: EventTimeSource,
    /// Components whose values may be too long together; mostly none.
    rooms: Vec<Room>,
}

/// One placeholder, or the text between two. A `{date:…}` is one part per element of its format.
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
    /// A value of the request, kept under this name.
    Request {
        name: String,
        default: String,
    },
    Field {
        pointer: String,
        slot: usize,
        default: String,
    },
}

/// The values of one object's key.
#[derive(Clone, Copy, Debug)]
pub struct KeyOf<'a> {
    /// [`Partition::text`] of any of its payloads, from the same template; empty if that is not
    /// partitioned.
    pub partition: &'a str,
    /// Time at which the batch was opened or the payload admitted.
    pub unix_nanos: u64,
    pub node: &'a str,
    pub core: usize,
    /// The core's counter, which never repeats while the process lives.
    pub seq: u64,
    /// Payloads in the object.
    pub count: u64,
    /// Such as `ndjson.gz`: letters, digits and dots only. No extension is a suffix of another,
    /// behind a dot.
    pub ext: &'a str,
}

/// `EVENT_TIME` that means the time of receipt; anything else is a JSON pointer.
const RECEIVED_AT: &str = "received_at";

/// Where `{date:…}` and `{hour}` take a payload's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventTimeSource {
    /// `EVENT_TIME` is not set: the payload's object has a time, and the payload itself none.
    NotAsked,
    /// The time of admission.
    Received,
    /// A field: its slot in `fields`.
    Field(usize),
}

/// Which batch a payload belongs to. Keep one per core: it also holds buffers that the next payload
/// reuses.
#[derive(Clone, Debug, Default)]
pub struct Partition {
    text: String,
    calendar: Calendar,
}

impl Partition {
    /// The part of the key that depends on the payload: equal text, same batch. Not for display.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The source of the time in a payload's `{date:…}` and `{hour}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a payload filed under its arrival instead of its event time must be counted"]
pub enum EventTime {
    /// `EVENT_TIME` is not set: the time at which the object was opened.
    NotAsked,
    /// From the payload, or the time of receipt if `EVENT_TIME` asks for that.
    Read,
    /// The payload has no readable event time: its object is filed under the time of arrival.
    Unreadable,
}

impl KeyTemplate {
    /// The text of `KEY`, and that of `EVENT_TIME` if set: a JSON pointer or `received_at`.
    ///
    /// # Errors
    /// One sentence with the mistake, the given text and the remedy.
    pub fn parse(key: &str, event_time: Option<&str>) -> Result<KeyTemplate, KeyError> {
        parse::template(key, event_time)
    }

    /// Whether keys contain the object's extension.
    pub fn has_ext(&self) -> bool {
        self.parts.contains(&Part::Ext)
    }

    /// The text at the end of every key; empty if something else ends it.
    pub fn ending(&self) -> &str {
        match self.parts.last() {
            Some(Part::Text(text)) => text,
            _ => "",
        }
    }

    /// Both texts in one, for [`KeyTemplate::of_text`]. The spool keeps it, so that a later process
    /// renders the same keys.
    pub fn text(&self) -> String {
        let (key, event_time) = self.texts();
        format!("{key}\n{}", event_time.unwrap_or_default())
    }

    /// A template from its [`KeyTemplate::text`].
    pub fn of_text(text: &str) -> Result<KeyTemplate, KeyError> {
        let (key, event_time) = text.split_once('\n').unwrap_or((text, ""));
        KeyTemplate::parse(key, Some(event_time).filter(|pointer| !pointer.is_empty()))
    }

    /// The texts that the template was parsed from: those of `KEY` and `EVENT_TIME`.
    pub fn texts(&self) -> (&str, Option<&str>) {
        (&self.key, self.event_time.as_deref())
    }

    /// Checks that its keys are unique across cores, hosts and restarts; `node_is_random` if
    /// `NODE_ID` was drawn when this process started. A key needs `{node}`, `{core}` and `{seq}`.
    /// With a fixed `NODE_ID` it also needs `{unix_nanos}` or `{unix_ms}`, because `{seq}` restarts
    /// with the process. None may run together with its neighbours: `1` and `12` must not read like
    /// `11` and `2`, and no field value from a client may cause that.
    ///
    /// # Errors
    /// Names what is missing or runs together.
    pub fn check_unique(&self, node_is_random: bool) -> Result<(), KeyError> {
        unique::check(&self.parts, node_is_random)
    }

    /// Bytes of the longest key it can render. S3 allows 1024, including the store's prefix.
    pub fn longest(&self, node_bytes: usize, ext_bytes: usize) -> usize {
        // Each with the slash before it, except for the first.
        room::longest(&self.parts, node_bytes, ext_bytes).map(|bytes| bytes + 1).sum::<usize>() - 1
    }

    /// Bytes of the longest part between two slashes that it can render. A file name takes
    /// [`PART_BYTES_MAX`].
    pub fn longest_part(&self, node_bytes: usize, ext_bytes: usize) -> usize {
        room::longest(&self.parts, node_bytes, ext_bytes).max().unwrap_or(0)
    }

    /// Whether it can render keys below the directory with these names, relative to the store.
    pub fn can_lie_in<'n>(&self, names: impl ExactSizeIterator<Item = &'n str>) -> bool {
        room::can_lie_in(&self.parts, names)
    }

    /// The directories, relative to the store, in which payloads name the next one; `None` if they
    /// name none, or if its place depends on more than text.
    pub fn above_values(&self) -> Option<Vec<String>> {
        room::above_values(&self.parts)
    }

    /// Whether keys depend on the payload, its request's values or its event time, so that batches
    /// are partitioned.
    pub fn is_partitioned(&self) -> bool {
        self.parts.iter().any(|part| self.is_of_payload(part))
    }

    /// Whether the partitions of payloads of one request may differ, so that each must be rendered.
    pub fn differs_in_request(&self) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Field { .. } => true,
            Part::Time(_) => matches!(self.event_time_source, EventTimeSource::Field(_)),
            _ => false,
        })
    }

    /// The values of a request that keys contain, each once.
    pub fn request_sources(&self) -> Vec<RequestSource<'_>> {
        let mut sources = Vec::new();
        for part in &self.parts {
            if let Part::Request { name, .. } = part {
                let source = RequestSource::of_name(name);
                if !sources.contains(&source) {
                    sources.push(source);
                }
            }
        }
        sources
    }

    fn is_of_payload(&self, part: &Part) -> bool {
        match part {
            Part::Request { .. } | Part::Field { .. } => true,
            Part::Time(_) => self.event_time_source != EventTimeSource::NotAsked,
            _ => false,
        }
    }

    /// Renders what depends on `payload`, which is valid JSON of a request with these `values`, into
    /// `partition`, replacing its content.
    ///
    /// `unix_nanos` replaces a missing or unreadable event time. Pass the time of the payload's
    /// admission, so that a replay renders the same text.
    pub fn write_partition(
        &self,
        payload: &[u8],
        values: &RequestValues,
        unix_nanos: u64,
        partition: &mut Partition,
    ) -> EventTime {
        partition.text.clear();
        let found = self.fields.find(self.as_sent(payload, values));
        let (time, source) = match self.event_time_source {
            EventTimeSource::NotAsked => (unix_nanos, EventTime::NotAsked),
            EventTimeSource::Received => (unix_nanos, EventTime::Read),
            EventTimeSource::Field(slot) => match event_time::read(found.raw(slot)) {
                Some(time) => (time, EventTime::Read),
                None => (unix_nanos, EventTime::Unreadable),
            },
        };
        let Partition { text, calendar } = partition;
        for part in self.parts.iter().filter(|part| self.is_of_payload(part)) {
            match part {
                Part::Time(part) => calendar.write(*part, time, text),
                Part::Request { name, default } => {
                    value::write(values.get(name).unwrap_or("").chars(), default, text);
                }
                Part::Field { slot, default, .. } => {
                    value::write_json(found.raw(*slot), default, text);
                }
                _ => unreachable!("only these are a payload's"),
            }
            text.push(VALUE_END);
        }
        self.rooms.iter().for_each(|room| room.fit(text));
        source
    }

    /// What a payload has at `EVENT_TIME`, as a log line may show it: the shape of a value that is
    /// not an event time, and none of its bytes.
    pub fn event_time_shape(&self, payload: &[u8], values: &RequestValues) -> String {
        let found = self.fields.find(self.as_sent(payload, values));
        event_time::shape(match self.event_time_source {
            EventTimeSource::Field(slot) => found.raw(slot),
            EventTimeSource::NotAsked | EventTimeSource::Received => &[],
        })
    }

    /// The payload as its client sent it, if any of it is looked for.
    fn as_sent<'p>(&self, payload: &'p [u8], values: &RequestValues) -> &'p [u8] {
        match self.fields.is_empty() || !values.is_wrapped() {
            true => payload,
            false => fields::wrapped_payload(payload),
        }
    }

    /// Renders the key of one object into `key`, replacing its content.
    ///
    /// `{hash:n}` is the first n hex digits of FNV-1a (64 bits) over the rest of the key, mixed by
    /// MurmurHash3's `fmix64`. It is the same on every platform and in every version, so a retry or
    /// replay renders the same key.
    ///
    /// # Panics
    /// If `of.partition` belongs to another template.
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
                Part::Time(part) if self.event_time_source == EventTimeSource::NotAsked => {
                    calendar.write(*part, of.unix_nanos, key);
                }
                Part::Time(_) | Part::Request { .. } | Part::Field { .. } => key.push_str(value()),
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
        if is_in_temporary(key) {
            key.replace_range(..1, "_");
        }
    }
}

/// Whether the first component of a key is [`TEMPORARY`].
pub fn is_in_temporary(key: &str) -> bool {
    key.strip_prefix(TEMPORARY).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The key under which a `file:` store can keep an object whose recorded key no file can have,
/// such as those that earlier versions made. Any other key is unchanged.
pub fn as_file_name(key: &str) -> String {
    room::as_file_name(key)
}

impl Part {
    /// Most bytes that it renders, for a node and an extension of these lengths.
    fn width_max(&self, node_bytes: usize, ext_bytes: usize) -> usize {
        match self {
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
            Part::Request { .. } | Part::Field { .. } => VALUE_BYTES_MAX,
        }
    }
}

/// Most digits of `{hash:n}`: eight give 4 billion prefixes.
const HASH_DIGITS_MAX: usize = 8;

/// FNV-1a, 64 bits, then `fmix64`: with FNV alone, keys that differ in their last byte have nearly
/// equal first digits.
fn spread(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mixed = (fnv ^ fnv >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ mixed >> 33
}
