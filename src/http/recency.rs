//! A list whose members move to its end, so that its beginning has those that have not moved for
//! longest. Every operation is O(1), and none allocates once the list has been as long before.

use slab::Slab;

/// No member.
const NONE: usize = usize::MAX;

pub(super) struct RecencyList<T> {
    nodes: Slab<Node<T>>,
    first: usize,
    last: usize,
}

struct Node<T> {
    value: T,
    before: usize,
    after: usize,
}

impl<T> Default for RecencyList<T> {
    fn default() -> RecencyList<T> {
        RecencyList { nodes: Slab::new(), first: NONE, last: NONE }
    }
}

impl<T> RecencyList<T> {
    /// Adds `value` at the end and returns its token, which names it until it is removed.
    pub(super) fn push(&mut self, value: T) -> usize {
        let token = self.nodes.insert(Node { value, before: NONE, after: NONE });
        self.link_last(token);
        token
    }

    /// Removes a member.
    ///
    /// # Panics
    /// There is none with this token.
    pub(super) fn remove(&mut self, token: usize) -> T {
        self.unlink(token);
        self.nodes.remove(token).value
    }

    /// Moves a member to the end.
    ///
    /// # Panics
    /// There is none with this token.
    pub(super) fn move_to_end(&mut self, token: usize) {
        self.unlink(token);
        self.link_last(token);
    }

    /// The members, first the one that was added or moved longest ago.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let mut next = self.first;
        std::iter::from_fn(move || {
            let node = self.nodes.get(next)?;
            next = node.after;
            Some(&node.value)
        })
    }

    fn link_last(&mut self, token: usize) {
        let before = std::mem::replace(&mut self.last, token);
        match self.nodes.get_mut(before) {
            Some(node) => node.after = token,
            None => self.first = token,
        }
        let node = &mut self.nodes[token];
        (node.before, node.after) = (before, NONE);
    }

    fn unlink(&mut self, token: usize) {
        let Node { before, after, .. } = self.nodes[token];
        match self.nodes.get_mut(before) {
            Some(node) => node.after = after,
            None => self.first = after,
        }
        match self.nodes.get_mut(after) {
            Some(node) => node.before = before,
            None => self.last = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a vector, with random operations.
    #[test]
    fn members_are_in_the_order_of_their_last_move() {
        let seed = crate::rt::random();
        println!("seed {seed}");
        let mut rng = crate::rt::Rng::with_seed(seed);
        let mut list = RecencyList::default();
        let mut model: Vec<(usize, u32)> = Vec::new();
        for value in 0..20_000_u32 {
            let at = rng.usize(..model.len().max(1));
            match rng.u8(..4) {
                0 | 1 if model.len() < 20 => model.push((list.push(value), value)),
                2 if !model.is_empty() => {
                    let (token, value) = model.remove(at);
                    assert_eq!(list.remove(token), value, "seed {seed}");
                }
                _ if !model.is_empty() => {
                    let member = model.remove(at);
                    list.move_to_end(member.0);
                    model.push(member);
                }
                _ => {}
            }
            let expected: Vec<u32> = model.iter().map(|(_, value)| *value).collect();
            assert_eq!(list.iter().copied().collect::<Vec<_>>(), expected, "seed {seed}");
        }
        for (token, _) in model {
            list.remove(token);
        }
        assert_eq!((list.first, list.last, list.nodes.len()), (NONE, NONE, 0));
    }
}
