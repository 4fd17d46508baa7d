//! The process: arguments → signal handlers → configuration → host checks → control executor → exit
//! status.

use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::mpsc::Receiver;

use crate::cli::{self, Command, SpoolCommand};
use crate::config::{Config, Effective, Flags};
use crate::control::reload::Reloader;
use crate::control::signals::{self, Signals};
use crate::control::start_report::StartReport;
use crate::control::{self, Exit};
use crate::log::{CountOf, complain};
use crate::preflight::Mode;
use crate::{commands, preflight};

/// Stack of the thread that runs everything except the cores: what a main thread has by default.
const STACK_BYTES: usize = 8 << 20;

/// Runs everything on a thread with a stack of known size: the main thread's depends on
/// `RLIMIT_STACK`, and 64 KiB would not be enough.
pub fn main() -> ExitCode {
    crate::log::hook_panics();
    // Before there is memory that could become one.
    crate::alloc::use_no_huge_pages();
    let main = std::thread::Builder::new().name("millrace-control".to_owned());
    let ended = match main.stack_size(STACK_BYTES).spawn(start) {
        Ok(main) => main.join(),
        // The error is always EAGAIN, which names no limit.
        Err(_) => {
            complain(preflight::no_threads());
            return ExitCode::from(Exit::Refused as u8);
        }
    };
    // The panic hook has logged it.
    ended.unwrap_or_else(|_panic| ExitCode::from(PANICKED))
}

/// The exit status of a process whose main thread panics.
const PANICKED: u8 = 101;

fn start() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        // `Error::exit` would ignore that standard output cannot be written.
        Err(help) if !help.use_stderr() => {
            return match commands::print(|out| write!(out, "{}", help.render())) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    complain(error);
                    ExitCode::from(Exit::Refused as u8)
                }
            };
        }
        Err(error) => error.exit(),
    };
    let outcome = match invocation.command {
        // They read no setting.
        Command::Man { dir } => cli::manual::write_pages(&dir)
            .and_then(|pages| commands::print(|out| writeln!(out, "{}", CountOf(pages, "page"))))
            .map(|()| Exit::Clean),
        Command::Completion { shell } => {
            commands::print(|out| cli::manual::write_completion(shell, out)).map(|()| Exit::Clean)
        }
        Command::Bench(options) => {
            signals::for_command();
            commands::bench::run(&options)
        }
        command => run(command, invocation.flags),
    };
    let exit = outcome.unwrap_or_else(|error| {
        complain(error);
        Exit::Refused
    });
    ExitCode::from(exit as u8)
}

/// # Errors
/// The log could not be started, or the configuration is invalid.
fn run(command: Command, flags: Flags) -> Result<Exit, String> {
    // Before anything slow: from here on a signal ends the process in order.
    let handlers = match command {
        Command::Serve => Some(signals::install().map_err(|error| match error.kind() {
            // EAGAIN: the thread for signals could not be started.
            ErrorKind::WouldBlock => preflight::no_threads(),
            _ => format!("no signal handlers: {error}; raise ulimit -n"),
        })?),
        _ => {
            signals::for_command();
            None
        }
    };
    let loaded = Config::load(&flags);
    if let Command::Health { url, ready } = &command {
        let config = loaded.as_ref().map(|(config, _)| config);
        return Ok(commands::health::run(config, url.as_deref(), *ready));
    }
    let (config, effective) = match (loaded, &command) {
        (Ok(loaded), _) => loaded,
        (Err(errors), Command::Check(options)) => {
            return commands::check::refused(&errors, *options);
        }
        (Err(errors), _) => return Err(errors.to_string()),
    };
    // Its drop writes the last lines.
    let _log = crate::log::start(&config.log, config.log_format)?;
    match handlers {
        Some((signals, reloads)) => {
            let served = serve(config, flags, effective, signals, reloads);
            Ok(served.unwrap_or_else(|error| {
                tracing::error!("{error}");
                Exit::Refused
            }))
        }
        // What goes wrong with a command is for whoever has typed it, not for a log.
        None => run_command(command, config, &effective),
    }
}

fn serve(
    config: Config,
    flags: Flags,
    effective: Effective,
    signals: Signals,
    reloads: Receiver<()>,
) -> Result<Exit, String> {
    let findings = preflight::run(&config, Mode::Start);
    let has_failed = preflight::failed(&findings);
    let mut report = StartReport::new();
    signals.show_at_stop(report.kept());
    preflight::environment(&effective).into_iter().chain(findings).for_each(|f| report.add(f));
    if has_failed {
        report.show();
        return Err("not started: see the findings above, or run `millrace check`".into());
    }
    let reloader = Reloader::new(flags, effective, reloads);
    control::on_executor(control::serve(config, signals, reloader, report))
}

fn run_command(command: Command, config: Config, effective: &Effective) -> Result<Exit, String> {
    match command {
        Command::Serve
        | Command::Health { .. }
        | Command::Man { .. }
        | Command::Completion { .. }
        | Command::Bench(_) => unreachable!("done above"),
        Command::Check(options) => commands::check::run(&config, effective, options),
        Command::DebugBundle(options) => commands::debug_bundle::run(&config, effective, &options),
        Command::Tap(options) => commands::tap::run(&config, effective, &options),
        Command::Top(options) => commands::top::run(&config, effective, &options),
        Command::DeadLetterLs { filter } => commands::dead_letters::list(&config, &filter),
        Command::DeadLetterShow { keys, payload } => {
            commands::dead_letters::show(&config, &keys, payload)
        }
        Command::DeadLetterRm { filter } => commands::dead_letters::remove(&config, &filter),
        Command::DeadLetterReplay { filter, any_store } => {
            let findings = preflight::for_replay(&config);
            if preflight::failed(&findings) {
                return Err(preflight::table(&findings));
            }
            control::on_executor(commands::dead_letters::replay(&config, filter, any_store))?
        }
        Command::Spool { what: SpoolCommand::Bench, dir } => {
            let dir = commands::spool::directory(&config, dir)?;
            let findings = preflight::for_spool_bench(&config, &dir);
            if preflight::failed(&findings) {
                return Err(preflight::table(&findings));
            }
            control::on_executor(commands::spool::bench::run(&config, dir))?
        }
        Command::Spool { what, dir } => {
            let spool = commands::spool::open(&config, dir)?;
            match what {
                SpoolCommand::Ls => spool.list(),
                SpoolCommand::Verify => spool.verify(),
                SpoolCommand::Export { all } => spool.export(all),
                SpoolCommand::Bench => unreachable!("measured above"),
                SpoolCommand::Replay => {
                    let findings = preflight::for_spool_replay(&config, Mode::Start);
                    if preflight::failed(&findings) {
                        return Err(preflight::table(&findings));
                    }
                    control::on_executor(spool.replay(&config))?
                }
            }
        }
    }
}
