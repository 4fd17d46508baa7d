//! The requests, made before anything is measured. Different ones of equal size, so that no branch
//! predictor learns one.

use millrace::internals::commands::bench::bodies::records;
use millrace::internals::commands::bench::event::event;

use super::h2;
use crate::lanes::{Lane, Shape, Wire};

/// Whole requests, head and body, to be sent in turn.
pub struct Traffic {
    requests: Vec<Vec<u8>>,
    /// Payloads in each.
    pub payloads: usize,
}

/// All requests together: more than a cache of the client's, but no burden for its memory. Of
/// payloads of 1 kB there are then 640 before one comes again, five times as far apart as a batch's
/// zstd window is long.
const BYTES_MAX: usize = 4 << 20;

impl Traffic {
    pub fn new(lane: &Lane) -> Traffic {
        let mut rng = fastrand::Rng::with_seed(1);
        let Lane { payloads, payload_bytes, .. } = *lane;
        let requests = (BYTES_MAX / (payloads * payload_bytes).max(1)).clamp(4, 64);
        let requests = (0..requests).map(|_| request(&mut rng, lane)).collect();
        Traffic { requests, payloads }
    }

    /// The `turn`th request, over and over.
    pub fn request(&self, turn: usize) -> &[u8] {
        &self.requests[turn % self.requests.len()]
    }
}

fn request(rng: &mut fastrand::Rng, lane: &Lane) -> Vec<u8> {
    let payload = |rng: &mut fastrand::Rng| match lane.shape {
        Shape::Records => records(rng, lane.payload_bytes),
        Shape::Events => event(rng, lane.payload_bytes),
    };
    let data: Vec<String> = (0..lane.payloads).map(|_| payload(rng)).collect();
    let body =
        format!(r#"{{"version":"1.0","token":"0123456789abcdef","data":[{}]}}"#, data.join(","));
    if lane.wire == Wire::H2 {
        return h2::request(&body);
    }
    let head = format!(
        "POST /payloads HTTP/1.1\r\nhost: ingest.example\r\nuser-agent: millrace-bench\r\naccept: */*\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}
