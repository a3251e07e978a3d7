//! The predictor's side of a replay: monitor, predictor, and what of it the engine is told.

use std::time::Instant;

use crate::engine::events::Event;
use crate::engine::{PolicyKind, Score};
use crate::gate::{ChunkIndex, Gate, Geometry};
use crate::monitor::{Access, AccessKind, Monitor, MonitorOptions};
use crate::predict::{Context, Prediction, Predictor, SnapshotTimes};

use super::trace::{TraceKind, TraceRecord};

/// Chunks that are named as those written soonest.
const SOONEST_MAX: usize = 1024;

/// A predictor with all it needs.
pub struct Scorer {
    predictor: Box<dyn Predictor>,
    threshold: Score,
    /// Snapshots are announced.
    schedule_known: bool,
    monitor: Monitor,
    times: SnapshotTimes,
    prediction: Prediction,
    copy_bytes_per_s_max: Option<u64>,
    /// Valid copies are scored, too, since they may have to give way.
    scores_staged: bool,
    chunk_bytes: u32,
    pub(super) spent_us: u64,
}

impl Scorer {
    /// Lets `predictor` decide: what it scores at least `threshold` is staged.
    pub fn new(predictor: Box<dyn Predictor>, threshold: f32, schedule_known: bool) -> Self {
        Self {
            predictor,
            threshold: Score::of(threshold),
            schedule_known,
            monitor: Monitor::new(MonitorOptions::new(1, 1 << 16)),
            times: SnapshotTimes::new(),
            prediction: Prediction::default(),
            copy_bytes_per_s_max: None,
            scores_staged: false,
            chunk_bytes: 0,
            spent_us: 0,
        }
    }

    /// Name and setting.
    pub fn name(&self) -> String {
        format!("{} {:.3}", self.predictor.name(), self.threshold.probability())
    }

    /// Whether it is told when the next snapshot will be.
    pub fn schedule_known(&self) -> bool {
        self.schedule_known
    }

    pub(super) fn policy(&self) -> PolicyKind {
        PolicyKind::Scored { threshold: self.threshold }
    }

    pub(super) fn tick_us(&self) -> u64 {
        self.monitor.options().tick_us
    }

    /// Starts anew on a volume.
    pub(super) fn begin(
        &mut self,
        geometry: &Geometry,
        copy_bytes_per_s_max: Option<u64>,
        room_is_short: bool,
    ) {
        self.chunk_bytes = geometry.chunk_bytes();
        let options = MonitorOptions::new(geometry.chunk_count(), self.chunk_bytes);
        self.monitor = Monitor::new(options);
        self.copy_bytes_per_s_max = copy_bytes_per_s_max;
        self.scores_staged = room_is_short;
    }

    pub(super) fn record(&mut self, record: &TraceRecord) {
        let kind = match record.kind {
            TraceKind::Read => AccessKind::Read,
            TraceKind::Write | TraceKind::Unmap => AccessKind::Modify,
        };
        let (offset, length) = (record.offset_bytes, record.length_bytes);
        self.monitor.record(&Access::new(offset, length, kind, record.time_us, self.chunk_bytes));
    }

    pub(super) fn cut(&mut self, now_us: u64) {
        self.times.cut(now_us);
    }

    /// Closes the window that ends now and says what to do.
    pub(super) fn tick(&mut self, now_us: u64, next_us: Option<u64>, gate: &Gate) -> [Event; 2] {
        let began = Instant::now();
        self.times.schedule(next_us.filter(|_| self.schedule_known));
        let tick = self.monitor.tick(now_us);
        // While a snapshot completes nothing is staged; what is pending then is not to be looked at.
        let state = |row: usize| {
            let chunk = ChunkIndex(tick.rows[row]);
            let dirty = !gate.is_cut_active() && gate.is_dirty(chunk);
            (chunk, dirty, dirty && gate.view(chunk).valid())
        };
        let work_bytes = |row: usize| match state(row) {
            (_, false, _) | (_, _, true) => 0,
            (chunk, _, _) if gate.view(chunk).staged => {
                u64::from(gate.block_map(chunk).count()) * u64::from(gate.geometry().block_bytes())
            }
            _ => u64::from(self.chunk_bytes),
        };
        let context = Context {
            forecast: self.times.forecast(now_us),
            work_bytes: (0..tick.len()).map(work_bytes).sum(),
            copy_bytes_per_s_max: self.copy_bytes_per_s_max,
        };
        self.predictor.step(&tick, &context, &mut self.prediction);
        let scores = (0..tick.len()).filter_map(|row| {
            let (chunk, dirty, valid) = state(row);
            let told = dirty && (!valid || self.scores_staged);
            told.then(|| (chunk, Score::of(self.prediction.score[row])))
        });
        let scores = Event::Scores(scores.collect());
        let mut soonest: Vec<(f32, ChunkIndex)> = (0..tick.len())
            .filter(|&row| state(row).1)
            .map(|row| (self.prediction.p_modify[row][0], ChunkIndex(tick.rows[row])))
            .collect();
        if soonest.len() > SOONEST_MAX {
            soonest.select_nth_unstable_by(SOONEST_MAX, |a, b| b.0.total_cmp(&a.0));
            soonest.truncate(SOONEST_MAX);
        }
        soonest.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let soonest = Event::Soonest(soonest.into_iter().map(|(_, chunk)| chunk).collect());
        self.spent_us += began.elapsed().as_micros() as u64;
        [scores, soonest]
    }
}
