//! When snapshots are taken during a replay.

use std::fmt;

use super::random::Random;

/// A schedule of snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// At multiples of this time, in microseconds.
    Every(u64),
    /// At times chosen by chance: intervals from a tenth of `around_us` to three times that, short
    /// ones as likely as long ones by ratio.
    Irregular {
        /// All chance follows from it.
        seed: u64,
        /// What the intervals lie around.
        around_us: u64,
    },
}

/// What irregular intervals lie around, unless told otherwise: they go from 1 min to 30 min.
const USUAL_US: u64 = 600_000_000;

/// Shortest and longest irregular interval, in units of what they lie around.
const SHORTEST: f64 = 0.1;
const LONGEST: f64 = 3.0;

impl Schedule {
    /// Irregular intervals from 1 min to 30 min.
    pub fn irregular(seed: u64) -> Self {
        Schedule::Irregular { seed, around_us: USUAL_US }
    }

    /// The times of the snapshots, in microseconds from the start of a trace of `span_us`.
    #[allow(clippy::cast_sign_loss, reason = "intervals are positive")]
    pub fn times_us(self, span_us: u64) -> Vec<u64> {
        match self {
            Schedule::Every(interval_us) => {
                let interval_us = interval_us.max(1);
                (1..=span_us / interval_us).map(|count| count * interval_us).collect()
            }
            Schedule::Irregular { seed, around_us } => {
                let shortest_us = around_us.max(10) as f64 * SHORTEST;
                let mut random = Random::new(seed);
                let mut times_us = Vec::new();
                let mut at_us = 0;
                loop {
                    let share = random.below(1 << 20) as f64 / f64::from(1 << 20);
                    at_us += (shortest_us * (LONGEST / SHORTEST).powf(share)) as u64;
                    if at_us > span_us {
                        return times_us;
                    }
                    times_us.push(at_us);
                }
            }
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::Every(interval_us) => write!(f, "every {} s", *interval_us as f64 / 1e6),
            Schedule::Irregular { seed, around_us: USUAL_US } => {
                write!(f, "irregular, seed {seed}")
            }
            Schedule::Irregular { seed, around_us } => {
                write!(f, "irregular around {} s, seed {seed}", *around_us as f64 / 1e6)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_what_they_say() {
        assert_eq!(Schedule::Every(10).times_us(35), [10, 20, 30]);
        let day_us = 86_400_000_000;
        let times_us = Schedule::irregular(1).times_us(day_us);
        assert_eq!(times_us, Schedule::irregular(1).times_us(day_us));
        assert_ne!(times_us, Schedule::irregular(2).times_us(day_us));
        assert!((100..300).contains(&times_us.len()), "{}", times_us.len());
        let intervals_us = times_us.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(intervals_us.clone().all(|us| (60_000_000..=1_800_000_000).contains(&us)));
        assert!(intervals_us.clone().filter(|&us| us < 330_000_000).count() > times_us.len() / 3);
        let scaled = Schedule::Irregular { seed: 1, around_us: 6_000_000 }.times_us(day_us / 100);
        assert_eq!(scaled.len(), times_us.len(), "the same, a hundred times as fast");
    }
}
