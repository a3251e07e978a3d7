//! What a scrub asks of the catalog: rows in portions, and which slots are damaged.

use std::collections::BTreeMap;

use redb::{ReadableTable, ReadableTableMetadata, TableError, WriteTransaction};

use super::{
    super::{damaged::DamagedSlot, error::Result},
    Catalog, Room,
    codec::{self, DAMAGED, DIRTY, DamagedMark, ROWS, RowKey, SNAPSHOTS, STAGED, VOLUMES},
    requests, storage_error, table_error,
};
use crate::{
    engine::records::{SlotIndex, SlotRef, SnapshotSeq, SnapshotState, VolumeId},
    gate::ChunkIndex,
};

/// Rows of which one portion is made at most, those without a slot included.
const PORTION_ROWS: usize = 4096;

/// A row with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubRow {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot that the row is of.
    pub seq: SnapshotSeq,
    /// The chunk.
    pub chunk: ChunkIndex,
    /// Its slot.
    pub slot: SlotIndex,
    /// What the slot holds.
    pub crc32c: u32,
}

/// Some rows, and where the next ones begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowPortion {
    /// Those with a slot.
    pub rows: Vec<ScrubRow>,
    /// Where to go on; `None`: these were the last.
    pub next: Option<RowPlace>,
}

/// A place between rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowPlace(RowKey);

impl Catalog {
    /// Rows from `place` on, of all volumes, in the order of their keys. A row that moves to a later
    /// snapshot meanwhile moves to a later place: reading on finds it.
    ///
    /// # Errors
    /// [`super::Error::Catalog`], [`super::Error::Closed`].
    pub fn rows_from(&self, place: RowPlace) -> Result<RowPortion> {
        self.portion(place, PORTION_ROWS)
    }

    pub(in super::super) fn portion(&self, place: RowPlace, rows_max: usize) -> Result<RowPortion> {
        const OPERATION: &str = "read rows";
        let tx = self.begin_read(OPERATION)?;
        let table = tx.open_table(ROWS).map_err(table_error(OPERATION))?;
        let range = table.range::<&RowKey>(&place.0..).map_err(storage_error(OPERATION))?;
        let mut portion = RowPortion { rows: Vec::new(), next: None };
        for (count, entry) in range.enumerate() {
            let (key, value) = entry.map_err(storage_error(OPERATION))?;
            if count == rows_max {
                portion.next = Some(RowPlace(*key.value()));
                break;
            }
            let (volume, seq, chunk) = codec::row_of(key.value());
            if let SlotRef::Slot { slot, crc32c } = codec::decode_slot_ref(*value.value()) {
                portion.rows.push(ScrubRow { volume, seq, chunk, slot, crc32c });
            }
        }
        Ok(portion)
    }

    /// Notes that a slot is damaged, if a row of its volume still has it. If the next snapshot would
    /// take it over from a volume that was stopped cleanly, the chunk is made dirty, so that it is
    /// copied again instead.
    ///
    /// # Errors
    /// [`super::Error::NoVolume`], and as [`Catalog::execute`].
    pub fn mark_damaged(&mut self, found: DamagedSlot) -> Result<bool> {
        const OPERATION: &str = "note a damaged slot";
        let DamagedSlot { slot, volume, chunk, crc32c, found_at_unix_ms } = found;
        self.transact(OPERATION, Room::Grows(requests::BASE_ROOM_BYTES), |tx| {
            let volumes = tx.open_table(VOLUMES).map_err(table_error(OPERATION))?;
            let clean = requests::volume_row(&volumes, volume, OPERATION)?.record.clean;
            let snapshots = tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
            let rows = tx.open_table(ROWS).map_err(table_error(OPERATION))?;
            // The newest complete snapshot shows the last of these.
            let (mut has_it, mut is_newest) = (false, false);
            for snapshot in requests::snapshots_of(&snapshots, volume, OPERATION)? {
                let key = codec::row_key(volume, snapshot.seq, chunk);
                let Some(row) = rows.get(&key).map_err(storage_error(OPERATION))? else { continue };
                let same = codec::decode_slot_ref(*row.value()) == SlotRef::Slot { slot, crc32c };
                has_it |= same;
                if snapshot.state == SnapshotState::Complete {
                    is_newest = same;
                }
            }
            if has_it {
                let mut table = tx.open_table(DAMAGED).map_err(table_error(OPERATION))?;
                let mark = codec::encode_damaged(DamagedMark { found_at_unix_ms, crc32c });
                table.insert(&codec::slot_key(slot), &mark).map_err(storage_error(OPERATION))?;
            }
            if is_newest && clean {
                let mut dirty = tx.open_table(DIRTY).map_err(table_error(OPERATION))?;
                requests::save_dirtied(&mut dirty, volume, &[chunk], OPERATION)?;
            }
            Ok(has_it)
        })
    }

    /// Notes that a slot is in order again.
    ///
    /// # Errors
    /// As [`Catalog::execute`].
    pub fn unmark_damaged(&mut self, slot: SlotIndex) -> Result<()> {
        const OPERATION: &str = "note a repaired slot";
        self.transact(OPERATION, Room::Shrinks, |tx| forget(tx, [slot], OPERATION))
    }

    /// Drops the saved staged copy of a chunk, if it is still in this slot; says whether it was. The
    /// chunk stays dirty.
    ///
    /// # Errors
    /// As [`Catalog::execute`].
    pub fn drop_saved_copy(
        &mut self,
        volume: VolumeId,
        chunk: ChunkIndex,
        slot: SlotIndex,
    ) -> Result<bool> {
        const OPERATION: &str = "drop a staged copy";
        self.transact(OPERATION, Room::Shrinks, |tx| {
            let mut staged = tx.open_table(STAGED).map_err(table_error(OPERATION))?;
            let key = codec::pair_key(volume, chunk.0);
            let saved = staged.get(&key).map_err(storage_error(OPERATION))?;
            let saved = saved.map(|value| codec::decode_staged(chunk, value.value()));
            if saved.is_none_or(|saved| saved.slot != Some(slot)) {
                return Ok(false);
            }
            staged.remove(&key).map_err(storage_error(OPERATION))?;
            let mut dirty = tx.open_table(DIRTY).map_err(table_error(OPERATION))?;
            requests::save_dirtied(&mut dirty, volume, &[chunk], OPERATION)?;
            Ok(true)
        })
    }

    /// Changes what a slot is noted to have held.
    #[cfg(test)]
    pub(in super::super) fn corrupt_mark(&mut self, slot: SlotIndex, crc32c: u32) {
        let mark = codec::encode_damaged(DamagedMark { found_at_unix_ms: 1, crc32c });
        self.transact("change a mark", Room::Shrinks, |tx| {
            let mut table = tx.open_table(DAMAGED).expect("the table");
            table.insert(&codec::slot_key(slot), &mark).expect("inserted");
            Ok(())
        })
        .expect("a transaction");
    }

    /// Names of the tables.
    #[cfg(test)]
    pub(in super::super) fn table_names(&self) -> Vec<String> {
        let tx = self.begin_read("list tables").expect("a transaction");
        let tables = tx.list_tables().expect("the tables");
        tables.map(|table| redb::TableHandle::name(&table).to_owned()).collect()
    }

    /// The slots that are noted as damaged.
    ///
    /// # Errors
    /// [`super::Error::Catalog`].
    pub(in super::super) fn damaged_marks(&self) -> Result<BTreeMap<SlotIndex, DamagedMark>> {
        const OPERATION: &str = "read damaged slots";
        let tx = self.begin_read(OPERATION)?;
        let table = match tx.open_table(DAMAGED) {
            Ok(table) => table,
            // None was ever noted, or by no presnap that knew of it.
            Err(TableError::TableDoesNotExist(_)) => return Ok(BTreeMap::new()),
            Err(error) => return Err(table_error(OPERATION)(error)),
        };
        table
            .iter()
            .map_err(storage_error(OPERATION))?
            .map(|entry| {
                let (key, value) = entry.map_err(storage_error(OPERATION))?;
                Ok((codec::slot_of(*key.value()), codec::decode_damaged(*value.value())))
            })
            .collect()
    }
}

/// Slots that are freed are not damaged any more, in the same transaction.
pub(super) fn forget(
    tx: &WriteTransaction,
    slots: impl IntoIterator<Item = SlotIndex>,
    operation: &'static str,
) -> Result<()> {
    let mut table = tx.open_table(DAMAGED).map_err(table_error(operation))?;
    if table.is_empty().map_err(storage_error(operation))? {
        return Ok(());
    }
    for slot in slots {
        table.remove(&codec::slot_key(slot)).map_err(storage_error(operation))?;
    }
    Ok(())
}
