//! Many dead letters in one file, `{stem of the first}.letters`: a stop writes its dead letters
//! sequentially.
//!
//! Each dead letter, in the order of writing, has this form:
//!
//! ```text
//! {"key":"1-n-0-7.json","store":"null:", … ,"bytes":5,"crc32":"c7d50a3f"}
//! [1,2]
//! ```
//!
//! One line of JSON (the [`DeadLetter`] and a checksum), then the object's bytes, then a line feed.
//! `bytes` gives their number, because the object may contain line feeds. The checksum is the
//! CRC-32 of the line up to `,"crc32"` and of the object's bytes. A file gets its name only after
//! it has been written completely. If the disk loses or changes a part, lengths and checksums tell,
//! and a reader stops at the first damaged dead letter.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use flate2::Crc;

use super::{DeadLetter, DeadLetterError, DeadLetters, create_private};
use crate::ownership::give_to_owner_of;

/// Extension of a file of many dead letters.
pub(super) const BUNDLE: &str = "letters";
/// Between a dead letter's members and its checksum of eight hexadecimal digits.
const CRC_START: &str = r#","crc32":""#;
const CRC_END: &str = r#""}"#;
/// Longest line that a reader accepts. A dead letter has a key, a store and a bounded error: a few
/// kilobytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Buffer of one write, so that small payloads share a write.
const BUFFER_BYTES: usize = 256 << 10;
/// Buffer of a file whose dead letters are counted.
const COUNT_BUFFER_BYTES: usize = 8 << 10;

/// Writes dead letters one after another; [`BundleWriter::publish`] makes them visible together.
pub struct BundleWriter {
    dead: DeadLetters,
    /// Created with the first dead letter.
    file: Option<Unfinished>,
    /// Where each dead letter ends.
    ends: Vec<u64>,
    /// Error of the first failed write. The file may then end within a dead letter, so no more are
    /// written.
    failed: Option<String>,
}

struct Unfinished {
    out: BufWriter<File>,
    path: PathBuf,
    stem: String,
}

/// The outcome of [`BundleWriter::publish`].
pub struct Published {
    /// Number of visible dead letters, from the first on.
    pub letters: usize,
    /// Why the others are not visible.
    pub error: Option<io::Error>,
    dead: DeadLetters,
    file: Option<File>,
}

impl BundleWriter {
    pub(super) fn new(dead: DeadLetters) -> BundleWriter {
        BundleWriter { dead, file: None, ends: Vec::new(), failed: None }
    }

    /// Adds a dead letter; the file is named after the first one's `stem`.
    ///
    /// # Errors
    /// No room for this dead letter (a smaller one may fit), or the file is no longer writable.
    pub fn append(
        &mut self,
        stem: &str,
        letter: &DeadLetter,
        body: &[impl AsRef<[u8]>],
    ) -> Result<(), DeadLetterError> {
        let body: Vec<&[u8]> = body.iter().map(AsRef::as_ref).collect();
        if let Some(why) = &self.failed {
            return Err(io::Error::other(why.clone()).into());
        }
        let line = line(letter, &body);
        let bytes: usize = body.iter().map(|part| part.len()).sum();
        let size = (line.len() + bytes + 1) as u64;
        if !self.dead.take_room(size) {
            return Err(DeadLetterError::Full { max: self.dead.max });
        }
        if let Err(error) = self.write(stem, line.as_bytes(), &body) {
            self.dead.used.fetch_sub(size, Relaxed);
            return Err(error.into());
        }
        self.ends.push(end_of(&self.ends) + size);
        Ok(())
    }

    fn write(&mut self, stem: &str, line: &[u8], body: &[&[u8]]) -> io::Result<()> {
        if self.file.is_none() {
            let path = self.dead.unfinished_path(stem);
            let out = BufWriter::with_capacity(BUFFER_BYTES, create_private(&path)?);
            self.file = Some(Unfinished { out, path, stem: stem.to_owned() });
        }
        let out = &mut self.file.as_mut().expect("made above").out;
        let mut pieces = [line].into_iter().chain(body.iter().copied()).chain([&b"\n"[..]]);
        let written = pieces.try_for_each(|piece| out.write_all(piece));
        written.inspect_err(|error| self.failed = Some(error.to_string()))
    }

    /// Gives the file its name, with the complete dead letters in it. They then survive this
    /// process, and after [`Published::sync`] a power failure. The two are separate because a sync
    /// that does not end in time must not keep the dead letters invisible.
    #[expect(clippy::disallowed_methods, reason = "the last step of a stop may block")]
    pub fn publish(mut self) -> Published {
        let length = end_of(&self.ends);
        let mut outcome =
            Published { letters: 0, error: None, dead: self.dead.clone(), file: None };
        let Some(Unfinished { mut out, path, stem }) = self.file.take() else { return outcome };
        let flushed = match (out.flush(), self.failed.take()) {
            (Ok(()), Some(why)) => Err(io::Error::other(why)),
            (flushed, _) => flushed,
        };
        let (file, _what_the_disk_refused) = out.into_parts();
        let mut whole = self.ends.len();
        let named = (|| {
            if flushed.is_err() {
                // Bytes are written in order, so everything before the file's end is complete.
                let written = file.metadata()?.len();
                whole = self.ends.partition_point(|end| *end <= written);
                file.set_len(end_of(&self.ends[..whole]))?;
            }
            if whole == 0 { Ok(()) } else { fs::rename(&path, self.dead.path(&stem, BUNDLE)) }
        })();
        if named.is_err() {
            whole = 0;
        }
        if whole == 0 {
            let _left_for_the_sweep = fs::remove_file(&path);
        }
        self.dead.used.fetch_sub(length - end_of(&self.ends[..whole]), Relaxed);
        outcome.letters = whole;
        if whole > 0 {
            self.dead.note_bundle(&stem, end_of(&self.ends[..whole]), whole as u64);
        }
        outcome.error = named.and(flushed).err();
        outcome.file = Some(file);
        outcome
    }
}

fn end_of(ends: &[u64]) -> u64 {
    ends.last().copied().unwrap_or(0)
}

impl Published {
    /// Makes the dead letters and their file's name durable.
    pub fn sync(&self) -> io::Result<()> {
        if let Some(file) = &self.file {
            file.sync_data()?;
        }
        self.dead.sync_directory()
    }
}

/// The number of dead letters in the file at `path` from byte `from` on, where one begins, up to the
/// first that is not whole. It ends after about `bytes_max` bytes, and says where to go on; `None`:
/// there is no more. Bodies are skipped, and no checksum is looked at. Blocks.
#[expect(
    clippy::disallowed_methods,
    reason = "called off the executors or on their blocking thread"
)]
pub(super) fn count(path: &Path, from: u64, bytes_max: u64) -> (u64, Option<u64>) {
    #[derive(serde::Deserialize)]
    struct Length {
        bytes: u64,
    }
    let Ok(mut file) = File::open(path) else { return (0, None) };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    if file.seek(SeekFrom::Start(from)).is_err() {
        return (0, None);
    }
    // Small, so that of large bodies little is read.
    let mut input = BufReader::with_capacity(COUNT_BUFFER_BYTES, file);
    let (mut letters, mut at, mut line) = (0, from, Vec::new());
    while at < length {
        if at - from >= bytes_max {
            return (letters, Some(at));
        }
        line.clear();
        let Ok(read) = (&mut input).take(LINE_BYTES_MAX).read_until(b'\n', &mut line) else {
            break;
        };
        let Ok(Length { bytes }) = serde_json::from_slice(&line) else { break };
        at = bytes.saturating_add(at + read as u64 + 1);
        // Lengths beyond the file's are not passed on.
        if at > length || input.seek_relative(bytes as i64 + 1).is_err() {
            break;
        }
        letters += 1;
    }
    (letters, None)
}

/// The line before a dead letter's body, line feed included.
fn line(letter: &DeadLetter, body: &[&[u8]]) -> String {
    let mut line = serde_json::to_string(letter).expect("a dead letter is plain data");
    assert_eq!(line.pop(), Some('}'), "a dead letter is a JSON object");
    let crc = crc(line.as_bytes(), body);
    line.push_str(&format!("{CRC_START}{crc:08x}{CRC_END}\n"));
    line
}

fn crc(line: &[u8], body: &[&[u8]]) -> u32 {
    let mut crc = Crc::new();
    crc.update(line);
    body.iter().for_each(|part| crc.update(part));
    crc.sum()
}

/// One dead letter of a bundle.
#[derive(PartialEq, Eq)]
pub struct BundleRecord {
    pub letter: DeadLetter,
    /// Its object's bytes.
    pub payload: Vec<u8>,
    /// Its range in the file.
    pub span: Range<u64>,
}

impl fmt::Debug for BundleRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}, *** {} bytes", self.letter, self.span, self.payload.len())
    }
}

/// The first damaged position of a bundle; nothing after it is read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged at byte {at}: {why}")]
pub struct BundleDamage {
    pub at: u64,
    pub why: String,
}

/// Reads a bundle from the first dead letter on; ends after the last dead letter or the first
/// damage.
pub struct BundleReader<R = File> {
    input: BufReader<R>,
    at: u64,
    length: u64,
    ended: bool,
}

impl BundleReader {
    #[expect(clippy::disallowed_methods, reason = "called by the commands only")]
    pub(super) fn open(path: &Path) -> io::Result<BundleReader> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(BundleReader::new(file, length))
    }
}

impl<R: Read> BundleReader<R> {
    /// Reads a file of `length` bytes.
    pub fn new(file: R, length: u64) -> BundleReader<R> {
        let input = BufReader::with_capacity(BUFFER_BYTES, file);
        BundleReader { input, at: 0, length, ended: false }
    }

    /// Size of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    fn read(&mut self) -> Result<BundleRecord, String> {
        let unreadable = |error: io::Error| format!("it cannot be read: {error}");
        let mut line = Vec::new();
        let mut limited = (&mut self.input).take(LINE_BYTES_MAX);
        limited.read_until(b'\n', &mut line).map_err(unreadable)?;
        let payload_at = self.at + line.len() as u64;
        if line.pop() != Some(b'\n') {
            return Err("the line of a dead letter has no end".to_owned());
        }
        let letter: DeadLetter = serde_json::from_slice(&line)
            .map_err(|error| format!("the line of a dead letter was expected: {error}"))?;
        let (covered, recorded) = split_crc(&line).ok_or("a dead letter has no checksum")?;
        // Checked before a buffer of that size is allocated.
        if letter.bytes >= self.length - payload_at {
            return Err("a payload is cut short".to_owned());
        }
        let mut payload = vec![0; letter.bytes as usize];
        let mut end = [0];
        self.input.read_exact(&mut payload).map_err(unreadable)?;
        self.input.read_exact(&mut end).map_err(unreadable)?;
        if end != *b"\n" || crc(covered, &[&payload]) != recorded {
            return Err("a dead letter does not match its checksum".to_owned());
        }
        let span = self.at..payload_at + letter.bytes + 1;
        Ok(BundleRecord { letter, payload, span })
    }
}

/// A line without its checksum, and the checksum.
fn split_crc(line: &[u8]) -> Option<(&[u8], u32)> {
    let line = line.strip_suffix(CRC_END.as_bytes())?;
    let (line, digits) = line.split_at_checked(line.len().checked_sub(8)?)?;
    let digits = str::from_utf8(digits).ok()?;
    let crc = u32::from_str_radix(digits, 16).ok().filter(|crc| format!("{crc:08x}") == digits)?;
    Some((line.strip_suffix(CRC_START.as_bytes())?, crc))
}

impl<R: Read> Iterator for BundleReader<R> {
    type Item = Result<BundleRecord, BundleDamage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        // A file without a dead letter is never written, so it counts as damage too.
        let record = self.read().map_err(|why| BundleDamage { at: self.at, why });
        self.at = record.as_ref().map_or(self.length, |record| record.span.end);
        self.ended = self.at == self.length;
        Some(record)
    }
}

impl DeadLetters {
    /// Rewrites a bundle with only the ranges of `left`, in ascending order; removes it if there
    /// are none. A crash leaves the old file or the new one.
    #[expect(clippy::disallowed_methods, reason = "called by the commands only")]
    pub fn keep(&self, stem: &str, left: &[Range<u64>]) -> io::Result<()> {
        let path = self.path(stem, BUNDLE);
        if left.is_empty() {
            return fs::remove_file(path);
        }
        let unfinished = self.unfinished_path(stem);
        let written = (|| {
            let mut from = File::open(&path)?;
            let mut to = create_private(&unfinished)?;
            give_to_owner_of(&to, &from)?;
            for span in left {
                from.seek(SeekFrom::Start(span.start))?;
                let size = span.end - span.start;
                if io::copy(&mut (&from).take(size), &mut to)? != size {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            to.sync_data()?;
            fs::rename(&unfinished, &path)?;
            self.sync_directory()
        })();
        if written.is_err() {
            let _may_be_absent = fs::remove_file(unfinished);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coding::Coding;
    use crate::queue::job::Payload;
    use crate::store::Object;

    const PAYLOADS: [&[u8]; 5] =
        [b"{}", b"", b"[1,\n2]\n\n{\"key\":\"x\",\"bytes\":0}\n", b"\"\xe2\x98\x83\"", b"\n"];

    fn letter(key: &str, payload: &[u8]) -> DeadLetter {
        let payload = Payload::from(payload.to_vec());
        DeadLetter::now(
            &Object::of(key, &payload),
            1,
            "null:".into(),
            "Stopped: \"so\"\n".into(),
            0,
        )
    }

    fn open(max: u64) -> (tempfile::TempDir, DeadLetters) {
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::open(dir.path(), max).unwrap();
        (dir, dead)
    }

    /// Appends `payloads` under the stems `0`, `1` and so on.
    fn append_all(dead: &DeadLetters, payloads: &[&[u8]]) -> BundleWriter {
        let mut bundle = dead.bundle();
        for (i, payload) in payloads.iter().enumerate() {
            let stem = i.to_string();
            bundle.append(&stem, &letter(&stem, payload), &[payload]).unwrap();
        }
        bundle
    }

    fn write(dead: &DeadLetters, payloads: &[&[u8]]) {
        let published = append_all(dead, payloads).publish();
        assert_eq!(published.letters, payloads.len());
        assert!(published.error.is_none());
        published.sync().unwrap();
    }

    fn names(dir: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn count_all(path: &Path) -> u64 {
        count(path, 0, u64::MAX).0
    }

    fn count_some_to_the_end(dead: &DeadLetters) {
        while dead.count_some() {}
    }

    #[test]
    fn letters_are_counted_up_to_the_first_that_is_not_whole() {
        let (dir, dead) = open(1 << 20);
        // Bodies within the buffer, larger than it, and as long as it.
        let large: Vec<Vec<u8>> = [1, 8 << 10, 70_000].map(|n| vec![b'\n'; n]).to_vec();
        let payloads: Vec<&[u8]> =
            PAYLOADS.into_iter().chain(large.iter().map(Vec::as_slice)).collect();
        write(&dead, &payloads);
        let (path, all) = (dir.path().join("0.letters"), payloads.len() as u64);
        assert_eq!((dead.waiting(), count_all(&path)), (all, all));
        // In parts of any size.
        for part in [1, 7, 1_000] {
            let (mut letters, mut from) = (0, Some(0));
            while let Some(at) = from {
                let (more, next) = count(&path, at, part);
                assert!(next.is_none_or(|next| next >= at + part), "{part} {at} {next:?}");
                (letters, from) = (letters + more, next);
            }
            assert_eq!(letters, all, "{part}");
        }
        // A start reads nothing of it.
        let reopened = DeadLetters::open(dir.path(), 1 << 20).unwrap();
        assert_eq!((reopened.waiting(), reopened.used()), (0, dead.used()));
        assert_eq!(reopened.uncounted(), dead.used());
        count_some_to_the_end(&reopened);
        assert_eq!((reopened.waiting(), reopened.uncounted()), (all, 0));
        reopened.remeasure();
        assert_eq!((reopened.waiting(), reopened.uncounted()), (all, 0));
        assert_eq!(dead.uncounted(), 0, "it has written it");
        let (file, length) = (fs::OpenOptions::new().write(true).open(&path).unwrap(), dead.used());
        for (cut, whole) in [(1, all - 1), (70_001, all - 1), (75_000, all - 2), (length, 0)] {
            file.set_len(length - cut).unwrap();
            assert_eq!(count_all(&path), whole, "{cut} bytes less");
            dead.remeasure();
            assert_eq!((dead.waiting(), dead.used()), (0, length - cut));
            count_some_to_the_end(&dead);
            assert_eq!((dead.waiting(), dead.uncounted()), (whole, 0));
        }
        assert_eq!(count_all(Path::new("/nowhere")), 0);
    }

    #[test]
    fn letters_come_back_as_they_were_whatever_is_in_them() {
        let (dir, dead) = open(10_000);
        let mut bundle = append_all(&dead, &PAYLOADS);
        assert!(dead.list().unwrap().bundles.is_empty(), "not to be seen before it is whole");
        let last = letter("last", b"1");
        bundle.append("last", &last, &[b"1"]).unwrap();
        assert_eq!(bundle.publish().letters, 6);
        assert_eq!(names(&dir), ["0.letters"]);
        assert_eq!(dead.list().unwrap().bundles, ["0"]);
        let reader = dead.read_bundle("0").unwrap();
        let length = reader.length();
        assert_eq!(length, dead.used());
        let records: Vec<BundleRecord> = reader.map(Result::unwrap).collect();
        let payloads: Vec<&[u8]> = records.iter().map(|record| &record.payload[..]).collect();
        assert_eq!(payloads, [&PAYLOADS[..], &[b"1"]].concat());
        assert_eq!(records[5].letter, last);
        assert_eq!((records[0].span.start, records[5].span.end), (0, length));
    }

    #[test]
    fn an_object_of_many_parts_is_one_letter_and_old_letters_stand_beside_it() {
        let (dir, dead) = open(10_000);
        // Written before dead letters said how many payloads they hold.
        let line = r#"{"key":"1.json","store":"null:","error":"e","attempts":0,"unix_seconds":7,"bytes":3"#;
        let crc = crc(line.as_bytes(), &[b"[1]"]);
        fs::write(dir.path().join("0.letters"), format!("{line},\"crc32\":\"{crc:08x}\"}}\n[1]\n"))
            .unwrap();
        let old: Vec<BundleRecord> = dead.read_bundle("0").unwrap().map(Result::unwrap).collect();
        assert_eq!((old[0].letter.payloads, old[0].letter.content_encoding), (1, None));
        assert_eq!((&old[0].letter.key[..], &old[0].payload[..]), ("1.json", &b"[1]"[..]));

        let parts: Vec<Payload> = PAYLOADS.iter().map(|part| part.to_vec().into()).collect();
        let coding = Some(Coding::Gzip);
        let object = Object { key: "dt=1/x.gz", body: &parts, coding, sums: None };
        let letter = DeadLetter::now(&object, 5, "null:".into(), "Stopped: so".into(), 0);
        let mut bundle = append_all(&dead, &[b"{}"]);
        bundle.append("many", &letter, &parts).unwrap();
        assert_eq!(bundle.publish().letters, 2);
        let records: Vec<BundleRecord> =
            dead.read_bundle("0").unwrap().map(Result::unwrap).collect();
        assert_eq!((&records[1].letter, &records[1].payload), (&letter, &PAYLOADS.concat()));
        assert_eq!(letter.bytes, PAYLOADS.concat().len() as u64);
    }

    #[test]
    fn no_letters_are_no_file() {
        let (dir, dead) = open(10_000);
        assert_eq!(dead.bundle().publish().letters, 0);
        assert_eq!(names(&dir), [""; 0]);
    }

    #[test]
    fn the_bound_holds_letter_by_letter_and_nothing_is_measured() {
        let (dir, dead) = open(500);
        let mut bundle = append_all(&dead, &[&[b'1'; 100]]);
        let large = bundle.append("1", &letter("1", &[b'1'; 300]), &[&[b'1'; 300]]);
        assert!(matches!(large, Err(DeadLetterError::Full { max: 500 })));
        bundle.append("2", &letter("2", b"2"), &[b"2"]).unwrap();
        assert!(dead.may_measure(), "it was not measured");
        assert_eq!(bundle.publish().letters, 2);
        assert_eq!(dead.used(), fs::metadata(dir.path().join("0.letters")).unwrap().len());
    }

    #[test]
    fn a_file_that_cannot_be_named_leaves_nothing_and_says_why() {
        let (dir, dead) = open(10_000);
        fs::create_dir(dir.path().join("0.letters")).unwrap();
        let published = append_all(&dead, &PAYLOADS).publish();
        assert_eq!(published.letters, 0);
        assert!(published.error.is_some());
        assert_eq!((names(&dir), dead.used()), (vec!["0.letters".to_owned()], 0));
    }

    #[test]
    fn what_was_written_before_the_disk_failed_is_kept_to_the_last_whole_letter() {
        let (dir, dead) = open(1 << 30);
        let mut bundle = append_all(&dead, &[&[b'1'; BUFFER_BYTES], b"2"]);
        // The disk takes no more: what is still in the buffer, the second dead letter, does not get
        // there.
        let file = bundle.file.as_mut().unwrap();
        file.out.get_mut().sync_all().unwrap();
        let read_only = File::open(&file.path).unwrap();
        let out = std::mem::replace(file.out.get_mut(), read_only);
        bundle
            .append("2", &letter("2", &[b'1'; BUFFER_BYTES]), &[&[b'1'; BUFFER_BYTES]])
            .unwrap_err();
        bundle.append("3", &letter("3", b"3"), &[b"3"]).expect_err("torn");
        *bundle.file.as_mut().unwrap().out.get_mut() = out;
        let published = bundle.publish();
        assert_eq!(published.letters, 2, "the buffer reached the disk in the end");
        assert!(published.error.is_some());
        assert_eq!(dead.read_bundle("0").unwrap().map(Result::unwrap).count(), 2);
        assert_eq!(dead.used(), fs::metadata(dir.path().join("0.letters")).unwrap().len());
    }

    #[test]
    fn damage_at_any_byte_is_named_and_never_yields_another_letter() {
        let (dir, dead) = open(10_000);
        write(&dead, &PAYLOADS);
        let whole = fs::read(dir.path().join("0.letters")).unwrap();
        let read = |bytes: &[u8]| -> Vec<Result<BundleRecord, BundleDamage>> {
            BundleReader::new(bytes, bytes.len() as u64).collect()
        };
        let intact = read(&whole);
        let check = |bytes: &[u8], at: usize, what: &str| {
            let found = read(bytes);
            let good = found.iter().take_while(|record| record.is_ok()).count();
            assert_eq!(found[..good], intact[..good], "{what} at {at}");
            let hit = intact
                .iter()
                .position(|record| record.as_ref().unwrap().span.contains(&(at as u64)));
            let hit = hit.unwrap();
            assert_eq!(good, hit, "{what} at {at}: all before it and none after");
            let start = intact[hit].as_ref().unwrap().span.start;
            match &found[good..] {
                [Err(damage)] => assert_eq!(damage.at, start, "{what} at {at}"),
                // Cut between two dead letters: a shorter file, nothing wrong with it.
                [] => assert_eq!((bytes.len() as u64, start > 0), (start, true), "{what} at {at}"),
                more => panic!("{what} at {at}: {more:?}"),
            }
        };
        for at in 0..whole.len() {
            check(&whole[..at], at, "cut");
            for (what, byte) in [
                ("zero", 0),
                ("bit 0", whole[at] ^ 1),
                ("bit 5", whole[at] ^ 0x20),
                ("bit 7", whole[at] ^ 0x80),
                ("line feed", b'\n'),
                ("nine", b'9'),
            ] {
                if byte != whole[at] {
                    let mut bytes = whole.clone();
                    bytes[at] = byte;
                    check(&bytes, at, what);
                }
            }
            let mut zeros = whole.clone();
            zeros[at..].fill(0);
            check(&zeros, at, "zeros from here");
        }
    }

    #[test]
    fn a_size_beyond_the_file_allocates_nothing() {
        let (dir, dead) = open(10_000);
        let huge = DeadLetter { bytes: u64::MAX - 3, ..letter("0", b"") };
        fs::write(dir.path().join("0.letters"), line(&huge, &[]) + "\n").unwrap();
        let found: Vec<_> = dead.read_bundle("0").unwrap().collect();
        assert_eq!(found, [Err(BundleDamage { at: 0, why: "a payload is cut short".into() })]);
    }

    #[test]
    fn what_is_kept_is_read_again_and_keeping_nothing_removes() {
        let (dir, dead) = open(10_000);
        write(&dead, &PAYLOADS);
        let all: Vec<BundleRecord> = dead.read_bundle("0").unwrap().map(Result::unwrap).collect();
        dead.keep("0", &[all[1].span.clone(), all[3].span.start..all[4].span.end]).unwrap();
        let left: Vec<BundleRecord> = dead.read_bundle("0").unwrap().map(Result::unwrap).collect();
        assert_eq!(left.iter().map(|r| &r.letter.key[..]).collect::<Vec<_>>(), ["1", "3", "4"]);
        assert_eq!(left[1].payload, all[3].payload);
        assert_eq!(names(&dir), ["0.letters"]);
        dead.keep("0", &[0..2, 2..1 << 40]).expect_err("more than there is");
        assert_eq!(dead.read_bundle("0").unwrap().count(), 3, "a failure changes nothing");
        assert_eq!(names(&dir), ["0.letters"]);
        dead.keep("0", &[]).unwrap();
        assert_eq!(names(&dir), [""; 0]);
    }
}
