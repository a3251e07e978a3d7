//! `presnap report`: what predicting is worth, by replaying traces under every policy.
//!
//! | part | what |
//! | --- | --- |
//! | [`plan`] | traces, schedules, cases, policies with their settings |
//! | [`frontier`] | adopted share against cost |
//! | [`goals`] | what was to be reached, and whether it was |
//! | [`cost`] | time, memory, training |
//!
//! Replays are independent: as many threads as asked for take one after the other. What they share is
//! read only. The page is made in `perf/report/prediction.rs`.

pub mod cost;
pub mod frontier;
pub mod goals;
pub mod plan;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use super::report::{self, Machine};
use super::{PerfError, write_file};
use crate::predict::Predictor;
use crate::predict::baseline::{Idle, Rate};
use crate::predict::evaluate::{Line, evaluate, lines};
use crate::predict::logistic::Logistic;
use crate::predict::model::Model;
#[cfg(feature = "lstm")]
use crate::predict::{
    Lstm,
    tune::{TuneOptions, Tuned},
};
use crate::replay::accesses::accesses;
use crate::replay::policies::PolicyContext;
use crate::replay::trace::Trace;
use crate::replay::{DeviceSpeed, PolicySpec, ReplayOptions, Report, Schedule, replay_all};
use cost::Cost;
use frontier::{Frontier, Point, staging_limit};
use goals::Goal;
use plan::{Case, Kind, STAGING_SHARE, Source, Timing, family};

/// Bytes of a chunk, unless told otherwise.
const CHUNK_BYTES: u32 = 256 << 10;
/// What `idle` takes for rest where its probabilities are measured; they do not depend on it.
const REST_US: u64 = 15_000_000;
/// Back to the line's begin, and erase it.
const ERASE: &str = "\r\x1b[K";

/// What to do.
#[derive(Clone, Debug)]
pub struct PredictionOptions {
    /// Traces, or folders of them.
    pub traces: Vec<PathBuf>,
    /// Folder for what comes out.
    pub out: PathBuf,
    /// How many made-up workloads to replay beside them.
    pub workloads: usize,
    /// Fewer settings, schedules and predictors.
    pub quick: bool,
    /// Replays at once.
    pub threads: usize,
    /// The model of predictors that have one.
    pub model: Model,
    /// Texts in the names of the traces that it was trained on; `None`: those of the shipped model.
    pub learned_from: Option<Vec<String>>,
}

/// A policy with its setting on one trace, under one case, with one kind of schedule.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The policy with its setting.
    pub policy: String,
    /// Share of required chunks adopted.
    pub adopted: f64,
    /// Share of required bytes that were right at the cut.
    pub right: f64,
    /// Bytes copied ahead, in chunks per required chunk.
    pub bytes: f64,
    /// Commands of copies made ahead, per required chunk.
    pub commands: f64,
    /// Copies and refreshes made ahead, per required chunk.
    pub copies: f64,
    /// Bytes copied ahead per byte written.
    pub staged_per_written: f64,
    /// Bytes copied ahead in vain per byte written.
    pub wasted_per_written: f64,
    /// Everything else: sums over the schedules.
    pub replay: Report,
}

impl Row {
    fn of(policy: String, mut replay: Report) -> Self {
        // Of each policy some dozens, which nobody reads.
        replay.snapshots = vec![];
        Self {
            policy,
            adopted: replay.adopted_share(),
            right: replay.right_share(),
            bytes: replay.bytes_per_required(),
            commands: replay.commands_per_required(),
            copies: replay.copies_per_required(),
            staged_per_written: replay.staged_per_modified(),
            wasted_per_written: replay.wasted_per_modified(),
            replay,
        }
    }

    /// The policy without its setting.
    pub fn family(&self) -> &str {
        family(&self.policy)
    }
}

/// All policies on one trace, under one case, with one kind of schedule.
#[derive(Clone, Debug, Serialize)]
pub struct Contest {
    /// The case.
    pub case: Case,
    /// The kind of schedule.
    pub timing: Timing,
    /// The schedules, in words.
    pub schedules: Vec<String>,
    /// Snapshots in them.
    pub snapshots: usize,
    /// Limits on staged copies, in chunks, one per schedule.
    pub staging_chunks_max: Vec<u64>,
    /// Limit on background copying.
    pub copy_bytes_per_s_max: Option<u64>,
    /// The policies.
    pub rows: Vec<Row>,
}

impl Contest {
    /// The policies without their settings, each once, in the order of the rows.
    pub fn families(&self) -> Vec<&str> {
        let mut families: Vec<&str> = vec![];
        for row in &self.rows {
            if !families.contains(&row.family()) {
                families.push(row.family());
            }
        }
        families
    }

    /// A policy's frontier by a cost.
    pub fn frontier(&self, family: &str, cost: fn(&Row) -> f64) -> Frontier {
        let rows = self.rows.iter().filter(|row| row.family() == family);
        Frontier::of(rows.map(|row| Point {
            policy: row.policy.clone(),
            adopted: row.adopted,
            cost: cost(row),
        }))
    }
}

/// What one trace showed.
#[derive(Clone, Debug, Serialize)]
pub struct TraceOutcome {
    /// Its name.
    pub name: String,
    /// What was known of it.
    pub kind: Kind,
    /// How long it lasts.
    pub span_s: f64,
    /// Size of the volume.
    pub volume_bytes: u64,
    /// Commands that read.
    pub reads: u64,
    /// Commands that modify.
    pub modifications: u64,
    /// Bytes that they modify.
    pub modified_bytes: u64,
    /// Effects.
    pub contests: Vec<Contest>,
    /// How good predictions were.
    pub measures: Vec<Line>,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Format of this.
    pub version: u32,
    /// Where and when.
    pub machine: Machine,
    /// How long it took.
    pub took_s: f64,
    /// What it was run with.
    pub settings: Value,
    /// Whether each goal is met.
    pub goals: Vec<Goal>,
    /// Per trace.
    pub traces: Vec<TraceOutcome>,
    /// Time, memory and training.
    pub cost: Cost,
    /// What did not work.
    pub failures: Vec<String>,
}

/// One piece of work.
#[derive(Clone, Debug)]
enum Job {
    /// Replays of one trace, schedule and policy, which share a predictor.
    Replays(Vec<ReplayJob>),
    /// How good the predictions are.
    Measure(usize),
}

/// Which contest: trace, case and kind of schedule.
type ContestKey = (usize, Case, Timing);

#[derive(Clone, Debug)]
struct ReplayJob {
    contest: ContestKey,
    /// Its place among the schedules.
    place: usize,
    schedule: Schedule,
    spec: PolicySpec,
    staging_chunks_max: Option<u64>,
    copy_bytes_per_s_max: Option<u64>,
}

enum Done {
    Replays(Vec<(ReplayJob, Report)>),
    Measure(usize, Vec<Line>),
    Failed(String),
}

/// Runs everything, writes the page and the summary to the folder, and tells what came out; progress
/// goes to `terminal`.
///
/// # Errors
/// When a trace cannot be read, or a file cannot be written.
pub fn run(
    options: &PredictionOptions,
    terminal: &mut dyn Write,
    is_terminal: bool,
) -> Result<Outcome, PerfError> {
    let began = Instant::now();
    let machine = Machine::here();
    std::fs::create_dir_all(&options.out)
        .map_err(|error| PerfError::failed(format!("{}: {error}", options.out.display())))?;
    let mut show = Show { terminal, is_terminal };
    show.line("reading traces");
    let mut sources = plan::sources(&options.traces, options.learned_from.as_deref())?;
    sources.extend(plan::made_up(options.workloads, &options.out.join("workloads"))?);
    if sources.is_empty() {
        return Err(PerfError::usage(
            "no traces here: name some, or a folder of them, or let --workloads make some up"
                .into(),
        ));
    }
    // First, and alone: nothing else is to be in the way, and memory is not used yet.
    show.line("measuring what predictors cost");
    let cost = cost::measure(&options.model, options.quick, &mut |what| show.line(what));
    let work = Work { options, sources: &sources };
    let mut results = Results::default();
    work.all(&work.first_jobs(), "what is required", &mut results, &mut show);
    work.all(&work.other_jobs(&results), "policies", &mut results, &mut show);
    let traces = work.outcomes(&mut results);
    show.line("");
    let outcome = Outcome {
        version: 1,
        machine,
        took_s: began.elapsed().as_secs_f64(),
        settings: settings(options),
        goals: goals::judge(&traces),
        traces,
        cost,
        failures: results.failures,
    };
    let json = serde_json::to_string_pretty(&outcome)
        .map_err(|error| PerfError::failed(error.to_string()))?;
    write_file(&options.out.join(report::SUMMARY), &(json + "\n"))?;
    write_file(&options.out.join(report::REPORT), &report::prediction::page(&outcome))?;
    Ok(outcome)
}

/// What the report says it was run with.
fn settings(options: &PredictionOptions) -> Value {
    let texts = |case| {
        let policies = plan::policies(case, options.quick);
        policies.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let cases = Case::ALL.map(|case| json!({"case": case.title(), "policies": texts(case)}));
    let path = |path: &PathBuf| path.display().to_string();
    json!({
        "traces": options.traces.iter().map(path).collect::<Vec<_>>(),
        "workloads": options.workloads,
        "quick": options.quick,
        "threads": options.threads,
        "chunk_bytes": CHUNK_BYTES,
        "tick_ms": 1000,
        "devices": {"master": DeviceSpeed::default(), "store": DeviceSpeed::default()},
        "model": format!("{:08x}", options.model.checksum()),
        "cases": cases,
    })
}

/// Progress on the terminal.
struct Show<'a> {
    terminal: &'a mut dyn Write,
    is_terminal: bool,
}

impl Show<'_> {
    /// Adds a line where lines cannot be replaced.
    fn milestone(&mut self, text: &str) {
        if !self.is_terminal {
            let _ = writeln!(self.terminal, "{text}").and_then(|()| self.terminal.flush());
        }
    }

    /// Replaces the line.
    fn line(&mut self, text: &str) {
        if self.is_terminal {
            // Progress that nobody sees is no trouble.
            let _ = write!(self.terminal, "{ERASE}{text}").and_then(|()| self.terminal.flush());
        }
    }
}

/// A policy, and what it did on each schedule, by the schedule's place.
type Played = (PolicySpec, BTreeMap<usize, Report>);

#[derive(Default)]
struct Results {
    /// Of each contest the policies in order of their first replay, with what they did on each schedule.
    replays: BTreeMap<ContestKey, Vec<Played>>,
    measures: BTreeMap<usize, Vec<Line>>,
    failures: Vec<String>,
}

impl Results {
    fn add(&mut self, done: Done) {
        match done {
            Done::Failed(text) => self.failures.push(text),
            Done::Measure(trace, lines) => {
                self.measures.insert(trace, lines);
            }
            Done::Replays(all) => {
                for (job, report) in all {
                    let policies = self.replays.entry(job.contest).or_default();
                    let at = policies.iter().position(|(spec, _)| *spec == job.spec);
                    let at = at.unwrap_or_else(|| {
                        policies.push((job.spec, BTreeMap::new()));
                        policies.len() - 1
                    });
                    policies[at].1.insert(job.place, report);
                }
            }
        }
    }

    /// What `off` did on a schedule, which tells what is required.
    fn off(&self, trace: usize, timing: Timing, place: usize) -> Option<&Report> {
        let policies = self.replays.get(&(trace, Case::Unknown, timing))?;
        policies.iter().find(|(spec, _)| *spec == PolicySpec::Off)?.1.get(&place)
    }
}

struct Work<'a> {
    options: &'a PredictionOptions,
    sources: &'a [Source],
}

impl Work<'_> {
    fn schedules(&self, trace: usize, timing: Timing) -> Vec<Schedule> {
        timing.schedules(&self.sources[trace], self.options.quick)
    }

    /// `off` on every schedule.
    fn first_jobs(&self) -> Vec<Job> {
        let mut jobs = vec![];
        for trace in 0..self.sources.len() {
            for timing in Timing::ALL {
                for (place, schedule) in self.schedules(trace, timing).into_iter().enumerate() {
                    jobs.push(Job::Replays(vec![ReplayJob {
                        contest: (trace, Case::Unknown, timing),
                        place,
                        schedule,
                        spec: PolicySpec::Off,
                        staging_chunks_max: None,
                        copy_bytes_per_s_max: None,
                    }]));
                }
            }
        }
        jobs
    }

    /// All others, what takes longest first, so that no thread is left with it in the end.
    fn other_jobs(&self, results: &Results) -> Vec<Job> {
        let mut jobs: Vec<Job> = (0..self.sources.len()).map(Job::Measure).collect();
        for (trace, source) in self.sources.iter().enumerate() {
            for timing in Timing::ALL {
                for (place, schedule) in self.schedules(trace, timing).into_iter().enumerate() {
                    // It failed, which is said already.
                    let Some(off) = results.off(trace, timing, place) else { continue };
                    let limit = staging_limit(off.required, off.snapshots.len(), STAGING_SHARE);
                    // By policy, since settings of one share its predictor, whatever the case.
                    let mut families: BTreeMap<String, Vec<ReplayJob>> = BTreeMap::new();
                    for case in Case::ALL {
                        for spec in plan::policies(case, self.options.quick) {
                            if (case, spec) == (Case::Unknown, PolicySpec::Off) {
                                continue;
                            }
                            let job = ReplayJob {
                                contest: (trace, case, timing),
                                place,
                                schedule,
                                spec,
                                staging_chunks_max: (case == Case::Limited).then_some(limit),
                                copy_bytes_per_s_max: (case == Case::Known)
                                    .then(|| source.copy_bytes_per_s()),
                            };
                            let text = spec.to_string();
                            families.entry(family(&text).to_owned()).or_default().push(job);
                        }
                    }
                    jobs.extend(families.into_values().map(Job::Replays));
                }
            }
        }
        jobs.sort_by(|a, b| self.expected(b).total_cmp(&self.expected(a)));
        jobs
    }

    /// How long a job takes, roughly, in microseconds: a command takes some, and a tick many more.
    fn expected(&self, job: &Job) -> f64 {
        let size = |trace: usize| {
            let survey = &self.sources[trace].survey;
            ((survey.reads + survey.modifications) as f64, survey.span_us as f64 / 1e6)
        };
        match job {
            Job::Measure(trace) => {
                let (records, ticks) = size(*trace);
                records + ticks * 6000.0
            }
            Job::Replays(all) => {
                let Some(first) = all.first() else { return 0.0 };
                let (records, ticks) = size(first.contest.0);
                let (each_us, shared_us) = match family(&first.spec.to_string()) {
                    "off" | "idle" => (60.0, 0.0),
                    "lstm" => (400.0, 4000.0),
                    "tuned" => (400.0, 8000.0),
                    _ => (400.0, 1500.0),
                };
                let count = all.len() as f64;
                count * records * 5.0 + ticks * (shared_us + count * each_us)
            }
        }
    }

    /// Does all jobs and collects what comes out.
    fn all(&self, jobs: &[Job], what: &str, results: &mut Results, show: &mut Show<'_>) {
        let began = Instant::now();
        let total: f64 = jobs.iter().map(|job| self.expected(job)).sum();
        let (count, mut done_count, mut done_size) = (jobs.len(), 0, 0.0);
        let next = AtomicUsize::new(0);
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..self.options.threads.max(1) {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if sender.send((self.expected(job), self.perform(job))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for (size, done) in receiver {
                results.add(done);
                done_count += 1;
                done_size += size;
                let tenth = |count_done: usize| count_done * 10 / count;
                let elapsed_s = began.elapsed().as_secs_f64();
                let left_s = elapsed_s / done_size * (total - done_size);
                let line = progress_line(what, done_count, count, left_s);
                show.line(&line);
                if tenth(done_count) > tenth(done_count - 1) {
                    show.milestone(&line);
                }
            }
        });
    }

    fn perform(&self, job: &Job) -> Done {
        match job {
            Job::Measure(trace) => {
                let source = &self.sources[*trace];
                match measured(source, &self.options.model, self.options.quick) {
                    Ok(lines) => Done::Measure(*trace, lines),
                    Err(error) => Done::Failed(error),
                }
            }
            Job::Replays(all) => match replayed(all, self.sources, &self.options.model) {
                Ok(reports) => Done::Replays(all.iter().cloned().zip(reports).collect()),
                Err(error) => Done::Failed(error),
            },
        }
    }

    /// What came out, trace by trace.
    fn outcomes(&self, results: &mut Results) -> Vec<TraceOutcome> {
        let mut outcomes = vec![];
        for (trace, source) in self.sources.iter().enumerate() {
            let mut contests = vec![];
            for (case, timing) in Case::ALL.into_iter().flat_map(|c| Timing::ALL.map(|t| (c, t))) {
                let Some(policies) = results.replays.remove(&(trace, case, timing)) else {
                    continue;
                };
                contests.push(self.contest((trace, case, timing), &policies));
            }
            outcomes.push(TraceOutcome {
                name: source.name.clone(),
                kind: source.kind,
                span_s: source.survey.span_us as f64 / 1e6,
                volume_bytes: source.survey.end_bytes,
                reads: source.survey.reads,
                modifications: source.survey.modifications,
                modified_bytes: source.survey.modified_bytes,
                contests,
                measures: results.measures.remove(&trace).unwrap_or_default(),
            });
        }
        outcomes
    }

    fn contest(&self, (trace, case, timing): ContestKey, policies: &[Played]) -> Contest {
        let schedules = self.schedules(trace, timing);
        let mut contest = Contest {
            case,
            timing,
            schedules: schedules.iter().map(ToString::to_string).collect(),
            snapshots: 0,
            staging_chunks_max: vec![],
            copy_bytes_per_s_max: None,
            rows: vec![],
        };
        // In the order of the plan, whatever was done first.
        for spec in plan::policies(case, self.options.quick) {
            let replays = policies.iter().find(|(other, _)| *other == spec).map(|(_, all)| all);
            // One that failed on one schedule cannot be compared.
            let Some(replays) = replays.filter(|all| all.len() == schedules.len()) else {
                continue;
            };
            let mut all = replays.values();
            let Some(mut sum) = all.next().cloned() else { continue };
            all.for_each(|report| sum.add(report));
            contest.snapshots = sum.snapshots.len();
            contest.staging_chunks_max =
                replays.values().filter_map(|report| report.staging_chunks_max).collect();
            contest.copy_bytes_per_s_max = sum.copy_bytes_per_s_max;
            contest.rows.push(Row::of(spec.to_string(), sum));
        }
        contest
    }
}

fn progress_line(what: &str, done: usize, count: usize, left_s: f64) -> String {
    let left_s = left_s.round().max(0.0) as u64;
    format!("{what}: {done} of {count} done, {}:{:02} left", left_s / 60, left_s % 60)
}

/// Replays with one predictor.
fn replayed(all: &[ReplayJob], sources: &[Source], model: &Model) -> Result<Vec<Report>, String> {
    let Some(first) = all.first() else { return Ok(vec![]) };
    let path: &Path = &sources[first.contest.0].path;
    let failed = |error: &dyn std::fmt::Display| {
        format!("{}, {}: {error}", family(&first.spec.to_string()), first.schedule)
    };
    let context = |job: &ReplayJob| PolicyContext {
        path,
        disk: None,
        chunk_bytes: CHUNK_BYTES,
        schedule: job.schedule,
        schedule_known: job.contest.1 == Case::Known,
        model,
    };
    let companion = first.spec.companion(&context(first)).map_err(|error| failed(&error))?;
    let options = all.iter().map(|job| ReplayOptions {
        chunk_bytes: CHUNK_BYTES,
        schedule: job.schedule,
        staging_chunks_max: job.staging_chunks_max,
        copy_bytes_per_s_max: job.copy_bytes_per_s_max,
        ..ReplayOptions::new(job.spec.policy_with(companion.as_ref(), &context(job)))
    });
    replay_all(path, options.collect(), &mut |_| {}).map_err(|error| failed(&error))
}

/// How good the predictions are on a trace.
fn measured(source: &Source, model: &Model, quick: bool) -> Result<Vec<Line>, String> {
    let trace = Trace::open(&source.path, None).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let records = trace.map_err(|error| error.to_string())?;
    let (accesses, options) = accesses(&records, 1.0, CHUNK_BYTES);
    drop(records);
    let mut predictors: Vec<Box<dyn Predictor>> = vec![
        Box::new(Idle { rest_us: REST_US }),
        Box::new(Rate),
        Box::new(Logistic::new(model.clone())),
    ];
    #[cfg(feature = "lstm")]
    {
        predictors.push(Box::new(Lstm::new(model.clone())));
        if !quick {
            predictors.push(Box::new(Tuned::new(model.clone(), TuneOptions::default())));
        }
    }
    #[cfg(not(feature = "lstm"))]
    let _ = quick;
    let scores = evaluate(&accesses, options, &mut predictors);
    Ok(lines(&source.name, source.kind == Kind::HeldOut, &scores))
}

#[cfg(test)]
mod tests;
