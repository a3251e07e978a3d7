use super::*;

/// What fio 3.33 wrote for two jobs, shortened; SPDK's plugin has written before it.
const REPORT: &str = include_str!("testdata/two-jobs.fio.json");

#[test]
fn jobs_of_a_report_are_added_up() {
    let report = FioReport::parse(REPORT).unwrap();
    assert_eq!((report.write.commands, report.read.commands), (7, 2));
    assert_eq!(report.write.bytes, 28_672);
    assert!((report.write.iops - 700.5).abs() < 1e-9);
    assert_eq!((report.write.latencies.len(), report.read.latencies.len()), (7, 2));
    // Bins have the precision of the histogram.
    let longest = report.write.latencies.max() as f64;
    assert!((longest / 31_326_208.0 - 1.0).abs() < 0.001, "{longest}");
    assert!((report.cpu_share - 1.05).abs() < 1e-9);
}

#[test]
fn a_report_of_a_failure_is_an_error() {
    for (text, words) in [
        ("no", "no JSON"),
        ("{\"jobs\": []}", "no jobs"),
        ("{\"jobs\": [{\"error\": 5}]}", "error 5"),
        ("{\"jobs\": [{\"error\": 0}]}", "no read.total_ios"),
        ("{\"jobs\":", "EOF"),
    ] {
        let error = FioReport::parse(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
}

fn arguments(load: &Load, iolog: Option<&Path>, seconds: Option<u32>) -> String {
    let config = Value::Null;
    let job = Job {
        name: "load",
        folder: Path::new("/f"),
        config: &config,
        bdev: "Perfn1",
        memory_mib: 384,
        cores: "1",
        load,
        iolog,
        seconds,
        seed: 3,
        logs: true,
    };
    job.arguments().join(" ")
}

#[test]
fn a_rate_is_that_of_all_jobs_and_directions() {
    let load = Load {
        rw: "randrw".into(),
        read_percent: Some(30),
        jobs: 2,
        rate_iops: Some(2000),
        distribution: Some("zipf:1.1".into()),
        ..filling()
    };
    let text = arguments(&load, None, Some(10));
    for option in [
        "--rw=randrw",
        "--rwmixread=30",
        "--rate_iops=300,700",
        "--numjobs=2",
        "--random_distribution=zipf:1.1",
        "--runtime=10",
        "--write_lat_log=/f/load",
        "--randseed=3",
    ] {
        assert!(text.split(' ').any(|given| given == option), "{option}: {text}");
    }
}

#[test]
fn filling_goes_once_over_everything() {
    let text = arguments(&filling(), None, None);
    assert!(text.contains("--rw=write") && text.contains("--size=100%"), "{text}");
    assert!(!text.contains("--runtime") && !text.contains("--rate_iops"), "{text}");
}

#[test]
fn a_trace_is_replayed_one_command_at_a_time() {
    let text = arguments(&filling(), Some(Path::new("/f/t.iolog")), Some(10));
    assert!(
        text.contains("--read_iolog=/f/t.iolog --replay_redirect=Perfn1 --iodepth=1"),
        "{text}"
    );
    assert!(!text.contains("--rw="), "{text}");
}
