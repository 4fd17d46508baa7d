//! The formats of `/metrics`: OpenMetrics for clients that ask for it, the classic Prometheus text
//! for all others.

use http::HeaderMap;
use http::header::{ACCEPT, HeaderValue};
use prometheus_client::registry::Registry;

/// A format of `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposition {
    /// The text format of Prometheus, version 0.0.4.
    Classic,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Exposition {
    /// The format that `accept` asks for. OpenMetrics only if it is named, and not less welcome
    /// than the classic text: a wildcard does not ask for it.
    pub(super) fn wanted(headers: &HeaderMap) -> Exposition {
        let (mut open_metrics, mut classic) = (0, (0, 0));
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for range in values.flat_map(|value| value.split(',')).filter_map(MediaRange::parse) {
            let MediaRange { name, version, quality } = range;
            // How specific a range is decides before its quality does (RFC 9110 12.5.1).
            let specific = match (&*name, version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => {
                    open_metrics = open_metrics.max(quality);
                    continue;
                }
                ("text/plain", Some("0.0.4")) => 4,
                ("text/plain", None) => 3,
                ("text/*", _) => 2,
                ("*/*", _) => 1,
                _ => continue,
            };
            classic = classic.max((specific, quality));
        }
        let (_, classic) = classic;
        if open_metrics > 0 && open_metrics >= classic {
            Exposition::OpenMetrics
        } else {
            Exposition::Classic
        }
    }

    pub(super) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Exposition::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        })
    }

    /// All metrics of `registry`.
    pub(super) fn write(self, registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry)
            .expect("writing to a string does not fail");
        match self {
            Exposition::Classic => classic(&text),
            Exposition::OpenMetrics => text,
        }
    }
}

/// One element of `accept`.
struct MediaRange<'a> {
    /// In lower case.
    name: String,
    version: Option<&'a str>,
    /// In thousandths.
    quality: u16,
}

impl MediaRange<'_> {
    /// `None` if it is not a media range.
    fn parse(text: &str) -> Option<MediaRange<'_>> {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next()?.to_ascii_lowercase();
        let mut range = MediaRange { name, version: None, quality: 1_000 };
        for part in parts.filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=')?;
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => range.quality = quality(value)?,
                "version" => range.version = Some(value),
                _ => {}
            }
        }
        Some(range)
    }
}

/// Thousandths: `0` to `1` with at most three decimals.
fn quality(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let is_number = decimals.len() <= 3 && decimals.bytes().all(|byte| byte.is_ascii_digit());
    let thousandths = match whole {
        "0" | "1" if is_number => format!("{whole}{decimals:0<3}").parse().ok()?,
        _ => return None,
    };
    (thousandths <= 1_000).then_some(thousandths)
}

/// OpenMetrics as classic text. There a counter is declared under the name of its samples, and
/// there is neither a unit nor an end.
fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        let meta = line.strip_prefix("# ").and_then(|meta| meta.split_once(' '));
        match meta {
            Some(("HELP", rest)) => help = rest,
            Some(("TYPE", rest)) => {
                let (name, kind) = rest.split_once(' ').expect("a name and a type");
                let help = help.strip_prefix(name).expect("HELP comes right before TYPE");
                let total = if kind == "counter" { "_total" } else { "" };
                text.extend(["# HELP ", name, total, help, "\n"]);
                text.extend(["# TYPE ", name, total, " ", kind, "\n"]);
            }
            Some(_) => {}
            None if line == "# EOF" => {}
            None => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(accept: &[&str]) -> Exposition {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(ACCEPT, HeaderValue::from_str(value).unwrap());
        }
        Exposition::wanted(&headers)
    }

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        for accept in [
            // Prometheus 2 and 3.
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            "application/openmetrics-text",
            " Application/OpenMetrics-Text ; Version=\"1.0.0\" ; Q=1.000 , text/plain",
            "application/openmetrics-text;q=0.5, text/plain;q=0.5",
            "text/plain;q=0, application/openmetrics-text;q=0.001",
            "text/plain;version=0.0.4;q=0.1, text/plain, application/openmetrics-text;q=0.2",
        ] {
            assert_eq!(wanted(&[accept]), Exposition::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain;version=0.0.4",
            "text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8",
            "application/*",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;version=2.0.0, */*;q=0.1",
            "application/openmetrics-text;q=0.5, text/plain;q=0.6",
            "application/openmetrics-text;q=0.5, text/plain",
            "application/openmetrics-text;q=0.5, text/*",
            "application/openmetrics-text;q=0.5, */*",
            "application/openmetrics-text;q=high",
            "application/openmetrics-text;q=1.5",
            "application/openmetrics-text;q=0.0001",
            "application/openmetrics-text;q",
            "application/json",
            ",,;,=",
        ] {
            assert_eq!(wanted(&[accept]), Exposition::Classic, "{accept}");
        }
        assert_eq!(wanted(&[]), Exposition::Classic);
        let two = ["text/plain;q=0.3", "application/openmetrics-text;q=0.4"];
        assert_eq!(wanted(&two), Exposition::OpenMetrics);
    }

    #[test]
    fn qualities_are_thousandths() {
        for (text, thousandths) in
            [("0", 0), ("1", 1_000), ("0.5", 500), ("0.05", 50), ("0.125", 125), ("1.", 1_000)]
        {
            assert_eq!(quality(text), Some(thousandths), "{text}");
        }
        for text in ["", ".5", "2", "1.001", "-1", "0.1234", "0,5", "00.1", "1e0"] {
            assert_eq!(quality(text), None, "{text}");
        }
    }

    #[test]
    fn counters_are_declared_as_their_samples_are_called() {
        let open_metrics = "# HELP a_seconds Time.\n# TYPE a_seconds histogram\n\
            # UNIT a_seconds seconds\na_seconds_bucket{le=\"+Inf\"} 1\n\
            # HELP b All b.\n# TYPE b counter\nb_total 2\n# HELP c C\n# TYPE c gauge\nc 3\n# EOF\n";
        let text = "# HELP a_seconds Time.\n# TYPE a_seconds histogram\n\
            a_seconds_bucket{le=\"+Inf\"} 1\n# HELP b_total All b.\n# TYPE b_total counter\n\
            b_total 2\n# HELP c C\n# TYPE c gauge\nc 3\n";
        assert_eq!(classic(open_metrics), text);
    }
}
