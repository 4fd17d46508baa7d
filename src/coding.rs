//! Content codings of request bodies and objects, by their HTTP names, and escaping of text in URLs
//! (`percent`).

pub mod percent;

use serde::{Deserialize, Serialize};

/// A content coding; `None` of an `Option` means uncompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coding {
    Gzip,
    Zstd,
}

impl Coding {
    /// The name in `content-encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Zstd => "zstd",
        }
    }
}

/// `COMPRESSION` with its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    /// 0 (stored) to 9.
    Gzip(u32),
    /// Negative levels are faster, 22 is the highest.
    Zstd(i32),
}

impl Compression {
    /// The content coding; `None` if nothing is compressed.
    pub fn coding(self) -> Option<Coding> {
        match self {
            Compression::None => None,
            Compression::Gzip(_) => Some(Coding::Gzip),
            Compression::Zstd(_) => Some(Coding::Zstd),
        }
    }
}
