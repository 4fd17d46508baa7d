//! The token that a client's certificate stands for: it has the name of the subject's common name,
//! and the quota of that name in `TOKENS_FILE`.
//!
//! It is the common name and not one of the alternative names, because those say what a server is
//! reached by; the common name is what other servers take for the name of a client (Kubernetes,
//! Kafka, Mosquitto, nginx's `$ssl_client_s_dn_cn`), and there is one.

use std::cell::Cell;

use super::file::{is_name, key_of_name};
use crate::metrics::tokens::{TokenId, TokenNames};

/// What the certificate of one connection stands for.
pub struct CertificateToken {
    /// `None`: it has no common name, or one that cannot be a token's.
    name: Option<CertificateName>,
}

struct CertificateName {
    text: Box<str>,
    key: u64,
    /// Set once the name has a place.
    id: Cell<TokenId>,
}

impl CertificateToken {
    /// The token for a subject with this common name.
    pub fn new(common_name: Option<&str>) -> CertificateToken {
        let name = common_name.filter(|name| is_name(name)).map(|name| CertificateName {
            text: name.into(),
            key: key_of_name(name),
            id: Cell::new(TokenId::NONE),
        });
        CertificateToken { name }
    }

    /// By what a quota of its name is found.
    pub(super) fn quota_key(&self) -> Option<u64> {
        self.name.as_ref().map(|name| name.key)
    }

    /// The place of its name, which it gets if there is one left.
    pub(super) fn id(&self, names: &TokenNames) -> TokenId {
        let Some(name) = &self.name else { return TokenId::UNNAMED };
        if name.id.get() == TokenId::NONE {
            match names.place_of(&name.text) {
                Some(id) => name.id.set(id),
                // Control is adding names: this request counts with those that have none of their
                // own.
                None => return TokenId::OTHER,
            }
        }
        name.id.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_name_that_can_be_a_tokens_is_its_name() {
        let names = TokenNames::default();
        let shown = |name| {
            let token = CertificateToken::new(name);
            let id = token.id(&names);
            assert_eq!(token.id(&names), id);
            (names.shown(id).unwrap().to_owned(), token.quota_key().is_some())
        };
        let long = "x".repeat(65);
        for name in ["gate-7", "a.b_c-9", "Z", &long[..64]] {
            assert_eq!(shown(Some(name)), (name.to_owned(), true));
        }
        for name in [None, Some(""), Some("two words"), Some("-x"), Some("grün"), Some(&long)] {
            assert_eq!(shown(name), ("(unnamed)".to_owned(), false), "{name:?}");
        }
    }

    #[test]
    fn a_name_of_the_file_is_the_same_place() {
        let names = TokenNames::default();
        let mut draft = names.draft();
        let in_file = draft.id("gate-7");
        let token = CertificateToken::new(Some("gate-7"));
        assert_eq!(token.id(&names), TokenId::OTHER, "while names are added");
        draft.commit();
        assert_eq!(token.id(&names), in_file);
    }
}
