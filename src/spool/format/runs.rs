//! Compact encoding of a batch's members: runs of payloads in segments, in the order of the
//! object's lines.
//!
//! ```text
//! run = count × 2 + new · (new: segment id · first, else zigzag of first − end of the previous run)
//! ```
//!
//! `new` is 1 if the segment differs from the previous run's. All numbers are varints, seven bits
//! per byte, lowest first. A run after another of the same segment takes three bytes, so
//! interleaved partitions stay cheap.

/// Largest encoding of one batch's runs: room for 349,000 runs of three bytes.
pub const RUNS_BYTES_MAX: usize = 1 << 20;
/// Largest encoding of one run: a head of 33 bits, an id of 64, a first of 32.
const RUN_BYTES_MAX: usize = 5 + 10 + 5;

/// Consecutive payloads of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberRun {
    /// Id of the segment's generation.
    pub segment: u64,
    /// Number of the first payload.
    pub first: u32,
    /// At least one.
    pub count: u32,
}

impl MemberRun {
    pub fn end(&self) -> u32 {
        self.first + self.count
    }
}

/// Encodes runs while a batch is gathered.
#[derive(Clone, Debug, Default)]
pub struct RunEncoder {
    /// All runs but the last.
    bytes: Vec<u8>,
    /// The run before the last.
    before: Option<MemberRun>,
    last: Option<MemberRun>,
}

impl RunEncoder {
    /// Adds one payload, as [`RunEncoder::push_run`] does several.
    #[cfg(test)]
    pub fn push(&mut self, segment: u64, ordinal: u32) -> bool {
        self.push_run(segment, ordinal, 1)
    }

    /// Adds `count` payloads, the first of which has this number. Returns false and changes nothing
    /// if they need a new run and there is no room for one.
    pub fn push_run(&mut self, segment: u64, first: u32, count: u32) -> bool {
        if let Some(last) = &mut self.last
            && last.segment == segment
            && last.end() == first
            && count <= u32::MAX / 2 - last.count
        {
            last.count += count;
            return true;
        }
        // Room for the last run, which is not encoded yet, and for this one.
        if self.bytes.len() + 2 * RUN_BYTES_MAX > RUNS_BYTES_MAX {
            return false;
        }
        let next = MemberRun { segment, first, count };
        if let Some(last) = self.last.replace(next) {
            encode(&mut self.bytes, self.before.replace(last), last);
        }
        true
    }

    pub fn finish(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes.len() + RUN_BYTES_MAX);
        bytes.extend_from_slice(&self.bytes);
        if let Some(last) = self.last {
            encode(&mut bytes, self.before, last);
        }
        bytes
    }

    /// Memory it takes, in bytes.
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }
}

fn encode(out: &mut Vec<u8>, before: Option<MemberRun>, run: MemberRun) {
    let before = before.filter(|before| before.segment == run.segment);
    put(out, u64::from(run.count) << 1 | u64::from(before.is_none()));
    match before {
        None => {
            put(out, run.segment);
            put(out, run.first.into());
        }
        Some(before) => {
            let step = i64::from(run.first) - i64::from(before.end());
            put(out, (step << 1 ^ step >> 63) as u64);
        }
    }
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Encoded runs that passed the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs<'a>(&'a [u8]);

impl<'a> Runs<'a> {
    /// `None` if these bytes are not valid runs.
    pub fn check(bytes: &'a [u8]) -> Option<Runs<'a>> {
        let mut cursor = RunCursor::default();
        while cursor.at < bytes.len() {
            cursor.next(bytes)?;
        }
        Some(Runs(bytes))
    }

    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    pub fn iter(self) -> impl Iterator<Item = MemberRun> + 'a {
        let mut cursor = RunCursor::default();
        std::iter::from_fn(move || cursor.next(self.0))
    }

    /// Payloads in all runs.
    pub fn payloads(self) -> u64 {
        self.iter().map(|run| u64::from(run.count)).sum()
    }
}

/// A position in encoded runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunCursor {
    at: usize,
    before: Option<MemberRun>,
}

impl RunCursor {
    /// Returns the run at this position of `bytes` and advances; `None` at the end or if there is
    /// no valid run.
    pub fn next(&mut self, bytes: &[u8]) -> Option<MemberRun> {
        let mut at = self.at;
        let head = take(bytes, &mut at)?;
        let count = u32::try_from(head >> 1).ok().filter(|count| *count > 0)?;
        let (segment, first) = if head & 1 == 1 {
            (take(bytes, &mut at)?, take(bytes, &mut at)?)
        } else {
            let before = self.before?;
            let zigzag = take(bytes, &mut at)?;
            let step = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
            (before.segment, u64::try_from(i64::from(before.end()).checked_add(step)?).ok()?)
        };
        let first = u32::try_from(first).ok()?;
        first.checked_add(count)?;
        let run = MemberRun { segment, first, count };
        *self = RunCursor { at, before: Some(run) };
        Some(run)
    }
}

/// Reads the varint at offset `at` and advances `at`; `None` if it is truncated or has more than 64
/// bits.
fn take(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        let bits = u64::from(byte & 0x7F);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn gathered(payloads: &[(u64, u32)]) -> Vec<u8> {
        let mut encoder = RunEncoder::default();
        assert!(payloads.iter().all(|(segment, ordinal)| encoder.push(*segment, *ordinal)));
        encoder.finish()
    }

    /// The same, consecutive payloads together.
    fn gathered_in_runs(payloads: &[(u64, u32)]) -> Vec<u8> {
        let mut encoder = RunEncoder::default();
        for run in payloads.chunk_by(|one, next| one.0 == next.0 && one.1 + 1 == next.1) {
            assert!(encoder.push_run(run[0].0, run[0].1, run.len() as u32));
        }
        encoder.finish()
    }

    fn single(bytes: &[u8]) -> Vec<(u64, u32)> {
        let runs = Runs::check(bytes).expect("runs");
        runs.iter().flat_map(|run| (run.first..run.end()).map(move |n| (run.segment, n))).collect()
    }

    #[test]
    fn runs_are_merged_and_take_three_bytes_each() {
        let run: Vec<_> = (5..1_000).map(|n| (3, n)).collect();
        let bytes = gathered(&run);
        assert_eq!(bytes.len(), 2 + 1 + 1);
        assert_eq!(Runs::check(&bytes).unwrap().payloads(), 995);
        let every: Vec<_> = (0..100_000).map(|n| (3, 256 * n)).collect();
        assert_eq!(gathered(&every).len(), 3 + 3 * 99_999);
        assert_eq!(single(&gathered(&every)), every);
        assert_eq!(gathered(&[]), b"");
    }

    #[test]
    fn a_run_without_room_is_refused_and_the_others_stay() {
        let mut encoder = RunEncoder::default();
        let fitted = (0..).take_while(|n| encoder.push(1 + n % 2, 3_000_000_000)).count();
        assert!((100_000..350_000).contains(&fitted), "{fitted}");
        let bytes = encoder.finish();
        assert!(bytes.len() <= RUNS_BYTES_MAX, "{}", bytes.len());
        assert_eq!(single(&bytes).len(), fitted);
        // A payload that continues the last run needs no room.
        let (segment, last) = *single(&bytes).last().unwrap();
        assert!(encoder.push(segment, last + 1) && !encoder.push(9, 9));
        assert_eq!(single(&encoder.finish()).len(), fitted + 1);
    }

    #[test]
    fn invalid_runs_are_refused() {
        let largest = gathered(&[(u64::MAX, u32::MAX - 1)]);
        assert_eq!(single(&largest), [(u64::MAX, u32::MAX - 1)]);
        let nothing = [1, 5, 5];
        let no_run_before = [2, 0];
        let before_zero = [3, 5, 0, 2, 3];
        let cut = [3, 5, 0x80];
        let too_long = [3, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02, 0];
        let past_the_end = [5, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F];
        for bytes in [&nothing[..], &no_run_before, &before_zero, &cut, &too_long, &past_the_end] {
            assert_eq!(Runs::check(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_payloads_are_decoded_in_their_order(
            runs in vec((any::<u64>(), 0..u32::MAX - 9, 1_u32..9), 0..60),
            few in vec((0_u64..3, 0_u32..40, 1_u32..9), 0..60),
        ) {
            for runs in [runs, few] {
                let payloads: Vec<_> = runs
                    .iter()
                    .flat_map(|(segment, first, count)| (*first..first + count).map(|n| (*segment, n)))
                    .collect();
                let bytes = gathered(&payloads);
                prop_assert_eq!(&gathered_in_runs(&payloads), &bytes);
                prop_assert_eq!(single(&bytes), payloads);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..80)) {
            if let Some(runs) = Runs::check(&bytes) {
                prop_assert!(runs.iter().all(|run| run.count > 0 && run.end() > run.first));
                let mut again = Vec::new();
                let mut before = None;
                for run in runs.iter() {
                    encode(&mut again, before.replace(run), run);
                }
                prop_assert!(Runs::check(&again).unwrap().iter().eq(runs.iter()));
            }
        }
    }
}
