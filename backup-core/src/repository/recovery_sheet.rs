//! The sheet of paper that is still there when the computer is not.

use std::fmt::{self, Write as _};
use std::future::IntoFuture;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use zeroize::Zeroizing;

use super::{Inner, Repository};
use crate::engine::progress::Watch;
use crate::error::Result;
use crate::name::SetName;

/// A recovery sheet to be made: set options, then await.
#[derive(Debug)]
#[must_use = "a recovery sheet is made when it is awaited"]
pub struct RecoverySheetBuilder<'a> {
    repository: &'a Repository,
    secrets: bool,
}

/// What a person needs to restore without this program: plain text. `Debug` does not show it.
#[derive(Clone)]
pub struct RecoverySheet(Zeroizing<String>);

impl RecoverySheet {
    /// The text. It holds the secrets if they were asked for.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RecoverySheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoverySheet")
    }
}

impl<'a> RecoverySheetBuilder<'a> {
    pub(super) fn new(repository: &'a Repository) -> Self {
        Self { repository, secrets: false }
    }

    /// Writes the keys and passphrases themselves onto the sheet. Whoever reads it can read every backup: print it, lock
    /// it away, and keep no file of it.
    pub fn include_secrets(mut self) -> Self {
        self.secrets = true;
        self
    }
}

impl<'a> IntoFuture for RecoverySheetBuilder<'a> {
    type Output = Result<RecoverySheet>;
    type IntoFuture = BoxFuture<'a, Self::Output>;
    fn into_future(self) -> Self::IntoFuture {
        async move { self.repository.0.recovery_sheet(self.secrets).await }.boxed()
    }
}

const HOW: &str = "\
HOW TO RESTORE WITHOUT THE PROGRAM

Every backup is a directory <set>/<id>/ on each of the places above. Take any one of them.

1. Copy the directory of the backup, with its subdirectory keys/, to a computer.
2. Read RESTORE.txt in it. It holds the exact commands, made of standard tools.
";

const HOW_ENCRYPTED: &str = "\
3. The data is encrypted. decrypt.py lies in the same directory; it needs Python 3.8 and
   `pip install cryptography`. One object is decrypted by

     python3 decrypt.py --keys keys --key-file FILE --set SET --id ID --artifact NAME < OBJECT > OUT

   with a key (FILE holds it as 64 hexadecimal digits), or with a passphrase by

     read -rs PASSPHRASE; export PASSPHRASE
     python3 decrypt.py --keys keys --passphrase-env PASSPHRASE --set SET --id ID --artifact NAME < OBJECT > OUT

   NAME is the name of the object without its extensions. What comes out still has to be decompressed when the
   object is called .zst.enc (zstd -d) or .gz.enc (gunzip). An exit status other than 0 means: do not use OUT.

   Cipher: AES-256-GCM in segments; each backup has a random key of its own, which lies in keys/, wrapped by the
   keys below. Key derivation: HKDF-SHA256. Passphrases: PBKDF2-HMAC-SHA256, with rounds and salt in the files of keys/.
";

const HOW_AGE: &str = "\
3. Objects whose names end with .age are encrypted. The `age` command (age-encryption.org) opens them:

     age --decrypt --identity FILE < OBJECT > OUT

   FILE holds one of the identities below. What comes out still has to be decompressed when the object is called
   .zst.age (zstd -d) or .gz.age (gunzip). An exit status other than 0 means: do not use OUT.

   The last line of manifest.json is an Ed25519 signature (RFC 8032) of all bytes before that line, by one of the
   signing keys below. SHA256SUMS alone does not tell who wrote a backup.
";

impl Inner {
    async fn recovery_sheet(&self, secrets: bool) -> Result<RecoverySheet> {
        let watch = self.watch(Vec::new());
        let sets = self.sets(&watch).await?;
        // Room for it all at once: growing would leave copies of the secrets behind.
        let mut text = Zeroizing::new(String::with_capacity(64 * 1024));
        let _ = writeln!(text, "RECOVERY SHEET, made {} UTC\n", self.clock.now().format("%Y-%m-%d %H:%M"));
        if secrets {
            text.push_str("THIS SHEET OPENS EVERY BACKUP. Keep it locked away, and on paper only.\n\n");
        }
        text.push_str("WHERE THE BACKUPS ARE\n\n");
        for sink in &self.sinks {
            let _ = writeln!(text, "  {}", sink.id());
        }
        for (sink, error) in &sets.unreachable {
            let _ = writeln!(text, "  ({sink} could not be read when this sheet was made: {error})");
        }
        text.push_str("\nWHAT IS BACKED UP\n\n");
        for set in sets.iter() {
            self.describe(set, &watch, &mut text).await;
        }
        if sets.is_empty() {
            text.push_str("  nothing yet\n");
        }
        text.push('\n');
        text.push_str(HOW);
        if let Some(keyring) = &self.keyring {
            text.push_str(HOW_ENCRYPTED);
            text.push_str("\nTHE KEYS\n\n");
            for key in keyring.for_paper() {
                let _ = writeln!(text, "  {}", key.description);
                if secrets {
                    text.push_str("    ");
                    text.push_str(&key.secret);
                    text.push('\n');
                }
            }
            if !secrets {
                text.push_str(
                    "\n  The secrets are not on this sheet. Where they are kept: ______________________\n",
                );
            }
        }
        self.age_on_paper(secrets, &mut text);
        Ok(RecoverySheet(text))
    }

    /// Identities of other encryptions than our own, and who signs.
    fn age_on_paper(&self, secrets: bool, text: &mut String) {
        let keys: Vec<_> = self.known.iter().flat_map(|t| t.for_paper()).collect();
        if let Some(signatures) = self.signatures.as_ref().filter(|_| !keys.is_empty()) {
            text.push_str(HOW_AGE);
            text.push_str("\nTHE RECIPIENTS\n\n");
            for (name, secret) in &keys {
                let _ = writeln!(text, "  {name}");
                if secrets && !secret.is_empty() {
                    text.push_str("    ");
                    text.push_str(secret);
                    text.push('\n');
                }
            }
            if !secrets || keys.iter().any(|(_, secret)| secret.is_empty()) {
                text.push_str(
                    "\n  Where the identities are kept that are not on this sheet: ______________________\n",
                );
            }
            text.push_str("\nTHE SIGNING KEYS THAT ARE TRUSTED\n\n");
            for key in signatures.trusted() {
                let _ = writeln!(text, "  {key}");
            }
        }
    }

    async fn describe(&self, set: &SetName, watch: &Watch, text: &mut String) {
        let catalog = self.catalog_watched(set.clone(), watch.clone());
        let found = match catalog.ids().await {
            Ok(found) => found,
            Err(error) => {
                let _ = writeln!(text, "  {set}: could not be listed: {error}");
                return;
            }
        };
        let bases = found.bases().count();
        let _ = match found.backups.len() - bases {
            0 => writeln!(text, "  {set}: {bases} backups"),
            slices => writeln!(text, "  {set}: {bases} backups, {slices} slices of its log"),
        };
        let Some((newest, dir)) = found.newest().into_iter().next() else { return };
        match catalog.open_on(dir, newest, &self.sinks).await {
            Ok(opened) => {
                let places: Vec<_> = opened.copies.iter().map(|s| s.id().as_str()).collect();
                let _ = writeln!(text, "    newest: {newest} on {}", places.join(", "));
                if let (Some(sink), Ok(keys), true) =
                    (opened.copies.first(), opened.dir.keys(), opened.key.is_some())
                {
                    let wraps = catalog.wraps(sink, &keys).await.unwrap_or_default();
                    let ids: Vec<_> = wraps.iter().map(|(name, _)| name.trim_end_matches(".json")).collect();
                    let _ = writeln!(text, "    opened by: {}", ids.join(", "));
                }
            }
            Err(error) => {
                let _ = writeln!(text, "    newest: {newest}, WHICH COULD NOT BE OPENED: {}", error.chain());
            }
        }
    }
}
