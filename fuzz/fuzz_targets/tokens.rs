//! Tokens files: read or refused without a panic; in one that is accepted, exactly the tokens that
//! its lines give are known, in the clear or by their digests, and reading it again changes nothing.
//!
//! How to run it is said in `segment.rs`; this target is called `tokens`. An input is a file.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use millrace::internals::http::tokens::TokenSet;
use millrace::internals::metrics::tokens::TokenNames;

/// In memory; one file for this process.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    PathBuf::from(format!("/dev/shm/millrace-fuzz-tokens-{}", std::process::id()))
});

fuzz_target!(|input: &[u8]| {
    fs::write(&*FILE, input).expect("a file in memory");
    let names = TokenNames::default();
    let set = match TokenSet::load(&FILE, &names) {
        Ok(set) => set,
        Err(why) => {
            assert!(!why.to_string().contains('\n'));
            return;
        }
    };
    let text = str::from_utf8(input).expect("a file with other bytes is refused");
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut known, mut digests) = (Vec::new(), 0);
    for line in text.split('\n').map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let token = line.split(';').next().expect("the first part");
        match token.strip_prefix("sha256=") {
            Some(_) => digests += 1,
            None => known.push(token),
        }
    }
    for token in &known {
        assert!(set.find(token.as_bytes()).is_some(), "{token:?}");
        for other in [format!("{token} "), format!(" {token}"), token.to_uppercase() + "x"] {
            if digests == 0 && !known.contains(&&*other) {
                assert!(set.find(other.as_bytes()).is_none(), "{other:?} for {token:?}");
            }
        }
    }
    known.sort_unstable();
    known.dedup();
    assert!((known.len().max(1)..=known.len() + digests).contains(&set.len()));
    let again = TokenSet::load(&FILE, &names).expect("it was accepted before");
    assert_eq!(again.len(), set.len());
    for token in known {
        assert_eq!(again.find(token.as_bytes()), set.find(token.as_bytes()));
    }
});
