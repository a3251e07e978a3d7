//! Which slots are damaged, over loads, deletions and power cuts. `chain` has all of it beside a model.

use super::*;

fn found(volume: VolumeId, chunk: u32, slot: u32) -> DamagedSlot {
    let SlotRef::Slot { slot, crc32c } = at_slot(slot) else { panic!("a slot") };
    DamagedSlot { slot, volume, chunk: ChunkIndex(chunk), crc32c, found_at_unix_ms: 77 }
}

/// Two snapshots: chunk 0 in slots 0 and 2, chunk 1 in slot 1 for both.
fn store() -> (Arc<SimDevice>, Catalog, VolumeId) {
    let sim = device();
    let shared: SharedDevice = sim.clone();
    let mut catalog = format(&shared, &options(false)).unwrap().catalog;
    let volume = catalog.create_volume(volume_record("vol0", 100)).unwrap().id;
    take(&mut catalog, volume, 1, &[(0, at_slot(0)), (1, at_slot(1)), (9, SlotRef::Zero)]);
    take(&mut catalog, volume, 2, &[(0, at_slot(2))]);
    (sim, catalog, volume)
}

fn load_again(sim: &SimDevice) -> LoadedStore {
    let crashed: SharedDevice = Arc::new(sim.crash(CrashMode::LoseAll));
    load(&crashed).unwrap()
}

#[test]
fn a_load_knows_what_was_damaged() {
    let (sim, mut catalog, volume) = store();
    assert!(catalog.mark_damaged(found(volume, 1, 1)).unwrap());
    let store = load_again(&sim);
    assert_eq!(store.damaged, [found(volume, 1, 1)]);
    let marked = (0..4).map(|slot| store.allocator.damaged().contains(SlotIndex(slot)));
    assert_eq!(marked.collect::<Vec<_>>(), [false, true, false, false]);
}

/// The row that a deleted snapshot had moves to the next, and with it the damage.
#[test]
fn damage_goes_with_the_slot_and_ends_with_it() {
    let (sim, mut catalog, volume) = store();
    for (chunk, slot) in [(0, 0), (1, 1), (0, 2)] {
        assert!(catalog.mark_damaged(found(volume, chunk, slot)).unwrap());
    }
    let delete = |seq| CatalogRequest::DeleteSnapshot { volume, seq: SnapshotSeq(seq) };
    catalog.execute(delete(1)).unwrap();
    assert_eq!(load_again(&sim).damaged, [found(volume, 0, 2), found(volume, 1, 1)]);
    assert!(!catalog.mark_damaged(found(volume, 0, 0)).unwrap(), "nobody has it any more");
    catalog.unmark_damaged(SlotIndex(2)).unwrap();
    assert_eq!(load_again(&sim).damaged, [found(volume, 1, 1)]);
    catalog.execute(delete(2)).unwrap();
    // Filled anew, with the same content even.
    take(&mut catalog, volume, 3, &[(1, at_slot(1))]);
    assert_eq!(load_again(&sim).damaged, []);
    assert_eq!(catalog.check().unwrap().problems, Vec::<String>::new());
}

#[test]
fn the_slots_of_a_failed_snapshot_are_not_damaged() {
    for interrupted in [false, true] {
        let (sim, mut catalog, volume) = store();
        let begin = snapshot_record(volume, 3, SnapshotState::Completing);
        catalog.execute(CatalogRequest::BeginSnapshot(begin)).unwrap();
        let (seq, rows) = (SnapshotSeq(3), vec![(ChunkIndex(5), at_slot(7))]);
        catalog.execute(CatalogRequest::AddRows { volume, seq, rows }).unwrap();
        assert!(catalog.mark_damaged(found(volume, 5, 7)).unwrap());
        if !interrupted {
            let failed = snapshot_record(volume, 3, SnapshotState::Failed);
            catalog.execute(CatalogRequest::FailSnapshot(failed)).unwrap();
        }
        let store = load_again(&sim);
        assert_eq!(store.damaged, [], "interrupted: {interrupted}");
        assert_eq!(store.catalog.check().unwrap().problems, Vec::<String>::new());
    }
}

/// The next snapshot of a volume that was stopped cleanly copies the chunk again, if it would have
/// taken over what is damaged.
#[test]
fn what_the_next_snapshot_would_take_over_becomes_dirty() {
    let (_, mut catalog, volume) = store();
    let close = CatalogRequest::CloseVolume {
        volume,
        operation_number: OperationNumber(1),
        dirty_words: vec![(0, 1 << 40)],
        staged: vec![],
    };
    catalog.execute(close).unwrap();
    assert!(catalog.mark_damaged(found(volume, 0, 0)).unwrap());
    let dirty = |catalog: &Catalog| catalog.load_state(volume).unwrap().dirty_words;
    assert_eq!(dirty(&catalog), [(0, 1 << 40)], "the newest snapshot has another slot");
    assert!(catalog.mark_damaged(found(volume, 1, 1)).unwrap());
    assert_eq!(dirty(&catalog), [(0, 1 << 40 | 1 << 1)]);
}

#[test]
fn a_saved_copy_that_is_dropped_stays_dirty() {
    let (_, mut catalog, volume) = store();
    let staged = StagedRecord {
        chunk: ChunkIndex(4),
        operation_number: OperationNumber(1),
        slot: Some(SlotIndex(8)),
        block_map: 0,
        block_crcs: Box::new([3; 64]),
    };
    let close = CatalogRequest::CloseVolume {
        volume,
        operation_number: OperationNumber(1),
        dirty_words: vec![],
        staged: vec![staged],
    };
    catalog.execute(close).unwrap();
    let mut drop_copy = |slot| catalog.drop_saved_copy(volume, ChunkIndex(4), SlotIndex(slot));
    assert!(!drop_copy(7).unwrap(), "it is in another slot");
    assert!(drop_copy(8).unwrap());
    assert!(!drop_copy(8).unwrap(), "it is gone");
    let state = catalog.load_state(volume).unwrap();
    assert_eq!((state.staged, state.dirty_words), (vec![], vec![(0, 1 << 4)]));
}

/// Rows come in portions, each once, those without a slot left out.
#[test]
fn rows_come_in_portions() {
    let (_, mut catalog, first) = store();
    let second = catalog.create_volume(volume_record("vol1", 100)).unwrap().id;
    take(&mut catalog, second, 1, &[(3, at_slot(3))]);
    let row = |volume, seq, chunk, slot| {
        let DamagedSlot { slot, chunk, crc32c, .. } = found(volume, chunk, slot);
        ScrubRow { volume, seq: SnapshotSeq(seq), chunk, slot, crc32c }
    };
    let expected =
        [row(first, 1, 0, 0), row(first, 1, 1, 1), row(first, 2, 0, 2), row(second, 1, 3, 3)];
    for rows_max in 1..7 {
        let (mut rows, mut place, mut portions) = (Vec::new(), Some(RowPlace::default()), 0);
        while let Some(from) = place {
            let portion = catalog.portion(from, rows_max).unwrap();
            assert!(portion.rows.len() <= rows_max);
            rows.extend(portion.rows);
            (place, portions) = (portion.next, portions + 1);
        }
        assert_eq!(rows, expected);
        assert_eq!(portions, 5_usize.div_ceil(rows_max), "five rows, one of them of zeros");
    }
}

/// A presnap that does not know the table frees a slot and fills it anew, and leaves the mark.
#[test]
fn a_mark_of_another_content_is_void() {
    let (sim, mut catalog, volume) = store();
    assert!(catalog.mark_damaged(found(volume, 1, 1)).unwrap());
    catalog.corrupt_mark(SlotIndex(1), 1);
    assert_eq!(load_again(&sim).damaged, []);
}

/// A store of before: the table is not there, and nothing is missed.
#[test]
fn a_store_without_the_table_loads() {
    let sim = device();
    let shared: SharedDevice = sim.clone();
    let packed = include_bytes!("golden-v1.zst");
    sim.poke(0, &zstd::bulk::decompress(packed, 64 << 20).unwrap());
    let mut store = load(&shared).unwrap();
    assert_eq!(store.damaged, []);
    let tables = store.catalog.table_names();
    assert!(!tables.contains(&"damaged".to_owned()), "{tables:?}");
    // It is made when it is needed.
    let row = store.catalog.rows_from(RowPlace::default()).unwrap().rows[0];
    let ScrubRow { volume, chunk, slot, crc32c, .. } = row;
    let damaged = DamagedSlot { slot, volume, chunk, crc32c, found_at_unix_ms: 1 };
    assert!(store.catalog.mark_damaged(damaged).unwrap());
    assert_eq!(load_again(&sim).damaged, [damaged]);
}
