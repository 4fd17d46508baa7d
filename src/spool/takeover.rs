//! Spools of processes that no longer run: `instances` is the directory that all processes share and who holds what in it,
//! `adopt` finds and takes over what a dead process left, and `orphans` hands it out to the cores of this process.

pub mod adopt;
pub mod instances;
pub mod orphans;
