//! How far a body has been checked: everything that must be known to go on at a later byte.

use super::error::{BodyPosition, EnvelopeMember, Flaw, ParseError};
use crate::queue::job::Span;

/// Deepest nesting of arrays and objects, the collection's own two levels included. `serde_json`
/// has the same limit, so a stored payload can be read back with its defaults.
pub const DEPTH_MAX: usize = 127;

/// What comes next in the body, white space aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    Value,
    /// After `[`.
    ValueOrClose,
    /// After a comma in an object.
    Key,
    /// After `{`.
    KeyOrClose,
    Colon,
    CommaOrClose,
    /// Nothing: the collection is closed.
    End,
}

/// The brackets that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nesting {
    pub(super) depth: usize,
    /// One bit for each open bracket, the innermost lowest: whether it is an object.
    pub(super) objects: u128,
}

const _: () = assert!(DEPTH_MAX < u128::BITS as usize, "one bit more is needed for a moment");

impl Nesting {
    /// Inside the collection.
    pub(super) const ENVELOPE: Nesting = Nesting { depth: 1, objects: 0b1 };
    /// Inside the array `data`.
    pub(super) const DATA: Nesting = Nesting { depth: 2, objects: 0b10 };

    #[inline(always)]
    pub(super) fn open(&mut self, object: bool) {
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(object);
    }

    #[inline(always)]
    pub(super) fn close(&mut self) {
        self.depth -= 1;
        self.objects >>= 1;
    }

    #[inline(always)]
    pub(super) fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }
}

/// How far a body has been checked: all before `at` is valid, and `at` is not inside a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ParseProgress {
    pub(super) at: usize,
    pub(super) expect: Expect,
    pub(super) nesting: Nesting,
    /// The member of the envelope whose value is being read; `None` if it has no meaning here.
    pub(super) member: Option<EnvelopeMember>,
    /// The members that were found, as in [`EnvelopeMember`].
    pub(super) seen: [bool; 3],
    /// The envelope's strings with their quotes; `None` if absent or `null`.
    pub(super) version: Option<Span>,
    pub(super) token: Option<Span>,
    /// Where the payload begins that is being read.
    pub(super) payload_start: u32,
}

impl ParseProgress {
    /// At the first byte of a body.
    #[inline(always)]
    pub(super) const fn start() -> ParseProgress {
        ParseProgress {
            at: 0,
            expect: Expect::Value,
            nesting: Nesting { depth: 0, objects: 0 },
            member: None,
            seen: [false; 3],
            version: None,
            token: None,
            payload_start: 0,
        }
    }

    /// Whether the walk can go on from here.
    pub(super) fn is_resumable(&self) -> bool {
        match (self.expect, self.nesting.depth) {
            (Expect::Key | Expect::KeyOrClose, depth) => depth == 1,
            (Expect::Value, depth) => depth >= 2,
            (Expect::CommaOrClose, _) => true,
            _ => false,
        }
    }

    /// Whether the next value is an element of `data`.
    pub(super) fn at_payload(&self) -> bool {
        self.nesting.depth == 2 && self.in_data()
    }

    /// Whether it is inside the value of `data`.
    pub(super) fn in_data(&self) -> bool {
        self.member == Some(EnvelopeMember::Data)
    }

    /// Records the name of a member; `start` is the offset of its key.
    ///
    /// # Errors
    /// It is a second one.
    pub(super) fn enter(&mut self, key: &[u8], start: usize) -> Result<(), Flaw> {
        self.member = EnvelopeMember::named(key);
        if let Some(member) = self.member
            && std::mem::replace(&mut self.seen[member as usize], true)
        {
            let at = BodyPosition::default();
            return Err(Flaw::at(start, ParseError::GivenTwice { member, at }));
        }
        Ok(())
    }

    /// Records the string that is the value of `version` or `token`.
    #[inline]
    pub(super) fn keep(&mut self, member: EnvelopeMember, string: Span) {
        match member {
            EnvelopeMember::Version => self.version = Some(string),
            EnvelopeMember::Token => self.token = Some(string),
            EnvelopeMember::Data => unreachable!("it is no string"),
        }
    }
}
