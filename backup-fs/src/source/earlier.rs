//! Archives that a run finished before it died: which of them still are what would be archived, and their place in the walk.
//!
//! An archive holds a stretch of the walk without a gap. It is taken over whole or not at all, so that the archives of a
//! backup, extracted one after the other, give the tree: only if the walk meets exactly the entries that it holds, each
//! with the times, inode, owner and mode it had.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use backup_core::{CancellationToken, Earlier, Item, ItemKind, ItemPath, Result};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::runtime::Handle;

use super::cursor::Cursor;
use super::entry::{Found, Meta, status};
use super::parent::{has_times_of, order};
use super::readahead::{Entries, Job, Stopped, Window};

const FORMAT: u64 = 1;

/// What is left with an archive, to find it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    format: u64,
    /// Who read it: others may be shown other extended attributes.
    user: u32,
    /// Its first and last entry.
    first: ItemPath,
    last: ItemPath,
}

impl Span {
    pub(crate) fn new(first: ItemPath, last: ItemPath) -> Self {
        Self { format: FORMAT, user: rustix::process::geteuid().as_raw(), first, last }
    }

    pub(crate) fn state(&self) -> Option<Value> {
        serde_json::to_value(self).ok()
    }

    /// What was left with an archive, if this run can do something with it.
    fn of(earlier: &Earlier) -> Option<Self> {
        let span: Self = serde_json::from_value(earlier.state.clone()?).ok()?;
        (span == Self::new(span.first.clone(), span.last.clone())).then_some(span)
    }
}

/// The archives in the order of the walk, with their numbers.
pub(crate) fn spans(earlier: &[Earlier]) -> Vec<(usize, Span)> {
    let mut spans: Vec<_> =
        earlier.iter().enumerate().filter_map(|(n, earlier)| Some((n, Span::of(earlier)?))).collect();
    spans.sort_by(|(_, a), (_, b)| order(a.first.as_bytes(), b.first.as_bytes()));
    spans
}

/// Compares a walk with archives.
#[derive(Debug)]
pub(crate) struct Comparison<'a> {
    earlier: &'a [Earlier],
    handle: Handle,
    cancelled: CancellationToken,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    ahead: VecDeque<usize>,
    current: Option<Current>,
    same: Vec<usize>,
}

/// The archive whose entries are met next.
#[derive(Debug)]
struct Current {
    number: usize,
    items: Cursor,
    begun: bool,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(earlier: &'a [Earlier], handle: Handle, cancelled: CancellationToken) -> Self {
        let ahead = spans(earlier).into_iter().map(|(number, _)| number).collect();
        let state = RefCell::new(State { ahead, current: None, same: Vec::new() });
        Self { earlier, handle, cancelled, state }
    }

    /// After the walk: the archives whose entries it met, all of them, and nothing in between.
    pub(crate) fn same(self) -> Vec<usize> {
        // Whatever comes after the last entry ends the archive that is open.
        self.meet(None, |_| false);
        self.state.into_inner().same
    }

    /// An entry of the walk, or its end.
    fn meet(&self, path: Option<&[u8]>, is: impl Fn(&Item) -> bool) {
        let state = &mut *self.state.borrow_mut();
        loop {
            if state.current.is_none() {
                let Some(number) = state.ahead.pop_front() else { return };
                let Some(earlier) = self.earlier.get(number) else { continue };
                let items = Cursor::of(earlier.items.as_ref(), self.handle.clone(), self.cancelled.clone());
                state.current = Some(Current { number, items, begun: false });
            }
            let Some(current) = &mut state.current else { return };
            let (number, begun) = (current.number, current.begun);
            let place = match (current.items.peek(), path) {
                // Its end: the entry, if there is one, lies behind.
                (Ok(None), _) => {
                    if begun {
                        state.same.push(number);
                    }
                    state.current = None;
                    continue;
                }
                // What is left of it is not in the tree, or cannot be read.
                (Ok(Some(_)), None) | (Err(_), _) => {
                    state.current = None;
                    continue;
                }
                (Ok(Some(item)), Some(path)) => (order(item.path.as_bytes(), path), is(item)),
            };
            match place {
                (Ordering::Equal, true) => {
                    current.begun = true;
                    // It was seen to be there.
                    let _ = current.items.take();
                    return;
                }
                // An entry before the archive.
                (Ordering::Greater, _) if !begun => return,
                // One that is gone, that is another, or that is new.
                _ => state.current = None,
            }
        }
    }
}

impl Entries for Comparison<'_> {
    fn push(&self, job: Job) -> Result<(), Stopped> {
        if self.cancelled.is_cancelled() {
            return Err(Stopped);
        }
        let Ok(stat) = status(&job.at) else {
            self.meet(Some(&job.path), |_| false);
            return Ok(());
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => ItemKind::File,
            FileType::Symlink => ItemKind::Symlink,
            FileType::Fifo => ItemKind::Fifo,
            FileType::Directory => ItemKind::Directory,
            // Not archived.
            _ => return Ok(()),
        };
        // What has become a directory since it was listed was not walked.
        let fits = kind != ItemKind::Directory;
        let meta = Meta::of(&stat);
        self.meet(Some(&job.path), |item| fits && is_same(item, kind, &meta));
        Ok(())
    }

    fn push_found(&self, path: Vec<u8>, found: Found) -> Result<(), Stopped> {
        match found {
            Found::Directory(meta) => {
                self.meet(Some(&path), |item| is_same(item, ItemKind::Directory, &meta));
            }
            Found::Note(_) => {}
            _ => self.meet(Some(&path), |_| false),
        }
        Ok(())
    }

    fn complete(&self) {}

    fn stop(&self) {}
}

/// Whether an entry is what an item of an archive records.
fn is_same(item: &Item, kind: ItemKind, meta: &Meta) -> bool {
    let number = |name: &str| item.attributes.get(name).and_then(Value::as_u64);
    item.kind == kind
        && (kind == ItemKind::Directory || meta.links == 1)
        && (kind != ItemKind::File || item.size == meta.size)
        && number("mode") == Some(meta.mode.into())
        && number("uid") == Some(meta.uid.into())
        && number("gid") == Some(meta.gid.into())
        && has_times_of(item, meta)
}

/// A window into which archives that are taken over are put in the place of their entries.
#[derive(Debug)]
pub(crate) struct Spliced<'a> {
    window: &'a Window,
    ahead: Mutex<VecDeque<Ahead>>,
}

#[derive(Debug)]
struct Ahead {
    number: usize,
    span: Span,
    begun: bool,
}

impl<'a> Spliced<'a> {
    pub(crate) fn new(window: &'a Window, spans: Vec<(usize, Span)>) -> Self {
        let ahead = spans.into_iter().map(|(number, span)| Ahead { number, span, begun: false }).collect();
        Self { window, ahead: Mutex::new(ahead) }
    }

    /// Whether an archive holds the entry at `path`. Puts in those that begin there or before.
    fn holds(&self, path: &[u8]) -> Result<bool, Stopped> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(next) = ahead.front_mut() {
            if order(path, next.span.first.as_bytes()) == Ordering::Less {
                return Ok(false);
            }
            self.begin(next)?;
            if order(path, next.span.last.as_bytes()) != Ordering::Greater {
                return Ok(true);
            }
            ahead.pop_front();
        }
        Ok(false)
    }

    fn begin(&self, next: &mut Ahead) -> Result<(), Stopped> {
        if std::mem::replace(&mut next.begun, true) {
            return Ok(());
        }
        self.window.push_found(next.span.first.as_bytes().to_vec(), Found::Earlier(next.number))
    }
}

impl Entries for Spliced<'_> {
    fn push(&self, job: Job) -> Result<(), Stopped> {
        // What is not archived is told of all the same.
        let archived = matches!(job.hint, FileType::RegularFile | FileType::Symlink | FileType::Fifo);
        if self.holds(&job.path)? && archived { Ok(()) } else { self.window.push(job) }
    }

    fn push_found(&self, path: Vec<u8>, found: Found) -> Result<(), Stopped> {
        if matches!(found, Found::Directory(_)) && self.holds(&path)? {
            return Ok(());
        }
        self.window.push_found(path, found)
    }

    fn complete(&self) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        for mut next in ahead.drain(..) {
            if self.begin(&mut next).is_err() {
                return;
            }
        }
        self.window.complete();
    }

    fn stop(&self) {
        self.window.stop();
    }
}
