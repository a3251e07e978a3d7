//! What the models are trained on: stretches of single chunks' lives, drawn from traces.

use std::ops::Range;

use super::future::{Future, each_tick};
use super::hazard::Outcome;
use super::random::Random;
use crate::monitor::{Access, FEATURES, MonitorOptions};

/// Lengths of a stretch in ticks, and how often each is drawn: most of what can be told shows soon
/// after a modification, but the state must hold for long as well.
const LENGTHS: [(usize, f64); 4] = [(32, 0.4), (96, 0.3), (288, 0.2), (864, 0.1)];

/// Share of the rows that come from stretches starting with: a new chunk, a modification, anything.
const SHARES: [f64; 3] = [0.2, 0.5, 0.3];

/// Ticks that nothing is learned from at the start of a stretch that does not start with a new
/// chunk: in use the state would not be new there.
const WARM_UP_TICKS: usize = 8;

/// An outcome in four bytes: ticks, and in the highest bit whether it ended without modification.
const UNMODIFIED: u32 = 1 << 31;

#[derive(Clone, Debug)]
struct Stretch {
    #[cfg(test)]
    chunk: u32,
    #[cfg(test)]
    first_tick: u32,
    fresh: bool,
    /// Rows in `Sequences::features` and `Sequences::outcomes`.
    rows: Range<usize>,
}

/// Stretches of one trace.
#[derive(Clone, Debug, Default)]
pub struct Sequences {
    stretches: Vec<Stretch>,
    /// `[rows, FEATURES]` as given by the monitor.
    features: Vec<f32>,
    /// One per row.
    outcomes: Vec<u32>,
}

impl Sequences {
    /// Draws about `rows_max` rows from a trace sorted by time, every tick of every active chunk
    /// being a row of the whole.
    pub fn draw(
        accesses: &[Access],
        options: MonitorOptions,
        rows_max: usize,
        random: &mut Random,
    ) -> Self {
        let future = Future::new(accesses, options.tick_us);
        let mut all = [0_usize; 3];
        each_tick(accesses, options, |tick| {
            for row in 0..tick.len() {
                all[kind(tick.fresh[row], tick.modified[row])] += 1;
            }
        });
        let mean_length: f64 = LENGTHS.iter().map(|(length, share)| *length as f64 * share).sum();
        let chances: [f64; 3] = std::array::from_fn(|kind| {
            rows_max as f64 * SHARES[kind] / mean_length / all[kind].max(1) as f64
        });
        let mut drawn = Self::default();
        // Per row id the stretch that is being recorded: its chunk, start and rows so far.
        let mut open: Vec<Option<Open>> = vec![];
        each_tick(accesses, options, |tick| {
            for row in 0..tick.len() {
                let slot = tick.slots[row] as usize;
                if slot >= open.len() {
                    open.resize(slot + 1, None);
                }
                if tick.fresh[row] {
                    drawn.close(open[slot].take(), &future);
                }
                let chance = chances[kind(tick.fresh[row], tick.modified[row])];
                if open[slot].is_none() && random.chance(chance) {
                    open[slot] = Some(Open {
                        chunk: tick.rows[row],
                        first_tick: tick.index as u32,
                        fresh: tick.fresh[row],
                        length: length(random),
                        features: vec![],
                    });
                }
                if let Some(stretch) = &mut open[slot] {
                    stretch.features.extend_from_slice(tick.features_of(row));
                    if stretch.features.len() == stretch.length * FEATURES {
                        drawn.close(open[slot].take(), &future);
                    }
                }
            }
        });
        for stretch in open {
            drawn.close(stretch, &future);
        }
        drawn
    }

    fn close(&mut self, stretch: Option<Open>, future: &Future) {
        let Some(stretch) = stretch else { return };
        let first = self.outcomes.len();
        let ticks = stretch.features.len() / FEATURES;
        self.features.extend(&stretch.features);
        self.outcomes.extend((0..ticks).map(|tick| {
            match future.after(stretch.chunk, stretch.first_tick + tick as u32) {
                Outcome::Modified(after) => after.min(UNMODIFIED - 1),
                Outcome::Unmodified(seen) => seen | UNMODIFIED,
            }
        }));
        self.stretches.push(Stretch {
            #[cfg(test)]
            chunk: stretch.chunk,
            #[cfg(test)]
            first_tick: stretch.first_tick,
            fresh: stretch.fresh,
            rows: first..self.outcomes.len(),
        });
    }

    /// Rows drawn.
    pub fn rows(&self) -> usize {
        self.outcomes.len()
    }

    /// Stretches drawn.
    pub fn stretches(&self) -> usize {
        self.stretches.len()
    }

    /// `[rows, FEATURES]`.
    pub fn features(&self) -> &[f32] {
        &self.features
    }

    fn outcome(&self, row: usize) -> Outcome {
        match self.outcomes[row] {
            code if code & UNMODIFIED == 0 => Outcome::Modified(code),
            code => Outcome::Unmodified(code & !UNMODIFIED),
        }
    }

    /// Features and outcome of a stretch's tick; no outcome while the state is warming up, and
    /// nothing behind the end.
    pub fn tick(&self, stretch: usize, tick: usize) -> Option<(&[f32], Option<Outcome>)> {
        let stretch = &self.stretches[stretch];
        let row = stretch.rows.start + tick;
        (row < stretch.rows.end).then(|| {
            let warm = stretch.fresh || tick >= WARM_UP_TICKS;
            (&self.features[row * FEATURES..][..FEATURES], warm.then(|| self.outcome(row)))
        })
    }

    /// Mean and inverse standard deviation of each feature over several traces, each trace
    /// counting alike.
    pub fn scale(all: &[&Self]) -> (Vec<f32>, Vec<f32>) {
        let mut sums = [[0.0_f64; 2]; FEATURES];
        for sequences in all {
            let weight = 1.0 / (sequences.rows().max(1) * all.len()) as f64;
            for row in sequences.features.chunks_exact(FEATURES) {
                for (sum, x) in sums.iter_mut().zip(row) {
                    let x = f64::from(*x);
                    *sum = [sum[0] + weight * x, sum[1] + weight * x * x];
                }
            }
        }
        let mean = sums.map(|[x, _]| x);
        // A feature that hardly varies must not be blown up.
        let scale = sums.map(|[x, xx]| 1.0 / (xx - x * x).max(0.0025).sqrt());
        (mean.map(|x| x as f32).to_vec(), scale.map(|x| x as f32).to_vec())
    }
}

#[derive(Clone, Debug)]
struct Open {
    chunk: u32,
    first_tick: u32,
    fresh: bool,
    length: usize,
    features: Vec<f32>,
}

fn kind(fresh: bool, modified: bool) -> usize {
    match (fresh, modified) {
        (true, _) => 0,
        (false, true) => 1,
        (false, false) => 2,
    }
}

fn length(random: &mut Random) -> usize {
    let mut draw = random.unit();
    for (length, share) in LENGTHS {
        draw -= share;
        if draw < 0.0 {
            return length;
        }
    }
    LENGTHS[0].0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::AccessKind;

    fn trace() -> Vec<Access> {
        let mut random = Random::new(9);
        (0..20_000_u64)
            .map(|i| {
                let chunk = random.below(1 + random.clone().below(64));
                Access::new(chunk << 18, 4096, AccessKind::Modify, i * 150_000, 1 << 18)
            })
            .collect()
    }

    fn draw(rows_max: usize, seed: u64) -> Sequences {
        Sequences::draw(
            &trace(),
            MonitorOptions::new(64, 1 << 18),
            rows_max,
            &mut Random::new(seed),
        )
    }

    #[test]
    fn about_as_many_rows_as_asked_for_and_the_same_for_the_same_seed() {
        let sequences = draw(10_000, 1);
        assert!((4_000..16_000).contains(&sequences.rows()), "{}", sequences.rows());
        let again = draw(10_000, 1);
        assert_eq!(
            (sequences.features(), &sequences.outcomes),
            (again.features(), &again.outcomes)
        );
        assert_ne!(draw(10_000, 2).outcomes, again.outcomes);
    }

    #[test]
    fn outcomes_are_those_of_the_trace() {
        let sequences = draw(20_000, 3);
        let future = Future::new(&trace(), 1_000_000);
        let mut checked = 0;
        for (index, stretch) in sequences.stretches.iter().enumerate() {
            for tick in 0..stretch.rows.len() {
                let (features, outcome) = sequences.tick(index, tick).unwrap();
                assert_eq!(features.len(), FEATURES);
                let Some(outcome) = outcome else { continue };
                assert_eq!(outcome, future.after(stretch.chunk, stretch.first_tick + tick as u32));
                checked += 1;
            }
            assert!(sequences.tick(index, stretch.rows.len()).is_none());
        }
        assert!(checked > 5_000, "{checked}");
    }

    #[test]
    fn scaled_features_have_mean_zero() {
        let sequences = draw(10_000, 1);
        let (mean, scale) = Sequences::scale(&[&sequences]);
        for feature in 0..FEATURES {
            let sum: f32 = sequences
                .features()
                .chunks_exact(FEATURES)
                .map(|row| (row[feature] - mean[feature]) * scale[feature])
                .sum();
            assert!((sum / sequences.rows() as f32).abs() < 1e-2, "feature {feature}");
        }
    }
}
