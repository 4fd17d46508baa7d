//! Spools of processes that no longer run: `instances` is the directory that all processes share
//! and who holds what in it, `adopt` finds and takes over what a dead process left, `orphans` hands
//! it out to the cores of this process, and `taken` is what one core has of it.

pub mod discover;
pub mod instances;
pub mod offers;
pub(super) mod taken;
