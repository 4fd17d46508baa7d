//! Log lines that do not come from `tracing`: the writer's own, those of panics, and truncated
//! ones.

use serde_json::{Map, Value};

use super::LogFormat;
use crate::rt;

/// Longer lines are truncated. This is the shortest limit of common readers: Docker's log drivers
/// split at this length, journald at 48 KiB.
pub(super) const LINE_BYTES_MAX: usize = 16 << 10;
/// The length of each text in a truncated JSON line. Escaping makes it at most six times longer, so
/// two of them still fit.
const FIELD_BYTES_MAX: usize = 1 << 10;
/// A longer JSON line is not parsed for truncation, because that would take too much of a core's
/// time.
const PARSED_BYTES_MAX: usize = 256 << 10;

/// A line as `tracing_subscriber` would format it.
pub(super) fn own(
    format: LogFormat,
    level: &str,
    message: &str,
    fields: &[(&str, Value)],
) -> Vec<u8> {
    let timestamp = humantime::format_rfc3339_micros(rt::wall_clock()).to_string();
    let mut line = match format {
        LogFormat::Text => {
            let mut line = format!("{timestamp} {level:>5} {message}");
            for (name, value) in fields {
                line.push_str(&format!(" {name}={value}"));
            }
            line
        }
        LogFormat::Json => {
            let mut line = Map::new();
            line.insert("timestamp".to_owned(), timestamp.into());
            line.insert("level".to_owned(), level.into());
            line.insert("message".to_owned(), message.into());
            line.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
            line.insert("target".to_owned(), "millrace::log".into());
            Value::Object(line).to_string()
        }
    };
    line.push('\n');
    cut(format, line.as_bytes())
}

/// `line`, which ends with a line feed, truncated to [`LINE_BYTES_MAX`]; JSON stays valid JSON.
pub(super) fn cut(format: LogFormat, line: &[u8]) -> Vec<u8> {
    if line.len() <= LINE_BYTES_MAX {
        return line.to_vec();
    }
    match format {
        LogFormat::Text => {
            let mut text =
                shortened(&String::from_utf8_lossy(&line[..LINE_BYTES_MAX]), LINE_BYTES_MAX - 64);
            text.push_str(&format!(" … ({} bytes in all)\n", line.len()));
            text.into_bytes()
        }
        LogFormat::Json => cut_json(line),
    }
}

fn cut_json(line: &[u8]) -> Vec<u8> {
    let parsed = (line.len() <= PARSED_BYTES_MAX).then(|| serde_json::from_slice(line).ok());
    let mut fields: Map<String, Value> = parsed.flatten().unwrap_or_else(|| {
        let start = String::from_utf8_lossy(&line[..FIELD_BYTES_MAX]);
        Map::from_iter([("message".to_owned(), shortened(&start, FIELD_BYTES_MAX).into())])
    });
    for value in fields.values_mut() {
        match value {
            Value::String(text) if text.len() > FIELD_BYTES_MAX => {
                *value = (shortened(text, FIELD_BYTES_MAX) + " …").into();
            }
            Value::Array(_) | Value::Object(_) => *value = Value::Null,
            _ => {}
        }
    }
    fields.insert("line_bytes".to_owned(), line.len().into());
    let whole = Value::Object(fields.clone()).to_string();
    if whole.len() < LINE_BYTES_MAX {
        return (whole + "\n").into_bytes();
    }
    fields.retain(|name, _| {
        matches!(name.as_str(), "timestamp" | "level" | "message" | "target" | "line_bytes")
    });
    (Value::Object(fields).to_string() + "\n").into_bytes()
}

/// The first `bytes` bytes of `text` at most, in whole characters.
fn shortened(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_lines_look_like_the_others() {
        let fields = [("dropped", 7.into()), ("thread", "t".into())];
        let text =
            String::from_utf8(own(LogFormat::Text, "WARN", "lines are gone", &fields)).unwrap();
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.len() == 27 && time.ends_with('Z'), "{time}");
        assert_eq!(rest, " WARN lines are gone dropped=7 thread=\"t\"\n");
        let json: Value =
            serde_json::from_slice(&own(LogFormat::Json, "ERROR", "m", &fields)).unwrap();
        assert_eq!(
            (&json["level"], &json["message"], &json["dropped"]),
            (&"ERROR".into(), &"m".into(), &7.into())
        );
    }

    #[test]
    fn long_lines_are_cut_and_json_stays_json() {
        let short = b"{\"a\":1}\n";
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(cut(format, short), short);
        }
        let long = "€".repeat(LINE_BYTES_MAX) + "\n";
        let text = String::from_utf8(cut(LogFormat::Text, long.as_bytes())).unwrap();
        assert!(text.len() <= LINE_BYTES_MAX && text.ends_with("€ … (49153 bytes in all)\n"));

        let many: Map<String, Value> =
            (0..200).map(|n| (format!("f{n}"), "\u{1}".repeat(2000).into())).collect();
        let cases = [
            serde_json::json!({"level": "INFO", "message": "€".repeat(20_000), "target": "t"}),
            serde_json::json!({"level": "INFO", "message": "\u{1}".repeat(20_000), "target": "t"}),
            serde_json::json!({"level": "INFO", "message": "m", "error": "e".repeat(1 << 20)}),
            Value::Object(many),
            "not an object".repeat(20_000).into(),
        ];
        for case in cases {
            let line = format!("{case}\n");
            let cut = cut(LogFormat::Json, line.as_bytes());
            assert!(cut.len() <= LINE_BYTES_MAX && cut.ends_with(b"}\n"), "{}", cut.len());
            let kept: Value = serde_json::from_slice(&cut).unwrap();
            assert_eq!(kept["line_bytes"], line.len());
            if line.len() <= PARSED_BYTES_MAX && case["level"] == "INFO" {
                assert_eq!(kept["level"], "INFO");
            }
        }
    }
}
