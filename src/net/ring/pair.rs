//! Two pieces of memory that leave in one send: the head of a request, and a body that is not
//! copied behind it.

use std::mem::MaybeUninit;

use super::Slice;

/// A head and a body, with the list by which the kernel finds them.
pub struct Pair {
    head: Vec<u8>,
    body: Slice,
    parts: [libc::iovec; 2],
    message: libc::msghdr,
}

impl Pair {
    /// Boxed, because the kernel is given the address of the list.
    pub fn new(head: Vec<u8>, body: Slice) -> Box<Pair> {
        let parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2];
        // SAFETY: pointers, lengths and flags, for all of which zero is a value.
        let message = unsafe { MaybeUninit::zeroed().assume_init() };
        Box::new(Pair { head, body, parts, message })
    }

    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    pub fn into_head(self) -> Vec<u8> {
        self.head
    }

    /// What `sendmsg` is given to send everything from `from` on. It names memory of this pair,
    /// which must neither move nor change until the send has ended.
    pub fn message(&mut self, from: usize) -> *const libc::msghdr {
        let of_head = from.min(self.head.len());
        let (head, body) = (&self.head[of_head..], &self.body[from - of_head..]);
        // The kernel only reads what is sent.
        self.parts = [head, body].map(|part| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        });
        self.message.msg_iov = self.parts.as_mut_ptr();
        self.message.msg_iovlen = self.parts.len();
        &raw const self.message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::SharedBytes;

    #[test]
    fn a_message_names_what_is_left_of_both() {
        let shared = SharedBytes::new(b"..body".to_vec(), ());
        let mut pair = Pair::new(b"head".to_vec(), Slice::new(shared, 2..6));
        assert_eq!(pair.len(), 8);
        for (from, left) in [(0, "headbody"), (3, "dbody"), (4, "body"), (7, "y"), (8, "")] {
            pair.message(from);
            let lengths = pair.parts.map(|part| part.iov_len);
            assert_eq!(lengths, [4 - from.min(4), 4 - from.saturating_sub(4)], "{from}");
            let start = |at: usize| pair.parts[at].iov_base as usize;
            assert_eq!(start(0), pair.head.as_ptr() as usize + from.min(4));
            assert_eq!(start(1), pair.body.as_ptr() as usize + from.saturating_sub(4));
            assert_eq!(lengths.iter().sum::<usize>(), left.len());
        }
        assert_eq!(pair.into_head(), b"head");
    }
}
