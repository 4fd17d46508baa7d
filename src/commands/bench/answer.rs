//! Answers of HTTP/1.1 as they arrive, of whatever server: their status, where they end, and what
//! they ask of the client. Bodies are skipped, but for their beginning.

use std::time::Duration;

/// Longest head.
const HEAD_MAX: usize = 64 << 10;
/// Most fields of a head.
const FIELDS_MAX: usize = 64;
/// How much of a body is kept, to be shown.
const TEXT_MAX: usize = 200;
/// Longest line of a chunked body that is not data.
const CHUNK_LINE_MAX: usize = 16 << 10;

/// What an answer says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LoadAnswer {
    pub(super) status: u16,
    /// The connection ends with it.
    pub(super) closes: bool,
    /// `retry-after` in seconds; a date counts as absent.
    pub(super) retry_after: Option<Duration>,
    /// The payloads that an answer of millrace accepts.
    pub(super) accepted: Option<u64>,
}

/// One connection's answers. Only one is expected at a time.
#[derive(Default)]
pub(super) struct AnswerReader {
    /// The start of a head that arrives in pieces.
    stash: Vec<u8>,
    part: AnswerPart,
    answer: LoadAnswer,
    /// The start of the body.
    text: Vec<u8>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum AnswerPart {
    #[default]
    Head,
    /// So many bytes of the body are missing.
    Sized(u64),
    Chunked(Chunk),
    /// The body ends with the connection.
    ToTheEnd,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Chunk {
    /// The size as far as it is read, and bytes of its line.
    Size {
        size: u64,
        read: usize,
    },
    /// What follows a size, up to the end of the line.
    Extension {
        size: u64,
        read: usize,
    },
    Data(u64),
    /// The line end behind the data.
    DataEnd,
    /// Bytes of a line behind the last chunk; an empty one ends the answer.
    Trailer {
        read: usize,
    },
}

impl AnswerReader {
    /// Takes what has arrived. The answer, once it is complete.
    ///
    /// # Errors
    /// It is not HTTP, or there is more behind it.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Result<Option<LoadAnswer>, String> {
        while self.part == AnswerPart::Head {
            match self.head(bytes)? {
                Some(rest) => bytes = rest,
                None => return Ok(None),
            }
        }
        let rest = match self.part {
            AnswerPart::Head => unreachable!("read above"),
            AnswerPart::Sized(missing) => {
                let here = missing.min(bytes.len() as u64);
                self.keep(&bytes[..here as usize]);
                self.part = AnswerPart::Sized(missing - here);
                (missing == here).then(|| &bytes[here as usize..])
            }
            AnswerPart::Chunked(chunk) => self.chunks(chunk, bytes)?,
            AnswerPart::ToTheEnd => {
                self.keep(bytes);
                None
            }
        };
        match rest {
            None => Ok(None),
            Some([]) => Ok(Some(self.complete())),
            Some(_) => Err("more than one answer to a request".to_owned()),
        }
    }

    /// The connection has ended. The answer, if that is how it ends.
    pub(super) fn end(&mut self) -> Option<LoadAnswer> {
        (self.part == AnswerPart::ToTheEnd).then(|| self.complete())
    }

    /// Whether nothing of an answer has arrived.
    pub(super) fn is_empty(&self) -> bool {
        self.part == AnswerPart::Head && self.stash.is_empty()
    }

    /// The start of the last answer's body, without what a terminal would act on.
    pub(super) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.text);
        let shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        shown.trim().to_owned()
    }

    fn complete(&mut self) -> LoadAnswer {
        self.part = AnswerPart::Head;
        self.answer.accepted = accepted(&self.text);
        self.answer
    }

    fn keep(&mut self, body: &[u8]) {
        let room = TEXT_MAX.saturating_sub(self.text.len());
        self.text.extend_from_slice(&body[..body.len().min(room)]);
    }

    /// Reads a head, or keeps its part; what is behind it.
    fn head<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, String> {
        let had = self.stash.len();
        let parsed = if had == 0 {
            parse_head(bytes)?
        } else {
            self.stash.extend_from_slice(bytes);
            parse_head(&self.stash)?
        };
        let Some((end, answer, part)) = parsed else {
            if had == 0 {
                self.stash.extend_from_slice(bytes);
            }
            if self.stash.len() > HEAD_MAX {
                return Err(format!("the head of an answer is longer than {HEAD_MAX} bytes"));
            }
            return Ok(None);
        };
        self.stash.clear();
        let rest = &bytes[end - had..];
        // An interim answer, such as 100, has no body, and another one follows.
        if !(100..200).contains(&answer.status) {
            (self.answer, self.part) = (answer, part);
            self.text.clear();
        } else if rest.is_empty() {
            return Ok(None);
        }
        Ok(Some(rest))
    }

    /// What is behind the last chunk, if that is here.
    fn chunks<'a>(
        &mut self,
        mut chunk: Chunk,
        mut bytes: &'a [u8],
    ) -> Result<Option<&'a [u8]>, String> {
        let flaw = || Err("a chunked answer is malformed".to_owned());
        while let Some((first, rest)) = bytes.split_first() {
            if let Chunk::Data(missing) = chunk {
                let here = missing.min(bytes.len() as u64);
                let (data, behind) = bytes.split_at(here as usize);
                self.keep(data);
                bytes = behind;
                chunk = if missing == here { Chunk::DataEnd } else { Chunk::Data(missing - here) };
                continue;
            }
            bytes = rest;
            chunk = match (chunk, first) {
                (Chunk::Size { read: 0, .. }, b'\r' | b'\n' | b';') => return flaw(),
                (Chunk::Size { size, .. } | Chunk::Extension { size, .. }, b'\n') => match size {
                    0 => Chunk::Trailer { read: 0 },
                    size => Chunk::Data(size),
                },
                (Chunk::Size { size, read }, byte) => match char::from(*byte).to_digit(16) {
                    Some(digit) if read < 15 => {
                        Chunk::Size { size: size * 16 + u64::from(digit), read: read + 1 }
                    }
                    None if matches!(byte, b'\r' | b';' | b' ' | b'\t') => {
                        Chunk::Extension { size, read: 0 }
                    }
                    _ => return flaw(),
                },
                (Chunk::Extension { size, read }, _) if read < CHUNK_LINE_MAX => {
                    Chunk::Extension { size, read: read + 1 }
                }
                (Chunk::DataEnd, b'\r') => Chunk::DataEnd,
                (Chunk::DataEnd, b'\n') => Chunk::Size { size: 0, read: 0 },
                (Chunk::Trailer { read: 0 }, b'\n') => return Ok(Some(bytes)),
                (Chunk::Trailer { read: 0 }, b'\r') => Chunk::Trailer { read: 0 },
                (Chunk::Trailer { .. }, b'\n') => Chunk::Trailer { read: 0 },
                (Chunk::Trailer { read }, _) if read < CHUNK_LINE_MAX => {
                    Chunk::Trailer { read: read + 1 }
                }
                _ => return flaw(),
            };
        }
        self.part = AnswerPart::Chunked(chunk);
        Ok(None)
    }
}

/// Length of the head with which `bytes` begins, what it says, and how its body ends; none if it
/// has not arrived as a whole.
fn parse_head(bytes: &[u8]) -> Result<Option<(usize, LoadAnswer, AnswerPart)>, String> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let end = match head.parse(bytes) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("not an answer of HTTP/1.1: {error}")),
    };
    let status = head.code.unwrap_or_default();
    // HTTP/1.0 closes unless it says otherwise.
    let mut answer = LoadAnswer { status, closes: head.version == Some(0), ..Default::default() };
    let mut part = AnswerPart::ToTheEnd;
    for field in head.headers.iter() {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        let value = || std::str::from_utf8(field.value).unwrap_or_default().trim();
        match field.name.len() {
            14 if is("content-length") && !matches!(part, AnswerPart::Chunked(_)) => {
                let length = value().parse();
                part =
                    AnswerPart::Sized(length.map_err(|_| "an answer with a bad content-length")?);
            }
            17 if is("transfer-encoding") => {
                part = match value().to_ascii_lowercase() {
                    codings if codings.ends_with("chunked") => {
                        AnswerPart::Chunked(Chunk::Size { size: 0, read: 0 })
                    }
                    _ => AnswerPart::ToTheEnd,
                };
            }
            10 if is("connection") => {
                let options = value().to_ascii_lowercase();
                let has = |option| options.split(',').any(|o| o.trim() == option);
                answer.closes = has("close") || answer.closes && !has("keep-alive");
            }
            11 if is("retry-after") => {
                answer.retry_after = value().parse().ok().map(Duration::from_secs);
            }
            _ => {}
        }
    }
    if matches!(status, 204 | 304) {
        part = AnswerPart::Sized(0);
    }
    answer.closes |= part == AnswerPart::ToTheEnd;
    Ok(Some((end, answer, part)))
}

/// How many payloads a millrace accepts with this body.
fn accepted(body: &[u8]) -> Option<u64> {
    let rest = body.strip_prefix(br#"{"accepted":"#)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer to `bytes`, which arrive in pieces of `size`, and how much was left.
    fn read(bytes: &[u8], size: usize) -> Result<Option<(LoadAnswer, String)>, String> {
        let mut reader = AnswerReader::default();
        for piece in bytes.chunks(size) {
            if let Some(answer) = reader.take(piece)? {
                assert!(reader.is_empty());
                return Ok(Some((answer, reader.text())));
            }
        }
        Ok(reader.end().map(|answer| (answer, reader.text())))
    }

    #[test]
    fn answers_of_every_framing_are_read_in_any_pieces() {
        let ok = LoadAnswer { status: 200, ..LoadAnswer::default() };
        let closing = LoadAnswer { closes: true, ..ok };
        for (bytes, answer, text) in [
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 29\r\n\r\n{\"accepted\":2,\"ack\":\"queued\"}",
                LoadAnswer { accepted: Some(2), ..ok },
                "{\"accepted\":2,\"ack\":\"queued\"}",
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ok, ""),
            ("HTTP/1.1 204 No\r\n\r\n", LoadAnswer { status: 204, ..ok }, ""),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na", ok, "a"),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\na;x=y\r\n0123456789\r\n0\r\nt: u\r\n\r\n",
                ok,
                "abc0123456789",
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", ok, ""),
            ("HTTP/1.1 200 OK\r\n\r\nto the\tend", closing, "to the end"),
            ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", closing, "ok"),
            ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: Keep-Alive\r\n\r\nok", ok, "ok"),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: upgrade, close\r\n\r\n",
                closing,
                "",
            ),
            (
                "HTTP/1.1 503 No\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\nno",
                LoadAnswer { status: 503, retry_after: Some(Duration::from_secs(7)), ..ok },
                "no",
            ),
            (
                "HTTP/1.1 429 No\r\nretry-after: Fri, 31 Dec 1999 23:59:59 GMT\r\ncontent-length: 0\r\n\r\n",
                LoadAnswer { status: 429, ..ok },
                "",
            ),
        ] {
            for size in [1, 2, 3, 7, bytes.len()] {
                let expected = Ok(Some((answer, text.to_owned())));
                assert_eq!(read(bytes.as_bytes(), size), expected, "{size}: {bytes}");
            }
        }
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_what_is_cut_is_none() {
        for (bytes, said) in [
            ("SSH-2.0-OpenSSH\r\n", "not an answer of HTTP/1.1"),
            ("\u{15}\u{3}\u{3}", "not an answer of HTTP/1.1"),
            ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "a bad content-length"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab", "more than one answer"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n", "malformed"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", "malformed"),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1111111111111111\r\n",
                "malformed",
            ),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab", "malformed"),
        ] {
            let why = read(bytes.as_bytes(), bytes.len()).unwrap_err();
            assert!(why.contains(said), "{bytes}: {why}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(HEAD_MAX));
        assert!(read(endless.as_bytes(), 1000).unwrap_err().contains("longer than"));
        for cut in [
            "",
            "HTTP/1.1 200",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
        ] {
            assert_eq!(read(cut.as_bytes(), cut.len().max(1)), Ok(None), "{cut}");
        }
    }

    #[test]
    fn a_kept_text_is_short_and_only_text() {
        let body = format!("\u{1b}[31m{}", "x".repeat(1_000));
        let bytes = format!("HTTP/1.1 400 No\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let (_, text) = read(bytes.as_bytes(), 100).unwrap().unwrap();
        assert!(text.starts_with("[31mx") && text.len() < TEXT_MAX, "{text:?}");
    }
}
