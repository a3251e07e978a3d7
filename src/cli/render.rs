//! Results as text for people.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

use crate::rpc::METHODS;
use crate::rpc::objects::{
    ChunkPage, Export, Latency, PaceStats, Policy, PredictorStats, ReactorStats, Scrub, ScrubState,
    Snapshot, SnapshotState, Stats, Store, StoreState, Volume, VolumeState, VolumeStats,
};
use crate::rpc::schema::{Method, Reply};

/// Text for the result of a method, or why it is not one.
///
/// # Errors
///
/// The result has not the shape that the table says.
pub fn result(method: &Method, value: &Value) -> Result<String, serde_json::Error> {
    fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, serde_json::Error> {
        serde_json::from_value(value.clone())
    }
    Ok(match method.reply {
        Reply::True => {
            typed::<bool>(value)?;
            String::new()
        }
        Reply::BdevName => clean(&typed::<String>(value)?) + "\n",
        Reply::Store => stores(&[typed(value)?]),
        Reply::Stores => stores(&typed::<Vec<_>>(value)?),
        Reply::Scrub => scrub(&typed(value)?),
        Reply::Snapshot => snapshot(&typed(value)?),
        Reply::Snapshots => snapshots(&typed::<Vec<_>>(value)?),
        Reply::Export => export(&typed(value)?),
        Reply::Stats => stats(&typed(value)?),
        Reply::Chunks => chunks(&typed(value)?),
        Reply::Policy => policy(&typed(value)?),
    })
}

/// A string of the target without what could move a terminal's cursor.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A table with these headings; columns from `numbers_from` on are right-aligned.
pub(super) fn table(headings: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().copied());
    for index in 0..headings.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if right.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table
}

pub(super) fn text(table: &Table) -> String {
    table.trim_fmt() + "\n"
}

/// Names and values, one pair per line.
fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().fold(String::new(), |mut out, (name, value)| {
        let line = format!("{name:width$}  {value}");
        writeln!(out, "{}", line.trim_end()).expect("writing to a string does not fail");
        out
    })
}

/// What predictors reached on traces.
#[cfg(feature = "lstm")]
pub fn measures(lines: &[crate::predict::evaluate::Line]) -> String {
    let headings = [
        "TRACE",
        "HELD OUT",
        "WINDOW",
        "PREDICTOR",
        "BASE RATE",
        "LOG LOSS",
        "BRIER",
        "PR-AUC",
        "ECE",
    ];
    let mut table = table(&headings, &[2, 4, 5, 6, 7, 8]);
    for line in lines {
        table.add_row([
            clean(&line.trace),
            if line.held_out { "yes" } else { "no" }.to_owned(),
            format!("{} s", line.window_s),
            line.predictor.clone(),
            format!("{:.4}", line.base_rate),
            format!("{:.4}", line.log_loss),
            format!("{:.4}", line.brier),
            format!("{:.3}", line.pr_auc),
            format!("{:.4}", line.calibration_error),
        ]);
    }
    text(&table)
}

fn stores(stores: &[Store]) -> String {
    let headings = [
        "STORE", "BDEV", "STATE", "SLOT", "SLOTS", "FREE", "RESERVED", "STAGED", "COPYING",
        "OWNED", "DAMAGED", "CATALOG", "VOLUMES",
    ];
    let mut table = table(&headings, &[3, 4, 5, 6, 7, 8, 9, 10, 11]);
    for store in stores {
        let state = match store.state {
            StoreState::Loaded => "loaded",
            StoreState::Unloaded => "unloaded",
            StoreState::Deleted => "deleted",
            StoreState::Failed => "failed",
        };
        let volumes: Vec<_> = store
            .volumes
            .iter()
            .map(|volume| clean(&volume.name) + if volume.attached { "" } else { " (detached)" })
            .collect();
        let slots = &store.slots;
        let used = percent(store.catalog.used, store.catalog.bytes);
        table.add_row([
            clean(&store.name),
            clean(&store.bdev),
            with_reason(state, store.reason.as_deref()),
            bytes(u64::from(store.slot_size_kib) << 10),
            slots.total.to_string(),
            slots.free.to_string(),
            slots.reserved.to_string(),
            slots.staged.to_string(),
            slots.copying.to_string(),
            slots.owned.to_string(),
            store.damaged_slots.to_string(),
            used,
            volumes.join(", "),
        ]);
    }
    text(&table)
}

/// State and progress of a scrub.
pub(super) fn scrub_words(scrub: &Scrub) -> String {
    match scrub.state {
        ScrubState::None => "never run since the store was loaded".into(),
        ScrubState::Running => {
            let percent = scrub.progress.as_ref().map_or(0, |progress| progress.percent);
            let left = scrub.progress.as_ref().and_then(|progress| progress.left_ms);
            let left = left.map_or(String::new(), |ms| format!(", {} left", duration_ms(ms)));
            format!("running: {percent}% of {} slots{left}", scrub.slots)
        }
        ScrubState::Done => format!("done: {} slots", scrub.slots),
        ScrubState::Stopped => with_reason("stopped", scrub.reason.as_deref()),
        ScrubState::Failed => with_reason("failed", scrub.reason.as_deref()),
    }
}

fn scrub(scrub: &Scrub) -> String {
    let limit = match scrub.mbytes_per_sec {
        0 => "no limit".to_owned(),
        limit => format!("at most {limit} MiB/s"),
    };
    let mut out = pairs(&[
        ("store", clean(&scrub.store)),
        ("scrub", scrub_words(scrub)),
        ("started", scrub.started_at.as_deref().map_or("never".into(), clean)),
        ("read", format!("{} in {}, {limit}", bytes(scrub.bytes_read), duration_ms(scrub.took_ms))),
        (
            "found",
            format!(
                "{} damaged, {} repaired, {} staged copies dropped",
                scrub.found, scrub.repaired, scrub.staged_dropped
            ),
        ),
        ("damaged now", format!("{} slots", scrub.damaged)),
    ]);
    if !scrub.damaged_slots.is_empty() {
        out += "\n";
        out += &damaged_slots(scrub);
    }
    out
}

fn damaged_slots(scrub: &Scrub) -> String {
    let headings =
        ["SLOT", "VOLUME", "SNAPSHOTS", "CHUNK", "OFFSET", "SIZE", "LBA", "BLOCKS", "FOUND"];
    let mut table = table(&headings, &[0, 3, 4, 5, 6, 7]);
    for damaged in &scrub.damaged_slots {
        table.add_row([
            damaged.slot.to_string(),
            clean(&damaged.volume),
            clean(&damaged.snapshots.join(", ")),
            damaged.chunk_id.to_string(),
            damaged.offset.to_string(),
            bytes(damaged.bytes),
            damaged.lba.to_string(),
            damaged.blocks.to_string(),
            clean(&damaged.found_at),
        ]);
    }
    let shown = scrub.damaged_slots.len() as u64;
    let more = match scrub.damaged.saturating_sub(shown) {
        0 => String::new(),
        more => format!("and {more} more\n"),
    };
    text(&table) + &more
}

/// A table of volumes.
pub fn volumes(volumes: &[Volume]) -> String {
    let headings = [
        "VOLUME",
        "MASTER",
        "STORE",
        "STATE",
        "SIZE",
        "CHUNK",
        "DIRTY",
        "STAGED",
        "SNAPSHOTS",
        "POLICY",
    ];
    let mut table = table(&headings, &[4, 5, 6, 7, 8]);
    for volume in volumes {
        let state = match volume.state {
            VolumeState::Online => "online",
            VolumeState::NoStore => "no store",
        };
        table.add_row([
            clean(&volume.name),
            clean(&volume.base_bdev),
            clean(&volume.store),
            state.into(),
            bytes(volume.bytes),
            bytes(u64::from(volume.chunk_size_kib) << 10),
            percent(volume.chunks.dirty, volume.chunks.total),
            percent(volume.chunks.staged, volume.chunks.total),
            volume.snapshots.to_string(),
            policy_words(&volume.policy),
        ]);
    }
    text(&table)
}

fn state_words(snapshot: &Snapshot) -> String {
    match (snapshot.state, &snapshot.progress) {
        (SnapshotState::Completing, Some(progress)) => format!("completing {}%", progress.percent),
        (SnapshotState::Completing, None) => "completing".into(),
        (SnapshotState::Complete, _) => "complete".into(),
        (SnapshotState::Failed, _) => with_reason("failed", snapshot.reason.as_deref()),
    }
}

fn with_reason(state: &str, reason: Option<&str>) -> String {
    reason.map_or(state.to_owned(), |reason| format!("{state}: {}", clean(reason)))
}

fn snapshots(snapshots: &[Snapshot]) -> String {
    let headings = [
        "VOLUME", "SNAPSHOT", "CREATED", "REQUIRED", "ADOPTED", "COPIED", "SIZE", "EXPORTED",
        "STATE",
    ];
    let mut table = table(&headings, &[3, 4, 5, 6]);
    for snapshot in snapshots {
        let chunks = &snapshot.chunks;
        table.add_row([
            clean(&snapshot.volume),
            clean(&snapshot.name),
            clean(&snapshot.created_at),
            chunks.required.to_string(),
            chunks.adopted.to_string(),
            (chunks.copied + chunks.preserved).to_string(),
            bytes(snapshot.bytes_used),
            if snapshot.exported { "yes" } else { "no" }.into(),
            state_words(snapshot),
        ]);
    }
    text(&table)
}

fn snapshot(snapshot: &Snapshot) -> String {
    let chunks = &snapshot.chunks;
    let times = &snapshot.times;
    let complete =
        if times.complete_us == 0 { "not yet".into() } else { duration_us(times.complete_us) };
    pairs(&[
        ("snapshot", format!("{}@{}", clean(&snapshot.volume), clean(&snapshot.name))),
        ("uuid", snapshot.uuid.to_string()),
        ("created", clean(&snapshot.created_at)),
        ("state", state_words(snapshot)),
        ("consistency", "crash (like the disk of a machine that lost power)".into()),
        (
            "chunks",
            format!(
                "{} of {} required: {} adopted, {} copied, {} preserved, {} zero",
                chunks.required,
                chunks.total,
                chunks.adopted,
                chunks.copied,
                chunks.preserved,
                chunks.zero
            ),
        ),
        (
            "times",
            format!(
                "cut {}, consistent {}, complete {complete}",
                duration_us(times.cut_us),
                duration_us(times.consistent_us)
            ),
        ),
        ("size", bytes(snapshot.bytes_used)),
    ])
}

fn export(export: &Export) -> String {
    let address = &export.address;
    let hosts = export.hosts.as_ref().map_or("every host".into(), |hosts| clean(&hosts.join(", ")));
    let trtype = clean(&address.trtype).to_lowercase();
    let (traddr, trsvcid, nqn) =
        (clean(&address.traddr), clean(&address.trsvcid), clean(&export.nqn));
    let connect = format!("nvme connect -t {trtype} -a {traddr} -s {trsvcid} -n {nqn}");
    pairs(&[
        ("nqn", nqn),
        ("namespace", export.nsid.to_string()),
        ("address", format!("{} {traddr} port {trsvcid}", clean(&address.trtype))),
        ("hosts", hosts),
        ("connect", connect),
    ])
}

fn policy_words(policy: &Policy) -> String {
    match policy.policy {
        crate::rpc::PolicyName::Off => "off".into(),
        crate::rpc::PolicyName::Idle => format!("idle {}", duration_ms(policy.idle_ms)),
        predicted if policy.threshold == 0.0 => predicted.as_str().into(),
        predicted => format!("{} {}", predicted.as_str(), policy.threshold),
    }
}

fn policy(policy: &Policy) -> String {
    let or_none = |value: u64, text: String| if value == 0 { "none".into() } else { text };
    let copy = policy.copy_mbytes_per_sec;
    let target = policy.snapshot_target_ms;
    pairs(&[
        ("policy", policy_words(policy)),
        ("staging limit", format!("{}% of the store's slots", policy.staging_limit_percent)),
        ("snapshot target", or_none(target, duration_ms(target))),
        ("copy limit", or_none(copy, format!("{copy} MiB/s"))),
    ])
}

fn stats(stats: &Stats) -> String {
    let mut texts: Vec<_> = stats.volumes.iter().map(volume_stats).collect();
    let stalled: Vec<_> = stats.reactors.iter().filter(|reactor| reactor.stalls > 0).collect();
    if !stalled.is_empty() {
        texts.push(pairs(&stalled.into_iter().map(reactor_stats).collect::<Vec<_>>()));
    }
    texts.join("\n")
}

fn reactor_stats(stats: &ReactorStats) -> (&'static str, String) {
    let own = stats.stalls.saturating_sub(stats.preempted);
    let up_to = |count: u64, ms: u64| match count {
        0 => String::new(),
        _ => format!(", up to {}", duration_ms(ms)),
    };
    let (own_ms, preempted_ms) = (stats.longest_ms, stats.longest_preempted_ms);
    let text = format!(
        "core {} stood still {own} times by itself{}; had no CPU {} times{}",
        stats.core,
        up_to(own, own_ms),
        stats.preempted,
        up_to(stats.preempted, preempted_ms)
    );
    ("reactor", text)
}

fn volume_stats(stats: &VolumeStats) -> String {
    let commands = &stats.commands;
    let copy = &stats.copy;
    let staging = &stats.staging;
    let staging_off =
        staging.off_reason.as_deref().map_or(String::new(), |why| format!("off: {}; ", clean(why)));
    let rate = |count: u64| bytes_per_s(count, stats.interval_ms);
    let mut lines = vec![
        ("volume", clean(&stats.volume)),
        ("since", format!("{} ({})", clean(&stats.since), duration_ms(stats.interval_ms))),
        ("policy", policy_words(&stats.policy)),
        (
            "commands",
            format!(
                "{} read, {} write, {} write zeroes, {} unmap, {} flush, {} other; {} failed",
                commands.read,
                commands.write,
                commands.write_zeroes,
                commands.unmap,
                commands.flush,
                commands.reset + commands.compare + commands.other,
                commands.failed
            ),
        ),
        (
            "data",
            format!(
                "{} read ({}), {} written ({}), {} unmapped",
                bytes(stats.bytes.read),
                rate(stats.bytes.read),
                bytes(stats.bytes.written),
                rate(stats.bytes.written),
                bytes(stats.bytes.unmapped)
            ),
        ),
        ("parked", format!("{} commands, {} now", stats.parked.commands, stats.parked.waiting)),
        ("parked for", latency(&stats.parked.wait)),
        ("preserve", latency(&stats.preserve)),
        (
            "copied",
            format!(
                "{} staged, {} refreshed, {} after the cut, {} preserved; {} failed",
                bytes(copy.staged_bytes),
                bytes(copy.refreshed_bytes),
                bytes(copy.copied_bytes),
                bytes(copy.preserved_bytes),
                copy.failed
            ),
        ),
        ("pace", pace(&stats.pace)),
        (
            "staging",
            format!(
                "{}{} slots, {} valid; since then {} staged, {} refreshed, {} outdated, {} adopted, \
                 {} dropped",
                staging_off,
                staging.slots,
                staging.valid,
                staging.staged,
                staging.refreshed,
                staging.outdated,
                staging.adopted,
                staging.dropped
            ),
        ),
        (
            "snapshots",
            format!(
                "{} created, {} complete, {} failed, {} deleted",
                stats.snapshots.created,
                stats.snapshots.completed,
                stats.snapshots.failed,
                stats.snapshots.deleted
            ),
        ),
        ("records", format!("{} taken, {} lost", stats.records.recorded, stats.records.overflowed)),
    ];
    lines.extend(stats.predictor.iter().flat_map(predictor));
    pairs(&lines)
}

fn pace(pace: &PaceStats) -> String {
    let us = |us: Option<f64>| us.map_or("-".to_owned(), |us| format!("{us} us"));
    let limit = pace.copy_mbytes_per_sec.map_or("none".to_owned(), |max| format!("{max} MiB/s"));
    let (with, without) = (us(pace.disturbed_us), us(pace.undisturbed_us));
    format!("commands take {with} beside copies, {without} without; limit for their sake {limit}")
}

fn predictor(predictor: &PredictorStats) -> Vec<(&'static str, String)> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let serving = predictor.serving.as_deref().unwrap_or("no tick yet");
    let fallback = predictor.fallback.as_deref().map_or(String::new(), |why| format!("; {why}"));
    let model = predictor.model.as_ref().map(|model| {
        let origin = if model.learned { "learned from this volume" } else { "as shipped" };
        format!(
            "{} (format {}), {origin}; {} steps learned: {} times better, {} times not, {} times back",
            clean(&model.checksum),
            model.version,
            model.steps,
            model.adopted,
            model.dropped,
            model.reverted
        )
    });
    let changes = predictor.threshold_changes.last().map_or(String::new(), |change| {
        let (age, reason) = (duration_ms(change.age_ms), clean(&change.reason));
        format!("; from {} {age} ago: {reason}", change.from)
    });
    let ticks = format!(
        "last {}, p50 {}, p90 {}, max {}; {} of {} late",
        duration_us(predictor.tick_last_us),
        duration_us(predictor.tick_median_us),
        duration_us(predictor.tick_p90_us),
        duration_us(predictor.tick_max_us),
        predictor.late_ticks,
        predictor.ticks
    );
    let load = format!(
        "{} chunks, {} messages waiting, at most {} records in a ring",
        predictor.active_chunks, predictor.queue, predictor.ring_records_max
    );
    let mut lines = vec![
        ("predictor", clean(serving) + &clean(&fallback)),
        ("model", or_none(model)),
        ("threshold", or_none(predictor.threshold.map(|score| score.to_string() + &changes))),
        ("ticks", ticks),
        ("follows", load),
    ];
    for window in predictor.calibration.iter().filter(|window| window.count > 0) {
        let share = |share: f64| format!("{:.1}%", share * 100.0);
        let text = format!(
            "{} of {} samples within {}, predicted {}; mean distance {}",
            share(window.came),
            window.count,
            duration_ms(window.within_s * 1000),
            share(window.predicted),
            share(window.error)
        );
        lines.push(("written", text));
    }
    lines
}

fn latency(latency: &Latency) -> String {
    if latency.count == 0 {
        return "-".into();
    }
    format!(
        "mean {}, p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
        duration_us(latency.mean_us),
        duration_us(latency.p50_us),
        duration_us(latency.p90_us),
        duration_us(latency.p99_us),
        duration_us(latency.p999_us),
        duration_us(latency.max_us)
    )
}

fn chunks(page: &ChunkPage) -> String {
    let headings = [
        "CHUNK",
        "DIRTY",
        "STAGED",
        "SLOT",
        "OPERATION",
        "BLOCKS OUTDATED",
        "LAST WRITE",
        "SCORE",
        "WRITE IN 1 MIN",
    ];
    let mut table = table(&headings, &[0, 3, 4, 5, 6, 7, 8]);
    let percent = |p: f64| format!("{:.0}%", p * 100.0);
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    for chunk in &page.chunks {
        let staged = match (chunk.operation_number, chunk.valid) {
            (None, _) => "no",
            (Some(_), true) => "valid",
            (Some(_), false) => "outdated",
        };
        let slot = match (chunk.operation_number, chunk.staging_location) {
            (Some(_), None) => Some("zero".into()),
            (_, slot) => slot.map(|slot| slot.to_string()),
        };
        table.add_row([
            chunk.chunk_id.to_string(),
            if chunk.dirty { "yes" } else { "no" }.into(),
            staged.into(),
            or_dash(slot),
            or_dash(chunk.operation_number.map(|op| op.to_string())),
            or_dash(chunk.operation_number.map(|_| chunk.block_map.0.count_ones().to_string())),
            or_dash(chunk.last_write_age_ms.map(|age| duration_ms(age) + " ago")),
            or_dash(chunk.score.map(percent)),
            or_dash(chunk.p_modify.as_ref().map(|p| percent(p.within_1_min))),
        ]);
    }
    let next = page.next.map_or(String::new(), |next| {
        format!("go on with: presnap chunks {} --start {next}\n", clean(&page.volume))
    });
    text(&table) + &next
}

/// presnap's methods.
pub fn methods() -> String {
    let mut table = table(&["METHOD", "WHAT IT DOES"], &[]);
    for method in METHODS {
        table.add_row([method.name, method.summary]);
    }
    text(&table)
}

/// A size with a binary unit: exact if it can be, else with one digit.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (count.max(1).ilog2() / 10) as usize;
    if unit == 0 {
        return format!("{count} B");
    }
    let shift = 10 * unit as u32;
    let tenths = ((u128::from(count) * 10) >> shift) as u64;
    let (whole, tenth) = (tenths / 10, tenths % 10);
    match tenth {
        0 => format!("{whole} {}", UNITS[unit - 1]),
        _ => format!("{whole}.{tenth} {}", UNITS[unit - 1]),
    }
}

fn bytes_per_s(count: u64, interval_ms: u64) -> String {
    let rate = (u128::from(count) * 1000).checked_div(u128::from(interval_ms)).unwrap_or(0);
    bytes(u64::try_from(rate).unwrap_or(u64::MAX)) + "/s"
}

fn percent(part: u64, whole: u64) -> String {
    let tenths = (u128::from(part) * 1000).checked_div(u128::from(whole)).unwrap_or(0);
    match (part, tenths) {
        (0, _) => "0%".into(),
        (_, 0) => "<0.1%".into(),
        _ => format!("{}.{}%", tenths / 10, tenths % 10),
    }
}

/// A time with a unit that fits.
pub fn duration_us(us: u64) -> String {
    let scaled = |unit: u64, name: &str| {
        let tenths = us / (unit / 10);
        match tenths % 10 {
            0 => format!("{} {name}", tenths / 10),
            tenth => format!("{}.{tenth} {name}", tenths / 10),
        }
    };
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => scaled(1_000, "ms"),
        1_000_000..60_000_000 => scaled(1_000_000, "s"),
        60_000_000..3_600_000_000 => scaled(60_000_000, "min"),
        3_600_000_000..172_800_000_000 => scaled(3_600_000_000, "h"),
        _ => scaled(86_400_000_000, "days"),
    }
}

/// As [`duration_us`], from milliseconds.
pub fn duration_ms(ms: u64) -> String {
    duration_us(ms.saturating_mul(1000))
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
