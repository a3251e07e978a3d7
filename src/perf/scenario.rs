//! Scenarios: what is run, on what, against whom. Each is a JSON file in `perf/scenarios/`; the
//! shipped ones are part of the program. The fields are documented in perf/README.md.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::contender::Contender;
use super::device::Devices;

/// The scenarios that come with presnap: name and file.
const SHIPPED: [(&str, &str); 8] = [
    ("smoke", include_str!("../../perf/scenarios/smoke.json")),
    ("zipf", include_str!("../../perf/scenarios/zipf.json")),
    ("trace-replay", include_str!("../../perf/scenarios/trace-replay.json")),
    ("overhead", include_str!("../../perf/scenarios/overhead.json")),
    ("cut", include_str!("../../perf/scenarios/cut.json")),
    ("growth", include_str!("../../perf/scenarios/growth.json")),
    ("scaling", include_str!("../../perf/scenarios/scaling.json")),
    ("read-snapshot", include_str!("../../perf/scenarios/read-snapshot.json")),
];

/// Longest load of one run. Longer ones would fill the memory with latencies.
const LOAD_S_MAX: u32 = 3600;
/// A trace is not played faster than this.
const SPEED_MAX: f64 = 1e6;
/// Every volume is a whole number of the largest clusters and chunks.
const VOLUME_STEP_MIB: u64 = 4;

/// What to measure, and how.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name: that of the file, without `.json`.
    #[serde(skip_deserializing)]
    pub name: String,
    /// One line for people.
    pub title: String,
    /// What it shows and how, a few sentences.
    pub about: String,
    /// Size of the volume under load.
    #[serde(default)]
    pub volume_mib: u64,
    /// Parameters of `bdev_presnap_create` beside name, master, store and policy.
    #[serde(default)]
    pub volume: Map<String, Value>,
    /// What master and store are made of.
    #[serde(default)]
    pub devices: Devices,
    /// Cores of the target's reactors, as `presnap serve --cores` takes them.
    #[serde(default = "reactor_cores")]
    pub reactor_cores: String,
    /// Cores for fio, as `taskset --cpu-list` takes them.
    #[serde(default = "fio_cores")]
    pub fio_cores: String,
    /// How fio reaches the volume.
    #[serde(default)]
    pub transport: Transport,
    /// Who is compared.
    #[serde(default)]
    pub contenders: Vec<Contender>,
    /// The contender that runs twice in each round: how far it is from itself is the noise floor.
    #[serde(default)]
    pub again: Option<Contender>,
    /// How often each contender runs, unless `--rounds` says otherwise.
    #[serde(default = "rounds")]
    pub rounds: u32,
    /// What is done.
    pub run: Run,
    /// What should come of it.
    #[serde(default)]
    pub goals: Vec<Goal>,
}

fn reactor_cores() -> String {
    "0x1".into()
}

fn fio_cores() -> String {
    "1".into()
}

fn rounds() -> u32 {
    3
}

/// How fio reaches the volume.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// NVMe/TCP over the loopback interface, from a process of its own.
    #[default]
    Tcp,
    /// The bdev is in fio's own process: no network, but SPDK's own bdevs only, and no snapshots.
    Direct,
}

/// What is done with each contender.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Run {
    /// A load, and snapshots at given times.
    Load(LoadRun),
    /// The same load at rising numbers of reactors, without snapshots.
    Scaling {
        /// Masks of cores, one per step.
        reactor_cores: Vec<String>,
        /// What fio does.
        load: Load,
        /// Length of one run.
        seconds: u32,
    },
    /// Many snapshots of one volume, under a light load.
    Growth {
        /// Numbers of snapshots at which to look.
        counts: Vec<u32>,
        /// What fio does while snapshots are taken.
        load: Load,
        /// Seconds of reading one snapshot.
        read_seconds: u32,
    },
    /// An exported snapshot is read, and the bare device of its store.
    ReadSnapshot {
        /// Seconds of each reading.
        seconds: u32,
        /// What fio does, each in turn.
        loads: Vec<Load>,
    },
    /// A bench inside one process: `presnap-bench`, see perf/README.md.
    Bench {
        /// Arguments of `presnap-bench`.
        arguments: Vec<String>,
    },
}

/// A load, and snapshots at given times.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRun {
    /// What fio does.
    pub load: Load,
    /// Length of the load.
    pub seconds: u32,
    /// When snapshots are asked for, in seconds from the load's start. Figures are about the last; the
    /// others make it one of a regular row.
    #[serde(default)]
    pub snapshots_at_s: Vec<u32>,
    /// Time before and after the snapshot that is compared.
    #[serde(default = "window_s")]
    pub window_s: u32,
}

fn window_s() -> u32 {
    5
}

/// What fio does.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// fio's `rw`: `randwrite`, `randrw`, `write`, `read` and so on. Not for a trace.
    #[serde(default)]
    pub rw: String,
    /// Share of reads, for `randrw` and `rw`.
    #[serde(default)]
    pub read_percent: Option<u32>,
    /// Bytes per command, in KiB.
    #[serde(default = "block_kib")]
    pub block_kib: u32,
    /// Commands under way per job.
    #[serde(default = "queue_depth")]
    pub queue_depth: u32,
    /// Jobs, each a thread and an initiator of its own.
    #[serde(default = "jobs")]
    pub jobs: u32,
    /// Commands per second of all jobs together; absent: as fast as it goes.
    #[serde(default)]
    pub rate_iops: Option<u32>,
    /// fio's `random_distribution`, such as `zipf:1.1`; absent: uniform.
    #[serde(default)]
    pub distribution: Option<String>,
    /// A trace to replay instead.
    #[serde(default)]
    pub trace: Option<TraceLoad>,
}

fn block_kib() -> u32 {
    4
}

fn queue_depth() -> u32 {
    8
}

fn jobs() -> u32 {
    1
}

/// A trace to replay: a file, or a made-up workload.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TraceLoad {
    /// The file, in any format that `presnap replay` reads.
    #[serde(default)]
    pub file: Option<String>,
    /// Which disk of it, if it has several.
    #[serde(default)]
    pub disk: Option<String>,
    /// A made-up workload of `presnap train` instead of a file.
    #[serde(default)]
    pub workload: Option<String>,
    /// Its seed.
    #[serde(default)]
    pub seed: u64,
    /// Seconds of the trace that are left out at its begin.
    #[serde(default)]
    pub skip_s: u64,
    /// How many times faster than it was recorded.
    #[serde(default = "speed")]
    pub speed: f64,
}

fn speed() -> f64 {
    1.0
}

/// What a figure should be.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// In words.
    pub what: String,
    /// The figure, by its identifier.
    pub metric: String,
    /// Whose.
    pub contender: String,
    /// Compare with the same figure of this one: the figure is that one's divided by this one's.
    #[serde(default)]
    pub against: Option<String>,
    /// Upper limit of the median.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// Lower limit of the median.
    #[serde(default)]
    pub at_least: Option<f64>,
}

/// Names and titles of the shipped scenarios.
pub fn shipped() -> impl Iterator<Item = Scenario> {
    SHIPPED.iter().map(|(name, text)| {
        Scenario::parse(name, text).expect("shipped scenarios are right: a test reads them")
    })
}

impl Scenario {
    /// A shipped scenario by name, or a file (whatever has a slash or ends with `.json`).
    ///
    /// # Errors
    /// What is wrong with it and what can be done about it.
    pub fn find(name: &str) -> Result<Self, String> {
        let is_file = Path::new(name).extension().is_some_and(|extension| extension == "json");
        if name.contains('/') || is_file {
            let text = fs::read_to_string(name)
                .map_err(|error| format!("scenario {name}: {error}; check its path"))?;
            let stem = Path::new(name).file_stem().unwrap_or_default();
            return Self::parse(&stem.to_string_lossy(), &text);
        }
        let found = SHIPPED.iter().find(|(shipped, _)| *shipped == name);
        let Some((_, text)) = found else {
            let names: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "there is no scenario {name:?}; shipped are {}, and a file's path works too",
                names.join(", ")
            ));
        };
        Self::parse(name, text)
    }

    /// Reads a scenario and checks it.
    ///
    /// # Errors
    /// What is wrong with it and what can be done about it.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let scenario: Self = serde_json::from_str(text)
            .map_err(|error| format!("scenario {name}: {error}; perf/README.md has all fields"))?;
        let scenario = Self { name: name.to_owned(), ..scenario };
        match scenario.problem() {
            None => Ok(scenario),
            Some(problem) => Err(format!("scenario {name}: {problem}")),
        }
    }

    /// The first thing that is wrong, with what to do about it.
    pub fn problem(&self) -> Option<String> {
        if self.rounds == 0 {
            return Some("rounds is 0; give at least 1".into());
        }
        let goal = self.goals.iter().find(|goal| goal.at_most.is_some() == goal.at_least.is_some());
        if let Some(goal) = goal {
            return Some(format!(
                "goal {:?} has not one limit; give at_most or at_least",
                goal.what
            ));
        }
        if matches!(self.run, Run::Bench { .. }) {
            return None;
        }
        if self.volume_mib == 0 || !self.volume_mib.is_multiple_of(VOLUME_STEP_MIB) {
            return Some(format!(
                "volume_mib is {}; give a multiple of {VOLUME_STEP_MIB}",
                self.volume_mib
            ));
        }
        if self.contenders.is_empty() {
            return Some("it has no contenders; name some, such as \"bare\"".into());
        }
        if self.again.as_ref().is_some_and(|again| !self.contenders.contains(again)) {
            return Some("again is none of its contenders; name one of them".into());
        }
        let hosted = self.contenders.iter().find(|contender| !contender.is_plain());
        if let (Transport::Direct, Some(contender)) = (self.transport, hosted) {
            return Some(format!(
                "fio's process cannot hold {contender}; use transport tcp, or bare and passthru"
            ));
        }
        self.run_problem()
    }

    fn run_problem(&self) -> Option<String> {
        match &self.run {
            Run::Load(run) => run.problem(self.transport),
            Run::Scaling { load, seconds, reactor_cores } => {
                if reactor_cores.is_empty() {
                    return Some("reactor_cores is empty; give masks such as 0x1 and 0x3".into());
                }
                load.problem(*seconds)
            }
            Run::Growth { counts, load, read_seconds } => {
                if counts.is_empty() || !counts.is_sorted() || counts[0] == 0 {
                    return Some("counts must rise and begin with 1 or more".into());
                }
                self.presnap_alone().or_else(|| load.problem(*read_seconds))
            }
            Run::ReadSnapshot { seconds, loads } => {
                if loads.is_empty() {
                    return Some("loads is empty; give what fio does".into());
                }
                let problem = loads.iter().find_map(|load| load.problem(*seconds));
                self.presnap_alone().or(problem)
            }
            Run::Bench { .. } => None,
        }
    }

    fn presnap_alone(&self) -> Option<String> {
        let other = self.contenders.iter().find(|contender| !contender.is_presnap())?;
        Some(format!("{other} has no such snapshots; name presnap's contenders only"))
    }

    /// Seconds that one run of one contender takes beside what is asked of fio, roughly.
    pub fn expected_s(&self) -> f64 {
        /// Start, filling and stop.
        const AROUND_S: f64 = 9.0;
        match &self.run {
            Run::Load(run) => f64::from(run.seconds) + AROUND_S,
            Run::Scaling { seconds, .. } => f64::from(*seconds) + AROUND_S,
            Run::Growth { counts, read_seconds, .. } => {
                let last = counts.last().copied().unwrap_or(0);
                let reads = counts.len() * 2;
                f64::from(last) * 0.1 + reads as f64 * (f64::from(*read_seconds) + 2.0) + AROUND_S
            }
            Run::ReadSnapshot { seconds, loads } => {
                loads.len() as f64 * 2.0 * (f64::from(*seconds) + 2.0) + AROUND_S
            }
            Run::Bench { .. } => 60.0,
        }
    }
}

impl LoadRun {
    fn problem(&self, transport: Transport) -> Option<String> {
        if transport == Transport::Direct && !self.snapshots_at_s.is_empty() {
            return Some("no snapshot can be asked for in fio's process; use transport tcp".into());
        }
        let window_s = self.window_s;
        let fits = |at: &u32| *at >= window_s && at + window_s <= self.seconds;
        if window_s == 0
            || !self.snapshots_at_s.iter().all(fits)
            || !self.snapshots_at_s.is_sorted()
        {
            return Some(format!(
                "snapshots at {:?} s do not leave {window_s} s (window_s) on both sides within {} s \
                 (seconds); move them, in rising order",
                self.snapshots_at_s, self.seconds
            ));
        }
        self.load.problem(self.seconds)
    }
}

impl Load {
    fn problem(&self, seconds: u32) -> Option<String> {
        if !(1..=LOAD_S_MAX).contains(&seconds) {
            return Some(format!("{seconds} seconds; give 1 to {LOAD_S_MAX}"));
        }
        if self.queue_depth == 0 || self.jobs == 0 || self.block_kib == 0 {
            return Some("queue_depth, jobs and block_kib are at least 1".into());
        }
        let problem = match &self.trace {
            None if self.rw.is_empty() => "the load has neither rw nor trace",
            Some(_) if !self.rw.is_empty() => "the load has both rw and trace",
            Some(trace) if trace.file.is_some() == trace.workload.is_some() => {
                "trace has not one of file and workload"
            }
            Some(trace) if !(trace.speed > 0.0 && trace.speed <= SPEED_MAX) => {
                "trace.speed is not above 0"
            }
            _ => return None,
        };
        Some(format!("{problem}; give one"))
    }
}

#[cfg(test)]
#[path = "scenario_tests.rs"]
mod tests;
