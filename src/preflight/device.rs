//! The facts that glommio reads about the spool's device when it opens a file for direct I/O. It
//! panics if it cannot read one, which would end a core, so they are read here first.

#![expect(clippy::disallowed_methods, reason = "runs before any executor")]

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Finding;

/// A failure if glommio could not read about the device of `directory`, or of its nearest existing
/// ancestor. A device that `/sys` does not list is fine.
pub(super) fn finding(directory: &Path) -> Option<Finding> {
    let above = directory.ancestors().find_map(|path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        fs::metadata(path).ok()
    });
    let major = rustix::fs::major(above?.dev());
    let why = unreadable(Path::new("/sys"), major).err()?;
    Some(Finding::fail(
        "SPOOL_DIR",
        format!("the block device of {} cannot be examined: {why}", directory.display()),
        "let this process read /sys/dev/block and what it links to, or do not mount /sys at all; or put SPOOL_DIR \
         on another device",
    ))
}

/// Numbers in a device's `queue` directory that glommio 0.9 reads (`sys/sysfs.rs`).
const NUMBERS: [&str; 7] = [
    "rotational",
    "minimum_io_size",
    "optimal_io_size",
    "logical_block_size",
    "physical_block_size",
    "max_sectors_kb",
    "max_segment_size",
];

/// Reads as glommio does; it treats a device that is not listed as memory.
fn unreadable(sys: &Path, major: u32) -> Result<(), String> {
    let named = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let link = sys.join(format!("dev/block/{major}:0"));
    let device = match link.canonicalize() {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(named(&link, &error)),
    };
    let read = |name: &str| {
        let path = device.join("queue").join(name);
        fs::read_to_string(&path).map_err(|error| named(&path, &error))
    };
    for name in NUMBERS {
        let text = read(name)?;
        if text.trim_matches('\n').parse::<isize>().is_err() {
            return Err(format!("queue/{name} is {text:?}, not a number"));
        }
    }
    let cache = read("write_cache")?;
    if !matches!(cache.trim_matches('\n'), "write back" | "write through") {
        return Err(format!("queue/write_cache is {cache:?}"));
    }
    let slaves = device.join("slaves");
    let listed = fs::read_dir(&slaves).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    listed.map(drop).map_err(|error| named(&slaves, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `/sys` with one device, 8:0.
    fn described() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("devices/sda");
        fs::create_dir_all(device.join("queue")).unwrap();
        fs::create_dir_all(device.join("slaves")).unwrap();
        for name in NUMBERS {
            fs::write(device.join("queue").join(name), "512\n").unwrap();
        }
        fs::write(device.join("queue/write_cache"), "write back\n").unwrap();
        fs::create_dir_all(dir.path().join("dev/block")).unwrap();
        std::os::unix::fs::symlink(&device, dir.path().join("dev/block/8:0")).unwrap();
        dir
    }

    #[test]
    fn what_glommio_would_panic_on_is_found() {
        let sys = described();
        assert_eq!(unreadable(sys.path(), 8), Ok(()));
        assert_eq!(unreadable(sys.path(), 9), Ok(()), "not listed");
        assert_eq!(unreadable(Path::new("/nowhere"), 8), Ok(()), "no /sys");
        let queue = sys.path().join("devices/sda/queue");
        for (name, text) in [("rotational", ""), ("max_segment_size", "x"), ("write_cache", "none")]
        {
            let good = fs::read(queue.join(name)).unwrap();
            fs::write(queue.join(name), text).unwrap();
            assert!(unreadable(sys.path(), 8).unwrap_err().contains(name));
            fs::remove_file(queue.join(name)).unwrap();
            assert!(unreadable(sys.path(), 8).unwrap_err().contains(name));
            fs::write(queue.join(name), good).unwrap();
        }
        fs::remove_dir(sys.path().join("devices/sda/slaves")).unwrap();
        assert!(unreadable(sys.path(), 8).unwrap_err().contains("slaves"));
    }

    #[test]
    fn the_nearest_directory_that_exists_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(finding(&dir.path().join("not/yet/made")), None);
        assert_eq!(finding(Path::new("relative")), None);
    }
}
