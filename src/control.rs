//! The control executor: unpinned, beside the data cores. It owns what is not per core (signals,
//! the admin listener, the store's names and credentials), starts the cores, and supervises their
//! stop.

mod access;
mod admin;
mod background;
mod bind;
mod certificates;
mod disks;
mod events;
mod exposition;
mod facts;
mod file_state;
mod heartbeats;
mod manager;
mod memory;
mod page;
mod peers;
mod quotas;
mod reach;
mod readiness;
pub mod reload;
mod settings;
pub mod signals;
mod spools;
pub mod start_report;
mod tap;
mod tokens;

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::rt;
use crate::rt::sleep;
use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use socket2::{Domain, Socket, Type};

use crate::config::{Ack, Config, ListenAddress};
use crate::control::reload::Reloader;
use crate::control::signals::Signals;
use crate::core::{self, ControlSide, Setup};
use crate::deadletter::DeadLetters;
use crate::deadline::strictly_within;
use crate::http::accept;
use crate::http::health::Readiness;
use crate::http::quotas::SharedQuotas;
use crate::http::tap::TapBoard;
use crate::http::tokens::{SharedTokens, TokenPlaces, TokenSet};
use crate::limits::Limits;
use crate::log;
use crate::metrics::tokens::{TokenCollector, TokenMetrics};
use crate::metrics::{self, Cells, CoreState};
use crate::net::Net;
use crate::preflight;
use crate::spool::takeover::instances::Home;
use crate::tls::SharedTls;
use access::{AdminAccess, SharedAdminToken};
use admin::{Admin, Pages, StoreReadiness};
use certificates::{CertificateCollector, CertificateFiles, Certificates};
use events::{ControlEvent, Events};
use facts::FactsCollector;
use heartbeats::Heartbeats;
use manager::ServiceManager;
use settings::SettingsPage;
use start_report::{StartReport, StartSummary};
use tap::TapPage;
use tokens::TokensFile;

pub use facts::COMMIT;
pub use reach::{Prepared, prepare_store};

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Nothing acknowledged was lost, and the drain left nothing unstored.
    Clean = 0,
    /// The drain dead-lettered something, or something was lost, or a core died.
    Unstored = 1,
    /// The configuration is invalid, or the server could not start.
    Refused = 2,
}

/// How long cores may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that control keeps for its last log lines before `DRAIN_TIMEOUT` is over.
const SUMMARY_TIME: Duration = Duration::from_millis(100);
/// How often a failing dead-letter directory is tried again.
const DEAD_LETTER_PROBE: Duration = Duration::from_secs(5);
/// Between two parts of what is counted of dead letters.
const DEAD_LETTER_COUNT_PAUSE: Duration = Duration::from_millis(10);
/// How often a directory that holds dead letters is measured again.
const DEAD_LETTER_MEASURE: Duration = Duration::from_secs(60);

/// Runs `main` on an unpinned executor.
///
/// # Errors
/// io_uring is refused, or locked memory is short; the preflight says which.
pub fn on_executor<T>(main: impl Future<Output = T>) -> Result<T, String> {
    let executor = rt::Executor::unpinned("millrace-control")
        .map_err(|error| format!("the control executor does not start: {error}"))?;
    Ok(executor.run(main))
}

/// Serves until a signal or a core's death, then stops. A signal that comes before it serves ends
/// the process, see [`Signals`].
pub async fn serve(
    config: Config,
    signals: Signals,
    reloader: Reloader,
    mut report: StartReport,
) -> Exit {
    match start(config, signals, reloader, &mut report).await {
        Ok(server) => server.run().await,
        Err(error) => {
            report.show();
            tracing::error!("{error}");
            Exit::Refused
        }
    }
}

/// A running server, as control sees it.
struct Supervisor {
    config: Arc<Config>,
    limits: Limits,
    cells: Cells,
    /// Control's ends of the cores' control channels.
    core_channels: Vec<Socket>,
    /// Duplicates of the cores' listeners. A dead core's are shut down so that the kernel gives it
    /// no more connections, and are then `None`.
    listeners: RefCell<Vec<Option<Vec<Socket>>>>,
    /// Shut down at the very end, because a hanging disk can keep the ended process, and so its
    /// ports, for a long time.
    admin: Option<Socket>,
    /// Holds the lock of this process's spool directory until the process ends.
    home: Option<Arc<Home>>,
    /// Read by `/readyz`.
    stopping: Rc<Cell<bool>>,
    events: Rc<Events>,
    manager: ServiceManager,
    heartbeats: Arc<Heartbeats>,
}

/// Everything up to the moment at which cores accept, in this order: what can be refused comes
/// before what is hard to undo. Long because it is one sequence.
async fn start(
    config: Config,
    signals: Signals,
    mut reloader: Reloader,
    report: &mut StartReport,
) -> Result<Supervisor, String> {
    let epoch = rt::now();
    let manager = ServiceManager::from_environment();
    reloader.report_to(manager.clone());
    let config = Arc::new(config);
    let limits = Limits::new(&config).for_descriptors(preflight::descriptors(), config.cores.len());
    let cells = metrics::cells(config.cores.len());
    let (tokens, token_metrics) = load_tokens(&config, &mut reloader)?;
    let certificates = load_certificates(&config, &mut reloader)?;
    let (admin_token, admin_token_file) = access::load(config.admin_token.as_ref())?;
    reloader.follow_admin_token(admin_token_file);
    let quotas = SharedQuotas::new(&config, epoch);
    let directory = &config.dead_letter_dir;
    let dead_letters = DeadLetters::open(directory, config.dead_letter_max)
        .map_err(|error| format!("DEAD_LETTER_DIR {}: {error}", directory.display()))?;
    let spools = spools::open(&config, &manager).await?;
    let prepared = prepare_store(&config, config.spool.is_some()).await?;
    report.add(prepared.finding);
    let store = prepared.seed;
    let events = Events::new(signals).map_err(|error| format!("signal handlers: {error}"))?;

    let bind = bind::BindRetry::new(config.bind_wait, manager.clone());
    let cores = config.cores.len();
    let mut listeners: Vec<Vec<Socket>> = (0..cores).map(|_| Vec::new()).collect();
    for ListenAddress { address, only_v6, .. } in &config.listen {
        let listen =
            |address| accept::listeners(address, *only_v6, &config.cores, config.placement);
        let sockets = bind.retry("LISTEN", *address, listen).await?;
        listeners.iter_mut().zip(sockets).for_each(|(of_core, socket)| of_core.push(socket));
    }
    let addresses = listeners[0].iter().filter_map(|socket| socket.local_addr().ok()?.as_socket());
    let addresses: Vec<SocketAddr> = addresses.collect();
    let stopping = Rc::new(Cell::new(false));
    let taps: Option<Vec<Arc<TapBoard>>> =
        config.tap.then(|| config.cores.iter().map(|_| Arc::default()).collect());
    let boards = taps.as_ref().map(|taps| config.cores.iter().copied().zip(taps.clone()).collect());
    let tap = TapPage::new(boards, tokens.clone(), admin_token.clone());
    let disks = disks::watch(&config)
        .map_err(|error| format!("no thread to look at disks: {error}; raise ulimit -u"))?;
    let heartbeats = Arc::new(Heartbeats::new(cells, config.cores.clone()));
    heartbeats.watch();
    let facts = FactsCollector::new(&config, &limits, dead_letters.clone(), disks);
    let more: Vec<Box<dyn Collector>> = vec![
        Box::new(TokenCollector(token_metrics)),
        Box::new(CertificateCollector(certificates.clone())),
        Box::new(facts),
        heartbeats.collector(),
        Box::new(tap.collector()),
    ];
    let registry = metrics::registry(cells, config.cores.clone(), config.put_price, more);
    let admin = Admin {
        cells,
        core_ids: config.cores.clone(),
        heartbeats: heartbeats.clone(),
        registry,
        tokens: token_metrics,
        certificates: certificates.clone(),
        dead_letters: dead_letters.clone(),
        orphans: spools.as_ref().map(|(_, orphans)| orphans.clone()),
        store: StoreReadiness {
            grace: config.ready_store_grace,
            acks_on_disk: config.spool.is_some() && config.ack == Ack::Spooled,
            trouble: reach::watch(prepared.unreached, cells),
        },
        epoch,
        stopping: stopping.clone(),
        pages: Pages {
            peers: peers::PeersPage {
                boards: config.cores.iter().map(|id| (*id, Arc::default())).collect(),
                token_name: Box::new(|token| {
                    token_metrics.names.shown(token).unwrap_or_default().to_owned()
                }),
            },
            settings: SettingsPage { settings: reloader.settings(), node: config.node_id.clone() },
            tap,
        },
    };
    let boards: Vec<_> = admin.pages.peers.boards.iter().map(|(_, board)| board.clone()).collect();
    let admin = Rc::new(admin);
    let readiness = config.ingest_health.then(|| Arc::new(Readiness::new(epoch)));
    if let Some(readiness) = &readiness {
        readiness::publish(admin.clone(), readiness.clone());
    }
    let admin_tls = certificates.as_ref().filter(|_| config.admin_tls);
    let admin_tls = admin_tls.map(|certificates| certificates.shared.clone());
    let admin = start_admin(&bind, config.admin_listen, admin_tls, admin, admin_token).await?;
    let spare = spare_cpus(&config.cores);
    let mut core_channels = Vec::new();
    memory::keep_returning_it()
        .map_err(|error| format!("no thread to return memory: {error}; raise ulimit -u"))?;
    for (index, listeners) in listeners.iter().enumerate() {
        let pair = Socket::pair(Domain::UNIX, Type::STREAM, None);
        let (ours, theirs) = pair.map_err(|error| format!("control channel: {error}"))?;
        let clone = |socket: &Socket| socket.try_clone().map_err(|error| error.to_string());
        events.watch_core(clone(&ours)?);
        core_channels.push(ours);
        let core_id = config.cores[index];
        let setup = Setup {
            config: config.clone(),
            limits: limits.clone(),
            index,
            cells: &cells[index],
            epoch,
            listeners: listeners.iter().map(clone).collect::<Result<_, _>>()?,
            control: ControlSide {
                channel: theirs,
                peers: boards[index].clone(),
                readiness: readiness.clone(),
                quotas: quotas.clone(),
                tls: certificates.as_ref().map(|certificates| certificates.shared.clone()),
                tap: taps.as_ref().map(|taps| taps[index].clone()),
            },
            tokens: tokens.clone(),
            dead_letters: dead_letters.clone(),
            store: store.clone(),
            spool: spools
                .as_ref()
                .map(|(home, orphans)| spools::setup(&config, index, cells, home, orphans)),
            spare_cpus: spare.clone(),
        };
        // Not joined: a hanging thread must not delay the exit, and the cells say when a core has
        // ended.
        core::spawn(setup).map_err(|error| format!("core {core_id}: {error}"))?;
    }
    watch_dead_letters(dead_letters);
    if let Some(quotas) = quotas {
        quotas::keep(&quotas);
    }
    let listeners = RefCell::new(listeners.into_iter().map(Some).collect());
    let home = spools.map(|(home, _)| home);
    let server = Supervisor {
        config,
        limits,
        cells,
        core_channels,
        listeners,
        admin,
        home,
        stopping,
        events,
        manager,
        heartbeats,
    };
    server.until_all(CoreState::Ready).await?;
    if !server.events.hand_over() {
        // A signal came first, and its thread is ending this process.
        std::future::pending::<()>().await;
    }
    reloader.run().map_err(|error| format!("no thread for reloads: {error}; raise ulimit -u"))?;
    // Cores accept only from here on, so until now nothing can have been acknowledged.
    server.command_all();
    let summary = StartSummary {
        config: &server.config,
        limits: &server.limits,
        listen: &addresses,
        admin: server.admin.as_ref().and_then(|socket| socket.local_addr().ok()?.as_socket()),
        took: rt::since(epoch),
    };
    report.serving(&summary);
    Ok(server)
}

/// CPUs that the process may use and that belong to no data core.
fn spare_cpus(cores: &[usize]) -> Vec<usize> {
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    allowed.iter().map(|core| core.id).filter(|id| !cores.contains(id)).collect()
}

/// While dead letters cannot be written, tries whether the directory accepts them again. Also
/// measures it now and then, because a replay that runs beside this server removes dead letters, and
/// counts what earlier stops have left, a part at a time.
fn watch_dead_letters(dead_letters: DeadLetters) {
    rt::spawn(async move {
        let (mut measured, mut probed) = (rt::now(), rt::now());
        loop {
            let counted = dead_letters.clone();
            let is_more = rt::blocking(move || counted.count_some()).await;
            sleep(if is_more { DEAD_LETTER_COUNT_PAUSE } else { DEAD_LETTER_PROBE }).await;
            if rt::since(probed) < DEAD_LETTER_PROBE {
                continue;
            }
            probed = rt::now();
            let measure = dead_letters.used() > 0 && rt::since(measured) >= DEAD_LETTER_MEASURE;
            if measure {
                measured = rt::now();
                let dead_letters = dead_letters.clone();
                rt::blocking(move || dead_letters.remeasure()).await;
            }
            if dead_letters.is_failing() {
                let dead_letters = dead_letters.clone();
                rt::blocking(move || dead_letters.probe()).await;
            }
        }
    })
    .detach();
}

/// Serves the admin pages on `address`, if there is one. Returns a duplicate of the socket, to shut
/// it down.
async fn start_admin(
    bind: &bind::BindRetry,
    address: Option<SocketAddr>,
    tls: Option<SharedTls>,
    admin: Rc<Admin>,
    token: SharedAdminToken,
) -> Result<Option<Socket>, String> {
    let Some(address) = address else { return Ok(None) };
    let socket = bind.retry("ADMIN_LISTEN", address, accept::bind).await?;
    let handle = socket.try_clone().map_err(|error| format!("ADMIN_LISTEN: {error}"))?;
    let net = Net::here().map_err(|error| format!("ADMIN_LISTEN: {error}"))?;
    let access = Rc::new(AdminAccess::new(address, token));
    rt::spawn(admin::serve(admin, access, net.listener(socket), tls)).detach();
    Ok(Some(handle))
}

/// Reads the files of TLS, if any address has it, and has reloads read them again.
fn load_certificates(
    config: &Config,
    reloader: &mut Reloader,
) -> Result<Option<Certificates>, String> {
    let Some(files) = CertificateFiles::open(config).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let certificates = files.certificates();
    reloader.follow_certificates(files);
    Ok(Some(certificates))
}

/// Reads `TOKENS_FILE`, if it is set, and has reloads read it again. Where certificates alone tell
/// clients apart, there are no tokens, and nobody gets in without a certificate.
fn load_tokens(
    config: &Config,
    reloader: &mut Reloader,
) -> Result<(Option<SharedTokens>, &'static TokenMetrics), String> {
    if config.tokens_file.is_none() && !config.asks_for_certificates() {
        return Ok((None, TokenMetrics::leaked(0)));
    }
    let metrics = TokenMetrics::leaked(config.cores.len());
    let Some(path) = &config.tokens_file else {
        let set = Arc::new(ArcSwap::from_pointee(TokenSet::none()));
        return Ok((Some(SharedTokens { set, metrics }), metrics));
    };
    let file = TokensFile::open(path.clone(), metrics, TokenPlaces::of(config))
        .map_err(|error| format!("TOKENS_FILE {} {error}", path.display()))?;
    let shared = file.shared();
    reloader.follow_tokens(file);
    Ok((Some(shared), metrics))
}

impl Supervisor {
    /// Waits until every core has reached `state`.
    async fn until_all(&self, state: CoreState) -> Result<(), String> {
        let deadline = rt::now() + START_TIMEOUT;
        loop {
            for (cells, id) in self.cells.iter().zip(&self.config.cores) {
                if cells.is(CoreState::Died) {
                    return Err(format!("core {id} did not start; its error is logged above"));
                }
            }
            if self.cells.iter().all(|cells| cells.is(state)) {
                return Ok(());
            }
            match self.next_event(deadline).await {
                Some(ControlEvent::Stop | ControlEvent::CoreChanged) => {}
                None => return Err(format!("the cores did not start in {START_TIMEOUT:?}")),
            }
        }
    }

    /// Waits for a signal or a core's death, then stops every core.
    async fn run(self) -> Exit {
        let mut clean = true;
        let mut told_ready = false;
        loop {
            if !told_ready && self.cells.iter().all(|cells| cells.is(CoreState::Serving)) {
                told_ready = true;
                self.manager.ready();
                self.manager.watch(self.heartbeats.clone(), self.stopping.clone());
            }
            match self.next_event(rt::now() + Duration::from_secs(3600)).await {
                Some(ControlEvent::Stop) => break,
                Some(ControlEvent::CoreChanged) if self.shut_dead_cores() => {
                    clean = false;
                    break;
                }
                Some(ControlEvent::CoreChanged) | None => {}
            }
        }
        let end = rt::now() + self.limits.stop.exit;
        let deadline = end - SUMMARY_TIME;
        tracing::info!(drain_timeout = ?self.limits.stop.exit, "stopping");
        self.stopping.set(true);
        self.command_all();
        self.manager.stopping(self.limits.stop.exit);
        let mut forced = false;
        while !self.all_ended() {
            match self.next_event(deadline).await {
                // A third signal has nothing left to speed up.
                Some(ControlEvent::Stop) if forced => {}
                Some(ControlEvent::Stop) => {
                    forced = true;
                    tracing::warn!(
                        "second signal: what is unstored goes to the spool or the dead letters now"
                    );
                    self.command_all();
                }
                Some(ControlEvent::CoreChanged) => clean &= !self.shut_dead_cores(),
                None => break,
            }
        }
        let exit = self.sum_up(clean);
        if let Some(home) = &self.home {
            home.leave();
        }
        if let Some(admin) = &self.admin {
            let _no_longer_listening = admin.shutdown(std::net::Shutdown::Both);
        }
        log::flush_by(end);
        exit
    }

    /// The next event, or `None` at `deadline`.
    async fn next_event(&self, deadline: Instant) -> Option<ControlEvent> {
        let left = deadline.saturating_duration_since(rt::now());
        strictly_within(left, async { Some(self.events.next().await) }, || None).await
    }

    /// Sends one byte to every core. The first means serve, the second drain, the third force the
    /// stop.
    fn command_all(&self) {
        for mut channel in &self.core_channels {
            let _or_the_core_is_dead = channel.write(b"!");
        }
    }

    fn all_ended(&self) -> bool {
        self.cells.iter().all(|c| c.is(CoreState::Stopped) || c.is(CoreState::Died))
    }

    /// Shuts the listeners of dead cores down, so that the kernel gives them no more connections.
    /// True if any core is dead.
    fn shut_dead_cores(&self) -> bool {
        let mut any = false;
        for (at, cells) in self.cells.iter().enumerate() {
            if !cells.is(CoreState::Died) {
                continue;
            }
            any = true;
            // Only once for each core: other cores' changes lead here as well.
            if let Some(listeners) = self.listeners.borrow_mut()[at].take() {
                let id = self.config.cores[at];
                tracing::error!(core = id, "a core died; the others drain and the process exits 1");
                for listener in listeners {
                    let _closed_by_its_own_core = listener.shutdown(std::net::Shutdown::Both);
                }
            }
        }
        any
    }

    /// Logs the stop's summary. Returns the process's exit status.
    fn sum_up(&self, clean: bool) -> Exit {
        let mut lost = 0;
        let mut unsynced = 0;
        for (cells, id) in self.cells.iter().zip(&self.config.cores) {
            let (undecided, written) = cells.undecided_and_unsynced();
            if undecided > 0 {
                let ended = if cells.is(CoreState::Died) { "died" } else { "did not stop in time" };
                tracing::error!(
                    core = id,
                    lost = undecided,
                    "payloads lost because their core {ended}"
                );
            }
            if written > 0 {
                tracing::error!(
                    core = id,
                    dead_lettered = written,
                    "dead letters written, but the disk did not confirm them in time: \
                     a power failure before it does loses them"
                );
            }
            lost += undecided + cells.payloads_lost.value();
            unsynced += written;
        }
        let sum = |read: fn(&metrics::CoreCells) -> u64| self.cells.iter().map(read).sum::<u64>();
        let at_stop = sum(|c| c.dead_lettered_at_stop.value()) + unsynced;
        let dead_lettered = sum(|c| c.payloads_dead_lettered.value()) + unsynced;
        let summary = Summary {
            accepted: sum(|c| c.payloads_accepted.value()),
            stored: sum(|c| c.payloads_stored.value()),
            dead_lettered,
            at_stop,
            left_in_spool: sum(|c| c.spool_payloads.value()),
            lost,
        };
        summary.log(&self.config.dead_letter_dir);
        if clean && lost == 0 && at_stop == 0 { Exit::Clean } else { Exit::Unstored }
    }
}

/// The outcomes of all payloads of all cores.
struct Summary {
    accepted: u64,
    stored: u64,
    dead_lettered: u64,
    at_stop: u64,
    left_in_spool: u64,
    lost: u64,
}

impl Summary {
    /// Logs the last line of a server. With dead letters it is a warning that says where they are
    /// and what to do.
    fn log(&self, dead_letter_dir: &Path) {
        let Summary { accepted, stored, dead_lettered, at_stop, left_in_spool, lost } = *self;
        if dead_lettered == 0 {
            tracing::info!(
                accepted,
                stored,
                dead_lettered,
                dead_lettered_at_stop = at_stop,
                left_in_spool,
                lost,
                "stopped"
            );
            return;
        }
        let directory = std::path::absolute(dead_letter_dir);
        let directory = directory.as_deref().unwrap_or(dead_letter_dir).display();
        tracing::warn!(
            accepted,
            stored,
            dead_lettered,
            dead_lettered_at_stop = at_stop,
            left_in_spool,
            lost,
            dead_letter_dir = %directory,
            mend = "run `millrace dead-letter replay` with the same settings",
            "stopped"
        );
    }
}
