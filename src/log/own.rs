//! Whose events are logged: only those of this crate.
//!
//! A library's event holds whatever it was built from. The AWS crates log credentials, replies of
//! credential services and lines of configuration files, some of them at `warn`; an HTTP/2 library
//! logs the headers of requests. Nobody can review these with every update, so no event and no span
//! of another crate is logged, whatever `LOG` says. What an operator needs of their errors is in
//! the messages of this crate.

use tracing::Metadata;
use tracing::subscriber::{Interest, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lets pass what has a target of this crate.
pub(super) struct OwnEvents;

fn is_own(metadata: &Metadata<'_>) -> bool {
    let rest = metadata.target().strip_prefix(env!("CARGO_CRATE_NAME"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

impl<S: Subscriber> Layer<S> for OwnEvents {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_own(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        is_own(metadata)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whatever_the_filter_says_other_crates_log_nothing() {
        for filter in ["trace", "trace,aws_config=trace", "aws_config=trace,millrace_x=trace"] {
            let lines = Lines::default();
            let sink = lines.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_env_filter(EnvFilter::new(filter))
                .with_writer(move || sink.clone())
                .finish()
                .with(OwnEvents);
            tracing::subscriber::with_default(subscriber, || {
                let _span =
                    tracing::error_span!(target: "aws_config::profile", "s", hush = 1).entered();
                tracing::error!(target: "aws_config", "hush");
                tracing::warn!(target: "millrace_x", "hush");
                tracing::trace!(target: "h2::codec", "hush");
                tracing::error!(target: "millrace", "one");
                tracing::trace!(target: "millrace::upload::worker", "two");
            });
            let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            let own = if filter.starts_with("trace") { 2 } else { 0 };
            assert_eq!(text.lines().count(), own, "{filter}: {text}");
            assert!(!text.contains("hush"), "{filter}: {text}");
        }
    }
}
