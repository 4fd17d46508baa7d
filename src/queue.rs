//! From admission to the pop: who may enter, the queue itself, its jobs, and their outcomes.

pub mod admission;
pub mod fifo;
pub mod job;
pub mod outcome;
