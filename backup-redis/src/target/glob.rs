//! Patterns over keys, as the command `KEYS` and the configuration of ACLs read them (`stringmatchlen` in `util.c`).

/// A pattern: `*`, `?`, `[abc]`, `[^a-z]`, and `\` before a character meant as itself. Bytes, not letters.
#[derive(Clone, Debug)]
pub(crate) struct Glob(Vec<Token>);

#[derive(Clone, Debug)]
enum Token {
    Any,
    One,
    Byte(u8),
    Class { not: bool, ranges: Vec<(u8, u8)> },
}

impl Glob {
    pub(crate) fn new(pattern: &[u8]) -> Self {
        let mut tokens = Vec::new();
        let mut rest = pattern;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            tokens.push(match byte {
                b'*' => {
                    if matches!(tokens.last(), Some(Token::Any)) {
                        continue;
                    }
                    Token::Any
                }
                b'?' => Token::One,
                b'[' => class(&mut rest),
                b'\\' => match rest.split_first() {
                    Some((&literal, after)) => {
                        rest = after;
                        Token::Byte(literal)
                    }
                    None => Token::Byte(b'\\'),
                },
                other => Token::Byte(other),
            });
        }
        Self(tokens)
    }

    /// Whether the whole of `key` matches. Takes time proportional to the product of both lengths at most.
    pub(crate) fn matches(&self, key: &[u8]) -> bool {
        let tokens = &self.0;
        let (mut at, mut token) = (0, 0);
        // Where to go on when what follows the last `*` does not fit: the star takes one byte more.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            match (tokens.get(token), key.get(at)) {
                (Some(Token::Any), _) => {
                    retry = Some((token + 1, at + 1));
                    token += 1;
                    continue;
                }
                (Some(Token::One), Some(_)) => {}
                (Some(Token::Byte(wanted)), Some(byte)) if wanted == byte => {}
                (Some(Token::Class { not, ranges }), Some(byte))
                    if ranges.iter().any(|(low, high)| (low..=high).contains(&byte)) != *not => {}
                (None, None) => return true,
                _ => match retry {
                    Some((after, from)) if from <= key.len() => {
                        (token, at) = (after, from);
                        retry = Some((after, from + 1));
                        continue;
                    }
                    _ => return false,
                },
            }
            token += 1;
            at += 1;
        }
    }
}

/// What follows `[`. Without its end it reaches to the end of the pattern, as the servers read it.
fn class(rest: &mut &[u8]) -> Token {
    let not = rest.first() == Some(&b'^');
    if not {
        *rest = rest.get(1..).unwrap_or_default();
    }
    let mut ranges = Vec::new();
    loop {
        match **rest {
            [] => break,
            [b']', ref after @ ..] => {
                *rest = after;
                break;
            }
            [b'\\', literal, ref after @ ..] => {
                ranges.push((literal, literal));
                *rest = after;
            }
            [low, b'-', high, ref after @ ..] if high != b']' => {
                ranges.push((low.min(high), low.max(high)));
                *rest = after;
            }
            [byte, ref after @ ..] => {
                ranges.push((byte, byte));
                *rest = after;
            }
        }
    }
    Token::Class { not, ranges }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_the_servers_match_them() {
        for (pattern, key, expected) in [
            ("*", "", true),
            ("user:*", "user:1", true),
            ("user:*", "use", false),
            ("*:profile", "user:1:profile", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("h?llo", "hello", true),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h\\*llo", "h*llo", true),
            ("h\\*llo", "hello", false),
            ("**a", "bca", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(Glob::new(pattern.as_bytes()).matches(key.as_bytes()), expected, "{pattern} {key}");
        }
    }
}
