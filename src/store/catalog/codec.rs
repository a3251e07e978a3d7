//! Keys and values of the catalog's tables as bytes: docs/on-disk-format.md, "Catalog".
//!
//! Keys are big-endian, so that redb's byte order is the numeric one; values little-endian.

use redb::TableDefinition;
use uuid::Uuid;

use super::super::bytes::{array_at, put, u16_at, u32_at, u64_at};
use crate::{
    engine::records::{
        BLOCKS_PER_CHUNK, ChunkCounts, MasterIdentity, SlotIndex, SlotRef, SnapshotRecord,
        SnapshotSeq, SnapshotState, SnapshotTimes, StagedRecord, VolumeId, VolumeRecord,
    },
    gate::{ChunkIndex, OperationNumber},
};

/// Version of the tables, in `meta` under [`META_SCHEMA`].
pub const SCHEMA_VERSION: u64 = 1;
/// `meta` key: schema version.
pub const META_SCHEMA: &str = "schema";
/// `meta` key: committed transactions.
pub const META_TRANSACTION: &str = "transaction";
/// `meta` key: number of the next volume.
pub const META_NEXT_VOLUME: &str = "next_volume";
/// `meta` keys: UUID of the store, as two big-endian halves.
pub const META_STORE: [&str; 2] = ["store_uuid_high", "store_uuid_low"];

/// Slot number in a value that means "all zeros, no slot".
pub const SLOT_ZERO: u32 = u32::MAX;

pub const VOLUME_FIXED_BYTES: usize = 72;
pub const SNAPSHOT_FIXED_BYTES: usize = 128;
pub const STAGED_BYTES: usize = 280;
pub const ROW_BYTES: usize = 8;
pub const DAMAGED_BYTES: usize = 12;

pub type VolumeKey = [u8; 4];
pub type SnapshotKey = [u8; 8];
pub type RowKey = [u8; 12];
pub type ChunkKey = [u8; 8];
pub type SlotKey = [u8; 4];

pub const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
pub const VOLUMES: TableDefinition<&VolumeKey, &[u8]> = TableDefinition::new("volumes");
pub const SNAPSHOTS: TableDefinition<&SnapshotKey, &[u8]> = TableDefinition::new("snapshots");
pub const ROWS: TableDefinition<&RowKey, &[u8; ROW_BYTES]> = TableDefinition::new("rows");
pub const STAGED: TableDefinition<&ChunkKey, &[u8; STAGED_BYTES]> = TableDefinition::new("staged");
pub const DIRTY: TableDefinition<&ChunkKey, u64> = TableDefinition::new("dirty");
/// Made when it is first written to: a store may be without it.
pub const DAMAGED: TableDefinition<&SlotKey, &[u8; DAMAGED_BYTES]> =
    TableDefinition::new("damaged");

/// A value that cannot be decoded: what is wrong with it.
pub type Decoded<T> = Result<T, String>;

pub fn volume_key(volume: VolumeId) -> VolumeKey {
    volume.0.to_be_bytes()
}

pub fn volume_of(key: VolumeKey) -> VolumeId {
    VolumeId(u32::from_be_bytes(key))
}

/// Two numbers as an ordered key: (volume, seq), (volume, chunk) or (volume, dirty word).
pub fn pair_key(volume: VolumeId, second: u32) -> [u8; 8] {
    let mut key = [0; 8];
    put(&mut key, 0, &volume.0.to_be_bytes());
    put(&mut key, 4, &second.to_be_bytes());
    key
}

pub fn pair_of(key: [u8; 8]) -> (VolumeId, u32) {
    (VolumeId(u32::from_be_bytes(array_at(&key, 0))), u32::from_be_bytes(array_at(&key, 4)))
}

pub fn row_key(volume: VolumeId, seq: SnapshotSeq, chunk: ChunkIndex) -> RowKey {
    let mut key = [0; 12];
    put(&mut key, 0, &volume.0.to_be_bytes());
    put(&mut key, 4, &seq.0.to_be_bytes());
    put(&mut key, 8, &chunk.0.to_be_bytes());
    key
}

pub fn row_of(key: &RowKey) -> (VolumeId, SnapshotSeq, ChunkIndex) {
    (
        VolumeId(u32::from_be_bytes(array_at(key, 0))),
        SnapshotSeq(u32::from_be_bytes(array_at(key, 4))),
        ChunkIndex(u32::from_be_bytes(array_at(key, 8))),
    )
}

pub fn encode_slot_ref(slot_ref: SlotRef) -> [u8; ROW_BYTES] {
    let (slot, crc32c) = match slot_ref {
        SlotRef::Zero => (SLOT_ZERO, 0),
        SlotRef::Slot { slot, crc32c } => (slot.0, crc32c),
    };
    let mut value = [0; ROW_BYTES];
    put(&mut value, 0, &slot.to_le_bytes());
    put(&mut value, 4, &crc32c.to_le_bytes());
    value
}

pub fn decode_slot_ref(value: [u8; ROW_BYTES]) -> SlotRef {
    match u32_at(&value, 0) {
        SLOT_ZERO => SlotRef::Zero,
        slot => SlotRef::Slot { slot: SlotIndex(slot), crc32c: u32_at(&value, 4) },
    }
}

pub fn slot_key(slot: SlotIndex) -> SlotKey {
    slot.0.to_be_bytes()
}

pub fn slot_of(key: SlotKey) -> SlotIndex {
    SlotIndex(u32::from_be_bytes(key))
}

/// What is noted of a damaged slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedMark {
    /// When it was found, milliseconds since the Unix epoch.
    pub found_at_unix_ms: u64,
    /// That of the row that has the slot: without such a row the mark is void.
    pub crc32c: u32,
}

pub fn encode_damaged(mark: DamagedMark) -> [u8; DAMAGED_BYTES] {
    let mut value = [0; DAMAGED_BYTES];
    put(&mut value, 0, &mark.found_at_unix_ms.to_le_bytes());
    put(&mut value, 8, &mark.crc32c.to_le_bytes());
    value
}

pub fn decode_damaged(value: [u8; DAMAGED_BYTES]) -> DamagedMark {
    DamagedMark { found_at_unix_ms: u64_at(&value, 0), crc32c: u32_at(&value, 8) }
}

const VOLUME_CLEAN: u32 = 1;
const VOLUME_MASTER_HAS_UUID: u32 = 2;

/// A volume as stored: its record, and the highest sequence number ever given to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRow {
    pub record: VolumeRecord,
    pub last_seq: SnapshotSeq,
}

pub fn encode_volume(row: &VolumeRow) -> Vec<u8> {
    let VolumeRow { record, last_seq } = row;
    let mut value = vec![0; VOLUME_FIXED_BYTES];
    let mut flags = 0;
    if record.clean {
        flags |= VOLUME_CLEAN;
    }
    if let Some(uuid) = record.master.uuid {
        flags |= VOLUME_MASTER_HAS_UUID;
        put(&mut value, 16, uuid.as_bytes());
    }
    put(&mut value, 0, record.uuid.as_bytes());
    put(&mut value, 32, &flags.to_le_bytes());
    put(&mut value, 36, &record.chunk_bytes.to_le_bytes());
    put(&mut value, 40, &record.master.block_bytes.to_le_bytes());
    put(&mut value, 44, &last_seq.0.to_le_bytes());
    put(&mut value, 48, &record.master.block_count.to_le_bytes());
    put(&mut value, 56, &record.operation_number.0.to_le_bytes());
    put(&mut value, 64, &(record.name.len() as u16).to_le_bytes());
    value.extend_from_slice(record.name.as_bytes());
    value
}

fn text_at(value: &[u8], start: usize, length: usize) -> Decoded<String> {
    let bytes = value.get(start..start + length).ok_or("text behind the value's end")?;
    String::from_utf8(bytes.to_vec()).map_err(|_| "text that is not UTF-8".to_owned())
}

fn uuid_at(value: &[u8], offset: usize) -> Uuid {
    Uuid::from_bytes(array_at(value, offset))
}

pub fn decode_volume(id: VolumeId, value: &[u8]) -> Decoded<VolumeRow> {
    if value.len() < VOLUME_FIXED_BYTES {
        return Err(format!("volume {} has {} bytes", id.0, value.len()));
    }
    let flags = u32_at(value, 32);
    let master = MasterIdentity {
        uuid: (flags & VOLUME_MASTER_HAS_UUID != 0).then(|| uuid_at(value, 16)),
        block_bytes: u32_at(value, 40),
        block_count: u64_at(value, 48),
    };
    let record = VolumeRecord {
        id,
        name: text_at(value, VOLUME_FIXED_BYTES, usize::from(u16_at(value, 64)))?,
        uuid: uuid_at(value, 0),
        master,
        chunk_bytes: u32_at(value, 36),
        clean: flags & VOLUME_CLEAN != 0,
        operation_number: OperationNumber(u64_at(value, 56)),
    };
    Ok(VolumeRow { record, last_seq: SnapshotSeq(u32_at(value, 44)) })
}

const SNAPSHOT_HAS_REASON: u16 = 1;

fn state_number(state: SnapshotState) -> u16 {
    match state {
        SnapshotState::Completing => 1,
        SnapshotState::Complete => 2,
        SnapshotState::Failed => 3,
    }
}

pub fn encode_snapshot(record: &SnapshotRecord) -> Vec<u8> {
    let mut value = vec![0; SNAPSHOT_FIXED_BYTES];
    put(&mut value, 0, record.uuid.as_bytes());
    put(&mut value, 16, &record.operation_number.0.to_le_bytes());
    put(&mut value, 24, &record.created_at_unix_ms.to_le_bytes());
    put(&mut value, 32, &state_number(record.state).to_le_bytes());
    let reason = record.reason.as_deref().unwrap_or_default();
    let flags = if record.reason.is_some() { SNAPSHOT_HAS_REASON } else { 0 };
    put(&mut value, 34, &flags.to_le_bytes());
    put(&mut value, 36, &(record.name.len() as u16).to_le_bytes());
    put(&mut value, 38, &(reason.len() as u16).to_le_bytes());
    let ChunkCounts { total, required, adopted, copied, preserved, zero } = record.chunks;
    let SnapshotTimes { cut_us, consistent_us, complete_us } = record.times;
    let numbers = [
        total,
        required,
        adopted,
        copied,
        preserved,
        zero,
        cut_us,
        consistent_us,
        complete_us,
        record.bytes_used,
    ];
    for (index, number) in numbers.iter().enumerate() {
        put(&mut value, 40 + 8 * index, &number.to_le_bytes());
    }
    value.extend_from_slice(record.name.as_bytes());
    value.extend_from_slice(reason.as_bytes());
    value
}

pub fn decode_snapshot(
    volume: VolumeId,
    seq: SnapshotSeq,
    value: &[u8],
) -> Decoded<SnapshotRecord> {
    if value.len() < SNAPSHOT_FIXED_BYTES {
        return Err(format!("snapshot {}/{} has {} bytes", volume.0, seq.0, value.len()));
    }
    let state = match u16_at(value, 32) {
        1 => SnapshotState::Completing,
        2 => SnapshotState::Complete,
        3 => SnapshotState::Failed,
        other => return Err(format!("snapshot {}/{} has state {other}", volume.0, seq.0)),
    };
    let name_bytes = usize::from(u16_at(value, 36));
    let reason_bytes = usize::from(u16_at(value, 38));
    let reason = text_at(value, SNAPSHOT_FIXED_BYTES + name_bytes, reason_bytes)?;
    let number = |index: usize| u64_at(value, 40 + 8 * index);
    Ok(SnapshotRecord {
        volume,
        seq,
        name: text_at(value, SNAPSHOT_FIXED_BYTES, name_bytes)?,
        uuid: uuid_at(value, 0),
        operation_number: OperationNumber(u64_at(value, 16)),
        created_at_unix_ms: u64_at(value, 24),
        state,
        reason: (u16_at(value, 34) & SNAPSHOT_HAS_REASON != 0).then_some(reason),
        chunks: ChunkCounts {
            total: number(0),
            required: number(1),
            adopted: number(2),
            copied: number(3),
            preserved: number(4),
            zero: number(5),
        },
        times: SnapshotTimes {
            cut_us: number(6),
            consistent_us: number(7),
            complete_us: number(8),
        },
        bytes_used: number(9),
    })
}

pub fn encode_staged(staged: &StagedRecord) -> [u8; STAGED_BYTES] {
    let mut value = [0; STAGED_BYTES];
    put(&mut value, 0, &staged.operation_number.0.to_le_bytes());
    put(&mut value, 8, &staged.block_map.to_le_bytes());
    put(&mut value, 16, &staged.slot.map_or(SLOT_ZERO, |slot| slot.0).to_le_bytes());
    for (index, crc) in staged.block_crcs.iter().enumerate() {
        put(&mut value, 24 + 4 * index, &crc.to_le_bytes());
    }
    value
}

pub fn decode_staged(chunk: ChunkIndex, value: &[u8; STAGED_BYTES]) -> StagedRecord {
    let slot = u32_at(value, 16);
    let mut block_crcs = Box::new([0; BLOCKS_PER_CHUNK]);
    for (index, crc) in block_crcs.iter_mut().enumerate() {
        *crc = u32_at(value, 24 + 4 * index);
    }
    StagedRecord {
        chunk,
        operation_number: OperationNumber(u64_at(value, 0)),
        slot: (slot != SLOT_ZERO).then_some(SlotIndex(slot)),
        block_map: u64_at(value, 8),
        block_crcs,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn volumes_come_back(
            name in ".{0,40}",
            (uuid, master_uuid) in any::<(u128, Option<u128>)>(),
            (block_count, operation_number) in any::<(u64, u64)>(),
            (clean, last_seq, id) in any::<(bool, u32, u32)>(),
        ) {
            let record = VolumeRecord {
                id: VolumeId(id),
                name,
                uuid: Uuid::from_u128(uuid),
                master: MasterIdentity {
                    uuid: master_uuid.map(Uuid::from_u128),
                    block_bytes: 512,
                    block_count,
                },
                chunk_bytes: 1 << 18,
                clean,
                operation_number: OperationNumber(operation_number),
            };
            let row = VolumeRow { record, last_seq: SnapshotSeq(last_seq) };
            prop_assert_eq!(decode_volume(VolumeId(id), &encode_volume(&row)), Ok(row));
        }

        #[test]
        fn snapshots_come_back(
            name in ".{0,40}",
            reason in prop::option::of(".{0,80}"),
            numbers in any::<[u64; 12]>(),
            (uuid, volume, seq) in any::<(u128, u32, u32)>(),
            state in 0usize..3,
        ) {
            use SnapshotState::{Complete, Completing, Failed};
            let [total, required, adopted, copied, preserved, zero, ..] = numbers;
            let record = SnapshotRecord {
                volume: VolumeId(volume),
                seq: SnapshotSeq(seq),
                name,
                uuid: Uuid::from_u128(uuid),
                operation_number: OperationNumber(numbers[6]),
                created_at_unix_ms: numbers[7],
                state: [Completing, Complete, Failed][state],
                reason,
                chunks: ChunkCounts { total, required, adopted, copied, preserved, zero },
                times: SnapshotTimes {
                    cut_us: numbers[8],
                    consistent_us: numbers[9],
                    complete_us: numbers[10],
                },
                bytes_used: numbers[11],
            };
            let value = encode_snapshot(&record);
            let decoded = decode_snapshot(record.volume, record.seq, &value);
            prop_assert_eq!(decoded, Ok(record));
        }

        #[test]
        fn staged_entries_come_back(
            (chunk, op, map) in any::<(u32, u64, u64)>(),
            slot in prop::option::of(0u32..u32::MAX),
            first_crc in any::<u32>(),
        ) {
            let crcs = std::array::from_fn(|index| first_crc.rotate_left(index as u32));
            let staged = StagedRecord {
                chunk: ChunkIndex(chunk),
                operation_number: OperationNumber(op),
                slot: slot.map(SlotIndex),
                block_map: map,
                block_crcs: Box::new(crcs),
            };
            prop_assert_eq!(decode_staged(ChunkIndex(chunk), &encode_staged(&staged)), staged);
        }

        #[test]
        fn keys_order_like_numbers(a in any::<[u32; 3]>(), b in any::<[u32; 3]>()) {
            let key =
                |n: [u32; 3]| row_key(VolumeId(n[0]), SnapshotSeq(n[1]), ChunkIndex(n[2]));
            prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
            let (volume, seq, chunk) = row_of(&key(a));
            prop_assert_eq!([volume.0, seq.0, chunk.0], a);
        }
    }

    #[test]
    fn damaged_values_are_refused() {
        assert!(decode_volume(VolumeId(1), &[0; 71]).is_err());
        let mut value = vec![0; VOLUME_FIXED_BYTES];
        put(&mut value, 64, &9u16.to_le_bytes());
        assert!(decode_volume(VolumeId(1), &value).is_err());
        assert!(decode_snapshot(VolumeId(1), SnapshotSeq(1), &[0; 128]).is_err());
    }
}
