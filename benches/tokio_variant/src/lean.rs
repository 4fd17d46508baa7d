//! `--put lean`: millrace's own PUT on tokio's sockets, so that the table can tell the upload path from the runtime.
//!
//! Head template, signature and answer are the library's; this is only the transport. Every worker keeps one connection
//! of its own, so there is no pool to lock; a signer belongs to a thread, so each runtime thread has one. Not built,
//! because no lane needs it: TLS, redirects, checksums, credentials that expire.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::SystemTime;

use aws_sdk_s3::config::Credentials;
use aws_sdk_s3::config::ProvideCredentials as _;
use aws_types::SdkConfig;
use millrace::internals::config::{Checksum, Config};
use millrace::internals::store::s3::dial::ServerAddress;
use millrace::internals::store::s3::direct::{
    Destination, Identity, Put, ReplyReader, Signer, Template, error_document,
};
use millrace::internals::store::{Integrity, Sums};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::store::{Body, Object};

/// Up to here head and body leave in one write, as in millrace's own transport.
const COALESCED_BYTES: usize = 16 << 10;

thread_local! {
    static SIGNER: RefCell<Option<Signer>> = const { RefCell::new(None) };
}

/// What all workers share.
pub struct LeanStore {
    template: Template,
    server: ServerAddress,
    region: String,
    credentials: Credentials,
}

/// One worker's client.
pub struct LeanClient {
    store: Arc<LeanStore>,
    link: Option<TcpStream>,
    out: Vec<u8>,
    reader: ReplyReader,
}

impl LeanStore {
    pub async fn open(
        config: &Config,
        shared: &SdkConfig,
        bucket: &str,
        prefix: &str,
    ) -> Result<LeanStore, String> {
        let endpoint = shared.endpoint_url().ok_or("--put lean needs AWS_ENDPOINT_URL")?;
        let uri: http::Uri = endpoint.parse().map_err(|_| format!("{endpoint} is no address"))?;
        let server = ServerAddress::of(&uri).filter(|server| !server.https);
        let server = server.ok_or_else(|| format!("{endpoint}: --put lean speaks only http"))?;
        let region = shared.region().ok_or("AWS_REGION is not set")?.to_string();
        let provider = shared.credentials_provider().ok_or("no credentials provider")?;
        let credentials = provider.provide_credentials().await.map_err(|e| e.to_string())?;
        let path = format!("/{bucket}/");
        let destination = Destination { server: &server, path: &path, prefix };
        let integrity = Integrity { checksum: Checksum::None, sign_payload: true };
        let template = Template::new(&destination, &config.s3, integrity)
            .map_err(|error| error.to_string())?;
        Ok(LeanStore { template, server, region, credentials })
    }

    pub fn integrity(&self) -> Integrity {
        self.template.integrity()
    }

    pub fn client(self: &Arc<Self>) -> LeanClient {
        LeanClient {
            store: self.clone(),
            link: None,
            out: Vec::new(),
            reader: ReplyReader::default(),
        }
    }

    /// Lays out and signs the head; no await, so the thread's signer stays with its thread.
    fn write_head(&self, put: &Put<'_>, out: &mut Vec<u8>) -> Result<(), String> {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let unix_s = since_1970.unwrap_or_default().as_secs();
        SIGNER.with_borrow_mut(|signer| {
            let signer = signer.get_or_insert_with(|| Signer::new(&self.region, "s3"));
            if !signer.is_current(unix_s, 0) {
                let who = Identity {
                    access_key: self.credentials.access_key_id(),
                    secret_key: self.credentials.secret_access_key(),
                    session_token: self.credentials.session_token(),
                };
                signer.renew(unix_s, 0, &who).map_err(|error| error.to_string())?;
            }
            self.template.write_head(put, unix_s, signer, out);
            Ok(())
        })
    }
}

impl LeanClient {
    /// One attempt, with one more on a new connection if the kept one turns out to be closed.
    pub async fn put(&mut self, object: &Object) -> Result<(), String> {
        // Taken, so that an attempt that is dropped closes its connection.
        let outcome = match self.link.take() {
            Some(link) => match self.exchange(link, object).await {
                Err(_) if self.reader.is_untouched() => None,
                outcome => Some(outcome),
            },
            None => None,
        };
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => match self.connect().await {
                Ok(link) => self.exchange(link, object).await,
                Err(error) => Err(error),
            },
        };
        outcome.map_err(|error| error.to_string())?;
        let reply = self.reader.reply();
        if (200..300).contains(&reply.status) && reply.body.is_empty() {
            return Ok(());
        }
        let said = error_document(reply.body);
        match said.code {
            None if (200..300).contains(&reply.status) => Ok(()),
            code => Err(format!("{}: {code:?} {:?}", reply.status, said.message)),
        }
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let ServerAddress { host, port, .. } = &self.store.server;
        let link = TcpStream::connect((host.as_str(), *port)).await?;
        link.set_nodelay(true)?;
        Ok(link)
    }

    async fn exchange(&mut self, mut link: TcpStream, object: &Object) -> io::Result<()> {
        self.out.clear();
        self.reader.reset();
        let Object { key, body, .. } = object;
        let made;
        let sums = match (&object.sums, body) {
            (Some(sums), _) => sums,
            (None, Body::Whole(whole)) => {
                made = Sums::of(whole, self.store.integrity());
                &made
            }
            (None, Body::Chunks { .. }) => unreachable!("a batch has its sums"),
        };
        let put = Put { key, bytes: body.len() as u64, coding: None, sums };
        self.store.write_head(&put, &mut self.out).map_err(io::Error::other)?;
        match body {
            Body::Whole(whole) if self.out.len() + whole.len() <= COALESCED_BYTES => {
                self.out.extend_from_slice(whole);
                link.write_all(&self.out).await?;
            }
            _ => {
                let head = std::iter::once(self.out.as_slice());
                let mut slices: Vec<IoSlice<'_>> =
                    head.chain(body.parts()).map(IoSlice::new).collect();
                let mut left = &mut slices[..];
                while !left.is_empty() {
                    let written = link.write_vectored(left).await?;
                    IoSlice::advance_slices(&mut left, written);
                }
            }
        }
        loop {
            let whole = match link.read(self.reader.space()).await? {
                0 if self.reader.end() => true,
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.reader.advance(n).map_err(io::Error::other)?,
            };
            if whole {
                break;
            }
        }
        if self.reader.reply().keep_alive {
            self.link = Some(link);
        }
        Ok(())
    }
}
