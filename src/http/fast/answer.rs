//! Answers of the fast path as bytes, the same as those that hyper would write.

use std::cell::RefCell;
use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http::header::CONNECTION;
use http_body::Body as _;
use http_body_util::Full;
use time::OffsetDateTime;

use crate::config::Ack;
use crate::http::reply::with_accepted;
use crate::queue::job::Stamp;

const CLOSE: &[u8] = b"connection: close\r\n";

/// Writes a 200 at `now`: the answer of nearly every request. `closes`: it is the last one.
pub fn write_accepted(count: usize, ack: Ack, closes: bool, now: Instant, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n");
    if closes {
        out.extend_from_slice(CLOSE);
    }
    with_accepted(count, ack, |body| write_body(body, now, out));
}

/// Writes any other answer at `now`. If the client `wants_close`, that is said last, unless the
/// answer says it already.
pub fn write(response: Response<Full<Bytes>>, wants_close: bool, now: Instant, out: &mut Vec<u8>) {
    let (status, headers) = (response.status(), response.headers());
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("<none>").as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    if wants_close && !headers.contains_key(CONNECTION) {
        out.extend_from_slice(CLOSE);
    }
    write_body(&whole(response.into_body()), now, out);
}

/// Whether the connection ends with this answer.
pub fn is_last(response: &Response<Full<Bytes>>) -> bool {
    // No answer has the field with another value than `close`.
    response.headers().contains_key(CONNECTION)
}

/// Writes the rest of a head, which tells the length of `body`, and `body`.
fn write_body(body: &[u8], now: Instant, out: &mut Vec<u8>) {
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(itoa::Buffer::new().format(body.len()).as_bytes());
    out.extend_from_slice(b"\r\ndate: ");
    with_date(now, |date| out.extend_from_slice(date));
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(body);
}

/// The bytes of a body that is in memory.
fn whole(mut body: Full<Bytes>) -> Bytes {
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(&mut cx) else {
        unreachable!("it is in memory")
    };
    let data = frame.and_then(Result::ok).and_then(|frame| frame.into_data().ok());
    data.unwrap_or_default()
}

/// Length of `Sun, 06 Nov 1994 08:49:37 GMT`.
const DATE_BYTES: usize = 29;

/// The text of a `date` field, and until when it is right.
struct DateText {
    text: [u8; DATE_BYTES],
    until: Option<Instant>,
}

/// Calls `with` with the date at `now`, which is written once a second.
fn with_date(now: Instant, with: impl FnOnce(&[u8])) {
    thread_local! {
        static DATE: RefCell<DateText> =
            const { RefCell::new(DateText { text: [0; DATE_BYTES], until: None }) };
    }
    DATE.with_borrow_mut(|date| {
        if date.until.is_none_or(|until| now >= until) {
            let unix_nanos = Stamp::unix_nanos_now();
            write_date(unix_nanos / SECOND_NANOS, &mut date.text);
            let gone = Duration::from_nanos(unix_nanos % SECOND_NANOS);
            date.until = Some(now + Duration::from_secs(1) - gone);
        }
        with(&date.text);
    });
}

const SECOND_NANOS: u64 = 1_000_000_000;

/// Writes an IMF-fixdate (RFC 9110 section 5.6.7).
fn write_date(unix_s: u64, mut out: &mut [u8]) {
    let time = OffsetDateTime::from_unix_timestamp(unix_s as i64);
    let time = time.expect("64 bits of nanoseconds end in 2554");
    const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    write!(
        out,
        "{}, {:02} {} {:04} {:02}:{:02}:{:02} GMT",
        DAYS[usize::from(time.weekday().number_days_from_monday())],
        time.day(),
        MONTHS[usize::from(u8::from(time.month())) - 1],
        time.year(),
        time.hour(),
        time.minute(),
        time.second()
    )
    .expect("all parts have fixed widths");
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::http::reply::Answer;
    use crate::rt;

    fn at(unix_s: u64) -> String {
        let mut text = [0; DATE_BYTES];
        write_date(unix_s, &mut text);
        String::from_utf8(text.to_vec()).unwrap()
    }

    #[test]
    fn dates_are_those_of_rfc_9110() {
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(at(1_709_164_800), "Thu, 29 Feb 2024 00:00:00 GMT");
        assert_eq!(at(1_767_225_599), "Wed, 31 Dec 2025 23:59:59 GMT");
    }

    #[test]
    fn the_date_is_written_anew_each_second() {
        let now = rt::now();
        let date = |now| {
            let mut text = Vec::new();
            with_date(now, |date| text.extend_from_slice(date));
            text
        };
        let first = date(now);
        assert_eq!(first.len(), DATE_BYTES);
        // The system's clock decides what is written, the monotonic one when.
        std::thread::sleep(Duration::from_millis(1_100));
        assert_eq!(date(now), first);
        assert_ne!(date(rt::now()), first);
    }

    #[test]
    fn the_short_way_of_a_200_writes_what_the_long_one_does() {
        let now = rt::now();
        for (count, ack) in [(0, Ack::Queued), (10, Ack::Stored), (1_000, Ack::Spooled)] {
            for closes in [false, true] {
                let (mut short, mut long) = (Vec::new(), Vec::new());
                write_accepted(count, ack, closes, now, &mut short);
                let response = Answer::Accepted { count, ack }.render(closes, HeaderMap::new());
                assert_eq!(is_last(&response), closes);
                write(response, false, now, &mut long);
                assert_eq!(short, long);
            }
        }
    }

    #[test]
    fn close_is_said_once() {
        let closes = |mut response: Response<Full<Bytes>>, wants_close| {
            response.headers_mut().insert("vary", HeaderValue::from_static("origin"));
            let mut out = Vec::new();
            write(response, wants_close, rt::now(), &mut out);
            String::from_utf8(out).unwrap().matches("connection: close\r\n").count()
        };
        let answer = |closes| Answer::MethodNotAllowed.render(closes, HeaderMap::new());
        assert_eq!(closes(answer(false), false), 0);
        assert_eq!(closes(answer(false), true), 1);
        assert_eq!(closes(answer(true), true), 1);
        assert_eq!(closes(answer(true), false), 1);
    }
}
