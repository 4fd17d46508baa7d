//! Who may get the admin token over plain HTTP. The address comes from settings or from the command
//! line, and while the server is down any user of this host may listen there: so the token goes to a
//! socket of this host alone, and only if it is of a user who could have the token anyway.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::config::{AdminTokenSource, Config};
use crate::preflight::{TcpRow, listeners, tcp_rows};

/// Whom a secret is sent to without TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PlainTrust {
    /// To sockets of this host that belong to these users.
    Users(BTreeSet<u32>),
    /// To whoever answers: that was asked for.
    Anybody,
}

impl PlainTrust {
    /// Root and this user.
    pub(super) fn own() -> PlainTrust {
        PlainTrust::Users([0, rustix::process::geteuid().as_raw()].into())
    }

    /// Besides, those to whom the files of `config` belong, which the server's user has: the token's
    /// own, and the directories that the server keeps for itself. A relative path could mean
    /// somebody else's.
    pub(super) fn of(config: &Config) -> PlainTrust {
        let PlainTrust::Users(mut users) = PlainTrust::own() else { return PlainTrust::own() };
        let token = match &config.admin_token {
            Some(AdminTokenSource::File(path)) => Some(path.as_path()),
            Some(AdminTokenSource::Setting(_)) | None => None,
        };
        let spool = config.spool.as_ref().map(|spool| spool.dir.as_path());
        let paths = [token, spool, Some(config.dead_letter_dir.as_path())];
        let owner = |path: &Path| std::fs::metadata(path).ok().map(|about| about.uid());
        let absolute = paths.into_iter().flatten().filter(|path| path.is_absolute());
        users.extend(absolute.filter_map(owner));
        PlainTrust::Users(users)
    }

    /// Whether a secret may be sent on the connection between `local` and `peer`.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub(super) fn judge(&self, local: SocketAddr, peer: SocketAddr) -> Result<(), String> {
        let PlainTrust::Users(users) = self else { return Ok(()) };
        let refused = |why: String| {
            Err(format!(
                "the admin token is not sent in the clear: {why}; give an https:// URL, or \
                 --plain-token if you mean it"
            ))
        };
        let (rows, listening) = match (tcp_rows(peer.port()), listeners(peer)) {
            (Ok(rows), Ok(listening)) => (rows, listening),
            (Err(error), _) | (_, Err(error)) => {
                return refused(format!("who holds {peer} cannot be seen ({error})"));
            }
        };
        let is_same = |a: SocketAddr, b: SocketAddr| {
            a.port() == b.port() && a.ip().to_canonical() == b.ip().to_canonical()
        };
        let is_other_end = |row: &&TcpRow| {
            !row.is_listening && is_same(row.local, peer) && is_same(row.remote, local)
        };
        let Some(other_end) = rows.iter().find(is_other_end) else {
            return refused(format!("{peer} is not on this host, or behind a port forwarding"));
        };
        // Until a connection is accepted it is its listener's; then it may be somebody else's.
        let accepted = (other_end.inode != 0).then_some(*other_end);
        if accepted.is_none() && listening.is_empty() {
            return refused(format!("nobody listens on {peer}"));
        }
        match listening.iter().chain(&accepted).find(|row| !users.contains(&row.uid)) {
            None => Ok(()),
            Some(TcpRow { uid, .. }) => refused(format!(
                "{peer} is held by user {uid}, who is neither root nor this user, and owns neither \
                 ADMIN_TOKEN_FILE nor SPOOL_DIR or DEAD_LETTER_DIR"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn only_trusted_users_of_this_host_may_get_a_secret() {
        let me = rustix::process::geteuid().as_raw();
        let stranger = PlainTrust::Users([me + 1].into());
        let own = PlainTrust::own();
        for listen in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(listen) else { continue };
            let port = listener.local_addr().unwrap().port();
            let target = if listen.starts_with("[::1") { "::1" } else { "127.0.0.1" };
            let client = TcpStream::connect((target, port)).unwrap();
            let judge = |trust: &PlainTrust| {
                trust.judge(client.local_addr().unwrap(), client.peer_addr().unwrap())
            };
            // Before it is accepted, then after, then without a listener.
            let mut kept = None;
            for stage in ["waiting", "accepted", "alone"] {
                match stage {
                    "accepted" => kept = Some(listener.accept().unwrap()),
                    "alone" => {
                        // The listener goes on in the other arms.
                        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
                    }
                    _ => {}
                }
                assert_eq!(judge(&own), Ok(()), "{listen} {stage}");
                assert_eq!(judge(&PlainTrust::Anybody), Ok(()), "{listen} {stage}");
                let why = judge(&stranger).unwrap_err();
                let said = format!("is held by user {me}, who is neither");
                assert!(why.contains(&said), "{listen} {stage}: {why}");
            }
            drop(kept);
        }
    }

    #[test]
    fn a_connection_that_does_not_end_here_gets_none() {
        // Nobody's connection: a port forwarding or another host looks the same.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        let why = PlainTrust::own().judge("127.0.0.1:1".parse().unwrap(), peer).unwrap_err();
        assert!(why.contains("is not on this host") && why.contains("--plain-token"), "{why}");
    }

    #[test]
    fn the_owners_of_the_servers_files_are_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let me = rustix::process::geteuid().as_raw();
        let config = Config::from_settings(&[("DEAD_LETTER_DIR", path)]).unwrap();
        let PlainTrust::Users(users) = PlainTrust::of(&config) else { panic!("users") };
        assert!(users.contains(&me) && users.contains(&0), "{users:?}");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(4711), None).unwrap();
            let PlainTrust::Users(users) = PlainTrust::of(&config) else { panic!("users") };
            assert!(users.contains(&4711), "{users:?}");
        }
    }
}
