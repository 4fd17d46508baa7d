//! Takeover of orphaned spools, whose processes no longer run. `instances` manages the directory
//! that all processes share and its locks, `discover` finds orphaned spools and takes them over,
//! `offers` hands their segments to the cores of this process, and `taken` is what one core holds.

pub mod discover;
pub mod instances;
pub mod offers;
pub(super) mod taken;
