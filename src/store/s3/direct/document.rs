//! The error document of a refusal, parsed by the SDK's own XML parser, so that both clients see
//! the same code and message.

use aws_smithy_xml::decode::{Document, try_data};

/// The elements of an error document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorDocument {
    pub code: Option<String>,
    pub message: Option<String>,
    /// Ids by which the store's support finds the request.
    pub request_id: Option<String>,
    pub host_id: Option<String>,
}

/// Parses an error document; all fields are `None` if it is not one.
pub fn error_document(body: &[u8]) -> ErrorDocument {
    let read = || {
        let mut document = Document::try_from(body).ok()?;
        let mut root = document.root_element().ok()?;
        let mut said = ErrorDocument::default();
        while let Some(mut tag) = root.next_tag() {
            let part = match tag.start_el().local() {
                "Code" => &mut said.code,
                "Message" => &mut said.message,
                "RequestId" => &mut said.request_id,
                "HostId" => &mut said.host_id,
                _ => continue,
            };
            *part = Some(try_data(&mut tag).ok()?.into_owned());
        }
        Some(said)
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
                  </Resource><RequestId>R</RequestId><HostId>H=</HostId></Error>";
        let said = |text: &str| Some(text.to_owned());
        let expected = ErrorDocument {
            code: said("AccessDenied"),
            message: said("x may not <put> & more"),
            request_id: said("R"),
            host_id: said("H="),
        };
        assert_eq!(error_document(s3.as_bytes()), expected);
        for nothing in
            ["", "<html>bad gateway</html>", "Service Unavailable", "<Error><Co", "\u{1}"]
        {
            assert_eq!(error_document(nothing.as_bytes()), ErrorDocument::default(), "{nothing:?}");
        }
        assert_eq!(error_document(b"\xff\xfe"), ErrorDocument::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,300}") {
            let _ = error_document(&bytes);
            let _ = error_document(format!("<Error><Code>{text}</Code>").as_bytes());
        }
    }
}
