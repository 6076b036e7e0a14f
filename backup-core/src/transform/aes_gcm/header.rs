//! The header of an encrypted object, the object key, and nonces.

use ring::aead::{AES_256_GCM, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{BackupKey, equal_in_constant_time, length_prefixed};
use crate::name::{BackupId, SetName};
use crate::transform::CodecContext;
use crate::transform::segments::{Opener, SegmentCipher, TAG};
use crate::workers::Workers;

/// First bytes of every encrypted object; the last of them is the version of the format.
pub(super) const MAGIC: [u8; 8] = *b"BKUPENC\x01";
/// Length of the header this library writes.
pub(super) const LEN: usize = FIXED + CHECK;
const LEN_FIELD: u32 = 88;
const _: () = assert!(LEN == LEN_FIELD as usize);
/// Longest header that is accepted.
pub(super) const MAX_LEN: usize = 64 << 10;
/// Most plain bytes in a segment that are accepted.
pub(super) const MAX_SEGMENT: usize = 4 << 20;
/// Magic, header length, segment size, salt, commitment.
const FIXED: usize = 8 + 4 + 4 + 32 + 32;
/// The first bytes of the SHA-256 of all before them. They tell damage from a wrong key and protect nothing.
const CHECK: usize = 8;
/// What object keys are derived for.
const LABEL: &[u8] = b"backup object aes-256-gcm v1";

/// Seals and opens the segments of one object.
pub(super) struct ObjectCipher {
    key: LessSafeKey,
    /// The whole header: associated data of every segment.
    header: Vec<u8>,
    /// Plain bytes in a segment.
    segment: usize,
}

impl ObjectCipher {
    /// The cipher of a new object.
    pub(super) fn create(cx: &CodecContext<'_>, segment: u32) -> Result<Self> {
        let salt = crate::keys::random::<32>()?;
        let (key, commitment) = derive(cx, &salt)?;
        let mut header = Vec::with_capacity(LEN);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&LEN_FIELD.to_be_bytes());
        header.extend_from_slice(&segment.to_be_bytes());
        header.extend_from_slice(&salt);
        header.extend_from_slice(commitment.as_slice());
        let check = Digest::of(&header);
        header.extend_from_slice(&check.as_bytes()[..CHECK]);
        Ok(Self { key, header, segment: segment as usize })
    }

    /// Reads a header from the beginning of `bytes` and compares the key; `None` when more bytes are needed.
    fn open(cx: &CodecContext<'_>, bytes: &[u8]) -> Result<Option<Self>> {
        if bytes.iter().zip(MAGIC).any(|(a, b)| *a != b) {
            if bytes.starts_with(&MAGIC[..7]) {
                return Err(Error::new(ErrorKind::Unsupported, "decrypt")
                    .message("the object has a newer format; use a newer version of this library")
                    .with("artifact", cx.artifact));
            }
            return Err(corrupt(cx, "the object does not begin with the header of an encrypted object"));
        }
        let Some((len, rest)) = bytes.get(MAGIC.len()..).and_then(<[u8]>::split_first_chunk::<4>) else {
            return Ok(None);
        };
        let Some((segment, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let (len, segment) = (u32::from_be_bytes(*len) as usize, u32::from_be_bytes(*segment) as usize);
        if !(LEN..=MAX_LEN).contains(&len) || !(1..=MAX_SEGMENT).contains(&segment) {
            return Err(corrupt(cx, "the header names sizes that are out of bounds"));
        }
        let Some((signed, check)) = bytes.get(..len).and_then(|h| h.split_last_chunk::<CHECK>()) else {
            return Ok(None);
        };
        if Digest::of(signed).as_bytes()[..CHECK] != *check {
            return Err(corrupt(cx, "the header is damaged"));
        }
        let Some((salt, rest)) = rest.split_first_chunk::<32>() else { return Ok(None) };
        let Some((commitment, _)) = rest.split_first_chunk::<32>() else { return Ok(None) };
        let (key, expected) = derive(cx, salt)?;
        if !equal_in_constant_time(expected.as_slice(), commitment) {
            return Err(Error::new(ErrorKind::WrongKey, "decrypt")
                .message(
                    "the object was encrypted with another backup key, or for another set, backup or name",
                )
                .with("artifact", cx.artifact));
        }
        Ok(Some(Self { key, header: bytes[..len].to_vec(), segment }))
    }
}

impl SegmentCipher for ObjectCipher {
    fn header(&self) -> &[u8] {
        &self.header
    }

    fn segment(&self) -> usize {
        self.segment
    }

    fn seal(&self, number: u64, last: bool, plain: &mut [u8]) -> Result<[u8; TAG]> {
        let aad = ring::aead::Aad::from(self.header.as_slice());
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(number, last)?, aad, plain)
            .map_err(|_| Error::new(ErrorKind::Internal, "encrypt").message("AES-GCM refused a segment"))?;
        let mut bytes = [0; TAG];
        bytes.copy_from_slice(tag.as_ref());
        Ok(bytes)
    }

    fn unseal(&self, number: u64, last: bool, sealed: &mut [u8]) -> Result<bool> {
        let aad = ring::aead::Aad::from(self.header.as_slice());
        Ok(self.key.open_in_place(nonce(number, last)?, aad, sealed).is_ok())
    }
}

/// What opening a header needs, kept until the header is complete.
pub(super) struct HeaderOpener {
    set: SetName,
    id: BackupId,
    artifact: String,
    key: BackupKey,
    workers: Workers,
}

impl HeaderOpener {
    pub(super) fn new(cx: &CodecContext<'_>) -> Result<Self> {
        Ok(Self {
            set: cx.set.clone(),
            id: cx.id,
            artifact: cx.artifact.to_owned(),
            key: cx.require_key()?.clone(),
            workers: cx.workers.clone(),
        })
    }

    fn context(&self) -> CodecContext<'_> {
        CodecContext {
            set: &self.set,
            id: self.id,
            artifact: &self.artifact,
            key: Some(&self.key),
            workers: &self.workers,
        }
    }
}

impl Opener for HeaderOpener {
    type Cipher = ObjectCipher;

    fn open(&self, bytes: &[u8]) -> Result<Option<ObjectCipher>> {
        ObjectCipher::open(&self.context(), bytes)
    }

    fn corrupt(&self, why: &'static str) -> Error {
        corrupt(&self.context(), why)
    }
}

/// 7 zero bytes, the number of the segment as 4 bytes big-endian, 1 for the last segment and else 0.
fn nonce(number: u64, last: bool) -> Result<Nonce> {
    let number = u32::try_from(number).map_err(|_| {
        Error::new(ErrorKind::LimitExceeded, "encrypt")
            .message("an encrypted object has at most 2^32 segments (256 TiB); split the artifact")
    })?;
    let mut bytes = [0; NONCE_LEN];
    bytes[7..11].copy_from_slice(&number.to_be_bytes());
    bytes[11] = u8::from(last);
    Ok(Nonce::assume_unique_for_key(bytes))
}

/// The object's key, and the commitment to it.
fn derive(cx: &CodecContext<'_>, salt: &[u8; 32]) -> Result<(LessSafeKey, Zeroizing<[u8; 32]>)> {
    let id = cx.id.to_string();
    let info = length_prefixed(&[LABEL, cx.set.as_str().as_bytes(), id.as_bytes(), cx.artifact.as_bytes()])?;
    let mut both = Zeroizing::new([0; 64]);
    cx.require_key()?.derive(salt, &[&info], both.as_mut_slice())?;
    let (key, commitment) = both.split_at(32);
    let key = UnboundKey::new(&AES_256_GCM, key)
        .map_err(|_| Error::new(ErrorKind::Internal, "derive key").message("AES-256 refused its key"))?;
    let mut committed = Zeroizing::new([0; 32]);
    committed.copy_from_slice(commitment);
    Ok((LessSafeKey::new(key), committed))
}

fn corrupt(cx: &CodecContext<'_>, why: &'static str) -> Error {
    Error::corrupt("decrypt", why).with("artifact", cx.artifact)
}
