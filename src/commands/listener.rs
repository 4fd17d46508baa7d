//! The admin listener of a running server, as `top` and `tap` reach it, and the token for it.

#![expect(clippy::disallowed_methods, reason = "a command without an executor: it may block")]

use super::ask::PageUrl;
use crate::config::{AdminTokenSource, Config, Effective};

/// The listener at `url`, or that of the settings.
///
/// # Errors
/// One sentence.
pub(super) fn listener_of(config: &Config, url: Option<&str>) -> Result<PageUrl, String> {
    let listener = match url {
        Some(url) => PageUrl::parse(url).map_err(|why| format!("the URL {why}"))?,
        None => PageUrl::of_admin(config, "/")?,
    };
    Ok(listener.pinned(config))
}

/// `ADMIN_TOKEN`, or what its file holds.
///
/// # Errors
/// The file cannot be read, or holds none.
pub(super) fn admin_token(
    config: &Config,
    effective: &Effective,
) -> Result<Option<String>, String> {
    let Some(source) = &config.admin_token else { return Ok(None) };
    // It says what is wrong with a file, and does not wait for one that is a pipe.
    source.load()?;
    Ok(Some(match source {
        AdminTokenSource::Setting(_) => effective.get("ADMIN_TOKEN").text.clone(),
        AdminTokenSource::File(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("ADMIN_TOKEN_FILE {}: {error}", path.display()))?;
            text.lines().next().unwrap_or_default().trim().to_owned()
        }
    }))
}
