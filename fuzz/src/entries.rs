//! Where bytes come in that somebody else wrote: each takes any bytes, must not panic, hang or take all memory, and
//! checks what is to hold of what it was given back. The fuzz targets run these, and so does `tests/hostile_input.rs`.

use std::collections::BTreeMap;
use std::io::{self, Cursor};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use presnap::engine::crc::crc32c;
use presnap::engine::records::{
    CatalogRequest, MasterIdentity, SlotIndex, SlotRef, SnapshotRecord, SnapshotSeq, SnapshotState,
    StagedRecord, VolumeId, VolumeRecord,
};
use presnap::gate::{ChunkIndex, OperationNumber};
use presnap::monitor::{FEATURE_NAMES, FEATURES};
use presnap::predict::model::{Model, fingerprint};
use presnap::replay::trace::{Survey, Trace};
use presnap::rpc::{METHODS, decode};
use presnap::store::superblock::{COPIES, layout};
use presnap::store::{self, Device, FormatOptions, SharedDevice};
use serde_json::Value;
use uuid::Uuid;

/// The bytes of an input, taken from the front; zeros when there are no more.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn number(&mut self, bytes: usize) -> u64 {
        let mut number = [0; 8];
        let taken = self.bytes(bytes);
        number[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(number)
    }
}

// ---- stores -------------------------------------------------------------------------------------

const PAGE: usize = 4096;
const DEVICE_BYTES: usize = 32 << 20;
const SLOT_BYTES: u32 = 64 << 10;

/// A device in memory: an image that stays, and the pages that were written.
#[derive(Debug)]
struct Image {
    base: &'static [u8],
    written: Mutex<BTreeMap<usize, Box<[u8; PAGE]>>>,
}

impl Image {
    fn new(base: &'static [u8]) -> Self {
        Self { base, written: Mutex::default() }
    }

    fn put(&self, offset: usize, data: &[u8]) {
        let mut written = self.written.lock().expect("no panic with it");
        for (at, &byte) in (offset..).zip(data) {
            let page = written.entry(at / PAGE).or_insert_with(|| {
                let from = at / PAGE * PAGE;
                Box::new(self.base[from..from + PAGE].try_into().expect("a page"))
            });
            page[at % PAGE] = byte;
        }
    }

    fn get(&self, offset: usize, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.base[offset..offset + buffer.len()]);
        let written = self.written.lock().expect("no panic with it");
        let end = offset + buffer.len();
        for (number, page) in written.range(offset / PAGE..end.div_ceil(PAGE)) {
            let (from, to) = ((number * PAGE).max(offset), (number * PAGE + PAGE).min(end));
            buffer[from - offset..to - offset]
                .copy_from_slice(&page[from - number * PAGE..to - number * PAGE]);
        }
    }

    /// Sets the checksums of both superblocks right.
    fn stamp(&self) {
        for copy in COPIES {
            let at = copy.offset() as usize;
            let mut bytes = [0; layout::AT_CHECKSUM];
            self.get(at, &mut bytes);
            self.put(at + layout::AT_CHECKSUM, &crc32c(&bytes).to_le_bytes());
        }
    }
}

impl Device for Image {
    fn block_bytes(&self) -> u32 {
        512
    }

    fn size_bytes(&self) -> u64 {
        self.base.len() as u64
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size_bytes()) {
            return Err(io::Error::other("behind the end"));
        }
        self.get(offset as usize, buffer);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(data.len() as u64);
        if end.is_none_or(|end| end > self.size_bytes()) {
            return Err(io::Error::other("behind the end"));
        }
        self.put(offset as usize, data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn snapshot(volume: VolumeId, seq: u32, state: SnapshotState) -> SnapshotRecord {
    let uuid = Uuid::from_u128(u128::from(seq));
    let asked = SnapshotRecord::asked_for(volume, SnapshotSeq(seq), format!("snap{seq}"), uuid, 1);
    SnapshotRecord { operation_number: OperationNumber(u64::from(seq) * 100), state, ..asked }
}

fn fill(device: &SharedDevice) -> store::Result<()> {
    let options = FormatOptions {
        name: "store0".to_owned(),
        uuid: Uuid::from_u128(0x1234),
        slot_bytes: SLOT_BYTES,
        force: false,
        created_at_unix_ms: 1_700_000_000_000,
    };
    let mut catalog = store::format(device, &options)?.catalog;
    for name in ["vol0", "vol1"] {
        let volume = catalog.create_volume(VolumeRecord {
            id: VolumeId(0),
            name: name.to_owned(),
            uuid: Uuid::from_u128(7),
            master: MasterIdentity {
                uuid: None,
                block_bytes: 512,
                block_count: 200 * u64::from(SLOT_BYTES) / 512,
            },
            chunk_bytes: SLOT_BYTES,
            clean: false,
            operation_number: OperationNumber(0),
        })?;
        let (id, first) = (volume.id, volume.id.0 * 60);
        catalog.execute(CatalogRequest::OpenVolume { volume: id })?;
        for seq in 1..4 {
            catalog.execute(CatalogRequest::BeginSnapshot(snapshot(
                id,
                seq,
                SnapshotState::Completing,
            )))?;
            let rows = (0..15).map(|chunk| {
                let slot = SlotIndex(first + seq * 15 + chunk);
                let at =
                    if chunk == 3 { SlotRef::Zero } else { SlotRef::Slot { slot, crc32c: chunk } };
                (ChunkIndex(chunk * seq), at)
            });
            let mut record = snapshot(id, seq, SnapshotState::Complete);
            record.bytes_used = 14 * u64::from(SLOT_BYTES);
            let rows = rows.collect();
            catalog.execute(CatalogRequest::CompleteSnapshot { record, rows })?;
        }
        let staged = (0..3).map(|number| StagedRecord {
            chunk: ChunkIndex(100 + number),
            operation_number: OperationNumber(500),
            slot: Some(SlotIndex(first + number)),
            block_map: 1 << number,
            block_crcs: Box::new([number; 64]),
        });
        catalog.execute(CatalogRequest::CloseVolume {
            volume: id,
            operation_number: OperationNumber(1000),
            dirty_words: vec![(1, 0xff)],
            staged: staged.collect(),
        })?;
    }
    catalog.close()
}

/// A store with two volumes, as a clean stop leaves it, and the offsets of its pages that hold anything.
fn base() -> &'static (Vec<u8>, Vec<usize>) {
    static BASE: OnceLock<(Vec<u8>, Vec<usize>)> = OnceLock::new();
    BASE.get_or_init(|| {
        let empty: &'static [u8] = Vec::leak(vec![0; DEVICE_BYTES]);
        let image = Arc::new(Image::new(empty));
        let device: SharedDevice = image.clone();
        fill(&device).expect("a sound store");
        let mut bytes = vec![0; DEVICE_BYTES];
        image.get(0, &mut bytes);
        let pages = (0..DEVICE_BYTES).step_by(PAGE);
        let used = pages.filter(|&at| bytes[at..at + PAGE].iter().any(|byte| *byte != 0)).collect();
        (bytes, used)
    })
}

/// Loads a store, and where that works looks at all of it and makes a snapshot in it.
fn load(image: Arc<Image>) {
    let device: SharedDevice = image;
    let Ok(mut loaded) = store::load(&device) else { return };
    let slots = loaded.superblock.slot_count;
    assert!(loaded.allocator.taken_count() <= slots, "more slots than there are");
    for view in &loaded.volumes {
        for (_, map) in &view.views {
            for (chunk, entry) in map {
                assert!(chunk.0 < map.chunk_count(), "a chunk behind the end");
                assert!(entry.slot().is_none_or(|slot| slot.0 < slots), "a slot that is none");
            }
        }
    }
    // Who runs the catalog of a target catches this (`store::catalog_thread`).
    let rest = std::panic::AssertUnwindSafe(move || {
        let _ = loaded.catalog.check();
        if let Some(view) = loaded.volumes.first() {
            let id = view.state.record.id;
            let record = snapshot(id, u32::MAX - 1, SnapshotState::Completing);
            let _ = loaded.catalog.execute(CatalogRequest::BeginSnapshot(record));
        }
        let _ = loaded.catalog.close();
    });
    let _ = std::panic::catch_unwind(rest);
}

/// Changes bytes of superblocks and catalog wherever the input says.
pub fn store(data: &[u8]) {
    let (bytes, used) = base();
    let image = Arc::new(Image::new(bytes));
    let mut input = Input(data);
    let stamp = input.number(1) % 2 == 0;
    while !input.0.is_empty() {
        let at = input.number(3) as usize % (used.len() * PAGE);
        let count = input.number(1) as usize % 16 + 1;
        let room = PAGE - at % PAGE;
        image.put(used[at / PAGE] + at % PAGE, input.bytes(count.min(room)));
    }
    if stamp {
        image.stamp();
    }
    load(image);
}

/// Changes rows of the catalog and leaves the database around them in order: what a database's own checks let
/// through. An input is a volume's row, or another, in place of the sound one.
pub fn catalog(data: &[u8]) {
    let (bytes, used) = base();
    let image = Arc::new(Image::new(bytes));
    let mut input = Input(data);
    while !input.0.is_empty() {
        // A place that holds something, from which a few bytes are changed: rows are dense, pages are not.
        let page = used[input.number(1) as usize % used.len()];
        let wanted = input.number(2) as usize;
        let filled: Vec<usize> = (page..page + PAGE).filter(|&at| bytes[at] != 0).collect();
        let at = filled[wanted % filled.len()];
        let change = input.number(1) as u8;
        image.put(at, &[bytes[at] ^ change.max(1)]);
    }
    image.stamp();
    load(image);
}

// ---- JSON-RPC -----------------------------------------------------------------------------------

/// Parameters of a method: the first byte says which, the rest is JSON.
pub fn rpc(data: &[u8]) {
    let Some((&which, json)) = data.split_first() else { return };
    let Ok(params) = serde_json::from_slice::<Value>(json) else { return };
    let name = METHODS.get(which as usize).map_or("presnap_no_such_method", |method| method.name);
    match decode(name, &params) {
        Ok(typed) => {
            let again = decode(name, &typed.to_json()).expect("what was taken is taken again");
            assert_eq!(typed, again, "and is the same");
        }
        Err(error) => {
            assert!(error.code < 0, "{error}");
            assert!(!error.message.is_empty() && error.message.len() < 4096, "{error}");
        }
    }
}

// ---- traces -------------------------------------------------------------------------------------

/// Records of a trace that are looked at; a packed one may have more than there is time for.
const RECORDS_MAX: usize = 100_000;

/// A trace in any of the formats, packed or not.
pub fn trace(data: &[u8]) {
    let path = Path::new("trace");
    let open = |disk| Trace::read_from(path, Cursor::new(data.to_vec()), disk);
    let Ok(trace) = open(None) else { return };
    let mut last_us = 0;
    let mut records = 0;
    let mut failed = false;
    for record in trace.take(RECORDS_MAX) {
        let Ok(record) = record else {
            failed = true;
            break;
        };
        records += 1;
        assert!(record.time_us >= last_us, "time goes back");
        last_us = record.time_us;
        assert!(record.length_bytes > 0, "a record of nothing");
        let end = record.offset_bytes.checked_add(record.length_bytes);
        assert!(end.is_some_and(|end| i64::try_from(end).is_ok()), "on no device");
    }
    if records < RECORDS_MAX
        && let Ok(trace) = open(None)
    {
        let survey = Survey::of(trace);
        assert_eq!(survey.is_ok(), !failed && records > 0, "{survey:?}");
    }
    if let Ok(trace) = open(Some("usr.0")) {
        let _ = trace.take(RECORDS_MAX).find(Result::is_err);
    }
}

// ---- models -------------------------------------------------------------------------------------

/// A model's file. If the first byte is even, its checksum is set right.
pub fn model(data: &[u8]) {
    let Some((&first, file)) = data.split_first() else { return };
    let mut file = file.to_vec();
    if first % 2 == 0
        && let Some(body) = file.len().checked_sub(4)
    {
        let checksum = crc32c(&file[..body]);
        file[body..].copy_from_slice(&checksum.to_le_bytes());
    }
    let features = fingerprint(&FEATURE_NAMES);
    if let Ok(model) = Model::from_bytes(&file, FEATURES, features) {
        assert_eq!(model.to_bytes(features), file, "a model is written as it was read");
        let mut out = Vec::new();
        model.normalise(&[0.5; FEATURES], &mut out);
        assert!(out.iter().all(|value| value.is_finite()), "{out:?}");
    }
}
