//! How bytes are compressed, by the name that HTTP has for it: bodies of requests, and objects that say
//! so in a header. And how text in URLs is escaped (`percent`).

pub mod percent;

use serde::{Deserialize, Serialize};

/// A content coding; its absence is `Option`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coding {
    Gzip,
    Zstd,
}

impl Coding {
    /// As `content-encoding` says it.
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
    /// What others call it; `None`: nothing is compressed.
    pub fn coding(self) -> Option<Coding> {
        match self {
            Compression::None => None,
            Compression::Gzip(_) => Some(Coding::Gzip),
            Compression::Zstd(_) => Some(Coding::Zstd),
        }
    }
}
