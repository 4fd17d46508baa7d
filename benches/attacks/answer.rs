//! One HTTP/1.1 answer in a buffer.

/// Where an answer ends and what it says.
pub struct Answer<'a> {
    pub status: u16,
    /// The server closes after it.
    pub closes: bool,
    pub body: &'a [u8],
    /// Bytes of all of it.
    pub length: usize,
}

/// The first answer in `bytes`; none when it is not there as a whole yet.
///
/// # Errors
/// If it is no answer of HTTP/1.1 with a content length.
pub fn answer(bytes: &[u8]) -> Result<Option<Answer<'_>>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let text = || String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
    let parsed = head.parse(bytes).map_err(|error| format!("{error}: {}", text()))?;
    let httparse::Status::Complete(body_at) = parsed else { return Ok(None) };
    let status = head.code.ok_or_else(|| format!("no status: {}", text()))?;
    let field = |name: &str| {
        let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let length = match field("content-length") {
        Some(length) => length.parse().map_err(|_| format!("no length: {}", text()))?,
        None if status == 100 => 0,
        None => return Err(format!("no content-length: {}", text())),
    };
    let closes = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let body = bytes.get(body_at..body_at + length);
    Ok(body.map(|body| Answer { status, closes, body, length: body_at + length }))
}
