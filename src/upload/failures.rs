//! The failures of an object so far. They are kept with the object, so that a dead letter written
//! at a stop can name them.

use crate::store::PutError;

/// Made when a PUT fails, so never for an object whose first PUT succeeds.
#[derive(Clone, Debug)]
pub struct Failures {
    /// Number of failed PUTs, at least one.
    pub attempts: u32,
    /// The error of the last one.
    pub last: PutError,
}

impl Failures {
    /// `error` and `attempts` of the dead letter that a stop writes for an object. `failures` are
    /// its own; `in_progress`: a worker was uploading it; `store_error`: why the store accepts
    /// nothing.
    pub fn of_a_stop(
        failures: Option<&Failures>,
        in_progress: bool,
        store_error: Option<&PutError>,
    ) -> (String, u32) {
        match (failures, store_error) {
            (Some(Failures { attempts, last }), _) => (last.to_string(), *attempts),
            (None, _) if in_progress => {
                ("Stopped: the server stopped before the store answered".to_owned(), 1)
            }
            (None, Some(error)) => (
                format!(
                    "Stopped: the server stopped before it was uploaded; the last store error was {error}"
                ),
                0,
            ),
            (None, None) => ("Stopped: the server stopped before it was uploaded".to_owned(), 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Class;

    #[test]
    fn a_dead_letter_of_a_stop_says_what_is_known() {
        let error = |code| PutError::new(Class::StoreWide, code, "no");
        let own = Failures { attempts: 7, last: error("AccessDenied") };
        let down = error("NoSuchBucket");
        for (failures, in_progress, store_error, expected) in [
            (Some(&own), true, Some(&down), ("AccessDenied: no", 7)),
            (Some(&own), false, None, ("AccessDenied: no", 7)),
            (None, true, None, ("Stopped: the server stopped before the store answered", 1)),
            (
                None,
                false,
                Some(&down),
                (
                    "Stopped: the server stopped before it was uploaded; the last store error was NoSuchBucket: no",
                    0,
                ),
            ),
            (None, false, None, ("Stopped: the server stopped before it was uploaded", 0)),
        ] {
            let (text, attempts) = Failures::of_a_stop(failures, in_progress, store_error);
            assert_eq!((text.as_str(), attempts), expected);
        }
    }
}
