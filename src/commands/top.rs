//! `millrace top`: the figures of one running server in a terminal.
//!
//! A thread asks the admin listener; this one draws and reads keys. The widgets are ratatui's, which
//! is why the command is behind the feature `top`: without it, only this file is compiled, and says
//! how to get it.

#[cfg(feature = "top")]
mod figures;
#[cfg(feature = "top")]
mod keys;
#[cfg(feature = "top")]
mod screen;
#[cfg(feature = "top")]
mod session;

use std::time::Duration;

use super::ask::ListenerAt;
#[cfg(feature = "top")]
use super::ask::PageUrl;
#[cfg(feature = "top")]
use crate::config::admin_token_text;
use crate::config::{Config, Effective};
use crate::control::Exit;

/// What `top` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopOptions {
    pub listener: ListenerAt,
    /// From one scrape to the next.
    pub every: Duration,
}

/// Shows the server until a key or a signal ends it.
///
/// # Errors
/// There is no terminal, or the URL is none.
#[cfg(feature = "top")]
pub fn run(config: &Config, effective: &Effective, options: &TopOptions) -> Result<Exit, String> {
    let listener = PageUrl::of_listener(config, &options.listener)?;
    let token = admin_token_text(effective)?;
    session::run(listener, token, options.every)
}

/// Says where the command is.
///
/// # Errors
/// Always: this binary was built without it.
#[cfg(not(feature = "top"))]
pub fn run(_: &Config, _: &Effective, _: &TopOptions) -> Result<Exit, String> {
    Err("this millrace was built without `top`: build it with `cargo build --release --features \
         top`, or take the one of the Debian package or the image, or open the admin listener's \
         page in a browser"
        .to_owned())
}
