//! Offline training: truncated backpropagation through time over stretches of many traces.
//!
//! 256 stretches are followed side by side, 16 ticks per step, with the state handed on from step to
//! step. Everything follows from the seed: one thread, no clock, no unordered map.

use super::hazard::BINS;
use super::logistic::LogisticTrainer;
use super::model::{Model, Shape};
use super::net::{Batch, Net, Trainer, assess, initialise};
use super::random::Random;
use super::sequences::Sequences;
use crate::monitor::{FEATURE_NAMES, FEATURES};
use burn::tensor::Device;

/// Stretches followed side by side.
const LANES: usize = 256;

/// Ticks that a gradient reaches back.
const TICKS: usize = 16;

/// Learning rates: the highest, and as a share of it the last.
const RATE: f64 = 4e-3;
const LOGISTIC_RATE: f64 = 1e-2;
const RATE_LAST: f64 = 0.01;

/// Steps until the rate is at its highest.
const WARM_UP_STEPS: usize = 100;

/// The model is the mean of the weights over this last share of the steps, taken every so many
/// steps: less noise than any single one, and better on traces not seen.
const AVERAGED_SHARE: f64 = 0.3;
const AVERAGED_EVERY: usize = 20;

/// Features that say as much about the trace as about the chunk, and so invite learning the trace
/// by heart: they are shifted by chance (in units of the feature), and sometimes withheld.
const OF_THE_VOLUME: [&str; 5] = ["before", "after", "region", "partners", "volume"];
const SHIFT: f64 = 0.15;
const WITHHELD: f64 = 0.08;

/// Steps of [`LANES`] x [`TICKS`] rows over which a loss is measured.
const ASSESS_STEPS: usize = 48;

/// What training needs to know.
#[derive(Clone, Copy, Debug)]
pub struct TrainOptions {
    /// All chance follows from it.
    pub seed: u64,
    /// Steps of 256 x 16 rows.
    pub steps: usize,
    /// Size of the hidden state.
    pub hidden: usize,
    /// Length of a tick.
    pub tick_ms: u32,
    /// Steps between two reports.
    pub report_steps: usize,
}

/// Stretches of one trace and how often they are drawn.
#[derive(Clone, Debug)]
pub struct Source {
    /// For people.
    pub name: String,
    /// What was drawn from it.
    pub sequences: Sequences,
    /// Share of the rows learned from, in proportion to the other sources' weights.
    pub weight: f64,
}

/// Where training is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Of so many.
    pub steps: usize,
    /// Minus the mean log likelihood per row since the last report, of what is learned from.
    pub loss: f32,
    /// The same for what is held out, if anything is.
    pub held_out_loss: Option<f32>,
}

/// Trains a model on `sources`; `held_out` is only looked at.
///
/// # Panics
///
/// If there is nothing to learn from.
pub fn train(
    options: TrainOptions,
    sources: &[Source],
    held_out: &[Source],
    mut report: impl FnMut(Progress),
) -> Model {
    let mut random = Random::new(options.seed);
    let shape = Shape { features: FEATURES, hidden: options.hidden };
    let mut model = Model::zeros(shape, options.tick_ms);
    let all: Vec<_> = sources.iter().map(|source| &source.sequences).collect();
    (model.mean, model.scale) = Sequences::scale(&all);
    initialise(&mut model, &mut random);
    let mut trainer = Trainer::new(&model);
    let mut logistic = LogisticTrainer::new(&model);
    let mut feed = Feed::new(&model, sources, Some(random), options.seed);
    let mut mean = Mean::default();
    let averaged_from = (options.steps as f64 * (1.0 - AVERAGED_SHARE)) as usize;
    let mut loss = 0.0;
    for step in 1..=options.steps {
        let batch = feed.next(&model);
        let rate = rate(step, options.steps);
        let LogisticRows { features, modified, exposure } = logistic_rows(&batch);
        logistic.learn(features, modified, exposure, (LOGISTIC_RATE * rate) as f32);
        let passed = trainer.learn(&batch, RATE * rate);
        feed.keep(passed.hidden, passed.cell);
        loss += passed.loss;
        if step >= averaged_from && step % AVERAGED_EVERY == 0 {
            trainer.store(&mut model);
            logistic.store(&mut model);
            mean.add(&model);
        }
        if step % options.report_steps == 0 || step == options.steps {
            trainer.store(&mut model);
            let steps = (step - 1) % options.report_steps + 1;
            let held_out_loss = (!held_out.is_empty()).then(|| loss_of(&model, held_out));
            report(Progress {
                step,
                steps: options.steps,
                loss: loss / steps as f32,
                held_out_loss,
            });
            loss = 0.0;
        }
    }
    trainer.store(&mut model);
    logistic.store(&mut model);
    mean.put(&mut model);
    model
}

/// Minus the mean log likelihood per row of stretches drawn from `sources`, always the same.
pub fn loss_of(model: &Model, sources: &[Source]) -> f32 {
    let net = Net::new(model, &Device::flex());
    let mut feed = Feed::new(model, sources, None, 1);
    let mut sum = 0.0;
    for _ in 0..ASSESS_STEPS {
        let passed = assess(&net, model.shape, &feed.next(model));
        sum += passed.loss;
        feed.keep(passed.hidden, passed.cell);
    }
    sum / ASSESS_STEPS as f32
}

/// Share of the highest learning rate: a short rise, then half a cosine down.
fn rate(step: usize, steps: usize) -> f64 {
    let rise = step as f64 / WARM_UP_STEPS as f64;
    let fall = (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos()) / 2.0;
    rise.min(RATE_LAST + (1.0 - RATE_LAST) * fall)
}

struct LogisticRows<'a> {
    features: &'a [f32],
    modified: &'a [f32],
    exposure: &'a [f32],
}

/// One tick of a batch is enough for a linear model, and keeps its price low.
fn logistic_rows(batch: &Batch) -> LogisticRows<'_> {
    let tick = batch.rows * (batch.ticks / 2)..batch.rows * (batch.ticks / 2 + 2);
    LogisticRows {
        features: &batch.features[tick.start * FEATURES..tick.end * FEATURES],
        modified: &batch.modified[tick.start * BINS..tick.end * BINS],
        exposure: &batch.exposure[tick.start * BINS..tick.end * BINS],
    }
}

#[derive(Clone, Debug)]
struct Lane {
    source: usize,
    stretch: usize,
    tick: usize,
    /// Per feature: what is added to it, or `None` if it is withheld.
    shift: [Option<f32>; FEATURES],
}

/// Hands out batches, stretch after stretch.
struct Feed<'a> {
    sources: &'a [Source],
    /// Weights summed up, so that a source can be drawn.
    until: Vec<f64>,
    lanes: Vec<Option<Lane>>,
    random: Random,
    disturbed: bool,
    hidden: Vec<f32>,
    cell: Vec<f32>,
}

impl<'a> Feed<'a> {
    /// `chance`: where all chance comes from, and that features are disturbed; without it they are
    /// left alone.
    fn new(model: &Model, sources: &'a [Source], chance: Option<Random>, seed: u64) -> Self {
        let mut sum = 0.0;
        let until = sources
            .iter()
            .map(|source| {
                sum += if source.sequences.stretches() == 0 { 0.0 } else { source.weight };
                sum
            })
            .collect();
        assert!(sum > 0.0, "no stretch to learn from");
        let zeros = vec![0.0; LANES * model.shape.hidden];
        Self {
            sources,
            until,
            lanes: vec![None; LANES],
            disturbed: chance.is_some(),
            random: chance.unwrap_or_else(|| Random::new(seed)),
            hidden: zeros.clone(),
            cell: zeros,
        }
    }

    /// The state at the end of the batch before.
    fn keep(&mut self, hidden: Vec<f32>, cell: Vec<f32>) {
        self.hidden = hidden;
        self.cell = cell;
    }

    fn start(&mut self) -> Lane {
        let draw = self.random.between(0.0, *self.until.last().expect("some source"));
        let source = self.until.partition_point(|until| *until <= draw).min(self.sources.len() - 1);
        let stretch = self.random.index(self.sources[source].sequences.stretches());
        let mut shift = [Some(0.0); FEATURES];
        if self.disturbed {
            for (name, shift) in FEATURE_NAMES.iter().zip(&mut shift) {
                if OF_THE_VOLUME.contains(name) {
                    let withheld = self.random.chance(WITHHELD);
                    *shift = (!withheld).then(|| (SHIFT * self.random.normal()) as f32);
                }
            }
        }
        Lane { source, stretch, tick: 0, shift }
    }

    fn next(&mut self, model: &Model) -> Batch {
        let size = model.shape.hidden;
        let rows = LANES * TICKS;
        let mut batch = Batch {
            rows: LANES,
            ticks: TICKS,
            features: vec![0.0; rows * FEATURES],
            modified: vec![0.0; rows * BINS],
            exposure: vec![0.0; rows * BINS],
            hidden: vec![],
            cell: vec![],
        };
        let mut scaled = Vec::with_capacity(FEATURES);
        for index in 0..LANES {
            let mut lane = self.lanes[index].take().unwrap_or_else(|| {
                self.hidden[index * size..(index + 1) * size].fill(0.0);
                self.cell[index * size..(index + 1) * size].fill(0.0);
                self.start()
            });
            let sequences = &self.sources[lane.source].sequences;
            for tick in 0..TICKS {
                // Behind the end of a stretch the batch stays zero: nothing is learned there.
                let Some((features, outcome)) = sequences.tick(lane.stretch, lane.tick) else {
                    break;
                };
                lane.tick += 1;
                let row = tick * LANES + index;
                scaled.clear();
                model.normalise(features, &mut scaled);
                for (feature, shift) in lane.shift.iter().enumerate() {
                    scaled[feature] = match shift {
                        Some(shift) => scaled[feature] + shift * model.scale[feature],
                        None => 0.0,
                    };
                }
                batch.features[row * FEATURES..][..FEATURES].copy_from_slice(&scaled);
                if let Some(outcome) = outcome {
                    let (modified, exposure) = outcome.targets();
                    batch.modified[row * BINS..][..BINS].copy_from_slice(&modified);
                    batch.exposure[row * BINS..][..BINS].copy_from_slice(&exposure);
                }
            }
            let more = sequences.tick(lane.stretch, lane.tick).is_some();
            self.lanes[index] = more.then_some(lane);
        }
        batch.hidden.clone_from(&self.hidden);
        batch.cell.clone_from(&self.cell);
        batch
    }
}

/// Mean of models.
#[derive(Default)]
struct Mean {
    sums: Vec<Vec<f64>>,
    count: usize,
}

impl Mean {
    fn add(&mut self, model: &Model) {
        let parts = model.weights();
        self.sums.resize_with(parts.len(), Vec::new);
        for (sum, part) in self.sums.iter_mut().zip(parts) {
            sum.resize(part.len(), 0.0);
            sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        self.count += 1;
    }

    fn put(&self, model: &mut Model) {
        if self.count == 0 {
            return;
        }
        for (part, sum) in model.weights_mut().into_iter().zip(&self.sums) {
            part.iter_mut().zip(sum).for_each(|(x, sum)| *x = (sum / self.count as f64) as f32);
        }
    }
}

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;
