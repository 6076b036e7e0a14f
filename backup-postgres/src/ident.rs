//! Names and literals in SQL, and names of items.

use std::fmt::Write as _;

/// An identifier, quoted. Quoting always is right whatever the server's keywords are.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal, right under any `standard_conforming_strings`.
pub(crate) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A word for a POSIX shell.
pub(crate) fn shell(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A name within a schema.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Qualified {
    pub(crate) schema: String,
    pub(crate) name: String,
}

impl Qualified {
    pub(crate) fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// For SQL.
    pub(crate) fn sql(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// For people and for item names: `public.users`; a part with a dot, slash or quote in it is quoted.
    pub(crate) fn display(&self) -> String {
        let part = |text: &str| {
            if text.is_empty() || text.contains(['.', '/', '"']) { quote(text) } else { text.to_owned() }
        };
        format!("{}.{}", part(&self.schema), part(&self.name))
    }

    /// As an argument of `pg_dump -t`, matching exactly this name.
    pub(crate) fn pattern(&self) -> String {
        self.sql()
    }
}

/// A column list for COPY, empty for a table without columns.
pub(crate) fn column_list(columns: &[String]) -> String {
    columns.iter().map(|c| quote(c)).collect::<Vec<_>>().join(", ")
}

/// A name made of `base` and `suffix` that fits into PostgreSQL's 63 bytes.
pub(crate) fn derived(base: &str, suffix: &str) -> String {
    let room = 63_usize.saturating_sub(suffix.len());
    let mut end = base.len().min(room);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = String::with_capacity(63);
    let _ = write!(name, "{}{suffix}", base.get(..end).unwrap_or(""));
    name
}

/// Reads an identifier at the start of `text` as PostgreSQL prints them, and returns it with the rest.
pub(crate) fn read(text: &str) -> Option<(String, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let mut name = String::new();
        let mut rest = quoted;
        loop {
            let (part, after) = rest.split_once('"')?;
            name.push_str(part);
            match after.strip_prefix('"') {
                Some(more) => {
                    name.push('"');
                    rest = more;
                }
                None => return (!name.is_empty()).then_some((name, after)),
            }
        }
    }
    let end = text
        .char_indices()
        .find(|(_, c)| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii()))
        .map_or(text.len(), |(i, _)| i);
    let name = text.get(..end)?;
    let first = name.chars().next()?;
    (!first.is_ascii_digit() && first != '$').then(|| (name.to_owned(), text.get(end..).unwrap_or("")))
}

/// Reads `schema.name` as PostgreSQL prints it, and returns it with the rest.
pub(crate) fn read_qualified(text: &str) -> Option<(Qualified, &str)> {
    let (schema, rest) = read(text)?;
    let (name, rest) = read(rest.strip_prefix('.')?)?;
    Some((Qualified { schema, name }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_literals_are_quoted() {
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's \\ x"), "E'it''s \\\\ x'");
        assert_eq!(shell("it's"), r"'it'\''s'");
        assert_eq!(Qualified::new("a.b", "Ünï").display(), "\"a.b\".Ünï");
        assert_eq!(derived(&"ü".repeat(60), "_old").len(), 62);
    }

    proptest! {
        #[test]
        fn a_quoted_name_is_read_back(schema in "[^\\x00]{1,9}", name in "[^\\x00]{1,9}", rest in "( .*)?") {
            let name = Qualified::new(schema, name);
            let text = format!("{}{rest}", name.sql());
            prop_assert_eq!(read_qualified(&text), Some((name, rest.as_str())));
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".{0,40}") {
            let _ = read_qualified(&text);
        }
    }
}
