//! Standard output of the commands that print reports or data. If the reader of a report closes the
//! pipe early (`… | head`), the command continues, and its exit status is as usual. Any other error
//! is reported, because output is missing.

use std::io::{self, BufWriter, ErrorKind, Write};

/// For reports; see the module. Flush it at the end, or an error may be missed.
pub fn stdout() -> impl Write {
    UntilClosed { out: BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock()), closed: false }
}

/// For data, which must not be incomplete unnoticed: a reader that closes the pipe early is an
/// error.
pub(super) fn data() -> impl Write {
    BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock())
}

const BUFFER_BYTES: usize = 256 << 10;

/// The message for an error of standard output.
pub fn unwritable(error: &io::Error) -> String {
    format!("cannot write to standard output: {error}")
}

struct UntilClosed<W> {
    out: W,
    closed: bool,
}

impl<W: Write> UntilClosed<W> {
    fn unless_closed<T>(&mut self, outcome: io::Result<T>, instead: T) -> io::Result<T> {
        match outcome {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(instead)
            }
            outcome => outcome,
        }
    }
}

impl<W: Write> Write for UntilClosed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.closed {
            return Ok(bytes.len());
        }
        let outcome = self.out.write(bytes);
        self.unless_closed(outcome, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        let outcome = self.out.flush();
        self.unless_closed(outcome, ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_error_and_a_full_disk_is() {
        for buffered in [false, true] {
            let outcome = |kind| {
                let buffer = if buffered { 1 << 10 } else { 0 };
                let out = BufWriter::with_capacity(buffer, Fails(kind));
                let mut out = UntilClosed { out, closed: false };
                (0..3).try_for_each(|n| writeln!(out, "line {n}")).and_then(|()| out.flush())
            };
            outcome(ErrorKind::BrokenPipe).unwrap();
            assert_eq!(outcome(ErrorKind::StorageFull).unwrap_err().kind(), ErrorKind::StorageFull);
        }
    }
}
