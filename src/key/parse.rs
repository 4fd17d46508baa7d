//! Parses a template. Errors name what is wrong and what to write instead.

use std::fmt;

use super::event_time::TimePart;
use super::fields::{self, PayloadFields, PointerError};
use super::request::{self, NameError, REQUEST_VALUES_MAX};
use super::{
    DEFAULT_BATCH, EventTimeSource, HASH_DIGITS_MAX, KeyTemplate, Part, RECEIVED_AT, TEMPORARY,
    VALUE_BYTES_MAX, room, value,
};

/// Most bytes of `KEY`, and of `EVENT_TIME`: S3 allows keys of 1024, and every spool contains both.
const TEXT_BYTES_MAX: usize = 1024;

/// Names and examples, in the order in which messages list them.
const PLACEHOLDERS: [(&str, &str); 15] = [
    ("unix_nanos", "{unix_nanos}"),
    ("unix_ms", "{unix_ms}"),
    ("date", "{date:%Y/%m/%d}"),
    ("hour", "{hour}"),
    ("node", "{node}"),
    ("core", "{core}"),
    ("seq", "{seq}"),
    ("count", "{count}"),
    ("ext", "{ext}"),
    ("hash", "{hash:2}"),
    ("version", "{version}"),
    ("token", "{token} or {token|default}"),
    ("header", "{header:x-name} or {header:x-name|default}"),
    ("query", "{query:name} or {query:name|default}"),
    ("field", "{field:/member} or {field:/member|default}"),
];

/// Why `KEY` or `EVENT_TIME` is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("KEY is empty: write a template such as {DEFAULT_BATCH}, out of {AllPlaceholders}")]
    Empty,
    #[error("{setting} is {bytes} bytes long: write at most {TEXT_BYTES_MAX}")]
    TooLong { setting: &'static str, bytes: usize },
    #[error(
        "KEY has {0} without its }}: close it, or write {{{{ for a brace; there are {AllPlaceholders}"
    )]
    Unclosed(String),
    #[error("KEY has a }} without its {{ before {0:?}: write }}}} for a brace")]
    Unopened(String),
    #[error(
        "{{{name}}} in KEY is not a placeholder: {}there are {AllPlaceholders}",
        DidYouMean(nearest)
    )]
    Unknown { name: String, nearest: Option<&'static str> },
    #[error("{{{given}}} in KEY has the wrong form: write {example}")]
    Argument { given: String, example: &'static str },
    #[error("{{hash:{0}}} in KEY has an invalid number of digits: write {{hash:1}} to {{hash:8}}")]
    HashDigits(String),
    #[error("KEY has {{hash}} twice: write it once, because both would give the same digits")]
    HashTwice,
    #[error("{{date:{format}}} in KEY has {unknown}: write %Y %m %d %H %M %S %j, and %% for a %")]
    DateFormat { format: String, unknown: String },
    #[error("{given:?} in {setting} is not a JSON pointer: {remedy}")]
    Pointer { setting: &'static str, given: String, remedy: String },
    #[error("{setting} uses field {given:?}, one more than the {max} allowed: remove some",
        max = fields::POINTERS_MAX)]
    TooManyFields { setting: &'static str, given: String },
    #[error("KEY uses {{{given}}}, which {why}")]
    RequestName { given: String, why: NameError },
    #[error("KEY uses {given}, one more value of requests than the {max} allowed: remove some",
        max = REQUEST_VALUES_MAX)]
    TooManyRequestValues { given: String },
    #[error("the default {given:?} in KEY would be changed: write {safe:?}")]
    Default { given: String, safe: String },
    #[error("KEY contains {0:?}, which stores or their clients change: remove it")]
    Character(char),
    #[error("KEY has an empty part: write single slashes, and none at its start or end")]
    EmptyPart,
    #[error("KEY has a part {0}, which clients resolve: write the path out")]
    Dots(String),
    #[error(
        "KEY begins in {TEMPORARY}, where a file: store holds incomplete files: begin with another name"
    )]
    Temporary,
    #[error(
        "KEY has a part with {values} fields, more than {max}: write a / between some, or remove some"
    )]
    CrowdedPart { values: usize, max: usize },
    #[error("EVENT_TIME is {0:?}, but KEY contains no time: add {{date:…}} or {{hour}}")]
    EventTimeUnused(String),
    #[error("KEY has no {missing}, so two objects could share a key: add {missing}{why}")]
    NotUnique { missing: String, why: &'static str },
    #[error(
        "{id} and {neighbour} run together in KEY, so two objects could share a key: write a / between them"
    )]
    RunTogether { id: String, neighbour: String },
}

/// The examples on one line.
struct AllPlaceholders;

impl fmt::Display for AllPlaceholders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (_, example)) in PLACEHOLDERS.iter().enumerate() {
            write!(f, "{}{example}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

struct DidYouMean<'a>(&'a Option<&'static str>);

impl fmt::Display for DidYouMean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(example) => write!(f, "did you mean {example}? "),
            None => Ok(()),
        }
    }
}

const KEY: &str = "KEY";
const EVENT_TIME: &str = "EVENT_TIME";

impl KeyError {
    /// The setting to correct.
    pub fn setting(&self) -> &'static str {
        match self {
            KeyError::TooLong { setting, .. }
            | KeyError::Pointer { setting, .. }
            | KeyError::TooManyFields { setting, .. } => setting,
            KeyError::EventTimeUnused(_) => EVENT_TIME,
            _ => KEY,
        }
    }
}

pub(super) fn template(key: &str, event_time: Option<&str>) -> Result<KeyTemplate, KeyError> {
    let texts = [Some((KEY, key)), event_time.map(|pointer| (EVENT_TIME, pointer))];
    for (setting, text) in texts.into_iter().flatten() {
        if text.len() > TEXT_BYTES_MAX {
            return Err(KeyError::TooLong { setting, bytes: text.len() });
        }
    }
    let mut parts = TemplateParts::default();
    parts.read(key)?;
    check_path(&parts.list)?;
    let has_time = parts.list.iter().any(|part| matches!(part, Part::Time(_)));
    let event_time_source = match event_time {
        None => EventTimeSource::NotAsked,
        Some(given) if !has_time => return Err(KeyError::EventTimeUnused(given.into())),
        Some(RECEIVED_AT) => EventTimeSource::Received,
        Some(pointer) => EventTimeSource::Field(parts.pointer(EVENT_TIME, pointer)?),
    };
    let rooms = room::rooms(&parts.list, event_time.is_some())?;
    Ok(KeyTemplate {
        rooms,
        key: key.into(),
        event_time: event_time.map(Into::into),
        parts: parts.list,
        fields: parts.fields,
        event_time_source,
    })
}

#[derive(Default)]
struct TemplateParts {
    list: Vec<Part>,
    fields: PayloadFields,
}

impl TemplateParts {
    fn read(&mut self, key: &str) -> Result<(), KeyError> {
        if key.is_empty() {
            return Err(KeyError::Empty);
        }
        let mut rest = key;
        while let Some(at) = rest.find(['{', '}']) {
            self.text(&rest[..at]);
            let brace = &rest[at..=at];
            let behind = &rest[at + 1..];
            rest = if let Some(behind) = behind.strip_prefix(brace) {
                self.text(brace);
                behind
            } else if brace == "}" {
                return Err(KeyError::Unopened(behind.into()));
            } else {
                match behind.find(['{', '}']) {
                    Some(end) if behind[end..].starts_with('}') => {
                        self.placeholder(&behind[..end])?;
                        &behind[end + 1..]
                    }
                    end => {
                        let shown = &behind[..end.unwrap_or(behind.len())];
                        return Err(KeyError::Unclosed(format!("{{{shown}")));
                    }
                }
            };
        }
        self.text(rest);
        Ok(())
    }

    /// Adjacent texts become one.
    fn text(&mut self, text: &str) {
        match self.list.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Text(before)) => before.push_str(text),
            _ => self.list.push(Part::Text(text.into())),
        }
    }

    fn placeholder(&mut self, given: &str) -> Result<(), KeyError> {
        let (name, argument) = match given.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (given, None),
        };
        let part = match (name, argument) {
            ("date", Some(format)) if !format.is_empty() => return self.date(format),
            ("field", Some(field)) => self.field(field)?,
            ("hash", Some(digits)) => self.hash(digits)?,
            ("unix_nanos", None) => Part::UnixNanos,
            ("unix_ms", None) => Part::UnixMs,
            ("hour", None) => Part::Time(TimePart::Hour),
            ("node", None) => Part::Node,
            ("core", None) => Part::Core,
            ("seq", None) => Part::Seq,
            ("count", None) => Part::Count,
            ("ext", None) => Part::Ext,
            ("version", None) => self.request(request::VERSION.into(), super::UNKNOWN)?,
            (kind @ ("header" | "query"), Some(argument)) => {
                let (argument, default) = with_default(argument);
                self.request(request::kept_name(kind, argument)?, default)?
            }
            (_, None) if with_default(name).0 == request::TOKEN => {
                self.request(request::TOKEN.into(), with_default(name).1)?
            }
            _ => return Err(not_written_so(given, name)),
        };
        self.list.push(part);
        Ok(())
    }

    fn date(&mut self, format: &str) -> Result<(), KeyError> {
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            self.text(&rest[..at]);
            let mut behind = rest[at + 1..].chars();
            let part = match behind.next() {
                Some('Y') => TimePart::Year,
                Some('m') => TimePart::Month,
                Some('d') => TimePart::Day,
                Some('j') => TimePart::DayOfYear,
                Some('H') => TimePart::Hour,
                Some('M') => TimePart::Minute,
                Some('S') => TimePart::Second,
                Some('%') => {
                    self.text("%");
                    rest = behind.as_str();
                    continue;
                }
                other => {
                    let unknown = other.map_or("a lone %".into(), |other| format!("%{other}"));
                    return Err(KeyError::DateFormat { format: format.into(), unknown });
                }
            };
            self.list.push(Part::Time(part));
            rest = behind.as_str();
        }
        self.text(rest);
        Ok(())
    }

    fn field(&mut self, field: &str) -> Result<Part, KeyError> {
        let (pointer, default) = with_default(field);
        let default = safe_default(default)?;
        let slot = self.pointer(KEY, pointer)?;
        Ok(Part::Field { pointer: pointer.into(), slot, default })
    }

    /// A value of requests that is kept as `name`.
    fn request(&self, name: String, default: &str) -> Result<Part, KeyError> {
        let mut others: Vec<&str> = Vec::new();
        for part in &self.list {
            if let Part::Request { name: other, .. } = part
                && *other != name
                && !others.contains(&&**other)
            {
                others.push(other);
            }
        }
        if others.len() >= REQUEST_VALUES_MAX {
            return Err(KeyError::TooManyRequestValues { given: format!("{{{name}}}") });
        }
        Ok(Part::Request { name, default: safe_default(default)? })
    }

    fn hash(&self, digits: &str) -> Result<Part, KeyError> {
        if self.list.iter().any(|part| matches!(part, Part::Hash(_))) {
            return Err(KeyError::HashTwice);
        }
        match digits.parse() {
            Ok(n @ 1..=HASH_DIGITS_MAX) if digits.len() == 1 => Ok(Part::Hash(n)),
            _ => Err(KeyError::HashDigits(digits.into())),
        }
    }

    fn pointer(&mut self, setting: &'static str, pointer: &str) -> Result<usize, KeyError> {
        self.fields.add(pointer).map_err(|why| {
            let given = pointer.to_owned();
            let remedy = match why {
                PointerError::Start if setting == EVENT_TIME => {
                    format!("write /{pointer}, or {RECEIVED_AT} for the time of receipt")
                }
                PointerError::Start => format!("write /{pointer}"),
                PointerError::Escape => "write ~0 for a ~ in a name, and ~1 for a /".into(),
                PointerError::TooDeep => {
                    format!(
                        "write at most {} names, because payloads nest no deeper",
                        fields::DEPTH_MAX
                    )
                }
                PointerError::TooMany => return KeyError::TooManyFields { setting, given },
            };
            KeyError::Pointer { setting, given, remedy }
        })
    }
}

/// What a placeholder names, and what is rendered if that is missing.
fn with_default(argument: &str) -> (&str, &str) {
    argument.split_once('|').unwrap_or((argument, super::UNKNOWN))
}

fn safe_default(default: &str) -> Result<String, KeyError> {
    let mut safe = String::new();
    let fits = &default[..default.floor_char_boundary(VALUE_BYTES_MAX)];
    value::write(fits.chars(), super::UNKNOWN, &mut safe);
    if safe == default { Ok(safe) } else { Err(KeyError::Default { given: default.into(), safe }) }
}

/// The error for a known placeholder with a wrong argument, or for an unknown one.
fn not_written_so(given: &str, name: &str) -> KeyError {
    if let Some((_, example)) = PLACEHOLDERS.iter().find(|(known, _)| *known == name) {
        return KeyError::Argument { given: given.into(), example };
    }
    let nearest = PLACEHOLDERS
        .iter()
        .map(|(known, example)| (strsim::jaro_winkler(name, known), *example))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, example)| example);
    KeyError::Unknown { name: given.into(), nearest }
}

/// Refuses templates whose keys would be rewritten on the way, because the object would not be
/// under its key. Values cannot cause that, so one letter represents each.
fn check_path(parts: &[Part]) -> Result<(), KeyError> {
    let sample: String = parts
        .iter()
        .map(|part| match part {
            Part::Text(text) => text.as_str(),
            _ => "x",
        })
        .collect();
    if let Some(char) = sample.chars().find(|&char| !value::is_kept(char)) {
        return Err(KeyError::Character(char));
    }
    for part in sample.split('/') {
        match part {
            "" => return Err(KeyError::EmptyPart),
            "." | ".." => return Err(KeyError::Dots(part.into())),
            _ => {}
        }
    }
    if super::is_in_temporary(&sample) {
        return Err(KeyError::Temporary);
    }
    Ok(())
}

/// As in `KEY`, except that the parts of a date are shown one by one.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Text(text) => text,
            Part::UnixNanos => "{unix_nanos}",
            Part::UnixMs => "{unix_ms}",
            Part::Time(_) => "{date}",
            Part::Node => "{node}",
            Part::Core => "{core}",
            Part::Seq => "{seq}",
            Part::Count => "{count}",
            Part::Ext => "{ext}",
            Part::Hash(digits) => return write!(f, "{{hash:{digits}}}"),
            Part::Request { name, .. } => return write!(f, "{{{name}}}"),
            Part::Field { pointer, .. } => return write!(f, "{{field:{pointer}}}"),
        })
    }
}

const _: () =
    assert!(super::UNKNOWN.len() <= VALUE_BYTES_MAX, "a default is no longer than a value");
