//! What a backup learns of an RDB while it passes: counts and proof together.

use std::borrow::Cow;

use backup_core::{Item, ItemKind, ItemPath, ItemProof, Result, SourceReport, Warning};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use crate::rdb::{Class, Dialect, FUNCTIONS, Prover, Record, Statistics, Visitor};

/// Statistics and proof of an RDB.
pub(crate) struct Tally {
    pub(crate) statistics: Statistics,
    pub(crate) prover: Prover,
    pub(crate) version: (Dialect, u32),
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self { statistics: Statistics::new(Utc::now()), prover: Prover::new(), version: (Dialect::Redis, 0) }
    }

    /// When the server took the snapshot.
    pub(crate) fn taken_at(&self) -> Option<DateTime<Utc>> {
        let seconds = self.statistics.aux_fields().get("ctime")?.parse().ok()?;
        DateTime::from_timestamp(seconds, 0)
    }

    /// Adds this artifact to the report. `prefix` distinguishes the shards of a cluster.
    pub(crate) fn report(&self, artifact: &str, prefix: &str, report: &mut SourceReport) -> Result<()> {
        for (name, proof) in self.prover.proofs() {
            report.proofs.entry(name).or_default().merge(&proof);
        }
        let counts = self.statistics.counts();
        let item = |path: String, proof: ItemProof, size: u64| Item {
            path: ItemPath::new(format!("{prefix}{path}")),
            kind: ItemKind::Keyspace,
            origin: None,
            artifact: Cow::Owned(artifact.to_owned()),
            // Keys of all kinds are interleaved: an item has no range of its own, the target reads the whole.
            offset: 0,
            length: 0,
            size,
            sha256: None,
            proof: Some(proof),
            link: None,
            attributes: Map::new(),
        };
        for ((db, kind, class), proof) in self.prover.parts() {
            let path = match class {
                Class::Lasting => format!("db{db}/{}", kind.name()),
                other => format!("db{db}/{}/{}", kind.name(), other.name()),
            };
            let keys = proof.count;
            // Bytes are counted by kind: those of the keys that expire are among them.
            let size =
                if class == Class::Lasting { counts.get(&(db, kind)).map_or(0, |c| c.bytes) } else { 0 };
            let mut item = item(path, ItemProof { of: class.name().into(), proof }, size);
            item.attributes.insert("keys".to_owned(), keys.into());
            report.items.push(&item)?;
        }
        let functions = self.prover.functions();
        if functions.count > 0 {
            let proof = ItemProof { of: FUNCTIONS.into(), proof: functions };
            report.items.push(&item(FUNCTIONS.to_owned(), proof, 0))?;
        }
        let total = self.statistics.total();
        let mut details = Map::new();
        details.insert("rdb_version".to_owned(), self.version.1.into());
        details.insert("valkey_format".to_owned(), (self.version.0 == Dialect::Valkey).into());
        details.insert("checksum".to_owned(), (self.statistics.checksummed() == Some(true)).into());
        details.insert("keys".to_owned(), total.keys.into());
        details.insert("expiring_keys".to_owned(), total.expires.into());
        details.insert("functions".to_owned(), self.statistics.functions().into());
        details.insert("module_data".to_owned(), self.statistics.module_data().into());
        details.insert(
            "counts".to_owned(),
            counts
                .iter()
                .map(|((db, kind), c)| {
                    json!({"db": db, "type": kind.name(), "keys": c.keys, "expires": c.expires, "bytes": c.bytes})
                })
                .collect::<Vec<_>>()
                .into(),
        );
        details.insert(
            "aux".to_owned(),
            Value::Object(
                self.statistics.aux_fields().iter().map(|(k, v)| (k.clone(), v.clone().into())).collect(),
            ),
        );
        report.artifacts.insert(artifact.to_owned(), details);
        self.warn(artifact, report);
        Ok(())
    }

    fn warn(&self, artifact: &str, report: &mut SourceReport) {
        if self.statistics.checksummed() == Some(false) {
            report.warnings.push(Warning::new(
                "rdb-without-checksum",
                format!("{artifact} carries no checksum because the server runs with `rdbchecksum no`; its structure was checked"),
            ));
        }
        if self.statistics.module_data() > 0 {
            report.warnings.push(Warning::new(
                "module-data",
                format!("{artifact} holds data of modules beside the keys; it comes back only when a server starts from the file"),
            ));
        }
    }
}

impl Visitor for Tally {
    fn header(&mut self, dialect: Dialect, version: u32) -> Result<()> {
        self.version = (dialect, version);
        Ok(())
    }

    fn aux(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        self.statistics.aux(name, value)
    }

    fn function(&mut self, library: &[u8]) -> Result<()> {
        self.statistics.function(library)?;
        self.prover.function(library)
    }

    fn module_aux(&mut self, module_id: u64) -> Result<()> {
        self.statistics.module_aux(module_id)
    }

    #[inline]
    fn value(&mut self, record: &Record<'_>, value: &[u8]) -> Result<()> {
        self.statistics.value(record, value)?;
        self.prover.value(record, value)
    }

    fn large(&mut self, record: &Record<'_>) -> Result<()> {
        self.statistics.large(record)?;
        self.prover.large(record)
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        self.statistics.piece(bytes)?;
        self.prover.piece(bytes)
    }

    fn large_end(&mut self) -> Result<()> {
        self.statistics.large_end()?;
        self.prover.large_end()
    }

    fn end(&mut self, checked: bool) -> Result<()> {
        self.statistics.end(checked)
    }
}
