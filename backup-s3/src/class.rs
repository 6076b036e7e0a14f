//! Storage classes, and what a response says of an object's.

use std::collections::BTreeMap;

use backup_core::{Availability, ObjectKind};
use chrono::{DateTime, Utc};

/// The storage class per kind of object, in the store's own spelling: `STANDARD_IA`, `GLACIER_IR` (S3),
/// `NEARLINE` (Google), `Cool` (Azure). A kind without one gets the bucket's default.
///
/// Manifests, indexes and notes are read on every listing and restore: keep them in a class that can be read
/// at once. Classes that must be thawed (`GLACIER`, `DEEP_ARCHIVE`, `Archive`) are refused for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageClasses {
    data: Option<String>,
    small: Option<String>,
    archive_small: bool,
}

impl StorageClasses {
    /// The bucket's default for everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// The class of artifacts.
    pub fn data(mut self, class: impl Into<String>) -> Self {
        self.data = Some(class.into());
        self
    }

    /// The class of manifests, indexes and notes.
    pub fn manifests(mut self, class: impl Into<String>) -> Self {
        let class = class.into();
        self.archive_small = is_archive(&class);
        self.small = Some(class);
        self
    }

    pub(crate) fn of(&self, kind: ObjectKind) -> Option<&str> {
        match kind {
            ObjectKind::Data => self.data.as_deref(),
            _ => self.small.as_deref(),
        }
    }

    pub(crate) fn refused(&self) -> bool {
        self.archive_small
    }
}

/// Whether objects of this class must be asked for before they can be read.
pub(crate) fn is_archive(class: &str) -> bool {
    ["GLACIER", "DEEP_ARCHIVE", "Archive"].iter().any(|known| known.eq_ignore_ascii_case(class))
}

/// Response headers about where an object lies, taken along in a response's extensions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tier {
    class: Option<String>,
    archived: bool,
    /// The value of `x-amz-restore`.
    restore: Option<String>,
    rehydrating: bool,
    locked_until: Option<DateTime<Utc>>,
}

impl Tier {
    /// From the headers of S3 (`x-amz-*`) or Azure (`x-ms-*`), by lower-case name.
    #[cfg_attr(
        not(any(test, feature = "s3", feature = "gcs", feature = "azure")),
        expect(dead_code, reason = "no store over HTTP")
    )]
    pub(crate) fn from_headers<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Self {
        let class = get("x-amz-storage-class").or_else(|| get("x-ms-access-tier")).map(str::to_owned);
        Self {
            archived: class.as_deref().is_some_and(is_archive) || get("x-amz-archive-status").is_some(),
            class,
            restore: get("x-amz-restore").map(str::to_owned),
            rehydrating: get("x-ms-archive-status").is_some(),
            locked_until: get("x-amz-object-lock-retain-until-date")
                .and_then(|date| DateTime::parse_from_rfc3339(date).ok())
                .or_else(|| {
                    let date = get("x-ms-immutability-policy-until-date")?;
                    DateTime::parse_from_rfc2822(date).ok()
                })
                .map(|date| date.to_utc()),
        }
    }

    /// From the class a listing names.
    #[cfg_attr(not(feature = "s3"), expect(dead_code, reason = "only S3 lists classes"))]
    pub(crate) fn from_class(class: Option<&str>) -> Self {
        Self { archived: class.is_some_and(is_archive), ..Self::default() }
    }

    pub(crate) fn availability(&self) -> Availability {
        match &self.restore {
            _ if !self.archived => Availability::Ready,
            // `ongoing-request="false", expiry-date="..."`: a readable copy exists until then.
            Some(restore) if restore.contains("ongoing-request=\"false\"") => Availability::Ready,
            Some(_) => Availability::Thawing,
            None if self.rehydrating => Availability::Thawing,
            None => Availability::Archived,
        }
    }

    /// The time before which the store keeps the object, as far as this role may see it; unless it has come.
    pub(crate) fn locked_until(&self) -> Option<DateTime<Utc>> {
        self.locked_until.filter(|until| *until > Utc::now())
    }

    pub(crate) fn class(&self) -> Option<&str> {
        self.class.as_deref()
    }
}

/// Tags put on every object, as name and value.
pub(crate) type Tags = BTreeMap<String, String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_tell_what_can_be_read() {
        let tier = |headers: &[(&'static str, &'static str)]| {
            Tier::from_headers(|name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v))
                .availability()
        };
        assert_eq!(tier(&[]), Availability::Ready);
        assert_eq!(tier(&[("x-amz-storage-class", "GLACIER_IR")]), Availability::Ready);
        assert_eq!(tier(&[("x-amz-storage-class", "GLACIER")]), Availability::Archived);
        let restoring = |v| tier(&[("x-amz-storage-class", "DEEP_ARCHIVE"), ("x-amz-restore", v)]);
        assert_eq!(restoring("ongoing-request=\"true\""), Availability::Thawing);
        assert_eq!(
            restoring("ongoing-request=\"false\", expiry-date=\"Fri, 21 Dec 2027 00:00:00 GMT\""),
            Availability::Ready
        );
        let intelligent =
            [("x-amz-storage-class", "INTELLIGENT_TIERING"), ("x-amz-archive-status", "ARCHIVE_ACCESS")];
        assert_eq!(tier(&intelligent), Availability::Archived);
        assert_eq!(tier(&[("x-ms-access-tier", "Archive")]), Availability::Archived);
        let rehydrating =
            [("x-ms-access-tier", "Archive"), ("x-ms-archive-status", "rehydrate-pending-to-hot")];
        assert_eq!(tier(&rehydrating), Availability::Thawing);
    }

    #[test]
    fn headers_tell_until_when_an_object_is_locked() {
        let until = |name: &'static str, value: &'static str| {
            Tier::from_headers(|n| (n == name).then_some(value)).locked_until().map(|time| time.to_rfc3339())
        };
        let amazon = "x-amz-object-lock-retain-until-date";
        assert_eq!(until(amazon, "2999-01-02T03:04:05.000Z").as_deref(), Some("2999-01-02T03:04:05+00:00"));
        assert_eq!(until(amazon, "2001-01-02T03:04:05Z"), None, "it has run out");
        assert_eq!(
            until("x-ms-immutability-policy-until-date", "Wed, 02 Jan 2999 03:04:05 GMT").as_deref(),
            Some("2999-01-02T03:04:05+00:00")
        );
    }
}
