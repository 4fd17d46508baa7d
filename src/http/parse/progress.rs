//! How far a body has been checked: everything that must be known to go on at a later byte.

use super::error::{BodyPosition, EnvelopeMember, Flaw, ParseError};
use super::form::BodyForm;
use crate::queue::job::Span;

/// Deepest nesting of arrays and objects in a body or, where each line is a text of its own, in a
/// line; a collection's own two levels are included. `serde_json` has the same limit, so a stored
/// payload can be read back with its defaults.
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
    /// Nothing: the outermost value has ended, and only white space may follow, up to the end of the
    /// body or line.
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
    /// Outside all brackets.
    pub(super) const OUTSIDE: Nesting = Nesting { depth: 0, objects: 0 };
    /// Inside a body that is an array.
    pub(super) const ARRAY: Nesting = Nesting { depth: 1, objects: 0b0 };
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
    pub(super) form: BodyForm,
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
    pub(super) const fn start(form: BodyForm) -> ParseProgress {
        ParseProgress {
            form,
            at: 0,
            expect: Expect::Value,
            nesting: Nesting::OUTSIDE,
            member: None,
            seen: [false; 3],
            version: None,
            token: None,
            payload_start: 0,
        }
    }

    /// Begins the outermost value.
    ///
    /// # Errors
    /// In this form it cannot begin with `first`.
    #[inline]
    pub(super) fn begin(&mut self, first: u8) -> Result<(), BodyForm> {
        self.form = self.form.beginning_with(first).ok_or(self.form)?;
        Ok(())
    }

    /// Whether the walk can go on from here.
    pub(super) fn is_resumable(&self) -> bool {
        match (self.expect, self.nesting.depth) {
            (Expect::Key | Expect::KeyOrClose, _) => self.in_envelope(),
            (Expect::Value, depth) => depth >= self.form.around_payloads().depth,
            (Expect::CommaOrClose, _) => true,
            _ => false,
        }
    }

    /// Whether the next value is a payload.
    pub(super) fn at_payload(&self) -> bool {
        self.nesting.depth == self.form.around_payloads().depth && self.in_data()
    }

    /// Whether it is inside the envelope of a collection, but not inside one of its values.
    pub(super) fn in_envelope(&self) -> bool {
        self.nesting.depth == 1 && self.form == BodyForm::Collection
    }

    /// Whether it is inside the value of `data`, as everything is in a body without an envelope.
    pub(super) fn in_data(&self) -> bool {
        self.member == Some(EnvelopeMember::Data) || !self.form.may_be_collection()
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
