//! The canaries, and the search for them.

use memchr::memmem::find;

/// A secret: what it is, and its text.
pub(super) type Canary = (&'static str, &'static str);

pub(super) const ACCESS_KEY: &str = "AKIACANARYONEACCESS1";
pub(super) const SECRET_KEY: &str = "canaryTwoSecretKey2mRtYqPzX";
/// Has what others escape.
pub(super) const SESSION_TOKEN: &str = "canaryThree/Session+Token3JhGfDs==";
pub(super) const ENDPOINT_PASSWORD: &str = "canaryFourEndpoint4WvBnMx";
/// Does not look like a key.
pub(super) const PROXY_PASSWORD: &str = "canaryFiveProxyQaZwSx";
pub(super) const ADMIN_TOKEN: &str = "canarySixAdminToken6EdCrFv";
pub(super) const CLIENT_TOKEN: &str = "canarySevenToken7TgByHn";
pub(super) const UNKNOWN_TOKEN: &str = "canaryEightUnknown8UjMkIl";
pub(super) const PRIVATE_KEY: &str = "canaryNinePrivateKey9OpLkJh";
pub(super) const CONTAINER_TOKEN: &str = "canaryTenContainer0ZxCvBn";
pub(super) const IDENTITY_TOKEN: &str = "canaryElevenIdentity1AsDfGh";
pub(super) const STORED_BODY: &str = "canaryTwelveBody2QwErTy";
pub(super) const REFUSED_BODY: &str = "canaryThirteenRefused3PoIuYt";
pub(super) const QUERY: &str = "canaryFourteenQuery4LaKsJd";
pub(super) const HEADER: &str = "canaryFifteenHeader5MzNxBc";

const CANARIES: [Canary; 15] = [
    ("access key", ACCESS_KEY),
    ("secret key", SECRET_KEY),
    ("session token", SESSION_TOKEN),
    ("endpoint's password", ENDPOINT_PASSWORD),
    ("proxy's password", PROXY_PASSWORD),
    ("admin token", ADMIN_TOKEN),
    ("client's token", CLIENT_TOKEN),
    ("unknown token", UNKNOWN_TOKEN),
    ("private key", PRIVATE_KEY),
    ("container's token", CONTAINER_TOKEN),
    ("identity token", IDENTITY_TOKEN),
    ("stored body", STORED_BODY),
    ("refused body", REFUSED_BODY),
    ("query", QUERY),
    ("header", HEADER),
];

/// The ways in which a text may be written out.
fn forms(canary: &str) -> Vec<(&'static str, Vec<u8>)> {
    let bytes = canary.as_bytes();
    let join = |each: &dyn Fn(&u8) -> String, between: &str| {
        bytes.iter().map(each).collect::<Vec<_>>().join(between).into_bytes()
    };
    let mut forms = vec![
        ("as it is", bytes.to_vec()),
        ("in hex", join(&|byte| format!("{byte:02x}"), "")),
        ("in upper hex", join(&|byte| format!("{byte:02X}"), "")),
        ("in decimal", join(&|byte| byte.to_string(), ", ")),
    ];
    for before in 0..3 {
        forms.push(("in base64", inside_base64(bytes, before)));
    }
    if !bytes.iter().all(u8::is_ascii_alphanumeric) {
        // The second one is in a line of the log that is JSON itself.
        forms.push(("as JSON escapes it", canary.replace('/', "\\/").into_bytes()));
        forms.push(("as JSON escapes it twice", canary.replace('/', "\\\\/").into_bytes()));
        for upper in [true, false] {
            forms.push(("as a URL escapes it", percent(canary, upper).into_bytes()));
        }
    }
    forms
}

/// `text` as in a URL, with hexadecimal digits in upper or lower case.
pub(super) fn percent(text: &str, upper: bool) -> String {
    let escaped = |byte: u8| match upper {
        true => format!("%{byte:02X}"),
        false => format!("%{byte:02x}"),
    };
    let escape = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_string(),
        false => c.to_string().bytes().map(escaped).collect(),
    };
    text.chars().map(escape).collect()
}

/// The base64 of `bytes` behind `before` other bytes, without the digits that these or later ones
/// share.
fn inside_base64(bytes: &[u8], before: usize) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits =
        |at: usize| at.checked_sub(before * 8).map_or(0, |at| bytes[at / 8] >> (7 - at % 8) & 1);
    let digit = |at: usize| (0..6).fold(0, |sum, bit| sum << 1 | usize::from(bits(6 * at + bit)));
    let whole = (before * 8).div_ceil(6)..(before + bytes.len()) * 8 / 6;
    whole.map(|at| DIGITS[digit(at)]).collect()
}

/// Searches what comes out of doors.
#[derive(Default)]
pub(super) struct Search {
    /// What was found.
    leaks: Vec<String>,
    doors: usize,
}

impl Search {
    /// Looks for every canary but `allowed` in `bytes`, which came out of `door`.
    pub(super) fn look(&mut self, door: &str, bytes: impl AsRef<[u8]>, allowed: &[&str]) {
        let bytes = bytes.as_ref();
        self.doors += 1;
        for (name, canary) in CANARIES.iter().filter(|(_, canary)| !allowed.contains(canary)) {
            for (form, text) in forms(canary) {
                let Some(at) = find(bytes, &text) else { continue };
                let around = at.saturating_sub(160)..(at + text.len() + 40).min(bytes.len());
                let around = String::from_utf8_lossy(&bytes[around]);
                self.leaks.push(format!("{door}: {name} {form}: …{around}…"));
            }
        }
    }

    /// What `others` have found as well.
    pub(super) fn merge(&mut self, other: Search) {
        self.leaks.extend(other.leaks);
        self.doors += other.doors;
    }

    /// # Panics
    /// If something was found, or fewer than `doors` were looked at.
    pub(super) fn end(self, doors: usize) {
        let Search { leaks, doors: seen } = self;
        assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
        assert!(seen >= doors, "{seen} doors");
    }
}

#[test]
fn a_canary_is_found_where_it_is_escaped() {
    for text in [
        r"canaryThree\/Session+Token3JhGfDs==",
        r"canaryThree\\/Session+Token3JhGfDs==",
        "token=canaryThree%2FSession%2BToken3JhGfDs%3D%3D",
        "token=canaryThree%2fSession%2bToken3JhGfDs%3d%3d",
    ] {
        let mut search = Search::default();
        search.look("here", text, &[]);
        assert_eq!(search.leaks.len(), 1, "{text}");
    }
}

#[test]
fn a_canary_is_found_in_every_form() {
    let base64 = |text: String| aws_smithy_types::base64::encode(text).into_bytes();
    let canary = CLIENT_TOKEN;
    let mut texts: Vec<Vec<u8>> =
        ["", "m", "me", "me:"].map(|before| base64(format!("{before}{canary}, and more"))).to_vec();
    texts.push(format!("authorization: Bearer {canary}").into_bytes());
    texts.push(format!("{:?}", canary.as_bytes()).into_bytes());
    texts.push(format!("{:02x?}", canary.as_bytes()).replace(", ", "").into_bytes());
    for text in texts {
        let mut search = Search::default();
        search.look("here", &text, &[]);
        assert_eq!(search.leaks.len(), 1, "{}", String::from_utf8_lossy(&text));
        search.look("allowed", &text, &[canary]);
        assert_eq!((search.leaks.len(), search.doors), (1, 2));
    }
}
