//! What should not have happened: each kind once, with how often.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// Kinds beyond this are counted together.
const KINDS_MAX: usize = 60;

#[derive(Default)]
pub struct Findings(Mutex<BTreeMap<String, u64>>);

impl Findings {
    pub fn add(&self, text: impl Into<String>) {
        let mut found = self.0.lock().unwrap();
        let mut text = text.into();
        if found.len() >= KINDS_MAX && !found.contains_key(&text) {
            text = "others".to_owned();
        }
        *found.entry(text).or_default() += 1;
    }

    /// Adds `otherwise` unless it `holds`.
    pub fn check(&self, holds: bool, otherwise: &str) {
        if !holds {
            self.add(otherwise);
        }
    }

    pub fn lines(&self) -> Vec<String> {
        let found = self.0.lock().unwrap();
        found.iter().map(|(text, count)| format!("{text} ({count}×)")).collect()
    }
}
