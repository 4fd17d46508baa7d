//! One data core: a pinned executor with its own listeners, connections, pipeline and store, and the
//! order in which they start and stop.
//!
//! A core and the control executor share the core's cells and a control channel, a socket pair. On
//! it control sends one byte to make the core serve, one to make it drain and one to force the
//! stop; the core sends one byte whenever its state has changed. When control asks, the core
//! publishes a copy of its busiest peers. They share nothing else, and nothing at all on the data
//! path.

mod drain;
mod host;
mod pipeline;
mod run;
mod turns;

use std::rc::Rc;

use crate::http::body::BodyReader;
use crate::http::body_memory::BodyMemory;
use crate::http::cors::Cors;
use crate::http::h2::H2Bounds;
use crate::http::health::HealthPages;
use crate::http::quotas::QuotaGate;
use crate::http::server::{Conns, Server};
use crate::http::split::BodySplitter;
use crate::http::tokenless::Tokenless;
use crate::http::tokens::{TokenGate, TokenPlaces};
use crate::metrics::CoreCells;
use crate::net::Net;
use crate::stop::Stop;
use crate::store::faulty::ConnFaults;
use pipeline::Pipeline;

pub use host::pin;
pub use run::{ControlSide, Setup, spawn};

/// One core, for its start and its stop. Its tasks get only the parts that they need.
struct Core {
    net: Rc<Net>,
    cells: &'static CoreCells,
    server: Rc<Server>,
    pipeline: Pipeline,
    stop: Rc<Stop>,
}

impl Core {
    fn new(setup: &mut Setup, net: Rc<Net>) -> Core {
        let stop = Rc::new(Stop::default());
        let pipeline = Pipeline::new(setup, &stop);
        let Setup { config, limits, cells, .. } = setup;
        let cells = *cells;
        cells.connections_max.set(limits.connections as u64);
        let bodies = BodyMemory::new(limits.body_bytes, limits.wrapped_payload_bytes, cells);
        let server = Rc::new(Server {
            net: net.clone(),
            cells,
            conns: Conns::new(
                limits.connections,
                config.listen.len(),
                H2Bounds::new(config, limits.body_bytes, cells),
            ),
            bodies: BodyReader::new(bodies, limits.request_bytes),
            splitter: BodySplitter::new(limits.queue_slots, cells),
            tokens: setup
                .tokens
                .as_ref()
                .map(|shared| TokenGate::new(shared, setup.index, TokenPlaces::of(config))),
            quotas: setup
                .control
                .quotas
                .as_ref()
                .map(|shared| QuotaGate::new(shared, setup.index, cells)),
            tokenless: Tokenless {
                health: setup
                    .control
                    .readiness
                    .clone()
                    .map(|readiness| HealthPages { readiness, stop: stop.clone() }),
                cors: Cors::of(config),
            },
            faults: ConnFaults::new(config.faults.as_ref(), setup.index as u64),
            stop: stop.clone(),
            intake: pipeline.intake(config, setup.control.tap.clone()),
            config: config.clone(),
        });
        Core { net, cells, server, pipeline, stop }
    }

    /// Ends admission: turns away requests that wait for room, and closes idle connections and the
    /// listeners.
    fn close(&self) {
        self.stop.closed.set(true);
        self.pipeline.close();
        self.server.conns.close();
    }
}
