//! Which payloads were acknowledged, which were refused and which are in the store.
//!
//! A payload names its client and its number there, and the rest of its text follows from both, so
//! that whoever reads it can tell whether a byte has changed. What is known of a payload is one bit
//! a question: a run of 30 minutes with 20 million payloads takes some 10 MB.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

use crate::findings::Findings;

/// The longest filler of a payload.
pub const FILLER_MAX: usize = 400_000;
/// Fillers begin at this many places of the pattern.
const STARTS: usize = 4096;

/// Letters of which fillers are cut.
fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut rng = fastrand::Rng::with_seed(16);
        (0..STARTS + FILLER_MAX).map(|_| rng.lowercase() as u8).collect()
    })
}

/// Which payload it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    pub client: u16,
    pub number: u32,
    /// The store refuses it for good until it is told otherwise.
    pub poison: bool,
}

impl Id {
    /// Appends the payload's JSON text with a filler of this many letters.
    pub fn write(self, filler: usize, into: &mut Vec<u8>) {
        let Id { client, number, poison } = self;
        let (kind, part) = (u8::from(poison), number % 4);
        let head =
            format!(r#"{{"c":{client},"n":{number},"k":{kind},"t":{part},"l":{filler},"f":""#);
        let start = (number as usize * 7 + client as usize * 31) % STARTS;
        into.extend_from_slice(head.as_bytes());
        into.extend_from_slice(&pattern()[start..start + filler]);
        into.extend_from_slice(b"\"}");
    }

    /// The payload that `text` is, if it is one to the last byte.
    pub fn read(text: &[u8]) -> Option<Id> {
        let mut rest = text;
        let mut field = |name: &[u8]| {
            rest = rest.strip_prefix(name)?;
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (number, behind) = rest.split_at(digits);
            rest = behind;
            std::str::from_utf8(number).ok()?.parse::<u32>().ok()
        };
        let client = u16::try_from(field(b"{\"c\":")?).ok()?;
        let number = field(b",\"n\":")?;
        let poison = field(b",\"k\":")? == 1;
        field(b",\"t\":")?;
        let filler = field(b",\"l\":")? as usize;
        let id = Id { client, number, poison };
        let mut whole = Vec::with_capacity(text.len());
        if filler > FILLER_MAX {
            return None;
        }
        id.write(filler, &mut whole);
        (whole == text).then_some(id)
    }
}

/// A set of numbers, a bit each.
#[derive(Clone, Default)]
pub struct Bits(Vec<u64>);

impl Bits {
    /// Whether it is new.
    fn insert(&mut self, number: u32) -> bool {
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    fn contains(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.0.len() as u32 * 64).filter(|number| self.contains(*number))
    }
}

/// What a client was told about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// 200, or a 502 or 504 after which every payload is admitted all the same.
    Admitted,
    /// 200 after `stored`.
    Stored,
    /// An answer after which nothing of it may be stored, or never sent whole.
    Refused,
}

#[derive(Default)]
struct Client {
    admitted: Bits,
    confirmed: Bits,
    refused: Bits,
    stored: Bits,
    dead: Bits,
    sent: u32,
}

/// Everything that is known of all payloads.
#[derive(Default)]
pub struct Ledger {
    clients: Vec<Client>,
    /// Numbers of keys seen, by node and core.
    keys: HashMap<String, Bits>,
    /// Objects put again under their key: a retry whose first answer was lost.
    pub put_again: u64,
    /// Payloads found under a second key.
    pub second_key: u64,
    pub objects: u64,
}

/// The end of the account, in payloads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    pub sent: u64,
    pub admitted: u64,
    pub confirmed: u64,
    pub refused: u64,
    /// Neither acknowledged nor refused: aborted, ignored, unanswered.
    pub open: u64,
    pub open_stored: u64,
    pub stored: u64,
    pub dead: u64,
    /// Admitted and nowhere.
    pub missing: u64,
    /// Confirmed by `stored` and not in the store.
    pub unconfirmed: u64,
    /// Refused and found all the same.
    pub refused_found: u64,
}

impl Ledger {
    /// The number of another client.
    pub fn client(&mut self) -> u16 {
        self.clients.push(Client::default());
        u16::try_from(self.clients.len() - 1).expect("fewer than 65,536 clients")
    }

    pub fn sent(&mut self, client: u16, numbers: &Range<u32>) {
        self.clients[client as usize].sent = numbers.end;
    }

    pub fn told(&mut self, client: u16, numbers: Range<u32>, told: Told, findings: &Findings) {
        let client = &mut self.clients[client as usize];
        for number in numbers {
            match told {
                Told::Refused => {
                    client.refused.insert(number);
                }
                Told::Admitted => {
                    client.admitted.insert(number);
                }
                Told::Stored => {
                    client.admitted.insert(number);
                    client.confirmed.insert(number);
                    findings.check(client.stored.contains(number), "200 for stored before the PUT");
                }
            }
        }
    }

    /// An object is in the store.
    pub fn stored(&mut self, key: &str, ids: &[Id], findings: &Findings) {
        let Some((origin, sequence)) = split_key(key) else {
            return findings.add(format!("a key of another form: {key}"));
        };
        let new_key = self.keys.entry(origin.to_owned()).or_default().insert(sequence);
        self.objects += u64::from(new_key);
        self.put_again += u64::from(!new_key);
        for id in ids {
            let Some(client) = self.clients.get_mut(id.client as usize) else {
                return findings.add(format!("a payload of no client: {id:?} under {key}"));
            };
            let new = client.stored.insert(id.number);
            self.second_key += u64::from(new_key && !new);
            findings.check(new_key || !new, "a key was put again with another payload");
        }
    }

    /// A payload is in a dead letter.
    pub fn dead(&mut self, id: Id) {
        if let Some(client) = self.clients.get_mut(id.client as usize) {
            client.dead.insert(id.number);
        }
    }

    /// The dead letters were replayed: from now on only the store counts.
    pub fn forget_dead(&mut self) {
        for client in &mut self.clients {
            client.dead = Bits::default();
        }
    }

    pub fn account(&self) -> Account {
        let mut sum = Account::default();
        for client in &self.clients {
            let found = |number| client.stored.contains(number) || client.dead.contains(number);
            sum.sent += u64::from(client.sent);
            sum.admitted += client.admitted.count();
            sum.confirmed += client.confirmed.count();
            sum.refused += client.refused.count();
            sum.stored += client.stored.count();
            sum.dead += client.dead.count();
            sum.missing += client.admitted.numbers().filter(|n| !found(*n)).count() as u64;
            let confirmed = client.confirmed.numbers();
            sum.unconfirmed += confirmed.filter(|n| !client.stored.contains(*n)).count() as u64;
            sum.refused_found += client.refused.numbers().filter(|n| found(*n)).count() as u64;
            let is_open = |n: &u32| !client.admitted.contains(*n) && !client.refused.contains(*n);
            sum.open += (0..client.sent).filter(is_open).count() as u64;
            sum.open_stored += client.stored.numbers().filter(is_open).count() as u64;
        }
        sum
    }

    /// The first admitted payloads that are nowhere, as `client/number`.
    pub fn first_missing(&self, limit: usize) -> Vec<String> {
        let missing = self.clients.iter().enumerate().flat_map(|(at, client)| {
            let nowhere = |n: &u32| !client.stored.contains(*n) && !client.dead.contains(*n);
            client.admitted.numbers().filter(nowhere).map(move |number| format!("{at}/{number}"))
        });
        missing.take(limit).collect()
    }
}

/// `NODE-CORE` and the number of a key whose last part is `NANOS-NODE-CORE-SEQ.ext`.
fn split_key(key: &str) -> Option<(&str, u32)> {
    let (_, name) = key.rsplit_once('/')?;
    let (stem, _) = name.split_once('.')?;
    let (_, rest) = stem.split_once('-')?;
    let (origin, sequence) = rest.rsplit_once('-')?;
    Some((origin, sequence.parse().ok()?))
}
