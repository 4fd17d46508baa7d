//! The tokens of `TOKENS_FILE`: their digests, and the lookup of a request's token.
//!
//! # What the duration of a lookup reveals
//!
//! Nothing about a token that is not right. Its SHA-256 takes a time that depends on its length
//! alone. The digest selects a bucket, and is compared with every digest there, in full and in
//! constant time, also after one has matched. Which bucket it is depends on a hash with a key of
//! this process: SipHash, a pseudorandom function made for tables that attackers may query
//! (Aumasson and Bernstein, *SipHash: a fast short-input PRF*, 2012). Without that key a client
//! could choose tokens whose digests share their first bits with the digest it looks for, and read
//! from the duration whether the table has such a digest; bit by bit it would get a digest, and
//! could try tokens against it on a machine of its own. With the key, a client that varies its
//! token reaches buckets that it can neither predict nor relate to digests.
//!
//! Neither tokens nor digests are ever printed.

mod certificate;
mod file;
mod gate;
mod query;

use std::cell::RefCell;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use crate::metrics::tokens::{TOKEN_NAMES_MAX, TokenId, TokenMetrics, TokenNames};
use crate::quota::Quota;

pub use certificate::CertificateToken;
pub use file::{TokensDraft, TokensError, ends_within_a_line};
pub use gate::{TokenGate, TokenPlaces, TokenRefusal, bearer_of};

/// SHA-256 of a token.
type Digest = [u8; 32];

/// Most lines with a token. The table of a million needs 40 MB, once for all cores.
const TOKENS_MAX: usize = 1_000_000;

/// The accepted tokens; empty only without a file. A hash table in three arrays, of which the first says where
/// each bucket begins and ends in the other two: 38 to 42 bytes a token.
pub struct TokenSet {
    /// The key of the hash that selects a bucket.
    bucket_key: RandomState,
    /// One more than there are buckets. On average a bucket holds one token or less.
    starts: Vec<u32>,
    digests: Vec<Digest>,
    ids: Vec<TokenId>,
    quotas: TokenQuotas,
    /// Lines whose token is there in the clear and not ASCII.
    not_ascii: usize,
}

/// The quotas of a file, 12 bytes a token, or nothing if no line has one.
#[derive(Default)]
struct TokenQuotas {
    /// Each that is there, once.
    distinct: Vec<Quota>,
    /// By token: one more than the place in `distinct`, or 0; …
    places: Vec<u32>,
    /// … and the key of its bucket.
    keys: Vec<u64>,
    /// By the key of a name that has one, ascending, the place in `distinct`.
    names: Vec<(u64, u32)>,
}

/// The quota of a token, and what it is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenQuota {
    /// The bucket: of the token's name, or of the token if it has none. It is the same after a
    /// reload.
    pub key: u64,
    pub quota: Quota,
    /// Another one for each quota; not 0.
    pub version: u64,
}

/// What is known of an accepted token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownToken {
    pub id: TokenId,
    pub quota: Option<TokenQuota>,
}

impl KnownToken {
    /// No accepted token.
    pub const NONE: KnownToken = KnownToken { id: TokenId::NONE, quota: None };
}

/// One line of the file.
struct TokenLine {
    digest: Digest,
    id: TokenId,
    line: u32,
    /// As in [`TokenQuotas`].
    quota: u32,
    key: u64,
}

/// The token of `line` was given in line `first` with other attributes.
struct RepeatedToken {
    line: u32,
    first: u32,
}

impl TokenSet {
    /// Reads a tokens file. Its new names are added to `names` if it is accepted.
    ///
    /// # Errors
    /// What is wrong and on which line, without the file's name.
    pub fn load(path: &Path, names: &TokenNames) -> Result<TokenSet, TokensError> {
        TokenSet::draft(path, names).map(TokensDraft::accept)
    }

    /// The same, but nothing is added to `names` before [`TokensDraft::accept`].
    ///
    /// # Errors
    /// As [`TokenSet::load`].
    pub fn draft<'a>(path: &Path, names: &'a TokenNames) -> Result<TokensDraft<'a>, TokensError> {
        file::load(path, names)
    }

    /// A line that repeats a token is ignored if its attributes are the same as well.
    fn build(lines: &[TokenLine]) -> Result<TokenSet, RepeatedToken> {
        let mask = lines.len().next_power_of_two() - 1;
        let bucket_key = RandomState::new();
        let bucket_of = |line: &TokenLine| bucket_key.hash_one(line.digest) as usize & mask;
        let buckets: Vec<u32> = lines.iter().map(|line| bucket_of(line) as u32).collect();
        // A counting sort: where each bucket would end with all lines in it, …
        let mut ends = vec![0_u32; mask + 1];
        for bucket in &buckets {
            ends[*bucket as usize] += 1;
        }
        let mut sum = 0;
        for end in &mut ends {
            sum += *end;
            *end = sum;
        }
        // … then the lines of each, filled from its end.
        let mut order = vec![0_u32; lines.len()];
        for (at, bucket) in buckets.iter().enumerate().rev() {
            let end = &mut ends[*bucket as usize];
            *end -= 1;
            order[*end as usize] = at as u32;
        }
        let mut set = TokenSet {
            starts: Vec::with_capacity(mask + 2),
            digests: Vec::with_capacity(lines.len()),
            ids: Vec::with_capacity(lines.len()),
            bucket_key,
            quotas: TokenQuotas::default(),
            not_ascii: 0,
        };
        let has_quotas = lines.iter().any(|line| line.quota != 0);
        let mut repeated: Option<RepeatedToken> = None;
        let ends = ends.into_iter().skip(1).chain([lines.len() as u32]);
        let mut start = 0;
        for end in ends {
            set.starts.push(set.digests.len() as u32);
            let in_bucket = &order[start as usize..end as usize];
            for (nth, at) in in_bucket.iter().enumerate() {
                let TokenLine { digest, id, line, quota, key } = &lines[*at as usize];
                let earlier = in_bucket[..nth].iter().map(|at| &lines[*at as usize]);
                match earlier.into_iter().find(|earlier| earlier.digest == *digest) {
                    None => {
                        set.digests.push(*digest);
                        set.ids.push(*id);
                        if has_quotas {
                            set.quotas.places.push(*quota);
                            set.quotas.keys.push(*key);
                        }
                    }
                    Some(first) if first.id == *id && first.quota == *quota => {}
                    Some(first) => {
                        if repeated.as_ref().is_none_or(|known| *line < known.line) {
                            repeated = Some(RepeatedToken { line: *line, first: first.line });
                        }
                    }
                }
            }
            start = end;
        }
        set.starts.push(set.digests.len() as u32);
        set.digests.shrink_to_fit();
        set.ids.shrink_to_fit();
        repeated.map_or(Ok(set), Err)
    }

    /// What is known of `token` if it is in the set.
    pub fn find(&self, token: &[u8]) -> Option<KnownToken> {
        self.find_digest(&Sha256::digest(token).into())
    }

    /// A set without any token, for servers that know their clients by certificates alone.
    pub fn none() -> TokenSet {
        TokenSet::build(&[]).unwrap_or_else(|_| unreachable!("nothing is repeated"))
    }

    /// The quota of a name, by its key.
    fn quota_of_name(&self, key: u64) -> Option<TokenQuota> {
        let TokenQuotas { distinct, names, .. } = &self.quotas;
        let at = names.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        let quota = distinct[names[at].1 as usize];
        Some(TokenQuota { key, quota, version: version_of(&quota) })
    }

    fn find_digest(&self, asked: &Digest) -> Option<KnownToken> {
        // The buckets are a power of two, the starts one more.
        let bucket = self.bucket_key.hash_one(asked) as usize & (self.starts.len() - 2);
        let mut found = u32::MAX;
        for at in self.starts[bucket]..self.starts[bucket + 1] {
            found.conditional_assign(&at, self.digests[at as usize].ct_eq(asked));
        }
        let id = *self.ids.get(found as usize)?;
        Some(KnownToken { id, quota: self.quotas.of(found as usize) })
    }

    /// How many tokens have a quota, in words; empty if none has.
    pub fn with_quotas(&self) -> String {
        match self.quotas.places.iter().filter(|place| **place != 0).count() {
            0 => String::new(),
            count => format!(", {count} of them with a quota"),
        }
    }

    /// The number of tokens, at least 1 in that of a file.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// How many tokens have names that are not counted each by itself, in words; empty if none has.
    pub fn beyond_names(&self) -> String {
        let others = self.ids.iter().filter(|id| **id == TokenId::OTHER).count();
        if others == 0 {
            return String::new();
        }
        format!(
            "; {others} of them have names beyond the first {TOKEN_NAMES_MAX}, which metrics show as (other)"
        )
    }

    /// What is wrong with tokens that no request can have: those that are not ASCII, which no
    /// header may hold, unless one of the other `places` may.
    pub fn unusable(&self, places: TokenPlaces) -> Option<String> {
        let lines = self.not_ascii;
        let what = "have a token that is not ASCII: no header may hold it, and no body either with TOKEN_IN_BODY=off or BODY=object";
        (lines > 0 && !places.hold_any_text()).then(|| format!("{lines} of its lines {what}"))
    }
}

impl TokenQuotas {
    fn of(&self, token: usize) -> Option<TokenQuota> {
        let place = *self.places.get(token)? as usize;
        let quota = *self.distinct.get(place.checked_sub(1)?)?;
        // A quota may have another place after a reload, and the same number then is another one.
        Some(TokenQuota { key: self.keys[token], quota, version: version_of(&quota) })
    }
}

/// A number that quotas that differ do not share, but for a chance of one in 2^63.
fn version_of(quota: &Quota) -> u64 {
    let limits = [quota.requests, quota.bytes];
    let numbers = limits.map(|of| of.map_or([0; 3], |of| [of.amount, of.per_s, of.burst]));
    let mix = |sum: u64, number: &u64| {
        let product = u128::from(sum ^ number) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
        (product >> 64) as u64 ^ product as u64
    };
    numbers.as_flattened().iter().fold(0x2545_f491_4f6c_dd1d, mix) | 1
}

impl fmt::Debug for TokenSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSet({} tokens)", self.len())
    }
}

/// The set in effect and the figures about its tokens, for all cores.
#[derive(Clone)]
pub struct SharedTokens {
    pub set: Arc<ArcSwap<TokenSet>>,
    pub metrics: &'static TokenMetrics,
}

/// One core's view of the published tokens. Reading it costs one atomic load; the next request sees
/// a new set.
pub struct TokenView(RefCell<Cache<Arc<ArcSwap<TokenSet>>, Arc<TokenSet>>>);

impl TokenView {
    /// A view that follows what is published.
    pub fn new(published: Arc<ArcSwap<TokenSet>>) -> TokenView {
        TokenView(RefCell::new(Cache::new(published)))
    }

    /// A view of a set that never changes.
    pub fn fixed(set: Arc<TokenSet>) -> TokenView {
        TokenView::new(Arc::new(ArcSwap::new(set)))
    }

    /// [`TokenSet::quota_of_name`] in the newest set.
    fn quota_of_name(&self, key: u64) -> Option<TokenQuota> {
        self.0.borrow_mut().load().quota_of_name(key)
    }

    /// [`TokenSet::find`] in the newest set.
    pub fn find(&self, token: &[u8]) -> Option<KnownToken> {
        self.0.borrow_mut().load().find(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn set_of(text: &[u8]) -> TokenSet {
        file::accepted(text, &TokenNames::default()).unwrap()
    }

    fn line(token: &str, id: TokenId, line: u32) -> TokenLine {
        TokenLine { digest: Sha256::digest(token).into(), id, line, quota: 0, key: 0 }
    }

    #[test]
    fn of_many_tokens_each_is_found_and_no_other() {
        for count in [1, 2, 3, 4_096, 10_000] {
            let lines: Vec<_> =
                (0..count).map(|n| line(&format!("t{n}"), TokenId::UNNAMED, n)).collect();
            let set = TokenSet::build(&lines).ok().unwrap();
            assert_eq!(set.len(), count as usize);
            for n in 0..count {
                let found = set.find(format!("t{n}").as_bytes());
                assert_eq!(found, Some(KnownToken { id: TokenId::UNNAMED, quota: None }), "{n}");
                assert_eq!(set.find(format!("T{n}").as_bytes()), None, "{n}");
            }
            assert_eq!(set.find(b""), None);
            // The work of a lookup does not grow with the number of tokens.
            let widths = set.starts.windows(2).map(|of| of[1] - of[0]);
            assert!(widths.max().unwrap() < 12);
        }
    }

    #[test]
    fn a_repeated_token_is_ignored_or_refused() {
        let same = ["a", "b", "a", "a"].map(|token| line(token, TokenId::UNNAMED, 1));
        assert_eq!(TokenSet::build(&same).ok().unwrap().len(), 2);
        let lines: Vec<_> = (0..100)
            .flat_map(|n| {
                let token = format!("t{n}");
                [line(&token, TokenId::UNNAMED, n + 1), line(&token, TokenId::OTHER, n + 1_001)]
            })
            .collect();
        let RepeatedToken { line, first } = TokenSet::build(&lines).err().unwrap();
        assert_eq!((line, first), (1_001, 1), "the first of all");
    }

    #[test]
    fn a_view_follows_what_is_published() {
        let set = |text: &[u8]| Arc::new(set_of(text));
        let published = Arc::new(ArcSwap::new(set(b"old\nboth\n")));
        let view = TokenView::new(published.clone());
        let has = |token: &str| view.find(token.as_bytes()).is_some();
        assert!(has("old") && !has("new"));
        published.store(set(b"new\nboth\n"));
        assert!(!has("old") && has("new") && has("both") && !has(""));
    }

    #[test]
    fn tokens_that_no_request_can_have_are_counted() {
        let places = |in_body, in_query| TokenPlaces { in_body, in_query };
        let [off, body, query] = [places(false, false), places(true, false), places(false, true)];
        let set = set_of("alpha\nβ;name=n\n# ü\ngrüße\n".as_bytes());
        assert_eq!((set.unusable(body), set.unusable(query)), (None, None));
        assert!(set.unusable(off).unwrap().starts_with("2 of its lines have a token"));
        assert_eq!(set_of("# ü\nalpha\n".as_bytes()).unusable(off), None);
        // Neither a byte order mark nor a blank is part of a token.
        assert_eq!(set_of("\u{feff}alpha\u{a0}\n".as_bytes()).unusable(off), None);
    }

    #[test]
    fn what_is_printed_of_a_set_is_its_size() {
        assert_eq!(format!("{:?}", set_of(b"hush\n")), "TokenSet(1 tokens)");
    }
}
