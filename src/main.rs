//! Arguments → configuration → host checks → control executor → exit status; nothing else.

use std::process::ExitCode;

use millrace::cli::{self, Command, SpoolCommand};
use millrace::config::{Config, Effective};
use millrace::control::{self, Exit};
use millrace::preflight::{Finding, Mode};
use millrace::{commands, preflight};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
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
            let findings = preflight::run(&config, Mode::Start);
            for finding in preflight::environment(effective).iter().chain(&findings) {
                finding.log();
            }
            if preflight::failed(&findings) {
                return Err("not started: see the findings above, or run `millrace check`".into());
            }
            control::on_executor(control::serve(config))
        }
        Command::Check { put } => {
            let set = effective.changed().map(|value| Finding::ok("setting", value.to_string()));
            let set = set.chain(preflight::environment(effective));
            let findings: Vec<Finding> = set.chain(preflight::run(&config, Mode::Judge)).collect();
            if preflight::failed(&findings) {
                print!("{}", preflight::table(&findings));
                return Ok(Exit::Refused);
            }
            control::on_executor(commands::check(&config, findings, put))
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
