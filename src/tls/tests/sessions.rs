use std::io::{Read as _, Write as _};
use std::sync::Arc;

use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer};
use futures_rustls::rustls::client::ClientConnection;
use futures_rustls::rustls::crypto::ring;
use futures_rustls::rustls::{
    CertificateError, ClientConfig, Error, ProtocolVersion, RootCertStore,
    SupportedProtocolVersion, version,
};
use rcgen::KeyPair;

use super::super::pair::unix_now;
use super::super::session::{Agreed, HELD_BYTES_MAX, HELD_ROOM_MAX, PLAIN_BYTES_MAX, Session};
use super::super::snapshot::TlsSnapshot;
use super::{Authority, ClientPair, Dir, text};
use crate::config::Config;
use crate::rt;

/// A server's settings and the clients that trust it.
struct Lab {
    root: Authority,
    snapshot: TlsSnapshot,
}

impl Lab {
    fn new(asks_for_certificate: bool, needs_certificate: bool) -> Lab {
        let dir = Dir::new();
        let (root, key) = (Authority::new("root"), KeyPair::generate().unwrap());
        let both = dir.write("a.pem", root.server(&["a.test"], &key) + &key.serialize_pem());
        let ca = dir.write("ca.pem", root.pem());
        let mut settings = vec![("LISTEN", "https://127.0.0.1:1"), ("TLS_CERT", text(&both))];
        if asks_for_certificate {
            settings.push(("TLS_CLIENT_CA", text(&ca)));
        }
        let options = Config::from_settings(&settings).unwrap().tls.unwrap();
        Lab { root, snapshot: TlsSnapshot::read(&options, needs_certificate, None).unwrap() }
    }

    fn client_config(
        &self,
        version: &'static SupportedProtocolVersion,
        certificate: Option<ClientPair>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.0.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some(ClientPair { chain, key }) => builder
                .with_client_auth_cert(
                    chain.into_iter().map(CertificateDer::from).collect(),
                    PrivateKeyDer::Pkcs8(key.into()),
                )
                .unwrap(),
        };
        Arc::new(config)
    }

    fn meet(&self, config: &Arc<ClientConfig>) -> (ClientConnection, Session) {
        let client = ClientConnection::new(config.clone(), "a.test".try_into().unwrap()).unwrap();
        (client, Session::new(self.snapshot.ingest.clone()).unwrap())
    }
}

/// What a client has to send.
fn from(client: &mut ClientConnection) -> Vec<u8> {
    let mut sent = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut sent).unwrap();
    }
    sent
}

/// Hands a client what the session has to send, and returns what it hears.
fn to(client: &mut ClientConnection, session: &mut Session) -> Result<Vec<u8>, Error> {
    let sent = std::mem::take(&mut session.out);
    let (mut rest, mut heard) = (&sent[..], Vec::new());
    while !rest.is_empty() {
        client.read_tls(&mut rest).unwrap();
        client.process_new_packets()?;
        let _until_it_would_wait = client.reader().read_to_end(&mut heard);
    }
    Ok(heard)
}

/// Takes bytes in pieces of random lengths.
fn take(session: &mut Session, bytes: &[u8], rng: &mut rt::Rng) -> Result<(), Error> {
    let mut rest = bytes.to_vec();
    let longest = [1, 7, 300, 20_000][rng.usize(..4)];
    while !rest.is_empty() {
        let piece = rng.usize(1..=longest.min(rest.len()));
        let mut piece: Vec<u8> = rest.drain(..piece).collect();
        session.take(&mut piece)?;
        assert!(session.held() <= HELD_BYTES_MAX);
        let [held, _] = session.rooms();
        assert!(held <= PLAIN_BYTES_MAX, "{held}");
    }
    Ok(())
}

fn handshake(
    client: &mut ClientConnection,
    session: &mut Session,
    rng: &mut rt::Rng,
) -> Result<(), Error> {
    while client.is_handshaking() || session.is_handshaking() {
        let sent = from(client);
        let taken = take(session, &sent, rng);
        to(client, session)?;
        taken?;
    }
    to(client, session).map(drop)
}

fn rng() -> rt::Rng {
    let seed = rt::random();
    println!("seed {seed}");
    rt::Rng::with_seed(seed)
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

/// However the bytes are cut, what one side says is what the other hears.
#[test]
fn both_versions_carry_what_is_said() {
    let (lab, mut rng) = (Lab::new(false, false), rng());
    for round in 0..20 {
        let (mut client, mut session) = lab.meet(&lab.client_config(VERSIONS[round % 2], None));
        handshake(&mut client, &mut session, &mut rng).unwrap();
        session.handshake_ended();
        assert_eq!(session.client_certificate(), None);
        for length in [0, 1, 150, 1_700, 16_383, 16_384, 16_385, 100_000] {
            let mut said = vec![0; length];
            rng.fill(&mut said);
            client.set_buffer_limit(None);
            client.writer().write_all(&said).unwrap();
            let sent = from(&mut client);
            let (mut heard, mut rest) = (Vec::new(), &sent[..]);
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(rng.usize(1..=16_384)));
                session.take(&mut piece.to_vec()).unwrap();
                rest = after;
                assert!(session.unread().len() <= PLAIN_BYTES_MAX);
                let [held, plain] = session.rooms();
                assert!(held <= HELD_ROOM_MAX, "{held} of {HELD_ROOM_MAX}");
                // What sessions in their handshake had may be lent.
                assert!(plain <= PLAIN_BYTES_MAX, "{plain} of {PLAIN_BYTES_MAX}");
                // A reader that stops in between, and one that takes what there is.
                while !session.unread().is_empty() {
                    let most = rng.usize(1..=session.unread().len());
                    if rng.bool() {
                        heard.extend_from_slice(&session.unread()[..most]);
                        session.read(most);
                    } else {
                        let (bytes, taken) = session.take_unread();
                        heard.extend_from_slice(&bytes[taken..taken + most]);
                        session.put_back(bytes, taken + most);
                    }
                }
            }
            assert!(heard == said, "{length}");
            assert_eq!(session.held(), 0);
            session.encrypt(&said).unwrap();
            assert!(to(&mut client, &mut session).unwrap() == said, "{length}");
        }
        assert!(session.plain_is_given_back(), "a silent session holds no bytes");
    }
}

#[test]
fn each_side_hears_the_end_of_the_other() {
    let (lab, mut rng) = (Lab::new(false, false), rng());
    for version in VERSIONS {
        let (mut client, mut session) = lab.meet(&lab.client_config(version, None));
        handshake(&mut client, &mut session, &mut rng).unwrap();
        client.writer().write_all(b"last").unwrap();
        client.send_close_notify();
        take(&mut session, &from(&mut client), &mut rng).unwrap();
        assert!(session.has_ended());
        assert_eq!(session.unread(), b"last");
        session.read(4);
        // The client still reads.
        session.encrypt(b"answer").unwrap();
        session.close();
        session.close();
        assert_eq!(to(&mut client, &mut session).unwrap(), b"answer");
        assert_eq!(client.reader().read(&mut [0]).unwrap(), 0, "an end that is no error");
        assert!(session.encrypt(b"more").is_err());
    }
}

/// Sessions of any core's settings, which are the same: a ticket is a ticket for all.
#[test]
fn a_ticket_continues_a_session_with_its_certificate() {
    let (lab, mut rng) = (Lab::new(true, true), rng());
    for version in VERSIONS {
        let config = lab.client_config(version, Some(lab.root.client("gate-7")));
        for resumed in [false, true, true] {
            let (mut client, mut session) = lab.meet(&config);
            handshake(&mut client, &mut session, &mut rng).unwrap();
            let number = if version.version == ProtocolVersion::TLSv1_3 {
                ProtocolVersion::TLSv1_3
            } else {
                ProtocolVersion::TLSv1_2
            };
            assert_eq!(session.agreed(), Agreed { version: number, resumed, is_h2: false });
            let name = session.client_certificate().unwrap().common_name;
            assert_eq!(name.as_deref(), Some("gate-7"));
        }
    }
}

/// Then a full handshake decides.
#[test]
fn a_ticket_is_good_no_longer_than_the_certificate_in_it() {
    let (lab, mut rng) = (Lab::new(true, true), rng());
    let not_after = unix_now() + 2;
    let meetings = VERSIONS.map(|version| {
        let config = lab.client_config(version, Some(lab.root.client_until(not_after)));
        for resumed in [false, true] {
            let (mut client, mut session) = lab.meet(&config);
            handshake(&mut client, &mut session, &mut rng).unwrap();
            assert_eq!(session.agreed().resumed, resumed);
        }
        config
    });
    while unix_now() <= not_after {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    for config in meetings {
        let (mut client, mut session) = lab.meet(&config);
        let refused = fails(&mut client, &mut session, &mut rng);
        let is_expired = matches!(
            refused,
            Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            )
        );
        assert!(is_expired, "{refused:?}");
    }
}

/// What a client sends beside its certificate is bounded before anybody looks at it.
#[test]
fn a_client_sends_no_more_than_a_few_authorities() {
    let (lab, mut rng) = (Lab::new(true, true), rng());
    let mut above = vec![Authority::new("unused")];
    let mut next = lab.root.below("authority 1").1;
    for number in 2..=7 {
        let below = next.below(&format!("authority {number}")).1;
        above.push(std::mem::replace(&mut next, below));
    }
    // Of one name, so that each may have signed each other one.
    let fillers: Vec<_> = (0..60).map(|_| Authority::new("filler").0.der().to_vec()).collect();
    for version in VERSIONS {
        for (authorities, fillers, is_accepted) in [
            (1, &[][..], true),
            (5, &[], true),
            (4, &fillers[..1], true),
            (6, &[], false),
            (5, &fillers[..1], false),
            (1, &fillers[..], false),
        ] {
            let mut pair = above[authorities].client("gate-7");
            let of_path = above[1..=authorities].iter().rev();
            pair.chain.extend(of_path.map(|authority| authority.0.der().to_vec()));
            pair.chain.extend_from_slice(fillers);
            let (mut client, mut session) = lab.meet(&lab.client_config(version, Some(pair)));
            if is_accepted {
                handshake(&mut client, &mut session, &mut rng).unwrap();
                continue;
            }
            let refused = fails(&mut client, &mut session, &mut rng);
            let Error::InvalidCertificate(CertificateError::Other(why)) = refused else {
                panic!("{refused:?}")
            };
            let said =
                format!("it comes with {} others, and up to 5 may", authorities + fillers.len());
            assert!(why.to_string().starts_with(&said), "{why}");
        }
    }
}

#[test]
fn a_client_without_a_certificate_is_refused_only_if_it_needs_one() {
    let mut rng = rng();
    let (stranger, optional, needed) =
        (Authority::new("stranger"), Lab::new(true, false), Lab::new(true, true));
    for version in VERSIONS {
        let without = |lab: &Lab| lab.client_config(version, None);
        let (mut client, mut session) = optional.meet(&without(&optional));
        handshake(&mut client, &mut session, &mut rng).unwrap();
        assert_eq!(session.client_certificate(), None);
        let (mut client, mut session) = needed.meet(&without(&needed));
        let refused = fails(&mut client, &mut session, &mut rng);
        assert_eq!(refused, Error::NoCertificatesPresented);
        for lab in [&optional, &needed] {
            let config = lab.client_config(version, Some(stranger.client("gate-7")));
            let (mut client, mut session) = lab.meet(&config);
            let refused = fails(&mut client, &mut session, &mut rng);
            assert!(matches!(refused, Error::InvalidCertificate(_)), "{refused:?}");
        }
    }
}

/// Also where it has answered before it finds out.
#[test]
fn a_client_of_another_protocol_is_told() {
    let (lab, mut rng) = (Lab::new(false, false), rng());
    for version in VERSIONS {
        let mut config = ClientConfig::clone(&lab.client_config(version, None));
        config.alpn_protocols = vec![b"spdy/3".to_vec()];
        let (mut client, mut session) = lab.meet(&Arc::new(config));
        let refused = fails(&mut client, &mut session, &mut rng);
        assert_eq!(refused, Error::NoApplicationProtocol);
    }
}

/// The error with which the session refuses the client, which is told.
fn fails(client: &mut ClientConnection, session: &mut Session, rng: &mut rt::Rng) -> Error {
    loop {
        let sent = from(client);
        assert!(!sent.is_empty(), "it goes on");
        let taken = take(session, &sent, rng);
        let told = to(client, session);
        if let Err(error) = taken {
            let alert = told.expect_err("it gets an alert");
            assert!(matches!(alert, Error::AlertReceived(_)), "{alert:?}");
            assert!(session.is_broken());
            // Whatever follows is not looked at.
            session.take(&mut [0x16; 100]).unwrap();
            return error;
        }
    }
}

/// What is sent in between does not disturb a message that is not complete: rustls keeps positions in
/// what is held.
#[test]
fn answers_leave_while_a_record_is_not_complete() {
    let (lab, mut rng) = (Lab::new(false, false), rng());
    for version in VERSIONS {
        let (mut client, mut session) = lab.meet(&lab.client_config(version, None));
        handshake(&mut client, &mut session, &mut rng).unwrap();
        for _ in 0..50 {
            if version.version == ProtocolVersion::TLSv1_3 {
                client.refresh_traffic_keys().unwrap();
            }
            client.writer().write_all(b"said").unwrap();
            let sent = from(&mut client);
            let cut = rng.usize(1..sent.len());
            session.take(&mut sent[..cut].to_vec()).unwrap();
            session.encrypt(b"answer").unwrap();
            assert_eq!(to(&mut client, &mut session).unwrap(), b"answer");
            session.take(&mut sent[cut..].to_vec()).unwrap();
            assert_eq!(session.unread(), b"said");
            session.read(4);
            from(&mut client);
        }
    }
}

#[test]
fn what_is_not_tls_is_an_error_and_holds_little() {
    let lab = Lab::new(false, false);
    let config = lab.client_config(&version::TLS13, None);
    let mut seeds = rng();
    for _ in 0..300 {
        let (mut client, mut session) = lab.meet(&config);
        let mut hello = from(&mut client);
        for _ in 0..seeds.usize(1..4) {
            let at = seeds.usize(..hello.len());
            hello[at] ^= 1 << seeds.u8(..8);
        }
        let _any_verdict = take(&mut session, &hello, &mut seeds);
    }
    // A message that says that it is long, in records of one kind.
    let (_, mut session) = lab.meet(&config);
    let mut failed = false;
    for at in 0..40 {
        let mut record = vec![0x16, 3, 1, 0x20, 0];
        record.resize(5 + 0x2000, 0);
        if at == 0 {
            record[5..9].copy_from_slice(&[1, 0, 0xff, 0]);
        }
        failed |= session.take(&mut record).is_err();
        assert!(session.held() <= HELD_BYTES_MAX, "{at}");
    }
    assert!(failed, "it is not taken for ever");
}
