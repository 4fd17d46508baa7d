//! Scenarios against the real binary over real sockets; one file per scenario, `support` for what they share.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests block: they are not on a core"
)]

mod support;

mod contract;
mod cores;
mod deadlines;
mod early_answers;
mod framing;
mod limits;
mod smoke;
mod tokens;
