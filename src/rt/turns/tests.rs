use std::rc::Rc;

use futures_lite::FutureExt;

use super::*;
use crate::rt;

/// Keeps what it is told.
#[derive(Default)]
struct Seen {
    turns: RefCell<Vec<Duration>>,
    long: RefCell<Vec<LongTurn>>,
}

impl TurnObserver for Seen {
    fn turn(&self, length: Duration) {
        self.turns.borrow_mut().push(length);
    }
    fn long_turn(&self, turn: &LongTurn) {
        self.long.borrow_mut().push(*turn);
    }
}

fn observed() -> &'static Seen {
    let seen: &'static Seen = Box::leak(Box::default());
    observe_turns(seen);
    seen
}

const LONG: Duration = Duration::from_millis(20);

/// Keeps the CPU busy for `time` of this thread's own CPU time.
fn work(time: Duration) {
    let until = thread_cpu_time() + time;
    while thread_cpu_time() < until {}
}

fn sleep_thread(time: Duration) {
    std::thread::sleep(time);
}

/// As the driver does, in a task of its own: looks, lets the others run, looks again.
async fn one_turn() {
    rt::spawn_as(TaskKind::Sockets, async {
        next_turn();
        rt::yield_now().await;
        next_turn();
        end_turn();
    })
    .await;
}

/// Turns are longer, and others become long, where another thread has the CPU for a while: a test
/// that says how many there are gets more chances.
fn with_chances(test: fn()) {
    const CHANCES: usize = 5;
    let failed = (0..CHANCES).take_while(|_| std::thread::spawn(test).join().is_err()).count();
    assert!(failed < CHANCES, "each time");
}

fn largest(seen: &Seen) -> LongTurn {
    *seen.long.borrow().iter().max_by_key(|turn| turn.length).expect("a long turn")
}

#[test]
fn a_long_turn_is_attributed_to_the_task_that_ran_longest() {
    rt::run_test(async {
        let seen = observed();
        let (short, long) = (Duration::from_millis(1), LONG);
        for (kind, time) in [(TaskKind::Worker, short), (TaskKind::Batches, long)] {
            let busy = async move {
                rt::yield_now().await;
                work(time);
            };
            rt::spawn_as(kind, busy).detach();
        }
        one_turn().await;
        let turn = largest(seen);
        assert_eq!(turn.task, TaskKind::Batches, "{turn:?}");
        assert!(turn.length >= LONG + short && turn.task_time >= LONG / 2, "{turn:?}");
        assert!(turn.ran >= LONG / 2 && turn.ran <= turn.length, "{turn:?}");
        assert!(seen.turns.borrow().contains(&turn.length));
    });
}

#[test]
fn many_short_polls_make_a_long_turn_together() {
    rt::run_test(async {
        let seen = observed();
        for _ in 0..40 {
            let busy = async {
                rt::yield_now().await;
                work(LONG / 40);
            };
            rt::spawn_as(TaskKind::Connection, busy).detach();
        }
        one_turn().await;
        let turn = largest(seen);
        assert_eq!((turn.task, turn.polls), (TaskKind::Connection, 40), "{turn:?}");
    });
}

#[test]
fn a_task_that_another_one_starts_has_its_own_time() {
    rt::run_test(async {
        let seen = observed();
        let outer = async {
            rt::yield_now().await;
            work(Duration::from_millis(1));
            // Polled within this call.
            rt::spawn_as(TaskKind::Store, async { work(LONG) }).detach();
        };
        rt::spawn_as(TaskKind::Worker, outer).detach();
        one_turn().await;
        assert_eq!(largest(seen).task, TaskKind::Store);
    });
}

#[test]
fn a_turn_in_which_the_thread_did_not_run_is_told_apart() {
    rt::run_test(async {
        let seen = observed();
        let waits = async {
            rt::yield_now().await;
            sleep_thread(2 * LONG);
        };
        rt::spawn_as(TaskKind::Worker, waits).detach();
        one_turn().await;
        let turn = largest(seen);
        assert!(turn.was_descheduled() && turn.length >= 2 * LONG, "{turn:?}");
        assert!(turn.ran < LONG, "{turn:?}");
    });
}

#[test]
fn a_nap_of_the_driver_is_no_turn() {
    with_chances(|| {
        rt::run_test(async {
            let seen = observed();
            rt::spawn_as(TaskKind::Sockets, async {
                next_turn();
                rt::yield_now().await;
                end_turn();
                sleep_thread(10 * LONG);
                next_turn();
                end_turn();
            })
            .await;
            let turns = seen.turns.borrow();
            assert!(turns.iter().all(|turn| *turn < 10 * LONG), "{turns:?}");
        });
    });
}

/// Work that always fills its turn must not keep others from theirs.
#[test]
fn every_ready_task_runs_between_two_looks_beside_long_work() {
    rt::run_test(async {
        let done = Rc::new(Cell::new(false));
        let looks = Rc::new(Cell::new(0));
        let driver = rt::spawn_as(TaskKind::Sockets, {
            let (looks, done) = (looks.clone(), done.clone());
            async move {
                while !done.get() {
                    next_turn();
                    looks.set(looks.get() + 1);
                    rt::yield_now().await;
                }
                end_turn();
            }
        });
        let long_work: Vec<_> = (0..2)
            .map(|_| {
                let done = done.clone();
                rt::spawn_as(TaskKind::Connection, async move {
                    while !done.get() {
                        work(2 * LOOK_AFTER);
                        rt::yield_if_needed().await;
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            let before = looks.get();
            rt::spawn_as(TaskKind::Accept, rt::yield_now()).await;
            assert!(looks.get() - before <= 3, "{} looks", looks.get() - before);
        }
        done.set(true);
        for task in long_work {
            task.await;
        }
        driver.await;
    });
}

#[test]
fn a_sleeping_driver_is_woken_when_a_task_takes_long() {
    rt::run_test(async {
        let driver = rt::spawn_as(TaskKind::Sockets, async {
            next_turn();
            sleep_until_called().await;
        });
        rt::yield_now().await;
        work(Duration::from_millis(2));
        let late = async {
            rt::sleep(Duration::from_secs(10)).await;
            panic!("it sleeps on");
        };
        driver.or(late).await;
    });
}

#[test]
fn without_a_driver_no_task_waits_for_ever() {
    rt::run_test(async {
        rt::spawn_as(TaskKind::Sockets, async { next_turn() }).detach();
        work(Duration::from_millis(2));
        for _ in 0..3 {
            rt::yield_now().await;
        }
    });
}

#[test]
fn the_clock_of_a_turn_stands_still_within_it() {
    rt::run_test(async {
        // Without a driver it is the clock.
        let before = rt::now();
        assert!(turn_now() >= before);
        rt::spawn_as(TaskKind::Sockets, async {
            next_turn();
            let began = turn_now();
            sleep_thread(Duration::from_millis(2));
            assert_eq!(turn_now(), began);
            // Nothing else has run, so this is the same turn.
            next_turn();
            assert_eq!(turn_now(), began);
            rt::yield_now().await;
            next_turn();
            assert!(turn_now() > began);
            end_turn();
            let asleep = rt::now();
            assert!(turn_now() >= asleep);
        })
        .await;
    });
    // The next executor of this thread knows nothing of it.
    rt::run_test(async {
        let before = rt::now();
        assert!(turn_now() >= before);
    });
}

/// As the driver of the sockets when nothing arrives: looks, and sleeps until it is called.
fn idle_driver() -> rt::Task<()> {
    rt::spawn_as(TaskKind::Sockets, async {
        loop {
            next_turn();
            sleep_until_called().await;
            rt::yield_now().await;
        }
    })
}

fn sum(seen: &Seen) -> Duration {
    seen.turns.borrow().iter().sum()
}

/// What is ready together runs before the driver, which the first of it has called.
#[test]
fn polls_in_a_row_while_the_driver_sleeps_are_one_turn() {
    with_chances(|| {
        for count in [1, 2, 40, 1_000] {
            rt::run_test(async {
                let _driver = idle_driver();
                rt::sleep(LONG).await;
                let seen = observed();
                let started = rt::now();
                for _ in 0..count {
                    let busy = async move {
                        rt::yield_now().await;
                        work(LONG / count);
                    };
                    rt::spawn_as(TaskKind::Connection, busy).detach();
                }
                rt::sleep(10 * LONG).await;
                let awake = rt::since(started) - 10 * LONG;
                let turn = largest(seen);
                assert_eq!(seen.long.borrow().len(), 1, "{count}: {:?}", seen.long.borrow());
                assert!(turn.length >= LONG, "{count}: {turn:?}");
                assert_eq!((turn.task, turn.polls), (TaskKind::Connection, 2 * count), "{count}");
                assert!(turn.ran >= LONG / 2 && turn.ran <= turn.length, "{count}: {turn:?}");
                // The sleep of 10 `LONG` is not counted, and the polls are counted once.
                assert!(sum(seen) < awake + 5 * LONG, "{count}: {:?}", seen.turns.borrow());
                assert!(sum(seen) - turn.length < LONG, "{count}: {:?}", seen.turns.borrow());
            });
        }
    });
}

#[test]
fn a_poll_within_a_poll_while_the_driver_sleeps_is_counted_once() {
    with_chances(|| {
        rt::run_test(async {
            let _driver = idle_driver();
            rt::sleep(LONG).await;
            let seen = observed();
            rt::spawn_as(TaskKind::Worker, async {
                rt::yield_now().await;
                work(Duration::from_millis(2));
                // Polled within this call.
                rt::spawn_as(TaskKind::Store, async { work(LONG) }).await;
            })
            .await;
            rt::sleep(LONG).await;
            assert_eq!(seen.long.borrow().len(), 1, "{:?}", seen.long.borrow());
            assert_eq!(largest(seen).task, TaskKind::Store);
            assert!(sum(seen) < 2 * largest(seen).length, "{:?}", seen.turns.borrow());
        });
    });
}

#[test]
fn short_polls_while_the_driver_sleeps_are_counted_without_the_pauses_between_them() {
    rt::run_test(async {
        let _driver = idle_driver();
        rt::sleep(LONG).await;
        let seen = observed();
        let started = rt::now();
        for _ in 0..20 {
            rt::sleep(LONG / 4).await;
        }
        let idle = 20 * LONG / 4;
        let turns = seen.turns.borrow();
        // The end of each sleep is a poll. The last of them is not over.
        assert!(turns.len() >= 19, "{turns:?}");
        assert!(sum(seen) <= rt::since(started) - idle, "{turns:?}");
    });
}

/// Otherwise polling for completions would hide among millions of such turns what takes long.
#[test]
fn a_look_behind_which_no_task_ran_ends_no_turn_unless_it_took_long() {
    rt::run_test(async {
        let seen = observed();
        rt::spawn_as(TaskKind::Sockets, async {
            next_turn();
            for _ in 0..1_000 {
                rt::yield_now().await;
                next_turn();
            }
            // In the kernel, say.
            sleep_thread(LONG);
            rt::yield_now().await;
            next_turn();
            end_turn();
        })
        .await;
        let turns = seen.turns.borrow();
        assert!(turns.len() < 100, "{} turns", turns.len());
        assert_eq!(largest(seen).task, TaskKind::Sockets);
        assert!(turns.iter().any(|turn| *turn >= LONG), "{turns:?}");
    });
}

/// The driver lets others run between its waking and its look: all that is one turn.
#[test]
fn a_turn_that_begins_while_the_driver_sleeps_lasts_until_its_look() {
    with_chances(|| {
        rt::run_test(async {
            let looks = Rc::new(Cell::new(0));
            let _driver = rt::spawn_as(TaskKind::Sockets, {
                let looks = looks.clone();
                async move {
                    loop {
                        next_turn();
                        looks.set(looks.get() + 1);
                        sleep_until_called().await;
                        rt::yield_now().await;
                    }
                }
            });
            rt::sleep(LONG).await;
            let seen = observed();
            let before = looks.get();
            rt::spawn_as(TaskKind::Worker, async move {
                rt::yield_now().await;
                // Calls the driver, which lets this task run before it looks.
                work(LONG);
                while driver_sleeps() {
                    rt::yield_now().await;
                }
                assert_eq!(looks.get(), before);
                work(LONG);
            })
            .await;
            rt::sleep(LONG).await;
            let long: Vec<LongTurn> = seen.long.borrow().clone();
            assert_eq!(long.len(), 1, "{long:?}");
            assert!(long[0].length >= 2 * LONG && long[0].task == TaskKind::Worker, "{long:?}");
            assert!(long[0].ran >= LONG, "{long:?}");
        });
    });
}

#[test]
fn what_the_thread_did_not_run_of_a_turn_that_began_in_a_sleep_is_told_apart() {
    rt::run_test(async {
        let _driver = idle_driver();
        rt::sleep(2 * LONG).await;
        let seen = observed();
        rt::spawn_as(TaskKind::Worker, async { sleep_thread(2 * LONG) }).await;
        rt::sleep(LONG).await;
        let turn = largest(seen);
        assert!(turn.was_descheduled() && turn.length >= 2 * LONG, "{turn:?}");
    });
}

#[test]
fn a_long_look_right_before_a_sleep_or_a_nap_is_a_turn() {
    rt::run_test(async {
        let seen = observed();
        rt::spawn_as(TaskKind::Sockets, async {
            next_turn();
            rt::yield_now().await;
            next_turn();
            // The second look.
            sleep_thread(LONG);
            end_turn();
        })
        .await;
        let turn = largest(seen);
        assert!(turn.task == TaskKind::Sockets && turn.length >= LONG, "{turn:?}");
        assert!(turn.was_descheduled(), "{turn:?}");
    });
}

/// Whatever the rate of the ticks is taken for.
#[test]
fn a_turn_that_ends_with_a_pause_is_reported_as_short() {
    rt::run_test(async {
        let _driver = idle_driver();
        rt::sleep(LONG).await;
        assert!(driver_sleeps());
        let seen = observed();
        TURN.with(|turn| {
            let long_ago = turn.attributed.get().wrapping_sub(1_000 * turn.short_ticks.get());
            turn.began_tick.set(long_ago);
            turn.polled.set(Polled::Task);
            turn.paused(0);
        });
        assert_eq!(*seen.turns.borrow(), [SHORT]);
    });
}

fn driver_sleeps() -> bool {
    TURN.with(|turn| turn.asleep.get())
}
