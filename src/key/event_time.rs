//! Times: parses a payload's `EVENT_TIME`, and renders a time's parts in UTC.
//!
//! A number, or a string with a number, is a time since 1970. Its size before the point determines
//! the unit:
//!
//! | below | unit | reads |
//! |---|---|---|
//! | 10¹¹ | seconds, with any fraction | 1970 to 2554 |
//! | 10¹⁴ | milliseconds | March 1973 to 2554 |
//! | 10¹⁷ | microseconds | the same |
//! | 10²⁰ | nanoseconds | the same |
//!
//! A smaller number of milliseconds (or smaller units) reads as a coarser unit; events are not that
//! old. Any other string must be RFC 3339, with any offset and any character between date and time.
//! Times before 1970 or after 2554 (2⁶⁴ nanoseconds) and all other values are not event times.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::value::Unescaped;

/// No time takes more bytes.
const TIME_BYTES_MAX: usize = 64;

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
    epoch(text).or_else(|| {
        let time = OffsetDateTime::parse(str::from_utf8(text).ok()?, &Rfc3339).ok()?;
        u64::try_from(time.unix_timestamp_nanos()).ok()
    })
}

/// Parses a decimal number, in the unit given by its size. Exact: a double would lose the
/// nanoseconds.
fn epoch(text: &[u8]) -> Option<u64> {
    if text.len() > TIME_BYTES_MAX {
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
    fn any_other_string_is_rfc_3339() {
        let nanos = 1_763_755_200_000_000_000;
        for (raw, expected) in [
            ("2025-11-21T20:00:00Z", nanos),
            ("2025-11-21t20:00:00z", nanos),
            ("2025-11-21 20:00:00Z", nanos),
            ("2025-11-21T21:30:00+01:30", nanos),
            ("2025-11-21T12:00:00-08:00", nanos),
            ("2025-11-21T20:00:00.5Z", nanos + 500_000_000),
            ("2025-11-21T20:00:00.1234567891234Z", nanos + 123_456_789),
            ("1970-01-01T00:00:00Z", 0),
            (r"2025\u002d11-21T20:00:00Z", nanos),
        ] {
            assert_eq!(read(format!("\"{raw}\"").as_bytes()), Some(expected), "{raw}");
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
            "\"2600-01-01T00:00:00Z\"",
            "\"2025-02-29T00:00:00Z\"",
            "\"2025-11-21T20:00:00\"",
            "\"2025-11-21\"",
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
