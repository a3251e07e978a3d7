//! Counters of a target, and what they say about the time between two looks.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use super::PerfError;
use super::stack::{STORE, Stack, VOLUME};
use super::target::Target;

/// Bytes that a bdev has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Commands of both kinds.
    pub commands: u64,
}

/// Busy and idle time of a reactor, in ticks.
type Ticks = (u64, u64);

/// All counters at one time.
#[derive(Clone, Debug)]
pub struct Reading {
    at: Instant,
    /// The bdev under load.
    pub top: Moved,
    /// The master's device.
    pub master: Moved,
    /// The store's device.
    pub store: Moved,
    reactors: Vec<Ticks>,
    /// CPU time of the target's threads by name, in nanoseconds.
    threads: BTreeMap<String, u64>,
    /// Memory of the target that is not hugepages.
    pub resident_bytes: u64,
}

impl Reading {
    /// Reads all counters of `target`.
    ///
    /// # Errors
    /// When the target does not answer.
    pub fn of(target: &mut Target, stack: &Stack) -> Result<Self, PerfError> {
        let moved = |target: &mut Target, bdev: &str| {
            let answer = target.call("bdev_get_iostat", &json!({"name": bdev}))?;
            Ok::<_, PerfError>(Moved::of(&answer["bdevs"][0]))
        };
        let top = moved(target, &stack.top)?;
        let master = moved(target, &stack.master)?;
        let store = match &stack.store {
            Some(store) => moved(target, store)?,
            None => Moved::default(),
        };
        let reactors = target.call("framework_get_reactors", &Value::Null)?;
        let reactors = reactors["reactors"].as_array().into_iter().flatten().map(ticks).collect();
        let pid = target.running.pid();
        Ok(Self {
            at: Instant::now(),
            top,
            master,
            store,
            reactors,
            threads: cpu_ns_by_thread(pid),
            resident_bytes: resident_bytes(pid),
        })
    }
}

impl Reading {
    /// Number of reactors.
    pub fn reactors(&self) -> usize {
        self.reactors.len()
    }
}

impl Moved {
    fn of(bdev: &Value) -> Self {
        let number = |field: &str| bdev[field].as_u64().unwrap_or(0);
        Self {
            read: number("bytes_read"),
            written: number("bytes_written"),
            commands: number("num_read_ops") + number("num_write_ops") + number("num_unmap_ops"),
        }
    }

    /// What was moved since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            read: self.read.saturating_sub(earlier.read),
            written: self.written.saturating_sub(earlier.written),
            commands: self.commands.saturating_sub(earlier.commands),
        }
    }
}

fn ticks(reactor: &Value) -> Ticks {
    (reactor["busy"].as_u64().unwrap_or(0), reactor["idle"].as_u64().unwrap_or(0))
}

/// What happened between two looks.
#[derive(Clone, Copy, Debug)]
pub struct Between {
    /// At the bdev under load.
    pub top: Moved,
    /// At the master's device.
    pub master: Moved,
    /// At the store's device.
    pub store: Moved,
    /// Share of their time in which reactors had something to do, of all of them.
    pub reactor_busy_share: f64,
    /// CPU time of reactors in which they had something to do.
    pub reactor_busy_ns: f64,
    /// CPU time of the predictor's thread, as a share of a core.
    pub predictor_share: f64,
    /// CPU time of the catalog's thread, as a share of a core.
    pub catalog_share: f64,
}

impl Between {
    /// From `earlier` to `later`.
    pub fn of(earlier: &Reading, later: &Reading) -> Self {
        let ns = later.at.duration_since(earlier.at).as_nanos().max(1) as f64;
        let (mut busy, mut all) = (0, 0);
        for (before, after) in earlier.reactors.iter().zip(&later.reactors) {
            busy += after.0.saturating_sub(before.0);
            all += after.0.saturating_sub(before.0) + after.1.saturating_sub(before.1);
        }
        let busy_share = busy as f64 / all.max(1) as f64;
        let used = |prefix: &str| {
            let sum = |reading: &Reading| {
                let named = reading.threads.iter().filter(|(name, _)| name.starts_with(prefix));
                named.map(|(_, ns)| *ns).sum::<u64>()
            };
            sum(later).saturating_sub(sum(earlier)) as f64
        };
        let catalog: String = format!("presnap-{STORE}");
        Self {
            top: later.top.since(earlier.top),
            master: later.master.since(earlier.master),
            store: later.store.since(earlier.store),
            reactor_busy_share: busy_share,
            // A reactor never sleeps: its CPU time is what the system gave to it, idle or not.
            reactor_busy_ns: used("reactor_") * busy_share,
            predictor_share: used("presnap-predict") / ns,
            catalog_share: used(&catalog) / ns,
        }
    }
}

/// CPU time of a process by the names of its threads, in nanoseconds. A thread that ends is not counted.
fn cpu_ns_by_thread(pid: u32) -> BTreeMap<String, u64> {
    let mut threads = BTreeMap::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return threads };
    for task in tasks.flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let ns = schedstat.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok());
        *threads.entry(name.trim().to_owned()).or_default() += ns.unwrap_or(0);
    }
    threads
}

fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok());
    kib.unwrap_or(0_u64) << 10
}

/// Bytes that the volume's engine has copied: ahead of a snapshot, and after the cut.
///
/// # Errors
/// When the target does not answer.
pub fn copied_bytes(target: &mut Target) -> Result<(u64, u64), PerfError> {
    let stats = target.call("presnap_get_stats", &json!({"volume": VOLUME}))?;
    let copy = &stats["volumes"][0]["copy"];
    let number = |field: &str| copy[field].as_u64().unwrap_or(0);
    Ok((
        number("staged_bytes") + number("refreshed_bytes"),
        number("copied_bytes") + number("preserved_bytes"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at: Instant, ticks: Ticks, cpu_ns: u64) -> Reading {
        let threads = [("reactor_0", cpu_ns), ("presnap-predict", cpu_ns / 10)];
        Reading {
            at,
            top: Moved::default(),
            master: Moved { read: 10, written: 20, commands: 3 },
            store: Moved::default(),
            reactors: vec![ticks],
            threads: threads.map(|(name, ns)| (name.to_owned(), ns)).into(),
            resident_bytes: 0,
        }
    }

    #[test]
    fn busy_time_is_the_busy_share_of_cpu_time() {
        let began = Instant::now();
        let earlier = reading(began, (100, 900), 0);
        let later = reading(began + std::time::Duration::from_secs(1), (400, 1600), 800_000_000);
        let between = Between::of(&earlier, &later);
        assert!((between.reactor_busy_share - 0.3).abs() < 1e-9);
        assert!((between.reactor_busy_ns - 240_000_000.0).abs() < 1.0);
        assert!((between.predictor_share - 0.08).abs() < 1e-9);
        assert_eq!(between.master, Moved::default());
    }

    #[test]
    fn this_process_has_threads_and_memory() {
        assert!(!cpu_ns_by_thread(std::process::id()).is_empty());
        assert!(resident_bytes(std::process::id()) > 1 << 20);
    }
}
