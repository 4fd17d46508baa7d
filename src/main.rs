//! Arguments → signal handlers → configuration → host checks → control executor → exit status; nothing else.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::mpsc::Receiver;

use millrace::cli::{self, Command, SpoolCommand};
use millrace::config::{Config, Effective, Flags};
use millrace::control::reload::Reloader;
use millrace::control::signals::{self, Signals};
use millrace::control::{self, Exit};
use millrace::log::complain;
use millrace::preflight::{Finding, Mode};
use millrace::{commands, preflight};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stack of the thread that everything but the cores runs on: what `RLIMIT_STACK` mostly gives the main thread.
const STACK_BYTES: usize = 8 << 20;

/// All work is done on a thread whose stack has a size of our choice: the main thread has what `RLIMIT_STACK` says, and
/// 64 KiB of it would not do.
fn main() -> ExitCode {
    let main = std::thread::Builder::new().name("millrace-control".to_owned());
    let ended = match main.stack_size(STACK_BYTES).spawn(start) {
        Ok(main) => main.join(),
        // Always for the same reason, which names no limit.
        Err(_) => {
            complain(preflight::no_threads());
            return ExitCode::from(Exit::Refused as u8);
        }
    };
    // It has said why.
    ended.unwrap_or_else(|_panic| ExitCode::from(PANICKED))
}

/// The exit status of a process whose main thread panics.
const PANICKED: u8 = 101;

fn start() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
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
/// The log could not be started, or what it would have to be started with is wrong.
fn run(command: Command, flags: Flags) -> Result<Exit, String> {
    // Before anything that can take long: from here on a stop is an orderly end.
    let handlers = match command {
        Command::Serve => Some(signals::install().map_err(|error| match error.kind() {
            // A thread, for which the kernel has no other word.
            ErrorKind::WouldBlock => preflight::no_threads(),
            _ => format!("no signal handlers: {error}; raise ulimit -n"),
        })?),
        _ => {
            signals::for_command();
            None
        }
    };
    let (config, effective) = Config::load(&flags).map_err(|errors| errors.to_string())?;
    let _log = millrace::log::start(&config.log, config.log_format)?;
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
            let findings: Vec<Finding> = set.chain(preflight::run(&config, Mode::Judge)).collect();
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
