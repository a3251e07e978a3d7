//! Damaged superblocks, the golden image, and the format against its document.

use super::{
    super::{
        region,
        superblock::{CopyId, Unverified, layout},
    },
    *,
};
use crate::engine::{
    crc::crc32c,
    records::{ChunkCounts, SnapshotTimes},
};

fn damage(sim: &SimDevice, offset: u64) {
    let mut byte = [0];
    sim.peek(offset, &mut byte);
    sim.poke(offset, &[byte[0] ^ 0x40]);
}

fn store() -> (Arc<SimDevice>, SharedDevice) {
    let sim = device();
    let shared: SharedDevice = sim.clone();
    let mut store = format(&shared, &options(false)).unwrap();
    store.catalog.create_volume(volume_record("vol0", 100)).unwrap();
    store.catalog.close().unwrap();
    (sim, shared)
}

#[test]
fn one_damaged_copy_is_served_by_the_other_and_repaired() {
    for copy in [CopyId::A, CopyId::B] {
        for field in [layout::AT_MAGIC, layout::AT_SLOT_COUNT, layout::AT_NAME, layout::AT_CHECKSUM]
        {
            let (sim, shared) = store();
            damage(&sim, copy.offset() + field as u64);
            let loaded = load(&shared).unwrap();
            let repaired = loaded.repaired.expect("the repair is reported");
            assert!(repaired.contains(&format!("copy {copy:?}")), "{repaired}");
            assert_eq!(loaded.volumes.len(), 1);
            drop(loaded.catalog);
            assert_eq!(load(&shared).unwrap().repaired, None);
        }
    }
}

#[test]
fn an_unreadable_copy_is_served_by_the_other() {
    let (sim, _) = store();
    sim.fail_reads(0, 512);
    let found = Superblock::find(&*sim).unwrap();
    assert_eq!(found.stale.unwrap().0, CopyId::A);
}

#[test]
fn two_damaged_copies_are_an_error_with_a_remedy() {
    let (sim, shared) = store();
    damage(&sim, layout::COPY_A_OFFSET + 40);
    damage(&sim, layout::COPY_B_OFFSET + 41);
    let error = load(&shared).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("format it anew"), "{error}");
    assert!(matches!(probe(&*shared).unwrap(), Probe::UnloadableStore { .. }));
    // What may still be of use to somebody is not formatted unasked.
    assert_eq!(format(&shared, &options(false)).unwrap_err().kind(), ErrorKind::Occupied);
}

/// Changes a field of both copies and sets their checksums right again.
fn rewrite(sim: &SimDevice, field: usize, value: &[u8]) {
    for copy in [CopyId::A, CopyId::B] {
        let mut bytes = vec![0; layout::SUPERBLOCK_BYTES];
        sim.peek(copy.offset(), &mut bytes);
        bytes[field..field + value.len()].copy_from_slice(value);
        let checksum = crc32c(&bytes[..layout::AT_CHECKSUM]);
        bytes[layout::AT_CHECKSUM..layout::AT_CHECKSUM + 4]
            .copy_from_slice(&checksum.to_le_bytes());
        sim.poke(copy.offset(), &bytes);
    }
}

#[test]
fn what_a_newer_presnap_wrote_is_refused() {
    let newer = [
        (layout::AT_VERSION, (layout::VERSION + 1).to_le_bytes().to_vec()),
        (layout::AT_FEATURES_INCOMPAT, (1u64 << 40).to_le_bytes().to_vec()),
    ];
    for (field, value) in newer {
        let (sim, shared) = store();
        rewrite(&sim, field, &value);
        let error = load(&shared).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("newer presnap"), "{error}");
        assert_eq!(format(&shared, &options(false)).unwrap_err().kind(), ErrorKind::Occupied);
    }
    let (sim, shared) = store();
    rewrite(&sim, layout::AT_FEATURES_COMPAT, &u64::MAX.to_le_bytes());
    load(&shared).expect("compatible features may be ignored");
}

#[test]
fn impossible_content_is_refused() {
    let impossible = [
        (layout::AT_SLOT_COUNT, u32::MAX.to_le_bytes().to_vec()),
        (layout::AT_SLOT_BYTES, 100_000u32.to_le_bytes().to_vec()),
        (layout::AT_SLOTS_OFFSET, 0u64.to_le_bytes().to_vec()),
        (layout::AT_CATALOG_BYTES, u64::MAX.to_le_bytes().to_vec()),
        (layout::AT_NAME_BYTES, u32::MAX.to_le_bytes().to_vec()),
        (layout::AT_NAME, vec![0xff; 6]),
    ];
    for (field, value) in impossible {
        let (sim, shared) = store();
        rewrite(&sim, field, &value);
        assert_eq!(load(&shared).unwrap_err().kind(), ErrorKind::Damaged, "field at {field}");
    }
}

#[test]
fn a_smaller_device_is_refused() {
    let (sim, _) = store();
    let bytes = sim.to_vec();
    let smaller = Arc::new(SimDevice::new(512, (32 << 20) - 512));
    smaller.poke(0, &bytes[..(32 << 20) - 512]);
    let smaller: SharedDevice = smaller;
    assert!(matches!(load(&smaller), Err(Error::Shrunk { .. })));
    // A larger one serves as before.
    let larger = Arc::new(SimDevice::new(512, 64 << 20));
    larger.poke(0, &bytes);
    let larger: SharedDevice = larger;
    assert_eq!(load(&larger).unwrap().volumes.len(), 1);
}

#[test]
fn another_stores_catalog_is_refused() {
    let (sim, shared) = store();
    rewrite(&sim, layout::AT_UUID, &[9; 16]);
    let error = load(&shared).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("belongs to store"), "{error}");
}

#[test]
fn a_damaged_catalog_is_an_error_and_no_panic() {
    // Any page, after a crash as after a clean stop.
    let sim = device();
    let shared: SharedDevice = sim.clone();
    let mut catalog = format(&shared, &options(false)).unwrap().catalog;
    let volume = catalog.create_volume(volume_record("vol0", 20_000)).unwrap().id;
    let rows: Vec<_> = (0..10_000).map(|chunk| (chunk, SlotRef::Zero)).collect();
    take(&mut catalog, volume, 1, &rows);
    let stopped_by_a_crash = sim.crash(CrashMode::LoseAll);
    catalog.close().unwrap();
    for start in [stopped_by_a_crash, sim.crash(CrashMode::LoseAll)] {
        damage_each_page(&start);
    }
}

fn damage_each_page(start: &SimDevice) {
    let file = layout::HEADER_BYTES + region::layout::FILE_OFFSET;
    let (mut refused, mut harmless) = (0, 0);
    for page in 0..120 {
        let damaged = Arc::new(start.fork());
        damage(&damaged, file + page * region::layout::PAGE_BYTES + 100);
        let shared: SharedDevice = damaged;
        match load(&shared) {
            Err(error) => {
                refused += 1;
                assert_eq!(error.kind(), ErrorKind::Damaged, "page {page}: {}", chain(&error));
            }
            Ok(store) => {
                harmless += 1;
                assert_eq!(store.catalog.check().unwrap().rows, 10_000, "page {page}");
            }
        }
    }
    assert!(refused > 10 && harmless > 10, "{refused} refused, {harmless} harmless");
}

/// Fails when the file is taken to end where the former record says and the rest is zeroed.
#[test]
fn a_lost_length_record_costs_nothing_of_the_catalog() {
    let sim = device();
    let shared: SharedDevice = sim.clone();
    let mut catalog = format(&shared, &options(false)).unwrap().catalog;
    let volume = catalog.create_volume(volume_record("vol0", 20_000)).unwrap().id;
    // The file grows with it, so that the newer record has the greater length.
    let rows: Vec<_> = (0..20_000).map(|chunk| (chunk, SlotRef::Zero)).collect();
    take(&mut catalog, volume, 1, &rows);
    let expected = content(&catalog);
    let in_use = sim.crash(CrashMode::LoseAll);
    catalog.close().unwrap();
    for start in [in_use, sim.crash(CrashMode::LoseAll)] {
        for record in region::layout::LENGTH_OFFSETS {
            let at = layout::HEADER_BYTES + record;
            let unreadable = Arc::new(start.fork());
            unreadable.fail_reads(at, at + 512);
            let damaged = Arc::new(start.fork());
            damage(&damaged, at + region::layout::AT_LENGTH as u64);
            for found in [unreadable, damaged] {
                for _ in 0..2 {
                    let shared: SharedDevice = found.clone();
                    let mut loaded = load(&shared).unwrap();
                    assert_eq!(content(&loaded.catalog), expected, "record at {record}");
                    loaded.catalog.close().unwrap();
                }
            }
        }
    }
}

/// I8: whichever of the two wrote last, the other would show it.
#[test]
fn a_slot_with_two_owners_is_damage() {
    let shared: SharedDevice = device();
    let mut catalog = format(&shared, &options(false)).unwrap().catalog;
    let volume = catalog.create_volume(volume_record("vol0", 100)).unwrap().id;
    take(&mut catalog, volume, 1, &[(0, at_slot(7))]);
    take(&mut catalog, volume, 2, &[(1, at_slot(7))]);
    catalog.close().unwrap();
    let error = load(&shared).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("slot 7 has two owners"), "{error}");
}

#[test]
fn a_volume_that_cannot_be_is_damage_and_no_panic() {
    let volume = |change: fn(&mut LoadedVolume)| {
        let mut volume = LoadedVolume {
            record: volume_record("vol0", 100),
            last_seq: SnapshotSeq(0),
            snapshots: vec![],
            dirty_words: vec![(1, 1 << 35)],
            staged: vec![],
        };
        change(&mut volume);
        check_volume(&volume, SLOT_BYTES)
    };
    assert_eq!(volume(|_| ()).unwrap(), 100, "chunk 99 is the last");
    let impossible: [fn(&mut LoadedVolume); 7] = [
        |volume| volume.record.master.block_bytes = 0,
        |volume| volume.record.master.block_count = 0,
        |volume| volume.record.chunk_bytes = 0,
        |volume| volume.record.chunk_bytes = 2 * SLOT_BYTES,
        |volume| volume.record.operation_number = OperationNumber::MAX,
        |volume| volume.dirty_words = vec![(1, 1 << 36)],
        |volume| {
            volume.staged = vec![StagedRecord {
                chunk: ChunkIndex(100),
                operation_number: OperationNumber(1),
                slot: None,
                block_map: 0,
                block_crcs: Box::new([0; 64]),
            }];
        },
    ];
    for (number, change) in impossible.into_iter().enumerate() {
        let refused = volume(change).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Damaged, "number {number}: {refused}");
    }
}

/// A store as presnap 0.1.0 formats it: 32 MiB, one volume, two snapshots. Stores of released
/// formats must be readable for ever; a new format gets a new image.
const GOLDEN: &[u8] = include_bytes!("golden-v1.zst");
const GOLDEN_BYTES: usize = 32 << 20;

fn golden_store() -> Arc<SimDevice> {
    let sim = device();
    let shared: SharedDevice = sim.clone();
    let mut catalog = format(&shared, &options(false)).unwrap().catalog;
    let volume = catalog.create_volume(volume_record("golden", 100)).unwrap().id;
    catalog.execute(CatalogRequest::OpenVolume { volume }).unwrap();
    take(&mut catalog, volume, 1, &[(0, at_slot(1)), (7, SlotRef::Zero), (99, at_slot(2))]);
    take(&mut catalog, volume, 2, &[(7, at_slot(3))]);
    let staged = StagedRecord {
        chunk: ChunkIndex(8),
        operation_number: OperationNumber(77),
        slot: Some(SlotIndex(4)),
        block_map: 1 << 63,
        block_crcs: Box::new(std::array::from_fn(|index| index as u32)),
    };
    catalog
        .execute(CatalogRequest::CloseVolume {
            volume,
            operation_number: OperationNumber(78),
            dirty_words: vec![(0, 0x100)],
            staged: vec![staged],
        })
        .unwrap();
    catalog.close().unwrap();
    sim
}

#[test]
fn the_golden_image_is_readable() {
    let bytes = zstd::bulk::decompress(GOLDEN, GOLDEN_BYTES).unwrap();
    let sim = Arc::new(SimDevice::new(512, GOLDEN_BYTES as u64));
    sim.poke(0, &bytes);
    let expected = golden_store();
    let mut header = vec![0; layout::SUPERBLOCK_BYTES];
    for copy in [CopyId::A, CopyId::B] {
        expected.peek(copy.offset(), &mut header);
        let start = copy.offset() as usize;
        assert!(bytes[start..start + header.len()] == header[..], "superblock {copy:?}");
    }
    let (golden, expected): (SharedDevice, SharedDevice) = (sim, expected);
    let (golden, expected) = (load(&golden).unwrap(), load(&expected).unwrap());
    assert_eq!(golden.superblock, expected.superblock);
    assert_eq!(golden.repaired, None);
    assert_eq!(content(&golden.catalog), content(&expected.catalog));
    assert_eq!(golden.allocator.taken_count(), 4);
}

/// Run by hand, once per format version: writes the image next to this file.
#[test]
#[ignore = "makes the golden image of a new format version"]
fn make_the_golden_image() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/tests/golden-v1.zst");
    let packed = zstd::bulk::compress(&golden_store().to_vec(), 19).unwrap();
    std::fs::write(path, packed).unwrap();
}

/// The rows of the table under `heading` in the document: offset, size, name.
fn table(heading: &str) -> BTreeMap<String, (u64, u64)> {
    let document = include_str!("../../../docs/on-disk-format.md");
    let (_, rest) = document.split_once(&format!("## {heading}\n")).expect("the heading");
    let section = rest.split("\n## ").next().expect("a section");
    let number = |cell: &str| cell.trim().replace('_', "").parse().ok();
    section
        .lines()
        .filter_map(|line| {
            let mut cells = line.trim().strip_prefix('|')?.split('|');
            let (offset, size) = (number(cells.next()?)?, number(cells.next()?)?);
            Some((cells.next()?.trim().trim_matches('`').to_owned(), (offset, size)))
        })
        .collect()
}

fn expect_fields(heading: &str, fields: &[(&str, usize, usize)]) {
    let expected: BTreeMap<_, _> = fields
        .iter()
        .map(|(name, offset, size)| ((*name).to_owned(), (*offset as u64, *size as u64)))
        .collect();
    let documented = table(heading);
    assert_eq!(documented, expected, "{heading}");
    let mut ranges: Vec<_> = documented.values().collect();
    ranges.sort();
    for pair in ranges.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{heading}: fields overlap at {}", pair[1].0);
    }
}

#[test]
fn the_document_says_what_the_code_does() {
    expect_fields(
        "Superblock",
        &[
            ("magic", layout::AT_MAGIC, 8),
            ("version", layout::AT_VERSION, 4),
            ("copy", layout::AT_COPY, 4),
            ("features_compat", layout::AT_FEATURES_COMPAT, 8),
            ("features_incompat", layout::AT_FEATURES_INCOMPAT, 8),
            ("sequence", layout::AT_SEQUENCE, 8),
            ("uuid", layout::AT_UUID, 16),
            ("created_at", layout::AT_CREATED_AT, 8),
            ("block_bytes", layout::AT_BLOCK_BYTES, 4),
            ("slot_bytes", layout::AT_SLOT_BYTES, 4),
            ("slot_count", layout::AT_SLOT_COUNT, 4),
            ("name_bytes", layout::AT_NAME_BYTES, 4),
            ("device_bytes", layout::AT_DEVICE_BYTES, 8),
            ("catalog_offset", layout::AT_CATALOG_OFFSET, 8),
            ("catalog_bytes", layout::AT_CATALOG_BYTES, 8),
            ("slots_offset", layout::AT_SLOTS_OFFSET, 8),
            ("name", layout::AT_NAME, layout::NAME_BYTES_MAX),
            ("checksum", layout::AT_CHECKSUM, 4),
        ],
    );
    expect_fields(
        "Length record",
        &[
            ("magic", region::layout::AT_MAGIC, 8),
            ("sequence", region::layout::AT_SEQUENCE, 8),
            ("length", region::layout::AT_LENGTH, 8),
            ("checksum", region::layout::AT_CHECKSUM, 4),
        ],
    );
    let places = |name: &str| table("Regions")[name];
    assert_eq!(places("superblock A"), (layout::COPY_A_OFFSET, 4096));
    assert_eq!(places("superblock B"), (layout::COPY_B_OFFSET, 4096));
    assert_eq!(places("catalog region"), (layout::HEADER_BYTES, layout::CATALOG_BYTES_MIN));
    let places = |name: &str| table("Catalog region")[name];
    assert_eq!(places("length record A"), (region::layout::LENGTH_OFFSETS[0], 4096));
    assert_eq!(places("length record B"), (region::layout::LENGTH_OFFSETS[1], 4096));
    let file_bytes = layout::CATALOG_BYTES_MIN - region::layout::FILE_OFFSET;
    assert_eq!(places("file"), (region::layout::FILE_OFFSET, file_bytes));
}

/// A record with a different value in each field, to find the fields' places in the bytes.
#[test]
fn the_tables_values_are_where_the_document_says() {
    let find = |bytes: &[u8], heading: &str, fields: &[(&str, u64)]| {
        let documented = table(heading);
        for (name, value) in fields {
            let (offset, size) = documented[*name];
            let place = &bytes[offset as usize..(offset + size) as usize];
            assert_eq!(place, &value.to_le_bytes()[..size as usize], "{heading}: {name}");
        }
    };
    let mut record = volume_record("vol0", 1000);
    record.clean = true;
    record.operation_number = OperationNumber(0x1122_3344_5566);
    let bytes = catalog::volume_bytes(&record, SnapshotSeq(0x77));
    let block_count = record.master.block_count;
    let fields = [
        ("flags", 1),
        ("chunk_bytes", u64::from(SLOT_BYTES)),
        ("master_block_bytes", 512),
        ("last_seq", 0x77),
        ("master_block_count", block_count),
        ("operation_number", 0x1122_3344_5566),
        ("name_bytes", 4),
    ];
    find(&bytes, "Volume value", &fields);
    assert_eq!(&bytes[table("Volume value")["name_bytes"].0 as usize + 8..], b"vol0");

    let mut record = snapshot_record(VolumeId(1), 3, SnapshotState::Failed);
    record.reason = Some("because".to_owned());
    record.created_at_unix_ms = 31;
    record.chunks =
        ChunkCounts { total: 32, required: 33, adopted: 34, copied: 35, preserved: 36, zero: 37 };
    record.times = SnapshotTimes { cut_us: 38, consistent_us: 39, complete_us: 40 };
    record.bytes_used = 41;
    let bytes = catalog::snapshot_bytes(&record);
    let fields = [
        ("operation_number", 300),
        ("created_at", 31),
        ("state", 3),
        ("flags", 1),
        ("name_bytes", 5),
        ("reason_bytes", 7),
        ("chunks_total", 32),
        ("chunks_required", 33),
        ("chunks_adopted", 34),
        ("chunks_copied", 35),
        ("chunks_preserved", 36),
        ("chunks_zero", 37),
        ("cut_us", 38),
        ("consistent_us", 39),
        ("complete_us", 40),
        ("bytes_used", 41),
    ];
    find(&bytes, "Snapshot value", &fields);
    assert_eq!(&bytes[128 - 8..], b"\0\0\0\0\0\0\0\0snap3because");

    let staged = StagedRecord {
        chunk: ChunkIndex(1),
        operation_number: OperationNumber(51),
        slot: Some(SlotIndex(52)),
        block_map: 53,
        block_crcs: Box::new([0x3636_3636; 64]),
    };
    let bytes = catalog::staged_bytes(&staged);
    let fields = [("operation_number", 51), ("block_map", 53), ("slot", 52)];
    find(&bytes, "Staged value", &fields);
    let (offset, size) = table("Staged value")["block_crcs"];
    assert_eq!(bytes[offset as usize..], [0x36; 256]);
    assert_eq!(size, 256);

    let bytes = catalog::damaged_bytes(61, 62);
    find(&bytes, "Damaged value", &[("found_at", 61), ("crc32c", 62)]);
    assert_eq!(bytes.len(), 12);
}

#[test]
fn a_copy_in_the_others_place_is_refused() {
    let (sim, _) = store();
    let mut bytes = vec![0; layout::SUPERBLOCK_BYTES];
    sim.peek(layout::COPY_A_OFFSET, &mut bytes);
    assert!(Unverified::<Superblock>::new(bytes.clone()).verify(CopyId::A).is_ok());
    assert!(Unverified::<Superblock>::new(bytes).verify(CopyId::B).is_err());
}
