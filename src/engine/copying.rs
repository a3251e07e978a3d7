//! Copies under way: how they are started, and what is made of them when they end.

use super::events::{Copied, CopyJob, Effect, JobId, Micros};
use super::machine::{Content, Engine, Purpose, SlotSpace, Staged, chunk_bytes, release};
use super::records::{BLOCKS_PER_CHUNK, SlotIndex, SlotRef};
use crate::gate::{BlockMap, ChunkIndex, CopyEnd, Epoch, Geometry, OperationNumber};

/// A copy under way.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) chunk: ChunkIndex,
    pub(super) purpose: Purpose,
    pub(super) slot: SlotIndex,
    taken: BlockMap,
    refreshed: Option<Staged>,
    /// Every block is copied.
    full: bool,
    epoch: Epoch,
    operation_number: OperationNumber,
    /// The snapshot it was compared with was deleted meanwhile.
    pub(super) stale: bool,
}

/// Why a copy was not started.
#[derive(Debug)]
pub(super) enum NotStarted {
    /// There is no free slot.
    NoSlot,
    /// A command passes through; the copy to be refreshed comes back.
    Busy(Option<Staged>),
}

impl Engine {
    pub(super) fn copies_in_flight(&self) -> usize {
        self.jobs.len()
    }

    /// Whether a copy that belongs to an epoch before the current one is under way.
    pub(super) fn old_copies_in_flight(&self) -> bool {
        let current = self.gate.epoch();
        self.jobs.values().any(|job| job.epoch != current)
    }

    /// Starts a copy of `chunk`; `refreshed` is the outdated copy it builds on. `Err` gives that
    /// back if the chunk can't be copied at the moment.
    pub(super) fn start_copy(
        &mut self,
        chunk: ChunkIndex,
        refreshed: Option<Staged>,
        purpose: Purpose,
        slots: &mut dyn SlotSpace,
    ) -> Result<(), NotStarted> {
        let (slot, refreshed) = match refreshed {
            Some(staged) => match staged.content {
                Content::Slot(slot) => (slot, Some(staged)),
                Content::Zero | Content::Unchanged => {
                    // There is no slot to bring up to date: copy all of it.
                    assert!(self.gate.drop_staged(chunk), "the gate and the engine agree");
                    (self.take_slot(purpose, slots).ok_or(NotStarted::NoSlot)?, None)
                }
            },
            None => (self.take_slot(purpose, slots).ok_or(NotStarted::NoSlot)?, None),
        };
        let epoch = match (purpose, &self.snapshot) {
            (Purpose::Complete | Purpose::Preserve, Some(snapshot)) => snapshot.old_epoch,
            _ => self.gate.epoch(),
        };
        let operation_number = self.gate.next_operation();
        let Some(taken) = self.gate.begin_copy(chunk) else {
            // Pending, and a command counts itself in for a moment before it learns of the cut.
            if refreshed.is_none() {
                slots.release(slot);
                if purpose != Purpose::Stage {
                    slots.reserve(1);
                    self.reserved += 1;
                }
            }
            return Err(NotStarted::Busy(refreshed));
        };
        let full = taken == self.gate.geometry().full_map(chunk);
        assert!(refreshed.is_some() || full, "a first copy takes every block");
        let id = JobId(self.job_count);
        self.job_count += 1;
        let compare = self.compare && refreshed.is_none();
        self.jobs.insert(
            id,
            Job {
                chunk,
                purpose,
                slot,
                taken,
                refreshed,
                full,
                epoch,
                operation_number,
                stale: false,
            },
        );
        let job = CopyJob { id, chunk, slot, blocks: taken, compare };
        self.effects.push_back(Effect::Copy(job));
        Ok(())
    }

    pub(super) fn copy_done(
        &mut self,
        now: Micros,
        id: JobId,
        result: Result<Copied, String>,
        slots: &mut dyn SlotSpace,
    ) {
        let job = self.jobs.remove(&id).expect("each copy ends once");
        let bytes = bytes_of(self.gate.geometry(), job.chunk, job.taken);
        let counters = &mut self.counters;
        *match job.purpose {
            Purpose::Stage if job.refreshed.is_some() => &mut counters.refreshed_bytes,
            Purpose::Stage => &mut counters.staged_bytes,
            Purpose::Complete => &mut counters.copied_bytes,
            Purpose::Preserve => &mut counters.preserved_bytes,
        } += bytes;
        counters.failed_copies += u64::from(result.is_err());
        let result = match result {
            Ok(Copied::Unchanged) if job.stale => {
                Err("the snapshot it was compared with was deleted".to_owned())
            }
            other => other,
        };
        let end = self.gate.end_copy(job.chunk, result.is_ok(), job.taken);
        if matches!(end, CopyEnd::Outdated { .. }) && result.is_ok() {
            self.counters.outdated_copies += 1;
        }
        let (chunk, purpose) = (job.chunk, job.purpose);
        let (stale, epoch) = (job.stale, job.epoch);
        let of_snapshot = self.snapshot.as_ref().is_some_and(|s| s.owns(job.epoch));
        let first = job.refreshed.is_none();
        let staged = match result {
            Ok(copied) if end != CopyEnd::Lost => Ok(finished(job, copied, slots)),
            Ok(_) => {
                slots.release(job.slot);
                Err(None)
            }
            Err(reason) => {
                // What the slot holds now is unknown, an earlier copy in it included.
                let _ = self.gate.drop_staged(chunk);
                slots.release(job.slot);
                Err(Some(reason))
            }
        };
        if of_snapshot {
            self.snapshot_copy_done(chunk, purpose, staged);
        } else if epoch != self.gate.epoch() || self.store_gone.is_some() {
            // Made for a snapshot that failed meanwhile, or staged before it, or in vain.
            if let Ok(staged) = staged {
                let _ = self.gate.drop_staged(chunk);
                release(staged.content, slots);
            }
        } else {
            match staged {
                Ok(staged) => {
                    self.staging_error_run = 0;
                    if first {
                        self.counters.staged_copies += 1;
                    } else {
                        self.counters.refreshed_copies += 1;
                    }
                    let before = self.staged.insert(chunk, staged);
                    assert!(before.is_none(), "chunk {chunk:?} was staged while being copied");
                    if !self.gate.view(chunk).valid() {
                        // A command that was reported before it landed is not reported again.
                        self.policy.observe(chunk, now);
                    }
                }
                Err(Some(reason)) if !stale => self.staging_failed(chunk, &reason),
                Err(_) => {}
            }
        }
    }

    /// The place of a copy in a snapshot's rows; `None` if it takes no row.
    pub(super) fn slot_ref(&self, chunk: ChunkIndex, staged: &Staged) -> Option<SlotRef> {
        match staged.content {
            Content::Slot(slot) => {
                let bytes = chunk_bytes(self.gate.geometry(), chunk);
                let crc32c = self.combiner.combine(&staged.block_crcs, bytes as u32);
                Some(SlotRef::Slot { slot, crc32c })
            }
            Content::Zero => Some(SlotRef::Zero),
            Content::Unchanged => None,
        }
    }
}

/// Bytes that `blocks` of `chunk` have.
pub(super) fn bytes_of(geometry: &Geometry, chunk: ChunkIndex, blocks: BlockMap) -> u64 {
    let bytes = u64::from(blocks.count()) * u64::from(geometry.block_bytes());
    bytes.min(chunk_bytes(geometry, chunk))
}

/// What a copy that succeeded amounts to.
fn finished(job: Job, copied: Copied, slots: &mut dyn SlotSpace) -> Staged {
    let content = match copied {
        Copied::Written { block_crcs } => {
            let mut merged = match job.refreshed {
                Some(refreshed) => refreshed.block_crcs,
                None => Box::new([0; BLOCKS_PER_CHUNK]),
            };
            for (block, (to, from)) in merged.iter_mut().zip(block_crcs.iter()).enumerate() {
                if job.taken.0 >> block & 1 == 1 {
                    *to = *from;
                }
            }
            return Staged {
                content: Content::Slot(job.slot),
                operation_number: job.operation_number,
                block_crcs: merged,
            };
        }
        Copied::Zero => Content::Zero,
        Copied::Unchanged => Content::Unchanged,
    };
    // A refresh of every block is a full copy, too: then the slot it was to refresh goes.
    assert!(job.full, "only a full copy can be found zero or unchanged");
    slots.release(job.slot);
    Staged {
        content,
        operation_number: job.operation_number,
        block_crcs: Box::new([0; BLOCKS_PER_CHUNK]),
    }
}
