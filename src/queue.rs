//! From admission to the pop: who may enter, how fast the queue drains, the queue itself, its jobs,
//! their times and their outcomes.

pub mod admission;
pub mod event_times;
pub mod fifo;
mod idle;
pub mod job;
pub mod job_queue;
pub mod outcome;
pub mod pace;
pub mod run;
