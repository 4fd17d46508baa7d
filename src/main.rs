//! Arguments → configuration → host checks → control executor → exit status; nothing else.

use std::process::ExitCode;

use millrace::cli::{self, Command};
use millrace::config::Config;
use millrace::control::{self, Exit};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let invocation = cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let (config, _effective) = match Config::load(&invocation.flags) {
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
    let exit = match invocation.command {
        Command::Serve => control::on_executor(control::serve(config)),
        _ => Err("not built yet".to_owned()),
    };
    let exit = exit.unwrap_or_else(|error| {
        tracing::error!("{error}");
        Exit::Refused
    });
    ExitCode::from(exit as u8)
}
