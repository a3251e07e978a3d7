//! How good predicted probabilities are.

/// Probabilities are kept this far from 0 and 1 before their logarithm is taken: a predictor that
/// is certain and wrong pays for it, but not infinitely.
const CERTAIN: f64 = 1e-6;

/// Bins of the calibration table.
pub const CALIBRATION_BINS: usize = 10;

/// Ranks are told apart by the log odds, from `-RANK_ODDS_MAX` to `RANK_ODDS_MAX`.
const RANK_ODDS_MAX: f64 = 14.0;
const RANKS: usize = 2048;

/// Predictions of one kind compared with what came, summed up.
#[derive(Clone, Debug)]
pub struct Metrics {
    count: u64,
    positives: u64,
    log_loss: f64,
    brier: f64,
    /// Number, sum of probabilities, and positives per tenth of probability.
    calibration: [(u64, f64, u64); CALIBRATION_BINS],
    /// Negatives and positives per rank of the probability.
    ranks: Vec<[u64; 2]>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            count: 0,
            positives: 0,
            log_loss: 0.0,
            brier: 0.0,
            calibration: [(0, 0.0, 0); CALIBRATION_BINS],
            ranks: vec![[0; 2]; RANKS],
        }
    }
}

/// One bin of the calibration table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CalibrationBin {
    /// Predictions in it.
    pub count: u64,
    /// Mean probability they gave.
    pub predicted: f64,
    /// Share of them that came true.
    pub observed: f64,
}

impl Metrics {
    /// Adds a prediction and whether it came true.
    pub fn add(&mut self, p: f32, came: bool) {
        let p = f64::from(p).clamp(0.0, 1.0);
        self.count += 1;
        self.positives += u64::from(came);
        let y = f64::from(u8::from(came));
        self.log_loss -= (if came { p } else { 1.0 - p }).clamp(CERTAIN, 1.0).ln();
        self.brier += (p - y) * (p - y);
        let bin = ((p * CALIBRATION_BINS as f64) as usize).min(CALIBRATION_BINS - 1);
        let bin = &mut self.calibration[bin];
        *bin = (bin.0 + 1, bin.1 + p, bin.2 + u64::from(came));
        let odds = (p.max(1e-12) / (1.0 - p).max(1e-12)).ln();
        let rank = (odds / RANK_ODDS_MAX + 1.0) / 2.0 * RANKS as f64;
        self.ranks[(rank.max(0.0) as usize).min(RANKS - 1)][usize::from(came)] += 1;
    }

    /// Adds all that `other` has seen.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.positives += other.positives;
        self.log_loss += other.log_loss;
        self.brier += other.brier;
        for (bin, more) in self.calibration.iter_mut().zip(&other.calibration) {
            *bin = (bin.0 + more.0, bin.1 + more.1, bin.2 + more.2);
        }
        for (rank, more) in self.ranks.iter_mut().zip(&other.ranks) {
            *rank = [rank[0] + more[0], rank[1] + more[1]];
        }
    }

    /// Predictions added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Share of predictions that came true.
    pub fn base_rate(&self) -> f64 {
        self.positives as f64 / self.count.max(1) as f64
    }

    /// Mean log loss in nats; the less the better.
    pub fn log_loss(&self) -> f64 {
        self.log_loss / self.count.max(1) as f64
    }

    /// Log loss of always answering the base rate: what a predictor that knows nothing of the
    /// single chunk reaches.
    pub fn base_log_loss(&self) -> f64 {
        let p = self.base_rate();
        let term = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
        term(p) + term(1.0 - p)
    }

    /// Brier score: mean squared error of the probabilities; the less the better.
    pub fn brier(&self) -> f64 {
        self.brier / self.count.max(1) as f64
    }

    /// Area under the precision-recall curve as average precision; the more the better, and the
    /// base rate for a predictor that guesses. Predictions with log odds within 1/73 of each other
    /// count as tied.
    pub fn pr_auc(&self) -> f64 {
        let (mut seen, mut found, mut area) = (0, 0, 0.0);
        for [negatives, positives] in self.ranks.iter().rev() {
            seen += negatives + positives;
            found += positives;
            if *positives > 0 {
                area += *positives as f64 * found as f64 / seen as f64;
            }
        }
        area / self.positives.max(1) as f64
    }

    /// The calibration table: tenths of probability from 0 on.
    pub fn calibration(&self) -> [CalibrationBin; CALIBRATION_BINS] {
        self.calibration.map(|(count, predicted, came)| CalibrationBin {
            count,
            predicted: predicted / count.max(1) as f64,
            observed: came as f64 / count.max(1) as f64,
        })
    }

    /// Expected calibration error: mean distance of predicted from observed over the bins,
    /// weighted by their predictions.
    pub fn calibration_error(&self) -> f64 {
        let sum: f64 = self
            .calibration()
            .iter()
            .map(|bin| bin.count as f64 * (bin.predicted - bin.observed).abs())
            .sum();
        sum / self.count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::random::Random;

    fn of(pairs: &[(f32, bool)]) -> Metrics {
        let mut metrics = Metrics::default();
        for &(p, came) in pairs {
            metrics.add(p, came);
        }
        metrics
    }

    #[test]
    fn losses_by_hand() {
        let metrics = of(&[(0.8, true), (0.4, false)]);
        let expected = -(0.8_f64.ln() + 0.6_f64.ln()) / 2.0;
        assert!((metrics.log_loss() - expected).abs() < 1e-6);
        assert!((metrics.brier() - (0.04 + 0.16) / 2.0).abs() < 1e-6);
        assert!((metrics.base_log_loss() - 2.0_f64.ln()).abs() < 1e-9);
        // Certain and wrong: bounded.
        assert!(of(&[(0.0, true), (1.0, false)]).log_loss() < 14.0);
    }

    #[test]
    fn precision_recall_by_hand() {
        // In order: right, wrong, right. Precision 1 at the first, 2/3 at the second.
        let metrics = of(&[(0.9, true), (0.6, false), (0.3, true), (0.1, false)]);
        assert!((metrics.pr_auc() - (1.0 + 2.0 / 3.0) / 2.0).abs() < 1e-9);
        // All tied: the base rate.
        let tied = of(&[(0.5, true), (0.5, false), (0.5, false), (0.5, false)]);
        assert!((tied.pr_auc() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn true_probabilities_are_calibrated_and_others_are_not() {
        let mut random = Random::new(3);
        let (mut right, mut wrong) = (Metrics::default(), Metrics::default());
        for _ in 0..200_000 {
            let p = random.unit();
            let came = random.chance(p);
            right.add(p as f32, came);
            wrong.add((p * p) as f32, came);
        }
        assert!(right.calibration_error() < 0.01, "{}", right.calibration_error());
        assert!(wrong.calibration_error() > 0.1, "{}", wrong.calibration_error());
        assert!(right.log_loss() < wrong.log_loss() && right.brier() < wrong.brier());
        assert!((right.pr_auc() - wrong.pr_auc()).abs() < 0.01, "the order is the same");
    }

    #[test]
    fn merged_is_as_if_added_to_one() {
        let pairs = [(0.8, true), (0.4, false), (0.2, true), (0.99, true)];
        let mut merged = of(&pairs[..2]);
        merged.merge(&of(&pairs[2..]));
        let one = of(&pairs);
        assert!((merged.log_loss() - one.log_loss()).abs() < 1e-12);
        assert_eq!((merged.count(), merged.calibration()), (one.count(), one.calibration()));
        assert!((merged.pr_auc() - one.pr_auc()).abs() < 1e-12);
    }
}
