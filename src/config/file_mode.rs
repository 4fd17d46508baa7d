//! Permissions of what a `file:` store creates.

/// `FILE_MODE`: permissions of stored files, from which those of directories follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(u32);

impl FileMode {
    /// Parses `0640` or `640`: three octal digits. The owner's is 6, because the store reads and
    /// writes; the others are 0, 2, 4 or 6, because nothing stored is executable.
    pub fn parse(text: &str) -> Option<FileMode> {
        let digits = match text.len() {
            4 => text.strip_prefix('0')?,
            _ => text,
        };
        let owned = digits.len() == 3 && digits.starts_with('6');
        let plain = digits.bytes().all(|digit| matches!(digit, b'0' | b'2' | b'4' | b'6'));
        (owned && plain).then(|| u32::from_str_radix(digits, 8).ok().map(FileMode))?
    }

    pub fn of_files(self) -> u32 {
        self.0
    }

    /// Whoever may read a file may also enter its directories.
    pub fn of_directories(self) -> u32 {
        self.0 | (self.0 & 0o444) >> 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_three_octal_digits_of_reading_and_writing() {
        for (text, expected) in [
            ("0600", Some((0o600, 0o700))),
            ("600", Some((0o600, 0o700))),
            ("0640", Some((0o640, 0o750))),
            ("0644", Some((0o644, 0o755))),
            ("0660", Some((0o660, 0o770))),
            ("0666", Some((0o666, 0o777))),
            ("0620", Some((0o620, 0o720))),
            ("0400", None),
            ("0700", None),
            ("0645", None),
            ("4600", None),
            ("00600", None),
            ("0o600", None),
            ("+600", None),
            ("60", None),
            ("384", None),
            ("u=rw", None),
            ("٦٠٠", None),
            ("", None),
        ] {
            let modes = FileMode::parse(text).map(|m| (m.of_files(), m.of_directories()));
            assert_eq!(modes, expected, "{text:?}");
        }
    }
}
