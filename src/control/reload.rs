//! Reloads: on SIGHUP applies `TOKENS_FILE`, `ADMIN_TOKEN_FILE`, the files of `TLS_CERT`, `TLS_KEY`
//! and `TLS_CLIENT_CA`, and `LOG`, and logs the names of other settings that have changed; between
//! signals looks for changes of these files, `ADMIN_TOKEN_FILE` aside.
//!
//! Reloads run on a background thread, one at a time, so that a hanging disk delays nothing else. A
//! million tokens take it half a second.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};

use arc_swap::ArcSwap;

use super::access::AdminTokenFile;
use super::background;
use super::certificates::CertificateFiles;
use super::manager::ServiceManager;
use super::settings::SharedSettings;
use super::tokens::{self, TokensFile};
use crate::config::{Config, Effective, Flags};
use crate::log;

/// The settings that a reload compares with, and the places that it updates.
pub struct Reloader {
    flags: Flags,
    /// The settings in effect.
    settings: SharedSettings,
    tokens: Option<TokensFile>,
    certificates: Option<CertificateFiles>,
    admin_token: Option<AdminTokenFile>,
    requests: Receiver<()>,
    manager: ServiceManager,
}

impl Reloader {
    /// `settings` are those that `flags`, the environment and the file gave at the start. Each of
    /// `requests` is a reload.
    pub fn new(flags: Flags, settings: Effective, requests: Receiver<()>) -> Reloader {
        Reloader {
            flags,
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            tokens: None,
            certificates: None,
            admin_token: None,
            requests,
            manager: ServiceManager::default(),
        }
    }

    /// The settings in effect, whatever reloads do to them.
    pub(super) fn settings(&self) -> SharedSettings {
        self.settings.clone()
    }

    /// Tells `manager` when a reload that was requested begins and ends.
    pub(super) fn report_to(&mut self, manager: ServiceManager) {
        self.manager = manager;
    }

    /// Makes each reload also read `tokens`, and follow its changes.
    pub(super) fn follow_tokens(&mut self, tokens: TokensFile) {
        self.tokens = Some(tokens);
    }

    /// Makes each reload also read `certificates`, and follow their changes.
    pub(super) fn follow_certificates(&mut self, certificates: CertificateFiles) {
        self.certificates = Some(certificates);
    }

    /// Makes each reload also read `file`, if there is one.
    pub(super) fn follow_admin_token(&mut self, file: Option<AdminTokenFile>) {
        self.admin_token = file;
    }

    /// Starts the thread that reloads whenever one is requested.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn run(mut self) -> io::Result<()> {
        background::spawn("millrace-reload", move || while self.reload_next() {})
    }

    /// Waits for a signal or the next look at the files. `false` once no signal can come.
    fn reload_next(&mut self) -> bool {
        let requested = match self.tokens.is_some() || self.certificates.is_some() {
            true => self.requests.recv_timeout(tokens::POLL),
            false => self.requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match requested {
            Ok(()) => {
                tracing::info!("SIGHUP: reloading");
                let reload = self.manager.reloads();
                self.reload_settings();
                self.tokens.iter_mut().for_each(TokensFile::reload);
                self.certificates.iter_mut().for_each(CertificateFiles::reload);
                self.admin_token.iter().for_each(AdminTokenFile::reload);
                drop(reload);
            }
            Err(RecvTimeoutError::Timeout) => {
                self.tokens.iter_mut().for_each(TokensFile::poll);
                self.certificates.iter_mut().for_each(CertificateFiles::poll);
            }
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    fn reload_settings(&mut self) {
        let (config, read) = match Config::load(&self.flags) {
            Ok(loaded) => loaded,
            Err(errors) => {
                let errors = errors.to_string().replace('\n', "; ");
                tracing::error!("reload: every setting stays as it is: {errors}");
                return;
            }
        };
        let mut changed = self.settings.load().differing(&read);
        if changed.contains(&LOG) {
            changed.retain(|name| *name != LOG);
            match log::set_filter(&config.log) {
                Ok(()) => {
                    let mut settings = Effective::clone(&self.settings.load());
                    settings.copy_from(LOG, &read);
                    self.settings.store(Arc::new(settings));
                    tracing::info!("reload: LOG is {} from now on", config.log);
                }
                Err(error) => tracing::error!("reload: the filter stays as it is: {error}"),
            }
        }
        if !changed.is_empty() {
            let changed = changed.join(", ");
            tracing::warn!("reload: needs a restart, and is not in effect before: {changed}");
        }
    }
}

/// The only setting that can change without a restart. (`TOKENS_FILE`, `ADMIN_TOKEN_FILE` and the
/// `TLS_` settings name files that are read again.)
const LOG: &str = "LOG";
