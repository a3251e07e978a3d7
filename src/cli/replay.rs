//! `presnap replay`: what a policy is worth on a trace. Runs in this process and needs no target.
#![allow(clippy::cast_precision_loss, reason = "shares and times are for people to read")]

use std::mem::discriminant;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use super::{Console, Failure, pretty, render};
use crate::monitor::{FEATURE_NAMES, FEATURES};
use crate::predict::model::{Model, fingerprint};
use crate::replay::policies::{PolicyContext, duration_us};
use crate::replay::{PolicySpec, Progress, ReplayOptions, Report, Schedule, replay_all};

pub(super) const HELP: &str = "\
Examples:
  presnap replay disk.csv.zst
  presnap replay msr.csv --disk usr.0 --policy idle:15s --policy rate:0.8 --every 5m
  presnap replay fio.log --policy deadline --schedule-known --copy-mbytes-per-sec 10
  presnap replay disk.csv --irregular 7 --json

Policies: off, idle[:TIME], rate[:SCORE], likely[:SCORE], logistic[:SCORE], lstm[:SCORE], tuned[:SCORE]
(lstm that learns on), deadline, oracle (knows the trace).
See docs/prediction.md for what the columns mean.";

/// Policies that are compared unless others are named.
const USUAL: [&str; 6] = ["off", "idle:1s", "idle:15s", "idle:60s", "rate:0.5", "oracle"];

/// What to replay and how.
#[allow(clippy::doc_markdown, reason = "these comments are the help text, shown as they are")]
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Traces: presnap's own CSV, MSR Cambridge CSV, or fio iologs (v2, v3), packed with zstd or not
    #[arg(required = true, value_name = "TRACE")]
    pub traces: Vec<PathBuf>,

    /// A policy to replay under; may be given several times [default: off, idle:1s, idle:15s,
    /// idle:60s, rate:0.5, oracle]
    #[arg(long = "policy", value_name = "POLICY")]
    pub policies: Vec<PolicySpec>,

    /// Time between snapshots
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration_us)]
    pub every: u64,

    /// Snapshots at irregular times that this seed chooses, instead
    #[arg(long, value_name = "SEED", conflicts_with = "every")]
    pub irregular: Option<u64>,

    /// Tell predictors when the next snapshot will be
    #[arg(long)]
    pub schedule_known: bool,

    /// Size of a chunk: a power of two from 64 to 4096
    #[arg(long, value_name = "KIB", default_value_t = 256, value_parser = chunk_kib)]
    pub chunk_size_kib: u32,

    /// Limit on staged copies, in chunks
    #[arg(long, value_name = "CHUNKS")]
    pub staging_chunks_max: Option<u64>,

    /// Limit on background copying, in units of 10^6 bytes; may be a fraction
    #[arg(long, value_name = "MB", value_parser = megabytes)]
    pub copy_mbytes_per_sec: Option<u64>,

    /// Model for logistic, lstm and tuned, as presnap train writes it; absent: the one that presnap
    /// ships with
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,

    /// Which disk (MSR: HOST.NUMBER) or file (fio) of a trace that has several
    #[arg(long, value_name = "NAME")]
    pub disk: Option<String>,
}

fn chunk_kib(text: &str) -> Result<u32, String> {
    let kib = text.parse().ok().filter(|kib: &u32| kib.is_power_of_two());
    kib.filter(|kib| (64..=4096).contains(kib))
        .ok_or_else(|| format!("{text} is no power of two from 64 to 4096"))
}

/// Bytes of a number of megabytes.
#[allow(clippy::cast_sign_loss, reason = "checked to be positive")]
fn megabytes(text: &str) -> Result<u64, String> {
    let megabytes: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (1e-3..=1e6).contains(&megabytes) {
        Ok((megabytes * 1e6) as u64)
    } else {
        Err(format!("{text} is not between 0.001 and 1000000"))
    }
}

/// Replays all; the answer is what to print.
pub(super) fn run(
    args: &ReplayArgs,
    json: bool,
    console: &mut Console<'_>,
) -> Result<String, Failure> {
    let mut policies = args.policies.clone();
    if policies.is_empty() {
        policies = USUAL.map(|text| text.parse().expect("the usual ones are well formed")).to_vec();
    }
    let schedule = match args.irregular {
        Some(seed) => Schedule::irregular(seed),
        None => Schedule::Every(args.every),
    };
    let feature_set = fingerprint(&FEATURE_NAMES);
    let model = match &args.model {
        Some(path) => Model::load(path, FEATURES, feature_set),
        None => Model::shipped(),
    };
    let model = model.map_err(|error| Failure::refused(error.to_string()))?;
    let mut reports = Vec::new();
    for trace in &args.traces {
        let context = PolicyContext {
            path: trace,
            disk: args.disk.as_deref(),
            chunk_bytes: args.chunk_size_kib << 10,
            schedule,
            schedule_known: args.schedule_known,
            model: &model,
        };
        let mut of_trace = vec![None; policies.len()];
        for places in families(&policies) {
            // They differ in their thresholds only: one predictor serves them all.
            let first = policies[places[0]];
            let companion = first.companion(&context);
            let companion = companion.map_err(|error| Failure::refused(error.to_string()))?;
            let options = places.iter().map(|&place| ReplayOptions {
                disk: args.disk.clone(),
                chunk_bytes: context.chunk_bytes,
                schedule,
                staging_chunks_max: args.staging_chunks_max,
                copy_bytes_per_s_max: args.copy_mbytes_per_sec,
                ..ReplayOptions::new(policies[place].policy_with(companion.as_ref(), &context))
            });
            let began = Instant::now();
            let label = match places.len() {
                1 => format!("{} {first}", trace.display()),
                count => format!("{} {first} and {} more", trace.display(), count - 1),
            };
            let mut show = |progress: Progress| {
                if console.err_is_terminal {
                    let line = progress_line(&label, progress, began.elapsed().as_secs_f64());
                    let _ = write!(console.err, "{ERASE}{line}").and_then(|()| console.err.flush());
                }
            };
            let result = replay_all(trace, options.collect(), &mut show);
            if console.err_is_terminal {
                let _ = write!(console.err, "{ERASE}").and_then(|()| console.err.flush());
            }
            let family = result.map_err(|error| Failure::refused(error.to_string()))?;
            for (place, report) in places.into_iter().zip(family) {
                of_trace[place] = Some(report);
            }
        }
        reports.extend(of_trace.into_iter().flatten());
    }
    if json {
        return Ok(pretty(&Value::Array(reports.iter().map(to_json).collect())));
    }
    Ok(reports.chunk_by(|a, b| a.trace == b.trace).map(table).collect::<Vec<_>>().join("\n"))
}

/// Places of the policies that differ in their settings only, together.
fn families(policies: &[PolicySpec]) -> Vec<Vec<usize>> {
    let mut families: Vec<Vec<usize>> = vec![];
    for (place, spec) in policies.iter().enumerate() {
        let is_kin =
            |family: &&mut Vec<usize>| discriminant(&policies[family[0]]) == discriminant(spec);
        match families.iter_mut().find(is_kin) {
            Some(family) => family.push(place),
            None => families.push(vec![place]),
        }
    }
    families
}

/// Back to the line's begin, and erase it.
const ERASE: &str = "\r\x1b[K";

fn progress_line(label: &str, progress: Progress, elapsed_s: f64) -> String {
    let share = progress.done_us as f64 / progress.span_us.max(1) as f64;
    if share <= 0.0 {
        return label.to_owned();
    }
    format!(
        "{}: {:.0}%, {:.0} s left",
        render::clean(label),
        share * 100.0,
        elapsed_s * (1.0 - share) / share
    )
}

/// The report with what follows from it.
fn to_json(report: &Report) -> Value {
    let mut value = serde_json::to_value(report).expect("a report can be written");
    value["adopted_share"] = json!(report.adopted_share());
    value["right_share"] = json!(report.right_share());
    value["copies_per_required"] = json!(report.copies_per_required());
    value["bytes_per_required"] = json!(report.bytes_per_required());
    value["wasted_per_modified"] = json!(report.wasted_per_modified());
    value
}

fn table(reports: &[Report]) -> String {
    let first = &reports[0];
    let headings = [
        "POLICY", "REQUIRED", "ADOPTED", "RIGHT", "COPIES", "BYTES", "WASTED", "WHOLE", "PARTIAL",
        "LEFT", "PARKED", "WAIT", "COMPLETE", "WORST",
    ];
    let right: Vec<usize> = (1..headings.len()).collect();
    let mut table = render::table(&headings, &right);
    for report in reports {
        let left = &report.left;
        table.add_row([
            render::clean(&report.policy),
            report.required.to_string(),
            format!("{:.1}%", report.adopted_share() * 100.0),
            format!("{:.1}%", report.right_share() * 100.0),
            format!("{:.2}", report.copies_per_required()),
            format!("{:.2}", report.bytes_per_required()),
            format!("{:.2}", report.wasted_per_modified()),
            left.whole_chunks.to_string(),
            left.partial_chunks.to_string(),
            format!("{:.1} MB", (left.whole_bytes + left.partial_bytes) as f64 / 1e6),
            report.parked.commands.to_string(),
            format!("{:.1} ms", report.parked.wait_us as f64 / 1e3),
            format!("{:.1} ms", report.complete_us_mean as f64 / 1e3),
            format!("{:.1} ms", report.complete_us_max as f64 / 1e3),
        ]);
    }
    let failed: u64 = reports.iter().map(|report| report.failed).sum();
    let failed = if failed > 0 { format!("; {failed} FAILED") } else { String::new() };
    format!(
        "{}: {:.0} s, {} modifications, {} snapshots ({}){failed}\n{}",
        render::clean(&first.trace),
        first.span_us as f64 / 1e6,
        first.modifications,
        first.snapshots.len(),
        first.schedule,
        render::text(&table)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_the_time_left() {
        let line = progress_line("t idle", Progress { done_us: 25, span_us: 100 }, 2.0);
        assert_eq!(line, "t idle: 25%, 6 s left");
        assert_eq!(progress_line("t", Progress { done_us: 0, span_us: 100 }, 2.0), "t");
    }

    #[test]
    fn policies_of_a_kind_are_replayed_together() {
        let policies = ["rate:0.1", "off", "rate:0.2", "idle:1s"]
            .map(|text| text.parse().expect("well formed"));
        assert_eq!(families(&policies), [vec![0, 2], vec![1], vec![3]]);
    }

    #[test]
    fn rates_are_megabytes() {
        assert_eq!(megabytes("1.5"), Ok(1_500_000));
        assert!(megabytes("0").is_err() && megabytes("x").is_err() && megabytes("1e9").is_err());
    }
}
