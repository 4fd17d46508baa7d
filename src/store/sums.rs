//! What an S3 request says about its body, computed while the body arrives or once it is complete.
//!
//! Only the lean client needs it: the SDK computes its own, and other stores need none.

use crc_fast::CrcAlgorithm;
use sha2::{Digest, Sha256};

use crate::config::Checksum;
use crate::queue::job::Payload;

/// What a PUT says about its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integrity {
    /// `Auto` counts as none: it must be resolved before.
    pub checksum: Checksum,
    /// The signature covers the body. Without TLS nothing else protects it.
    pub sign_payload: bool,
}

impl Integrity {
    /// Nothing is said about the body, so nothing is computed.
    pub const NONE: Integrity = Integrity { checksum: Checksum::None, sign_payload: false };

    fn wants_sha256(self) -> bool {
        self.sign_payload || self.checksum == Checksum::Sha256
    }

    fn crc(self) -> Option<CrcAlgorithm> {
        match self.checksum {
            Checksum::Auto | Checksum::None | Checksum::Sha256 => None,
            Checksum::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Checksum::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
        }
    }
}

/// Where two sums are wanted, so much of a body is read twice before the next bytes are: it is in the
/// first cache the second time.
const PIECE_BYTES: usize = 16 << 10;

/// The sums of a body so far. An update reads all of its bytes, so a caller on a core passes slices.
pub struct Summing {
    integrity: Integrity,
    sha256: Option<Sha256>,
    crc: Option<crc_fast::Digest>,
}

impl Summing {
    pub fn new(integrity: Integrity) -> Summing {
        Summing {
            integrity,
            sha256: integrity.wants_sha256().then(Sha256::new),
            crc: integrity.crc().map(crc_fast::Digest::new),
        }
    }

    /// Adds the next `bytes` of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        match (&mut self.sha256, &mut self.crc) {
            (None, None) => {}
            (Some(sha256), None) => sha256.update(bytes),
            (None, Some(crc)) => crc.update(bytes),
            (Some(sha256), Some(crc)) => {
                for piece in bytes.chunks(PIECE_BYTES) {
                    sha256.update(piece);
                    crc.update(piece);
                }
            }
        }
    }

    pub fn finish(self) -> Sums {
        Sums {
            integrity: self.integrity,
            sha256: self.sha256.map_or([0; 32], |sha256| sha256.finalize().into()),
            crc: self.crc.map_or(0, |crc| crc.finalize()).to_be_bytes(),
        }
    }
}

/// The sums of a whole body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    integrity: Integrity,
    /// Zeros if not computed.
    sha256: [u8; 32],
    /// Big-endian; a 32-bit sum is in the last four.
    crc: [u8; 8],
}

impl Sums {
    /// The sums of a body in one piece.
    pub fn of(body: &[u8], integrity: Integrity) -> Sums {
        if integrity.wants_sha256() && integrity.crc().is_some() && body.len() > PIECE_BYTES {
            let mut summing = Summing::new(integrity);
            summing.update(body);
            return summing.finish();
        }
        let sha256 = if integrity.wants_sha256() { Sha256::digest(body).into() } else { [0; 32] };
        let crc = integrity.crc().map_or(0, |algorithm| crc_fast::checksum(algorithm, body));
        Sums { integrity, sha256, crc: crc.to_be_bytes() }
    }

    /// The sums of a body in any number of parts.
    pub fn of_parts(parts: &[Payload], integrity: Integrity) -> Sums {
        if let [whole] = parts {
            return Sums::of(whole, integrity);
        }
        let mut summing = Summing::new(integrity);
        parts.iter().for_each(|part| summing.update(part));
        summing.finish()
    }

    /// What the sums were computed for.
    pub fn integrity(&self) -> Integrity {
        self.integrity
    }

    /// The SHA-256 that the signature covers, unless it leaves the body out.
    pub(super) fn signed(&self) -> Option<&[u8; 32]> {
        self.integrity.sign_payload.then_some(&self.sha256)
    }

    /// The checksum's bytes, which its header carries in base64; empty if there is none.
    pub(super) fn checksum(&self) -> &[u8] {
        match self.integrity.checksum {
            Checksum::Auto | Checksum::None => &[],
            Checksum::Crc32c => &self.crc[4..],
            Checksum::Crc64Nvme => &self.crc,
            Checksum::Sha256 => &self.sha256,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHECKSUMS: [Checksum; 5] =
        [Checksum::Auto, Checksum::None, Checksum::Crc32c, Checksum::Crc64Nvme, Checksum::Sha256];

    fn all() -> impl Iterator<Item = Integrity> {
        let with =
            |checksum| [true, false].map(|sign_payload| Integrity { checksum, sign_payload });
        CHECKSUMS.into_iter().flat_map(with)
    }

    /// The check values of RFC 3720, of the NVMe specification and of FIPS 180-4.
    #[test]
    fn the_published_check_values() {
        let sums = |checksum, body: &[u8]| {
            let sums = Sums::of(body, Integrity { checksum, sign_payload: false });
            sums.checksum().iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        assert_eq!(sums(Checksum::Crc32c, b"123456789"), "e3069283");
        assert_eq!(sums(Checksum::Crc64Nvme, b"123456789"), "ae8b14860a799888");
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sums(Checksum::Sha256, b"abc"), abc);
        assert_eq!(sums(Checksum::None, b"abc"), "");
    }

    #[test]
    fn what_nobody_asks_for_is_not_computed() {
        for integrity in all() {
            let Summing { sha256, crc, .. } = Summing::new(integrity);
            let sha256_is_used = integrity.sign_payload || integrity.checksum == Checksum::Sha256;
            assert_eq!(sha256.is_some(), sha256_is_used, "{integrity:?}");
            let sums = Sums::of(b"{}", integrity);
            assert_eq!(sums.signed().is_some(), integrity.sign_payload, "{integrity:?}");
            assert_eq!(crc.is_some(), [4, 8].contains(&sums.checksum().len()), "{integrity:?}");
        }
    }

    #[test]
    fn the_sums_of_a_large_body_are_those_of_their_algorithms() {
        let body: Vec<u8> = (0..3 * PIECE_BYTES as u32 + 5).map(|n| (n % 251) as u8).collect();
        for integrity in all().filter(|integrity| integrity.crc().is_some()) {
            let crc = crc_fast::checksum(integrity.crc().unwrap(), &body).to_be_bytes();
            let sums = Sums::of(&body, integrity);
            assert_eq!(sums.crc, crc, "{integrity:?}");
            let sha256: [u8; 32] = Sha256::digest(&body).into();
            assert_eq!(sums.signed(), integrity.sign_payload.then_some(&sha256), "{integrity:?}");
        }
    }

    proptest! {
        #[test]
        fn the_sums_of_parts_are_those_of_the_whole(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..700), 0..8),
        ) {
            let whole = parts.concat();
            let payloads: Vec<Payload> = parts.iter().cloned().map(Payload::from).collect();
            for integrity in all() {
                let expected = Sums::of(&whole, integrity);
                let mut summing = Summing::new(integrity);
                parts.iter().for_each(|part| summing.update(part));
                prop_assert_eq!(&summing.finish(), &expected);
                prop_assert_eq!(&Sums::of_parts(&payloads, integrity), &expected);
            }
        }
    }
}
