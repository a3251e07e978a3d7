//! What the catalog must hold, by the plainest code that does it. The real catalog's answers and
//! contents are compared with this one's.

use std::collections::BTreeMap;

use crate::engine::records::{
    CatalogReply, CatalogRequest, SlotIndex, SlotRef, SnapshotRecord, SnapshotSeq, SnapshotState,
    StagedRecord,
};
use crate::gate::ChunkIndex;
use crate::store::{Catalog, LoadedVolume};

/// A catalog of one volume.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Oracle {
    pub clean: bool,
    pub last_seq: u32,
    pub snapshots: BTreeMap<SnapshotSeq, SnapshotRecord>,
    pub rows: BTreeMap<(SnapshotSeq, ChunkIndex), SlotRef>,
    pub dirty: BTreeMap<u32, u64>,
    pub staged: BTreeMap<ChunkIndex, StagedRecord>,
}

impl Oracle {
    fn state(&self, seq: SnapshotSeq) -> Option<SnapshotState> {
        self.snapshots.get(&seq).map(|record| record.state)
    }

    fn add_rows(&mut self, seq: SnapshotSeq, rows: &[(ChunkIndex, SlotRef)]) -> Result<(), String> {
        if self.state(seq) != Some(SnapshotState::Completing) {
            return Err("rows for a snapshot that is not completing".into());
        }
        for (chunk, slot_ref) in rows {
            if self.rows.insert((seq, *chunk), *slot_ref).is_some() {
                return Err(format!("a second row for {chunk}"));
            }
        }
        Ok(())
    }

    fn drop_rows(&mut self, seq: SnapshotSeq) {
        self.rows.retain(|(other, _), _| *other != seq);
    }

    /// One transaction.
    pub fn execute(&mut self, request: &CatalogRequest) -> Result<CatalogReply, String> {
        match request {
            CatalogRequest::OpenVolume { .. } => {
                self.clean = false;
                self.dirty.clear();
                self.staged.clear();
            }
            CatalogRequest::CloseVolume { dirty_words, staged, .. } => {
                if self.snapshots.values().any(|r| r.state == SnapshotState::Completing) {
                    return Err("a snapshot is completing".into());
                }
                self.clean = true;
                self.dirty = dirty_words.iter().copied().collect();
                self.staged = staged.iter().map(|s| (s.chunk, s.clone())).collect();
            }
            CatalogRequest::BeginSnapshot(record) => {
                let clash = self.snapshots.values().any(|other| {
                    other.state == SnapshotState::Completing || other.name == record.name
                });
                if clash || record.seq.0 <= self.last_seq {
                    return Err("a snapshot is completing, or the name or number is taken".into());
                }
                self.last_seq = record.seq.0;
                self.snapshots.insert(record.seq, record.clone());
            }
            CatalogRequest::AddRows { seq, rows, .. } => self.add_rows(*seq, rows)?,
            CatalogRequest::CompleteSnapshot { record, rows } => {
                self.add_rows(record.seq, rows)?;
                self.snapshots.insert(record.seq, record.clone());
            }
            CatalogRequest::FailSnapshot(record) => {
                match self.state(record.seq) {
                    None => return Err("no such snapshot".into()),
                    Some(SnapshotState::Complete) => return Err("it is complete".into()),
                    Some(_) => {}
                }
                self.drop_rows(record.seq);
                self.snapshots.insert(record.seq, record.clone());
            }
            CatalogRequest::DeleteSnapshot { seq, .. } => return self.delete(*seq),
        }
        Ok(CatalogReply::Done)
    }

    fn delete(&mut self, seq: SnapshotSeq) -> Result<CatalogReply, String> {
        let state = self.state(seq).ok_or("no such snapshot")?;
        let rows: Vec<_> =
            self.rows.range((seq, ChunkIndex(0))..=(seq, ChunkIndex(u32::MAX))).collect();
        let rows: Vec<_> = rows.into_iter().map(|((_, c), slot)| (*c, *slot)).collect();
        let mut later = self.snapshots.range(seq..).skip(1).map(|(_, record)| record);
        let complete = state == SnapshotState::Complete;
        let heir = later.clone().find(|r| r.state == SnapshotState::Complete).map(|r| r.seq);
        let heir = heir.filter(|_| complete);
        let builds = later.any(|r| r.state == SnapshotState::Completing);
        if complete && heir.is_none() && builds && !rows.is_empty() {
            return Err("a completing snapshot builds on it".into());
        }
        self.snapshots.remove(&seq);
        self.drop_rows(seq);
        let (mut freed, mut dirtied, mut handed_over) = (Vec::new(), Vec::new(), 0);
        for (chunk, slot_ref) in rows {
            match heir {
                Some(heir) if !self.rows.contains_key(&(heir, chunk)) => {
                    self.rows.insert((heir, chunk), slot_ref);
                    handed_over += 1;
                }
                Some(_) => freed.extend(slot_ref.slot()),
                None => {
                    freed.extend(slot_ref.slot());
                    dirtied.push(chunk);
                }
            }
        }
        if self.clean {
            for chunk in &dirtied {
                *self.dirty.entry(chunk.0 / 64).or_default() |= 1 << (chunk.0 % 64);
            }
        }
        Ok(CatalogReply::Deleted { freed, dirtied, handed_over })
    }

    /// What loading does: a snapshot that was completing has failed.
    pub fn interrupted(mut self) -> Self {
        let completing: Vec<_> = self
            .snapshots
            .values()
            .filter(|r| r.state == SnapshotState::Completing)
            .map(|r| r.seq)
            .collect();
        for seq in completing {
            self.drop_rows(seq);
            let record = self.snapshots.get_mut(&seq).expect("found above");
            record.state = SnapshotState::Failed;
        }
        self
    }

    /// Where the real catalog differs.
    pub fn difference(&self, state: &LoadedVolume, catalog: &Catalog) -> Option<String> {
        let mut rows = BTreeMap::new();
        let listed = catalog.for_each_row(state.record.id, |seq, chunk, slot_ref| {
            rows.insert((seq, chunk), slot_ref);
            Ok(())
        });
        if let Err(error) = listed {
            return Some(format!("rows cannot be read: {error}"));
        }
        let states: Vec<_> = state.snapshots.iter().map(|r| (r.seq, &r.name, r.state)).collect();
        let expected: Vec<_> = self.snapshots.values().map(|r| (r.seq, &r.name, r.state)).collect();
        let dirty: BTreeMap<u32, u64> = state.dirty_words.iter().copied().collect();
        let staged: BTreeMap<_, _> = state.staged.iter().map(|s| (s.chunk, s.clone())).collect();
        if self.rows != rows {
            return Some(format!("rows: {rows:?}, expected {:?}", self.rows));
        }
        if states != expected {
            return Some(format!("snapshots: {states:?}, expected {expected:?}"));
        }
        if self.clean != state.record.clean {
            return Some(format!("clean: {}", state.record.clean));
        }
        if dirty != self.dirty || staged != self.staged {
            return Some("saved dirty set or staged copies".into());
        }
        (state.last_seq.0 != self.last_seq).then(|| format!("last number {}", state.last_seq.0))
    }

    /// Slots of complete snapshots' rows, without those of the snapshot `except`. (Others, and
    /// staged copies, are the engine's for as long as a process runs.)
    pub fn slots(&self, except: Option<SnapshotSeq>) -> impl Iterator<Item = SlotIndex> + '_ {
        self.rows
            .iter()
            .filter(move |((seq, _), _)| {
                Some(*seq) != except && self.state(*seq) == Some(SnapshotState::Complete)
            })
            .filter_map(|(_, slot_ref)| slot_ref.slot())
    }
}
