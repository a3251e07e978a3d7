//! Carries out the engine's effects, as the volume does with real devices: catalog transactions in
//! order on one thread, copies piece by piece, flushes, wakes.

use super::disks::Tag;
use super::marks::Mark;
use super::random::{Random, mix};
use super::world::{Happening, World, trace, violated};
use crate::engine::events::{CatalogStep, Copied, CopyJob, Effect, Event, JobId};
use crate::engine::records::{
    BLOCKS_PER_CHUNK, CatalogReply, CatalogRequest, Cause, SlotRef, SnapshotRecord, SnapshotSeq,
    SnapshotState, Trouble,
};
use crate::engine::{PolicyKind, Score};
use crate::gate::ChunkIndex;
use crate::store::sim_device::CrashMode;
use crate::store::{Error, ErrorKind};

/// Writes and flushes of one catalog transaction, about: where faults are put.
const TRANSACTION_OPERATIONS: u64 = 12;

/// Who asked for a catalog transaction.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Engine(CatalogStep),
    /// A deletion; afterwards, the create that it made room for.
    Delete(SnapshotSeq, Option<Box<SnapshotRecord>>),
}

/// A catalog transaction, waiting or done.
#[derive(Debug)]
pub(super) struct CatalogJob {
    pub origin: Origin,
    pub request: CatalogRequest,
    pub result: Option<Result<CatalogReply, (ErrorKind, String)>>,
}

/// A copy under way.
#[derive(Debug)]
pub(super) struct Copying {
    job: CopyJob,
    /// Device blocks of the chunk to copy, and what was read of each.
    lbas: Vec<(u64, Option<Tag>)>,
    reads: u64,
    writes: u64,
    done: u64,
    fails_at: Option<u64>,
    compare_with: Option<SlotRef>,
    result: Option<Copied>,
}

impl World {
    /// Gives the engine an event and carries out what it wants.
    pub fn apply(&mut self, event: Event) {
        trace!(self, "event {event:?}");
        let now = self.micros();
        let node = self.node.as_mut().expect("a process is running");
        node.engine.apply(now, event, &mut node.slots);
        self.effects();
    }

    pub fn effects(&mut self) {
        while let Some(effect) = self.node().engine.next_effect() {
            trace!(self, "effect {effect:?}");
            match effect {
                Effect::Catalog { step, request } => self.queue(Origin::Engine(step), request),
                Effect::Copy(job) => self.copy(job),
                Effect::FlushStore => {
                    let writes = self.store.writes();
                    let flush = &mut self.node().flush;
                    assert!(flush.is_none(), "one flush at a time");
                    *flush = Some((writes, Ok(())));
                    let delay = self.delay(self.swarm.copy_us_max);
                    self.after(delay, Happening::FlushRun);
                }
                Effect::Row(chunk, slot_ref) => self.node().views.row(chunk, slot_ref),
                Effect::Wake(chunk) => self.wake(Some(chunk)),
                Effect::WakeAll => self.wake(None),
                Effect::Consistent(record) => {
                    self.note_draining();
                    self.node().views.cut(record.seq);
                    self.node().chain.put(record.clone());
                    self.model_cut(&record);
                }
                Effect::Ended(record, cause) => self.ended(&record, cause),
                Effect::Threshold(_) => {}
                Effect::Stopped(result) => {
                    self.stopped(&result);
                    return;
                }
            }
        }
    }

    fn wake(&mut self, chunk: Option<ChunkIndex>) {
        self.node().wakes_under_way += 1;
        let delay = self.random.below(self.swarm.message_us_max + 1);
        self.after(delay, Happening::WakeMessage(chunk));
    }

    fn note_draining(&mut self) {
        if self.commands.values().any(|command| command.passage.is_some()) {
            self.mark(Mark::DrainingAtCut);
        }
        if !self.node().copies.is_empty() {
            self.mark(Mark::StagingAcrossCut);
        }
    }

    fn ended(&mut self, record: &SnapshotRecord, cause: Option<Cause>) {
        let seq = record.seq;
        let node = self.node();
        assert_eq!(node.under_way.take(), Some(seq), "what ends was under way");
        node.views.ended(record);
        node.chain.put(record.clone());
        if record.state == SnapshotState::Failed {
            node.last_failure = cause;
            self.statistics.snapshots_failed += 1;
            // Complete on the device, perhaps, if that is what nobody knows: then the next load says so.
            if !self.oracle_complete().contains(&seq) {
                self.model.snapshots.remove(&seq);
            }
            if cause == Some(Cause::NoSpace) {
                self.mark(Mark::FailedOnSpace);
            }
            self.mark_failure(record.reason.as_deref().unwrap_or_default());
            return;
        }
        let failed_before = node.last_failure.is_some();
        let view = node.views.get(seq).expect("complete").clone();
        self.statistics.snapshots_complete += 1;
        let counts = record.chunks;
        for (met, mark) in [
            (failed_before, Mark::CompleteAfterFailure),
            (counts.adopted > 0, Mark::AdoptedByEngine),
            (counts.preserved > 0, Mark::Preserved),
            (counts.zero > 0, Mark::ZeroRow),
        ] {
            if met {
                self.mark(mark);
            }
        }
        self.model.snapshots.get_mut(&seq).expect("cut before").complete = true;
        self.compare_snapshot(seq, &view, "when complete");
    }

    fn mark_failure(&mut self, reason: &str) {
        for (words, mark) in [
            ("waited for more than", Mark::FailedOnDeadline),
            ("from before the cut", Mark::FailedOnMaster),
            ("copying chunk", Mark::FailedOnCopy),
            ("flushing the store", Mark::FailedOnFlush),
            ("recording", Mark::FailedOnCatalog),
        ] {
            if reason.contains(words) {
                self.mark(mark);
            }
        }
    }

    // ---- time ---------------------------------------------------------------------------------

    /// What a predictor might say, right or wrong: nothing but time may depend on it.
    fn predict(&mut self) {
        let chunks = u64::from(self.geometry.chunk_count());
        let some = |random: &mut Random| {
            let count = random.below(chunks + 1);
            (0..count).map(|_| ChunkIndex(random.below(chunks) as u32)).collect::<Vec<_>>()
        };
        if matches!(self.swarm.policy, PolicyKind::Scored { .. }) && self.random.chance(300) {
            let chunks = some(&mut self.random);
            let score = |random: &mut Random| Score(random.below(1 << 16) as u16);
            let scores = chunks.into_iter().map(|chunk| (chunk, score(&mut self.random)));
            let scores = scores.collect();
            self.apply(Event::Scores(scores));
        }
        if self.node.is_some() && self.random.chance(100) {
            let chunks = some(&mut self.random);
            self.apply(Event::Soonest(chunks));
        }
    }

    pub fn tick(&mut self) {
        self.predict();
        // Each of them may be the last that a volume needed to be stopped.
        if self.node.is_some() {
            self.apply(Event::Tick);
        }
        if self.node.is_some() {
            self.drain();
        }
        let Some(node) = &self.node else { return };
        // Marked once per tick; what counts is whether it happens.
        let max = if node.engine.is_busy() { 1_000 } else { 8_000 };
        let refused = node.engine.counters().staging_refused > 0;
        let evicted = node.engine.counters().evicted_copies > 0;
        let cleaned = node.engine.counters().cleaned_copies > 0;
        if node.engine.staging_off().is_some() && !node.store_gone {
            self.mark(Mark::StagingSwitchedOff);
        }
        if evicted {
            self.mark(Mark::GaveWay);
        }
        if cleaned {
            self.mark(Mark::CleanedUp);
        }
        if refused {
            self.mark(Mark::StagingRefused);
        }
        let delay = self.random.between(20, max);
        self.after(delay, Happening::Tick);
    }

    // ---- catalog ------------------------------------------------------------------------------

    pub fn queue(&mut self, origin: Origin, request: CatalogRequest) {
        if matches!(request, CatalogRequest::AddRows { .. }) {
            self.mark(Mark::RowsTransaction);
        }
        let queue = &mut self.node().catalog_queue;
        queue.push_back(CatalogJob { origin, request, result: None });
        if queue.len() == 1 {
            let delay = self.delay(self.swarm.catalog_us_max);
            self.after(delay, Happening::CatalogRun);
        }
    }

    /// Puts faults in the way of the next catalog operations; gives the one at which power goes.
    pub fn plan_catalog_fault(&mut self, cut_per_mille: u64) -> Option<u64> {
        let at = self.store.catalog.operations() + self.random.below(TRANSACTION_OPERATIONS);
        if self.random.chance(cut_per_mille) {
            self.store.catalog.stop_at(at);
            return Some(at);
        }
        if self.random.chance(self.swarm.catalog_error_per_mille) {
            self.statistics.faults += 1;
            if self.random.chance(400) {
                // Until the transaction is over: a reopen finds the device as bad, and not even
                // readable at times.
                self.store.catalog.fail_operations(at..u64::MAX);
                if self.random.chance(300) {
                    self.store.catalog.fail_reads(0, u64::MAX);
                }
            } else {
                self.store.catalog.fail_operations(at..at + 1);
            }
        }
        None
    }

    /// Whether power went at the planned operation; takes the plan back if not.
    pub fn is_powerless(&self, stop: Option<u64>) -> bool {
        let powerless = stop.is_some_and(|stop| self.store.catalog.operations() > stop);
        if !powerless {
            self.store.catalog.heal();
        }
        powerless
    }

    pub fn catalog_run(&mut self) {
        let store_gone = self.node().store_gone;
        let node = self.node();
        let job = node.catalog_queue.front().expect("queued");
        let (origin, request) = (job.origin.clone(), job.request.clone());
        // Stops are rare, and what they promise is much.
        let factor = if matches!(request, CatalogRequest::CloseVolume { .. }) { 5 } else { 1 };
        let cut_per_mille = self.swarm.catalog_cut_per_mille * factor;
        let stop = if store_gone { None } else { self.plan_catalog_fault(cut_per_mille) };
        let node = self.node();
        let result = node.catalog.execute(request.clone());
        trace!(self, "catalog {origin:?}: {result:?}");
        let powerless = !store_gone && self.is_powerless(stop);
        self.judge_transaction(&request, &result, powerless || store_gone);
        if let (Ok(CatalogReply::Deleted { freed, .. }), false) = (&result, powerless) {
            self.node().freed_in_transit.extend(freed);
        }
        if powerless {
            self.mark(Mark::PowerCutInCatalog);
            if matches!(request, CatalogRequest::CloseVolume { .. }) {
                self.mark(Mark::PowerCutInClose);
            }
            return self.power_cut(None);
        }
        let result = result.map_err(|error: Error| (error.kind(), error.to_string()));
        self.node().catalog_queue.front_mut().expect("it is first").result = Some(result);
        let delay = self.random.below(self.swarm.catalog_us_max / 4 + 1);
        self.after(delay, Happening::CatalogReply);
    }

    /// Compares a transaction's result with what the oracle says. `gone`: nothing can be read any
    /// more, power or device being away.
    pub fn judge_transaction(
        &mut self,
        request: &CatalogRequest,
        result: &Result<CatalogReply, Error>,
        gone: bool,
    ) {
        let before = self.oracle.clone();
        let expected = self.oracle.execute(request);
        match (result, &expected) {
            (Ok(reply), Ok(expected)) => {
                if reply != expected {
                    violated!("catalog answers {reply:?} to {request:?}, expected {expected:?}");
                }
                // Who asked before was told that it failed, so it must not have happened.
                if self.oracle_else.take().is_some() && !gone {
                    self.check_catalog("after an outcome that nobody knew");
                    self.set_catalog_lost(false);
                }
            }
            (Err(error), Ok(_)) => {
                // A device error: nothing has changed, unless power is gone or nobody knows.
                let after = std::mem::replace(&mut self.oracle, before);
                let readable = !gone && self.catalog().load_state(self.volume).is_ok();
                if readable {
                    self.check_catalog("after a device error");
                    self.mark(Mark::CatalogErrorHealed);
                } else {
                    // One that is closed has not tried: it is the one before of which nobody knows.
                    if error.kind() != ErrorKind::Closed {
                        self.oracle_else = Some(after);
                    }
                    if !gone {
                        self.mark(Mark::CatalogLost);
                        self.set_catalog_lost(true);
                    }
                }
            }
            (Err(_), Err(_)) => {}
            (Ok(reply), Err(error)) => {
                violated!("catalog answers {reply:?} to {request:?}, expected refusal: {error}");
            }
        }
    }

    fn set_catalog_lost(&mut self, lost: bool) {
        if let Some(node) = &mut self.node {
            node.catalog_lost = lost;
        }
    }

    pub fn catalog_reply(&mut self) {
        let queue = &mut self.node().catalog_queue;
        let CatalogJob { origin, result, .. } = queue.pop_front().expect("it has run");
        let more = !queue.is_empty();
        let result = result.expect("it has run");
        if more {
            let delay = self.delay(self.swarm.catalog_us_max);
            self.after(delay, Happening::CatalogRun);
        }
        match origin {
            Origin::Engine(step) => {
                if step == CatalogStep::Fail && result.is_err() {
                    self.mark(Mark::FailNotRecorded);
                }
                let result =
                    result.map_err(|(kind, reason)| Trouble { cause: kind.cause(), reason });
                self.apply(Event::CatalogDone { step, result });
            }
            Origin::Delete(seq, then) => self.deleted(seq, then, result),
        }
    }

    /// What must happen once a snapshot's deletion is durable.
    fn deleted(
        &mut self,
        seq: SnapshotSeq,
        then: Option<Box<SnapshotRecord>>,
        result: Result<CatalogReply, (ErrorKind, String)>,
    ) {
        let node = self.node();
        node.deleting.retain(|other| *other != seq);
        let failed =
            node.chain.get(seq).is_some_and(|record| record.state == SnapshotState::Failed);
        let (freed, dirtied) = match result {
            Ok(CatalogReply::Deleted { freed, dirtied, handed_over }) => {
                if handed_over > 0 {
                    self.mark(Mark::DeleteHandedOver);
                }
                (freed, dirtied)
            }
            // It failed before it was recorded.
            Err((ErrorKind::NotFound, _)) if failed => (Vec::new(), Vec::new()),
            Ok(CatalogReply::Done) => violated!("a delete was answered with Done"),
            Err((_, words)) => {
                trace!(self, "delete of {seq:?} failed: {words}");
                return;
            }
        };
        let under_compare =
            |copying: &Copying| copying.job.compare && dirtied.contains(&copying.job.chunk);
        if self.node().copies.values().any(under_compare) {
            self.mark(Mark::StaleCompare);
        }
        let node = self.node();
        if failed {
            // One whose failure could not be recorded.
            node.engine.stranded_freed(&freed);
        }
        node.chain.remove(seq);
        node.views.deleted(seq);
        node.freed_in_transit.retain(|slot| !freed.contains(slot));
        for slot in freed {
            node.slots.release(slot);
        }
        self.model.snapshots.remove(&seq);
        if !dirtied.is_empty() {
            self.mark(Mark::DeleteNewest);
            self.apply(Event::Dirtied(dirtied));
        }
        if let Some(record) = then {
            self.begin(*record);
        }
    }

    // ---- copies -------------------------------------------------------------------------------

    fn copy(&mut self, job: CopyJob) {
        let geometry = self.geometry;
        let first = geometry.chunk_range(job.chunk).lba;
        let lbas: Vec<(u64, Option<Tag>)> = job
            .blocks
            .runs()
            .filter_map(|run| geometry.run_range(job.chunk, run))
            .flat_map(|range| {
                (range.lba - first..range.lba - first + range.count).map(|l| (l, None))
            })
            .collect();
        if job.blocks != geometry.full_map(job.chunk) {
            self.mark(Mark::RefreshedCopy);
            if self.node().gate.is_cut_active() {
                self.mark(Mark::RefreshAfterCut);
            }
        }
        let (reads, writes) = (self.random.between(1, 3), self.random.between(1, 3));
        let fails = self.node().store_gone || self.random.chance(self.swarm.copy_error_per_mille);
        let fails_at = fails.then(|| self.random.below(reads + writes));
        let compare_with = job
            .compare
            .then(|| self.node().views.newest_complete().and_then(|map| map.get(job.chunk)))
            .flatten();
        let copying =
            Copying { job, lbas, reads, writes, done: 0, fails_at, compare_with, result: None };
        self.node().copies.insert(job.id, copying);
        let delay = self.delay(self.swarm.copy_us_max / 2);
        self.after(delay, Happening::CopyStep(job.id));
    }

    pub fn copy_step(&mut self, id: JobId) {
        let node = self.node.as_mut().expect("a process is running");
        let mut copying = node.copies.remove(&id).expect("it has not ended");
        if copying.fails_at == Some(copying.done) || node.store_gone {
            self.statistics.faults += 1;
            let result = Err("simulated copy error".to_owned());
            return self.apply(Event::CopyDone { job: id, result });
        }
        let step = copying.done;
        let CopyJob { chunk, slot, blocks, .. } = copying.job;
        let first = self.geometry.chunk_range(chunk).lba;
        let part = |lba: u64, parts: u64| mix(id.0 << 20 ^ lba) % parts;
        if step < copying.reads {
            for (lba, tag) in &mut copying.lbas {
                if part(*lba, copying.reads) == step {
                    *tag = Some(self.master.read(first + *lba));
                }
            }
        } else {
            if step == copying.reads {
                copying.result = Some(self.judge(&copying));
            }
            if let Some(Copied::Written { .. }) = copying.result {
                for (lba, tag) in &copying.lbas {
                    if part(*lba, copying.writes) == step - copying.reads {
                        self.store.write_slot(slot, *lba, tag.expect("all was read"));
                    }
                }
            } else {
                copying.done = copying.reads + copying.writes - 1;
            }
        }
        copying.done += 1;
        if copying.done == copying.reads + copying.writes {
            let result = copying.result.expect("judged after the last read");
            if matches!(result, Copied::Unchanged) {
                self.mark(Mark::Unchanged);
            }
            trace!(self, "copied {chunk} blocks {blocks:?} to {slot:?}");
            self.apply(Event::CopyDone { job: id, result: Ok(result) });
            if self.node.as_ref().is_some_and(|node| {
                let view = node.gate.view(chunk);
                view.staged && !view.map.is_empty()
            }) {
                self.mark(Mark::CopyOverlapped);
            }
            return;
        }
        self.node().copies.insert(id, copying);
        let delay = self.delay(self.swarm.copy_us_max / 2);
        self.after(delay, Happening::CopyStep(id));
    }

    /// What has been read amounts to zeros, to what the newest snapshot holds, or to news.
    fn judge(&self, copying: &Copying) -> Copied {
        let CopyJob { chunk, blocks, .. } = copying.job;
        let full = blocks == self.geometry.full_map(chunk);
        if full && copying.lbas.iter().all(|(_, tag)| *tag == Some(0)) {
            let same = matches!(copying.compare_with, Some(SlotRef::Zero));
            return if same { Copied::Unchanged } else { Copied::Zero };
        }
        if let Some(SlotRef::Slot { slot, .. }) = copying.compare_with {
            let equal =
                |(lba, tag): &(u64, Option<Tag>)| Some(self.store.read_slot(slot, *lba)) == *tag;
            if copying.lbas.iter().all(equal) {
                return Copied::Unchanged;
            }
        }
        let mut tags = vec![0; self.geometry.chunk_lbas() as usize];
        for (lba, tag) in &copying.lbas {
            tags[*lba as usize] = tag.expect("all was read");
        }
        let mut block_crcs = Box::new([0; BLOCKS_PER_CHUNK]);
        for (block, crc) in block_crcs.iter_mut().enumerate() {
            if blocks.0 >> block & 1 == 1 {
                *crc = self.block_sum(chunk, block, |lba| tags[lba as usize]);
            }
        }
        Copied::Written { block_crcs }
    }

    // ---- flush --------------------------------------------------------------------------------

    pub fn flush_run(&mut self) {
        let failing =
            self.node().store_gone || self.random.chance(self.swarm.flush_error_per_mille);
        let (writes, result) = self.node().flush.as_mut().expect("submitted");
        let writes = *writes;
        if failing {
            *result = Err("simulated flush error".into());
            self.statistics.faults += 1;
        } else {
            self.store.flush_slots(writes);
        }
        let delay = self.delay(self.swarm.copy_us_max / 4);
        self.after(delay, Happening::FlushReply);
    }

    pub fn flush_reply(&mut self) {
        let (_, result) = self.node().flush.take().expect("submitted");
        self.apply(Event::FlushDone(result));
    }

    /// The store's device goes away for good (until the next start).
    pub fn store_gone(&mut self) {
        let node = self.node();
        node.store_gone = true;
        let completing = node.under_way.is_some();
        self.store.catalog.stop_at(self.store.catalog.operations());
        self.mark(Mark::StoreGone);
        self.statistics.faults += 1;
        if completing {
            self.mark(Mark::StoreGoneWhileCompleting);
        }
        self.apply(Event::StoreGone("simulated loss of the store".into()));
    }
}

/// What survives of the store's unflushed writes.
pub(super) fn crash_mode(world: &mut World) -> CrashMode {
    match world.random.below(4) {
        0 => CrashMode::LoseAll,
        1 => CrashMode::KeepAll,
        _ => CrashMode::Scramble { seed: world.random.number() },
    }
}
