//! What is wrong with a PEM file, without a line of it: it may be a key's.

use futures_rustls::pki_types::pem::Error;

/// What a message says about `error`, whose own text quotes the file.
pub fn pem_flaw(error: &Error) -> &'static str {
    match error {
        Error::MissingSectionEnd { .. } => "a section has no line -----END",
        Error::IllegalSectionStart { .. } => "a line -----BEGIN is not complete",
        Error::Base64Decode(_) => "what is in a section is not base64",
        Error::SectionTooLarge => "a section is too long",
        Error::NoItemsFound => "it has no section",
        _ => "it cannot be read",
    }
}
