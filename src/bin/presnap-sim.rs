//! Runs seeded histories of the simulator (`presnap::replay::sim`) and reports what they showed.
#![forbid(unsafe_code)]

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use presnap::replay::sim::{self, Report, Violation};

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
    /// Histories at once, each on one thread.
    #[arg(long, default_value = "1")]
    threads: NonZeroUsize,
}

/// What all histories showed.
#[derive(Default)]
struct Findings {
    histories: u64,
    total: Report,
    violations: Vec<Violation>,
}

impl Findings {
    /// Runs what the options ask for.
    fn of(options: &Options, begin: Instant) -> Self {
        let (first, count) = match options.seed {
            Some(seed) => (seed, 1),
            None => (options.from_seed, options.histories),
        };
        let end = first.saturating_add(count);
        let limit = options.seconds.map_or(Duration::MAX, Duration::from_secs);
        let (next, violations) = (AtomicU64::new(first), AtomicUsize::new(0));
        let work = || {
            let mut found = Findings::default();
            while begin.elapsed() <= limit
                && violations.load(Ordering::Relaxed) < options.violations
            {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    break;
                }
                found.histories += 1;
                match sim::run(seed, options.trace) {
                    Ok(report) => found.total.add(&report),
                    Err(violation) => {
                        violations.fetch_add(1, Ordering::Relaxed);
                        found.violations.push(violation);
                    }
                }
            }
            found
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..options.threads.get()).map(|_| scope.spawn(work)).collect();
            let mut all = Findings::default();
            for thread in threads {
                let found = thread.join().expect("violations are caught");
                all.histories += found.histories;
                all.total.add(&found.total);
                all.violations.extend(found.violations);
            }
            all.violations.sort_by_key(|violation| violation.seed);
            all
        })
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let begin = Instant::now();
    let Findings { histories, total, violations } = Findings::of(&options, begin);
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
