//! fio with SPDK's bdev plugin: its command line, and what it reports.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value};

use super::PerfError;
use super::latency::{self, Sample};
use super::place::{Interrupt, Programs, Running};
use super::scenario::Load;

/// Hugepage memory of fio's process where the bdev is remote.
pub const MEMORY_MIB: u64 = 384;
/// fio ends so much later than asked, at most: start, connecting, and a command that takes long.
const LATE_MAX: Duration = Duration::from_mins(2);
/// Bytes per command of filling.
const FILL_KIB: u32 = 128;

/// One start of fio.
#[derive(Debug)]
pub struct Job<'a> {
    /// Name of its files in `folder`.
    pub name: &'a str,
    /// Where its files go.
    pub folder: &'a Path,
    /// SPDK's configuration for its process.
    pub config: &'a Value,
    /// The bdev in its process.
    pub bdev: &'a str,
    /// Hugepage memory of its process.
    pub memory_mib: u64,
    /// Cores that it runs on.
    pub cores: &'a str,
    /// What it does.
    pub load: &'a Load,
    /// A trace to replay, converted.
    pub iolog: Option<&'a Path>,
    /// How long; `None`: once over the whole bdev.
    pub seconds: Option<u32>,
    /// Seed of its random offsets: the same for all contenders of a round.
    pub seed: u32,
    /// Whether every command is logged.
    pub logs: bool,
}

/// fio at work.
pub struct Fio {
    running: Running,
    folder: PathBuf,
    name: String,
    within: Duration,
    logs: bool,
    jobs: u32,
}

/// A load that fills a bdev once.
pub fn filling() -> Load {
    Load {
        rw: "write".into(),
        read_percent: None,
        block_kib: FILL_KIB,
        queue_depth: 8,
        jobs: 1,
        rate_iops: None,
        distribution: None,
        trace: None,
    }
}

impl Job<'_> {
    fn file(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}{suffix}", self.name))
    }

    /// Everything after `fio`.
    fn arguments(&self) -> Vec<String> {
        let load = self.load;
        let path = |suffix: &str| self.file(suffix).display().to_string();
        let mut arguments = vec![
            format!("--name={}", self.name),
            "--ioengine=spdk_bdev".into(),
            format!("--spdk_json_conf={}", path(".spdk.json")),
            format!("--spdk_mem={}", self.memory_mib),
            "--thread=1".into(),
            "--direct=1".into(),
            format!("--filename={}", self.bdev),
            format!("--output={}", path(".fio.json")),
            "--output-format=json+".into(),
            // One clock per command: from submission to completion.
            "--lat_percentiles=1".into(),
            "--clat_percentiles=0".into(),
            "--disable_slat=1".into(),
            "--disable_clat=1".into(),
            format!("--randseed={}", self.seed),
        ];
        if self.logs {
            arguments.push(format!("--write_lat_log={}", path("")));
            arguments.push("--log_unix_epoch=1".into());
        }
        if let Some(iolog) = self.iolog {
            arguments.push(format!("--read_iolog={}", iolog.display()));
            // What the plugin opens is the file named here, not the one in the iolog.
            arguments.push(format!("--replay_redirect={}", self.bdev));
            // fio's replay looks for completions only where its queue is full: with more, an early
            // command would be said to take until the next one.
            arguments.push("--iodepth=1".into());
            return arguments;
        }
        arguments.push(format!("--rw={}", load.rw));
        arguments.push(format!("--bs={}k", load.block_kib));
        arguments.push(format!("--iodepth={}", load.queue_depth));
        arguments.push(format!("--numjobs={}", load.jobs));
        arguments.push("--norandommap=1".into());
        if let Some(percent) = load.read_percent {
            arguments.push(format!("--rwmixread={percent}"));
        }
        if let Some(distribution) = &load.distribution {
            arguments.push(format!("--random_distribution={distribution}"));
        }
        if let Some(iops) = load.rate_iops {
            // Per job and per direction.
            let iops = iops / load.jobs;
            let rate = match load.read_percent {
                Some(percent) => {
                    format!("{},{}", iops * percent / 100, iops * (100 - percent) / 100)
                }
                None => iops.to_string(),
            };
            arguments.push(format!("--rate_iops={rate}"));
        }
        if let Some(seconds) = self.seconds {
            arguments.push("--time_based=1".into());
            arguments.push(format!("--runtime={seconds}"));
        }
        arguments.push("--size=100%".into());
        arguments
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, programs: &Programs) -> Result<Fio, PerfError> {
        let config = self.file(".spdk.json");
        fs::write(&config, format!("{:#}\n", self.config))
            .map_err(|error| PerfError::failed(format!("{}: {error}", config.display())))?;
        let log = self.file(".log");
        // The plugin can be loaded into fio alone, so `env` does it, after everything else.
        let running = Running::start("fio", &log, Some(self.cores), "env", |command| {
            command.arg(format!("LD_PRELOAD={}", programs.fio_plugin.display())).arg("fio");
            command.args(self.arguments()).current_dir(self.folder);
        })?;
        Ok(Fio {
            running,
            folder: self.folder.to_owned(),
            name: self.name.to_owned(),
            within: self.seconds.map_or(LATE_MAX * 5, |s| Duration::from_secs(s.into()) + LATE_MAX),
            logs: self.logs,
            jobs: self.load.jobs,
        })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, programs: &Programs, interrupt: &Interrupt) -> Result<FioReport, PerfError> {
        self.start(programs)?.finish(interrupt)
    }
}

impl Fio {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When it has failed.
    pub fn runs(&mut self) -> Result<bool, PerfError> {
        match self.running.ended()? {
            None => Ok(true),
            Some(status) if status.success() => Ok(false),
            Some(status) => Err(self.running.failure(status)),
        }
    }

    /// Waits for its end and reads what it reports. Logs are packed.
    ///
    /// # Errors
    /// When it fails, or one of its commands did.
    pub fn finish(self, interrupt: &Interrupt) -> Result<FioReport, PerfError> {
        self.running.finish(interrupt, self.within)?;
        let path = self.folder.join(format!("{}.fio.json", self.name));
        let text = fs::read_to_string(&path)
            .map_err(|error| PerfError::failed(format!("{}: {error}", path.display())))?;
        let mut report = FioReport::parse(&text)
            .map_err(|problem| PerfError::failed(format!("{}: {problem}", path.display())))?;
        if self.logs {
            for job in 1..=self.jobs {
                let log = self.folder.join(format!("{}_lat.{job}.log", self.name));
                latency::read_log(&log, &mut report.samples)?;
                pack(&log)?;
            }
        }
        Ok(report)
    }

    /// Ends it early.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(self) -> Result<(), PerfError> {
        // SPDK's plugin does not always survive a signal; what it reports is not used.
        match self.running.stop() {
            Err(PerfError::Failed(_)) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Packs a log: they are long, and kept for those who doubt.
fn pack(path: &Path) -> Result<(), PerfError> {
    let failed = |error| PerfError::failed(format!("{}: {error}", path.display()));
    let packed = PathBuf::from(format!("{}.zst", path.display()));
    let source = fs::File::open(path).map_err(failed)?;
    let target = fs::File::create(packed).map_err(failed)?;
    zstd::stream::copy_encode(source, target, 1).map_err(failed)?;
    fs::remove_file(path).map_err(failed)
}

/// One direction of a report.
#[derive(Clone, Debug)]
pub struct Direction {
    /// Commands.
    pub commands: u64,
    /// Bytes.
    pub bytes: u64,
    /// Commands per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Latencies in nanoseconds.
    pub latencies: Histogram<u64>,
}

/// What fio reports, all jobs together.
#[derive(Clone, Debug)]
pub struct FioReport {
    /// Reads.
    pub read: Direction,
    /// Writes.
    pub write: Direction,
    /// CPU time of its threads, as a share of their time.
    pub cpu_share: f64,
    /// Every command, if they were logged.
    pub samples: Vec<Sample>,
}

impl FioReport {
    /// Reads a report in format `json+`. SPDK may have written lines before it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let start = text.find('{').ok_or("it has no JSON in it")?;
        let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
        let report = values.next().ok_or("it has no JSON in it")?.map_err(|e| e.to_string())?;
        let jobs = report["jobs"].as_array().filter(|jobs| !jobs.is_empty());
        let jobs = jobs.ok_or("it has no jobs")?;
        if let Some(job) = jobs.iter().find(|job| job["error"].as_i64() != Some(0)) {
            return Err(format!("a job ended with error {}", job["error"]));
        }
        let cpu = |job: &Value| {
            job["usr_cpu"].as_f64().unwrap_or(0.0) + job["sys_cpu"].as_f64().unwrap_or(0.0)
        };
        Ok(Self {
            read: Direction::sum(jobs, "read")?,
            write: Direction::sum(jobs, "write")?,
            cpu_share: jobs.iter().map(cpu).sum::<f64>() / 100.0,
            samples: Vec::new(),
        })
    }
}

impl Direction {
    fn sum(jobs: &[Value], direction: &str) -> Result<Self, String> {
        let mut sum = Self {
            commands: 0,
            bytes: 0,
            iops: 0.0,
            bytes_per_s: 0.0,
            latencies: latency::histogram(),
        };
        for job in jobs {
            let part = &job[direction];
            let number = |field: &str| {
                part[field].as_f64().ok_or_else(|| format!("it has no {direction}.{field}"))
            };
            sum.commands += number("total_ios")? as u64;
            sum.bytes += number("io_bytes")? as u64;
            sum.iops += number("iops")?;
            sum.bytes_per_s += number("bw_bytes")?;
            let none = Map::new();
            for (ns, count) in part["lat_ns"]["bins"].as_object().unwrap_or(&none) {
                let (ns, count) = ns
                    .parse()
                    .ok()
                    .zip(count.as_u64())
                    .ok_or_else(|| format!("a bin of {direction}.lat_ns is {ns:?}: {count}"))?;
                sum.latencies.saturating_record_n(u64::max(ns, 1), count);
            }
        }
        Ok(sum)
    }
}

#[cfg(test)]
#[path = "fio_tests.rs"]
mod tests;
