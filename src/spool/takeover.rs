//! Takeover of orphaned spools: those of crashed processes. `control::spools` starts it, once
//! before the cores start and then every 5 s.
//!
//! `instances` manages the directory that all processes share, and its locks. `discover` finds
//! orphaned spools, takes them over, and decides from their journals which batches are in doubt.
//! `offers` hands these batches and then the segments to the cores of this process. `taken` is what
//! one core has taken and not emptied yet.

pub mod discover;
pub mod instances;
pub mod offers;
pub(super) mod taken;
