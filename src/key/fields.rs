//! Finds the values that JSON pointers (RFC 6901) point at in a payload's raw bytes: one pass for
//! all pointers, no tree of values, no allocation, and no recursion deeper than the pointers.
//!
//! Of several members with the same name the last one counts, as in most parsers. Admission has
//! validated the payload. Bytes that are not JSON end the search; values found before are kept.

use memchr::memchr2;

use super::value::Unescaped;

/// Most pointers, including `EVENT_TIME`'s: the values found are kept on the stack.
pub(super) const POINTERS_MAX: usize = 16;

/// No payload nests deeper: see `parse`.
pub(super) const DEPTH_MAX: usize = 127;

/// The pointers, as a tree of their names.
#[derive(Clone, Debug, Default)]
pub(super) struct PayloadFields {
    root: FieldNode,
    pointers: usize,
}

#[derive(Clone, Debug, Default)]
struct FieldNode {
    /// The slot of the pointer that ends here.
    slot: Option<usize>,
    members: Vec<FieldMember>,
}

#[derive(Clone, Debug)]
struct FieldMember {
    name: String,
    /// The name as an array's index, if it is one.
    index: Option<usize>,
    node: FieldNode,
}

/// Why a pointer was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PointerError {
    /// Does not start with `/`.
    Start,
    /// `~` without 0 or 1.
    Escape,
    TooDeep,
    TooMany,
}

impl PayloadFields {
    /// Whether nothing is looked for.
    pub(super) fn is_empty(&self) -> bool {
        self.pointers == 0
    }

    /// Adds `pointer`; returns the slot of its value in [`FoundValues`].
    pub(super) fn add(&mut self, pointer: &str) -> Result<usize, PointerError> {
        let names = pointer.strip_prefix('/').ok_or(PointerError::Start)?;
        if names.split('/').count() > DEPTH_MAX {
            return Err(PointerError::TooDeep);
        }
        // Without the valid escapes only invalid ones are left.
        if pointer.replace("~0", "").replace("~1", "").contains('~') {
            return Err(PointerError::Escape);
        }
        let mut node = &mut self.root;
        for name in names.split('/') {
            // In this order: ~01 is ~1, not a slash.
            node = node.member_or_new(name.replace("~1", "/").replace("~0", "~"));
        }
        if let Some(slot) = node.slot {
            return Ok(slot);
        }
        if self.pointers == POINTERS_MAX {
            return Err(PointerError::TooMany);
        }
        node.slot = Some(self.pointers);
        self.pointers += 1;
        Ok(self.pointers - 1)
    }

    /// The values that the pointers point at in `payload`.
    pub(super) fn find<'p>(&self, payload: &'p [u8]) -> FoundValues<'p> {
        let mut found = FoundValues([&[]; POINTERS_MAX]);
        if !self.is_empty() {
            // Bytes that are not JSON end the search.
            let _ = FieldScan { bytes: payload, at: 0 }.value(&self.root, &mut found);
        }
        found
    }
}

/// The payload in `{"meta":…,"payload":…}`, which admission wrote without any white space. Empty if
/// it is something else.
pub(super) fn wrapped_payload(bytes: &[u8]) -> &[u8] {
    const META: &[u8] = b"{\"meta\":";
    const PAYLOAD: &[u8] = b",\"payload\":";
    let payload = || {
        let mut scan = FieldScan { bytes: bytes.strip_suffix(b"}")?, at: META.len() };
        bytes.starts_with(META).then(|| scan.skip())??;
        bytes[scan.at..bytes.len() - 1].strip_prefix(PAYLOAD)
    };
    payload().unwrap_or_default()
}

/// The raw text of each value that was found.
pub(super) struct FoundValues<'p>([&'p [u8]; POINTERS_MAX]);

impl<'p> FoundValues<'p> {
    /// Empty if there is none.
    pub(super) fn raw(&self, slot: usize) -> &'p [u8] {
        self.0[slot]
    }
}

impl FieldNode {
    fn member_or_new(&mut self, name: String) -> &mut FieldNode {
        let at = self.members.iter().position(|member| member.name == name).unwrap_or_else(|| {
            let is_index = name == "0" || !name.starts_with(['0', '+']);
            let index = is_index.then(|| name.parse().ok()).flatten();
            self.members.push(FieldMember { name, index, node: FieldNode::default() });
            self.members.len() - 1
        });
        &mut self.members[at].node
    }

    fn member(&self, name: RawName<'_>) -> Option<&FieldNode> {
        let is_it = |member: &&FieldMember| {
            if name.is_escaped {
                Unescaped::new(name.raw).eq(member.name.chars())
            } else {
                name.raw == member.name.as_bytes()
            }
        };
        self.members.iter().find(is_it).map(|member| &member.node)
    }

    fn item(&self, index: usize) -> Option<&FieldNode> {
        self.members.iter().find(|member| member.index == Some(index)).map(|member| &member.node)
    }

    fn forget(&self, found: &mut FoundValues<'_>) {
        if let Some(slot) = self.slot {
            found.0[slot] = &[];
        }
        for member in &self.members {
            member.node.forget(found);
        }
    }
}

/// The bytes between the quotes of a member's name.
#[derive(Clone, Copy)]
struct RawName<'p> {
    raw: &'p [u8],
    is_escaped: bool,
}

/// A position in a payload. Every step returns `None` if the bytes end or are not JSON.
struct FieldScan<'p> {
    bytes: &'p [u8],
    at: usize,
}

impl<'p> FieldScan<'p> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// Records the value at this position for `node`.
    fn value(&mut self, node: &FieldNode, found: &mut FoundValues<'p>) -> Option<()> {
        // An earlier member with this name no longer counts.
        node.forget(found);
        self.space();
        let start = self.at;
        match self.peek()? {
            b'{' if !node.members.is_empty() => self.object(node, found)?,
            b'[' if !node.members.is_empty() => self.array(node, found)?,
            _ => self.skip()?,
        }
        if let Some(slot) = node.slot {
            found.0[slot] = &self.bytes[start..self.at];
        }
        Some(())
    }

    fn object(&mut self, node: &FieldNode, found: &mut FoundValues<'p>) -> Option<()> {
        self.at += 1;
        loop {
            self.space();
            match self.peek()? {
                b'"' => {}
                b',' => {
                    self.at += 1;
                    continue;
                }
                b'}' => {
                    self.at += 1;
                    return Some(());
                }
                _ => return None,
            }
            let name = self.string()?;
            self.space();
            if self.peek()? != b':' {
                return None;
            }
            self.at += 1;
            match node.member(name) {
                Some(member) => self.value(member, found)?,
                None => self.skip()?,
            }
        }
    }

    fn array(&mut self, node: &FieldNode, found: &mut FoundValues<'p>) -> Option<()> {
        self.at += 1;
        let mut index = 0;
        loop {
            self.space();
            match self.peek()? {
                b',' => {
                    self.at += 1;
                    index += 1;
                }
                b']' => {
                    self.at += 1;
                    return Some(());
                }
                _ => match node.item(index) {
                    Some(item) => self.value(item, found)?,
                    None => self.skip()?,
                },
            }
        }
    }

    /// Skips the value at this position.
    fn skip(&mut self) -> Option<()> {
        self.space();
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                // Numbers, literals, and bytes between values: none contains any of the above.
                _ if depth > 0 => self.at += 1,
                _ => self.scalar(),
            }
            if depth == 0 {
                return Some(());
            }
        }
    }

    fn scalar(&mut self) {
        let ends = |byte: &u8| b",]} \n\r\t".contains(byte);
        let rest = &self.bytes[self.at..];
        self.at += rest.iter().position(ends).unwrap_or(rest.len());
    }

    /// Skips the string that starts here.
    fn string(&mut self) -> Option<RawName<'p>> {
        let start = self.at + 1;
        let mut at = start;
        let mut is_escaped = false;
        loop {
            at += memchr2(b'"', b'\\', self.bytes.get(at..)?)?;
            if self.bytes[at] == b'"' {
                break;
            }
            is_escaped = true;
            // An escaped character does not end it.
            at += 2;
        }
        self.at = at + 1;
        Some(RawName { raw: &self.bytes[start..at], is_escaped })
    }
}
