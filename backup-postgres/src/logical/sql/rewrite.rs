//! Tokens of one statement, for looking at and changing names in it.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// An identifier or keyword, as written (quotes included).
    Name,
    /// A string literal with its quotes (and prefix).
    Text,
    /// Blanks and comments.
    Blank,
    /// A dollar-quoted string, a number, an operator, a bracket.
    Other,
}

/// A piece of a statement. Joining the texts of all gives the statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) text: String,
}

impl Token {
    /// An identifier's name without its quotes; unquoted names are in lower case, as the server folds them.
    pub(crate) fn name(&self) -> Option<String> {
        if self.kind != TokenKind::Name {
            return None;
        }
        Some(match self.text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
            Some(quoted) => quoted.replace("\"\"", "\""),
            None => self.text.to_lowercase(),
        })
    }

    /// Whether this is the keyword, in any case.
    pub(crate) fn is(&self, keyword: &str) -> bool {
        self.kind == TokenKind::Name && self.text.eq_ignore_ascii_case(keyword)
    }
}

/// The statement the tokens make.
pub(crate) fn render(tokens: &[Token]) -> String {
    tokens.iter().map(|t| t.text.as_str()).collect()
}

/// Cuts a statement into tokens.
pub(crate) fn tokens(statement: &str) -> Vec<Token> {
    let mut all = Vec::new();
    let mut rest = statement;
    while let Some(first) = rest.chars().next() {
        let (kind, length) = measure(rest, first);
        let length = length.clamp(first.len_utf8(), rest.len());
        let (text, after) = rest.split_at(if rest.is_char_boundary(length) { length } else { rest.len() });
        all.push(Token { kind, text: text.to_owned() });
        rest = after;
    }
    all
}

fn measure(rest: &str, first: char) -> (TokenKind, usize) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
    let run = |from: usize, test: &dyn Fn(char) -> bool| {
        rest.get(from..)
            .and_then(|t| t.char_indices().find(|(_, c)| !test(*c)))
            .map_or(rest.len(), |(i, _)| from + i)
    };
    if rest.starts_with("--") {
        return (TokenKind::Blank, run(0, &|c| c != '\n'));
    }
    if rest.starts_with("/*") {
        return (TokenKind::Blank, block_comment(rest));
    }
    match first {
        '\'' => (TokenKind::Text, quoted(rest, 1, '\'', false)),
        'e' | 'E' if rest.get(1..2) == Some("'") => (TokenKind::Text, quoted(rest, 2, '\'', true)),
        'b' | 'B' | 'x' | 'X' | 'n' | 'N' if rest.get(1..2) == Some("'") => {
            (TokenKind::Text, quoted(rest, 2, '\'', false))
        }
        '"' => (TokenKind::Name, quoted(rest, 1, '"', false)),
        '$' => (TokenKind::Other, dollar(rest).unwrap_or(1)),
        c if c.is_ascii_digit() => (TokenKind::Other, run(0, &|c| c.is_ascii_digit() || c == '.')),
        c if is_word(c) => (TokenKind::Name, run(0, &is_word)),
        c if c.is_whitespace() => (TokenKind::Blank, run(0, &char::is_whitespace)),
        c => (TokenKind::Other, c.len_utf8()),
    }
}

fn quoted(text: &str, from: usize, quote: char, backslash: bool) -> usize {
    let mut chars = text.char_indices().skip_while(|(i, _)| *i < from).peekable();
    while let Some((at, c)) = chars.next() {
        if backslash && c == '\\' {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, c)| *c == quote) {
                chars.next();
            } else {
                return at + 1;
            }
        }
    }
    text.len()
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_u32;
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(pair) = bytes.get(at..at + 2) {
        match pair {
            b"/*" => {
                depth += 1;
                at += 2;
            }
            b"*/" => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    text.len()
}

fn dollar(text: &str) -> Option<usize> {
    let end = text.get(1..)?.find('$')? + 2;
    let tag = text.get(..end)?;
    let inner = tag.get(1..tag.len() - 1)?;
    let valid = inner.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii())
        && !inner.starts_with(|c: char| c.is_ascii_digit());
    if !valid {
        return None;
    }
    Some(text.get(end..)?.find(tag).map_or(text.len(), |at| end + at + tag.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_strings_and_the_rest_are_told_apart() {
        let all = tokens("ALTER TABLE public.\"Ünï x\" ADD c text DEFAULT E'a\\'b' -- why\n, $_$ 'x' $_$");
        let names: Vec<_> = all.iter().filter_map(Token::name).collect();
        assert_eq!(names, ["alter", "table", "public", "Ünï x", "add", "c", "text", "default"]);
        assert!(all.iter().any(|t| t.kind == TokenKind::Text && t.text == "E'a\\'b'"));
        assert!(all.iter().any(|t| t.text == "$_$ 'x' $_$"));
    }

    proptest! {
        #[test]
        fn tokens_join_to_the_statement(text in ".{0,60}", quoted in "['\"$/*\\\\Ee-]{0,12}") {
            for text in [text.clone(), quoted.clone(), format!("{quoted}{text}")] {
                prop_assert_eq!(render(&tokens(&text)), text);
            }
        }
    }
}
