//! From traces and made-up workloads to a trained model and its measures: what `presnap train` does.
//!
//! Traces are split as a whole: one that is held out is measured and never learned from. What is
//! learned from is also shown at other speeds and with other chunk sizes, so that no length of time
//! and no size of one machine is learned by heart.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::manual_midpoint,
    reason = "times and rates are drawn, not exact"
)]

use crate::monitor::FEATURE_NAMES;
use crate::predict::baseline::{Idle, Rate};
use crate::predict::evaluate::{Line, evaluate, lines};
use crate::predict::logistic::Logistic;
use crate::predict::model::{Model, fingerprint};
use crate::predict::random::Random;
use crate::predict::sequences::Sequences;
use crate::predict::train::{Progress, Source, TrainOptions, train};
use crate::predict::{Lstm, Predictor};

use super::accesses::{TICK_US, accesses};
use super::trace::TraceRecord;
use super::workload::{WORKLOADS, WorkloadOptions, generate};

/// Chunk size that traces are measured with.
const CHUNK_BYTES: u32 = 256 << 10;

/// Length of a tick.
const TICK_MS: u32 = (TICK_US / 1000) as u32;

/// How a trace to learn from is shown: its times times this, in chunks of so many bytes.
const VARIANTS: [(f64, u32); 5] =
    [(1.0, CHUNK_BYTES), (1.0, 64 << 10), (0.4, CHUNK_BYTES), (2.5, CHUNK_BYTES), (1.0, 1 << 20)];

/// Rows drawn from each variant of a trace, from each workload, and from each trace held out.
const TRACE_ROWS: usize = 400_000;
const WORKLOAD_ROWS: usize = 120_000;
const HELD_OUT_ROWS: usize = 300_000;

/// Share of what is learned that comes from made-up workloads, if there are traces.
const WORKLOAD_SHARE: f64 = 0.4;

/// A trace of this length or more counts fully, a shorter one for its share: it tells little about
/// minutes.
const FULL_SPAN_S: f64 = 1800.0;

/// Records of a workload.
const WORKLOAD_RECORDS_MAX: usize = 120_000;

/// A trace in memory.
#[derive(Clone, Debug)]
pub struct NamedTrace {
    /// For people.
    pub name: String,
    /// Sorted by time.
    pub records: Vec<TraceRecord>,
    /// Measured only.
    pub held_out: bool,
}

/// What to train.
#[derive(Clone, Copy, Debug)]
pub struct TrainingOptions {
    /// All chance follows from it.
    pub seed: u64,
    /// Training steps.
    pub steps: usize,
    /// Size of the hidden state.
    pub hidden: usize,
    /// Instances of each workload.
    pub workload_instances: u64,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The model.
    pub model: Model,
    /// Measures per trace, window and predictor.
    pub lines: Vec<Line>,
}

/// What happens meanwhile.
#[derive(Clone, Debug)]
pub enum Happening {
    /// This is being read and drawn from, or measured.
    Preparing(String),
    /// So many rows and sources were prepared.
    Prepared(usize, usize),
    /// Training goes on.
    Training(Progress),
}

/// Fingerprint of the features of this program.
pub fn feature_set() -> u64 {
    fingerprint(&FEATURE_NAMES)
}

/// Trains a model on all traces that are not held out and on workloads, and measures it on all
/// traces.
///
/// # Panics
///
/// If there is neither a trace nor a workload to learn from.
pub fn run(
    options: TrainingOptions,
    traces: &[NamedTrace],
    mut tell: impl FnMut(Happening),
) -> Trained {
    let mut random = Random::new(options.seed);
    let mut sources = from_traces(traces, &mut random, &mut tell);
    let traces_weight: f64 = sources.iter().map(|source| source.weight).sum();
    let workloads = from_workloads(options, &mut random, &mut tell);
    let weight = match traces_weight {
        0.0 => 1.0,
        traces => traces * WORKLOAD_SHARE / (1.0 - WORKLOAD_SHARE) / workloads.len().max(1) as f64,
    };
    sources.extend(workloads.into_iter().map(|source| Source { weight, ..source }));
    let held_out: Vec<_> = traces
        .iter()
        .filter(|trace| trace.held_out)
        .map(|trace| source(trace, (1.0, CHUNK_BYTES), HELD_OUT_ROWS, &mut Random::new(1)))
        .collect();
    tell(Happening::Prepared(
        sources.iter().map(|source| source.sequences.rows()).sum(),
        sources.len(),
    ));
    let train_options = TrainOptions {
        seed: random.number(),
        steps: options.steps,
        hidden: options.hidden,
        tick_ms: TICK_MS,
        report_steps: (options.steps / 50).clamp(50, 1000),
    };
    let model = train(train_options, &sources, &held_out, |progress| {
        tell(Happening::Training(progress));
    });
    drop((sources, held_out));
    let lines = measure(&model, traces, tell);
    Trained { model, lines }
}

/// Measures a model and the baselines on all traces.
pub fn measure(model: &Model, traces: &[NamedTrace], mut tell: impl FnMut(Happening)) -> Vec<Line> {
    let mut all = vec![];
    for trace in traces {
        tell(Happening::Preparing(format!("measuring on {}", trace.name)));
        let (accesses, options) = accesses(&trace.records, 1.0, CHUNK_BYTES);
        let mut predictors: [Box<dyn Predictor>; 4] = [
            Box::new(Idle { rest_us: 15_000_000 }),
            Box::new(Rate),
            Box::new(Logistic::new(model.clone())),
            Box::new(Lstm::new(model.clone())),
        ];
        let scores = evaluate(&accesses, options, &mut predictors);
        all.extend(lines(&trace.name, trace.held_out, &scores));
    }
    all
}

fn source(
    trace: &NamedTrace,
    (time_factor, chunk_bytes): (f64, u32),
    rows: usize,
    random: &mut Random,
) -> Source {
    let (accesses, options) = accesses(&trace.records, time_factor, chunk_bytes);
    let span_s = trace.records.last().map_or(0.0, |record| record.time_us as f64 / 1e6);
    Source {
        name: trace.name.clone(),
        sequences: Sequences::draw(&accesses, options, rows, random),
        weight: (span_s / FULL_SPAN_S).clamp(0.1, 1.0),
    }
}

fn from_traces(
    traces: &[NamedTrace],
    random: &mut Random,
    tell: &mut impl FnMut(Happening),
) -> Vec<Source> {
    let mut sources = vec![];
    for trace in traces.iter().filter(|trace| !trace.held_out) {
        tell(Happening::Preparing(trace.name.clone()));
        for (index, variant) in VARIANTS.into_iter().enumerate() {
            let mut source = source(trace, variant, TRACE_ROWS, random);
            // As it was recorded it counts as much as all other variants together.
            source.weight *= if index == 0 { 4.0 } else { 1.0 };
            sources.push(source);
        }
    }
    sources
}

fn from_workloads(
    options: TrainingOptions,
    random: &mut Random,
    tell: &mut impl FnMut(Happening),
) -> Vec<Source> {
    let mut sources = vec![];
    for name in WORKLOADS {
        tell(Happening::Preparing(format!("workload {name}")));
        for _ in 0..options.workload_instances {
            let workload = WorkloadOptions {
                seed: random.number(),
                span_s: random.log_between(1200.0, 6000.0) as u64,
                volume_bytes: random.log_between(16e9, 1e12) as u64,
                records_max: WORKLOAD_RECORDS_MAX,
            };
            let chunk_bytes = [64 << 10, CHUNK_BYTES, CHUNK_BYTES, 1 << 20][random.index(4)];
            let records = generate(name, workload).expect("it is one of them");
            let trace = NamedTrace { name: name.into(), records, held_out: false };
            sources.push(source(&trace, (1.0, chunk_bytes), WORKLOAD_ROWS, random));
        }
    }
    sources
}
