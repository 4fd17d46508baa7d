//! The error document of a refusal, read by the SDK's own XML parser, so that both clients see the
//! same code and message in it.

use aws_smithy_xml::decode::{Document, try_data};

/// Code and message of an error document; what is no such document has neither.
pub fn error_document(body: &[u8]) -> (Option<String>, Option<String>) {
    let read = || {
        let mut document = Document::try_from(body).ok()?;
        let mut root = document.root_element().ok()?;
        let (mut code, mut message) = (None, None);
        while let Some(mut tag) = root.next_tag() {
            let part = match tag.start_el().local() {
                "Code" => &mut code,
                "Message" => &mut message,
                _ => continue,
            };
            *part = Some(try_data(&mut tag).ok()?.into_owned());
        }
        Some((code, message))
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn error_documents() {
        let s3 = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>AccessDenied</Code>\
                  <Message>x may not &lt;put&gt; &amp; more</Message><Resource><Code>no</Code>\
                  </Resource></Error>";
        let both = |code: &str, message: &str| (Some(code.to_owned()), Some(message.to_owned()));
        assert_eq!(error_document(s3.as_bytes()), both("AccessDenied", "x may not <put> & more"));
        for nothing in
            ["", "<html>bad gateway</html>", "Service Unavailable", "<Error><Co", "\u{1}"]
        {
            assert_eq!(error_document(nothing.as_bytes()), (None, None), "{nothing:?}");
        }
        assert_eq!(error_document(b"\xff\xfe"), (None, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,300}") {
            let _ = error_document(&bytes);
            let _ = error_document(format!("<Error><Code>{text}</Code>").as_bytes());
        }
    }
}
