//! A replica's half of a full synchronisation, without input or output.
//!
//! Source: `replication.c` of the servers. The replica asks `PSYNC ? -1`; the server answers
//! `+FULLRESYNC <id> <offset>`, then `$EOF:<40 bytes>` and the RDB ending in the same 40 bytes, or `$<length>` and the
//! RDB. While it waits for its own snapshot to begin it sends bare newlines, at any point before the `$`.

use backup_core::{Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;

use crate::error::{ServerError, protocol};

/// Bytes of the mark that ends an RDB of unknown length (`RDB_EOF_MARK_SIZE`).
const MARK: usize = 40;
/// Longest answer line.
const LINE: usize = 4096;

/// What the stream says next.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    /// The server agreed; this is its replication position.
    Agreed { id: String, offset: i64 },
    /// The RDB begins; its length, where it is known.
    Begins(Option<u64>),
    /// Bytes of the RDB.
    Data(Bytes),
    /// The RDB is complete.
    End,
}

#[derive(Debug)]
enum State {
    Answer,
    Preamble,
    Marked(Box<Finder<'static>>),
    Length(u64),
    Done,
}

/// Takes the server's bytes apart.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
}

impl Framing {
    /// Before the answer to `PSYNC`.
    pub(crate) fn new() -> Self {
        Self { state: State::Answer }
    }

    /// Whether the RDB was complete.
    #[cfg(test)]
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The next event in `input`, whose bytes it consumes; `None` when more are needed.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>> {
        match &mut self.state {
            State::Answer => {
                let Some(line) = line(input)? else { return Ok(None) };
                let text = line.strip_prefix("+FULLRESYNC ").ok_or_else(|| refusal(&line))?;
                let (id, offset) = text
                    .split_once(' ')
                    .and_then(|(id, offset)| Some((id, offset.parse().ok()?)))
                    .ok_or_else(|| {
                        protocol("start replication", "the server's answer to PSYNC cannot be read")
                    })?;
                self.state = State::Preamble;
                Ok(Some(Event::Agreed { id: id.to_owned(), offset }))
            }
            State::Preamble => {
                let Some(line) = line(input)? else { return Ok(None) };
                let text = line.strip_prefix('$').ok_or_else(|| refusal(&line))?;
                if let Some(mark) = text.strip_prefix("EOF:") {
                    if mark.len() != MARK {
                        return Err(protocol("start replication", "the end mark is not 40 bytes long"));
                    }
                    self.state = State::Marked(Box::new(Finder::new(mark.as_bytes()).into_owned()));
                    return Ok(Some(Event::Begins(None)));
                }
                let length = text
                    .parse()
                    .map_err(|_| protocol("start replication", "the length of the RDB cannot be read"))?;
                self.state = State::Length(length);
                Ok(Some(Event::Begins(Some(length))))
            }
            State::Marked(mark) => {
                if let Some(at) = mark.find(input) {
                    if at > 0 {
                        return Ok(Some(Event::Data(input.split_to(at).freeze())));
                    }
                    input.clear();
                    self.state = State::Done;
                    return Ok(Some(Event::End));
                }
                // The last 39 bytes may be the mark's beginning.
                match input.len().checked_sub(MARK - 1) {
                    Some(sure) if sure > 0 => Ok(Some(Event::Data(input.split_to(sure).freeze()))),
                    _ => Ok(None),
                }
            }
            State::Length(0) => {
                self.state = State::Done;
                Ok(Some(Event::End))
            }
            State::Length(left) => {
                if input.is_empty() {
                    return Ok(None);
                }
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= n as u64;
                Ok(Some(Event::Data(input.split_to(n).freeze())))
            }
            State::Done => Ok(None),
        }
    }

    /// The server closed the connection.
    pub(crate) fn closed(&self) -> Error {
        let message = match self.state {
            State::Answer | State::Preamble => "the server closed the connection before it sent an RDB",
            _ => {
                "the server closed the connection in the middle of the RDB: it stopped, or the reader was too slow"
            }
        };
        Error::new(ErrorKind::Unavailable, "read replication stream").message(message)
    }
}

/// A line without its end, after any bare newlines.
fn line(input: &mut BytesMut) -> Result<Option<String>> {
    let bare = input.iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
    let _ = input.split_to(bare);
    let Some(end) = input.iter().take(LINE).position(|&b| b == b'\n') else {
        if input.len() >= LINE {
            return Err(protocol(
                "start replication",
                "the server's answer is not of the replication protocol",
            ));
        }
        return Ok(None);
    };
    let line = input.split_to(end + 1);
    Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
}

/// The error of an answer that is not what was asked for.
fn refusal(line: &str) -> Error {
    match line.strip_prefix('-') {
        Some(text) => ServerError(text.to_owned()).into_error("start replication", ErrorKind::SourceFailed),
        None => protocol(
            "start replication",
            "the server answered something that is not of the replication protocol",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything framing makes of `wire`, fed in pieces of `step` bytes.
    fn run(wire: &[u8], step: usize) -> Result<(Vec<u8>, bool)> {
        let mut framing = Framing::new();
        let mut input = BytesMut::new();
        let mut data = Vec::new();
        for piece in wire.chunks(step) {
            input.extend_from_slice(piece);
            while let Some(event) = framing.next(&mut input)? {
                if let Event::Data(bytes) = event {
                    data.extend_from_slice(&bytes);
                }
            }
        }
        Ok((data, framing.is_done()))
    }

    fn marked(rdb: &[u8]) -> Vec<u8> {
        let mark = b"0123456789abcdef0123456789abcdef01234567";
        [
            b"\n\n+FULLRESYNC 8de1787ba490483314a4d30f1c628bc5025eb761 42\r\n\n$EOF:",
            &mark[..],
            b"\r\n",
            rdb,
            mark,
        ]
        .concat()
    }

    proptest! {
        #[test]
        fn both_framings_give_the_rdb_whatever_the_pieces(rdb in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..100) {
            prop_assert_eq!(run(&marked(&rdb), step).unwrap(), (rdb.clone(), true));
            let mut wire = format!("+FULLRESYNC x 0\r\n\n${}\r\n", rdb.len()).into_bytes();
            wire.extend_from_slice(&rdb);
            prop_assert_eq!(run(&wire, step).unwrap(), (rdb, true));
        }

        #[test]
        fn a_stream_that_ends_early_is_never_done(rdb in proptest::collection::vec(any::<u8>(), 1..100), cut in 1usize..140, step in 1usize..50) {
            let wire = marked(&rdb);
            let cut = cut.min(wire.len() - 1);
            prop_assert!(!run(&wire[..wire.len() - cut], step).unwrap().1);
        }

        #[test]
        fn any_bytes_are_read_or_refused(wire in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..50) {
            let _ = run(&wire, step);
        }
    }

    #[test]
    fn refusals_keep_their_meaning() {
        for (wire, kind) in [
            (&b"-LOADING Redis is loading\r\n"[..], ErrorKind::Unavailable),
            (b"-NOMASTERLINK Can't SYNC while not connected\r\n", ErrorKind::Unavailable),
            (b"-NOPERM this user has no permissions\r\n", ErrorKind::PermissionDenied),
            (b"-ERR unknown command 'PSYNC'\r\n", ErrorKind::Unsupported),
            (b"+FULLRESYNC x 0\r\n-ERR Unable to perform background save\r\n", ErrorKind::SourceFailed),
            (b"HTTP/1.1 400 Bad Request\r\n", ErrorKind::Corrupt),
        ] {
            assert_eq!(run(wire, 7).unwrap_err().kind(), kind, "{}", String::from_utf8_lossy(wire));
        }
    }
}
