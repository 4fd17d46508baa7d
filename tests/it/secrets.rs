//! Secrets: goal, none of them is anywhere but where it must be.
//!
//! Method: each secret of a scenario is a canary, a text that is nowhere else. The real binary goes
//! through the doors below at every log level and in both formats; all that comes out is searched
//! for every canary, also for its base64, its hex and its bytes in decimal, which is how `Debug`
//! prints them, and as JSON and URLs escape it. Where a canary must be (the objects, the payloads
//! of dead letters, the spool), the test looks whether it is there, so that a canary that was never
//! sent fails as well.
//!
//! | doors | where |
//! |---|---|
//! | log of a server: requests taken and refused, panics, store errors, reloads, drain, takeover | `running.rs` |
//! | every page of both listeners, answers to clients | `running.rs` |
//! | JSON of dead letters; names of files and objects | `running.rs` |
//! | every command's output, with a store that works and one that does not | `running.rs` |
//! | settings, files and AWS variables that are refused, each with a secret in it | `refused.rs` |
//! | services that give credentials, or errors with secrets in them | `refused.rs` |

mod canaries;
mod refused;
mod running;
