//! Requests over HTTP/2: the clients of a class share a connection, each request is a stream of it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{SendRequest, handshake};
use http::{Method, Version};
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::support::tls::HOST;
use crate::wire::{Answer, Request, Target, dial};

/// Requests for which a connection is used; those that are in progress then go on.
const REQUESTS_PER_CONNECTION: u32 = 1_000;

/// The connection of a class.
#[derive(Clone, Default)]
pub struct SharedConnection(Arc<Mutex<Option<Sender>>>);

/// What sends on a connection, and how many requests more it may.
type Sender = (SendRequest<Bytes>, u32);

impl SharedConnection {
    /// One request and its answer.
    pub async fn exchange(
        &self,
        target: &Target,
        request: &Request,
        rng: &mut fastrand::Rng,
    ) -> io::Result<Answer> {
        let sender = self.sender(target, rng).await?;
        let answer = exchange(sender, request).await;
        if answer.is_err() {
            *self.0.lock().await = None;
        }
        answer.map_err(io::Error::other)
    }

    async fn sender(
        &self,
        target: &Target,
        rng: &mut fastrand::Rng,
    ) -> io::Result<SendRequest<Bytes>> {
        let mut shared = self.0.lock().await;
        if let Some((sender, left)) = shared.as_mut()
            && *left > 0
        {
            *left -= 1;
            return Ok(sender.clone());
        }
        let sender = open(target, rng).await?;
        *shared = Some((sender.clone(), REQUESTS_PER_CONNECTION));
        Ok(sender)
    }
}

async fn open(target: &Target, rng: &mut fastrand::Rng) -> io::Result<SendRequest<Bytes>> {
    let socket = dial(target.tls, false).await?;
    let mut config = (*target.configs[rng.usize(..target.configs.len())]).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let host = ServerName::try_from(HOST).expect("a host name");
    let stream = TlsConnector::from(Arc::new(config)).connect(host, socket).await?;
    let (sender, connection) = handshake(stream).await.map_err(io::Error::other)?;
    // Ends when the last sender is gone and its requests are answered; an error is theirs too.
    tokio::spawn(async { drop(connection.await) });
    Ok(sender)
}

async fn exchange(sender: SendRequest<Bytes>, request: &Request) -> Result<Answer, h2::Error> {
    let mut head = http::Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("https://{HOST}/payloads"));
    for line in request.headers.lines() {
        let (name, value) = line.split_once(": ").expect("a header line");
        head = head.header(name, value);
    }
    if !request.chunked {
        head = head.header("content-length", request.body.len());
    }
    let mut sender = sender.ready().await?;
    let head = head.body(()).expect("a valid head");
    let (answer, mut body) = sender.send_request(head, false)?;
    let mut rest = Bytes::from(request.body.clone());
    while !rest.is_empty() {
        body.reserve_capacity(rest.len());
        // It tells of more capacity only, not of what is left.
        while body.capacity() == 0 {
            match std::future::poll_fn(|cx| body.poll_capacity(cx)).await {
                Some(room) => room?,
                // The answer came before the end of the body.
                None => break,
            };
        }
        let mut room = body.capacity().min(rest.len());
        if room == 0 {
            break;
        }
        if request.chunked {
            room = room.min(1_500);
        }
        let piece = rest.split_to(room);
        body.send_data(piece, rest.is_empty())?;
    }
    let answer = answer.await?;
    let status = answer.status().as_u16();
    let mut received = answer.into_body();
    while let Some(data) = received.data().await {
        received.flow_control().release_capacity(data?.len())?;
    }
    Ok(Answer { status, closes: false })
}
