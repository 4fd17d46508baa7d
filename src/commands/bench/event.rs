//! Payloads for whatever compresses: what is equal in all of them would cost a compressor nothing.

use crate::rt;

#[rustfmt::skip]
const WORDS: &[&str] = &[
    "able", "account", "after", "again", "amount", "answer", "arrived", "before", "blue", "broken", "called",
    "cannot", "change", "city", "client", "closed", "colour", "copper", "could", "delivery", "different", "door",
    "early", "eleven", "every", "fast", "found", "friend", "garden", "green", "heavy", "house", "invoice", "journey",
    "kitchen", "large", "later", "letter", "light", "little", "market", "message", "minute", "morning", "north",
    "number", "offer", "order", "other", "paper", "people", "place", "please", "quiet", "refund", "repair", "return",
    "river", "second", "seller", "should", "silver", "small", "street", "summer", "table", "thanks", "there",
    "ticket", "today", "travel", "twice", "under", "until", "water", "weather", "white", "window", "winter",
    "yesterday",
];
const KINDS: &[&str] =
    &["view", "click", "add_to_cart", "checkout", "search", "login", "refund", "error"];
const AGENTS: &[&str] = &[
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
    "okhttp/4.12.0",
];

/// A JSON object of `bytes` bytes (never fewer than about 700): names, ids, times, numbers and
/// words as an application logs them. zstd's level 1 makes a third of it.
pub fn event(rng: &mut rt::Rng, bytes: usize) -> String {
    let pick = |rng: &mut rt::Rng, of: &[&'static str]| of[rng.usize(..of.len())];
    let mut text = format!(
        r#"{{"id":"{:032x}","at":"2026-11-{:02}T{:02}:{:02}:{:02}.{:06}Z","type":"{}","user":{},"session":"{:016x}","#,
        rng.u128(..),
        rng.u32(1..31),
        rng.u32(..24),
        rng.u32(..60),
        rng.u32(..60),
        rng.u32(..1_000_000),
        pick(rng, KINDS),
        rng.u32(..50_000_000),
        rng.u64(..),
    );
    let [a, b, c, d] = [(); 4].map(|()| rng.u8(..));
    text += &format!(
        r#""ip":"{a}.{b}.{c}.{d}","agent":"{}","path":"/{}/{}/{}","ms":{}.{:03},"cached":{},"#,
        pick(rng, AGENTS),
        pick(rng, WORDS),
        pick(rng, WORDS),
        rng.u32(..1_000_000),
        rng.u32(..2_000),
        rng.u32(..1_000),
        rng.bool(),
    );
    text += &format!(r#""position":[{:.6},{:.6}],"items":["#, rng.f64() * 180.0, rng.f64() * 90.0);
    for n in 0..rng.u32(1..4) {
        let comma = if n == 0 { "" } else { "," };
        let (sku, quantity, cents) = (rng.u32(..), rng.u32(1..9), rng.u32(..100_000));
        text += &format!(
            r#"{comma}{{"sku":"{sku:08X}","name":"{} {}","quantity":{quantity},"cents":{cents}}}"#,
            pick(rng, WORDS),
            pick(rng, WORDS),
        );
    }
    text += r#"],"text":""#;
    let least = text.len();
    while text.len() + 2 < bytes {
        text += pick(rng, WORDS);
        text.push(if rng.u32(..10) == 0 { ',' } else { ' ' });
    }
    text.truncate(least.max(bytes.saturating_sub(2)));
    text + r#""}"#
}
