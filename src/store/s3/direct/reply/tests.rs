use proptest::prelude::*;

use super::*;

/// What came of an answer, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Got {
    status: u16,
    body: Vec<u8>,
    keep_alive: bool,
}

/// Reads `bytes` in pieces of `piece`, then the end of the connection; `None` if that cuts it.
fn read_in(reader: &mut ReplyReader, bytes: &[u8], piece: usize) -> Result<Option<Got>, Malformed> {
    let mut rest = bytes;
    let mut whole = false;
    while !whole && !rest.is_empty() {
        let space = reader.space();
        let n = rest.len().min(piece).min(space.len());
        space[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        whole = reader.advance(n)?;
    }
    if !whole && !reader.end() {
        return Ok(None);
    }
    let Reply { status, body, keep_alive, .. } = reader.reply();
    Ok(Some(Got { status, body: body.to_vec(), keep_alive }))
}

/// The same without a buffer of the reader's in between.
fn take_in(bytes: &[u8], piece: usize) -> Result<Option<Got>, Malformed> {
    let mut reader = ReplyReader::default();
    let mut whole = false;
    for piece in bytes.chunks(piece) {
        whole = reader.take(piece)?;
        if whole {
            break;
        }
    }
    if !whole && !reader.end() {
        return Ok(None);
    }
    let Reply { status, body, keep_alive, .. } = reader.reply();
    Ok(Some(Got { status, body: body.to_vec(), keep_alive }))
}

/// In one piece and byte by byte, which must come to the same.
fn read(text: &str) -> Result<Option<Got>, Malformed> {
    let whole = read_in(&mut ReplyReader::default(), text.as_bytes(), usize::MAX);
    let by_bytes = read_in(&mut ReplyReader::default(), text.as_bytes(), 1);
    assert_eq!(take_in(text.as_bytes(), usize::MAX), whole, "{text:?}");
    assert_eq!(take_in(text.as_bytes(), 1), by_bytes, "{text:?}");
    // Read in one piece, what comes behind an answer is seen.
    let unseen = |got: Result<Option<Got>, Malformed>| {
        got.map(|got| got.map(|got| Got { keep_alive: true, ..got }))
    };
    assert_eq!(unseen(whole.clone()), unseen(by_bytes), "{text:?}");
    whole
}

fn got(status: u16, body: &str, keep_alive: bool) -> Result<Option<Got>, Malformed> {
    Ok(Some(Got { status, body: body.into(), keep_alive }))
}

#[test]
fn bodies_end_where_their_head_says() {
    let chunks = "HTTP/1.1 503 Slow Down\r\nTransfer-Encoding: Chunked\r\n\r\n\
                  4\r\nwiki\r\nA;x=y\r\npedia in c\r\n0\r\nx-trailer: 1\r\n\r\n";
    for (text, expected) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", got(200, "", true)),
        ("HTTP/1.1 200\r\nContent-Length:2\r\nContent-Length: 2\r\n\r\nok", got(200, "ok", true)),
        ("HTTP/1.1 204 No Content\r\n\r\n", got(204, "", true)),
        ("HTTP/1.1 304 Same\r\ncontent-length: 5\r\n\r\n", got(304, "", true)),
        (chunks, got(503, "wikipedia in c", true)),
        ("HTTP/1.1 200 OK\r\n\r\nto the end", got(200, "to the end", false)),
        ("HTTP/1.1 200 OK\r\n\r\n", got(200, "", false)),
    ] {
        assert_eq!(read(text), expected, "{text:?}");
    }
}

#[test]
fn a_connection_is_kept_only_if_both_sides_know_it() {
    for (head, kept) in [
        ("HTTP/1.1 200 OK", true),
        ("HTTP/1.1 200 OK\r\nconnection: close", false),
        ("HTTP/1.1 200 OK\r\nConnection: x , Close", false),
        ("HTTP/1.1 200 OK\r\nconnection: keep-alive", true),
        ("HTTP/1.0 200 OK", false),
        ("HTTP/1.0 200 OK\r\nconnection: Keep-Alive", true),
    ] {
        let text = format!("{head}\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(read(&text), got(200, "", kept), "{text:?}");
    }
    let surplus = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n";
    assert_eq!(read(surplus), got(200, "", false), "bytes nobody asked for");
}

#[test]
fn interim_answers_are_passed_over() {
    let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n\
                HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n.";
    assert_eq!(read(text), got(200, ".", true));
    let switching = "HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n";
    assert_eq!(read(switching), Err(Malformed::Upgrade));
    let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(2000);
    assert_eq!(read(&endless), Err(Malformed::HeadTooLong));
}

#[test]
fn what_is_not_clear_is_refused() {
    use Malformed::{Chunk, Framing};
    for (head, expected) in [
        ("content-length: 1\r\ncontent-length: 2", Framing),
        ("content-length: +1", Framing),
        ("content-length: 1, 1", Framing),
        ("content-length: ", Framing),
        ("content-length: 99999999999999999999999", Framing),
        ("content-length: 1048577", Malformed::BodyTooLong),
        ("transfer-encoding: chunked\r\ncontent-length: 1", Framing),
        ("transfer-encoding: gzip, chunked", Framing),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", Framing),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
        assert_eq!(read(&text), Err(expected), "{text:?}");
    }
    for (chunks, expected) in [
        ("\r\n", Chunk),
        ("x\r\n", Chunk),
        ("1;x\n=y\r\n", Chunk),
        ("0;\n\r\n", Chunk),
        ("0\r\nx: 1\n\r\n", Chunk),
        ("0\r\n\n", Chunk),
        ("1\r\nabc", Chunk),
        ("fffffffffffffffff\r\n", Chunk),
        ("ffffffffffffffff\r\n", Malformed::BodyTooLong),
        ("100001\r\n", Malformed::BodyTooLong),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        assert_eq!(read(&text), Err(expected), "{text:?}");
    }
    let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(read(old), Err(Framing));
    for status in ["000", "099"] {
        let text = format!("HTTP/1.1 {status} OK\r\ncontent-length: 0\r\n\r\n");
        assert!(matches!(read(&text), Err(Malformed::NotHttp(_))), "{text:?}");
    }
    for text in ["SSH-2.0-x\r\n", "HTTP/2 200\r\n\r\n", "HTTP/1.1 200 OK\r\nbad header\r\n\r\n"] {
        assert!(matches!(read(text), Err(Malformed::NotHttp(_))), "{text:?}");
    }
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(HEAD_BYTES_MAX));
    assert_eq!(read(&long), Err(Malformed::HeadTooLong));
}

#[test]
fn what_is_cut_is_no_answer() {
    for text in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-len",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n.",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
    ] {
        assert_eq!(read(text), Ok(None), "{text:?}");
    }
}

#[test]
fn date_and_location_are_kept() {
    let text = "HTTP/1.1 100 Continue\r\ndate: not this one\r\n\r\nHTTP/1.1 307 Elsewhere\r\n\
                LOCATION: http://other.example/k\r\nDate: Fri, 01 Jan 2100 00:00:00 GMT\r\n\
                content-length: 0\r\n\r\n";
    for piece in [1, 7, usize::MAX] {
        let mut reader = ReplyReader::default();
        read_in(&mut reader, text.as_bytes(), piece).unwrap();
        assert_eq!(reader.reply().header("location"), Some("http://other.example/k"));
        assert_eq!(reader.reply().header("date"), Some("Fri, 01 Jan 2100 00:00:00 GMT"));
    }
}

#[test]
fn a_success_without_a_body_needs_no_buffer_and_keeps_no_head() {
    let mut reader = ReplyReader::default();
    assert!(reader.is_untouched());
    let stored = b"HTTP/1.1 200 OK\r\netag: \"x\"\r\ncontent-length: 0\r\n\r\n";
    for _ in 0..2 {
        assert_eq!(reader.take(stored), Ok(true));
        let reply = reader.reply();
        assert_eq!((reply.status, reply.body, reply.keep_alive), (200, &b""[..], true));
        assert_eq!((reply.header("etag"), reader.buffer.capacity()), (None, 0));
        assert!(!reader.is_untouched());
        reader.reset();
        assert!(reader.is_untouched());
    }
    // Everything else is kept.
    let busy = b"HTTP/1.1 503 Slow Down\r\ndate: today\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(reader.take(busy), Ok(true));
    assert_eq!(reader.reply().header("date"), Some("today"));
    reader.reset();
    assert_eq!(reader.take(&stored[..20]), Ok(false));
    assert_eq!(reader.take(&stored[20..]), Ok(true));
    assert_eq!(reader.reply().header("etag"), Some("\"x\""));
}

#[test]
fn buffers_are_bounded_and_given_back() {
    let mut reader = ReplyReader::default();
    let body = "x".repeat(BODY_BYTES_MAX);
    let text = format!("HTTP/1.1 400 No\r\ncontent-length: {BODY_BYTES_MAX}\r\n\r\n{body}");
    assert_eq!(read_in(&mut reader, text.as_bytes(), 9000).unwrap().unwrap().body, body.as_bytes());
    reader.reset();
    assert!(reader.is_untouched());
    assert_eq!(reader.buffer.capacity(), BUFFER_BYTES);

    let chunk = format!("1;{}\r\nx\r\n", "e".repeat(900));
    let chunks = chunk.repeat(2000);
    let text = format!("HTTP/1.1 400 No\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
    let answer = read_in(&mut reader, text.as_bytes(), 1000).unwrap().unwrap();
    assert_eq!(answer.body, [b'x'; 2000]);
    assert!(reader.buffer.len() < 16 << 10, "{} bytes for 2000", reader.buffer.len());
}

proptest! {
    /// Whatever a response looks like, it means what the parser says.
    #[test]
    fn a_usual_response_is_recognized_for_what_it_is(
        headers in prop::collection::vec(
            prop_oneof![
                Just("content-length: 0"), Just("Content-Length:0"), Just("content-length: 2"),
                Just("connection: close"), Just("connection: keep-alive"), Just("etag: \"x\""),
                Just("transfer-encoding: chunked"), Just("x:"), Just(" folded"), Just("y : z"),
            ],
            0..6,
        ),
        status in prop_oneof![Just("200 OK"), Just("204 "), Just("200"), Just("503 Slow Down")],
        behind in prop_oneof![Just(""), Just("ok"), Just("0\r\n\r\n")],
        change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let lines: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let mut bytes = format!("HTTP/1.1 {status}\r\n{lines}\r\n{behind}").into_bytes();
        if let Some((at, byte)) = change {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // Cut behind its first byte, a response is always read by the parser.
        let mut reader = ReplyReader::default();
        prop_assert_eq!(reader.take(&bytes[..1]), Ok(false));
        let parsed = reader.take(&bytes[1..]).map(|whole| {
            (whole || reader.end()).then(|| {
                let Reply { status, body, keep_alive, .. } = reader.reply();
                Got { status, body: body.to_vec(), keep_alive }
            })
        });
        prop_assert_eq!(&take_in(&bytes, usize::MAX), &parsed);
        prop_assert_eq!(&read_in(&mut ReplyReader::default(), &bytes, usize::MAX), &parsed);
    }

    #[test]
    fn any_bytes_are_read_within_bounds(
        bytes in prop::collection::vec(any::<u8>(), 0..3000), piece in 1..100usize,
    ) {
        prop_assert_eq!(
            take_in(&bytes, usize::MAX), read_in(&mut ReplyReader::default(), &bytes, usize::MAX)
        );
        let _ = read_in(&mut ReplyReader::default(), &bytes, piece);
        let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        answer.extend(&bytes);
        let _ = read_in(&mut ReplyReader::default(), &answer, piece);
    }

    #[test]
    fn chunks_come_to_the_same_however_they_are_cut(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..2000), 0..20),
        piece in 1..3000usize,
    ) {
        let mut bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for chunk in &chunks {
            bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\n\r\n");
        let got = read_in(&mut ReplyReader::default(), &bytes, piece).unwrap().unwrap();
        prop_assert_eq!(got.body, chunks.concat());
        prop_assert!(got.keep_alive);
    }
}
