//! The figures: what each is called, in which unit, and what many values of one say.

use serde::{Deserialize, Serialize};

/// A figure that a run gives.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Identifier, in scenarios' goals and in summary.json.
    pub id: &'static str,
    /// For people.
    pub label: &'static str,
    /// Its unit; empty: a ratio.
    pub unit: &'static str,
    /// The table of the report that it stands in.
    pub group: Group,
}

/// Tables of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Latencies of the whole load.
    Latency,
    /// What a snapshot does to the load.
    Impact,
    /// How long a snapshot takes, and what it moves.
    Snapshot,
    /// What it costs all the time.
    Cost,
    /// What grows with something.
    Series,
}

impl Group {
    /// All, in the order of the report.
    pub const ALL: [Self; 5] =
        [Self::Impact, Self::Snapshot, Self::Latency, Self::Cost, Self::Series];

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Latency => "Latency over the whole load",
            Self::Impact => "What a snapshot does to the load",
            Self::Snapshot => "The snapshot itself",
            Self::Cost => "What it costs",
            Self::Series => "Figures",
        }
    }
}

const fn metric(id: &'static str, label: &'static str, unit: &'static str, group: Group) -> Metric {
    Metric { id, label, unit, group }
}

/// Every figure there is. Percentiles are those of one run.
pub const METRICS: &[Metric] = &[
    metric("write_p50_us", "write p50", "us", Group::Latency),
    metric("write_p99_us", "write p99", "us", Group::Latency),
    metric("write_p999_us", "write p99.9", "us", Group::Latency),
    metric("write_max_us", "write max", "us", Group::Latency),
    metric("read_p50_us", "read p50", "us", Group::Latency),
    metric("read_p99_us", "read p99", "us", Group::Latency),
    metric("read_p999_us", "read p99.9", "us", Group::Latency),
    metric("read_max_us", "read max", "us", Group::Latency),
    metric("iops", "commands", "/s", Group::Latency),
    metric("mbytes_per_s", "throughput", "MB/s", Group::Latency),
    metric("before_p99_us", "write p99 before", "us", Group::Impact),
    metric("after_p99_us", "write p99 after", "us", Group::Impact),
    metric("p99_ratio", "p99 after / before", "", Group::Impact),
    metric("after_p999_us", "write p99.9 after", "us", Group::Impact),
    metric("after_max_us", "write max after", "us", Group::Impact),
    metric("before_rate_share", "least rate before, of asked", "", Group::Impact),
    metric("after_rate_share", "least rate after, of asked", "", Group::Impact),
    metric("consistent_ms", "readable after", "ms", Group::Snapshot),
    metric("independent_ms", "independent after", "ms", Group::Snapshot),
    metric("cut_us", "cut", "us", Group::Snapshot),
    metric("required_mib", "required", "MiB", Group::Snapshot),
    metric("adopted_share", "adopted of required", "", Group::Snapshot),
    metric("copied_after_mib", "copied after the cut", "MiB", Group::Snapshot),
    metric("master_read_mib", "extra read, master", "MiB", Group::Snapshot),
    metric("device_written_mib", "extra written, both", "MiB", Group::Snapshot),
    metric("parked", "writes that waited", "", Group::Snapshot),
    metric("extra_writes", "extra bytes per user byte", "", Group::Cost),
    metric("copied_ahead_mib", "copied ahead", "MiB", Group::Cost),
    metric("reactor_busy_percent", "reactor busy", "%", Group::Cost),
    metric("reactor_ns_per_command", "reactor CPU per command", "ns", Group::Cost),
    metric("predictor_percent", "predictor CPU", "%", Group::Cost),
    metric("catalog_percent", "catalog CPU", "%", Group::Cost),
    metric("fio_percent", "fio CPU", "%", Group::Cost),
    metric("resident_mib", "target's memory", "MiB", Group::Cost),
    metric("memory_growth_mib", "memory growth under load", "MiB", Group::Cost),
    metric("create_ms", "create", "ms", Group::Series),
    metric("delete_ms", "delete one", "ms", Group::Series),
    metric("restart_ms", "load store and volume", "ms", Group::Series),
    metric("oldest_p50_us", "read oldest p50", "us", Group::Series),
    metric("oldest_p99_us", "read oldest p99", "us", Group::Series),
    metric("newest_p50_us", "read newest p50", "us", Group::Series),
    metric("newest_p99_us", "read newest p99", "us", Group::Series),
    metric("catalog_mib", "catalog in use", "MiB", Group::Series),
    metric("slots_owned", "slots owned", "", Group::Series),
    metric("snapshot_mbytes_per_s", "snapshot read", "MB/s", Group::Series),
    metric("device_mbytes_per_s", "bare device read", "MB/s", Group::Series),
    metric("read_share", "snapshot / device", "", Group::Series),
    metric("ns_per_command", "CPU per command", "ns", Group::Series),
    metric("share_of_passthru", "share of passthru", "", Group::Series),
    metric("longest_with_ms", "longest write, with a cut", "ms", Group::Series),
    metric("longest_without_ms", "longest write, without", "ms", Group::Series),
];

/// The figure with this identifier.
pub fn find(id: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.id == id)
}

/// Many values of one figure.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Values {
    /// How many.
    pub n: usize,
    /// The middle one; the mean of two for an even number.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// All, in the order of rounds.
    pub all: Vec<f64>,
}

impl Values {
    /// What `all` say; `None` if there are none.
    pub fn of(all: Vec<f64>) -> Option<Self> {
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self { n: all.len(), median, min, max, all })
    }
}

/// A number for people: three digits that count.
pub fn shown(value: f64) -> String {
    let size = value.abs();
    if size >= 99_999.5 {
        let text = format!("{value:.0}");
        let (sign, digits) = text.split_at(usize::from(text.starts_with('-')));
        let mut grouped = String::new();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place) % 3 == 0 {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        format!("{sign}{grouped}")
    } else if size >= 99.5 {
        format!("{value:.0}")
    } else if size >= 9.95 {
        format!("{value:.1}")
    } else if size >= 0.995 || size == 0.0 {
        format!("{value:.2}")
    } else if size >= 0.0005 {
        format!("{value:.3}")
    } else {
        format!("{value:.1e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_summed_up() {
        assert_eq!(Values::of(vec![]), None);
        let odd = Values::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.n, odd.median, odd.min, odd.max), (3, 2.0, 1.0, 3.0));
        assert_eq!(odd.all, [3.0, 1.0, 2.0]);
        assert!((Values::of(vec![4.0, 1.0]).unwrap().median - 2.5).abs() < 1e-9);
    }

    #[test]
    fn identifiers_are_unique() {
        for (place, metric) in METRICS.iter().enumerate() {
            let first = METRICS.iter().position(|other| other.id == metric.id);
            assert_eq!(first, Some(place), "{}", metric.id);
        }
    }

    #[test]
    fn numbers_are_readable() {
        let texts = [0.0, 0.000_01, 0.1234, 1.0, 12.34, 123.4, 12_345.6, 1_234_567.0].map(shown);
        let expected = ["0.00", "1.0e-5", "0.123", "1.00", "12.3", "123", "12346", "1,234,567"];
        assert_eq!(texts, expected);
    }
}
