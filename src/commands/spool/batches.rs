//! Batches in doubt, uploaded again by a command: the same members under the same key, before
//! anything else in their core directory.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::spool::batches::ledger::JournalBatch;
use crate::spool::format::CommitGroup;
use crate::spool::format::runs::MemberRun;
use crate::spool::format::scan::ScanStep;
use crate::spool::offline::SegmentFile;
use crate::spool::takeover::discover::generations_in;

/// The segments of a core directory, from which members of batches are read.
pub(super) struct MemberFiles {
    /// Segments by the ids of their generations.
    paths: HashMap<u64, PathBuf>,
    open: HashMap<u64, IndexedFile>,
}

/// A segment and the offsets of its groups.
struct IndexedFile {
    file: SegmentFile,
    groups: Vec<(u64, CommitGroup)>,
}

impl MemberFiles {
    pub(super) fn of(core_dir: &Path) -> io::Result<MemberFiles> {
        Ok(MemberFiles { paths: generations_in(core_dir)?, open: HashMap::new() })
    }

    /// The members of `batch` in order. Lost ones are omitted and counted in `lost`.
    pub(super) fn payloads<'a>(
        &'a mut self,
        batch: &'a JournalBatch,
        lost: &'a mut u64,
    ) -> impl Iterator<Item = io::Result<Vec<u8>>> + 'a {
        batch.runs().iter().flat_map(move |run| match self.read(run) {
            Ok(found) => {
                *lost += u64::from(run.count) - found.len() as u64;
                found.into_iter().map(Ok).collect::<Vec<_>>()
            }
            Err(error) => vec![Err(error)],
        })
    }

    /// The payloads of one run that can be read.
    fn read(&mut self, run: MemberRun) -> io::Result<Vec<Vec<u8>>> {
        let Some(IndexedFile { file, groups }) = self.open(run.segment)? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let end = |group: &CommitGroup| group.head.first_ordinal.saturating_add(group.payloads);
        let from = groups.partition_point(|(_, group)| end(group) <= run.first);
        let within = |(_, group): &&(u64, CommitGroup)| group.head.first_ordinal < run.end();
        for (at, group) in groups[from..].iter().take_while(within) {
            match file.read_again(*at, group) {
                // The caller counts these members as lost.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => continue,
                read => read?,
            }
            let members = file.payloads(group);
            let members =
                members.filter(|payload| (run.first..run.end()).contains(&payload.ordinal));
            found.extend(members.map(|payload| payload.bytes.to_vec()));
        }
        Ok(found)
    }

    fn open(&mut self, id: u64) -> io::Result<Option<&mut IndexedFile>> {
        if !self.open.contains_key(&id) {
            let Some(path) = self.paths.get(&id) else { return Ok(None) };
            let (mut file, mut groups) = (SegmentFile::open(path)?, Vec::new());
            loop {
                match file.find_next()? {
                    ScanStep::Group(at, group) if group.head.label.id == id => {
                        groups.push((at, group))
                    }
                    ScanStep::End(_) => break,
                    _ => {}
                }
            }
            self.open.insert(id, IndexedFile { file, groups });
        }
        Ok(self.open.get_mut(&id))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::config::Config;
    use crate::control::{Exit, on_executor};
    use crate::key::RequestValues;
    use crate::queue::job::Stamp;
    use crate::spool::batches::ledger::{Ledger, journals_of};
    use crate::spool::format::record::{IntentRecord, SpoolRecord};
    use crate::spool::format::runs::{RunEncoder, Runs};
    use crate::spool::format::{
        DATA_START, HEAD_BYTES, Label, finish_group, group_bytes, record_bytes, write_record,
    };

    /// A segment of two groups with five payloads each, whose text is their number. If `damaged`, a
    /// byte of the second group is changed.
    fn write_segment(path: &Path, damaged: bool) {
        let mut bytes = vec![0; DATA_START as usize];
        for number in 0..2_u32 {
            let payloads: Vec<String> =
                (5 * number..5 * number + 5).map(|n| n.to_string()).collect();
            let body = record_bytes(5, 5, &RequestValues::default());
            let mut group = vec![0; group_bytes(body) as usize];
            let first = Stamp { unix_nanos: 7, seq: u64::from(5 * number) };
            write_record(
                &mut group[HEAD_BYTES..],
                first,
                &RequestValues::default(),
                payloads.iter().map(String::as_bytes),
            );
            let label = Label { segment_bytes: 0, id: 5, core: 0, node: "n".into() };
            finish_group(&mut group, &label, number, 5 * number, body);
            bytes.extend(group);
        }
        if damaged {
            let at = bytes.len() - 4096 + HEAD_BYTES;
            bytes[at] ^= 1;
        }
        bytes.resize(bytes.len() + 8_192, 0);
        fs::write(path, bytes).unwrap();
    }

    /// The spool of a dead server, with a done batch of payloads 0 and 1, and one in doubt of 7, 2
    /// and 3.
    fn left_behind(dir: &Path, form: &str, damaged: bool) -> PathBuf {
        let core_dir = dir.join("spool/n/core-0");
        fs::create_dir_all(&core_dir).unwrap();
        fs::write(dir.join("spool/n/lock"), "").unwrap();
        write_segment(&core_dir.join("5.seg"), damaged);
        let mut ledger = Ledger::default();
        for (key, members) in [("done.ndjson", &[0, 1][..]), ("in-doubt.ndjson", &[7, 2, 3])] {
            let mut encoder = RunEncoder::default();
            assert!(members.iter().all(|number| encoder.push(5, *number)));
            let runs = encoder.finish();
            let runs = Runs::check(&runs).unwrap();
            ledger.add(SpoolRecord::Intent(IntentRecord { key, form, runs }));
        }
        ledger.mark_done("done.ndjson");
        ledger.rewrite(&core_dir).unwrap();
        core_dir
    }

    fn config(dir: &Path) -> Config {
        let path = |name: &str| dir.join(name).display().to_string();
        let store = format!("file:{}", path("store"));
        let (spool, letters) = (path("spool"), path("letters"));
        let settings = [("STORE", &*store), ("SPOOL_DIR", &*spool), ("DEAD_LETTER_DIR", &*letters)];
        Config::from_settings(&settings).unwrap()
    }

    fn replay(dir: &Path) -> Exit {
        let config = config(dir);
        let places = super::super::open(&config, None).unwrap();
        on_executor(async move { places.replay(&config).await }).unwrap().unwrap()
    }

    fn objects(dir: &Path) -> BTreeSet<(String, String)> {
        let Ok(found) = fs::read_dir(dir.join("store")) else { return BTreeSet::new() };
        let found = found.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        found.map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect()
    }

    fn listed(dir: &Path) -> (String, String) {
        let places = super::super::open(&config(dir), None).unwrap();
        let (mut listed, mut exported) = (Vec::new(), Vec::new());
        places.list_to(&mut listed).unwrap();
        places.export_to(&mut exported, false).unwrap();
        (String::from_utf8(listed).unwrap(), String::from_utf8(exported).unwrap())
    }

    #[test]
    fn a_batch_in_doubt_keeps_its_key_and_members_are_not_single_objects() {
        let dir = tempfile::tempdir().unwrap();
        let core_dir = left_behind(dir.path(), "none", false);
        let (list, exported) = listed(dir.path());
        assert!(list.contains("1 batch in doubt, 1 done"), "{list}");
        assert!(list.contains("1 segment, 10 payloads, 8 unstored"), "{list}");
        assert_eq!(exported, "2\n3\n4\n5\n6\n7\n8\n9\n");
        assert_eq!(replay(dir.path()), Exit::Clean);
        let mut expected: BTreeSet<_> = [4, 5, 6, 8, 9]
            .map(|number| (format!("7-n-0-{number}.json"), number.to_string()))
            .into();
        expected.insert(("in-doubt.ndjson".into(), "7\n2\n3\n".into()));
        assert_eq!(objects(dir.path()), expected);
        assert!(!core_dir.exists(), "nothing is left");
    }

    #[test]
    fn a_batch_that_cannot_be_rebuilt_keeps_all_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let core_dir = left_behind(dir.path(), "ndjson+zip", false);
        assert_eq!(replay(dir.path()), Exit::Unstored);
        assert_eq!(objects(dir.path()), BTreeSet::new());
        assert!(core_dir.join("5.seg").exists() && journals_of(&core_dir).unwrap().len() == 1);
    }

    #[test]
    fn a_lost_member_is_omitted_and_a_damaged_journal_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let core_dir = left_behind(dir.path(), "none", true);
        assert_eq!(replay(dir.path()), Exit::Unstored);
        let batch = ("in-doubt.ndjson".to_owned(), "2\n3\n".to_owned());
        assert!(objects(dir.path()).contains(&batch), "{:?}", objects(dir.path()));
        let again = tempfile::tempdir().unwrap();
        let core_dir_again = left_behind(again.path(), "none", false);
        assert_ne!(core_dir, core_dir_again);
        let verified = |dir: &Path| {
            let mut out = Vec::new();
            let exit = super::super::open(&config(dir), None).unwrap().verify_to(&mut out);
            (exit.unwrap(), String::from_utf8(out).unwrap())
        };
        let (exit, said) = verified(again.path());
        assert_eq!(exit, Exit::Clean, "{said}");
        assert!(said.contains("1 segment with 2 whole groups, 1 journal of batches, 0"), "{said}");
        let journal = &journals_of(&core_dir_again).unwrap()[0];
        let mut bytes = fs::read(journal).unwrap();
        bytes[DATA_START as usize + HEAD_BYTES] ^= 1;
        fs::write(journal, &bytes).unwrap();
        let (_, said) = verified(again.path());
        assert!(said.contains("torn at byte 131072"), "{said}");
        fs::write(journal, vec![b'x'; bytes.len()]).unwrap();
        let (exit, said) = verified(again.path());
        assert_eq!(exit, Exit::Unstored, "{said}");
        assert!(said.contains("batches: damaged from the first group on"), "{said}");
    }
}
