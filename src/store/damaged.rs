//! Slots that are known not to hold any more what the catalog says.
//!
//! Kept so that a read of a snapshot can ask on every reactor: as long as nothing is damaged, that is
//! one load of a word that nobody writes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    engine::records::{SlotIndex, VolumeId},
    gate::ChunkIndex,
};

/// A slot that does not hold the chunk that snapshots have in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedSlot {
    /// The slot.
    pub slot: SlotIndex,
    /// The volume whose snapshots have it.
    pub volume: VolumeId,
    /// The chunk that it held.
    pub chunk: ChunkIndex,
    /// CRC-32C of the chunk.
    pub crc32c: u32,
    /// When that was found, milliseconds since the Unix epoch.
    pub found_at_unix_ms: u64,
}

/// One bit for each slot of a store, set where it is damaged; no memory until one is.
#[derive(Debug)]
pub struct DamagedSlots {
    slot_count: u32,
    words: OnceLock<Box<[AtomicU64]>>,
}

impl DamagedSlots {
    /// None of `slot_count` slots is damaged.
    pub fn new(slot_count: u32) -> Self {
        Self { slot_count, words: OnceLock::new() }
    }

    fn place(slot: SlotIndex) -> (usize, u64) {
        ((slot.0 / u64::BITS) as usize, 1 << (slot.0 % u64::BITS))
    }

    /// Whether `slot` is damaged. Any thread.
    #[inline]
    pub fn contains(&self, slot: SlotIndex) -> bool {
        // The bit stands for itself, no other memory is read because of it: relaxed.
        self.words.get().is_some_and(|words| {
            let (word, bit) = Self::place(slot);
            words[word].load(Ordering::Relaxed) & bit != 0
        })
    }

    /// Marks a slot; says whether it was not before. Panics on one that the store does not have.
    pub fn insert(&self, slot: SlotIndex) -> bool {
        assert!(slot.0 < self.slot_count, "slot {} of {}", slot.0, self.slot_count);
        let words = self.words.get_or_init(|| {
            let count = self.slot_count.div_ceil(u64::BITS);
            (0..count).map(|_| AtomicU64::new(0)).collect()
        });
        let (word, bit) = Self::place(slot);
        words[word].fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// Takes the mark away; says whether there was one.
    pub fn remove(&self, slot: SlotIndex) -> bool {
        self.words.get().is_some_and(|words| {
            let (word, bit) = Self::place(slot);
            words[word].fetch_and(!bit, Ordering::Relaxed) & bit != 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_damaged_one_by_one() {
        let damaged = DamagedSlots::new(130);
        assert!(!damaged.contains(SlotIndex(129)) && !damaged.remove(SlotIndex(129)));
        assert!(damaged.words.get().is_none(), "no memory while nothing is damaged");
        assert!(damaged.insert(SlotIndex(129)) && damaged.insert(SlotIndex(64)));
        assert!(!damaged.insert(SlotIndex(64)), "marked twice");
        let marked: Vec<u32> = (0..130).filter(|slot| damaged.contains(SlotIndex(*slot))).collect();
        assert_eq!(marked, [64, 129]);
        assert!(damaged.remove(SlotIndex(64)) && !damaged.remove(SlotIndex(64)));
        assert!(damaged.contains(SlotIndex(129)) && !damaged.contains(SlotIndex(64)));
    }

    /// What one more question costs each read of a snapshot; see docs/figures.md for the machine.
    #[test]
    #[ignore = "measures"]
    fn measure_the_question() {
        let damaged = DamagedSlots::new(1 << 22);
        for (what, mark) in [("nothing damaged", None), ("one damaged", Some(SlotIndex(5)))] {
            if let Some(slot) = mark {
                damaged.insert(slot);
            }
            let rounds = 100_000_000_u32;
            let started = std::time::Instant::now();
            let mut found = 0_u32;
            let mut slot = 1_u32;
            for _ in 0..rounds {
                slot = slot.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                found += u32::from(std::hint::black_box(&damaged).contains(SlotIndex(slot >> 10)));
            }
            let took = started.elapsed();
            eprintln!("{what}: {:?} per question, {found} found", took / rounds);
        }
    }
}
