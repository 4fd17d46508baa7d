//! Batches: many payloads in one NDJSON object, one payload per line.
//!
//! `encoder` turns payloads into the bytes of one object: it puts them on lines (`lines`), compresses them in bounded
//! slices (`compressor`) and keeps the outcome in chunks (`chunks`) that are sent as they lie.

mod chunks;
mod compressor;
pub mod encoder;
mod lines;
