//! Which items a restore (or a backup) is about.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};

use crate::error::{Error, Result};
use crate::item::ItemPath;

/// Everything, or the items that match one of some patterns.
///
/// A pattern is a glob over the whole item name (`*` and `?` stop at `/`, `**` does not, `[a-z]`, `{a,b}`), and a
/// pattern that names a directory selects all below it. For a name with such characters in it, escape them as
/// `[*]`, or use [`Selection::exactly`].
#[derive(Clone, Default)]
pub struct Selection {
    /// Everything when there are none.
    only: Option<Vec<Pattern>>,
    except: Arc<BTreeSet<ItemPath>>,
}

#[derive(Clone)]
enum Pattern {
    Exact(ItemPath),
    Glob { text: String, item: GlobMatcher, below: GlobMatcher },
}

impl Selection {
    /// Everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// The items matching any of `patterns`.
    pub fn globs<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self> {
        let glob = |text: &str| {
            GlobBuilder::new(text)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map(|g| g.compile_matcher())
                .map_err(|e| {
                    Error::invalid("read pattern", "this is not a valid glob")
                        .with("pattern", text)
                        .caused_by(e)
                })
        };
        let mut all = Vec::new();
        for pattern in patterns {
            let text = pattern.as_ref().trim_end_matches('/');
            all.push(Pattern::Glob {
                text: text.to_owned(),
                item: glob(text)?,
                below: glob(&format!("{text}/**"))?,
            });
        }
        Ok(Self { only: Some(all), ..Self::default() })
    }

    /// The items with exactly these names, and what lies below them.
    pub fn exactly(paths: impl IntoIterator<Item = ItemPath>) -> Self {
        Self { only: Some(paths.into_iter().map(Pattern::Exact).collect()), ..Self::default() }
    }

    /// Without the items of exactly these names. What lies below them stays.
    pub fn except(mut self, paths: impl IntoIterator<Item = ItemPath>) -> Self {
        Arc::make_mut(&mut self.except).extend(paths);
        self
    }

    /// Whether this is everything.
    pub fn is_all(&self) -> bool {
        self.only.is_none() && self.except.is_empty()
    }

    /// Whether `path` is selected.
    pub fn matches(&self, path: &ItemPath) -> bool {
        if self.except.contains(path) {
            return false;
        }
        let Some(patterns) = &self.only else { return true };
        patterns.iter().any(|pattern| match pattern {
            Pattern::Exact(exact) => path.is_within(exact),
            Pattern::Glob { item, below, .. } => {
                let path = as_path(path);
                item.is_match(path) || below.is_match(path)
            }
        })
    }
}

#[cfg(unix)]
fn as_path(path: &ItemPath) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt as _;
    std::path::Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()))
}

impl fmt::Debug for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.only {
            None => f.write_str("everything")?,
            Some(patterns) => {
                let mut list = f.debug_list();
                for pattern in patterns {
                    match pattern {
                        Pattern::Exact(path) => list.entry(&format_args!("{path}")),
                        Pattern::Glob { text, .. } => list.entry(&text),
                    };
                }
                list.finish()?;
            }
        }
        if self.except.is_empty() { Ok(()) } else { write!(f, " except {} items", self.except.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_selects_the_item_and_all_below_it() {
        let books = Selection::globs(["storage/*/epub", "**/*.md"]).unwrap();
        for (path, expected) in [
            ("storage/books/epub", true),
            ("storage/books/epub/a/b.epub", true),
            ("storage/books/fb2/a", false),
            ("storage/x/y/epub", false),
            ("docs/deep/readme.md", true),
            ("readme.md", true),
        ] {
            assert_eq!(books.matches(&path.into()), expected, "{path}");
        }
        assert!(Selection::exactly(["a[1]".into()]).matches(&"a[1]/x".into()));
        assert!(Selection::globs(["a["]).is_err());
        let rest = Selection::all().except(["storage/books".into()]);
        assert!(!rest.is_all() && !rest.matches(&"storage/books".into()));
        assert!(rest.matches(&"storage/books/epub".into()));
    }
}
