//! From the socket to the answer: connections, requests, bodies and replies.

pub mod accept;
pub mod ack;
pub mod body;
pub mod body_memory;
mod chunk;
mod client_stream;
pub mod conn;
pub mod cors;
mod eviction;
pub mod facts;
mod fast;
pub mod fields;
pub mod forwarded;
pub mod h2;
mod handshakes;
pub mod head;
pub(crate) mod head_tracker;
pub mod health;
pub mod media_type;
mod meta;
pub mod parse;
pub mod peer;
pub mod peers;
mod phase;
mod proxied;
pub mod proxy_header;
pub mod quotas;
mod receive;
mod recency;
pub mod refusal_log;
pub mod reply;
pub mod request;
pub mod secured;
pub mod server;
pub mod split;
pub mod tap;
mod through_hyper;
pub mod tokenless;
pub mod tokens;
mod traceparent;

use std::time::Duration;

use crate::net;

/// Longest request head (request line and header fields) that a connection buffers: hyper's
/// `max_buf_size`. nginx and the AWS load balancers also allow 16 KiB.
pub const HEAD_BYTES_MAX: usize = 16 << 10;

/// Most memory of one open connection, kernel buffers aside; its bodies are in `MAX_BODY_BYTES`.
///
/// With hyper: a head of [`HEAD_BYTES_MAX`] in its read buffer; its write buffer of 8 KiB; 16 KiB
/// (about 14 KiB measured) for the task with hyper's state, header fields being parsed, the socket
/// and the allocator's rounding; and one receive buffer's bytes, copied when the core's pool was
/// empty.
///
/// On the fast path it is no more: an incomplete head of [`HEAD_BYTES_MAX`]; 6 KiB of answers that
/// the client does not read and one more, in a vector of up to twice that, and as many in flight,
/// 21 KiB together; 2 KiB for the task and the socket; and the copied bytes as well.
///
/// Not in it: up to 24 KiB more of a client that hyper serves, sends many requests at once and reads
/// no answer (hyper then writes into 16 KiB instead of 8, and as much is in flight), until it has
/// been idle for long enough to be closed.
///
/// Measured: 21 kB after a request of hyper's, 2 kB once silent (10,000 connections), 31 to 37 KiB
/// with 15 KiB of head in 97 fields that is incomplete or awaits its body (2,000 connections).
pub const CONNECTION_BYTES: usize = HEAD_BYTES_MAX + (8 << 10) + (16 << 10) + net::BUFFER_BYTES;

/// How much of a refused request is read and discarded so that the early answer reaches a client
/// that is still sending. Closing earlier makes the kernel send RST, which destroys the answer in
/// the client's buffer. 1 MiB (two default socket buffers) is what a client usually has in flight
/// before it reads replies.
pub const LINGER_BYTES_MAX: usize = 1 << 20;

/// For how long a body may arrive more slowly than `BODY_RATE_MIN`: each such time is judged on its
/// own. Longer than a mobile network takes for a handover or a change of cell.
pub const BODY_RATE_WINDOW: Duration = Duration::from_secs(10);

/// How long such a connection is kept at most: two round trips on a bad mobile network.
pub const LINGER_TIME_MAX: Duration = Duration::from_secs(2);

/// How long an idle connection stays open after a stop has begun, or after it was accepted during
/// the stop, because its client may be sending the next request. Half a second is a round trip on a
/// bad mobile network, and how long a stop with idle connections takes.
pub const STOP_IDLE_GRACE: Duration = Duration::from_millis(500);
