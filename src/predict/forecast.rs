//! When the next snapshot will be: known from a schedule, or estimated from past ones.

/// Times per forecast: enough to tell early from late, few enough to weigh for each chunk.
const TIMES_MAX: usize = 8;

/// Past intervals that an estimate is made from.
const INTERVALS_MAX: usize = 32;

/// The interval expected before two snapshots were seen: snapshots every 10 min are common.
const FIRST_INTERVAL_US: u64 = 600_000_000;

/// A distribution of the time to the next snapshot, as a few times with their probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    times: Vec<(u64, f32)>,
    known: bool,
}

impl Forecast {
    /// The next snapshot will be in `in_us`.
    pub fn known(in_us: u64) -> Self {
        Self { times: vec![(in_us, 1.0)], known: true }
    }

    /// Times from now in microseconds, with their probabilities; those sum up to 1.
    pub fn times(&self) -> &[(u64, f32)] {
        &self.times
    }

    /// Time to the next snapshot if it is known for sure.
    pub fn known_us(&self) -> Option<u64> {
        self.known.then(|| self.times[0].0)
    }

    /// The mean of `value` at the time of the next snapshot.
    pub fn expect(&self, value: impl Fn(u64) -> f32) -> f32 {
        self.times.iter().map(|&(in_us, probability)| probability * value(in_us)).sum()
    }
}

/// Snapshots that nobody expects: so many per second, beside those that are. One in 20 of those
/// taken every 10 min.
const UNEXPECTED_PER_S: f32 = 0.05 / 600.0;

/// Whether to copy now or to look again later, for one horizon: which comes first, the next
/// snapshot or the next modification, if one of them comes within it?
///
/// Waiting costs nothing while no snapshot is near, and shows whether the chunk is written again. The
/// probability that it rests until the snapshot says nothing of that: at 0.9 a copy is probably
/// used, and still better made later. (One-step look-ahead rule of optimal stopping.)
#[derive(Clone, Debug, PartialEq)]
pub struct Race {
    /// Times of a snapshot within the horizon, with their probabilities.
    within: Vec<(u64, f32)>,
    /// Probability that it comes later.
    beyond: f32,
    unexpected: f32,
    horizon_us: u64,
}

impl Race {
    /// Weighs the next `horizon_us`.
    pub fn new(forecast: &Forecast, horizon_us: u64) -> Self {
        let within: Vec<_> =
            forecast.times.iter().copied().filter(|(in_us, _)| *in_us <= horizon_us).collect();
        let sum: f32 = within.iter().map(|(_, probability)| probability).sum();
        let unexpected = UNEXPECTED_PER_S * horizon_us as f32 / 1e6;
        Self { within, beyond: (1.0 - sum).max(0.0), unexpected, horizon_us }
    }

    /// Times that survival is asked for: those of snapshots, and last the horizon's end.
    pub fn times_us(&self) -> impl Iterator<Item = u64> {
        self.within.iter().map(|(in_us, _)| *in_us).chain([self.horizon_us])
    }

    /// The probability that the snapshot comes first, from those to stay unmodified until
    /// [`Self::times_us`].
    pub fn score(&self, mut unmodified: impl Iterator<Item = f32>) -> f32 {
        let (mut first, mut second) = (0.0, 0.0);
        for (_, probability) in &self.within {
            let rests = unmodified.next().unwrap_or(0.0);
            first += probability * rests;
            second += probability * (1.0 - rests);
        }
        let rests = unmodified.next().unwrap_or(0.0);
        first += self.unexpected * (1.0 + rests) / 2.0;
        second += self.beyond * (1.0 - rests);
        first / (first + second).max(f32::MIN_POSITIVE)
    }
}

/// Learns when snapshots are taken.
#[derive(Clone, Debug, Default)]
pub struct SnapshotTimes {
    cut_us: Option<u64>,
    /// Between cuts, newest last.
    intervals_us: Vec<u64>,
    planned: Option<u64>,
}

impl SnapshotTimes {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A snapshot was cut at `now_us`.
    pub fn cut(&mut self, now_us: u64) {
        if let Some(last_us) = self.cut_us.replace(now_us) {
            if self.intervals_us.len() == INTERVALS_MAX {
                self.intervals_us.remove(0);
            }
            self.intervals_us.push(now_us.saturating_sub(last_us));
        }
        self.planned = self.planned.filter(|&next_us| next_us > now_us);
    }

    /// The next snapshot is planned for `next_us`, or nothing is planned.
    pub fn schedule(&mut self, next_us: Option<u64>) {
        self.planned = next_us;
    }

    /// What is to be expected at `now_us`: the plan, else what past intervals leave possible, else
    /// an exponential distribution.
    pub fn forecast(&self, now_us: u64) -> Forecast {
        if let Some(next_us) = self.planned.filter(|&next_us| next_us >= now_us) {
            return Forecast::known(next_us - now_us);
        }
        let elapsed_us = now_us.saturating_sub(self.cut_us.unwrap_or(now_us));
        let mut left_us: Vec<u64> = (self.intervals_us.iter())
            .filter(|&&interval_us| interval_us > elapsed_us)
            .map(|interval_us| interval_us - elapsed_us)
            .collect();
        if left_us.is_empty() {
            // Later than ever before, or none before: as likely at one moment as at any other.
            let mean_us = match self.intervals_us.len() as u64 {
                0 => FIRST_INTERVAL_US,
                count => self.intervals_us.iter().sum::<u64>() / count,
            };
            return exponential(mean_us);
        }
        left_us.sort_unstable();
        let count = left_us.len().min(TIMES_MAX);
        // Middles of equal shares.
        let middle = |share: usize| left_us[(2 * share + 1) * left_us.len() / (2 * count)];
        let times = (0..count).map(|share| (middle(share), 1.0 / count as f32)).collect();
        Forecast { times, known: false }
    }
}

#[expect(clippy::cast_sign_loss, reason = "a quantile of a time is not negative")]
fn exponential(mean_us: u64) -> Forecast {
    let quantile = |share: usize| {
        let share = (share as f64 + 0.5) / TIMES_MAX as f64;
        -(1.0 - share).ln() * mean_us as f64
    };
    let times =
        (0..TIMES_MAX).map(|share| (quantile(share) as u64, 1.0 / TIMES_MAX as f32)).collect();
    Forecast { times, known: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(forecast: &Forecast) -> f32 {
        forecast.expect(|_| 1.0)
    }

    #[test]
    fn a_plan_is_known_until_it_has_passed() {
        let mut times = SnapshotTimes::new();
        times.schedule(Some(500));
        assert_eq!(times.forecast(100).known_us(), Some(400));
        times.cut(500);
        assert_eq!(times.forecast(501).known_us(), None);
    }

    #[test]
    fn a_copy_waits_while_no_snapshot_is_near() {
        let second_us = 1_000_000;
        let score = |in_s: u64, gap_s: f32| {
            let race = Race::new(&Forecast::known(in_s * second_us), 60 * second_us);
            let rests = race.times_us().map(|us| (-(us as f32) / 1e6 / gap_s).exp());
            race.score(rests.collect::<Vec<_>>().into_iter())
        };
        // Written every 20 min: near the snapshot it is copied, long before only what rests is.
        assert!(score(30, 1200.0) > 0.9, "{}", score(30, 1200.0));
        assert!(score(500, 1200.0) < 0.2, "{}", score(500, 1200.0));
        assert!(score(500, 1e6) > 0.9, "{}", score(500, 1e6));
        assert!(score(30, 5.0) < 0.1, "{}", score(30, 5.0));
        // The closer the snapshot and the rarer the writes, the better; never out of bounds.
        for gap_s in [0.1, 1.0, 60.0, 1e4, 1e9] {
            let scores = [1000, 61, 60, 20, 1].map(|in_s| score(in_s, gap_s));
            assert!(scores.is_sorted(), "{scores:?}");
            assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
        }
    }

    #[test]
    fn past_intervals_say_what_is_left() {
        let mut times = SnapshotTimes::new();
        for cut in [0, 100, 200, 300, 900] {
            times.cut(cut);
        }
        // Intervals 100, 100, 100, 600; after 50, all of them are possible.
        let early = times.forecast(950);
        assert!((sum(&early) - 1.0).abs() < 1e-6);
        assert_eq!(early.times(), [(50, 0.25), (50, 0.25), (50, 0.25), (550, 0.25)]);
        assert_eq!(times.forecast(1100).times(), [(400, 1.0)]);
        assert_eq!(times.forecast(1100).known_us(), None);
        let late = times.forecast(2000);
        assert_eq!(late.times().len(), TIMES_MAX);
        let mean = late.expect(|in_us| in_us as f32);
        assert!((180.0..230.0).contains(&mean), "the mean of the intervals is 225: {mean}");
    }
}
