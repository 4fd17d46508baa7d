//! Tests that need an environment of their own run in a child process: no test writes this
//! process's.

use std::process::{Command, Output};

/// Runs the test `name` of this binary, ignored or not, with nothing but `env` in its environment.
///
/// # Panics
/// If the child fails; its output is shown.
pub fn run(name: &str, env: &[(&str, &str)]) -> Output {
    let exe = std::env::current_exe().expect("the test binary has a path");
    let output = Command::new(exe)
        .args(["--exact", name, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .expect("the test binary starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} failed in its child:\n{text}\n{errors}");
    assert!(text.contains("1 passed"), "{name} did not run in its child:\n{text}\n{errors}");
    output
}
