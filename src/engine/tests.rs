//! Scripted scenarios: each follows one path through the machine, event by event. Long random ones
//! are the simulator's (`crate::replay::sim`), which also found what the regressions here are about.

use std::collections::BTreeSet;
use std::sync::Arc;

use uuid::Uuid;

use super::events::{CatalogStep, Copied, CopyJob, Effect, Event, Micros, ReadSource};
use super::records::{
    BLOCKS_PER_CHUNK, CatalogReply, CatalogRequest, Cause, SlotIndex, SlotRef, SnapshotRecord,
    SnapshotSeq, SnapshotState, Trouble, VolumeId,
};
use super::{Engine, HeldSlots, Limits, PolicyKind, Settings, Shortage, SlotSpace};
use crate::gate::{
    BlockMap, ChunkIndex, Entry, Gate, Geometry, Initial, LbaRange, OperationNumber,
};

mod deadline;
mod scored;

/// Device blocks per chunk: a device block is a map block.
const CHUNK_LBAS: u64 = 64;

struct Slots {
    free: BTreeSet<SlotIndex>,
    reserved: u64,
}

impl SlotSpace for Slots {
    fn allocate(&mut self) -> Option<SlotIndex> {
        if self.free() == 0 { None } else { self.free.pop_first() }
    }

    fn release(&mut self, slot: SlotIndex) {
        assert!(self.free.insert(slot), "{slot:?} is free already");
    }

    fn free(&self) -> u64 {
        self.free.len() as u64 - self.reserved
    }

    fn reserve(&mut self, count: u64) {
        assert!(count <= self.free(), "{count} reserved of {}", self.free());
        self.reserved += count;
    }

    fn unreserve(&mut self, count: u64) {
        self.reserved = self.reserved.checked_sub(count).expect("reserved before");
    }
}

struct Bench {
    engine: Engine,
    gate: Arc<Gate>,
    slots: Slots,
    now: Micros,
}

fn range(chunk: u32, first: u64, count: u64) -> LbaRange {
    LbaRange::new(u64::from(chunk) * CHUNK_LBAS + first, count)
}

fn written() -> Copied {
    Copied::Written { block_crcs: Box::new([7; BLOCKS_PER_CHUNK]) }
}

fn record(seq: u32) -> SnapshotRecord {
    let uuid = Uuid::from_u128(u128::from(seq));
    SnapshotRecord::asked_for(VolumeId(1), SnapshotSeq(seq), format!("s{seq}"), uuid, 0)
}

impl Bench {
    /// A volume of clean chunks that stages what nobody writes.
    fn new(chunks: u64, slots: u32) -> Self {
        Self::with(chunks, slots, false)
    }

    fn with(chunks: u64, slots: u32, compare: bool) -> Self {
        let geometry = Geometry::new(256 << 10, 4096, chunks * CHUNK_LBAS).unwrap();
        let initial = if compare { Initial::AllDirty } else { Initial::Clean };
        let gate = Arc::new(Gate::new(geometry, initial, OperationNumber(1)).unwrap());
        let settings = Settings {
            policy: PolicyKind::Idle { rest_us: 100 },
            parked_us_max: 10_000,
            ..Settings::default()
        };
        let engine = Engine::new(gate.clone(), VolumeId(1), settings, compare, Micros(0));
        let slots = Slots { free: (0..slots).map(SlotIndex).collect(), reserved: 0 };
        Self { engine, gate, slots, now: Micros(0) }
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        self.engine.apply(self.now, event, &mut self.slots);
        self.engine.self_check();
        std::iter::from_fn(|| self.engine.next_effect()).collect()
    }

    /// A command that has not waited before waits for `chunk`.
    fn parked(&mut self, chunk: u32) -> Vec<Effect> {
        let since = self.now;
        self.apply(Event::Parked { chunk: ChunkIndex(chunk), since })
    }

    fn tick_after(&mut self, us: u64) -> Vec<Effect> {
        self.now.0 += us;
        self.apply(Event::Tick)
    }

    fn catalog_done(&mut self, step: CatalogStep) -> Vec<Effect> {
        self.apply(Event::CatalogDone { step, result: Ok(CatalogReply::Done) })
    }

    fn catalog_failed(&mut self, step: CatalogStep) -> Vec<Effect> {
        self.apply(Event::CatalogDone { step, result: Err("bad block".into()) })
    }

    fn catalog_full(&mut self, step: CatalogStep) -> Vec<Effect> {
        let full = Trouble { cause: Cause::NoSpace, reason: "no room".into() };
        self.apply(Event::CatalogDone { step, result: Err(full) })
    }

    fn copy_done(&mut self, job: &CopyJob, copied: Copied) -> Vec<Effect> {
        self.apply(Event::CopyDone { job: job.id, result: Ok(copied) })
    }

    fn enter(&self, range: LbaRange) {
        assert!(matches!(self.gate.enter(range), Entry::Entered { .. }));
    }

    fn write(&mut self, range: LbaRange) {
        self.enter(range);
        self.gate.leave(range);
        for chunk in self.gate.geometry().chunks(range) {
            self.engine.observe_write(ChunkIndex(chunk), self.now);
        }
    }

    /// Stages `chunk`, which is the only one that is due.
    fn stage(&mut self, chunk: u32) -> CopyJob {
        let job = the_copy(&self.tick_after(1_000));
        assert_eq!(job.chunk, ChunkIndex(chunk));
        self.copy_done(&job, written());
        job
    }

    /// From the request to just after the cut.
    fn reserve(&mut self) -> Result<(), Shortage> {
        self.engine.reserve(&mut self.slots)
    }

    fn cut(&mut self, seq: u32) -> Vec<Effect> {
        let effects = self.apply(Event::Create(record(seq)));
        assert_eq!(steps(&effects), [CatalogStep::Begin]);
        self.catalog_done(CatalogStep::Begin)
    }
}

fn copies(effects: &[Effect]) -> Vec<CopyJob> {
    let copy = |effect: &Effect| match effect {
        Effect::Copy(job) => Some(*job),
        _ => None,
    };
    effects.iter().filter_map(copy).collect()
}

#[track_caller]
fn the_copy(effects: &[Effect]) -> CopyJob {
    let copies = copies(effects);
    assert_eq!(copies.len(), 1, "{effects:?}");
    copies[0]
}

fn steps(effects: &[Effect]) -> Vec<CatalogStep> {
    let step = |effect: &Effect| match effect {
        Effect::Catalog { step, .. } => Some(*step),
        _ => None,
    };
    effects.iter().filter_map(step).collect()
}

fn flushes(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::FlushStore))
}

fn ended(effects: &[Effect]) -> Option<&SnapshotRecord> {
    effects.iter().find_map(|effect| match effect {
        Effect::Ended(record, _) => Some(record),
        _ => None,
    })
}

fn cause(effects: &[Effect]) -> Option<Cause> {
    effects.iter().find_map(|effect| match effect {
        Effect::Ended(_, cause) => *cause,
        _ => None,
    })
}

#[track_caller]
fn failed_because(effects: &[Effect], words: &str) {
    let record = ended(effects).expect("the snapshot has ended");
    assert_eq!(record.state, SnapshotState::Failed);
    let reason = record.reason.as_deref().unwrap();
    assert!(reason.contains(words), "{reason}");
}

#[test]
fn a_snapshot_from_request_to_complete() {
    let mut bench = Bench::new(8, 8);
    bench.write(range(0, 0, 1));
    bench.stage(0);
    bench.write(range(1, 0, 1));
    let effects = bench.cut(1);
    assert!(matches!(effects[0], Effect::Consistent(_)), "{effects:?}");
    let rows = |effects: &[Effect]| {
        effects.iter().filter(|effect| matches!(effect, Effect::Row(..))).count()
    };
    assert_eq!(rows(&effects), 1, "chunk 0 is adopted at once");
    assert!(!flushes(&effects));
    let effects = bench.copy_done(&the_copy(&effects), Copied::Zero);
    assert_eq!(rows(&effects), 1);
    assert!(flushes(&effects) && steps(&effects).is_empty(), "flush first: {effects:?}");
    let effects = bench.apply(Event::FlushDone(Ok(())));
    let [Effect::Catalog { request: CatalogRequest::CompleteSnapshot { rows, .. }, .. }] =
        effects.as_slice()
    else {
        panic!("{effects:?}")
    };
    assert_eq!(rows.len(), 2);
    assert!(rows.contains(&(ChunkIndex(1), SlotRef::Zero)));
    let effects = bench.catalog_done(CatalogStep::Complete);
    let record = ended(&effects).unwrap();
    assert_eq!(record.state, SnapshotState::Complete);
    assert_eq!(record.chunks.required, 2);
    assert_eq!((record.chunks.adopted, record.chunks.zero), (1, 1));
    assert_eq!(record.bytes_used, 256 << 10);
    assert_eq!(bench.slots.free(), 7);
    assert!(bench.engine.held_slots().is_empty(), "they are the catalog's");
}

/// Regression: a staging copy that ended after the cut was adopted ahead of the walk and not noted;
/// when the snapshot then failed, the chunk stayed clean and the next snapshot lacked it.
#[test]
fn adopted_ahead_of_the_walk_and_given_up_is_dirty_again() {
    let mut bench = Bench::new(256, 8);
    bench.engine.set_limits(Limits { walk_words_per_tick: 1, ..Limits::default() });
    bench.write(range(200, 0, 1));
    let job = the_copy(&bench.tick_after(1_000));
    bench.cut(1);
    let effects = bench.copy_done(&job, written());
    assert!(effects.iter().any(|e| matches!(e, Effect::Row(ChunkIndex(200), _))), "{effects:?}");
    assert!(!bench.gate.is_dirty(ChunkIndex(200)));
    bench.apply(Event::Abort("enough".into()));
    bench.catalog_done(CatalogStep::Fail);
    for _ in 0..10 {
        bench.tick_after(1);
    }
    assert!(bench.gate.is_dirty(ChunkIndex(200)));
    bench.gate.self_check().unwrap();
}

/// Regression: a reader was sent to the master while a command of the old epoch was in flight,
/// because a copy of the chunk was running, too.
#[test]
fn a_reader_waits_for_commands_in_flight_although_a_copy_runs() {
    let mut bench = Bench::new(4, 8);
    bench.write(range(0, 0, 1));
    the_copy(&bench.tick_after(1_000));
    bench.enter(range(0, 5, 1));
    bench.cut(1);
    assert_eq!(bench.engine.read_source(ChunkIndex(0)), Some(ReadSource::Wait));
    bench.gate.leave(range(0, 5, 1));
    assert_eq!(bench.engine.read_source(ChunkIndex(0)), Some(ReadSource::Master));
    assert_eq!(bench.engine.read_source(ChunkIndex(1)), Some(ReadSource::Rows));
}

/// I5: what is given up may lack anything.
#[test]
fn nothing_is_read_of_a_snapshot_that_was_given_up() {
    let mut bench = Bench::new(4, 8);
    bench.write(range(0, 0, 1));
    bench.cut(1);
    assert_eq!(bench.engine.read_source(ChunkIndex(0)), Some(ReadSource::Master));
    bench.apply(Event::Abort("enough".into()));
    assert_eq!(bench.engine.read_source(ChunkIndex(0)), None);
    bench.catalog_done(CatalogStep::Fail);
    assert_eq!(bench.engine.phase_name(), "redirty", "the copy under way has not ended");
    assert_eq!(bench.engine.read_source(ChunkIndex(0)), None);
}

/// Regression: an assertion took every zero chunk for a first copy.
#[test]
fn a_refresh_of_all_blocks_may_find_zeros() {
    let mut bench = Bench::new(4, 8);
    bench.write(range(0, 0, 1));
    bench.stage(0);
    bench.write(range(0, 0, CHUNK_LBAS));
    let job = the_copy(&bench.tick_after(1_000));
    assert_eq!(job.blocks, BlockMap::ALL);
    bench.copy_done(&job, Copied::Zero);
    assert_eq!(bench.slots.free(), 8);
}

/// Regression: staged copies were saved without a flush, and work began after the close was sent.
#[test]
fn a_stop_flushes_then_closes_then_nothing_begins() {
    let mut bench = Bench::new(4, 8);
    bench.write(range(0, 0, 1));
    bench.stage(0);
    bench.write(range(1, 0, 1));
    let effects = bench.apply(Event::Stop);
    assert!(flushes(&effects) && steps(&effects).is_empty(), "{effects:?}");
    assert!(bench.tick_after(1_000).is_empty(), "chunk 1 is due, and stays where it is");
    let effects = bench.apply(Event::FlushDone(Ok(())));
    let [
        Effect::Catalog {
            request: CatalogRequest::CloseVolume { staged, dirty_words, .. }, ..
        },
    ] = effects.as_slice()
    else {
        panic!("{effects:?}")
    };
    assert_eq!(staged.len(), 1);
    assert_eq!(dirty_words, &[(0, 0b11)]);
    assert!(bench.tick_after(1_000).is_empty());
    failed_because(&bench.apply(Event::Create(record(1))), "being stopped");
    let effects = bench.catalog_done(CatalogStep::Close);
    assert!(matches!(effects.as_slice(), [Effect::Stopped(Ok(()))]), "{effects:?}");
    assert!(bench.tick_after(1_000).is_empty());
}

#[test]
fn a_stop_that_cannot_flush_saves_the_dirty_set_alone() {
    let mut bench = Bench::new(4, 8);
    bench.write(range(0, 0, 1));
    bench.stage(0);
    bench.apply(Event::Stop);
    let effects = bench.apply(Event::FlushDone(Err("no".into())));
    let [
        Effect::Catalog {
            request: CatalogRequest::CloseVolume { staged, dirty_words, .. }, ..
        },
    ] = effects.as_slice()
    else {
        panic!("{effects:?}")
    };
    assert!(staged.is_empty());
    assert_eq!(dirty_words, &[(0, 1)]);
    assert_eq!(bench.slots.free(), 8);
}

/// Regression: slots of a failure that could not be recorded had two owners later on.
#[test]
fn a_failure_that_cannot_be_recorded_ends_snapshots_until_the_next_load() {
    let mut bench = Bench::new(4, 8);
    bench.write(range(0, 0, 1));
    bench.write(range(1, 0, 1));
    let jobs = copies(&bench.cut(1));
    bench.copy_done(&jobs[0], written());
    let effects = bench.apply(Event::Abort("enough".into()));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::WakeAll)));
    assert_eq!(steps(&effects), [CatalogStep::Fail]);
    for _ in 0..2 {
        assert!(bench.catalog_failed(CatalogStep::Fail).is_empty(), "nothing is said yet");
        assert_eq!(steps(&bench.tick_after(1_000_000)), [CatalogStep::Fail]);
    }
    failed_because(&bench.catalog_failed(CatalogStep::Fail), "enough");
    bench.copy_done(&jobs[1], written());
    assert_eq!(bench.engine.held_slots(), [jobs[0].slot], "it may be in a row on the device");
    assert!(bench.engine.droppable_slots().is_empty());
    for _ in 0..3 {
        bench.tick_after(1);
    }
    failed_because(&bench.apply(Event::Create(record(2))), "load it again");
    let effects = bench.apply(Event::Stop);
    assert!(matches!(effects.as_slice(), [Effect::Stopped(Err(_))]), "{effects:?}");
}

/// Regression: the failure of a snapshot was recorded that the catalog had never heard of.
#[test]
fn given_up_before_a_begin_that_fails() {
    let mut bench = Bench::new(4, 8);
    bench.apply(Event::Create(record(1)));
    assert!(steps(&bench.apply(Event::Abort("enough".into()))).is_empty());
    let effects = bench.catalog_failed(CatalogStep::Begin);
    failed_because(&effects, "enough");
    assert!(steps(&effects).is_empty(), "{effects:?}");
    bench.cut(2);
}

#[test]
fn given_up_before_the_cut() {
    let mut bench = Bench::new(4, 8);
    bench.write(range(0, 0, 1));
    bench.stage(0);
    bench.apply(Event::Create(record(1)));
    bench.apply(Event::Abort("enough".into()));
    assert_eq!(steps(&bench.catalog_done(CatalogStep::Begin)), [CatalogStep::Fail]);
    failed_because(&bench.catalog_done(CatalogStep::Fail), "enough");
    assert_eq!(bench.gate.epoch().0, 1, "no cut was made");
    assert_eq!(bench.engine.staged_len(), 1, "and what is staged stays");
}

#[test]
fn a_failed_snapshot_leaves_the_staged_copies_that_it_had_not_adopted() {
    let mut bench = Bench::new(8, 8);
    bench.engine.set_limits(Limits { walk_chunks_per_tick: 1, ..Limits::default() });
    bench.write(range(0, 0, 1));
    bench.stage(0);
    bench.write(range(1, 0, 1));
    bench.stage(1);
    bench.write(range(2, 0, 1));
    bench.stage(2);
    bench.cut(1);
    bench.tick_after(1);
    // The walk has adopted chunk 0, a writer adopts chunk 2, nobody has come to chunk 1.
    bench.write(range(2, 3, 1));
    bench.apply(Event::Abort("enough".into()));
    bench.catalog_done(CatalogStep::Fail);
    for _ in 0..10 {
        bench.tick_after(1);
    }
    let staged: Vec<_> = bench.engine.staged_chunks().map(|staged| staged.chunk).collect();
    assert_eq!(staged, [ChunkIndex(1)]);
    assert_eq!(bench.slots.free(), 7);
    for chunk in 0..3 {
        assert!(bench.gate.is_dirty(ChunkIndex(chunk)));
    }
    assert_eq!(copies(&bench.tick_after(10_000)).len(), 2, "the others are staged again");
}

/// I2, I8. A writer that slept through the end of the cut would adopt the copy in its old epoch, for
/// nobody, while the engine keeps it for the next snapshot.
#[test]
fn a_copy_that_is_kept_after_a_failure_is_of_the_present_epoch() {
    let mut bench = Bench::new(256, 8);
    bench.engine.set_limits(Limits { walk_words_per_tick: 1, ..Limits::default() });
    bench.write(range(200, 0, 1));
    bench.stage(200);
    bench.cut(1);
    bench.apply(Event::Abort("enough".into()));
    bench.catalog_done(CatalogStep::Fail);
    for _ in 0..10 {
        bench.tick_after(1);
    }
    assert_eq!(bench.engine.staged_len(), 1, "kept, since the walk had not come to it");
    assert_eq!(bench.gate.view(ChunkIndex(200)).epoch, bench.gate.epoch());
}

#[test]
fn a_create_waits_for_the_failed_one_to_be_cleared_away() {
    let mut bench = Bench::new(64 * 20, 8);
    bench.engine.set_limits(Limits { walk_words_per_tick: 1, ..Limits::default() });
    bench.write(range(1250, 0, 1));
    bench.cut(1);
    bench.apply(Event::Abort("enough".into()));
    bench.catalog_done(CatalogStep::Fail);
    let effects = bench.apply(Event::Create(record(2)));
    assert!(steps(&effects).is_empty(), "{effects:?}");
    failed_because(&bench.apply(Event::Abort("too slow".into())), "too slow");
    bench.apply(Event::Create(record(3)));
    let begun = (0..20).any(|_| steps(&bench.tick_after(1)) == [CatalogStep::Begin]);
    assert!(begun, "in the end");
}

#[test]
fn a_full_store_fails_the_snapshot_and_gives_its_slots_back() {
    let mut bench = Bench::new(4, 1);
    bench.engine.set_settings(Settings::default(), Micros(0));
    bench.write(range(0, 0, 3 * CHUNK_LBAS));
    let effects = bench.cut(1);
    let job = the_copy(&effects);
    assert_eq!(steps(&bench.tick_after(1)), [], "the copy under way may find zeros");
    let effects = bench.copy_done(&job, written());
    assert_eq!(steps(&effects), [CatalogStep::Fail]);
    let effects = bench.catalog_done(CatalogStep::Fail);
    failed_because(&effects, "ran out of free slots");
    assert_eq!(cause(&effects), Some(Cause::NoSpace));
    assert_eq!(bench.slots.free(), 1);
    assert!(!bench.engine.is_busy());
}

/// Fails when a snapshot without a free slot does not wait for the copies under way, which find zeros: as
/// long as they are not looked at, more chunks are dirty than the store has slots.
#[test]
fn zeros_fit_into_any_store() {
    let mut bench = Bench::new(20, 3);
    bench.engine.set_settings(Settings::default(), Micros(0));
    bench.write(range(0, 0, 20 * CHUNK_LBAS));
    let mut jobs = copies(&bench.cut(1));
    // Those that somebody waits for are no exception.
    assert_eq!(copies(&bench.parked(12)).len(), 0);
    let mut done = Vec::new();
    let effects = loop {
        assert!(!jobs.is_empty() && jobs.len() <= 3, "{jobs:?}");
        let job = jobs.remove(0);
        done.push(job.chunk.0);
        let effects = bench.copy_done(&job, Copied::Zero);
        jobs.extend(copies(&effects));
        if flushes(&effects) {
            break effects;
        }
    };
    assert!(done.iter().position(|&chunk| chunk == 12) < Some(6), "it comes first: {done:?}");
    assert_eq!(done.len(), 20);
    assert_eq!(steps(&effects), []);
    assert_eq!(steps(&bench.apply(Event::FlushDone(Ok(())))), [CatalogStep::Complete]);
    let effects = bench.catalog_done(CatalogStep::Complete);
    assert_eq!(ended(&effects).map(|record| record.chunks.zero), Some(20));
    assert_eq!(bench.slots.free(), 3);
}

/// Fails when only words say what a snapshot failed for: these are not about slots.
#[test]
fn a_full_catalog_fails_the_snapshot_for_want_of_space() {
    let mut bench = Bench::new(4, 4);
    bench.apply(Event::Create(record(1)));
    let effects = bench.catalog_full(CatalogStep::Begin);
    failed_because(&effects, "recording it failed: no room");
    assert_eq!(cause(&effects), Some(Cause::NoSpace));
    // At the commit, too, where it is recorded as failed first.
    for (seq, full) in [(2, true), (3, false)] {
        let effects = bench.cut(seq);
        assert!(flushes(&effects), "{effects:?}");
        assert_eq!(steps(&bench.apply(Event::FlushDone(Ok(())))), [CatalogStep::Complete]);
        if full {
            bench.catalog_full(CatalogStep::Complete);
        } else {
            bench.catalog_failed(CatalogStep::Complete);
        }
        let effects = bench.catalog_done(CatalogStep::Fail);
        failed_because(&effects, "recording its chunks failed");
        assert_eq!(cause(&effects), Some(if full { Cause::NoSpace } else { Cause::Other }));
    }
}

/// Fails when a cause is kept beyond its snapshot.
#[test]
fn a_complete_snapshot_has_no_cause_of_failure() {
    let mut bench = Bench::new(4, 4);
    bench.apply(Event::Create(record(1)));
    bench.catalog_full(CatalogStep::Begin);
    bench.cut(2);
    bench.apply(Event::FlushDone(Ok(())));
    let effects = bench.catalog_done(CatalogStep::Complete);
    assert_eq!(ended(&effects).unwrap().state, SnapshotState::Complete);
    assert_eq!(cause(&effects), None);
}

#[test]
fn a_snapshot_is_promised_the_slots_that_it_may_need() {
    let mut bench = Bench::new(8, 8);
    bench.write(range(0, 0, 1));
    bench.stage(0);
    bench.write(range(1, 0, 3 * CHUNK_LBAS));
    bench.engine.set_settings(Settings::default(), Micros(0));
    assert_eq!(bench.slots.free(), 7);
    assert_eq!(bench.reserve(), Ok(()));
    assert_eq!(bench.slots.free(), 4, "three are not staged");
    // What others take meanwhile is not among them.
    for _ in 0..4 {
        assert!(bench.slots.allocate().is_some());
    }
    assert!(bench.slots.allocate().is_none());
    let jobs = copies(&bench.cut(1));
    assert_eq!((jobs.len(), bench.slots.reserved), (3, 0));
    assert_eq!(bench.engine.slots_in_hand(), HeldSlots { staged: 0, copying: 3 });
    bench.copy_done(&jobs[0], written());
    bench.copy_done(&jobs[1], Copied::Zero);
    assert_eq!(bench.slots.free(), 1, "zeros had been promised one, too");
    assert!(flushes(&bench.copy_done(&jobs[2], written())));
    assert_eq!(bench.engine.slots_in_hand(), HeldSlots::default());
}

#[test]
fn what_does_not_fit_is_refused_and_what_is_given_up_is_given_back() {
    let mut bench = Bench::new(8, 4);
    bench.engine.set_settings(Settings::default(), Micros(0));
    bench.write(range(0, 0, 5 * CHUNK_LBAS));
    assert_eq!(bench.reserve(), Err(Shortage { needed: 5, free: 4 }));
    assert_eq!(bench.slots.free(), 4);
    let mut bench = Bench::new(8, 5);
    bench.engine.set_settings(Settings::default(), Micros(0));
    bench.write(range(0, 0, 5 * CHUNK_LBAS));
    assert_eq!(bench.reserve(), Ok(()));
    assert_eq!(bench.slots.free(), 0);
    bench.apply(Event::Create(record(1)));
    assert_eq!(bench.slots.reserved, 5, "until it is over");
    bench.apply(Event::Abort("enough".into()));
    assert_eq!(bench.slots.free(), 5);
    bench.catalog_done(CatalogStep::Begin);
    failed_because(&bench.catalog_done(CatalogStep::Fail), "enough");
    // Not known yet what changed: nothing is promised, and nothing refused.
    let mut bench = Bench::with(8, 4, true);
    assert_eq!(bench.reserve(), Ok(()));
    assert_eq!(bench.slots.free(), 4);
}

#[test]
fn a_tick_visits_a_bounded_number_of_chunks() {
    let limits = Limits { walk_chunks_per_tick: 3, ..Limits::default() };
    let mut bench = Bench::new(64, 64);
    bench.engine.set_limits(limits);
    bench.write(range(0, 0, 64 * CHUNK_LBAS));
    let mut started = copies(&bench.cut(1)).len();
    assert!(started <= limits.walk_chunks_per_tick);
    while started < limits.copies_in_flight_max {
        let more = copies(&bench.tick_after(1)).len();
        assert!((1..=limits.walk_chunks_per_tick).contains(&more));
        started += more;
    }
    assert!(copies(&bench.tick_after(1)).is_empty(), "as many as may be in flight");
}

#[test]
fn parked_chunks_go_first_and_unpaced() {
    let mut bench = Bench::new(64, 64);
    let settings = Settings { copy_bytes_per_s_max: Some(1), ..Settings::default() };
    bench.engine.set_settings(settings, Micros(0));
    bench.write(range(0, 0, 64 * CHUNK_LBAS));
    assert!(copies(&bench.cut(1)).is_empty(), "a byte a second");
    let job = the_copy(&bench.parked(40));
    assert_eq!(job.chunk, ChunkIndex(40));
    let effects = bench.copy_done(&job, written());
    assert!(effects.iter().any(|e| matches!(e, Effect::Wake(ChunkIndex(40)))), "{effects:?}");
}

#[test]
fn after_an_unclean_stop_unchanged_chunks_take_no_row() {
    let mut bench = Bench::with(2, 8, true);
    bench.engine.set_settings(Settings::default(), Micros(0));
    let jobs = copies(&bench.cut(1));
    assert!(jobs.len() == 2 && jobs.iter().all(|job| job.compare));
    bench.copy_done(&jobs[0], Copied::Unchanged);
    let effects = bench.copy_done(&jobs[1], written());
    assert!(flushes(&effects));
    bench.apply(Event::FlushDone(Ok(())));
    let effects = bench.catalog_done(CatalogStep::Complete);
    assert_eq!(ended(&effects).unwrap().chunks.required, 1);
    assert_eq!(bench.slots.free(), 7);
    bench.write(range(0, 0, 1));
    assert!(!the_copy(&bench.cut(2)).compare, "what is dirty is known now");
}

/// "As in the newest snapshot" means nothing when that is deleted, copied or being copied.
#[test]
fn a_deleted_snapshot_takes_its_comparisons_along() {
    let mut bench = Bench::with(2, 8, true);
    let jobs = copies(&bench.tick_after(1_000));
    assert_eq!(jobs.len(), 2);
    bench.copy_done(&jobs[0], Copied::Unchanged);
    assert_eq!(bench.engine.staged_len(), 2);
    bench.apply(Event::Dirtied(vec![ChunkIndex(0), ChunkIndex(1)]));
    bench.copy_done(&jobs[1], Copied::Unchanged);
    assert_eq!(bench.engine.staged_len(), 0);
    assert_eq!(bench.slots.free(), 8);
    assert!(bench.engine.staging_off().is_none(), "nothing went wrong");
}

/// I4: fails when the copy stays, and is adopted.
#[test]
fn a_damaged_copy_is_dropped_and_made_again() {
    let mut bench = Bench::new(4, 8);
    bench.write(range(0, 0, 1));
    let CopyJob { chunk, slot, .. } = bench.stage(0);
    bench.apply(Event::StagedDamaged { chunk, slot: SlotIndex(slot.0 + 1) });
    assert_eq!(bench.slots.free(), 7, "the copy is in another slot");
    bench.apply(Event::StagedDamaged { chunk, slot });
    assert_eq!(bench.slots.free(), 8);
    assert!(bench.gate.is_dirty(chunk));
    // The policy brings it up once more.
    let job = the_copy(&bench.tick_after(1_000));
    bench.copy_done(&job, written());
    bench.apply(Event::StagedDamaged { chunk, slot: job.slot });
    let effects = bench.cut(1);
    assert_eq!(the_copy(&effects).chunk, chunk, "not adopted, but copied");
}

/// What a clean stop is saving stays what it is: the slot would have two owners.
#[test]
fn a_copy_that_is_being_saved_is_not_dropped() {
    let mut bench = Bench::new(4, 8);
    bench.write(range(0, 0, 1));
    let CopyJob { chunk, slot, .. } = bench.stage(0);
    bench.apply(Event::Stop);
    bench.apply(Event::FlushDone(Ok(())));
    bench.apply(Event::StagedDamaged { chunk, slot });
    assert_eq!(bench.slots.free(), 7);
    bench.catalog_done(CatalogStep::Close);
}

#[test]
fn staging_stops_after_errors_in_a_row_until_the_policy_is_set_again() {
    let mut bench = Bench::new(16, 16);
    bench.write(range(0, 0, 16 * CHUNK_LBAS));
    let mut jobs = copies(&bench.tick_after(1_000));
    let mut errors = 0;
    while let Some(job) = jobs.pop() {
        let result = Err("bad block".into());
        jobs.extend(copies(&bench.apply(Event::CopyDone { job: job.id, result })));
        errors += 1;
    }
    assert!((8..16).contains(&errors), "{errors}: the eighth starts no more");
    assert!(bench.engine.staging_off().unwrap().contains("bad block"));
    assert!(copies(&bench.tick_after(10_000)).is_empty());
    assert_eq!(bench.slots.free(), 16);
    let settings = bench.engine.settings();
    bench.engine.set_settings(settings, bench.now);
    assert!(!copies(&bench.tick_after(10_000)).is_empty());
}

#[test]
fn a_lost_store_ends_snapshots_and_staging_and_lets_writers_go() {
    let mut bench = Bench::new(4, 8);
    bench.write(range(0, 0, 1));
    bench.stage(0);
    bench.write(range(1, 0, 1));
    let job = the_copy(&bench.cut(1));
    assert!(matches!(bench.gate.enter(range(1, 0, 1)), Entry::Parked { .. }));
    let effects = bench.apply(Event::StoreGone("unplugged".into()));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::WakeAll)));
    bench.enter(range(1, 0, 1));
    failed_because(&bench.catalog_failed(CatalogStep::Fail), "unplugged");
    bench.copy_done(&job, written());
    for _ in 0..3 {
        assert!(bench.tick_after(100_000).is_empty());
    }
    assert_eq!(bench.engine.staged_len(), 0);
    // Nor does the policy set anew bring anything back.
    let settings = bench.engine.settings();
    bench.engine.set_settings(settings, bench.now);
    assert!(bench.tick_after(100_000).is_empty());
    assert!(bench.engine.staging_off().unwrap().contains("unplugged"));
    failed_because(&bench.apply(Event::Create(record(2))), "unplugged");
}
