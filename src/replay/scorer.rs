//! The predictor's side of a replay: what a policy needs, and its advice as the engine takes it.

use std::time::Instant;

use super::companion::Companion;
use super::trace::{TraceKind, TraceRecord};
use crate::engine::events::Event;
use crate::engine::{PolicyKind, Score};
use crate::gate::{ChunkIndex, Gate, Geometry};
use crate::monitor::{Access, AccessKind, MonitorOptions};
use crate::predict::{Sight, SnapshotTimes, Terms};

/// A predictor that is to decide, and how.
pub struct ScoredPolicy {
    /// Who predicts.
    pub companion: Companion,
    /// What scores so high is staged.
    pub threshold: f32,
    /// Snapshots are announced.
    pub schedule_known: bool,
}

/// A predictor at work.
pub(super) struct Scorer {
    companion: Companion,
    times: SnapshotTimes,
    threshold: Score,
    schedule_known: bool,
    terms: Terms,
    chunk_bytes: u32,
    tick_us: u64,
    records: u64,
    pub spent_us: u64,
}

impl Scorer {
    /// Follows a volume from its begin on.
    pub fn new(
        policy: ScoredPolicy,
        geometry: &Geometry,
        copy_bytes_per_s_max: Option<u64>,
        room_is_short: bool,
    ) -> Self {
        let options = MonitorOptions::new(geometry.chunk_count(), geometry.chunk_bytes());
        policy.companion.start(options);
        Self {
            companion: policy.companion,
            times: SnapshotTimes::new(),
            threshold: Score::of(policy.threshold),
            schedule_known: policy.schedule_known,
            terms: Terms { planned_us: None, copy_bytes_per_s_max, scores_staged: room_is_short },
            chunk_bytes: geometry.chunk_bytes(),
            tick_us: options.tick_us,
            records: 0,
            spent_us: 0,
        }
    }

    /// Name and setting.
    pub fn name(&self) -> String {
        format!("{} {:.3}", self.companion.name(), self.threshold.probability())
    }

    /// Whether it is told when the next snapshot will be.
    pub fn schedule_known(&self) -> bool {
        self.schedule_known
    }

    pub fn policy(&self) -> PolicyKind {
        PolicyKind::Scored { threshold: self.threshold }
    }

    pub fn tick_us(&self) -> u64 {
        self.tick_us
    }

    pub fn record(&mut self, record: &TraceRecord) {
        let kind = match record.kind {
            TraceKind::Read => AccessKind::Read,
            TraceKind::Write | TraceKind::Unmap => AccessKind::Modify,
        };
        let (offset, length) = (record.offset_bytes, record.length_bytes);
        let access = Access::new(offset, length, kind, record.time_us, self.chunk_bytes);
        self.records += 1;
        self.companion.record(self.records, &access);
    }

    pub fn cut(&mut self, now_us: u64) {
        self.times.cut(now_us);
    }

    /// Closes the window that ends now and says what to do.
    pub fn tick(&mut self, now_us: u64, next_us: Option<u64>, gate: &Gate) -> [Event; 2] {
        let began = Instant::now();
        self.terms.planned_us = next_us.filter(|_| self.schedule_known);
        let lacking_bytes = |chunk| gate.lacking_bytes(ChunkIndex(chunk));
        let (times, terms) = (&mut self.times, &self.terms);
        let (tick_us, chunk_bytes) = (self.tick_us, self.chunk_bytes);
        let advice = self.companion.tick(
            now_us,
            |tick| {
                let sight = Sight::new(tick, chunk_bytes, times, terms, lacking_bytes);
                let context = sight.context.clone();
                (sight, context)
            },
            |sight, tick, prediction| sight.advice(tick, tick_us, prediction),
        );
        let scores = advice.scores.into_iter();
        let scores = scores.map(|(chunk, score)| (ChunkIndex(chunk), Score::of(score)));
        let events = [
            Event::Scores(scores.collect()),
            Event::Soonest(advice.soonest.into_iter().map(ChunkIndex).collect()),
        ];
        self.spent_us += began.elapsed().as_micros() as u64;
        events
    }
}
