//! The header of an age file and its segments (age-encryption.org/v1, "Encrypted file format").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use ring::hmac;
use zeroize::Zeroizing;

use super::x25519::{FILE_KEY, FileKey, Identity, Recipient, WRAPPED, cipher};
use crate::error::{Error, ErrorKind, Result};
use crate::keys::{Secret32, hkdf_sha256, random};
use crate::transform::segments::{Opener, SegmentCipher, TAG};

/// Plain bytes in a segment: fixed by the format.
pub(super) const SEGMENT: usize = 64 << 10;
/// Longest header that is accepted.
pub(super) const MAX_LEN: usize = 64 << 10;
/// Most X25519 recipients of a file that are tried.
pub(super) const MAX_RECIPIENTS: usize = 256;
/// Bytes of the nonce between the header and the segments.
const PAYLOAD_NONCE: usize = 16;

const VERSION: &str = "age-encryption.org/v1";
const ANY_VERSION: &[u8] = b"age-encryption.org/";
/// Characters of 32 bytes in base64 without padding.
const BASE64_32: usize = 43;

/// Bytes before the first segment of a file for so many recipients.
pub(super) fn len(recipients: usize) -> usize {
    let stanza = "-> X25519 ".len() + BASE64_32 + 1 + BASE64_32 + 1;
    VERSION.len() + 1 + recipients * stanza + "--- ".len() + BASE64_32 + 1 + PAYLOAD_NONCE
}

/// Seals and opens the segments of one age file.
pub(super) struct FileCipher {
    /// The header, and the nonce of the payload.
    header: Vec<u8>,
    key: LessSafeKey,
}

impl FileCipher {
    /// The cipher of a new file.
    pub(super) fn create(recipients: &[Recipient]) -> Result<Self> {
        let mut file_key = FileKey::default();
        file_key.copy_from_slice(Zeroizing::new(random::<FILE_KEY>()?).as_slice());
        let mut header = format!("{VERSION}\n");
        for recipient in recipients {
            let (share, body) = recipient.wrap(&file_key)?;
            header.push_str("-> X25519 ");
            STANDARD_NO_PAD.encode_string(share, &mut header);
            header.push('\n');
            STANDARD_NO_PAD.encode_string(body, &mut header);
            header.push('\n');
        }
        header.push_str("---");
        let mac = hmac::sign(&mac_key(&file_key)?, header.as_bytes());
        header.push(' ');
        STANDARD_NO_PAD.encode_string(mac.as_ref(), &mut header);
        header.push('\n');
        let nonce = random::<PAYLOAD_NONCE>()?;
        let mut header = header.into_bytes();
        header.extend_from_slice(&nonce);
        Ok(Self { header, key: payload_key(&file_key, &nonce)? })
    }
}

impl SegmentCipher for FileCipher {
    fn header(&self) -> &[u8] {
        &self.header
    }

    fn segment(&self) -> usize {
        SEGMENT
    }

    fn seal(&self, number: u64, last: bool, plain: &mut [u8]) -> Result<[u8; TAG]> {
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(number, last), Aad::empty(), plain)
            .map_err(|_| Error::new(ErrorKind::Internal, "encrypt").message("a segment was refused"))?;
        let mut bytes = [0; TAG];
        bytes.copy_from_slice(tag.as_ref());
        Ok(bytes)
    }

    fn unseal(&self, number: u64, last: bool, sealed: &mut [u8]) -> Result<bool> {
        Ok(self.key.open_in_place(nonce(number, last), Aad::empty(), sealed).is_ok())
    }
}

/// Opens headers with one of several identities.
pub(super) struct HeaderOpener {
    pub(super) identities: Vec<Identity>,
    pub(super) artifact: String,
}

impl Opener for HeaderOpener {
    type Cipher = FileCipher;

    fn open(&self, bytes: &[u8]) -> Result<Option<FileCipher>> {
        if bytes.iter().zip(ANY_VERSION).any(|(a, b)| a != b) {
            return Err(self.corrupt("the object does not begin with the header of an age file"));
        }
        let Some(text) = self.text(bytes)? else { return Ok(None) };
        let Some(nonce) = bytes.get(text.len()..).and_then(<[u8]>::first_chunk::<PAYLOAD_NONCE>) else {
            return Ok(None);
        };
        let (signed, mac, stanzas) = self.stanzas(text)?;
        let file_key = self.file_key(&stanzas)?;
        hmac::verify(&mac_key(&file_key)?, signed, &mac)
            .map_err(|_| self.corrupt("the header of the age file was changed"))?;
        let header = bytes.get(..text.len() + PAYLOAD_NONCE).unwrap_or_default().to_vec();
        Ok(Some(FileCipher { header, key: payload_key(&file_key, nonce)? }))
    }

    fn corrupt(&self, why: &'static str) -> Error {
        Error::corrupt("decrypt", why).with("artifact", &self.artifact)
    }
}

/// A stanza for an X25519 recipient: ephemeral share and wrapped key.
type Stanza = ([u8; 32], [u8; WRAPPED]);

impl HeaderOpener {
    /// The lines of the header up to its MAC; `None` when more bytes are needed.
    fn text<'a>(&self, bytes: &'a [u8]) -> Result<Option<&'a str>> {
        let within = bytes.get(..MAX_LEN).unwrap_or(bytes);
        let mut end = 0;
        for line in within.split_inclusive(|b| *b == b'\n') {
            if !line.ends_with(b"\n") {
                break;
            }
            if end == 0 && line.strip_suffix(b"\n") != Some(VERSION.as_bytes()) {
                return Err(Error::new(ErrorKind::Unsupported, "decrypt")
                    .message("the age file has a newer format; use a newer version of this library")
                    .with("artifact", &self.artifact));
            }
            end += line.len();
            if line.starts_with(b"---") {
                let text = within.get(..end).and_then(|header| std::str::from_utf8(header).ok());
                return text.map(Some).ok_or_else(|| self.malformed());
            }
        }
        if bytes.len() >= MAX_LEN {
            return Err(Error::new(ErrorKind::LimitExceeded, "decrypt")
                .message("the header of the age file is longer than 64 KiB")
                .with("artifact", &self.artifact));
        }
        Ok(None)
    }

    /// The bytes that the MAC covers, the MAC, and the stanzas for X25519 recipients.
    fn stanzas<'a>(&self, text: &'a str) -> Result<(&'a [u8], [u8; 32], Vec<Stanza>)> {
        let malformed = || self.malformed();
        let (document, mac) = text.trim_end_matches('\n').rsplit_once("\n--- ").ok_or_else(malformed)?;
        let signed = text.as_bytes().get(..document.len() + "\n---".len()).ok_or_else(malformed)?;
        let mac = base64_32(mac).ok_or_else(malformed)?;
        let mut lines = document.split('\n').skip(1).peekable();
        let mut stanzas = Vec::new();
        while let Some(line) = lines.next() {
            let mut words = line.strip_prefix("-> ").ok_or_else(malformed)?.split(' ');
            let kind = words.next().unwrap_or_default();
            if kind == "scrypt" {
                return Err(Error::new(ErrorKind::Unsupported, "decrypt")
                    .message(
                        "the age file is encrypted with a passphrase, which this library does not compute; \
                         decrypt it with the `age` command",
                    )
                    .with("artifact", &self.artifact));
            }
            let mut body = String::new();
            loop {
                // The body ends with the first line of fewer than 64 characters.
                let line = lines.next().ok_or_else(malformed)?;
                body.push_str(line);
                match line.len() {
                    0..64 => break,
                    64 => {}
                    _ => return Err(malformed()),
                }
            }
            // Other kinds are for other readers.
            if kind == "X25519" {
                let share = words.next().and_then(base64_32).ok_or_else(malformed)?;
                let body = base64_32(&body).ok_or_else(malformed)?;
                if words.next().is_some() {
                    return Err(malformed());
                }
                if stanzas.len() == MAX_RECIPIENTS {
                    return Err(Error::new(ErrorKind::LimitExceeded, "decrypt")
                        .message("the age file has more than 256 recipients")
                        .with("artifact", &self.artifact));
                }
                stanzas.push((share, body));
            }
        }
        Ok((signed, mac, stanzas))
    }

    /// The file key, from the first stanza that an identity opens.
    fn file_key(&self, stanzas: &[Stanza]) -> Result<FileKey> {
        for identity in &self.identities {
            for (share, body) in stanzas {
                if let Some(key) = identity.unwrap(share, body)? {
                    return Ok(key);
                }
            }
        }
        Err(Error::new(ErrorKind::WrongKey, "decrypt")
            .message("the object is encrypted to other age recipients; give the repository one of their identities")
            .with("artifact", &self.artifact))
    }

    fn malformed(&self) -> Error {
        self.corrupt("the header of the age file is damaged")
    }
}

fn base64_32(text: &str) -> Option<[u8; 32]> {
    // The decoder wants room for whole groups.
    let mut bytes = [0; 33];
    let fits = text.len() == BASE64_32 && STANDARD_NO_PAD.decode_slice(text, &mut bytes) == Ok(32);
    fits.then(|| bytes.first_chunk().copied()).flatten()
}

fn mac_key(file_key: &FileKey) -> Result<hmac::Key> {
    let mut key = Secret32::default();
    hkdf_sha256(file_key.as_slice(), &[], &[b"header"], key.as_mut_slice())?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, key.as_slice()))
}

fn payload_key(file_key: &FileKey, nonce: &[u8; PAYLOAD_NONCE]) -> Result<LessSafeKey> {
    let mut key = Secret32::default();
    hkdf_sha256(file_key.as_slice(), nonce, &[b"payload"], key.as_mut_slice())?;
    cipher(&key)
}

/// The number of the segment as 11 bytes big-endian, 1 for the last segment and else 0.
fn nonce(number: u64, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[3..11].copy_from_slice(&number.to_be_bytes());
    bytes[11] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}
