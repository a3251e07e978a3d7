//! The maps of one volume's snapshots: what the read path of each of them looks chunks up in.
//!
//! Owned by whoever takes the engine's effects, on the volume's thread; the maps themselves are
//! cheap to clone and go to the readers. A map shows its snapshot whole, own rows over those of
//! its predecessors, so deleting another snapshot never changes it: what it needs stays in the
//! same slots, only the catalog's rows move (I4).

use std::collections::BTreeMap;

use crate::engine::records::{SlotRef, SnapshotRecord, SnapshotSeq, SnapshotState};
use crate::gate::ChunkIndex;
use crate::store::SlotMap;

/// Maps of the complete snapshots of a volume and of the one that is completing.
#[derive(Clone, Debug)]
pub(super) struct SnapshotViews {
    chunk_count: u32,
    complete: BTreeMap<SnapshotSeq, SlotMap>,
    completing: Option<(SnapshotSeq, SlotMap)>,
}

impl SnapshotViews {
    /// The views that `store::load` found.
    pub fn new(
        chunk_count: u32,
        complete: impl IntoIterator<Item = (SnapshotSeq, SlotMap)>,
    ) -> Self {
        Self { chunk_count, complete: complete.into_iter().collect(), completing: None }
    }

    /// `Effect::Consistent`: the snapshot shows its predecessor until rows come.
    pub fn cut(&mut self, seq: SnapshotSeq) {
        assert!(self.completing.is_none(), "one snapshot completes at a time");
        let base = self.newest_complete().cloned();
        let map = base.unwrap_or_else(|| SlotMap::new(self.chunk_count));
        self.completing = Some((seq, map));
    }

    /// `Effect::Row`.
    pub fn row(&mut self, chunk: ChunkIndex, slot_ref: SlotRef) {
        let (_, map) = self.completing.as_mut().expect("rows come between cut and end");
        map.insert(chunk, slot_ref);
    }

    /// `Effect::Ended`; the snapshot may have failed before its cut.
    pub fn ended(&mut self, record: &SnapshotRecord) {
        let Some((seq, map)) = self.completing.take_if(|(seq, _)| *seq == record.seq) else {
            assert!(record.state == SnapshotState::Failed, "complete without a cut");
            return;
        };
        if record.state == SnapshotState::Complete {
            self.complete.insert(seq, map);
        }
    }

    /// A snapshot was deleted.
    pub fn deleted(&mut self, seq: SnapshotSeq) {
        self.complete.remove(&seq);
    }

    /// The map of one snapshot: complete, or completing and cut.
    pub fn get(&self, seq: SnapshotSeq) -> Option<&SlotMap> {
        let completing = self.completing.as_ref().filter(|(other, _)| *other == seq);
        completing.map(|(_, map)| map).or_else(|| self.complete.get(&seq))
    }

    /// The map of the newest complete snapshot: what a completing one builds on, and what copies
    /// are compared with after an unclean stop.
    pub fn newest_complete(&self) -> Option<&SlotMap> {
        self.complete.last_key_value().map(|(_, map)| map)
    }

    /// The complete snapshots' maps, oldest first.
    pub fn complete(&self) -> impl Iterator<Item = (SnapshotSeq, &SlotMap)> {
        self.complete.iter().map(|(&seq, map)| (seq, map))
    }
}
