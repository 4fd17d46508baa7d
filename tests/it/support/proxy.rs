//! An HTTP proxy on a loopback port: it keeps every request's head and forwards to where the test
//! says, or answers something else.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// No read or write of the proxy takes longer; its threads end by themselves.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running proxy; dropping it ends it.
pub struct ProxyServer {
    addr: SocketAddr,
    state: Arc<State>,
}

struct State {
    /// Hosts by name, without ports.
    hosts: Vec<(String, SocketAddr)>,
    heads: Mutex<Vec<String>>,
    /// Sent in answer to every request; empty: it is closed.
    instead: Mutex<Option<String>>,
    stop: AtomicBool,
}

impl ProxyServer {
    /// Forwards requests to these hosts, on any port, to these addresses.
    pub fn start(hosts: &[(&str, SocketAddr)]) -> ProxyServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let addr = listener.local_addr().expect("a bound socket");
        let state = Arc::new(State {
            hosts: hosts.iter().map(|(name, addr)| ((*name).to_owned(), *addr)).collect(),
            heads: Mutex::default(),
            instead: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        std::thread::spawn({
            let state = state.clone();
            move || {
                for client in listener.incoming().flatten() {
                    if state.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let state = state.clone();
                    std::thread::spawn(move || state.serve(client));
                }
            }
        });
        ProxyServer { addr, state }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The same with a user and a password.
    pub fn url_of(&self, user: &str) -> String {
        format!("http://{user}@{}", self.addr)
    }

    /// Answers this instead of forwarding; empty: closes.
    pub fn answer(&self, instead: &str) {
        *self.state.instead.lock().unwrap() = Some(instead.to_owned());
    }

    /// The heads of all requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.state.heads.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.state.heads.lock().unwrap().clear();
    }
}

impl Drop for ProxyServer {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
    }
}

impl State {
    fn serve(&self, mut client: TcpStream) {
        let _ = client.set_read_timeout(Some(PATIENCE));
        let _ = client.set_write_timeout(Some(PATIENCE));
        let Some(head) = read_head(&mut client) else { return };
        self.heads.lock().unwrap().push(head.clone());
        let instead = self.instead.lock().unwrap().clone();
        if let Some(instead) = instead {
            let _ = client.write_all(instead.as_bytes());
            let _ = client.shutdown(Shutdown::Write);
            // What is unread would reset the answer away.
            let _ = io::copy(&mut client, &mut io::sink());
            return;
        }
        let _ = self.forward(client, &head);
    }

    fn forward(&self, mut client: TcpStream, head: &str) -> io::Result<()> {
        let (line, fields) = head.split_once("\r\n").expect("a request line");
        let (method, rest) = line.split_once(' ').expect("a method");
        let target = rest.split(' ').next().expect("a target");
        let authority = target.strip_prefix("http://").unwrap_or(target);
        let (authority, path) = match authority.find('/') {
            Some(at) => authority.split_at(at),
            None => (authority, "/"),
        };
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let Some((_, addr)) = self.hosts.iter().find(|(name, _)| name == host) else {
            return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n");
        };
        let mut server = TcpStream::connect(addr)?;
        if method == "CONNECT" {
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        } else {
            let request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n{fields}");
            server.write_all(request.as_bytes())?;
        }
        let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || {
            let _ = io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Write);
        });
        io::copy(&mut server, &mut client)?;
        client.shutdown(Shutdown::Both)
    }
}

/// Up to and with the empty line.
fn read_head(client: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}
