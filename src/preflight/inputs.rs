//! Addresses, files and names from the configuration; `dirs` checks its directories.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use super::running::RunningServer;
use super::{Finding, Mode, exposed, running};
use crate::config::{
    AdminTokenSource, Config, Effective, ListenAddress, Networks, SettingValue, StoreUrl,
};
use crate::http::accept;
use crate::http::tokens::{TokenPlaces, TokenSet};
use crate::metrics::tokens::TokenNames;
use crate::queue::job::Stamp;

/// `LISTEN` and `ADMIN_LISTEN`. At a start an address in use is not a failure, because its listener
/// may be about to exit; beside a running server it should be in use, by that server.
/// `server` is that server.
pub(super) fn addresses(config: &Config, mode: Mode, server: RunningServer) -> Vec<Finding> {
    let listen = config.listen.iter().map(|listen| ("LISTEN", listen.address, listen.only_v6));
    let admin = config.admin_listen.map(|address| ("ADMIN_LISTEN", address, false));
    let judge = |(name, address, only_v6): (_, SocketAddr, _)| {
        // Port 0 stands for another one at each start. A port that the server holds says nothing
        // about what this user may bind.
        if mode == Mode::Running
            && address.port() != 0
            && let Some(holder) = running::holder(address)
        {
            let conflict = judge_bind(name, address, Err(ErrorKind::AddrInUse.into()));
            return running::judge_holder(name, address, holder, server, conflict);
        }
        match try_bind(address, only_v6) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => match mode {
                Mode::Start => Finding::ok(
                    name,
                    format!("{address} is taken; the start retries for BIND_WAIT"),
                ),
                Mode::Starting => Finding::warn(
                    name,
                    format!(
                        "{address} is taken by another listener; the start retries for BIND_WAIT"
                    ),
                    format!(
                        "nothing, if a server is ending; else ss -ltnp 'sport = :{}'",
                        address.port()
                    ),
                ),
                Mode::Check | Mode::Running => judge_bind(name, address, Err(error)),
            },
            outcome if mode == Mode::Running && address.port() != 0 && is_free(&outcome) => {
                running::nobody_listens(name, address)
            }
            outcome => judge_bind(name, address, outcome),
        }
    };
    listen.chain(admin).map(judge).collect()
}

/// Why the server cannot listen on the address of the setting `name`, and what to do.
pub(super) fn bind_refusal(name: &'static str, address: SocketAddr, error: io::Error) -> Finding {
    judge_bind(name, address, Err(error))
}

/// Whether nobody has the port, as far as a bind by this user tells.
fn is_free(outcome: &io::Result<()>) -> bool {
    match outcome {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    }
}

/// Binds without SO_REUSEPORT: with it, a second server of the same user would share the port
/// unnoticed and get half the connections.
fn try_bind(address: SocketAddr, only_v6: bool) -> io::Result<()> {
    accept::bound(address, only_v6, false).map(drop)
}

fn judge_bind(name: &'static str, address: SocketAddr, outcome: io::Result<()>) -> Finding {
    let Err(error) = outcome else {
        return Finding::ok(name, format!("{address} is free"));
    };
    let port = address.port();
    let (why, remedy) = match error.kind() {
        ErrorKind::AddrInUse => (
            format!("{address} is taken by another listener"),
            format!("ss -ltnp 'sport = :{port}' shows it; stop it or set {name}"),
        ),
        ErrorKind::PermissionDenied => (
            format!("this user may not bind port {port}"),
            format!(
                "setcap cap_net_bind_service=+ep on the binary, sysctl -w \
                 net.ipv4.ip_unprivileged_port_start={port}, or set {name} to a port from 1024 on"
            ),
        ),
        ErrorKind::AddrNotAvailable => (
            format!("{} is not an address of this host", address.ip()),
            format!(
                "ip address lists the host's addresses; set {name} to one, or to 0.0.0.0:{port}"
            ),
        ),
        _ => (
            format!("{address} cannot be bound: {error}"),
            format!("set {name} to another address"),
        ),
    };
    Finding::fail(name, why, remedy)
}

/// `TOKENS_FILE` or, without it, who can reach `LISTEN`.
pub(super) fn tokens(config: &Config) -> Vec<Finding> {
    let Some(path) = config.tokens_file.as_deref() else {
        // With authorities of certificates, nobody gets in without one.
        let open = config.listen.iter().filter(|_| !config.asks_for_certificates());
        return open.filter_map(exposed::listener).collect();
    };
    let shown = path.display();
    let finding = match TokenSet::load(path, &TokenNames::default()) {
        Ok(set) => {
            let names = set.with_quotas() + &set.beyond_names();
            let holds = format!("{shown} holds {} tokens{names}", set.len());
            match set.unusable(TokenPlaces::of(config)) {
                None => Finding::ok("TOKENS_FILE", holds),
                Some(unusable) => Finding::warn(
                    "TOKENS_FILE",
                    format!("{holds}; {unusable}"),
                    "give those clients other tokens, or set TOKEN_IN_BODY=on",
                ),
            }
        }
        Err(error) => Finding::fail(
            "TOKENS_FILE",
            format!("{shown} {error}"),
            format!("ls -l {shown}; put one token per line in it, or unset TOKENS_FILE"),
        ),
    };
    [finding].into_iter().chain(exposed::secret_file("TOKENS_FILE", path)).collect()
}

/// The TOML file, if others may write to it. [`environment`] looks whether it holds a secret, which
/// is rare.
pub(super) fn config_file(config: &Config) -> Option<Finding> {
    exposed::file("config file", config.file.as_deref()?)
}

/// Networks that hold every address, where only proxies belong.
pub(super) fn trusted_networks(config: &Config) -> Vec<Finding> {
    let holds_all = |networks: &Networks| networks.hold_everybody();
    let mut findings = Vec::new();
    if config.trust.as_ref().is_some_and(holds_all) {
        findings.push(Finding::warn(
            "TRUST",
            "it holds every address: any client may name another one in a forwarded header",
            "set TRUST to the networks of the proxies in front of this server",
        ));
    }
    let open = config.listen.iter().filter(|at| at.proxies.as_ref().is_some_and(holds_all));
    findings.extend(open.map(|ListenAddress { address, .. }| {
        Finding::warn(
            "LISTEN",
            format!("the proxy= of {address} holds every address: any client may name another one in a PROXY header"),
            "give the networks of the proxies that connect to it; ignore this if a firewall lets no one else through",
        )
    }));
    findings
}

/// `MILLRACE_*` variables that are not settings, secrets whose variable may belong to another
/// program, and a TOML file with a secret that others may read.
pub fn environment(effective: &Effective) -> Vec<Finding> {
    let remedy =
        "correct or unset them; ignore this if Kubernetes adds them for a service of this name";
    let unknown = effective.unknown_names();
    let unknown = unknown.map(|names| Finding::warn("environment", names, remedy));
    let file = effective.file_with_secrets();
    let exposed = file.and_then(|file| exposed::secret_file("config file", file));
    let is_foreign = |value: &&SettingValue| value.setting.is_secret && value.may_be_foreign();
    let foreign = effective.changed().filter(is_foreign).map(|SettingValue { setting, .. }| {
        let (name, env) = (setting.name, setting.env());
        Finding::warn(
            name,
            format!("environment variable {name} may belong to another program"),
            format!("set {env} instead, even to nothing: then {name} is ignored"),
        )
    });
    unknown.into_iter().chain(foreign).chain(exposed).collect()
}

/// `ADMIN_TOKEN_FILE`, if there is one.
pub(super) fn admin_token(config: &Config) -> Vec<Finding> {
    let Some(source @ AdminTokenSource::File(path)) = &config.admin_token else {
        return Vec::new();
    };
    let finding = match source.load() {
        Ok(_) => Finding::ok("ADMIN_TOKEN_FILE", format!("{} holds a token", path.display())),
        Err(why) => {
            let shown = path.display();
            let why = why.trim_start_matches("ADMIN_TOKEN_FILE ").to_owned();
            Finding::fail("ADMIN_TOKEN_FILE", why, format!("openssl rand -hex 32 >{shown}"))
        }
    };
    [finding].into_iter().chain(exposed::secret_file("ADMIN_TOKEN_FILE", path)).collect()
}

/// `TAP=on` where nobody, or everybody of this host, can see the samples.
pub(super) fn tap(config: &Config) -> Option<Finding> {
    if !config.tap || config.admin_token.is_some() && config.admin_listen.is_some() {
        return None;
    }
    let token = "set ADMIN_TOKEN_FILE (openssl rand -hex 32 makes a token)";
    let (detail, remedy) = match config.admin_listen {
        None => ("ADMIN_LISTEN is off: nobody can see samples".to_owned(), "set ADMIN_LISTEN"),
        Some(address) if address.ip().to_canonical().is_loopback() => {
            ("no ADMIN_TOKEN: every user of this host can read payloads".to_owned(), token)
        }
        Some(address) => (format!("no ADMIN_TOKEN: {address} does not serve /tap without"), token),
    };
    Some(Finding::warn("TAP", detail, format!("{remedy}, or TAP=off")))
}

/// An example of an object's full name.
pub(super) fn example_key(config: &Config) -> Finding {
    let example = config.example_key(Stamp::unix_nanos_now());
    let detail = format!("objects are named like {example}");
    let StoreUrl::S3 { bucket, prefix } = &config.store else {
        return Finding::ok("key", detail);
    };
    let joined =
        format!("{detail}: the prefix {prefix:?} does not end in /, so it is not a folder");
    match prefix.chars().last() {
        None | Some('/') => Finding::ok("key", detail),
        Some(end) if end.is_alphanumeric() => Finding::warn(
            "key",
            joined,
            format!(
                "STORE=s3://{bucket}/{prefix}/ makes it one; ignore this if names are meant to begin with it"
            ),
        ),
        // `logs-` is clearly meant as a name prefix.
        Some(_) => Finding::ok("key", joined),
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::super::Level;
    use super::*;

    /// Verifies the kernel's behaviour that the check relies on: a bind without SO_REUSEPORT fails
    /// even if the listener set it.
    #[test]
    fn another_server_on_the_port_is_noticed() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.set_reuse_address(true).unwrap();
        listener.set_reuse_port(true).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let any = SocketAddr::from(([0, 0, 0, 0], address.port()));
        for taken in [address, any] {
            let finding = judge_bind("LISTEN", taken, try_bind(taken, false));
            assert_eq!(finding.level, Level::Fail);
            assert!(finding.detail.contains(&taken.to_string()), "{}", finding.detail);
            assert!(finding.remedy.unwrap().contains("ss -ltnp"));
        }
        // As each mode judges it: a start waits, and so the check before it must not refuse.
        let settings = [("LISTEN", &*address.to_string()), ("ADMIN_LISTEN", "127.0.0.1:0")];
        let config = Config::from_settings(&settings).unwrap();
        for (mode, level) in
            [(Mode::Start, Level::Ok), (Mode::Check, Level::Fail), (Mode::Starting, Level::Warn)]
        {
            let found = addresses(&config, mode, RunningServer::Absent);
            assert_eq!(found[0].level, level, "{mode:?}");
        }
        drop(listener);
        assert_eq!(judge_bind("LISTEN", address, try_bind(address, false)).level, Level::Ok);
    }

    #[test]
    fn bind_refusals_name_their_cause() {
        let judge = |kind: ErrorKind| {
            let finding = judge_bind("LISTEN", "10.9.8.7:80".parse().unwrap(), Err(kind.into()));
            format!("{} {}", finding.detail, finding.remedy.unwrap())
        };
        assert!(judge(ErrorKind::PermissionDenied).contains("ip_unprivileged_port_start=80"));
        assert!(
            judge(ErrorKind::AddrNotAvailable).contains("10.9.8.7 is not an address of this host")
        );
        // 192.0.2.0/24 is set aside for documentation: no host has it.
        let error = try_bind("192.0.2.1:80".parse().unwrap(), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn a_tap_that_nobody_or_anybody_reads_is_a_warning() {
        let token = ("ADMIN_TOKEN", "0123456789abcdef");
        for (settings, said) in [
            (&[][..], None),
            (&[("TAP", "on"), token], None),
            (&[("TAP", "on")], Some("every user of this host")),
            (&[("TAP", "on"), ("ADMIN_LISTEN", "0.0.0.0:9090")], Some("0.0.0.0:9090 does not")),
            (&[("TAP", "on"), ("ADMIN_LISTEN", "off")], Some("ADMIN_LISTEN is off")),
            (&[("TAP", "on"), ("ADMIN_LISTEN", "off"), token], Some("ADMIN_LISTEN is off")),
        ] {
            let found = tap(&Config::from_settings(settings).unwrap());
            assert_eq!(found.is_some(), said.is_some(), "{settings:?}");
            if let (Some(found), Some(said)) = (found, said) {
                assert!(found.level == Level::Warn && found.detail.contains(said), "{found:?}");
            }
        }
    }

    #[test]
    fn a_port_that_this_user_may_not_bind_is_free_beside_a_server() {
        for (kind, is_it) in [
            (ErrorKind::PermissionDenied, true),
            (ErrorKind::AddrInUse, false),
            (ErrorKind::AddrNotAvailable, false),
        ] {
            assert_eq!(is_free(&Err(kind.into())), is_it, "{kind:?}");
        }
    }

    #[test]
    fn a_tokens_file_must_be_readable() {
        use std::fs;
        let config = |path: &str| Config::from_settings(&[("TOKENS_FILE", path)]).unwrap();
        let missing = &tokens(&config("no/such/tokens"))[0];
        assert_eq!(missing.level, Level::Fail);
        assert!(missing.detail.starts_with("no/such/tokens cannot be read"), "{}", missing.detail);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "a\nb\n").unwrap();
        let found = tokens(&config(file.path().to_str().unwrap()));
        assert!(found[0].detail.ends_with("holds 2 tokens"), "{}", found[0].detail);
        assert_eq!(found.len(), 1, "its owner only: {found:?}");
        fs::write(file.path(), "a\nβ\n").unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(tokens(&config(path))[0].level, Level::Ok);
        let settings = [("TOKENS_FILE", path), ("TOKEN_IN_BODY", "off")];
        let found = tokens(&Config::from_settings(&settings).unwrap());
        assert_eq!(found[0].level, Level::Warn);
        assert!(found[0].detail.contains("; 1 of its lines have a token"), "{}", found[0].detail);
        let local = Config::from_settings(&[("LISTEN", "127.0.0.1:8080")]).unwrap();
        assert_eq!(tokens(&local), []);
        assert_eq!(tokens(&Config::from_settings(&[]).unwrap())[0].level, Level::Warn);
    }

    #[test]
    fn the_example_shows_where_the_prefix_ends() {
        let key = |store: &str, more: &[(&str, &str)]| {
            let node = ("NODE_ID", "n");
            let settings = [&[("STORE", store), node, ("CORES", "0")], more].concat();
            example_key(&Config::from_settings(&settings).unwrap())
        };
        for (store, level, start, says) in [
            ("s3://bucket/p/q", Level::Warn, "s3://bucket/p/q1", "does not end in /"),
            ("s3://bucket/p/q/", Level::Ok, "s3://bucket/p/q/1", ""),
            ("s3://bucket/p/q-", Level::Ok, "s3://bucket/p/q-1", "does not end in /"),
            ("s3://bucket", Level::Ok, "s3://bucket/1", ""),
            ("file:./data", Level::Ok, "file:./data/1", ""),
            ("file:/data/", Level::Ok, "file:/data/1", ""),
            ("null:", Level::Ok, "1", ""),
        ] {
            let finding = key(store, &[]);
            let detail = &finding.detail;
            assert_eq!(finding.level, level, "{store}: {detail}");
            assert!(detail.contains(&format!("named like {start}")), "{store}: {detail}");
            assert!(detail.contains("-n-0-0.json") && detail.contains(says), "{store}: {detail}");
        }
        let template =
            "{date:%Y}/{field:/tenant|none}/{version}/{hash:2}-{unix_ms}-{node}-{core}-{seq}.{ext}";
        let more = [("KEY", template), ("OBJECT", "batch"), ("COMPRESSION", "zstd")];
        let detail = key("s3://bucket/x/", &more).detail;
        assert!(detail.contains("/none/unknown/") && detail.ends_with(".ndjson.zst"), "{detail}");
    }
}
