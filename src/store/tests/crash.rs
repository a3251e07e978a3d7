//! Power cuts at every operation of every request: whole or not at all, and in order afterwards.

use super::*;

/// Crash images looked at for each operation at which power goes.
const MODES: [CrashMode; 6] = [
    CrashMode::LoseAll,
    CrashMode::KeepAll,
    CrashMode::Scramble { seed: 1 },
    CrashMode::Scramble { seed: 2 },
    CrashMode::Scramble { seed: 3 },
    CrashMode::Scramble { seed: 4 },
];

type Step = Box<dyn Fn(&mut Catalog) -> Result<()>>;

fn request(request: CatalogRequest) -> Step {
    Box::new(move |catalog| catalog.execute(request.clone()).map(|_| ()))
}

const VOLUME: VolumeId = VolumeId(1);
const CHUNKS: u64 = 20_000;

/// Rows for the chunks; the first `slots.len()` of them take these slots, the others none.
fn rows(
    chunks: std::ops::Range<u32>,
    mut slots: std::ops::Range<u32>,
) -> Vec<(ChunkIndex, SlotRef)> {
    let rows = chunks.map(|chunk| (ChunkIndex(chunk), slots.next().map_or(SlotRef::Zero, at_slot)));
    rows.collect()
}

fn begin(seq: u32) -> Step {
    request(CatalogRequest::BeginSnapshot(snapshot_record(VOLUME, seq, SnapshotState::Completing)))
}

/// `slots_before` slots came with earlier rows.
fn complete(
    seq: u32,
    chunks: std::ops::Range<u32>,
    slots_before: u64,
    slots: std::ops::Range<u32>,
) -> Step {
    let mut record = snapshot_record(VOLUME, seq, SnapshotState::Complete);
    record.bytes_used = (slots_before + slots.len() as u64) * u64::from(SLOT_BYTES);
    request(CatalogRequest::CompleteSnapshot { record, rows: rows(chunks, slots) })
}

fn delete(seq: u32) -> Step {
    request(CatalogRequest::DeleteSnapshot { volume: VOLUME, seq: SnapshotSeq(seq) })
}

/// One of everything; the large ones make the file grow and shrink.
fn script() -> Vec<(&'static str, Step)> {
    let staged = |chunk: u32| StagedRecord {
        chunk: ChunkIndex(chunk),
        operation_number: OperationNumber(3),
        slot: Some(SlotIndex(200 + chunk)),
        block_map: u64::from(chunk),
        block_crcs: Box::new([chunk; 64]),
    };
    let add = |seq: u32, chunks, slots| {
        let rows = rows(chunks, slots);
        request(CatalogRequest::AddRows { volume: VOLUME, seq: SnapshotSeq(seq), rows })
    };
    let mut failed = snapshot_record(VOLUME, 3, SnapshotState::Failed);
    failed.reason = Some("store full".to_owned());
    vec![
        ("create", Box::new(|c| c.create_volume(volume_record("vol0", CHUNKS)).map(|_| ()))),
        ("open", request(CatalogRequest::OpenVolume { volume: VOLUME })),
        ("begin 1", begin(1)),
        ("add 1", add(1, 0..40, 0..40)),
        ("complete 1", complete(1, 40..4000, 40, 40..150)),
        ("begin 2", begin(2)),
        ("complete 2", complete(2, 30..50, 0, 150..165)),
        ("begin 3", begin(3)),
        ("add 3", add(3, 5..9, 165..168)),
        ("fail 3", request(CatalogRequest::FailSnapshot(failed))),
        ("begin 4", begin(4)),
        ("complete 4", complete(4, 0..0, 0, 0..0)),
        (
            "close",
            request(CatalogRequest::CloseVolume {
                volume: VOLUME,
                operation_number: OperationNumber(12),
                dirty_words: vec![(0, 1), (100, u64::MAX)],
                staged: (0..20).map(staged).collect(),
            }),
        ),
        ("delete 4", delete(4)),
        ("delete 1", delete(1)),
        ("delete 2", delete(2)),
        ("delete 3", delete(3)),
        ("reopen", request(CatalogRequest::OpenVolume { volume: VOLUME })),
        ("forget", Box::new(|c| c.forget_volume(VOLUME).map(|_| ()))),
    ]
}

/// What a device holds, as it was left; it can be loaded, too.
fn left_on(device: SimDevice) -> Content {
    let device: SharedDevice = Arc::new(device);
    let superblock = Superblock::find(&*device).unwrap().superblock;
    let left = content(&Catalog::open_as_left(SharedDevice::clone(&device), &superblock).unwrap());
    let loaded = content(&load(&device).unwrap().catalog);
    let states = |content: &Content| -> Vec<_> {
        let all = content.volumes.iter().flat_map(|volume| &volume.snapshots);
        all.map(|snapshot| snapshot.state).collect()
    };
    let expected: Vec<_> = states(&left)
        .into_iter()
        .map(|state| match state {
            SnapshotState::Completing => SnapshotState::Failed,
            other => other,
        })
        .collect();
    assert_eq!(states(&loaded), expected);
    left
}

fn format_fresh() -> (Arc<SimDevice>, Catalog) {
    let sim = device();
    let shared: SharedDevice = sim.clone();
    let catalog = format(&shared, &options(false)).unwrap().catalog;
    (sim, catalog)
}

/// Looks at all crash images of a device that lost power in `name`.
fn check_images(
    sim: &SimDevice,
    (before, after): (&Content, &Content),
    acknowledged: bool,
    name: &str,
) -> [u32; 2] {
    let mut survivals = [0, 0];
    // With nothing to lose, all images are the same.
    let modes = if sim.has_unflushed() { &MODES[..] } else { &MODES[..1] };
    for mode in modes {
        let found = left_on(sim.crash(*mode));
        let is_after = found == *after;
        survivals[usize::from(is_after)] += 1;
        assert!(found == *before || is_after, "{name}, {mode:?}: {found:#?}");
        assert!(!acknowledged || is_after, "{name}, {mode:?}: acknowledged and lost");
    }
    survivals
}

#[test]
fn each_request_happens_whole_or_not_at_all() {
    let mut survivals = [0, 0];
    let (base, mut catalog) = format_fresh();
    let superblock = Superblock::find(&*base).unwrap().superblock;
    for (name, step) in script() {
        let before = left_on(base.crash(CrashMode::LoseAll));
        let start = base.crash(CrashMode::LoseAll);
        step(&mut catalog).unwrap();
        let after = left_on(base.crash(CrashMode::LoseAll));
        assert_ne!(before, after, "{name} changes something");
        for stop in 0.. {
            let sim = Arc::new(start.fork());
            let mut catalog = Catalog::open_as_left(sim.clone(), &superblock).unwrap();
            let at = sim.operations() + stop;
            sim.stop_at(at);
            let outcome = step(&mut catalog);
            if sim.operations() <= at {
                outcome.unwrap();
                assert!(stop > 3, "{name} took {stop} operations");
                break;
            }
            let what = format!("{name}, stop {stop}");
            let found = check_images(&sim, (&before, &after), outcome.is_ok(), &what);
            survivals = [survivals[0] + found[0], survivals[1] + found[1]];
        }
    }
    assert!(survivals.iter().all(|count| *count > 30), "{survivals:?}");
}

/// The same for a catalog that ran all earlier requests itself and was not opened anew.
#[test]
fn a_long_running_catalog_loses_nothing_either() {
    let script = script();
    let (base, mut base_catalog) = format_fresh();
    for (target, (name, step)) in script.iter().enumerate() {
        let before = left_on(base.crash(CrashMode::LoseAll));
        step(&mut base_catalog).unwrap();
        let after = left_on(base.crash(CrashMode::LoseAll));
        for stop in [0, 1, 2, 4, 7, 11, 16] {
            let (sim, mut catalog) = format_fresh();
            for (_, step) in &script[..target] {
                step(&mut catalog).unwrap();
            }
            let at = sim.operations() + stop;
            sim.stop_at(at);
            let outcome = step(&mut catalog);
            if sim.operations() <= at {
                outcome.unwrap();
                continue;
            }
            let what = format!("{name}, stop {stop}");
            check_images(&sim, (&before, &after), outcome.is_ok(), &what);
        }
    }
}

#[test]
fn a_crash_while_loading_after_a_crash_does_no_harm() {
    let reload = |device: SimDevice| {
        let device: SharedDevice = Arc::new(device);
        content(&load(&device).unwrap().catalog)
    };
    let (sim, mut catalog) = format_fresh();
    for (_, step) in script().iter().take(9) {
        step(&mut catalog).unwrap();
    }
    let expected = reload(sim.crash(CrashMode::LoseAll));
    let state = |content: &Content| content.volumes[0].snapshots[2].state;
    assert_eq!(state(&expected), SnapshotState::Failed);
    let mut stop = 0;
    loop {
        let crashed = Arc::new(sim.crash(CrashMode::Scramble { seed: stop }));
        crashed.stop_at(stop);
        let device: SharedDevice = crashed.clone();
        let outcome = load(&device).map(drop);
        if crashed.operations() <= stop {
            outcome.unwrap();
            break;
        }
        for mode in MODES {
            assert_eq!(reload(crashed.crash(mode)), expected, "stop {stop}, {mode:?}");
        }
        stop += 1;
    }
    assert!(stop > 5, "{stop} operations to load");
}

#[test]
fn format_leaves_the_old_the_new_or_nothing() {
    let old_options = FormatOptions { name: "old".to_owned(), ..options(false) };
    let new_options = FormatOptions { uuid: Uuid::from_u128(99), ..options(true) };
    let blank = device();
    let old = device();
    {
        let shared: SharedDevice = old.clone();
        let mut catalog = format(&shared, &old_options).unwrap().catalog;
        catalog.create_volume(volume_record("vol0", CHUNKS)).unwrap();
        catalog.close().unwrap();
        // In its last slot, where the new store wipes, too.
        old.poke((32 << 20) - 512, &[0xee; 512]);
    }
    let foreign = device();
    foreign.poke(1024 + 0x38, &[0x53, 0xef]);
    for (what, start) in [("blank", blank), ("old", old), ("foreign", foreign)] {
        let mut seen = std::collections::BTreeSet::new();
        let mut stop = 0;
        loop {
            let sim = Arc::new(start.fork());
            let shared: SharedDevice = sim.clone();
            let at = sim.operations() + stop;
            sim.stop_at(at);
            let outcome = format(&shared, &new_options).map(drop);
            if sim.operations() <= at {
                outcome.unwrap();
                break;
            }
            for mode in MODES {
                let crashed: SharedDevice = Arc::new(sim.crash(mode));
                let found = probe(&*crashed).unwrap();
                match &found {
                    Probe::Nothing => {}
                    Probe::Foreign { .. } => assert_eq!(what, "foreign"),
                    Probe::Store { name, .. } => {
                        assert!(name == "store0" || what == "old");
                        let volumes = load(&crashed).unwrap().volumes.len();
                        assert_eq!(volumes, usize::from(name == "old"), "stop {stop}, {mode:?}");
                        if name == "old" {
                            let mut last = [0; 512];
                            crashed.read((32 << 20) - 512, &mut last).unwrap();
                            assert_eq!(last, [0xee; 512], "stop {stop}, {mode:?}: half wiped");
                        }
                    }
                    Probe::UnloadableStore { what } => panic!("stop {stop}, {mode:?}: {what}"),
                }
                seen.insert(found.to_string());
            }
            stop += 1;
        }
        // Each of the possible outcomes was met.
        assert_eq!(seen.len(), if what == "blank" { 2 } else { 3 }, "{what}: {seen:?}");
    }
}

#[test]
fn one_device_error_fails_one_request_at_most() {
    for (index, (name, step)) in script().into_iter().enumerate() {
        let mut failures = 0;
        for operation in 0.. {
            let (sim, mut catalog) = format_fresh();
            for (_, step) in script().iter().take(index) {
                step(&mut catalog).unwrap();
            }
            let before = content(&catalog);
            let at = sim.operations() + operation;
            sim.fail_operations(at..at + 1);
            let outcome = step(&mut catalog);
            let reached = sim.operations() > at;
            let now = content(&catalog);
            match outcome {
                // Done, or found to be done after the error.
                Ok(()) => assert_ne!(now, before, "{name}, operation {operation}"),
                Err(error) => {
                    failures += 1;
                    assert_eq!(now, before, "{name}, operation {operation}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Io, "{name}: {}", super::chain(&error));
                    // The next request goes through.
                    step(&mut catalog).unwrap();
                    assert_ne!(content(&catalog), before);
                }
            }
            sim.heal();
            catalog.close().unwrap();
            if !reached {
                break;
            }
        }
        assert!(failures > 0, "{name} never failed");
    }
}

/// A commit fails, and so does finding out whether it happened. Whoever asked takes it for failed, so no
/// later request may find otherwise; only a load may, which tells everybody anew.
///
/// Fails when the catalog goes on after an unknown outcome once the device is back.
#[test]
fn after_an_unknown_outcome_only_a_load_goes_on() {
    let (mut unknown, mut survived) = (0, 0);
    let (base, mut base_catalog) = format_fresh();
    let superblock = Superblock::find(&*base).unwrap().superblock;
    for (name, step) in script() {
        let before = left_on(base.crash(CrashMode::LoseAll));
        let start = base.crash(CrashMode::LoseAll);
        step(&mut base_catalog).unwrap();
        let after = left_on(base.crash(CrashMode::LoseAll));
        for operation in 0.. {
            let sim = Arc::new(start.fork());
            let mut catalog = Catalog::open_as_left(sim.clone(), &superblock).unwrap();
            let at = sim.operations() + operation;
            sim.fail_operations(at..u64::MAX);
            let outcome = step(&mut catalog);
            let reached = sim.operations() > at;
            sim.heal();
            let what = format!("{name}, from operation {operation} on");
            if outcome.is_ok() {
                assert!(!reached, "{what}: acknowledged");
                break;
            }
            match step(&mut catalog) {
                Ok(()) => assert_eq!(content(&catalog), after, "{what}: done by the second try"),
                Err(Error::Closed) => {
                    unknown += 1;
                    drop(catalog);
                    let left = left_on(sim.crash(CrashMode::KeepAll));
                    assert!(left == before || left == after, "{what}: {left:#?}");
                    survived += u32::from(left == after);
                }
                Err(error) => panic!("{what}: {}", chain(&error)),
            }
        }
    }
    assert!(unknown > survived && survived > 0, "{survived} of {unknown} had happened");
}
