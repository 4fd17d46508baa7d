//! The process: arguments → signal handlers → configuration → host checks → control executor → exit
//! status.

use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::mpsc::Receiver;

use crate::cli::{self, Command, SpoolCommand};
use crate::config::{Config, Effective, Flags};
use crate::control::reload::Reloader;
use crate::control::signals::{self, Signals};
use crate::control::{self, Exit};
use crate::log::complain;
use crate::preflight::{Finding, Mode};
use crate::{commands, preflight};

/// Stack of the thread that runs everything except the cores: what a main thread has by default.
const STACK_BYTES: usize = 8 << 20;

/// Runs everything on a thread with a stack of known size: the main thread's depends on
/// `RLIMIT_STACK`, and 64 KiB would not be enough.
pub fn main() -> ExitCode {
    crate::log::hook_panics();
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
    let exit = run(invocation.command, invocation.flags).unwrap_or_else(|error| {
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
    let (config, effective) = Config::load(&flags).map_err(|errors| errors.to_string())?;
    // Its drop writes the last lines.
    let _log = crate::log::start(&config.log, config.log_format)?;
    let outcome = match handlers {
        Some((signals, reloads)) => serve(config, flags, effective, signals, reloads),
        None => run_command(command, config, &effective),
    };
    Ok(outcome.unwrap_or_else(|error| {
        tracing::error!("{error}");
        Exit::Refused
    }))
}

fn serve(
    config: Config,
    flags: Flags,
    effective: Effective,
    signals: Signals,
    reloads: Receiver<()>,
) -> Result<Exit, String> {
    let findings = preflight::run(&config, Mode::Start);
    for finding in preflight::environment(&effective).iter().chain(&findings) {
        finding.log();
    }
    if preflight::failed(&findings) {
        return Err("not started: see the findings above, or run `millrace check`".into());
    }
    let reloader = Reloader::new(flags, effective, reloads);
    control::on_executor(control::serve(config, signals, reloader))
}

fn run_command(command: Command, config: Config, effective: &Effective) -> Result<Exit, String> {
    match command {
        Command::Serve => unreachable!("served above"),
        Command::Check { put } => {
            let set = effective.changed().map(|value| Finding::ok("setting", value.to_string()));
            let set = set.chain(preflight::environment(effective));
            let findings: Vec<Finding> = set.chain(preflight::run(&config, Mode::Check)).collect();
            // The store is probed only from a host on which a server would start.
            if preflight::failed(&findings) {
                commands::print_table(&findings)?;
                return Ok(Exit::Refused);
            }
            control::on_executor(commands::check(&config, findings, put))?
        }
        Command::DeadLetterLs => commands::list_letters(&config),
        Command::DeadLetterReplay { any_store } => {
            let findings = preflight::for_replay(&config);
            if preflight::failed(&findings) {
                return Err(preflight::table(&findings));
            }
            control::on_executor(commands::replay_letters(&config, any_store))?
        }
        Command::Spool { what, dir } => {
            let spool = commands::spool::open(&config, dir)?;
            match what {
                SpoolCommand::Ls => spool.list(),
                SpoolCommand::Verify => spool.verify(),
                SpoolCommand::Export { all } => spool.export(all),
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
