//! Cleanup: from time to time, staged copies that are hardly worth their slots are given up.

use super::events::Micros;
use super::machine::{Engine, SlotSpace};
use crate::gate::{ChunkIndex, DirtyWalk};

/// Time from one walk through the staged copies to the next.
pub const CLEANUP_EVERY_US: u64 = 30_000_000;

/// Of the store's slots, and of the staging limit, so little is left that copies of which a half is
/// outdated go as well.
const ROOM_LITTLE_PART: u64 = 8;

/// Where the walk is, and when the next one begins.
#[derive(Debug)]
pub(super) struct Cleanup {
    from: Micros,
    walk: Option<DirtyWalk>,
}

impl Cleanup {
    pub(super) fn new(now: Micros) -> Self {
        Self { from: now, walk: None }
    }
}

impl Engine {
    /// Moves the walk on by one bounded step. Not while a snapshot is under way: what is staged then
    /// is the snapshot's to judge.
    pub(super) fn clean_up(&mut self, now: Micros, slots: &mut dyn SlotSpace) {
        let epoch = self.gate.epoch();
        if self.cleanup.walk.as_ref().is_some_and(|walk| walk.epoch() != epoch) {
            self.cleanup.walk = None;
        }
        if self.cleanup.walk.is_none() {
            if self.staged.is_empty() || now < self.cleanup.from {
                return;
            }
            self.cleanup.from = Micros(now.0 + self.limits.cleanup_every_us);
            self.cleanup.walk = Some(self.gate.dirty_walk(epoch));
        }
        let Some(walk) = &mut self.cleanup.walk else { return };
        let mut found: Vec<ChunkIndex> = Vec::new();
        let (gate, staged) = (&self.gate, &self.staged);
        let over = gate.peek_dirty(walk, self.limits.cleanup_words_per_tick, |chunk| {
            if !gate.block_map(chunk).is_empty() && staged.contains_key(&chunk) {
                found.push(chunk);
            }
        });
        if over {
            self.cleanup.walk = None;
        }
        for chunk in found {
            let outdated = self.gate.block_map(chunk);
            let all = self.gate.geometry().full_map(chunk);
            let is_worthless = outdated == all
                || (outdated.count() * 2 >= all.count() && self.room_is_little(slots));
            if is_worthless {
                self.drop_staged(chunk, slots);
                self.counters.cleaned_copies += 1;
            }
        }
    }

    fn room_is_little(&self, slots: &dyn SlotSpace) -> bool {
        let taken = (self.staged.len() + self.jobs.len()) as u64;
        let max = self.settings.staging_slots_max;
        // Against what is staged: the engine does not know how large the store is.
        taken >= max - max / ROOM_LITTLE_PART || slots.free() < taken / ROOM_LITTLE_PART
    }
}
