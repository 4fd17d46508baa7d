//! The parts of a key between two slashes: how long they can get, and how much room each has for a
//! payload's values.
//!
//! A file name has at most [`COMPONENT_BYTES_MAX`] bytes, also behind some S3 gateways. Most
//! templates never come near that. Where values do not fit together, each is cut to an equal share
//! and the last one ends with a hash of all. The room does not depend on node or number, so the
//! same values always give the same name. The numbers that make a key unique are never cut.

use super::parse::KeyError;
use super::value::{DIGEST_BYTES, VALUE_BYTES_MAX, push_digest};
use super::{Part, VALUE_END, is_in_temporary};

/// Most bytes of a file name on Linux.
pub(super) const COMPONENT_BYTES_MAX: usize = 255;

/// The longest `NODE_ID`.
const NODE_BYTES_MAX: usize = 64;
/// The longest extension, `ndjson.zst`.
const EXT_BYTES_MAX: usize = 10;

/// Most values in one component: how many of them share a room is looked at for every payload.
const VALUES_MAX: usize = 32;

/// A component of a template.
#[derive(Default)]
struct KeyComponent<'t> {
    parts: Vec<&'t Part>,
    /// Its share of texts that contain a slash.
    texts: Vec<&'t str>,
    /// The texts before and behind everything else; empty if there is none.
    start: &'t str,
    end: &'t str,
    /// Which of the partition's values are in it, event times excepted.
    values: Vec<usize>,
}

fn components(parts: &[Part], has_event_time: bool) -> Vec<KeyComponent<'_>> {
    let mut components = vec![KeyComponent::default()];
    let mut value = 0;
    for part in parts {
        if let Part::Text(text) = part {
            for (i, text) in text.split('/').enumerate() {
                if i > 0 {
                    components.push(KeyComponent::default());
                }
                let component = components.last_mut().expect("never empty");
                if component.parts.is_empty() && component.values.is_empty() {
                    component.start = text;
                }
                component.end = text;
                component.texts.push(text);
            }
            continue;
        }
        let component = components.last_mut().expect("never empty");
        component.end = "";
        match part {
            Part::Request { .. } | Part::Field { .. } => component.values.push(value),
            _ => component.parts.push(part),
        }
        let is_value = matches!(part, Part::Request { .. } | Part::Field { .. });
        value += usize::from(is_value || has_event_time && matches!(part, Part::Time(_)));
    }
    components
}

impl KeyComponent<'_> {
    /// Most bytes of everything but values.
    fn fixed_bytes(&self, node_bytes: usize, ext_bytes: usize) -> usize {
        let texts: usize = self.texts.iter().map(|text| text.len()).sum();
        let width = |part: &&Part| part.width_max(node_bytes, ext_bytes);
        texts + self.parts.iter().map(width).sum::<usize>()
    }

    /// Most bytes of its values together. At least a character of each and a hash, however much
    /// else is in the component: [`KeyTemplate::longest_part`] finds the template too long then.
    ///
    /// [`KeyTemplate::longest_part`]: super::KeyTemplate::longest_part
    fn room_bytes(&self) -> usize {
        let fixed = self.fixed_bytes(NODE_BYTES_MAX, EXT_BYTES_MAX);
        let least = DIGEST_BYTES + self.values.len() * char::MAX_LEN_UTF8;
        COMPONENT_BYTES_MAX.saturating_sub(fixed).max(least)
    }

    fn longest(&self, node_bytes: usize, ext_bytes: usize) -> usize {
        let values = (self.values.len() * VALUE_BYTES_MAX).min(self.room_bytes());
        self.fixed_bytes(node_bytes, ext_bytes) + if self.values.is_empty() { 0 } else { values }
    }

    /// Whether a payload can make it `name`, or it always is.
    fn can_be(&self, name: &str) -> bool {
        if self.is_text() {
            return self.texts.concat() == name;
        }
        let middle = name.strip_prefix(self.start).and_then(|rest| rest.strip_suffix(self.end));
        !self.values.is_empty() && middle.is_some()
    }

    fn is_text(&self) -> bool {
        self.values.is_empty() && self.parts.is_empty()
    }
}

/// Most bytes of each component, for a node and an extension of these lengths.
pub(super) fn longest(
    parts: &[Part],
    node_bytes: usize,
    ext_bytes: usize,
) -> impl Iterator<Item = usize> {
    let components = components(parts, false);
    components.into_iter().map(move |component| component.longest(node_bytes, ext_bytes))
}

/// Whether a payload can make the first components of its key these names, so that its object is
/// below that directory.
pub(super) fn can_lie_in<'n>(
    parts: &[Part],
    names: impl ExactSizeIterator<Item = &'n str>,
) -> bool {
    let components = components(parts, false);
    let is_above = names.len() < components.len();
    is_above && names.zip(&components).all(|(name, component)| component.can_be(name))
}

/// The names of the directories above the first component that a payload decides, if that is a
/// directory as well and everything above it is text.
pub(super) fn above_values(parts: &[Part]) -> Option<Vec<String>> {
    let components = components(parts, false);
    let (_object, directories) = components.split_last()?;
    let depth = directories.iter().position(|component| !component.is_text())?;
    let names = directories[..depth].iter().map(|component| component.texts.concat());
    (!directories[depth].values.is_empty()).then(|| names.collect())
}

/// Changes a key that no file can have: one that [`is_in_temporary`], or with a component of more
/// than [`COMPONENT_BYTES_MAX`]. A long component keeps its start and its end, which has the
/// numbers that make a key unique, with a hash of it in between.
pub(super) fn as_file_name(key: &str) -> String {
    const END_BYTES: usize = 128;
    const START_BYTES: usize = COMPONENT_BYTES_MAX - DIGEST_BYTES - END_BYTES;
    let mut fitted = String::with_capacity(key.len());
    for (number, component) in key.split('/').enumerate() {
        if number > 0 {
            fitted.push('/');
        }
        if component.len() <= COMPONENT_BYTES_MAX {
            fitted.push_str(component);
            continue;
        }
        fitted.push_str(&component[..component.floor_char_boundary(START_BYTES)]);
        push_digest(component.chars(), &mut fitted);
        fitted.push_str(&component[component.ceil_char_boundary(component.len() - END_BYTES)..]);
    }
    if is_in_temporary(&fitted) {
        fitted.replace_range(..1, "_");
    }
    fitted
}

/// A component whose values may be too long together.
#[derive(Clone, Debug)]
pub(super) struct Room {
    /// Which of the partition's values share it.
    values: Vec<usize>,
    bytes: usize,
}

/// # Errors
/// A component has more than [`VALUES_MAX`] values.
pub(super) fn rooms(parts: &[Part], has_event_time: bool) -> Result<Vec<Room>, KeyError> {
    let mut rooms = Vec::new();
    for component in components(parts, has_event_time) {
        let (bytes, values) = (component.room_bytes(), component.values);
        if values.len() > VALUES_MAX {
            return Err(KeyError::CrowdedPart { values: values.len(), max: VALUES_MAX });
        }
        if values.len() * VALUE_BYTES_MAX > bytes {
            rooms.push(Room { values, bytes });
        }
    }
    Ok(rooms)
}

impl Room {
    /// Shortens the values in a partition's text that do not fit.
    pub(super) fn fit(&self, text: &mut String) {
        if self.lengths(text).sum::<usize>() > self.bytes {
            *text = self.shortened(text);
        }
    }

    fn shared<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let values = text.split_terminator(VALUE_END).enumerate();
        values.filter(|(number, _)| self.values.contains(number)).map(|(_, value)| value)
    }

    fn lengths<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.shared(text).map(str::len)
    }

    fn shortened(&self, text: &str) -> String {
        let fits = |most: &usize| {
            let bytes: usize = self.lengths(text).map(|length| length.min(*most)).sum();
            bytes + DIGEST_BYTES <= self.bytes
        };
        let most = (1..=VALUE_BYTES_MAX).rev().find(fits).expect("a room has a hash and more");
        let mut out = String::with_capacity(text.len());
        for (number, value) in text.split_terminator(VALUE_END).enumerate() {
            if self.values.contains(&number) {
                out.push_str(&value[..value.floor_char_boundary(most)]);
            } else {
                out.push_str(value);
            }
            if self.values.last() == Some(&number) {
                let all = self.shared(text).flat_map(|value| value.chars().chain([VALUE_END]));
                push_digest(all, &mut out);
            }
            out.push(VALUE_END);
        }
        out
    }
}
