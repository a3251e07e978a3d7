//! What a predictor said in the last hour, compared with what came of it.
//!
//! Each tick some chunks are drawn by chance, and their `p_modify` is kept for each window until the window
//! is over. Memory is bounded by [`SAMPLES_PER_TICK`] and the lengths of windows and hour: about 200 KiB.

use std::collections::VecDeque;

use super::metrics::CALIBRATION_BINS;
use super::random::Random;
use super::{WINDOWS, WINDOWS_US};

/// Chunks drawn per tick: in an hour some ten thousand, enough for a percent in each bin.
pub const SAMPLES_PER_TICK: usize = 8;

/// What is forgotten at once, and how many of that are kept: an hour in all.
const SLICE_US: u64 = 300_000_000;
const SLICES: usize = 12;

/// Predictions of one window that a bin was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    /// How many.
    pub count: u64,
    /// Sum of their probabilities.
    pub predicted: f64,
    /// How many came true.
    pub came: u64,
}

/// Of one window, by tenths of probability.
pub type Bins = [Bin; CALIBRATION_BINS];

/// Of each of [`WINDOWS_US`].
pub type Table = [Bins; WINDOWS];

#[derive(Clone, Copy, Debug)]
struct Sample {
    at_us: u64,
    chunk: u32,
    p: f32,
}

struct Slice {
    began_us: u64,
    table: Table,
}

/// Compares.
pub struct Calibration {
    random: Random,
    /// Per window, what is not known yet, oldest first.
    open: [VecDeque<Sample>; WINDOWS],
    slices: VecDeque<Slice>,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { random: Random::new(1), open: Default::default(), slices: VecDeque::new() }
    }
}

impl Calibration {
    /// Takes a tick of `rows` chunks. `chunk_and_p` says which chunk a row is and what was predicted of
    /// it; `last_write_us` when a chunk was last modified, if it is still followed.
    pub fn tick(
        &mut self,
        now_us: u64,
        rows: usize,
        chunk_and_p: impl Fn(usize) -> (u32, [f32; WINDOWS]),
        last_write_us: impl Fn(u32) -> Option<u64>,
    ) {
        for (window, window_us) in WINDOWS_US.into_iter().enumerate() {
            let over = |sample: &Sample| now_us >= sample.at_us + window_us;
            while let Some(sample) = self.open[window].pop_front_if(|sample| over(sample)) {
                // Of chunks that had to give way to others nobody knows.
                if let Some(last_us) = last_write_us(sample.chunk) {
                    self.add(now_us, window, sample.p, last_us > sample.at_us);
                }
            }
        }
        for _ in 0..SAMPLES_PER_TICK.min(rows) {
            let (chunk, p) = chunk_and_p(self.random.index(rows));
            for (open, p) in self.open.iter_mut().zip(p) {
                open.push_back(Sample { at_us: now_us, chunk, p });
            }
        }
    }

    fn add(&mut self, now_us: u64, window: usize, p: f32, came: bool) {
        if self.slices.back().is_none_or(|slice| now_us >= slice.began_us + SLICE_US) {
            if self.slices.len() == SLICES {
                self.slices.pop_front();
            }
            self.slices.push_back(Slice { began_us: now_us, table: Table::default() });
        }
        let Some(slice) = self.slices.back_mut() else { return };
        let bin = ((p * CALIBRATION_BINS as f32) as usize).min(CALIBRATION_BINS - 1);
        let bin = &mut slice.table[window][bin];
        bin.count += 1;
        bin.predicted += f64::from(p);
        bin.came += u64::from(came);
    }

    /// Forgets all that was said: another predictor is not to be judged by it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// What is known of the last hour.
    pub fn table(&self) -> Table {
        let mut sum = Table::default();
        for slice in &self.slices {
            for (to, from) in sum.iter_mut().flatten().zip(slice.table.iter().flatten()) {
                to.count += from.count;
                to.predicted += from.predicted;
                to.came += from.came;
            }
        }
        sum
    }
}

/// Mean distance of what was predicted from what came, each bin weighed by its predictions.
pub fn error_of(bins: &Bins) -> f64 {
    let count: u64 = bins.iter().map(|bin| bin.count).sum();
    let distance = bins.iter().map(|bin| (bin.predicted - bin.came as f64).abs()).sum::<f64>();
    distance / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK_US: u64 = 1_000_000;

    /// A volume of 100 chunks, of which chunk `c` is modified every `c + 1` ticks.
    fn last_write_us(chunk: u32, now_us: u64) -> u64 {
        let every_us = u64::from(chunk + 1) * TICK_US;
        now_us / every_us * every_us
    }

    fn after(ticks: u64, p: impl Fn(u32, u64) -> [f32; WINDOWS]) -> Calibration {
        let mut calibration = Calibration::default();
        for tick in 1..=ticks {
            let now_us = tick * TICK_US;
            calibration.tick(
                now_us,
                100,
                |row| (row as u32, p(row as u32, now_us)),
                |chunk| Some(last_write_us(chunk, now_us)),
            );
        }
        calibration
    }

    /// Fails when a window is taken for another, or a write at its border is counted wrongly.
    #[test]
    fn who_knows_the_future_is_right_in_every_window() {
        let knows = |chunk: u32, now_us: u64| {
            let next_us = last_write_us(chunk, now_us) + u64::from(chunk + 1) * TICK_US;
            WINDOWS_US.map(|window_us| if next_us <= now_us + window_us { 1.0 } else { 0.0 })
        };
        let table = after(2000, knows).table();
        for (bins, window_us) in table.iter().zip(WINDOWS_US) {
            assert!(error_of(bins) < 1e-9, "{window_us}: {bins:?}");
            let count: u64 = bins.iter().map(|bin| bin.count).sum();
            assert_eq!(count, (2000 - window_us / TICK_US) * SAMPLES_PER_TICK as u64);
        }
        assert!(table[0][0].count > 0 && table[0][9].came == table[0][9].count);
    }

    #[test]
    fn who_is_wrong_is_shown_to_be() {
        let table = after(1000, |_, _| [0.75; WINDOWS]).table();
        // Within 10 s, 10 of the 100 chunks are surely modified, and the others seldom.
        let bin = table[0][7];
        assert!(bin.came * 2 < bin.count, "{bin:?}");
        assert!(error_of(&table[0]) > 0.25, "{}", error_of(&table[0]));
        assert!((bin.predicted / bin.count as f64 - 0.75).abs() < 1e-6);
    }

    #[test]
    fn memory_and_time_are_bounded() {
        let calibration = after(3 * 3600, |_, _| [0.5; WINDOWS]);
        let open: usize = calibration.open.iter().map(VecDeque::len).sum();
        let ticks = WINDOWS_US.iter().sum::<u64>() / TICK_US;
        assert_eq!(open, ticks as usize * SAMPLES_PER_TICK);
        assert_eq!(calibration.slices.len(), SLICES);
        let count = calibration.table()[0][5].count;
        assert!((3300..=3600).contains(&(count / SAMPLES_PER_TICK as u64)), "an hour: {count}");
    }

    #[test]
    fn chunks_that_gave_way_count_for_nothing() {
        let mut calibration = Calibration::default();
        for tick in 1..=100 {
            calibration.tick(tick * TICK_US, 4, |row| (row as u32, [0.5; WINDOWS]), |_| None);
        }
        assert_eq!(calibration.table(), Table::default());
    }
}
