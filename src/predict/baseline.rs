//! Predictors without a model: what a better one is measured against.

use std::collections::HashMap;

use super::{Context, FREE_BYTES_PER_S, Prediction, Predictor};
use crate::monitor::{HALF_LIVES_S, SCALES, Tick};

/// One modification in so many seconds is expected of a chunk that none was seen of: no chunk is
/// ever certain to rest.
const PRIOR_GAP_S: f32 = 16_384.0;

/// `idle`: who rested for long rests on.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// A chunk that rested so long, in microseconds, is worth a copy.
    pub rest_us: u64,
}

/// A chunk at rest for `age_us` stays so for `in_us` more: what follows from gaps of all lengths
/// being equally likely by ratio.
fn rests(age_us: u64, in_us: u64) -> f32 {
    (age_us + 1) as f32 / (age_us + in_us + 1) as f32
}

impl Predictor for Idle {
    fn name(&self) -> &'static str {
        "idle"
    }

    fn step(&mut self, tick: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        prediction.clear();
        let race = context.race();
        for &age_us in tick.age_us {
            prediction.push(&race, |in_us| rests(age_us, in_us));
        }
        for (score, &age_us) in prediction.score.iter_mut().zip(tick.age_us) {
            *score = f32::from(u8::from(age_us >= self.rest_us));
        }
    }
}

/// `rate`: modifications are a Poisson process with the rate of the recent past.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate;

/// The rate is taken over so much shorter a past than the time looked ahead. Over as long a past, a
/// burst that is over would count for as long as it is looked ahead.
const PAST_SHORTER: f32 = 16.0;

impl Rate {
    /// The probability that a chunk with these decayed counts is not modified for `in_us`.
    fn unmodified(decayed: &[f32; SCALES], in_us: u64) -> f32 {
        let seconds = in_us as f32 / 1e6;
        let past = seconds / PAST_SHORTER;
        // A steady stream of r windows a second makes a count of r times the half-life / ln 2.
        let rate = |scale: usize| decayed[scale] * std::f32::consts::LN_2 / HALF_LIVES_S[scale];
        // Between the scales whose half-lives are next to that past.
        let above = HALF_LIVES_S.iter().position(|&half_life_s| half_life_s >= past);
        let rate_per_s = match above {
            Some(0) => rate(0),
            None => rate(SCALES - 1),
            Some(above) => {
                let (low, high) = (HALF_LIVES_S[above - 1], HALF_LIVES_S[above]);
                let upper = (past / low).ln() / (high / low).ln();
                rate(above - 1) * (1.0 - upper) + rate(above) * upper
            }
        };
        (-(rate_per_s + 1.0 / PRIOR_GAP_S) * seconds).exp()
    }

    fn predict(tick: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        prediction.clear();
        let race = context.race();
        for decayed in tick.decayed {
            prediction.push(&race, |in_us| Self::unmodified(decayed, in_us));
            let p_modify = prediction.p_modify.last_mut().expect("just pushed");
            // Each window goes by another scale; still a longer one holds the shorter.
            for window in 1..p_modify.len() {
                p_modify[window] = p_modify[window].max(p_modify[window - 1]);
            }
        }
    }
}

impl Predictor for Rate {
    fn name(&self) -> &'static str {
        "rate"
    }

    fn step(&mut self, tick: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        Self::predict(tick, context, prediction);
    }
}

/// `likely`: stage what will probably be modified. What one reads "predict what changes and copy it
/// in advance" as first, and mostly wrong: such a copy is outdated before anybody wants it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Likely;

impl Predictor for Likely {
    fn name(&self) -> &'static str {
        "likely"
    }

    fn step(&mut self, tick: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        Rate::predict(tick, context, prediction);
        for score in &mut prediction.score {
            *score = 1.0 - *score;
        }
    }
}

/// `deadline`: copy as late as the allowed rate permits, the longest at rest first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deadline;

/// Copying begins so many times earlier than it takes: chunks are written again meanwhile.
const EARLIER: f32 = 1.2;

/// And so much earlier still, in seconds: two windows, since it is looked at once in each.
const EARLIER_S: f32 = 2.0;

impl Predictor for Deadline {
    fn name(&self) -> &'static str {
        "deadline"
    }

    fn minds_race_only(&self) -> bool {
        false
    }

    fn step(&mut self, tick: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        let bytes_per_s = context.copy_bytes_per_s_max.unwrap_or(FREE_BYTES_PER_S).max(1);
        let takes_s = context.work_bytes as f32 / bytes_per_s as f32 * EARLIER + EARLIER_S;
        // Not knowing the time, it is the mean of what is possible.
        let left_s = context.forecast.mean_s();
        let begins = left_s <= takes_s;
        prediction.clear();
        let race = context.race();
        for &age_us in tick.age_us {
            prediction.push(&race, |in_us| rests(age_us, in_us));
        }
        for (score, &age_us) in prediction.score.iter_mut().zip(tick.age_us) {
            *score = if begins { 0.5 + 0.5 * (1.0 - rests(60_000_000, age_us)) } else { 0.0 };
        }
    }
}

/// `oracle`: knows the future. Replay only.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Times of each chunk's modifications, ascending.
    modifications_us: HashMap<u32, Vec<u64>>,
    /// Times of the snapshots, ascending.
    snapshots_us: Vec<u64>,
}

impl Oracle {
    /// Knows when each chunk will be modified and when snapshots will be taken; times ascend.
    pub fn new(modifications_us: HashMap<u32, Vec<u64>>, snapshots_us: Vec<u64>) -> Self {
        Self { modifications_us, snapshots_us }
    }
}

/// The first of `times_us` after `now_us`.
fn after(times_us: &[u64], now_us: u64) -> Option<u64> {
    times_us.get(times_us.partition_point(|&time_us| time_us <= now_us)).copied()
}

impl Predictor for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn step(&mut self, tick: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        prediction.clear();
        let race = context.race();
        let snapshot_us = after(&self.snapshots_us, tick.now_us);
        for chunk in tick.rows {
            let times_us = self.modifications_us.get(chunk).map_or(&[][..], Vec::as_slice);
            let next_us = after(times_us, tick.now_us);
            let rests_until = |until_us: u64| {
                f32::from(u8::from(next_us.is_none_or(|next_us| next_us > until_us)))
            };
            prediction.push(&race, |in_us| rests_until(tick.now_us + in_us));
            *prediction.score.last_mut().expect("just pushed") =
                snapshot_us.map_or(0.0, rests_until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::{Access, AccessKind, Monitor, MonitorOptions};
    use crate::predict::{Forecast, WINDOWS};

    const SECOND_US: u64 = 1_000_000;

    /// Chunk 1 is modified every second for a minute, chunk 2 once at the beginning.
    fn monitor() -> Monitor {
        let mut monitor = Monitor::new(MonitorOptions::new(100, 1 << 16));
        for second in 0..60 {
            for chunk in [1, 2] {
                if chunk == 1 || second == 0 {
                    let at = chunk << 16;
                    let time_us = second * SECOND_US + 1;
                    monitor.record(&Access::new(at, 512, AccessKind::Modify, time_us, 1 << 16));
                }
            }
            monitor.tick((second + 1) * SECOND_US);
        }
        monitor
    }

    fn predict(predictor: &mut dyn Predictor, context: &Context) -> [([f32; WINDOWS], f32); 2] {
        let mut monitor = monitor();
        let tick = monitor.tick(61 * SECOND_US);
        let mut prediction = Prediction::default();
        predictor.step(&tick, context, &mut prediction);
        let row = |chunk| tick.rows.iter().position(|&row| row == chunk).unwrap();
        [row(1), row(2)].map(|row| (prediction.p_modify[row], prediction.score[row]))
    }

    fn context(in_s: u64) -> Context {
        Context::new(Forecast::known(in_s * SECOND_US))
    }

    #[test]
    fn probabilities_grow_with_the_window_and_the_rate() {
        for predictor in [&mut Idle { rest_us: 5 * SECOND_US } as &mut dyn Predictor, &mut Rate] {
            let [(busy, busy_score), (resting, resting_score)] = predict(predictor, &context(60));
            for p_modify in [busy, resting] {
                assert!(p_modify.windows(2).all(|pair| pair[0] <= pair[1]), "{p_modify:?}");
                assert!(p_modify.iter().all(|p| (0.0..=1.0).contains(p)), "{p_modify:?}");
            }
            assert!(busy.iter().zip(resting).all(|(busy, resting)| *busy >= resting));
            assert!(busy_score < 0.1 && resting_score > 0.5, "{busy_score} {resting_score}");
        }
    }

    #[test]
    fn likely_stages_the_opposite_of_rate() {
        let [(_, busy), (_, resting)] = predict(&mut Likely, &context(60));
        assert!(busy > 0.9 && resting < 0.5, "{busy} {resting}");
    }

    #[test]
    fn deadline_begins_when_it_must() {
        let mut context = context(100);
        context.copy_bytes_per_s_max = Some(1_000_000);
        context.work_bytes = 70_000_000;
        let early = predict(&mut Deadline, &context);
        assert!(early.iter().all(|(_, score)| *score == 0.0), "{early:?}");
        context.work_bytes = 90_000_000;
        let [(_, busy), (_, resting)] = predict(&mut Deadline, &context);
        assert!(busy >= 0.5 && resting > busy, "{busy} {resting}");
    }

    #[test]
    fn oracle_is_right() {
        let modifications = HashMap::from([(1, vec![90 * SECOND_US]), (2, vec![SECOND_US])]);
        let mut oracle = Oracle::new(modifications.clone(), vec![100 * SECOND_US]);
        let [(busy, busy_score), (resting, resting_score)] = predict(&mut oracle, &context(1));
        assert_eq!((busy, busy_score), ([0.0, 1.0, 1.0, 1.0], 0.0));
        assert_eq!((resting, resting_score), ([0.0; WINDOWS], 1.0));
        let mut oracle = Oracle::new(modifications, vec![80 * SECOND_US]);
        let scores = predict(&mut oracle, &context(1)).map(|(_, score)| score);
        assert!(scores.iter().all(|score| *score > 0.99), "{scores:?}");
    }
}
