//! What a body is, and so which of its values are payloads.
//!
//! JSON lines are not one standard. What is taken here is what [NDJSON] and [JSON Lines] have in
//! common and senders send: UTF-8, one JSON text a line, lines end with LF, and white space beside
//! the text, CR included, means nothing. Blank lines are skipped, and the last line may lack its
//! LF. CR alone ends no line, and the record separators of RFC 7464 (`json-seq`) are no white space.
//!
//! [NDJSON]: https://github.com/ndjson/ndjson-spec
//! [JSON Lines]: https://jsonlines.org

use std::fmt;

use super::progress::Nesting;
use crate::config::ObjectBody;

/// The form of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyForm {
    /// An object or an array; the first byte that is not white space tells. What an object means is
    /// given.
    ByFirstByte(ObjectBody),
    /// An object. The payloads are the elements of its member `data`.
    Collection,
    /// An array. The payloads are its elements.
    Array,
    /// Each line that is not blank is a payload.
    Lines,
    /// An object, which is the only payload.
    Object,
}

impl BodyForm {
    /// The form once the first byte is known that is not white space. `None`: the body cannot begin
    /// with that.
    #[inline]
    pub(super) fn beginning_with(self, first: u8) -> Option<BodyForm> {
        use BodyForm::{Array, ByFirstByte, Collection, Lines, Object};
        match (self, first) {
            (ByFirstByte(_), b'[') => Some(Array),
            (ByFirstByte(ObjectBody::Collection), b'{') => Some(Collection),
            (ByFirstByte(ObjectBody::Payload), b'{') => Some(Object),
            (Collection | Object, b'{') | (Array, b'[') | (Lines, _) => Some(self),
            (ByFirstByte(_) | Collection | Object | Array, _) => None,
        }
    }

    /// The brackets around each payload. [`BodyForm::ByFirstByte`] has none yet.
    #[inline]
    pub(super) fn around_payloads(self) -> Nesting {
        match self {
            BodyForm::ByFirstByte(_) | BodyForm::Collection => Nesting::DATA,
            BodyForm::Array => Nesting::ARRAY,
            BodyForm::Lines | BodyForm::Object => Nesting::OUTSIDE,
        }
    }

    /// Whether the body is, or can turn out to be, a collection, whose envelope may hold a token
    /// and a version.
    pub fn may_be_collection(self) -> bool {
        match self {
            BodyForm::ByFirstByte(object) => object == ObjectBody::Collection,
            BodyForm::Collection => true,
            BodyForm::Array | BodyForm::Lines | BodyForm::Object => false,
        }
    }
}

/// What a client is told to send.
impl fmt::Display for BodyForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BodyForm::ByFirstByte(ObjectBody::Collection) => r#"{"data":[...]} or [...]"#,
            BodyForm::ByFirstByte(ObjectBody::Payload) => "{...} or [...]",
            BodyForm::Collection => r#"{"data":[...]}"#,
            BodyForm::Array => "[...]",
            BodyForm::Lines => "a JSON value on each line",
            BodyForm::Object => "{...}",
        })
    }
}

#[cfg(test)]
mod tests;
