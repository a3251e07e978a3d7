//! Predictors compared on a trace: every one sees every tick, and is measured by what came.

use serde::Serialize;

use super::future::{Future, each_tick};
use super::metrics::{CALIBRATION_BINS, Metrics};
use super::{Context, Forecast, Prediction, Predictor, WINDOWS, WINDOWS_US};
use crate::monitor::{Access, MonitorOptions};

/// What one predictor reached on one trace.
#[derive(Clone, Debug)]
pub struct Score {
    /// Its name.
    pub predictor: String,
    /// One per window of [`WINDOWS_US`].
    pub windows: [Metrics; WINDOWS],
}

/// Runs a trace, sorted by time, through `predictors`. Rows whose window reaches behind the end of
/// the trace do not count for it.
pub fn evaluate(
    accesses: &[Access],
    options: MonitorOptions,
    predictors: &mut [Box<dyn Predictor>],
) -> Vec<Score> {
    let future = Future::new(accesses, options.tick_us);
    let mut scores: Vec<_> = predictors
        .iter()
        .map(|predictor| Score {
            predictor: predictor.name().to_owned(),
            windows: std::array::from_fn(|_| Metrics::default()),
        })
        .collect();
    let windows = WINDOWS_US.map(|window_us| (window_us / options.tick_us) as u32);
    // The measures here do not depend on it.
    let context = Context::new(Forecast::known(600_000_000));
    let mut prediction = Prediction::default();
    let mut came = vec![];
    each_tick(accesses, options, |tick| {
        came.clear();
        came.extend(tick.rows.iter().map(|chunk| {
            let outcome = future.after(*chunk, tick.index as u32);
            windows.map(|window| outcome.within(window))
        }));
        for (predictor, score) in predictors.iter_mut().zip(&mut scores) {
            predictor.step(tick, &context, &mut prediction);
            for (p, came) in prediction.p_modify.iter().zip(&came) {
                for window in 0..WINDOWS {
                    // A modification before the end counts, but only where its absence would have
                    // been known as well.
                    let known = tick.index + u64::from(windows[window]) < u64::from(future.ticks());
                    if let (true, Some(came)) = (known, came[window]) {
                        score.windows[window].add(p[window], came);
                    }
                }
            }
        }
    });
    scores
}

/// A line of the table: one predictor, one window, one trace.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Trace.
    pub trace: String,
    /// Nothing was learned from it.
    pub held_out: bool,
    /// Window in seconds.
    pub window_s: u64,
    /// Predictor.
    pub predictor: String,
    /// Predictions compared.
    pub count: u64,
    /// Share that came true.
    pub base_rate: f64,
    /// Mean log loss in nats.
    pub log_loss: f64,
    /// Brier score.
    pub brier: f64,
    /// Area under the precision-recall curve.
    pub pr_auc: f64,
    /// Expected calibration error over ten bins.
    pub calibration_error: f64,
    /// Per tenth of probability: predictions, mean probability, share that came true.
    pub calibration: [(u64, f64, f64); CALIBRATION_BINS],
}

/// The lines of a trace, by window and then predictor; windows that nothing is known of are left
/// out.
pub fn lines(trace: &str, held_out: bool, scores: &[Score]) -> Vec<Line> {
    let mut lines = vec![];
    for (window, window_us) in WINDOWS_US.iter().enumerate() {
        for score in scores {
            let metrics = &score.windows[window];
            if metrics.count() == 0 {
                continue;
            }
            lines.push(Line {
                trace: trace.to_owned(),
                held_out,
                window_s: window_us / 1_000_000,
                predictor: score.predictor.clone(),
                count: metrics.count(),
                base_rate: metrics.base_rate(),
                log_loss: metrics.log_loss(),
                brier: metrics.brier(),
                pr_auc: metrics.pr_auc(),
                calibration_error: metrics.calibration_error(),
                calibration: metrics
                    .calibration()
                    .map(|bin| (bin.count, bin.predicted, bin.observed)),
            });
        }
    }
    lines
}
