//! Benches inside one process: `presnap-bench`, which stands beside `presnap`.
//!
//! fio's process cannot hold presnap's bdev module, and over NVMe/TCP a nanosecond is lost in noise: what
//! a command costs is measured there.

use std::fs;

use serde_json::Value;
use std::time::Duration;

use super::PerfError;
use super::bed::Context;
use super::place::Running;
use super::result::{RunFigures, StepFigures};

/// Hugepages that it takes.
pub const MEMORY_MIB: u64 = 1200;
/// A bench that takes longer has failed.
const BENCH_MAX: Duration = Duration::from_hours(1);

/// Runs it once, with `arguments`.
///
/// # Errors
/// When it is not there, or fails.
pub fn run(context: Context<'_>, arguments: &[String]) -> Result<RunFigures, PerfError> {
    let program = context.programs.presnap.with_file_name("presnap-bench");
    if !program.is_file() {
        return Err(PerfError::failed(format!(
            "no {}; build it with cargo build --release --bin presnap-bench",
            program.display()
        )));
    }
    (context.say)(&arguments.join(" "));
    let figures = context.folder.join("figures.json");
    let log = context.folder.join("bench.log");
    let running = Running::start("presnap-bench", &log, None, &program, |command| {
        command.args(arguments).arg("--json").arg(&figures);
        command.args(["--cores", &context.scenario.reactor_cores]);
    })?;
    running.finish(context.interrupt, BENCH_MAX)?;
    let text = fs::read_to_string(&figures)
        .map_err(|error| PerfError::failed(format!("{}: {error}", figures.display())))?;
    let figures: Value = serde_json::from_str(&text)
        .map_err(|error| PerfError::failed(format!("{}: {error}", log.display())))?;
    Ok(RunFigures { steps: steps(&figures), ..RunFigures::default() })
}

/// The figures that the report shows; one step per value, named `contender@step`.
fn steps(figures: &Value) -> Vec<StepFigures> {
    let mut steps = Vec::new();
    for entry in figures.as_array().into_iter().flatten() {
        let gib = entry["size_gib"].as_f64().unwrap_or(0.0);
        match entry["bench"].as_str() {
            Some("overhead") => {
                let contender = entry["contender"].as_str().unwrap_or_default();
                let name =
                    format!("{contender}@{gib} GiB {}", entry["load"].as_str().unwrap_or(""));
                add(&mut steps, &name, None, "ns_per_command", &entry["ns_per_command"], 1.0);
                add(&mut steps, &name, None, "share_of_passthru", &entry["share_of_passthru"], 1.0);
            }
            Some("cut") => {
                let name = format!("presnap off@{gib} GiB");
                let x = Some(gib);
                add(&mut steps, &name, x, "cut_us", &entry["cut_us"], 1.0);
                add(&mut steps, &name, x, "consistent_ms", &entry["consistent_us"], 1e-3);
                let longest = &entry["longest_write_us"];
                add(&mut steps, &name, x, "longest_with_ms", &longest["cut"], 1e-3);
                add(&mut steps, &name, x, "longest_without_ms", &longest["without"], 1e-3);
            }
            _ => {}
        }
    }
    steps
}

/// Adds each of `values["values"]`.
fn add(
    steps: &mut Vec<StepFigures>,
    name: &str,
    x: Option<f64>,
    id: &'static str,
    values: &Value,
    factor: f64,
) {
    for value in values["values"].as_array().into_iter().flatten().filter_map(Value::as_f64) {
        let figures = [(id, value * factor)].into();
        steps.push(StepFigures { step: name.to_owned(), x, figures });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_value_of_a_bench_is_a_step() {
        let figures = json!([
            {"bench": "overhead", "size_gib": 64, "load": "write", "contender": "passthru again",
             "ns_per_command": {"values": [70.0, 71.0]}, "share_of_passthru": {"values": [1.0, 1.01]}},
            {"bench": "cut", "size_gib": 1024, "cut_us": {"values": [50.0]},
             "consistent_us": {"values": [2000.0]},
             "longest_write_us": {"cut": {"values": [8000.0]}, "without": {"values": [7000.0]}}},
            {"bench": "memory", "size_gib": 64, "resident_bytes_per_tib": 1},
        ]);
        let steps = steps(&figures);
        let names: Vec<&str> = steps.iter().map(|step| step.step.as_str()).collect();
        assert_eq!(names[..4], ["passthru again@64 GiB write"; 4]);
        assert_eq!(names[4..], ["presnap off@1024 GiB"; 4]);
        assert_eq!(steps[5].figures, [("consistent_ms", 2.0)].into());
        assert_eq!((steps[0].x, steps[7].x), (None, Some(1024.0)));
    }
}
