//! Who works on which table: [`Traffic`].
//!
//! `ALTER TABLE … ADD CONSTRAINT` locks out readers of its table, and what waits for such a lock in the server occupies its
//! connection. So whoever has a choice takes what is not in anybody's way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::ident::{Qualified, read_qualified};

/// What a piece of work does with its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Reads rows, beside others that do or build an index (`ACCESS SHARE` in the server).
    Read(Qualified),
    /// Builds an index, beside the same (`SHARE`). It takes long, so it follows whatever wants the table alone.
    Build(Qualified),
    /// Alone (`ACCESS EXCLUSIVE`).
    Alone(Qualified),
    /// Nothing that is known.
    Unknown,
}

impl Access {
    /// That of statements which build an index, or a constraint upon one.
    pub(super) fn of_indexes(statements: &[String]) -> Self {
        let all = || statements.iter().map(|text| Self::of_index(text));
        let alone = all().find(|access| matches!(access, Self::Alone(_)));
        alone.or_else(|| all().find(|access| *access != Self::Unknown)).unwrap_or(Self::Unknown)
    }

    fn of_index(text: &str) -> Self {
        let table = |rest: &str| {
            let rest = rest.strip_prefix("ONLY ").unwrap_or(rest);
            read_qualified(rest).map(|(table, _)| table)
        };
        if let Some(rest) = text.strip_prefix("ALTER TABLE ") {
            return table(rest).map_or(Self::Unknown, Self::Alone);
        }
        let index = text.strip_prefix("CREATE INDEX ").or_else(|| text.strip_prefix("CREATE UNIQUE INDEX "));
        let on = index.and_then(crate::ident::read).and_then(|(_, rest)| table(rest.strip_prefix(" ON ")?));
        on.map_or(Self::Unknown, Self::Build)
    }
}

/// The tables of a database that is being restored, and who works on them.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    shared: BTreeMap<Qualified, usize>,
    alone: BTreeSet<Qualified>,
    /// Tables somebody waits to have alone: nobody else begins there.
    claimed: BTreeMap<Qualified, usize>,
    /// Tables somebody will want alone later: better begin elsewhere.
    wanted: BTreeMap<Qualified, usize>,
}

fn one_less(counts: &mut BTreeMap<Qualified, usize>, table: &Qualified) {
    if let Some(count) = counts.get_mut(table) {
        *count -= 1;
        if *count == 0 {
            counts.remove(table);
        }
    }
}

impl State {
    fn admits(&self, access: &Access) -> bool {
        match access {
            Access::Read(table) => !self.alone.contains(table) && !self.claimed.contains_key(table),
            Access::Build(table) => !self.wanted.contains_key(table),
            Access::Alone(table) => !self.alone.contains(table) && !self.shared.contains_key(table),
            Access::Unknown => true,
        }
    }

    fn disturbs(&self, access: &Access) -> bool {
        matches!(access, Access::Read(table) if self.wanted.contains_key(table))
    }
}

impl Traffic {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is going to be done.
    pub(super) fn announce<'a>(&self, coming: impl Iterator<Item = &'a Access>) {
        let mut state = self.state();
        for access in coming {
            if let Access::Alone(table) = access {
                *state.wanted.entry(table.clone()).or_default() += 1;
            }
        }
    }

    /// Takes from `queue` the first piece of work that is in nobody's way, waiting until there is one. `None` when the
    /// queue is empty.
    pub(super) async fn take<T>(&self, queue: &Mutex<VecDeque<(Access, T)>>) -> Option<(T, Pass)> {
        let mut claim: Option<Claim> = None;
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            // From here on a change is not missed.
            changed.as_mut().enable();
            {
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                let mut state = self.state();
                let free = |at: &usize| queue.get(*at).is_some_and(|(access, _)| state.admits(access));
                let calm = |at: &usize| queue.get(*at).is_some_and(|(access, _)| !state.disturbs(access));
                let all = 0..queue.len();
                let best = all.clone().filter(free).find(calm).or_else(|| all.clone().find(free));
                if let Some((access, work)) = best.and_then(|at| queue.remove(at)) {
                    match &access {
                        Access::Read(table) | Access::Build(table) => {
                            *state.shared.entry(table.clone()).or_default() += 1;
                        }
                        Access::Alone(table) => {
                            state.alone.insert(table.clone());
                        }
                        Access::Unknown => {}
                    }
                    return Some((work, Pass { traffic: self.clone(), access }));
                }
                if queue.is_empty() {
                    return None;
                }
                let first = queue.iter().find_map(|(access, _)| match access {
                    Access::Alone(table) => Some(table),
                    _ => None,
                });
                if let (None, Some(table)) = (&claim, first) {
                    *state.claimed.entry(table.clone()).or_default() += 1;
                    claim = Some(Claim { traffic: self.clone(), table: table.clone() });
                }
            }
            changed.await;
        }
    }
}

/// Work on a table; dropping it lets others in.
#[derive(Debug)]
pub(super) struct Pass {
    traffic: Traffic,
    access: Access,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.traffic.state();
        match &self.access {
            Access::Read(table) | Access::Build(table) => one_less(&mut state.shared, table),
            Access::Alone(table) => {
                state.alone.remove(table);
                one_less(&mut state.wanted, table);
            }
            Access::Unknown => {}
        }
        drop(state);
        self.traffic.0.changed.notify_waiters();
    }
}

/// A table somebody waits for.
struct Claim {
    traffic: Traffic,
    table: Qualified,
}

impl Drop for Claim {
    fn drop(&mut self) {
        one_less(&mut self.traffic.state().claimed, &self.table);
        self.traffic.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn table(name: &str) -> Qualified {
        Qualified::new("public", name)
    }

    fn queue(work: &[Access]) -> Mutex<VecDeque<(Access, usize)>> {
        Mutex::new(work.iter().cloned().zip(0..).collect())
    }

    #[test]
    fn statements_say_how_they_use_their_table() {
        let all = [
            (
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY (id)",
                Access::Alone(table("t")),
            ),
            ("CREATE INDEX \"t on u\" ON public.t USING btree (a)", Access::Build(table("t"))),
            ("CREATE UNIQUE INDEX i ON ONLY public.\"T\" USING btree (a)", Access::Build(table("T"))),
            ("COMMENT ON INDEX public.i IS 'x'", Access::Unknown),
        ];
        for (text, access) in all {
            assert_eq!(Access::of_index(text), access, "{text}");
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_a_table_while_there_is_work_on_another() {
        let traffic = Traffic::default();
        let building =
            queue(&[Access::Alone(table("a")), Access::Alone(table("a")), Access::Alone(table("b"))]);
        let (first, _a) = traffic.take(&building).await.unwrap();
        let (second, b) = traffic.take(&building).await.unwrap();
        assert_eq!((first, second), (0, 2));
        let reading = queue(&[Access::Read(table("a")), Access::Read(table("b"))]);
        assert!(traffic.take(&reading).now_or_never().is_none());
        drop(b);
        assert_eq!(traffic.take(&reading).now_or_never().flatten().unwrap().0, 1);
    }

    #[tokio::test]
    async fn a_table_that_is_read_in_many_parts_is_given_to_who_waits_for_it() {
        let traffic = Traffic::default();
        let reading = queue(&[Access::Read(table("a")), Access::Read(table("a"))]);
        let (_, first) = traffic.take(&reading).await.unwrap();
        let building = queue(&[Access::Alone(table("a"))]);
        let mut waiting = std::pin::pin!(traffic.take(&building));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(traffic.take(&reading).now_or_never().is_none());
        drop(first);
        let (_, alone) = waiting.now_or_never().flatten().unwrap();
        assert!(traffic.take(&reading).now_or_never().is_none());
        drop(alone);
        assert!(traffic.take(&reading).now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn an_index_is_built_after_what_wants_its_table_alone_and_beside_readers() {
        let traffic = Traffic::default();
        let work = [Access::Build(table("a")), Access::Alone(table("a"))];
        traffic.announce(work.iter());
        let (building, reading) = (queue(&work), queue(&[Access::Read(table("a"))]));
        let (first, alone) = traffic.take(&building).await.unwrap();
        assert_eq!(first, 1);
        assert!(traffic.take(&building).now_or_never().is_none());
        drop(alone);
        let (second, _build) = traffic.take(&building).now_or_never().flatten().unwrap();
        assert_eq!(second, 0);
        assert!(traffic.take(&reading).now_or_never().is_some());
    }

    #[tokio::test]
    async fn readers_begin_where_nothing_is_going_to_be_altered() {
        let traffic = Traffic::default();
        traffic.announce([Access::Alone(table("a"))].iter());
        let reading = queue(&[Access::Read(table("a")), Access::Read(table("b"))]);
        let order = [traffic.take(&reading).await.unwrap().0, traffic.take(&reading).await.unwrap().0];
        assert_eq!(order, [1, 0]);
    }
}
