use super::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What only this module may name in code that is not a test, and …
const RT_ONLY: [&str; 5] =
    ["Instant::now", "SystemTime::now", ".elapsed()", "fastrand::", "future::yield_now"];
/// … what may follow `glommio::` elsewhere, also in tests.
const GLOMMIO: [&str; 3] = ["io::", "net::", "GlommioError"];

/// All source files below `dir`.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The lines of `text` that bypass this module, with their numbers.
fn bypasses(path: &Path, text: &str) -> Vec<(usize, String)> {
    let is_sync = path.ends_with("sync.rs");
    let mut is_test =
        path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        // By convention tests are at the end of a file.
        is_test |= line == "#[cfg(test)]" && text.lines().nth(number + 1).is_none_or(is_tests);
        let code = line.split("//").next().unwrap_or_default();
        let allowed = |after: &str| {
            GLOMMIO.iter().any(|name| after.starts_with(name))
                || is_sync && after.starts_with("sync::")
        };
        let of_glommio = code.split("glommio::").skip(1).any(|after| !allowed(after));
        if of_glommio || !is_test && RT_ONLY.iter().any(|name| code.contains(name)) {
            found.push((number + 1, line.trim().to_owned()));
        }
    }
    found
}

/// A module of tests, or an attribute of one.
fn is_tests(line: &str) -> bool {
    line.trim_start_matches("pub(crate) ").starts_with("mod tests") || line.starts_with("#[")
}

#[test]
fn no_module_bypasses_rt() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 100, "{}", files.len());
    let own = [root.join("rt.rs"), root.join("rt")];
    files.retain(|path| !own.iter().any(|own| path.starts_with(own)));
    let mut wrong = Vec::new();
    for path in files {
        for (line, text) in bypasses(&path, &fs::read_to_string(&path).unwrap()) {
            let name = path.strip_prefix(&root).unwrap().display();
            wrong.push(format!("src/{name}:{line}: {text}"));
        }
    }
    assert!(wrong.is_empty(), "use crate::rt instead:\n{}", wrong.join("\n"));
}

#[test]
fn a_bypass_is_found() {
    let lines = |path: &str, text: &str| -> Vec<usize> {
        bypasses(Path::new(path), text).into_iter().map(|(line, _)| line).collect()
    };
    let text = "use glommio::io::DmaFile;\nglommio::spawn_local(x);\n// glommio::Task\n\
                let now = Instant::now();\nfastrand::f64();\nat.elapsed()\n\
                #[cfg(test)]\nmod tests {\nInstant::now();\nglommio::executor();\n}";
    assert_eq!(lines("a.rs", text), [2, 4, 5, 6, 10]);
    assert_eq!(lines("a/tests.rs", text), [2, 10]);
    assert_eq!(lines("a.rs", "pub use glommio::sync::Semaphore;"), [1]);
    assert!(lines("sync.rs", "pub use glommio::sync::Semaphore;").is_empty());
    assert_eq!(lines("a.rs", "#[cfg(test)]\nfn helper() {}\nInstant::now();"), [3]);
}

#[test]
fn a_seed_repeats() {
    let numbers = || {
        seed(7);
        (random(), random_fraction())
    };
    let first = numbers();
    assert_eq!(first, numbers());
    assert!((0.0..1.0).contains(&first.1));
    assert_ne!(first.0, random());
}

#[test]
fn blocking_work_counts_as_a_foreign_wait() {
    run_test(async {
        assert!(!has_foreign_waits());
        let (go, wait) = std::sync::mpsc::channel();
        let work = spawn(blocking(move || wait.recv().unwrap()));
        yield_now().await;
        assert!(has_foreign_waits());
        go.send(7).unwrap();
        assert_eq!(work.await, 7);
        // One that is dropped early no longer counts.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let work = spawn(blocking(move || wait.recv().is_ok()));
        yield_now().await;
        assert!(has_foreign_waits());
        work.cancel().await;
        assert!(!has_foreign_waits());
        go.send(()).unwrap();
    });
}

#[test]
fn an_executor_is_idle_when_no_other_task_is_ready() {
    run_test(async {
        assert!(is_idle().await);
        let polls = Rc::new(Cell::new(0));
        let counter = polls.clone();
        let busy = spawn(async move {
            loop {
                counter.set(counter.get() + 1);
                yield_now().await;
            }
        });
        for _ in 0..3 {
            let before = polls.get();
            assert!(!is_idle().await);
            assert_eq!(polls.get() - before, 1, "it runs once in between");
        }
        // Behind a look that has brought work, its tasks run as well.
        for (brought_work, runs) in [(false, 1), (true, 2)] {
            looked(brought_work);
            let before = polls.get();
            yield_to_requests().await;
            assert_eq!(polls.get() - before, runs);
        }
        busy.cancel().await;
        assert!(is_idle().await);
    });
}

#[test]
fn time_advances_and_is_never_negative() {
    let before = now();
    assert_eq!(since(before + Duration::from_secs(3600)), Duration::ZERO);
    run_test(sleep(Duration::from_millis(2)));
    assert!(since(before) >= Duration::from_millis(2));
    assert!(wall_clock() > SystemTime::UNIX_EPOCH);
}
