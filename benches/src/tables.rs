//! The database that `compare postgres` backs up: pages of text, events with JSON, accounts, covers that do not
//! compress, and forty small tables.

use std::fmt::Write as _;
use std::io;

use crate::tree::{Random, words};

/// Tables without indexes.
pub const TABLES: &str = "CREATE TABLE pages (id bigint NOT NULL, book int NOT NULL, title text, body text);
CREATE TABLE events (id bigint NOT NULL, account int NOT NULL, at timestamptz NOT NULL, kind text, address inet, details jsonb);
CREATE TABLE accounts (id int NOT NULL, email text NOT NULL, token uuid, balance numeric(12,2), born date);
CREATE TABLE covers (id int NOT NULL, image bytea);
SELECT format('CREATE TABLE small_%s AS SELECT i AS id, md5(i::text) AS name FROM generate_series(1, 200) i', n)
FROM generate_series(1, 40) n \\gexec
";

/// What is built upon the rows.
pub const INDEXES: &str = "ALTER TABLE pages ADD PRIMARY KEY (id); CREATE INDEX ON pages (book, title);
ALTER TABLE events ADD PRIMARY KEY (id); CREATE INDEX ON events (account, at);
ALTER TABLE accounts ADD PRIMARY KEY (id); ALTER TABLE accounts ADD UNIQUE (email);
ALTER TABLE covers ADD PRIMARY KEY (id);
ALTER TABLE events ADD FOREIGN KEY (account) REFERENCES accounts;
VACUUM ANALYZE;
";

/// A number and a digest of all rows of the database that psql is connected to, a line per table.
pub const FINGERPRINT: &str = "SELECT format('SELECT %L, count(*), sum(hashtextextended(t::text, 0)::numeric) FROM %I t', c.relname, c.relname)
FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace ORDER BY c.relname \\gexec
";

/// Writes the rows as a script for psql: about `bytes` bytes of COPY text. Of it two fifths are pages, two fifths events,
/// a tenth accounts, a tenth covers.
///
/// # Errors
///
/// Those of the output.
pub fn rows(out: &mut impl io::Write, bytes: u64) -> io::Result<()> {
    let mut random = Random::new(20_261_121);
    // Fewer than there are: a row of theirs is shorter than this.
    let accounts = (bytes / 10 / 120).max(1);
    table(out, "accounts", bytes / 10, |line, id| {
        let _ = write!(
            line,
            "{id}\treader{id}.{}@example.org\t{:08x}-0000-4000-8000-{:012x}\t{}.{:02}\t{}-{:02}-{:02}",
            random.below(1000),
            random.number() >> 32,
            random.number() >> 16,
            random.below(100_000),
            random.below(100),
            1940 + random.below(70),
            1 + random.below(12),
            1 + random.below(28),
        );
    })?;
    table(out, "pages", bytes * 2 / 5, |line, id| {
        let _ = write!(line, "{id}\t{}\tChapter {} ", id / 300, id % 300);
        words(line, &mut random);
        line.push('\t');
        for _ in 0..2 + random.below(30) {
            words(line, &mut random);
            line.push_str("\\n");
        }
    })?;
    let mut clock = 0;
    table(out, "events", bytes * 2 / 5, |line, id| {
        clock += random.below(3);
        let kind = ["open", "turn", "close", "note", "search"][usize::try_from(random.below(5)).unwrap_or(0)];
        let _ = write!(
            line,
            "{id}\t{}\tJ{} {:02}:{:02}:{:02}+00\t{kind}\t10.{}.{}.{}\t{{\"page\": {}, \"seconds\": {}.{}, \"device\": \"{:016x}\"}}",
            1 + random.below(accounts),
            2_461_000 + clock / 86_400,
            clock / 3_600 % 24,
            clock / 60 % 60,
            clock % 60,
            random.below(4),
            random.below(256),
            random.below(256),
            random.below(60_000),
            random.below(900),
            random.below(10),
            random.number(),
        );
    })?;
    table(out, "covers", bytes / 10, |line, id| {
        let _ = write!(line, "{id}\t\\\\x");
        for _ in 0..200 + random.below(1800) {
            let _ = write!(line, "{:016x}", random.number());
        }
    })
}

/// One `COPY` of lines from 1 on, until they have `bytes` bytes.
fn table(
    out: &mut impl io::Write,
    name: &str,
    bytes: u64,
    mut row: impl FnMut(&mut String, u64),
) -> io::Result<()> {
    writeln!(out, "COPY {name} FROM STDIN;")?;
    let (mut written, mut line) = (0, String::new());
    for id in 1.. {
        line.clear();
        row(&mut line, id);
        line.push('\n');
        out.write_all(line.as_bytes())?;
        written += line.len() as u64;
        if written >= bytes {
            break;
        }
    }
    writeln!(out, "\\.")
}
