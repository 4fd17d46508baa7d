//! Kinds of tasks, to which the time of a core's turns is attributed.

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskKind {
    /// The runtime's own work between two tasks: timers, and the files and rings of glommio.
    Runtime,
    /// The driver of the sockets: submissions, completions, and what the kernel does in its calls.
    Sockets,
    Accept,
    /// Connections: requests from the head to the answer, and parsing.
    Connection,
    /// Upload workers.
    Worker,
    /// What wakes workers for retries.
    Retries,
    /// Gathers payloads into batches and compresses them.
    Batches,
    /// Re-uploads batches in doubt.
    Restore,
    SpoolWriter,
    SpoolReader,
    /// Checkpoints, and the spool's finished segments.
    SpoolKeeper,
    /// Prepares segments and watches the spool's disk.
    SpoolFiles,
    /// Connections and files of the store beside the workers.
    Store,
    /// What is done once a second: gauges, quotas, busiest peers.
    Sampler,
    /// Start and stop of a core.
    Core,
    Other,
}

impl TaskKind {
    pub const COUNT: usize = TaskKind::Other as usize + 1;

    pub const ALL: [TaskKind; TaskKind::COUNT] = [
        TaskKind::Runtime,
        TaskKind::Sockets,
        TaskKind::Accept,
        TaskKind::Connection,
        TaskKind::Worker,
        TaskKind::Retries,
        TaskKind::Batches,
        TaskKind::Restore,
        TaskKind::SpoolWriter,
        TaskKind::SpoolReader,
        TaskKind::SpoolKeeper,
        TaskKind::SpoolFiles,
        TaskKind::Store,
        TaskKind::Sampler,
        TaskKind::Core,
        TaskKind::Other,
    ];

    /// The value of the metric's label.
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::Runtime => "runtime",
            TaskKind::Sockets => "sockets",
            TaskKind::Accept => "accept",
            TaskKind::Connection => "connection",
            TaskKind::Worker => "worker",
            TaskKind::Retries => "retries",
            TaskKind::Batches => "batches",
            TaskKind::Restore => "restore",
            TaskKind::SpoolWriter => "spool_writer",
            TaskKind::SpoolReader => "spool_reader",
            TaskKind::SpoolKeeper => "spool_keeper",
            TaskKind::SpoolFiles => "spool_files",
            TaskKind::Store => "store",
            TaskKind::Sampler => "sampler",
            TaskKind::Core => "core",
            TaskKind::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_place_and_name() {
        let places: Vec<usize> = TaskKind::ALL.iter().map(|kind| *kind as usize).collect();
        assert_eq!(places, (0..TaskKind::COUNT).collect::<Vec<_>>());
        let names: std::collections::BTreeSet<_> =
            TaskKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), TaskKind::COUNT);
    }
}
