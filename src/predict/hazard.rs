//! Discrete-time hazards over log-spaced bins: what a model says about a chunk's next modification.
//!
//! Time is counted in ticks from now. Bin `k` holds the ticks after `2^(k-1)` up to `2^k` (bin 0:
//! the next tick), so that one set of numbers serves windows of seconds and of hours. A model gives
//! one *cumulative hazard* per bin: minus the logarithm of the probability to get through the bin
//! unmodified, having reached it. Inside a bin the hazard is taken as constant; behind the last one,
//! each doubling of time is taken to be as dangerous as that bin. From this follow survival within any
//! window, the expected time to the next modification, and, since a censored chunk has simply
//! survived for as long as it was seen, the likelihood of what was observed.
//! (Discrete-time survival: Singer and Willett, 1993.)

use std::f32::consts::LN_2;

use super::{Prediction, Race, WINDOWS, WINDOWS_US};

/// Number of bins.
pub const BINS: usize = 12;

/// The last tick of the last bin.
pub const HORIZON_TICKS: u32 = 1 << (BINS - 1);

/// One cumulative hazard per bin, each 0 or more.
pub type Hazards = [f32; BINS];

/// First and last edge of a bin, in ticks: a modification after the first and not after the last
/// belongs to it.
pub fn edges(bin: usize) -> (u32, u32) {
    (if bin == 0 { 0 } else { 1 << (bin - 1) }, 1 << bin)
}

/// The bin that holds a modification `ticks` from now, if one does.
pub fn bin_of(ticks: u32) -> Option<usize> {
    let bin = (u32::BITS - ticks.max(1).saturating_sub(1).leading_zeros()) as usize;
    (bin < BINS).then_some(bin)
}

/// How much of each bin a window covers: the cumulative hazard of the window is the sum of these
/// times the bins' own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    shares: [f32; BINS],
}

impl Window {
    /// A window of `ticks`, which may be a fraction and may lie behind the horizon.
    pub fn new(ticks: f32) -> Self {
        let ticks = ticks.max(0.0);
        let mut shares = std::array::from_fn(|bin| {
            let (first, last) = edges(bin);
            ((ticks - first as f32) / (last - first) as f32).clamp(0.0, 1.0)
        });
        let horizon = HORIZON_TICKS as f32;
        if ticks > horizon {
            shares[BINS - 1] += (ticks / horizon).ln() / LN_2;
        }
        Self { shares }
    }

    /// The cumulative hazard of the window.
    pub fn cumulative(&self, hazards: &Hazards) -> f32 {
        hazards.iter().zip(&self.shares).map(|(hazard, share)| hazard * share).sum()
    }

    /// Probability that nothing is modified within the window.
    pub fn survival(&self, hazards: &Hazards) -> f32 {
        (-self.cumulative(hazards)).exp()
    }

    /// Probability of a modification within the window.
    pub fn p_modify(&self, hazards: &Hazards) -> f32 {
        -(-self.cumulative(hazards)).exp_m1()
    }
}

/// Expected time to the next modification in ticks, where all that comes after the horizon counts
/// as the horizon: only the order matters to those who ask.
pub fn expected_ticks(hazards: &Hazards) -> f32 {
    let mut survival = 1.0;
    let mut sum = 0.0;
    for (bin, &hazard) in hazards.iter().enumerate() {
        let (first, last) = edges(bin);
        let width = (last - first) as f32;
        // The mean survival inside the bin; the limit for no hazard at all is 1.
        let mean = if hazard < 1e-4 { 1.0 - hazard / 2.0 } else { -(-hazard).exp_m1() / hazard };
        sum += width * survival * mean;
        survival *= (-hazard).exp();
    }
    sum
}

/// The windows that a tick's rows are asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    windows: [Window; WINDOWS],
    race: Race,
    /// The times that the race asks for.
    times: Vec<Window>,
}

impl Plan {
    /// For a race, and hazards per tick of `tick_ms`.
    pub fn new(race: Race, tick_ms: u32) -> Self {
        let window = |us: u64| Window::new(us as f32 / (tick_ms as f32 * 1000.0));
        Self { windows: WINDOWS_US.map(window), times: race.times_us().map(window).collect(), race }
    }

    /// Adds a row.
    pub fn push(&self, hazards: &Hazards, prediction: &mut Prediction) {
        prediction.p_modify.push(self.windows.map(|window| window.p_modify(hazards)));
        let unmodified = self.times.iter().map(|window| window.survival(hazards));
        prediction.score.push(self.race.score(unmodified));
    }
}

/// What was seen of a chunk after some tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its next modification came this many ticks later, 1 or more.
    Modified(u32),
    /// It was not modified for this many ticks, and then no longer watched.
    Unmodified(u32),
}

impl Outcome {
    /// The likelihood's terms: for each bin whether the modification was in it, and how much of
    /// the bin was lived through or ended there (0: nothing is known about this bin).
    ///
    /// The log likelihood of the outcome is the sum over the bins of `exposure` times
    /// `ln(1 - exp(-hazard))` where the modification is, and of `-exposure * hazard` elsewhere.
    pub fn targets(self) -> ([f32; BINS], [f32; BINS]) {
        let mut modified = [0.0; BINS];
        let (Self::Modified(ticks) | Self::Unmodified(ticks)) = self;
        let mut exposure = Window::new(ticks as f32).shares;
        exposure[BINS - 1] = exposure[BINS - 1].min(1.0);
        if let (Self::Modified(_), Some(bin)) = (self, bin_of(ticks)) {
            modified[bin] = 1.0;
            exposure[bin] = 1.0;
        }
        (modified, exposure)
    }

    /// Whether a modification came within `ticks`, if that is known.
    pub fn within(self, ticks: u32) -> Option<bool> {
        match self {
            Self::Modified(after) => Some(after <= ticks),
            Self::Unmodified(seen) => (seen >= ticks).then_some(false),
        }
    }
}

/// `ln(1 + exp(x))`: the cumulative hazard that a logit stands for, since `1 / (1 + exp(-x))` is
/// the probability of a modification in the bin.
pub fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAT: Hazards = [0.01; BINS];

    #[test]
    fn bins_and_edges_agree() {
        for ticks in 1..=HORIZON_TICKS {
            let bin = bin_of(ticks).expect("within the horizon");
            let (first, last) = edges(bin);
            assert!(first < ticks && ticks <= last, "{ticks} is not in bin {bin}");
        }
        assert_eq!(bin_of(HORIZON_TICKS + 1), None);
        assert_eq!(bin_of(u32::MAX), None);
    }

    #[test]
    fn a_window_is_the_sum_of_its_bins() {
        let hazards: Hazards = std::array::from_fn(|bin| 0.1 * (bin + 1) as f32);
        assert!((Window::new(4.0).cumulative(&hazards) - 0.6).abs() < 1e-6);
        // Half of the bin of 5 to 8 ticks.
        assert!((Window::new(6.0).cumulative(&hazards) - 0.8).abs() < 1e-6);
        assert!(Window::new(0.0).cumulative(&hazards).abs() < 1e-9);
        // One doubling behind the horizon.
        let all: f32 = hazards.iter().sum();
        assert!((Window::new(4096.0).cumulative(&hazards) - all - 1.2).abs() < 1e-4);
    }

    #[test]
    fn probabilities_grow_with_the_window_and_stay_probabilities() {
        let mut before = 0.0;
        for tenths in 0..50_000 {
            let p = Window::new(tenths as f32 / 10.0).p_modify(&FLAT);
            assert!((before..=1.0).contains(&p), "{p} after {before} at {tenths}");
            before = p;
        }
    }

    #[test]
    fn expected_time_of_a_constant_rate() {
        // A rate of 1/20 per tick: mean 20 ticks, far within the horizon.
        let hazards = std::array::from_fn(|bin| {
            let (first, last) = edges(bin);
            (last - first) as f32 / 20.0
        });
        assert!((expected_ticks(&hazards) - 20.0).abs() < 0.01, "{}", expected_ticks(&hazards));
        assert!((expected_ticks(&[0.0; BINS]) - HORIZON_TICKS as f32).abs() < 1.0);
    }

    #[test]
    fn what_was_seen_becomes_likelihood_terms() {
        // Doubled, to compare whole numbers.
        let targets = |outcome: Outcome| {
            let (modified, exposure) = outcome.targets();
            (modified.map(|x| (2.0 * x) as u32), exposure.map(|x| (2.0 * x) as u32))
        };
        let (modified, exposure) = targets(Outcome::Modified(6));
        assert_eq!(&modified[..5], &[0, 0, 0, 2, 0]);
        assert_eq!(&exposure[..5], &[2, 2, 2, 2, 0]);
        let (modified, exposure) = targets(Outcome::Unmodified(6));
        assert_eq!(modified, [0; BINS]);
        assert_eq!(&exposure[..5], &[2, 2, 2, 1, 0]);
        assert_eq!(targets(Outcome::Modified(1_000_000)), ([0; BINS], [2; BINS]));
    }

    #[test]
    fn what_is_known_within_a_window() {
        assert_eq!(Outcome::Modified(10).within(10), Some(true));
        assert_eq!(Outcome::Modified(11).within(10), Some(false));
        assert_eq!(Outcome::Unmodified(10).within(10), Some(false));
        assert_eq!(Outcome::Unmodified(9).within(10), None);
    }

    #[test]
    fn softplus_is_minus_the_logarithm_of_not() {
        for x in [-20.0_f32, -3.0, 0.0, 2.0, 30.0] {
            let exact = f64::from(x).exp().ln_1p();
            assert!((f64::from(softplus(x)) - exact).abs() <= 1e-6 * exact, "{x}");
        }
    }
}
