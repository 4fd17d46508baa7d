//! The layout of a spool segment.

/// What direct I/O is aligned to, and what a disk writes whole.
pub const BLOCK: u64 = 4096;
