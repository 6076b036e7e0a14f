//! [`LogFileSource`]: tails the files of a log.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind as Io, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use backup_core::{
    Artifact, ArtifactMeta, Bytes, CancellationToken, Cut, CutRequest, Error, ErrorKind, LogPosition,
    LogSource, Outcome, Proof, Recipe, Result, Snapshot, SourceReport, log_gap,
};
use chrono::{DateTime, Utc};
use futures::StreamExt as _;

use super::file::{header, numbers, path};
use super::{ENTRIES, HEADER, LINES, Place, prove, time_of};

/// The log of a [`LogFile`](super::LogFile), read from its files alone.
///
/// An artifact is the lines of one file, `lines-<file>-<offset>`. A file that was emptied, or removed before it was
/// read to its end, is a gap. What a [`release`](LogSource::release) frees is only remembered, for tests to look at.
#[derive(Clone, Debug)]
pub struct LogFileSource {
    dir: Arc<Path>,
    released: Arc<Mutex<Option<LogPosition>>>,
}

/// Lines of one file.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: Place,
    end: u64,
}

/// What was found behind a position.
struct Scan {
    pieces: Vec<Piece>,
    to: Place,
    times: Option<(DateTime<Utc>, DateTime<Utc>)>,
    bytes: u64,
}

impl LogFileSource {
    /// The log in this directory.
    pub fn open(dir: impl AsRef<Path>) -> Self {
        Self { dir: dir.as_ref().into(), released: Arc::default() }
    }

    /// Up to where the log need not be kept, as the last release said.
    pub fn released(&self) -> Option<LogPosition> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads on from `from`, until there are `goal` bytes, or `to` is reached, or there is nothing more.
    fn scan(&self, from: &LogPosition, goal: u64, to: Option<Place>) -> Result<Scan> {
        let first = Place::parse(from)?;
        let files = numbers(&self.dir);
        let mut scan = Scan { pieces: Vec::new(), to: first, times: None, bytes: 0 };
        for number in first.file.. {
            if to.is_some_and(|to| scan.to >= to) {
                break;
            }
            let start = if number == first.file { first.offset } else { HEADER };
            let start = Place { file: number, offset: start };
            // Looked for before reading: a file that has a successor is complete.
            let complete = files.contains(&(number + 1));
            let mut reader = self.reader(start, from)?;
            let mut offset = start.offset;
            let mut line = Vec::new();
            let limit = to.filter(|to| to.file == number).map(|to| to.offset);
            let mut enough = false;
            while !enough && limit.is_none_or(|limit| offset < limit) {
                line.clear();
                reader.read_until(b'\n', &mut line).map_err(|e| Error::io("read log", e))?;
                if !line.ends_with(b"\n") {
                    break;
                }
                let time = time_of(&line)?;
                let (since, until) = scan.times.unwrap_or((time, time));
                scan.times = Some((since.min(time), until.max(time)));
                offset += line.len() as u64;
                scan.bytes += line.len() as u64;
                enough = scan.bytes >= goal;
            }
            if offset > start.offset {
                scan.pieces.push(Piece { start, end: offset });
            }
            scan.to = Place { file: number, offset };
            if enough || !complete {
                break;
            }
            if limit.is_none() {
                // So that the file may go once this is stored.
                scan.to = Place { file: number + 1, offset: HEADER };
            }
        }
        Ok(scan)
    }

    /// Opens a file at a place between two lines.
    fn reader(&self, at: Place, from: &LogPosition) -> Result<BufReader<File>> {
        let mut file = match File::open(path(&self.dir, at.file)) {
            Ok(file) => file,
            Err(error) if error.kind() == Io::NotFound => return Err(log_gap("read log", from)),
            Err(error) => return Err(Error::io("read log", error)),
        };
        let mut begin = vec![0; header(at.file).len()];
        let whole = file.read_exact(&mut begin).is_ok() && begin == header(at.file).as_bytes();
        let mut before = [0];
        let between = at.offset >= HEADER
            && file.seek(SeekFrom::Start(at.offset - 1)).is_ok()
            && file.read_exact(&mut before).is_ok()
            && before == *b"\n";
        if whole && between { Ok(BufReader::new(file)) } else { Err(log_gap("read log", from)) }
    }
}

#[async_trait]
impl LogSource for LogFileSource {
    fn kind(&self) -> &'static str {
        "log-file"
    }

    async fn cut(&self, request: CutRequest<'_>) -> Result<Option<Cut>> {
        let scan = self.scan(request.from, request.bytes, None)?;
        Ok(scan.times.map(|(from_time, to_time)| Cut {
            from: request.from.clone(),
            to: scan.to.position(),
            from_time,
            to_time,
            full: scan.bytes >= request.bytes,
        }))
    }

    async fn slice(&self, slice: &Cut, cancelled: CancellationToken) -> Result<Box<dyn Snapshot>> {
        let to = Place::parse(&slice.to)?;
        let scan = self.scan(&slice.from, u64::MAX, Some(to))?;
        let reached = if scan.to < to && to.offset == HEADER { to } else { scan.to };
        if reached != to {
            return Err(log_gap("read log", &slice.from));
        }
        Ok(Box::new(Taking {
            source: self.clone(),
            from: slice.from.clone(),
            rest: scan.pieces.into_iter(),
            to: slice.to.clone(),
            shared: Arc::default(),
            given: 0,
            cancelled,
        }))
    }

    async fn release(&self, position: &LogPosition) -> Result<()> {
        *self.released.lock().unwrap_or_else(PoisonError::into_inner) = Some(position.clone());
        Ok(())
    }
}

/// A slice being taken.
struct Taking {
    source: LogFileSource,
    from: LogPosition,
    rest: std::vec::IntoIter<Piece>,
    to: LogPosition,
    shared: Arc<Mutex<Read>>,
    given: usize,
    cancelled: CancellationToken,
}

/// What was read to its end.
#[derive(Default)]
struct Read {
    proof: Proof,
    pieces: usize,
}

#[async_trait]
impl Snapshot for Taking {
    async fn next(&mut self) -> Result<Option<Artifact>> {
        let Some(piece) = self.rest.next() else { return Ok(None) };
        let reader = self.source.reader(piece.start, &self.from)?;
        let left = piece.end - piece.start.offset;
        let name = format!("lines-{:016x}-{:016x}", piece.start.file, piece.start.offset);
        let shared = Arc::clone(&self.shared);
        let cancelled = self.cancelled.clone();
        self.given += 1;
        let data = futures::stream::try_unfold((reader, left), move |(mut reader, left)| {
            let (shared, cancelled) = (Arc::clone(&shared), cancelled.clone());
            async move {
                if cancelled.is_cancelled() {
                    return Err(Error::cancelled("read log"));
                }
                if left == 0 {
                    shared.lock().unwrap_or_else(PoisonError::into_inner).pieces += 1;
                    return Ok(None);
                }
                // Whole lines of some kilobytes, so that each is proved while it flows.
                let (mut chunk, mut left) = (Vec::new(), left);
                while left > 0 && chunk.len() < 64 * 1024 {
                    let read = reader.read_until(b'\n', &mut chunk).map_err(|e| Error::io("read log", e))?;
                    if read == 0 || read as u64 > left {
                        return Err(Error::new(ErrorKind::LogGap, "read log")
                            .message("the file was changed while it was read"));
                    }
                    left -= read as u64;
                }
                shared.lock().unwrap_or_else(PoisonError::into_inner).proof.merge(&prove(&chunk));
                Ok(Some((Bytes::from(chunk), (reader, left))))
            }
        });
        let meta = ArtifactMeta::new(name, LINES).size_hint(left);
        Ok(Some(Artifact { meta, data: data.boxed() }))
    }

    async fn finish(&mut self) -> Result<SourceReport> {
        let read = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if read.pieces < self.given || self.rest.len() > 0 {
            return Err(
                Error::new(ErrorKind::SourceFailed, "read log").message("the slice was not read to its end")
            );
        }
        Ok(SourceReport {
            log_position: Some(self.to.clone()),
            proofs: [(ENTRIES.to_owned(), read.proof)].into(),
            recipe: Recipe { joined: Some("cat >> state.lines".to_owned()), ..Recipe::default() },
            ..SourceReport::default()
        })
    }

    async fn close(self: Box<Self>, _outcome: Outcome) -> Result<()> {
        Ok(())
    }
}
