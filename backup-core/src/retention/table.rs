//! A plan as people read it.

use std::fmt;

use super::plan::{PlanEntry, PrunePlan};
use super::standing::Standing;
use super::summary::BackupKind;

impl fmt::Display for PrunePlan {
    /// One line per backup, newest first, and a summary.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<6}  {:<23}  {:<11}  {:<10}  {:>10}  reasons",
            "", "backup", "kind", "standing", "stored"
        )?;
        for entry in self.entries() {
            writeln!(f, "{entry}")?;
        }
        let (kept, forgotten) = (self.kept().count(), self.forgotten().count());
        write!(f, "keep {kept}, forget {forgotten}, free {} on each sink", Bytes(self.freed_bytes()))?;
        if !self.unsealed().is_empty() {
            write!(f, "\nrefused: {} unsealed", self.unsealed().len())?;
        }
        if self.mass_delete() {
            write!(f, "\nmore than half would go: needs `allow_mass_delete`")?;
        }
        Ok(())
    }
}

impl fmt::Display for PlanEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.keep { "keep" } else { "forget" };
        let kind = match self.kind {
            BackupKind::Full => "full",
            BackupKind::Incremental { .. } => "incremental",
            BackupKind::Log { .. } => "log",
        };
        let standing = match self.standing {
            Standing::Good | Standing::Log => "good",
            Standing::Degraded => "degraded",
            Standing::Incomplete => "incomplete",
            Standing::Future => "future",
            Standing::Unsealed => "unsealed",
        };
        let (id, size) = (self.id.to_string(), Bytes(self.stored_size).to_string());
        write!(
            f,
            "{verdict:<6}  {id:<23}  {kind:<11}  {standing:<10}  {size:>10}  {}",
            self.reasons.join("; ")
        )
    }
}

/// A size with a binary unit and one decimal.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut unit_size = 1_u64;
        let mut name = None;
        for unit in UNITS {
            if self.0 / unit_size < 1024 {
                break;
            }
            unit_size <<= 10;
            name = Some(unit);
        }
        match name {
            None => write!(f, "{} B", self.0),
            Some(name) => {
                // Ten times the remainder of an exbibyte would not fit 64 bits.
                let tenths = u128::from(self.0 % unit_size) * 10 / u128::from(unit_size);
                write!(f, "{}.{tenths} {name}", self.0 / unit_size)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Bytes;

    #[test]
    fn sizes_are_shown_with_one_decimal() {
        let shown = [0, 1023, 1024, 1536, 1 << 30, u64::MAX].map(|n| Bytes(n).to_string());
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 GiB", "15.9 EiB"]);
    }
}
