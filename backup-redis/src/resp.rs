//! RESP 2, the protocol of Redis and Valkey: commands out, replies in. No input or output here.

use bytes::Bytes;

use backup_core::Result;

use crate::error::{ServerError, protocol};

/// Deepest nesting of arrays that is accepted.
const DEPTH: usize = 8;
/// Longest line: numbers, states and errors.
const LINE: usize = 64 * 1024;
/// Longest reply that is held whole.
pub(crate) const WHOLE_REPLY: u64 = 64 * 1024 * 1024;

/// A reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    Status(String),
    Error(ServerError),
    Int(i64),
    Bulk(Bytes),
    Nil,
    Array(Vec<Reply>),
}

impl Reply {
    /// The bytes of a string or state.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bulk(bytes) => Some(bytes),
            Self::Status(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    /// The text of a string or state.
    pub(crate) fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// The number, also where it came as text.
    pub(crate) fn int(&self) -> Option<i64> {
        match self {
            Self::Int(n) => Some(*n),
            other => other.text()?.parse().ok(),
        }
    }

    /// As the reply to a write: what kept it from being done. Nil is the answer to `SET … NX` of a key that exists,
    /// and stands for what `RESTORE` says then.
    pub(crate) fn failure(self) -> Option<ServerError> {
        match self {
            Self::Error(error) => Some(error),
            Self::Nil => Some(ServerError("BUSYKEY the key exists".to_owned())),
            _ => None,
        }
    }

    /// The elements; none for anything but an array.
    pub(crate) fn array(&self) -> &[Reply] {
        match self {
            Self::Array(items) => items,
            _ => &[],
        }
    }
}

/// Appends a command.
pub(crate) fn command<A: AsRef<[u8]>>(out: &mut Vec<u8>, arguments: &[A]) {
    header(out, b'*', arguments.len() as u64);
    for argument in arguments {
        bulk(out, argument.as_ref());
    }
}

/// Appends one argument.
pub(crate) fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    header(out, b'$', bytes.len() as u64);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends `*n` or `$n` and the end of the line.
pub(crate) fn header(out: &mut Vec<u8>, sign: u8, n: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut left = n;
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + (left % 10).to_le_bytes()[0];
        at -= 1;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.push(sign);
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
}

/// What parsing found.
#[derive(Debug, PartialEq)]
pub(crate) enum Parsed {
    /// A reply and how many bytes it took.
    Reply(Reply, usize),
    /// At least so many bytes are needed in all.
    Needs(usize),
}

/// Parses the reply that begins `input`.
pub(crate) fn parse(input: &[u8]) -> Result<Parsed> {
    let mut at = 0;
    Ok(match value(input, &mut at, 0)? {
        Ok(reply) => Parsed::Reply(reply, at),
        Err(Needs(n)) => Parsed::Needs(n),
    })
}

struct Needs(usize);

fn line<'a>(input: &'a [u8], at: &mut usize) -> Result<std::result::Result<&'a [u8], Needs>> {
    let rest = input.get(*at..).unwrap_or_default();
    match rest.iter().take(LINE).position(|&b| b == b'\n') {
        Some(end) => {
            let whole = rest.get(..end).unwrap_or_default();
            *at += end + 1;
            Ok(Ok(whole.strip_suffix(b"\r").unwrap_or(whole)))
        }
        None if rest.len() >= LINE => Err(protocol("read reply", "a line of a reply is too long")),
        None => Ok(Err(Needs(input.len() + 1))),
    }
}

fn value(input: &[u8], at: &mut usize, depth: usize) -> Result<std::result::Result<Reply, Needs>> {
    let line = match line(input, at)? {
        Ok(line) => line,
        Err(needs) => return Ok(Err(needs)),
    };
    let wrong = || protocol("read reply", "the server's reply is not of its protocol");
    let (&sign, text) = line.split_first().ok_or_else(wrong)?;
    let number = || std::str::from_utf8(text).ok().and_then(|t| t.parse::<i64>().ok()).ok_or_else(wrong);
    Ok(Ok(match sign {
        b'+' => Reply::Status(String::from_utf8_lossy(text).into_owned()),
        b'-' => Reply::Error(ServerError(String::from_utf8_lossy(text).into_owned())),
        b':' => Reply::Int(number()?),
        b'$' => {
            let Ok(length) = u64::try_from(number()?) else { return Ok(Ok(Reply::Nil)) };
            if length > WHOLE_REPLY {
                return Err(protocol("read reply", "a reply is longer than 64 MiB"));
            }
            let length = usize::try_from(length).map_err(|_| wrong())?;
            let Some(body) = input.get(*at..*at + length) else { return Ok(Err(Needs(*at + length + 2))) };
            match input.get(*at + length..*at + length + 2) {
                None => return Ok(Err(Needs(*at + length + 2))),
                Some(b"\r\n") => {}
                Some(_) => return Err(wrong()),
            }
            *at += length + 2;
            Reply::Bulk(Bytes::copy_from_slice(body))
        }
        b'*' => {
            let Ok(count) = u64::try_from(number()?) else { return Ok(Ok(Reply::Nil)) };
            if depth >= DEPTH {
                return Err(wrong());
            }
            let mut items = Vec::new();
            for _ in 0..count {
                match value(input, at, depth + 1)? {
                    Ok(item) => items.push(item),
                    Err(needs) => return Ok(Err(needs)),
                }
            }
            Reply::Array(items)
        }
        _ => return Err(wrong()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn replies_of_every_sort_are_read_whole_or_not_at_all() {
        let wire = b"*5\r\n$3\r\nfoo\r\n:-7\r\n+OK\r\n$-1\r\n*1\r\n-NOPERM no\r\n";
        let reply = Reply::Array(vec![
            Reply::Bulk(Bytes::from_static(b"foo")),
            Reply::Int(-7),
            Reply::Status("OK".to_owned()),
            Reply::Nil,
            Reply::Array(vec![Reply::Error(ServerError("NOPERM no".to_owned()))]),
        ]);
        assert_eq!(parse(wire).unwrap(), Parsed::Reply(reply, wire.len()));
        for cut in 0..wire.len() {
            assert!(matches!(parse(&wire[..cut]).unwrap(), Parsed::Needs(n) if n > cut));
        }
    }

    #[test]
    fn a_reply_cannot_make_us_allocate_by_its_word() {
        assert!(parse(b"$99999999999\r\n").is_err());
        assert!(matches!(parse(b"*99999999999\r\n").unwrap(), Parsed::Needs(_)));
        assert!(parse(&b"*1\r\n".repeat(20)).is_err());
    }

    #[test]
    fn a_command_is_an_array_of_strings() {
        let mut out = Vec::new();
        command(&mut out, &[&b"SET"[..], b"k", b""]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Parsed::Reply(_, used)) = parse(&input) {
                prop_assert!(used <= input.len());
            }
        }
    }
}
