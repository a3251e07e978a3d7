//! What is replayed: traces, schedules, cases, policies with their settings.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::perf::PerfError;
use crate::predict::model::LEARNED_FROM;
use crate::replay::trace::{Survey, Trace, TraceKind, TraceRecord};
use crate::replay::workload::{WORKLOADS, WorkloadOptions, generate};
use crate::replay::{PolicySpec, Schedule};

/// Time between snapshots, and what irregular times lie around.
const EVERY_US: u64 = 600_000_000;

/// A trace should have at least so many snapshots on average; where it is too short for that, and for
/// [`REGULAR_MIN`] regular ones, they are taken more often.
const SNAPSHOTS: u64 = 6;

/// A trace with so many snapshots every 10 min is not scaled.
const REGULAR_MIN: u64 = 2;

/// Irregular schedules, each with its seed: their replays are summed up.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Share of the dirty set that may be staged in [`Case::Limited`].
pub const STAGING_SHARE: f64 = 0.25;

/// Copying in [`Case::Known`], in units of the trace's mean rate of modification.
pub const COPY_RATIO: f64 = 2.0;

/// Volumes of made-up workloads.
const WORKLOAD_TIB: u64 = 4;
const WORKLOAD_SPAN_S: u64 = 3600;
const WORKLOAD_RECORDS_MAX: usize = 150_000;
/// Not one of those that models are trained with.
const WORKLOAD_SEED: u64 = 77;

/// What is known of a trace beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Recorded, and the model learned nothing from it.
    HeldOut,
    /// Recorded, and the model was trained on it.
    LearnedFrom,
    /// Made up, by what makes up workloads for training as well, with another seed.
    MadeUp,
}

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Kind::HeldOut => "held out",
            Kind::LearnedFrom => "learned from",
            Kind::MadeUp => "made up",
        }
    }
}

/// A trace to replay.
#[derive(Clone, Debug)]
pub struct Source {
    /// File name without what follows the first dot.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What is known of it.
    pub kind: Kind,
    /// What is in it.
    pub survey: Survey,
    /// Time between regular snapshots.
    pub every_us: u64,
    /// What irregular intervals lie around.
    pub around_us: u64,
}

impl Source {
    fn of(path: &Path, kind: Kind) -> Result<Self, PerfError> {
        let survey = Trace::open(path, None).and_then(Survey::of);
        let survey = survey.map_err(|error| PerfError::usage(error.to_string()))?;
        let (every_us, around_us) = intervals_us(survey.span_us);
        Ok(Self { name: name(path), path: path.to_owned(), kind, survey, every_us, around_us })
    }

    /// Rate of copying in [`Case::Known`], in bytes per second.
    #[allow(clippy::cast_sign_loss, reason = "it is not negative")]
    pub fn copy_bytes_per_s(&self) -> u64 {
        let seconds = self.survey.span_us.max(1) as f64 / 1e6;
        ((self.survey.modified_bytes as f64 / seconds * COPY_RATIO) as u64).max(1)
    }
}

/// Between regular snapshots, and what irregular ones lie around, for a trace that lasts so long.
fn intervals_us(span_us: u64) -> (u64, u64) {
    let scaled_us = (span_us / SNAPSHOTS).clamp(1, EVERY_US);
    let every_us = if span_us >= REGULAR_MIN * EVERY_US { EVERY_US } else { scaled_us };
    (every_us, scaled_us)
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or(&name).to_owned()
}

/// The traces: files, and those in folders, with what is known of them.
///
/// # Errors
/// When one cannot be read.
pub fn sources(
    paths: &[PathBuf],
    learned_from: Option<&[String]>,
) -> Result<Vec<Source>, PerfError> {
    let mut files = vec![];
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let failed = |error| PerfError::usage(format!("cannot read {}: {error}", path.display()));
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            let name = file.to_string_lossy();
            if [".csv", ".csv.zst", ".log"].iter().any(|end| name.ends_with(end)) {
                files.push(file);
            }
        }
    }
    files.sort();
    let known: Vec<&str> = match learned_from {
        Some(texts) => texts.iter().map(String::as_str).collect(),
        None => LEARNED_FROM.to_vec(),
    };
    let kind = |file: &Path| {
        let name = name(file);
        if known.iter().any(|text| name.contains(text)) { Kind::LearnedFrom } else { Kind::HeldOut }
    };
    files.iter().map(|file| Source::of(file, kind(file))).collect()
}

/// Makes up the first `count` workloads on large volumes, as files in `folder` that `presnap replay` takes
/// as well.
///
/// # Errors
/// When a file cannot be written.
pub fn made_up(count: usize, folder: &Path) -> Result<Vec<Source>, PerfError> {
    let mut sources = vec![];
    if count > 0 {
        std::fs::create_dir_all(folder)
            .map_err(|error| PerfError::failed(format!("{}: {error}", folder.display())))?;
    }
    for workload in WORKLOADS.iter().take(count) {
        let path = folder.join(format!("{workload}-{WORKLOAD_TIB}tib.csv.zst"));
        let options = WorkloadOptions {
            seed: WORKLOAD_SEED,
            span_s: WORKLOAD_SPAN_S,
            volume_bytes: WORKLOAD_TIB << 40,
            records_max: WORKLOAD_RECORDS_MAX,
        };
        let mut records = generate(workload, options).expect("it is one of them");
        // What is never written belongs to the volume, too.
        let time_us = records.last().map_or(0, |record| record.time_us);
        let offset_bytes = options.volume_bytes - 4096;
        let kind = TraceKind::Read;
        records.push(TraceRecord { time_us, kind, offset_bytes, length_bytes: 4096 });
        write_trace(&path, &records)
            .map_err(|error| PerfError::failed(format!("{}: {error}", path.display())))?;
        sources.push(Source::of(&path, Kind::MadeUp)?);
    }
    Ok(sources)
}

fn write_trace(path: &Path, records: &[TraceRecord]) -> std::io::Result<()> {
    let encoder = zstd::Encoder::new(BufWriter::new(File::create(path)?), 0)?;
    let mut out = BufWriter::new(encoder);
    writeln!(out, "time_us,op,offset_bytes,length_bytes")?;
    for record in records {
        let op = match record.kind {
            TraceKind::Read => 'R',
            TraceKind::Write => 'W',
            TraceKind::Unmap => 'U',
        };
        let TraceRecord { time_us, offset_bytes, length_bytes, .. } = record;
        writeln!(out, "{time_us},{op},{offset_bytes},{length_bytes}")?;
    }
    let encoder = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    encoder.finish()?.flush()
}

/// Under which circumstances policies compete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Case {
    /// Times of snapshots are not told, and nothing is limited.
    Unknown,
    /// Times are not told, and staged copies are limited to [`STAGING_SHARE`] of the dirty set.
    Limited,
    /// Times are told, and background copying is limited to [`COPY_RATIO`] times the mean rate of
    /// modification.
    Known,
}

impl Case {
    /// All.
    pub const ALL: [Self; 3] = [Case::Unknown, Case::Limited, Case::Known];

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Case::Unknown => "times unknown, no limits",
            Case::Limited => "times unknown, staging limited to 25% of the dirty set",
            Case::Known => "times known, copying limited to twice the mean write rate",
        }
    }

    /// Short, for names in plots.
    pub fn id(self) -> &'static str {
        match self {
            Case::Unknown => "unknown",
            Case::Limited => "limited",
            Case::Known => "known",
        }
    }
}

/// Which schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// At equal intervals.
    Regular,
    /// At irregular ones.
    Irregular,
}

impl Timing {
    /// Both.
    pub const ALL: [Self; 2] = [Timing::Regular, Timing::Irregular];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Timing::Regular => "regular",
            Timing::Irregular => "irregular",
        }
    }

    /// The schedules of a trace; those without a snapshot in it are left out.
    pub fn schedules(self, source: &Source, quick: bool) -> Vec<Schedule> {
        let seeds = if quick { &SEEDS[..1] } else { &SEEDS };
        let all = match self {
            Timing::Regular => vec![Schedule::Every(source.every_us)],
            Timing::Irregular => seeds
                .iter()
                .map(|&seed| Schedule::Irregular { seed, around_us: source.around_us })
                .collect(),
        };
        let has_some = |schedule: &Schedule| !schedule.times_us(source.survey.span_us).is_empty();
        all.into_iter().filter(has_some).collect()
    }
}

/// Settings of each policy that are tried in a case.
pub fn policies(case: Case, quick: bool) -> Vec<PolicySpec> {
    let families: &[(&str, &[&str])] = match (case, quick) {
        (Case::Unknown | Case::Limited, true) => &[
            ("idle", &["1s", "5s", "15s", "60s"]),
            ("rate", &["0.02", "0.1", "0.3", "0.6"]),
            ("likely", &["0.5"]),
            ("logistic", &["0.02", "0.1", "0.3", "0.6"]),
            ("lstm", &["0.01", "0.02", "0.05", "0.1", "0.3", "0.6"]),
        ],
        (Case::Unknown | Case::Limited, false) => &[
            ("idle", &["250ms", "500ms", "1s", "2s", "5s", "10s", "15s", "30s", "60s", "120s"]),
            ("rate", &["0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.3", "0.45", "0.6", "0.8"]),
            ("likely", &["0.1", "0.3", "0.5", "0.7", "0.9"]),
            (
                "logistic",
                &["0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.3", "0.45", "0.6", "0.8"],
            ),
            ("lstm", &["0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.3", "0.45", "0.6", "0.8"]),
            ("tuned", &["0.05", "0.3", "0.6"]),
        ],
        (Case::Known, true) => &[("idle", &["1s", "15s"]), ("lstm", &["0.05", "0.3", "0.6"])],
        (Case::Known, false) => &[
            ("idle", &["1s", "5s", "15s", "60s"]),
            ("rate", &["0.05", "0.3", "0.6"]),
            ("logistic", &["0.05", "0.3", "0.6"]),
            ("lstm", &["0.01", "0.02", "0.05", "0.1", "0.2", "0.3", "0.45", "0.6", "0.8"]),
        ],
    };
    let needs_network = |name: &str| ["lstm", "tuned"].contains(&name);
    let mut all = vec!["off".to_owned()];
    for (name, settings) in families {
        if cfg!(feature = "lstm") || !needs_network(name) {
            all.extend(settings.iter().map(|setting| format!("{name}:{setting}")));
        }
    }
    if case == Case::Known {
        all.push("deadline".to_owned());
    }
    all.push("oracle".to_owned());
    all.iter().map(|text| text.parse().expect("these are well formed")).collect()
}

/// The policy of a setting, and its setting: `idle` and `1s`.
pub fn family(policy: &str) -> &str {
    policy.split(':').next().unwrap_or(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_traces_have_snapshots_more_often() {
        let second = 1_000_000;
        assert_eq!(intervals_us(7200 * second), (600 * second, 600 * second));
        // Two regular ones are few, but they are what was asked for.
        assert_eq!(intervals_us(1206 * second), (600 * second, 201 * second));
        assert_eq!(intervals_us(60 * second), (10 * second, 10 * second));
        assert_eq!(intervals_us(0), (1, 1));
    }

    #[test]
    fn every_case_has_policies_and_the_quick_ones_are_among_them() {
        for case in Case::ALL {
            let all: Vec<String> = policies(case, false).iter().map(ToString::to_string).collect();
            assert!(all.contains(&"off".to_owned()) && all.contains(&"oracle".to_owned()));
            assert_eq!(all.contains(&"deadline".to_owned()), case == Case::Known);
            assert_eq!(all.iter().any(|text| family(text) == "lstm"), cfg!(feature = "lstm"));
            assert!(policies(case, true).len() < all.len());
        }
    }

    #[test]
    fn made_up_traces_are_large_volumes_that_replay_reads() {
        let folder = tempfile::tempdir().unwrap();
        let sources = made_up(1, folder.path()).unwrap();
        assert_eq!((sources.len(), sources[0].kind), (1, Kind::MadeUp));
        assert_eq!(sources[0].survey.end_bytes, WORKLOAD_TIB << 40);
        assert!(sources[0].survey.modifications > 1000);
        assert!(made_up(0, &folder.path().join("none")).unwrap().is_empty());
    }
}
