//! What a core does with the length of its turns: counts them, and logs those that are very long.

use std::cell::RefCell;
use std::time::Duration;

use crate::metrics::CoreCells;
use crate::rt::{LongTurn, TurnObserver, observe_turns};
use crate::throttle::Throttle;

/// Turns of this length or more are logged.
const LOGGED: Duration = Duration::from_millis(5);

struct CoreTurns {
    core_id: usize,
    cells: &'static CoreCells,
    log: RefCell<Throttle>,
}

/// Counts the turns of the calling thread's executor in `cells` until it ends. To be called once
/// for each core: what it needs is never freed.
pub(super) fn count_turns(core_id: usize, cells: &'static CoreCells) {
    let log = RefCell::new(Throttle::per_second());
    observe_turns(Box::leak(Box::new(CoreTurns { core_id, cells, log })));
}

impl TurnObserver for CoreTurns {
    fn turn(&self, length: Duration) {
        self.cells.turns.observe(length);
    }

    fn long_turn(&self, turn: &LongTurn) {
        self.cells.turns.attribute(turn);
        if turn.length >= LOGGED
            && let Some(held_back) = self.log.borrow_mut().due()
        {
            tracing::debug!(held_back, "{}", text(self.core_id, turn));
        }
    }
}

fn text(core_id: usize, turn: &LongTurn) -> String {
    let LongTurn { length, ran, task, task_time, polls } = turn;
    let ms = |time: &Duration| time.as_secs_f64() * 1e3;
    let (length, ran, task_time) = (ms(length), ms(ran), ms(task_time));
    let task = task.name();
    format!(
        "long turn of core {core_id}: it ran {ran:.1} ms of {length:.1} ms; {task_time:.1} ms \
         passed in {task} ({polls} polls)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::TaskKind;

    #[test]
    fn the_log_line_says_who_and_how_long() {
        let turn = LongTurn {
            length: Duration::from_micros(7_210),
            ran: Duration::from_micros(350),
            task: TaskKind::SpoolKeeper,
            task_time: Duration::from_micros(6_990),
            polls: 3,
        };
        let said = "long turn of core 2: it ran 0.3 ms of 7.2 ms; 7.0 ms passed in spool_keeper \
                    (3 polls)";
        assert_eq!(text(2, &turn), said);
    }
}
