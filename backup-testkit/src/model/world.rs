//! The model: what lies on the sinks, what everybody is doing, and what may not happen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use backup_core::{BackupId, Bytes, Digest, Key, Manifest, SetName, encode_segment};
use tokio::sync::{Notify, oneshot};

use super::content::Content;
use super::gate::Fate;
use crate::Operation;

/// Calls remembered for the report of a failure.
const TRACE: usize = 1500;

/// What an operation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verb {
    Backup,
    Prune,
    Replicate,
    Rotate,
    Sweep,
    Verify,
    Restore,
    List,
    Pin,
    Unpin,
}

/// A call that waits for the scheduler. Ordered by who asks for what, so that the order of arrival, which
/// threads may change, decides nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Call {
    pub(super) op: u64,
    pub(super) sink: usize,
    pub(super) operation: Operation,
    pub(super) key: Key,
    number: u64,
}

/// An operation that was begun.
#[derive(Debug)]
struct Op {
    verb: Verb,
    /// Its calls pass at once and without faults.
    calm: bool,
    /// Its process was killed: no call of it ever happens again.
    dead: bool,
    /// What a backup holds.
    content: Option<Content>,
    /// The backup whose manifest it wrote.
    wrote: Option<BackupId>,
    /// Whether it cannot know that its manifest was written.
    unsure: bool,
}

/// A backup that has, or had, a manifest.
#[derive(Debug)]
pub(super) struct Known {
    /// The operation that made it. An incremental may copy its parent to a sink, too.
    by: u64,
    bytes: Bytes,
    manifest: Manifest,
    pub(super) content: Content,
    /// Its verb said that it was done, and complete.
    confirmed: bool,
}

impl Known {
    fn needs(&self) -> BTreeSet<BackupId> {
        let parent = match self.manifest.kind {
            backup_core::BackupKind::Incremental { parent } => Some(parent),
            _ => None,
        };
        self.manifest.references.iter().copied().chain(parent).collect()
    }
}

/// The part of a backup that an object is.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Manifest,
    /// `pending.json`, `pinned.json`, and what lies in `condemned/`.
    Marker,
    Wrap,
    Object(String),
}

#[derive(Debug)]
pub(super) struct World {
    set: Key,
    /// How many backups every prune keeps.
    keep: usize,
    pub(super) arrived: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<Call, oneshot::Sender<Fate>>,
    calls: u64,
    ops: BTreeMap<u64, Op>,
    /// What lies on each sink.
    sinks: Vec<BTreeMap<Key, Bytes>>,
    known: BTreeMap<BackupId, Known>,
    /// Copies that a prune deleted, as it may.
    pruned: BTreeSet<(usize, BackupId)>,
    /// Copies whose last key wrap was deleted, and by whom. One who goes on must have put another there.
    wrapless: BTreeSet<(u64, usize, BackupId)>,
    /// Pins that were set.
    pins: BTreeSet<BackupId>,
    trace: VecDeque<String>,
    broken: Vec<String>,
}

impl World {
    pub(super) fn new(set: &SetName, sinks: usize, keep: usize) -> Self {
        let segments: Vec<String> =
            set.as_str().split('/').map(|part| encode_segment(part.as_bytes())).collect();
        let key = Key::parse(segments.join("/")).expect("the name of a set makes a key");
        let state = State { sinks: vec![BTreeMap::new(); sinks], ..State::default() };
        Self { set: key, keep, arrived: Notify::new(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation and returns its number.
    pub(super) fn begin(&self, verb: Verb, calm: bool, content: Option<Content>) -> u64 {
        let mut state = self.state();
        let number = state.ops.len() as u64;
        let op = Op { verb, calm, dead: false, content, wrote: None, unsure: false };
        state.note(format!("#{number} {verb:?} begins{}", if calm { ", calm" } else { "" }));
        state.ops.insert(number, op);
        number
    }

    /// From now on the process of this operation is dead.
    pub(super) fn kill(&self, op: u64) {
        let mut state = self.state();
        if let Some(op) = state.ops.get_mut(&op) {
            op.dead = true;
        }
        // Who waited for these waits for ever, or until its own patience ends.
        state.waiting.retain(|call, _| call.op != op);
        state.note(format!("#{op} is killed"));
    }

    pub(super) fn say(&self, what: String) {
        self.state().note(what);
    }

    /// Waits until the scheduler says what becomes of a call.
    pub(super) async fn pass(&self, op: u64, sink: usize, operation: Operation, key: &Key) -> Fate {
        let answer = {
            let mut state = self.state();
            let Some(known) = state.ops.get(&op) else { return Fate::Hang };
            if known.calm {
                return Fate::Go { page: usize::MAX };
            }
            if known.dead {
                return Fate::Hang;
            }
            state.calls += 1;
            let call = Call { op, sink, operation, key: key.clone(), number: state.calls };
            let (send, receive) = oneshot::channel();
            state.waiting.insert(call, send);
            receive
        };
        self.arrived.notify_one();
        // A killed operation's answer never comes.
        answer.await.unwrap_or(Fate::Hang)
    }

    /// The calls that wait now.
    pub(super) fn waiting(&self) -> Vec<Call> {
        let mut state = self.state();
        // Callers that gave up.
        state.waiting.retain(|_, answer| !answer.is_closed());
        state.waiting.keys().cloned().collect()
    }

    /// Lets a call go on.
    pub(super) fn answer(&self, call: &Call, fate: Fate) {
        let mut state = self.state();
        let Some(answer) = state.waiting.remove(call) else { return };
        let Call { op, sink, operation, key, .. } = call;
        let words = match fate {
            Fate::Go { .. } => String::new(),
            other => format!(" → {other:?}"),
        };
        let clean = State::clean(key);
        state.note(format!("#{op} s{sink} {operation:?} {clean}{words}"));
        if matches!(fate, Fate::LostReply { .. })
            && key.file_name() == "manifest.json"
            && let Some(op) = state.ops.get_mut(op)
        {
            op.unsure = true;
        }
        let _ = answer.send(fate);
    }

    /// What was found broken so far, and the last calls before.
    pub(super) fn broken(&self) -> Option<String> {
        let state = self.state();
        (!state.broken.is_empty()).then(|| {
            let trace: Vec<_> = state.trace.iter().map(String::as_str).collect();
            format!("{}\n\n{}", trace.join("\n"), state.broken.join("\n"))
        })
    }

    pub(super) fn fail(&self, what: String) {
        self.state().broken.push(what);
    }

    fn part(&self, key: &Key) -> Option<(BackupId, Part)> {
        let below = key.strip_prefix(&self.set)?;
        let mut segments = below.segments();
        let id = segments.next()?.parse().ok()?;
        let part = match (segments.next()?, segments.next()) {
            ("manifest.json", None) => Part::Manifest,
            ("pending.json" | "pinned.json", None) | ("condemned", Some(_)) => Part::Marker,
            ("keys", Some(_)) => Part::Wrap,
            (name, None) => Part::Object(name.to_owned()),
            _ => return None,
        };
        Some((id, part))
    }

    fn key(&self, id: BackupId, name: &str) -> Key {
        Key::parse(format!("{}/{id}/{}", self.set, encode_segment(name.as_bytes()))).expect("a key")
    }

    /// An object became visible.
    pub(super) fn put(&self, op: u64, sink: usize, key: &Key, bytes: &Bytes) {
        let mut state = self.state();
        let Some((id, part)) = self.part(key) else { return };
        state.sinks[sink].insert(key.clone(), bytes.clone());
        match part {
            Part::Manifest => self.manifest(&mut state, op, sink, id, bytes),
            Part::Object(name) if state.sinks[sink].contains_key(&self.key(id, "manifest.json")) => {
                let right = state.known.get(&id).is_some_and(|known| {
                    known.manifest.objects().any(|(object, _, sha256)| {
                        encode_segment(object.as_bytes()) == name && sha256 == Digest::of(bytes)
                    })
                });
                if !right {
                    state.break_rule(
                        op,
                        sink,
                        key,
                        "an object of a finished backup was written anew, with other bytes",
                    );
                }
            }
            _ => {}
        }
    }

    fn manifest(&self, state: &mut State, op: u64, sink: usize, id: BackupId, bytes: &Bytes) {
        let key = self.key(id, "manifest.json");
        if !state.known.contains_key(&id) {
            let text = String::from_utf8(bytes.to_vec()).unwrap_or_default();
            let document = text.trim_end().rsplit_once('\n').map_or("", |(document, _)| document);
            let content = state.ops.get(&op).and_then(|op| op.content.clone());
            if let (Ok(manifest), Some(content)) = (serde_json::from_str::<Manifest>(document), content) {
                let known = Known { by: op, bytes: bytes.clone(), manifest, content, confirmed: false };
                state.known.insert(id, known);
            }
        }
        let Some(known) = state.known.get(&id) else {
            return state.break_rule(op, sink, &key, "this is no manifest that a backup wrote");
        };
        let mut wrong = Vec::new();
        if known.bytes != *bytes {
            wrong.push("another manifest of the same backup".to_owned());
        }
        let here = &state.sinks[sink];
        for (name, size, sha256) in known.manifest.objects() {
            match here.get(&self.key(id, &name)) {
                None => wrong.push(format!("{name} is not there")),
                Some(there) if there.len() as u64 != size || Digest::of(there) != sha256 => {
                    wrong.push(format!("{name} has other bytes"));
                }
                Some(_) => {}
            }
        }
        if self.wraps(here, id) == 0 {
            wrong.push("no key wrap is there".to_owned());
        }
        for needed in known.needs() {
            if !here.contains_key(&self.key(needed, "manifest.json")) {
                wrong.push(format!("{needed}, which it needs, is not there"));
            }
        }
        if known.by == op
            && let Some(op) = state.ops.get_mut(&op)
        {
            op.wrote = Some(id);
        }
        for what in wrong {
            state.break_rule(op, sink, &key, &format!("listed, but {what}"));
        }
    }

    fn wraps(&self, here: &BTreeMap<Key, Bytes>, id: BackupId) -> usize {
        let directory = self.key(id, "keys");
        here.keys().filter(|key| key.strip_prefix(&directory).is_some()).count()
    }

    /// An object is gone.
    pub(super) fn deleted(&self, op: u64, sink: usize, key: &Key) {
        let mut state = self.state();
        let Some((id, part)) = self.part(key) else { return };
        if state.sinks[sink].remove(key).is_none() {
            return;
        }
        let finished = state.sinks[sink].contains_key(&self.key(id, "manifest.json"));
        match part {
            Part::Manifest => self.backup_deleted(&mut state, op, sink, id, key),
            Part::Wrap if finished && self.wraps(&state.sinks[sink], id) == 0 => {
                state.wrapless.insert((op, sink, id));
            }
            Part::Object(_) if finished => {
                state.break_rule(op, sink, key, "an object of a finished backup was deleted");
            }
            _ => {}
        }
    }

    fn backup_deleted(&self, state: &mut State, op: u64, sink: usize, id: BackupId, key: &Key) {
        let here = &state.sinks[sink];
        let held: Vec<(BackupId, &Known)> = state
            .known
            .iter()
            .filter(|(id, _)| here.contains_key(&self.key(**id, "manifest.json")))
            .map(|(id, known)| (*id, known))
            .collect();
        let mut wrong = Vec::new();
        if state.ops.get(&op).is_none_or(|op| op.verb != Verb::Prune) {
            wrong.push("a finished backup was deleted, and not by a prune".to_owned());
        }
        wrong.extend(
            held.iter()
                .filter(|(_, known)| known.needs().contains(&id))
                .map(|(other, _)| format!("a backup was deleted that {other} needs")),
        );
        if state.pins.contains(&id) && here.contains_key(&self.key(id, "pinned.json")) {
            wrong.push("a pinned backup was deleted".to_owned());
        }
        let newer = held.iter().filter(|(other, _)| *other > id).count();
        let confirmed = state.known.get(&id).is_some_and(|known| known.confirmed);
        if newer < if confirmed { self.keep } else { 1 } {
            wrong.push(format!("a backup was deleted although only {newer} are newer"));
        }
        state.pruned.insert((sink, id));
        for what in wrong {
            state.break_rule(op, sink, key, &what);
        }
    }

    /// Checks how a backup says it ended. `copies` are the sinks where it says it is.
    pub(super) fn backed_up(&self, op: u64, id: BackupId, copies: &[usize], complete: bool) {
        let mut state = self.state();
        let key = self.key(id, "manifest.json");
        for sink in copies {
            if !state.sinks[*sink].contains_key(&key) && !state.pruned.contains(&(*sink, id)) {
                state.break_rule(op, *sink, &key, "said to be backed up there, and is not");
            }
        }
        match state.known.get_mut(&id) {
            Some(known) => known.confirmed |= complete,
            None => state.break_rule(op, 0, &key, "said to be backed up, and was never anywhere"),
        }
    }

    /// Checks a backup that says it failed.
    pub(super) fn not_backed_up(&self, op: u64, why: &str) {
        let mut state = self.state();
        if let Some((id, false)) = state.ops.get(&op).and_then(|op| Some((op.wrote?, op.unsure))) {
            let key = self.key(id, "manifest.json");
            state.break_rule(op, 0, &key, &format!("the backup failed, and is listed all the same: {why}"));
        }
    }

    /// Checks what an operation that succeeded has left.
    pub(super) fn succeeded(&self, op: u64) {
        let mut state = self.state();
        let gone: Vec<_> = state.wrapless.iter().filter(|(by, ..)| *by == op).copied().collect();
        for (_, sink, id) in gone {
            let here = &state.sinks[sink];
            if here.contains_key(&self.key(id, "manifest.json")) && self.wraps(here, id) == 0 {
                let key = self.key(id, "keys");
                state.break_rule(op, sink, &key, "the last key wrap of a finished backup is gone");
            }
        }
    }

    /// Backups with a manifest on a sink.
    pub(super) fn held(&self, sink: usize) -> Vec<BackupId> {
        let state = self.state();
        let on = |id: &&BackupId| state.sinks[sink].contains_key(&self.key(**id, "manifest.json"));
        state.known.keys().filter(on).copied().collect()
    }

    /// What a backup holds.
    pub(super) fn content(&self, id: BackupId) -> Option<Content> {
        self.state().known.get(&id).map(|known| known.content.clone())
    }

    pub(super) fn pinned(&self, id: BackupId) {
        self.state().pins.insert(id);
    }

    pub(super) fn unpinned(&self, id: BackupId) {
        self.state().pins.remove(&id);
    }

    pub(super) fn pins(&self) -> Vec<BackupId> {
        self.state().pins.iter().copied().collect()
    }

    /// What lies on a sink beside whole backups: half ones, and markers of running operations.
    pub(super) fn debris(&self, sink: usize) -> Vec<Key> {
        let state = self.state();
        let here = &state.sinks[sink];
        let is_debris = |key: &&Key| match self.part(key) {
            Some((id, part)) => {
                !here.contains_key(&self.key(id, "manifest.json"))
                    || (part == Part::Marker && key.file_name() != "pinned.json")
            }
            None => false,
        };
        here.keys().filter(is_debris).cloned().collect()
    }

    /// Every backup that has, or had, a manifest.
    pub(super) fn known(&self) -> Vec<BackupId> {
        self.state().known.keys().copied().collect()
    }

    /// How many backups ever were listed.
    pub(super) fn backups(&self) -> u64 {
        self.state().known.len() as u64
    }

    /// Sink calls that were let through.
    pub(super) fn calls(&self) -> u64 {
        self.state().calls
    }
}

impl State {
    fn note(&mut self, what: String) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(what);
    }

    /// A key without the name of the set.
    fn clean(key: &Key) -> String {
        let mut segments: Vec<&str> = key.segments().collect();
        if let Some(at) = segments.iter().position(|segment| segment.parse::<BackupId>().is_ok()) {
            segments.drain(..at);
        }
        segments.join("/")
    }

    fn break_rule(&mut self, op: u64, sink: usize, key: &Key, what: &str) {
        let verb = self.ops.get(&op).map(|op| op.verb);
        let line = format!("BROKEN by #{op} ({verb:?}) on s{sink}: {what}: {}", Self::clean(key));
        self.note(line.clone());
        self.broken.push(line);
    }
}
