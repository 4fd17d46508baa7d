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

use std::time::Duration;

use crate::net;

/// Longest request head (request line and headers) a connection may buffer: hyper's `max_buf_size`. 16 KiB
/// is what nginx and the AWS load balancers allow.
pub const HEAD_BYTES_MAX: usize = 16 << 10;

/// Memory of one open connection at most: a head of [`HEAD_BYTES_MAX`] in hyper's read buffer, hyper's write buffer of
/// 8 KiB, about 14 KiB for the task with hyper's state, header fields being parsed, the socket and the allocator's
/// rounding, and what had arrived behind the head when the core's receive buffers ran out. Measured: 21 kB after a
/// request, 2 kB once silent (by 10,000 connections), 31 to 37 KiB with 15 KiB of head in 97 fields, incomplete or
/// with its body awaited (by 2,000). Kernel buffers come on top.
pub const CONNECTION_BYTES: usize = HEAD_BYTES_MAX + (8 << 10) + (16 << 10) + net::BUFFER_BYTES;

/// How much of a refused request is read and thrown away so that the early answer reaches a client that is
/// still sending; closing earlier makes the kernel send RST, which destroys the answer in the client's buffer.
/// 1 MiB is what a client has usually put on the way (two default socket buffers) before it looks at replies.
pub const LINGER_BYTES_MAX: usize = 1 << 20;

/// How long such a connection is kept at most: two round trips of a bad mobile network.
pub const LINGER_TIME_MAX: Duration = Duration::from_secs(2);

/// How long an idle connection stays open once a stop has begun, or after it was accepted during the stop: a client may
/// just be sending its next request. Half a second is a round trip of a bad mobile network and what such a stop then takes.
pub const STOP_IDLE_GRACE: Duration = Duration::from_millis(500);
