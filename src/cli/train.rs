//! `presnap train`: a model from traces.

use std::path::PathBuf;

use clap::Args;

/// What to train.
#[allow(clippy::doc_markdown, reason = "these comments are the help text, shown as they are")]
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct TrainOptions {
    /// Traces to learn from, or folders of them: presnap's CSV, MSR Cambridge CSV or fio iologs,
    /// packed with zstd or not
    #[arg(long, value_name = "PATH", num_args = 1.., value_delimiter = ',')]
    pub traces: Vec<PathBuf>,

    /// Traces that are measured but not learned from: those with one of these texts in their names
    #[arg(long, value_name = "TEXT", num_args = 1.., value_delimiter = ',')]
    pub hold_out: Vec<String>,

    /// File to write the model to; absent: it is measured and dropped
    #[arg(long, short = 'o', value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Measure the model of this file instead of training one
    #[arg(long, value_name = "FILE", conflicts_with = "out")]
    pub measure: Option<PathBuf>,

    /// All chance follows from it: the same seed gives the same model
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Training steps, each of 256 chunks over 16 s
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub steps: u64,

    /// Made-up workloads to learn from as well: so many of each kind
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=100))]
    pub workloads: u64,
}

pub(super) const HELP: &str = "\
Examples:
  presnap train --traces traces --out my.presnap-model
  presnap train --traces traces --hold-out office,build --steps 5000 --json
  presnap train --traces traces --measure models/default.presnap-model

Needs no target. Traces that are held out are judged by what the model never saw; measures on the
others say how well they are known by heart.";

#[cfg(feature = "lstm")]
pub(super) use with_network::run;

#[cfg(feature = "lstm")]
mod with_network {
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::TrainOptions;
    use crate::cli::render;
    use crate::cli::{Console, Failure, pretty};
    use crate::monitor::FEATURES;
    use crate::predict::model::Model;
    use crate::replay::trace::Trace;
    use crate::replay::training::{
        Happening, NamedTrace, Trained, TrainingOptions, feature_set, measure, run as train,
    };

    /// Size of the hidden state: what keeps a tick of 65,536 chunks well under 100 ms.
    const HIDDEN: usize = 32;

    pub fn run(
        options: &TrainOptions,
        json: bool,
        console: &mut Console<'_>,
    ) -> Result<String, Failure> {
        let traces = read(options)?;
        if traces.iter().all(|trace| trace.held_out) && options.workloads == 0 {
            return Err(Failure::usage("nothing to learn from: name --traces or some --workloads"));
        }
        let start = Instant::now();
        let mut tell = teller(console, start);
        let trained = if let Some(path) = &options.measure {
            let model = Model::load(path, FEATURES, feature_set())
                .map_err(|error| Failure::refused(error.to_string()))?;
            Trained { lines: measure(&model, &traces, &mut tell), model }
        } else {
            let training = TrainingOptions {
                seed: options.seed,
                steps: options.steps as usize,
                hidden: HIDDEN,
                workload_instances: options.workloads,
            };
            train(training, &traces, &mut tell)
        };
        if let Some(out) = &options.out {
            trained
                .model
                .save(out, feature_set())
                .map_err(|error| Failure::refused(error.to_string()))?;
        }
        if json {
            let took_s = start.elapsed().as_secs_f64();
            return Ok(pretty(&json!({
                "seed": options.seed,
                "steps": options.steps,
                "workloads": options.workloads,
                "took_s": took_s,
                "measures": trained.lines,
            })));
        }
        Ok(render::measures(&trained.lines))
    }

    /// All traces named, by name; a folder stands for the files in it.
    fn read(options: &TrainOptions) -> Result<Vec<NamedTrace>, Failure> {
        let refuse = |path: &Path, error: std::io::Error| {
            Failure::usage(format!("cannot read {}: {error}", path.display()))
        };
        let mut files: Vec<PathBuf> = vec![];
        for path in &options.traces {
            if path.is_dir() {
                let entries = std::fs::read_dir(path).map_err(|error| refuse(path, error))?;
                for entry in entries {
                    let file = entry.map_err(|error| refuse(path, error))?.path();
                    let name = file.to_string_lossy();
                    if [".csv", ".csv.zst", ".log"].iter().any(|end| name.ends_with(end)) {
                        files.push(file);
                    }
                }
            } else {
                files.push(path.clone());
            }
        }
        files.sort();
        let mut traces = vec![];
        for file in files {
            let trace = Trace::open(&file, None);
            let records = trace.and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let records = records.map_err(|error| Failure::usage(error.to_string()))?;
            let name = file.file_name().map_or_else(String::new, |name| {
                let name = name.to_string_lossy();
                name.split('.').next().unwrap_or(&name).to_owned()
            });
            let held_out = options.hold_out.iter().any(|text| name.contains(text.as_str()));
            traces.push(NamedTrace { name, records, held_out });
        }
        Ok(traces)
    }

    /// Shows on standard error what happens, with the time that is left.
    fn teller<'a, 'b>(
        console: &'a mut Console<'b>,
        start: Instant,
    ) -> impl FnMut(Happening) + use<'a, 'b> {
        let mut training_since = start;
        move |happening| {
            let line = match happening {
                Happening::Preparing(what) => what,
                Happening::Prepared(rows, sources) => {
                    training_since = Instant::now();
                    format!("{rows} rows from {sources} sources, {:.0?}", start.elapsed())
                }
                Happening::Training(progress) => {
                    let per_step = training_since.elapsed() / progress.step as u32;
                    let left = per_step * (progress.steps - progress.step) as u32;
                    let held_out = progress
                        .held_out_loss
                        .map_or_else(String::new, |loss| format!(", held out {loss:.4}"));
                    format!(
                        "step {} of {}: loss {:.4}{held_out}, {:?} left",
                        progress.step,
                        progress.steps,
                        progress.loss,
                        Duration::from_secs(left.as_secs()),
                    )
                }
            };
            let _ = writeln!(console.err, "{line}");
        }
    }
}
