//! Proof of content: how many items, and a sum over their hashes that does not depend on their order.
//!
//! A proof is computed twice, by the source while data flows out and by the target from what it staged.
//! Equal proofs mean equal multisets of items, however they were split, ordered or stored in between.
//! The sum is taken modulo 2²⁵⁶ over the SHA-256 of each canonical item, so duplicates count (an exclusive
//! or would cancel them) and proofs of parts add up to the proof of the whole.
//!
//! An item is made of fields; each is preceded by its length (8 bytes, little-endian), so that no two
//! different items have the same canonical bytes.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};

/// Count and sum of a multiset of items.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Number of items.
    pub count: u64,
    /// Sum modulo 2²⁵⁶ of the items' SHA-256, read as little-endian numbers; as hexadecimal digits of its bytes.
    #[serde(with = "hex_sum")]
    pub sum: [u8; 32],
}

/// Proofs by name: one per table, per collection, or one for all files.
pub type Proofs = BTreeMap<String, Proof>;

impl Proof {
    /// The proof of nothing.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The proof of the single item with these fields.
    pub fn of<'a>(fields: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut proof = Self::empty();
        proof.add(fields);
        proof
    }

    /// Adds one item, given by its fields.
    pub fn add<'a>(&mut self, fields: impl IntoIterator<Item = &'a [u8]>) {
        let mut hasher = Hasher::new();
        for field in fields {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        self.add_hashed(&hasher.finish());
    }

    /// Adds one item whose canonical bytes were hashed elsewhere.
    pub fn add_hashed(&mut self, hash: &Digest) {
        self.merge(&Proof { count: 1, sum: *hash.as_bytes() });
    }

    /// Adds all items of `other`.
    pub fn merge(&mut self, other: &Proof) {
        self.count = self.count.wrapping_add(other.count);
        // By words of eight bytes: a key-value store adds millions of short items.
        let mut carry = false;
        let words = other.sum.as_chunks::<8>().0;
        for (a, b) in self.sum.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            let (sum, over) = u64::from_le_bytes(*a).overflowing_add(u64::from_le_bytes(*b));
            let (sum, over_again) = sum.overflowing_add(u64::from(carry));
            *a = sum.to_le_bytes();
            carry = over || over_again;
        }
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proof({} items, {})", self.count, hex::encode(self.sum))
    }
}

mod hex_sum {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(sum: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(sum))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        let mut sum = [0; 32];
        hex::decode_to_slice(&text, &mut sum).map_err(D::Error::custom)?;
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(items: &[Vec<Vec<u8>>]) -> Proof {
        let mut proof = Proof::empty();
        for item in items {
            proof.add(item.iter().map(Vec::as_slice));
        }
        proof
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        assert_ne!(Proof::of([&b"ab"[..], b"c"]), Proof::of([&b"a"[..], b"bc"]));
        assert_ne!(Proof::of([&b""[..]]), Proof::of([]));
    }

    #[test]
    fn the_sum_wraps_at_its_top() {
        let mut proof = Proof { count: 1, sum: [0xff; 32] };
        proof.merge(&Proof {
            count: 1,
            sum: {
                let mut one = [0; 32];
                one[0] = 1;
                one
            },
        });
        assert_eq!(proof, Proof { count: 2, sum: [0; 32] });
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_school_book(a in any::<[u8; 32]>(), b in any::<[u8; 32]>()) {
            let mut proof = Proof { count: 1, sum: a };
            proof.merge(&Proof { count: 1, sum: b });
            let (mut carry, mut sum) = (0, [0; 32]);
            for (at, digit) in sum.iter_mut().enumerate() {
                let [low, high] = (u16::from(a[at]) + u16::from(b[at]) + carry).to_le_bytes();
                (*digit, carry) = (low, u16::from(high));
            }
            prop_assert_eq!(proof.sum, sum);
        }

        #[test]
        fn order_does_not_matter_but_every_item_does(
            items in proptest::collection::vec(proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..4), 1..20),
            cut in 0usize..20,
        ) {
            let whole = of(&items);
            let mut reversed = items.clone();
            reversed.reverse();
            prop_assert_eq!(whole, of(&reversed));

            let cut = cut % items.len();
            let mut parts = of(&items[..cut]);
            parts.merge(&of(&items[cut..]));
            prop_assert_eq!(whole, parts);

            let mut doubled = items.clone();
            doubled.push(items[cut].clone());
            prop_assert_ne!(whole, of(&doubled));
            let mut missing = items.clone();
            missing.remove(cut);
            prop_assert_ne!(whole, of(&missing));
        }
    }
}
