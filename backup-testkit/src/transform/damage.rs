//! Damaged, hostile and senseless input.

use backup_core::{Bytes, Chain, Emit, Error, ErrorKind, Result};
use proptest::prelude::*;

use super::{Integrity, World, runner, sample};

/// Most bytes a decoder may emit at once.
const MAX_EMITTED: usize = 4 << 20;

/// Every truncation, every flipped bit and anything appended is noticed as `integrity` promises.
pub fn damage_is_noticed(chain: &Chain, integrity: Integrity) {
    if integrity == Integrity::None {
        return;
    }
    let world = World::new();
    for len in [0, 700] {
        let plain = sample(3, len);
        let stored = world.encode(chain, &plain, &[]).bytes;
        for cut in 0..stored.len() {
            let result = world.decode(chain, &stored[..cut], &[], None);
            expect_damage(chain, result, &format!("{len} bytes cut off at {cut} of {}", stored.len()));
        }
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            check_flip(chain, &world, &damaged, &plain, integrity, bit);
        }
        for tail in [&[0][..], b"garbage", &stored] {
            let longer = [&stored, tail].concat();
            let result = world.decode(chain, &longer, &[], None);
            // Two streams one after the other are one stream to the compression formats.
            if tail != stored || integrity == Integrity::Authenticated {
                expect_damage(chain, result, &format!("{} bytes appended", tail.len()));
            }
        }
    }
    let plain = sample(4, 1_300_000);
    let stored = world.encode(chain, &plain, &[]).bytes;
    let result = runner(60).run(&any::<prop::sample::Index>(), |bit| {
        let bit = bit.index(stored.len() * 8);
        let mut damaged = stored.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        check_flip(chain, &world, &damaged, &plain, integrity, bit);
        Ok(())
    });
    assert!(result.is_ok(), "{chain:?}: {result:?}");
}

fn check_flip(chain: &Chain, world: &World, damaged: &[u8], plain: &[u8], integrity: Integrity, bit: usize) {
    let mut out = Vec::new();
    let result = world.decode_to(chain, damaged, &[], None, &mut out);
    if integrity == Integrity::Authenticated {
        assert!(plain.starts_with(&out), "{chain:?}: bit {bit} flipped, and unverified bytes came out");
    } else if result.is_ok() && out == plain {
        return;
    }
    expect_damage(chain, result.map(|()| out), &format!("bit {bit} flipped"));
}

fn expect_damage(chain: &Chain, result: Result<Vec<u8>>, what: &str) {
    let expected =
        [ErrorKind::Corrupt, ErrorKind::WrongKey, ErrorKind::Unsupported, ErrorKind::LimitExceeded];
    match result {
        Ok(_) => panic!("{chain:?}: {what}, and not noticed"),
        Err(e) => assert!(expected.contains(&e.kind()), "{chain:?}: {what}: {}", e.chain()),
    }
}

/// Measures what a decoder emits, and refuses more than it is given room for.
struct Bounded {
    total: usize,
    room: usize,
    calls_after_refusal: usize,
}

impl Emit for Bounded {
    fn data(&mut self, bytes: Bytes) -> Result<()> {
        assert!(bytes.len() <= MAX_EMITTED, "{} bytes were emitted at once", bytes.len());
        if self.total > self.room {
            self.calls_after_refusal += 1;
        }
        self.total += bytes.len();
        if self.total > self.room {
            return Err(Error::new(ErrorKind::Cancelled, "test").message("no more room"));
        }
        Ok(())
    }

    fn boundary(&mut self, _plain_offset: u64) -> Result<()> {
        Ok(())
    }
}

/// A small object that decodes to a large one does so in bounded pieces, stops when its output is refused, and never
/// passes the size that was announced.
pub fn bombs_are_bounded(chain: &Chain) {
    const BOMB: usize = 48 << 20;
    let world = World::new();
    let stored = world.encode(chain, &vec![0; BOMB], &[]).bytes;

    let mut all = Bounded { total: 0, room: BOMB, calls_after_refusal: 0 };
    world
        .decode_to(chain, &stored, &[], None, &mut all)
        .unwrap_or_else(|e| panic!("{chain:?}: {}", e.chain()));
    assert_eq!(all.total, BOMB, "{chain:?}");

    let mut little = Bounded { total: 0, room: 10 << 20, calls_after_refusal: 0 };
    let result = world.decode_to(chain, &stored, &[], None, &mut little);
    assert_eq!(result.map_err(|e| e.kind()), Err(ErrorKind::Cancelled), "{chain:?}");
    assert_eq!(little.calls_after_refusal, 0, "{chain:?}: went on after its output was refused");

    let announced = 10 << 20;
    let mut out = Bounded { total: 0, room: usize::MAX, calls_after_refusal: 0 };
    let result = world.decode_to(chain, &stored, &[], Some(announced as u64), &mut out);
    assert_eq!(result.map_err(|e| e.kind()), Err(ErrorKind::Corrupt), "{chain:?}");
    assert!(out.total <= announced, "{chain:?}: {} bytes came out of {announced} announced", out.total);
}

/// No input makes a decoder panic.
pub fn garbage_is_survived(chain: &Chain) {
    let world = World::new();
    let good = world.encode(chain, &sample(5, 3000), &[]).bytes;
    let garbage = prop::collection::vec(any::<u8>(), 0..400);
    let strategy = (any::<prop::sample::Index>(), garbage, any::<bool>());
    let result = runner(200).run(&strategy, |(keep, garbage, from_good)| {
        // After a good beginning, garbage gets further.
        let keep = if from_good { keep.index(good.len()) } else { 0 };
        let input = [&good[..keep], &garbage].concat();
        let _ = world.decode(chain, &input, &[input.len() / 2], Some(1 << 20));
        Ok(())
    });
    assert!(result.is_ok(), "{chain:?}: {result:?}");
}
