//! The body of an answer, in two pieces.
//!
//! hyper gives a piece to the library, and takes it for sent, as soon as the client leaves room for its
//! first byte; the rest of it then waits in the library, where nobody has a deadline for it. For a
//! further piece it waits until there is room behind the ones before. So the last byte is a piece of
//! its own: until the client has left room for all of the answer, its stream is open here.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::buf::Take;
use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

pub(super) struct AnswerBody {
    whole: Full<Bytes>,
    /// Set once all before it is handed out.
    last: Option<u8>,
}

impl AnswerBody {
    pub(super) fn new(whole: Full<Bytes>) -> AnswerBody {
        AnswerBody { whole, last: None }
    }
}

impl Body for AnswerBody {
    type Data = AnswerPiece;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<AnswerPiece>, Infallible>>> {
        if let Some(last) = self.last.take() {
            return Poll::Ready(Some(Ok(Frame::data(AnswerPiece::Last([last], 0)))));
        }
        let Some(Ok(frame)) = ready!(Pin::new(&mut self.whole).poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        let piece = frame.map_data(|bytes| {
            let most = match &bytes[..] {
                [before @ .., last] if !before.is_empty() => {
                    self.last = Some(*last);
                    before.len()
                }
                few => few.len(),
            };
            AnswerPiece::Most(bytes.take(most))
        });
        Poll::Ready(Some(Ok(piece)))
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.whole.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let last = u64::from(self.last.is_some());
        SizeHint::with_exact(self.whole.size_hint().exact().unwrap_or(0) + last)
    }
}

/// Bytes of an answer, without a copy or a further owner of them.
pub(super) enum AnswerPiece {
    Most(Take<Bytes>),
    /// The last byte, and how much of it was taken.
    Last([u8; 1], usize),
}

impl Buf for AnswerPiece {
    fn remaining(&self) -> usize {
        self.chunk().len()
    }

    fn chunk(&self) -> &[u8] {
        match self {
            AnswerPiece::Most(bytes) => bytes.chunk(),
            AnswerPiece::Last(byte, taken) => &byte[*taken..],
        }
    }

    fn advance(&mut self, bytes: usize) {
        match self {
            AnswerPiece::Most(rest) => rest.advance(bytes),
            AnswerPiece::Last(_, taken) => *taken += bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn the_pieces_are_all_of_the_answer_and_the_last_one_is_a_byte() {
        let mut cx = Context::from_waker(Waker::noop());
        for (text, pieces) in [
            ("", &[][..]),
            ("x", &["x"]),
            ("xy", &["x", "y"]),
            (r#"{"accepted":1}"#, &[r#"{"accepted":1"#, "}"]),
        ] {
            let mut body = AnswerBody::new(Full::new(Bytes::from_static(text.as_bytes())));
            let mut left = text.len();
            let mut got = Vec::new();
            while !body.is_end_stream() {
                assert_eq!(body.size_hint().exact(), Some(left as u64), "{text}");
                let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut cx) else {
                    panic!("{text}: it ends before {left} bytes");
                };
                let mut piece = frame.into_data().unwrap_or_else(|_| panic!("no data"));
                left -= piece.remaining();
                let bytes = piece.copy_to_bytes(piece.remaining());
                assert!(!piece.has_remaining());
                got.push(String::from_utf8(bytes.to_vec()).unwrap());
            }
            assert_eq!(got, pieces);
            assert!(matches!(Pin::new(&mut body).poll_frame(&mut cx), Poll::Ready(None)));
        }
    }
}
