//! Goal: who has no token, or guesses, costs those with one nothing, however many tokens there are
//! and however the wrong ones come.
//!
//! Method: a table of floods of 401, against a file of 4,096 tokens and one of 100,000, with a
//! good client beside each. Every answer is checked, and so is that nothing of a flood is counted
//! under a token's name.

use std::fmt::Write as _;
use std::sync::Arc;

use super::support::{Attack, Raid, beside_with, nothing_left};
use crate::support::{Client, PATIENCE, Server, request};

/// The good client's token; it is in the middle of the file.
const GOOD: &str = "authorization: Bearer good-token\r\n";

const BODY: &[u8] = br#"{"data":["not let in"]}"#;

/// A token that nobody has, another one each time.
fn guess(rng: &mut fastrand::Rng) -> String {
    std::iter::repeat_with(|| rng.alphanumeric()).take(24).collect()
}

/// Sends what `wrong` gives on a connection of its own each turn. It is refused by its head, so the
/// connection closes.
fn by_head(raid: &mut Raid, mut wrong: impl FnMut() -> String) {
    while raid.turn() {
        let Some(mut client) = Client::try_connect(raid.server) else { continue };
        client.try_send(request(BODY, &wrong()));
        let reply = client.try_reply().expect("an answer");
        assert_eq!(reply.status, 401, "{reply:?}");
        assert!(client.closed(), "open after {reply:?}");
    }
}

/// Sends what `wrong` gives as the token of a body each turn, in turn on the connections of the
/// raid, which stay open.
fn by_envelope(raid: &mut Raid, mut wrong: impl FnMut() -> String) {
    let mut clients = raid.connect_all();
    for client in &clients {
        client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut turn = 0;
    while raid.turn() {
        let count = clients.len();
        let body = format!(r#"{{"token":"{}","data":["not let in"]}}"#, wrong());
        let reply = clients[turn % count].post(body);
        assert_eq!(reply.status, 401, "{reply:?}");
        turn += 1;
    }
}

fn guesses_in_a_header(raid: &mut Raid) {
    let mut rng = fastrand::Rng::with_seed(13);
    by_head(raid, || format!("authorization: Bearer {}\r\n", guess(&mut rng)));
}

fn guesses_as_an_api_key(raid: &mut Raid) {
    let mut rng = fastrand::Rng::with_seed(14);
    by_head(raid, || format!("x-api-key: {}\r\n", guess(&mut rng)));
}

/// As long as a head may be.
fn long_header(raid: &mut Raid) {
    let token = "x".repeat(15_000);
    by_head(raid, || format!("authorization: Bearer {token}\r\n"));
}

fn malformed_header(raid: &mut Raid) {
    let mut forms = ["", "Bearer", "Bearer a b", "Basic YTpi", "Bearer \u{e9}"].iter().cycle();
    by_head(raid, || format!("authorization: {}\r\n", forms.next().unwrap()));
}

/// The right token, and another one beside it.
fn two_tokens(raid: &mut Raid) {
    let mut others = ["x-api-key: wrong\r\n", GOOD].iter().cycle();
    by_head(raid, || format!("{GOOD}{}", others.next().unwrap()));
}

/// The header is refused while the body is announced and never comes.
fn no_body_after_the_head(raid: &mut Raid) {
    let mut rng = fastrand::Rng::with_seed(15);
    while raid.turn() {
        let Some(mut client) = Client::try_connect(raid.server) else { continue };
        client.try_send(format!(
            "POST /payloads HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ncontent-length: 1000000\r\n\r\n",
            guess(&mut rng)
        ));
        let reply = client.try_reply().expect("an answer");
        assert_eq!(reply.status, 401, "{reply:?}");
    }
}

fn guesses_in_the_envelope(raid: &mut Raid) {
    let mut rng = fastrand::Rng::with_seed(16);
    by_envelope(raid, || guess(&mut rng));
}

/// Nearly as long as a token may be: a wrong one is hashed to its end.
fn long_token_in_the_envelope(raid: &mut Raid) {
    let token = "x".repeat(60 << 10);
    by_envelope(raid, || token.clone());
}

fn no_token(raid: &mut Raid) {
    let mut clients = raid.connect_all();
    for client in &clients {
        client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut turn = 0;
    while raid.turn() {
        let count = clients.len();
        let reply = clients[turn % count].post(BODY);
        assert_eq!(reply.status, 401, "{reply:?}");
        turn += 1;
    }
}

/// As many different tokens as there is time for.
static GUESSES: [Attack; 3] = [
    Attack { name: "bearer guesses", connections: 1, per_second: 300, run: guesses_in_a_header },
    Attack { name: "API key guesses", connections: 1, per_second: 300, run: guesses_as_an_api_key },
    Attack { name: "body guesses", connections: 8, per_second: 500, run: guesses_in_the_envelope },
];

/// Other ways to have no token that is right.
static OTHERS: [Attack; 6] = [
    Attack { name: "15 kB header", connections: 1, per_second: 100, run: long_header },
    Attack { name: "malformed header", connections: 1, per_second: 300, run: malformed_header },
    Attack { name: "two tokens", connections: 1, per_second: 300, run: two_tokens },
    Attack { name: "no body", connections: 1, per_second: 300, run: no_body_after_the_head },
    Attack {
        name: "60 KiB in a body",
        connections: 8,
        per_second: 30,
        run: long_token_in_the_envelope,
    },
    Attack { name: "no token", connections: 8, per_second: 500, run: no_token },
];

/// A server with `count` tokens, one of them the good client's.
fn server_with(count: usize) -> Server {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut text = String::with_capacity(count * 72);
    for n in 1..count {
        if n == count / 2 {
            text += "good-token;name=good\n";
        }
        writeln!(text, "sha256={n:064x}").unwrap();
    }
    std::fs::write(dir.path().join("tokens"), text).unwrap();
    let server = Server::start_in(dir, &[("STORE", "null:"), ("TOKENS_FILE", "tokens")]);
    assert_eq!(server.metrics().sum("millrace_tokens"), count as u64);
    server
}

/// Runs `attacks` against a server with `count` tokens.
fn flood(count: usize, attacks: &[&'static [Attack]]) {
    let server = server_with(count);
    let run = |attack| beside_with(&server, attack, GOOD);
    let outcomes: Vec<_> = attacks.iter().copied().flatten().map(run).collect();
    nothing_left(&server, &outcomes);
    let answered: u64 = outcomes.iter().map(|outcome| outcome.good.answered).sum();
    let metrics = server.metrics();
    assert!(metrics.requests(401) > 0);
    let named = metrics.sum_where("millrace_token_requests_total", r#"token="good",status="200""#);
    assert_eq!(named, answered);
    assert_eq!(metrics.sum("millrace_token_requests_total"), answered, "a flood has no name");
}

#[test]
fn floods_of_wrong_tokens() {
    flood(4_096, &[&GUESSES, &OTHERS]);
}

/// What a wrong token costs does not grow with the number of right ones. (An unoptimised server
/// would read a million for longer than a test waits for its start.)
#[test]
fn floods_of_wrong_tokens_against_a_hundred_thousand() {
    flood(100_000, &[&GUESSES]);
}
