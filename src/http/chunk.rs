//! What is wrong with a chunked body. hyper decodes the chunks and tells its errors only by the
//! text of an [`io::Error`]; this is the one place that reads those texts. A case for each in
//! `tests/it/http/strict.rs` fails when an update of hyper changes one.

use std::error::Error as _;
use std::io;

use super::body::BodyError;

/// Longest extensions of all chunks of a body, and longest trailers, in KiB: hyper's limits.
const EXTRAS_KIB: usize = 16;

/// How a body breaks the rules of RFC 9112 section 7.1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    #[error("a size line is malformed; send the chunk's size in hexadecimal digits, then CRLF")]
    SizeLine,
    #[error("a chunk's size does not fit into 64 bits; send smaller chunks")]
    SizeTooLarge,
    #[error("a chunk's data is not followed by CRLF; its size must be the exact number of bytes")]
    NoLineEnd,
    #[error("a chunk extension has a line feed without CR; end the size line with CRLF")]
    Extension,
    #[error("the chunk extensions are over {EXTRAS_KIB} KiB; send none")]
    ExtensionsTooLong,
    #[error("the trailers are malformed; after the last chunk send CRLF, or NAME: VALUE lines")]
    Trailers,
    #[error("the trailers are over {EXTRAS_KIB} KiB or 100 fields; send none")]
    TrailersTooLong,
    /// None of hyper's texts that are known here.
    #[error("{0}")]
    Other(String),
}

/// hyper's texts, or how they begin.
const TEXTS: [(&str, ChunkError); 13] = [
    ("Invalid chunk size", ChunkError::SizeLine),
    ("invalid chunk size: overflow", ChunkError::SizeTooLarge),
    ("Invalid chunk body", ChunkError::NoLineEnd),
    ("invalid chunk extension", ChunkError::Extension),
    ("chunk extensions over limit", ChunkError::ExtensionsTooLong),
    ("chunk trailers", ChunkError::TrailersTooLong),
    ("Invalid trailer", ChunkError::Trailers),
    ("Invalid chunk end", ChunkError::Trailers),
    ("Invalid header", ChunkError::Trailers),
    ("Partial header", ChunkError::Trailers),
    // httparse's.
    ("invalid header", ChunkError::Trailers),
    ("invalid new line", ChunkError::Trailers),
    ("too many headers", ChunkError::Trailers),
];

impl From<hyper::Error> for BodyError {
    /// The reason why hyper could not read a body to its end.
    fn from(error: hyper::Error) -> BodyError {
        let Some(cause) = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()) else {
            return BodyError::Disconnected(error.to_string());
        };
        match cause.kind() {
            io::ErrorKind::UnexpectedEof => {
                BodyError::Disconnected("the client closed the connection".to_owned())
            }
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                BodyError::BadChunk(of_text(&cause.to_string()))
            }
            _ => BodyError::Disconnected(cause.to_string()),
        }
    }
}

fn of_text(text: &str) -> ChunkError {
    let known = TEXTS.iter().find(|(start, _)| text.starts_with(start));
    known.map_or_else(|| ChunkError::Other(text.to_owned()), |(_, error)| error.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_not_known_is_passed_on() {
        assert_eq!(of_text("Invalid chunk size LF"), ChunkError::SizeLine);
        assert_eq!(of_text("invalid chunk size: overflow"), ChunkError::SizeTooLarge);
        let other = of_text("something new");
        assert_eq!((other.clone(), other.to_string().as_str()), (other, "something new"));
    }
}
