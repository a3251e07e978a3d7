//! Which slots are taken.
//!
//! Owned by whoever moves data (one thread). Lives in memory only: at load it is rebuilt from the
//! catalog's rows and staged entries, so that the two can never disagree (I8). Allocation goes
//! round the slot region from the last place, so that slots taken together lie together.
//!
//! Of the free slots some may be reserved: promised to a snapshot under way, and not given to
//! anything else. Which slots those are does not matter, so only their number is kept.

use std::sync::Arc;

use crate::engine::{SlotSpace, records::SlotIndex};

use super::{
    damaged::DamagedSlots,
    error::{Error, Result},
};

const WORD_BITS: u32 = u64::BITS;

/// Bitmap of taken slots.
#[derive(Clone, Debug)]
pub struct SlotAllocator {
    /// One bit per slot, set where taken; bits behind the last slot are set.
    words: Vec<u64>,
    slot_count: u32,
    taken_count: u32,
    /// Free slots that are promised.
    reserved_count: u32,
    /// Word where the next search begins.
    cursor: usize,
    /// Taken slots that are damaged: a free one is not, whatever it holds.
    damaged: Arc<DamagedSlots>,
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
        SlotAllocator {
            words,
            slot_count,
            taken_count: 0,
            reserved_count: 0,
            cursor: 0,
            damaged: Arc::new(DamagedSlots::new(slot_count)),
        }
    }

    /// Which of its slots are damaged, for whoever reads them.
    pub fn damaged(&self) -> &Arc<DamagedSlots> {
        &self.damaged
    }

    /// Taken slots as a bitmap, the lowest bit first.
    pub fn taken_words(&self) -> impl Iterator<Item = u64> + '_ {
        let tail = u64::MAX >> (u64::BITS * self.words.len() as u32 - self.slot_count);
        let last = self.words.len().saturating_sub(1);
        let mask = move |at| if at == last { tail } else { u64::MAX };
        self.words.iter().enumerate().map(move |(at, word)| word & mask(at))
    }

    /// Slots of the store.
    pub fn slot_count(&self) -> u32 {
        self.slot_count
    }

    /// Slots that are free, the reserved ones not among them.
    pub fn free_count(&self) -> u32 {
        self.slot_count - self.taken_count - self.reserved_count
    }

    /// Slots that hold nothing yet and are promised to snapshots under way.
    pub fn reserved_count(&self) -> u32 {
        self.reserved_count
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

    /// Keeps that many free slots from [`SlotAllocator::allocate`]. Panics where there are fewer.
    pub fn reserve(&mut self, count: u32) {
        assert!(count <= self.free_count(), "{count} reserved of {}", self.free_count());
        self.reserved_count += count;
    }

    /// Makes reserved slots free again: to be taken, or because nobody needs them any more.
    pub fn unreserve(&mut self, count: u32) {
        assert!(count <= self.reserved_count, "{count} unreserved of {}", self.reserved_count);
        self.reserved_count -= count;
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

    /// Gives a slot back; damaged or not, the next copy in it is another. Panics if it is free: one
    /// given back twice could be taken twice.
    pub fn release(&mut self, slot: SlotIndex) {
        let (word, bit) = self.place(slot);
        assert!(self.words[word] & bit != 0, "slot {} released twice", slot.0);
        self.words[word] &= !bit;
        self.taken_count -= 1;
        self.damaged.remove(slot);
    }

    /// Counts the bitmap anew and compares. Panics on a difference.
    pub fn self_check(&self) {
        let taken: u32 = self.words.iter().map(|word| word.count_ones()).sum();
        let padding = self.words.len() as u32 * WORD_BITS - self.slot_count;
        assert_eq!(taken - padding, self.taken_count, "taken slots counted and kept");
        assert!(self.taken_count + self.reserved_count <= self.slot_count, "promised and taken");
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

    fn reserve(&mut self, count: u64) {
        SlotAllocator::reserve(self, count as u32);
    }

    fn unreserve(&mut self, count: u64) {
        SlotAllocator::unreserve(self, count as u32);
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
        /// Reserves as many, or what there is.
        Reserve(u32),
        /// Gives as many back, or what there is.
        Unreserve(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => Just(Step::Allocate),
            4 => any::<usize>().prop_map(Step::Release),
            1 => (0u32..50).prop_map(Step::Reserve),
            1 => (0u32..50).prop_map(Step::Unreserve),
        ];
        prop::collection::vec(step, 1..400)
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(slot_count in 1u32..200, steps in steps()) {
            let mut allocator = SlotAllocator::new(slot_count);
            let mut model = BTreeSet::new();
            let mut reserved = 0;
            for step in steps {
                match step {
                    Step::Allocate => if let Ok(slot) = allocator.allocate() {
                        prop_assert!(slot.0 < slot_count);
                        prop_assert!(model.insert(slot), "{slot:?} given out twice");
                    } else {
                        prop_assert_eq!(model.len() as u32 + reserved, slot_count);
                    },
                    Step::Reserve(most) => {
                        let count = most.min(slot_count - reserved - model.len() as u32);
                        allocator.reserve(count);
                        reserved += count;
                    }
                    Step::Unreserve(most) => {
                        let count = most.min(reserved);
                        allocator.unreserve(count);
                        reserved -= count;
                    }
                    Step::Release(nth) => if !model.is_empty() {
                        let slot = *model.iter().nth(nth % model.len()).expect("in range");
                        model.remove(&slot);
                        allocator.release(slot);
                    },
                }
                prop_assert_eq!(allocator.taken_count() as usize, model.len());
                prop_assert_eq!(allocator.reserved_count(), reserved);
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
    fn a_slot_that_is_given_back_is_not_damaged_any_more() {
        let mut allocator = SlotAllocator::new(10);
        let slot = allocator.allocate().expect("free");
        let damaged = Arc::clone(allocator.damaged());
        damaged.insert(slot);
        allocator.release(slot);
        assert!(!damaged.contains(slot));
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
