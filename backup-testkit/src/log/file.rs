//! [`LogFile`]: the datastore.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backup_core::LogPosition;
use chrono::{DateTime, Utc};

use super::{HEADER, LogFileSource, LogState, Place};

/// A datastore that is a log: a directory with one file after the other, to which lines are appended. Cloning
/// gives another handle. All writes go through one handle and its clones; sources may be in other processes.
#[derive(Clone, Debug)]
pub struct LogFile {
    dir: Arc<Path>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    file: File,
    at: Place,
    /// Every line ever appended, with its end.
    lines: Vec<(Vec<u8>, DateTime<Utc>, Place)>,
}

impl LogFile {
    /// An empty log in a directory that exists.
    ///
    /// # Panics
    ///
    /// When the directory cannot be written to.
    pub fn create(dir: impl AsRef<Path>) -> Self {
        let dir: Arc<Path> = dir.as_ref().into();
        let file = begin(&dir, 1);
        let state = State { file, at: Place { file: 1, offset: HEADER }, lines: Vec::new() };
        Self { dir, state: Arc::new(Mutex::new(state)) }
    }

    /// Appends a line, now.
    pub fn append(&self, text: &str) -> LogPosition {
        self.append_at(Utc::now(), text)
    }

    /// Appends a line with a time of its own; returns its end.
    ///
    /// # Panics
    ///
    /// When the file cannot be written to.
    pub fn append_at(&self, time: DateTime<Utc>, text: &str) -> LogPosition {
        let line = format!("{} {text}\n", time.format("%Y-%m-%dT%H:%M:%S%.6fZ")).into_bytes();
        let mut state = self.lock();
        state.file.write_all(&line).expect("the log can be written to");
        state.at.offset += line.len() as u64;
        let at = state.at;
        state.lines.push((line, time, at));
        at.position()
    }

    /// Begins the next file.
    ///
    /// # Panics
    ///
    /// When the file cannot be made.
    pub fn rotate(&self) {
        let mut state = self.lock();
        let number = state.at.file + 1;
        state.file = begin(&self.dir, number);
        state.at = Place { file: number, offset: HEADER };
    }

    /// Removes every file but the one written to, as a store does that keeps its log for a limited time.
    ///
    /// # Panics
    ///
    /// When a file cannot be removed.
    pub fn forget(&self) {
        let state = self.lock();
        for number in numbers(&self.dir).into_iter().filter(|n| *n < state.at.file) {
            std::fs::remove_file(path(&self.dir, number)).expect("an old file can be removed");
        }
    }

    /// Empties the present file, as somebody does who wants space. What was in it is lost to the log, not to the state.
    ///
    /// # Panics
    ///
    /// When the file cannot be emptied.
    pub fn truncate(&self) {
        let mut state = self.lock();
        state.file.set_len(0).expect("the file can be emptied");
        state.at.offset = 0;
    }

    /// The end of the log.
    pub fn position(&self) -> LogPosition {
        self.lock().at.position()
    }

    /// Every line appended up to a moment, that moment included.
    pub fn text_until(&self, time: DateTime<Utc>) -> String {
        self.text(|_, (_, at, _)| *at <= time)
    }

    /// Every line that ends at or before a position.
    ///
    /// # Panics
    ///
    /// When the position is not one of this log.
    pub fn text_to(&self, position: &LogPosition) -> String {
        let end = Place::parse(position).expect("a position of this log");
        self.text(|_, (_, _, at)| *at <= end)
    }

    /// The first lines.
    pub fn text_of(&self, count: usize) -> String {
        self.text(|n, _| n < count)
    }

    /// How many lines were appended.
    pub fn len(&self) -> usize {
        self.lock().lines.len()
    }

    /// Whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn text(&self, keep: impl Fn(usize, &(Vec<u8>, DateTime<Utc>, Place)) -> bool) -> String {
        let state = self.lock();
        let kept = state.lines.iter().enumerate().filter(|(n, line)| keep(*n, line));
        kept.map(|(_, (line, ..))| String::from_utf8_lossy(line).into_owned()).collect()
    }

    /// Its log, to be followed.
    pub fn source(&self) -> LogFileSource {
        LogFileSource::open(&*self.dir)
    }

    /// Its state, to be backed up.
    pub fn state(&self) -> LogState {
        LogState::new(self.clone())
    }

    /// The state and its place in the log at one moment.
    pub(super) fn now(&self) -> (Vec<u8>, LogPosition, Option<DateTime<Utc>>) {
        let state = self.lock();
        let lines = state.lines.iter().flat_map(|(line, ..)| line.iter().copied()).collect();
        (lines, state.at.position(), state.lines.last().map(|(_, time, _)| *time))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("log.{number:016x}"))
}

pub(super) fn header(number: u64) -> String {
    format!("#log {number:016x}\n")
}

/// The numbers of the files that are there, ascending.
pub(super) fn numbers(dir: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let number = |entry: std::fs::DirEntry| {
        u64::from_str_radix(entry.file_name().to_str()?.strip_prefix("log.")?, 16).ok()
    };
    let mut numbers: Vec<u64> = entries.filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

fn begin(dir: &Path, number: u64) -> File {
    // The header is there as soon as the file is.
    let new = dir.join("new");
    std::fs::write(&new, header(number)).expect("the directory can be written to");
    std::fs::rename(&new, path(dir, number)).expect("the file can be renamed");
    OpenOptions::new().append(true).open(path(dir, number)).expect("the file can be opened")
}
