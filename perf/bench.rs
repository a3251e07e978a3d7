//! What presnap costs per command, and what a cut costs, measured in one process.
//!
//! SPDK's fio plugin cannot host presnap's bdev module, so the load is made here: a closed loop on
//! the first reactor. Contenders take turns in short slices, and ratios are formed within a round,
//! so that what else the machine does touches all of them. The noise floor is the same ratio of a
//! contender to itself.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures for people; none is negative or near 2^52"
)]
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};
use presnap::rpc::handlers;
use presnap::spdk::app::{self, AppOptions};
use presnap::spdk::load::{self, LoadSpec};
use presnap::spdk::{Desc, IoChannel, executor};
use presnap::volume::tuning::{StagingPolicy, Tuning};
use presnap::volume::volume::{VolumeOptions, WaitFor};
use presnap::volume::{control, hooks};
use serde_json::{Value, json};

/// Bytes per block of every device here.
const BLOCK_BYTES: u64 = 512;
/// Size of a command.
const COMMAND_BLOCKS: u64 = 8;
/// Commands under way.
const QUEUE_DEPTH: u32 = 64;
/// Rounds that are not counted.
const WARM_UP: usize = 3;
/// Size of the store: slots do not matter here, all data are zeros.
const STORE_MIB: u64 = 256;
/// Tables are in memory long before this.
const SETTLED_MAX: Duration = Duration::from_mins(1);

/// Measure what presnap costs per command and per cut.
///
/// Needs 1 GiB of free hugepages. Examples:
///   presnap-bench overhead
///   presnap-bench overhead --rounds 21 --slice-ms 500 --json out.json
///   presnap-bench cut
#[derive(Debug, Parser)]
#[command(name = "presnap-bench", verbatim_doc_comment)]
struct Options {
    #[command(subcommand)]
    bench: Bench,
    /// Rounds; each contender runs once in each.
    #[arg(long, global = true, default_value_t = 15)]
    rounds: usize,
    /// Length of one run.
    #[arg(long, global = true, default_value_t = 300)]
    slice_ms: u64,
    /// Volume sizes in GiB.
    #[arg(long, global = true, value_delimiter = ',')]
    sizes_gib: Option<Vec<u64>>,
    /// Reactors, as for `presnap serve`.
    #[arg(long, global = true, default_value = "0x1")]
    cores: String,
    /// Also write the figures there.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
enum Bench {
    /// 4 KiB random reads and writes, queue depth 64, on the bare null bdev, on SPDK's passthru
    /// over it, and on volumes with policies off and idle.
    Overhead,
    /// Longest write while a cut is made, against runs without one.
    Cut,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), String> {
    let sizes = options.sizes_gib.clone().unwrap_or_else(|| match options.bench {
        Bench::Overhead => vec![64, 16 * 1024],
        Bench::Cut => vec![1, 64, 1024, 16 * 1024],
    });
    let folder = std::env::temp_dir().join(format!("presnap-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let config = folder.join("bench.json");
    let text = configuration(&options, &sizes, &folder)?.to_string();
    fs::write(&config, text).map_err(|error| format!("{}: {error}", config.display()))?;
    let result = serve(options, sizes, &config);
    // Only this process made it.
    let _ = fs::remove_dir_all(&folder);
    result
}

fn serve(options: Options, sizes: Vec<u64>, config: &Path) -> Result<(), String> {
    handlers::register_all();
    hooks::install();
    let app_options = AppOptions {
        name: "presnap-bench".to_owned(),
        json_config: Some(config.to_owned()),
        rpc_addr: Some(config.with_extension("sock")),
        reactor_mask: Some(options.cores.clone()),
        mem_mib: Some(1024),
        no_pci: true,
        trace_entries: Some(0),
        quiet: true,
        ..AppOptions::default()
    };
    let failure: Rc<Cell<Option<String>>> = Rc::default();
    let report = Rc::clone(&failure);
    let code = app::run(&app_options, move || {
        hooks::started();
        executor::spawn(async move {
            let result = match options.bench {
                Bench::Overhead => overhead(&options, &sizes).await,
                Bench::Cut => cut(&options, &sizes).await,
            };
            let written = result.and_then(|figures| write_json(&options, &figures));
            report.set(written.err());
            app::stop(0);
        })
        .detach();
    })
    .map_err(|error| error.to_string())?;
    match (failure.take(), code) {
        (Some(error), _) => Err(error),
        (None, 0) => Ok(()),
        (None, code) => Err(format!("SPDK ended with {code}; are 1 GiB of hugepages free?")),
    }
}

fn write_json(options: &Options, figures: &Value) -> Result<(), String> {
    let Some(path) = &options.json else { return Ok(()) };
    fs::write(path, format!("{figures:#}\n"))
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Null bdevs of each size, one per contender, and a store: in memory, or for cuts, which need a slot
/// for each chunk, in files with holes (two, since a file's size ends at 16 TiB on ext4).
fn configuration(options: &Options, sizes_gib: &[u64], folder: &Path) -> Result<Value, String> {
    let mut calls = Vec::new();
    let blocks = |gib: u64| (gib << 30) / BLOCK_BYTES;
    for &gib in sizes_gib {
        for contender in ["bare", "under", "off", "idle"] {
            calls.push(json!({"method": "bdev_null_create", "params":
                {"name": format!("{contender}{gib}"), "num_blocks": blocks(gib), "block_size": BLOCK_BYTES}}));
        }
        calls.push(json!({"method": "bdev_passthru_create", "params":
            {"base_bdev_name": format!("under{gib}"), "name": format!("passthru{gib}")}}));
    }
    if options.bench == Bench::Cut {
        let gib = sizes_gib.iter().max().copied().unwrap_or(1);
        let halves = ["store0", "store1"];
        for half in halves {
            let path = folder.join(half);
            let made = fs::File::create(&path)
                .and_then(|file| file.set_len((gib / 2 + gib / 32 + 1) << 30));
            made.map_err(|error| format!("{}: {error}", path.display()))?;
            calls.push(json!({"method": "bdev_aio_create", "params":
                {"name": half, "filename": path, "block_size": BLOCK_BYTES}}));
        }
        calls.push(json!({"method": "bdev_raid_create", "params":
            {"name": "store", "strip_size_kb": 1024, "raid_level": "0", "base_bdevs": halves}}));
    } else {
        calls.push(json!({"method": "bdev_malloc_create", "params":
            {"name": "store", "num_blocks": (STORE_MIB << 20) / BLOCK_BYTES, "block_size": BLOCK_BYTES}}));
    }
    Ok(json!({"subsystems": [{"subsystem": "bdev", "config": calls}]}))
}

async fn add_volume(gib: u64, idle: bool) -> Result<String, String> {
    let base = if idle { "idle" } else { "off" };
    let name = format!("presnap-{base}-{gib}");
    control::create_volume(VolumeOptions {
        name: name.clone(),
        base_bdev: format!("{base}{gib}"),
        store: "bench".to_owned(),
        chunk_size_kib: None,
        tuning: Tuning {
            policy: if idle { StagingPolicy::Idle } else { StagingPolicy::Off },
            // Long: what is measured is recording, not the staging of chunks that rested.
            idle_ms: 86_400_000,
            threshold: None,
            window_ms: 0,
            staging_limit_percent: 50,
            snapshot_target_ms: 0,
            copy_mbytes_per_sec: 0,
        },
    })
    .await
    .map_err(|failure| failure.message)?;
    Ok(name)
}

async fn create_store() -> Result<(), String> {
    control::create_store("bench", "store", 256, true).await.map_err(|failure| failure.message)?;
    Ok(())
}

fn open(name: &str) -> Result<IoChannel, String> {
    let desc = Desc::open(name, true, |_| {}).map_err(|error| format!("{name}: {error}"))?;
    desc.channel().map_err(|error| format!("{name}: {error}"))
}

fn spec(channel: &IoChannel, write: bool, slice: Duration, seed: u64) -> LoadSpec {
    LoadSpec {
        queue_depth: QUEUE_DEPTH,
        io_blocks: COMMAND_BLOCKS,
        write_percent: if write { 100 } else { 0 },
        first_block: 0,
        span_blocks: channel.desc().info().block_count,
        duration: slice,
        seed,
    }
}

async fn measure(channel: &IoChannel, spec: &LoadSpec) -> Result<load::LoadResult, String> {
    let result = load::run(channel, spec).await.map_err(|error| error.to_string())?;
    if result.errors > 0 {
        return Err(format!("{} commands failed", result.errors));
    }
    Ok(result)
}

/// Median, first and third quartile.
fn quartiles(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
    (at(0.5), at(0.25), at(0.75))
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(header);
    table
}

fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

// ---- overhead -----------------------------------------------------------------------------------

async fn overhead(options: &Options, sizes: &[u64]) -> Result<Value, String> {
    let slice = Duration::from_millis(options.slice_ms);
    create_store().await?;
    let mut figures = Vec::new();
    let mut rows = table(&[
        "size",
        "load",
        "contender",
        "CPU ns per command",
        "quartiles",
        "share of passthru",
        "quartiles",
    ]);
    for &gib in sizes {
        let before = resident_bytes();
        let volumes = [add_volume(gib, false).await?, add_volume(gib, true).await?];
        let names = [
            format!("bare{gib}"),
            format!("passthru{gib}"),
            volumes[0].clone(),
            volumes[1].clone(),
        ];
        let labels = ["bare null", "passthru", "presnap off", "presnap idle", "passthru again"];
        let mut channels = Vec::new();
        for name in &names {
            channels.push(open(name)?);
        }
        channels.push(channels[1].clone());
        settled().await?;
        for write in [false, true] {
            let mut ns: Vec<Vec<f64>> = vec![Vec::new(); labels.len()];
            // The first rounds warm caches and branch predictors up, and at 64 GiB nearly every chunk
            // has been written after them; at 16 TiB nearly every write is its chunk's first.
            for round in 0..WARM_UP + options.rounds {
                for turn in 0..channels.len() {
                    // Nobody always comes after the same one.
                    let contender = (turn + round) % channels.len();
                    let channel = &channels[contender];
                    let spec = spec(channel, write, slice, 0x9e37_79b9 * (1 + round as u64));
                    let result = measure(channel, &spec).await?;
                    if round >= WARM_UP {
                        ns[contender].push(result.cpu_ns_per_command());
                    }
                }
                eprint!("\r{gib} GiB, {}: round {round}  ", load_name(write));
            }
            eprintln!();
            for (contender, label) in labels.iter().enumerate() {
                let shares: Vec<f64> = ns[1]
                    .iter()
                    .zip(&ns[contender])
                    .map(|(passthru, own)| passthru / own)
                    .collect();
                let (time, time_low, time_high) = quartiles(&ns[contender]);
                let (share, share_low, share_high) = quartiles(&shares);
                eprintln!("  {label}: {time:.0} ns of CPU time, share {share:.3}");
                rows.add_row([
                    format!("{gib} GiB"),
                    load_name(write).to_owned(),
                    (*label).to_owned(),
                    format!("{time:.0}"),
                    format!("{time_low:.0} .. {time_high:.0}"),
                    format!("{share:.3}"),
                    format!("{share_low:.3} .. {share_high:.3}"),
                ]);
                figures.push(json!({
                    "bench": "overhead", "size_gib": gib, "load": load_name(write),
                    "contender": label, "rounds": options.rounds, "slice_ms": options.slice_ms,
                    "ns_per_command": {"median": time, "q1": time_low, "q3": time_high, "values": ns[contender]},
                    "share_of_passthru": {"median": share, "q1": share_low, "q3": share_high, "values": shares},
                }));
            }
        }
        let grown = resident_bytes().saturating_sub(before);
        let per_tib = grown as f64 / (gib as f64 / 1024.0) / 2.0;
        eprintln!(
            "{gib} GiB: {:.1} MiB more resident memory per TiB of volume",
            per_tib / 1_048_576.0
        );
        figures
            .push(json!({"bench": "memory", "size_gib": gib, "resident_bytes_per_tib": per_tib}));
        drop(channels);
        for volume in &volumes {
            control::delete_volume(volume).await.map_err(|failure| failure.message)?;
        }
    }
    println!("{rows}");
    Ok(Value::Array(figures))
}

/// Waits until the volumes' tables are in memory.
async fn settled() -> Result<(), String> {
    let started = Instant::now();
    let mut before = 0;
    while before != resident_bytes() {
        if started.elapsed() > SETTLED_MAX {
            return Err(format!(
                "after {} s this process's memory still grows or shrinks; nothing measured now would \
                 be worth anything",
                SETTLED_MAX.as_secs()
            ));
        }
        before = resident_bytes();
        executor::sleep(Duration::from_millis(700)).await;
    }
    Ok(())
}

fn load_name(write: bool) -> &'static str {
    if write { "write" } else { "read" }
}

// ---- cut ----------------------------------------------------------------------------------------

async fn cut(options: &Options, sizes: &[u64]) -> Result<Value, String> {
    let slice = Duration::from_millis(options.slice_ms);
    create_store().await?;
    let mut figures = Vec::new();
    let mut rows = table(&[
        "size",
        "cut",
        "quartiles",
        "consistent",
        "quartiles",
        "longest write, cut",
        "without",
        "p99.9, cut",
        "without",
    ]);
    for &gib in sizes {
        let volume = add_volume(gib, false).await?;
        let channel = open(&volume)?;
        settled().await?;
        let (mut cut_us, mut consistent_us) = (Vec::new(), Vec::new());
        let (mut longest, mut tail) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for round in 0..=options.rounds {
            for with_cut in [false, true] {
                let spec = spec(&channel, true, slice, 1 + round as u64);
                let running = {
                    let channel = channel.clone();
                    executor::spawn(async move { measure(&channel, &spec).await })
                };
                executor::sleep(slice / 3).await;
                if with_cut {
                    let taken =
                        control::create_snapshot(&volume, "cut", None, WaitFor::Consistent, None);
                    let (_, _, record) = taken.await.map_err(|failure| failure.message)?;
                    if round > 0 {
                        cut_us.push(record.times.cut_us as f64);
                        consistent_us.push(record.times.consistent_us as f64);
                    }
                }
                let result = running.await?;
                if round > 0 {
                    let us = |ns: u64| ns as f64 / 1000.0;
                    longest[usize::from(with_cut)].push(us(result.latency_ns.max()));
                    tail[usize::from(with_cut)]
                        .push(us(result.latency_ns.value_at_quantile(0.999)));
                }
                if with_cut {
                    control::delete_snapshot(&volume, "cut")
                        .await
                        .map_err(|failure| failure.message)?;
                }
            }
            eprint!("\r{gib} GiB: round {round} of {}  ", options.rounds);
        }
        eprintln!();
        let (cut, cut_low, cut_high) = quartiles(&cut_us);
        let (consistent, low, high) = quartiles(&consistent_us);
        let median = |values: &[f64]| quartiles(values).0;
        rows.add_row([
            format!("{gib} GiB"),
            format!("{cut:.0} us"),
            format!("{cut_low:.0} .. {cut_high:.0}"),
            format!("{consistent:.0} us"),
            format!("{low:.0} .. {high:.0}"),
            format!("{:.0} us", median(&longest[1])),
            format!("{:.0} us", median(&longest[0])),
            format!("{:.0} us", median(&tail[1])),
            format!("{:.0} us", median(&tail[0])),
        ]);
        figures.push(json!({
            "bench": "cut", "size_gib": gib, "rounds": options.rounds, "slice_ms": options.slice_ms,
            "cut_us": {"median": cut, "q1": cut_low, "q3": cut_high, "values": cut_us},
            "consistent_us": {"median": consistent, "q1": low, "q3": high, "values": consistent_us},
            "longest_write_us": {"cut": {"values": longest[1]}, "without": {"values": longest[0]}},
            "p999_write_us": {"cut": {"values": tail[1]}, "without": {"values": tail[0]}},
        }));
        drop(channel);
        control::delete_volume(&volume).await.map_err(|failure| failure.message)?;
    }
    println!("{rows}");
    Ok(Value::Array(figures))
}
