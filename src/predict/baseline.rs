//! Predictors without a model.

use super::{Context, Prediction, Predictor};
use crate::monitor::{HALF_LIVES_S, SCALES, Tick};

/// Weight of the longest scale's rate before anything was seen: one modification in so many
/// seconds. No chunk is ever certain to rest.
const PRIOR_GAP_S: f32 = 8192.0;

/// `rate`: modifications are a Poisson process whose rate is the mean of what the scales of
/// decay show.
#[derive(Clone, Debug, Default)]
pub struct Rate;

/// Windows with a modification per second, from the counts decayed at each scale.
fn rate_per_s(decayed: &[f32; SCALES]) -> f32 {
    // A steady stream of r windows a second makes a count of r times the half-life / ln 2.
    let scales = decayed.iter().zip(HALF_LIVES_S);
    let mean = scales
        .map(|(decayed, half_life_s)| decayed * std::f32::consts::LN_2 / half_life_s)
        .sum::<f32>()
        / SCALES as f32;
    mean + 1.0 / PRIOR_GAP_S
}

impl Predictor for Rate {
    fn name(&self) -> &'static str {
        "rate"
    }

    fn step(&mut self, tick: &Tick<'_>, context: &Context, prediction: &mut Prediction) {
        prediction.clear();
        for decayed in tick.decayed {
            let rate = rate_per_s(decayed);
            let unmodified = |in_us: u64| (-rate * in_us as f32 / 1e6).exp();
            prediction.push(&context.forecast, unmodified);
        }
    }
}
