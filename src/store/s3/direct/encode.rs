//! The encodings used in a signed request. Each appends to a buffer that its caller reuses.

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A SHA-256 sum in lower-case hex.
pub(super) fn hex(sum: &[u8; 32]) -> [u8; 64] {
    // Arithmetic instead of a table, so that the compiler uses vectors.
    let digit = |n: u8| n + b'0' + if n > 9 { b'a' - b'9' - 1 } else { 0 };
    let mut text = [0; 64];
    for (pair, &byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(sum) {
        *pair = [digit(byte >> 4), digit(byte & 15)];
    }
    text
}

/// Standard base64 with padding.
pub(crate) fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let six = (bits >> (18 - 6 * i)) as usize & 63;
            out.push(if i <= group.len() { BASE64[six] } else { b'=' });
        }
    }
}

pub(super) fn decimal(mut n: u64, out: &mut Vec<u8>) {
    // u64::MAX has 20 digits.
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}

/// `YYYYMMDDTHHMMSSZ` of a time in seconds since 1970, in the Gregorian calendar, up to the year
/// 9999.
pub(super) fn amz_date(unix_s: u64) -> [u8; 16] {
    /// 9999-12-31T23:59:59Z
    const LAST: u64 = 253_402_300_799;
    let unix_s = unix_s.min(LAST);
    // Days are counted from 0000-03-01, so that the leap day ends a year and an era is 400 of them.
    let days = unix_s / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March: 153 days in every five of them.
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let of_day = unix_s % 86_400;
    let mut text = *b"00000000T000000Z";
    for (at, n) in [
        (0, year / 100),
        (2, year % 100),
        (4, month),
        (6, day),
        (9, of_day / 3600),
        (11, of_day / 60 % 60),
        (13, of_day % 60),
    ] {
        text[at] = b'0' + (n / 10) as u8;
        text[at + 1] = b'0' + (n % 10) as u8;
    }
    text
}

#[cfg(test)]
mod tests {
    use aws_smithy_types::DateTime;
    use aws_smithy_types::date_time::Format;
    use proptest::prelude::*;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_and_sums() {
        for n in [0, 9, 10, 512, 1 << 40, u64::MAX] {
            assert_eq!(text(|out| decimal(n, out)), n.to_string());
        }
        let sum: [u8; 32] = std::array::from_fn(|i| i as u8 * 8);
        let expected: String = sum.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex(&sum), expected.as_bytes());
    }

    proptest! {
        #[test]
        fn base64_is_as_everybody_writes_it(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(text(|out| base64(&bytes, out)), aws_smithy_types::base64::encode(&bytes));
        }

        #[test]
        fn dates_are_as_the_sdk_writes_them(unix_s in 0..253_402_300_800u64) {
            let iso = DateTime::from_secs(unix_s as i64).fmt(Format::DateTime).unwrap();
            let basic = iso.replace(['-', ':'], "");
            prop_assert_eq!(&amz_date(unix_s), basic.as_bytes());
        }
    }

    #[test]
    fn dates_stop_at_the_year_9999() {
        assert_eq!(&amz_date(u64::MAX), b"99991231T235959Z");
        assert_eq!(&amz_date(951_782_400), b"20000229T000000Z");
    }
}
