//! Replays of made-up traces whose outcome can be told beforehand, and of real ones whose figures
//! are known from elsewhere.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use super::policies::PolicyContext;
use super::random::Random;
use super::*;
use crate::predict::model::Model;

const CHUNK_BYTES: u64 = 256 << 10;
const SECOND_US: u64 = 1_000_000;

fn file(records: &[(u64, char, u64, u64)]) -> tempfile::NamedTempFile {
    let mut text = "time_us,op,offset_bytes,length_bytes\n".to_owned();
    for (time_us, op, offset, length) in records {
        writeln!(text, "{time_us},{op},{offset},{length}").unwrap();
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Writes of 4 KiB to `chunks` chunks, some hotter than others, and now and then a longer one.
fn mixed(seed: u64, seconds: u64, chunks: u64) -> tempfile::NamedTempFile {
    let mut random = Random::new(seed);
    let mut records = Vec::new();
    for second in 0..seconds {
        for part in 0..random.below(20) {
            let chunk = random.below(chunks) * random.below(chunks) / chunks;
            let offset = chunk * CHUNK_BYTES + random.below(64) * 4096;
            let length = if random.chance(50) { 400_000 } else { 4096 };
            let op = random.pick(&['R', 'W', 'W', 'W', 'U']);
            records.push((second * SECOND_US + part * 40_000, op, offset, length));
        }
    }
    // The volume's last chunk is whole.
    records.push((seconds * SECOND_US, 'R', (chunks + 2) * CHUNK_BYTES - 512, 512));
    file(&records)
}

fn options(path: &Path, policy: &str, schedule: Schedule) -> ReplayOptions {
    let context = PolicyContext {
        path,
        disk: None,
        chunk_bytes: CHUNK_BYTES as u32,
        schedule,
        schedule_known: true,
        model: &Model::shipped().unwrap(),
    };
    let spec: PolicySpec = policy.parse().unwrap();
    ReplayOptions { schedule, ..ReplayOptions::new(spec.policy(&context).unwrap()) }
}

fn run_with(path: &Path, options: ReplayOptions) -> Report {
    let report = replay(path, options, &mut |_| {}).unwrap();
    let left = report.left.whole_chunks + report.left.partial_chunks;
    assert!(left >= report.required - report.adopted, "{report:?}");
    assert_eq!(report.failed, 0, "{report:?}");
    Report { predictor_us: 0, ..report }
}

fn run(path: &Path, policy: &str, every_s: u64) -> Report {
    run_with(path, options(path, policy, Schedule::Every(every_s * SECOND_US)))
}

#[test]
fn what_is_required_does_not_depend_on_the_policy() {
    let trace = mixed(1, 300, 200);
    let off = run(trace.path(), "off", 60);
    assert_eq!(off.snapshots.len(), 5);
    assert!(off.required > 300 && off.adopted == 0, "{off:?}");
    assert_eq!((off.left.whole_chunks, off.left.partial_chunks), (off.required, 0));
    assert_eq!(off.left.whole_bytes, off.required_bytes);
    assert_eq!(off.staging, Staging::default());
    let mut reports = Vec::new();
    for policy in ["idle:1s", "idle:10s", "rate:0.5", "likely:0.5", "deadline", "oracle"] {
        let report = run(trace.path(), policy, 60);
        assert_eq!(report.required, off.required, "{policy}");
        assert!(report.adopted > 0, "{policy}: {report:?}");
        assert_eq!(report, run(trace.path(), policy, 60), "{policy} twice");
        reports.push(report);
    }
    let oracle = reports.last().unwrap();
    assert!(oracle.staging.wasted_bytes * 20 < oracle.staging.bytes, "{oracle:?}");
    for report in &reports[..2] {
        assert!(report.staging.bytes > oracle.staging.bytes, "{report:?}");
    }
    assert!(oracle.adopted_share() > 0.9, "{oracle:?}");
}

#[test]
fn a_chunk_that_rests_is_adopted_and_one_that_does_not_is_left() {
    let chunk = |number: u64| number * CHUNK_BYTES;
    let mut records = vec![(0, 'W', chunk(1), CHUNK_BYTES)];
    // Chunk 3 rests, then a block of it is written just before the cut.
    records.push((0, 'W', chunk(3), 4096));
    records.extend((0..95).map(|tenth| (tenth * 100_000, 'W', chunk(5), 4096)));
    records.push((9_900_000, 'W', chunk(3) + 8192, 4096));
    // After the cut, while its chunk is pending: waits.
    records.push((10_002_050, 'W', chunk(5), 4096));
    records.push((11_000_000, 'R', chunk(6) - 512, 512));
    records.sort_unstable();
    let trace = file(&records);
    let report = run(trace.path(), "idle:2s", 10);
    assert_eq!((report.required, report.adopted), (3, 1), "{report:?}");
    assert_eq!((report.left.whole_chunks, report.left.partial_chunks), (1, 1));
    assert_eq!((report.left.whole_bytes, report.left.partial_bytes), (CHUNK_BYTES, 4096));
    assert_eq!((report.staging.first_copies, report.staging.refreshes), (2, 0));
    assert_eq!(report.staging.bytes, 2 * CHUNK_BYTES);
    assert_eq!(report.staging.wasted_bytes, 4096, "the block that was written again");
    assert_eq!(report.parked.commands, 1, "{report:?}");
    assert!((100..2_000).contains(&report.parked.wait_us), "{report:?}");
    // Begin, flush and commit, and the copy: 2 + 0.5 + 2 ms and some 0.4 ms.
    assert!((2_500..6_000).contains(&report.complete_us_max), "{report:?}");
}

#[test]
fn limits_hold() {
    let trace = mixed(2, 300, 400);
    let path = trace.path();
    let schedule = Schedule::Every(60 * SECOND_US);
    for policy in ["idle:1s", "rate:0.3", "oracle"] {
        let free = run(path, policy, 60);
        assert!(free.staging.chunks_max > 50, "{policy}: {free:?}");
        let mut limited = options(path, policy, schedule);
        limited.staging_chunks_max = Some(20);
        let limited = run_with(path, limited);
        assert!(limited.staging.chunks_max <= 20, "{policy}: {limited:?}");
        assert!(limited.adopted < free.adopted && limited.staging.refused > 0, "{policy}");
        let mut slow = options(path, policy, schedule);
        // Less than half of what there is to copy: snapshots take longer than the time between them.
        slow.copy_bytes_per_s_max = Some(400_000);
        let slow = run_with(path, slow);
        // Copies that a parked command waits for are exempt, so only those made ahead are bounded.
        let allowed = 400_000 * slow.span_us / SECOND_US + 5 * CHUNK_BYTES;
        assert!(slow.staging.bytes < allowed.min(free.staging.bytes), "{policy}: {slow:?}");
    }
}

/// Fails when one of them sees what belongs to another one.
#[test]
fn side_by_side_is_as_each_alone() {
    let trace = mixed(4, 400, 200);
    let path = trace.path();
    let schedule = Schedule::irregular(1);
    let mut policies =
        vec!["idle:2s", "rate:0.2", "rate:0.6", "likely:0.5", "deadline", "logistic:0.3"];
    if cfg!(feature = "lstm") {
        policies.extend(["lstm:0.1", "lstm:0.5"]);
    }
    for known in [false, true] {
        let context = PolicyContext {
            path,
            disk: None,
            chunk_bytes: CHUNK_BYTES as u32,
            schedule,
            schedule_known: known,
            model: &Model::shipped().unwrap(),
        };
        for text in &policies {
            let spec: PolicySpec = text.parse().unwrap();
            let companion = spec.companion(&context).unwrap();
            let with = |companion: Option<&Companion>, part: u64| ReplayOptions {
                schedule: if part == 3 { Schedule::Every(60 * SECOND_US) } else { schedule },
                staging_chunks_max: (part == 1).then_some(30),
                copy_bytes_per_s_max: (part == 2).then_some(3_000_000),
                ..ReplayOptions::new(spec.policy_with(companion, &context))
            };
            let together = (0..4).map(|part| with(companion.as_ref(), part)).collect();
            let together = replay_all(path, together, &mut |_| {}).unwrap();
            for (part, report) in together.into_iter().enumerate() {
                let own = spec.companion(&context).unwrap();
                let alone = run_with(path, with(own.as_ref(), part as u64));
                let report = Report { predictor_us: 0, ..report };
                assert_eq!(report, alone, "{text} {part}");
            }
        }
    }
}

#[test]
fn a_trace_that_is_too_short_says_what_to_do() {
    let trace = mixed(3, 30, 10);
    let path = trace.path();
    let options = options(path, "off", Schedule::Every(60 * SECOND_US));
    let error = replay(path, options, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("ends after 30 s") && error.contains("--every"), "{error}");
}

/// Measured before there was a replay, by another program.
#[test]
fn idle_on_real_traces_is_as_known() {
    let Some(folder) = traces_folder() else {
        eprintln!("skipped: no traces here; set PRESNAP_TRACES to their folder");
        return;
    };
    for (name, policy, adopted, bytes) in [
        ("cloudphysics_vm_2h", "idle:1s", 0.993, Some(1.3)),
        ("cloudphysics_vm_2h", "idle:60s", 0.72, None),
        ("winpc_a_3h15m", "idle:15s", 0.96, None),
    ] {
        let report = run(&folder.join(format!("{name}.csv.zst")), policy, 600);
        assert!((report.adopted_share() - adopted).abs() < 0.006, "{name} {policy}: {report:?}");
        if let Some(bytes) = bytes {
            assert!((report.bytes_per_required() - bytes).abs() < 0.06, "{name} {policy}");
        }
    }
}
