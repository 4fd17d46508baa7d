//! The frames that go to a client: which resets they are, and what the library has said last.

use super::{FrameBudgets, FramePosition, FrameStep, GOAWAY, NO_ERROR, RST_STREAM, STREAM_CLOSED};
use crate::metrics::H2Closed;
use crate::rt;

/// The frames that go to a client.
#[derive(Default)]
pub(in crate::http::h2) struct OutboundFrames {
    at: FramePosition,
    /// What the current frame ends, if it ends anything, …
    ends: Option<FrameEnds>,
    /// … and how its payload begins, as far as it has gone.
    says: [u8; WORDS_BYTES],
    has_begun: bool,
    goodbye: Goodbye,
    /// The highest stream that is looked at, as the client was told with the last goodbye.
    last_stream: Option<u32>,
}

/// What a frame ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameEnds {
    Stream,
    Connection,
}

/// What the library has said about the end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::http::h2) enum Goodbye {
    #[default]
    Unsaid,
    /// All is well.
    Said,
    /// What the client has done wrong.
    Blames,
}

/// Bytes of a `GOAWAY`: its last stream, and the reason. A reset has the reason alone.
const WORDS_BYTES: usize = 8;

/// Charges a reset that has gone out.
fn spend_reset(reason: u32, budgets: &FrameBudgets) -> Result<(), H2Closed> {
    match reason {
        NO_ERROR => Ok(()),
        STREAM_CLOSED if budgets.frames.spend(1, rt::now) => Ok(()),
        STREAM_CLOSED => Err(H2Closed::Frames),
        _ if budgets.resets.spend(1, rt::now) => Ok(()),
        _ => Err(H2Closed::Resets),
    }
}

impl OutboundFrames {
    /// Looks at bytes that go.
    ///
    /// # Errors
    /// Its client has caused too many resets. One that says that nothing was wrong is none of them: it
    /// only ends a body that nobody reads any longer. One for what comes of such a body later costs as
    /// much as a frame that is no request.
    pub(in crate::http::h2) fn take(
        &mut self,
        bytes: &[u8],
        budgets: &FrameBudgets,
    ) -> Result<(), H2Closed> {
        let mut taken = 0;
        let mut result = Ok(());
        while taken < bytes.len() {
            self.has_begun = true;
            match self.at.step(&bytes[taken..]) {
                FrameStep::Part(part) => {
                    if self.ends.is_some() {
                        let part_at = self.at.payload_at() - part;
                        let said = bytes[taken..taken + part].iter();
                        let says = self.says.iter_mut().skip(part_at);
                        says.zip(said).for_each(|(says, byte)| *says = *byte);
                    }
                    taken += part;
                }
                FrameStep::Head(part, head) => {
                    taken += part;
                    self.ends = match head.kind {
                        RST_STREAM => Some(FrameEnds::Stream),
                        GOAWAY => Some(FrameEnds::Connection),
                        _ => None,
                    };
                }
            }
            if !self.at.end_frame() {
                continue;
            }
            match self.ends.take() {
                Some(FrameEnds::Stream) => result = result.and(spend_reset(self.word(0), budgets)),
                Some(FrameEnds::Connection) => self.says_goodbye(),
                None => {}
            }
        }
        result
    }

    /// Four bytes of what the current frame says.
    fn word(&self, at: usize) -> u32 {
        let bytes = self.says[at..].first_chunk().expect("there are two words");
        u32::from_be_bytes(*bytes)
    }

    fn says_goodbye(&mut self) {
        self.last_stream = Some(self.word(0) & (u32::MAX >> 1));
        if self.word(4) != NO_ERROR {
            self.goodbye = Goodbye::Blames;
        } else if self.goodbye == Goodbye::Unsaid {
            self.goodbye = Goodbye::Said;
        }
    }

    /// What the library has said about the end of the connection.
    pub(in crate::http::h2) fn goodbye(&self) -> Goodbye {
        self.goodbye
    }

    /// What is to be sent last: that no stream after `last_stream` was looked at, or after the one that
    /// an earlier goodbye has named (a later one must not name a higher one), and why (`reason` as in
    /// RFC 9113, section 7). `None` in the middle of a frame.
    pub(in crate::http::h2) fn go_away(&self, last_stream: u32, reason: u32) -> Option<Box<[u8]>> {
        if !self.at.is_at_end() {
            return None;
        }
        let last_stream = self.last_stream.map_or(last_stream, |said| said.min(last_stream));
        // A server's first frame is its settings, which may be empty.
        let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
        let mut bytes = if self.has_begun { Vec::new() } else { settings.to_vec() };
        bytes.extend_from_slice(&[0, 0, 8, 7, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&last_stream.to_be_bytes());
        bytes.extend_from_slice(&reason.to_be_bytes());
        Some(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::FRAMES_BURST;
    use super::super::tests::frame;
    use super::*;

    #[test]
    fn the_last_words_of_the_library_are_told_apart() {
        use Goodbye::{Blames, Said, Unsaid};
        let words = |last: u32, reason: u32, more: &[u8]| {
            frame(GOAWAY, 0, 0, &[&last.to_be_bytes()[..], &reason.to_be_bytes(), more].concat())
        };
        for (frames, goodbye) in [
            (vec![frame(4, 0, 0, &[])], Unsaid),
            (vec![frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])], Unsaid),
            (vec![words(7, 0, b"")], Said),
            (vec![words(7, 0, b"all is well")], Said),
            (vec![words(0, 1, b"")], Blames),
            (vec![words(7, 0, b""), words(5, 11, b"calm")], Blames),
            (vec![words(7, 256, b""), words(5, 0, b"")], Blames),
        ] {
            for piece in [1, 3, 100] {
                let budgets = FrameBudgets::new(100, false, rt::now());
                let mut outbound = OutboundFrames::default();
                for bytes in frames.concat().chunks(piece) {
                    outbound.take(bytes, &budgets).unwrap();
                }
                assert_eq!(outbound.goodbye(), goodbye, "{frames:?} by {piece}");
            }
        }
    }

    #[test]
    fn resets_that_a_client_causes_count_and_the_last_words_wait_for_the_end_of_a_frame() {
        let budgets = FrameBudgets::new(100, false, rt::now());
        let mut outbound = OutboundFrames::default();
        let last_words = outbound.go_away(5, 11).unwrap();
        assert_eq!(last_words[..9], frame(4, 0, 0, &[]), "settings come first");
        assert_eq!(last_words[9..], frame(7, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 11]));
        let fine = frame(RST_STREAM, 0, 1, &[0; 4]);
        for byte in fine.iter().cycle().take(fine.len() * 1_000) {
            assert_eq!(outbound.take(&[*byte], &budgets), Ok(()));
        }
        assert_eq!(outbound.go_away(5, 11).unwrap()[..], last_words[9..]);
        let bad = frame(RST_STREAM, 0, 1, &[0, 0, 0, 1]);
        for byte in bad.iter().cycle().take(bad.len() * 200) {
            assert_eq!(outbound.take(&[*byte], &budgets), Ok(()));
        }
        assert_eq!(outbound.take(&bad[..12], &budgets), Ok(()));
        assert_eq!(outbound.go_away(5, 11), None);
        assert_eq!(outbound.take(&bad[12..], &budgets), Err(H2Closed::Resets));
    }

    /// The rest of a body that was not wanted comes in as many frames as are on the way.
    #[test]
    fn resets_for_what_comes_late_cost_what_frames_do() {
        let budgets = FrameBudgets::new(100, false, rt::now());
        let mut outbound = OutboundFrames::default();
        let late = frame(RST_STREAM, 0, 1, &STREAM_CLOSED.to_be_bytes());
        for sent in 0..FRAMES_BURST {
            assert_eq!(outbound.take(&late, &budgets), Ok(()), "{sent}");
        }
        assert_eq!(outbound.take(&late, &budgets), Err(H2Closed::Frames));
        let bad = frame(RST_STREAM, 0, 1, &[0, 0, 0, 1]);
        assert_eq!(outbound.take(&bad, &budgets), Ok(()), "none of these");
    }

    #[test]
    fn a_goodbye_names_no_higher_stream_than_the_one_before() {
        for (said, last, named) in [
            (&[][..], 9, 9),
            (&[i32::MAX as u32], 9, 9),
            (&[i32::MAX as u32, 5], 9, 5),
            (&[5], 3, 3),
        ] {
            let budgets = FrameBudgets::new(100, false, rt::now());
            let mut outbound = OutboundFrames::default();
            outbound.take(&frame(4, 0, 0, &[]), &budgets).unwrap();
            for stream in said {
                let words = [stream.to_be_bytes(), [0; 4]].concat();
                outbound.take(&frame(GOAWAY, 0, 0, &words), &budgets).unwrap();
            }
            let words = outbound.go_away(last, 11).unwrap();
            assert_eq!(words[9..13], u32::to_be_bytes(named), "{said:?}");
        }
    }
}
