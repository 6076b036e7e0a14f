//! Cuts SQL text into statements while it streams.
//!
//! The rules are psql's (`src/fe_utils/psqlscan.l`): quotes, dollar quotes, nested comments, parentheses, and the
//! `BEGIN ATOMIC … END` bodies of SQL-standard functions. Lines that begin with a backslash between statements are
//! psql's commands.

use backup_core::{Error, ErrorKind, Result};

/// Longest statement that is kept, in bytes: a value in PostgreSQL has at most 1 GiB, its text somewhat more.
const MAX_STATEMENT: usize = 1 << 31;

/// One statement with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    /// Its text, without the semicolon and without comments before it.
    pub(crate) text: String,
    /// `TABLE`, `INDEX`, `FK CONSTRAINT`…: what the comment above it says, empty without one.
    pub(crate) entry: String,
    /// Counts the comments that began an entry, so that statements of one entry can be told.
    pub(crate) entry_number: u64,
}

/// What [`Splitter::push`] meets, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SqlEvent<'a> {
    /// A statement other than COPY … FROM stdin.
    Statement(Statement),
    /// `COPY … FROM stdin`: rows follow. The offset is that of the first byte behind its line.
    CopyBegin { statement: Statement, offset: u64 },
    /// Whole or partial rows; the end mark never comes.
    CopyData(&'a [u8]),
    /// The rows are complete; the offset is that of the first byte of the line with the end mark.
    CopyEnd { offset: u64 },
    /// A line for psql: `\connect "x"`, `\restrict key`.
    Command(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Plain,
    Quote {
        backslash: bool,
    },
    Identifier,
    LineComment,
    BlockComment(u32),
    Dollar,
    Command,
    /// The rest of the line behind `COPY … FROM stdin;`.
    CopyLine,
    CopyData,
}

/// Cuts SQL text given in pieces of any size.
#[derive(Debug)]
pub(crate) struct Splitter {
    mode: Mode,
    offset: u64,
    text: Vec<u8>,
    word: Vec<u8>,
    words: Vec<Vec<u8>>,
    parentheses: u32,
    begins: u32,
    previous: u8,
    tag: Vec<u8>,
    comment: Vec<u8>,
    entry: String,
    entry_number: u64,
    /// The first bytes of a row that may be the end mark.
    held: Vec<u8>,
    row_start: bool,
    backslash_quotes: bool,
    at_line_start: bool,
}

impl Default for Splitter {
    fn default() -> Self {
        Self {
            mode: Mode::Plain,
            offset: 0,
            text: Vec::new(),
            word: Vec::new(),
            words: Vec::new(),
            parentheses: 0,
            begins: 0,
            previous: 0,
            tag: Vec::new(),
            comment: Vec::new(),
            entry: String::new(),
            entry_number: 0,
            held: Vec::new(),
            row_start: true,
            backslash_quotes: false,
            at_line_start: true,
        }
    }
}

impl Splitter {
    /// Takes the next bytes.
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        mut on_event: impl FnMut(SqlEvent<'_>) -> Result<()>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            if self.mode == Mode::CopyData {
                bytes = self.copy_data(bytes, &mut on_event)?;
                continue;
            }
            let Some((&byte, rest)) = bytes.split_first() else { break };
            bytes = rest;
            self.offset += 1;
            self.byte(byte, &mut on_event)?;
        }
        Ok(())
    }

    /// The input is complete.
    pub(crate) fn finish(mut self, mut on_event: impl FnMut(SqlEvent<'_>) -> Result<()>) -> Result<()> {
        match self.mode {
            Mode::Command => {
                on_event(SqlEvent::Command(String::from_utf8_lossy(&self.text).trim().to_owned()))
            }
            Mode::Plain | Mode::LineComment => {
                let text = String::from_utf8_lossy(&std::mem::take(&mut self.text)).trim().to_owned();
                if text.is_empty() {
                    Ok(())
                } else {
                    let statement =
                        Statement { text, entry: self.entry.clone(), entry_number: self.entry_number };
                    on_event(SqlEvent::Statement(statement))
                }
            }
            Mode::CopyLine | Mode::CopyData => {
                Err(Error::corrupt("read SQL", "the text ends inside the rows of a COPY"))
            }
            _ => Err(Error::corrupt("read SQL", "the text ends inside a quote or comment")),
        }
    }

    fn byte(&mut self, byte: u8, on_event: &mut impl FnMut(SqlEvent<'_>) -> Result<()>) -> Result<()> {
        match self.mode {
            Mode::Plain => return self.plain(byte, on_event),
            Mode::Quote { backslash } => {
                self.keep(byte)?;
                if backslash && self.previous == b'\\' {
                    // The escaped byte is done with, even when it is a backslash or a quote.
                    self.previous = 0;
                    return Ok(());
                }
                if byte == b'\'' {
                    self.mode = Mode::Plain;
                }
                self.previous = byte;
            }
            Mode::Identifier => {
                self.keep(byte)?;
                if byte == b'"' {
                    self.mode = Mode::Plain;
                    self.previous = byte;
                }
            }
            Mode::LineComment => {
                if byte == b'\n' {
                    self.end_comment();
                    self.mode = Mode::Plain;
                    self.previous = b'\n';
                    self.at_line_start = true;
                    if !self.text.is_empty() {
                        self.keep(b'\n')?;
                    }
                } else if self.comment.len() < 4096 {
                    self.comment.push(byte);
                }
            }
            Mode::BlockComment(depth) => {
                self.keep(byte)?;
                match (self.previous, byte) {
                    (b'/', b'*') => {
                        self.mode = Mode::BlockComment(depth + 1);
                        self.previous = 0;
                    }
                    (b'*', b'/') => {
                        self.mode = if depth == 1 { Mode::Plain } else { Mode::BlockComment(depth - 1) };
                        self.previous = 0;
                    }
                    _ => self.previous = byte,
                }
            }
            Mode::Dollar => {
                self.keep(byte)?;
                if byte == b'$' && self.text.ends_with(&self.tag) {
                    self.mode = Mode::Plain;
                    self.previous = 0;
                }
            }
            Mode::Command => {
                if byte == b'\n' {
                    let line = String::from_utf8_lossy(&std::mem::take(&mut self.text)).trim().to_owned();
                    self.mode = Mode::Plain;
                    self.at_line_start = true;
                    self.previous = b'\n';
                    on_event(SqlEvent::Command(line))?;
                } else {
                    self.keep(byte)?;
                }
            }
            Mode::CopyLine => {
                if byte == b'\n' {
                    self.mode = Mode::CopyData;
                    self.row_start = true;
                    let statement = self.take_statement();
                    on_event(SqlEvent::CopyBegin { statement, offset: self.offset })?;
                }
            }
            Mode::CopyData => {}
        }
        Ok(())
    }

    fn plain(&mut self, byte: u8, on_event: &mut impl FnMut(SqlEvent<'_>) -> Result<()>) -> Result<()> {
        let in_word = byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
        if in_word {
            self.word.push(byte);
        } else if byte != b'$' {
            self.end_word();
        }
        match byte {
            b'-' if self.previous == b'-' => {
                self.text.pop();
                self.comment.clear();
                self.mode = Mode::LineComment;
                return Ok(());
            }
            b'*' if self.previous == b'/' => self.mode = Mode::BlockComment(1),
            b'\'' => {
                let escapes =
                    self.backslash_quotes || matches!(self.previous, b'e' | b'E') && self.escape_prefix();
                self.mode = Mode::Quote { backslash: escapes };
                self.keep(byte)?;
                self.previous = 0;
                return Ok(());
            }
            b'"' => self.mode = Mode::Identifier,
            b'$' if self.dollar_tag() => {
                self.keep(byte)?;
                self.mode = Mode::Dollar;
                self.word.clear();
                self.previous = 0;
                return Ok(());
            }
            b'(' => self.parentheses += 1,
            b')' => self.parentheses = self.parentheses.saturating_sub(1),
            b'\\' if self.at_line_start && self.text.iter().all(u8::is_ascii_whitespace) => {
                self.text.clear();
                self.mode = Mode::Command;
            }
            b';' if self.parentheses == 0 && self.begins == 0 => return self.end_statement(on_event),
            _ => {}
        }
        self.at_line_start = byte == b'\n' || (self.at_line_start && byte.is_ascii_whitespace());
        if !(self.text.is_empty() && byte.is_ascii_whitespace()) {
            self.keep(byte)?;
        }
        self.previous = byte;
        Ok(())
    }

    /// Whether the `e` before a quote stands alone, and is not the end of a word.
    fn escape_prefix(&self) -> bool {
        let before = self.text.len().checked_sub(2).and_then(|i| self.text.get(i));
        before.is_none_or(|b| !(b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80 || *b == b'$'))
    }

    /// Whether the dollar that comes now completes `$tag$`, and if so remembers the tag.
    fn dollar_tag(&mut self) -> bool {
        let Some(start) = self.text.iter().rposition(|&b| b == b'$') else { return false };
        let Some(tag) = self.text.get(start + 1..) else { return false };
        let starts = tag.first().is_none_or(|b| !b.is_ascii_digit());
        let inside = tag.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80);
        // In `a$b$c` the dollars belong to the identifier.
        let before = start.checked_sub(1).and_then(|i| self.text.get(i));
        let alone =
            before.is_none_or(|b| !(b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80 || *b == b'$'));
        if !(starts && inside && alone) {
            return false;
        }
        self.tag = [b"$", tag, b"$"].concat();
        true
    }

    fn end_word(&mut self) {
        if self.word.is_empty() {
            return;
        }
        let mut word = std::mem::take(&mut self.word);
        word.make_ascii_lowercase();
        if self.words.len() < 4 {
            self.words.push(word.clone());
        }
        let is = |i: usize, names: &[&[u8]]| self.words.get(i).is_some_and(|w| names.contains(&w.as_slice()));
        let routine: &[&[u8]] = &[b"function", b"procedure"];
        let defines_routine = is(0, &[b"create"])
            && (is(1, routine) || (is(1, &[b"or"]) && is(2, &[b"replace"]) && is(3, routine)));
        if defines_routine && self.parentheses == 0 {
            match word.as_slice() {
                b"begin" => self.begins += 1,
                b"case" if self.begins > 0 => self.begins += 1,
                b"end" => self.begins = self.begins.saturating_sub(1),
                _ => {}
            }
        }
        word.clear();
        self.word = word;
    }

    fn end_statement(&mut self, on_event: &mut impl FnMut(SqlEvent<'_>) -> Result<()>) -> Result<()> {
        if self.words.first().is_some_and(|w| w == b"copy") && ends_with_from_stdin(&self.text) {
            self.mode = Mode::CopyLine;
            return Ok(());
        }
        let statement = self.take_statement();
        if let Some(value) = statement.text.strip_prefix("SET standard_conforming_strings = ") {
            self.backslash_quotes = value.trim() == "off";
        }
        if statement.text.is_empty() { Ok(()) } else { on_event(SqlEvent::Statement(statement)) }
    }

    fn take_statement(&mut self) -> Statement {
        let text = String::from_utf8_lossy(&self.text).trim().to_owned();
        self.text.clear();
        self.word.clear();
        self.words.clear();
        self.parentheses = 0;
        self.begins = 0;
        self.previous = 0;
        self.at_line_start = false;
        Statement { text, entry: self.entry.clone(), entry_number: self.entry_number }
    }

    /// Reads `-- Name: x; Type: TABLE; Schema: public; Owner: bob`, as `_printTocEntry` writes it.
    fn end_comment(&mut self) {
        let comment = String::from_utf8_lossy(&self.comment);
        let Some(kind) = comment
            .contains("Name: ")
            .then(|| comment.rfind("; Type: "))
            .flatten()
            .and_then(|at| comment.get(at + "; Type: ".len()..))
        else {
            return;
        };
        self.entry = kind.split("; ").next().unwrap_or("").trim().to_owned();
        self.entry_number += 1;
    }

    fn copy_data<'a>(
        &mut self,
        bytes: &'a [u8],
        on_event: &mut impl FnMut(SqlEvent<'_>) -> Result<()>,
    ) -> Result<&'a [u8]> {
        // At a row's beginning three bytes decide whether it is the end mark.
        if self.row_start {
            let Some((&byte, rest)) = bytes.split_first() else { return Ok(bytes) };
            self.held.push(byte);
            self.offset += 1;
            let mark: &[u8] = b"\\.\n";
            if self.held == mark {
                let offset = self.offset - mark.len() as u64;
                self.held.clear();
                self.mode = Mode::Plain;
                self.at_line_start = true;
                self.previous = b'\n';
                on_event(SqlEvent::CopyEnd { offset })?;
            } else if !mark.starts_with(&self.held) {
                let held = std::mem::take(&mut self.held);
                self.row_start = byte == b'\n';
                on_event(SqlEvent::CopyData(&held))?;
            }
            return Ok(rest);
        }
        // Whole rows up to one that begins with a backslash and a dot.
        let mut at = 0;
        while let Some(end) = bytes.get(at..).and_then(|rest| memchr::memchr(b'\n', rest)) {
            at += end + 1;
            match bytes.get(at) {
                Some(b'\\') | None => {
                    self.row_start = true;
                    break;
                }
                Some(_) => {}
            }
        }
        let (rows, rest) = if self.row_start { bytes.split_at(at) } else { (bytes, &[][..]) };
        self.offset += rows.len() as u64;
        on_event(SqlEvent::CopyData(rows))?;
        Ok(rest)
    }

    fn keep(&mut self, byte: u8) -> Result<()> {
        if self.text.len() >= MAX_STATEMENT {
            return Err(Error::new(ErrorKind::LimitExceeded, "read SQL")
                .message("a statement has more than 2 GiB; this is not SQL that pg_dump wrote"));
        }
        self.text.push(byte);
        Ok(())
    }
}

fn ends_with_from_stdin(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let mut words = text.split_ascii_whitespace().rev();
    words.next().is_some_and(|w| w.eq_ignore_ascii_case("stdin"))
        && words.next().is_some_and(|w| w.eq_ignore_ascii_case("from"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Events with COPY data joined, as text.
    fn split(pieces: &[&[u8]]) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut copy: Option<String> = None;
        let mut splitter = Splitter::default();
        let mut on = |event: SqlEvent<'_>| {
            match event {
                SqlEvent::Statement(s) => all.push(s.text),
                SqlEvent::CopyBegin { statement, .. } => {
                    all.push(statement.text);
                    copy = Some(String::new());
                }
                SqlEvent::CopyData(data) => {
                    copy.as_mut().unwrap().push_str(std::str::from_utf8(data).unwrap());
                }
                SqlEvent::CopyEnd { .. } => all.push(format!("data:{}", copy.take().unwrap())),
                SqlEvent::Command(line) => all.push(line),
            }
            Ok(())
        };
        for piece in pieces {
            splitter.push(piece, &mut on).unwrap();
        }
        splitter.finish(&mut on).unwrap();
        all
    }

    const SCRIPT: &str = concat!(
        "--\n-- PostgreSQL database dump\n--\n\n\\restrict abc\n\nSET x = on;\n",
        "--\n-- Name: f(); Type: FUNCTION; Schema: public; Owner: o\n--\n\n",
        "CREATE FUNCTION public.f() RETURNS int\n    LANGUAGE sql\n    BEGIN ATOMIC\n SELECT CASE WHEN true THEN 1 ELSE 2 END;\n SELECT 2;\nEND;\n",
        "CREATE FUNCTION g() AS $_$ select ';' -- \n $x$ ; $x$ $_$;\n",
        "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2);\n",
        "INSERT INTO t VALUES ('a;''b', E'\\';', \"we;ird\"\"x\", 1 -- why; not\n, /* ; /* ; */ ; */ 2);\n",
        "COPY public.t (a, b) FROM stdin;\n1\tx\n\\\\.\n\\.x\n\n2\ty\n\\.\n\n\n",
        "COPY e FROM stdin;\n\\.\nSELECT 1;\n\\unrestrict abc\n"
    );

    #[test]
    fn statements_rows_and_commands_are_told_apart() {
        let parts = split(&[SCRIPT.as_bytes()]);
        assert_eq!(parts.len(), 12, "{parts:#?}");
        assert_eq!(parts[0], "\\restrict abc");
        assert!(parts[2].starts_with("CREATE FUNCTION public.f()") && parts[2].ends_with("END"));
        assert!(parts[3].ends_with("$_$"));
        assert_eq!(parts[4], "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)");
        assert!(parts[5].ends_with("2)"), "{}", parts[5]);
        assert_eq!(parts[7], "data:1\tx\n\\\\.\n\\.x\n\n2\ty\n");
        assert_eq!(parts[9], "data:");
        assert_eq!(parts[11], "\\unrestrict abc");
    }

    #[test]
    fn a_text_that_ends_inside_rows_or_quotes_is_damaged() {
        for text in ["COPY t FROM stdin;\n1\n", "SELECT 'x", "SELECT $$x", "/* x"] {
            let mut splitter = Splitter::default();
            splitter.push(text.as_bytes(), |_| Ok(())).unwrap();
            assert!(splitter.finish(|_| Ok(())).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(cuts in proptest::collection::vec(0..SCRIPT.len(), 0..9)) {
            let bytes = SCRIPT.as_bytes();
            let mut cuts = cuts;
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(split(&pieces), split(&[bytes]));
        }

        #[test]
        fn any_bytes_are_split_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut splitter = Splitter::default();
            if splitter.push(&bytes, |_| Ok(())).is_ok() {
                let _ = splitter.finish(|_| Ok(()));
            }
        }
    }
}
