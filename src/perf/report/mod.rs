//! The report: `report.html`, `summary.json`, the terminal's table, and the history.

mod html;
mod svg;
mod text;

pub use text::summary as text_summary;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::place::Programs;
use super::result::ScenarioResult;
use super::{PerfError, write_file};

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
    /// This one, now.
    pub fn of(programs: &Programs) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let version = |program: &Path| {
            let output = Command::new(program).arg("--version").output();
            let text = output.map(|output| output.stdout).unwrap_or_default();
            String::from_utf8_lossy(&text).trim().to_owned()
        };
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let memory = read("/proc/meminfo");
        let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = kib.and_then(|text| text.trim().trim_end_matches(" kB").parse::<f64>().ok());
        let load = read("/proc/loadavg");
        Self {
            at: utc(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            processor: model.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib.unwrap_or(0.0) / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            presnap: version(&programs.presnap),
            fio: version(Path::new("fio")),
            load_average: load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
        }
    }
}

/// RFC 3339 of a time since the Unix epoch, in seconds.
fn utc(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (mut year, mut days) = (1970, seconds / 86_400);
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    while days >= if leap(year) { 366 } else { 365 } {
        days -= if leap(year) { 366 } else { 365 };
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        let at = |seconds| utc(Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_632_466), "2026-11-25T18:47:46Z");
    }
}
