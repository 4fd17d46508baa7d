//! From the socket to the answer: connections, requests, bodies, and what a client is told.

pub mod accept;
pub mod ack;
pub mod body;
pub mod conn;
pub mod parse;
pub mod reply;
pub mod tokens;
