//! The conformance suite of transforms.
//!
//! For the author of a [`Transform`]:
//!
//! ```no_run
//! use std::sync::Arc;
//! use backup_core::Gzip;
//! use backup_testkit::transform::{Integrity, conforms};
//!
//! #[test]
//! fn gzip_conforms() {
//!     conforms(Arc::new(Gzip::default()), Integrity::Checksummed);
//! }
//! ```
//!
//! Every function here panics with what was broken.

#![allow(clippy::missing_panics_doc, reason = "panicking is how a suite reports; said once above")]

mod damage;
mod world;

use std::ops::Range;
use std::sync::Arc;

use backup_core::{Chain, Transform};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

pub use damage::{bombs_are_bounded, damage_is_noticed, garbage_is_survived};
pub use world::{Encoded, World, sample};

/// What a transform promises about damaged bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// Nothing: bytes pass as they are.
    None,
    /// Damage is an error, or changes nothing of the plain bytes (a comment, a time stamp).
    Checksummed,
    /// Any change at all is an error, and nothing but a true beginning of the plain bytes comes out before it.
    Authenticated,
}

/// Runs the whole suite on one transform.
pub fn conforms(transform: Arc<dyn Transform>, integrity: Integrity) {
    let chain = Chain::new(vec![transform]).unwrap_or_else(|e| panic!("a chain of one: {e}"));
    chain_conforms(&chain, integrity);
}

/// Runs the whole suite on a chain.
pub fn chain_conforms(chain: &Chain, integrity: Integrity) {
    any_split_round_trips(chain);
    ranges_decode_to_the_right_bytes(chain);
    damage_is_noticed(chain, integrity);
    bombs_are_bounded(chain);
    garbage_is_survived(chain);
}

fn runner(cases: u32) -> TestRunner {
    // A fixed seed, so that a suite gives the same verdict every time.
    TestRunner::new_with_rng(
        Config { cases, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    )
}

/// What goes in comes out, whatever its size and however it is cut, the empty stream included.
pub fn any_split_round_trips(chain: &Chain) {
    let world = World::new();
    for len in [0, 1, 2, 65_535, 65_536, 65_537, 131_072, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 19] {
        let plain = sample(len as u64, len);
        let encoded = world.encode(chain, &plain, &[]);
        let decoded = world.decode(chain, &encoded.bytes, &[], None);
        assert!(decoded.is_ok_and(|d| d == plain), "{chain:?}: {len} bytes did not come back");
    }
    let small = sample(7, 300);
    let ones: Vec<usize> = (0..10_000).collect();
    let encoded = world.encode(chain, &small, &ones);
    let decoded = world.decode(chain, &encoded.bytes, &ones, Some(small.len() as u64));
    assert!(decoded.is_ok_and(|d| d == small), "{chain:?}: pushed byte by byte");

    let cuts = || proptest::collection::vec(any::<Index>(), 0..8);
    let strategy = (any::<u64>(), 0usize..3 << 20, cuts(), cuts());
    let result = runner(24).run(&strategy, |(seed, len, before, after)| {
        let plain = sample(seed, len);
        let at = |cuts: &[Index], len: usize| cuts.iter().map(|c| c.index(len + 1)).collect::<Vec<_>>();
        let encoded = world.encode(chain, &plain, &at(&before, len));
        let cuts = at(&after, encoded.bytes.len());
        let decoded = world
            .decode(chain, &encoded.bytes, &cuts, Some(len as u64))
            .map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(decoded == plain, "other bytes came back");
        Ok(())
    });
    assert!(result.is_ok(), "{chain:?}: {result:?}");
}

/// Reading only what [`Chain::locate`] names gives exactly the bytes asked for.
pub fn ranges_decode_to_the_right_bytes(chain: &Chain) {
    let world = World::new();
    for len in [0, 1, 65_536, 3_500_000] {
        let plain = sample(11, len);
        let encoded = world.encode(chain, &plain, &[]);
        let check = |range: Range<usize>| {
            let part = world.decode_range(chain, &encoded, range.start as u64..range.end as u64);
            match part {
                Ok(part) if part == plain[range.clone()] => Ok(()),
                Ok(_) => Err(TestCaseError::fail(format!("{range:?} of {len}: other bytes"))),
                Err(e) => Err(TestCaseError::fail(format!("{range:?} of {len}: {}", e.chain()))),
            }
        };
        for range in [0..len, 0..len.min(1), len.saturating_sub(1)..len, 0..0, len..len, len / 2..len / 2] {
            check(range).unwrap_or_else(|e| panic!("{chain:?}: {e}"));
        }
        let result = runner(40).run(&(any::<Index>(), any::<Index>()), |(a, b)| {
            let (a, b) = (a.index(len + 1), b.index(len + 1));
            check(a.min(b)..a.max(b))
        });
        assert!(result.is_ok(), "{chain:?}: {result:?}");
    }
}
