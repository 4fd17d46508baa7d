//! What an input of the fuzz target `h2`, or a seed of it, means.
//!
//! Its first byte says under which settings, whether preface and settings come first by themselves, and
//! how the rest is meant; the second how many cuts there are, and as many bytes as that where they are, in
//! units of 64 bytes. The rest is what the client sends, or steps to make frames from.

use super::Lab;
use crate::config::Config;

/// In the first byte: nothing comes first by itself; the rest is steps.
const BARE: u8 = 0x80;
const STEPS: u8 = 0x40;

/// A preface and empty settings.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

const CUTS_MAX: usize = 8;
const CUT_UNIT: usize = 64;

/// Settings under which other things happen to a request.
const SETTINGS: [&[(&str, &str)]; 3] = [
    &[("H2", "all"), ("MAX_LENGTH", "20KB")],
    &[("H2", "all"), ("MAX_LENGTH", "20KB"), ("TRUST", "0.0.0.0,10.0.0.0/8"), ("META", "client")],
    &[("H2", "all"), ("MAX_LENGTH", "20KB"), ("H2_STREAMS", "2"), ("CLIENT_RATE", "1000/s")],
];
/// The one with which payloads are wrapped, …
const WRAPPED: usize = 1;
/// … and the one with which what is admitted depends on time.
const TIMED: usize = 2;

/// An input, taken apart.
pub struct H2Input<'a> {
    first: u8,
    cuts: &'a [u8],
    /// What the client sends, behind the opening if there is one; or steps.
    pub rest: &'a [u8],
}

impl<'a> H2Input<'a> {
    /// `None` if it is too short to mean anything.
    pub fn read(input: &'a [u8]) -> Option<H2Input<'a>> {
        let [first, count, rest @ ..] = input else { return None };
        let (cuts, rest) = rest.split_at_checked(usize::from(*count) % (CUTS_MAX + 1))?;
        Some(H2Input { first: *first, cuts, rest })
    }

    /// Whether [`rest`](H2Input::rest) is steps.
    pub fn is_steps(&self) -> bool {
        self.first & STEPS != 0
    }

    /// Which of [`H2Input::labs`] it is for.
    pub fn lab(&self) -> usize {
        usize::from(self.first & !(BARE | STEPS)) % SETTINGS.len()
    }

    /// Whether payloads are admitted with what is known of them around them.
    pub fn is_wrapped(&self) -> bool {
        self.lab() == WRAPPED
    }

    /// Whether what is admitted depends on time.
    pub fn is_timed(&self) -> bool {
        self.lab() == TIMED
    }

    /// Whether it says where to cut what is sent.
    pub fn has_cuts(&self) -> bool {
        !self.cuts.is_empty()
    }

    /// The pieces in which `bytes`, [`rest`](H2Input::rest) or what its steps make, are sent, the opening
    /// before them.
    pub fn pieces<'b>(&self, bytes: &'b [u8]) -> Vec<&'b [u8]> {
        let mut cuts: Vec<usize> =
            self.cuts.iter().map(|cut| (usize::from(*cut) * CUT_UNIT).min(bytes.len())).collect();
        cuts.sort_unstable();
        let mut pieces = if self.first & BARE == 0 { vec![OPENING] } else { Vec::new() };
        let mut start = 0;
        for cut in cuts.into_iter().chain([bytes.len()]) {
            pieces.push(&bytes[start..cut]);
            start = cut;
        }
        pieces
    }

    /// The servers for all inputs, on the calling executor.
    ///
    /// # Panics
    /// This host does not allow such sockets.
    pub fn labs() -> Vec<Lab> {
        let lab = |settings: &&[(&str, &str)]| {
            let config = Config::from_settings(settings).expect("these settings are right");
            Lab::new(config, None).expect("this host allows Unix sockets")
        };
        SETTINGS.iter().map(lab).collect()
    }
}
