//! Proxies in front of the server: HAProxy and nginx, as Debian has them.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Client, wait_for};

/// A proxy in front of the server; ended when dropped.
pub struct Front {
    child: Child,
    pub address: SocketAddr,
}

impl Drop for Front {
    fn drop(&mut self) {
        // nginx ends its workers with it, which a SIGKILL would not let it.
        super::signal(&self.child, "TERM");
        let _reaped = self.child.wait();
    }
}

/// Where `name` is; Debian has daemons where not every user looks.
pub fn daemon(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    directories.map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// A port on which nobody listens at any address, for a process that cannot choose one itself. It
/// is below those that the kernel gives to who asks for any (32768 and up): such a one another test
/// might be given before the process listens on it. No two calls here give the same.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let at = std::process::id().wrapping_mul(61) + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (at % 12_000) as u16;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

/// An address on which nobody listens: see [`free_port`].
pub fn free_address() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

impl Front {
    /// Starts `command`, which listens on `address`.
    fn start(mut command: Command, address: SocketAddr, dir: &Path) -> Front {
        let log = std::fs::File::create(dir.join("front.log")).unwrap();
        command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut front = Front { child: command.spawn().unwrap(), address };
        wait_for("the proxy", || {
            let ended = front.child.try_wait().unwrap();
            let said = || std::fs::read_to_string(dir.join("front.log"));
            assert!(ended.is_none(), "{ended:?}: {:?}", said());
            Client::try_connect(address).is_some()
        });
        front
    }

    /// HAProxy with these lines in its `defaults` and its `backend`.
    pub fn haproxy(binary: &Path, dir: &Path, defaults: &str, backend: &str) -> Front {
        let address = free_address();
        let config = format!(
            "global\n maxconn 1000\ndefaults\n timeout connect 30s\n timeout client 30s\n \
             timeout server 30s\n timeout check 10s\n {defaults}\nfrontend f\n bind {address}\n \
             default_backend b\nbackend b\n {backend}\n"
        );
        std::fs::write(dir.join("haproxy.cfg"), config).unwrap();
        let mut command = Command::new(binary);
        command.args(["-db", "-f", "haproxy.cfg"]);
        Front::start(command, address, dir)
    }

    /// nginx with keep-alive to the server and these lines in its `location`. Bodies go on as they
    /// come (`proxy_request_buffering off`), which leaves the framing to both.
    pub fn nginx(binary: &Path, dir: &Path, server: SocketAddr, location: &str) -> Front {
        let address = free_address();
        let dir_text = dir.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!(" {kind}_temp_path {dir_text}/{kind};\n"))
            .concat();
        let config = format!(
            "daemon off;\nmaster_process off;\npid {dir_text}/pid;\nerror_log {dir_text}/errors;\n\
             events {{}}\nhttp {{\n access_log off;\n{temporary} upstream u {{ server {server}; keepalive 8; }}\n \
             server {{\n listen {address};\n location / {{\n proxy_pass http://u;\n proxy_http_version 1.1;\n \
             proxy_set_header connection \"\";\n proxy_request_buffering off;\n {location}\n }}\n }}\n}}\n"
        );
        std::fs::write(dir.join("nginx.conf"), config).unwrap();
        let mut command = Command::new(binary);
        command.args(["-p", &dir_text.to_string(), "-c", &format!("{dir_text}/nginx.conf")]);
        Front::start(command, address, dir)
    }
}
