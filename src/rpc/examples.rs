//! An example of each result, for the documentation and for tests. The numbers fit together.

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::objects::{
    Address, BlockMapHex, ByteCounts, CalibrationBin, CalibrationStats, CatalogUse, Chunk,
    ChunkCounts, ChunkPage, CommandCounts, Consistency, CopyStats, DamagedSlot, Export, Latency,
    ModelStats, PModify, PaceStats, ParkedStats, Policy, PredictorStats, Progress, ReactorStats,
    RecordStats, Scrub, ScrubState, SlotCounts, Snapshot, SnapshotState, SnapshotStats,
    SnapshotTimes, StagingStats, Stats, Store, StoreState, StoreVolume, ThresholdChange, Volume,
    VolumeChunks, VolumeState, VolumeStats, rfc3339,
};
use super::params::PolicyName;
use super::schema::Reply;

impl Policy {
    /// An example for the documentation.
    pub fn example() -> Self {
        Self {
            policy: PolicyName::Idle,
            idle_ms: 1000,
            threshold: 0.0,
            window_ms: 0,
            staging_limit_percent: 50,
            snapshot_target_ms: 0,
            copy_mbytes_per_sec: 0,
        }
    }
}

impl Store {
    /// An example for the documentation.
    pub fn example() -> Self {
        Self {
            name: "store0".into(),
            uuid: Uuid::from_u128(0x1c50_7d3a_8a6f_4a4e_9d0c_51c2_7b5e_0a11),
            bdev: "Nvme1n1".into(),
            slot_size_kib: 256,
            slots: SlotCounts {
                total: 262_010,
                free: 241_020,
                reserved: 500,
                staged: 3_072,
                copying: 10,
                owned: 17_408,
            },
            catalog: CatalogUse { bytes: 134_217_728, used: 5_308_416 },
            volumes: vec![StoreVolume {
                name: "vol0".into(),
                uuid: Volume::example().uuid,
                attached: true,
                snapshots: 1,
            }],
            state: StoreState::Loaded,
            reason: None,
            damaged_slots: 1,
            scrub: ScrubState::Running,
        }
    }
}

impl Scrub {
    /// An example for the documentation.
    pub fn example() -> Self {
        Self {
            store: "store0".into(),
            state: ScrubState::Running,
            reason: None,
            mbytes_per_sec: 64,
            started_at: Some(rfc3339(1_767_229_200_000)),
            took_ms: 40_000,
            slots: 20_480,
            bytes_read: 2_684_354_560,
            progress: Some(Progress { percent: 50, left_ms: Some(40_000) }),
            found: 1,
            repaired: 0,
            staged_dropped: 0,
            damaged: 1,
            damaged_slots: vec![DamagedSlot {
                slot: 4_096,
                volume: "vol0".into(),
                snapshots: vec!["monday".into()],
                chunk_id: 16,
                lba: 8_192,
                blocks: 512,
                offset: 4_194_304,
                bytes: 262_144,
                found_at: rfc3339(1_767_229_225_500),
            }],
        }
    }
}

impl Volume {
    /// An example for the documentation.
    pub fn example() -> Self {
        Self {
            name: "vol0".into(),
            uuid: Uuid::from_u128(0x52b1_4c0e_1b0f_5c53_8a35_7f4f_3c1e_9b20),
            base_bdev: "Nvme0n1".into(),
            store: "store0".into(),
            state: VolumeState::Online,
            bytes: 34_359_738_368,
            block_size: 512,
            chunk_size_kib: 256,
            chunks: VolumeChunks { total: 131_072, dirty: 4_211, staged: 3_072 },
            operation_number: 9_120_455,
            snapshots: 1,
            policy: Policy::example(),
        }
    }
}

impl Export {
    /// An example for the documentation.
    pub fn example() -> Self {
        let uuid = Snapshot::EXAMPLE_UUID;
        Self {
            nqn: super::default_nqn("vol0", "monday", uuid),
            nsid: 1,
            address: Address {
                trtype: "TCP".into(),
                traddr: "127.0.0.1".into(),
                trsvcid: "4420".into(),
            },
            hosts: Some(vec![
                "nqn.2014-08.org.nvmexpress:uuid:9f2a1c1e-7d1b-4f0e-9d0e-2f8f2d8a6c11".into(),
            ]),
        }
    }
}

impl Snapshot {
    const EXAMPLE_UUID: Uuid = Uuid::from_u128(0x6f96_19ff_8b86_4d01_b42d_00cf_4fc9_64ff);

    /// An example for the documentation.
    pub fn example() -> Self {
        Self {
            name: "monday".into(),
            uuid: Self::EXAMPLE_UUID,
            volume: "vol0".into(),
            operation_number: 9_001_204,
            created_at: rfc3339(1_767_225_600_125),
            state: SnapshotState::Complete,
            reason: None,
            consistency: Consistency::Crash,
            chunks: ChunkCounts {
                total: 131_072,
                required: 18_000,
                adopted: 16_500,
                copied: 880,
                preserved: 28,
                zero: 592,
            },
            times: SnapshotTimes { cut_us: 3, consistent_us: 2_480, complete_us: 391_022 },
            bytes_used: 4_563_402_752,
            exported: false,
            export: None,
            progress: None,
        }
    }
}

impl Stats {
    /// An example for the documentation.
    pub fn example() -> Self {
        let preserve = Latency {
            count: 28,
            mean_us: 96,
            p50_us: 88,
            p90_us: 130,
            p99_us: 212,
            p999_us: 212,
            max_us: 212,
        };
        let wait = Latency { count: 31, ..preserve.clone() };
        Self {
            volumes: vec![VolumeStats {
                volume: "vol0".into(),
                since: rfc3339(1_767_225_000_000),
                interval_ms: 600_125,
                commands: CommandCounts {
                    read: 5_120_400,
                    write: 9_120_455,
                    write_zeroes: 0,
                    unmap: 12,
                    flush: 640,
                    reset: 0,
                    compare: 0,
                    other: 0,
                    failed: 0,
                },
                bytes: ByteCounts {
                    read: 20_973_158_400,
                    written: 37_357_383_680,
                    unmapped: 12_582_912,
                },
                parked: ParkedStats { commands: 31, waiting: 0, wait },
                preserve,
                copy: CopyStats {
                    staged_bytes: 5_133_828_096,
                    refreshed_bytes: 209_715_200,
                    copied_bytes: 230_686_720,
                    preserved_bytes: 1_835_008,
                    failed: 0,
                },
                pace: PaceStats {
                    undisturbed_us: Some(41.2),
                    disturbed_us: Some(57.9),
                    copy_mbytes_per_sec: Some(412.0),
                },
                staging: StagingStats {
                    staged: 19_584,
                    refreshed: 1_904,
                    outdated: 2_210,
                    adopted: 16_500,
                    dropped: 12,
                    slots: 3_072,
                    valid: 2_958,
                    off_reason: None,
                },
                snapshots: SnapshotStats { created: 1, completed: 1, failed: 0, deleted: 0 },
                records: RecordStats { recorded: 14_241_507, overflowed: 0 },
                policy: Policy { policy: PolicyName::Rate, ..Policy::example() },
                predictor: Some(PredictorStats {
                    serving: Some("lstm".into()),
                    fallback: None,
                    effort: "full".into(),
                    model: Some(ModelStats {
                        checksum: "1c8f03a7".into(),
                        version: 1,
                        learned: true,
                        steps: 560,
                        adopted: 2,
                        dropped: 12,
                        reverted: 0,
                    }),
                    threshold: Some(0.4),
                    threshold_changes: vec![ThresholdChange {
                        age_ms: 1_260_000,
                        from: 0.5,
                        to: 0.4,
                        reason: "a snapshot took 412 ms, and may take 250 ms".into(),
                    }],
                    ticks: 3_600,
                    late_ticks: 0,
                    tick_last_us: 1_190,
                    tick_median_us: 1_204,
                    tick_p90_us: 1_377,
                    tick_max_us: 2_117,
                    last_tick_age_ms: Some(312),
                    active_chunks: 9_412,
                    queue: 0,
                    ring_records_max: 71,
                    calibration: vec![CalibrationStats {
                        within_s: 10,
                        count: 28_720,
                        predicted: 0.0421,
                        came: 0.0398,
                        error: 0.0043,
                        bins: vec![
                            CalibrationBin { predicted: 0.0113, came: 0.0092, count: 27_011 },
                            CalibrationBin { predicted: 0.5289, came: 0.5101, count: 1_709 },
                        ],
                    }],
                }),
            }],
            reactors: vec![ReactorStats {
                core: 0,
                stalls: 3,
                preempted: 2,
                longest_ms: 14,
                longest_preempted_ms: 37,
            }],
        }
    }
}

impl ChunkPage {
    /// An example for the documentation.
    pub fn example() -> Self {
        Self {
            volume: "vol0".into(),
            chunk_size_kib: 256,
            total: 131_072,
            next: Some(2),
            chunks: vec![
                Chunk {
                    chunk_id: 0,
                    operation_number: Some(9_120_400),
                    staging_location: Some(1_377),
                    valid: false,
                    dirty: true,
                    block_map: BlockMapHex(0x8001),
                    last_write_age_ms: Some(212),
                    heat: Some(0.2041),
                    score: Some(0.1184),
                    p_modify: Some(PModify {
                        within_10_s: 0.5312,
                        within_1_min: 0.8125,
                        within_5_min: 0.9062,
                        within_15_min: 0.9688,
                    }),
                },
                Chunk {
                    chunk_id: 1,
                    operation_number: None,
                    staging_location: None,
                    valid: false,
                    dirty: false,
                    block_map: BlockMapHex(0),
                    last_write_age_ms: None,
                    heat: None,
                    score: None,
                    p_modify: None,
                },
            ],
        }
    }
}

impl Reply {
    /// An example of the result as JSON text, fields in the order of this file.
    pub fn example_text(self) -> String {
        fn json(object: impl Serialize) -> String {
            serde_json::to_string_pretty(&object).expect("objects hold nothing that JSON cannot")
        }
        match self {
            Self::True => json(true),
            Self::BdevName => json("vol0"),
            Self::Store => json(Store::example()),
            Self::Stores => json([Store::example()]),
            Self::Scrub => json(Scrub::example()),
            Self::Snapshot => json(Snapshot::example()),
            Self::Snapshots => json([Snapshot::example()]),
            Self::Export => json(Export::example()),
            Self::Stats => json(Stats::example()),
            Self::Chunks => json(ChunkPage::example()),
            Self::Policy => json(Policy::example()),
        }
    }

    /// The same, parsed.
    pub fn example(self) -> Value {
        serde_json::from_str(&self.example_text()).expect("it was just written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_come_back_unchanged() {
        fn roundtrip<T: Serialize + serde::de::DeserializeOwned>(reply: Reply) {
            let example = reply.example();
            let typed: T = serde_json::from_value(example.clone()).unwrap();
            assert_eq!(serde_json::to_value(typed).unwrap(), example);
        }
        roundtrip::<bool>(Reply::True);
        roundtrip::<String>(Reply::BdevName);
        roundtrip::<Store>(Reply::Store);
        roundtrip::<Vec<Store>>(Reply::Stores);
        roundtrip::<Scrub>(Reply::Scrub);
        roundtrip::<Snapshot>(Reply::Snapshot);
        roundtrip::<Vec<Snapshot>>(Reply::Snapshots);
        roundtrip::<Export>(Reply::Export);
        roundtrip::<Stats>(Reply::Stats);
        roundtrip::<ChunkPage>(Reply::Chunks);
        roundtrip::<Policy>(Reply::Policy);
    }

    #[test]
    fn sums_in_the_examples_hold() {
        let slots = Store::example().slots;
        assert_eq!(
            slots.total,
            slots.free + slots.reserved + slots.staged + slots.copying + slots.owned
        );
        let chunks = Snapshot::example().chunks;
        let sum = chunks.adopted + chunks.copied + chunks.preserved + chunks.zero;
        assert_eq!(chunks.required, sum);
        let owned_bytes = (chunks.required - chunks.zero) * 256 * 1024;
        assert_eq!(Snapshot::example().bytes_used, owned_bytes);
    }

    #[test]
    fn a_snapshot_has_the_fields_of_the_contract() {
        let snapshot = Reply::Snapshot.example();
        for field in "name uuid volume operation_number created_at state reason chunks times \
                      bytes_used exported consistency progress"
            .split_whitespace()
        {
            assert!(snapshot.get(field).is_some(), "{field}");
        }
        assert_eq!(snapshot["consistency"], "crash");
        assert_eq!(snapshot["created_at"], "2026-01-01T00:00:00.125Z");
    }
}
