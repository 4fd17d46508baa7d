//! Arguments → configuration → host checks → control executor → exit status; nothing else.

use std::io::Write as _;
use std::process::ExitCode;

use millrace::cli::{self, Command, SpoolCommand};
use millrace::config::{Config, Effective};
use millrace::control::{self, Exit};
use millrace::preflight::Finding;
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
            let _nobody_reads_it = writeln!(std::io::stderr(), "{}", preflight::no_threads());
            return ExitCode::from(Exit::Refused as u8);
        }
    };
    // It has said why.
    ended.unwrap_or_else(|_panic| ExitCode::from(PANICKED))
}

/// The exit status of a process whose main thread panics.
const PANICKED: u8 = 101;

fn start() -> ExitCode {
    if let Err(error) = preflight::survive_signals() {
        let _nobody_reads_it = writeln!(std::io::stderr(), "signal handlers: {error}");
        return ExitCode::from(Exit::Refused as u8);
    }
    let invocation = cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let (config, effective) = match Config::load(&invocation.flags) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(Exit::Refused as u8);
        }
    };
    if let Err(error) = millrace::log::start(&config.log, config.log_format) {
        eprintln!("{error}");
        return ExitCode::from(Exit::Refused as u8);
    }
    let exit = run(invocation.command, config, &effective).unwrap_or_else(|error| {
        tracing::error!("{error}");
        Exit::Refused
    });
    ExitCode::from(exit as u8)
}

fn run(command: Command, config: Config, effective: &Effective) -> Result<Exit, String> {
    match command {
        Command::Serve => {
            let findings = preflight::run(&config);
            for finding in &findings {
                finding.log();
            }
            if preflight::failed(&findings) {
                return Err("not started: see the findings above, or run `millrace check`".into());
            }
            control::on_executor(control::serve(config))
        }
        Command::Check => {
            let set = effective.changed().map(|value| Finding::ok("setting", value.to_string()));
            let findings: Vec<Finding> = set.chain(preflight::run(&config)).collect();
            if preflight::failed(&findings) {
                print!("{}", preflight::table(&findings));
                return Ok(Exit::Refused);
            }
            control::on_executor(commands::check(&config, findings))
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
                    let findings = preflight::for_spool_replay(&config);
                    if preflight::failed(&findings) {
                        return Err(preflight::table(&findings));
                    }
                    control::on_executor(spool.replay(&config))?
                }
            }
        }
    }
}
