//! Scenarios in steps: more reactors, more snapshots; and the reading of an exported snapshot.

use std::time::Instant;

use serde_json::json;

use super::PerfError;
use super::bed::{Bed, Context};
use super::contender::Contender;
use super::latency::percentile_us;
use super::meter::Between;
use super::metric::Values;
use super::result::{RunFigures, StepFigures};
use super::scenario::Load;
use super::stack::{self, STORE, VOLUME};
use super::target::Namespace;

/// Creates that the time of a create is taken from, at each step.
const CREATES: usize = 10;
/// The load between two steps is stopped when enough snapshots are there.
const WRITE_S: u32 = 3600;

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The same load at rising numbers of reactors.
///
/// # Errors
/// When anything of it fails.
pub fn scaling(
    context: Context<'_>,
    reactor_cores: &[String],
    load: &Load,
    seconds: u32,
) -> Result<RunFigures, PerfError> {
    let mut figures = RunFigures::default();
    for cores in reactor_cores {
        let mut bed = Bed::start(context, cores)?;
        (context.say)(&format!("load, cores {cores}"));
        let begin = bed.read()?;
        let report =
            bed.fio("load", load, None, Some(seconds), false)?.finish(context.interrupt)?;
        let end = bed.read()?;
        let between = Between::of(&begin, &end);
        let reactors = end.reactors();
        let mut step = StepFigures {
            step: format!("{reactors} reactors"),
            x: Some(reactors as f64),
            ..StepFigures::default()
        };
        let commands = (report.read.commands + report.write.commands).max(1) as f64;
        step.figures.insert("iops", report.read.iops + report.write.iops);
        step.figures.insert("reactor_ns_per_command", between.reactor_busy_ns / commands);
        step.figures.insert("reactor_busy_percent", between.reactor_busy_share * 100.0);
        step.figures.insert("fio_percent", report.cpu_share * 100.0);
        if let Some(us) = percentile_us(&report.write.latencies, 99.0) {
            step.figures.insert("write_p99_us", us);
        }
        figures.steps.push(step);
        bed.stop()?;
    }
    Ok(figures)
}

/// More and more snapshots of one volume under a light load; at each of `counts` everything is looked
/// at, at rest.
///
/// # Errors
/// When anything of it fails.
pub fn growth(
    context: Context<'_>,
    counts: &[u32],
    load: &Load,
    read_seconds: u32,
) -> Result<RunFigures, PerfError> {
    let mut figures = RunFigures::default();
    let mut bed = Bed::start(context, &context.scenario.reactor_cores)?;
    let mut creates_ms: Vec<f64> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for count in counts {
        let mut fio = bed.fio("write", load, None, Some(WRITE_S), false)?;
        bed.until_begun(&mut fio)?;
        while names.len() < *count as usize {
            (context.say)(&format!("{} of {count} snapshots", names.len()));
            let name = format!("s{}", creates_ms.len());
            let (_, took) = bed.snapshot(&name)?;
            creates_ms.push(took.as_secs_f64() * 1e3);
            names.push(name);
        }
        fio.stop()?;
        let mut step = StepFigures {
            step: count.to_string(),
            x: Some(f64::from(*count)),
            ..StepFigures::default()
        };
        let latest = creates_ms[creates_ms.len().saturating_sub(CREATES)..].to_vec();
        step.figures.insert("create_ms", Values::of(latest).unwrap_or_default().median);
        (context.say)(&format!("{count} snapshots: read"));
        at_rest(context, &mut bed, &names, read_seconds, &mut step)?;
        // Of three or more, one that others build on; never the oldest or the newest.
        if names.len() > 2 {
            let name = names.remove(names.len() / 2);
            let began = Instant::now();
            bed.target()?
                .call("presnap_snapshot_delete", &json!({"volume": VOLUME, "name": name}))?;
            step.figures.insert("delete_ms", milliseconds(began));
        }
        (context.say)(&format!("{count} snapshots: load store and volume"));
        step.figures.insert("restart_ms", bed.reload(context.contender)?);
        figures.steps.push(step);
    }
    bed.stop()?;
    Ok(figures)
}

/// Reads the oldest and the newest snapshot, and looks at memory and store.
fn at_rest(
    context: Context<'_>,
    bed: &mut Bed<'_>,
    names: &[String],
    read_seconds: u32,
    step: &mut StepFigures,
) -> Result<(), PerfError> {
    let load = Load { rw: "randread".into(), queue_depth: 1, ..super::fio::filling() };
    let load = Load { block_kib: 4, ..load };
    let ends = [
        ("oldest", names.first(), ["oldest_p50_us", "oldest_p99_us"]),
        ("newest", names.last(), ["newest_p50_us", "newest_p99_us"]),
    ];
    for (end, name, ids) in ends {
        let Some(name) = name else { continue };
        let namespace = bed.export(name)?;
        let report = bed.measure_at(&namespace, &format!("read-{end}"), &load, read_seconds)?;
        bed.unexport(name)?;
        for (id, percentile) in ids.into_iter().zip([50.0, 99.0]) {
            if let Some(us) = percentile_us(&report.read.latencies, percentile) {
                step.figures.insert(id, us);
            }
        }
        context.interrupt.check()?;
    }
    let reading = bed.read()?;
    step.figures.insert("resident_mib", mib(reading.resident_bytes));
    let stores = bed.target()?.call("presnap_get_stores", &json!({"name": STORE}))?;
    let number = |group: &str, field: &str| stores[0][group][field].as_f64().unwrap_or(0.0);
    step.figures.insert("catalog_mib", number("catalog", "used") / f64::from(1 << 20));
    step.figures.insert("slots_owned", number("slots", "owned"));
    Ok(())
}

/// Reads an exported snapshot, and then the store's device itself over the same transport.
///
/// # Errors
/// When anything of it fails.
pub fn read_snapshot(
    context: Context<'_>,
    seconds: u32,
    loads: &[Load],
) -> Result<RunFigures, PerfError> {
    let mut figures = RunFigures::default();
    let mut bed = Bed::start(context, &context.scenario.reactor_cores)?;
    (context.say)("snapshot");
    bed.snapshot("exported")?;
    for load in loads {
        let label = format!("{} {} KiB, depth {}", load.rw, load.block_kib, load.queue_depth);
        (context.say)(&format!("{label}: snapshot"));
        let exported = bed.export("exported")?;
        let snapshot = bed.measure_at(&exported, "snapshot", load, seconds)?;
        bed.unexport("exported")?;
        (context.say)(&format!("{label}: device"));
        bed.detach()?;
        let store = bed.stack.store.clone().unwrap_or_default();
        let bare = bed.target()?.expose("bare", &[&store])?;
        let device = bed.measure_at(&bare, "device", load, seconds)?;
        bed.target()?.conceal(&bare)?;
        bed.attach(context.contender)?;
        let mut step = StepFigures { step: label, ..StepFigures::default() };
        let (own, other) = (snapshot.read.bytes_per_s / 1e6, device.read.bytes_per_s / 1e6);
        step.figures.insert("snapshot_mbytes_per_s", own);
        step.figures.insert("device_mbytes_per_s", other);
        step.figures.insert("read_share", own / other);
        figures.steps.push(step);
    }
    bed.stop()?;
    Ok(figures)
}

impl Bed<'_> {
    /// Exports a snapshot.
    fn export(&mut self, name: &str) -> Result<Namespace, PerfError> {
        let target = self.target()?;
        let port = target.port();
        let params = json!({"volume": VOLUME, "name": name, "trsvcid": port.to_string(),
            "allow_any_host": true});
        let answer = target.call("presnap_snapshot_export", &params)?;
        Ok(Namespace { nqn: answer["nqn"].as_str().unwrap_or_default().to_owned(), port })
    }

    fn unexport(&mut self, name: &str) -> Result<(), PerfError> {
        let params = json!({"volume": VOLUME, "name": name});
        self.target()?.call("presnap_snapshot_unexport", &params).map(drop)
    }

    /// Stops the volume cleanly and lets go of the store's device.
    fn detach(&mut self) -> Result<(), PerfError> {
        self.conceal_load()?;
        let target = self.target()?;
        target.call("bdev_presnap_delete", &json!({"name": VOLUME}))?;
        target.call("presnap_store_unload", &json!({"name": STORE})).map(drop)
    }

    /// Loads the store and brings the volume back.
    fn attach(&mut self, contender: &Contender) -> Result<(), PerfError> {
        let Contender::Presnap { policy } = contender else { return Ok(()) };
        let call = stack::volume_call(self.scenario(), &self.stack.master, policy);
        let store = self.stack.store.clone();
        let target = self.target()?;
        target.call("presnap_store_load", &json!({"bdev": store}))?;
        target.call(call.method, &call.params)?;
        self.expose_load()
    }

    /// Lets go of store and volume and brings them back: milliseconds of the latter.
    fn reload(&mut self, contender: &Contender) -> Result<f64, PerfError> {
        self.detach()?;
        let began = Instant::now();
        self.attach(contender)?;
        Ok(milliseconds(began))
    }
}
