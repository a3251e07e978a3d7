//! What `presnap_get_stats` answers.

use std::rc::Rc;

use super::RpcError;
use super::handlers::{attached, policy_object};
use super::objects::{
    ByteCounts, CalibrationBin, CalibrationStats, CommandCounts, CopyStats, Latency, ModelStats,
    PaceStats, ParkedStats, PredictorStats, ReactorStats, RecordStats, SnapshotStats, StagingStats,
    Stats, ThresholdChange, VolumeStats, rfc3339,
};
use super::params;
use crate::engine::controller::Change;
use crate::engine::events::Micros;
use crate::engine::{Content, Engine, Pace};
use crate::predict::{ModelState, WINDOWS_US, calibration, model};
use crate::spdk::watchdog::{self, ReactorStalls};
use crate::volume::access::CommandKind;
use crate::volume::scoring::Health;
use crate::volume::stats::unix_ms;
use crate::volume::volume::{self, Follower, Volume};
use crate::volume::world::world;

/// Counters of one volume or of all.
pub(super) fn get_stats(p: &params::GetStats) -> Result<Stats, RpcError> {
    let volumes: Vec<Rc<Volume>> = match &p.volume {
        Some(name) => vec![attached(name)?],
        None => world().volumes.borrow().values().cloned().collect(),
    };
    let stats = Stats {
        volumes: volumes.iter().map(|volume| volume_stats(volume)).collect(),
        reactors: watchdog::reactors().iter().map(reactor_stats).collect(),
    };
    if p.reset && p.volume.is_none() {
        watchdog::reset();
    }
    if p.reset {
        for volume in &volumes {
            volume.reset_counters();
        }
    }
    Ok(stats)
}

fn reactor_stats(stalls: &ReactorStalls) -> ReactorStats {
    ReactorStats {
        core: stalls.core,
        stalls: stalls.stalls,
        preempted: stalls.preempted,
        longest_ms: stalls.longest_us / 1000,
        longest_preempted_ms: stalls.longest_preempted_us / 1000,
    }
}

#[expect(clippy::cast_sign_loss, reason = "a mean of unsigned values")]
fn latency(histogram: &hdrhistogram::Histogram<u64>) -> Latency {
    // An empty histogram answers 0 to everything.
    Latency {
        count: histogram.len(),
        mean_us: histogram.mean() as u64,
        p50_us: histogram.value_at_quantile(0.5),
        p90_us: histogram.value_at_quantile(0.9),
        p99_us: histogram.value_at_quantile(0.99),
        p999_us: histogram.value_at_quantile(0.999),
        max_us: histogram.max(),
    }
}

fn volume_stats(volume: &Volume) -> VolumeStats {
    let counters = volume.counters.borrow();
    let commands = volume.commands();
    let engine = volume.engine_counters();
    let count = |kind: CommandKind| commands.commands[kind as usize];
    let bytes = |kind: CommandKind| {
        commands.blocks[kind as usize] * u64::from(volume.device.gate.geometry().lba_bytes())
    };
    let (slots, valid) = volume.with_engine(|engine| {
        let valid = engine
            .staged_chunks()
            .filter(|staged| engine.gate().view(staged.chunk).valid())
            .filter(|staged| matches!(staged.content, Content::Slot(_)))
            .count();
        (engine.slots_in_hand().staged, valid as u64)
    });
    VolumeStats {
        volume: volume.name(),
        since: rfc3339(counters.since_unix_ms),
        interval_ms: unix_ms().saturating_sub(counters.since_unix_ms),
        commands: CommandCounts {
            read: count(CommandKind::Read),
            write: count(CommandKind::Write),
            write_zeroes: count(CommandKind::WriteZeroes),
            unmap: count(CommandKind::Unmap),
            flush: count(CommandKind::Flush),
            reset: count(CommandKind::Reset),
            compare: count(CommandKind::Compare),
            other: count(CommandKind::Other),
            failed: commands.failed,
        },
        bytes: ByteCounts {
            read: bytes(CommandKind::Read),
            written: bytes(CommandKind::Write) + bytes(CommandKind::WriteZeroes),
            unmapped: bytes(CommandKind::Unmap),
        },
        parked: ParkedStats {
            commands: counters.waits.len(),
            waiting: volume.parked_now(),
            wait: latency(&counters.waits),
        },
        preserve: latency(&counters.preserves),
        copy: CopyStats {
            staged_bytes: engine.staged_bytes,
            refreshed_bytes: engine.refreshed_bytes,
            copied_bytes: engine.copied_bytes,
            preserved_bytes: engine.preserved_bytes,
            failed: engine.failed_copies,
        },
        pace: pace_stats(volume.with_engine(Engine::pace)),
        staging: StagingStats {
            staged: engine.staged_copies,
            refreshed: engine.refreshed_copies,
            outdated: engine.outdated_copies,
            adopted: engine.adopted_copies,
            dropped: engine.dropped_copies,
            slots,
            valid,
            off_reason: volume.with_engine(|engine| engine.staging_off().map(str::to_owned)),
        },
        snapshots: SnapshotStats {
            created: counters.cuts,
            completed: engine.snapshots_complete,
            failed: engine.snapshots_failed,
            deleted: counters.deleted,
        },
        records: RecordStats { recorded: counters.records, overflowed: counters.records_lost },
        policy: policy_object(volume.options().tuning),
        predictor: volume
            .with_follower(|follower| follower.map(|follower| predictor_stats(volume, follower))),
    }
}

fn predictor_stats(volume: &Volume, follower: &Follower) -> PredictorStats {
    let (health, told_at) = match &follower.last {
        Some((scored, told_at)) => (scored.health.clone(), Some(*told_at)),
        None => (Health::default(), None),
    };
    let stalled = volume.predictor_stalled().map(|us| {
        format!(
            "the predictor has not answered for {} s: chunks are staged by rest",
            us / 1_000_000
        )
    });
    let threshold = volume.with_engine(Engine::threshold);
    let at = volume::now();
    let change = |change: &Change| ThresholdChange {
        age_ms: age_ms(at, change.at),
        from: rounded(change.from.probability()),
        to: rounded(change.to.probability()),
        reason: change.reason.to_string(),
    };
    PredictorStats {
        serving: told_at.map(|_| health.predictor.to_owned()),
        fallback: stalled.or(health.fallback),
        effort: health.effort.name().to_owned(),
        model: health.model.map(model_stats),
        threshold: threshold.as_ref().map(|&(score, _)| rounded(score.probability())),
        threshold_changes: threshold.iter().flat_map(|(_, changes)| changes).map(change).collect(),
        calibration: calibration_stats(&health.calibration),
        queue: volume.predictor_queue(),
        ring_records_max: health.ring_records_max,
        ticks: health.ticks,
        late_ticks: health.late_ticks,
        tick_last_us: health.tick_last_us,
        tick_p90_us: health.tick_p90_us,
        tick_median_us: health.tick_median_us,
        tick_max_us: health.tick_max_us,
        last_tick_age_ms: told_at.map(|told_at| age_ms(volume::now(), told_at)),
        active_chunks: health.active_chunks,
    }
}

#[allow(clippy::cast_precision_loss, reason = "with one decimal")]
fn pace_stats(pace: Pace) -> PaceStats {
    let tenths = |number: f64| (number * 10.0).round() / 10.0;
    PaceStats {
        undisturbed_us: pace.undisturbed_us.map(tenths),
        disturbed_us: pace.disturbed_us.map(tenths),
        copy_mbytes_per_sec: pace
            .bytes_per_s_max
            .map(|max| tenths(max as f64 / f64::from(1 << 20))),
    }
}

fn model_stats(state: ModelState) -> ModelStats {
    ModelStats {
        checksum: format!("{:08x}", state.checksum),
        version: model::VERSION,
        learned: state.checksum != state.first_checksum,
        steps: state.steps,
        adopted: state.adopted,
        dropped: state.dropped,
        reverted: state.reverted,
    }
}

#[allow(clippy::cast_precision_loss, reason = "some ten thousand samples, with four decimals")]
fn calibration_stats(table: &calibration::Table) -> Vec<CalibrationStats> {
    let share = |part: f64, count: u64| (part / count.max(1) as f64 * 1e4).round() / 1e4;
    let of_window = |(bins, window_us): (&calibration::Bins, u64)| {
        let sum = bins.iter().fold(calibration::Bin::default(), |sum, bin| calibration::Bin {
            count: sum.count + bin.count,
            predicted: sum.predicted + bin.predicted,
            came: sum.came + bin.came,
        });
        let filled = bins.iter().filter(|bin| bin.count > 0);
        CalibrationStats {
            within_s: window_us / 1_000_000,
            count: sum.count,
            predicted: share(sum.predicted, sum.count),
            came: share(sum.came as f64, sum.count),
            error: share(calibration::error_of(bins), 1),
            bins: filled
                .map(|bin| CalibrationBin {
                    predicted: share(bin.predicted, bin.count),
                    came: share(bin.came as f64, bin.count),
                    count: bin.count,
                })
                .collect(),
        }
    };
    table.iter().zip(WINDOWS_US).map(of_window).collect()
}

/// How long ago something was.
pub(super) fn age_ms(now: Micros, then: Micros) -> u64 {
    now.since(then) / 1000
}

/// A probability with the digits that mean something.
pub(super) fn rounded(probability: f32) -> f64 {
    (f64::from(probability) * 1e4).round() / 1e4
}
