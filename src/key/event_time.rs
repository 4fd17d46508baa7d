//! Times: parses a payload's `EVENT_TIME`, and renders a time's parts in UTC.
//!
//! A string of 8, 12 or 14 digits that reads as `YYYYMMDD`, `YYYYMMDDhhmm` or `YYYYMMDDhhmmss` in a
//! year from 1970 to 2100 is that time in UTC. As epoch numbers they would be times in 1970 and
//! 1976, or after 2554.
//!
//! Any other number or string with a number is a time since 1970. Its size before the point
//! determines the unit:
//!
//! | below | unit | reads |
//! |---|---|---|
//! | 10¹¹ | seconds, with any fraction | 1970 to 2554 |
//! | 10¹⁴ | milliseconds | March 1973 to 2554 |
//! | 10¹⁷ | microseconds | the same |
//! | 10²⁰ | nanoseconds | the same |
//!
//! A smaller number of milliseconds (or smaller units) reads as a coarser unit; events are not that
//! old.
//!
//! Any other string is a date and a time of ISO 8601, which includes RFC 3339:
//!
//! | part | forms |
//! |---|---|
//! | date | `2025-11-21`, `20251121` |
//! | between | `T`, `t`, a space, or any other ASCII character but a digit, `+` and `-` |
//! | time | `20:00:00`, `200000`, with a fraction of any length behind `.` or `,`; `20:00`, `2000` |
//! | offset | `Z`, `z`, `+01:30`, `+0130`, `+01`; none is UTC |
//!
//! A date alone is its midnight in UTC. A leap second (`23:59:60` in UTC, at the end of a month) is
//! the end of its minute. Times before 1970 or after 2554 (2⁶⁴ nanoseconds) and all other values
//! are not event times.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use time::{Date, Month, OffsetDateTime};

use super::value::Unescaped;

/// No epoch number takes more bytes.
const EPOCH_BYTES_MAX: usize = 64;

/// No time takes more bytes: thousands of digits behind a second are something else.
const TIME_BYTES_MAX: usize = 1024;

/// Characters of an unreadable value that [`shape`] shows.
const SHAPE_CHARS_MAX: usize = 40;

/// First and last year of a time that is only digits: others may be meant as numbers.
const COMPACT_YEARS: RangeInclusive<&[u8]> = b"1970".as_slice()..=b"2100".as_slice();

/// Nanoseconds since 1970 of a JSON value.
pub(super) fn read(raw: &[u8]) -> Option<u64> {
    let [b'"', inside @ .., b'"'] = raw else { return epoch(raw) };
    if inside.len() > TIME_BYTES_MAX {
        return None;
    }
    if !inside.contains(&b'\\') {
        return text(inside);
    }
    let mut plain = [0; TIME_BYTES_MAX];
    let mut bytes = 0;
    for char in Unescaped::new(inside) {
        plain[bytes] = u8::try_from(char).ok().filter(u8::is_ascii)?;
        bytes += 1;
    }
    text(&plain[..bytes])
}

fn text(text: &[u8]) -> Option<u64> {
    compact(text).or_else(|| epoch(text)).or_else(|| iso_8601(text))
}

/// A value that is not an event time, as a log line may show it: digits as `9`, letters as `a`, the
/// marks of numbers and times as they are, and everything else as `?`. Nothing else of it is
/// revealed, and it has at most [`SHAPE_CHARS_MAX`] characters.
pub(super) fn shape(raw: &[u8]) -> String {
    let mut shape = String::new();
    match raw {
        [] => shape.push_str("nothing"),
        [b'{', ..] => shape.push_str("an object"),
        [b'[', ..] => shape.push_str("an array"),
        [b'n', ..] => shape.push_str("null"),
        [b't' | b'f', ..] => shape.push_str("a boolean"),
        [b'"', inside @ .., b'"'] => {
            let start = &inside[..inside.len().min(TIME_BYTES_MAX)];
            let _fits = write!(shape, "the text {:?}", shape_of(Unescaped::new(start)));
        }
        number => {
            let digits = number.iter().map(|byte| char::from(*byte));
            let _fits = write!(shape, "the number {}", shape_of(digits));
        }
    }
    shape
}

fn shape_of(text: impl Iterator<Item = char>) -> String {
    let shown = |char: char| match char {
        _ if char.is_numeric() => '9',
        _ if char.is_alphabetic() => 'a',
        '-' | '+' | ':' | '.' | ',' | '/' | ' ' => char,
        _ => '?',
    };
    let mut shape: String = text.map(shown).take(SHAPE_CHARS_MAX + 1).collect();
    if shape.len() > SHAPE_CHARS_MAX {
        shape.truncate(SHAPE_CHARS_MAX);
        shape.push('…');
    }
    shape
}

/// A date or a date and a time without any mark.
fn compact(text: &[u8]) -> Option<u64> {
    let is_compact = matches!(text.len(), 8 | 12 | 14) && text.iter().all(u8::is_ascii_digit);
    (is_compact && COMPACT_YEARS.contains(&&text[..4])).then_some(())?;
    let mut rest = Unread(text);
    let date = rest.date()?;
    let time = if rest.0.is_empty() { TimeOfDay::default() } else { rest.time()? };
    unix_nanos(date, &time, 0)
}

fn iso_8601(text: &[u8]) -> Option<u64> {
    let mut rest = Unread(text);
    let date = rest.date()?;
    let (time, offset_s) = match rest.0 {
        [] => (TimeOfDay::default(), 0),
        _ => {
            rest.separator()?;
            (rest.time()?, rest.offset()?)
        }
    };
    rest.0.is_empty().then_some(())?;
    unix_nanos(date, &time, offset_s)
}

fn unix_nanos(date: Date, time: &TimeOfDay, offset_s: i32) -> Option<u64> {
    let midnight = date.midnight().assume_utc().unix_timestamp();
    let unix_s = midnight + i64::from(time.second) - i64::from(offset_s);
    if time.is_leap {
        let utc = OffsetDateTime::from_unix_timestamp(unix_s).ok()?;
        let ends_month = utc.date().next_day().is_some_and(|next| next.day() == 1);
        (ends_month && (utc.hour(), utc.minute()) == (23, 59)).then_some(())?;
    }
    u64::try_from(unix_s).ok()?.checked_mul(1_000_000_000)?.checked_add(time.nanos.into())
}

#[derive(Default)]
struct TimeOfDay {
    /// 59 seconds of the minute if it is a leap second.
    second: u32,
    nanos: u32,
    is_leap: bool,
}

/// The part of a text that is not read yet.
struct Unread<'a>(&'a [u8]);

impl Unread<'_> {
    fn skip(&mut self, wanted: u8) -> bool {
        match self.0.split_first() {
            Some((&byte, behind)) if byte == wanted => {
                self.0 = behind;
                true
            }
            _ => false,
        }
    }

    /// A number of two digits, up to `max`.
    fn two_digits(&mut self, max: u32) -> Option<u32> {
        let (digits, behind) = self.0.split_first_chunk::<2>()?;
        digits.iter().all(u8::is_ascii_digit).then_some(())?;
        self.0 = behind;
        let number = u32::from(digits[0] - b'0') * 10 + u32::from(digits[1] - b'0');
        (number <= max).then_some(number)
    }

    fn date(&mut self) -> Option<Date> {
        let year = self.two_digits(99)? * 100 + self.two_digits(99)?;
        let is_extended = self.skip(b'-');
        let month = Month::try_from(self.two_digits(12)? as u8).ok()?;
        (self.skip(b'-') == is_extended).then_some(())?;
        let day = self.two_digits(31)? as u8;
        Date::from_calendar_date(year as i32, month, day).ok()
    }

    /// What stands between date and time. Signs do not: behind a date they begin an offset.
    fn separator(&mut self) -> Option<()> {
        let (byte, behind) = self.0.split_first()?;
        let separates = byte.is_ascii() && !byte.is_ascii_digit() && !matches!(byte, b'+' | b'-');
        self.0 = behind;
        separates.then_some(())
    }

    fn time(&mut self) -> Option<TimeOfDay> {
        let hour = self.two_digits(23)?;
        let is_extended = self.skip(b':');
        let minute = self.two_digits(59)?;
        let has_second = match is_extended {
            true => self.skip(b':'),
            false => self.0.first().is_some_and(u8::is_ascii_digit),
        };
        let mut time = TimeOfDay { second: hour * 3600 + minute * 60, ..TimeOfDay::default() };
        if has_second {
            let second = self.two_digits(60)?;
            time.nanos = self.fraction()?;
            time.is_leap = second == 60;
            if time.is_leap {
                time.nanos = 999_999_999;
            }
            time.second += second.min(59);
        }
        Some(time)
    }

    /// Nanoseconds; more digits are read and do not count.
    fn fraction(&mut self) -> Option<u32> {
        if !self.skip(b'.') && !self.skip(b',') {
            return Some(0);
        }
        let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, behind) = self.0.split_at(digits);
        self.0 = behind;
        (!digits.is_empty()).then_some(())?;
        let nine = digits.iter().chain(std::iter::repeat(&b'0')).take(9);
        Some(nine.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0')))
    }

    /// Seconds that its local time is ahead of UTC.
    fn offset(&mut self) -> Option<i32> {
        let sign = match self.0.split_first() {
            None => return Some(0),
            Some((b'Z' | b'z', behind)) => {
                self.0 = behind;
                return Some(0);
            }
            Some((b'+', _)) => 1,
            Some((b'-', _)) => -1,
            Some(_) => return None,
        };
        self.0 = &self.0[1..];
        let hours = self.two_digits(23)?;
        let minutes = if self.0.is_empty() {
            0
        } else {
            let _basic_has_none = self.skip(b':');
            self.two_digits(59)?
        };
        Some(sign * (hours * 3600 + minutes * 60) as i32)
    }
}

/// Parses a decimal number, in the unit given by its size. Exact: a double would lose the
/// nanoseconds.
fn epoch(text: &[u8]) -> Option<u64> {
    if text.len() > EPOCH_BYTES_MAX {
        return None;
    }
    let text = str::from_utf8(text).ok()?;
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let digits = || whole.bytes().chain(fraction.bytes());
    let zeros = digits().take_while(|&b| b == b'0').count();
    if zeros == whole.len() + fraction.len() {
        return Some(0);
    }
    let mut digits = digits().skip(zeros);
    // Digits before the point, from the first nonzero one; negative for zeros behind the point.
    let size = whole.len() as i64 - zeros as i64 + i64::from(exponent);
    let to_nanos = match size {
        ..=11 => 9,
        12..=14 => 6,
        15..=17 => 3,
        18..=20 => 0,
        _ => return None,
    };
    (0..size + to_nanos).try_fold(0_u64, |nanos, _| {
        let digit = digits.next().unwrap_or(b'0') - b'0';
        nanos.checked_mul(10)?.checked_add(digit.into())
    })
}

/// One part of a time. Each has a fixed width, up to the year 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimePart {
    Year,
    Month,
    Day,
    DayOfYear,
    Hour,
    Minute,
    Second,
}

impl TimePart {
    pub(super) fn width(self) -> usize {
        match self {
            TimePart::Year => 4,
            TimePart::DayOfYear => 3,
            _ => 2,
        }
    }
}

/// The date of the last day rendered, so that times on the same day do not compute it again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calendar {
    /// Since 1970-01-01.
    days: u64,
    year: u16,
    month: u8,
    day: u8,
    day_of_year: u16,
}

impl Default for Calendar {
    fn default() -> Calendar {
        Calendar { days: 0, year: 1970, month: 1, day: 1, day_of_year: 1 }
    }
}

impl Calendar {
    pub(super) fn write(&mut self, part: TimePart, unix_nanos: u64, out: &mut String) {
        let unix_s = unix_nanos / 1_000_000_000;
        self.turn_to(unix_s / 86_400);
        let number = match part {
            TimePart::Year => self.year,
            TimePart::Month => self.month.into(),
            TimePart::Day => self.day.into(),
            TimePart::DayOfYear => self.day_of_year,
            TimePart::Hour => (unix_s / 3600 % 24) as u16,
            TimePart::Minute => (unix_s / 60 % 60) as u16,
            TimePart::Second => (unix_s % 60) as u16,
        };
        let mut rank = 10_u16.pow(part.width() as u32 - 1);
        while rank > 0 {
            out.push(char::from(b'0' + (number / rank % 10) as u8));
            rank /= 10;
        }
    }

    fn turn_to(&mut self, days: u64) {
        if self.days == days {
            return;
        }
        let date = OffsetDateTime::from_unix_timestamp((days * 86_400) as i64)
            .expect("64 bits of nanoseconds end in 2554")
            .date();
        *self = Calendar {
            days,
            year: date.year() as u16,
            month: date.month().into(),
            day: date.day(),
            day_of_year: date.ordinal(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_unit_of_a_number_is_told_by_its_size() {
        for (raw, nanos) in [
            ("1763755200", 1_763_755_200_000_000_000),
            ("1763755200.25", 1_763_755_200_250_000_000),
            ("1763755200.123456789", 1_763_755_200_123_456_789),
            ("1763755200.1234567899", 1_763_755_200_123_456_789),
            ("1.7637552005E9", 1_763_755_200_500_000_000),
            ("17637552005e-1", 1_763_755_200_500_000_000),
            ("1763755200123", 1_763_755_200_123_000_000),
            ("1763755200123.5", 1_763_755_200_123_500_000),
            ("1763755200123456", 1_763_755_200_123_456_000),
            ("1763755200123456789", 1_763_755_200_123_456_789),
            ("18446744073709551615", u64::MAX),
            ("\"1763755200\"", 1_763_755_200_000_000_000),
            (r#""17637552\u00300""#, 1_763_755_200_000_000_000),
            ("0", 0),
            ("0.0", 0),
            ("0.000000001", 1),
            ("0.25", 250_000_000),
            ("1e-9", 1),
            ("1e-10", 0),
            ("100000000000", 100_000_000_000_000_000),
        ] {
            assert_eq!(read(raw.as_bytes()), Some(nanos), "{raw}");
        }
    }

    #[test]
    fn digits_that_are_a_date_are_one_in_a_string_only() {
        let day = 1_763_683_200_000_000_000;
        let (hour, second) = (3_600_000_000_000, 1_000_000_000);
        for (text, nanos) in [
            ("20251121", day),
            ("202511212000", day + 20 * hour),
            ("20251121200001", day + 20 * hour + second),
            ("20251121235959", day + 24 * hour - second),
            (r"2025112\u0031", day),
            ("19700101", 0),
            ("197001010000", 0),
            ("19700101000001", second),
            ("21001231", 4_133_894_400_000_000_000),
            ("20240229", 1_709_164_800_000_000_000),
            ("20161231235960", 1_483_228_799_999_999_999),
            // No dates: numbers.
            ("20250229", 20_250_229 * second),
            ("20251321", 20_251_321 * second),
            ("20251100", 20_251_100 * second),
            ("19691231", 19_691_231 * second),
            ("21010101", 21_010_101 * second),
            ("2025112", 2_025_112 * second),
            ("202511210", 202_511_210 * second),
            ("2025112120", 2_025_112_120 * second),
            ("202511212460", 202_511_212_460_000_000),
            ("196912312359", 196_912_312_359_000_000),
            ("2025112120000", 2_025_112_120_000_000_000),
        ] {
            assert_eq!(read(format!("\"{text}\"").as_bytes()), Some(nanos), "{text}");
        }
        for text in ["20251121200060", "20251121246000", "20251321200000", "20251121200000123"] {
            assert_eq!(read(format!("\"{text}\"").as_bytes()), None, "{text}");
        }
        assert_eq!(read(b"20251121"), Some(20_251_121 * second));
        assert_eq!(read(b"202511212000"), Some(202_511_212_000_000_000));
        assert_eq!(read(b"20251121200000"), None);
    }

    #[test]
    fn any_other_string_is_iso_8601() {
        let nanos = 1_763_755_200_000_000_000;
        let half = nanos + 500_000_000;
        let digits = "123456789".repeat(100);
        for (raw, expected) in [
            ("2025-11-21T20:00:00Z", nanos),
            ("2025-11-21t20:00:00z", nanos),
            ("2025-11-21 20:00:00Z", nanos),
            ("2025-11-21_20:00:00Z", nanos),
            ("2025-11-21T21:30:00+01:30", nanos),
            ("2025-11-21T12:00:00-08:00", nanos),
            ("2025-11-21T20:00:00-00:00", nanos),
            ("2025-11-21T20:00:00+0000", nanos),
            ("2025-11-21T21:30:00+0130", nanos),
            ("2025-11-21T12:00:00-08", nanos),
            ("2025-11-21T20:00:00+00", nanos),
            ("2025-11-22T19:59:00+23:59", nanos),
            ("2025-11-21T20:00:00", nanos),
            ("2025-11-21 20:00:00", nanos),
            ("2025-11-21T20:00", nanos),
            ("2025-11-21T20:00Z", nanos),
            ("2025-11-21T21:00+01", nanos),
            ("2025-11-21T20:00:00.5Z", half),
            ("2025-11-21T20:00:00,5Z", half),
            ("2025-11-21T20:00:00,500", half),
            ("2025-11-21 21:00:00,500+01", half),
            ("2025-11-21T20:00:00.1234567891234Z", nanos + 123_456_789),
            (&format!("2025-11-21T20:00:00.{digits}Z"), nanos + 123_456_789),
            (&format!("2025-11-21T20:00:00,{digits}"), nanos + 123_456_789),
            ("20251121T200000Z", nanos),
            ("20251121T200000", nanos),
            ("20251121T213000+0130", nanos),
            ("20251121T200000.5Z", half),
            ("20251121T200000,5-00", half),
            ("20251121T2000Z", nanos),
            ("20251121 20:00:00", nanos),
            ("2025-11-21", nanos - 20 * 3_600_000_000_000),
            ("2016-12-31T23:59:60Z", 1_483_228_799_999_999_999),
            ("2016-12-31T23:59:60.25Z", 1_483_228_799_999_999_999),
            ("2017-01-01T08:59:60+09:00", 1_483_228_799_999_999_999),
            ("20161231T235960", 1_483_228_799_999_999_999),
            ("1970-01-01T00:00:00Z", 0),
            ("2554-07-21T23:34:33.709551615Z", u64::MAX),
            (r"2025\u002d11-21T20:00:00Z", nanos),
            (r"2025-11-21T20:00:00\u002b0000", nanos),
        ] {
            assert_eq!(read(format!("\"{raw}\"").as_bytes()), Some(expected), "{raw}");
        }
    }

    #[test]
    fn what_is_logged_of_a_value_is_its_shape() {
        let long = format!("\"{}\"", "1".repeat(5_000));
        let cut = format!("the text \"{}…\"", "9".repeat(40));
        for (raw, expected) in [
            ("", "nothing"),
            ("null", "null"),
            ("true", "a boolean"),
            ("false", "a boolean"),
            ("{\"secret\":1}", "an object"),
            ("[\"secret\"]", "an array"),
            ("-5", "the number -9"),
            ("1e400", "the number 9a999"),
            ("\"\"", "the text \"\""),
            (r#""Fri, 21 Nov 2025 20:00:00 GMT""#, "the text \"aaa, 99 aaa 9999 99:99:99 aaa\""),
            (r#""21/11/2025 8.00 p.m.""#, "the text \"99/99/9999 9.99 a.a.\""),
            (r#""2025-W47-5""#, "the text \"9999-a99-9\""),
            (r#""\u0066oo\n\u001b[31m\"=日５""#, "the text \"aaa???99a??a9\""),
            ("\"\\ud800\u{fffd}\"", "the text \"??\""),
            (&long, &cut),
        ] {
            assert_eq!(shape(raw.as_bytes()), expected, "{raw}");
        }
    }

    #[test]
    fn other_values_are_not_times() {
        let long = format!("\"{}\"", "1".repeat(65));
        for raw in [
            "",
            "null",
            "true",
            "{}",
            "[1]",
            "\"\"",
            "\"now\"",
            "-1",
            "-0",
            "1e99999999999",
            "1e400",
            "18446744074",
            "99999999999",
            "18446744073709551616",
            "100000000000000000000",
            "\"1.\"",
            "\".5\"",
            "\"1e\"",
            "\"+1\"",
            "\" 1\"",
            "\"1_000\"",
            "\"1969-12-31T23:59:59Z\"",
            "\"1970-01-01T00:59:59,999999999+01\"",
            "\"2554-07-21T23:34:33.709551616Z\"",
            "\"2600-01-01T00:00:00Z\"",
            "\"2025-02-29T00:00:00Z\"",
            "\"20251121T\"",
            "\"2025-11-21T\"",
            "\"2025-11\"",
            "\"2025-1121\"",
            "\"202511-21\"",
            "\"2025-325\"",
            "\"2025-W47-5\"",
            "\"2025-11-21Z\"",
            "\"2025-11-21+01:00\"",
            "\"2025-11-21-01:00\"",
            "\"2025-13-21T20:00:00Z\"",
            "\"2025-00-21T20:00:00Z\"",
            "\"2025-11-00T20:00:00Z\"",
            "\"2025-11-31T20:00:00Z\"",
            "\"2025-11-21T24:00:00Z\"",
            "\"2025-11-21T20:60:00Z\"",
            "\"2025-11-21T20:00:61Z\"",
            "\"2025-11-21T20:00:60Z\"",
            "\"2025-11-21T23:59:60Z\"",
            "\"2016-12-31T23:59:60+01:00\"",
            "\"2025-11-21T20\"",
            "\"2025-11-21T20:0\"",
            "\"2025-11-21T20:00:\"",
            "\"2025-11-21T20:00:0\"",
            "\"2025-11-21T20:00.5\"",
            "\"2025-11-21T20:00:00.\"",
            "\"2025-11-21T20:00:00.Z\"",
            "\"2025-11-21T20:00:00.5.5\"",
            "\"2025-11-21T20:00:00+\"",
            "\"2025-11-21T20:00:00+1\"",
            "\"2025-11-21T20:00:00+01:\"",
            "\"2025-11-21T20:00:00+24:00\"",
            "\"2025-11-21T20:00:00+01:60\"",
            "\"2025-11-21T20:00:00+01:00x\"",
            "\"2025-11-21T20:00:00 +0000\"",
            "\"2025-11-21T20:00:00ZZ\"",
            "\"+2025-11-21T20:00:00Z\"",
            "\"21.11.2025 20:00\"",
            "\"２０２５-11-21T20:00:00Z\"",
            r#""\u00fc\ud800""#,
            &long,
            &"1".repeat(65),
        ] {
            assert_eq!(read(raw.as_bytes()), None, "{raw}");
        }
    }

    fn written(calendar: &mut Calendar, unix_nanos: u64) -> String {
        let mut text = String::new();
        for part in [TimePart::Year, TimePart::Month, TimePart::Day, TimePart::DayOfYear] {
            calendar.write(part, unix_nanos, &mut text);
            text.push(' ');
        }
        for part in [TimePart::Hour, TimePart::Minute, TimePart::Second] {
            calendar.write(part, unix_nanos, &mut text);
        }
        text
    }

    #[test]
    fn days_are_the_gregorian_calendars() {
        for (unix_s, expected) in [
            (0, "1970 01 01 001 000000"),
            (951_782_400 + 86_399, "2000 02 29 060 235959"),
            (1_763_755_199, "2025 11 21 325 195959"),
            (4_107_542_400, "2100 03 01 060 000000"),
            (u64::MAX / 1_000_000_000, "2554 07 21 202 233433"),
        ] {
            assert_eq!(written(&mut Calendar::default(), unix_s * 1_000_000_000), expected);
        }
    }

    const DAY: u64 = 86_400_000_000_000;

    proptest! {
        /// Against the `time` crate: what it takes for RFC 3339 is read alike, changed texts too.
        #[test]
        fn rfc_3339_is_what_the_time_crate_reads(
            nanos: u64,
            offset_min in -23 * 60 - 59..=23 * 60 + 59,
            changed in proptest::option::of((any::<prop::sample::Index>(), "[0-9TZtz:.+ -]")),
        ) {
            let offset = time::UtcOffset::from_whole_seconds(offset_min * 60).unwrap();
            let at = OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).unwrap();
            let at = at.to_offset(offset);
            let (hours, minutes, _) = offset.as_hms();
            let sign = if offset_min < 0 { '-' } else { '+' };
            let mut text = format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}{sign}{:02}:{:02}",
                at.year(), u8::from(at.month()), at.day(), at.hour(), at.minute(), at.second(),
                at.nanosecond(), hours.abs(), minutes.abs(),
            );
            let read_text = |text: &str| read(format!("\"{text}\"").as_bytes());
            prop_assert_eq!(read_text(&text), Some(nanos), "{}", &text);
            if let Some((index, byte)) = changed {
                let at = index.index(text.len());
                text.replace_range(at..=at, &byte);
            }
            let theirs = OffsetDateTime::parse(&text, &time::format_description::well_known::Rfc3339);
            // A sign or a digit between date and time is read by that crate only.
            if let Ok(theirs) = theirs && !matches!(text.as_bytes()[10], b'+' | b'-' | b'0'..=b'9') {
                let theirs = u64::try_from(theirs.unix_timestamp_nanos()).ok();
                prop_assert_eq!(read_text(&text), theirs, "{}", &text);
            }
        }

        #[test]
        fn every_form_of_a_time_reads_alike(
            nanos in 0..u64::MAX,
            offset in prop_oneof![Just(None), (-23..=23_i64, 0..60_i64).prop_map(Some)],
            (date_mark, time_mark, offset_mark) in (any::<bool>(), any::<bool>(), any::<bool>()),
            between in "[Tt _]",
            point in "[.,]",
            digits in 0..30_usize,
        ) {
            let unix_s = (nanos / 1_000_000_000) as i64;
            let (hours, minutes) = offset.unwrap_or((0, 0));
            let minutes = if hours < 0 { -minutes } else { minutes };
            let local = OffsetDateTime::from_unix_timestamp(unix_s + hours * 3600 + minutes * 60).unwrap();
            let mark = |is_there: bool, mark: &'static str| if is_there { mark } else { "" };
            let (d, t) = (mark(date_mark, "-"), mark(time_mark, ":"));
            let mut text = format!(
                "{:04}{d}{:02}{d}{:02}{between}{:02}{t}{:02}{t}{:02}",
                local.year(), u8::from(local.month()), local.day(),
                local.hour(), local.minute(), local.second(),
            );
            let fraction = format!("{:09}{}", nanos % 1_000_000_000, "7".repeat(21));
            let expected = if digits == 0 { 0 } else {
                text += &point;
                text += &fraction[..digits];
                format!("{:0<9}", &fraction[..digits])[..9].parse::<u64>().unwrap()
            };
            if offset.is_some() {
                let sign = if hours < 0 { '-' } else { '+' };
                let o = mark(offset_mark, ":");
                text += &format!("{sign}{:02}{o}{:02}", hours.abs(), minutes.abs());
            }
            let expected = unix_s as u64 * 1_000_000_000 + expected;
            // Local times before 1000 or after 9999 do not happen, and these end in 2554.
            prop_assert_eq!(read(format!("\"{text}\"").as_bytes()), Some(expected), "{}", text);
        }

        #[test]
        fn no_text_makes_the_reader_panic_or_the_shape_long(text in "[0-9TZ:.,+e\\\\u\" -]{0,80}", any: Vec<u8>) {
            for raw in [format!("\"{text}\"").as_bytes(), text.as_bytes(), &any] {
                let _any = read(raw);
                let shape = shape(raw);
                prop_assert!(shape.chars().count() <= SHAPE_CHARS_MAX + 20, "{}", shape);
                prop_assert!(!shape.chars().any(char::is_control));
            }
        }

        #[test]
        fn a_calendar_that_was_used_before_writes_the_same(times: [u64; 4]) {
            let mut used = Calendar::default();
            // Also the days before and after, because a calendar keeps one day.
            let around = |&t: &u64| [t, t.saturating_add(DAY), t, t.saturating_sub(DAY), t];
            for time in times.iter().flat_map(around) {
                prop_assert_eq!(written(&mut used, time), written(&mut Calendar::default(), time));
            }
        }
    }
}
