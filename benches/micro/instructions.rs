//! Instructions per operation, counted by callgrind: nearly the same on every run and every
//! machine.
//!
//! This program runs itself under valgrind twice per operation, with different counts, so that
//! setting up cancels out. valgrind's CPU has AVX2 but no SHA extensions: `sign` counts the
//! portable SHA-256.

use std::process::Command;

use crate::ops::OPS;

/// The two counts; the first warms up what is allocated once.
const FEW: u64 = 20;
const MANY: u64 = 120;

/// Prints a table of all operations.
pub fn count_all() {
    println!("{:<26} {:>14}", "operation", "instructions");
    for op in OPS {
        match (count(op.name, FEW), count(op.name, MANY)) {
            (Ok(few), Ok(many)) => {
                println!("{:<26} {:>14}", op.name, (many - few) / (MANY - FEW));
            }
            (Err(error), _) | (_, Err(error)) => {
                eprintln!("{}: {error}", op.name);
                std::process::exit(1);
            }
        }
    }
}

fn count(name: &str, times: u64) -> Result<u64, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(this)
        .args(["--repeat", name, &times.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}; apt-get install valgrind"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected :"));
    let collected = collected.and_then(|(_, number)| number.trim().parse().ok());
    collected.filter(|_| output.status.success()).ok_or_else(|| format!("callgrind said:\n{text}"))
}

/// What runs under valgrind.
pub fn repeat(name: &str, times: &str) {
    let op = OPS.iter().find(|op| op.name == name).expect("the caller takes names from the table");
    let times: u64 = times.parse().expect("the caller gives a number");
    let mut made = (op.make)();
    for _ in 0..times {
        (made.run)();
    }
}
