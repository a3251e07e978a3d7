//! `presnap perf`: what a snapshot costs, beside what people use today.
//!
//! Starts the real programs (`presnap serve`, fio with SPDK's bdev plugin, `spdk_dd`), runs a
//! [`scenario`] with each contender in turn, round after round, and writes a report. How it measures is
//! in perf/README.md.
//!
//! | part | what |
//! | --- | --- |
//! | [`scenario`], [`contender`], [`device`] | what is asked for, as data |
//! | [`stack`] | the calls that make a contender's bdevs |
//! | [`place`], [`target`], [`fio`], [`bed`] | processes |
//! | [`trace`], [`latency`], [`meter`] | what goes in and what comes out |
//! | [`load`], [`steps`], [`mod@bench`] | kinds of scenarios: one run of one contender each |
//! | [`metric`], [`result`], [`report`] | figures, and how they are shown |
//! | [`prediction`] | `presnap report`: what predicting is worth; replays traces in this process |
//!
//! Runs on the thread that calls; SPDK is in other processes only.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures for people; none is negative or near 2^52"
)]
#![forbid(unsafe_code)]

pub mod bed;
pub mod bench;
pub mod contender;
pub mod device;
pub mod fio;
pub mod latency;
pub mod load;
pub mod meter;
pub mod metric;
pub mod place;
pub mod prediction;
pub mod progress;
pub mod report;
pub mod result;
pub mod scenario;
pub mod stack;
pub mod steps;
pub mod target;
pub mod trace;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bed::Context;
use contender::Contender;
use device::Source;
use place::{Hugepages, Interrupt, Programs, Sockets};
use progress::Progress;
use report::Machine;
use result::{AGAIN, Collected, RunFigures, ScenarioResult};
use scenario::{Run, Scenario, Transport};
use stack::Stack;

/// Why a measurement ended.
#[derive(Debug, thiserror::Error)]
pub enum PerfError {
    /// A signal came.
    #[error("interrupted; what was measured until then is kept")]
    Interrupted,
    /// It was asked for in a way that cannot work.
    #[error("{0}")]
    Usage(String),
    /// Something did not work.
    #[error("{0}")]
    Failed(String),
}

impl PerfError {
    /// Something did not work.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    /// It was asked for in a way that cannot work.
    pub fn usage(text: String) -> Self {
        Self::Usage(text)
    }
}

/// What to measure.
#[derive(Clone, Debug, Default)]
pub struct PerfOptions {
    /// Names or files of scenarios.
    pub scenarios: Vec<String>,
    /// Folder for everything that comes of it.
    pub out: PathBuf,
    /// Rounds, instead of the scenarios' own.
    pub rounds: Option<u32>,
    /// Contenders, instead of the scenarios' own.
    pub contenders: Vec<Contender>,
    /// Device of the master, instead of the scenarios' own.
    pub master: Option<Source>,
    /// Device of the store, instead of the scenarios' own.
    pub store: Option<Source>,
    /// Whether what is on devices and files may be overwritten.
    pub erase: bool,
    /// A trace for scenarios that replay one.
    pub trace: Option<String>,
    /// Reactors' cores, instead of the scenarios' own.
    pub reactor_cores: Option<String>,
    /// fio's cores, instead of the scenarios' own.
    pub fio_cores: Option<String>,
    /// The presnap to measure; absent: this one.
    pub program: Option<PathBuf>,
    /// A file that one line per scenario is added to.
    pub history: Option<PathBuf>,
}

/// Everything that was measured.
#[derive(Debug)]
pub struct Outcome {
    /// Where and when.
    pub machine: Machine,
    /// The scenarios.
    pub results: Vec<ScenarioResult>,
    /// The report.
    pub report: PathBuf,
    /// Whether a signal ended it.
    pub interrupted: bool,
}

impl Outcome {
    /// Whether anything failed.
    pub fn failed(&self) -> bool {
        self.results.iter().any(|result| !result.failures.is_empty())
    }
}

/// Runs scenarios and writes the report.
///
/// # Errors
/// What keeps it from starting, or from writing the report. What fails in between is in the outcome.
pub fn run(
    options: &PerfOptions,
    terminal: &mut dyn Write,
    is_terminal: bool,
) -> Result<Outcome, PerfError> {
    let scenarios = scenarios(options)?;
    let programs = Programs::find(options.program.as_deref())?;
    let interrupt = Interrupt::install()
        .map_err(|error| PerfError::failed(format!("signals cannot be caught: {error}")))?;
    make_folder(&options.out)?;
    let sockets = Sockets::new()?;
    // Once for all: what one scenario leaves behind would be missing at the next reservation.
    let mut hugepages =
        Hugepages::reserve(scenarios.iter().map(memory_mib).max().unwrap_or_default())?;
    let machine = Machine::of(&programs);
    let plan = scenarios.iter().map(|scenario| {
        let runs = contenders(scenario).len() as f64 * f64::from(rounds(options, scenario));
        runs * scenario.expected_s()
    });
    let progress = Progress::new(terminal, is_terminal, plan.sum());
    let mut results = Vec::new();
    let mut interrupted = false;
    for scenario in &scenarios {
        let session =
            Session { options, programs: &programs, sockets: &sockets, interrupt: &interrupt };
        let collected = session.scenario(scenario, &mut hugepages, &progress);
        interrupted = collected.partial;
        results.push(collected.result(scenario, rounds(options, scenario)));
        // After each, so that a crash loses one scenario at most.
        report::write(&options.out, &machine, &results)?;
        if interrupted {
            break;
        }
    }
    progress.end();
    if let Some(history) = &options.history {
        report::add_to_history(history, &machine, &results)?;
    }
    let report = options.out.join(report::REPORT);
    Ok(Outcome { machine, results, report, interrupted })
}

fn rounds(options: &PerfOptions, scenario: &Scenario) -> u32 {
    options.rounds.unwrap_or(scenario.rounds)
}

fn make_folder(path: &Path) -> Result<(), PerfError> {
    fs::create_dir_all(path).map_err(|error| {
        PerfError::usage(format!("{}: {error}; name another folder with --out", path.display()))
    })
}

/// The scenarios with what the command line changes in them.
fn scenarios(options: &PerfOptions) -> Result<Vec<Scenario>, PerfError> {
    if options.rounds == Some(0) {
        return Err(PerfError::usage("--rounds must be 1 or more".into()));
    }
    let mut scenarios = Vec::new();
    for name in &options.scenarios {
        let mut scenario = Scenario::find(name).map_err(PerfError::usage)?;
        adapt(&mut scenario, options);
        if let Some(problem) = scenario.problem() {
            return Err(PerfError::usage(format!("scenario {name}: {problem}")));
        }
        for source in [&scenario.devices.master, &scenario.devices.store] {
            refuse_to_erase(source, options.erase)?;
        }
        scenarios.push(scenario);
    }
    Ok(scenarios)
}

fn adapt(scenario: &mut Scenario, options: &PerfOptions) {
    let devices = &mut scenario.devices;
    for (own, given) in
        [(&mut devices.master, &options.master), (&mut devices.store, &options.store)]
    {
        if let Some(given) = given {
            given.clone_into(own);
            // Real devices have latencies and limits of their own.
            if given.is_real() {
                devices.delay_us = None;
                devices.limit_mbytes_per_sec = None;
            }
        }
    }
    if let Some(cores) = &options.reactor_cores {
        cores.clone_into(&mut scenario.reactor_cores);
    }
    if let Some(cores) = &options.fio_cores {
        cores.clone_into(&mut scenario.fio_cores);
    }
    if !options.contenders.is_empty() && !matches!(scenario.run, Run::Bench { .. }) {
        options.contenders.clone_into(&mut scenario.contenders);
        scenario.again = scenario.again.take().filter(|again| options.contenders.contains(again));
    }
    if let (Some(file), Run::Load(run)) = (&options.trace, &mut scenario.run)
        && let Some(trace) = &mut run.load.trace
    {
        trace.file = Some(file.clone());
        trace.workload = None;
    }
}

/// Data is lost only if that was asked for.
fn refuse_to_erase(source: &Source, erase: bool) -> Result<(), PerfError> {
    let holds = match source.path() {
        Some(path) => {
            if !path.exists() {
                let text = format!(
                    "{source}: there is no such file; make one, as with truncate -s 4G {}",
                    path.display()
                );
                return Err(PerfError::usage(text));
            }
            true
        }
        None => source.is_real(),
    };
    if holds && !erase {
        return Err(PerfError::usage(format!(
            "all data on {source} would be lost; give --erase if that is meant"
        )));
    }
    Ok(())
}

/// The contenders of one round, with the one that runs twice.
fn contenders(scenario: &Scenario) -> Vec<(String, Contender)> {
    let mut list: Vec<(String, Contender)> =
        scenario.contenders.iter().map(|one| (one.to_string(), one.clone())).collect();
    if let Some(again) = &scenario.again {
        list.push((format!("{again}{AGAIN}"), again.clone()));
    }
    if list.is_empty() {
        // A bench has its own.
        list.push(("bench".into(), Contender::Bare));
    }
    list
}

/// What all scenarios share.
struct Session<'a> {
    options: &'a PerfOptions,
    programs: &'a Programs,
    sockets: &'a Sockets,
    interrupt: &'a Interrupt,
}

impl Session<'_> {
    /// All rounds of a scenario. A contender that fails is not tried again; the others go on.
    fn scenario(
        &self,
        scenario: &Scenario,
        hugepages: &mut Hugepages,
        progress: &Progress<'_>,
    ) -> Collected {
        let mut collected = Collected::default();
        let list = contenders(scenario);
        let memory_mib = memory_mib(scenario);
        let mut failed: Vec<&str> = Vec::new();
        for round in 1..=rounds(self.options, scenario) {
            // Nobody always comes after the same one.
            for turn in 0..list.len() {
                let (label, contender) = &list[(turn + round as usize - 1) % list.len()];
                if failed.contains(&label.as_str()) {
                    progress.skip(scenario.expected_s());
                    continue;
                }
                progress.begin(scenario, round, rounds(self.options, scenario), label);
                let ready = hugepages.ready(memory_mib, self.interrupt);
                let once = || self.once(scenario, contender, label, round, progress);
                match ready.and_then(|()| once()) {
                    Ok(figures) => {
                        progress.done(label, &figures);
                        for (label, figures) in named(label, figures) {
                            collected.add(&label, figures);
                        }
                    }
                    Err(PerfError::Interrupted) => {
                        collected.partial = true;
                        return collected;
                    }
                    Err(error) => {
                        progress.failed(label, &error);
                        collected.failures.push(format!("{label}, round {round}: {error}"));
                        failed.push(label);
                    }
                }
            }
        }
        collected
    }

    fn once(
        &self,
        scenario: &Scenario,
        contender: &Contender,
        label: &str,
        round: u32,
        progress: &Progress<'_>,
    ) -> Result<RunFigures, PerfError> {
        let name = format!("{round}-{}", label.replace([':', ' '], "-"));
        let folder = self.options.out.join("raw").join(&scenario.name).join(name);
        make_folder(&folder)?;
        let folder = fs::canonicalize(&folder)
            .map_err(|error| PerfError::failed(format!("{}: {error}", folder.display())))?;
        let context = Context {
            programs: self.programs,
            sockets: self.sockets,
            interrupt: self.interrupt,
            scenario,
            contender,
            round,
            folder: &folder,
            say: &|what| progress.say(what),
        };
        match &scenario.run {
            Run::Load(run) => load::run(context, run),
            Run::Scaling { reactor_cores, load, seconds } => {
                steps::scaling(context, reactor_cores, load, *seconds)
            }
            Run::Growth { counts, load, read_seconds } => {
                steps::growth(context, counts, load, *read_seconds)
            }
            Run::ReadSnapshot { seconds, loads } => steps::read_snapshot(context, *seconds, loads),
            Run::Bench { arguments } => bench::run(context, arguments),
        }
    }
}

/// A bench has several contenders in one run: they are told apart by the begin of their steps' names.
fn named(label: &str, figures: RunFigures) -> Vec<(String, RunFigures)> {
    if label != "bench" {
        return vec![(label.to_owned(), figures)];
    }
    let mut all: Vec<(String, RunFigures)> = Vec::new();
    for mut step in figures.steps {
        let (contender, rest) = step.step.split_once('@').unwrap_or(("bench", &step.step));
        let (contender, rest) = (contender.to_owned(), rest.to_owned());
        step.step = rest;
        match all.iter_mut().find(|(name, _)| *name == contender) {
            Some((_, figures)) => figures.steps.push(step),
            None => {
                all.push((contender, RunFigures { steps: vec![step], ..RunFigures::default() }));
            }
        }
    }
    all
}

/// Hugepages for all processes of the hungriest contender.
fn memory_mib(scenario: &Scenario) -> u64 {
    if matches!(scenario.run, Run::Bench { .. }) {
        return bench::MEMORY_MIB;
    }
    let need = |contender: &Contender| {
        let copying = match contender {
            Contender::Lvol { copy: true, .. } => load::COPY_MEMORY_MIB,
            _ => 0,
        };
        let fio = if scenario.transport == Transport::Direct { 0 } else { fio::MEMORY_MIB };
        Stack::of(scenario, contender).memory_mib + fio + copying
    };
    scenario.contenders.iter().map(need).max().unwrap_or(0)
}

/// Milliseconds since the Unix epoch, by which fio's logs go too.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// Writes a file of the report.
fn write_file(path: &Path, text: &str) -> Result<(), PerfError> {
    let failed = |error| PerfError::failed(format!("{}: {error}", path.display()));
    let mut file = File::create(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}
