//! `logistic`: the hazard head without the network, straight from the features. The baseline that
//! shows what the LSTM's memory is worth.

use super::hazard::{BINS, Hazards, Plan, softplus};
use super::model::Model;
use super::{Context, Prediction, Predictor};
use crate::monitor::Tick;

/// Steps of the running means of gradient and squared gradient (Kingma and Ba, 2014).
const MOMENTUM: f32 = 0.9;
const SQUARES: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// Hazards of one row from its features as given by the monitor. `scaled` is room to work in.
pub fn hazards(model: &Model, features: &[f32], scaled: &mut Vec<f32>) -> Hazards {
    scaled.clear();
    model.normalise(features, scaled);
    let mut logits = [0.0; BINS];
    logits.copy_from_slice(&model.logistic_bias);
    for (x, weights) in scaled.iter().zip(model.logistic.chunks_exact(BINS)) {
        for (logit, weight) in logits.iter_mut().zip(weights) {
            *logit += x * weight;
        }
    }
    logits.map(softplus)
}

/// The baseline at work.
#[derive(Clone, Debug)]
pub struct Logistic {
    model: Model,
    scaled: Vec<f32>,
}

impl Logistic {
    /// With the linear part of `model`.
    pub fn new(model: Model) -> Self {
        Self { model, scaled: vec![] }
    }
}

impl Predictor for Logistic {
    fn name(&self) -> &'static str {
        "logistic"
    }

    fn step(&mut self, tick: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        let plan = Plan::new(context.race(), self.model.tick_ms);
        prediction.clear();
        for row in 0..tick.len() {
            let hazards = hazards(&self.model, tick.features_of(row), &mut self.scaled);
            plan.push(&hazards, prediction);
        }
    }
}

/// Learns `logistic` and `logistic_bias` of a model with Adam.
#[derive(Clone, Debug)]
pub struct LogisticTrainer {
    /// `[features + 1, BINS]`, the bias last.
    weights: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
    steps: i32,
}

impl LogisticTrainer {
    /// Starts with what `model` has.
    pub fn new(model: &Model) -> Self {
        let weights = [model.logistic.as_slice(), &model.logistic_bias].concat();
        let zeros = vec![0.0; weights.len()];
        Self { weights, mean: zeros.clone(), square: zeros, steps: 0 }
    }

    /// Learns from rows: `features` scaled, `modified` and `exposure` as
    /// [`targets`](super::hazard::Outcome::targets) has them.
    pub fn learn(&mut self, features: &[f32], modified: &[f32], exposure: &[f32], rate: f32) {
        let width = self.weights.len() / BINS - 1;
        let rows = features.len() / width;
        let mut gradient = vec![0.0; self.weights.len()];
        let rows_of = features
            .chunks_exact(width)
            .zip(modified.chunks_exact(BINS).zip(exposure.chunks_exact(BINS)));
        for (x, (modified, exposure)) in rows_of {
            let mut logits = [0.0; BINS];
            logits.copy_from_slice(&self.weights[width * BINS..]);
            for (x, weights) in x.iter().zip(self.weights.chunks_exact(BINS)) {
                for (logit, weight) in logits.iter_mut().zip(weights) {
                    *logit += x * weight;
                }
            }
            let mut wrong = [0.0; BINS];
            for bin in 0..BINS {
                let p = 1.0 / (1.0 + (-logits[bin]).exp());
                wrong[bin] = exposure[bin] * (p - modified[bin]) / rows as f32;
            }
            for (x, gradient) in x.iter().chain(&[1.0]).zip(gradient.chunks_exact_mut(BINS)) {
                for (gradient, wrong) in gradient.iter_mut().zip(wrong) {
                    *gradient += x * wrong;
                }
            }
        }
        self.adam(&gradient, rate);
    }

    fn adam(&mut self, gradient: &[f32], rate: f32) {
        self.steps += 1;
        let (young, young_square) =
            (1.0 - MOMENTUM.powi(self.steps), 1.0 - SQUARES.powi(self.steps));
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((weight, gradient), (mean, square)) in
            self.weights.iter_mut().zip(gradient).zip(moments)
        {
            *mean = MOMENTUM * *mean + (1.0 - MOMENTUM) * gradient;
            *square = SQUARES * *square + (1.0 - SQUARES) * gradient * gradient;
            *weight -= rate * (*mean / young) / ((*square / young_square).sqrt() + EPSILON);
        }
    }

    /// Puts the weights into `model`.
    pub fn store(&self, model: &mut Model) {
        let (weights, bias) = self.weights.split_at(self.weights.len() - BINS);
        model.logistic.copy_from_slice(weights);
        model.logistic_bias.copy_from_slice(bias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::hazard::{Outcome, Window};
    use crate::predict::model::Shape;
    use crate::predict::random::Random;

    #[test]
    fn learns_two_rates_told_by_a_feature() {
        let mut model = Model::zeros(Shape { features: 2, hidden: 1 }, 1000);
        model.scale.fill(1.0);
        let mut trainer = LogisticTrainer::new(&model);
        let mut random = Random::new(1);
        for step in 0..600 {
            let (mut features, mut modified, mut exposure) = (vec![], vec![], vec![]);
            for _ in 0..64 {
                let busy = random.chance(0.5);
                let mean = if busy { 5.0 } else { 100.0 };
                let ticks = random.exponential(mean).ceil().max(1.0) as u32;
                // Watched for a while only.
                let seen = random.below(400) as u32 + 1;
                let outcome = if ticks <= seen {
                    Outcome::Modified(ticks)
                } else {
                    Outcome::Unmodified(seen)
                };
                features.extend([f32::from(u8::from(busy)), random.unit() as f32]);
                let (m, e) = outcome.targets();
                modified.extend(m);
                exposure.extend(e);
            }
            trainer.learn(&features, &modified, &exposure, if step < 300 { 0.1 } else { 0.02 });
        }
        trainer.store(&mut model);
        let survival = |x: f32, ticks: u32| {
            let hazards = hazards(&model, &[x, 0.5], &mut vec![]);
            f64::from(Window::new(ticks as f32).survival(&hazards))
        };
        for ticks in [1, 8, 32, 128] {
            let exact = |mean: f64| (-f64::from(ticks) / mean).exp();
            assert!((survival(1.0, ticks) - exact(5.0)).abs() < 0.08, "busy, {ticks}");
            assert!((survival(0.0, ticks) - exact(100.0)).abs() < 0.08, "calm, {ticks}");
        }
    }
}
