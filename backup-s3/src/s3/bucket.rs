//! What the bucket's configuration means for backups.

use backup_core::{ErrorKind, Result, Warning};
use http::Method;

use super::api::{Api, Request};
use super::xml::{self, LifecycleConfiguration, ObjectLockConfiguration, Rule, VersioningConfiguration};
use crate::class::{Tags, is_archive};

const OPERATION: &str = "read bucket configuration";

/// Warnings about versioning and lifecycle, as far as they may be read.
pub(super) async fn warnings(api: &Api, prefix: &str, tags: &Tags) -> Vec<Warning> {
    let mut warnings = Vec::new();
    match configuration::<VersioningConfiguration>(api, "versioning").await {
        Ok(Some(found)) if found.status.as_deref() != Some("Enabled") => warnings.push(Warning::new(
            "versioning-off",
            "the bucket does not keep old versions: whoever may write may also destroy backups; turn versioning on, with a rule that expires old versions",
        )),
        // Not readable for a writer, or not known by the store.
        Ok(_) | Err(_) => {}
    }
    if let Ok(found) = configuration::<LifecycleConfiguration>(api, "lifecycle").await {
        lifecycle(&found.map(|c| c.rules).unwrap_or_default(), prefix, tags, &mut warnings);
    }
    warnings
}

/// Whether objects in the bucket can be locked. A configuration that may not be read counts as none.
pub(super) async fn has_object_lock(api: &Api) -> Result<bool> {
    match configuration::<ObjectLockConfiguration>(api, "object-lock").await {
        Ok(found) => Ok(found.is_some_and(|c| c.object_lock_enabled.as_deref() == Some("Enabled"))),
        Err(e) if e.kind() == ErrorKind::Unavailable || e.kind() == ErrorKind::Timeout => Err(e),
        Err(_) => Ok(false),
    }
}

async fn configuration<T: serde::de::DeserializeOwned>(api: &Api, what: &'static str) -> Result<Option<T>> {
    match api.send(&Request::bucket(Method::GET).query(what, "")).await {
        Ok(reply) => xml::parse(OPERATION, &reply).map(Some),
        Err(failure) if failure.kind == ErrorKind::NotFound => Ok(None),
        Err(failure) => Err(failure.error(OPERATION)),
    }
}

fn lifecycle(rules: &[Rule], prefix: &str, tags: &Tags, warnings: &mut Vec<Warning>) {
    let mut aborts = false;
    for rule in rules.iter().filter(|rule| rule.status == "Enabled" && applies(rule, prefix, tags)) {
        let name = rule.id.as_deref().unwrap_or("without a name");
        if let Some(expiration) = &rule.expiration
            && (expiration.days.is_some() || expiration.date.is_some())
        {
            let when = expiration.days.map_or("on a date".to_owned(), |days| format!("after {days} days"));
            warnings.push(Warning::new(
                "lifecycle-expires",
                format!("the bucket's lifecycle rule `{name}` deletes backups {when}, whatever retention says; restrict it to other prefixes and leave deleting to prune"),
            ));
        }
        let spares_small = size_limit(rule).is_some_and(|bytes| bytes > 0);
        if let Some(transition) = rule.transition.iter().find(|t| is_archive(&t.storage_class))
            && !spares_small
        {
            warnings.push(Warning::new(
                "lifecycle-archives",
                format!("the bucket's lifecycle rule `{name}` moves manifests to {}, where nothing can list or verify them; let it begin at a size (ObjectSizeGreaterThan), or set the class of data in the sink", transition.storage_class),
            ));
        }
        aborts |= rule
            .abort_incomplete_multipart_upload
            .as_ref()
            .is_some_and(|a| a.days_after_initiation.is_some());
    }
    if !aborts {
        warnings.push(Warning::new(
            "no-abort-rule",
            "no lifecycle rule removes unfinished multipart uploads: what a killed process leaves is charged until `sweep` runs; add AbortIncompleteMultipartUpload after 7 days",
        ));
    }
}

fn applies(rule: &Rule, ours: &str, our_tags: &Tags) -> bool {
    let filters = [rule.filter.as_ref(), rule.filter.as_ref().and_then(|f| f.and.as_deref())];
    let inner = filters.iter().flatten().find_map(|f| f.prefix.as_deref());
    let theirs = rule.prefix.as_deref().or(inner).unwrap_or("");
    let tagged = filters
        .iter()
        .flatten()
        .flat_map(|f| &f.tag)
        .all(|tag| our_tags.get(&tag.key).is_some_and(|value| *value == tag.value));
    tagged && (ours.starts_with(theirs) || theirs.starts_with(ours))
}

fn size_limit(rule: &Rule) -> Option<u64> {
    let filter = rule.filter.as_ref()?;
    filter.object_size_greater_than.or_else(|| filter.and.as_ref()?.object_size_greater_than)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(document: &str, prefix: &str) -> Vec<String> {
        let found: LifecycleConfiguration = xml::parse(OPERATION, document.as_bytes()).unwrap();
        let mut warnings = Vec::new();
        lifecycle(&found.rules, prefix, &Tags::new(), &mut warnings);
        warnings.into_iter().map(|w| w.code.into_owned()).collect()
    }

    #[test]
    fn rules_that_endanger_backups_are_named() {
        let rules = |filter: &str| {
            format!(
                "<LifecycleConfiguration><Rule><ID>old</ID><Status>Enabled</Status>{filter}\
                <Expiration><Days>30</Days></Expiration>\
                <Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>\
                <AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload>\
                </Rule></LifecycleConfiguration>"
            )
        };
        let both = ["lifecycle-expires", "lifecycle-archives"];
        assert_eq!(codes(&rules("<Filter/>"), "backups/"), both);
        assert_eq!(codes(&rules("<Prefix></Prefix>"), "backups/"), both);
        assert_eq!(codes(&rules("<Filter><Prefix>backups/books/</Prefix></Filter>"), "backups/"), both);
        assert_eq!(codes(&rules("<Filter><Prefix>logs/</Prefix></Filter>"), "backups/"), ["no-abort-rule"]);
        let tagged = "<Filter><And><Prefix></Prefix><Tag><Key>a</Key><Value>b</Value></Tag></And></Filter>";
        assert_eq!(codes(&rules(tagged), "backups/"), ["no-abort-rule"]);
        let large = "<Filter><ObjectSizeGreaterThan>131072</ObjectSizeGreaterThan></Filter>";
        assert_eq!(codes(&rules(large), "backups/"), ["lifecycle-expires"]);
    }
}
