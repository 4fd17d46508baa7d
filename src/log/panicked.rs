//! What may be logged of a panic's text. Formatted into it are values: `unwrap` prints an error
//! with all that it holds, `assert_eq!` both sides, and slicing a text prints the text, which may
//! be a client's body. What was written in the source is kept, and values are not.

/// Words of the standard library that it quotes itself.
const QUOTED: [&str; 8] = [
    "Result::unwrap()",
    "Result::unwrap_err()",
    "Option::unwrap()",
    "Err",
    "Ok",
    "None",
    "left == right",
    "left != right",
];

/// Beginnings of texts that hold nothing but numbers.
const NUMBERS: [&str; 4] =
    ["index out of bounds: the len is ", "range start index ", "range end index ", "slice index "];

/// The part of `text`, which was formatted, that holds no values.
pub(super) fn without_values(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || " :,".contains(c);
    if NUMBERS.iter().any(|start| line.starts_with(start)) && line.chars().all(is_plain) {
        return line.to_owned();
    }
    // A value follows.
    let end = [": ", "; ", "\"", "'"].iter().filter_map(|mark| line.find(mark)).min();
    let start = &line[..end.unwrap_or(line.len())];
    let mut pieces = start.split('`');
    let mut kept = pieces.next().unwrap_or_default().to_owned();
    while let Some(quoted) = pieces.next() {
        let Some(behind) = pieces.next() else { return kept + "***" };
        match QUOTED.contains(&quoted) {
            true => kept.extend(["`", quoted, "`"]),
            false => kept.push_str("***"),
        }
        kept.push_str(behind);
    }
    if start.len() < text.len() { kept + " ***" } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of the panic that `f` ends with.
    fn text(f: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let payload = std::panic::catch_unwind(f).unwrap_err();
        match payload.downcast::<String>() {
            Ok(formatted) => without_values(&formatted),
            Err(written) => (*written.downcast::<&str>().unwrap()).to_owned(),
        }
    }

    #[test]
    fn what_was_written_is_kept_and_values_are_not() {
        let secret = std::hint::black_box("hushé hush: hush");
        let failed = std::hint::black_box(Err::<(), _>(secret));
        let missing = std::hint::black_box(None::<()>);
        let numbers = std::hint::black_box([1, 2, 3]);
        let bytes = std::hint::black_box(Err::<(), _>(Vec::from(secret)));
        for (text, expected) in [
            (text(|| failed.unwrap()), "called `Result::unwrap()` on an `Err` value ***"),
            (text(|| failed.expect("it is sent")), "it is sent ***"),
            (text(|| bytes.expect("it is sent")), "it is sent ***"),
            (text(|| missing.expect("it is there")), "it is there"),
            (text(|| assert_eq!(secret, "x")), "assertion `left == right` failed ***"),
            (
                text(|| assert_eq!(secret, "x", "of {secret}")),
                "assertion `left == right` failed ***",
            ),
            (text(|| panic!("{secret}")), "hushé hush ***"),
            (text(|| drop(secret[..5].to_owned())), ""),
            (text(|| drop(secret[..99].to_owned())), ""),
            (
                text(|| drop(numbers[numbers.len()].to_string())),
                "index out of bounds: the len is 3 but the index is 3",
            ),
            (
                text(|| drop(numbers[2..numbers.len() + 1].to_vec())),
                "range end index 4 out of range for slice of length 3",
            ),
        ] {
            if expected.is_empty() {
                assert!(!text.contains("hush") && text.contains("byte index"), "{text}");
            } else {
                assert_eq!(text, expected);
            }
        }
        assert_eq!(without_values("a `b` c"), "a *** c");
        assert_eq!(without_values("a `b"), "a ***");
        assert_eq!(without_values(""), "");
    }
}
