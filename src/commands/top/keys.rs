//! The keys that a terminal in raw mode sends.
//!
//! crossterm's own event source is not used. It learns of the keyboard and of SIGWINCH by
//! edge-triggered epoll, handles only the first of what is ready and forgets the rest: a key that
//! came with the signal, or after the first kilobyte of a paste, was not read until another one
//! followed. And it never returns once the terminal was closed. Here `poll` says whether there is
//! something to read whenever it is asked. A new size is no event: every drawing asks for the size.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// How long the rest of an escape sequence may take. Without it, what has come was the Escape key.
const SEQUENCE_TIME: Duration = Duration::from_millis(100);
/// Longer sequences are none of a keyboard.
const SEQUENCE_BYTES_MAX: usize = 32;
/// Bytes of one read.
const READ_BYTES: usize = 1024;

const ESCAPE: u8 = 0x1b;

/// A key that `top` may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopKey {
    /// A printable character of ASCII.
    Char(char),
    /// Control and C.
    Interrupt,
    Escape,
    Tab,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
}

/// What came of waiting for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressed {
    Key(TopKey),
    /// None so far.
    Nothing,
    /// The terminal is gone.
    Closed,
}

/// Reads the keys of one terminal.
#[derive(Default)]
pub(super) struct Keyboard {
    /// Read, and not a key yet: less than [`READ_BYTES`] and an incomplete sequence.
    pending: Vec<u8>,
}

impl Keyboard {
    /// Waits for up to `longest` for the next key of `terminal`.
    ///
    /// # Errors
    /// The terminal cannot be read.
    pub(super) fn next(&mut self, terminal: impl AsFd, longest: Duration) -> io::Result<Pressed> {
        if let Some(key) = self.take(false) {
            return Ok(Pressed::Key(key));
        }
        let longest = if self.pending.is_empty() { longest } else { SEQUENCE_TIME };
        let wait = longest.try_into().expect("less than an hour");
        let mut terminals = [PollFd::new(&terminal, PollFlags::IN)];
        match poll(&mut terminals, Some(&wait)) {
            Ok(0) => return Ok(self.take(true).map_or(Pressed::Nothing, Pressed::Key)),
            Ok(_) => {}
            // The caller looks what the signal was.
            Err(Errno::INTR) => return Ok(Pressed::Nothing),
            Err(error) => return Err(error.into()),
        }
        let mut bytes = [0; READ_BYTES];
        match rustix::io::read(&terminal, &mut bytes) {
            // What a terminal that was closed says depends on whose it was.
            Ok(0) | Err(Errno::IO) => return Ok(Pressed::Closed),
            Ok(read) => self.pending.extend_from_slice(&bytes[..read]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.take(false).map_or(Pressed::Nothing, Pressed::Key))
    }

    /// Takes the first key of what was read, and what is none before it. `is_all`: nothing follows.
    fn take(&mut self, is_all: bool) -> Option<TopKey> {
        let mut at = 0;
        let mut found = None;
        while found.is_none() && at < self.pending.len() {
            let rest = &self.pending[at..];
            let (key, bytes) = match rest {
                [ESCAPE, b'[' | b'O', ..] => match sequence_end(rest) {
                    Some(end) => (key_of_sequence(&rest[1..end]), end),
                    None if is_all || rest.len() >= SEQUENCE_BYTES_MAX => (None, rest.len()),
                    None => break,
                },
                [ESCAPE] if !is_all => break,
                [ESCAPE] | [ESCAPE, ESCAPE, ..] => (Some(TopKey::Escape), 1),
                // With Alt, a key is the same key.
                [ESCAPE, ..] => (None, 1),
                [3, ..] => (Some(TopKey::Interrupt), 1),
                [b'\t', ..] => (Some(TopKey::Tab), 1),
                [byte @ b' '..=b'~', ..] => (Some(TopKey::Char(char::from(*byte))), 1),
                _ => (None, 1),
            };
            (found, at) = (key, at + bytes);
        }
        self.pending.drain(..at);
        found
    }
}

/// Where the sequence at the beginning of `bytes` ends, if all of it is there.
fn sequence_end(bytes: &[u8]) -> Option<usize> {
    let is_last = |byte: &u8| matches!(byte, 0x40..=0x7e);
    bytes.iter().skip(2).position(is_last).map(|at| at + 3)
}

/// The key of a sequence without its escape. What follows a `;` are keys held down beside it.
fn key_of_sequence(sequence: &[u8]) -> Option<TopKey> {
    let (last, rest) = sequence.split_last()?;
    let number = rest[1..].split(|byte| *byte == b';').next().unwrap_or_default();
    Some(match (last, number) {
        (b'A', _) => TopKey::Up,
        (b'B', _) => TopKey::Down,
        (b'H', _) | (b'~', b"1" | b"7") => TopKey::Home,
        (b'F', _) | (b'~', b"4" | b"8") => TopKey::End,
        (b'~', b"5") => TopKey::PageUp,
        (b'~', b"6") => TopKey::PageDown,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What `next` says of `pieces`, each of which arrives after what came before was read.
    fn pressed(pieces: &[&[u8]]) -> Vec<TopKey> {
        let (mut terminal, ours) = UnixStream::pair().unwrap();
        let (mut keyboard, mut keys) = (Keyboard::default(), Vec::new());
        for piece in pieces {
            terminal.write_all(piece).unwrap();
            // Asked with nothing to read, it would wait for the rest of a sequence.
            while rustix::io::ioctl_fionread(&ours).unwrap() > 0 {
                keys.extend(std::iter::from_fn(|| keyboard.take(false)));
                match keyboard.next(&ours, Duration::ZERO).unwrap() {
                    Pressed::Key(key) => keys.push(key),
                    Pressed::Nothing => {}
                    Pressed::Closed => panic!("closed"),
                }
            }
            keys.extend(std::iter::from_fn(|| keyboard.take(false)));
        }
        loop {
            match keyboard.next(&ours, Duration::ZERO).unwrap() {
                Pressed::Key(key) => keys.push(key),
                Pressed::Nothing => return keys,
                Pressed::Closed => panic!("closed"),
            }
        }
    }

    /// Rows: what arrives, piece by piece; the keys that it is.
    #[test]
    fn keys_are_read_however_they_arrive() {
        use TopKey::{Char, Down, End, Escape, Home, Interrupt, PageDown, PageUp, Tab, Up};
        let rows: &[(&[&[u8]], &[TopKey])] = &[
            (&[b"q"], &[Char('q')]),
            (&[b"pq\t "], &[Char('p'), Char('q'), Tab, Char(' ')]),
            (&[b"\x03"], &[Interrupt]),
            (&[b"\x1b"], &[Escape]),
            (&[b"\x1b\x1b"], &[Escape, Escape]),
            (&[b"\x1bp"], &[Char('p')]),
            (&[b"\x1b[A\x1b[B"], &[Up, Down]),
            (&[b"\x1bOA\x1bOB\x1bOH\x1bOF"], &[Up, Down, Home, End]),
            (&[b"\x1b[5~\x1b[6~"], &[PageUp, PageDown]),
            (&[b"\x1b[H\x1b[1~\x1b[7~"], &[Home, Home, Home]),
            (&[b"\x1b[F\x1b[4~\x1b[8~"], &[End, End, End]),
            // With Shift, and with Control.
            (&[b"\x1b[1;2A\x1b[5;5~"], &[Up, PageUp]),
            // F5, Delete, what a mouse says, and a letter that is not ASCII.
            (&[b"\x1b[15~\x1b[3~\x1b[<0;1;2Mq"], &[Char('q')]),
            ("\u{e4}\u{20ac}q".as_bytes().chunks(1).collect::<Vec<_>>().leak(), &[Char('q')]),
            // Slow lines cut them anywhere.
            (&[b"\x1b", b"[A"], &[Up]),
            (&[b"\x1b[", b"A"], &[Up]),
            (&[b"\x1b", b"[", b"5", b"~", b"q"], &[PageUp, Char('q')]),
            (&[b"x\x1b", b"Oq", b"A"], &[Char('x'), Char('A')]),
            // Never complete.
            (&[b"\x1b["], &[]),
            (&[b"\x1b[;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;", b"q"], &[Char('q')]),
        ];
        for (pieces, keys) in rows {
            let shown: Vec<_> = pieces.iter().map(|piece| piece.escape_ascii()).collect();
            assert_eq!(pressed(pieces), *keys, "{shown:?}");
        }
    }

    #[test]
    fn a_paste_is_read_to_its_end() {
        let paste = [&[b'x'; 5 * READ_BYTES][..], b"q"].concat();
        let keys = pressed(&[&paste]);
        assert_eq!((keys.len(), keys.last()), (paste.len(), Some(&TopKey::Char('q'))));
    }

    #[test]
    fn the_end_of_a_terminal_is_said_again_and_again() {
        let (terminal, ours) = UnixStream::pair().unwrap();
        let mut keyboard = Keyboard::default();
        assert_eq!(keyboard.next(&ours, Duration::ZERO).unwrap(), Pressed::Nothing);
        drop(terminal);
        for _ in 0..3 {
            assert_eq!(keyboard.next(&ours, Duration::ZERO).unwrap(), Pressed::Closed);
        }
    }
}
