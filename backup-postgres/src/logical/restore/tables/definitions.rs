//! The statements of a dump that define some tables, moved to another schema.

use std::collections::BTreeSet;

use backup_core::Result;

use super::unusable;
use crate::ident::{Qualified, literal, read_qualified};
use crate::logical::collected::{SequenceValue, parse_setval, string_literal};
use crate::logical::restore::RestoreOptions;
use crate::logical::restore::statement::prepared;
use crate::logical::sql::{Statement, Token, TokenKind, render, tokens};

/// What makes some tables, in a schema beside their own.
#[derive(Debug, Default)]
pub(super) struct Definitions {
    /// Tables, their sequences and defaults.
    pub(super) tables: Vec<String>,
    /// Constraints (without foreign keys) and indexes, after the rows.
    pub(super) indexes: Vec<String>,
    /// States of their sequences: name in the side schema, last value, whether it was given out.
    pub(super) sequences: Vec<(Qualified, String, bool)>,
    /// What a table that is created anew needs once it is at its place: owner, privileges, comments, foreign keys,
    /// triggers, policies. By table, unchanged.
    pub(super) finish: Vec<(Qualified, String)>,
}

impl Definitions {
    /// Picks what belongs to `names` from the statements of a dump.
    pub(super) fn of(
        names: &BTreeSet<Qualified>,
        all: &[Statement],
        sequences: Vec<SequenceValue>,
        schema: &str,
        options: &RestoreOptions,
    ) -> Result<Self> {
        let owned = owned_sequences(names, all);
        let moved = |name: &Qualified| names.contains(name) || owned.contains(name);
        let mut found = Self::default();
        let state = |v: SequenceValue| (Qualified::new(schema, &v.name.name), v.last_value, v.is_called);
        found.sequences.extend(sequences.into_iter().filter(|v| owned.contains(&v.name)).map(state));
        for statement in all {
            let Some(text) = prepared(statement, options) else { continue };
            let pairs = pairs(&tokens(&text));
            let first = pairs.first();
            let about_table = first.is_some_and(|name| names.contains(name));
            let about_sequence = first.is_some_and(|name| owned.contains(name));
            let gives_away = text.contains(" OWNER TO ");
            match statement.entry.as_str() {
                "TABLE" if about_table && !gives_away => {
                    if inherits(&text) {
                        return Err(unusable(
                            &text,
                            "the table inherits from another, so it cannot be restored alone; restore into another database",
                        ));
                    }
                    found.tables.push(moved_to(&text, schema, &moved));
                }
                "SEQUENCE" if (about_table || about_sequence) && !gives_away => {
                    found.tables.push(moved_to(&text, schema, &moved));
                }
                "SEQUENCE OWNED BY" if about_sequence => found.tables.push(moved_to(&text, schema, &moved)),
                "DEFAULT" if about_table => found.tables.push(moved_to(&text, schema, &moved)),
                "SEQUENCE SET" => {
                    found
                        .sequences
                        .extend(parse_setval(&text).filter(|v| owned.contains(&v.name)).map(state));
                }
                "CONSTRAINT" | "INDEX" | "CHECK CONSTRAINT" if about_table => {
                    found.indexes.push(moved_to(&text, schema, &moved));
                }
                "TABLE" | "SEQUENCE" | "ACL" | "COMMENT" | "FK CONSTRAINT" | "TRIGGER" | "POLICY"
                | "ROW SECURITY" | "RULE" => {
                    let table = first.filter(|name| names.contains(name));
                    // A comment on a column names schema, table and column; an ACL names what it is about first.
                    if let Some(table) = table.filter(|_| !text.starts_with("ALTER SEQUENCE")) {
                        found.finish.push((table.clone(), text.clone()));
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Sequences that belong to columns of these tables.
fn owned_sequences(names: &BTreeSet<Qualified>, all: &[Statement]) -> BTreeSet<Qualified> {
    let mut owned = BTreeSet::new();
    for statement in all {
        let pairs = || pairs(&tokens(&statement.text));
        match statement.entry.as_str() {
            "SEQUENCE OWNED BY" => {
                if let [sequence, table, ..] = pairs().as_slice()
                    && names.contains(table)
                {
                    owned.insert(sequence.clone());
                }
            }
            // An identity column: ALTER TABLE t ALTER COLUMN c ADD GENERATED … ( SEQUENCE NAME s … )
            "SEQUENCE" if statement.text.starts_with("ALTER TABLE") => {
                if let [table, sequence, ..] = pairs().as_slice()
                    && names.contains(table)
                {
                    owned.insert(sequence.clone());
                }
            }
            _ => {}
        }
    }
    owned
}

fn inherits(text: &str) -> bool {
    tokens(text).iter().any(|t| t.text == "INHERITS")
}

/// The pairs `a.b` of a statement, in order; of `a.b.c` the first two.
fn pairs(tokens: &[Token]) -> Vec<Qualified> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(first) = tokens.get(at) {
        let (dot, second) = (tokens.get(at + 1), tokens.get(at + 2));
        match (first.name(), dot, second.and_then(Token::name)) {
            (Some(schema), Some(dot), Some(name)) if dot.text == "." => {
                all.push(Qualified::new(schema, name));
                at += 3;
            }
            _ => at += 1,
        }
    }
    all
}

/// The statement with every name that moves put into `schema`, in code and in literals that hold just a name.
fn moved_to(text: &str, schema: &str, moved: &impl Fn(&Qualified) -> bool) -> String {
    let mut all = tokens(text);
    let quoted = crate::ident::quote(schema);
    for at in 0..all.len() {
        let pair = match (all.get(at), all.get(at + 1), all.get(at + 2)) {
            (Some(a), Some(dot), Some(b)) if dot.text == "." => a.name().zip(b.name()),
            _ => None,
        };
        let literal_name = all.get(at).filter(|t| t.kind == TokenKind::Text).and_then(|t| {
            let (value, "") = string_literal(&t.text)? else { return None };
            let (name, "") = read_qualified(&value)? else { return None };
            moved(&name).then(|| literal(&Qualified::new(schema, &name.name).sql()))
        });
        let Some(token) = all.get_mut(at) else { continue };
        if let Some(text) = literal_name {
            token.text = text;
        } else if pair.is_some_and(|(a, b)| moved(&Qualified::new(a, b))) {
            token.text.clone_from(&quoted);
        }
    }
    render(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(entry: &str, text: &str) -> Statement {
        Statement { text: text.to_owned(), entry: entry.to_owned(), entry_number: 1 }
    }

    #[test]
    fn a_table_moves_with_its_sequence_and_indexes_and_nothing_else() {
        let names = BTreeSet::from([Qualified::new("public", "users")]);
        let sections = [
            vec![
                statement("TYPE", "CREATE TYPE public.mood AS ENUM ('public.users')"),
                statement("TABLE", "CREATE TABLE public.users (id integer NOT NULL, m public.mood)"),
                statement("TABLE", "ALTER TABLE public.users OWNER TO bob"),
                statement("TABLE", "CREATE TABLE public.users2 (id integer)"),
                statement("SEQUENCE", "CREATE SEQUENCE public.users_id_seq AS integer"),
                statement("SEQUENCE OWNED BY", "ALTER SEQUENCE public.users_id_seq OWNED BY public.users.id"),
                statement(
                    "DEFAULT",
                    "ALTER TABLE ONLY public.users ALTER COLUMN id SET DEFAULT nextval('public.users_id_seq'::regclass)",
                ),
            ],
            vec![statement("SEQUENCE SET", "SELECT pg_catalog.setval('public.users_id_seq', 7, true)")],
            vec![
                statement(
                    "CONSTRAINT",
                    "ALTER TABLE ONLY public.users ADD CONSTRAINT users_pkey PRIMARY KEY (id)",
                ),
                statement("INDEX", "CREATE INDEX i ON public.users USING btree (id)"),
                statement(
                    "FK CONSTRAINT",
                    "ALTER TABLE ONLY public.users ADD CONSTRAINT f FOREIGN KEY (id) REFERENCES public.o(id)",
                ),
                statement(
                    "FK CONSTRAINT",
                    "ALTER TABLE ONLY public.o ADD CONSTRAINT g FOREIGN KEY (id) REFERENCES public.users(id)",
                ),
            ],
        ];
        let found =
            Definitions::of(&names, &sections.concat(), Vec::new(), "side x", &RestoreOptions::default())
                .unwrap();
        assert_eq!(
            found.tables,
            [
                "CREATE TABLE \"side x\".users (id integer NOT NULL, m public.mood)",
                "CREATE SEQUENCE \"side x\".users_id_seq AS integer",
                "ALTER SEQUENCE \"side x\".users_id_seq OWNED BY \"side x\".users.id",
                "ALTER TABLE ONLY \"side x\".users ALTER COLUMN id SET DEFAULT nextval('\"side x\".\"users_id_seq\"'::regclass)",
            ]
        );
        assert_eq!(found.indexes.len(), 2);
        assert!(found.indexes.iter().all(|s| s.contains("\"side x\".users")));
        assert_eq!(found.sequences, [(Qualified::new("side x", "users_id_seq"), "7".to_owned(), true)]);
        let finish: Vec<&str> = found.finish.iter().map(|(_, s)| s.as_str()).collect();
        assert_eq!(finish.len(), 2, "{finish:?}");
        assert!(finish[0].contains("OWNER TO bob") && finish[1].contains("CONSTRAINT f"));
    }
}
