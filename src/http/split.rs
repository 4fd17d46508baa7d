//! Splits the bodies of one core into payloads without holding the core.
//!
//! A body of up to [`SMALL_BODY_BYTES`](super::parse::SMALL_BODY_BYTES) is parsed in one turn, at
//! once. A longer one is parsed in slices between which other tasks run. Only one of those is in
//! progress, because two would only take twice as long and twice the memory; the others wait in the
//! order of their arrival, with their bodies only, which mostly are still in the kernel (see
//! `receive`).

use std::cell::{Cell, RefCell, RefMut};
use std::future::poll_fn;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::task::Poll;
use std::time::Duration;

use futures_lite::future;

use super::parse::{
    BodyForm, Envelope, MARKS_BYTES_MAX, PAYLOADS_KEPT_MAX, Parse, ParseError, SEGMENT_BYTES,
    Scratch,
};
use crate::budget::Padded;
use crate::deadline::strictly_within;
use crate::metrics::{Cell64, CoreCells};
use crate::queue::job::Span;
use crate::rt;
use crate::sync::{Turn, Turns};

/// Longest wait for a turn. A turn takes some milliseconds per MiB, so whoever waits for longer has
/// hundreds of large bodies before it.
pub const LARGE_WAIT_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Why a large body is not worked on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTurn {
    #[error(
        "large bodies are handled one after another, and those before this one took more than {} s; \
         try again, or send collections of up to 64 KiB, which do not wait for large ones",
        LARGE_WAIT_MAX.as_secs()
    )]
    Late,
    #[error("the server is stopping; send this to another one")]
    Closed,
}

/// Splits the bodies of one core.
pub struct BodySplitter {
    /// Most payloads that the core's queue can hold.
    payloads_max: usize,
    cells: &'static CoreCells,
    /// For small bodies, and for the steps of large ones.
    scratch: RefCell<Scratch>,
    /// Whose turn it is among large bodies.
    large: Turns,
    /// Empty while a large body is being split and until its spans are dropped.
    large_spans: RefCell<Vec<Span>>,
}

impl BodySplitter {
    /// A splitter for a core whose queue holds `payloads_max` payloads.
    pub fn new(payloads_max: usize, cells: &'static CoreCells) -> BodySplitter {
        BodySplitter {
            payloads_max,
            cells,
            scratch: RefCell::default(),
            large: Turns::default(),
            large_spans: RefCell::default(),
        }
    }

    /// The scratch for a body of up to [`super::parse::SMALL_BODY_BYTES`]. The borrow must end
    /// before the next await.
    pub fn scratch(&self) -> RefMut<'_, Scratch> {
        self.scratch.borrow_mut()
    }

    /// Waits until no other large body is being worked on, in the order of the calls, up to
    /// [`LARGE_WAIT_MAX`] and not after `closed` is set. The code that sets it must wake the waiting
    /// task.
    pub async fn large_turn(&self, closed: &Cell<bool>) -> Result<LargeTurn<'_>, NoTurn> {
        let _waiting = Waiting::new(&self.cells.large_body_waiters);
        let turn = async { Ok(LargeTurn(self.large.take().await)) };
        let closed = poll_fn(|_| match closed.get() {
            true => Poll::Ready(Err(NoTurn::Closed)),
            false => Poll::Pending,
        });
        strictly_within(LARGE_WAIT_MAX, future::or(closed, turn), || Err(NoTurn::Late)).await
    }

    /// The line in which large bodies wait for [`BodySplitter::large_turn`].
    pub fn large_line<'a>(&'a self, closed: &'a Cell<bool>) -> LargeLine<'a> {
        LargeLine { splitter: self, closed }
    }

    /// Splits a body of any length in slices. The turn ends when the spans are dropped.
    ///
    /// # Errors
    /// What is wrong with the body; more payloads than the queue can hold are wrong as well.
    pub async fn split_large<'body, 'a>(
        &'a self,
        body: Padded<'body>,
        form: BodyForm,
        turn: LargeTurn<'a>,
    ) -> Result<(Envelope<'body>, LargeSpans<'a>), ParseError> {
        let mut spans = LargeSpans { spans: self.large_spans.take(), splitter: self, _turn: turn };
        spans.spans.clear();
        // Growing would copy them in one turn. A body is refused after the segment in which it has
        // too many; a payload takes two bytes, or one at the end of the body.
        spans.spans.reserve_exact(most_spans(self.payloads_max, body.len()));
        let mut parse = Parse::new(body, form, self.payloads_max);
        loop {
            let step = parse.step(&mut self.scratch.borrow_mut().marks, &mut spans.spans);
            if let Some(found) = step {
                return Ok((found?, spans));
            }
            rt::yield_if_due().await;
        }
    }
}

/// Most memory of a [`BodySplitter`] for bodies of up to `length_max` bytes: what the steps need, and
/// the spans of a small body and of two large ones, 8 bytes each: one is being split while another,
/// which has waited for room, has its spans found again and enters the queue.
pub fn splitter_bytes(payloads_max: usize, length_max: usize) -> usize {
    let marked = payloads_max.min(length_max.div_ceil(2));
    let spans = PAYLOADS_KEPT_MAX + most_spans(payloads_max, length_max) + marked;
    MARKS_BYTES_MAX + spans * size_of::<Span>()
}

/// Most spans of a body of `length` bytes where `payloads_max` are allowed.
fn most_spans(payloads_max: usize, length: usize) -> usize {
    payloads_max.saturating_add(SEGMENT_BYTES / 2).min(length.div_ceil(2))
}

/// Counts a request that waits for its turn, until it is dropped.
struct Waiting(&'static Cell64);

impl Waiting {
    fn new(gauge: &'static Cell64) -> Waiting {
        gauge.inc();
        Waiting(gauge)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.sub(1);
    }
}

/// The right to work on a large body; the next one waits until it is dropped.
pub struct LargeTurn<'a>(#[expect(dead_code, reason = "dropped")] Turn<'a>);

/// Where a large body can wait for its turn.
#[derive(Clone, Copy)]
pub struct LargeLine<'a> {
    splitter: &'a BodySplitter,
    closed: &'a Cell<bool>,
}

impl<'a> LargeLine<'a> {
    /// As [`BodySplitter::large_turn`].
    pub async fn turn(self) -> Result<LargeTurn<'a>, NoTurn> {
        self.splitter.large_turn(self.closed).await
    }
}

/// The spans of a large body. No other one is split until they are dropped.
pub struct LargeSpans<'a> {
    spans: Vec<Span>,
    splitter: &'a BodySplitter,
    _turn: LargeTurn<'a>,
}

impl Deref for LargeSpans<'_> {
    type Target = [Span];
    fn deref(&self) -> &[Span] {
        &self.spans
    }
}

impl DerefMut for LargeSpans<'_> {
    fn deref_mut(&mut self) -> &mut [Span] {
        &mut self.spans
    }
}

impl Drop for LargeSpans<'_> {
    fn drop(&mut self) {
        let spans = mem::take(&mut self.spans);
        if spans.capacity() <= PAYLOADS_KEPT_MAX {
            self.splitter.large_spans.replace(spans);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use futures_lite::future::poll_once;

    use super::*;
    use crate::config::ObjectBody;
    use crate::http::parse::parse;

    const PLAIN: BodyForm = BodyForm::ByFirstByte(ObjectBody::Collection);

    /// A body of some MiB and its number of payloads.
    fn dense(payloads: usize) -> Vec<u8> {
        format!("{{\"data\":[1{}]}}", ",1".repeat(payloads - 1)).into_bytes()
    }

    fn splitter(payloads_max: usize) -> BodySplitter {
        BodySplitter::new(payloads_max, &crate::metrics::cells(1)[0])
    }

    #[test]
    fn small_bodies_are_split_while_a_large_one_is() {
        rt::run_test(async {
            let splitter = Rc::new(splitter(usize::MAX));
            let large = rt::spawn({
                let splitter = splitter.clone();
                async move {
                    let mut body = dense(2 << 20);
                    let turn = splitter.large_turn(&Cell::new(false)).await.unwrap();
                    let (_, spans) =
                        splitter.split_large(Padded::behind(&mut body), PLAIN, turn).await.unwrap();
                    spans.len()
                }
            });
            let mut split_meanwhile = 0;
            while poll_once(splitter.large.take()).await.is_none() {
                {
                    let mut small = br#"{"data":[1,2]}"#.to_vec();
                    let mut scratch = splitter.scratch();
                    let small = parse(Padded::behind(&mut small), PLAIN, &mut scratch).unwrap();
                    assert_eq!(small.payloads.len(), 2);
                }
                split_meanwhile += 1;
                rt::yield_now().await;
            }
            assert_eq!(large.await, 2 << 20);
            // 128 steps of at least some ten microseconds, with a yield after 500.
            assert!(split_meanwhile >= 5, "{split_meanwhile}");
        });
    }

    #[test]
    fn large_bodies_take_turns_and_a_dropped_one_leaves_its_turn() {
        rt::run_test(async {
            let (splitter, body) = (splitter(usize::MAX), dense(2 << 20));
            let split = async || {
                let mut body = body.clone();
                let turn = splitter.large_turn(&Cell::new(false)).await.unwrap();
                let body = Padded::behind(&mut body);
                let (_, spans) = splitter.split_large(body, PLAIN, turn).await.unwrap();
                spans.len()
            };
            let mut first = Box::pin(split());
            assert_eq!(poll_once(&mut first).await, None, "it has yielded");
            let mut second = Box::pin(split());
            let mut third = Box::pin(split());
            for _ in 0..3 {
                assert_eq!(poll_once(&mut second).await, None);
                assert_eq!(poll_once(&mut third).await, None);
            }
            assert!(splitter.large_spans.borrow().capacity() == 0, "nobody else has begun");
            assert_eq!(splitter.cells.large_body_waiters.value(), 2);
            // Its client has gone.
            drop(first);
            assert_eq!(second.await, 2 << 20);
            assert_eq!(third.await, 2 << 20);
            assert_eq!(splitter.cells.large_body_waiters.value(), 0);
            assert!(splitter.large_spans.borrow().capacity() <= PAYLOADS_KEPT_MAX);
        });
    }

    #[test]
    fn a_wait_for_a_turn_ends() {
        rt::run_test(async {
            let (splitter, closed) = (splitter(1), Cell::new(false));
            let held = splitter.large_turn(&closed).await.unwrap();
            let mut until_closed = Box::pin(splitter.large_turn(&closed));
            assert!(poll_once(&mut until_closed).await.is_none());
            assert_eq!(splitter.large_turn(&closed).await.err(), Some(NoTurn::Late));
            closed.set(true);
            assert_eq!(poll_once(&mut until_closed).await.unwrap().err(), Some(NoTurn::Closed));
            assert_eq!(splitter.cells.large_body_waiters.value(), 0);
            // Those that gave up are not waited for.
            drop(held);
            assert!(splitter.large_turn(&Cell::new(false)).await.is_ok());
        });
    }

    #[test]
    fn spans_are_bounded_by_the_queue_and_kept() {
        rt::run_test(async {
            // None of them is more than was reserved.
            let (splitter, lines) = (splitter(usize::MAX), "1\n".repeat(1 << 19) + "1");
            let mut lines = lines.into_bytes();
            let lines = Padded::behind(&mut lines);
            let turn = splitter.large_turn(&Cell::new(false)).await.unwrap();
            let (_, spans) = splitter.split_large(lines, BodyForm::Lines, turn).await.unwrap();
            assert_eq!(spans.len(), (1 << 19) + 1);
            assert_eq!(spans.spans.capacity(), spans.len());
        });
        rt::run_test(async {
            let (splitter, mut body) = (splitter(1_000), dense(1 << 20));
            let body_bytes = body.len();
            let turn = splitter.large_turn(&Cell::new(false)).await.unwrap();
            let refused = splitter.split_large(Padded::behind(&mut body), PLAIN, turn).await.err();
            assert_eq!(refused, Some(ParseError::TooManyPayloads { max: 1_000 }));
            let kept = splitter.large_spans.borrow().capacity();
            assert!((1..=most_spans(1_000, body_bytes)).contains(&kept), "{kept}");
        });
    }
}
