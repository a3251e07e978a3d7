//! `presnap perf`: options, and how its result is shown. What it does is in `crate::perf`.

use std::path::PathBuf;

use clap::Args;

use super::{Console, Failure, pretty};
use crate::perf::contender::Contender;
use crate::perf::device::Source;
use crate::perf::{self, PerfError, PerfOptions, report, scenario};

pub(super) const HELP: &str = "\
Examples:
  presnap perf --list
  presnap perf smoke
  presnap perf zipf --rounds 5 --out results
  presnap perf trace-replay --trace disk.csv.zst --history perf/history.jsonl
  presnap perf zipf --contender presnap:lstm --contender lvol:1MiB
  presnap perf zipf --master pcie:0000:01:00.0 --store pcie:0000:02:00.0 --erase

Needs root, fio and SPDK's plugin for it (scripts/setup.sh builds that). Ctrl-C stops it; what was measured
until then is kept. perf/README.md says how it measures and what a scenario's file has in it.";

/// Scenario that is not run unless it is named: its figures say nothing.
const NOT_BY_ITSELF: &str = "smoke";

/// What to measure.
#[allow(clippy::doc_markdown, reason = "these comments are the help text, shown as they are")]
#[derive(Args, Clone, Debug)]
pub struct PerfArgs {
    /// Scenarios: names of shipped ones, or paths of files; absent: all shipped ones but smoke
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<String>,

    /// List the shipped scenarios
    #[arg(long)]
    pub list: bool,

    /// Folder for the report, the summary and everything raw
    #[arg(long, value_name = "DIR", default_value = "perf-results")]
    pub out: PathBuf,

    /// How often each contender runs, instead of as often as the scenario says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: Option<u32>,

    /// A contender, instead of the scenario's; may be given several times
    #[arg(long = "contender", value_name = "NAME")]
    pub contenders: Vec<Contender>,

    /// Device of the master: malloc, null, aio:PATH, uring:PATH or pcie:0000:01:00.0
    #[arg(long, value_name = "DEVICE")]
    pub master: Option<Source>,

    /// Device of the store, likewise
    #[arg(long, value_name = "DEVICE")]
    pub store: Option<Source>,

    /// Overwrite what is on these devices and files
    #[arg(long)]
    pub erase: bool,

    /// Trace for scenarios that replay one, instead of their own
    #[arg(long, value_name = "FILE")]
    pub trace: Option<String>,

    /// Cores of the target's reactors, as for presnap serve, instead of the scenario's
    #[arg(long, value_name = "MASK")]
    pub reactor_cores: Option<String>,

    /// Cores of fio, as a list, instead of the scenario's
    #[arg(long, value_name = "LIST")]
    pub fio_cores: Option<String>,

    /// The presnap to measure; absent: this one
    #[arg(long, value_name = "PATH")]
    pub program: Option<PathBuf>,

    /// File to which a line of medians per scenario is added
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
}

/// Measures; the answer is what to print.
pub(super) fn run(
    args: &PerfArgs,
    json: bool,
    console: &mut Console<'_>,
) -> Result<String, Failure> {
    if args.list {
        return Ok(list(json));
    }
    let mut scenarios = args.scenarios.clone();
    if scenarios.is_empty() {
        let names = scenario::shipped().map(|scenario| scenario.name);
        scenarios = names.filter(|name| name != NOT_BY_ITSELF).collect();
    }
    let options = PerfOptions {
        scenarios,
        out: args.out.clone(),
        rounds: args.rounds,
        contenders: args.contenders.clone(),
        master: args.master.clone(),
        store: args.store.clone(),
        erase: args.erase,
        trace: args.trace.clone(),
        reactor_cores: args.reactor_cores.clone(),
        fio_cores: args.fio_cores.clone(),
        program: args.program.clone(),
        history: args.history.clone(),
    };
    let outcome = perf::run(&options, console.err, console.err_is_terminal);
    let outcome = outcome.map_err(|error| match error {
        PerfError::Usage(text) => Failure::usage(text),
        error => Failure::refused(error.to_string()),
    })?;
    let text = if json {
        pretty(&report::summary(&outcome.machine, &outcome.results))
    } else {
        let text = report::text_summary(&outcome.results);
        format!("{text}\nreport: {}\n", outcome.report.display())
    };
    let message = if outcome.interrupted {
        PerfError::Interrupted.to_string()
    } else if outcome.failed() {
        "some runs failed; their logs are in the folder `raw` beside the report".into()
    } else {
        return Ok(text);
    };
    Err(Failure { text: Some(text), ..Failure::refused(message) })
}

fn list(json: bool) -> String {
    let scenarios: Vec<_> = scenario::shipped().collect();
    if json {
        return pretty(&serde_json::json!(scenarios));
    }
    let width = scenarios.iter().map(|scenario| scenario.name.len()).max().unwrap_or(0);
    scenarios.iter().fold(String::new(), |text, scenario| {
        text + &format!("{:width$}  {}\n", scenario.name, scenario.title)
    })
}
