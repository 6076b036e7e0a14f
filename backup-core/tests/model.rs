//! Several processes at once on shared sinks, in random orders of their single calls, against a model: promises 1, 2, 3, 4
//! and 8 at every call.
//!
//! 20 seeds; `BACKUP_TORTURE` multiplies the operations of each seed, ten times being 2,000. `BACKUP_MODEL_SEED` runs one.

use std::sync::Mutex;
use std::time::Instant;

use backup_testkit::ModelChecker;

const SEEDS: u64 = 20;
const OPERATIONS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_writers_pruners_and_replicators_do_nothing_needed_is_lost() {
    let operations = OPERATIONS * number("BACKUP_TORTURE").unwrap_or(1);
    let chosen = number("BACKUP_MODEL_SEED");
    let first = number("BACKUP_MODEL_FIRST").unwrap_or(1);
    let seeds = Mutex::new(chosen.map_or(first..=first + SEEDS - 1, |seed| seed..=seed));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let Some(seed) = seeds.lock().unwrap().next() else { return };
                let report = ModelChecker::new(seed).operations(operations).run();
                println!("seed {seed}: {report:?}");
                assert!(report.backups > operations / 20 && report.killed > 0, "seed {seed}: {report:?}");
            }
        };
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    println!("{operations} operations a seed in {:?}", begun.elapsed());
}

#[test]
fn a_seed_repeats_its_run() {
    let run = || ModelChecker::new(11).operations(120).run();
    assert_eq!(run(), run());
}
