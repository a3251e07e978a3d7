//! `presnap report`: options, and how its result is shown. What it does is in `crate::perf::prediction`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{Console, Failure, pretty, render};
use crate::monitor::{FEATURE_NAMES, FEATURES};
use crate::perf::PerfError;
use crate::perf::prediction::{self, Outcome, PredictionOptions};
use crate::perf::report::{REPORT, SUMMARY};
use crate::predict::model::{Model, fingerprint};
use crate::replay::traces_folder;

pub(super) const HELP: &str = "\
Examples:
  presnap report traces --out prediction-report
  presnap report disk.csv.zst --quick
  presnap report traces --model my.presnap-model --learned-from office,build
  presnap report --workloads 10 --threads 8

Needs no target. Writes report.html (opens in any browser, without network), summary.json, and the traces that
it makes up. With six traces and two cores --quick takes a quarter of an hour, and all of it some hours.";

/// What to replay for the report.
#[allow(clippy::doc_markdown, reason = "these comments are the help text, shown as they are")]
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// Traces as for presnap replay, or folders of them [default: the folder PRESNAP_TRACES, if
    /// there is one]
    #[arg(value_name = "TRACE")]
    pub traces: Vec<PathBuf>,

    /// Folder for the report
    #[arg(long, value_name = "DIR", default_value = "prediction-report")]
    pub out: PathBuf,

    /// Fewer settings of each policy, fewer schedules, and no training
    #[arg(long)]
    pub quick: bool,

    /// Replays at once [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Made-up workloads on volumes of 4 TiB: so many kinds [default: 3, or none with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=10))]
    pub workloads: Option<u16>,

    /// Model for logistic, lstm and tuned, as presnap train writes it; absent: the one that presnap
    /// ships with
    #[arg(long, value_name = "FILE", requires = "learned_from")]
    pub model: Option<PathBuf>,

    /// Texts in the names of the traces that the model was trained on: these do not count
    #[arg(long, value_name = "TEXT", num_args = 1.., value_delimiter = ',')]
    pub learned_from: Option<Vec<String>>,
}

/// Makes the report; the answer is what to print.
pub(super) fn run(
    args: &ReportArgs,
    json: bool,
    console: &mut Console<'_>,
) -> Result<String, Failure> {
    let model = match &args.model {
        Some(path) => Model::load(path, FEATURES, fingerprint(&FEATURE_NAMES)),
        None => Model::shipped(),
    };
    let mut traces = args.traces.clone();
    if traces.is_empty() {
        traces.extend(traces_folder());
    }
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let options = PredictionOptions {
        traces,
        out: args.out.clone(),
        workloads: args.workloads.map_or(if args.quick { 0 } else { 3 }, usize::from),
        quick: args.quick,
        threads: args.threads.map_or_else(cores, usize::from),
        model: model.map_err(|error| Failure::refused(error.to_string()))?,
        learned_from: args.learned_from.clone(),
    };
    let outcome = prediction::run(&options, console.err, console.err_is_terminal);
    let outcome = outcome.map_err(|error| match error {
        PerfError::Usage(text) => Failure::usage(text),
        error => Failure::refused(error.to_string()),
    })?;
    let files = [REPORT, SUMMARY].map(|name| args.out.join(name).display().to_string());
    let text = if json {
        let [report, summary] = &files;
        pretty(&json!({"goals": outcome.goals, "failures": outcome.failures,
            "report": report, "summary": summary}))
    } else {
        format!("{}\nreport: {}\nsummary: {}\n", goals(&outcome), files[0], files[1])
    };
    if outcome.failures.is_empty() {
        return Ok(text);
    }
    let count = outcome.failures.len();
    let message = format!("{count} replays failed, the first: {}", outcome.failures[0]);
    Err(Failure { text: Some(text), ..Failure::refused(render::clean(&message)) })
}

/// A row per goal.
fn goals(outcome: &Outcome) -> String {
    let mut table = render::table(&["GOAL OF LSTM", "", "MET ON", "SUCH AS"], &[2]);
    for goal in &outcome.goals {
        let word = match goal.met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "not measured",
        };
        let (met, counted) = goal.met_of();
        let example = goal.example().map_or_else(String::new, |detail| {
            render::clean(&format!("{}: {}", detail.whereon, detail.measured))
        });
        table.add_row([goal.what.clone(), word.to_owned(), format!("{met} of {counted}"), example]);
    }
    render::text(&table)
}
