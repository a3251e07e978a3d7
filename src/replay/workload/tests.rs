use super::*;
use crate::replay::trace::TraceKind;

fn options(seed: u64) -> WorkloadOptions {
    WorkloadOptions { seed, span_s: 3600, volume_bytes: 64 << 30, records_max: 200_000 }
}

#[test]
fn each_is_decided_by_its_seed_and_keeps_to_its_bounds() {
    for name in WORKLOADS {
        for seed in 0..6 {
            let records = generate(name, options(seed)).unwrap();
            let same = generate(name, options(seed)).unwrap();
            assert_eq!(records, same, "{name} {seed}");
            assert_ne!(records, generate(name, options(seed + 100)).unwrap(), "{name} {seed}");
            assert!(records.len() <= 200_000, "{name} {seed}: {}", records.len());
            assert!(records.is_sorted_by_key(|record| record.time_us), "{name} {seed}");
            let writes = records.iter().filter(|r| r.kind == TraceKind::Write).count();
            assert!(writes > 100, "{name} {seed}: {writes} writes");
            for record in &records {
                let end = record.offset_bytes + record.length_bytes;
                assert!(end <= 64 << 30, "{name} {seed}: {record:?}");
                assert!(record.time_us < 3600 * 1_000_000, "{name} {seed}: {record:?}");
                assert!(record.offset_bytes % 512 == 0 && record.length_bytes % 512 == 0);
            }
        }
    }
}

#[test]
fn a_volume_of_many_tebibytes_is_used_like_a_small_one() {
    for name in WORKLOADS {
        let large = WorkloadOptions { volume_bytes: 8 << 40, ..options(1) };
        let records = generate(name, large).unwrap();
        assert!(!records.is_empty(), "{name}");
        let small = WorkloadOptions { volume_bytes: 1 << 30, ..options(1) };
        let records = generate(name, small).unwrap();
        assert!(records.iter().all(|r| r.offset_bytes + r.length_bytes <= 1 << 30), "{name}");
    }
}

#[test]
fn no_workload_has_another_name() {
    assert!(generate("hotspots", options(1)).is_none());
}
