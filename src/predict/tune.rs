//! Learning on: the model follows its own volume, from what time reveals.
//!
//! A few chunks at a time are watched for 16 ticks and then until it is known for
//! [`TuneOptions::delay_ticks`] what became of them: all of them equally long, for those that are
//! known sooner are not like the others. From time to time a step is learned on a *candidate*. Now and
//! then the candidate is compared with the model in use on recent sequences of chunks that are never
//! learned from (a quarter of all): if it is better it is used from then on, else it is dropped
//! and learning begins anew from the model in use. If the model that all began with has become
//! better than the one in use, it comes back.
//!
//! Memory is bounded by [`WATCHED_MAX`] and [`READY_MAX`] sequences of about 1.5 kB each.

use std::time::{Duration, Instant};

use burn::tensor::Device;

use super::hazard::{BINS, Outcome};
use super::lstm::Lstm;
use super::model::Model;
use super::net::{Batch, Net, Trainer, assess};
use super::random::Random;
use super::{Context, ModelState, Prediction, Predictor};
use crate::monitor::{FEATURES, Tick};

/// Ticks of a sequence: how far a gradient reaches back, as in training.
const TICKS: usize = 16;

/// Sequences that are being watched.
pub const WATCHED_MAX: usize = 6144;

/// Sequences whose outcomes are known; the oldest give way.
pub const READY_MAX: usize = 3072;

/// Sequences of a batch: a few milliseconds' work.
const ROWS: usize = 64;

/// Sequences that must be known before anything is learned, and before anything is judged.
const LEARN_FROM: usize = 4 * ROWS;
const JUDGE_FROM: usize = 2 * ROWS;

/// Most recent sequences that a candidate is judged by.
const JUDGED_MAX: usize = 8 * ROWS;

/// A candidate must be better by this share: less may be luck.
const BETTER: f32 = 0.002;

/// In every so many chunks one is kept for judging.
const HELD_OUT: u64 = 4;

/// How to learn on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuneOptions {
    /// All chance follows from it.
    pub seed: u64,
    /// Sequences begun per tick.
    pub begun_per_tick: usize,
    /// Ticks after a sequence until it is learned from.
    pub delay_ticks: u32,
    /// Ticks between two steps.
    pub every_ticks: u64,
    /// Steps until a candidate is judged.
    pub judge_steps: u32,
    /// Learning rate.
    pub rate: f64,
    /// A step that takes longer makes the next one wait in proportion.
    pub step_budget: Duration,
}

impl Default for TuneOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            begun_per_tick: 8,
            delay_ticks: 600,
            every_ticks: 5,
            judge_steps: 40,
            rate: 1e-3,
            step_budget: Duration::from_millis(20),
        }
    }
}

/// What came of judging a candidate: minus the mean log likelihoods per row of the sequences held out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The candidate is in use.
    Adopted {
        /// Of the model in use before.
        before: f32,
        /// Of the candidate.
        after: f32,
    },
    /// The candidate was dropped.
    Dropped {
        /// Of the model in use.
        before: f32,
        /// Of the candidate.
        after: f32,
    },
    /// The first model is in use again.
    Reverted {
        /// Of the model in use before.
        before: f32,
        /// Of the first model.
        after: f32,
    },
}

#[derive(Clone, Debug)]
struct Sequence {
    slot: u32,
    held_out: bool,
    first_tick: u64,
    /// The last tick in which the chunk was seen.
    seen_tick: u64,
    features: Vec<f32>,
    hidden: Vec<f32>,
    cell: Vec<f32>,
    /// Ticks after the first in which it was modified, while it is recorded and once after.
    modified: Vec<u32>,
}

impl Sequence {
    fn ticks(&self) -> usize {
        self.features.len() / FEATURES
    }

    fn outcome(&self, tick: usize) -> Outcome {
        let tick = tick as u32;
        match self.modified.iter().find(|modified| **modified > tick) {
            Some(modified) => Outcome::Modified(modified - tick),
            None => Outcome::Unmodified((self.seen_tick - self.first_tick) as u32 - tick),
        }
    }
}

const NOT_WATCHED: u32 = u32::MAX;

/// Watches, learns and judges; the model in use is that of the [`Lstm`] it is given.
pub struct Tuner {
    options: TuneOptions,
    random: Random,
    first: Model,
    trainer: Trainer,
    steps: u32,
    wait_ticks: u64,
    watched: Vec<Sequence>,
    /// Place in `watched` by row id.
    by_slot: Vec<u32>,
    ready: std::collections::VecDeque<Sequence>,
    last: Option<Verdict>,
    state: ModelState,
}

impl Tuner {
    /// Begins with a model.
    pub fn new(model: &Model, options: TuneOptions) -> Self {
        let checksum = model.checksum();
        let state = ModelState { checksum, first_checksum: checksum, ..ModelState::default() };
        Self {
            state,
            options,
            random: Random::new(options.seed),
            first: model.clone(),
            trainer: Trainer::new(model),
            steps: 0,
            wait_ticks: 0,
            watched: vec![],
            by_slot: vec![],
            ready: std::collections::VecDeque::new(),
            last: None,
        }
    }

    /// The last verdict.
    pub fn verdict(&self) -> Option<Verdict> {
        self.last
    }

    /// Sequences watched and ready.
    pub fn sequences(&self) -> (usize, usize) {
        (self.watched.len(), self.ready.len())
    }

    /// Takes a tick, before `lstm` does.
    pub fn observe(&mut self, tick: &Tick<'_>, lstm: &Lstm) {
        let now = tick.index;
        for row in 0..tick.len() {
            let slot = tick.slots[row] as usize;
            if slot >= self.by_slot.len() {
                self.by_slot.resize(slot + 1, NOT_WATCHED);
            }
            let place = self.by_slot[slot];
            if place == NOT_WATCHED || tick.fresh[row] {
                // Of a row id given to another chunk nothing more is seen.
                continue;
            }
            let sequence = &mut self.watched[place as usize];
            sequence.seen_tick = now;
            let recorded = sequence.ticks() < TICKS;
            let after = (now - sequence.first_tick) as u32;
            let open = recorded || sequence.modified.last().is_none_or(|m| *m < TICKS as u32);
            if tick.modified[row] && open {
                sequence.modified.push(after);
            }
            if recorded {
                sequence.features.extend_from_slice(tick.features_of(row));
            }
        }
        self.close(now);
        self.begin(tick, lstm);
    }

    /// Sequences whose outcome is known become ready.
    fn close(&mut self, now: u64) {
        let mut place = 0;
        while place < self.watched.len() {
            let sequence = &self.watched[place];
            let gone = sequence.seen_tick < now;
            let over = sequence.first_tick + TICKS as u64 + u64::from(self.options.delay_ticks);
            if !gone && now < over {
                place += 1;
                continue;
            }
            let sequence = self.watched.swap_remove(place);
            self.by_slot[sequence.slot as usize] = NOT_WATCHED;
            if let Some(moved) = self.watched.get(place) {
                self.by_slot[moved.slot as usize] = place as u32;
            }
            // One that ended early is short of ticks, or of knowledge: it would count as at rest.
            if !gone {
                if self.ready.len() == READY_MAX {
                    self.ready.pop_front();
                }
                self.ready.push_back(sequence);
            }
        }
    }

    fn begin(&mut self, tick: &Tick<'_>, lstm: &Lstm) {
        let size = lstm.model().shape.hidden;
        for draw in 0..2 * self.options.begun_per_tick {
            if tick.is_empty() || self.watched.len() >= WATCHED_MAX {
                return;
            }
            let row = self.random.index(tick.len());
            let slot = tick.slots[row] as usize;
            // Most rows rest: every second draw is for one that does not, if it hits one.
            if self.by_slot[slot] != NOT_WATCHED || (draw % 2 == 0 && tick.age_us[row] > 60_000_000)
            {
                continue;
            }
            let state = lstm.state(tick.slots[row]).filter(|_| !tick.fresh[row]);
            let zeros = vec![0.0; size];
            let (hidden, cell) = state.unwrap_or((&zeros, &zeros));
            let hash = Random::new(u64::from(tick.rows[row])).number();
            self.by_slot[slot] = self.watched.len() as u32;
            self.watched.push(Sequence {
                slot: tick.slots[row],
                held_out: hash.is_multiple_of(HELD_OUT),
                first_tick: tick.index,
                seen_tick: tick.index,
                features: tick.features_of(row).to_vec(),
                hidden: hidden.to_vec(),
                cell: cell.to_vec(),
                modified: vec![],
            });
        }
    }

    /// Learns a step if one is due, and judges when it is time; `lstm` then goes on with the better
    /// model.
    pub fn work(&mut self, tick: u64, lstm: &mut Lstm) -> Option<Verdict> {
        if self.wait_ticks > 0 {
            self.wait_ticks -= 1;
            return None;
        }
        if !tick.is_multiple_of(self.options.every_ticks) {
            return None;
        }
        let learned: Vec<usize> = self.places(false);
        if learned.len() < LEARN_FROM || self.places(true).len() < JUDGE_FROM {
            return None;
        }
        let began = Instant::now();
        let rows: Vec<_> = (0..ROWS).map(|_| learned[self.random.index(learned.len())]).collect();
        let batch = self.batch(&rows, lstm.model());
        self.trainer.learn(&batch, self.options.rate);
        let budget = self.options.step_budget.as_nanos().max(1);
        self.wait_ticks = (began.elapsed().as_nanos() / budget) as u64 * self.options.every_ticks;
        self.steps += 1;
        self.state.steps += 1;
        if self.steps < self.options.judge_steps {
            return None;
        }
        self.steps = 0;
        let verdict = self.judge(lstm);
        match verdict {
            Verdict::Adopted { .. } => self.state.adopted += 1,
            Verdict::Dropped { .. } => self.state.dropped += 1,
            Verdict::Reverted { .. } => self.state.reverted += 1,
        }
        self.state.checksum = lstm.model().checksum();
        self.last = Some(verdict);
        self.last
    }

    /// Ready sequences by purpose, oldest first.
    fn places(&self, held_out: bool) -> Vec<usize> {
        (0..self.ready.len()).filter(|place| self.ready[*place].held_out == held_out).collect()
    }

    fn judge(&mut self, lstm: &mut Lstm) -> Verdict {
        let mut candidate = lstm.model().clone();
        self.trainer.store(&mut candidate);
        let before = self.loss(lstm.model());
        let first = self.loss(&self.first);
        let after = self.loss(&candidate);
        // A candidate that became infinite is not less than anything.
        let better = |than: f32, loss: f32| loss.is_finite() && loss < than * (1.0 - BETTER);
        let verdict = if better(before, after) && after < first {
            lstm.replace(candidate);
            return Verdict::Adopted { before, after };
        } else if better(before, first) {
            lstm.replace(self.first.clone());
            Verdict::Reverted { before, after: first }
        } else {
            Verdict::Dropped { before, after }
        };
        self.trainer = Trainer::new(lstm.model());
        verdict
    }

    /// Minus the mean log likelihood per row of recent sequences that were not learned from.
    fn loss(&self, model: &Model) -> f32 {
        let net = Net::new(model, &Device::flex());
        let places = self.places(true);
        let recent = &places[places.len().saturating_sub(JUDGED_MAX)..];
        let batches = recent.chunks(ROWS);
        let sum: f32 = batches
            .map(|rows| {
                let batch = self.batch(rows, model);
                assess(&net, model.shape, &batch).loss * rows.len() as f32
            })
            .sum();
        sum / recent.len() as f32
    }

    fn batch(&self, places: &[usize], model: &Model) -> Batch {
        let rows = places.len();
        let mut batch = Batch {
            rows,
            ticks: TICKS,
            features: Vec::with_capacity(rows * TICKS * FEATURES),
            modified: Vec::with_capacity(rows * TICKS * BINS),
            exposure: Vec::with_capacity(rows * TICKS * BINS),
            hidden: vec![],
            cell: vec![],
        };
        for tick in 0..TICKS {
            for place in places {
                let sequence = &self.ready[*place];
                let features = &sequence.features[tick * FEATURES..][..FEATURES];
                model.normalise(features, &mut batch.features);
                let (modified, exposure) = sequence.outcome(tick).targets();
                batch.modified.extend(modified);
                batch.exposure.extend(exposure);
            }
        }
        for place in places {
            batch.hidden.extend(&self.ready[*place].hidden);
            batch.cell.extend(&self.ready[*place].cell);
        }
        batch
    }
}

/// An [`Lstm`] that learns on.
pub struct Tuned {
    lstm: Lstm,
    tuner: Tuner,
}

impl Tuned {
    /// Begins with a model.
    pub fn new(model: Model, options: TuneOptions) -> Self {
        let tuner = Tuner::new(&model, options);
        Self { lstm: Lstm::new(model), tuner }
    }

    /// What learns on.
    pub fn tuner(&self) -> &Tuner {
        &self.tuner
    }

    /// What predicts.
    pub fn lstm(&self) -> &Lstm {
        &self.lstm
    }
}

impl Predictor for Tuned {
    fn name(&self) -> &'static str {
        "tuned"
    }

    fn model(&self) -> Option<ModelState> {
        Some(self.tuner.state)
    }

    fn step(&mut self, tick: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        self.tuner.observe(tick, &self.lstm);
        self.lstm.step(tick, context, prediction);
        self.tuner.work(tick.index, &mut self.lstm);
    }

    fn again(&mut self, tick: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        self.lstm.again(tick, context, prediction);
    }
}

#[cfg(test)]
#[path = "tune_tests.rs"]
mod tests;
