//! Carries out what the engine wants in a replay, and counts it.

use uuid::Uuid;

use super::report::{Report, SnapshotReport};
use super::run::{CATALOG_US, Happening, TICK_BUSY_US, UnderWay, World};
use crate::engine::events::{CatalogStep, Copied, CopyJob, Effect, Event, JobId, Micros};
use crate::engine::records::{
    BLOCKS_PER_CHUNK, CatalogReply, SnapshotRecord, SnapshotSeq, SnapshotState, VolumeId,
};

impl World {
    /// Gives the engine an event and carries out what it wants.
    pub fn apply(&mut self, event: Event) {
        self.engine.apply(Micros(self.now_us), event, &mut self.slots);
        while let Some(effect) = self.engine.next_effect() {
            self.tick_us = TICK_BUSY_US;
            match effect {
                Effect::Catalog { step, .. } => {
                    self.at(self.now_us + CATALOG_US, Happening::CatalogDone(step));
                }
                Effect::Copy(job) => self.copy(job),
                Effect::FlushStore => {
                    let done_us = self.store.flush(self.now_us);
                    self.at(done_us, Happening::FlushDone);
                }
                // Nobody reads snapshots here, or a log.
                Effect::Row(..) | Effect::Threshold(_) => {}
                Effect::Wake(chunk) => self.wake_soon(Some(chunk)),
                Effect::WakeAll => self.wake_soon(None),
                Effect::Consistent(_) => self.consistent(),
                Effect::Ended(record, _) => self.ended(record),
                Effect::Stopped(_) => unreachable!("a replay does not stop its volume"),
            }
        }
    }

    pub fn catalog_done(&mut self, step: CatalogStep) {
        self.apply(Event::CatalogDone { step, result: Ok(CatalogReply::Done) });
    }

    // ---- copies -------------------------------------------------------------------------------

    fn copy(&mut self, job: CopyJob) {
        let geometry = *self.gate.geometry();
        let ranges = || job.blocks.runs().filter_map(|run| geometry.run_range(job.chunk, run));
        let mut read_us = self.now_us;
        for range in ranges() {
            let bytes = range.count * u64::from(geometry.lba_bytes());
            read_us = read_us.max(self.master.read(self.now_us, bytes));
        }
        let mut written_us = read_us;
        let (mut bytes, mut pieces) = (0, 0);
        for range in ranges() {
            let piece_bytes = range.count * u64::from(geometry.lba_bytes());
            written_us = written_us.max(self.store.write(read_us, piece_bytes));
            bytes += piece_bytes;
            pieces += 1;
        }
        if self.engine.progress().is_none() {
            self.staging_commands += pieces;
        } else {
            let left = &mut self.report.left;
            left.commands += pieces;
            if job.blocks == geometry.full_map(job.chunk) {
                left.whole_chunks += 1;
                left.whole_bytes += bytes;
            } else {
                left.partial_chunks += 1;
                left.partial_bytes += bytes;
            }
        }
        self.copies.insert(job.id, job);
        self.at(written_us, Happening::CopyDone(job.id));
        let staged = self.engine.staged_len() as u64;
        let max = &mut self.report.staging.chunks_max;
        *max = staged.max(*max);
    }

    pub fn copy_done(&mut self, id: JobId) {
        self.copies.remove(&id).expect("each copy ends once");
        let copied = Copied::Written { block_crcs: Box::new([0; BLOCKS_PER_CHUNK]) };
        self.apply(Event::CopyDone { job: id, result: Ok(copied) });
    }

    // ---- snapshots ----------------------------------------------------------------------------

    /// A snapshot is due.
    pub fn snapshot(&mut self) {
        if self.under_way.is_some() || self.engine.progress().is_some() {
            self.overdue = true;
            return;
        }
        self.overdue = false;
        self.snapshot_count += 1;
        let count = self.snapshot_count;
        let (seq, uuid) = (SnapshotSeq(count), Uuid::from_u128(u128::from(count)));
        let record = SnapshotRecord::asked_for(VolumeId(0), seq, format!("s{count}"), uuid, 0);
        self.under_way = Some(UnderWay { at_us: self.now_us, before: self.engine.counters() });
        if let Err(shortage) = self.engine.reserve(&mut self.slots) {
            unreachable!("the store has a slot for each write: {shortage:?}");
        }
        self.apply(Event::Create(record));
    }

    fn consistent(&mut self) {
        if let Some(scorer) = &mut self.scorer {
            scorer.cut(self.now_us);
        }
    }

    fn ended(&mut self, record: SnapshotRecord) {
        let UnderWay { at_us, before } = self.under_way.take().expect("it was created");
        let counters = self.engine.counters();
        let during = counters.since(&before);
        let left_bytes = during.copied_bytes + during.preserved_bytes;
        let since = counters.since(&self.counted);
        self.counted = counters;
        let chunks = record.chunks;
        let failed = record.state == SnapshotState::Failed;
        let report = &mut self.report;
        let staging = &mut report.staging;
        staging.first_copies += since.staged_copies;
        staging.refreshes += since.refreshed_copies;
        staging.commands += std::mem::take(&mut self.staging_commands);
        staging.dropped += since.dropped_copies;
        staging.refused += since.staging_refused;
        let staged_bytes = since.staged_bytes + since.refreshed_bytes;
        staging.bytes += staged_bytes;
        if failed {
            report.failed += 1;
        } else {
            let required_bytes = chunks.required * report.chunk_bytes;
            staging.wasted_bytes +=
                staged_bytes.saturating_sub(required_bytes.saturating_sub(left_bytes));
            report.required += chunks.required;
            report.required_bytes += required_bytes;
            report.adopted += chunks.adopted;
        }
        let complete_us = record.times.complete_us;
        report.snapshots.push(SnapshotReport {
            at_us,
            required: chunks.required,
            adopted: chunks.adopted,
            left_bytes,
            complete_us,
            failed: record.reason,
        });
        if self.overdue {
            // Not within this event: the engine has more effects to give.
            self.at(self.now_us, Happening::Due);
        }
    }

    /// The report, once all has ended.
    pub fn finish(mut self) -> Report {
        let complete = || self.report.snapshots.iter().filter(|s| s.failed.is_none());
        let times = || complete().map(|snapshot| snapshot.complete_us);
        let count = complete().count() as u64;
        self.report.complete_us_mean = times().sum::<u64>() / count.max(1);
        self.report.complete_us_max = times().max().unwrap_or(0);
        if let Some(scorer) = &self.scorer {
            self.report.predictor_us = scorer.spent_us;
        }
        self.gate.self_check().expect("the gate is sound after a replay");
        self.engine.self_check();
        self.report
    }
}
