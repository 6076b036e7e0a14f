//! Where copies are, and the rule for how they must be spread: 3-2-1.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of storage a copy is on, and where that stands. What is not said is unknown, and counts for no rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Placement {
    /// The kind of storage: `disk`, `object store`, `tape`. Two copies are on two media when these differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub medium: Option<String>,
    /// The place that a fire or a flood takes as one: `home`, `eu-central-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
}

impl Placement {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the kind of storage.
    pub fn medium(mut self, medium: impl Into<String>) -> Self {
        self.medium = Some(medium.into());
        self
    }

    /// Names the place.
    pub fn site(mut self, site: impl Into<String>) -> Self {
        self.site = Some(site.into());
        self
    }
}

/// How many copies there must be, and how they must be spread. Production counts as one of them.
///
/// ```
/// use backup_core::{Placement, copies};
///
/// let rule = copies(3).media(2).off_site(1);
/// let production = Placement::new().medium("ssd").site("home");
/// let disk = Placement::new().medium("disk").site("home");
/// let cloud = Placement::new().medium("object store").site("eu-central-1");
/// assert!(rule.shortfalls(&production, [&disk, &cloud]).is_empty());
/// assert_eq!(rule.shortfalls(&production, [&disk]).len(), 2);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRule {
    copies: usize,
    media: usize,
    off_site: usize,
}

/// A rule that wants this many copies, production counted as one.
pub fn copies(copies: usize) -> CopyRule {
    CopyRule { copies, media: 0, off_site: 0 }
}

impl CopyRule {
    /// Wants copies on this many kinds of storage, that of production counted as one if it is known.
    pub fn media(mut self, media: usize) -> Self {
        self.media = media;
        self
    }

    /// Wants this many copies at other sites than production's.
    pub fn off_site(mut self, copies: usize) -> Self {
        self.off_site = copies;
        self
    }

    /// How many sinks must hold a copy.
    pub(crate) fn sinks(&self) -> usize {
        self.copies.saturating_sub(1).max(self.off_site)
    }

    /// What is missing when copies are at `sinks`, beside production itself; nothing when the rule is kept.
    pub fn shortfalls<'a>(
        &self,
        production: &'a Placement,
        sinks: impl IntoIterator<Item = &'a Placement>,
    ) -> Vec<Shortfall> {
        let (mut copies, mut off_site) = (1, 0);
        let mut media: BTreeSet<&str> = production.medium.as_deref().into_iter().collect();
        for place in sinks {
            copies += 1;
            media.extend(place.medium.as_deref());
            if let (Some(here), Some(there)) = (&production.site, &place.site) {
                off_site += usize::from(here != there);
            }
        }
        let wanted = [
            (ShortOf::Copies, copies, self.copies),
            (ShortOf::Media, media.len(), self.media),
            (ShortOf::OffSite, off_site, self.off_site),
        ];
        let short = wanted.into_iter().filter(|(_, have, need)| have < need);
        short.map(|(of, have, need)| Shortfall { of, have, need }).collect()
    }
}

/// A part of a [`CopyRule`] that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Shortfall {
    /// What there is too little of.
    pub of: ShortOf,
    /// How many there are, production included where it counts.
    pub have: usize,
    /// How many the rule wants.
    pub need: usize,
}

/// What there can be too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ShortOf {
    /// Copies, with production.
    Copies,
    /// Kinds of storage.
    Media,
    /// Copies at other sites than production's.
    OffSite,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.of {
            ShortOf::Copies => "copies, with production",
            ShortOf::Media => "kinds of storage",
            ShortOf::OffSite => "copies off site",
        };
        write!(f, "{} of {} {what}", self.have, self.need)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(medium: &str, site: &str) -> Placement {
        Placement::new().medium(medium).site(site)
    }

    #[test]
    fn each_part_of_the_rule_fails_for_itself() {
        let rule = copies(3).media(2).off_site(1);
        let production = at("ssd", "home");
        let short = |sinks: &[Placement]| -> Vec<ShortOf> {
            rule.shortfalls(&production, sinks).into_iter().map(|s| s.of).collect()
        };
        assert_eq!(short(&[at("disk", "home"), at("cloud", "away")]), []);
        assert_eq!(short(&[at("cloud", "away")]), [ShortOf::Copies]);
        assert_eq!(short(&[at("ssd", "home"), at("ssd", "away")]), [ShortOf::Media]);
        assert_eq!(short(&[at("disk", "home"), at("tape", "home")]), [ShortOf::OffSite]);
        assert_eq!(short(&[]), [ShortOf::Copies, ShortOf::Media, ShortOf::OffSite]);
    }

    #[test]
    fn what_is_unknown_counts_for_nothing() {
        let rule = copies(1).media(1).off_site(1);
        let unknown = Placement::new();
        let short = rule.shortfalls(&unknown, [&unknown, &at("disk", "away")]);
        assert_eq!(short, [Shortfall { of: ShortOf::OffSite, have: 0, need: 1 }]);
    }
}
