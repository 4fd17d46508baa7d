//! An HTTP/1 response, parsed strictly and within bounds: status, headers on demand, and a body by
//! length, in chunks, or up to the end of the connection.
//!
//! No I/O: the owner of the socket passes bytes to [`ReplyReader::take`] where they are, or reads
//! them into [`ReplyReader::space`] and announces them with [`ReplyReader::advance`]. The usual
//! response to a PUT, a success without a body, is then read in place and needs no buffer. After a
//! [`Malformed`] error the connection cannot be trusted: drop it.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::success::plain_success;

/// Longest head, including interim responses before it and trailers after it.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Longest body, as in the SDK's client.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Most headers in a head.
const HEADERS_MAX: usize = 100;
/// Longest line before a chunk, extensions included.
const CHUNK_LINE_BYTES_MAX: usize = 1 << 10;
/// Bytes a reader keeps between responses, once it has needed any; those to a PUT are below 1 KiB.
const BUFFER_BYTES: usize = 4 << 10;

/// Why bytes are not a response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("it is not HTTP: {0}")]
    NotHttp(httparse::Error),
    #[error("its head is longer than {HEAD_BYTES_MAX} bytes")]
    HeadTooLong,
    #[error("its body is longer than {BODY_BYTES_MAX} bytes")]
    BodyTooLong,
    #[error("it switches protocols")]
    Upgrade,
    #[error("its length is not clear")]
    Framing,
    #[error("a chunk of it is not well-formed")]
    Chunk,
}

/// Where a reader is in its response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    /// The body ends here.
    Length {
        end: usize,
    },
    ChunkLine,
    /// Bytes of the chunk still to come, without its line end.
    ChunkData {
        left: usize,
    },
    Trailers,
    ToTheEnd,
    Done,
}

/// What ends a response's body.
enum Framing {
    Length(usize),
    Chunked,
    ToTheEnd,
}

/// Reads one response after another from one connection.
#[derive(Debug, Default)]
pub struct ReplyReader {
    buffer: Vec<u8>,
    filled: usize,
    /// Everything before this has been parsed.
    parsed: usize,
    state: State,
    status: u16,
    keep_alive: bool,
    /// The head of the final response, for [`Reply::header`]; empty if it was not kept.
    head: Range<usize>,
    /// Decoded, without chunk lines.
    body: Range<usize>,
}

/// A complete response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    pub status: u16,
    pub body: &'a [u8],
    /// The connection can take another request.
    pub keep_alive: bool,
    /// See [`Reply::header`].
    pub(super) head: &'a [u8],
}

impl<'a> Reply<'a> {
    /// The value of a header, by its name in lower case; `None` if it is absent, empty or not text,
    /// and of a success without a body that was not copied ([`ReplyReader::take`]). Parses the head
    /// again, because headers are seldom needed.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut answer = httparse::Response::new(&mut headers);
        answer.parse(self.head).ok()?;
        let found = answer.headers.iter().rfind(|h| h.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok().filter(|value| !value.is_empty())
    }
}

impl ReplyReader {
    /// Forgets the last response.
    pub fn reset(&mut self) {
        if self.buffer.len() > BUFFER_BYTES {
            self.buffer.truncate(BUFFER_BYTES);
            self.buffer.shrink_to_fit();
        }
        (self.filled, self.parsed, self.state) = (0, 0, State::Head);
        (self.head, self.body) = (0..0, 0..0);
    }

    /// True until the first byte of a response.
    pub fn is_untouched(&self) -> bool {
        self.filled == 0 && self.state == State::Head
    }

    /// Parses `bytes`, the next of the response; true if it is complete. What must be kept of them
    /// is copied.
    ///
    /// # Errors
    /// The bytes are not a response, or it is too long.
    pub fn take(&mut self, bytes: &[u8]) -> Result<bool, Malformed> {
        if self.is_untouched()
            && let Some(status) = plain_success(bytes)
        {
            (self.status, self.keep_alive, self.state) = (status, true, State::Done);
            return Ok(true);
        }
        let mut rest = bytes;
        let mut whole = false;
        while !whole && !rest.is_empty() {
            let space = self.space();
            let (now, later) = rest.split_at(space.len().min(rest.len()));
            space[..now.len()].copy_from_slice(now);
            rest = later;
            whole = self.advance(now.len())?;
        }
        if !rest.is_empty() {
            // As in `advance`.
            self.keep_alive = false;
        }
        Ok(whole)
    }

    /// Where to read to; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        if self.filled == self.buffer.len() && self.in_chunks() {
            // Chunk lines are not kept, however many there are.
            self.buffer.copy_within(self.parsed..self.filled, self.body.end);
            self.filled -= self.parsed - self.body.end;
            self.parsed = self.body.end;
        }
        if self.filled == self.buffer.len() {
            // Doubled, so that in total no more bytes are cleared than read.
            self.buffer.resize((self.buffer.len() * 2).max(BUFFER_BYTES), 0);
        }
        &mut self.buffer[self.filled..]
    }

    /// Parses `n` more bytes, which are now in [`ReplyReader::space`]; true if the response is
    /// complete.
    ///
    /// # Errors
    /// The bytes are not a response, or it is too long.
    pub fn advance(&mut self, n: usize) -> Result<bool, Malformed> {
        let news = self.filled..self.filled + n;
        self.filled = news.end;
        if (self.state, news.start) == (State::Head, 0)
            && let Some(status) = plain_success(&self.buffer[news.clone()])
        {
            (self.status, self.keep_alive, self.state) = (status, true, State::Done);
            (self.head, self.body, self.parsed) = (0..n, n..n, n);
            return Ok(true);
        }
        // A head is parsed again only when another line of it is complete.
        if self.state == State::Head && !self.buffer[news].contains(&b'\n') {
            return bound_head(self.filled).map(|()| false);
        }
        while self.state != State::Done {
            let before = (self.state, self.parsed);
            self.step()?;
            if before == (self.state, self.parsed) {
                return Ok(false);
            }
        }
        if self.parsed < self.filled {
            // Bytes that no request asked for: the response is valid, the connection is not.
            self.keep_alive = false;
        }
        Ok(true)
    }

    /// The connection has ended; true if that completes the response.
    pub fn end(&mut self) -> bool {
        if self.state == State::ToTheEnd {
            self.state = State::Done;
        }
        self.state == State::Done
    }

    /// The complete response.
    ///
    /// # Panics
    /// If neither [`ReplyReader::advance`] nor [`ReplyReader::end`] has returned true.
    pub fn reply(&self) -> Reply<'_> {
        assert_eq!(self.state, State::Done, "the answer is whole");
        Reply {
            status: self.status,
            body: &self.buffer[self.body.clone()],
            keep_alive: self.keep_alive,
            head: &self.buffer[self.head.clone()],
        }
    }

    /// Parses one element of the response; changes nothing if it is incomplete.
    fn step(&mut self) -> Result<(), Malformed> {
        match self.state {
            State::Head => self.head(),
            State::Length { end } => {
                if self.filled >= end {
                    (self.body.end, self.parsed) = (end, end);
                    self.state = State::Done;
                }
                Ok(())
            }
            State::ChunkLine => self.chunk_line(),
            State::ChunkData { left } => self.chunk_data(left),
            State::Trailers => self.trailers(),
            State::ToTheEnd => {
                (self.body.end, self.parsed) = (self.filled, self.filled);
                self.bound_body(0)
            }
            State::Done => Ok(()),
        }
    }

    fn head(&mut self) -> Result<(), Malformed> {
        let Some(head) = Head::parse(&self.buffer[self.parsed..self.filled])? else {
            return bound_head(self.filled);
        };
        let (framing, keep_alive) = (head.framing()?, head.keep_alive);
        let start = self.parsed;
        self.parsed += head.bytes;
        bound_head(self.parsed)?;
        match head.status {
            ..100 => return Err(Malformed::NotHttp(httparse::Error::Status)),
            101 => return Err(Malformed::Upgrade),
            // Interim: the final response follows.
            100..200 => return Ok(()),
            _ => {}
        }
        (self.status, self.head) = (head.status, start..self.parsed);
        self.body = self.parsed..self.parsed;
        (self.keep_alive, self.state) = match framing {
            Framing::Length(length) => (keep_alive, State::Length { end: self.parsed + length }),
            Framing::Chunked => (keep_alive, State::ChunkLine),
            Framing::ToTheEnd => (false, State::ToTheEnd),
        };
        Ok(())
    }

    fn chunk_line(&mut self) -> Result<(), Malformed> {
        let bytes = &self.buffer[self.parsed..self.filled];
        // The parser reads a line without digits as the last chunk.
        if bytes.first().is_some_and(|b| !b.is_ascii_hexdigit()) {
            return Err(Malformed::Chunk);
        }
        match httparse::parse_chunk_size(bytes).map_err(|_| Malformed::Chunk)? {
            httparse::Status::Complete((line, _)) if has_bare_line_feed(&bytes[..line]) => {
                return Err(Malformed::Chunk);
            }
            httparse::Status::Complete((line, 0)) => {
                self.parsed += line;
                self.state = State::Trailers;
            }
            httparse::Status::Complete((line, left)) => {
                let left = usize::try_from(left).map_err(|_| Malformed::BodyTooLong)?;
                self.bound_body(left)?;
                self.parsed += line;
                self.state = State::ChunkData { left };
            }
            httparse::Status::Partial if bytes.len() > CHUNK_LINE_BYTES_MAX => {
                return Err(Malformed::Chunk);
            }
            httparse::Status::Partial => {}
        }
        Ok(())
    }

    /// Moves the bytes of a chunk that have arrived to the end of the body.
    fn chunk_data(&mut self, left: usize) -> Result<(), Malformed> {
        let taken = left.min(self.filled - self.parsed);
        self.buffer.copy_within(self.parsed..self.parsed + taken, self.body.end);
        self.body.end += taken;
        self.parsed += taken;
        self.state = State::ChunkData { left: left - taken };
        if taken == left && self.filled - self.parsed >= 2 {
            if self.buffer[self.parsed..self.parsed + 2] != *b"\r\n" {
                return Err(Malformed::Chunk);
            }
            self.parsed += 2;
            self.state = State::ChunkLine;
        }
        Ok(())
    }

    fn trailers(&mut self) -> Result<(), Malformed> {
        let bytes = &self.buffer[self.parsed..self.filled];
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        match httparse::parse_headers(bytes, &mut headers).map_err(Malformed::NotHttp)? {
            httparse::Status::Complete((length, _)) if has_bare_line_feed(&bytes[..length]) => {
                return Err(Malformed::Chunk);
            }
            httparse::Status::Complete((length, _)) => {
                self.parsed += length;
                self.state = State::Done;
            }
            httparse::Status::Partial if bytes.len() > HEAD_BYTES_MAX => {
                return Err(Malformed::HeadTooLong);
            }
            httparse::Status::Partial => {}
        }
        Ok(())
    }

    fn in_chunks(&self) -> bool {
        matches!(self.state, State::ChunkLine | State::ChunkData { .. } | State::Trailers)
    }

    fn bound_body(&self, more: usize) -> Result<(), Malformed> {
        if more > BODY_BYTES_MAX || self.body.len() + more > BODY_BYTES_MAX {
            return Err(Malformed::BodyTooLong);
        }
        Ok(())
    }
}

/// The parts of a response's head that say where it ends and what becomes of the connection.
struct Head {
    status: u16,
    /// Its own length.
    bytes: usize,
    length: Option<usize>,
    chunked: bool,
    keep_alive: bool,
}

impl Head {
    /// The head that `bytes` begin with; `None` if it is incomplete.
    fn parse(bytes: &[u8]) -> Result<Option<Head>, Malformed> {
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut answer = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default()
            .parse_response_with_uninit_headers(&mut answer, bytes, &mut headers)
            .map_err(Malformed::NotHttp)?;
        let httparse::Status::Complete(bytes) = parsed else { return Ok(None) };
        let status = answer.code.expect("a whole head has a status");
        let is_http_11 = answer.version == Some(1);
        let (length, keep_alive) = (None, is_http_11);
        let mut head = Head { status, bytes, length, chunked: false, keep_alive };
        for header in answer.headers.iter() {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            // Length first, because most headers are none of these.
            match header.name.len() {
                10 if is("connection") => head.connection(header.value),
                14 if is("content-length") => {
                    let length = parse_length(header.value)?;
                    if head.length.is_some_and(|earlier| earlier != length) {
                        return Err(Malformed::Framing);
                    }
                    head.length = Some(length);
                }
                17 if is("transfer-encoding") => {
                    // HTTP/1.0 has none: its framing is faulty (RFC 9112, section 6.1).
                    let is_known = header.value.eq_ignore_ascii_case(b"chunked");
                    if !is_http_11 || head.chunked || !is_known {
                        return Err(Malformed::Framing);
                    }
                    head.chunked = true;
                }
                _ => {}
            }
        }
        Ok(Some(head))
    }

    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                self.keep_alive = false;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            }
        }
    }

    fn framing(&self) -> Result<Framing, Malformed> {
        match (self.chunked, self.length) {
            // Ambiguous: what one parser reads as the body is another's next response.
            (true, Some(_)) => Err(Malformed::Framing),
            // These never have a body, whatever their headers say.
            _ if self.status < 200 || matches!(self.status, 204 | 304) => Ok(Framing::Length(0)),
            (true, None) => Ok(Framing::Chunked),
            (false, Some(length)) if length > BODY_BYTES_MAX => Err(Malformed::BodyTooLong),
            (false, Some(length)) => Ok(Framing::Length(length)),
            (false, None) => Ok(Framing::ToTheEnd),
        }
    }
}

fn bound_head(bytes: usize) -> Result<(), Malformed> {
    if bytes > HEAD_BYTES_MAX { Err(Malformed::HeadTooLong) } else { Ok(()) }
}

/// Whether there is a line feed without a carriage return, which ends a line for some parsers and
/// not for others.
fn has_bare_line_feed(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', bytes).any(|at| at == 0 || bytes[at - 1] != b'\r')
}

/// Digits and nothing else.
fn parse_length(value: &[u8]) -> Result<usize, Malformed> {
    let digits = value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    text.and_then(|text| text.parse().ok()).ok_or(Malformed::Framing)
}

#[cfg(test)]
mod tests;
