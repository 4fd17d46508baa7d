//! The fields of a request's head, as the code that judges requests sees them: whether hyper has
//! read the head or the fast path.

use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, EXPECT, FORWARDED, HeaderMap, HeaderName,
    HeaderValue, ORIGIN,
};

/// Fields that requests are asked for by every server, or by one with certain settings. A head of
/// the fast path knows where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum KnownField {
    Authorization,
    ContentEncoding,
    ContentType,
    Expect,
    Forwarded,
    MillraceAck,
    Origin,
    Traceparent,
    XApiKey,
    XForwardedFor,
}

static MILLRACE_ACK: HeaderName = HeaderName::from_static("millrace-ack");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl KnownField {
    pub const ALL: [KnownField; 10] = [
        KnownField::Authorization,
        KnownField::ContentEncoding,
        KnownField::ContentType,
        KnownField::Expect,
        KnownField::Forwarded,
        KnownField::MillraceAck,
        KnownField::Origin,
        KnownField::Traceparent,
        KnownField::XApiKey,
        KnownField::XForwardedFor,
    ];

    /// Its name.
    pub fn name(self) -> &'static HeaderName {
        match self {
            KnownField::Authorization => &AUTHORIZATION,
            KnownField::ContentEncoding => &CONTENT_ENCODING,
            KnownField::ContentType => &CONTENT_TYPE,
            KnownField::Expect => &EXPECT,
            KnownField::Forwarded => &FORWARDED,
            KnownField::MillraceAck => &MILLRACE_ACK,
            KnownField::Origin => &ORIGIN,
            KnownField::Traceparent => &TRACEPARENT,
            KnownField::XApiKey => &X_API_KEY,
            KnownField::XForwardedFor => &X_FORWARDED_FOR,
        }
    }
}

/// The fields of one head. Values are as they were sent, without the blanks around them.
pub trait Fields {
    /// The values of the fields with this name, in the order of the head.
    fn values(&self, field: KnownField) -> impl DoubleEndedIterator<Item = &[u8]>;

    /// The same for any name.
    fn named(&self, name: &str) -> impl Iterator<Item = &[u8]>;
}

impl Fields for HeaderMap {
    fn values(&self, field: KnownField) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.get_all(field.name()).iter().map(HeaderValue::as_bytes)
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }
}

/// A head whose request is for a pipeline.
pub struct HeadView<'a, F> {
    pub query: Option<&'a str>,
    pub fields: &'a F,
}
