//! The credential chain: first load, refresh before expiry, refresh when a core requests it.
//!
//! A failure never removes credentials: the old ones stay published until newer ones are loaded.
//! Attempts are spaced by a bounded backoff, and so are requests from cores (see
//! [`RequestSpacing`]): a store that refuses all credentials must not cause a request to the
//! credential service every second. A first load that reaches no service is a failure like later
//! ones.

use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::rt::Timer;
use aws_config::meta::ProviderChainError;
use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_async::time::TimeSource;
use aws_types::os_shim_internal::Env;
use aws_types::service_config::ServiceConfigKey;

use super::environment::{self, Variables};
use super::masked::mask_keys;
use super::shared::Location;
use super::{Overrides, S3Shared, S3Target, StartError, endpoint_url, profile, shared_files};
use crate::deadline::within;
use crate::rt;
use crate::store::s3::connector::{GlommioHttp, GlommioSleep, connection_error, with_sources};
use crate::store::s3::dial::ConnectionError;
use crate::store::s3::hyper_pool::HyperPool;

/// Bound on the whole first load. A chain that tries EC2's metadata address in vain takes seconds.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Bound on one refresh: the services' own clients wait for a response without limit.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long before expiry credentials are replaced, or half their life if that is shorter.
const REFRESH_AHEAD: Duration = Duration::from_secs(300);
/// Backoff between failed refreshes.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Pause after a core's request before the next one is served; each further one in a row doubles
/// it, …
const REQUEST_SPACING_MIN: Duration = Duration::from_secs(1);
/// … up to this, which is also the longest time until a corrected credentials file is loaded.
const REQUEST_SPACING_MAX: Duration = Duration::from_secs(60);
/// How often control checks whether a refresh is due.
const POLL: Duration = Duration::from_millis(50);
/// Connect timeout for credential services that set none.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The name of EC2's metadata service in `aws-config`'s chain.
const METADATA_PROVIDER: &str = "Ec2InstanceMetadata";
/// The region that stores outside AWS expect in signatures by default.
const CUSTOM_REGION: &str = "us-east-1";

/// The outcome of the first load.
pub(super) struct FirstLoad {
    pub(super) location: Location,
    pub(super) provider: SharedCredentialsProvider,
    /// An error here is one that may pass by itself.
    pub(super) credentials: Result<Credentials, StartError>,
}

pub(super) struct CredentialChain {
    pool: Rc<HyperPool>,
    overrides: Overrides,
}

impl CredentialChain {
    pub(super) fn new(pool: Rc<HyperPool>, overrides: Overrides) -> CredentialChain {
        CredentialChain { pool, overrides }
    }

    /// Loads everything for the first time.
    pub(super) async fn load_first(&self, target: &S3Target) -> Result<FirstLoad, StartError> {
        let deadline = rt::now() + START_TIMEOUT;
        let late = || StartError::TimedOut { seconds: START_TIMEOUT.as_secs() };
        let config = within(START_TIMEOUT, self.load(None), || Err(late())).await?;
        let location = match location(&config, target) {
            Err(StartError::NoRegion { bucket, .. }) => {
                // The region's provider does not tell whether the metadata service answered.
                let error = match config.credentials_provider() {
                    Some(provider) => fetch(&provider).await.err(),
                    None => None,
                };
                let metadata = error.as_ref().map(silent_metadata).unwrap_or_default();
                return Err(StartError::NoRegion { bucket, metadata });
            }
            other => other?,
        };
        let provider = config.credentials_provider().ok_or_else(|| StartError::NoCredentials {
            profile: String::new(),
            metadata: String::new(),
            unreached: false,
        })?;
        let ask = async { provider.provide_credentials().await.map_err(start_error) };
        let left = deadline.saturating_duration_since(rt::now());
        let credentials = within(left, ask, || Err(late())).await;
        match credentials {
            Err(error) if !error.may_pass() => Err(error),
            credentials => Ok(FirstLoad { location, provider, credentials }),
        }
    }

    /// Keeps the credentials in `shared` fresh as long as it runs.
    pub(super) async fn keep_fresh(
        self,
        shared: Arc<S3Shared>,
        mut provider: SharedCredentialsProvider,
    ) {
        let refresh_at = |credentials: &Credentials| refresh_at(credentials, shared.clock.now());
        let mut due = refresh_at(&shared.credentials().credentials);
        let mut not_before = rt::now();
        if shared.missing_credentials().is_some() {
            not_before += RETRY_MIN;
        }
        let mut failures = 0;
        let mut spacing = RequestSpacing::default();
        loop {
            Timer::new(POLL).await;
            let now = rt::now();
            let requested = shared.newer_credentials_requested();
            if now < not_before || !(requested || due.is_some_and(|at| now >= at)) {
                continue;
            }
            // Providers cache the files they have read. Only a new chain sees what an operator has
            // replaced on disk since.
            let renewed = if requested {
                let region = Some(Region::new(shared.region().to_owned()));
                self.load(region).await.map(|config| config.credentials_provider())
            } else {
                Ok(None)
            };
            let fetched = match renewed {
                Ok(newer) => {
                    provider = newer.unwrap_or(provider);
                    fetch(&provider)
                        .await
                        .map_err(|e| (mask_keys(&with_sources(&e)), start_error(e)))
                }
                Err(error) => Err((error.to_string(), error)),
            };
            match fetched {
                Ok(credentials) => {
                    failures = 0;
                    let stuck = requested && same(&credentials, &shared.credentials().credentials);
                    due = refresh_at(&credentials);
                    not_before =
                        now + if requested { spacing.next(now) } else { REQUEST_SPACING_MIN };
                    shared.publish(credentials, stuck);
                }
                Err((why, error)) => {
                    failures += 1;
                    let wait = RETRY_MIN * 2u32.saturating_pow(failures.min(16) - 1);
                    not_before = now + jittered(wait.min(RETRY_MAX));
                    due = Some(not_before);
                    shared.note_still_missing(&error);
                    tracing::warn!(%why, failures, "AWS credentials could not be loaded");
                }
            }
        }
    }

    /// One run of `aws-config` on a checked environment and checked files. `region` is known after
    /// the first run.
    ///
    /// # Errors
    /// Names the variable, file or setting that cannot be used.
    async fn load(&self, region: Option<Region>) -> Result<SdkConfig, StartError> {
        let variables = environment::read(&|name| std::env::var_os(name))?;
        let files = read_files(variables.clone()).await?;
        if region.is_none() {
            for missing in files.iter().filter_map(|file| file.missing.as_ref()) {
                tracing::warn!("{missing}");
            }
        }
        let env = Env::from(variables.clone());
        let shared = profile::parse(&files, &variables, &env).await?;
        let http = GlommioHttp::new(self.pool.clone(), CONNECT_TIMEOUT);
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .http_client(http)
            .sleep_impl(GlommioSleep)
            // Set, so that the library does not look it up: it panics on an invalid mode or number.
            .retry_config(RetryConfig::standard())
            .env(env)
            .profile_files(shared.files);
        let endpoint_named = shared.names_endpoint || self.overrides.endpoint_url.is_some();
        let known = region.or_else(|| self.overrides.region.clone().map(Region::new));
        let known = known.or_else(|| shared.region.map(Region::new));
        // Without a region the library asks EC2's metadata service. With a custom endpoint this is
        // not AWS, and that request would only time out.
        match known {
            Some(region) => loader = loader.region(region),
            None if endpoint_named => loader = loader.region(Region::from_static(CUSTOM_REGION)),
            None => {}
        }
        if let Some(credentials) = &self.overrides.credentials {
            loader = loader.credentials_provider(credentials.clone());
        }
        if let Some(url) = &self.overrides.endpoint_url {
            loader = loader.endpoint_url(url);
        }
        Ok(loader.load().await)
    }
}

/// On the blocking thread, because a file may lie on a slow disk.
async fn read_files(variables: Variables) -> Result<Vec<shared_files::SharedFile>, StartError> {
    let read = move || {
        let home = shared_files::home(&|name| std::env::var_os(name));
        shared_files::read(&variables, home.as_deref())
    };
    rt::blocking(read).await
}

fn location(config: &SdkConfig, target: &S3Target) -> Result<Location, StartError> {
    let (bucket, path_style) = (&target.bucket, target.options.force_path_style);
    let endpoint = s3_endpoint(config);
    let endpoint =
        endpoint.map(|url| endpoint_url::usable(&url, bucket, path_style)).transpose()?;
    let region = match (config.region(), &endpoint) {
        (Some(region), _) => region.to_string(),
        (None, Some(_)) => CUSTOM_REGION.to_owned(),
        (None, None) => {
            let (bucket, metadata) = (bucket.to_owned(), String::new());
            return Err(StartError::NoRegion { bucket, metadata });
        }
    };
    Ok(Location { region, endpoint, fips: config.use_fips(), dual_stack: config.use_dual_stack() })
}

/// `AWS_ENDPOINT_URL_S3` and the profile's `services` section win over `AWS_ENDPOINT_URL`.
fn s3_endpoint(config: &SdkConfig) -> Option<String> {
    let general = || config.endpoint_url().map(str::to_owned);
    if config.get_origin("endpoint_url").is_client_config() {
        return general();
    }
    let key = ServiceConfigKey::builder()
        .service_id("S3")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .expect("all three parts are given");
    config.service_config().and_then(|c| c.load_config(key)).or_else(general)
}

async fn fetch(provider: &SharedCredentialsProvider) -> Result<Credentials, CredentialsError> {
    let late = || Err(CredentialsError::provider_timed_out(FETCH_TIMEOUT));
    within(FETCH_TIMEOUT, provider.provide_credentials(), late).await
}

fn same(a: &Credentials, b: &Credentials) -> bool {
    a.access_key_id() == b.access_key_id()
        && a.secret_access_key() == b.secret_access_key()
        && a.session_token() == b.session_token()
}

/// Spaces the requests of cores. Requests in a row are served more and more rarely, whether the
/// newer credentials are the same as before or different ones that are refused as well.
#[derive(Default)]
struct RequestSpacing {
    /// When the last request was served, and the pause after it.
    last: Option<(Instant, Duration)>,
}

impl RequestSpacing {
    /// The pause after the request that is served `now`.
    fn next(&mut self, now: Instant) -> Duration {
        // After a long time without a request the credentials have worked meanwhile.
        let in_a_row = self.last.filter(|(at, _)| now - *at < 2 * REQUEST_SPACING_MAX);
        let wait =
            in_a_row.map_or(REQUEST_SPACING_MIN, |(_, wait)| 2 * wait).min(REQUEST_SPACING_MAX);
        self.last = Some((now, wait));
        wait
    }
}

/// When to replace `credentials`; `now` is the time by their issuer's clock. `None` if they do not
/// expire.
fn refresh_at(credentials: &Credentials, now: SystemTime) -> Option<Instant> {
    let life = credentials.expiry()?.duration_since(now).unwrap_or_default();
    let ahead = REFRESH_AHEAD.min(life / 2);
    // Up to a tenth earlier, so that hosts started together do not refresh together.
    let early = ahead.mul_f64(rt::random_fraction() / 10.0);
    Some(rt::now() + (life - ahead).saturating_sub(early).max(RETRY_MIN))
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + rt::random_fraction() / 2.0)
}

fn start_error(error: CredentialsError) -> StartError {
    let unreached = not_reached(&error);
    if let CredentialsError::CredentialsNotLoaded(_) = error {
        let profile = environment::path_variable("AWS_PROFILE");
        let profile = profile.map(|name| format!(" (AWS_PROFILE={})", name.display()));
        let (profile, metadata) = (profile.unwrap_or_default(), silent_metadata(&error));
        return StartError::NoCredentials { profile, metadata, unreached };
    }
    // A service may quote what it was sent, and what it has.
    let why = mask_keys(&with_sources(&error));
    // The chain is built without these features, and its error names the feature.
    for (feature, what) in [
        ("credentials-process", "credential_process"),
        ("credentials-login", "login_session"),
        ("sso", "SSO"),
    ] {
        if why.contains("cargo feature") && why.contains(feature) {
            return StartError::UnsupportedProfile { what };
        }
    }
    let tokens = environment::read(&|name| std::env::var_os(name));
    let tokens =
        tokens.map(|variables| shared_files::unreadable_tokens(&variables)).unwrap_or_default();
    StartError::Credentials { why: why + &tokens, unreached }
}

/// A note on EC2's metadata service if it was asked and did not answer; empty otherwise.
///
/// A packet dropped for its hop limit looks like this: the connection is established, because only
/// the response with the session token has the limit, and then nothing arrives.
fn silent_metadata(error: &CredentialsError) -> String {
    let Some(failure) = metadata_error(error) else { return String::new() };
    let (host, port, timed_out) = match failure.bare().0 {
        ConnectionError::ReadTimeout { host, port, .. }
        | ConnectionError::ConnectTimeout { host, port, .. } => (host, *port, true),
        ConnectionError::Unreachable { host, port, .. } => (host, *port, false),
        _ => return String::new(),
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let port = if port == 80 { String::new() } else { format!(":{port}") };
    let service = format!("the instance metadata service at http://{host}{port}");
    if !timed_out {
        return format!("; {service} cannot be reached ({})", with_sources(failure));
    }
    format!(
        "; {service} did not answer; in a container its hop limit must be 2: aws ec2 \
         modify-instance-metadata-options --instance-id ID --http-put-response-hop-limit 2 --http-endpoint enabled"
    )
}

fn metadata_error(error: &CredentialsError) -> Option<&ConnectionError> {
    let chain = error.source()?.downcast_ref::<ProviderChainError<CredentialsError>>()?;
    let attempt = chain.attempts().iter().find(|attempt| attempt.name() == METADATA_PROVIDER)?;
    connection_error(attempt.error())
}

/// Whether `error` says that nobody was reached, rather than that somebody refused or a setting is
/// wrong. A metadata service that does not answer counts: a host that has none and one whose
/// network is not up yet look alike.
fn not_reached(error: &CredentialsError) -> bool {
    let may_pass = |error| connection_error(error).is_some_and(ConnectionError::may_pass);
    let chain =
        error.source().and_then(|e| e.downcast_ref::<ProviderChainError<CredentialsError>>());
    match (error, chain) {
        (CredentialsError::ProviderTimedOut(_), _) => true,
        (_, Some(chain)) => chain.attempts().iter().any(|attempt| may_pass(attempt.error())),
        (_, None) => may_pass(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    fn expiring_in(life: Duration) -> Credentials {
        Credentials::new("k", "s", None, Some(SystemTime::now() + life), "test")
    }

    #[test]
    fn nobody_reached_is_told_from_a_refusal() {
        let failure = |source: ErrorKind| ConnectionError::Tls {
            host: "sts".into(),
            port: 443,
            source: source.into(),
        };
        for (error, expected) in [
            (CredentialsError::provider_error(failure(ErrorKind::ConnectionReset)), true),
            (CredentialsError::unhandled(failure(ErrorKind::UnexpectedEof)), true),
            (CredentialsError::provider_timed_out(FETCH_TIMEOUT), true),
            (CredentialsError::provider_error(failure(ErrorKind::InvalidData)), false),
            (CredentialsError::provider_error("AccessDenied"), false),
            (CredentialsError::not_loaded("the variable is not set"), false),
            (CredentialsError::invalid_configuration("no such profile"), false),
        ] {
            let text = with_sources(&error);
            assert_eq!(start_error(error).may_pass(), expected, "{text}");
        }
    }

    #[test]
    fn requests_in_a_row_are_served_ever_more_rarely() {
        let mut asked = RequestSpacing::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..9 {
            let wait = asked.next(now);
            waits.push(wait.as_secs());
            // A core is refused again soon after, not at once.
            now += wait + Duration::from_secs(10);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        now += 2 * REQUEST_SPACING_MAX;
        assert_eq!(asked.next(now), REQUEST_SPACING_MIN, "they were good for a while");
    }

    #[test]
    fn refresh_is_ahead_of_expiry_and_never_at_once() {
        let cases = [(3600, 3270..3301), (100, 45..51), (0, 1..2)];
        for (life, expected) in cases {
            let credentials = expiring_in(Duration::from_secs(life));
            let at = refresh_at(&credentials, SystemTime::now()).unwrap();
            let wait = (at - Instant::now()).as_secs_f64().round() as u64;
            assert!(expected.contains(&wait), "{life} s of life: refreshed after {wait} s");
        }
        let for_ever = Credentials::new("k", "s", None, None, "test");
        assert!(refresh_at(&for_ever, SystemTime::now()).is_none());
    }
}
