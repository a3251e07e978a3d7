//! Results of methods: the server fills these in, the `presnap` command prints them.
//!
//! Fields are only ever added. A field that does not apply is null, never left out.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::params::PolicyName;

/// A field of an object, for the documentation.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name in the JSON object.
    pub name: &'static str,
    /// Rust type, as written in this file.
    pub rust_type: &'static str,
    /// What it is.
    pub doc: &'static str,
}

/// A kind of object, for the documentation.
#[derive(Clone, Copy, Debug)]
pub struct ObjectType {
    /// Rust name.
    pub name: &'static str,
    /// What it is.
    pub doc: &'static str,
    /// Its fields, in order.
    pub fields: &'static [Field],
}

macro_rules! objects {
    ($($(#[doc = $doc:literal])* $name:ident {
        $($(#[doc = $field_doc:literal])* $field:ident: $type:ty,)*
    })*) => {
        $(
            $(#[doc = $doc])*
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            pub struct $name { $($(#[doc = $field_doc])* pub $field: $type,)* }
        )*

        /// Every kind of object, in the order of this file.
        pub const OBJECTS: &[ObjectType] = &[$(ObjectType {
            name: stringify!($name),
            doc: concat!($($doc),*),
            fields: &[$(Field {
                name: stringify!($field),
                rust_type: stringify!($type),
                doc: concat!($($field_doc),*),
            },)*],
        },)*];
    };
}

objects! {
    /// A formatted device that holds copies of chunks.
    Store {
        /// Name.
        name: String,
        /// Made when the store was formatted.
        uuid: Uuid,
        /// The bdev it is on.
        bdev: String,
        /// Bytes per slot, in KiB; equals the chunk size of its volumes.
        slot_size_kib: u32,
        /// How its slots are used.
        slots: SlotCounts,
        /// How full the catalog is.
        catalog: CatalogUse,
        /// Volumes that it knows, attached or not.
        volumes: Vec<StoreVolume>,
        /// `loaded`, `unloaded`, `deleted` or `failed`.
        state: StoreState,
        /// Why it failed.
        reason: Option<String>,
        /// Slots of snapshots that are known to be damaged; `presnap_store_scrub` names them.
        damaged_slots: u64,
        /// State of the scrub under way, or of the last one since the store was loaded.
        scrub: ScrubState,
    }
    /// A scrub: the one under way, or the last one since the store was loaded.
    Scrub {
        /// Name of the store.
        store: String,
        /// `none`, `running`, `done`, `stopped` or `failed`.
        state: ScrubState,
        /// Why it failed, or was stopped.
        reason: Option<String>,
        /// Limit for reading, in MiB/s; 0: none.
        mbytes_per_sec: u64,
        /// When it began: RFC 3339, UTC, milliseconds.
        started_at: Option<String>,
        /// How long it took, or takes so far.
        took_ms: u64,
        /// Slots that were in use when it began.
        slots: u64,
        /// Bytes read.
        bytes_read: u64,
        /// How far it is, while it is running.
        progress: Option<Progress>,
        /// Slots that it found damaged and that were not known to be.
        found: u64,
        /// Damaged slots that are in order again: written anew from the master, or found to be so.
        repaired: u64,
        /// Staged copies that it found damaged and dropped.
        staged_dropped: u64,
        /// Slots of snapshots that are damaged now, whichever scrub found them.
        damaged: u64,
        /// Which, by their numbers; the first 1000 of them.
        damaged_slots: Vec<DamagedSlot>,
    }
    /// What is lost with a damaged slot: the same range of each of the snapshots. Reads of it end with
    /// a media error.
    DamagedSlot {
        /// Number of the slot.
        slot: u64,
        /// The volume.
        volume: String,
        /// Its snapshots that have the slot, the oldest first.
        snapshots: Vec<String>,
        /// Number of the chunk.
        chunk_id: u64,
        /// First logical block that is lost.
        lba: u64,
        /// Logical blocks that are lost.
        blocks: u64,
        /// First byte that is lost.
        offset: u64,
        /// Bytes that are lost.
        bytes: u64,
        /// When it was found: RFC 3339, UTC, milliseconds.
        found_at: String,
    }
    /// How the slots of a store are used: total = free + reserved + staged + copying + owned.
    SlotCounts {
        /// Slots of the store.
        total: u64,
        /// Slots that hold nothing and are promised to nobody.
        free: u64,
        /// Slots that hold nothing yet and are kept for snapshots that are completing.
        reserved: u64,
        /// Slots with a staged copy.
        staged: u64,
        /// Slots that a copy under way goes to.
        copying: u64,
        /// Slots that snapshots own, completing ones included.
        owned: u64,
    }
    /// How full the catalog of a store is.
    CatalogUse {
        /// Size of the catalog region.
        bytes: u64,
        /// Bytes of it in use.
        used: u64,
    }
    /// A volume that a store knows.
    StoreVolume {
        /// Name of the volume bdev.
        name: String,
        /// UUID of the volume bdev.
        uuid: Uuid,
        /// Whether the volume bdev exists now.
        attached: bool,
        /// Snapshots that it has in the store.
        snapshots: u64,
    }
    /// A volume; `driver_specific.presnap` of its bdev in `bdev_get_bdevs`.
    Volume {
        /// Name of the bdev.
        name: String,
        /// UUID of the bdev; stays the same after a restart.
        uuid: Uuid,
        /// The master.
        base_bdev: String,
        /// Name of the store.
        store: String,
        /// `online`, or `no_store`: reads and writes go on, snapshots are not possible.
        state: VolumeState,
        /// Size in bytes.
        bytes: u64,
        /// Bytes per logical block.
        block_size: u32,
        /// Bytes per chunk, in KiB.
        chunk_size_kib: u32,
        /// How its chunks stand.
        chunks: VolumeChunks,
        /// Highest operation number given out.
        operation_number: u64,
        /// Snapshots that it has, failed ones too.
        snapshots: u64,
        /// How it stages and copies.
        policy: Policy,
    }
    /// How the chunks of a volume stand.
    VolumeChunks {
        /// Chunks of the volume.
        total: u64,
        /// Modified since the last cut.
        dirty: u64,
        /// With a staged copy, valid or outdated.
        staged: u64,
    }
    /// A snapshot of a volume.
    Snapshot {
        /// Name, unique in its volume.
        name: String,
        /// Chosen by the caller or made at create.
        uuid: Uuid,
        /// The volume it is of.
        volume: String,
        /// No command in the snapshot has a higher operation number.
        operation_number: u64,
        /// When the request arrived: RFC 3339, UTC, milliseconds.
        created_at: String,
        /// `completing`: readable, still needs the master; `complete`: an independent copy;
        /// `failed`: given up.
        state: SnapshotState,
        /// Why it failed.
        reason: Option<String>,
        /// What the content can be relied on for; always `crash`: like the disk of a machine that
        /// lost power.
        consistency: Consistency,
        /// How its chunks came to be.
        chunks: ChunkCounts,
        /// How long its stages took.
        times: SnapshotTimes,
        /// Bytes of the slots that it owns itself. Data that it shares with earlier snapshots
        /// counts there.
        bytes_used: u64,
        /// Whether it is exported.
        exported: bool,
        /// Where it is exported.
        export: Option<Export>,
        /// How far it is, while completing.
        progress: Option<Progress>,
    }
    /// How the chunks of a snapshot came to be. Once it is complete:
    /// required = adopted + copied + preserved + zero.
    ChunkCounts {
        /// Chunks of the volume.
        total: u64,
        /// Chunks that no earlier snapshot held unchanged. While it is completing: the chunks that
        /// were dirty at the request, of which some may turn out not to be required.
        required: u64,
        /// Taken over from valid staged copies: no data moved.
        adopted: u64,
        /// Copied after the cut in the background.
        copied: u64,
        /// Copied after the cut because a foreground write waited.
        preserved: u64,
        /// All zeros: took no slot.
        zero: u64,
    }
    /// How long the stages of a snapshot took, in microseconds.
    SnapshotTimes {
        /// The cut itself.
        cut_us: u64,
        /// From the request to readable.
        consistent_us: u64,
        /// From the request to complete; 0 while it is not.
        complete_us: u64,
    }
    /// How far a completing snapshot or a scrub is.
    Progress {
        /// Done, 0 to 100: of a snapshot its required chunks, of a scrub its slots.
        percent: u8,
        /// Time left at the present rate; null until a rate is known.
        left_ms: Option<u64>,
    }
    /// Where a snapshot is exported.
    Export {
        /// NQN of the subsystem.
        nqn: String,
        /// Namespace in it.
        nsid: u32,
        /// Where it listens.
        address: Address,
        /// NQNs of the hosts that may connect; null: every host.
        hosts: Option<Vec<String>>,
    }
    /// An NVMe-oF transport address.
    Address {
        /// Transport type, such as TCP.
        trtype: String,
        /// Address.
        traddr: String,
        /// Port or service.
        trsvcid: String,
    }
    /// How a volume stages and copies.
    Policy {
        /// `off`, `idle`, `deadline`, `rate`, `likely` or `lstm`.
        policy: PolicyName,
        /// Rest of a chunk before policy `idle` stages it.
        idle_ms: u64,
        /// Score from which on a chunk is staged, where a predictor gives scores; 0: moved by itself, see
        /// `predictor` in the volume's statistics.
        threshold: f64,
        /// Time between snapshots, as a predictor is told; 0: it learns that from past ones.
        window_ms: u64,
        /// Share of the store's slots that staged copies of this volume may take.
        staging_limit_percent: u8,
        /// Aim for the time from a create request to complete; 0: none.
        snapshot_target_ms: u64,
        /// Limit for staging and copying in MiB/s; 0: none.
        copy_mbytes_per_sec: u64,
    }
    /// Counters of all volumes asked for.
    Stats {
        /// One entry per volume.
        volumes: Vec<VolumeStats>,
        /// One entry per reactor; none with `--stall-ms 0`.
        reactors: Vec<ReactorStats>,
    }
    /// Times that a reactor stood still for longer than `--stall-ms`.
    ReactorStats {
        /// The CPU it runs on.
        core: u32,
        /// Stalls of both sorts.
        stalls: u64,
        /// Of these, those during which the machine had taken the CPU away.
        preempted: u64,
        /// The longest stall that was the reactor's own doing.
        longest_ms: u64,
        /// The longest that was the machine's.
        longest_preempted_ms: u64,
    }
    /// Counters of one volume.
    VolumeStats {
        /// Name of the volume.
        volume: String,
        /// When counting began: RFC 3339, UTC, milliseconds.
        since: String,
        /// For how long it counted.
        interval_ms: u64,
        /// Foreground commands that ended.
        commands: CommandCounts,
        /// Foreground bytes.
        bytes: ByteCounts,
        /// Foreground commands that had to wait for a preserve.
        parked: ParkedStats,
        /// Time of one preserve: from the first command that asks for it to the chunk's release.
        preserve: Latency,
        /// Bytes copied for snapshots.
        copy: CopyStats,
        /// How copying gives way to foreground commands.
        pace: PaceStats,
        /// What became of staged copies.
        staging: StagingStats,
        /// Snapshots.
        snapshots: SnapshotStats,
        /// Access records for the monitor.
        records: RecordStats,
        /// How it stages and copies now.
        policy: Policy,
        /// How its predictor is; null if the policy has none.
        predictor: Option<PredictorStats>,
    }
    /// How the predictor of a volume is. It works once a second, in a *tick*.
    PredictorStats {
        /// Name of the predictor that serves: that of the policy, or `rate`; null before the first
        /// tick.
        serving: Option<String>,
        /// Why it is not the policy's, or for fewer chunks; null if all is well.
        fallback: Option<String>,
        /// How much it does: `full`, `fewer_chunks` or `rate`.
        effort: String,
        /// Its model; null if it needs none.
        model: Option<ModelStats>,
        /// Score from which on chunks are staged now; null while they are staged by rest.
        threshold: Option<f64>,
        /// How the threshold was moved: the last 16 times, newest last.
        threshold_changes: Vec<ThresholdChange>,
        /// Ticks since it follows the volume.
        ticks: u64,
        /// Of these, ticks that began or ended too late.
        late_ticks: u64,
        /// Time that the last tick took.
        tick_last_us: u64,
        /// Median time that a tick took, of the last 60.
        tick_median_us: u64,
        /// 90th percentile of these times.
        tick_p90_us: u64,
        /// Greatest of these times.
        tick_max_us: u64,
        /// Time since the last tick was heard of.
        last_tick_age_ms: Option<u64>,
        /// Chunks that it follows.
        active_chunks: u64,
        /// Messages of the predictor that wait for the app thread.
        queue: u64,
        /// Most access records that one ring held at once during the last 60 ticks, of 4096. Those for
        /// which there is no room are lost (`records.overflowed`).
        ring_records_max: u64,
        /// What it predicted in the last hour, and what came of it: samples, one entry per window.
        calibration: Vec<CalibrationStats>,
    }
    /// The model of a predictor.
    ModelStats {
        /// Checksum of its file: tells models apart.
        checksum: String,
        /// Version of the file's format.
        version: u32,
        /// Whether it is another than the one that ships with presnap, learned from this volume.
        learned: bool,
        /// Steps learned since the predictor follows the volume.
        steps: u64,
        /// Times that what was learned was better, and came into use.
        adopted: u64,
        /// Times that it was not, and was dropped.
        dropped: u64,
        /// Times that the first model came back.
        reverted: u64,
    }
    /// One change of the threshold.
    ThresholdChange {
        /// How long ago.
        age_ms: u64,
        /// Threshold before.
        from: f64,
        /// Threshold from then on.
        to: f64,
        /// Why.
        reason: String,
    }
    /// Predictions that a chunk is modified within a time, compared with what came.
    CalibrationStats {
        /// The time.
        within_s: u64,
        /// Predictions compared.
        count: u64,
        /// Mean of what was predicted.
        predicted: f64,
        /// Share that came true.
        came: f64,
        /// Mean distance of the two, taken bin by bin.
        error: f64,
        /// By tenths of what was predicted; empty ones are left out.
        bins: Vec<CalibrationBin>,
    }
    /// Predictions of about the same probability.
    CalibrationBin {
        /// Mean of what was predicted.
        predicted: f64,
        /// Share that came true.
        came: f64,
        /// Predictions.
        count: u64,
    }
    /// Foreground commands by kind.
    CommandCounts {
        /// Reads.
        read: u64,
        /// Writes.
        write: u64,
        /// Write-zeroes commands.
        write_zeroes: u64,
        /// Unmaps (deallocate, trim).
        unmap: u64,
        /// Flushes.
        flush: u64,
        /// Resets.
        reset: u64,
        /// Compares and compare-and-writes.
        compare: u64,
        /// Any other command.
        other: u64,
        /// Of all these, commands that ended with an error.
        failed: u64,
    }
    /// Foreground bytes by direction.
    ByteCounts {
        /// Read.
        read: u64,
        /// Written, write-zeroes included.
        written: u64,
        /// Unmapped.
        unmapped: u64,
    }
    /// Foreground commands that had to wait for a preserve.
    ParkedStats {
        /// Commands that waited.
        commands: u64,
        /// Commands that wait now.
        waiting: u64,
        /// How long they waited.
        wait: Latency,
    }
    /// Distribution of a time, in microseconds. All 0 while `count` is 0.
    Latency {
        /// Values recorded.
        count: u64,
        /// Mean.
        mean_us: u64,
        /// Median.
        p50_us: u64,
        /// 90th percentile.
        p90_us: u64,
        /// 99th percentile.
        p99_us: u64,
        /// 99.9th percentile.
        p999_us: u64,
        /// Greatest.
        max_us: u64,
    }
    /// Bytes copied for snapshots.
    CopyStats {
        /// By first copies of staged chunks.
        staged_bytes: u64,
        /// By refreshes of outdated staged chunks.
        refreshed_bytes: u64,
        /// After the cut, in the background.
        copied_bytes: u64,
        /// After the cut, because a foreground write waited.
        preserved_bytes: u64,
        /// Copies that ended with an error.
        failed: u64,
    }
    /// How copying gives way to foreground commands. Reads and writes are timed, one in sixteen, but for those
    /// that waited for a preserve.
    PaceStats {
        /// What they take while nothing is copied: a moving mean; null before it is known.
        undisturbed_us: Option<f64>,
        /// What they take while copies run.
        disturbed_us: Option<f64>,
        /// Limit on background copying for their sake; null: none. It is lowered while they take more
        /// than twice as long as undisturbed and 100 us.
        copy_mbytes_per_sec: Option<f64>,
    }
    /// What became of staged copies, in chunks.
    StagingStats {
        /// First copies made.
        staged: u64,
        /// Refreshes made.
        refreshed: u64,
        /// Copies that a later write made outdated.
        outdated: u64,
        /// Copies that a snapshot adopted.
        adopted: u64,
        /// Copies given up to make room, or because the policy changed.
        dropped: u64,
        /// Slots with a staged copy now.
        slots: u64,
        /// Of these, valid ones.
        valid: u64,
        /// Why nothing is staged although the policy is not `off`; null if all is well. Setting the
        /// policy anew has it try again.
        off_reason: Option<String>,
    }
    /// Snapshots since counting began.
    SnapshotStats {
        /// Cuts made.
        created: u64,
        /// Snapshots that became complete.
        completed: u64,
        /// Snapshots that failed.
        failed: u64,
        /// Snapshots deleted.
        deleted: u64,
    }
    /// Access records for the monitor.
    RecordStats {
        /// Records taken.
        recorded: u64,
        /// Records lost because a ring was full.
        overflowed: u64,
    }
    /// A page of chunks.
    ChunkPage {
        /// Name of the volume.
        volume: String,
        /// Bytes per chunk, in KiB.
        chunk_size_kib: u32,
        /// Chunks of the volume.
        total: u64,
        /// `start` of the next page; null at the end.
        next: Option<u64>,
        /// The chunks.
        chunks: Vec<Chunk>,
    }
    /// A chunk of a volume and its staged copy.
    Chunk {
        /// Place in the volume, from 0.
        chunk_id: u64,
        /// Operation number of the staged copy; null without one.
        operation_number: Option<u64>,
        /// Slot of the staged copy; null without one, or if the chunk is all zeros.
        staging_location: Option<u64>,
        /// Whether the staged copy could be adopted now.
        valid: bool,
        /// Whether the chunk was modified since the last cut.
        dirty: bool,
        /// Blocks (64 per chunk) modified since the staged copy was right: hexadecimal, lowest
        /// bit first block. `0x0` if valid.
        block_map: BlockMapHex,
        /// Time since the last write seen; null if none was seen since the volume was opened.
        last_write_age_ms: Option<u64>,
        /// Share of the last minutes' seconds in which the chunk was modified, what is four minutes old
        /// counting half; null unless a predictor follows the chunk.
        heat: Option<f64>,
        /// Probability that a copy made at the last tick is of use, if the chunk is dirty; null unless
        /// a predictor follows the chunk.
        score: Option<f64>,
        /// Probability that the chunk is modified; null unless a predictor follows the chunk.
        p_modify: Option<PModify>,
    }
    /// Probability that a chunk is modified within a time from the last tick.
    PModify {
        /// Within 10 s.
        within_10_s: f64,
        /// Within 1 min.
        within_1_min: f64,
        /// Within 5 min.
        within_5_min: f64,
        /// Within 15 min.
        within_15_min: f64,
    }
}

/// State of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreState {
    /// In use.
    Loaded,
    /// Left as it is.
    Unloaded,
    /// Overwritten.
    Deleted,
    /// Its device is gone or failed.
    Failed,
}

/// State of a scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubState {
    /// There was none since the store was loaded.
    None,
    /// Under way.
    Running,
    /// It has looked at every slot.
    Done,
    /// It was stopped before.
    Stopped,
    /// It could not go on.
    Failed,
}

/// State of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// All is well.
    Online,
    /// The store is gone: reads and writes go on, snapshots are not possible.
    NoStore,
}

/// State of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Readable, still needs the master.
    Completing,
    /// An independent copy.
    Complete,
    /// Given up.
    Failed,
}

/// What a snapshot's content can be relied on for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Like the disk of a machine that lost power.
    #[default]
    Crash,
}

/// A block map as JSON: a hexadecimal string, because many JSON readers lose bits of large numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockMapHex(pub u64);

impl From<BlockMapHex> for String {
    fn from(map: BlockMapHex) -> Self {
        format!("{:#x}", map.0)
    }
}

impl TryFrom<String> for BlockMapHex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a block map such as 0x8001"))
    }
}

/// `unix_ms` (milliseconds since 1970) as RFC 3339 in UTC: `2025-01-31T23:59:59.999Z`.
pub fn rfc3339(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days to a date of the Gregorian calendar, years beginning in March so that a leap day is
    // the last of its year (E. G. Richards, in: Explanatory Supplement to the Astronomical
    // Almanac, 3rd ed., section 15.11).
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_match_known_ones() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_767_225_600, "2026-01-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(seconds * 1000), date);
        }
        assert_eq!(rfc3339(1_709_251_199_987), "2024-02-29T23:59:59.987Z");
    }

    #[test]
    fn block_maps_keep_all_bits() {
        for bits in [0, 1, 0x8000_0000_0000_0001, u64::MAX] {
            let json = serde_json::to_string(&BlockMapHex(bits)).unwrap();
            assert_eq!(serde_json::from_str::<BlockMapHex>(&json).unwrap().0, bits);
        }
        for bad in ["\"8001\"", "\"0x\"", "\"0xg\"", "32769", "\"0x10000000000000000\""] {
            assert!(serde_json::from_str::<BlockMapHex>(bad).is_err(), "{bad}");
        }
    }
}
