//! Numbers for docs/on-disk-format.md and docs/figures.md; run by hand in release:
//! `cargo test --release --no-default-features measure -- --ignored --nocapture`.

#![allow(clippy::cast_precision_loss, reason = "for people")]

use std::{hint::black_box, time::Instant};

use super::*;
use crate::engine::crc::{CrcCombiner, is_zero};

fn per(count: u64, start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64 / count as f64
}

#[test]
#[ignore = "prints measurements"]
fn measure_the_catalog() {
    let sim = Arc::new(SimDevice::new(4096, 32 << 30));
    let shared: SharedDevice = sim.clone();
    let mut catalog = format(&shared, &options(false)).unwrap().catalog;
    let volume = catalog.create_volume(volume_record("vol0", 1 << 26)).unwrap().id;
    let before = catalog.usage().unwrap().used_bytes;
    let mut operations = sim.operations();
    let mut bytes = sim.bytes_written();
    let mut report = |what: &str, start: Instant, count: u64| {
        println!(
            "{what}: {:.1} us, {:.1} device operations, {} bytes written each",
            per(count, start) / 1000.0,
            (sim.operations() - operations) as f64 / count as f64,
            (sim.bytes_written() - bytes) / count
        );
        operations = sim.operations();
        bytes = sim.bytes_written();
    };
    let begin = |seq| {
        CatalogRequest::BeginSnapshot(snapshot_record(volume, seq, SnapshotState::Completing))
    };
    let complete = |seq| CatalogRequest::CompleteSnapshot {
        record: snapshot_record(volume, seq, SnapshotState::Complete),
        rows: vec![],
    };
    let start = Instant::now();
    for seq in 1..=1000 {
        catalog.execute(begin(seq)).unwrap();
        catalog.execute(complete(seq)).unwrap();
    }
    report("begin and complete, empty, up to 1000 snapshots", start, 2000);
    let batch = |seq: u32, chunks: &mut dyn Iterator<Item = u32>| CatalogRequest::AddRows {
        volume,
        seq: SnapshotSeq(seq),
        rows: chunks.map(|chunk| (ChunkIndex(chunk), at_slot(chunk % 400_000))).collect(),
    };
    catalog.execute(begin(1001)).unwrap();
    let start = Instant::now();
    for number in 0..100u32 {
        catalog.execute(batch(1001, &mut (number * 1024..(number + 1) * 1024))).unwrap();
    }
    report("1024 rows in order", start, 100);
    catalog.execute(complete(1001)).unwrap();
    let used = catalog.usage().unwrap().used_bytes;
    println!("bytes per row, in order: {:.1}", (used - before) as f64 / 102_400.0);
    catalog.execute(begin(1002)).unwrap();
    let start = Instant::now();
    for number in 0..100u32 {
        let mut chunks =
            (number * 1024..(number + 1) * 1024).map(|index| index.wrapping_mul(0x9e37_79b1) >> 6);
        catalog.execute(batch(1002, &mut chunks)).unwrap();
    }
    report("1024 rows spread", start, 100);
    catalog.execute(complete(1002)).unwrap();
    let spread = catalog.usage().unwrap().used_bytes;
    println!("bytes per row, spread: {:.1}", (spread - used) as f64 / 102_400.0);
    let start = Instant::now();
    let request = CatalogRequest::DeleteSnapshot { volume, seq: SnapshotSeq(1001) };
    catalog.execute(request).unwrap();
    report("delete 102400 rows, handing on", start, 1);
    let start = Instant::now();
    let request = CatalogRequest::DeleteSnapshot { volume, seq: SnapshotSeq(1002) };
    catalog.execute(request).unwrap();
    report("delete 204800 rows", start, 1);

    let before = catalog.usage().unwrap().used_bytes;
    let staged = (0..100_000u32).map(|index| StagedRecord {
        chunk: ChunkIndex(index * 3),
        operation_number: OperationNumber(1),
        slot: Some(SlotIndex(index)),
        block_map: 0,
        block_crcs: Box::new([index; 64]),
    });
    let request = CatalogRequest::CloseVolume {
        volume,
        operation_number: OperationNumber(1),
        dirty_words: (0..100_000).map(|word| (word, u64::MAX)).collect(),
        staged: staged.collect(),
    };
    let start = Instant::now();
    catalog.execute(request).unwrap();
    report("close with 100000 staged, 100000 dirty words", start, 1);
    let used = catalog.usage().unwrap().used_bytes;
    println!("bytes per staged entry and dirty word: {:.1}", (used - before) as f64 / 100_000.0);
    println!("{:?}", catalog.usage().unwrap());
    let crashed: SharedDevice = Arc::new(sim.crash(CrashMode::LoseAll));
    let start = Instant::now();
    drop(load(&crashed).unwrap());
    println!("load after a crash: {:.1} ms", per(1, start) / 1e6);
}

#[test]
#[ignore = "prints measurements"]
fn measure_a_slot_map() {
    // 1 TiB of 256 KiB chunks.
    const CHUNKS: u32 = 1 << 22;
    let mut map = SlotMap::new(CHUNKS);
    let start = Instant::now();
    for chunk in 0..CHUNKS {
        map.insert(ChunkIndex(chunk), at_slot(chunk));
    }
    println!("insert in order: {:.1} ns", per(u64::from(CHUNKS), start));
    println!("memory of 1 TiB: {:.2} MiB", map.memory_bytes().own as f64 / f64::from(1 << 20));
    for (what, factor) in [("in order", 1u32), ("spread", 0x9e37_79b1)] {
        let start = Instant::now();
        for index in 0..CHUNKS {
            black_box(map.get(ChunkIndex(index.wrapping_mul(factor) % CHUNKS)));
        }
        println!("get {what}: {:.1} ns", per(u64::from(CHUNKS), start));
    }
    let start = Instant::now();
    let mut views = Vec::new();
    for snapshot in 0..1000u32 {
        views.push(map.clone());
        for change in 0..1000u32 {
            let chunk = (snapshot * 1000 + change).wrapping_mul(0x9e37_79b1) % CHUNKS;
            map.insert(ChunkIndex(chunk), SlotRef::Zero);
        }
    }
    println!("insert spread into shared: {:.1} ns", per(1_000_000, start));
    println!("own memory of a view with 1000 spread changes: {:?}", views[500].memory_bytes());
}

#[test]
#[ignore = "prints measurements"]
fn measure_checksums() {
    let combiner = CrcCombiner::new(4096);
    let chunk: Vec<u8> = (0..256u32 << 10).map(|index| ((index * 31) >> 3) as u8).collect();
    let start = Instant::now();
    for _ in 0..1000 {
        black_box(combiner.block_crcs(black_box(&chunk)));
    }
    println!("64 block checksums of 256 KiB: {:.1} us", per(1000, start) / 1000.0);
    let crcs = combiner.block_crcs(&chunk);
    for (what, valid) in [("whole chunk", 256 << 10), ("with a tail", (256 << 10) - 512)] {
        let start = Instant::now();
        for _ in 0..1_000_000 {
            black_box(combiner.combine(black_box(&crcs), valid));
        }
        println!("combine 64, {what}: {:.1} ns", per(1_000_000, start));
    }
    let zeros = vec![0; 256 << 10];
    let start = Instant::now();
    for _ in 0..10_000 {
        black_box(is_zero(black_box(&zeros)));
    }
    println!("is_zero of 256 KiB of zeros: {:.2} us", per(10_000, start) / 1000.0);
    let start = Instant::now();
    black_box(CrcCombiner::new(black_box(4096)));
    println!("new combiner: {:.1} us", per(1, start) / 1000.0);
    let mut allocator = SlotAllocator::new(1 << 22);
    let start = Instant::now();
    while allocator.allocate().is_ok() {}
    println!("allocate a slot: {:.1} ns", per(1 << 22, start));
}
