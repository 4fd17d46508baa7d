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
use crate::server::{Binaries, Variant};

/// The profile of every server that is compared, see `Cargo.toml`.
const PROFILE: &str = "compare";

/// Builds what `variants` need and the command line does not name.
pub fn binaries(options: &Options, variants: &[Variant]) -> Result<Binaries, String> {
    let binary =
        |named: &Option<PathBuf>, package: &str, is_wanted: &dyn Fn(Variant) -> bool| match named {
            Some(path) => Ok(path.clone()),
            None if variants.iter().any(|v| is_wanted(*v)) => cargo_build(package),
            None => Ok(PathBuf::new()),
        };
    Ok(Binaries {
        millrace: binary(&options.millrace, "millrace", &Variant::is_millrace)?,
        tokio: binary(&options.tokio, "millrace-tokio-variant", &Variant::is_tokio)?,
        floor: binary(&options.floor, "millrace-floor", &|variant| variant == Variant::Floor)?,
    })
}

/// The binary of the same name.
fn cargo_build(package: &str) -> Result<PathBuf, String> {
    // `target/<profile>/millrace`
    let built = Path::new(env!("CARGO_BIN_EXE_millrace"));
    let target = built.parent().and_then(Path::parent).ok_or("no target directory")?;
    let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--profile", PROFILE, "--locked", "--package", package, "--bin", package])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .status()
        .map_err(|error| format!("cargo: {error}"))?;
    if !status.success() {
        return Err(format!("{package} does not build"));
    }
    Ok(target.join(PROFILE).join(package))
}
