//! Staging: copies made before anyone asked for a snapshot.

use super::copying::{NotStarted, bytes_of};
use super::events::Micros;
use super::machine::{Content, Engine, Purpose, SlotSpace};
use super::policy::PolicyKind;
use crate::gate::{ChunkIndex, DirtyWalk};

/// Staging copies under way at once; staging is in no hurry and yields to foreground commands.
pub const STAGING_IN_FLIGHT_MAX: usize = 4;

/// Consecutive staging errors after which staging is switched off until the policy is set again.
pub const STAGING_ERRORS_MAX: u32 = 8;

/// What nobody ever saw written since the volume was attached rests: time until it is staged when a
/// predictor, which knows nothing of it, scores the others.
const UNSEEN_REST_US: u64 = 60_000_000;

/// Room is short when less than this part of the staging limit is left.
const ROOM_SHORT_PART: u64 = 4;

/// A search for dirty chunks that the policy never saw written.
#[derive(Debug)]
pub(super) struct Sweep {
    from: Micros,
    walk: DirtyWalk,
    found: Vec<ChunkIndex>,
}

impl Engine {
    /// Looks for dirty chunks that the policy never saw written, once they may have rested.
    pub(super) fn schedule_sweep(&mut self, now: Micros) {
        let rest_us = match self.settings.policy {
            PolicyKind::Off => None,
            PolicyKind::Idle { rest_us } => Some(rest_us),
            PolicyKind::Scored { .. } => Some(UNSEEN_REST_US),
        };
        self.sweep = rest_us.map(|rest_us| Sweep {
            from: Micros(now.0 + rest_us),
            walk: self.gate.dirty_walk(self.gate.epoch()),
            found: Vec::new(),
        });
    }

    /// Starts the copies that are due and allowed. A chunk that commands pass uncounted is closed first,
    /// and copied when those have left.
    pub(super) fn stage(&mut self, now: Micros, slots: &mut dyn SlotSpace) {
        if self.settings.policy == PolicyKind::Off || self.staging_off.is_some() {
            return;
        }
        for _ in 0..self.limits.candidates_per_tick {
            if self.jobs.len() >= self.limits.staging_in_flight_max {
                return;
            }
            if self.closing.is_empty() {
                while self.closing.len() < self.limits.staging_in_flight_max
                    && let Some(chunk) = self.next_candidate(now)
                {
                    self.gate.close(chunk);
                    self.closing.push_back(chunk);
                }
            }
            let Some(&chunk) = self.closing.front() else { return };
            if !self.gate.is_quiet() || !self.stage_chunk(now, chunk, slots) {
                return;
            }
            self.closing.pop_front();
        }
    }

    /// Opens dirty chunks that have no copy and that nobody is about to copy.
    pub(super) fn open_chunks(&mut self) {
        let (gate, closing, limits) = (&self.gate, &self.closing, self.limits);
        let keep = |chunk| closing.contains(&chunk);
        gate.open_some(
            &mut self.open_walk,
            limits.open_words_per_tick,
            limits.open_chunks_per_tick,
            keep,
        );
    }

    fn next_candidate(&mut self, now: Micros) -> Option<ChunkIndex> {
        if let Some(chunk) = self.policy.next_due(now) {
            return Some(chunk);
        }
        let sweep = self.sweep.as_mut()?;
        if now < sweep.from {
            return None;
        }
        if sweep.walk.epoch() != self.gate.epoch() {
            // A cut came: what it left to do is the snapshot's.
            self.sweep = None;
            return None;
        }
        for _ in 0..self.limits.sweep_words_per_tick {
            // Chunks that the policy follows come up by themselves when it is time.
            while let Some(chunk) = sweep.found.pop() {
                if !self.policy.follows(chunk) {
                    return Some(chunk);
                }
            }
            let found = &mut sweep.found;
            if self.gate.peek_dirty(&mut sweep.walk, 1, |chunk| found.push(chunk))
                && sweep.found.is_empty()
            {
                self.sweep = None;
                return None;
            }
        }
        None
    }

    /// Starts a copy of `chunk` if it is worth one; false if it has to wait.
    fn stage_chunk(&mut self, now: Micros, chunk: ChunkIndex, slots: &mut dyn SlotSpace) -> bool {
        if !self.gate.is_dirty(chunk) || self.jobs.values().any(|job| job.chunk == chunk) {
            return true;
        }
        let map = self.gate.block_map(chunk);
        let full = self.gate.geometry().full_map(chunk);
        let (blocks, new_slot) = match self.staged.get(&chunk) {
            Some(_) if map.is_empty() => {
                if self.gate.in_flight(chunk) > 0 {
                    // It will be outdated when that command lands.
                    self.policy.observe(chunk, now);
                }
                return true;
            }
            Some(staged) => match staged.content {
                Content::Slot(_) => (map, false),
                Content::Zero | Content::Unchanged => (full, true),
            },
            None => (full, true),
        };
        if new_slot && self.is_full(slots) && !self.make_room_for(chunk, slots) {
            self.counters.staging_refused += 1;
            return true;
        }
        if !self.pacer.take(now, bytes_of(self.gate.geometry(), chunk, blocks)) {
            return false;
        }
        let refreshed = self.staged.remove(&chunk);
        match self.start_copy(chunk, refreshed, Purpose::Stage, slots) {
            Ok(()) => true,
            // A slot was free a moment ago, and slots are taken on this thread only.
            Err(NotStarted::NoSlot) => false,
            Err(NotStarted::Busy(refreshed)) => {
                self.staged.extend(refreshed.map(|staged| (chunk, staged)));
                false
            }
        }
    }

    /// Whether staged copies take so much of their limit that some may have to give way soon.
    pub fn room_is_short(&self) -> bool {
        let taken = (self.staged.len() + self.jobs.len()) as u64;
        let max = self.settings.staging_slots_max;
        taken >= max - max / ROOM_SHORT_PART
    }

    fn is_full(&self, slots: &dyn SlotSpace) -> bool {
        // Zero and unchanged chunks count too: they take a slot as soon as they change.
        let staged_slots = (self.staged.len() + self.jobs.len()) as u64;
        slots.free() == 0 || staged_slots >= self.settings.staging_slots_max
    }

    /// Gives up a staged copy that is worth less than one of `chunk`.
    fn make_room_for(&mut self, chunk: ChunkIndex, slots: &mut dyn SlotSpace) -> bool {
        while let Some(victim) = self.policy.victim(chunk) {
            if victim != chunk && self.staged.contains_key(&victim) {
                self.drop_staged(victim, slots);
                self.counters.evicted_copies += 1;
                return !self.is_full(slots);
            }
        }
        false
    }

    /// A staging copy ended in an error.
    pub(super) fn staging_failed(&mut self, chunk: ChunkIndex, reason: &str) {
        self.staging_error_run += 1;
        if self.staging_error_run >= STAGING_ERRORS_MAX {
            self.staging_off = Some(format!(
                "{STAGING_ERRORS_MAX} staging copies in a row failed, the last (chunk {}) with: {reason}",
                chunk.0
            ));
        }
    }
}
