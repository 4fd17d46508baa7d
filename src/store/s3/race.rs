//! Which of a name's addresses a connection is opened to: RFC 8305, and what earlier connections
//! have learnt.
//!
//! Attempts start [`ATTEMPT_DELAY`] apart, or as soon as one fails, over addresses whose families
//! alternate; the first that connects wins and the others are dropped, which closes them. An
//! address that failed, or had not responded when another one won, moves to the end of the order
//! for [`AVOIDED_FOR`], so a dead address delays one connection, not every connection. It is never
//! left out, because by then it may be the only one that works.

use crate::rt;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::rt::Timer;

/// How long an attempt runs alone: the connection attempt delay of RFC 8305, section 5.
pub(super) const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Attempts of one connection at a time; each holds a descriptor.
const ATTEMPTS_MAX: usize = 4;
/// How long an address that did not answer is tried last.
const AVOIDED_FOR: Duration = Duration::from_secs(60);
/// Addresses remembered; beyond that the one that expires first is forgotten.
const AVOIDED_MAX: usize = 64;

/// One core's addresses that did not respond lately, and until when each is tried last.
#[derive(Default)]
pub(super) struct Avoided(Vec<(SocketAddr, Instant)>);

impl Avoided {
    /// `addresses` in the order in which they are tried.
    fn order(&mut self, addresses: &[SocketAddr], now: Instant) -> Vec<SocketAddr> {
        self.0.retain(|(_, until)| *until > now);
        let mut order = interleaved(addresses);
        // Stable: those that are not avoided stay in order, the others go by when they failed.
        order.sort_by_key(|address| self.until(address));
        order
    }

    fn until(&self, address: &SocketAddr) -> Option<Instant> {
        self.0.iter().find(|(of, _)| of == address).map(|(_, until)| *until)
    }

    /// Moves `address` to the end of the order from now on; true if it was not there already.
    fn note(&mut self, address: SocketAddr, now: Instant) -> bool {
        let until = now + AVOIDED_FOR;
        if let Some(known) = self.0.iter_mut().find(|(of, _)| *of == address) {
            known.1 = until;
            return false;
        }
        if self.0.len() >= AVOIDED_MAX {
            let first = (0..self.0.len()).min_by_key(|&i| self.0[i].1).expect("it is full");
            self.0.swap_remove(first);
        }
        self.0.push((address, until));
        true
    }

    fn forgive(&mut self, address: SocketAddr) {
        self.0.retain(|(of, _)| *of != address);
    }
}

/// Families in turn, beginning with that of the first address; otherwise as the resolver sorted
/// them.
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let Some(first) = addresses.first() else { return Vec::new() };
    let is_first = |a: &&SocketAddr| a.is_ipv4() == first.is_ipv4();
    let mut preferred = addresses.iter().filter(is_first);
    let mut others = addresses.iter().filter(|a| !is_first(a));
    let mut order = Vec::with_capacity(addresses.len());
    while order.len() < addresses.len() {
        order.extend(preferred.next());
        order.extend(others.next());
    }
    order
}

/// What is remembered about the addresses of `host`.
#[derive(Clone, Copy)]
pub(super) struct Memory<'a> {
    pub(super) host: &'a str,
    pub(super) avoided: &'a RefCell<Avoided>,
    /// Whether the host has other addresses: only then avoiding one matters.
    pub(super) has_choice: bool,
}

impl Memory<'_> {
    fn note(&self, address: SocketAddr, why: &str) {
        if self.avoided.borrow_mut().note(address, rt::now()) && self.has_choice {
            let (host, seconds) = (self.host, AVOIDED_FOR.as_secs());
            tracing::warn!(host, %address, why, "address does not respond, tried last for {seconds} s");
        }
    }

    /// An address that accepted a connection but has not proved usable yet: without
    /// [`Trial::passed`] it is avoided when the trial ends.
    pub(super) fn trial(&self, address: SocketAddr) -> Trial<'_> {
        Trial { memory: *self, address: Some(address) }
    }
}

pub(super) struct Trial<'a> {
    memory: Memory<'a>,
    address: Option<SocketAddr>,
}

impl Trial<'_> {
    /// The outcome, good or bad, is not the address's fault.
    pub(super) fn passed(mut self) {
        self.address = None;
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            self.memory.note(address, "it accepts connections but the handshake does not complete");
        }
    }
}

/// Attempts in flight. However the race ends, those without a response for a whole delay are noted.
struct Race<'a, F> {
    memory: Memory<'a>,
    running: Vec<Attempt<F>>,
}

struct Attempt<F> {
    address: SocketAddr,
    since: Instant,
    connect: Pin<Box<F>>,
}

impl<F> Drop for Race<'_, F> {
    fn drop(&mut self) {
        for attempt in &self.running {
            if rt::since(attempt.since) >= ATTEMPT_DELAY {
                self.memory.note(attempt.address, "no answer");
            }
        }
    }
}

impl<F: Future<Output = io::Result<S>>, S> Race<'_, F> {
    /// Removes an attempt that has ended: the winner, or a failure.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(SocketAddr, io::Result<S>)> {
        for i in 0..self.running.len() {
            if let Poll::Ready(outcome) = self.running[i].connect.as_mut().poll(cx) {
                return Poll::Ready((self.running.remove(i).address, outcome));
            }
        }
        Poll::Pending
    }

    /// As [`Race::poll`], or `None` once `timer` has expired.
    async fn next(&mut self, mut timer: Option<&mut Timer>) -> Option<(SocketAddr, io::Result<S>)> {
        poll_fn(|cx| match self.poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending => match &mut timer {
                Some(timer) => Pin::new(&mut **timer).poll(cx).map(|_| None),
                None => Poll::Pending,
            },
        })
        .await
    }
}

/// Connects to one of `addresses`. Has no timeout of its own: the caller drops it at its deadline.
///
/// # Errors
/// Every address failed: the last one's error, or `None` without any address.
pub(super) async fn first_of<F, S>(
    memory: Memory<'_>,
    addresses: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> F,
) -> Result<(SocketAddr, S), Option<(SocketAddr, io::Error)>>
where
    F: Future<Output = io::Result<S>>,
{
    let order = memory.avoided.borrow_mut().order(addresses, rt::now());
    let mut waiting = order.into_iter().peekable();
    let mut race = Race { memory, running: Vec::new() };
    let mut failed = None;
    let mut timer = None;
    loop {
        if timer.is_none()
            && race.running.len() < ATTEMPTS_MAX
            && let Some(address) = waiting.next()
        {
            let connect = Box::pin(connect(address));
            race.running.push(Attempt { address, since: rt::now(), connect });
            timer = waiting.peek().map(|_| Timer::new(ATTEMPT_DELAY));
        }
        if race.running.is_empty() {
            return Err(failed);
        }
        match race.next(timer.as_mut()).await {
            Some((address, Ok(stream))) => {
                memory.avoided.borrow_mut().forgive(address);
                return Ok((address, stream));
            }
            Some((address, Err(error))) => {
                memory.note(address, &error.to_string());
                failed = Some((address, error));
                // The next attempt starts at once.
                timer = None;
            }
            None => timer = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use crate::rt::sleep;

    use super::*;

    const DEAD: Duration = Duration::from_secs(3600);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn on_executor<T>(test: impl Future<Output = T>) -> T {
        rt::run_test(test)
    }

    /// How an address of a test answers.
    type Network = Vec<(SocketAddr, Duration, Result<(), io::ErrorKind>)>;

    /// Attempts as they were made, and how many are open.
    #[derive(Clone, Default)]
    struct Log(Rc<RefCell<(Vec<SocketAddr>, usize)>>);

    struct Open(Log);
    impl Drop for Open {
        fn drop(&mut self) {
            self.0.0.borrow_mut().1 -= 1;
        }
    }

    async fn race(
        network: &Network,
        avoided: &RefCell<Avoided>,
        log: &Log,
    ) -> Result<SocketAddr, Option<(SocketAddr, io::Error)>> {
        let addresses: Vec<SocketAddr> = network.iter().map(|(a, ..)| *a).collect();
        let memory = Memory { host: "h", avoided, has_choice: true };
        let won = first_of(memory, &addresses, |address| {
            log.0.borrow_mut().0.push(address);
            log.0.borrow_mut().1 += 1;
            let open = Open(log.clone());
            let (_, after, outcome) =
                *network.iter().find(|(a, ..)| *a == address).expect("one of them");
            async move {
                sleep(after).await;
                outcome.map(|()| open).map_err(io::Error::from)
            }
        })
        .await;
        won.map(|(address, open)| {
            assert_eq!(log.0.borrow().1, 1, "the losers are closed");
            drop(open);
            address
        })
    }

    #[test]
    fn families_alternate_and_the_resolver_s_order_stays() {
        let all = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"].map(address);
        let expected = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"].map(address);
        assert_eq!(interleaved(&all), expected);
        assert_eq!(interleaved(&all[3..]), all[3..]);
        assert!(interleaved(&[]).is_empty());
    }

    #[test]
    fn what_failed_is_tried_last_until_it_is_due_and_in_a_bounded_table() {
        let (mut avoided, now) = (Avoided::default(), Instant::now());
        let [a, b, c] = ["1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1"].map(address);
        assert!(avoided.note(a, now));
        assert!(!avoided.note(a, now), "known");
        assert!(avoided.note(b, now + Duration::from_secs(1)));
        assert_eq!(avoided.order(&[a, b, c], now), [c, a, b]);
        assert_eq!(avoided.order(&[a, b, c], now + AVOIDED_FOR), [a, c, b]);
        avoided.forgive(b);
        assert_eq!(avoided.order(&[a, b, c], now + AVOIDED_FOR), [a, b, c]);
        for port in 0..2 * AVOIDED_MAX as u16 {
            avoided.note(([9, 9, 9, 9], port).into(), now);
        }
        assert_eq!(avoided.0.len(), AVOIDED_MAX);
    }

    #[test]
    fn a_silent_address_costs_one_delay_once() {
        on_executor(async {
            let (avoided, log) = (RefCell::default(), Log::default());
            let [dead, good] = ["1.1.1.1:1", "2.2.2.2:1"].map(address);
            let network = vec![(dead, DEAD, Ok(())), (good, Duration::ZERO, Ok(()))];
            let began = Instant::now();
            assert_eq!(race(&network, &avoided, &log).await.unwrap(), good);
            assert!(began.elapsed() >= ATTEMPT_DELAY);
            assert_eq!(race(&network, &avoided, &log).await.unwrap(), good);
            assert_eq!(log.0.borrow().0, [dead, good, good], "the second time it is not tried");
        });
    }

    #[test]
    fn a_slow_address_wins_when_it_answers_before_the_next() {
        on_executor(async {
            let (avoided, log) = (RefCell::default(), Log::default());
            let [slow, dead] = ["1.1.1.1:1", "[::1]:1"].map(address);
            let later = ATTEMPT_DELAY + Duration::from_millis(500);
            let network = vec![(slow, later, Ok(())), (dead, DEAD, Ok(()))];
            assert_eq!(race(&network, &avoided, &log).await.unwrap(), slow);
            assert_eq!(log.0.borrow().0, [slow, dead]);
        });
    }

    #[test]
    fn a_refusal_starts_the_next_attempt_at_once_and_the_last_one_is_the_error() {
        on_executor(async {
            let (avoided, log) = (RefCell::default(), Log::default());
            let refused = || (Duration::ZERO, Err(io::ErrorKind::ConnectionRefused));
            let all: Vec<SocketAddr> = (1..=20).map(|port| ([1, 1, 1, 1], port).into()).collect();
            let mut network: Network = all.iter().map(|a| (*a, refused().0, refused().1)).collect();
            let began = Instant::now();
            let (last, error) = race(&network, &avoided, &log).await.unwrap_err().unwrap();
            assert_eq!((last, error.kind()), (all[19], io::ErrorKind::ConnectionRefused));
            assert!(began.elapsed() < 18 * ATTEMPT_DELAY, "20 of them did not wait for a turn");
            // One of those that are avoided lives again.
            network[7].2 = Ok(());
            assert_eq!(race(&network, &avoided, &log).await.unwrap(), all[7]);
            let nowhere: Network = Vec::new();
            assert!(race(&nowhere, &avoided, &log).await.unwrap_err().is_none());
        });
    }

    #[test]
    fn an_abandoned_race_remembers_who_was_silent_and_closes_all() {
        on_executor(async {
            let (avoided, log) = (RefCell::default(), Log::default());
            let all: Vec<SocketAddr> = (1..=20).map(|port| ([1, 1, 1, 1], port).into()).collect();
            let network: Network = all.iter().map(|a| (*a, DEAD, Ok(()))).collect();
            let abandoned = async {
                let _ = race(&network, &avoided, &log).await;
                panic!("nobody answers");
            };
            let limit = async {
                sleep(2 * ATTEMPT_DELAY + ATTEMPT_DELAY / 2).await;
            };
            futures_lite::future::or(abandoned, limit).await;
            assert_eq!(log.0.borrow().1, 0, "all are closed");
            let tried = log.0.borrow().0.len();
            let avoided = avoided.borrow();
            assert!(tried >= 2 && avoided.0.len() >= tried - 1, "{tried}, {}", avoided.0.len());
        });
    }

    #[test]
    fn attempts_at_a_time_are_bounded() {
        on_executor(async {
            let (avoided, log) = (RefCell::default(), Log::default());
            let memory = Memory { host: "h", avoided: &avoided, has_choice: true };
            let mut race = Race { memory, running: Vec::new() };
            for port in 0..ATTEMPTS_MAX as u16 {
                let connect = Box::pin(std::future::pending::<io::Result<()>>());
                let address = ([1, 1, 1, 1], port).into();
                race.running.push(Attempt { address, since: Instant::now(), connect });
            }
            let mut timer = Timer::new(Duration::from_millis(1));
            assert!(race.next(Some(&mut timer)).await.is_none(), "the timer came first");
            drop((race, log));
            assert!(avoided.borrow().0.is_empty(), "none was silent for a whole delay");
        });
    }
}
