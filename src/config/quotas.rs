//! `CLIENT_RATE`, `CLIENT_BYTES` and `CLIENT_BURST`.

use super::value::optional;
use super::{ConfigError, SettingsReader};
use crate::quota::{Quota, parse_bytes, parse_rate};

/// What one peer may send.
pub(super) fn read_client(r: &mut SettingsReader<'_>) -> Quota {
    let quota = Quota {
        requests: r.take("CLIENT_RATE", optional(parse_rate)),
        bytes: r.take("CLIENT_BYTES", optional(parse_bytes)),
    };
    let refused = |error: &ConfigError| {
        matches!(error, ConfigError::Refused { name: "CLIENT_RATE" | "CLIENT_BYTES", .. })
    };
    // A burst without its rate would be a second, confusing error.
    let is_refused = r.errors.iter().any(refused);
    r.take("CLIENT_BURST", |text| match text {
        "" => Ok(quota),
        _ if is_refused => Ok(quota),
        _ => quota.with_bursts(text),
    })
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::quota::{Limit, Quota};

    #[test]
    fn a_client_quota_is_read_with_its_burst() {
        let read =
            |settings: &[(&str, &str)]| Config::from_settings(settings).unwrap().client_quota;
        assert_eq!(read(&[]), Quota::default());
        let requests = Some(Limit { amount: 10, per_s: 1, burst: 50 });
        let quota = read(&[("CLIENT_RATE", "10/s"), ("CLIENT_BURST", "5s")]);
        assert_eq!(quota, Quota { requests, bytes: None });
        let bytes = Some(Limit { amount: 5 << 20, per_s: 1, burst: 5 << 20 });
        assert_eq!(read(&[("CLIENT_BYTES", "5MiB/s")]), Quota { requests: None, bytes });
    }

    #[test]
    fn a_refusal_names_the_setting_and_the_remedy_once() {
        for (settings, name, says) in [
            (&[("CLIENT_RATE", "10")][..], "CLIENT_RATE", "per s, min or h"),
            (&[("CLIENT_RATE", "0/s"), ("CLIENT_BURST", "5")], "CLIENT_RATE", "from 1"),
            (&[("CLIENT_BYTES", "1/d")], "CLIENT_BYTES", "such as 5MiB/s"),
            (&[("CLIENT_BURST", "5")], "CLIENT_BURST", "no rate"),
            (&[("CLIENT_RATE", "10/s"), ("CLIENT_BURST", "1")], "CLIENT_BURST", "at least half"),
            (&[("CLIENT_RATE", "10/s"), ("CLIENT_BURST", "x")], "CLIENT_BURST", "such as 2000"),
        ] {
            let text = Config::from_settings(settings).unwrap_err().to_string();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.contains(name) && text.contains(says), "{text}");
        }
    }
}
