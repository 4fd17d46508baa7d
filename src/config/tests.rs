use std::io::Write as _;

use super::*;

/// A configuration read from flags, an injected environment and TOML text, on cores 0-3.
fn resolve(
    flags: &[(&str, &str)],
    env: &[(&str, &str)],
    toml: Option<&str>,
) -> Result<(Config, Effective), ConfigErrors> {
    let env = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let file = toml.map(|text| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    });
    let flags = Flags {
        file: file.as_ref().map(|f| f.path().into()),
        values: flags.iter().map(|(k, v)| (setting(k).name, (*v).into())).collect(),
    };
    Config::resolve(&flags, &HostContext { env, cores_allowed: vec![0, 1, 2, 3] })
}

fn refusals(result: Result<(Config, Effective), ConfigErrors>) -> String {
    result.expect_err("must be refused").to_string()
}

#[test]
fn every_default_parses_and_is_the_documented_one() {
    let (config, effective) = resolve(&[], &[], None).unwrap();
    let [ListenAddress { address, only_v6: false, tls: false, proxies: None }] =
        config.listen.as_slice()
    else {
        panic!("{:?}", config.listen);
    };
    assert_eq!((*address, config.trust), ("0.0.0.0:8080".parse().unwrap(), None));
    assert_eq!(config.admin_listen, Some("127.0.0.1:9090".parse().unwrap()));
    assert_eq!(config.cores, [0, 1, 2, 3]);
    assert_eq!(
        (config.max_workers, config.max_queue, config.max_connections),
        (32, 10_000, 16_384)
    );
    assert_eq!((config.max_queue_bytes, config.max_body_bytes), (64 << 20, 64 << 20));
    assert_eq!(config.max_length, 1 << 20);
    assert_eq!(config.enqueue_wait, Duration::from_secs(1));
    assert_eq!(config.store, StoreUrl::File("./data".into()));
    assert_eq!(config.s3.content_type, "application/octet-stream");
    assert_eq!(config.s3.connect_timeout, Duration::from_secs(3));
    assert_eq!(config.s3.force_path_style, None);
    assert_eq!(config.s3.connection_age, Duration::from_secs(60));
    assert_eq!((config.tokens_file, config.faults, config.s3.acl), (None, None, None));
    assert!(!config.ingest_health && !config.token_in_query && config.cors_origins.is_none());
    assert_eq!(config.dead_letter_max, 1 << 30);
    assert_eq!(config.drain_timeout, Duration::from_secs(25));
    assert_eq!(effective.changed().count(), 0);
}

#[test]
fn a_flag_beats_the_environment_beats_the_file() {
    let toml = Some("max_workers = 1\nmax_queue = 1\nmax_connections = 1\n");
    let env = [("MAX_WORKERS", "2"), ("MAX_QUEUE", "2")];
    let (config, effective) = resolve(&[("MAX_WORKERS", "3")], &env, toml).unwrap();
    assert_eq!((config.max_workers, config.max_queue, config.max_connections), (3, 2, 1));
    assert_eq!(effective.get("MAX_WORKERS").source, SettingSource::Flag);
    assert_eq!(effective.get("MAX_QUEUE").source, SettingSource::BareEnv);
    assert!(matches!(effective.get("MAX_CONNECTIONS").source, SettingSource::File(_)));
    assert_eq!(effective.get("MAX_LENGTH").source, SettingSource::Default);
}

#[test]
fn an_empty_environment_variable_is_not_set_but_an_empty_flag_is_refused() {
    let (config, _) = resolve(&[], &[("MAX_WORKERS", ""), ("STORE", " ")], None).unwrap();
    assert_eq!(config.max_workers, 32);
    assert!(refusals(resolve(&[("MAX_WORKERS", "")], &[], None)).contains("flag --max-workers"));
    // Removing a protection must be explicit, not the result of an empty substitution.
    let all = refusals(resolve(&[("TOKENS_FILE", "")], &[], Some("s3_acl = \"\"")));
    assert!(all.contains("TOKENS_FILE") && all.contains("S3_ACL"), "{all}");
}

#[test]
fn all_mistakes_are_reported_at_once_each_with_name_source_text_and_remedy() {
    let toml = "max_qeue = 5\nput_timeout = 10\nretry_max = 1.5\n";
    let env = [("MILLRACE_MAX_LENGTH", "2GiB"), ("MILLRACE_CORES", "0,7")];
    let all = refusals(resolve(&[("MAX_WORKERS", "0")], &env, Some(toml)));
    let line = |needle: &str| {
        all.lines().find(|l| l.contains(needle)).unwrap_or_else(|| panic!("{needle} in:\n{all}"))
    };
    assert!(line("MAX_WORKERS").contains("=\"0\" (flag --max-workers): give a whole number"));
    let said = "\"2GiB\" (environment variable MILLRACE_MAX_LENGTH): give a size";
    assert!(line("MAX_LENGTH").contains(said));
    assert!(line("CORES").contains("core 7 is not available to this process"));
    assert!(line("CORES").contains("0-3"));
    assert!(line("PUT_TIMEOUT").contains("(key put_timeout in "));
    assert!(line("PUT_TIMEOUT").contains("write 10ms, 10s or 10m"));
    assert!(line("max_qeue").contains("did you mean max_queue?"));
    assert!(line("RETRY_MAX").contains("float is not supported here"));
    assert_eq!(all.lines().count(), 6, "{all}");
}

#[test]
fn a_file_that_is_missing_or_not_toml_is_one_error() {
    let missing = Flags { file: Some("no/such.toml".into()), values: vec![] };
    let host = HostContext { env: Environment::new(), cores_allowed: vec![0] };
    let all = Config::resolve(&missing, &host).unwrap_err().to_string();
    assert!(all.contains("no/such.toml (named by --config) cannot be opened"), "{all}");
    let all = refusals(resolve(&[], &[], Some("idle_timeout = 10s")));
    assert!(all.contains("values with units need quotes"), "{all}");
}

#[test]
fn relations_between_settings_name_both() {
    for (flags, name, other) in [
        (
            &[("MAX_LENGTH", "65MiB"), ("MAX_BODY_BYTES", "1GiB")][..],
            "MAX_QUEUE_BYTES",
            "MAX_LENGTH",
        ),
        (&[("MAX_LENGTH", "33MiB")], "MAX_BODY_BYTES", "MAX_LENGTH"),
        (&[("RETRY_BASE", "11s")], "RETRY_BASE", "RETRY_MAX"),
        (&[("PUT_TIMEOUT", "11m")], "PUT_TIMEOUT", "PUT_TIMEOUT_MAX"),
        (&[("S3_KMS_KEY_ID", "k")], "S3_KMS_KEY_ID", "S3_SSE"),
        (&[("S3_KMS_KEY_ID", "k"), ("S3_SSE", "AES256")], "S3_KMS_KEY_ID", "S3_SSE"),
        (&[("S3_BUCKET_KEY", "true")], "S3_BUCKET_KEY", "S3_SSE"),
        (&[("S3_BUCKET_KEY", "false"), ("S3_SSE", "AES256")], "S3_BUCKET_KEY", "S3_SSE"),
        (&[("S3_BUCKET_KEY", "true"), ("S3_SSE", "aws:kms:dsse")], "S3_BUCKET_KEY", "S3_SSE"),
        (
            &[
                ("STORE", "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/a/p/"),
                ("S3_FORCE_PATH_STYLE", "true"),
            ],
            "S3_FORCE_PATH_STYLE",
            "STORE",
        ),
        (&[("TOKEN_IN_QUERY", "on")], "TOKEN_IN_QUERY", "TOKENS_FILE"),
        (&[("ADMIN_LISTEN", "127.0.0.1:8080")], "ADMIN_LISTEN", "LISTEN"),
        (&[("STORE", "file:dead-letter/")], "DEAD_LETTER_DIR", "STORE"),
    ] {
        let all = refusals(resolve(flags, &[], None));
        assert!(all.starts_with(name) && all.contains(other), "{all}");
        assert_eq!(all.lines().count(), 1, "{all}");
    }
    let kms = [("S3_KMS_KEY_ID", "k"), ("S3_SSE", "aws:kms")];
    assert_eq!(resolve(&kms, &[], None).unwrap().0.s3.kms_key_id.as_deref(), Some("k"));
    for kind in ["aws:kms", "aws:kms:dsse"] {
        let with_key = [("S3_KMS_KEY_ID", "k"), ("S3_SSE", kind)];
        assert_eq!(resolve(&with_key, &[], None).unwrap().0.s3.sse.as_deref(), Some(kind));
    }
    let bucket_key = [("S3_BUCKET_KEY", "true"), ("S3_SSE", "aws:kms")];
    assert_eq!(resolve(&bucket_key, &[], None).unwrap().0.s3.bucket_key, Some(true));
    let drawn = [("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:0")];
    assert!(resolve(&drawn, &[], None).is_ok());
}

#[test]
fn a_refused_value_causes_no_second_error_through_a_relation() {
    let all = refusals(resolve(&[("MAX_BODY_BYTES", "no"), ("MAX_LENGTH", "64MiB")], &[], None));
    assert_eq!(all.lines().count(), 1, "{all}");
}

#[test]
fn values_that_mean_different_things_by_case_or_unit_keep_their_meaning() {
    let (config, _) = resolve(
        &[("DRAIN_TIMEOUT", "1m"), ("MAX_QUEUE_BYTES", "100MB"), ("CORES", "2,0")],
        &[("S3_FORCE_PATH_STYLE", "false"), ("S3_CHECKSUM", "none"), ("LOG_FORMAT", "json")],
        Some("admin_listen = \"off\"\n"),
    )
    .unwrap();
    assert_eq!(config.drain_timeout, Duration::from_secs(60));
    assert_eq!(config.max_queue_bytes, 100_000_000);
    assert_eq!(config.cores, [0, 2]);
    assert_eq!(config.s3.force_path_style, Some(false));
    assert_eq!(config.s3.checksum, Checksum::None);
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(config.admin_listen, None);
}

#[test]
fn node_ids_are_random_unless_given() {
    let drawn = || resolve(&[], &[], None).unwrap().0.node_id;
    let (a, b) = (drawn(), drawn());
    assert_ne!(a, b);
    assert!(a.len() == 16 && a.bytes().all(|c| c.is_ascii_hexdigit()), "{a}");
    assert_eq!(resolve(&[], &[("NODE_ID", "host-1")], None).unwrap().0.node_id, "host-1");
}

#[test]
fn no_allowed_cores_is_an_error_not_a_panic() {
    let host = HostContext { env: Environment::new(), cores_allowed: vec![] };
    let errors = Config::resolve(&Flags::default(), &host).unwrap_err();
    assert_eq!(errors.0, [ConfigError::CoresUnknown]);
}

/// `core_affinity` must report the cores that this process is *allowed* to use, not all of the
/// machine's: on a shared host the others belong to somebody else. The kernel's own list is in
/// `/proc`, where offline cores may be listed too.
#[test]
fn core_affinity_reports_the_allowed_set() {
    let expand = |list: &str| -> Vec<usize> {
        let ranges =
            list.trim().split(',').map(|part| part.split_once('-').unwrap_or((part, part)));
        ranges.flat_map(|(a, b)| a.parse::<usize>().unwrap()..=b.parse().unwrap()).collect()
    };
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap();
    let online = expand(&std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap());
    let mut expected = expand(allowed);
    expected.retain(|core| online.contains(core));
    assert_eq!(HostContext::bare().cores_allowed, expected);
}

/// Why the set is read before anything is pinned.
#[test]
fn a_pinned_thread_sees_one_core_only() {
    let seen = std::thread::spawn(|| {
        let core = core_affinity::get_core_ids().unwrap()[0];
        assert!(core_affinity::set_for_current(core));
        HostContext::bare().cores_allowed.len()
    });
    assert_eq!(seen.join().unwrap(), 1);
}

#[test]
fn the_spool_is_off_without_a_directory_and_its_sizes_must_go_together() {
    let (config, _) = resolve(&[], &[], None).unwrap();
    assert_eq!((config.ack, config.spool), (Ack::Queued, None));
    let (config, _) = resolve(&[("SPOOL_DIR", "s"), ("ACK", "spooled")], &[], None).unwrap();
    let spool = config.spool.unwrap();
    assert_eq!((spool.max, spool.segment, spool.pending), (1 << 30, 64 << 20, 64 << 20));
    assert_eq!((spool.linger, spool.checkpoint), (Duration::ZERO, Duration::from_secs(1)));
    let refused = |settings: &[(&str, &str)]| refusals(resolve(settings, &[], None));
    assert!(refused(&[("ACK", "spooled")]).contains("set SPOOL_DIR"));
    assert!(refused(&[("ACK", "synced")]).contains("give queued, spooled or stored"));
    let with = |name, text| refused(&[("SPOOL_DIR", "s"), (name, text)]);
    assert!(with("SPOOL_MAX", "100MiB").contains("is below 2 × SPOOL_SEGMENT"));
    assert!(with("SPOOL_SEGMENT", "3MiB").contains("is below 4 × MAX_LENGTH"));
    assert!(with("SPOOL_PENDING", "1MB").contains("is below MAX_LENGTH"));
    assert!(with("DEAD_LETTER_DIR", "./s").contains("SPOOL_DIR"));
    assert!(with("STORE", "file:s/").contains("SPOOL_DIR"));
}

#[test]
fn the_prefixed_variable_has_priority_even_if_empty() {
    for (env, expected, source) in [
        (&[("MILLRACE_MAX_WORKERS", "5")][..], 5, SettingSource::Env),
        (&[("MAX_WORKERS", "4")], 4, SettingSource::BareEnv),
        (&[("MILLRACE_MAX_WORKERS", "5"), ("MAX_WORKERS", "4")], 5, SettingSource::Env),
        (&[("MILLRACE_MAX_WORKERS", " 5\n"), ("MAX_WORKERS", "no")], 5, SettingSource::Env),
        (&[("MILLRACE_MAX_WORKERS", ""), ("MAX_WORKERS", "no")], 32, SettingSource::Default),
        (&[("MILLRACE_MAX_WORKERS", "\n"), ("MAX_WORKERS", "no")], 32, SettingSource::Default),
        (&[("MAX_WORKERS", " \t")], 32, SettingSource::Default),
    ] {
        let (config, effective) = resolve(&[], env, None).unwrap();
        assert_eq!(config.max_workers, expected, "{env:?}");
        assert_eq!(effective.get("MAX_WORKERS").source, source, "{env:?}");
    }
    // The file comes after both.
    let both = [("MILLRACE_MAX_WORKERS", ""), ("MAX_WORKERS", "4")];
    let (config, _) = resolve(&[], &both, Some("max_workers = 7")).unwrap();
    assert_eq!(config.max_workers, 7);
}

/// Sets each setting to a text that it refuses or, if it accepts anything, that conflicts with
/// other settings.
#[test]
fn the_text_of_a_bare_name_is_never_shown() {
    const SECRET: &str = "hush-Zq9/{hush-Zq9}\u{7f}\n=hush-Zq9";
    for setting in SETTINGS {
        let bare = resolve(&[], &[(setting.name, SECRET)], None);
        let prefixed = resolve(&[], &[(&setting.env(), SECRET)], None);
        let text = match &bare {
            Err(errors) => {
                let text = errors.to_string();
                assert!(text.contains(setting.name), "{text}");
                assert!(text.contains("text not shown"), "{}: {text}", setting.name);
                assert!(text.contains(&format!("set {}", setting.env())), "{text}");
                assert_eq!(text.lines().count(), 1, "{text}");
                text
            }
            Ok((_, effective)) => effective.changed().map(SettingValue::to_string).collect(),
        };
        assert!(!text.contains("hush"), "{}: {text}", setting.name);
        assert_eq!(prefixed.is_err(), bare.is_err(), "{}", setting.name);
        if let Err(errors) = prefixed {
            // One that is a secret is not shown wherever it comes from.
            assert_eq!(errors.to_string().contains("hush-Zq9"), !setting.is_secret, "{errors}");
        }
    }
    // Relations in which either name may belong to another program.
    for env in [
        [("KEY", "hush/{seq}-{node}"), ("NODE_ID", "n")],
        [("KEY", "{unix_nanos}-{node}{core}hush{seq}"), ("NODE_ID", "n")],
        [("STORE", "file:hush"), ("DEAD_LETTER_DIR", "./hush")],
        [("SPOOL_DIR", "hush"), ("DEAD_LETTER_DIR", "hush")],
        [("COMPRESSION", "gzip"), ("OBJECT", "payload")],
        [("EVENT_TIME", "/hush"), ("OBJECT", "payload")],
        [("KEY", "{field:/hush|../x}-{unix_nanos}-{node}-{core}-{seq}"), ("OBJECT", "payload")],
        [("S3_KMS_KEY_ID", "hush"), ("S3_SSE", "AES256")],
        [("MAX_LENGTH", "33MiB"), ("MAX_BODY_BYTES", "65MiB")],
    ] {
        let text = refusals(resolve(&[], &env, None));
        assert!(!text.contains("hush") && text.contains("text not shown"), "{text}");
    }
    // Values that are fine are not listed with their text either.
    let (_, effective) = resolve(&[], &[("NODE_ID", "hush"), ("LISTEN", "[::]:80")], None).unwrap();
    let listed: Vec<String> = effective.changed().map(SettingValue::to_string).collect();
    assert_eq!(listed[0], "LISTEN (environment variable LISTEN, text not shown)");
    assert!(!listed.concat().contains("hush"), "{listed:?}");
}

#[test]
fn texts_that_are_not_utf8_are_refused_by_name() {
    use std::os::unix::ffi::OsStringExt as _;
    for setting in SETTINGS {
        for (name, is_shown) in [(setting.env(), true), (setting.name.to_owned(), false)] {
            let text = std::ffi::OsString::from_vec(b"hush\xff".to_vec());
            let env = [(name.clone().into(), text)].into();
            let host = HostContext { env, cores_allowed: vec![0] };
            let text = Config::resolve(&Flags::default(), &host).unwrap_err().to_string();
            assert!(text.contains(&format!("environment variable {name}")), "{text}");
            assert_eq!(text.contains("hush"), is_shown && !setting.is_secret, "{text}");
            assert_eq!(text.contains("is not UTF-8"), is_shown, "{text}");
        }
    }
}

#[test]
fn the_environment_names_the_file_unless_a_flag_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("a.toml"), "max_workers = 1").unwrap();
    std::fs::write(path("b.toml"), "\u{feff}max_workers = 2\r\n").unwrap();
    let load = |flag: Option<String>, variable: &str| {
        let env = [("MILLRACE_CONFIG".into(), variable.into())].into();
        let flags = Flags { file: flag.map(PathBuf::from), values: vec![] };
        let config = Config::resolve(&flags, &HostContext { env, cores_allowed: vec![0] });
        config.map(|(config, _)| (config.max_workers, config.file)).map_err(|e| e.to_string())
    };
    let (a, b) = (path("a.toml"), path("b.toml"));
    assert_eq!(load(None, &a), Ok((1, Some(PathBuf::from(&a)))));
    assert_eq!(load(None, &format!(" {b}\n")), Ok((2, Some(PathBuf::from(&b)))));
    assert_eq!(load(Some(a.clone()), &b), Ok((1, Some(PathBuf::from(&a)))));
    assert_eq!(load(None, " "), Ok((32, None)));
    let missing = load(None, "none.toml").unwrap_err();
    assert!(missing.starts_with("none.toml (named by MILLRACE_CONFIG) cannot be"), "{missing}");
    std::fs::write(path("c.toml"), b"store = \"\xff\"").unwrap();
    assert!(load(None, &path("c.toml")).unwrap_err().contains("UTF-8"));
    assert!(load(None, dir.path().to_str().unwrap()).unwrap_err().contains("Is a directory"));
}

#[test]
fn unknown_prefixed_names_are_reported_once() {
    let (_, effective) = resolve(&[], &[("MILLRACE_STORE", "null:")], None).unwrap();
    assert_eq!(effective.unknown_names(), None);
    let env = [
        ("MILLRACE_CONFIG", ""),
        ("MILLRACE_MAX_WORKER", "3"),
        ("MILLRACE_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("MILLRACE_SERVICE_HOST", "10.0.0.1"),
        ("millrace_store", "null:"),
        ("MILLRACE", "x"),
    ];
    let (config, effective) = resolve(&[], &env, None).unwrap();
    assert_eq!((config.max_workers, &config.store), (32, &StoreUrl::File("./data".into())));
    let said = "unknown settings: MILLRACE_MAX_WORKER (did you mean \
                MILLRACE_MAX_WORKERS?), MILLRACE_PORT_8080_TCP_ADDR, MILLRACE_SERVICE_HOST";
    assert_eq!(effective.unknown_names().unwrap(), said);
}
