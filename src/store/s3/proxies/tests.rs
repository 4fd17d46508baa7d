//! Which variable counts, what is taken, what is refused, and who is reached directly.

use super::*;

fn read(env: &[(&str, &str)]) -> Result<Proxies, BadProxy> {
    Proxies::read(&|name| {
        env.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
    })
}

fn server(url: &str) -> ServerAddress {
    ServerAddress::of(&url.parse().unwrap()).unwrap()
}

/// The proxy that `env` gives `url`, empty if none.
fn proxy(env: &[(&str, &str)], url: &str) -> String {
    let proxies = read(env).unwrap();
    proxies.of(&server(url)).map(ToString::to_string).unwrap_or_default()
}

#[test]
fn the_variable_is_chosen_as_curl_does() {
    let (http, https) = ("http://s3.corp/", "https://s3.corp/");
    for (env, url, expected) in [
        (&[][..], http, ""),
        (&[("HTTP_PROXY", "http://up:1")], http, "http://up:1"),
        (&[("HTTP_PROXY", "http://up:1")], https, ""),
        (&[("HTTPS_PROXY", "http://up:1")], https, "http://up:1"),
        (&[("HTTPS_PROXY", "http://up:1")], http, ""),
        (&[("http_proxy", "http://low:1"), ("HTTP_PROXY", "http://up:1")], http, "http://low:1"),
        (&[("https_proxy", "low:1"), ("HTTPS_PROXY", "http://up:1")], https, "http://low:1"),
        (&[("https_proxy", " "), ("HTTPS_PROXY", "http://up:1")], https, "http://up:1"),
        (&[("ALL_PROXY", "http://all:1")], https, "http://all:1"),
        (&[("all_proxy", "http://all:1"), ("ALL_PROXY", "http://up:1")], http, "http://all:1"),
        (&[("ALL_PROXY", "http://all:1"), ("HTTP_PROXY", "http://up:2")], http, "http://up:2"),
        (&[("ALL_PROXY", "http://all:1"), ("NO_PROXY", "*")], http, ""),
        // Not used, so not judged.
        (&[("ALL_PROXY", "socks5://all:1"), ("NO_PROXY", "*")], http, ""),
        (
            &[
                ("ALL_PROXY", "socks5://all:1"),
                ("HTTP_PROXY", "http://up:1"),
                ("HTTPS_PROXY", "http://up:2"),
            ],
            https,
            "http://up:2",
        ),
        (&[("NO_PROXY", "300.0.0.0/99")], http, ""),
    ] {
        assert_eq!(proxy(env, url), expected, "{env:?} {url}");
    }
}

#[test]
fn proxy_urls_are_taken_apart() {
    for (text, expected, authorization) in [
        ("http://proxy.corp:3128", "http://proxy.corp:3128", None),
        ("HTTP://Proxy.Corp:3128/", "http://proxy.corp:3128", None),
        ("proxy:3128", "http://proxy:3128", None),
        ("http://proxy", "http://proxy:80", None),
        ("http://[::1]:3128", "http://[::1]:3128", None),
        // RFC 7617's own example.
        (
            "http://Aladdin:open%20sesame@p:1",
            "http://p:1",
            Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ),
        ("http://u@p:1", "http://p:1", Some("Basic dTo=")),
        ("http://u:p%40ss@p:1", "http://p:1", Some("Basic dTpwQHNz")),
        ("http://u:p@ss@p:1", "http://p:1", Some("Basic dTpwQHNz")),
        ("http://u:a:b@p:1", "http://p:1", Some("Basic dTphOmI=")),
    ] {
        let proxy = Proxy::parse(text).unwrap();
        assert_eq!(proxy.to_string(), expected, "{text}");
        assert_eq!(proxy.authorization(), authorization, "{text}");
    }
}

#[test]
fn a_bad_variable_is_refused_without_its_value() {
    for (variable, value, reason) in [
        ("HTTPS_PROXY", "https://u:hunter2@p:1", "speaks TLS itself"),
        ("ALL_PROXY", "socks5h://u:hunter2@p:1", "SOCKS proxy"),
        ("HTTP_PROXY", "ftp://hunter2:1", "not http"),
        ("http_proxy", "http://hunter2:99999", "is not a proxy"),
        ("http_proxy", "http://hunter2:0", "is not a proxy"),
        ("http_proxy", "http://hunter2:", "is not a proxy"),
        ("http_proxy", "http://", "is not a proxy"),
        ("http_proxy", "http://u:hunter2@", "is not a proxy"),
        ("http_proxy", "http://hunter2:1/path", "is not a proxy"),
        ("http_proxy", "http://hunter2:1?q", "is not a proxy"),
        ("http_proxy", "http://hunter2 x:1", "is not a proxy"),
        ("http_proxy", "http://u:hunter2%0d%0ax@p:1", "is not a proxy"),
    ] {
        let error = read(&[(variable, value)]).unwrap_err().to_string();
        assert!(error.starts_with(variable) && error.contains(reason), "{value}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    for list in ["10.0.0.0/33", "a,10.0.0.*", "http://x", "host/8", "::1/129", "a:b", "*x"] {
        let error = read(&[("HTTP_PROXY", "p:1"), ("NO_PROXY", list)]).unwrap_err();
        let number = format!("number {}", list.split(',').count());
        assert!(error.to_string().contains(&number), "{list}: {error}");
        assert!(!error.to_string().contains(list), "{error}");
    }
    use std::os::unix::ffi::OsStringExt;
    let garbled = |_: &str| Some(OsString::from_vec(vec![0xff]));
    assert!(Proxies::read(&garbled).unwrap_err().to_string().contains("is not UTF-8"));
    // Of no use without a proxy, so not judged.
    let only_exempt = |name: &str| (name == "NO_PROXY").then(|| OsString::from_vec(vec![0xff]));
    assert!(Proxies::read(&only_exempt).is_ok());
}

#[test]
fn a_password_is_in_no_debug_text() {
    let proxies = read(&[("HTTP_PROXY", "http://user:hunter2@p:1")]).unwrap();
    let text = format!("{proxies:?}");
    assert!(!text.contains("hunter2") && !text.contains("dXNlcjpodW50ZXIy"), "{text}");
    let header = proxies.http.unwrap().authorization_header().unwrap();
    assert_eq!(format!("{header:?}"), "Sensitive");
}

#[test]
fn what_a_proxy_quotes_of_its_user_is_masked() {
    let proxy = Proxy::parse("http://millrace-user:pass%2Fword@proxy").unwrap();
    let encoded = proxy.authorization().unwrap().trim_start_matches("Basic ");
    let said = format!(r"Basic {encoded}: millrace-user pass/word pass\/word pass%2Fword pass%2f");
    assert_eq!(proxy.masked(&said), "Basic ***: *** *** *** *** pass%2f");
}

#[test]
fn no_proxy_names_hosts_suffixes_ports_addresses_and_ranges() {
    for (list, url, exempt) in [
        ("s3.corp", "http://s3.corp:9000/", true),
        ("S3.Corp.", "http://s3.corp/", true),
        ("corp", "http://s3.corp/", true),
        (".corp", "http://s3.corp/", true),
        (".corp", "http://corp/", true),
        ("*.corp", "http://s3.corp/", true),
        ("corp", "http://s3.notcorp/", false),
        ("3.corp", "http://s3.corp/", false),
        ("s3.corp:9000", "http://s3.corp:9000/", true),
        ("s3.corp:9000", "http://s3.corp/", false),
        ("corp:80", "http://s3.corp/", true),
        ("a, b\ts3.corp ,c", "http://s3.corp/", true),
        ("a,*", "http://s3.corp/", true),
        ("a,b", "http://s3.corp/", false),
        ("10.1.2.3", "http://10.1.2.3/", true),
        ("10.1.2.3", "http://10.1.2.4/", false),
        ("10.1.2.3:9000", "http://10.1.2.3:9000/", true),
        ("10.1.2.3:9000", "http://10.1.2.3/", false),
        ("10.1.0.0/16", "http://10.1.255.255/", true),
        ("10.1.0.0/16", "http://10.2.0.0/", false),
        ("0.0.0.0/0", "http://10.2.0.0/", true),
        ("10.1.2.3/32", "http://10.1.2.3/", true),
        ("10.0.0.0/8", "http://s3.corp/", false),
        ("10.0.0.0/8", "http://[::ffff:10.1.1.1]/", true),
        ("fd00::/8", "http://[fd12::1]/", true),
        ("fd00::/8", "http://[fe12::1]/", false),
        ("fd12::1", "http://[fd12::1]:9000/", true),
        ("[fd12::1]:9000", "http://[fd12::1]:9000/", true),
        ("[fd12::1]:9000", "http://[fd12::1]/", false),
        ("[fd12::1]", "http://[fd12::1]/", true),
    ] {
        let env = [("ALL_PROXY", "http://p:1"), ("NO_PROXY", list)];
        assert_eq!(proxy(&env, url).is_empty(), exempt, "{list} {url}");
        let env = [("all_proxy", "http://p:1"), ("no_proxy", list), ("NO_PROXY", "*")];
        assert_eq!(proxy(&env, url).is_empty(), exempt, "{list} {url}, lower case");
    }
}

#[test]
fn this_host_and_its_credential_services_are_never_reached_through_a_proxy() {
    let env = [
        ("ALL_PROXY", "http://p:1"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://imds.corp:8080/"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "https://agent.corp/role"),
    ];
    for url in [
        "http://localhost:9000/",
        "http://LOCALHOST./",
        "http://s3.localhost/",
        "http://127.0.0.1:9000/",
        "http://127.9.9.9/",
        "http://127.1/",
        "http://0x7f.1/",
        "http://2130706433/",
        "http://0.0.0.0/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/",
        "http://169.254.170.2/",
        "http://169.254.170.23/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://[fd00:ec2::23]/",
        "http://imds.corp:8080/",
        "https://agent.corp/",
    ] {
        assert_eq!(proxy(&env, url), "", "{url}");
    }
    for url in ["http://s3.corp/", "http://128.0.0.1/", "https://sts.amazonaws.com/"] {
        assert_eq!(proxy(&env, url), "http://p:1", "{url}");
    }
}

#[test]
fn only_plain_http_is_asked_for_in_absolute_form() {
    let proxies = read(&[("ALL_PROXY", "http://p:1")]).unwrap();
    assert!(proxies.absolute_form(&server("http://s3.corp/")).is_some());
    assert!(proxies.absolute_form(&server("https://s3.corp/")).is_none());
    assert!(proxies.absolute_form(&server("http://127.0.0.1/")).is_none());
}
