//! From the socket to the answer: connections, requests, bodies, and what a client is told.

pub mod accept;
pub mod ack;
pub mod body;
mod conn;
mod head_tracker;
pub mod parse;
mod phase;
pub mod reply;
pub mod request;
pub mod server;
pub mod tokens;
