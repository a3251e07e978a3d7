//! Whether the catalog keeps its promises (I8): each slot has at most one owner, numbers add up.

use std::collections::{BTreeMap, BTreeSet};

use redb::ReadableTable;

use super::{
    super::error::Result,
    Catalog,
    codec::{self, DIRTY, ROWS, SNAPSHOTS, STAGED, VOLUMES},
    damaged, requests, storage_error, table_error,
};
use crate::engine::records::{
    SlotIndex, SlotRef, SnapshotRecord, SnapshotSeq, SnapshotState, VolumeId,
};

const OPERATION: &str = "check the catalog";

/// What [`Catalog::check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What is wrong, one line each; empty for a catalog that is in order.
    pub problems: Vec<String>,
    /// Volumes.
    pub volumes: u64,
    /// Snapshots, failed ones included.
    pub snapshots: u64,
    /// Rows of snapshots.
    pub rows: u64,
    /// Rows that take no slot.
    pub zero_rows: u64,
    /// Saved staged chunks.
    pub staged: u64,
    /// Slots with an owner, sorted.
    pub slots_taken: BTreeSet<SlotIndex>,
    /// Those of them that are noted as damaged.
    pub damaged: BTreeSet<SlotIndex>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    fn own(&mut self, slot: SlotIndex, slot_count: u32, owner: &str) {
        if slot.0 >= slot_count {
            self.problems.push(format!("{owner} names slot {} of {slot_count}", slot.0));
        } else if !self.slots_taken.insert(slot) {
            self.problems.push(format!("slot {} has a second owner, {owner}", slot.0));
        }
    }
}

impl Catalog {
    /// Reads all of the catalog and compares it with its own rules. Changes nothing.
    ///
    /// # Errors
    /// [`super::Error::CatalogDamaged`] where it cannot be decoded, [`super::Error::Catalog`];
    /// broken rules are no error but in the report.
    pub fn check(&self) -> Result<CheckReport> {
        let tx = self.begin_read(OPERATION)?;
        let mut report = CheckReport::default();
        let volumes: BTreeMap<VolumeId, _> = requests::volume_rows(&tx, OPERATION)?
            .into_iter()
            .map(|row| (row.record.id, row))
            .collect();
        report.volumes = volumes.len() as u64;

        let mut snapshots: BTreeMap<(VolumeId, SnapshotSeq), SnapshotRecord> = BTreeMap::new();
        let table = tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
        for entry in table.iter().map_err(storage_error(OPERATION))? {
            let (key, value) = entry.map_err(storage_error(OPERATION))?;
            let (volume, seq) = codec::pair_of(*key.value());
            let seq = SnapshotSeq(seq);
            let record = codec::decode_snapshot(volume, seq, value.value()).map_err(damaged)?;
            match volumes.get(&volume) {
                None => report.problems.push(format!("snapshot of unknown volume {}", volume.0)),
                Some(row) if seq > row.last_seq => {
                    report
                        .problems
                        .push(format!("snapshot {}/{} from the future", volume.0, seq.0));
                }
                Some(row) if row.record.clean && record.state == SnapshotState::Completing => {
                    report
                        .problems
                        .push(format!("snapshot {}/{} completing, volume clean", volume.0, seq.0));
                }
                Some(_) => {}
            }
            snapshots.insert((volume, seq), record);
        }
        report.snapshots = snapshots.len() as u64;

        let mut marks = self.damaged_marks()?;
        let mut slots_of: BTreeMap<(VolumeId, SnapshotSeq), u64> = BTreeMap::new();
        let table = tx.open_table(ROWS).map_err(table_error(OPERATION))?;
        for entry in table.iter().map_err(storage_error(OPERATION))? {
            let (key, value) = entry.map_err(storage_error(OPERATION))?;
            let (volume, seq, chunk) = codec::row_of(key.value());
            let owner = || format!("chunk {} of snapshot {}/{}", chunk.0, volume.0, seq.0);
            report.rows += 1;
            match snapshots.get(&(volume, seq)).map(|record| record.state) {
                None => report.problems.push(format!("{} without the snapshot", owner())),
                Some(SnapshotState::Failed) => {
                    report.problems.push(format!("{}, which failed", owner()));
                }
                Some(_) => {}
            }
            let chunks = volumes.get(&volume).map(|row| requests::chunk_count(&row.record));
            if chunks.is_some_and(|chunks| u64::from(chunk.0) >= chunks) {
                report.problems.push(format!("{} behind the volume's end", owner()));
            }
            match codec::decode_slot_ref(*value.value()) {
                SlotRef::Zero => report.zero_rows += 1,
                SlotRef::Slot { slot, crc32c } => {
                    report.own(slot, self.slot_count, &owner());
                    *slots_of.entry((volume, seq)).or_default() += 1;
                    if marks.get(&slot).is_some_and(|mark| mark.crc32c == crc32c) {
                        report.damaged.insert(slot);
                        marks.remove(&slot);
                    }
                }
            }
        }
        for slot in marks.into_keys() {
            report.problems.push(format!("slot {} is damaged, and no row has it", slot.0));
        }
        for ((volume, seq), record) in &snapshots {
            let slots = slots_of.get(&(*volume, *seq)).copied().unwrap_or_default();
            let bytes = slots * u64::from(self.slot_bytes);
            // Of one that is completing, the record is not final.
            if record.bytes_used != bytes && record.state != SnapshotState::Completing {
                report.problems.push(format!(
                    "snapshot {}/{} uses {bytes} bytes and says {}",
                    volume.0, seq.0, record.bytes_used
                ));
            }
        }

        let clean = |volume: VolumeId| volumes.get(&volume).is_some_and(|row| row.record.clean);
        let table = tx.open_table(STAGED).map_err(table_error(OPERATION))?;
        for entry in table.iter().map_err(storage_error(OPERATION))? {
            let (key, value) = entry.map_err(storage_error(OPERATION))?;
            let (volume, chunk) = codec::pair_of(*key.value());
            let owner = format!("staged chunk {chunk} of volume {}", volume.0);
            report.staged += 1;
            if !clean(volume) {
                report.problems.push(format!("{owner}, which was not stopped cleanly (I7)"));
            }
            let staged = codec::decode_staged(crate::gate::ChunkIndex(chunk), value.value());
            if let Some(slot) = staged.slot {
                report.own(slot, self.slot_count, &owner);
            }
        }
        let table = tx.open_table(DIRTY).map_err(table_error(OPERATION))?;
        for entry in table.iter().map_err(storage_error(OPERATION))? {
            let (key, _) = entry.map_err(storage_error(OPERATION))?;
            let (volume, word) = codec::pair_of(*key.value());
            if !clean(volume) {
                report.problems.push(format!(
                    "dirty word {word} of volume {}, which was not stopped cleanly (I7)",
                    volume.0
                ));
            }
        }
        let table = tx.open_table(VOLUMES).map_err(table_error(OPERATION))?;
        let volume_count = table.iter().map_err(storage_error(OPERATION))?.count() as u64;
        debug_assert_eq!(volume_count, report.volumes);
        Ok(report)
    }
}
