//! A catalog region that runs full: one clean error, then deleting makes room again.

use super::*;

/// 16 TiB of 64 KiB chunks: more rows of zero chunks than the smallest region can hold.
const CHUNKS: u32 = 1 << 28;
const BATCH: u32 = 20_000;

fn batch(seq: u32, number: u32, spread: u32) -> CatalogRequest {
    let chunks = number * BATCH..(number + 1) * BATCH;
    let rows = chunks.map(|chunk| (ChunkIndex(chunk.wrapping_mul(spread) % CHUNKS), SlotRef::Zero));
    CatalogRequest::AddRows { volume: VolumeId(1), seq: SnapshotSeq(seq), rows: rows.collect() }
}

fn begin(catalog: &mut Catalog, seq: u32) {
    let record = snapshot_record(VolumeId(1), seq, SnapshotState::Completing);
    catalog.execute(CatalogRequest::BeginSnapshot(record)).unwrap();
}

/// Adds batches until the catalog is full; the number that went in.
fn fill(catalog: &mut Catalog, seq: u32, spread: u32) -> u32 {
    for number in 0.. {
        match catalog.execute(batch(seq, number, spread)) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Full, "{}", super::super::chain(&error));
                assert_eq!(error.kind().cause(), Cause::NoSpace);
                assert!(error.to_string().contains("delete snapshots"), "{error}");
                return number;
            }
        }
    }
    unreachable!("a region has an end")
}

#[test]
fn full_is_an_error_and_deleting_helps() {
    // In order, and spread over the volume so that each batch touches many pages.
    // The latter copies most of the table in each transaction, so half of the region is lost to it.
    for (spread, bytes_per_row_max) in [(1, 30), (0x9e37_79b1, 80)] {
        let sim = device();
        let shared: SharedDevice = sim.clone();
        let mut catalog = format(&shared, &options(false)).unwrap().catalog;
        catalog.create_volume(volume_record("vol0", u64::from(CHUNKS))).unwrap();
        begin(&mut catalog, 1);
        let batches = fill(&mut catalog, 1, spread);
        let rows = u64::from(batches) * u64::from(BATCH);
        let usage = catalog.usage().unwrap();
        assert_eq!(usage.file_bytes, usage.region_bytes - 8192, "all of the region is used");
        assert!(rows * bytes_per_row_max > usage.region_bytes, "{rows} rows in {usage:?}");
        let report = catalog.check().unwrap();
        assert_eq!((report.rows, report.problems), (rows, vec![]));
        // A second refusal changes nothing either, nor does a restart.
        fill(&mut catalog, 1, spread.wrapping_add(2));
        drop(catalog);
        let crashed: SharedDevice = Arc::new(sim.crash(CrashMode::LoseAll));
        let superblock = Superblock::find(&*crashed).unwrap().superblock;
        let mut catalog = Catalog::open_as_left(crashed, &superblock).unwrap();
        assert!(catalog.check().unwrap().rows >= rows);
        // What frees room still goes through.
        let mut failed = snapshot_record(VolumeId(1), 1, SnapshotState::Failed);
        failed.reason = Some("catalog full".to_owned());
        catalog.execute(CatalogRequest::FailSnapshot(failed)).unwrap();
        assert_eq!(catalog.check().unwrap().rows, 0);
        begin(&mut catalog, 2);
        let again = fill(&mut catalog, 2, spread);
        assert!(again + 2 >= batches, "{again} batches after {batches}");
    }
}

#[test]
fn a_full_catalog_hands_rows_over() {
    let sim = device();
    let shared: SharedDevice = sim.clone();
    let mut catalog = format(&shared, &options(false)).unwrap().catalog;
    catalog.create_volume(volume_record("vol0", u64::from(CHUNKS))).unwrap();
    begin(&mut catalog, 1);
    for number in 0..5 {
        catalog.execute(batch(1, number, 1)).unwrap();
    }
    let complete = |seq| CatalogRequest::CompleteSnapshot {
        record: snapshot_record(VolumeId(1), seq, SnapshotState::Complete),
        rows: vec![],
    };
    catalog.execute(complete(1)).unwrap();
    begin(&mut catalog, 2);
    let batches = fill(&mut catalog, 2, 3);
    catalog.execute(complete(2)).unwrap();
    // All rows that only the first has move into the full table of the second.
    let request = CatalogRequest::DeleteSnapshot { volume: VolumeId(1), seq: SnapshotSeq(1) };
    let CatalogReply::Deleted { handed_over, .. } = catalog.execute(request).unwrap() else {
        panic!("a delete is answered as one")
    };
    let rows = catalog.check().unwrap().rows;
    assert_eq!(rows, handed_over + u64::from(batches) * u64::from(BATCH));
}
