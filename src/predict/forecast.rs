//! When the next snapshot will be: known from a schedule, or estimated from past ones.

/// Times per forecast: enough to tell early from late, few enough to weigh for each chunk.
const TIMES_MAX: usize = 8;

/// Past intervals that an estimate is made from.
const INTERVALS_MAX: usize = 32;

/// The interval expected before two snapshots were seen: snapshots every 10 min are common.
const FIRST_INTERVAL_US: u64 = 600_000_000;

/// A distribution of the time to the next snapshot: either at one of a few times, or at any moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    times: Vec<(u64, f32)>,
    /// Snapshots at no particular time, per second.
    any_time_per_s: f32,
    known: bool,
}

impl Forecast {
    /// The next snapshot will be in `in_us`.
    pub fn known(in_us: u64) -> Self {
        Self { times: vec![(in_us, 1.0)], any_time_per_s: UNEXPECTED_PER_S, known: true }
    }

    /// Times from now in microseconds, with their probabilities. What those lack of 1 is the
    /// probability that the next snapshot comes at no particular time.
    pub fn times(&self) -> &[(u64, f32)] {
        &self.times
    }

    /// Time to the next snapshot if it is known for sure.
    pub fn known_us(&self) -> Option<u64> {
        self.known.then(|| self.times[0].0)
    }

    /// Mean time to the next snapshot, in seconds.
    pub fn mean_s(&self) -> f32 {
        let (mut mean_s, mut left) = (0.0, 1.0);
        for (in_us, probability) in &self.times {
            mean_s += probability * *in_us as f32 / 1e6;
            left -= probability;
        }
        // The rate is that of both kinds of forecast, weighed.
        if left > 1e-3 { mean_s + left * left / self.any_time_per_s } else { mean_s }
    }
}

/// Snapshots that nobody expects: so many per second, beside those that are. One in 20 of those
/// taken every 10 min.
const UNEXPECTED_PER_S: f32 = 0.05 / 600.0;

/// Whether to copy now or to look again later: which comes first, the next snapshot or the next
/// modification?
///
/// Waiting costs nothing while no snapshot is near, and shows whether the chunk is written again. The
/// probability that it rests until the snapshot says nothing of that: at 0.9 a copy is probably
/// used, and still better made later. A copy now is better than one after some wait if, should one of
/// both come during the wait, that is the snapshot; and it is to be made now only if that holds
/// for every wait, or else one waits for as long as pays. (Stopping rules that look ahead; Chow, Robbins and
/// Siegmund, 1971.)
///
/// Snapshots at times that are expected within the horizon leave no time to wait, since copying takes some.
#[derive(Clone, Debug, PartialEq)]
pub struct Race {
    /// Times of a snapshot within the horizon, with their probabilities.
    within: Vec<(u64, f32)>,
    /// Probability that it comes later, or at no particular time.
    beyond: f32,
    any_time_per_s: f32,
    /// Waits that are weighed, ascending; the last is the horizon.
    waits_us: Vec<u64>,
}

/// The shortest wait that is weighed: until the next tick.
const WAIT_US: u64 = 1_000_000;

impl Race {
    /// Weighs waits of up to `horizon_us`.
    pub fn new(forecast: &Forecast, horizon_us: u64) -> Self {
        let within: Vec<_> =
            forecast.times.iter().copied().filter(|(in_us, _)| *in_us <= horizon_us).collect();
        let sum: f32 = within.iter().map(|(_, probability)| probability).sum();
        let doubled = std::iter::successors(Some(WAIT_US), |wait_us| Some(wait_us * 2));
        let mut waits_us: Vec<_> = doubled.take_while(|&wait_us| wait_us < horizon_us).collect();
        waits_us.push(horizon_us);
        let (beyond, any_time_per_s) = ((1.0 - sum).max(0.0), forecast.any_time_per_s);
        Self { within, beyond, any_time_per_s, waits_us }
    }

    /// Probability of a snapshot that leaves no time to wait, and its mean time from now in seconds.
    pub fn soon(&self) -> (f32, f32) {
        let probability: f32 = self.within.iter().map(|(_, probability)| probability).sum();
        let sum_s: f32 =
            self.within.iter().map(|(us, probability)| probability * *us as f32 / 1e6).sum();
        (probability, sum_s / probability.max(f32::MIN_POSITIVE))
    }

    /// Times that survival is asked for: those of snapshots, and then all waits.
    pub fn times_us(&self) -> impl Iterator<Item = u64> {
        self.within.iter().map(|(in_us, _)| *in_us).chain(self.waits_us.iter().copied())
    }

    /// The probability that the snapshot comes first, with the wait for which that is least, from those to
    /// stay unmodified until [`Self::times_us`].
    pub fn score(&self, mut unmodified: impl Iterator<Item = f32>) -> f32 {
        let (mut first, mut second) = (0.0, 0.0);
        for (_, probability) in &self.within {
            let rests = unmodified.next().unwrap_or(0.0);
            first += probability * rests;
            second += probability * (1.0 - rests);
        }
        let (mut score, mut from_us, mut from_rests) = (1.0_f32, 0, 1.0);
        for &wait_us in &self.waits_us {
            let rests = unmodified.next().unwrap_or(0.0).min(from_rests);
            let middle_s = (from_us + wait_us) as f32 / 2e6;
            let width_s = (wait_us - from_us) as f32 / 1e6;
            let none_yet = (-self.any_time_per_s * middle_s).exp();
            let per_s = none_yet * self.any_time_per_s;
            first += per_s * width_s * (from_rests + rests) / 2.0;
            second += none_yet * self.beyond * (from_rests - rests);
            score = score.min(first / (first + second).max(f32::MIN_POSITIVE));
            (from_us, from_rests) = (wait_us, rests);
        }
        score
    }
}

/// What is thought of the snapshots: whether intervals repeat, as odds. It is learned from each
/// interval, and forgotten so far that some that tell otherwise change it.
const REPEATS_AT_FIRST: f32 = 9.0;
const REPEATS_RANGE: (f32, f32) = (1.0 / 30.0, 100.0);

/// What an interval that is (nearly) as long as one before, or is not, does to the odds.
const REPEATED: f32 = 0.98 / 0.3;
const NOT_REPEATED: f32 = 0.02 / 0.7;

/// Intervals that differ by less, as a share, are as long as one another.
const AS_LONG: f64 = 0.05;

/// Learns when snapshots are taken.
#[derive(Clone, Debug)]
pub struct SnapshotTimes {
    cut_us: Option<u64>,
    /// Between cuts, newest last.
    intervals_us: Vec<u64>,
    /// Odds that the next interval is as long as one before.
    repeats: f32,
    planned: Option<u64>,
}

impl Default for SnapshotTimes {
    fn default() -> Self {
        Self { cut_us: None, intervals_us: vec![], repeats: REPEATS_AT_FIRST, planned: None }
    }
}

impl SnapshotTimes {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A snapshot was cut at `now_us`.
    pub fn cut(&mut self, now_us: u64) {
        if let Some(last_us) = self.cut_us.replace(now_us) {
            let interval_us = now_us.saturating_sub(last_us);
            let as_long =
                |&one_us: &u64| (one_us.abs_diff(interval_us) as f64) < AS_LONG * one_us as f64;
            if !self.intervals_us.is_empty() {
                let repeated = self.intervals_us.iter().any(as_long);
                self.repeats *= if repeated { REPEATED } else { NOT_REPEATED };
                self.repeats = self.repeats.clamp(REPEATS_RANGE.0, REPEATS_RANGE.1);
            }
            if self.intervals_us.len() == INTERVALS_MAX {
                self.intervals_us.remove(0);
            }
            self.intervals_us.push(interval_us);
        }
        self.planned = self.planned.filter(|&next_us| next_us > now_us);
    }

    /// The next snapshot is planned for `next_us`, or nothing is planned.
    pub fn schedule(&mut self, next_us: Option<u64>) {
        self.planned = next_us;
    }

    /// What is to be expected at `now_us`: the plan; else, as likely as intervals have repeated so far,
    /// what past ones leave possible, all of these being equally likely; else any moment, as rare as snapshots
    /// have been.
    pub fn forecast(&self, now_us: u64) -> Forecast {
        if let Some(next_us) = self.planned.filter(|&next_us| next_us >= now_us) {
            return Forecast::known(next_us - now_us);
        }
        let elapsed_us = now_us.saturating_sub(self.cut_us.unwrap_or(now_us));
        let count = self.intervals_us.len();
        let past_us = match count {
            0 => FIRST_INTERVAL_US,
            _ => self.intervals_us.iter().sum(),
        };
        // Those that are not over yet count as well, with what is seen of them.
        let mean_s = (past_us + elapsed_us).max(1) as f32 / 1e6 / count.max(1) as f32;
        let mut left_us: Vec<u64> = (self.intervals_us.iter())
            .filter(|&&interval_us| interval_us > elapsed_us)
            .map(|interval_us| interval_us - elapsed_us)
            .collect();
        left_us.sort_unstable();
        // Each of both would have let so much time pass with this probability.
        let repeats = self.repeats * left_us.len() as f32 / count.max(1) as f32;
        let repeats = repeats / (repeats + (-(elapsed_us as f32) / 1e6 / mean_s).exp());
        let times_count = left_us.len().min(TIMES_MAX);
        // Middles of equal shares.
        let middle = |share: usize| left_us[(2 * share + 1) * left_us.len() / (2 * times_count)];
        let times =
            (0..times_count).map(|share| (middle(share), repeats / times_count as f32)).collect();
        let any_time_per_s = (1.0 - repeats) / mean_s + UNEXPECTED_PER_S;
        Forecast { times, any_time_per_s, known: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(scores.windows(2).all(|pair| pair[0] < pair[1] + 1e-3), "{scores:?}");
            assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
        }
    }

    #[test]
    fn what_ends_soon_is_waited_for_and_what_rests_is_copied() {
        let minute_us = 60_000_000;
        let forecast = Forecast { times: vec![], any_time_per_s: 1.0 / 600.0, known: false };
        let race = Race::new(&forecast, minute_us);
        let score = |unmodified: &dyn Fn(f32) -> f32| {
            race.score(race.times_us().map(|us| unmodified(us as f32 / 1e6)))
        };
        // A Poisson process against another: the ratio of their rates, whatever the wait.
        for gap_s in [20.0_f32, 600.0, 10_000.0] {
            let exact = gap_s / (600.0 + gap_s);
            let found = score(&|s| (-s / gap_s).exp());
            assert!((found / exact - 1.0).abs() < 0.05, "{found} instead of {exact}");
        }
        // Half of the chunks are written in the next second, and the others rest: a second's patience.
        assert!(score(&|_| 0.5) < 0.01, "{}", score(&|_| 0.5));
        // Written every half a minute: never worth a copy, though it rests for now.
        let every_half_minute = score(&|s| f32::from(u8::from(s < 30.0)));
        assert!(every_half_minute < 0.1, "{every_half_minute}");
    }

    /// After cuts that so many seconds lie between, so many seconds after the last one.
    fn after(intervals_s: &[u64], elapsed_s: u64) -> Forecast {
        let mut times = SnapshotTimes::new();
        let mut now_us = 0;
        times.cut(now_us);
        for interval_s in intervals_s {
            now_us += interval_s * 1_000_000;
            times.cut(now_us);
        }
        times.forecast(now_us + elapsed_s * 1_000_000)
    }

    fn expected(forecast: &Forecast) -> f32 {
        forecast.times().iter().map(|(_, probability)| probability).sum()
    }

    #[test]
    fn intervals_that_repeat_are_expected_to_do_so_again() {
        let forecast = after(&[600, 601, 599, 600, 600], 500);
        assert!(expected(&forecast) > 0.98, "{forecast:?}");
        assert!(forecast.times().iter().all(|(us, _)| us.abs_diff(100_000_000) <= 1_000_000));
        assert_eq!(forecast.known_us(), None);
        assert!((forecast.mean_s() - 100.0).abs() < 20.0, "{}", forecast.mean_s());
        // Two kinds in turn: both are possible, until the shorter one has passed.
        assert_eq!(after(&[100, 600, 100, 600, 100, 600, 100, 600], 50).times().len(), 8);
        let late = after(&[100, 600, 100, 600, 100, 600, 100, 600], 200);
        assert!(late.times().iter().all(|(us, _)| *us == 400_000_000), "{late:?}");
    }

    #[test]
    fn intervals_that_do_not_repeat_end_at_any_moment() {
        let intervals_s = [600, 100, 1700, 310, 60];
        let forecast = after(&intervals_s, 50);
        assert!(expected(&forecast) < 0.1, "{forecast:?}");
        let mean_s = (600 + 100 + 1700 + 310 + 60 + 50) as f32 / 5.0;
        assert!((forecast.mean_s() / mean_s - 1.0).abs() < 0.2, "{}", forecast.mean_s());
        // Later than ever before, also of those that repeat: nothing is left but any moment.
        for intervals_s in [&intervals_s[..], &[600, 600, 600]] {
            let late = after(intervals_s, 2000);
            assert!(late.times().is_empty(), "{late:?}");
        }
        // Some that repeat are believed again.
        assert!(expected(&after(&[600, 100, 1700, 310, 60, 90, 90, 90, 90, 90, 90], 1)) > 0.5);
        assert!(after(&[], 0).times().is_empty());
    }
}
