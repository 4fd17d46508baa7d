//! One session of `millrace top`: the thread that asks, the keys, and the terminal, which is given
//! back as it was however the session ends.

#![expect(clippy::disallowed_methods, reason = "a command without an executor: its threads wait")]

use std::io::{self, IsTerminal as _};
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::figures::Scrape;
use super::keys::{Keyboard, Pressed, TopKey};
use super::screen::{Screen, TopView};
use crate::commands::ask::{AskBounds, PageAnswer, PageUrl};
use crate::config::AdminTokenText;
use crate::control::Exit;
use crate::rt;

/// How often keys, signals and answers are looked for.
const TICK: Duration = Duration::from_millis(100);
/// Keys that are done before the screen is drawn again: a paste of any length.
const KEYS_AT_ONCE: usize = 4096;
/// An answer that takes longer, or has more bytes, is none. 128 cores have 6 MB.
const BOUNDS: AskBounds = AskBounds { time: Duration::from_secs(5), bytes: 64 << 20 };

/// What the asking thread is to do.
#[derive(Default)]
struct ToAsk {
    is_paused: AtomicBool,
    peers: AtomicBool,
}

/// What was asked, all of it or why not.
type Asked = Result<Told, String>;

struct Told {
    metrics: String,
    ready: PageAnswer,
    /// `None`: it was not asked.
    peers: Option<String>,
}

/// Shows `listener` until a key or a signal ends it.
pub(super) fn run(
    listener: PageUrl,
    token: Option<AdminTokenText>,
    every: Duration,
) -> Result<Exit, String> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let metrics = listener.at("/metrics");
        return Err(format!("top needs a terminal; programs can read {}", metrics.as_str()));
    }
    let ends = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, ends.clone())
            .map_err(|error| format!("signal handlers: {error}"))?;
    }
    let wanted = Arc::new(ToAsk::default());
    let url = listener.as_str();
    let name = url.trim_end_matches('/').split_once("://").map_or(url, |(_, name)| name).to_owned();
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let mut screen = Screen { name, every, is_plain, ..Screen::default() };
    let (sender, asked) = sync_channel(1);
    let asking = wanted.clone();
    // It ends with the process.
    std::thread::Builder::new()
        .spawn(move || {
            ask_forever(
                &listener,
                token.as_ref().map(AdminTokenText::as_str),
                every,
                &asking,
                &sender,
            )
        })
        .map_err(|error| format!("no thread to ask the server: {error}; raise ulimit -u"))?;
    let shown = ratatui::try_init().and_then(|terminal| {
        // If the cursor cannot be shown, its drop says so on standard error, which panics where that
        // is the terminal that is gone.
        let mut terminal = ManuallyDrop::new(terminal);
        let shown = show(&mut terminal, &mut screen, &asked, &wanted, &ends);
        let _unless_it_is_gone = terminal.show_cursor();
        shown
    });
    let _likewise = ratatui::try_restore();
    match shown {
        // It was closed, of which SIGHUP tells too, mostly.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(Exit::Clean),
        shown => shown.map(|()| Exit::Clean).map_err(|error| format!("the terminal: {error}")),
    }
}

fn ask_forever(
    listener: &PageUrl,
    token: Option<&str>,
    every: Duration,
    wanted: &ToAsk,
    sender: &SyncSender<Asked>,
) {
    loop {
        let began = rt::now();
        if !wanted.is_paused.load(Relaxed)
            && sender.send(ask(listener, token, wanted.peers.load(Relaxed))).is_err()
        {
            return;
        }
        std::thread::sleep(every.saturating_sub(rt::since(began)).max(TICK));
    }
}

fn ask(listener: &PageUrl, token: Option<&str>, with_peers: bool) -> Asked {
    let page = |path: &str, token: Option<&str>| {
        let answer = listener.at(path).get(token, BOUNDS);
        answer.map_err(|error| format!("{path}: {error}"))
    };
    let metrics = page("/metrics", None)?;
    if metrics.status != 200 {
        return Err(format!("/metrics: {} {}", metrics.status, metrics.text.trim_end()));
    }
    let ready = page("/readyz", None)?;
    // What is shown says why it is not, too.
    let peers = with_peers.then(|| page("/peers", token).map_or_else(|error| error, |of| of.text));
    Ok(Told { metrics: metrics.text, ready, peers })
}

fn show(
    terminal: &mut DefaultTerminal,
    screen: &mut Screen,
    asked: &Receiver<Asked>,
    wanted: &ToAsk,
    ends: &AtomicBool,
) -> io::Result<()> {
    let mut keyboard = Keyboard::default();
    while !ends.load(Relaxed) {
        match asked.try_recv() {
            Ok(told) => take(screen, told, rt::now()),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err(io::Error::other("the thread that asks the server has ended"));
            }
        }
        terminal.draw(|frame| screen.draw(frame, rt::now()))?;
        let mut wait = TICK;
        for _ in 0..KEYS_AT_ONCE {
            match keyboard.next(io::stdin(), wait)? {
                Pressed::Key(key) if press(screen, key) => wait = Duration::ZERO,
                Pressed::Key(_) | Pressed::Closed => return Ok(()),
                Pressed::Nothing => break,
            }
        }
        wanted.is_paused.store(screen.is_paused, Relaxed);
        wanted.peers.store(screen.view == TopView::Peers, Relaxed);
    }
    Ok(())
}

fn take(screen: &mut Screen, asked: Asked, now: Instant) {
    let answers = &mut screen.answers;
    let read = asked.and_then(|told| Ok((Scrape::parse(&told.metrics)?, told)));
    match read {
        Ok((scrape, told)) => {
            answers.take(scrape, now);
            answers.ready = Some((told.ready.status, told.ready.text));
            if let Some(peers) = told.peers {
                answers.peers = peers;
            }
            answers.failure.clear();
        }
        Err(failure) => answers.failure = failure,
    }
}

/// Does what a key asks for; `false`: the end.
fn press(screen: &mut Screen, key: TopKey) -> bool {
    let last = screen.rows().saturating_sub(1);
    let scroll = |by: isize| screen.scroll.saturating_add_signed(by).min(last);
    match key {
        TopKey::Interrupt | TopKey::Escape | TopKey::Char('q') => return false,
        TopKey::Char('p' | ' ') => screen.is_paused = !screen.is_paused,
        TopKey::Tab => (screen.view, screen.scroll) = (screen.view.next(), 0),
        TopKey::Up | TopKey::Char('k') => screen.scroll = scroll(-1),
        TopKey::Down | TopKey::Char('j') => screen.scroll = scroll(1),
        TopKey::PageUp => screen.scroll = scroll(-10),
        TopKey::PageDown => screen.scroll = scroll(10),
        TopKey::Home => screen.scroll = 0,
        TopKey::End => screen.scroll = last,
        TopKey::Char(_) => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_what_the_documents_say() {
        let mut screen = Screen::default();
        screen.answers.peers = "1\n2\n3\n".into();
        let mut press_all = |keys: &[TopKey]| {
            let mut goes_on = true;
            keys.iter().for_each(|key| goes_on &= press(&mut screen, *key));
            (screen.view, screen.scroll, screen.is_paused, goes_on)
        };
        assert_eq!(press_all(&[TopKey::Tab, TopKey::Tab]), (TopView::Peers, 0, false, true));
        assert_eq!(press_all(&[TopKey::Down, TopKey::PageDown]), (TopView::Peers, 2, false, true));
        assert_eq!(press_all(&[TopKey::Up]), (TopView::Peers, 1, false, true));
        assert_eq!(press_all(&[TopKey::End, TopKey::Home]), (TopView::Peers, 0, false, true));
        assert_eq!(press_all(&[TopKey::Char('p')]), (TopView::Peers, 0, true, true));
        assert_eq!(press_all(&[TopKey::Tab]), (TopView::Cores, 0, true, true));
        for key in [TopKey::Char('q'), TopKey::Escape, TopKey::Interrupt] {
            assert!(!press_all(&[key]).3);
        }
    }

    #[test]
    fn what_is_no_scrape_is_a_failure_and_leaves_the_figures() {
        let mut screen = Screen::default();
        let told = |metrics: &str| {
            let ready = PageAnswer { status: 200, text: "ready\n".into() };
            Ok(Told { metrics: metrics.into(), ready, peers: None })
        };
        let now = rt::now();
        take(&mut screen, told("millrace_connections{core=\"0\"} 7\n"), now);
        assert_eq!(
            (screen.answers.failure.as_str(), screen.answers.all.levels.connections),
            ("", Some(7.0))
        );
        for wrong in [told("<html>"), Err("/metrics: refused".to_owned())] {
            take(&mut screen, wrong, now);
            assert!(screen.answers.failure.contains("/metrics"), "{}", screen.answers.failure);
            assert_eq!(screen.answers.all.levels.connections, Some(7.0));
        }
    }
}
