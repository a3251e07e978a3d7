//! The engine of one volume: staging and the life of the snapshot under way.
//!
//! One owner, one thread (the volume's). [`Engine::apply`] takes an event and leaves effects; it
//! does no I/O and knows no clock but the one it is given, so the simulator runs this very code.
//!
//! Life of a snapshot: `Begin` (its record is made durable) - the cut - `Copy` (dirty chunks of
//! the old epoch are adopted, copied or preserved) - `Flush` - `Commit`. Any trouble after the cut leads to `Fail` instead: first the gate
//! lets every parked command go, then slots and records are cleaned up, then the old epoch's dirty
//! chunks are made dirty in the current one, since no snapshot holds them.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use super::cleanup::Cleanup;
use super::controller::{Aims, Controller};
use super::copying::Job;
use super::counters::Counters;
use super::crc::CrcCombiner;
use super::events::{CatalogStep, Effect, Event, JobId, Micros};
use super::limits::{FixedHashMap, Limits};
use super::pacer::{Foreground, Pace, Pacer};
use super::policy::{Policy, PolicyKind};
use super::records::{
    BlockCrcs, CatalogReply, CatalogRequest, Cause, SlotIndex, SnapshotRecord, SnapshotState,
    StagedRecord, Trouble, VolumeId,
};
use super::snapshot::Snapshot;
use super::staging::Sweep;
use super::stop::StopPhase;
use super::threshold::Spending;
use crate::gate::{BlockMap, ChunkIndex, Gate, Geometry, OpenWalk, OperationNumber};

/// Copies under way at once for a snapshot: enough to keep two NVMe devices busy with 256 KiB
/// requests, few enough that a parked command's copy does not queue for long behind them.
pub const COPY_IN_FLIGHT_MAX: usize = 16;

/// The slots of a store, as far as the engine is concerned.
pub trait SlotSpace {
    /// Takes a free slot.
    fn allocate(&mut self) -> Option<SlotIndex>;
    /// Gives a slot back.
    fn release(&mut self, slot: SlotIndex);
    /// Free slots, the reserved ones not among them.
    fn free(&self) -> u64;
    /// Keeps so many free slots from [`SlotSpace::allocate`].
    fn reserve(&mut self, count: u64);
    /// Makes reserved slots free again.
    fn unreserve(&mut self, count: u64);
}

/// Settings of an engine that may change while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which chunks are staged.
    pub policy: PolicyKind,
    /// Slots that staged copies may take.
    pub staging_slots_max: u64,
    /// Limit on background copying; preserving for a parked command is exempt.
    pub copy_bytes_per_s_max: Option<u64>,
    /// What the threshold of [`PolicyKind::Scored`] is moved for; `None`: it stays.
    pub aims: Option<Aims>,
    /// A command may be parked for so long before the snapshot is given up for it.
    pub parked_us_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: PolicyKind::Off,
            staging_slots_max: u64::MAX,
            copy_bytes_per_s_max: None,
            aims: None,
            parked_us_max: 5_000_000,
        }
    }
}

/// What a staged chunk's copy consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The copy is in this slot.
    Slot(SlotIndex),
    /// The chunk was all zeros.
    Zero,
    /// The chunk was as in the newest complete snapshot.
    Unchanged,
}

/// A copy that was made before a snapshot asked for it.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The copy.
    pub content: Content,
    /// Highest operation number given out when the copy was started.
    pub operation_number: OperationNumber,
    /// Checksums of its blocks.
    pub block_crcs: Box<BlockCrcs>,
}

/// Why a copy is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Ahead of any snapshot.
    Stage,
    /// For the snapshot under way.
    Complete,
    /// For the snapshot under way; a foreground command waits.
    Preserve,
}

/// A staged chunk as `presnap_get_chunks` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagedChunk {
    /// The chunk.
    pub chunk: ChunkIndex,
    /// Tag of the copy.
    pub operation_number: OperationNumber,
    /// The copy.
    pub content: Content,
    /// Blocks modified since; empty means valid.
    pub block_map: BlockMap,
}

/// The engine of one volume.
#[derive(Debug)]
pub struct Engine {
    pub(super) gate: Arc<Gate>,
    pub(super) volume: VolumeId,
    pub(super) settings: Settings,
    pub(super) limits: Limits,
    pub(super) combiner: CrcCombiner,
    pub(super) pacer: Pacer,
    pub(super) snapshot: Option<Snapshot>,
    /// Copies of chunks that are dirty in the current epoch.
    pub(super) staged: FixedHashMap<ChunkIndex, Staged>,
    pub(super) jobs: FixedHashMap<JobId, Job>,
    pub(super) job_count: u64,
    pub(super) policy: Policy,
    /// Where the next snapshot begins to copy.
    pub(super) soonest: Vec<ChunkIndex>,
    /// Chunks that are due, closed, and wait for commands that passed them before, for the pacer or for
    /// room.
    pub(super) closing: VecDeque<ChunkIndex>,
    pub(super) open_walk: OpenWalk,
    /// Where the search for dirty chunks that the policy never saw written goes on, and from when.
    pub(super) sweep: Option<Sweep>,
    pub(super) cleanup: Cleanup,
    /// Which chunks changed since the newest complete snapshot is not known (unclean stop): full
    /// copies are compared with it.
    pub(super) compare: bool,
    /// Every chunk that the gate calls dirty was written since the newest complete snapshot.
    pub(super) exact: bool,
    pub(super) staging_off: Option<String>,
    pub(super) staging_error_run: u32,
    pub(super) store_gone: Option<String>,
    pub(super) stop: StopPhase,
    /// A create that came while the one before was still being cleared away.
    pub(super) deferred: Option<SnapshotRecord>,
    /// Slots of failed snapshots whose failure could not be recorded.
    pub(super) stranded: Vec<SlotIndex>,
    /// Free slots of the store that are kept for the snapshot under way.
    pub(super) reserved: u64,
    pub(super) counters: Counters,
    pub(super) controller: Option<Controller>,
    pub(super) spending: Spending,
    pub(super) effects: VecDeque<Effect>,
}

impl Engine {
    /// An engine for a volume whose gate is set up. `compare` says that all chunks are dirty only
    /// for want of knowledge, while a complete snapshot exists to compare with.
    pub fn new(
        gate: Arc<Gate>,
        volume: VolumeId,
        settings: Settings,
        compare: bool,
        now: Micros,
    ) -> Self {
        let combiner = CrcCombiner::new(gate.geometry().block_bytes());
        let exact = !gate.began_all_dirty();
        let open_walk = gate.open_walk();
        let mut engine = Self {
            gate,
            combiner,
            volume,
            settings,
            limits: Limits::default(),
            pacer: Pacer::new(settings.copy_bytes_per_s_max),
            snapshot: None,
            staged: FixedHashMap::default(),
            jobs: FixedHashMap::default(),
            job_count: 0,
            policy: Policy::new(settings.policy),
            soonest: Vec::new(),
            closing: VecDeque::new(),
            open_walk,
            sweep: None,
            cleanup: Cleanup::new(now),
            compare,
            exact,
            staging_off: None,
            staging_error_run: 0,
            store_gone: None,
            stop: StopPhase::No,
            deferred: None,
            stranded: Vec::new(),
            reserved: 0,
            counters: Counters::default(),
            controller: settings.aims.map(|aims| Controller::new(aims, now)),
            spending: Spending::default(),
            effects: VecDeque::new(),
        };
        engine.schedule_sweep(now);
        engine
    }

    /// Takes over a staged copy from a clean stop. Call before the first command enters.
    pub fn restore_staged(&mut self, record: StagedRecord) {
        let (gate, chunk) = (&self.gate, record.chunk);
        assert!(gate.mark_dirty(chunk), "no cut is active while a volume is set up");
        let all = gate.begin_copy(chunk).expect("a dirty chunk can be copied");
        let _ = gate.end_copy(chunk, true, all);
        if record.block_map != 0 {
            // As if a refresh of these blocks had failed.
            let _ = gate.begin_copy(chunk);
            let _ = gate.end_copy(chunk, false, BlockMap(record.block_map));
        }
        let staged = Staged {
            content: record.slot.map_or(Content::Zero, Content::Slot),
            operation_number: record.operation_number,
            block_crcs: record.block_crcs,
        };
        let before = self.staged.insert(record.chunk, staged);
        assert!(before.is_none(), "chunk {:?} is staged twice in the catalog", record.chunk);
    }

    /// Makes the bounds tighter than a volume needs them, for tests and the simulator.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The gate this engine works on.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Settings in force.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Counters.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Why nothing is done with the store any more, if so: it is gone, or what it holds is not known.
    pub fn store_gone(&self) -> Option<&str> {
        self.store_gone.as_deref()
    }

    /// Why staging is off although the policy is not, if so.
    pub fn staging_off(&self) -> Option<&str> {
        self.staging_off.as_deref()
    }

    /// Number of staged copies, valid or not, those under way included.
    pub fn staged_len(&self) -> usize {
        self.staged.len() + self.jobs.values().filter(|j| j.purpose == Purpose::Stage).count()
    }

    /// Staged chunks, in no order.
    pub fn staged_chunks(&self) -> impl Iterator<Item = StagedChunk> + '_ {
        self.staged.iter().map(|(&chunk, staged)| StagedChunk {
            chunk,
            operation_number: staged.operation_number,
            content: staged.content,
            block_map: self.gate.block_map(chunk),
        })
    }

    /// The staged copy of one chunk.
    pub fn staged_chunk(&self, chunk: ChunkIndex) -> Option<StagedChunk> {
        self.staged.get(&chunk).map(|staged| StagedChunk {
            chunk,
            operation_number: staged.operation_number,
            content: staged.content,
            block_map: self.gate.block_map(chunk),
        })
    }

    /// All that is known of the staged copy of one chunk, unless it is being refreshed.
    pub fn staged_copy(&self, chunk: ChunkIndex) -> Option<&Staged> {
        self.staged.get(&chunk)
    }

    /// When a write to `chunk` was last reported, if the policy still follows it.
    pub fn last_write(&self, chunk: ChunkIndex) -> Option<Micros> {
        self.policy.last_write(chunk)
    }

    /// The record of the snapshot under way, as far as it is.
    pub fn progress(&self) -> Option<&SnapshotRecord> {
        self.snapshot.as_ref().map(|snapshot| &snapshot.record)
    }

    /// Whether a snapshot is under way, or waits for the one before to be cleared away.
    pub fn has_snapshot(&self) -> bool {
        self.snapshot.is_some() || self.deferred.is_some()
    }

    /// Whether there is anything to do soon: the driver then ticks as often as it can.
    pub fn is_busy(&self) -> bool {
        self.snapshot.is_some() || !self.jobs.is_empty() || self.stop != StopPhase::No
    }

    /// Changes policy and limits from now on.
    pub fn set_settings(&mut self, settings: Settings, now: Micros) {
        self.aim(&settings, now);
        let policy = self.policy_in_force(&settings);
        if policy != self.policy.kind() || self.staging_off.is_some() {
            self.policy = Policy::new(policy);
            self.closing.clear();
            self.staging_off.clone_from(&self.store_gone);
            self.staging_error_run = 0;
        }
        if settings.copy_bytes_per_s_max != self.settings.copy_bytes_per_s_max {
            self.pacer.set_limit(settings.copy_bytes_per_s_max);
        }
        self.settings = settings;
        self.schedule_sweep(now);
    }

    /// A modifying command touched `chunk` (from the access records).
    pub fn observe_write(&mut self, chunk: ChunkIndex, now: Micros) {
        self.policy.observe(chunk, now);
    }

    /// What foreground commands took since the last time, which moves the limit on copying.
    pub fn observe_foreground(&mut self, foreground: Foreground, now: Micros) {
        self.pacer.look(now, foreground, !self.jobs.is_empty());
    }

    /// How copying and foreground commands get along.
    pub fn pace(&self) -> Pace {
        self.pacer.pace()
    }

    /// Access records were lost: look for dirty chunks without them.
    pub fn records_lost(&mut self, now: Micros) {
        self.schedule_sweep(now);
    }

    /// Writes how long the cut took into the record of the snapshot under way.
    pub fn set_cut_us(&mut self, cut_us: u64) {
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.record.times.cut_us = cut_us;
        }
    }

    /// The oldest effect not taken yet.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Takes an event. Effects are fetched with [`Engine::next_effect`] afterwards.
    pub fn apply(&mut self, now: Micros, event: Event, slots: &mut dyn SlotSpace) {
        match event {
            Event::Create(record) => self.create(now, record),
            Event::CatalogDone { step, result } => self.catalog_done(now, step, result, slots),
            Event::CopyDone { job, result } => self.copy_done(now, job, result, slots),
            Event::FlushDone(result) => self.flush_done(now, result, slots),
            Event::Parked { chunk, since } => self.parked(now, chunk, since, slots),
            Event::Abort(reason) => self.fail(reason.into()),
            Event::Dirtied(chunks) => self.dirtied(now, &chunks, slots),
            Event::StagedDamaged { chunk, slot } => self.staged_damaged(now, chunk, slot, slots),
            Event::StoreGone(reason) => self.store_is_gone(&reason, slots),
            Event::Scores(scores) => {
                let staged = &self.staged;
                self.policy.take_scores(scores, |chunk| staged.contains_key(&chunk));
                self.spending_so_far(now);
            }
            Event::Soonest(chunks) => self.soonest = chunks,
            Event::Tick => self.open_chunks(),
            Event::Stop => {
                assert!(self.stop == StopPhase::No, "an engine is stopped once");
                self.stop = StopPhase::Asked;
                self.fail("the volume was stopped before it was complete".into());
            }
        }
        self.advance(now, slots);
        self.check_invariants();
    }

    fn advance(&mut self, now: Micros, slots: &mut dyn SlotSpace) {
        self.advance_snapshot(now, slots);
        self.end_reservation(slots);
        if self.snapshot.is_none() {
            if let Some(record) = self.deferred.take() {
                self.create(now, record);
            } else if self.stop == StopPhase::Asked {
                self.prepare_stop();
            } else if self.stop == StopPhase::No {
                self.clean_up(now, slots);
                self.stage(now, slots);
            }
        }
    }

    fn create(&mut self, now: Micros, record: SnapshotRecord) {
        if let Some(reason) = self.store_gone.clone().or_else(|| {
            (self.stop != StopPhase::No).then(|| "the volume is being stopped".to_owned())
        }) {
            let mut record = record;
            record.state = SnapshotState::Failed;
            record.reason = Some(reason);
            self.effects.push_back(Effect::Ended(record, Some(Cause::Other)));
        } else if self.snapshot.is_some() {
            assert!(self.deferred.is_none(), "the chain admits one snapshot at a time");
            self.deferred = Some(record);
        } else {
            self.effects.push_back(Effect::Catalog {
                step: CatalogStep::Begin,
                request: CatalogRequest::BeginSnapshot(record.clone()),
            });
            self.snapshot = Some(Snapshot::new(record, now));
        }
    }

    pub(super) fn store_is_gone(&mut self, reason: &str, slots: &mut dyn SlotSpace) {
        self.store_gone = Some(reason.to_owned());
        self.staging_off = Some(reason.to_owned());
        self.fail(reason.into());
        self.drop_all_staged(slots);
    }

    pub(super) fn drop_all_staged(&mut self, slots: &mut dyn SlotSpace) {
        for (chunk, staged) in std::mem::take(&mut self.staged) {
            let _ = self.gate.drop_staged(chunk);
            release(staged.content, slots);
        }
    }

    fn dirtied(&mut self, now: Micros, chunks: &[ChunkIndex], slots: &mut dyn SlotSpace) {
        let chunks: BTreeSet<ChunkIndex> = chunks.iter().copied().collect();
        for job in self.jobs.values_mut().filter(|job| chunks.contains(&job.chunk)) {
            job.stale = true;
        }
        for &chunk in &chunks {
            // Not while a snapshot completes: the chain keeps what that one builds on.
            assert!(self.gate.mark_dirty(chunk), "chunk {chunk:?} is pending");
            // "As in the newest snapshot" means nothing when that is gone.
            if self.staged.get(&chunk).is_some_and(|s| s.content == Content::Unchanged) {
                self.drop_staged(chunk, slots);
            }
        }
        self.schedule_sweep(now);
    }

    fn staged_damaged(
        &mut self,
        now: Micros,
        chunk: ChunkIndex,
        slot: SlotIndex,
        slots: &mut dyn SlotSpace,
    ) {
        // A stop saves what is staged; a scrub finds it there.
        let stops = self.stop != StopPhase::No;
        let is_there = |staged: &Staged| staged.content == Content::Slot(slot);
        if !stops && self.staged.get(&chunk).is_some_and(is_there) {
            self.drop_staged(chunk, slots);
            self.policy.observe(chunk, now);
        }
    }

    pub(super) fn drop_staged(&mut self, chunk: ChunkIndex, slots: &mut dyn SlotSpace) {
        if let Some(staged) = self.staged.remove(&chunk) {
            self.counters.dropped_copies += 1;
            assert!(self.gate.drop_staged(chunk), "the gate and the engine agree");
            release(staged.content, slots);
        }
    }

    // ---- answers of the catalog --------------------------------------------------------------

    fn catalog_done(
        &mut self,
        now: Micros,
        step: CatalogStep,
        result: Result<CatalogReply, Trouble>,
        slots: &mut dyn SlotSpace,
    ) {
        if step == CatalogStep::Close {
            self.effects.push_back(Effect::Stopped(result.map(drop).map_err(|why| why.reason)));
        } else {
            self.snapshot_catalog_done(now, step, result.map(drop), slots);
        }
    }

    /// A snapshot is complete: from now on what is dirty is known exactly.
    pub(super) fn dirty_set_is_exact(&mut self) {
        self.compare = false;
        self.exact = true;
    }

    /// Slots that the engine holds in memory: staged, being copied to, or of the snapshot under
    /// way. With the catalog's rows they are all slots in use (I8).
    pub fn held_slots(&self) -> Vec<SlotIndex> {
        let slot = |content: Content| match content {
            Content::Slot(slot) => Some(slot),
            Content::Zero | Content::Unchanged => None,
        };
        let mut held: Vec<SlotIndex> =
            self.staged.values().filter_map(|staged| slot(staged.content)).collect();
        held.extend(self.stranded.iter().copied());
        held.extend(self.jobs.values().map(|job| job.slot));
        let left_over = self.snapshot.iter().flat_map(|snapshot| &snapshot.left_over);
        held.extend(left_over.filter_map(|(_, staged)| slot(staged.content)));
        if let Some(snapshot) = &self.snapshot {
            held.extend(snapshot.candidates.values().filter_map(|staged| slot(staged.content)));
            held.extend(snapshot.slots_taken.iter().copied());
        }
        held
    }

    fn check_invariants(&self) {
        assert!(
            self.jobs.len() <= self.limits.copies_in_flight_max + self.limits.staging_in_flight_max,
            "{} copies in flight",
            self.jobs.len()
        );
        assert!(self.snapshot.is_some() || !self.gate.is_cut_active(), "a cut without a snapshot");
        assert!(self.snapshot.is_some() || self.reserved == 0, "slots kept for no snapshot");
    }

    /// Slots of a failed snapshot whose failure could not be recorded were freed all the same, with
    /// its record.
    pub fn stranded_freed(&mut self, freed: &[SlotIndex]) {
        self.stranded.retain(|slot| !freed.contains(slot));
    }

    /// Slots that are nobody's once the engine is dropped without having saved: all it holds but
    /// those that the device may still name.
    pub fn droppable_slots(&self) -> Vec<SlotIndex> {
        let stranded: HashSet<SlotIndex> = self.stranded.iter().copied().collect();
        let mut held = self.held_slots();
        held.retain(|slot| !stranded.contains(slot));
        held
    }

    /// Checks what takes time proportional to the staged copies; for tests and the simulator.
    pub fn self_check(&self) {
        let held = self.held_slots();
        let distinct: HashSet<SlotIndex> = held.iter().copied().collect();
        assert_eq!(held.len(), distinct.len(), "a slot is held twice");
        for chunk in self.staged.keys() {
            assert!(self.gate.is_dirty(*chunk), "staged chunk {chunk:?} is not dirty");
            assert!(
                !self.jobs.values().any(|job| job.chunk == *chunk),
                "chunk {chunk:?} is staged and being copied"
            );
        }
    }
}

/// Bytes that `chunk` has; fewer than the chunk size at the volume's end.
pub(super) fn chunk_bytes(geometry: &Geometry, chunk: ChunkIndex) -> u64 {
    geometry.chunk_range(chunk).count * u64::from(geometry.lba_bytes())
}

pub(super) fn release(content: Content, slots: &mut dyn SlotSpace) {
    if let Content::Slot(slot) = content {
        slots.release(slot);
    }
}
