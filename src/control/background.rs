//! Threads for work that nobody waits for. They have a low priority, because they may run on the
//! CPU of a core.

use std::io;

/// The `nice` value of these threads: about a tenth of a CPU that a core keeps busy.
const NICE: i32 = 10;

/// Starts one, which is not joined.
///
/// # Errors
/// It cannot be created.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    let at_low_priority = move || {
        let _or_at_the_usual_one = rustix::process::setpriority_process(None, NICE);
        work();
    };
    thread.spawn(at_low_priority).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn only_the_new_thread_has_a_low_priority() {
        let priority = || rustix::process::getpriority_process(None).unwrap();
        let before = priority();
        let (sender, receiver) = channel();
        let work = move || {
            let name = std::thread::current().name().map(str::to_owned);
            sender.send((name, priority())).unwrap();
        };
        spawn("millrace-test", work).unwrap();
        let (name, lower) = receiver.recv().unwrap();
        assert!(name.as_deref() == Some("millrace-test") && lower >= NICE, "{name:?} {lower}");
        assert_eq!(priority(), before);
    }
}
