//! Latencies: fio's histograms and its logs of every command.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::PerfError;

/// Longest latency that a histogram takes; longer ones count as this.
const LATENCY_NS_MAX: u64 = 1_000_000_000_000;
/// Digits that are kept: fio's own bins are coarser.
const DIGITS: u8 = 3;

/// An empty histogram of nanoseconds.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS).expect("the bounds are right")
}

/// The value below which `percentile` of 100 values are, in microseconds; `None` if there are none.
pub fn percentile_us(histogram: &Histogram<u64>, percentile: f64) -> Option<f64> {
    (!histogram.is_empty()).then(|| histogram.value_at_percentile(percentile) as f64 / 1e3)
}

/// The distribution in steps: microseconds, and the share of values up to there.
pub fn distribution(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let mut seen = 0;
    let mut steps = Vec::new();
    // Five steps per halving of what is left: fine where it matters, and never more than a few hundred.
    for value in histogram.iter_quantiles(5) {
        seen += value.count_since_last_iteration();
        steps.push((
            value.value_iterated_to() as f64 / 1e3,
            seen as f64 / histogram.len().max(1) as f64,
        ));
    }
    steps
}

/// One command as fio logged it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was completed: milliseconds of the Unix epoch.
    pub at_ms: u64,
    /// From its submission to its completion.
    pub latency_ns: u64,
    /// Whether it modified: a write or a trim.
    pub modifies: bool,
}

/// Reads a log that fio wrote with `write_lat_log` and `log_unix_epoch`.
///
/// # Errors
/// When it cannot be read or has a line of another form.
pub fn read_log(path: &Path, samples: &mut Vec<Sample>) -> Result<(), PerfError> {
    let failed = |problem: String| PerfError::failed(format!("{}: {problem}", path.display()));
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut line = String::new();
    let mut number = 0_u64;
    loop {
        line.clear();
        number += 1;
        if reader.read_line(&mut line).map_err(|error| failed(error.to_string()))? == 0 {
            return Ok(());
        }
        let sample = sample(&line);
        samples.push(sample.ok_or_else(|| failed(format!("line {number} is no entry: {line:?}")))?);
    }
}

/// `time, latency, direction, bytes, offset` and whatever follows.
fn sample(line: &str) -> Option<Sample> {
    let mut fields = line.split(',').map(str::trim);
    let at_ms = fields.next()?.parse().ok()?;
    let latency_ns = fields.next()?.parse().ok()?;
    let direction = fields.next()?;
    fields.next()?;
    let modifies = match direction {
        "0" => false,
        "1" | "2" => true,
        _ => return None,
    };
    Some(Sample { at_ms, latency_ns, modifies })
}

/// What happened in a piece of time.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Bucket {
    /// Begin, in milliseconds from the snapshot (or from the load's start, if there is none).
    pub at_ms: i64,
    /// Commands completed per second.
    pub iops: f64,
    /// Median latency; 0 where nothing was completed, likewise the others.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// Longest.
    pub max_us: f64,
}

/// A stretch of time, in milliseconds from an origin: begin and end.
pub type Span = (i64, i64);

/// Milliseconds from `origin_ms` to `at_ms`.
fn relative(at_ms: u64, origin_ms: u64) -> i64 {
    at_ms.cast_signed() - origin_ms.cast_signed()
}

/// The pieces of `span`, each `bucket_ms` long; the last one is left out if it is not whole.
pub fn buckets(samples: &[Sample], origin_ms: u64, span: Span, bucket_ms: i64) -> Vec<Bucket> {
    let count = usize::try_from((span.1 - span.0) / bucket_ms).unwrap_or(0);
    let mut latencies: Vec<Vec<u64>> = vec![Vec::new(); count];
    for sample in samples {
        let place = (relative(sample.at_ms, origin_ms) - span.0).div_euclid(bucket_ms);
        if let Some(bucket) = usize::try_from(place).ok().and_then(|place| latencies.get_mut(place))
        {
            bucket.push(sample.latency_ns);
        }
    }
    let starts = (0..).map(|place: i64| span.0 + place * bucket_ms);
    starts
        .zip(&mut latencies)
        .map(|(at_ms, latencies)| bucket(at_ms, latencies, bucket_ms))
        .collect()
}

fn bucket(at_ms: i64, latencies: &mut [u64], bucket_ms: i64) -> Bucket {
    latencies.sort_unstable();
    let at = |share: f64| {
        let rank = (latencies.len() as f64 * share).ceil() as usize;
        latencies.get(rank.saturating_sub(1)).map_or(0.0, |ns| *ns as f64 / 1e3)
    };
    Bucket {
        at_ms,
        iops: latencies.len() as f64 * 1e3 / bucket_ms as f64,
        p50_us: at(0.5),
        p99_us: at(0.99),
        max_us: at(1.0),
    }
}

/// Latencies of the commands of `span` that modify (or do not).
pub fn window(samples: &[Sample], origin_ms: u64, span: Span, modifies: bool) -> Histogram<u64> {
    let mut histogram = histogram();
    for sample in samples {
        let at_ms = relative(sample.at_ms, origin_ms);
        if sample.modifies == modifies && at_ms >= span.0 && at_ms < span.1 {
            histogram.saturating_record(sample.latency_ns.max(1));
        }
    }
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(entries: &[(u64, u64)]) -> Vec<Sample> {
        let sample =
            |&(at_ms, latency_ns): &(u64, u64)| Sample { at_ms, latency_ns, modifies: true };
        entries.iter().map(sample).collect()
    }

    #[test]
    fn a_line_of_a_log_is_read() {
        let expected = Sample { at_ms: 1_795_632_466_600, latency_ns: 31_277_433, modifies: true };
        assert_eq!(sample("1795632466600, 31277433, 1, 4096, 0\n"), Some(expected));
        assert_eq!(sample("5, 6, 0, 4096, 0, 0\n").map(|s| s.modifies), Some(false));
        for bad in ["", "1", "1, 2, 3, 4", "x, 2, 1, 4096", "1, 2, 1"] {
            assert_eq!(sample(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn commands_fall_into_the_piece_of_their_completion() {
        let samples = made(&[(900, 1000), (999, 3000), (1000, 5000), (1150, 7000), (1300, 9000)]);
        let pieces = buckets(&samples, 1000, (-100, 250), 100);
        let counts: Vec<f64> = pieces.iter().map(|bucket| bucket.iops).collect();
        assert_eq!(counts, [20.0, 10.0, 10.0]);
        assert_eq!((pieces[0].at_ms, pieces[0].p50_us, pieces[0].max_us), (-100, 1.0, 3.0));
        assert_eq!((pieces[1].p99_us, pieces[2].p99_us), (5.0, 7.0));
        // Nothing completed: no latency, and no rate.
        let empty = buckets(&samples, 1000, (10_000, 10_100), 100);
        assert_eq!(empty, [Bucket { at_ms: 10_000, ..Bucket::default() }]);
    }

    #[test]
    fn a_window_has_its_begin_and_not_its_end() {
        let samples = made(&[(0, 10), (5, 20), (9, 30), (10, 40)]);
        let inside = window(&samples, 0, (5, 10), true);
        assert_eq!((inside.len(), inside.min(), inside.max()), (2, 20, 30));
        assert!(window(&samples, 0, (0, 100), false).is_empty());
        assert_eq!(percentile_us(&histogram(), 99.0), None);
    }

    #[test]
    fn a_distribution_ends_with_all_values() {
        let mut histogram = histogram();
        for ns in 1..=1000 {
            histogram.saturating_record(ns * 1000);
        }
        let steps = distribution(&histogram);
        assert!((steps.last().unwrap().1 - 1.0).abs() < 1e-9);
        assert!(steps.is_sorted_by(|a, b| a.1 <= b.1));
        let half = steps.iter().find(|step| step.1 >= 0.5).unwrap();
        assert!((half.0 - 500.0).abs() < 5.0, "{half:?}");
    }
}
