//! How much of a panic's text may be logged. Values are formatted into it: `unwrap` prints an error
//! with all that it holds, `assert_eq!` both sides, and slicing a text prints the text, which may
//! be a client's body.
//!
//! Nothing says which part of a formatted text was written in the source. Kept are the words of the
//! standard library, and before a colon what reads like the text of an `expect`: several words
//! without a digit. A client's words would be kept as well if a panic's text began with them and a
//! colon followed.

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

/// Beginnings of the standard library's texts. A value follows later.
const STANDARD: [&str; 8] = [
    "called `Result::",
    "called `Option::",
    "assertion `left ",
    "byte index ",
    "start byte index ",
    "end byte index ",
    "begin <= end ",
    "internal error: entered unreachable code",
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
    let (start, rest) = line.split_at(end.unwrap_or(line.len()));
    let is_standard = STANDARD.iter().any(|known| line.starts_with(known));
    let is_expected = rest.starts_with(": ") && are_words(start);
    if !is_standard && !is_expected {
        return "***".to_owned();
    }
    let mut kept = String::new();
    for (at, piece) in start.split('`').enumerate() {
        match at % 2 == 1 {
            true if QUOTED.contains(&piece) => kept.extend(["`", piece, "`"]),
            // It may hold a backtick itself, so what follows is unknown.
            true => return kept + "***",
            false => kept.push_str(piece),
        }
    }
    if start.len() < text.len() { kept + " ***" } else { kept }
}

fn are_words(text: &str) -> bool {
    let is_of_words = |c: char| c.is_ascii_alphabetic() || " ,-`".contains(c);
    text.contains(' ') && text.chars().all(is_of_words)
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
        let one_word = std::hint::black_box("hush");
        let failed = std::hint::black_box(Err::<(), _>(secret));
        let missing = std::hint::black_box(None::<()>);
        let numbers = std::hint::black_box([1, 2, 3]);
        let bytes = std::hint::black_box(Err::<(), _>(Vec::from(secret)));
        for (text, expected) in [
            (text(|| failed.unwrap()), "called `Result::unwrap()` on an `Err` value ***"),
            (text(|| failed.expect("it is sent")), "it is sent ***"),
            (text(|| bytes.expect("it is sent")), "it is sent ***"),
            (text(|| missing.expect("it is there")), "***"),
            (text(|| assert_eq!(secret, "x")), "assertion `left == right` failed ***"),
            (
                text(|| assert_eq!(secret, "x", "of {secret}")),
                "assertion `left == right` failed ***",
            ),
            (text(|| panic!("{secret}")), "***"),
            (text(|| panic!("{secret} is wrong")), "***"),
            (text(|| panic!("{one_word}: it is wrong")), "***"),
            (text(|| panic!("no {one_word} is there")), "***"),
            (text(|| panic!("the key `a`{one_word}`b` is wrong: {secret}")), "the key ***"),
            (text(|| panic!("called {one_word}")), "***"),
            (text(|| unreachable!("{secret}")), "internal error ***"),
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
        for (formatted, kept) in [
            ("a b `hush` c", "***"),
            ("a b `hush` c: 1", "a b ***"),
            ("a b `hush: 1", "a b ***"),
            ("called `Option::unwrap()` on `hu`Err`sh`", "called `Option::unwrap()` on ***"),
            ("begin <= end (4 <= 2) when slicing `hush`", "begin <= end (4 <= 2) when slicing ***"),
            ("byte index 5 is out of bounds of `hu`sh`", "byte index 5 is out of bounds of ***"),
            ("range end index 4 of \"hush\"", "***"),
            ("hush1 hush: x", "***"),
            ("hush\nhush hush: x", "***"),
            ("", "***"),
        ] {
            assert_eq!(without_values(formatted), kept, "{formatted}");
        }
    }
}
