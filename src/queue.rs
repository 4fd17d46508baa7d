//! From admitted to popped: who may enter, the queue itself, and what stands in it.

pub mod admission;
pub mod fifo;
pub mod job;
pub mod outcome;
