use http::{HeaderMap, HeaderName, HeaderValue};

use super::*;

fn with<T>(bytes: &[u8], look: impl FnOnce(FirstBytes<'_, '_>) -> T) -> T {
    let mut room: FieldsRoom<'_> = [const { MaybeUninit::uninit() }; _];
    look(FastHead::parse(bytes, &mut room))
}

/// `Some(true)`: it is in the whitelist; `Some(false)`: it is for hyper; `None`: it goes on.
fn is_taken(bytes: &[u8]) -> Option<bool> {
    with(bytes, |first| match first {
        FirstBytes::Head(_) => Some(true),
        FirstBytes::Other => Some(false),
        FirstBytes::Partial => None,
    })
}

fn head(target: &str, fields: &str) -> Vec<u8> {
    format!("POST {target} HTTP/1.1\r\n{fields}\r\n").into_bytes()
}

const LEAST: &str = "host: x\r\ncontent-length: 2\r\n";

#[test]
fn usual_heads_are_taken() {
    for fields in [
        LEAST,
        "Content-Length: 2\r\nHOST: ingest.example:8080\r\n",
        "host:\r\ncontent-length:0000000\r\n",
        "host:x\r\ncontent-length:\t 999999999999999\r\nx-empty:\r\n",
        "host: x\r\ncontent-length: 2\r\nconnection: keep-alive\r\nx: \u{e4}\r\n",
        "Host: x\r\nUser-Agent: a b\r\nContent-Length: 2\r\nConnection: Close\r\nCookie: a\r\ncookie: b\r\n",
    ] {
        assert_eq!(is_taken(&head("/payloads", fields)), Some(true), "{fields:?}");
    }
    for target in ["/", "/payloads?", "/a/b;c=d?e=f&g=%20?h/~", "/p-._~!$&'()*+,;=:@%"] {
        assert_eq!(is_taken(&head(target, LEAST)), Some(true), "{target}");
    }
    let closes = |fields: &str| {
        with(&head("/", &format!("{LEAST}{fields}")), |first| match first {
            FirstBytes::Head(head) => head.closes,
            _ => panic!("{fields}"),
        })
    };
    assert!(!closes("") && !closes("connection: KEEP-ALIVE\r\n") && closes("CONNECTION:close\r\n"));
}

#[test]
fn everything_else_is_for_hyper() {
    for fields in [
        "",
        "host: x\r\n",
        "content-length: 2\r\n",
        "host: x\r\nhost: x\r\ncontent-length: 2\r\n",
        "host: a b\r\ncontent-length: 2\r\n",
        "host: x\r\ncontent-length: 2\r\ncontent-length: 2\r\n",
        "host: x\r\ncontent-length: 2, 2\r\n",
        "host: x\r\ncontent-length: +2\r\n",
        "host: x\r\ncontent-length: \r\n",
        "host: x\r\ncontent-length: 2 \r\n",
        "host: x\r\ncontent-length: 9999999999999999\r\n",
        "host: x\r\ntransfer-encoding: chunked\r\n",
        "host: x\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n",
        "host: x\r\ncontent-length: 2\r\nExpect: 100-continue\r\n",
        "host: x\r\ncontent-length: 2\r\nupgrade: websocket\r\n",
        "host: x\r\ncontent-length: 2\r\nconnection: upgrade\r\n",
        "host: x\r\ncontent-length: 2\r\nconnection: close, x\r\n",
        "host: x\r\ncontent-length: 2\r\nconnection: close\r\nconnection: close\r\n",
        "host: x\r\ncontent-length: 2\r\nx: y \r\n",
        "host: x\r\ncontent-length: 2\r\nx: y\n",
        "host: x\ncontent-length: 2\r\n",
        "host : x\r\ncontent-length: 2\r\n",
        "host: x\r\ncontent-length: 2\r\nx: y\r\n z\r\n",
        "host: x\r\ncontent-length: 2\r\nx: \0\r\n",
        "host: x\r\ncontent-length: 2\r\nno colon\r\n",
    ] {
        assert_eq!(is_taken(&head("/payloads", fields)), Some(false), "{fields:?}");
    }
    for target in ["*", "x", "http://x/payloads", "/a#b", "/a\"", "/<", "/\u{e4}", "/a b", ""] {
        assert_eq!(is_taken(&head(target, LEAST)), Some(false), "{target}");
    }
    for start in [
        "GET / HTTP/1.1\r\n",
        "post / HTTP/1.1\r\n",
        "POST  / HTTP/1.1\r\n",
        "POST / HTTP/1.0\r\n",
        "POST / HTTP/2.0\r\n",
        "POST / HTTP/1.1\n",
        "POST /\r\n",
        "\r\nPOST / HTTP/1.1\r\n",
        "\nPOST / HTTP/1.1\r\n",
        " POST / HTTP/1.1\r\n",
    ] {
        let bytes = format!("{start}{LEAST}\r\n");
        assert_eq!(is_taken(bytes.as_bytes()), Some(false), "{start:?}");
    }
    assert_eq!(is_taken(format!("POST / HTTP/1.1\r\n{LEAST}\n").as_bytes()), Some(false));
}

#[test]
fn an_incomplete_head_of_the_whitelist_goes_on() {
    let whole = head("/payloads", LEAST);
    for at in 0..whole.len() {
        assert_eq!(is_taken(&whole[..at]), None, "{at}");
    }
    for other in ["G", "POST X", "PU", "POST /\r", "POST / HTTP/1.0", "POST / HTTP/1.1\r\n:"] {
        let is_other = other != "POST / HTTP/1.0";
        assert_eq!(is_taken(other.as_bytes()), is_other.then_some(false), "{other}");
    }
}

#[test]
fn limits_are_those_of_hyper() {
    let many = |count: usize| head("/", &format!("{LEAST}{}", "x: y\r\n".repeat(count - 2)));
    assert_eq!(is_taken(&many(FIELDS_MAX)), Some(true));
    assert_eq!(is_taken(&many(FIELDS_MAX + 1)), Some(false));
    let long = |bytes: usize| {
        let rest = bytes - head("/", LEAST).len() - "x: \r\n".len();
        head("/", &format!("{LEAST}x: {}\r\n", "y".repeat(rest)))
    };
    let longest = long(HEAD_BYTES_MAX);
    assert_eq!((longest.len(), is_taken(&longest)), (HEAD_BYTES_MAX, Some(true)));
    assert_eq!(is_taken(&long(HEAD_BYTES_MAX + 1)), Some(false));
    assert_eq!(is_taken(&longest[..HEAD_BYTES_MAX - 1]), None);
    assert_eq!(is_taken(&long(HEAD_BYTES_MAX + 1)[..HEAD_BYTES_MAX]), Some(false));
}

#[test]
fn the_parts_of_a_head_are_found() {
    let bytes = [&head("/a/b?c=d?e", LEAST)[..], b"{}rest"].concat();
    with(&bytes, |first| {
        let FirstBytes::Head(head) = first else { panic!("it is whole") };
        assert_eq!((head.path, head.query, head.length), ("/a/b", Some("c=d?e"), 2));
        assert_eq!(&bytes[head.bytes..], b"{}rest");
    });
    with(&head("/?", LEAST), |first| {
        let FirstBytes::Head(head) = first else { panic!("it is whole") };
        assert_eq!((head.path, head.query), ("/", Some("")));
    });
}

/// However fields are repeated and mixed, both kinds of heads have the same values.
#[test]
fn fields_are_those_of_a_header_map() {
    let seed = crate::rt::random();
    println!("seed {seed}");
    let mut rng = crate::rt::Rng::with_seed(seed);
    let mut names: Vec<String> =
        KnownField::ALL.iter().map(|field| field.name().to_string()).collect();
    names.retain(|name| name != "expect");
    names.extend(
        ["x-tenant", "accept", "user-agent", "x-millrace-a", "x-api-kex"].map(String::from),
    );
    for _ in 0..2_000 {
        let (mut text, mut map) = (LEAST.to_owned(), HeaderMap::new());
        for number in 0..rng.usize(..12) {
            let name = &names[rng.usize(..names.len())];
            let value = format!("v{number}");
            let shown: String =
                name.chars().map(|c| if rng.bool() { c.to_ascii_uppercase() } else { c }).collect();
            text += &format!("{shown}: {value}\r\n");
            map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(&value).unwrap());
        }
        with(&head("/", &text), |first| {
            let FirstBytes::Head(head) = first else { panic!("seed {seed}: {text}") };
            for field in KnownField::ALL {
                let fast: Vec<_> = head.fields.values(field).collect();
                let other: Vec<_> = Fields::values(&map, field).collect();
                assert_eq!(fast, other, "seed {seed} {field:?}: {text}");
                assert!(head.fields.values(field).rev().eq(other.into_iter().rev()));
            }
            for name in &names {
                assert!(head.fields.named(name).eq(map.named(name)), "seed {seed} {name}");
            }
        });
    }
}

#[test]
fn the_end_of_a_head_is_found_wherever_it_is_cut() {
    for (whole, length) in [
        (&b"POST / HTTP/1.1\r\na: b\r\n\r\nrest\r\n\r\n"[..], 25),
        (b"POST / HTTP/1.1\na: b\n\nrest", 22),
        (b"POST / HTTP/1.1\r\na: b\n\r\nrest", 24),
        (b"POST / HTTP/1.1\r\na\r: b\r\n\n", 25),
    ] {
        for at in 1..length {
            let end = end_in(&whole[..at], &whole[at..]);
            assert_eq!(end, Some(length - at), "{} at {at}", whole.escape_ascii());
            assert_eq!(end_in(&whole[..at], &whole[at..length - 1]), None, "at {at}");
        }
    }
}
