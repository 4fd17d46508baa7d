//! How bytes are compressed, by the name that HTTP has for it: bodies of requests, and objects that say so in a header.

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
