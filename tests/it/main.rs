//! Scenarios against the real binary over real sockets; one file per scenario, `support` for what they share.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests block: they are not on a core"
)]

mod support;

mod admin;
mod backpressure;
mod bulk;
mod command_line;
mod dead_letter;
mod drain;
mod faults;
mod smoke;
