//! Bytes to collection.
