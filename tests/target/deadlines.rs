//! Cut, create, export and stop end in time, also where a device, a host or a reactor does not answer: commands flow
//! again first, then what was begun is undone, then somebody is told. (The cut's deadline: `faults::a_silent_store...`.)

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cut::{Writer, slow_down};
use crate::faults::{assert_well, failing_store, inject};
use crate::harness::{Bench, Process, Subsystem, wait_for};
use crate::initiator::{HOST, Initiator};

const TIMED_OUT: i32 = -110;
/// What hangs is back, and what waits for it over, by then.
const OVER_MAX: Duration = Duration::from_mins(1);
/// Export and its end are given up after 10 s.
const EXPORT_MAX: Duration = Duration::from_secs(10);
/// A busy machine's due.
const SLACK: Duration = Duration::from_secs(8);

/// Fails when the answer waits for what a silent store cannot undo, and when commands that are parked wait
/// with it.
#[test]
fn a_create_that_is_given_up_is_answered_though_its_store_is_silent() {
    let bench = Bench::new();
    let target = failing_store(&bench);
    let mut writer = Writer::fill(&bench, &target, &["vol0"]);
    slow_down(&target, Duration::from_millis(50));
    let started = Instant::now();
    let params = json!({"volume": "vol0", "name": "a", "timeout_ms": 2000});
    let create = target.call_start("presnap_snapshot_create", params);
    let is_readable = || target.get_snapshot("vol0", "a")?["times"]["consistent_us"].as_u64();
    wait_for("the cut", OVER_MAX, || is_readable().filter(|us| *us > 0));
    inject(&target, "pending", 1_000_000);
    writer.start(8, 1000);
    // Each of the eight writers has to come back; for a command alone the snapshot would be given up later.
    writer.progress(300);
    let flowed = started.elapsed();
    assert!(!create.is_finished(), "the writers did not come first");
    let error = create.join().expect("called").expect_err("given up");
    let answered = started.elapsed();
    assert_eq!(error.code, TIMED_OUT, "{error}");
    assert!(error.message.contains("cleared away when its store answers"), "{error}");
    assert!(flowed < Duration::from_millis(4500) + SLACK / 2, "writes waited {flowed:?}");
    assert!(answered < Duration::from_secs(7) + SLACK, "answered after {answered:?}");
    writer.stop();
    inject(&target, "pending", 0);
    slow_down(&target, Duration::ZERO);
    let reset = target.io("EE_slow0", "reset", 0, 0, 0);
    assert_eq!(reset["ok"], true, "{reset}");
    let gone = || target.get_snapshot("vol0", "a").is_none().then_some(());
    wait_for("the snapshot to be cleared away", OVER_MAX, gone);
    assert_well(&target, &writer);
    target.stop();
}

fn volume(bench: &Bench, target: &Process, store: &str) {
    target.aio("m0", &bench.file("m0.img", 16), 512);
    target.aio("s0", &bench.file("s0.img", 128), 512);
    if store != "s0" {
        delay(target, "s0", store);
    }
    target.store("st", store, 64);
    target.volume("v", "m0", "st", &json!({"policy": "off"}));
}

fn delay(target: &Process, base: &str, name: &str) {
    target.call(
        "bdev_delay_create",
        json!({"base_bdev_name": base, "name": name, "avg_read_latency": 0,
            "p99_read_latency": 0, "avg_write_latency": 0, "p99_write_latency": 0}),
    );
}

fn latency(target: &Process, name: &str, kind: &str, latency: Duration) {
    for which in ["avg", "p99"] {
        let params = json!({"delay_bdev_name": name, "latency_type": format!("{which}_{kind}"),
            "latency_us": latency.as_micros() as u64});
        target.call("bdev_delay_update_latency", params);
    }
}

fn subsystems(target: &Process) -> Vec<Value> {
    let all = target.call("nvmf_get_subsystems", json!({}));
    all.as_array().expect("a list").iter().skip(1).cloned().collect()
}

/// Fails when an export waits for a reactor for as long as that takes, and when what comes too late stays.
#[test]
fn an_export_does_not_wait_for_a_reactor_for_ever() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x3");
    volume(&bench, &target, "s0");
    target.snapshot("v", "a");
    target.call("nvmf_create_transport", json!({"trtype": "TCP"}));
    let started = Instant::now();
    target.call("test_block", json!({"reactor": 1, "ms": 16_000, "sleep": true}));
    let port = bench.port().to_string();
    let params = json!({"volume": "v", "name": "a", "trsvcid": port, "allow_any_host": true});
    let error = target.try_call("presnap_snapshot_export", params.clone()).expect_err("given up");
    let answered = started.elapsed();
    assert_eq!(error.code, TIMED_OUT, "{error}");
    assert!(error.message.contains("a reactor does not answer"), "{error}");
    assert!((EXPORT_MAX..EXPORT_MAX + SLACK).contains(&answered), "answered after {answered:?}");
    assert_eq!(subsystems(&target).len(), 1, "the reactor is still awaited");
    let gone = || subsystems(&target).is_empty().then_some(());
    wait_for("nothing of it to stay", OVER_MAX, gone);
    assert!(started.elapsed() > Duration::from_secs(15), "the reactor was back before");
    target.call("presnap_snapshot_export", params);
    assert_eq!(subsystems(&target).len(), 1);
    target.call("presnap_snapshot_unexport", json!({"volume": "v", "name": "a"}));
    target.stop();
}

/// A host's read that the store does not answer for 16 s.
///
/// Fails when the end of an export waits for it, and when it does not end by itself.
#[test]
fn the_end_of_an_export_does_not_wait_for_a_host_for_ever() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    volume(&bench, &target, "slow0");
    let served = target.serve_nvmf("v", 1);
    connect(&served).write(8, &[0xa1; 4096]).expect("written");
    target.snapshot("v", "a");
    latency(&target, "slow0", "read", Duration::from_secs(16));
    // A read that comes after the end has begun is refused, and nothing waits for it: then once more.
    let (error, reading) = (0..5)
        .find_map(|_| {
            let mut reader = connect(&target.export("v", "a"));
            let reading = std::thread::spawn(move || reader.read(8, 8));
            let started = Instant::now();
            let unexport = json!({"volume": "v", "name": "a"});
            let ended = target.try_call("presnap_snapshot_unexport", unexport);
            let answered = started.elapsed();
            assert!(answered < EXPORT_MAX + SLACK, "answered after {answered:?}");
            Some((ended.err()?, reading))
        })
        .expect("a read that was under way");
    assert_eq!(error.code, TIMED_OUT, "{error}");
    assert!(error.message.contains("a host's command"), "{error}");
    let gone = || (subsystems(&target).len() == 1).then_some(());
    wait_for("the export to end", OVER_MAX, gone);
    let _ = reading.join().expect("no panic");
    latency(&target, "slow0", "read", Duration::ZERO);
    target.stop();
}

fn connect(subsystem: &Subsystem) -> Initiator {
    Initiator::connect(subsystem.ports[0], &subsystem.nqn, HOST).expect("connected")
}

/// A target whose volume has a write that its master does not answer for a minute.
fn with_a_hanging_write(bench: &Bench, stop_seconds: &str) -> Process {
    let target = bench.target("target", &["--stop-seconds", stop_seconds]);
    target.aio("m0", &bench.file("m0.img", 16), 512);
    delay(&target, "m0", "slow0");
    target.aio("s0", &bench.file("s0.img", 128), 512);
    target.store("st", "s0", 64);
    target.volume("v", "slow0", "st", &json!({"policy": "off"}));
    target.snapshot("v", "before");
    let served = target.serve_nvmf("v", 1);
    let mut writer = connect(&served);
    latency(&target, "slow0", "write", Duration::from_mins(1));
    std::thread::spawn(move || writer.write(8, &[0xa1; 4096]));
    let commands = || target.call("presnap_get_chunks", json!({"volume": "v"}));
    wait_for("the write to be under way", OVER_MAX, || {
        let chunks = commands();
        chunks["chunks"].as_array()?.iter().any(|chunk| chunk["dirty"] == true).then_some(())
    });
    target
}

/// What there was is there after the next start, and what is dirty is not taken on trust.
fn assert_unclean(bench: &Bench) {
    let target = bench.target("target", &[]);
    target.aio("m0", &bench.path("m0.img"), 512);
    target.aio("s0", &bench.path("s0.img"), 512);
    let loaded =
        || target.call("presnap_get_stores", json!({}))[0]["state"].as_str().map(str::to_owned);
    assert_eq!(wait_for("the store", OVER_MAX, loaded), "loaded");
    target.volume("v", "m0", "st", &json!({"policy": "off"}));
    let chunks = target.call("presnap_get_chunks", json!({"volume": "v"}));
    let chunks = chunks["chunks"].as_array().expect("a list");
    assert!(chunks.iter().all(|chunk| chunk["dirty"] == true), "some are said to be clean");
    assert_eq!(target.get_snapshot("v", "before").expect("kept")["state"], "complete");
    assert_eq!(target.snapshot("v", "after")["state"], "complete");
    target.check_slots();
    target.stop();
}

/// Fails when a stop waits for a command for as long as that takes.
#[test]
fn a_stop_that_hangs_ends_in_time_and_says_what_hangs() {
    let bench = Bench::new();
    let target = with_a_hanging_write(&bench, "5");
    let log = target.log.clone();
    let started = Instant::now();
    target.signal("TERM");
    let status = target.ended(Duration::from_secs(5) + SLACK);
    let took = started.elapsed();
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(took >= Duration::from_millis(4900), "it was not given its time: {took:?}");
    let log = fs::read_to_string(log).expect("a log");
    let words = log.lines().find(|line| line.contains("has not stopped within 5 s"));
    let words = words.unwrap_or_else(|| panic!("it says nothing: {log}"));
    assert!(words.contains("volume 'v'"), "{words}");
    assert_unclean(&bench);
}

/// Fails when a second signal is not heard, and when one that is sent twice counts as two.
#[test]
fn a_second_signal_ends_a_stop_at_once() {
    let bench = Bench::new();
    let target = with_a_hanging_write(&bench, "0");
    let log = target.log.clone();
    let twice = "kill -TERM \"$0\"; kill -TERM \"$0\"";
    let sent = Command::new("sh").args(["-c", twice, &target.pid().to_string()]).status();
    assert!(sent.expect("sh").success());
    // The stop has its steps, and one of them hangs.
    wait_for("the volume to be given up", OVER_MAX, || {
        target.log().contains("volume 'v' not closed in time").then_some(())
    });
    let started = Instant::now();
    target.signal("INT");
    let status = target.ended(Duration::from_secs(2) + SLACK);
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(started.elapsed() < Duration::from_secs(2) + SLACK);
    let log = fs::read_to_string(log).expect("a log");
    assert!(log.contains("got a second signal and is ended"), "{log}");
    assert_unclean(&bench);
}
