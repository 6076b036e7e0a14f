//! The scheduler: who does what next, which call goes through, and what becomes of it.

use std::time::Duration;

use backup_core::{BackupId, Hasher, Result};
use chrono::TimeDelta;
use tokio::task::JoinHandle;

use super::ModelReport;
use super::content::{self, Content};
use super::gate::Fate;
use super::verbs::{Site, Task};
use super::world::{Call, Verb};
use crate::Operation;
use crate::retention::Random;

/// Longest that the clocks move while one operation is under way: markers last for a day.
const LONGEST: TimeDelta = TimeDelta::hours(10);
/// Operations between two moments at which everything ends and is looked at.
const ROUND: u64 = 50;
/// Turns without any call before a run counts as hanging.
const PATIENCE: u32 = 2_000;

/// Someone who does one thing after the other.
struct Actor {
    role: Role,
    /// How wrong their clock is.
    skew: TimeDelta,
    /// How readily their calls are let through just now.
    weight: u64,
    content: Content,
    running: Option<Running>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Writer,
    Pruner,
    Replicator,
    Keeper,
}

struct Running {
    op: u64,
    handle: JoinHandle<Result<()>>,
    /// How far the clocks moved meanwhile.
    moved: TimeDelta,
}

/// How faulty the sinks are just now.
#[derive(Clone, Copy, Default)]
struct Weather {
    /// Faulty calls in a thousand.
    per_mille: u64,
    /// A sink that fails every call.
    down: Option<usize>,
}

pub(super) struct Scheduler {
    pub(super) site: Site,
    random: Random,
    actors: Vec<Actor>,
    weather: Weather,
    begun: u64,
    killed: u64,
    faults: u64,
    steps: u64,
    order: Hasher,
}

impl Scheduler {
    pub(super) fn new(site: Site, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let roles = [Role::Writer, Role::Writer, Role::Pruner, Role::Replicator, Role::Keeper];
        let actors = roles
            .into_iter()
            .map(|role| {
                let mut content = Content::new();
                for _ in 0..3 {
                    content::change(&mut content, &mut random);
                }
                let skew = TimeDelta::seconds(random.signed(2 * 86_400) - 86_400);
                Actor { role, skew, weight: 1, content, running: None }
            })
            .collect();
        Self {
            site,
            random,
            actors,
            weather: Weather::default(),
            begun: 0,
            killed: 0,
            faults: 0,
            steps: 0,
            order: Hasher::new(),
        }
    }

    /// Runs so many operations; `Err` says what was broken.
    pub(super) async fn run(mut self, operations: u64) -> Result<ModelReport, String> {
        let mut rounds = 0;
        while self.begun < operations {
            let until = (self.begun + ROUND).min(operations);
            self.round(until).await?;
            rounds += 1;
            if rounds % 3 == 0 || self.begun >= operations {
                self.recover().await?;
            } else {
                self.look().await?;
            }
            let days = self.random.signed(4 * 24 * 60);
            self.site.clock.advance(TimeDelta::minutes(days));
        }
        Ok(ModelReport {
            operations: self.begun,
            calls: self.site.world.calls(),
            faults: self.faults,
            killed: self.killed,
            backups: self.site.world.backups(),
            order: self.order.finish(),
        })
    }

    /// Begins operations until `until` were begun, and lets all of them end.
    async fn round(&mut self, until: u64) -> Result<(), String> {
        let mut idle = 0;
        loop {
            // Time stands still while anything can go on: whoever waits now waits for us, or for time to pass.
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.ended();
            if let Some(broken) = self.site.world.broken() {
                return Err(broken);
            }
            if self.begun < until {
                self.begin();
            }
            self.change_weather();
            let waiting = self.site.world.waiting();
            if waiting.is_empty() {
                if self.begun >= until && self.actors.iter().all(|actor| actor.running.is_none()) {
                    return Ok(());
                }
                idle += 1;
                if idle > PATIENCE {
                    self.site.world.fail("operations hang".to_owned());
                }
                let _ = tokio::time::timeout(Duration::from_millis(500), self.site.world.arrived.notified())
                    .await;
                continue;
            }
            idle = 0;
            let call = self.choose(&waiting);
            let fate = self.fate(&call);
            self.steps += 1;
            self.order
                .update(format!("{} {} {:?} {fate:?}\n", call.op, call.sink, call.operation).as_bytes());
            if self.random.below(4000) < 3 {
                self.crash(call.op);
                continue;
            }
            self.site.world.answer(&call, fate);
        }
    }

    /// Takes the results of operations that ended, and moves the clocks.
    fn ended(&mut self) {
        let mut ended = 0;
        for actor in &mut self.actors {
            if actor.running.as_ref().is_some_and(|running| running.handle.is_finished()) {
                actor.running = None;
                ended += 1;
            }
        }
        for _ in 0..ended {
            let minutes = match self.random.below(3) {
                0 => 0,
                1 => self.random.signed(60),
                _ => self.random.signed(9 * 60),
            };
            let seconds = 2 + self.random.signed(20);
            self.advance(TimeDelta::minutes(minutes) + TimeDelta::seconds(seconds));
        }
    }

    /// Moves the clocks, but not so far that a running operation's markers could have run out.
    fn advance(&mut self, by: TimeDelta) {
        let running = self.actors.iter().filter_map(|actor| actor.running.as_ref());
        let room = running.map(|running| LONGEST - running.moved).min().unwrap_or(LONGEST);
        let by = by.min(room).max(TimeDelta::seconds(2));
        for running in self.actors.iter_mut().filter_map(|actor| actor.running.as_mut()) {
            running.moved += by;
        }
        self.site.clock.advance(by);
    }

    /// Gives an idle actor something to do.
    fn begin(&mut self) {
        let idle: Vec<usize> = (0..self.actors.len())
            .filter(|n| self.actors.get(*n).is_some_and(|a| a.running.is_none()))
            .collect();
        if idle.is_empty() || self.random.below(6) > 0 {
            return;
        }
        let chosen = idle[self.below(idle.len())];
        let known: Vec<BackupId> = self.site.world.known();
        let (role, skew) =
            self.actors.get(chosen).map_or((Role::Keeper, TimeDelta::zero()), |a| (a.role, a.skew));
        let some = if known.is_empty() { None } else { Some(known[self.below(known.len())]) };
        let task = match (role, some) {
            (Role::Writer, _) => {
                let Some(actor) = self.actors.get_mut(chosen) else { return };
                content::change(&mut actor.content, &mut self.random);
                Task::Backup { content: actor.content.clone(), incremental: self.random.below(3) > 0 }
            }
            (Role::Pruner, _) => Task::Prune { mass: self.random.below(2) == 0 },
            (Role::Replicator, Some(id)) if self.random.below(3) == 0 => {
                Task::Replicate { only: Some(id), verify: self.random.below(3) == 0 }
            }
            (Role::Replicator, _) => Task::Replicate { only: None, verify: self.random.below(3) == 0 },
            (Role::Keeper, some) => self.upkeep(some),
        };
        if matches!(task, Task::Rotate) {
            // New backups first.
            self.site.key = self.site.key.saturating_add(1);
        }
        let op = self.site.world.begin(task.verb(), false, task.content());
        let handle = tokio::spawn(self.site.clone().run(op, skew, task));
        self.begun += 1;
        if let Some(actor) = self.actors.get_mut(chosen) {
            actor.running = Some(Running { op, handle, moved: TimeDelta::zero() });
        }
    }

    fn upkeep(&mut self, some: Option<BackupId>) -> Task {
        let pins = self.site.world.pins();
        let unpinned = pins.first().copied();
        match (self.random.below(12), some, unpinned) {
            (0..2, ..) if self.site.key < 100 => Task::Rotate,
            (2..4, ..) => Task::Sweep,
            (4, Some(id), _) => Task::Verify(id),
            (5..8, Some(id), _) => Task::Restore(id),
            (8, Some(id), _) if pins.len() < 2 => Task::Pin(id),
            (9, _, Some(id)) => Task::Unpin(id),
            (10, ..) => Task::Prune { mass: false },
            _ => Task::List,
        }
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.random.below(n as u64)).unwrap_or(0)
    }

    /// The call to go on: by actor first, so that one with many calls at once is no faster, and some actors are
    /// slower than others for a while.
    fn choose(&mut self, waiting: &[Call]) -> Call {
        if self.steps.is_multiple_of(64) {
            for actor in &mut self.actors {
                actor.weight = [1, 1, 4, 16][usize::try_from(self.random.below(4)).unwrap_or(0)];
            }
        }
        let weight = |op: u64| {
            let actor = self.actors.iter().find(|a| a.running.as_ref().is_some_and(|r| r.op == op));
            actor.map_or(2, |actor| actor.weight)
        };
        let mut ops: Vec<(u64, u64)> = waiting.iter().map(|call| (call.op, weight(call.op))).collect();
        ops.dedup();
        let total = ops.iter().map(|(_, weight)| weight).sum();
        let mut left = self.random.below(total);
        let chosen = ops.iter().find(|(_, weight)| {
            let found = left < *weight;
            left = left.saturating_sub(*weight);
            found
        });
        let op = chosen.map_or(waiting[0].op, |(op, _)| *op);
        let of: Vec<&Call> = waiting.iter().filter(|call| call.op == op).collect();
        of[self.below(of.len())].clone()
    }

    fn change_weather(&mut self) {
        if self.random.below(400) > 0 {
            return;
        }
        let down = self.below(self.site.sinks.len());
        self.weather = match self.random.below(6) {
            0..2 => Weather::default(),
            2..4 => Weather { per_mille: 8, down: None },
            4 => Weather { per_mille: 40, down: None },
            _ => Weather { per_mille: 5, down: Some(down) },
        };
    }

    fn fate(&mut self, call: &Call) -> Fate {
        // Always as many numbers, so that one fault more or less does not change what comes after.
        let (chance, kind, page) = (self.random.below(1000), self.random.below(8), self.random.below(6));
        let go = Fate::Go { page: [3, 10, 1000, 1000, 1000, 1000][usize::try_from(page).unwrap_or(5)] };
        if self.weather.down == Some(call.sink) {
            self.faults += 1;
            return Fate::Fail { retryable: kind < 4 };
        }
        if chance >= self.weather.per_mille {
            return go;
        }
        self.faults += 1;
        match (kind, call.operation) {
            (0 | 1, _) => Fate::Fail { retryable: true },
            (2, _) => Fate::Fail { retryable: false },
            // A stream that was finished cannot be finished again: no adapter calls that worth a retry.
            (3..=5, operation) => Fate::LostReply { retryable: kind == 5 && operation != Operation::Finish },
            (6, _) => Fate::Cut,
            _ => Fate::Hang,
        }
    }

    /// Ends an operation without warning: its process is killed, or its future dropped.
    fn crash(&mut self, op: u64) {
        let Some(actor) = self.actors.iter_mut().find(|a| a.running.as_ref().is_some_and(|r| r.op == op))
        else {
            return;
        };
        let Some(running) = actor.running.take() else { return };
        self.killed += 1;
        if self.random.below(3) > 0 {
            self.site.world.kill(op);
        } else {
            self.site.world.say(format!("#{op} is dropped"));
            running.handle.abort();
        }
    }

    /// With nobody at work: everything that is listed anywhere is whole there, and the right bytes.
    async fn look(&mut self) -> Result<(), String> {
        let op = self.site.world.begin(Verb::Restore, true, None);
        let repo = self.site.all(op, TimeDelta::zero());
        match repo.backups(&self.site.set).await {
            Ok(list) => {
                for bad in &list.unreadable {
                    self.site.world.fail(format!("{} cannot be opened: {}", bad.id, bad.error.chain()));
                }
            }
            Err(error) => self.site.world.fail(format!("the set cannot be listed: {}", error.chain())),
        }
        for sink in 0..self.site.sinks.len() {
            // With every key: a rotation may have been stopped on its way.
            let repo = self.site.one(op, sink);
            for id in self.site.world.held(sink) {
                if let Err(error) = self.site.restore(&repo, op, id).await {
                    self.site
                        .world
                        .fail(format!("{id} does not restore from s{sink} alone: {}", error.chain()));
                }
            }
        }
        self.site.world.broken().map_or(Ok(()), Err)
    }

    /// With nobody at work, good sinks, and the longest time that any marker counts gone by: the verbs alone, without
    /// anybody's help, make everything whole and tidy on all sinks, and new backups succeed.
    async fn recover(&mut self) -> Result<(), String> {
        self.look().await?;
        self.site.clock.advance(TimeDelta::days(6));
        self.site.world.say("everybody ended, six days passed".to_owned());
        let tasks = [
            Task::Sweep,
            Task::Prune { mass: true },
            Task::Replicate { only: None, verify: true },
            Task::Prune { mass: true },
            Task::Sweep,
            Task::Rotate,
        ];
        self.site.key = self.site.key.saturating_add(1);
        for task in tasks {
            self.calmly(task).await;
        }
        let held: Vec<Vec<BackupId>> = (0..self.site.sinks.len()).map(|n| self.site.world.held(n)).collect();
        if held.windows(2).any(|two| two[0] != two[1]) {
            self.site.world.fail(format!("the sinks do not hold the same backups: {held:?}"));
        }
        for (sink, held) in held.iter().enumerate() {
            let debris = self.site.world.debris(sink);
            if !debris.is_empty() {
                self.site.world.fail(format!("s{sink} is not tidy: {debris:?}"));
            }
            let op = self.site.world.begin(Verb::Restore, true, None);
            let repo = self.site.alone(op, sink);
            for id in held {
                if let Err(error) = self.site.restore(&repo, op, *id).await {
                    self.site
                        .world
                        .fail(format!("{id} does not restore with the new key: {}", error.chain()));
                }
            }
        }
        if let Some(mut content) = self.actors.first().map(|actor| actor.content.clone()) {
            content::change(&mut content, &mut self.random);
            self.calmly(Task::Backup { content: content.clone(), incremental: true }).await;
            self.calmly(Task::Backup { content, incremental: false }).await;
        }
        self.look().await
    }

    /// Does a task alone and without faults: it must succeed.
    async fn calmly(&mut self, task: Task) {
        let op = self.site.world.begin(task.verb(), true, task.content());
        let words = format!("{:?}", task.verb());
        self.site.clock.advance(TimeDelta::seconds(2));
        if let Err(error) = self.site.clone().run(op, TimeDelta::zero(), task).await {
            self.site
                .world
                .fail(format!("{words} fails although nothing is wrong any more: {}", error.chain()));
        }
    }
}
