//! A clean stop: what the next start may trust is made durable, then recorded.

use super::events::{CatalogStep, Effect};
use super::machine::{Content, Engine, SlotSpace};
use super::records::{CatalogRequest, StagedRecord};

/// How far a clean stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopPhase {
    No,
    /// Waits for copies and the snapshot under way.
    Asked,
    /// Staged copies are made durable.
    Flush,
    /// What there is to save was sent, or there is nothing; nothing begins any more.
    Done,
}

impl Engine {
    pub(super) fn prepare_stop(&mut self) {
        if !self.jobs.is_empty() {
            return;
        }
        if let Some(reason) = &self.store_gone {
            self.effects.push_back(Effect::Stopped(Err(reason.clone())));
            self.stop = StopPhase::Done;
            return;
        }
        if self.compare {
            // Which chunks are dirty is still not known: leave the volume marked as in use, so
            // that the next start compares as this one did.
            self.effects.push_back(Effect::Stopped(Ok(())));
            self.stop = StopPhase::Done;
            return;
        }
        // A copy must be durable before anything says that it may be trusted: power may go while
        // the catalog's own pages are on their way.
        self.stop = StopPhase::Flush;
        self.effects.push_back(Effect::FlushStore);
    }

    /// The flush before the close has ended. If it failed, no staged copy is to be trusted; the
    /// dirty set is still right.
    pub(super) fn flushed_to_stop(&mut self, durable: bool, slots: &mut dyn SlotSpace) {
        assert!(self.stop == StopPhase::Flush, "a flush ended that nobody asked for");
        self.stop = StopPhase::Done;
        if !durable {
            self.drop_all_staged(slots);
        }
        let mut staged: Vec<StagedRecord> = Vec::with_capacity(self.staged.len());
        for (&chunk, copy) in &self.staged {
            let slot = match copy.content {
                Content::Slot(slot) => Some(slot),
                Content::Zero => None,
                Content::Unchanged => continue,
            };
            staged.push(StagedRecord {
                chunk,
                operation_number: copy.operation_number,
                slot,
                block_map: self.gate.block_map(chunk).0,
                block_crcs: copy.block_crcs.clone(),
            });
        }
        staged.sort_unstable_by_key(|record| record.chunk);
        self.effects.push_back(Effect::Catalog {
            step: CatalogStep::Close,
            request: CatalogRequest::CloseVolume {
                volume: self.volume,
                operation_number: self.gate.next_operation(),
                dirty_words: self.dirty_words(),
                staged,
            },
        });
    }

    fn dirty_words(&self) -> Vec<(u32, u64)> {
        let mut words: Vec<(u32, u64)> = Vec::new();
        let mut walk = self.gate.dirty_walk(self.gate.epoch());
        self.gate.peek_dirty(&mut walk, usize::MAX, |chunk| {
            let (word, bit) = (chunk.0 / 64, 1 << (chunk.0 % 64));
            match words.last_mut() {
                Some((last, bits)) if *last == word => *bits |= bit,
                _ => words.push((word, bit)),
            }
        });
        words
    }
}
