//! The report: `report.html`, `summary.json`, the terminal's table, and the history.

mod html;
pub(super) mod prediction;
mod svg;
mod text;

pub use text::summary as text_summary;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::place::Programs;
use super::result::ScenarioResult;
use super::{PerfError, unix_ms, write_file};
use crate::rpc::objects::rfc3339;

/// The report's file.
pub const REPORT: &str = "report.html";
/// The summary's file.
pub const SUMMARY: &str = "summary.json";

/// Where and when something was measured.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Machine {
    /// Begin, UTC.
    pub at: String,
    /// The processor.
    pub processor: String,
    /// Its cores, as the system counts them.
    pub cores: usize,
    /// Memory.
    pub memory_gib: f64,
    /// The kernel.
    pub kernel: String,
    /// Version of presnap.
    pub presnap: String,
    /// Version of fio.
    pub fio: String,
    /// Programs that wanted a core when it began: above 0.5 or so, others were at work.
    pub load_average: f64,
}

impl Machine {
    /// This one, now, where these programs run.
    pub fn of(programs: &Programs) -> Self {
        let version = |program: &Path| {
            let output = Command::new(program).arg("--version").output();
            let text = output.map(|output| output.stdout).unwrap_or_default();
            String::from_utf8_lossy(&text).trim().to_owned()
        };
        Self { presnap: version(&programs.presnap), fio: version(Path::new("fio")), ..Self::here() }
    }

    /// This one, now, where only this program runs.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let memory = read("/proc/meminfo");
        let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = kib.and_then(|text| text.trim().trim_end_matches(" kB").parse::<f64>().ok());
        let load = read("/proc/loadavg");
        Self {
            at: rfc3339(unix_ms()),
            processor: model.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib.unwrap_or(0.0) / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            presnap: concat!("presnap ", env!("CARGO_PKG_VERSION")).to_owned(),
            fio: String::new(),
            load_average: load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
        }
    }
}

/// Everything as one JSON object.
pub fn summary(machine: &Machine, results: &[ScenarioResult]) -> Value {
    json!({"version": 1, "machine": machine, "scenarios": results})
}

/// Writes report and summary into `folder`.
///
/// # Errors
/// When a file cannot be written.
pub fn write(
    folder: &Path,
    machine: &Machine,
    results: &[ScenarioResult],
) -> Result<(), PerfError> {
    write_file(&folder.join(SUMMARY), &format!("{:#}\n", summary(machine, results)))?;
    write_file(&folder.join(REPORT), &html::page(machine, results))
}

/// Adds a line per scenario: medians only, so that years of them can be read at once.
///
/// # Errors
/// When the file cannot be written.
pub fn add_to_history(
    path: &Path,
    machine: &Machine,
    results: &[ScenarioResult],
) -> Result<(), PerfError> {
    let failed = |error| PerfError::failed(format!("{}: {error}", path.display()));
    let mut file = fs::File::options().create(true).append(true).open(path).map_err(failed)?;
    for result in results {
        let rows: Vec<Value> = result
            .rows
            .iter()
            .map(|row| {
                let medians: serde_json::Map<String, Value> = row
                    .figures
                    .iter()
                    .map(|(id, values)| (id.clone(), json!(values.median)))
                    .collect();
                json!({"contender": row.contender, "step": row.step, "figures": medians})
            })
            .collect();
        let line = json!({"at": machine.at, "presnap": machine.presnap,
            "processor": machine.processor, "cores": machine.cores, "scenario": result.name,
            "rounds": result.rounds, "partial": result.partial,
            "failures": result.failures.len(), "rows": rows});
        writeln!(file, "{line}").map_err(failed)?;
    }
    Ok(())
}
