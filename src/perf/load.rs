//! A load with snapshots in it: what the snapshots do to it, and how long they take.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bed::{Bed, Context, SNAPSHOT_MAX};
use super::contender::Contender;
use super::fio::FioReport;
use super::latency::{self, percentile_us};
use super::meter::{self, Between, Reading};
use super::place::Running;
use super::result::RunFigures;
use super::scenario::{Load, LoadRun};
use super::stack::{self, VOLUME};
use super::target::initiator_bdev;
use super::trace::{self, Replay};
use super::{PerfError, unix_ms};

/// Length of the pieces of time in which latency and rate are shown.
const BUCKET_MS: i64 = 100;
/// Length of the pieces in which the rate is compared with what was asked.
const RATE_BUCKET_MS: i64 = 250;
/// A piece in which a trace asks for fewer commands says nothing about the rate.
const RATE_COMMANDS_MIN: u64 = 50;
/// Hugepage memory of SPDK's copying program.
pub const COPY_MEMORY_MIB: u64 = 512;

/// A snapshot under way.
struct Pending {
    asked_ms: u64,
    asked: Instant,
    answer: JoinHandle<Result<(Value, Duration), PerfError>>,
    name: String,
}

/// What became of a snapshot.
struct Taken {
    /// When it was asked for, in milliseconds of the Unix epoch.
    asked_ms: u64,
    /// Until the answer to the request.
    answered: Duration,
    /// Until it needs nothing of the master any more; `None`: it always does.
    independent: Option<Duration>,
    /// The answer.
    answer: Value,
}

/// Counters at the times that matter.
struct Readings {
    begin: Reading,
    /// At the last snapshot's request, and when its window is over.
    around: Option<(Reading, Reading)>,
    end: Reading,
}

/// Runs it once.
///
/// # Errors
/// When anything of it fails.
pub fn run(context: Context<'_>, run: &LoadRun) -> Result<RunFigures, PerfError> {
    let scenario = context.scenario;
    let (iolog, replay) = match &run.load.trace {
        None => (None, None),
        Some(trace) => {
            let path = context.folder.join("trace.iolog");
            let volume_bytes = scenario.volume_mib << 20;
            let replay = trace::convert(trace, run.seconds, volume_bytes, &path)?;
            (Some(path), Some(replay))
        }
    };
    let mut bed = Bed::start(context, &scenario.reactor_cores)?;
    if scenario.transport == super::scenario::Transport::Direct {
        let fio = bed.fio("load", &run.load, iolog.as_deref(), Some(run.seconds), true)?;
        let report = fio.finish(context.interrupt)?;
        let mut figures = RunFigures::default();
        whole_load(&mut figures, report, run.seconds);
        return Ok(figures);
    }
    if context.contender.is_presnap() && !run.snapshots_at_s.is_empty() {
        (context.say)("base snapshot");
        bed.snapshot("base")?;
    }
    let copied_before = copied(&mut bed, context.contender)?;
    let measured = measure(context, run, &mut bed, iolog.as_deref())?;
    let copied_after = copied(&mut bed, context.contender)?;
    remove_iolog(iolog);
    let mut figures = RunFigures::default();
    let Measured { report, readings, taken } = measured;
    costs(&mut figures, &readings, &report);
    if let Some((before, after)) = copied_before.zip(copied_after) {
        figures.set("copied_ahead_mib", mib(after.0 - before.0));
        figures.set("copied_after_mib", mib(after.1 - before.1));
    }
    if let Some(problem) = predictor_trouble(&mut bed, context.contender)? {
        figures.remarks.push(problem);
    }
    if let Some(taken) = &taken {
        snapshot_figures(&mut figures, taken);
    }
    impact(&mut figures, run, &readings, &report, taken.as_ref(), replay.as_ref());
    whole_load(&mut figures, report, run.seconds);
    (context.say)("stop");
    bed.stop()?;
    Ok(figures)
}

fn remove_iolog(iolog: Option<PathBuf>) {
    // It follows from the scenario, and is long; if it stays, it is in the way of nobody.
    let _ = iolog.map(std::fs::remove_file);
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn copied(bed: &mut Bed<'_>, contender: &Contender) -> Result<Option<(u64, u64)>, PerfError> {
    if contender.is_presnap() { meter::copied_bytes(bed.target()?).map(Some) } else { Ok(None) }
}

/// Whether another predictor served than the policy's.
fn predictor_trouble(
    bed: &mut Bed<'_>,
    contender: &Contender,
) -> Result<Option<String>, PerfError> {
    if !contender.is_presnap() {
        return Ok(None);
    }
    let stats = bed.target()?.call("presnap_get_stats", &json!({"volume": VOLUME}))?;
    let predictor = &stats["volumes"][0]["predictor"];
    let fallback = predictor["fallback"].as_str();
    Ok(fallback.map(|why| format!("{} served: {why}", predictor["serving"])))
}

struct Measured {
    report: FioReport,
    readings: Readings,
    taken: Option<Taken>,
}

fn measure(
    context: Context<'_>,
    run: &LoadRun,
    bed: &mut Bed<'_>,
    iolog: Option<&Path>,
) -> Result<Measured, PerfError> {
    let interrupt = context.interrupt;
    (context.say)("load");
    let begin = bed.read()?;
    let mut fio = bed.fio("load", &run.load, iolog, Some(run.seconds), true)?;
    bed.until_begun(&mut fio)?;
    let started = Instant::now();
    let mut around = None;
    let mut taken: Option<Taken> = None;
    let measured = run.snapshots_at_s.len().saturating_sub(1);
    for (place, at_s) in run.snapshots_at_s.iter().enumerate() {
        interrupt.sleep_until(started + Duration::from_secs(u64::from(*at_s)))?;
        (context.say)("snapshot");
        if place < measured {
            let pending = request(bed, context.contender, &format!("snapshot{place}"))?;
            answer(context, pending)?;
            continue;
        }
        let at_request = bed.read()?;
        let pending = request(bed, context.contender, &format!("snapshot{place}"))?;
        let window_over = pending.asked + Duration::from_secs(u64::from(run.window_s));
        let copying = copy_out(context, bed, &pending)?;
        // The window is over before or after the snapshot is.
        let mut watch = Watch { pending, copying, independent: None };
        while Instant::now() < window_over {
            watch.look()?;
            interrupt.sleep_until(window_over.min(Instant::now() + LOOK))?;
        }
        around = Some((at_request, bed.read()?));
        taken = Some(watch.finish(context)?);
    }
    (context.say)("load");
    // fio keeps its namespaces until it ends; counters are read once it has.
    let report = fio.finish(interrupt)?;
    let end = bed.read()?;
    Ok(Measured { report, readings: Readings { begin, around, end }, taken })
}

/// Pause between two looks at a snapshot under way.
const LOOK: Duration = Duration::from_millis(20);

/// Asks for a snapshot in the contender's way. What has none is only looked at.
fn request(bed: &mut Bed<'_>, contender: &Contender, name: &str) -> Result<Pending, PerfError> {
    let target = bed.target()?;
    let asked_ms = unix_ms();
    let asked = Instant::now();
    let answer = match contender {
        Contender::Bare | Contender::Passthru => target.call_aside("spdk_get_version", Value::Null),
        Contender::Presnap { .. } => {
            let params = json!({"volume": VOLUME, "name": name});
            target.call_aside("presnap_snapshot_create", params)
        }
        Contender::Lvol { .. } => {
            let volume = stack::lvol_name(VOLUME);
            let params = json!({"lvol_name": volume, "snapshot_name": name});
            target.call_aside("bdev_lvol_snapshot", params)
        }
    };
    Ok(Pending { asked_ms, asked, answer, name: name.to_owned() })
}

/// Starts copying a logical volume's snapshot to the store's device, once it is there, with what SPDK
/// has for that: `spdk_dd`, over the same transport as the load.
fn copy_out(
    context: Context<'_>,
    bed: &mut Bed<'_>,
    pending: &Pending,
) -> Result<Option<Running>, PerfError> {
    let Contender::Lvol { copy: true, .. } = context.contender else { return Ok(None) };
    let answered = || Ok(pending.answer.is_finished().then_some(()));
    context.interrupt.wait_for("the snapshot is made", SNAPSHOT_MAX, answered)?;
    let store = bed.stack.store.clone().unwrap_or_default();
    let snapshot = stack::lvol_name(&pending.name);
    let namespace = bed.target()?.expose("copy", &[&snapshot, &store])?;
    let config = bed.file("copy.spdk.json");
    std::fs::write(&config, namespace.initiator_config().to_string())
        .map_err(|error| PerfError::failed(format!("{}: {error}", config.display())))?;
    let cores = Some(context.scenario.fio_cores.as_str());
    let first = context.scenario.fio_cores.split([',', '-']).next().unwrap_or("1");
    let socket = context.sockets.path("copy.sock");
    let program = &context.programs.spdk_dd;
    let running = Running::start("spdk_dd", &bed.file("copy.log"), cores, program, |command| {
        command.arg("--json").arg(&config).arg("--rpc-socket").arg(&socket);
        command.args(["--no-pci", "--cpumask", &format!("[{first}]")]);
        command.args(["--mem-size", &COPY_MEMORY_MIB.to_string()]);
        command.args(["--ib", &initiator_bdev(1), "--ob", &initiator_bdev(2)]);
        command.args(["--bs", "131072", "--qd", "8"]);
    })?;
    Ok(Some(running))
}

/// A snapshot being made, and perhaps copied.
struct Watch {
    pending: Pending,
    copying: Option<Running>,
    independent: Option<Duration>,
}

impl Watch {
    /// Looks whether the copy is done.
    fn look(&mut self) -> Result<bool, PerfError> {
        let Some(copying) = &mut self.copying else { return Ok(true) };
        match copying.ended()? {
            None => Ok(false),
            Some(status) if status.success() => {
                self.independent = Some(self.pending.asked.elapsed());
                self.copying = None;
                Ok(true)
            }
            Some(status) => Err(copying.failure(status)),
        }
    }

    /// Waits until all is done.
    fn finish(mut self, context: Context<'_>) -> Result<Taken, PerfError> {
        let done = || Ok(self.look()?.then_some(()));
        context.interrupt.wait_for("the snapshot is copied", SNAPSHOT_MAX, done)?;
        let mut taken = answer(context, self.pending)?;
        taken.independent = self.independent.or(taken.independent);
        Ok(taken)
    }
}

/// Waits for the answer to a request.
fn answer(context: Context<'_>, pending: Pending) -> Result<Taken, PerfError> {
    let answered = || Ok(pending.answer.is_finished().then_some(()));
    context.interrupt.wait_for("the snapshot is made", SNAPSHOT_MAX, answered)?;
    let gone = |_| PerfError::failed("the thread that asked for a snapshot panicked");
    let (answer, took) = pending.answer.join().map_err(gone)??;
    let independent = context.contender.is_presnap().then_some(took);
    Ok(Taken { asked_ms: pending.asked_ms, answered: took, independent, answer })
}

fn snapshot_figures(figures: &mut RunFigures, taken: &Taken) {
    let answer = &taken.answer;
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    if let Some(independent) = taken.independent {
        figures.set("independent_ms", millis(independent));
    }
    if answer.is_object() && answer["times"].is_object() {
        let number = |group: &str, field: &str| answer[group][field].as_f64().unwrap_or(0.0);
        figures.set("cut_us", number("times", "cut_us"));
        figures.set("consistent_ms", number("times", "consistent_us") / 1e3);
        let required = number("chunks", "required");
        figures.set("adopted_share", number("chunks", "adopted") / required.max(1.0));
        figures
            .set("required_mib", answer["bytes_used"].as_f64().unwrap_or(0.0) / f64::from(1 << 20));
        if answer["state"] != "complete" {
            figures
                .remarks
                .push(format!("the snapshot is {}: {}", answer["state"], answer["reason"]));
        }
    } else if !answer.is_object() {
        // An lvol's snapshot: its name is the answer.
        figures.set("consistent_ms", millis(taken.answered));
    }
}

/// What a snapshot did to the load: the time around it against itself, and what was moved.
fn impact(
    figures: &mut RunFigures,
    run: &LoadRun,
    readings: &Readings,
    report: &FioReport,
    taken: Option<&Taken>,
    replay: Option<&Replay>,
) {
    let samples = &report.samples;
    let first_ms = samples.iter().map(|sample| sample.at_ms).min().unwrap_or(0);
    let Some(taken) = taken else {
        let span = (0, i64::from(run.seconds) * 1000);
        figures.timeline = latency::buckets(samples, first_ms, span, BUCKET_MS);
        return;
    };
    let window_ms = i64::from(run.window_s) * 1000;
    let origin_ms = taken.asked_ms;
    let before = latency::window(samples, origin_ms, (-window_ms, 0), true);
    let after = latency::window(samples, origin_ms, (0, window_ms), true);
    let p99 = |histogram| percentile_us(histogram, 99.0);
    if let Some((was, is)) = p99(&before).zip(p99(&after)) {
        figures.set("before_p99_us", was);
        figures.set("after_p99_us", is);
        figures.set("p99_ratio", is / was);
        figures.set("after_p999_us", percentile_us(&after, 99.9).unwrap_or(0.0));
        figures.set("after_max_us", after.max() as f64 / 1e3);
    }
    let asked = |span: latency::Span| asked_rates(&run.load, replay, first_ms, origin_ms, span);
    for (id, span) in [("before_rate_share", (-window_ms, 0)), ("after_rate_share", (0, window_ms))]
    {
        let rates = latency::buckets(samples, origin_ms, span, RATE_BUCKET_MS);
        let shares =
            rates.iter().zip(asked(span)).filter_map(|(got, asked)| Some(got.iops / asked?));
        if let Some(least) = shares.reduce(f64::min) {
            figures.set(id, least);
        }
    }
    let began_ms = latency_begin(first_ms, origin_ms);
    let end_ms = i64::from(run.seconds) * 1000 - began_ms;
    let from = -began_ms.min(2 * window_ms) / BUCKET_MS * BUCKET_MS;
    let span = (from, end_ms.min(2 * window_ms) / BUCKET_MS * BUCKET_MS);
    figures.timeline = latency::buckets(samples, origin_ms, span, BUCKET_MS);
    if let Some((at_request, later)) = &readings.around {
        let between = Between::of(at_request, later);
        let extra_read = between.master.read.saturating_sub(between.top.read);
        let written = between.master.written + between.store.written;
        figures.set("master_read_mib", mib(extra_read));
        figures.set("device_written_mib", mib(written.saturating_sub(between.top.written)));
    }
    let parked = &taken.answer["chunks"]["preserved"];
    if let Some(parked) = parked.as_f64() {
        figures.set("parked", parked);
    }
}

/// Milliseconds from the load's first command to the snapshot.
fn latency_begin(first_ms: u64, origin_ms: u64) -> i64 {
    origin_ms.saturating_sub(first_ms).cast_signed()
}

/// Commands per second that were asked for in each piece of `span`; `None` where too few were to say.
fn asked_rates(
    load: &Load,
    replay: Option<&Replay>,
    first_ms: u64,
    origin_ms: u64,
    span: latency::Span,
) -> Vec<Option<f64>> {
    let pieces = usize::try_from((span.1 - span.0) / RATE_BUCKET_MS).unwrap_or(0);
    let Some(replay) = replay else {
        return vec![load.rate_iops.map(f64::from); pieces];
    };
    let begin_ms = latency_begin(first_ms, origin_ms);
    let mut counts = vec![0_u64; pieces];
    for due_ms in &replay.due_ms {
        let place = (due_ms.cast_signed() - begin_ms - span.0).div_euclid(RATE_BUCKET_MS);
        if let Some(count) = usize::try_from(place).ok().and_then(|place| counts.get_mut(place)) {
            *count += 1;
        }
    }
    let rate = |count: u64| count as f64 * 1e3 / RATE_BUCKET_MS as f64;
    counts.into_iter().map(|count| (count >= RATE_COMMANDS_MIN).then(|| rate(count))).collect()
}

/// What the contender costs all the time.
fn costs(figures: &mut RunFigures, readings: &Readings, report: &FioReport) {
    let between = Between::of(&readings.begin, &readings.end);
    let user = (between.top.written).max(1);
    let device = between.master.written + between.store.written;
    if between.top.written > 0 {
        figures.set("extra_writes", device.saturating_sub(user) as f64 / user as f64);
    }
    figures.set("reactor_busy_percent", between.reactor_busy_share * 100.0);
    let commands = (report.read.commands + report.write.commands).max(1) as f64;
    figures.set("reactor_ns_per_command", between.reactor_busy_ns / commands);
    figures.set("predictor_percent", between.predictor_share * 100.0);
    figures.set("catalog_percent", between.catalog_share * 100.0);
    figures.set("fio_percent", report.cpu_share * 100.0);
    figures.set("resident_mib", mib(readings.end.resident_bytes));
    let growth = readings.end.resident_bytes.saturating_sub(readings.begin.resident_bytes);
    figures.set("memory_growth_mib", mib(growth));
}

/// Latencies of the whole load.
fn whole_load(figures: &mut RunFigures, report: FioReport, seconds: u32) {
    figures.set("iops", report.read.iops + report.write.iops);
    figures.set("mbytes_per_s", (report.read.bytes_per_s + report.write.bytes_per_s) / 1e6);
    let names = [
        ["write_p50_us", "write_p99_us", "write_p999_us", "write_max_us"],
        ["read_p50_us", "read_p99_us", "read_p999_us", "read_max_us"],
    ];
    let FioReport { read, write, samples, .. } = report;
    for (names, histogram) in names.iter().zip([&write.latencies, &read.latencies]) {
        for (name, percentile) in names.iter().zip([50.0, 99.0, 99.9, 100.0]) {
            if let Some(us) = percentile_us(histogram, percentile) {
                figures.set(name, us);
            }
        }
    }
    if figures.timeline.is_empty() {
        let first_ms = samples.iter().map(|sample| sample.at_ms).min().unwrap_or(0);
        let span = (0, i64::from(seconds) * 1000);
        figures.timeline = latency::buckets(&samples, first_ms, span, BUCKET_MS);
    }
    figures.writes = Some(write.latencies).filter(|histogram| !histogram.is_empty());
    figures.reads = Some(read.latencies).filter(|histogram| !histogram.is_empty());
}
