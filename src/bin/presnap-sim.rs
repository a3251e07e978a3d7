//! Runs seeded histories of the simulator (`presnap::replay::sim`) and reports what they showed.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use presnap::replay::sim::{self, Report};

/// Run simulated histories of a volume and its snapshots. Exit status 1: an invariant is broken.
#[derive(Debug, Parser)]
#[command(name = "presnap-sim")]
struct Options {
    /// Number of histories.
    #[arg(long, default_value_t = 1000)]
    histories: u64,
    /// Seed of the first; the others follow.
    #[arg(long, default_value_t = 0)]
    from_seed: u64,
    /// Only the history of this seed.
    #[arg(long, conflicts_with_all = ["histories", "from_seed"])]
    seed: Option<u64>,
    /// Tell each step.
    #[arg(long)]
    trace: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Stop after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Stop after so many violations.
    #[arg(long, default_value_t = 5)]
    violations: usize,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let (first, count) = match options.seed {
        Some(seed) => (seed, 1),
        None => (options.from_seed, options.histories),
    };
    let begin = Instant::now();
    let limit = options.seconds.map_or(Duration::MAX, Duration::from_secs);
    let mut total = Report::default();
    let mut violations = Vec::new();
    let mut histories = 0u64;
    for seed in first..first.saturating_add(count) {
        if begin.elapsed() > limit || violations.len() >= options.violations {
            break;
        }
        histories += 1;
        match sim::run(seed, options.trace) {
            Ok(report) => {
                total.marks.add(&report.marks);
                total.statistics.add(&report.statistics);
            }
            Err(violation) => violations.push(violation),
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let per_second = f64::from(u32::try_from(histories).unwrap_or(u32::MAX)) / seconds;
    let s = total.statistics;
    if options.json {
        let marks: serde_json::Map<String, serde_json::Value> = total
            .marks
            .iter()
            .map(|(mark, count)| (mark.words().to_owned(), count.into()))
            .collect();
        let violations: Vec<_> = violations
            .iter()
            .map(|v| serde_json::json!({ "seed": v.seed, "words": v.words }))
            .collect();
        let report = serde_json::json!({
            "histories": histories,
            "histories_per_second": per_second,
            "steps": s.steps,
            "commands": s.commands,
            "snapshots_complete": s.snapshots_complete,
            "snapshots_failed": s.snapshots_failed,
            "snapshots_compared": s.snapshots_compared,
            "chunks_compared": s.chunks_compared,
            "faults": s.faults,
            "marks": marks,
            "violations": violations,
        });
        println!("{report:#}");
    } else {
        for (mark, count) in total.marks.iter() {
            println!("{count:>9} {}", mark.words());
        }
        println!(
            "{histories} histories in {seconds:.1} s ({per_second:.0}/s), {} steps, {} commands, \
             {} faults",
            s.steps, s.commands, s.faults
        );
        println!(
            "{} snapshots complete, {} failed; compared: {} snapshots, {} chunks",
            s.snapshots_complete, s.snapshots_failed, s.snapshots_compared, s.chunks_compared
        );
        println!("{} of {} marks met", total.marks.met(), sim::Mark::ALL.len());
        for violation in &violations {
            let words: String = violation.words.chars().take(600).collect();
            println!("\nseed {}: {words}", violation.seed);
            println!(
                "  cargo run --release --no-default-features --bin presnap-sim -- --seed {} --trace",
                violation.seed
            );
        }
    }
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
