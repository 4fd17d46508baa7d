//! Quotas: how many requests and how many bytes one token's name or one peer may send.
//!
//! A quota holds for the process, though cores share nothing on the data path. Each core has a
//! table of its own ([`table`]) whose slots are cells with one writer each ([`board`]): the core
//! counts what it spends, and control, every [`TICK`], writes up to which count it may spend
//! ([`keeper`]). How much each core gets is decided by [`shares`], a function of counts and time.
//!
//! Counts only grow and nothing is handed over by message, so a late, lost or repeated look at a
//! cell changes nothing: what a core has spent beyond its limit is debt at the next look, whatever
//! the reason. A core that is stuck or dead spends nothing, so its tokens go to the others. A
//! control executor that is stuck leaves the limits as they are; after [`CONTROL_STALE`] each core
//! spends an equal share of the rate on its own, and what it spends so is settled when control is
//! back.
//!
//! A *token bucket* is meant throughout: it fills at the rate up to the burst, and what a body
//! takes beyond its contents is debt that the rate repays.

pub mod board;
pub mod keeper;
pub mod shares;
pub mod table;

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;

/// How often control moves shares to where the demand is.
pub const TICK: Duration = Duration::from_millis(100);

/// After this long without a tick, cores no longer wait for control.
pub const CONTROL_STALE: Duration = Duration::from_secs(1);

/// The least burst, as time at the rate. Shares are moved in ticks, and a share that is on its way
/// from one core to another for two of them must not be cut off by the burst.
const BURST_LEAST: Duration = Duration::from_millis(500);

/// Highest rate of requests, in any unit of time.
const REQUESTS_MAX: u64 = 1_000_000_000;

/// Highest rate of bytes, in any unit of time, and highest burst in bytes.
const BYTES_MAX: u64 = 1 << 40;

/// Longest burst that is given as a time.
const BURST_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// A rate with its burst. Counts are requests or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// So much every `per_s` seconds; at least 1.
    pub amount: u64,
    /// 1, 60 or 3600.
    pub per_s: u64,
    /// Contents of a full bucket; at least 1.
    pub burst: u64,
}

impl Limit {
    /// Without a burst of its own: a second's worth, at least 1.
    fn new(amount: u64, per_s: u64) -> Limit {
        Limit { amount, per_s, burst: amount.div_ceil(per_s) }
    }

    /// What comes in `time`, rounded up.
    fn in_time(&self, time: Duration) -> u64 {
        let nanos = u128::from(self.per_s) * 1_000_000_000;
        let amount = u128::from(self.amount) * time.as_nanos();
        u64::try_from(amount.div_ceil(nanos)).unwrap_or(u64::MAX)
    }

    /// Seconds until `count` more have come, rounded up, at least 1.
    pub fn seconds_for(&self, count: u64) -> u64 {
        let seconds = (u128::from(count) * u128::from(self.per_s)).div_ceil(self.amount.into());
        u64::try_from(seconds).unwrap_or(u64::MAX).max(1)
    }
}

/// What one token's name or one peer may send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Quota {
    pub requests: Option<Limit>,
    pub bytes: Option<Limit>,
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Unit {
    Requests,
    Bytes,
}

impl Unit {
    pub const ALL: [Unit; 2] = [Unit::Requests, Unit::Bytes];
}

impl Quota {
    /// Whether anything is limited.
    pub fn is_some(&self) -> bool {
        self.requests.is_some() || self.bytes.is_some()
    }

    /// Of both units the lower rate, and the lower burst.
    fn strictest(&self, other: &Quota) -> Quota {
        let of = |one: Option<Limit>, other: Option<Limit>| match (one, other) {
            (Some(one), Some(other)) => {
                let rate =
                    |limit: Limit, per: Limit| u128::from(limit.amount) * u128::from(per.per_s);
                let slower = if rate(one, other) <= rate(other, one) { one } else { other };
                Some(Limit { burst: one.burst.min(other.burst), ..slower })
            }
            (one, other) => one.or(other),
        };
        Quota { requests: of(self.requests, other.requests), bytes: of(self.bytes, other.bytes) }
    }

    /// The limit of one unit.
    pub fn of(&self, unit: Unit) -> Option<Limit> {
        match unit {
            Unit::Requests => self.requests,
            Unit::Bytes => self.bytes,
        }
    }

    /// The quota of these texts.
    ///
    /// # Errors
    /// Which of them is wrong, and what is allowed. It does not quote the text.
    pub fn parse(
        rate: Option<&str>,
        bytes: Option<&str>,
        burst: Option<&str>,
    ) -> Result<Quota, (QuotaPart, String)> {
        let requests = rate.map(parse_rate).transpose().map_err(|e| (QuotaPart::Rate, e))?;
        let bytes = bytes.map(parse_bytes).transpose().map_err(|e| (QuotaPart::Bytes, e))?;
        let quota = Quota { requests, bytes };
        let Some(burst) = burst else { return Ok(quota) };
        quota.with_bursts(burst).map_err(|error| (QuotaPart::Burst, error))
    }

    /// The same with other bursts: `text` is a time for both rates, a count of requests, a size, or
    /// a count and a size with a comma between them.
    ///
    /// # Errors
    /// What is allowed. It does not quote the text.
    pub fn with_bursts(mut self, text: &str) -> Result<Quota, String> {
        let all: Vec<Burst> = text.split(',').map(Burst::parse).collect::<Result<_, _>>()?;
        let repeated = |i: usize| all[..i].iter().any(|b| b.kind() == all[i].kind());
        if (0..all.len()).any(repeated) || all.len() > 1 && all.iter().any(Burst::is_time) {
            return Err("must be one time, or at most one count and one size".to_owned());
        }
        for burst in all {
            match burst {
                Burst::Time(_) if !self.is_some() => {
                    return Err("needs a rate: give one of requests or bytes as well".to_owned());
                }
                Burst::Time(time) => {
                    for limit in [&mut self.requests, &mut self.bytes].into_iter().flatten() {
                        limit.burst = limit.in_time(time);
                    }
                }
                Burst::Requests(count) => {
                    let none = "counts requests, of which there is no rate: give that as well, or a size such \
                                as 5MiB, or a time such as 2s";
                    self.requests.as_mut().ok_or(none)?.burst = count;
                }
                Burst::Bytes(size) => {
                    let none = "is a size, and there is no rate of bytes: give that as well, or a count such \
                                as 2000, or a time such as 2s";
                    self.bytes.as_mut().ok_or(none)?.burst = size;
                }
            }
        }
        for limit in [self.requests, self.bytes].into_iter().flatten() {
            let least = limit.in_time(BURST_LEAST).max(1);
            if limit.burst < least {
                return Err(format!("must be at least half a second's worth of its rate: {least}"));
            }
        }
        Ok(self)
    }
}

/// One of the three texts of a [`Quota`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaPart {
    Rate,
    Bytes,
    Burst,
}

impl QuotaPart {
    /// As a tokens file names it.
    pub fn name(self) -> &'static str {
        match self {
            QuotaPart::Rate => "rate",
            QuotaPart::Bytes => "bytes",
            QuotaPart::Burst => "burst",
        }
    }
}

enum Burst {
    Time(Duration),
    Requests(u64),
    Bytes(u64),
}

impl Burst {
    fn parse(text: &str) -> Result<Burst, String> {
        let allowed = || {
            format!(
                "must be a count of requests up to {REQUESTS_MAX}, a size with its unit up to {}, or a time up \
                 to {}, such as 2000, 10MiB or 2s",
                ByteSize(BYTES_MAX),
                humantime::format_duration(BURST_TIME_MAX),
            )
        };
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let count = text.parse().ok().filter(|count| (1..=REQUESTS_MAX).contains(count));
            return count.map(Burst::Requests).ok_or_else(allowed);
        }
        if text.ends_with(['b', 'B']) {
            return size(text).map(Burst::Bytes).ok_or_else(allowed);
        }
        let time = humantime::parse_duration(text).ok();
        let time = time.filter(|time| !time.is_zero() && *time <= BURST_TIME_MAX);
        time.map(Burst::Time).ok_or_else(allowed)
    }

    fn is_time(&self) -> bool {
        matches!(self, Burst::Time(_))
    }

    fn kind(&self) -> std::mem::Discriminant<Burst> {
        std::mem::discriminant(self)
    }
}

/// A size from 1 to [`BYTES_MAX`].
fn size(text: &str) -> Option<u64> {
    let ByteSize(bytes) = text.parse().ok()?;
    (1..=BYTES_MAX).contains(&bytes).then_some(bytes)
}

/// Seconds of the unit behind the slash.
fn unit_s(unit: &str) -> Option<u64> {
    match unit {
        "s" => Some(1),
        "m" | "min" => Some(60),
        "h" => Some(3600),
        _ => None,
    }
}

/// `1000/s`, `100/min` or `5/h`.
///
/// # Errors
/// What is allowed.
pub fn parse_rate(text: &str) -> Result<Limit, String> {
    let parsed = text.split_once('/').and_then(|(amount, unit)| {
        let is_number = !amount.is_empty() && amount.bytes().all(|byte| byte.is_ascii_digit());
        let amount: u64 = if is_number { amount.parse().ok()? } else { return None };
        let per_s = unit_s(unit)?;
        (1..=REQUESTS_MAX).contains(&amount).then(|| Limit::new(amount, per_s))
    });
    parsed.ok_or_else(|| {
        format!(
            "must be a whole number from 1 to {REQUESTS_MAX} per s, min or h, such as 1000/s or 100/min"
        )
    })
}

/// `5MiB/s`, `1GB/h`.
///
/// # Errors
/// What is allowed.
pub fn parse_bytes(text: &str) -> Result<Limit, String> {
    let parsed = text
        .split_once('/')
        .and_then(|(amount, unit)| Some(Limit::new(size(amount)?, unit_s(unit)?)));
    parsed.ok_or_else(|| {
        format!(
            "must be a size from 1B to {} per s, min or h, such as 5MiB/s or 1GB/h",
            ByteSize(BYTES_MAX)
        )
    })
}

/// As a policy states it: amount and seconds.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per_s {
            1 => "s",
            60 => "min",
            _ => "h",
        };
        write!(f, "{}/{unit}", self.amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(rate: &str, bytes: &str, burst: &str) -> Result<Quota, (QuotaPart, String)> {
        let some = |text: &'static str| (!text.is_empty()).then_some(text);
        let leak = |text: &str| some(Box::leak(text.to_owned().into_boxed_str()));
        Quota::parse(leak(rate), leak(bytes), leak(burst))
    }

    fn limit(amount: u64, per_s: u64, burst: u64) -> Option<Limit> {
        Some(Limit { amount, per_s, burst })
    }

    #[test]
    fn rates_and_bursts_in_every_form() {
        const MIB: u64 = 1 << 20;
        for (rate, bytes, burst, requests, size) in [
            ("1000/s", "", "", limit(1000, 1, 1000), None),
            ("100/min", "", "", limit(100, 60, 2), None),
            ("100/m", "", "", limit(100, 60, 2), None),
            ("1/h", "", "", limit(1, 3600, 1), None),
            ("007/s", "", "", limit(7, 1, 7), None),
            ("1000000000/s", "", "", limit(REQUESTS_MAX, 1, REQUESTS_MAX), None),
            ("", "5MiB/s", "", None, limit(5 * MIB, 1, 5 * MIB)),
            ("", "60MiB/min", "", None, limit(60 * MIB, 60, MIB)),
            ("", "500/s", "", None, limit(500, 1, 500)),
            ("", "1GB/h", "", None, limit(1_000_000_000, 3600, 277_778)),
            ("10/s", "1MiB/s", "2s", limit(10, 1, 20), limit(MIB, 1, 2 * MIB)),
            ("10/s", "1MiB/s", "500ms", limit(10, 1, 5), limit(MIB, 1, MIB / 2)),
            ("10/s", "1MiB/s", "50", limit(10, 1, 50), limit(MIB, 1, MIB)),
            ("10/s", "1MiB/s", "50,4MiB", limit(10, 1, 50), limit(MIB, 1, 4 * MIB)),
            ("10/s", "1MiB/s", "4MiB,50", limit(10, 1, 50), limit(MIB, 1, 4 * MIB)),
            ("1/min", "", "1", limit(1, 60, 1), None),
            ("1/min", "", "1s", limit(1, 60, 1), None),
            ("1/min", "", "5m", limit(1, 60, 5), None),
        ] {
            let quota = parse(rate, bytes, burst);
            assert_eq!(quota, Ok(Quota { requests, bytes: size }), "{rate} {bytes} {burst}");
        }
    }

    #[test]
    fn what_is_no_quota_is_refused_with_what_is_allowed() {
        use QuotaPart::{Burst, Bytes, Rate};
        for (rate, bytes, burst, part, says) in [
            ("1000", "", "", Rate, "per s, min or h"),
            ("0/s", "", "", Rate, "from 1"),
            ("/s", "", "", Rate, "from 1"),
            ("-1/s", "", "", Rate, "from 1"),
            ("+1/s", "", "", Rate, "from 1"),
            ("1.5/s", "", "", Rate, "whole number"),
            ("1e3/s", "", "", Rate, "whole number"),
            ("1000/d", "", "", Rate, "per s, min or h"),
            ("1000/S", "", "", Rate, "per s, min or h"),
            ("1000/s/s", "", "", Rate, "per s, min or h"),
            ("1000 /s", "", "", Rate, "whole number"),
            ("1000000001/s", "", "", Rate, "to 1000000000"),
            ("99999999999999999999999/s", "", "", Rate, "to 1000000000"),
            ("1MiB/s", "", "", Rate, "whole number"),
            ("", "5MiB", "", Bytes, "5MiB/s"),
            ("", "0/s", "", Bytes, "from 1B"),
            ("", "0.1B/s", "", Bytes, "from 1B"),
            ("", "2TiB/s", "", Bytes, "from 1B"),
            ("", "five/s", "", Bytes, "such as 5MiB/s"),
            ("", "/s", "", Bytes, "such as 5MiB/s"),
            ("", "-5MiB/s", "", Bytes, "such as 5MiB/s"),
            ("10/s", "", "0", Burst, "up to"),
            ("10/s", "", "4", Burst, "half a second's worth of its rate: 5"),
            ("10/s", "", "0s", Burst, "up to"),
            ("10/s", "", "400ms", Burst, "half a second"),
            ("10/s", "", "25h", Burst, "up to"),
            ("10/s", "", "many", Burst, "such as 2000"),
            ("10/s", "", "5MiB", Burst, "no rate of bytes"),
            ("", "1MiB/s", "5", Burst, "no rate"),
            ("", "", "5", Burst, "no rate"),
            ("", "", "5s", Burst, "needs a rate"),
            ("10/s", "", "10,20", Burst, "at most one count"),
            ("10/s", "1MiB/s", "2s,20", Burst, "one time"),
            ("10/s", "", "10,", Burst, "up to"),
            ("10/s", "", "99999999999999999999999", Burst, "up to"),
        ] {
            let (found, error) = parse(rate, bytes, burst).unwrap_err();
            assert_eq!(found, part, "{rate} {bytes} {burst}");
            assert!(error.contains(says), "{rate} {bytes} {burst}: {error}");
        }
    }

    #[test]
    fn waits_are_whole_seconds_rounded_up() {
        let limit = |amount, per_s| Limit::new(amount, per_s);
        assert_eq!(limit(1000, 1).seconds_for(1), 1);
        assert_eq!(limit(1000, 1).seconds_for(1001), 2);
        assert_eq!(limit(1, 60).seconds_for(1), 60);
        assert_eq!(limit(1, 3600).seconds_for(3), 10_800);
        assert_eq!(limit(1, 3600).seconds_for(u64::MAX), u64::MAX);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(a in ".{0,30}", b in "[0-9.]{0,25}[a-zA-Z]{0,4}/?[a-z]{0,3}", c in "[0-9,smhMiB]{0,30}") {
            for (rate, bytes, burst) in [(&a, &b, &c), (&b, &a, &c), (&b, &b, &c), (&b, &b, &a)] {
                if let Ok(quota) = Quota::parse(Some(rate), Some(bytes), Some(burst)) {
                    for limit in [quota.requests, quota.bytes].into_iter().flatten() {
                        prop_assert!(limit.amount >= 1 && limit.burst >= 1);
                    }
                }
            }
        }
    }
}
