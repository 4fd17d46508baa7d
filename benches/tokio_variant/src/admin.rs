//! `/metrics` and `/readyz`, as far as a bench reads them.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::serve::Server;

pub async fn serve(server: Arc<Server>, listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let server = server.clone();
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let text = page(&server, request.uri().path());
                async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text)))) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _a_scrape_that_breaks_off = connection.await;
        });
    }
}

fn page(server: &Server, path: &str) -> String {
    if path != "/metrics" {
        return "ready\n".to_owned();
    }
    let counts = &server.counts;
    let line = |name: &str, value: u64| format!("millrace_payloads_{name}_total {value}\n");
    line("accepted", counts.accepted.load(Relaxed))
        + &line("stored", counts.stored.load(Relaxed))
        + &line("lost", counts.lost.load(Relaxed))
}
