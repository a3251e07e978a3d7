//! What a scrub of a store decides without reading: which slots it still owes a look, how fast it may
//! read, and how far it is.

use std::time::Duration;

use super::slots::SlotAllocator;
use crate::engine::records::SlotIndex;

/// A read that comes late may be made up for within this time, in microseconds.
const CATCH_UP_US: u64 = 20_000;

/// The slots that were taken when a scrub began, and that it has not looked at.
///
/// Rows move from one snapshot to the next while a scrub runs, and new ones come all the time: by its
/// slot each is looked at once, and there is an end.
#[derive(Debug)]
pub struct DueSlots {
    words: Vec<u64>,
    total: u64,
}

impl DueSlots {
    /// Every slot that is taken now.
    pub fn new(slots: &SlotAllocator) -> Self {
        Self { words: slots.taken_words().collect(), total: u64::from(slots.taken_count()) }
    }

    /// Slots in the beginning.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether `slot` is due; from now on it is not.
    pub fn take(&mut self, slot: SlotIndex) -> bool {
        let bit = 1 << (slot.0 % u64::BITS);
        let word = self.words.get_mut((slot.0 / u64::BITS) as usize);
        word.is_some_and(|word| {
            let due = *word & bit != 0;
            *word &= !bit;
            due
        })
    }

    /// Slots that are due and still taken.
    pub fn left(&self, slots: &SlotAllocator) -> u64 {
        let both = self.words.iter().zip(slots.taken_words()).map(|(due, taken)| due & taken);
        both.map(|word| u64::from(word.count_ones())).sum()
    }
}

/// Allows at most so many bytes a second.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_s_max: Option<u64>,
    /// When what was let through until now has taken its time.
    free_at_us: u64,
}

impl Throttle {
    /// Nothing has been read yet; `None` is no limit.
    pub fn new(bytes_per_s_max: Option<u64>, now_us: u64) -> Self {
        Self { bytes_per_s_max, free_at_us: now_us }
    }

    /// How long a read of `bytes` has to wait; it counts as made.
    pub fn wait(&mut self, now_us: u64, bytes: u64) -> Duration {
        let Some(bytes_per_s_max) = self.bytes_per_s_max else { return Duration::ZERO };
        let from_us = self.free_at_us.max(now_us.saturating_sub(CATCH_UP_US));
        let takes_us = (u128::from(bytes) * 1_000_000).div_ceil(u128::from(bytes_per_s_max));
        self.free_at_us = from_us.saturating_add(u64::try_from(takes_us).unwrap_or(u64::MAX));
        Duration::from_micros(from_us.saturating_sub(now_us))
    }
}

/// Time left when `done` of something took `took_ms` and `left` of it are to come; `None` before the
/// first.
pub fn left_ms(took_ms: u64, done: u64, left: u64) -> Option<u64> {
    let ms = (u128::from(took_ms) * u128::from(left)).checked_div(u128::from(done))?;
    Some(u64::try_from(ms).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slot_is_due_once_and_not_when_it_came_later() {
        let mut slots = SlotAllocator::new(100);
        let taken: Vec<SlotIndex> = (0..70).map(|_| slots.allocate().expect("free")).collect();
        let mut due = DueSlots::new(&slots);
        assert_eq!((due.total(), due.left(&slots)), (70, 70));
        let later = slots.allocate().expect("free");
        assert!(!due.take(later), "it was free in the beginning");
        assert!(due.take(taken[3]) && !due.take(taken[3]));
        slots.release(taken[4]);
        assert_eq!(due.left(&slots), 68, "one was looked at, one is free");
        assert!(!due.take(SlotIndex(100)) && !due.take(SlotIndex(u32::MAX)));
    }

    proptest! {
        /// Whatever the reads are and however late they come.
        #[test]
        fn the_limit_holds_in_every_window(
            bytes_per_s in (0u32..40).prop_map(|bits| 1u64 << bits),
            reads in prop::collection::vec((1u64..(1 << 22), 0u64..100_000), 1..200),
        ) {
            let mut throttle = Throttle::new(Some(bytes_per_s), 0);
            let (mut now_us, mut starts) = (0, Vec::new());
            for (bytes, late_us) in reads {
                now_us += throttle.wait(now_us, bytes).as_micros() as u64 + late_us;
                starts.push((now_us, bytes));
            }
            for (first, (from_us, _)) in starts.iter().enumerate() {
                let mut sum = 0;
                for (at_us, bytes) in &starts[first..] {
                    // The read that ends the window takes its time after it; one may be late before it.
                    let window_us = u128::from(at_us - from_us + 100_000 + CATCH_UP_US);
                    prop_assert!(u128::from(sum) * 1_000_000 <= window_us * u128::from(bytes_per_s));
                    sum += bytes;
                }
            }
        }
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let mut throttle = Throttle::new(None, 5);
        assert_eq!(throttle.wait(5, 1 << 40), Duration::ZERO);
        assert_eq!(throttle.wait(5, 1 << 40), Duration::ZERO);
        let mut throttle = Throttle::new(Some(1 << 20), 5);
        assert_eq!(throttle.wait(5, 1 << 20), Duration::ZERO);
        assert_eq!(throttle.wait(5, 1), Duration::from_secs(1));
    }

    #[test]
    fn time_left_follows_the_rate_so_far() {
        assert_eq!(left_ms(1000, 0, 5), None);
        assert_eq!(left_ms(1000, 4, 6), Some(1500));
        assert_eq!(left_ms(1000, 4, 0), Some(0));
        assert_eq!(left_ms(u64::MAX, 1, u64::MAX), Some(u64::MAX));
    }
}
