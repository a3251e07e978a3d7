//! Space in the store: what the engine holds, and what a snapshot is promised.
//!
//! A create reserves the slots that its snapshot may need, so that snapshots of several volumes
//! cannot together be promised more than there is. Each copy made after the cut takes one of them,
//! and what is left goes back when the last chunk is settled or the snapshot is given up.

use super::machine::{Content, Engine, Purpose, SlotSpace, Staged};
use super::records::SlotIndex;

/// Slots that an engine holds in memory, by what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldSlots {
    /// With a staged copy, valid or outdated, also one that a snapshot under way may yet adopt.
    pub staged: u64,
    /// Being copied to.
    pub copying: u64,
}

/// A snapshot may need more slots than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Slots that it may need.
    pub needed: u64,
    /// Slots that are free and not reserved.
    pub free: u64,
}

pub(super) fn has_slot(staged: &Staged) -> bool {
    matches!(staged.content, Content::Slot(_))
}

impl Engine {
    /// Slots with a staged copy, and slots that copies under way go to.
    pub fn slots_in_hand(&self) -> HeldSlots {
        let count = |copies: &mut dyn Iterator<Item = &Staged>| {
            copies.filter(|staged| has_slot(staged)).count() as u64
        };
        let mut staged = count(&mut self.staged.values());
        if let Some(snapshot) = &self.snapshot {
            staged += count(&mut snapshot.candidates.values());
            staged += count(&mut snapshot.left_over.iter().map(|(_, staged)| staged));
        }
        HeldSlots { staged, copying: self.jobs.len() as u64 }
    }

    /// Slots that a snapshot may take beyond those that are staged for it, as far as that is known:
    /// 0 while all chunks are dirty for want of knowledge. Chunks that a copy would find to be zeros
    /// count, since only the copy tells.
    fn slots_needed(&self) -> u64 {
        if !self.exact {
            return 0;
        }
        let staged = self.staged.iter();
        let staged =
            staged.filter(|&(&chunk, copy)| has_slot(copy) || self.gate.view(chunk).valid());
        let staged = staged.count();
        let staging = self.jobs.values().filter(|job| job.purpose == Purpose::Stage).count();
        self.gate.dirty_count().saturating_sub((staged + staging) as u64)
    }

    /// Reserves what a snapshot may need; [`super::events::Event::Create`] is next. What becomes dirty
    /// between this and the cut, some milliseconds, is not in it and takes what is free.
    ///
    /// # Errors
    /// There is not enough, and nothing is reserved.
    pub fn reserve(&mut self, slots: &mut dyn SlotSpace) -> Result<(), Shortage> {
        let needed = self.slots_needed();
        let more = needed.saturating_sub(self.reserved);
        if more > slots.free() {
            return Err(Shortage { needed, free: slots.free() });
        }
        slots.reserve(more);
        self.reserved += more;
        Ok(())
    }

    /// Slots that are reserved for the snapshot under way.
    pub fn reserved_slots(&self) -> u64 {
        self.reserved
    }

    /// Whether there is no slot for a snapshot's copy yet, but perhaps soon: a copy under way gives its own
    /// back if it finds zeros, or nothing new.
    pub(super) fn waits_for_slot(&self, slots: &dyn SlotSpace) -> bool {
        self.reserved == 0 && slots.free() == 0 && self.copies_in_flight() > 0
    }

    /// A free slot; for a snapshot's own copy one that was reserved, if there are any left.
    pub(super) fn take_slot(
        &mut self,
        purpose: Purpose,
        slots: &mut dyn SlotSpace,
    ) -> Option<SlotIndex> {
        if purpose != Purpose::Stage && self.reserved > 0 {
            slots.unreserve(1);
            self.reserved -= 1;
        }
        slots.allocate()
    }

    /// Gives back what is reserved and will not be needed.
    pub(super) fn end_reservation(&mut self, slots: &mut dyn SlotSpace) {
        let needed = self.deferred.is_some()
            || self.snapshot.as_ref().is_some_and(super::snapshot::Snapshot::may_copy);
        if !needed {
            slots.unreserve(std::mem::take(&mut self.reserved));
        }
    }
}
