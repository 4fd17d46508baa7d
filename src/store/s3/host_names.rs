//! Host names to addresses, resolved on the control executor and published as snapshots.
//!
//! Cores never call a resolver. They read the snapshot when they open a connection. A host that is
//! not in it is requested through a small bounded set, and the core waits for it within its connect
//! timeout. Every known host is resolved again every 30 s; a failed lookup keeps the last good
//! result.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the lock is taken only to request a host, and names are resolved on the blocking thread"
)]

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::rt::Timer;
use arc_swap::ArcSwap;

use crate::rt;
use crate::store::s3::dial::ConnectionError;

/// How often every known host is resolved again.
const ROUND: Duration = Duration::from_secs(30);
/// How often control checks for requested hosts.
const ASKED_POLL: Duration = Duration::from_millis(25);
/// How often a core that waits for a host reads the snapshot.
const ANSWER_POLL: Duration = Duration::from_millis(5);
/// A failed lookup may be repeated after this long.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
/// Hosts known at once: the endpoint, the credential services and a few redirect targets.
const HOSTS_MAX: usize = 64;

/// The published table and the requests for more hosts; shared by control and all cores.
pub(super) struct HostNames {
    /// Written by control only.
    table: ArcSwap<HashMap<String, Host>>,
    /// Hosts requested and not in the table yet; used only when a connection is opened to one.
    asked: Mutex<BTreeSet<String>>,
    any_asked: AtomicBool,
}

#[derive(Clone)]
struct Host {
    /// The last good result; empty if there was none. Port 0 stands for the server's own port.
    addresses: Vec<SocketAddr>,
    /// The error, if the last lookup failed.
    failed: Option<(String, Instant)>,
    /// Given by a test: never resolved.
    fixed: bool,
}

impl HostNames {
    /// A table with `fixed` hosts, which are never resolved (a port other than 0 replaces the
    /// server's).
    pub(super) fn new(fixed: Vec<(String, Vec<SocketAddr>)>) -> Arc<HostNames> {
        let table = fixed
            .into_iter()
            .map(|(host, addresses)| (host, Host { addresses, failed: None, fixed: true }))
            .collect();
        Arc::new(HostNames {
            table: ArcSwap::from_pointee(table),
            asked: Mutex::default(),
            any_asked: AtomicBool::new(false),
        })
    }

    /// The addresses of `host`. Waits for control until `deadline` if it is not known yet.
    ///
    /// # Errors
    /// [`ConnectionError::Unresolved`] if it has no address, is one host too many, or took too
    /// long.
    pub(super) async fn addresses(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, ConnectionError> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let unresolved =
            |why: &str| ConnectionError::Unresolved { host: host.into(), why: why.into() };
        let mut asked = false;
        loop {
            match self.known(host) {
                Some(Ok(addresses)) => return Ok(with_port(addresses, port)),
                Some(Err(why)) => return Err(unresolved(&why)),
                None if !asked => self.ask(host).map_err(unresolved)?,
                None => {}
            }
            asked = true;
            if rt::now() >= deadline {
                return Err(unresolved("the resolver did not respond in time"));
            }
            Timer::new(ANSWER_POLL).await;
        }
    }

    /// The result in the snapshot; `None` if there is none, or only an old failure.
    fn known(&self, host: &str) -> Option<Result<Vec<SocketAddr>, String>> {
        let table = self.table.load();
        let entry = table.get(host)?;
        if !entry.addresses.is_empty() {
            return Some(Ok(entry.addresses.clone()));
        }
        let (why, at) = entry.failed.as_ref()?;
        (rt::since(*at) < FAILURE_KEPT).then(|| Err(why.clone()))
    }

    fn ask(&self, host: &str) -> Result<(), &'static str> {
        let mut asked = self.asked.lock().unwrap_or_else(|e| e.into_inner());
        let known = self.table.load();
        if !known.contains_key(host) && known.len() + asked.len() >= HOSTS_MAX {
            return Err("too many different hosts were requested");
        }
        asked.insert(host.to_owned());
        self.any_asked.store(true, Ordering::Release);
        Ok(())
    }

    /// Keeps the table up to date as long as it runs; spawned once, on the control executor.
    pub(super) async fn keep_resolved(self: Arc<HostNames>) {
        let mut round = rt::now();
        loop {
            Timer::new(ASKED_POLL).await;
            let hosts: Vec<String> = if rt::since(round) >= ROUND {
                round = rt::now();
                let table = self.table.load();
                table.iter().filter(|(_, e)| !e.fixed).map(|(host, _)| host.clone()).collect()
            } else if self.any_asked.swap(false, Ordering::Acquire) {
                let mut asked = self.asked.lock().unwrap_or_else(|e| e.into_inner());
                std::mem::take(&mut *asked).into_iter().collect()
            } else {
                continue;
            };
            for host in hosts {
                let answer = resolve(host.clone()).await;
                self.publish(host, answer);
            }
        }
    }

    pub(super) fn publish(&self, host: String, answer: Result<Vec<SocketAddr>, String>) {
        let mut table = HashMap::clone(&self.table.load());
        let entry =
            table.entry(host).or_insert(Host { addresses: Vec::new(), failed: None, fixed: false });
        match answer {
            Ok(addresses) => {
                entry.addresses = addresses;
                entry.failed = None;
            }
            Err(why) => entry.failed = Some((why, rt::now())),
        }
        self.table.store(Arc::new(table));
    }
}

/// One `getaddrinfo` on the executor's blocking thread, never on the executor itself.
async fn resolve(host: String) -> Result<Vec<SocketAddr>, String> {
    let look_up = move || (host.as_str(), 0).to_socket_addrs().map(Vec::from_iter);
    match rt::blocking(look_up).await {
        Ok(addresses) if addresses.is_empty() => Err("the name has no address".into()),
        Ok(mut addresses) => {
            addresses.dedup();
            Ok(addresses)
        }
        Err(e) => Err(e.to_string()),
    }
}

fn with_port(mut addresses: Vec<SocketAddr>, port: u16) -> Vec<SocketAddr> {
    for address in addresses.iter_mut().filter(|a| a.port() == 0) {
        address.set_port(port);
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_executor(test: impl Future<Output = ()>) {
        rt::run_test(test);
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(2)
    }

    #[test]
    fn literals_need_no_table_and_fixed_hosts_no_resolver() {
        let fixed: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let names = HostNames::new(vec![("bucket.example".into(), vec![fixed])]);
        on_executor(async move {
            let got = names.addresses("::1", 9, soon()).await.unwrap();
            assert_eq!(got, ["[::1]:9".parse().unwrap()]);
            let got = names.addresses("bucket.example", 80, soon()).await.unwrap();
            assert_eq!(got, ["127.0.0.1:80".parse().unwrap()]);
        });
    }

    #[test]
    fn a_failed_round_keeps_the_last_good_answer() {
        let names = HostNames::new(vec![]);
        let good: SocketAddr = "10.0.0.1:0".parse().unwrap();
        names.publish("h".into(), Ok(vec![good]));
        names.publish("h".into(), Err("down".into()));
        assert_eq!(names.known("h").unwrap().unwrap(), [good]);
        names.publish("never".into(), Err("no such host".into()));
        assert_eq!(names.known("never").unwrap().unwrap_err(), "no such host");
    }

    #[test]
    fn a_host_that_had_no_address_is_asked_for_again() {
        let names = HostNames::new(vec![]);
        names.publish("localhost".into(), Err("the network is not up".into()));
        on_executor(async move {
            let keeper = rt::spawn(names.clone().keep_resolved());
            let failed = names.addresses("localhost", 7, soon()).await.unwrap_err();
            assert!(failed.to_string().contains("the network is not up"), "{failed}");
            Timer::new(FAILURE_KEPT).await;
            assert!(!names.addresses("localhost", 7, soon()).await.unwrap().is_empty());
            keeper.cancel().await;
        });
    }

    #[test]
    fn an_unknown_host_is_asked_for_and_waited_for() {
        let names = HostNames::new(vec![]);
        on_executor(async move {
            let keeper = rt::spawn(names.clone().keep_resolved());
            let got = names.addresses("localhost", 7, soon()).await.unwrap();
            assert!(got.iter().all(|a| a.ip().is_loopback() && a.port() == 7));
            keeper.cancel().await;
        });
    }

    #[test]
    fn hosts_are_bounded() {
        let names = HostNames::new(vec![]);
        for i in 0..HOSTS_MAX {
            names.ask(&format!("h{i}")).unwrap();
        }
        assert!(names.ask("one-more").is_err());
    }
}
