//! The snapshot under way: from the request to complete or failed.

use std::collections::VecDeque;

use super::copying::{NotStarted, bytes_of};
use super::events::{CatalogStep, Effect, Micros, ReadSource};
use super::limits::FixedHashMap;
use super::machine::{Content, Engine, Purpose, SlotSpace, Staged, chunk_bytes, release};
use super::records::{
    CatalogRequest, Cause, SlotIndex, SlotRef, SnapshotRecord, SnapshotRow, SnapshotState, Trouble,
};
use super::space::has_slot;
use crate::gate::{self, ChunkIndex, ChunkState, CutRefused, DirtyWalk, Epoch};

/// Attempts to record that a snapshot failed, before the store counts as unusable.
const FAIL_ATTEMPTS_MAX: u32 = 3;

/// Time between them: longer than a hiccup of a device, shorter than anybody waits.
const FAIL_AGAIN_US: u64 = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The record is being made durable; no cut yet.
    Begin,
    /// After the cut: chunks are being adopted and copied.
    Copy,
    /// Everything is in slots; the store's cache is being flushed. On one NVMe namespace the catalog's
    /// own flush would do it, before its header says so; not on every device, and its failure would leave
    /// the outcome of the commit unknown instead of the snapshot failed.
    Flush,
    /// The last rows and the record are being made durable.
    Commit,
    /// Given up; the record is being made durable as failed.
    Fail,
    /// Failed and reported; dirty chunks of the old epoch become dirty in the current one.
    Redirty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Queued,
    /// Commands from before the cut are in flight on it.
    Draining,
    Copying,
}

/// A snapshot between its request and the end of its clean-up.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) record: SnapshotRecord,
    phase: Phase,
    requested_at: Micros,
    /// The epoch that the cut ended; 0 before.
    pub(super) old_epoch: Epoch,
    /// The dirty index of the old epoch, as far as it is not walked; `None` when it is.
    walk: Option<DirtyWalk>,
    /// Chunks taken from the index or brought up by parked commands, to be made dirty again if
    /// the snapshot fails.
    brought_up: Vec<ChunkIndex>,
    /// Chunks of `brought_up` before this place are visited.
    visited: usize,
    /// Copies that were staged when the cut came and are not adopted yet.
    pub(super) candidates: FixedHashMap<ChunkIndex, Staged>,
    pending: FixedHashMap<ChunkIndex, Pending>,
    queue: VecDeque<ChunkIndex>,
    /// Pending chunks to look at again soon: commands are in flight on them.
    draining: Vec<ChunkIndex>,
    /// Pending chunks that a foreground command waits for; they go first and unpaced.
    urgent: VecDeque<ChunkIndex>,
    /// Chunks with parked commands, and since when the first of these waits, not only here.
    waiting: FixedHashMap<ChunkIndex, Micros>,
    rows: Vec<SnapshotRow>,
    catalog_busy: bool,
    /// A flush was sent and not answered.
    flushing: bool,
    /// What it was given up for.
    cause: Option<Cause>,
    /// Failed transactions that were to record the failure, and when the next is due.
    fail_attempts: u32,
    fail_again_at: Option<Micros>,
    /// Staged copies that the snapshot had not adopted when it failed.
    pub(super) left_over: Vec<(ChunkIndex, Staged)>,
    /// Slots of all rows so far, to be freed if the snapshot fails.
    pub(super) slots_taken: Vec<SlotIndex>,
}

impl Snapshot {
    pub(super) fn new(record: SnapshotRecord, now: Micros) -> Self {
        Self {
            record,
            phase: Phase::Begin,
            requested_at: now,
            old_epoch: Epoch(0),
            walk: None,
            brought_up: Vec::new(),
            visited: 0,
            candidates: FixedHashMap::default(),
            pending: FixedHashMap::default(),
            queue: VecDeque::new(),
            draining: Vec::new(),
            urgent: VecDeque::new(),
            waiting: FixedHashMap::default(),
            rows: Vec::new(),
            catalog_busy: true,
            flushing: false,
            cause: None,
            fail_attempts: 0,
            fail_again_at: None,
            left_over: Vec::new(),
            slots_taken: Vec::new(),
        }
    }

    /// Whether copies may yet be started for it.
    pub(super) fn may_copy(&self) -> bool {
        matches!(self.phase, Phase::Begin | Phase::Copy)
    }

    /// Whether a copy started in `epoch` is of use to this snapshot.
    pub(super) fn owns(&self, epoch: Epoch) -> bool {
        self.phase == Phase::Copy && epoch <= self.old_epoch
    }
}

impl Engine {
    /// What is being done: for the log and the simulator.
    pub fn phase_name(&self) -> &'static str {
        match self.snapshot.as_ref().map(|snapshot| snapshot.phase) {
            _ if self.deferred.is_some() => "deferred",
            None => "idle",
            Some(Phase::Begin) => "begin",
            Some(Phase::Copy) => "copy",
            Some(Phase::Flush) => "flush",
            Some(Phase::Commit) => "commit",
            Some(Phase::Fail) => "fail",
            Some(Phase::Redirty) => "redirty",
        }
    }

    /// Where to read `chunk` of the snapshot under way; `None` if none is readable. Take the
    /// effects before looking at the snapshot's rows.
    pub fn read_source(&mut self, chunk: ChunkIndex) -> Option<ReadSource> {
        let snapshot = self.snapshot.as_ref()?;
        match snapshot.phase {
            Phase::Begin | Phase::Fail | Phase::Redirty => return None,
            // Every chunk is resolved, and commands of the epochs since do not matter.
            Phase::Flush | Phase::Commit => return Some(ReadSource::Rows),
            Phase::Copy => {}
        }
        Some(match self.gate.read_source(chunk, snapshot.old_epoch) {
            // Also while a copy is running: what is in flight has not landed, copy or not.
            gate::ReadSource::Draining => ReadSource::Wait,
            gate::ReadSource::Master => ReadSource::Master,
            gate::ReadSource::Adopted => {
                // By a foreground command; perhaps the walk has not come here yet.
                self.visit(chunk);
                ReadSource::Rows
            }
            gate::ReadSource::NotPending => ReadSource::Rows,
        })
    }

    /// Moves the snapshot under way on by one bounded step.
    pub(super) fn advance_snapshot(&mut self, now: Micros, slots: &mut dyn SlotSpace) {
        let Some(snapshot) = &self.snapshot else { return };
        match snapshot.phase {
            Phase::Fail if snapshot.fail_again_at.is_some_and(|at| at <= now) => {
                self.under_way().fail_again_at = None;
                self.record_failure();
            }
            Phase::Begin | Phase::Flush | Phase::Commit | Phase::Fail => {}
            Phase::Copy => self.advance_copy(now, slots),
            Phase::Redirty => self.advance_redirty(now, slots),
        }
    }

    fn under_way(&mut self) -> &mut Snapshot {
        self.snapshot.as_mut().expect("called for the snapshot under way")
    }

    fn cut(&mut self, now: Micros) {
        // Looked at before the walk comes to them; the walk finds them settled or under way.
        let mut first = std::mem::take(&mut self.soonest);
        first.truncate(self.limits.pending_max);
        first.retain(|&chunk| self.gate.is_dirty(chunk));
        let point = match self.gate.cut() {
            Err(refused @ CutRefused::Draining) => return self.give_up(refused.to_string().into()),
            point => point.expect("the snapshot before was cleared away entirely"),
        };
        let walk = self.gate.dirty_walk(point.old_epoch);
        let candidates = std::mem::take(&mut self.staged);
        let total = u64::from(self.gate.geometry().chunk_count());
        self.spending_cut();
        let snapshot = self.under_way();
        snapshot.phase = Phase::Copy;
        snapshot.old_epoch = point.old_epoch;
        snapshot.walk = Some(walk);
        snapshot.brought_up.extend(first);
        snapshot.candidates = candidates;
        snapshot.record.operation_number = point.operation;
        snapshot.record.chunks.total = total;
        snapshot.record.times.consistent_us = now.since(snapshot.requested_at);
        let record = snapshot.record.clone();
        self.effects.push_back(Effect::Consistent(record));
    }

    // ---- copying ------------------------------------------------------------------------------

    fn advance_copy(&mut self, now: Micros, slots: &mut dyn SlotSpace) {
        if let Some(reason) = self.overdue(now) {
            return self.fail(reason.into());
        }
        let snapshot = self.under_way();
        for chunk in std::mem::take(&mut snapshot.draining) {
            if self.under_way().pending.get(&chunk) == Some(&Pending::Draining) {
                self.visit(chunk);
            }
        }
        self.walk();
        self.launch(now, slots);
        self.send_rows();
        let snapshot = self.under_way();
        if snapshot.phase == Phase::Copy
            && snapshot.walk.is_none()
            && snapshot.visited == snapshot.brought_up.len()
            && snapshot.pending.is_empty()
            && !snapshot.catalog_busy
        {
            assert!(snapshot.waiting.is_empty(), "a command is parked and nothing is pending");
            assert!(snapshot.candidates.is_empty(), "staged copies of chunks that are not dirty");
            snapshot.phase = Phase::Flush;
            snapshot.flushing = true;
            self.gate.finish_cut();
            self.effects.push_back(Effect::FlushStore);
        }
    }

    /// Why the snapshot has to be given up for a foreground command that waits, if one has waited too
    /// long.
    fn overdue(&mut self, now: Micros) -> Option<String> {
        let parked_us_max = self.settings.parked_us_max;
        let snapshot = self.under_way();
        let mut waiting = snapshot.waiting.iter();
        let (chunk, _) = waiting.find(|(_, since)| now.since(**since) > parked_us_max)?;
        let cause = match snapshot.pending.get(chunk) {
            Some(Pending::Draining) => "the master has not ended commands from before the cut",
            Some(Pending::Copying) => "copying it to the store takes longer",
            Some(Pending::Queued) | None => "other copies come before its own",
        };
        let waited_ms = parked_us_max / 1000;
        Some(format!(
            "a command waited for more than {waited_ms} ms for chunk {} to be preserved: {cause}",
            chunk.0
        ))
    }

    fn walk(&mut self) {
        let (gate, limits) = (self.gate.clone(), self.limits);
        let mut words = 0;
        for _ in 0..limits.walk_chunks_per_tick {
            let snapshot = self.under_way();
            if snapshot.pending.len() >= limits.pending_max {
                return;
            }
            if let Some(&chunk) = snapshot.brought_up.get(snapshot.visited) {
                snapshot.visited += 1;
                if !snapshot.pending.contains_key(&chunk) {
                    self.visit(chunk);
                }
                continue;
            }
            while let Some(walk) = &mut snapshot.walk {
                if words == limits.walk_words_per_tick {
                    return;
                }
                words += 1;
                let brought_up = &mut snapshot.brought_up;
                let before = brought_up.len();
                if gate.take_dirty(walk, 1, |chunk| brought_up.push(chunk)) {
                    snapshot.walk = None;
                    break;
                }
                if brought_up.len() > before {
                    break;
                }
            }
        }
    }

    /// Looks at a chunk of the old epoch and settles it, or notes what it waits for.
    pub(super) fn visit(&mut self, chunk: ChunkIndex) {
        let gate = self.gate.clone();
        loop {
            let snapshot = self.under_way();
            let old_epoch = snapshot.old_epoch;
            match gate.classify(chunk, old_epoch) {
                ChunkState::Resolved | ChunkState::NotRequired => {
                    // Settled already, or it was in the index in vain.
                    snapshot.pending.remove(&chunk);
                    return;
                }
                ChunkState::Adopted => {
                    // By a foreground command on its way in; settled before if no candidate.
                    snapshot.pending.remove(&chunk);
                    if let Some(staged) = snapshot.candidates.remove(&chunk) {
                        self.settle(chunk, &staged, Purpose::Stage);
                    }
                    return;
                }
                ChunkState::Adoptable => {
                    if gate.try_adopt(chunk) {
                        snapshot.pending.remove(&chunk);
                        let staged = snapshot
                            .candidates
                            .remove(&chunk)
                            .expect("the gate and the engine agree on what is staged");
                        self.settle(chunk, &staged, Purpose::Stage);
                        return;
                    }
                }
                ChunkState::Draining => {
                    snapshot.pending.insert(chunk, Pending::Draining);
                    snapshot.draining.push(chunk);
                    return;
                }
                ChunkState::Staging => {
                    snapshot.pending.insert(chunk, Pending::Copying);
                    return;
                }
                ChunkState::Pending { .. } => {
                    if snapshot.pending.insert(chunk, Pending::Queued) != Some(Pending::Queued) {
                        if snapshot.waiting.contains_key(&chunk) {
                            snapshot.urgent.push_back(chunk);
                        } else {
                            snapshot.queue.push_back(chunk);
                        }
                    }
                    return;
                }
            }
        }
    }

    fn launch(&mut self, now: Micros, slots: &mut dyn SlotSpace) {
        while self.copies_in_flight() < self.limits.copies_in_flight_max {
            let gate = self.gate.clone();
            let snapshot = self.under_way();
            let (chunk, purpose) = if let Some(&chunk) = snapshot.urgent.front() {
                (chunk, Purpose::Preserve)
            } else if let Some(&chunk) = snapshot.queue.front() {
                (chunk, Purpose::Complete)
            } else {
                return;
            };
            let take = |snapshot: &mut Snapshot| match purpose {
                Purpose::Preserve => snapshot.urgent.pop_front(),
                Purpose::Complete | Purpose::Stage => snapshot.queue.pop_front(),
            };
            if snapshot.pending.get(&chunk) != Some(&Pending::Queued) {
                take(snapshot); // settled or under way since it was queued
                continue;
            }
            let ChunkState::Pending { missing } = gate.classify(chunk, snapshot.old_epoch) else {
                take(snapshot);
                snapshot.pending.insert(chunk, Pending::Draining);
                self.visit(chunk);
                continue;
            };
            let takes_slot = snapshot.candidates.get(&chunk).is_none_or(|staged| !has_slot(staged));
            if takes_slot && self.waits_for_slot(slots) {
                return;
            }
            let bytes = bytes_of(gate.geometry(), chunk, missing);
            if purpose == Purpose::Complete && !self.pacer.take(now, bytes) {
                return;
            }
            let snapshot = self.under_way();
            take(snapshot);
            snapshot.pending.insert(chunk, Pending::Copying);
            let partial = snapshot.candidates.remove(&chunk);
            match self.start_copy(chunk, partial, purpose, slots) {
                Ok(()) => {}
                Err(NotStarted::NoSlot) => {
                    let reason = "the store ran out of free slots; delete snapshots or add space";
                    return self.fail(Trouble { cause: Cause::NoSpace, reason: reason.to_owned() });
                }
                Err(NotStarted::Busy(partial)) => {
                    // A command is just finding out that a cut came; look again soon.
                    let snapshot = self.under_way();
                    snapshot.candidates.extend(partial.map(|staged| (chunk, staged)));
                    snapshot.pending.insert(chunk, Pending::Draining);
                    snapshot.draining.push(chunk);
                }
            }
        }
    }

    /// A foreground command is parked on `chunk`, and has been parked, on others before it, `since`.
    pub(super) fn parked(
        &mut self,
        now: Micros,
        chunk: ChunkIndex,
        since: Micros,
        slots: &mut dyn SlotSpace,
    ) {
        let gate = self.gate.clone();
        let active = self.snapshot.as_mut().filter(|s| s.phase == Phase::Copy);
        let Some(snapshot) = active else {
            self.effects.push_back(Effect::Wake(chunk));
            return;
        };
        if is_settled(gate.classify(chunk, snapshot.old_epoch)) {
            self.effects.push_back(Effect::Wake(chunk));
            return;
        }
        let waiting = snapshot.waiting.entry(chunk).or_insert(since);
        *waiting = since.min(*waiting);
        match snapshot.pending.get(&chunk) {
            // Its place in the queue is skipped when it comes up.
            Some(Pending::Queued) => snapshot.urgent.push_back(chunk),
            Some(Pending::Draining | Pending::Copying) => {}
            None => {
                // The walk may have taken it from the index, or never find it there: either way
                // it must be dirty again if the snapshot fails.
                snapshot.brought_up.push(chunk);
                self.visit(chunk);
            }
        }
        self.counters.parked += 1;
        self.launch(now, slots);
    }

    /// A copy that the snapshot under way can use has ended.
    pub(super) fn snapshot_copy_done(
        &mut self,
        chunk: ChunkIndex,
        purpose: Purpose,
        staged: Result<Staged, Option<String>>,
    ) {
        let gate = self.gate.clone();
        let snapshot = self.under_way();
        snapshot.pending.remove(&chunk);
        match (staged, purpose) {
            (Ok(staged), Purpose::Stage) => {
                // It was under way when the cut came: right if nothing wrote meanwhile. The walk
                // may not have been here: what is adopted now is to be dirty again on a failure.
                snapshot.brought_up.push(chunk);
                snapshot.candidates.insert(chunk, staged);
                self.visit(chunk);
            }
            (Ok(staged), Purpose::Complete | Purpose::Preserve) => {
                assert!(
                    gate.block_map(chunk).is_empty(),
                    "chunk {chunk:?} was modified while it was pending"
                );
                // Since the copy ended, a writer may have come by and adopted it.
                assert!(
                    gate.resolve(chunk)
                        || gate.classify(chunk, snapshot.old_epoch) == ChunkState::Adopted,
                    "chunk {chunk:?} was settled twice"
                );
                self.settle(chunk, &staged, purpose);
            }
            (Err(_), Purpose::Stage) => {
                snapshot.brought_up.push(chunk);
                self.visit(chunk);
            }
            (Err(reason), Purpose::Complete | Purpose::Preserve) => {
                let reason = reason.unwrap_or_else(|| "the copy was lost".to_owned());
                self.fail(format!("copying chunk {} failed: {reason}", chunk.0).into());
            }
        }
    }

    /// `chunk` is safe for the snapshot: note its row and let parked commands go.
    fn settle(&mut self, chunk: ChunkIndex, staged: &Staged, how: Purpose) {
        let row = self.slot_ref(chunk, staged);
        let chunk_bytes = chunk_bytes(self.gate.geometry(), chunk);
        let slot_bytes = u64::from(self.gate.geometry().chunk_bytes());
        let snapshot = self.under_way();
        let waited = snapshot.waiting.remove(&chunk).is_some();
        if let Some(row) = row {
            let counts = &mut snapshot.record.chunks;
            counts.required += 1;
            match (row, how) {
                (SlotRef::Zero, _) => counts.zero += 1,
                (_, Purpose::Stage) => counts.adopted += 1,
                (_, Purpose::Complete) => counts.copied += 1,
                (_, Purpose::Preserve) => counts.preserved += 1,
            }
            if let Some(slot) = row.slot() {
                snapshot.slots_taken.push(slot);
                snapshot.record.bytes_used += slot_bytes;
            }
            snapshot.rows.push((chunk, row));
            if how == Purpose::Stage {
                self.counters.adopted_copies += 1;
                self.counters.adopted_bytes += chunk_bytes;
            }
            self.effects.push_back(Effect::Row(chunk, row));
        }
        if waited {
            self.effects.push_back(Effect::Wake(chunk));
        }
    }

    fn send_rows(&mut self) {
        let rows_max = self.limits.rows_per_transaction;
        let Some(snapshot) = self.snapshot.as_mut().filter(|s| s.phase == Phase::Copy) else {
            return;
        };
        if snapshot.catalog_busy || snapshot.rows.len() < rows_max {
            return;
        }
        snapshot.catalog_busy = true;
        let rows = std::mem::take(&mut snapshot.rows);
        let (volume, seq) = (snapshot.record.volume, snapshot.record.seq);
        self.effects.push_back(Effect::Catalog {
            step: CatalogStep::Rows,
            request: CatalogRequest::AddRows { volume, seq, rows },
        });
    }

    // ---- ending -------------------------------------------------------------------------------

    pub(super) fn flush_done(
        &mut self,
        now: Micros,
        result: Result<(), String>,
        slots: &mut dyn SlotSpace,
    ) {
        let Some(snapshot) = self.snapshot.as_mut() else {
            return self.flushed_to_stop(result.is_ok(), slots);
        };
        snapshot.flushing = false;
        if snapshot.phase != Phase::Flush {
            return; // given up meanwhile
        }
        if let Err(reason) = result {
            return self.fail(format!("flushing the store failed: {reason}").into());
        }
        snapshot.phase = Phase::Commit;
        snapshot.catalog_busy = true;
        snapshot.record.state = SnapshotState::Complete;
        snapshot.record.times.complete_us = now.since(snapshot.requested_at);
        let rows = std::mem::take(&mut snapshot.rows);
        let record = snapshot.record.clone();
        self.effects.push_back(Effect::Catalog {
            step: CatalogStep::Complete,
            request: CatalogRequest::CompleteSnapshot { record, rows },
        });
    }

    pub(super) fn snapshot_catalog_done(
        &mut self,
        now: Micros,
        step: CatalogStep,
        result: Result<(), Trouble>,
        slots: &mut dyn SlotSpace,
    ) {
        let snapshot = self.under_way();
        snapshot.catalog_busy = false;
        match (snapshot.phase, step, result) {
            (Phase::Begin, CatalogStep::Begin, Ok(())) => self.cut(now),
            (Phase::Begin, CatalogStep::Begin, Err(why)) => {
                // No cut was made and nothing was recorded.
                let mut snapshot = self.snapshot.take().expect("looked at above");
                snapshot.record.state = SnapshotState::Failed;
                let Trouble { cause, reason } = why.in_doing("recording it");
                snapshot.record.reason = Some(reason);
                self.effects.push_back(Effect::Ended(snapshot.record, Some(cause)));
            }
            (Phase::Copy, CatalogStep::Rows, Ok(())) => {}
            (Phase::Commit, CatalogStep::Complete, Ok(())) => {
                // The slots are the catalog's from now on.
                let record = snapshot.record.clone();
                self.snapshot = None;
                self.counters.snapshots_complete += 1;
                self.spending_paid_off(now, &record);
                self.dirty_set_is_exact();
                self.effects.push_back(Effect::Ended(record, None));
            }
            (Phase::Copy | Phase::Commit, _, Err(why)) => {
                self.give_up(why.in_doing("recording its chunks"));
            }
            // Given up while this transaction was under way: now that may be recorded, unless it
            // never was recorded at all.
            (Phase::Fail, CatalogStep::Begin, Err(_))
            | (Phase::Fail, CatalogStep::Fail, Ok(())) => {
                self.failure_recorded(slots);
            }
            (Phase::Fail, CatalogStep::Begin | CatalogStep::Rows | CatalogStep::Complete, _) => {
                self.record_failure();
            }
            (Phase::Fail, CatalogStep::Fail, Err(why)) => {
                self.failure_not_recorded(now, &why.reason, slots);
            }
            (phase, step, result) => {
                unreachable!("catalog answered {step:?} with {result:?} in phase {phase:?}")
            }
        }
    }

    /// Gives the snapshot under way up, unless its last transaction was sent already.
    pub(super) fn fail(&mut self, why: Trouble) {
        if let Some(mut record) = self.deferred.take() {
            record.state = SnapshotState::Failed;
            record.reason = Some(why.reason);
            self.effects.push_back(Effect::Ended(record, Some(why.cause)));
            return;
        }
        let Some(snapshot) = &self.snapshot else { return };
        if matches!(snapshot.phase, Phase::Begin | Phase::Copy | Phase::Flush) {
            self.give_up(why);
        }
    }

    /// Foreground commands flow again before anything else; then what was done is undone.
    fn give_up(&mut self, why: Trouble) {
        self.gate.finish_cut();
        self.effects.push_back(Effect::WakeAll);
        self.counters.snapshots_failed += 1;
        let snapshot = self.under_way();
        snapshot.phase = Phase::Fail;
        snapshot.record.state = SnapshotState::Failed;
        snapshot.record.reason = Some(why.reason);
        snapshot.cause = Some(why.cause);
        snapshot.record.bytes_used = 0;
        snapshot.record.times.complete_us = 0;
        snapshot.pending.clear();
        snapshot.queue.clear();
        snapshot.draining.clear();
        snapshot.urgent.clear();
        snapshot.waiting.clear();
        snapshot.rows.clear();
        snapshot.left_over = std::mem::take(&mut snapshot.candidates).into_iter().collect();
        if !snapshot.catalog_busy {
            self.record_failure();
        }
    }

    fn record_failure(&mut self) {
        let snapshot = self.under_way();
        snapshot.catalog_busy = true;
        let record = snapshot.record.clone();
        self.effects.push_back(Effect::Catalog {
            step: CatalogStep::Fail,
            request: CatalogRequest::FailSnapshot(record),
        });
    }

    fn failure_recorded(&mut self, slots: &mut dyn SlotSpace) {
        for slot in std::mem::take(&mut self.under_way().slots_taken) {
            slots.release(slot);
        }
        self.failed();
    }

    /// Tries again for a while. What the device holds then stands in the way of everything: the
    /// snapshot as completing, or even as complete. So its slots stay as they are, and there are
    /// no more snapshots, until the store is loaded again and decides.
    fn failure_not_recorded(&mut self, now: Micros, reason: &str, slots: &mut dyn SlotSpace) {
        let gone = self.store_gone.is_some();
        let snapshot = self.under_way();
        snapshot.fail_attempts += 1;
        if !gone && snapshot.fail_attempts < FAIL_ATTEMPTS_MAX {
            snapshot.fail_again_at = Some(Micros(now.0 + FAIL_AGAIN_US));
            return;
        }
        let taken = std::mem::take(&mut snapshot.slots_taken);
        let name = snapshot.record.name.clone();
        if let (false, Some(why)) = (gone, &mut snapshot.record.reason) {
            why.push_str("; that could not be recorded: unload the store and load it again");
        }
        self.stranded.extend(taken);
        self.failed();
        if !gone {
            let reason = format!(
                "the failure of snapshot '{name}' could not be recorded ({reason}); unload the \
                 store and load it again"
            );
            self.store_is_gone(&reason, slots);
        }
    }

    /// The failure is out; what is left is to undo.
    fn failed(&mut self) {
        let snapshot = self.under_way();
        snapshot.phase = Phase::Redirty;
        snapshot.visited = 0;
        let (record, cause) = (snapshot.record.clone(), snapshot.cause);
        self.effects.push_back(Effect::Ended(record, cause));
    }

    /// Makes the old epoch's dirty chunks dirty in the current one, a slice at a time. The
    /// snapshot is over when that is done and nothing of it is under way any more.
    fn advance_redirty(&mut self, now: Micros, slots: &mut dyn SlotSpace) {
        let (gate, limits) = (self.gate.clone(), self.limits);
        for _ in 0..limits.walk_chunks_per_tick {
            let Some((chunk, staged)) = self.under_way().left_over.pop() else { break };
            self.keep_or_drop(chunk, staged, slots);
        }
        let snapshot = self.under_way();
        let end = snapshot.brought_up.len().min(snapshot.visited + limits.walk_chunks_per_tick);
        for &chunk in &snapshot.brought_up[snapshot.visited..end] {
            assert!(gate.mark_dirty(chunk), "chunk {chunk:?} is pending after the cut was ended");
        }
        snapshot.visited = end;
        if let Some(walk) = &mut snapshot.walk
            && gate.carry_over(walk, limits.walk_words_per_tick)
        {
            snapshot.walk = None;
        }
        let over = snapshot.walk.is_none()
            && snapshot.left_over.is_empty()
            && snapshot.visited == snapshot.brought_up.len()
            && !snapshot.flushing;
        if over && !self.old_copies_in_flight() {
            self.snapshot = None;
            // The policy has forgotten those that it had named before.
            self.schedule_sweep(now);
        }
    }

    /// A staged copy that a failed snapshot had not adopted is as good for the next one, unless a
    /// writer had adopted it on its way in.
    fn keep_or_drop(&mut self, chunk: ChunkIndex, staged: Staged, slots: &mut dyn SlotSpace) {
        // Of the present epoch from here on: a writer that slept through the end of the cut has nothing
        // left to adopt, in between or later.
        let _ = self.gate.mark_dirty(chunk);
        let keep = self.gate.view(chunk).staged
            && staged.content != Content::Unchanged
            && self.store_gone.is_none();
        if keep {
            let before = self.staged.insert(chunk, staged);
            assert!(before.is_none(), "chunk {chunk:?} is staged twice");
        } else {
            let _ = self.gate.drop_staged(chunk);
            release(staged.content, slots);
        }
    }
}

fn is_settled(state: ChunkState) -> bool {
    matches!(state, ChunkState::Resolved | ChunkState::Adopted | ChunkState::NotRequired)
}
