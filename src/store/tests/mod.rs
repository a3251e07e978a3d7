//! Tests of the store as a whole: format, load, what a crash leaves.

mod chain;
mod crash;
mod damage;
mod damaged_slots;
mod full;
mod measure;
mod probing;
mod thread;

use std::{collections::BTreeMap, sync::Arc};

use uuid::Uuid;

use super::{
    sim_device::{CrashMode, SimDevice},
    *,
};
use crate::{
    engine::records::{
        CatalogReply, CatalogRequest, Cause, MasterIdentity, SlotIndex, SlotRef, SnapshotRecord,
        StagedRecord, VolumeId, VolumeRecord,
    },
    gate::{ChunkIndex, OperationNumber},
};

const SLOT_BYTES: u32 = 64 << 10;

fn options(force: bool) -> FormatOptions {
    FormatOptions {
        name: "store0".to_owned(),
        uuid: Uuid::from_u128(0x1234),
        slot_bytes: SLOT_BYTES,
        force,
        created_at_unix_ms: 1_700_000_000_000,
    }
}

fn device() -> Arc<SimDevice> {
    Arc::new(SimDevice::new(512, 32 << 20))
}

fn volume_record(name: &str, chunks: u64) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(0),
        name: name.to_owned(),
        uuid: Uuid::from_u128(7),
        master: MasterIdentity {
            uuid: None,
            block_bytes: 512,
            block_count: chunks * u64::from(SLOT_BYTES) / 512,
        },
        chunk_bytes: SLOT_BYTES,
        clean: false,
        operation_number: OperationNumber(0),
    }
}

fn snapshot_record(volume: VolumeId, seq: u32, state: SnapshotState) -> SnapshotRecord {
    let uuid = Uuid::from_u128(u128::from(seq));
    SnapshotRecord {
        operation_number: OperationNumber(u64::from(seq) * 100),
        state,
        ..SnapshotRecord::asked_for(volume, SnapshotSeq(seq), format!("snap{seq}"), uuid, 1)
    }
}

fn at_slot(slot: u32) -> SlotRef {
    SlotRef::Slot { slot: SlotIndex(slot), crc32c: slot.wrapping_mul(0x9e37_79b9) }
}

/// Begins and completes a snapshot with these rows.
fn take(catalog: &mut Catalog, volume: VolumeId, seq: u32, rows: &[(u32, SlotRef)]) {
    let begin = snapshot_record(volume, seq, SnapshotState::Completing);
    catalog.execute(CatalogRequest::BeginSnapshot(begin)).unwrap();
    let mut record = snapshot_record(volume, seq, SnapshotState::Complete);
    let slots = rows.iter().filter(|(_, at)| at.slot().is_some()).count() as u64;
    record.bytes_used = slots * u64::from(SLOT_BYTES);
    let rows = rows.iter().map(|(chunk, at)| (ChunkIndex(*chunk), *at)).collect();
    catalog.execute(CatalogRequest::CompleteSnapshot { record, rows }).unwrap();
}

/// All that a store holds, to compare two of them.
#[derive(Clone, Debug, PartialEq)]
struct Content {
    volumes: Vec<LoadedVolume>,
    rows: BTreeMap<(VolumeId, SnapshotSeq, ChunkIndex), SlotRef>,
}

/// Reads all of a catalog, which must be in order.
fn content(catalog: &Catalog) -> Content {
    let report = catalog.check().unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    let mut content = Content { volumes: Vec::new(), rows: BTreeMap::new() };
    for record in catalog.volumes().unwrap() {
        content.volumes.push(catalog.load_state(record.id).unwrap());
        let visit = |seq, chunk, at| {
            content.rows.insert((record.id, seq, chunk), at);
            Ok(())
        };
        catalog.for_each_row(record.id, visit).unwrap();
    }
    content
}

#[test]
fn a_store_comes_back_as_it_was_left() {
    let device: SharedDevice = device();
    let mut store = format(&device, &options(false)).unwrap();
    assert_eq!(store.allocator.taken_count(), 0);
    let volume = store.catalog.create_volume(volume_record("vol0", 100)).unwrap().id;
    store.catalog.execute(CatalogRequest::OpenVolume { volume }).unwrap();
    take(&mut store.catalog, volume, 1, &[(0, at_slot(5)), (1, SlotRef::Zero), (99, at_slot(6))]);
    take(&mut store.catalog, volume, 2, &[]);
    take(&mut store.catalog, volume, 3, &[(0, at_slot(7))]);
    let staged = StagedRecord {
        chunk: ChunkIndex(4),
        operation_number: OperationNumber(500),
        slot: Some(SlotIndex(8)),
        block_map: 0,
        block_crcs: Box::new([3; 64]),
    };
    store
        .catalog
        .execute(CatalogRequest::CloseVolume {
            volume,
            operation_number: OperationNumber(1000),
            dirty_words: vec![(1, 0xff)],
            staged: vec![staged.clone()],
        })
        .unwrap();
    store.catalog.close().unwrap();
    drop(store);

    let store = load(&device).unwrap();
    assert_eq!(store.repaired, None);
    assert_eq!(store.allocator.taken_count(), 4);
    let [volume] = &store.volumes[..] else { panic!("one volume") };
    assert!(volume.state.record.clean);
    assert_eq!(volume.state.record.operation_number, OperationNumber(1000));
    assert_eq!(volume.state.dirty_words, [(1, 0xff)]);
    assert_eq!(volume.state.staged, [staged]);
    let views: Vec<_> = volume
        .views
        .iter()
        .map(|(seq, map)| (seq.0, map.iter().map(|(c, at)| (c.0, at)).collect::<Vec<_>>()))
        .collect();
    let first = vec![(0, at_slot(5)), (1, SlotRef::Zero), (99, at_slot(6))];
    let last = vec![(0, at_slot(7)), (1, SlotRef::Zero), (99, at_slot(6))];
    assert_eq!(views, [(1, first.clone()), (2, first), (3, last)]);
    let report = store.catalog.check().unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
}

#[test]
fn format_asks_before_it_destroys() {
    let device: SharedDevice = device();
    format(&device, &options(false)).unwrap();
    let error = format(&device, &options(false)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Occupied);
    assert!(error.to_string().contains("store0"), "{error}");
    format(&device, &options(true)).unwrap();
}

#[test]
fn a_device_too_small_is_told_the_least_size() {
    for (slot_bytes, block_bytes) in [(64 << 10, 512), (4 << 20, 4096)] {
        let options = FormatOptions { slot_bytes, ..options(false) };
        let small: SharedDevice = Arc::new(SimDevice::new(block_bytes, 8 << 20));
        let Err(Error::TooSmall { least_bytes, .. }) = format(&small, &options) else {
            panic!("too small")
        };
        let smaller: SharedDevice =
            Arc::new(SimDevice::new(block_bytes, least_bytes - u64::from(block_bytes)));
        assert_eq!(format(&smaller, &options).unwrap_err().kind(), ErrorKind::Invalid);
        let least: SharedDevice = Arc::new(SimDevice::new(block_bytes, least_bytes));
        let store = format(&least, &options).unwrap();
        assert_eq!(store.superblock.slot_count, 1);
        assert_eq!(store.superblock.slot_offset(SlotIndex(0)) + u64::from(slot_bytes), least_bytes);
    }
}

#[test]
fn deleting_hands_over_what_the_next_needs() {
    let device: SharedDevice = device();
    let mut catalog = format(&device, &options(false)).unwrap().catalog;
    let volume = catalog.create_volume(volume_record("vol0", 100)).unwrap().id;
    take(&mut catalog, volume, 1, &[(0, at_slot(0)), (1, at_slot(1)), (2, SlotRef::Zero)]);
    take(&mut catalog, volume, 2, &[(1, at_slot(2))]);
    let delete = |seq| CatalogRequest::DeleteSnapshot { volume, seq: SnapshotSeq(seq) };
    assert_eq!(
        catalog.execute(delete(1)).unwrap(),
        CatalogReply::Deleted { freed: vec![SlotIndex(1)], dirtied: vec![], handed_over: 2 }
    );
    assert_eq!(catalog.check().unwrap().problems, Vec::<String>::new());
    assert_eq!(
        catalog.execute(delete(2)).unwrap(),
        CatalogReply::Deleted {
            freed: vec![SlotIndex(0), SlotIndex(2)],
            dirtied: vec![ChunkIndex(0), ChunkIndex(1), ChunkIndex(2)],
            handed_over: 0
        }
    );
    assert_eq!(catalog.check().unwrap().rows, 0);
}

/// I4: whoever asks has lost track.
#[test]
fn a_complete_snapshot_is_not_failed() {
    let device: SharedDevice = device();
    let mut catalog = format(&device, &options(false)).unwrap().catalog;
    let volume = catalog.create_volume(volume_record("vol0", 100)).unwrap().id;
    take(&mut catalog, volume, 1, &[(0, at_slot(0))]);
    let before = content(&catalog);
    let fail = CatalogRequest::FailSnapshot(snapshot_record(volume, 1, SnapshotState::Failed));
    assert!(matches!(catalog.execute(fail), Err(Error::Refused { .. })));
    assert_eq!(content(&catalog), before);
}

#[test]
fn an_interrupted_snapshot_is_failed_at_load() {
    let sim = device();
    let device: SharedDevice = sim.clone();
    let mut catalog = format(&device, &options(false)).unwrap().catalog;
    let volume = catalog.create_volume(volume_record("vol0", 100)).unwrap().id;
    take(&mut catalog, volume, 1, &[(0, at_slot(0))]);
    let begin = snapshot_record(volume, 2, SnapshotState::Completing);
    catalog.execute(CatalogRequest::BeginSnapshot(begin)).unwrap();
    catalog
        .execute(CatalogRequest::AddRows {
            volume,
            seq: SnapshotSeq(2),
            rows: vec![(ChunkIndex(3), at_slot(9))],
        })
        .unwrap();
    let crashed: SharedDevice = Arc::new(sim.crash(CrashMode::LoseAll));
    let store = load(&crashed).unwrap();
    let snapshots = &store.volumes[0].state.snapshots;
    assert_eq!(snapshots[1].state, SnapshotState::Failed);
    assert_eq!(snapshots[1].reason.as_deref(), Some("interrupted by an unclean stop"));
    assert_eq!(store.allocator.taken_count(), 1);
    assert_eq!(store.catalog.check().unwrap().problems, Vec::<String>::new());
}
