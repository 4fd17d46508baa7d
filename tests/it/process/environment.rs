//! The environment: goal, no variable and no file it names can end the process otherwise than with exit status 0, or 2
//! and a sentence that names it. Method: `check` against a bucket, with every variable that the process or a library in
//! it reads, × {empty, blanks around it, nonsense, not UTF-8}; variables that must not matter all at once.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::support::command;
use crate::support::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

/// Read by aws-config, aws-runtime, aws-sdk-s3 and aws-sdk-sts, and without effect here.
const WITHOUT_EFFECT: &[&str] = &[
    "AWS_RETRY_MODE",
    "AWS_MAX_ATTEMPTS",
    "AWS_NEW_RETRIES_2026",
    "AWS_ACCOUNT_ID",
    "AWS_ACCOUNT_ID_ENDPOINT_MODE",
    "AWS_AUTH_SCHEME_PREFERENCE",
    "AWS_DISABLE_CLOCK_SKEW_CORRECTION",
    "AWS_DISABLE_REQUEST_COMPRESSION",
    "AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "AWS_S3_DISABLE_EXPRESS_SESSION_AUTH",
    "AWS_SDK_UA_APP_ID",
    "AWS_SIGV4A_SIGNING_REGION_SET",
    "AWS_LOGIN_CACHE_DIRECTORY",
    "AWS_ENDPOINT_URL_SSO",
    "AWS_DEFAULTS_MODE",
    // Of libraries beside those.
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "NO_COLOR",
    "CLICOLOR_FORCE",
    "COLUMNS",
    "LINES",
    "TERM",
    "HOME",
    "LOG_SENSITIVE_BODIES",
    "LOG_SIGNABLE_BODY",
    "_X_AMZN_TRACE_ID",
];

/// With a value that is fine for each, beside the keys of [`Bucket::settings`]; none of them reads any other file.
fn with_effect(bucket: &Bucket) -> Vec<(&'static str, String)> {
    let url = bucket.server.url();
    let file = |name: &str| bucket.dir.path().join(name).to_str().unwrap().to_owned();
    vec![
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
        ("SECRET_ACCESS_KEY", SECRET_KEY.into()),
        ("AWS_SESSION_TOKEN", "t".into()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_DEFAULT_REGION", "us-east-1".into()),
        ("AWS_PROFILE", "default".into()),
        ("AWS_CONFIG_FILE", file("config")),
        ("AWS_SHARED_CREDENTIALS_FILE", file("credentials")),
        ("AWS_ENDPOINT_URL", url.clone()),
        ("AWS_ENDPOINT_URL_S3", url.clone()),
        ("AWS_ENDPOINT_URL_STS", url.clone()),
        ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "false".into()),
        ("AWS_USE_FIPS_ENDPOINT", "false".into()),
        ("AWS_USE_DUALSTACK_ENDPOINT", "false".into()),
        ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.clone()),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv4".into()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r".into()),
        ("AWS_ROLE_SESSION_NAME", "s".into()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file("token")),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/role".into()),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{url}/role")),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "t".into()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file("token")),
        // Nothing on this host is reached through a proxy, so that nobody has to listen there.
        ("http_proxy", "http://127.0.0.1:1".into()),
        ("HTTP_PROXY", "http://me:hunter2@127.0.0.1:1".into()),
        ("https_proxy", "http://127.0.0.1:1".into()),
        ("HTTPS_PROXY", "127.0.0.1:1".into()),
        ("all_proxy", "http://127.0.0.1:1".into()),
        ("ALL_PROXY", "http://127.0.0.1:1".into()),
        ("no_proxy", "store.corp".into()),
        ("NO_PROXY", ".corp, 10.0.0.0/8".into()),
    ]
}

/// Those among them that take any line of text: nonsense is for the service to refuse, where it is used at all.
const TEXTS: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

struct Bucket {
    server: S3Server,
    dir: tempfile::TempDir,
}

impl Bucket {
    fn new() -> Bucket {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("config", ""), ("credentials", ""), ("token", "t")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Bucket { server: S3Server::start(), dir }
    }

    /// All that a check of it needs, and nothing of this machine's.
    fn settings(&self) -> Vec<(OsString, OsString)> {
        let url = self.server.url();
        let store = format!("s3://{BUCKET}/p/");
        let all = [
            ("MILLRACE_STORE", store.as_str()),
            ("MILLRACE_CORES", "0"),
            ("MILLRACE_LISTEN", "127.0.0.1:0"),
            ("MILLRACE_ADMIN_LISTEN", "off"),
            ("HOME", "/nonexistent"),
            ("AWS_ENDPOINT_URL_S3", &url),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        all.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
    }

    /// Exit status and everything that `check` says with these variables in place of the settings' own.
    fn check(&self, variables: &[(&str, &OsStr)], without: &[&str]) -> (Option<i32>, String) {
        let mut command = command(self.dir.path(), &["check"], &[]);
        command.envs(self.settings());
        for name in without {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied());
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains("panicked"), "{variables:?}: {text}");
        (output.status.code(), text)
    }

    /// Passes with exit status 0, or is refused by name with 2.
    #[track_caller]
    fn passes_or_names(&self, name: &str, value: &OsStr, without: &[&str]) -> bool {
        let (status, text) = self.check(&[(name, value)], without);
        match status {
            Some(0) => true,
            Some(2) => {
                let lines: Vec<&str> = text.lines().filter(|line| line.contains(name)).collect();
                assert!(!lines.is_empty(), "{name}={value:?} is not named: {text}");
                false
            }
            other => panic!("{name}={value:?}: {other:?}: {text}"),
        }
    }
}

const NOT_UTF8: &[u8] = b"x\xff\xfe";

#[test]
fn what_has_no_effect_may_be_anything() {
    let bucket = Bucket::new();
    for value in ["".as_bytes(), b" ", b"legacy", b"0", b" 1 \n", b"\x01\x7f", NOT_UTF8] {
        let all: Vec<_> =
            WITHOUT_EFFECT.iter().map(|name| (*name, OsStr::from_bytes(value))).collect();
        let (status, text) = bucket.check(&all, &[]);
        assert_eq!(status, Some(0), "{value:?}: {text}");
    }
}

#[test]
fn what_has_an_effect_is_trimmed_and_unset_when_empty() {
    let bucket = Bucket::new();
    for around in ["", " ", "\n", "\r\n", "\t \n"] {
        let values: Vec<_> = with_effect(&bucket)
            .into_iter()
            .map(|(name, value)| (name, OsString::from(format!("{around}{value}{around}"))))
            .collect();
        let all: Vec<_> = values.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
        let (status, text) = bucket.check(&all, &[]);
        assert_eq!(status, Some(0), "{around:?}: {text}");
        // All but what a check cannot do without is as if it were not there.
        let empty: Vec<_> = with_effect(&bucket)
            .into_iter()
            .filter(|(name, _)| !bucket.settings().iter().any(|(needed, _)| needed == name))
            .map(|(name, _)| (name, OsStr::new(around)))
            .collect();
        let (status, text) = bucket.check(&empty, &[]);
        assert_eq!(status, Some(0), "{around:?}: {text}");
    }
}

#[test]
fn nonsense_and_bytes_are_refused_by_name() {
    let bucket = Bucket::new();
    // Exempt hosts count only beside a proxy, see below.
    let alone = |name: &str| !["no_proxy", "NO_PROXY"].contains(&name);
    for (name, _) in with_effect(&bucket).into_iter().filter(|(name, _)| alone(name)) {
        let bytes = OsStr::from_bytes(NOT_UTF8);
        assert!(!bucket.passes_or_names(name, bytes, &[]), "{name} is text");
        let nonsense = OsStr::new("no?n sense!");
        let passed = bucket.passes_or_names(name, nonsense, &[]);
        let is_text = TEXTS.contains(&name) && !name.ends_with("_KEY") && !name.ends_with("_ID");
        // A token with a blank is none. Two count only where their better half is not set: the endpoint for all services
        // where there is none for S3, and the old name of the secret.
        let expected = is_text && name != "AWS_CONTAINER_AUTHORIZATION_TOKEN"
            || ["AWS_ENDPOINT_URL", "SECRET_ACCESS_KEY"].contains(&name);
        assert_eq!(passed, expected, "{name}");
        let two_lines = OsStr::new("two\nlines");
        assert!(!bucket.passes_or_names(name, two_lines, &[]), "{name} is one line");
    }
    let no_s3 = ["AWS_ENDPOINT_URL_S3"];
    assert!(!bucket.passes_or_names("AWS_ENDPOINT_URL", OsStr::new("no?n sense!"), &no_s3));
    let no_secret = ["AWS_SECRET_ACCESS_KEY"];
    assert!(!bucket.passes_or_names("SECRET_ACCESS_KEY", OsStr::new("no?n sense!"), &no_secret));
    assert!(bucket.passes_or_names("SECRET_ACCESS_KEY", OsStr::new(SECRET_KEY), &no_secret));
}

#[test]
fn exempt_hosts_are_refused_by_name_beside_a_proxy() {
    let bucket = Bucket::new();
    let values = [OsStr::from_bytes(NOT_UTF8), OsStr::new("no?n sense!"), OsStr::new("two\n?")];
    for name in ["no_proxy", "NO_PROXY"] {
        for value in values {
            assert!(bucket.passes_or_names(name, value, &[]), "{name}={value:?} without a proxy");
            let proxy = ("HTTPS_PROXY", OsStr::new("http://127.0.0.1:1"));
            let (status, text) = bucket.check(&[(name, value), proxy], &[]);
            assert_eq!(status, Some(2), "{name}={value:?}: {text}");
            assert!(text.contains(name), "{name}={value:?} is not named: {text}");
        }
    }
}

/// Without keys in the environment the chain goes on to what asks services, where values met assertions.
#[test]
fn nothing_in_the_credential_chain_panics() {
    let bucket = Bucket::new();
    let no_keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    for (name, value) in [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "127.0.0.1:1"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "localhost"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "/role"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "role"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "*"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "http://127.0.0.1:1/role"),
        ("SMITHY_CLIENT_SDK_CUSTOM_PARTITION", ""),
        ("SMITHY_CLIENT_SDK_CUSTOM_PARTITION", "/nonexistent"),
        ("AWS_EXECUTION_ENV", "two\nlines"),
    ] {
        let passed = bucket.passes_or_names(name, OsStr::new(value), &no_keys);
        assert!(!passed, "{name}={value}: there are no keys");
    }
    let token = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", OsStr::new("/nonexistent\n")),
        ("AWS_ROLE_ARN", OsStr::new("r")),
    ];
    let (status, text) = bucket.check(&token, &no_keys);
    assert_eq!(status, Some(2), "{text}");
    let said = "AWS_WEB_IDENTITY_TOKEN_FILE=\"/nonexistent\" cannot be read";
    assert!(text.contains(said), "{text}");
}

#[test]
fn a_bundle_of_roots_is_unset_when_blank_and_named_when_it_is_none() {
    let bucket = Bucket::new();
    for blank in ["", " ", "\r\n"] {
        assert!(bucket.passes_or_names("AWS_CA_BUNDLE", OsStr::new(blank), &[]), "{blank:?}");
    }
    let config = bucket.dir.path().join("config");
    let roots = bucket.dir.path().join("roots.pem");
    let signed = rcgen::generate_simple_self_signed(vec!["store.corp".into()]).unwrap();
    std::fs::write(&roots, signed.cert.pem()).unwrap();
    for around in ["", " ", "\r\n"] {
        let value = OsString::from(format!("{around}{}{around}", roots.display()));
        assert!(bucket.passes_or_names("AWS_CA_BUNDLE", &value, &[]), "{value:?}");
    }
    for none in [OsStr::new("no such file"), OsStr::from_bytes(NOT_UTF8), config.as_os_str()] {
        assert!(!bucket.passes_or_names("AWS_CA_BUNDLE", none, &[]), "{none:?}");
    }
}

#[test]
fn shared_files_pass_or_are_named_with_the_entry() {
    let bucket = Bucket::new();
    let path = bucket.dir.path().join("shared");
    let check = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        bucket.check(&[("AWS_CONFIG_FILE", path.as_os_str())], &["AWS_REGION"])
    };
    let fine: [&[u8]; 6] = [
        b"[default]\nregion = us-east-1\nretry_mode = legacy\nmax_attempts = 0\n",
        b"[default]\nretry_mode =\nmax_attempts =\nregion = us-east-1\n",
        b"[default]\nmax_attempts = many\nretry_mode = \x01\n",
        b"\xef\xbb\xbf[default]\r\nregion = us-east-1\r\nretry_mode = legacy\r\n",
        b"[default]\nregion =\nuse_fips_endpoint =\nendpoint_url =\nservices =\nsource_profile =\n",
        b"",
    ];
    for bytes in fine {
        let (status, text) = check(bytes);
        assert_eq!(status, Some(0), "{:?}: {text}", String::from_utf8_lossy(bytes));
    }
    let bad: [(&[u8], &str); 6] = [
        (b"[default]\nregion = us east\n", "region=\"us east\": give a region"),
        (b"[default]\nuse_fips_endpoint = maybe\n", "use_fips_endpoint=\"maybe\": give true"),
        (
            b"[default]\nrole_arn = a\n  b\nsource_profile = default\n",
            "role_arn=\"a\\nb\": give one line",
        ),
        (b"[default]\naws_access_key_id = a b\n", "aws_access_key_id: holds blanks"),
        (b"region = us-east-1\n", "on line 1: Expected a profile definition"),
        (b"[default]\nregion = \xff\n", "the file is not UTF-8"),
    ];
    for (bytes, says) in bad {
        let (status, text) = check(bytes);
        assert_eq!(status, Some(2), "{text}");
        assert!(text.contains(says) && text.contains("shared"), "{says} in {text}");
    }
    for variable in ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
        let (status, text) = bucket.check(&[(variable, bucket.dir.path().as_os_str())], &[]);
        assert_eq!(status, Some(2), "{text}");
        assert!(text.contains(variable) && text.contains("Is a directory"), "{text}");
        let (status, text) =
            bucket.check(&[(variable, Path::new("/nonexistent").as_os_str())], &[]);
        assert_eq!(status, Some(0), "it may be mounted or not: {text}");
        assert!(text.contains(&format!("{variable} /nonexistent cannot be read")), "{text}");
    }
}

/// Settings of our own: bytes that are no text are refused by name, with status 2.
#[test]
fn our_own_settings_that_are_not_utf8_are_refused_by_name() {
    let bucket = Bucket::new();
    let bytes = OsStr::from_bytes(NOT_UTF8);
    let names =
        millrace::internals::config::SETTINGS.iter().flat_map(|s| [s.name.to_owned(), s.env()]);
    let names: Vec<String> = names.collect();
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), bytes)).collect();
    let (bare, prefixed): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(name, _)| !name.starts_with("MILLRACE_"));
    let own: Vec<String> =
        bucket.settings().iter().map(|(n, _)| n.to_str().unwrap().into()).collect();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    for names in [bare, prefixed] {
        let (status, text) = bucket.check(&names, &own);
        assert_eq!(status, Some(2), "{text}");
        for (name, _) in names {
            let said = format!("environment variable {name}");
            assert!(text.contains(&said), "{name} in {text}");
        }
    }
    let (status, text) = bucket.check(&[("MILLRACE_CONFIG", bytes)], &[]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("named by MILLRACE_CONFIG"), "{text}");
}
