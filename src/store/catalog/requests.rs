//! What each request does to the tables.

use std::collections::BTreeMap;

use redb::{ReadTransaction, ReadableTable, Table, WriteTransaction};

use super::{
    super::error::{Error, Result},
    Catalog, OPERATION_RESERVE, Room,
    codec::{
        self, ChunkKey, DIRTY, META, META_NEXT_VOLUME, ROW_BYTES, ROWS, RowKey, SNAPSHOTS, STAGED,
        STAGED_BYTES, SnapshotKey, VOLUMES, VolumeKey, VolumeRow,
    },
    damaged, damaged_slots, storage_error, table_error,
};
use crate::{
    engine::records::{
        CatalogReply, CatalogRequest, SlotIndex, SnapshotRecord, SnapshotRow, SnapshotSeq,
        SnapshotState, StagedRecord, VolumeId, VolumeRecord,
    },
    gate::{ChunkIndex, OperationNumber},
};

/// Why a snapshot failed that was completing when the store stopped.
pub const INTERRUPTED: &str = "interrupted by an unclean stop";

/// Bytes that a row may take in the region, copies of its path not counted: twice its size, for
/// half-full pages.
const ROW_ROOM_BYTES: u64 = 2 * 24;
/// The same for a staged entry.
const STAGED_ROOM_BYTES: u64 = 2 * 300;
/// Room for the pages that any transaction copies.
pub(super) const BASE_ROOM_BYTES: u64 = 128 << 10;

type SnapshotTable<'a> = Table<'a, &'static SnapshotKey, &'static [u8]>;
type RowTable<'a> = Table<'a, &'static RowKey, &'static [u8; ROW_BYTES]>;
type StagedTable<'a> = Table<'a, &'static ChunkKey, &'static [u8; STAGED_BYTES]>;
type DirtyTable<'a> = Table<'a, &'static ChunkKey, u64>;
type VolumeTable<'a> = Table<'a, &'static VolumeKey, &'static [u8]>;

/// First and last possible row key of a volume.
pub(super) fn rows_of_volume(volume: VolumeId) -> (RowKey, RowKey) {
    (
        codec::row_key(volume, SnapshotSeq(0), ChunkIndex(0)),
        codec::row_key(volume, SnapshotSeq(u32::MAX), ChunkIndex(u32::MAX)),
    )
}

fn rows_of_snapshot(volume: VolumeId, seq: SnapshotSeq) -> (RowKey, RowKey) {
    (codec::row_key(volume, seq, ChunkIndex(0)), codec::row_key(volume, seq, ChunkIndex(u32::MAX)))
}

fn pairs_of_volume(volume: VolumeId) -> ([u8; 8], [u8; 8]) {
    (codec::pair_key(volume, 0), codec::pair_key(volume, u32::MAX))
}

pub(super) fn volume_rows(tx: &ReadTransaction, operation: &'static str) -> Result<Vec<VolumeRow>> {
    let table = tx.open_table(VOLUMES).map_err(table_error(operation))?;
    all_volumes(&table, operation)
}

fn all_volumes(
    table: &impl ReadableTable<&'static VolumeKey, &'static [u8]>,
    operation: &'static str,
) -> Result<Vec<VolumeRow>> {
    table
        .iter()
        .map_err(storage_error(operation))?
        .map(|entry| {
            let (key, value) = entry.map_err(storage_error(operation))?;
            codec::decode_volume(codec::volume_of(*key.value()), value.value()).map_err(damaged)
        })
        .collect()
}

pub(super) fn volume_row(
    table: &impl ReadableTable<&'static VolumeKey, &'static [u8]>,
    volume: VolumeId,
    operation: &'static str,
) -> Result<VolumeRow> {
    let entry = table.get(&codec::volume_key(volume)).map_err(storage_error(operation))?;
    let value = entry.ok_or(Error::NoVolume { volume })?;
    codec::decode_volume(volume, value.value()).map_err(damaged)
}

pub(super) fn snapshots_of(
    table: &impl ReadableTable<&'static SnapshotKey, &'static [u8]>,
    volume: VolumeId,
    operation: &'static str,
) -> Result<Vec<SnapshotRecord>> {
    let (first, last) = pairs_of_volume(volume);
    table
        .range::<&SnapshotKey>(&first..=&last)
        .map_err(storage_error(operation))?
        .map(|entry| {
            let (key, value) = entry.map_err(storage_error(operation))?;
            let (_, seq) = codec::pair_of(*key.value());
            codec::decode_snapshot(volume, SnapshotSeq(seq), value.value()).map_err(damaged)
        })
        .collect()
}

pub(super) fn dirty_of(
    table: &impl ReadableTable<&'static ChunkKey, u64>,
    volume: VolumeId,
    operation: &'static str,
) -> Result<Vec<(u32, u64)>> {
    let (first, last) = pairs_of_volume(volume);
    table
        .range::<&ChunkKey>(&first..=&last)
        .map_err(storage_error(operation))?
        .map(|entry| {
            let (key, value) = entry.map_err(storage_error(operation))?;
            Ok((codec::pair_of(*key.value()).1, value.value()))
        })
        .collect()
}

pub(super) fn staged_of(
    table: &impl ReadableTable<&'static ChunkKey, &'static [u8; STAGED_BYTES]>,
    volume: VolumeId,
    operation: &'static str,
) -> Result<Vec<StagedRecord>> {
    let (first, last) = pairs_of_volume(volume);
    table
        .range::<&ChunkKey>(&first..=&last)
        .map_err(storage_error(operation))?
        .map(|entry| {
            let (key, value) = entry.map_err(storage_error(operation))?;
            let (_, chunk) = codec::pair_of(*key.value());
            Ok(codec::decode_staged(ChunkIndex(chunk), value.value()))
        })
        .collect()
}

fn rows_in(
    table: &RowTable<'_>,
    volume: VolumeId,
    seq: SnapshotSeq,
    operation: &'static str,
) -> Result<Vec<SnapshotRow>> {
    let (first, last) = rows_of_snapshot(volume, seq);
    table
        .range::<&RowKey>(&first..=&last)
        .map_err(storage_error(operation))?
        .map(|entry| {
            let (key, value) = entry.map_err(storage_error(operation))?;
            let (_, _, chunk) = codec::row_of(key.value());
            Ok((chunk, codec::decode_slot_ref(*value.value())))
        })
        .collect()
}

fn remove_rows(
    table: &mut RowTable<'_>,
    volume: VolumeId,
    seq: SnapshotSeq,
    operation: &'static str,
) -> Result<()> {
    let (first, last) = rows_of_snapshot(volume, seq);
    table.retain_in::<&RowKey, _>(&first..=&last, |_, _| false).map_err(storage_error(operation))
}

/// Removes the rows of a snapshot whose slots are nobody's from then on.
fn free_rows(
    tx: &WriteTransaction,
    table: &mut RowTable<'_>,
    volume: VolumeId,
    seq: SnapshotSeq,
    operation: &'static str,
) -> Result<()> {
    let rows = rows_in(table, volume, seq, operation)?;
    let slots = rows.into_iter().filter_map(|(_, slot_ref)| slot_ref.slot());
    damaged_slots::forget(tx, slots, operation)?;
    remove_rows(table, volume, seq, operation)
}

/// Drops the saved dirty set and staged entries of a volume.
fn remove_saved(
    dirty: &mut DirtyTable<'_>,
    staged: &mut StagedTable<'_>,
    volume: VolumeId,
    operation: &'static str,
) -> Result<()> {
    let (first, last) = pairs_of_volume(volume);
    dirty
        .retain_in::<&ChunkKey, _>(&first..=&last, |_, _| false)
        .map_err(storage_error(operation))?;
    staged.retain_in::<&ChunkKey, _>(&first..=&last, |_, _| false).map_err(storage_error(operation))
}

fn put_volume(table: &mut VolumeTable<'_>, row: &VolumeRow, operation: &'static str) -> Result<()> {
    let key = codec::volume_key(row.record.id);
    table.insert(&key, codec::encode_volume(row).as_slice()).map_err(storage_error(operation))?;
    Ok(())
}

fn put_snapshot(
    table: &mut SnapshotTable<'_>,
    record: &SnapshotRecord,
    operation: &'static str,
) -> Result<()> {
    let key = codec::pair_key(record.volume, record.seq.0);
    table
        .insert(&key, codec::encode_snapshot(record).as_slice())
        .map_err(storage_error(operation))?;
    Ok(())
}

fn get_snapshot(
    table: &SnapshotTable<'_>,
    volume: VolumeId,
    seq: SnapshotSeq,
    operation: &'static str,
) -> Result<SnapshotRecord> {
    let entry = table.get(&codec::pair_key(volume, seq.0)).map_err(storage_error(operation))?;
    let value = entry.ok_or(Error::NoSnapshot { volume, seq })?;
    codec::decode_snapshot(volume, seq, value.value()).map_err(damaged)
}

/// Texts are stored with 16-bit lengths.
fn check_text(what: &str, text: &str) -> Result<()> {
    if u16::try_from(text.len()).is_ok() {
        return Ok(());
    }
    Err(Error::Invalid { what: format!("{what} of {} bytes: give at most 65535", text.len()) })
}

/// Chunks of a volume.
pub(super) fn chunk_count(record: &VolumeRecord) -> u64 {
    let bytes = u128::from(record.master.block_count) * u128::from(record.master.block_bytes);
    bytes.div_ceil(u128::from(record.chunk_bytes)).try_into().unwrap_or(u64::MAX)
}

/// Moves the reserved bound on where a volume has used up half of its reserve.
fn reserve_operations(row: &mut VolumeRow, used: OperationNumber) -> bool {
    let bound = row.record.operation_number.0;
    if row.record.clean || used.0.saturating_add(OPERATION_RESERVE / 2) <= bound {
        return false;
    }
    row.record.operation_number = OperationNumber(used.0.saturating_add(OPERATION_RESERVE));
    true
}

fn rows_room(rows: &[SnapshotRow]) -> Room {
    Room::Grows(BASE_ROOM_BYTES + rows.len() as u64 * ROW_ROOM_BYTES)
}

impl Catalog {
    pub(super) fn execute_request(&mut self, request: &CatalogRequest) -> Result<CatalogReply> {
        match request {
            CatalogRequest::OpenVolume { volume } => self.open_volume(*volume),
            CatalogRequest::CloseVolume { volume, operation_number, dirty_words, staged } => {
                self.close_volume(*volume, *operation_number, dirty_words, staged)
            }
            CatalogRequest::BeginSnapshot(record) => self.begin_snapshot(record),
            CatalogRequest::AddRows { volume, seq, rows } => self.add_rows(*volume, *seq, rows),
            CatalogRequest::CompleteSnapshot { record, rows } => {
                self.complete_snapshot(record, rows)
            }
            CatalogRequest::FailSnapshot(record) => self.fail_snapshot(record),
            CatalogRequest::DeleteSnapshot { volume, seq } => self.delete_snapshot(*volume, *seq),
        }
    }

    pub(super) fn add_volume(&mut self, mut record: VolumeRecord) -> Result<VolumeRecord> {
        const OPERATION: &str = "create volume";
        check_text("volume name", &record.name)?;
        if record.chunk_bytes != self.slot_bytes {
            return Err(Error::Invalid {
                what: format!(
                    "chunk size {}: the store has slots of {} bytes, chunks take the same size",
                    record.chunk_bytes, self.slot_bytes
                ),
            });
        }
        if chunk_count(&record) > u64::from(u32::MAX) {
            return Err(Error::Invalid {
                what: format!(
                    "volume {:?} has {} chunks, more than {}: use a larger chunk size",
                    record.name,
                    chunk_count(&record),
                    u32::MAX
                ),
            });
        }
        let id = self.transact(OPERATION, Room::Grows(BASE_ROOM_BYTES), |tx| {
            let mut volumes = tx.open_table(VOLUMES).map_err(table_error(OPERATION))?;
            let taken = all_volumes(&volumes, OPERATION)?
                .into_iter()
                .any(|other| other.record.name == record.name);
            if taken {
                return Err(Error::Exists { what: format!("a volume named {:?}", record.name) });
            }
            let mut meta = tx.open_table(META).map_err(table_error(OPERATION))?;
            let next = meta.get(META_NEXT_VOLUME).map_err(storage_error(OPERATION))?;
            let id = next.map_or(1, |value| value.value());
            let volume = u32::try_from(id).map(VolumeId).map_err(|_| Error::Refused {
                operation: OPERATION,
                what: "all volume numbers have been used".to_owned(),
            })?;
            meta.insert(META_NEXT_VOLUME, id + 1).map_err(storage_error(OPERATION))?;
            let record = VolumeRecord { id: volume, ..record.clone() };
            let row = VolumeRow { record, last_seq: SnapshotSeq(0) };
            put_volume(&mut volumes, &row, OPERATION)?;
            Ok(volume)
        })?;
        record.id = id;
        Ok(record)
    }

    pub(super) fn remove_volume(&mut self, volume: VolumeId) -> Result<Vec<SlotIndex>> {
        const OPERATION: &str = "forget volume";
        self.transact(OPERATION, Room::Shrinks, |tx| {
            let mut volumes = tx.open_table(VOLUMES).map_err(table_error(OPERATION))?;
            let row = volume_row(&volumes, volume, OPERATION)?;
            let snapshots = tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
            let left = snapshots_of(&snapshots, volume, OPERATION)?.len();
            if left > 0 {
                return Err(Error::Busy {
                    operation: OPERATION,
                    what: format!(
                        "volume {:?} has {left} snapshots; delete them first",
                        row.record.name
                    ),
                });
            }
            let mut dirty = tx.open_table(DIRTY).map_err(table_error(OPERATION))?;
            let mut staged = tx.open_table(STAGED).map_err(table_error(OPERATION))?;
            let freed = staged_of(&staged, volume, OPERATION)?;
            remove_saved(&mut dirty, &mut staged, volume, OPERATION)?;
            volumes.remove(&codec::volume_key(volume)).map_err(storage_error(OPERATION))?;
            Ok(freed.into_iter().filter_map(|staged| staged.slot).collect())
        })
    }

    fn open_volume(&mut self, volume: VolumeId) -> Result<CatalogReply> {
        const OPERATION: &str = "open volume";
        self.transact(OPERATION, Room::Shrinks, |tx| {
            let mut volumes = tx.open_table(VOLUMES).map_err(table_error(OPERATION))?;
            let mut row = volume_row(&volumes, volume, OPERATION)?;
            let bound = row.record.operation_number.0;
            let bound = bound.saturating_add(OPERATION_RESERVE);
            // Below, not at it: the next start begins one higher.
            if bound >= OperationNumber::MAX.0 {
                return Err(Error::Refused {
                    operation: OPERATION,
                    what:
                        "all operation numbers have been used; copy the volume's data to a new one"
                            .to_owned(),
                });
            }
            row.record.operation_number = OperationNumber(bound);
            row.record.clean = false;
            put_volume(&mut volumes, &row, OPERATION)?;
            let mut dirty = tx.open_table(DIRTY).map_err(table_error(OPERATION))?;
            let mut staged = tx.open_table(STAGED).map_err(table_error(OPERATION))?;
            remove_saved(&mut dirty, &mut staged, volume, OPERATION)?;
            Ok(CatalogReply::Done)
        })
    }

    fn close_volume(
        &mut self,
        volume: VolumeId,
        operation_number: OperationNumber,
        dirty_words: &[(u32, u64)],
        staged_records: &[StagedRecord],
    ) -> Result<CatalogReply> {
        const OPERATION: &str = "close volume";
        let slot_count = self.slot_count;
        let bytes = BASE_ROOM_BYTES
            + dirty_words.len() as u64 * ROW_ROOM_BYTES
            + staged_records.len() as u64 * STAGED_ROOM_BYTES;
        self.transact(OPERATION, Room::Grows(bytes), |tx| {
            let refused = |what: String| Error::Refused { operation: OPERATION, what };
            let mut volumes = tx.open_table(VOLUMES).map_err(table_error(OPERATION))?;
            let mut row = volume_row(&volumes, volume, OPERATION)?;
            let snapshots = tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
            // Its pending chunks are in no dirty set: a clean stop would forget them.
            if let Some(completing) = snapshots_of(&snapshots, volume, OPERATION)?
                .into_iter()
                .find(|snapshot| snapshot.state == SnapshotState::Completing)
            {
                return Err(Error::Busy {
                    operation: OPERATION,
                    what: format!("snapshot {:?} is completing; wait for it", completing.name),
                });
            }
            let chunks = chunk_count(&row.record);
            row.record.clean = true;
            row.record.operation_number = operation_number;
            put_volume(&mut volumes, &row, OPERATION)?;
            let mut dirty = tx.open_table(DIRTY).map_err(table_error(OPERATION))?;
            let mut staged = tx.open_table(STAGED).map_err(table_error(OPERATION))?;
            remove_saved(&mut dirty, &mut staged, volume, OPERATION)?;
            for (word, bits) in dirty_words {
                let last = u64::from(*word) * 64 + (63 - u64::from(bits.leading_zeros().min(63)));
                if *bits == 0 || last >= chunks {
                    return Err(refused(format!("dirty word {word} is {bits:#x}")));
                }
                let old = dirty
                    .insert(&codec::pair_key(volume, *word), bits)
                    .map_err(storage_error(OPERATION))?;
                if old.is_some() {
                    return Err(refused(format!("dirty word {word} comes twice")));
                }
            }
            for record in staged_records {
                if u64::from(record.chunk.0) >= chunks
                    || record.slot.is_some_and(|slot| slot.0 >= slot_count)
                {
                    return Err(refused(format!(
                        "staged chunk {} in slot {:?}",
                        record.chunk.0, record.slot
                    )));
                }
                let old = staged
                    .insert(&codec::pair_key(volume, record.chunk.0), &codec::encode_staged(record))
                    .map_err(storage_error(OPERATION))?;
                if old.is_some() {
                    let chunk = record.chunk.0;
                    return Err(refused(format!("staged chunk {chunk} comes twice")));
                }
            }
            Ok(CatalogReply::Done)
        })
    }

    fn begin_snapshot(&mut self, record: &SnapshotRecord) -> Result<CatalogReply> {
        const OPERATION: &str = "begin snapshot";
        check_text("snapshot name", &record.name)?;
        check_text("reason", record.reason.as_deref().unwrap_or_default())?;
        self.transact(OPERATION, Room::Grows(BASE_ROOM_BYTES), |tx| {
            let refused = |what: String| Error::Refused { operation: OPERATION, what };
            let mut volumes = tx.open_table(VOLUMES).map_err(table_error(OPERATION))?;
            let mut row = volume_row(&volumes, record.volume, OPERATION)?;
            if record.state != SnapshotState::Completing || record.seq.0 == 0 {
                return Err(refused(format!("seq {} as {:?}", record.seq.0, record.state)));
            }
            let mut snapshots = tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
            for other in snapshots_of(&snapshots, record.volume, OPERATION)? {
                if other.seq >= record.seq {
                    return Err(refused(format!(
                        "seq {} is not behind {}",
                        record.seq.0, other.seq.0
                    )));
                }
                if other.name == record.name {
                    let what = format!("a snapshot named {:?}", record.name);
                    return Err(Error::Exists { what });
                }
                if other.state == SnapshotState::Completing {
                    return Err(Error::Busy {
                        operation: OPERATION,
                        what: format!("snapshot {:?} is completing; wait for it", other.name),
                    });
                }
            }
            row.last_seq = row.last_seq.max(record.seq);
            reserve_operations(&mut row, record.operation_number);
            put_volume(&mut volumes, &row, OPERATION)?;
            put_snapshot(&mut snapshots, record, OPERATION)?;
            Ok(CatalogReply::Done)
        })
    }

    fn add_rows(
        &mut self,
        volume: VolumeId,
        seq: SnapshotSeq,
        rows: &[SnapshotRow],
    ) -> Result<CatalogReply> {
        const OPERATION: &str = "add rows";
        let slot_count = self.slot_count;
        self.transact(OPERATION, rows_room(rows), |tx| {
            insert_rows(tx, volume, seq, rows, slot_count, OPERATION)?;
            Ok(CatalogReply::Done)
        })
    }

    fn complete_snapshot(
        &mut self,
        record: &SnapshotRecord,
        rows: &[SnapshotRow],
    ) -> Result<CatalogReply> {
        const OPERATION: &str = "complete snapshot";
        check_text("snapshot name", &record.name)?;
        check_text("reason", record.reason.as_deref().unwrap_or_default())?;
        let slot_count = self.slot_count;
        self.transact(OPERATION, rows_room(rows), |tx| {
            if record.state != SnapshotState::Complete {
                return Err(Error::Refused {
                    operation: OPERATION,
                    what: format!("snapshot {} as {:?}", record.seq.0, record.state),
                });
            }
            insert_rows(tx, record.volume, record.seq, rows, slot_count, OPERATION)?;
            let mut snapshots = tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
            put_snapshot(&mut snapshots, record, OPERATION)?;
            let mut volumes = tx.open_table(VOLUMES).map_err(table_error(OPERATION))?;
            let mut row = volume_row(&volumes, record.volume, OPERATION)?;
            if reserve_operations(&mut row, record.operation_number) {
                put_volume(&mut volumes, &row, OPERATION)?;
            }
            Ok(CatalogReply::Done)
        })
    }

    fn fail_snapshot(&mut self, record: &SnapshotRecord) -> Result<CatalogReply> {
        const OPERATION: &str = "fail snapshot";
        check_text("snapshot name", &record.name)?;
        check_text("reason", record.reason.as_deref().unwrap_or_default())?;
        self.transact(OPERATION, Room::Shrinks, |tx| {
            let mut snapshots = tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
            let stored = get_snapshot(&snapshots, record.volume, record.seq, OPERATION)?;
            // A complete snapshot never changes (I4); failing twice is harmless.
            if stored.state == SnapshotState::Complete || record.state != SnapshotState::Failed {
                return Err(Error::Refused {
                    operation: OPERATION,
                    what: format!(
                        "snapshot {} is {:?}, to become {:?}",
                        record.seq.0, stored.state, record.state
                    ),
                });
            }
            put_snapshot(&mut snapshots, record, OPERATION)?;
            let mut rows = tx.open_table(ROWS).map_err(table_error(OPERATION))?;
            free_rows(tx, &mut rows, record.volume, record.seq, OPERATION)?;
            Ok(CatalogReply::Done)
        })
    }

    fn delete_snapshot(&mut self, volume: VolumeId, seq: SnapshotSeq) -> Result<CatalogReply> {
        const OPERATION: &str = "delete snapshot";
        let slot_bytes = u64::from(self.slot_bytes);
        self.transact(OPERATION, Room::Shrinks, |tx| {
            let mut snapshots = tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
            let doomed = get_snapshot(&snapshots, volume, seq, OPERATION)?;
            let later = snapshots_of(&snapshots, volume, OPERATION)?
                .into_iter()
                .filter(|other| other.seq > seq && other.state != SnapshotState::Failed);
            let mut table = tx.open_table(ROWS).map_err(table_error(OPERATION))?;
            let rows = rows_in(&table, volume, seq, OPERATION)?;
            // Only a complete snapshot's rows are part of what later ones show.
            let (mut heir, mut completing) = (None, None);
            for other in later {
                match other.state {
                    SnapshotState::Complete if heir.is_none() => heir = Some(other),
                    SnapshotState::Completing => completing = Some(other),
                    _ => {}
                }
            }
            let was_complete = doomed.state == SnapshotState::Complete;
            if let (true, None, Some(other)) = (was_complete, &heir, &completing)
                && !rows.is_empty()
            {
                // It shows what is deleted here, and may not be given rows before it is complete.
                return Err(Error::Busy {
                    operation: OPERATION,
                    what: format!(
                        "snapshot {:?} is completing and builds on {:?}; wait for it",
                        other.name, doomed.name
                    ),
                });
            }
            let heir = heir.filter(|_| was_complete);
            remove_rows(&mut table, volume, seq, OPERATION)?;
            snapshots.remove(&codec::pair_key(volume, seq.0)).map_err(storage_error(OPERATION))?;
            let outcome = match heir {
                Some(heir) => hand_over(&mut table, &rows, &heir, OPERATION)?,
                None => Outcome {
                    freed: rows.iter().filter_map(|(_, slot_ref)| slot_ref.slot()).collect(),
                    dirtied: rows.iter().map(|(chunk, _)| *chunk).collect(),
                    ..Outcome::default()
                },
            };
            damaged_slots::forget(tx, outcome.freed.iter().copied(), OPERATION)?;
            if let Some(mut heir) = outcome.heir {
                heir.bytes_used += outcome.slots_handed_over * slot_bytes;
                put_snapshot(&mut snapshots, &heir, OPERATION)?;
            }
            let volumes = tx.open_table(VOLUMES).map_err(table_error(OPERATION))?;
            if volume_row(&volumes, volume, OPERATION)?.record.clean {
                let mut dirty = tx.open_table(DIRTY).map_err(table_error(OPERATION))?;
                save_dirtied(&mut dirty, volume, &outcome.dirtied, OPERATION)?;
            }
            Ok(CatalogReply::Deleted {
                freed: outcome.freed,
                dirtied: outcome.dirtied,
                handed_over: outcome.handed_over,
            })
        })
    }

    /// Turns snapshots that were completing when the store stopped into failed ones.
    pub(super) fn fail_interrupted(&mut self) -> Result<()> {
        const OPERATION: &str = "fail interrupted snapshots";
        let interrupted = self.interrupted_snapshots()?;
        if interrupted.is_empty() {
            return Ok(());
        }
        self.transact(OPERATION, Room::Shrinks, |tx| {
            let mut snapshots = tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
            let mut rows = tx.open_table(ROWS).map_err(table_error(OPERATION))?;
            let mut volumes = tx.open_table(VOLUMES).map_err(table_error(OPERATION))?;
            for record in &interrupted {
                let mut failed = record.clone();
                failed.state = SnapshotState::Failed;
                failed.reason = Some(INTERRUPTED.to_owned());
                failed.bytes_used = 0;
                put_snapshot(&mut snapshots, &failed, OPERATION)?;
                free_rows(tx, &mut rows, record.volume, record.seq, OPERATION)?;
                // Closing a volume refuses while one is completing, so this never says clean. If
                // it did, the saved dirty set would lack the chunks of the failed snapshot.
                let mut row = volume_row(&volumes, record.volume, OPERATION)?;
                if row.record.clean {
                    row.record.clean = false;
                    put_volume(&mut volumes, &row, OPERATION)?;
                    let mut dirty = tx.open_table(DIRTY).map_err(table_error(OPERATION))?;
                    let mut staged = tx.open_table(STAGED).map_err(table_error(OPERATION))?;
                    remove_saved(&mut dirty, &mut staged, record.volume, OPERATION)?;
                }
            }
            Ok(())
        })
    }

    fn interrupted_snapshots(&self) -> Result<Vec<SnapshotRecord>> {
        const OPERATION: &str = "find interrupted snapshots";
        let tx = self.begin_read(OPERATION)?;
        let table = tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
        let mut interrupted = Vec::new();
        for entry in table.iter().map_err(storage_error(OPERATION))? {
            let (key, value) = entry.map_err(storage_error(OPERATION))?;
            let (volume, seq) = codec::pair_of(*key.value());
            let record = codec::decode_snapshot(volume, SnapshotSeq(seq), value.value());
            let record = record.map_err(damaged)?;
            if record.state == SnapshotState::Completing {
                interrupted.push(record);
            }
        }
        Ok(interrupted)
    }
}

/// Inserts rows of a snapshot that is completing.
fn insert_rows(
    tx: &WriteTransaction,
    volume: VolumeId,
    seq: SnapshotSeq,
    rows: &[SnapshotRow],
    slot_count: u32,
    operation: &'static str,
) -> Result<()> {
    let refused = |what: String| Error::Refused { operation, what };
    let volumes = tx.open_table(VOLUMES).map_err(table_error(operation))?;
    let chunks = chunk_count(&volume_row(&volumes, volume, operation)?.record);
    let snapshots = tx.open_table(SNAPSHOTS).map_err(table_error(operation))?;
    let stored = get_snapshot(&snapshots, volume, seq, operation)?;
    if stored.state != SnapshotState::Completing {
        return Err(refused(format!("snapshot {} is {:?}", seq.0, stored.state)));
    }
    let mut table = tx.open_table(ROWS).map_err(table_error(operation))?;
    for (chunk, slot_ref) in rows {
        let outside = u64::from(chunk.0) >= chunks
            || slot_ref.slot().is_some_and(|slot| slot.0 >= slot_count);
        if outside {
            return Err(refused(format!("row {} in {slot_ref:?}", chunk.0)));
        }
        let old = table
            .insert(&codec::row_key(volume, seq, *chunk), &codec::encode_slot_ref(*slot_ref))
            .map_err(storage_error(operation))?;
        // Overwriting it would lose the slot of the first.
        if old.is_some() {
            return Err(refused(format!("snapshot {} has chunk {} twice", seq.0, chunk.0)));
        }
    }
    Ok(())
}

/// What became of the rows of a deleted snapshot.
#[derive(Default)]
struct Outcome {
    freed: Vec<SlotIndex>,
    dirtied: Vec<ChunkIndex>,
    handed_over: u64,
    slots_handed_over: u64,
    heir: Option<SnapshotRecord>,
}

/// Gives those of `rows` to `heir` that it has no row of its own for, and frees the others.
fn hand_over(
    table: &mut RowTable<'_>,
    rows: &[SnapshotRow],
    heir: &SnapshotRecord,
    operation: &'static str,
) -> Result<Outcome> {
    let own = rows_in(table, heir.volume, heir.seq, operation)?;
    let mut own = own.iter().map(|(chunk, _)| *chunk).peekable();
    let mut outcome = Outcome { heir: Some(heir.clone()), ..Outcome::default() };
    for (chunk, slot_ref) in rows {
        // Both are sorted by chunk.
        while own.next_if(|other| other < chunk).is_some() {}
        if own.peek() == Some(chunk) {
            outcome.freed.extend(slot_ref.slot());
            continue;
        }
        table
            .insert(
                &codec::row_key(heir.volume, heir.seq, *chunk),
                &codec::encode_slot_ref(*slot_ref),
            )
            .map_err(storage_error(operation))?;
        outcome.handed_over += 1;
        outcome.slots_handed_over += u64::from(slot_ref.slot().is_some());
    }
    Ok(outcome)
}

/// Adds chunks to the saved dirty set of a cleanly stopped volume.
pub(super) fn save_dirtied(
    dirty: &mut DirtyTable<'_>,
    volume: VolumeId,
    chunks: &[ChunkIndex],
    operation: &'static str,
) -> Result<()> {
    let mut words: BTreeMap<u32, u64> = BTreeMap::new();
    for chunk in chunks {
        *words.entry(chunk.0 / 64).or_default() |= 1 << (chunk.0 % 64);
    }
    for (word, bits) in words {
        let key = codec::pair_key(volume, word);
        let saved = dirty.get(&key).map_err(storage_error(operation))?;
        let saved = saved.map_or(0, |value| value.value());
        dirty.insert(&key, saved | bits).map_err(storage_error(operation))?;
    }
    Ok(())
}
