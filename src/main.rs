//! The binary: the allocator, and [`millrace::main`].

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: millrace::Allocator = millrace::Allocator;

fn main() -> ExitCode {
    millrace::main()
}
