//! `openssl enc -aes-256-cbc -pbkdf2` back to plain bytes.
//!
//! `Salted__`, 8 bytes of salt, AES-256-CBC with the padding of PKCS #7 (OpenSSL 3.0, `apps/enc.c`). Key and
//! initialisation vector are the 48 bytes of PBKDF2-HMAC-SHA256(password, salt, rounds). Nothing in it protects the
//! content: whether the password was right shows only in the padding, and in what comes out.

use std::num::NonZeroU32;

use aes::Aes256;
use bytes::{Buf as _, Bytes, BytesMut};
use cbc::Decryptor;
use cbc::cipher::{Array, BlockModeDecrypt as _, KeyIvInit as _};
use ring::pbkdf2;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::transform::{Codec, Emit};

const MAGIC: &[u8] = b"Salted__";
const HEADER: usize = MAGIC.len() + 8;
const BLOCK: usize = 16;
/// Plain bytes passed on at a time.
const PIECE: usize = 256 * 1024;

/// A password, and how often it is hashed.
#[derive(Clone)]
pub(super) struct Password {
    pub(super) text: Zeroizing<String>,
    pub(super) rounds: NonZeroU32,
}

pub(super) struct Decoder {
    password: Password,
    cipher: Option<Decryptor<Aes256>>,
    buffer: BytesMut,
}

impl Decoder {
    pub(super) fn new(password: Password) -> Self {
        Self { password, cipher: None, buffer: BytesMut::new() }
    }

    /// Reads the header. `false`: more bytes are needed.
    fn open(&mut self) -> Result<bool> {
        if self.cipher.is_some() {
            return Ok(true);
        }
        if self.buffer.iter().zip(MAGIC).any(|(a, b)| a != b) {
            let refuse = |why: &'static str| Err(Error::new(ErrorKind::Unsupported, "import").message(why));
            if self.buffer.starts_with(b"U2Fsd") {
                return refuse("the file is in base64 (`openssl enc -a`); decode it with `base64 -d` first");
            }
            return refuse("the file is not what `openssl enc` with a salt writes");
        }
        let Some(salt) = self.buffer.get(MAGIC.len()..HEADER) else { return Ok(false) };
        let mut derived = Zeroizing::new([0; 48]);
        let text = self.password.text.as_bytes();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, self.password.rounds, salt, text, derived.as_mut_slice());
        let (key, iv) = derived.split_at(32);
        let cipher = Decryptor::new_from_slices(key, iv)
            .map_err(|_| Error::new(ErrorKind::Internal, "import").message("AES-256 refused its key"))?;
        self.cipher = Some(cipher);
        self.buffer.advance(HEADER);
        Ok(true)
    }

    /// Decrypts `bytes`, whole blocks, in place.
    fn decrypt(&mut self, bytes: &mut [u8]) {
        let Some(cipher) = &mut self.cipher else { return };
        let (blocks, _) = Array::slice_as_chunks_mut(bytes);
        cipher.decrypt_blocks(blocks);
    }
}

impl Codec for Decoder {
    fn push(&mut self, input: Bytes, out: &mut dyn Emit) -> Result<()> {
        self.buffer.extend_from_slice(&input);
        drop(input);
        if !self.open()? {
            return Ok(());
        }
        // The last block holds the padding.
        while self.buffer.len() > BLOCK {
            let whole = (self.buffer.len() - 1) / BLOCK * BLOCK;
            let mut piece = self.buffer.split_to(whole.min(PIECE));
            self.decrypt(&mut piece);
            out.data(piece.freeze())?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>, out: &mut dyn Emit) -> Result<()> {
        if self.cipher.is_none() || self.buffer.len() != BLOCK {
            return Err(Error::corrupt("import", "the encrypted file is not whole: it was cut off"));
        }
        let mut last = self.buffer.split();
        self.decrypt(&mut last);
        let padding = last.last().copied().map_or(0, usize::from);
        let text = last.len().checked_sub(padding).filter(|_| padding > 0);
        let fits = text
            .and_then(|text| last.get(text..))
            .is_some_and(|p| p.iter().all(|b| usize::from(*b) == padding));
        let Some(text) = text.filter(|_| fits) else { return Err(wrong_password()) };
        last.truncate(text);
        if last.is_empty() { Ok(()) } else { out.data(last.freeze()) }
    }
}

/// What comes out is not what the name of the file says.
pub(super) fn wrong_password() -> Error {
    Error::new(ErrorKind::WrongKey, "import").message(
        "the password or the number of rounds is wrong, or the file is damaged or cut off: `openssl enc` leaves nothing to tell these \
         apart",
    )
}

#[cfg(test)]
mod tests {
    use cbc::cipher::BlockModeEncrypt as _;
    use cbc::cipher::block_padding::Pkcs7;

    use super::*;
    use crate::repository::import::sniff::{Expected, Sniffer};
    use crate::transform::ChainDecoder;

    fn password(text: &str) -> Password {
        Password { text: Zeroizing::new(text.to_owned()), rounds: NonZeroU32::MIN }
    }

    fn encrypt(plain: &[u8]) -> Vec<u8> {
        let salt = [7; 8];
        let mut derived = [0; 48];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, NonZeroU32::MIN, &salt, b"right", &mut derived);
        let cipher = cbc::Encryptor::<Aes256>::new_from_slices(&derived[..32], &derived[32..]).unwrap();
        let mut bytes = plain.to_vec();
        bytes.resize(plain.len() + BLOCK, 0);
        let sealed = cipher.encrypt_padded::<Pkcs7>(&mut bytes, plain.len()).unwrap();
        [MAGIC, &salt, sealed].concat()
    }

    fn decrypt(stored: &[u8], with: &str, expected: Expected) -> Result<Vec<u8>> {
        let codecs: Vec<Box<dyn Codec>> =
            vec![Box::new(Sniffer::new(expected)), Box::new(Decoder::new(password(with)))];
        let mut decoder = ChainDecoder::whole(codecs, None);
        let mut plain = Vec::new();
        for piece in stored.chunks(1000) {
            decoder.push(Bytes::copy_from_slice(piece), &mut plain)?;
        }
        decoder.finish(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn any_length_comes_back_and_any_other_length_is_noticed() {
        for len in [0, 1, 15, 16, 17, 4096, 100_000] {
            let plain = vec![b'x'; len];
            let stored = encrypt(&plain);
            assert_eq!(decrypt(&stored, "right", Expected::Text).unwrap(), plain);
            for cut in (0..stored.len()).rev().take(40) {
                let result = decrypt(&stored[..cut], "right", Expected::Text);
                let kind = result.map_err(|e| e.kind()).unwrap_err();
                let known = [ErrorKind::Corrupt, ErrorKind::WrongKey, ErrorKind::Unsupported];
                assert!(known.contains(&kind), "{len} cut at {cut}");
            }
        }
    }

    /// By chance the padding fits one wrong password of 256.
    #[test]
    fn of_thousands_of_wrong_passwords_none_gives_a_backup() {
        let text = encrypt("INSERT INTO books VALUES (1);\n".repeat(100).as_bytes());
        let gzip = encrypt(&[&[0x1f, 0x8b, 8, 0][..], &[0; 500]].concat());
        for n in 0..3000 {
            for (stored, expected) in [(&text, Expected::Text), (&gzip, Expected::of("gz").unwrap())] {
                let error = decrypt(stored, &format!("wrong {n}"), expected).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::WrongKey);
            }
        }
    }
}
