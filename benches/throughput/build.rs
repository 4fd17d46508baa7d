//! The servers' binaries, each built by a cargo command of its own.
//!
//! `cargo bench` has just built millrace as well, but together with the dev-dependencies, whose
//! features it then shares. What is measured is what users get: the package's own features. See
//! `benches/tokio_variant/Cargo.toml`.
//!
//! All are built with [`PROFILE`]: overrides of `release`, which leave crates off the data path
//! unoptimised, apply to the whole workspace, and would slow down only the servers whose data path
//! goes through the SDK.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::options::Options;
use crate::server::Binaries;

/// The profile of every server that is compared, see `Cargo.toml`.
const PROFILE: &str = "compare";

/// Builds what the command line does not name.
pub fn binaries(options: &Options) -> Result<Binaries, String> {
    let millrace = match &options.millrace {
        Some(path) => path.clone(),
        None => cargo_build("millrace", "millrace")?,
    };
    let tokio = match &options.tokio {
        Some(path) => path.clone(),
        None if options.wants_tokio() => {
            cargo_build("millrace-tokio-variant", "millrace-tokio-variant")?
        }
        None => PathBuf::new(),
    };
    Ok(Binaries { millrace, tokio })
}

fn cargo_build(package: &str, binary: &str) -> Result<PathBuf, String> {
    // `target/<profile>/millrace`
    let built = Path::new(env!("CARGO_BIN_EXE_millrace"));
    let target = built.parent().and_then(Path::parent).ok_or("no target directory")?;
    let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--profile", PROFILE, "--locked", "--package", package, "--bin", binary])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .status()
        .map_err(|error| format!("cargo: {error}"))?;
    if !status.success() {
        return Err(format!("{package} does not build"));
    }
    Ok(target.join(PROFILE).join(binary))
}
