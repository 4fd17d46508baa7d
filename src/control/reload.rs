//! Reloads on SIGHUP: applies `TOKENS_FILE` and `LOG`, and logs the names of other settings that
//! have changed.
//!
//! Reloads run on their own thread, one at a time, so that a hanging disk delays nothing else.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use arc_swap::ArcSwap;

use crate::config::{Config, Effective, Flags};
use crate::http::tokens::TokenSet;
use crate::log;

/// The settings that a reload compares with, and the places that it updates.
pub struct Reloader {
    flags: Flags,
    /// The settings in effect.
    settings: Effective,
    tokens: Option<(PathBuf, Arc<ArcSwap<TokenSet>>)>,
    requests: Receiver<()>,
}

impl Reloader {
    /// `settings` are those that `flags`, the environment and the file gave at the start. Each of
    /// `requests` is a reload.
    pub fn new(flags: Flags, settings: Effective, requests: Receiver<()>) -> Reloader {
        Reloader { flags, settings, tokens: None, requests }
    }

    /// Makes each reload also read `path` and store the tokens in `published`, which the cores
    /// read.
    pub fn follow_tokens(&mut self, path: PathBuf, published: Arc<ArcSwap<TokenSet>>) {
        self.tokens = Some((path, published));
    }

    /// Starts the thread that reloads whenever one is requested.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn run(mut self) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("millrace-reload".to_owned());
        let reload = move || {
            while self.requests.recv().is_ok() {
                tracing::info!("SIGHUP: reloading");
                self.reload_settings();
                self.reload_tokens();
            }
        };
        thread.spawn(reload).map(drop)
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
        let mut changed = self.settings.differing(&read);
        if changed.contains(&LOG) {
            changed.retain(|name| *name != LOG);
            match log::set_filter(&config.log) {
                Ok(()) => {
                    self.settings.copy_from(LOG, &read);
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

    fn reload_tokens(&self) {
        let Some((path, published)) = &self.tokens else { return };
        let shown = path.display();
        match TokenSet::load(path) {
            Ok(set) => {
                let count = set.len();
                published.store(Arc::new(set));
                tracing::info!(
                    "reload: TOKENS_FILE {shown}: {count} tokens are accepted from now on"
                );
            }
            Err(error) => {
                let count = published.load().len();
                tracing::error!(
                    "reload: TOKENS_FILE {shown} {error}; the {count} tokens read before stay accepted"
                );
            }
        }
    }
}

/// The only setting that can change without a restart. (`TOKENS_FILE` names a file that is read
/// again.)
const LOG: &str = "LOG";
