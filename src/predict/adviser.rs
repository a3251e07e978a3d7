//! One volume's predictor at work: records in, advice out.
//!
//! The same on the running target and in a replay: both give it the volume's commands and cuts, let
//! it look at the volume once per tick, and pass its advice on to the engine.

use std::f32::consts::LN_2;

use super::{Context, ModelState, Prediction, Predictor, SnapshotTimes, WINDOWS};
use crate::monitor::{Access, HALF_LIVES_S, Monitor, MonitorOptions, Tick};

/// Chunks that are named as those modified soonest.
const SOONEST_MAX: usize = 1024;

/// Of [`HALF_LIVES_S`], that of the heat that users are shown: about four minutes.
const HEAT_SCALE: usize = 2;

/// Of [`HALF_LIVES_S`], that of the rate at which a copy is taken to be overwritten: half a minute.
const PART_SCALE: usize = 1;

/// What is thought of one chunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChunkAdvice {
    /// The chunk.
    pub chunk: u32,
    /// As in [`Prediction::score`].
    pub score: f32,
    /// As in [`Prediction::p_modify`].
    pub p_modify: [f32; WINDOWS],
    /// Moment of its last modification.
    pub last_modify_us: u64,
    /// Share of the last minutes' ticks in which it was modified: decayed with [`HEAT_SCALE`].
    pub heat: f32,
}

/// What one tick found out.
#[derive(Clone, Debug, Default)]
pub struct Advice {
    /// Chunks that a copy could be made of, or could make room for another's, with their scores.
    pub scores: Vec<(u32, f32)>,
    /// Dirty chunks that are likely to be modified soonest, in that order.
    pub soonest: Vec<u32>,
    /// All chunks that are followed.
    pub chunks: Vec<ChunkAdvice>,
}

/// Circumstances that may change from tick to tick.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// When the next snapshot will be, if that is known.
    pub planned_us: Option<u64>,
    /// Limit on background copying.
    pub copy_bytes_per_s_max: Option<u64>,
    /// Valid copies are scored, too, since they may have to give way.
    pub scores_staged: bool,
}

/// A monitor, a predictor, and what is known of the snapshots.
pub struct Adviser {
    monitor: Monitor,
    predictor: Box<dyn Predictor>,
    times: SnapshotTimes,
    prediction: Prediction,
}

impl Adviser {
    /// Follows a volume from now on.
    pub fn new(predictor: Box<dyn Predictor>, options: MonitorOptions) -> Self {
        Self {
            monitor: Monitor::new(options),
            predictor,
            times: SnapshotTimes::new(),
            prediction: Prediction::default(),
        }
    }

    /// Goes on with another predictor and with a monitor that has seen nothing, since a predictor's
    /// state belongs to the monitor's rows. What is known of the snapshots stays.
    pub fn restart(&mut self, predictor: Box<dyn Predictor>, options: MonitorOptions) {
        (self.predictor, self.monitor) = (predictor, Monitor::new(options));
    }

    /// The monitor.
    pub fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// The model of the predictor, if it has one.
    pub fn model(&self) -> Option<ModelState> {
        self.predictor.model()
    }

    /// Name of the predictor.
    pub fn name(&self) -> &'static str {
        self.predictor.name()
    }

    /// Notes a command.
    pub fn record(&mut self, access: &Access) {
        self.monitor.record(access);
    }

    /// A snapshot was cut.
    pub fn cut(&mut self, at_us: u64) {
        self.times.cut(at_us);
    }

    /// Closes the window that ends now. `lacking_bytes` says of a chunk what a copy would move: 0 if
    /// it has a valid one, `None` if it needs none. Each chunk is looked at once: it may change
    /// meanwhile.
    pub fn tick(
        &mut self,
        now_us: u64,
        terms: &Terms,
        lacking_bytes: impl Fn(u32) -> Option<u64>,
    ) -> Advice {
        let MonitorOptions { tick_us, chunk_bytes, .. } = *self.monitor.options();
        let tick = self.monitor.tick(now_us);
        let sight = Sight::new(&tick, chunk_bytes, &mut self.times, terms, lacking_bytes);
        self.predictor.step(&tick, &sight.context, &mut self.prediction);
        sight.advice(&tick, tick_us, &self.prediction)
    }
}

/// A volume as it is when a window closes: what to predict from, and to make advice of.
#[derive(Clone, Debug)]
pub struct Sight {
    /// For the predictor.
    pub context: Context,
    /// Of each row, what a copy would move.
    lacking: Vec<Option<u64>>,
    scores_staged: bool,
    /// Probability of a snapshot that leaves no time to wait, and its mean time from now in seconds.
    soon: (f32, f32),
    chunk_bytes: u64,
}

impl Sight {
    /// Looks at each chunk of `tick` once, as [`Adviser::tick`] does.
    pub fn new(
        tick: &Tick<'_>,
        chunk_bytes: u32,
        times: &mut SnapshotTimes,
        terms: &Terms,
        lacking_bytes: impl Fn(u32) -> Option<u64>,
    ) -> Self {
        times.schedule(terms.planned_us);
        let lacking: Vec<_> = tick.rows.iter().map(|&chunk| lacking_bytes(chunk)).collect();
        let context = Context {
            forecast: times.forecast(tick.now_us),
            work_bytes: lacking.iter().flatten().sum(),
            copy_bytes_per_s_max: terms.copy_bytes_per_s_max,
        };
        let (scores_staged, soon) = (terms.scores_staged, context.race().soon());
        Self { context, lacking, scores_staged, soon, chunk_bytes: u64::from(chunk_bytes) }
    }

    /// Share of a first copy made now that is right at the next snapshot, if that is expected soon. A
    /// chunk written every second has no copy that lasts, and still one that lacks some blocks is refreshed far
    /// sooner after the cut than a whole one is made.
    fn part_kept(&self, tick: &Tick<'_>, row: usize) -> f32 {
        let (probability, in_s) = self.soon;
        let per_s = tick.decayed[row][PART_SCALE] * LN_2 / HALF_LIVES_S[PART_SCALE];
        let overwritten = per_s * in_s * tick.window_bytes[row] / self.chunk_bytes as f32;
        probability * (1.0 - overwritten).max(0.0)
    }

    /// What follows from what is predicted of the same tick.
    pub fn advice(&self, tick: &Tick<'_>, tick_us: u64, prediction: &Prediction) -> Advice {
        // What a chunk comes to that is modified in every tick.
        let half_life_us = HALF_LIVES_S[HEAT_SCALE] * 1e6;
        let hottest = 1.0 / (1.0 - (-(tick_us as f32) / half_life_us).exp2());
        let mut advice = Advice { chunks: Vec::with_capacity(tick.len()), ..Advice::default() };
        let mut soonest = Vec::new();
        for (row, &chunk) in tick.rows.iter().enumerate() {
            let (mut score, p_modify) = (prediction.score[row], prediction.p_modify[row]);
            if let Some(bytes) = self.lacking[row] {
                // Who says 0 knows: there is nothing to be had from a copy now.
                if bytes >= self.chunk_bytes && score > 0.0 {
                    score = score.max(self.part_kept(tick, row));
                }
                if bytes > 0 || self.scores_staged {
                    advice.scores.push((chunk, score));
                }
                soonest.push((p_modify[0], chunk));
            }
            let last_modify_us = tick.now_us.saturating_sub(tick.age_us[row]);
            let heat = (tick.decayed[row][HEAT_SCALE] / hottest).min(1.0);
            advice.chunks.push(ChunkAdvice { chunk, score, p_modify, last_modify_us, heat });
        }
        advice.soonest = first(soonest);
        advice
    }
}

/// The chunks with the greatest probabilities, in that order.
fn first(mut soonest: Vec<(f32, u32)>) -> Vec<u32> {
    if soonest.len() > SOONEST_MAX {
        soonest.select_nth_unstable_by(SOONEST_MAX, |a, b| b.0.total_cmp(&a.0));
        soonest.truncate(SOONEST_MAX);
    }
    soonest.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    soonest.into_iter().map(|(_, chunk)| chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::AccessKind;
    use crate::predict::baseline::Rate;

    #[test]
    fn advice_is_given_for_what_a_copy_could_be_made_of() {
        let options = MonitorOptions::new(100, 1 << 16);
        let mut adviser = Adviser::new(Box::new(Rate), options);
        for chunk in [1_u64, 2, 3] {
            // Chunk 3 is modified more often than chunk 1.
            for count in 0..chunk {
                let time_us = 100_000 * count + 1;
                let access = Access::new(chunk << 16, 512, AccessKind::Modify, time_us, 1 << 16);
                adviser.record(&access);
            }
            adviser.tick(chunk * 1_000_000, &Terms::default(), |_| Some(1));
        }
        // 1 lacks a block, 2 is clean, 3 has a valid copy.
        let lacking = |chunk| [Some(4096), None, Some(0)][chunk as usize - 1];
        let advice = adviser.tick(4_000_000, &Terms::default(), lacking);
        let chunks = |advice: &Advice| advice.scores.iter().map(|s| s.0).collect::<Vec<_>>();
        assert_eq!(chunks(&advice), [1]);
        assert_eq!(advice.soonest, [3, 1], "modified last, and so most likely again");
        assert_eq!(advice.chunks.len(), 3);
        let terms = Terms { scores_staged: true, ..Terms::default() };
        assert_eq!(chunks(&adviser.tick(5_000_000, &terms, lacking)), [1, 3]);
    }

    #[test]
    fn of_what_is_written_all_the_time_a_copy_is_made_in_time_if_parts_of_it_last() {
        // Chunk 1 gets a block every second, chunk 2 is written as a whole.
        let score = |chunk: u64, bytes: u64, lacking: u64, planned_s: u64| {
            let mut adviser = Adviser::new(Box::new(Rate), MonitorOptions::new(100, 1 << 18));
            let terms =
                Terms { planned_us: Some((30 + planned_s) * 1_000_000), ..Terms::default() };
            let mut advice = Advice::default();
            for second in 0..30 {
                let at_us = second * 1_000_000 + 500_000;
                let access = Access::new(chunk << 18, bytes, AccessKind::Modify, at_us, 1 << 18);
                adviser.record(&access);
                advice = adviser.tick(at_us + 500_000, &terms, |_| Some(lacking));
            }
            advice.scores[0].1
        };
        let (block, whole) = (4096, 1 << 18);
        assert!(score(1, block, whole, 5) > 0.9, "{}", score(1, block, whole, 5));
        assert!(score(1, block, whole, 60) < 0.1, "long before: {}", score(1, block, whole, 60));
        assert!(score(1, block, block, 5) < 0.1, "a refresh: {}", score(1, block, block, 5));
        assert!(score(2, whole, whole, 5) < 0.1, "{}", score(2, whole, whole, 5));
    }

    #[test]
    fn the_soonest_are_few_and_in_order() {
        let all: Vec<_> =
            (0..3000_u32).map(|chunk| ((chunk % 1500) as f32 / 1500.0, chunk)).collect();
        let soonest = first(all);
        assert_eq!(soonest.len(), SOONEST_MAX);
        assert_eq!(soonest[..4], [1499, 2999, 1498, 2998]);
    }
}
