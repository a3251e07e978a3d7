//! Which slots are taken.
//!
//! Owned by whoever moves data (one thread). Lives in memory only: at load it is rebuilt from the
//! catalog's rows and staged entries, so that the two can never disagree (I8). Allocation goes
//! round the slot region from the last place, so that slots taken together lie together.

use crate::engine::{SlotSpace, records::SlotIndex};

use super::error::{Error, Result};

const WORD_BITS: u32 = u64::BITS;

/// Bitmap of taken slots.
#[derive(Clone, Debug)]
pub struct SlotAllocator {
    /// One bit per slot, set where taken; bits behind the last slot are set.
    words: Vec<u64>,
    slot_count: u32,
    taken_count: u32,
    /// Word where the next search begins.
    cursor: usize,
}

impl SlotAllocator {
    /// An allocator for `slot_count` free slots.
    pub fn new(slot_count: u32) -> Self {
        let mut words = vec![0; slot_count.div_ceil(WORD_BITS) as usize];
        let tail_bits = slot_count % WORD_BITS;
        if tail_bits != 0 {
            let last = words.len() - 1;
            words[last] = u64::MAX << tail_bits;
        }
        SlotAllocator { words, slot_count, taken_count: 0, cursor: 0 }
    }

    /// Slots of the store.
    pub fn slot_count(&self) -> u32 {
        self.slot_count
    }

    /// Slots that are free.
    pub fn free_count(&self) -> u32 {
        self.slot_count - self.taken_count
    }

    /// Slots that are taken.
    pub fn taken_count(&self) -> u32 {
        self.taken_count
    }

    /// Whether `slot` is taken. Panics on a slot that the store does not have.
    pub fn is_taken(&self, slot: SlotIndex) -> bool {
        let (word, bit) = self.place(slot);
        self.words[word] & bit != 0
    }

    fn place(&self, slot: SlotIndex) -> (usize, u64) {
        assert!(slot.0 < self.slot_count, "slot {} of {}", slot.0, self.slot_count);
        ((slot.0 / WORD_BITS) as usize, 1 << (slot.0 % WORD_BITS))
    }

    /// Takes a free slot, the next one behind the last taken where possible. O(1) while the store
    /// is not nearly full, one pass over the bitmap at worst.
    ///
    /// # Errors
    /// [`Error::NoFreeSlot`].
    pub fn allocate(&mut self) -> Result<SlotIndex> {
        if self.free_count() == 0 {
            return Err(Error::NoFreeSlot { slot_count: self.slot_count });
        }
        let ahead = self.cursor..self.words.len();
        let word = ahead
            .chain(0..self.cursor)
            .find(|word| self.words[*word] != u64::MAX)
            .expect("a free slot has a word that is not full");
        let bit = (!self.words[word]).trailing_zeros();
        self.words[word] |= 1 << bit;
        self.taken_count += 1;
        self.cursor = word;
        Ok(SlotIndex(word as u32 * WORD_BITS + bit))
    }

    /// Marks a slot as taken that the catalog knows to be. Panics if it is taken already: two
    /// owners of one slot would be wrong data (I8).
    pub fn take(&mut self, slot: SlotIndex) {
        assert!(self.try_take(slot), "slot {} has two owners", slot.0);
    }

    /// Like [`SlotAllocator::take`], but says `false` where the slot has an owner or does not
    /// exist: for loading what may be damaged.
    pub fn try_take(&mut self, slot: SlotIndex) -> bool {
        if slot.0 >= self.slot_count || self.is_taken(slot) {
            return false;
        }
        let (word, bit) = self.place(slot);
        self.words[word] |= bit;
        self.taken_count += 1;
        true
    }

    /// Gives a slot back. Panics if it is free: one given back twice could be taken twice.
    pub fn release(&mut self, slot: SlotIndex) {
        let (word, bit) = self.place(slot);
        assert!(self.words[word] & bit != 0, "slot {} released twice", slot.0);
        self.words[word] &= !bit;
        self.taken_count -= 1;
    }

    /// Counts the bitmap anew and compares. Panics on a difference.
    pub fn self_check(&self) {
        let taken: u32 = self.words.iter().map(|word| word.count_ones()).sum();
        let padding = self.words.len() as u32 * WORD_BITS - self.slot_count;
        assert_eq!(taken - padding, self.taken_count, "taken slots counted and kept");
    }
}

impl SlotSpace for SlotAllocator {
    fn allocate(&mut self) -> Option<SlotIndex> {
        SlotAllocator::allocate(self).ok()
    }

    fn release(&mut self, slot: SlotIndex) {
        SlotAllocator::release(self, slot);
    }

    fn free(&self) -> u64 {
        u64::from(self.free_count())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Allocate,
        /// Releases the n-th taken slot, modulo how many there are.
        Release(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step =
            prop_oneof![3 => Just(Step::Allocate), 2 => any::<usize>().prop_map(Step::Release)];
        prop::collection::vec(step, 1..400)
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(slot_count in 1u32..200, steps in steps()) {
            let mut allocator = SlotAllocator::new(slot_count);
            let mut model = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Allocate => if let Ok(slot) = allocator.allocate() {
                        prop_assert!(slot.0 < slot_count);
                        prop_assert!(model.insert(slot), "{slot:?} given out twice");
                    } else {
                        prop_assert_eq!(model.len(), slot_count as usize);
                    },
                    Step::Release(nth) => if !model.is_empty() {
                        let slot = *model.iter().nth(nth % model.len()).expect("in range");
                        model.remove(&slot);
                        allocator.release(slot);
                    },
                }
                prop_assert_eq!(allocator.taken_count() as usize, model.len());
                allocator.self_check();
            }
            for slot in (0..slot_count).map(SlotIndex) {
                prop_assert_eq!(allocator.is_taken(slot), model.contains(&slot));
            }
        }
    }

    #[test]
    fn slots_taken_together_lie_together() {
        let mut allocator = SlotAllocator::new(1000);
        for expected in 0..1000 {
            assert_eq!(allocator.allocate().expect("free").0, expected);
        }
        assert!(allocator.allocate().is_err());
        allocator.release(SlotIndex(3));
        assert_eq!(allocator.allocate().expect("free"), SlotIndex(3));
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn releasing_twice_panics() {
        let mut allocator = SlotAllocator::new(10);
        let slot = allocator.allocate().expect("free");
        allocator.release(slot);
        allocator.release(slot);
    }

    #[test]
    #[should_panic(expected = "two owners")]
    fn taking_twice_panics() {
        let mut allocator = SlotAllocator::new(10);
        allocator.take(SlotIndex(7));
        allocator.take(SlotIndex(7));
    }
}
