//! The README's first minute: start with defaults, post a collection, find the files, stop cleanly.

use crate::support::Server;

#[test]
fn a_collection_becomes_one_file_per_payload_and_the_stop_is_clean() {
    let server = Server::start(&[]);
    let reply = server.post(r#"{"version":"1","token":"t","data":[{"a": 1.0},"x",[ ]]}"#);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.body, r#"{"accepted":3,"ack":"queued"}"#);
    server.wait_idle();
    let mut stored: Vec<_> = server.stored().into_values().collect();
    stored.sort();
    assert_eq!(stored, [&b"\"x\""[..], b"[ ]", b"{\"a\": 1.0}"]);
    let stopped = server.stop();
    assert_eq!((stopped.status, stopped.accepted, stopped.stored, stopped.lost), (0, 3, 3, 0));
}
