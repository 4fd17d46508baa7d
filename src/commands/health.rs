//! `millrace health`: whether a running server answers, as an exit status. For `HEALTHCHECK` in
//! images without a shell, where only 0 and 1 have a meaning.

use std::time::Duration;

use super::ask::{AskBounds, PageUrl};
use super::print;
use crate::config::{Config, ConfigErrors};
use crate::control::Exit;
use crate::log::complain;

/// Bounds of the one request: `HEALTHCHECK` and probes give 30 s and 1 s by default, and pages of
/// health are short.
const BOUNDS: AskBounds = AskBounds { time: Duration::from_secs(5), bytes: 1 << 20 };

/// Prints the page's text and returns [`Exit::Clean`] if it was a 200; otherwise
/// [`Exit::Unstored`], whatever went wrong.
pub fn run(config: Result<&Config, &ConfigErrors>, url: Option<&str>, ready: bool) -> Exit {
    let page = if ready { "/readyz" } else { "/healthz" };
    let answer = target(config, url, page).and_then(|target| {
        let answer =
            target.get(None, BOUNDS).map_err(|why| format!("{}: {why}", target.as_str()))?;
        match answer.status {
            200 => Ok(answer.text),
            status => Err(format!("{}: {status}\n{}", target.as_str(), answer.text.trim_end())),
        }
    });
    let said = answer.and_then(|text| print(|out| writeln!(out, "{}", text.trim_end())));
    match said {
        Ok(()) => Exit::Clean,
        Err(why) => {
            complain(why);
            Exit::Unstored
        }
    }
}

fn target(
    config: Result<&Config, &ConfigErrors>,
    url: Option<&str>,
    page: &str,
) -> Result<PageUrl, String> {
    if let Some(url) = url {
        let target = PageUrl::parse(url).map_err(|why| format!("the URL {why}"))?;
        return Ok(if target.names_a_page() { target } else { target.at(page) });
    }
    PageUrl::of_admin(config.map_err(ToString::to_string)?, page)
}
