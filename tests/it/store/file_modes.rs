//! `FILE_MODE`: what a `file:` store makes has exactly these permissions, under every umask.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::support::Server;

/// Becomes the same command under another umask.
fn under_umask(command: &mut Command, umask: &str) {
    let mut wrapped = Command::new("sh");
    wrapped.args(["-c", r#"umask "$0"; exec "$@""#, umask]).arg(command.get_program());
    wrapped.args(command.get_args()).current_dir(command.get_current_dir().unwrap());
    wrapped.env_clear().stdin(std::process::Stdio::null());
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    *command = wrapped;
}

/// Permissions of everything below `path`, files and directories apart.
fn permissions(path: &Path, files: &mut Vec<u32>, directories: &mut Vec<u32>) {
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    directories.push(mode(path));
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            permissions(&path, files, directories);
        } else {
            files.push(mode(&path));
        }
    }
}

#[test]
fn files_and_directories_are_as_file_mode_says_whatever_the_umask() {
    for (umask, mode, of_files, of_directories) in [
        ("022", None, 0o600, 0o700),
        ("000", None, 0o600, 0o700),
        ("077", Some("0640"), 0o640, 0o750),
        ("027", Some("644"), 0o644, 0o755),
        ("022", Some("0660"), 0o660, 0o770),
        ("077", Some("0666"), 0o666, 0o777),
    ] {
        let mut settings = vec![
            ("STORE", "file:./data/of/a tenant"),
            ("KEY", "{field:/t}/{unix_nanos}-{node}-{core}-{seq}.json"),
        ];
        settings.extend(mode.map(|mode| ("FILE_MODE", mode)));
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let server = Server::start_by(dir, &settings, |command| under_umask(command, umask));
        assert_eq!(server.post_payloads(&[r#"{"t":"a"}"#, r#"{"t":"b"}"#]).status, 200);
        server.wait_idle();
        let (mut files, mut directories) = (Vec::new(), Vec::new());
        permissions(&server.path("data"), &mut files, &mut directories);
        let case = format!("umask {umask}, FILE_MODE {mode:?}");
        assert_eq!(files, [of_files; 2], "{case}");
        // data, of, a tenant, its .millrace-tmp, a and b.
        assert_eq!(directories, [of_directories; 6], "{case}");
        assert_eq!(server.stop().status, 0);
    }
}

#[test]
fn what_was_there_keeps_its_permissions_and_its_group_bit() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o2755)).unwrap();
    let server = Server::start_in(dir, &[]);
    assert_eq!(server.post_payloads(&["1"]).status, 200);
    server.wait_idle();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&data), 0o2755);
    assert_eq!(mode(&data.join(".millrace-tmp")), 0o2700, "of the directory's group");
}
