//! One volume on the predictor's thread: records in, scores out.
//!
//! It works on the volume's gate and access rings only, which any thread may read: master and store
//! are the app thread's.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::access::{self, AccessRings};
use super::tuning::PredictorKind;
use crate::engine::Score;
use crate::gate::{ChunkIndex, Gate, LbaRange};
use crate::monitor::{Access, AccessKind, MonitorOptions, SPAN_CHUNKS_MAX};
use crate::predict::baseline::{Deadline, Likely, Rate};
use crate::predict::calibration::{Calibration, Table};
#[cfg(feature = "lstm")]
use crate::predict::tune::{TuneOptions, Tuned};
use crate::predict::{Adviser, ModelState, Predictor, Terms, WINDOWS};
use crate::spdk::clock;

/// Chunks followed while there is time for all, and while there is not.
const CHUNKS_MAX: usize = 65_536;
const CHUNKS_MAX_LATE: usize = 16_384;

/// Ticks whose times are shown.
const TICKS_SHOWN: usize = 60;

/// Ticks in which the predictor has to be late before it does less.
const LATE_TICKS_MAX: u32 = 3;

/// Ticks in time after which it does more again: ten minutes.
const RECOVER_TICKS: u32 = 600;

/// What the predictor is asked for.
#[derive(Clone)]
pub struct Order {
    /// Names the volume on the app thread.
    pub key: u64,
    /// Name of the volume.
    pub name: String,
    /// Its gate.
    pub gate: Arc<Gate>,
    /// Its access records.
    pub rings: Arc<AccessRings>,
    /// Who predicts.
    pub predictor: PredictorKind,
    /// Time between snapshots, if it is known.
    pub window_us: Option<u64>,
    /// Limit on background copying.
    pub copy_bytes_per_s_max: Option<u64>,
}

/// What one tick found out.
pub struct Scored {
    /// Score of each followed chunk that a copy could be made of.
    pub scores: Vec<(ChunkIndex, Score)>,
    /// Chunks that are likely to be written soonest, in that order.
    pub soonest: Vec<ChunkIndex>,
    /// What is thought of each followed chunk, by chunk.
    pub forecasts: Vec<ChunkForecast>,
    /// How the predictor is.
    pub health: Health,
}

/// What is thought of a chunk.
#[derive(Clone, Copy, Debug)]
pub struct ChunkForecast {
    /// The chunk.
    pub chunk: ChunkIndex,
    /// Probability that a copy made at `at_us` is of use.
    pub score: Score,
    /// Probability of a write within each of [`crate::predict::WINDOWS_US`].
    pub p_modify: [f32; WINDOWS],
    /// Moment of its last modification.
    pub last_write_us: u64,
    /// As in [`crate::predict::ChunkAdvice::heat`].
    pub heat: f32,
}

/// How the predictor of a volume is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// Name of the policy whose predictor serves.
    pub predictor: &'static str,
    /// How much is done.
    pub effort: Effort,
    /// Its model, if it has one.
    pub model: Option<ModelState>,
    /// What was said in the last hour, and what came of it.
    pub calibration: Table,
    /// Most records found in one ring, of the last ticks.
    pub ring_records_max: u64,
    /// Time of the last tick's work, in microseconds.
    pub tick_last_us: u64,
    /// 90th percentile of the times of ticks' work, in microseconds.
    pub tick_p90_us: u64,
    /// Ticks since the volume is followed.
    pub ticks: u64,
    /// Ticks that began or ended too late.
    pub late_ticks: u64,
    /// Median time of a tick's work, in microseconds.
    pub tick_median_us: u64,
    /// Greatest time of a tick's work, in microseconds.
    pub tick_max_us: u64,
    /// Chunks followed.
    pub active_chunks: u64,
    /// Why it is not all that was asked for.
    pub fallback: Option<String>,
}

/// How much is done, from all to little.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// What was asked for.
    #[default]
    Full,
    /// The same for fewer chunks.
    FewerChunks,
    /// [`Rate`] for fewer chunks.
    Rate,
}

impl Effort {
    /// Name as in the interface.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::FewerChunks => "fewer_chunks",
            Self::Rate => "rate",
        }
    }

    fn less(self) -> Self {
        match self {
            Self::Full => Self::FewerChunks,
            Self::FewerChunks | Self::Rate => Self::Rate,
        }
    }

    fn more(self) -> Self {
        match self {
            Self::Rate => Self::FewerChunks,
            Self::FewerChunks | Self::Full => Self::Full,
        }
    }

    fn chunks_max(self) -> usize {
        if self == Self::Full { CHUNKS_MAX } else { CHUNKS_MAX_LATE }
    }
}

/// Decides how much is done, by whether ticks are in time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    effort: Effort,
    late_run: u32,
    good_run: u32,
}

impl Pace {
    /// A tick is over; whether it was late. True if the effort has changed.
    pub fn after(&mut self, late: bool) -> bool {
        let before = self.effort;
        if late {
            self.good_run = 0;
            self.late_run += 1;
        } else {
            self.late_run = 0;
            self.good_run += 1;
        }
        if self.late_run >= LATE_TICKS_MAX {
            self.effort = before.less();
            self.late_run = 0;
        } else if self.good_run >= RECOVER_TICKS {
            self.effort = before.more();
            self.good_run = 0;
        }
        self.effort != before
    }
}

/// A volume that is followed.
pub struct Follower {
    order: Order,
    adviser: Adviser,
    /// Why the predictor is another than was asked for.
    replaced: Option<String>,
    last_cut_us: u64,
    calibration: Calibration,
    pace: Pace,
    next_tick_us: u64,
    /// Of the last ticks: the time of their work, and the most records found in one ring.
    spent_us: VecDeque<(u64, u64)>,
    /// Most records found in one ring since the last tick.
    ring_records_max: u64,
    ticks: u64,
    late_ticks: u64,
    /// Chunks written since the last scores, told or not.
    written: HashSet<ChunkIndex>,
    /// Of these, those not told yet.
    untold: Vec<ChunkIndex>,
    /// Records taken since they were last told.
    records: u64,
    /// Records lost since they were last told.
    lost: u64,
    /// Chunks may be dirty that are not followed.
    unfollowed: bool,
    pushed_out: u64,
}

/// What came with the records since the last time.
#[derive(Default)]
pub struct News {
    /// Chunks written, each told once between two ticks.
    pub written: Vec<ChunkIndex>,
    /// Records taken.
    pub records: u64,
    /// Records lost.
    pub lost: u64,
    /// Chunks may be dirty that the predictor does not follow.
    pub unfollowed: bool,
}

/// Makes the predictor that was asked for, or the next best and why.
fn make(kind: PredictorKind) -> (Box<dyn Predictor>, Option<String>) {
    match kind {
        PredictorKind::Deadline => (Box::new(Deadline), None),
        PredictorKind::Rate => (Box::new(Rate), None),
        PredictorKind::Likely => (Box::new(Likely), None),
        PredictorKind::Lstm => lstm(),
    }
}

/// The model that ships with presnap, which learns on from the volume.
#[cfg(feature = "lstm")]
fn lstm() -> (Box<dyn Predictor>, Option<String>) {
    match crate::predict::model::Model::shipped() {
        Ok(model) => (Box::new(Tuned::new(model, TuneOptions::default())), None),
        Err(error) => (Box::new(Rate), Some(format!("no model: {error}"))),
    }
}

#[cfg(not(feature = "lstm"))]
fn lstm() -> (Box<dyn Predictor>, Option<String>) {
    (Box::new(Rate), Some("this presnap was built without the lstm".to_owned()))
}

fn now_us() -> u64 {
    clock::ticks_to_us(clock::now_ticks())
}

fn monitor_options(gate: &Gate, chunks_max: usize) -> MonitorOptions {
    let geometry = gate.geometry();
    let options = MonitorOptions::new(geometry.chunk_count(), geometry.chunk_bytes());
    MonitorOptions { active_chunks_max: chunks_max, ..options }
}

impl Follower {
    /// Follows a volume from now on.
    pub fn new(order: Order) -> Self {
        let options = monitor_options(&order.gate, Effort::Full.chunks_max());
        let (predictor, replaced) = make(order.predictor);
        let now_us = now_us();
        let mut follower = Self {
            next_tick_us: now_us + options.tick_us,
            adviser: Adviser::new(predictor, options),
            replaced: None,
            last_cut_us: now_us,
            calibration: Calibration::default(),
            ring_records_max: 0,
            pace: Pace::default(),
            spent_us: VecDeque::new(),
            ticks: 0,
            late_ticks: 0,
            written: HashSet::new(),
            untold: Vec::new(),
            records: 0,
            lost: 0,
            unfollowed: false,
            pushed_out: 0,
            order,
        };
        follower.replace_by(replaced);
        follower
    }

    fn replace_by(&mut self, reason: Option<String>) {
        if let Some(reason) = &reason {
            let asked = self.order.predictor.name();
            tracing::warn!(volume = self.order.name, asked, reason, "policy rate serves instead");
        }
        self.replaced = reason;
    }

    /// Names the volume.
    pub fn key(&self) -> u64 {
        self.order.key
    }

    /// Goes on with other settings. What is known of the chunks stays.
    pub fn change(&mut self, order: Order) {
        let other = order.predictor != self.order.predictor;
        self.order = order;
        if other {
            self.begin(Effort::Full);
            self.pace = Pace::default();
        }
    }

    /// Makes monitor and predictor anew: the predictor's state belongs to the monitor's rows.
    fn begin(&mut self, effort: Effort) {
        self.pushed_out = 0;
        self.unfollowed = true;
        let kind = match effort {
            Effort::Rate => PredictorKind::Rate,
            _ => self.order.predictor,
        };
        let (predictor, replaced) = make(kind);
        let options = monitor_options(&self.order.gate, effort.chunks_max());
        self.adviser.restart(predictor, options);
        // Another one is not to be judged by what was said before.
        self.calibration.clear();
        self.replace_by(replaced);
    }

    /// A snapshot was cut.
    pub fn cut(&mut self, at_us: u64) {
        self.adviser.cut(at_us);
        self.last_cut_us = at_us;
    }

    /// Takes the records that have come.
    pub fn drain(&mut self) {
        let geometry = *self.order.gate.geometry();
        let lba_bytes = u64::from(geometry.lba_bytes());
        let Self { adviser, written, untold, records, .. } = self;
        let drained = self.order.rings.drain(|record| {
            *records += 1;
            let kind = match record.kind {
                access::AccessKind::Read => AccessKind::Read,
                access::AccessKind::Modify => AccessKind::Modify,
            };
            adviser.record(&Access::new(
                record.lba * lba_bytes,
                u64::from(record.blocks) * lba_bytes,
                kind,
                clock::ticks_to_us(record.ticks),
                geometry.chunk_bytes(),
            ));
            if kind == AccessKind::Modify {
                let range = LbaRange::new(record.lba, u64::from(record.blocks));
                for chunk in geometry.chunks(range).take(SPAN_CHUNKS_MAX as usize).map(ChunkIndex) {
                    if written.insert(chunk) {
                        untold.push(chunk);
                    }
                }
            }
        });
        self.lost += drained.lost;
        self.unfollowed |= drained.lost > 0;
        self.ring_records_max = self.ring_records_max.max(drained.most);
    }

    /// What the app thread was not told yet, if anything.
    pub fn news(&mut self) -> Option<News> {
        if self.records == 0 && self.lost == 0 && !self.unfollowed {
            return None;
        }
        Some(News {
            written: std::mem::take(&mut self.untold),
            records: std::mem::take(&mut self.records),
            lost: std::mem::take(&mut self.lost),
            unfollowed: std::mem::take(&mut self.unfollowed),
        })
    }

    /// Closes the window when it is time, and says what then is to be thought of the chunks.
    /// `scores_staged`: valid copies get a score, too, since they may have to give way. `share`: of
    /// how many volumes this one is.
    pub fn tick(&mut self, scores_staged: bool, share: usize) -> Option<Scored> {
        let now_us = now_us();
        if now_us < self.next_tick_us {
            return None;
        }
        let tick_us = self.adviser.monitor().options().tick_us;
        let behind_us = now_us - self.next_tick_us;
        // What was missed is not made up for: the monitor reckons with real times.
        self.next_tick_us = if behind_us < tick_us { self.next_tick_us } else { now_us } + tick_us;
        let began = Instant::now();
        self.written.clear();
        self.untold.clear();
        let (scores, soonest, forecasts) = self.score(now_us, scores_staged);
        let spent_us = began.elapsed().as_micros() as u64;
        self.judge(spent_us, behind_us, tick_us, share);
        Some(Scored { scores, soonest, forecasts, health: self.health() })
    }

    /// When the next snapshot will be, if users have told.
    fn planned_us(&self, now_us: u64) -> Option<u64> {
        self.order.window_us.map(|window_us| {
            let windows = now_us.saturating_sub(self.last_cut_us) / window_us + 1;
            self.last_cut_us + windows * window_us
        })
    }

    fn score(
        &mut self,
        now_us: u64,
        scores_staged: bool,
    ) -> (Vec<(ChunkIndex, Score)>, Vec<ChunkIndex>, Vec<ChunkForecast>) {
        let terms = Terms {
            planned_us: self.planned_us(now_us),
            copy_bytes_per_s_max: self.order.copy_bytes_per_s_max,
            scores_staged,
        };
        let gate = &self.order.gate;
        let lacking_bytes = |chunk| gate.lacking_bytes(ChunkIndex(chunk));
        let advice = self.adviser.tick(now_us, &terms, lacking_bytes);
        let scores = advice.scores.into_iter();
        let scores = scores.map(|(chunk, score)| (ChunkIndex(chunk), Score::of(score)));
        let forecasts = advice.chunks.into_iter().map(|advice| ChunkForecast {
            chunk: ChunkIndex(advice.chunk),
            score: Score::of(advice.score),
            p_modify: advice.p_modify,
            last_write_us: advice.last_modify_us,
            heat: advice.heat,
        });
        let mut forecasts: Vec<_> = forecasts.collect();
        forecasts.sort_unstable_by_key(|forecast| forecast.chunk);
        let of_row = |row: usize| (forecasts[row].chunk.0, forecasts[row].p_modify);
        let last_write_us = |chunk| {
            let at =
                forecasts.binary_search_by_key(&ChunkIndex(chunk), |known| known.chunk).ok()?;
            Some(forecasts[at].last_write_us)
        };
        self.calibration.tick(now_us, forecasts.len(), of_row, last_write_us);
        (scores.collect(), advice.soonest.into_iter().map(ChunkIndex).collect(), forecasts)
    }

    /// Does less when ticks are late, and more when they have long been in time.
    fn judge(&mut self, spent_us: u64, behind_us: u64, tick_us: u64, share: usize) {
        self.ticks += 1;
        if self.spent_us.len() == TICKS_SHOWN {
            self.spent_us.pop_front();
        }
        self.spent_us.push_back((spent_us, std::mem::take(&mut self.ring_records_max)));
        let late = behind_us > tick_us / 2 || spent_us > tick_us / 2 / share.max(1) as u64;
        self.late_ticks += u64::from(late);
        let pushed_out = self.adviser.monitor().counters().pushed_out;
        self.unfollowed |= pushed_out > self.pushed_out;
        self.pushed_out = pushed_out;
        if self.pace.after(late) {
            let (effort, volume) = (self.pace.effort, &self.order.name);
            tracing::warn!(volume, ?effort, spent_us, behind_us, "the predictor's effort changes");
            self.begin(effort);
        }
    }

    fn health(&self) -> Health {
        let mut spent_us: Vec<u64> = self.spent_us.iter().map(|&(us, _)| us).collect();
        let tick_last_us = spent_us.last().copied().unwrap_or(0);
        spent_us.sort_unstable();
        let part = |tenths: usize| spent_us.get(spent_us.len() * tenths / 10).copied().unwrap_or(0);
        let late = match self.pace.effort {
            Effort::Full => None,
            Effort::FewerChunks => {
                Some(format!("late: only {CHUNKS_MAX_LATE} chunks are followed"))
            }
            Effort::Rate => {
                Some(format!("late: policy rate serves, for {CHUNKS_MAX_LATE} chunks at most"))
            }
        };
        let as_asked = self.replaced.is_none() && self.pace.effort != Effort::Rate;
        Health {
            predictor: if as_asked { self.order.predictor } else { PredictorKind::Rate }.name(),
            effort: self.pace.effort,
            model: self.adviser.model(),
            calibration: self.calibration.table(),
            ring_records_max: self.spent_us.iter().map(|&(_, most)| most).max().unwrap_or(0),
            ticks: self.ticks,
            late_ticks: self.late_ticks,
            tick_last_us,
            tick_median_us: part(5),
            tick_p90_us: part(9),
            tick_max_us: spent_us.last().copied().unwrap_or(0),
            active_chunks: self.adviser.monitor().active_chunks() as u64,
            fallback: late.or_else(|| self.replaced.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when one late tick is enough, or when effort never comes back.
    #[test]
    fn being_late_again_and_again_means_to_do_less_until_it_is_long_in_time() {
        let mut pace = Pace::default();
        for _ in 0..10 {
            assert!(!pace.after(true) && !pace.after(true) && !pace.after(false));
        }
        for effort in [Effort::FewerChunks, Effort::Rate] {
            assert!(!pace.after(true) && !pace.after(true) && pace.after(true));
            assert_eq!(pace.effort, effort);
        }
        assert!((0..100).all(|_| !pace.after(true)), "there is nothing less");
        for effort in [Effort::FewerChunks, Effort::Full] {
            let ticks = (1..10_000).find(|_| pace.after(false)).unwrap();
            assert!(ticks <= RECOVER_TICKS, "{ticks}");
            assert_eq!(pace.effort, effort);
        }
        assert!((0..2000).all(|_| !pace.after(false)), "there is nothing more");
    }
}
