//! I6: trouble with the store is trouble of the snapshot, never of the volume; and trouble with the master is
//! no more than it has to be.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cut::{CHUNK_KIB, VOLUME_MIB, Window, Writer, assert_cut, cut, slow_down, slow_store};
use crate::harness::{Bench, Process, wait_for};

/// The volume holds all its writes; the next snapshot is right, and no slot is lost.
pub fn assert_well(target: &Process, writer: &Writer<'_>) {
    let volume = target.dump("vol0");
    let now = Window { requested_ns: writer.now_ns(), replied_ns: writer.now_ns() };
    assert_cut("(the volume itself)", &volume, writer, &now);
    let snapshot = target.snapshot("vol0", "next");
    assert_eq!(snapshot["state"], "complete", "{snapshot}");
    assert!(target.dump("vol0@next") == volume, "the next snapshot is not the volume");
    target.check_slots();
}

/// Fails when parked commands are not woken, or woken with an error.
#[test]
fn writes_wait_for_a_slow_store_and_succeed() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    target.malloc("m0", VOLUME_MIB, 512);
    slow_store(&target, &bench);
    target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    let mut writer = Writer::fill(&bench, &target, &["vol0"]);
    slow_down(&target, Duration::from_millis(200));
    let (_, window) = cut(&target, &writer, "vol0", "a");
    target.call("presnap_get_stats", json!({"reset": true}));
    writer.start(8, 1000);
    writer.progress(100);
    writer.stop();
    let stats = target.stats();
    slow_down(&target, Duration::ZERO);
    assert!(stats["parked"]["commands"].as_u64() > Some(0), "none waited: {stats}");
    let longest = stats["parked"]["wait"]["max_us"].as_u64().expect("a number");
    assert!((100_000..5_000_000).contains(&longest), "waited {longest} us: {stats}");
    let snapshot = target.snapshot_ended("vol0", "a");
    assert_eq!(snapshot["state"], "complete", "{snapshot}");
    assert_cut("a", &target.dump("vol0@a"), &writer, &window);
    assert_well(&target, &writer);
    target.stop();
}

/// Has the store's bdev end the next writes with an error, or not at all.
pub fn inject(target: &Process, error: &str, count: u32) {
    inject_into(target, "EE_slow0", "write", error, count);
}

fn inject_into(target: &Process, name: &str, io_type: &str, error: &str, count: u32) {
    let params = json!({"name": name, "io_type": io_type, "error_type": error, "num": count});
    target.call("bdev_error_inject_error", params);
}

/// A volume on a store that is slow and can be made to fail.
pub fn failing_store(bench: &Bench) -> Process {
    let target = bench.agent("target", "0x1");
    target.malloc("m0", VOLUME_MIB, 512);
    target.aio("s0", &bench.file("store", 256), 512);
    target.call(
        "bdev_delay_create",
        json!({"base_bdev_name": "s0", "name": "slow0", "avg_read_latency": 0,
            "p99_read_latency": 0, "avg_write_latency": 0, "p99_write_latency": 0}),
    );
    target.call("bdev_error_create", json!({"base_name": "slow0"}));
    target.store("store0", "EE_slow0", CHUNK_KIB);
    target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    target
}

/// The snapshot fails with the reason, and with it goes its bdev.
fn assert_failed(target: &Process, name: &str) -> Value {
    let snapshot = target.snapshot_ended("vol0", name);
    assert_eq!(snapshot["state"], "failed", "{snapshot}");
    let reason = snapshot["reason"].as_str().expect("a reason");
    assert!(!reason.is_empty(), "{snapshot}");
    target.try_dump(&format!("vol0@{name}")).expect_err("nothing is readable of it");
    snapshot
}

/// Fails when a failed copy fails or keeps a parked command.
#[test]
fn a_failing_store_fails_the_snapshot_and_not_the_volume() {
    let bench = Bench::new();
    let target = failing_store(&bench);
    let mut writer = Writer::fill(&bench, &target, &["vol0"]);
    writer.start(8, 1000);
    slow_down(&target, Duration::from_millis(50));
    target.snapshot_cut("vol0", "a");
    // More could hit the record of the failure, too, and then only a load of the store goes on.
    inject(&target, "failure", 1);
    let snapshot = assert_failed(&target, "a");
    let reason = snapshot["reason"].as_str().expect("a reason");
    assert!(reason.contains("store"), "names the side: {reason}");
    writer.progress(200);
    writer.stop();
    slow_down(&target, Duration::ZERO);
    inject(&target, "failure", 0);
    target.check_slots();
    assert_well(&target, &writer);
    target.stop();
}

/// Staging gives up after a few errors in a row, and says so.
///
/// Fails when the reason stays in the engine.
#[test]
fn staging_that_a_failing_store_ended_says_why() {
    let bench = Bench::new();
    let target = failing_store(&bench);
    let reason = || target.stats()["staging"]["off_reason"].clone();
    let idle = json!({"volume": "vol0", "policy": "idle", "idle_ms": 1});
    inject(&target, "failure", 1_000_000);
    assert_eq!(reason(), Value::Null, "the policy is off, and that is all");
    target.call("presnap_set_policy", idle.clone());
    let written = target.io("vol0", "write", 0, u64::from(CHUNK_KIB) << 16, 0xa1);
    assert_eq!(written["ok"], true, "{written}");
    let why = wait_for("staging to be given up", Duration::from_secs(30), || {
        reason().as_str().map(str::to_owned)
    });
    assert!(why.contains("staging copies in a row failed"), "{why}");
    inject(&target, "failure", 0);
    target.call("presnap_set_policy", idle);
    assert_eq!(reason(), Value::Null);
    let staged = || target.stats()["staging"]["valid"] == 64;
    wait_for("all to be staged", Duration::from_secs(30), || staged().then_some(()));
    target.check_slots();
    target.stop();
}

/// A store that never answers: the snapshot is given up in time, and its late answers do no harm.
///
/// Fails when `parked_us_max` is not kept.
#[test]
fn a_silent_store_holds_writes_up_for_seconds_at_most() {
    let bench = Bench::new();
    let target = failing_store(&bench);
    let mut writer = Writer::fill(&bench, &target, &["vol0"]);
    slow_down(&target, Duration::from_millis(50));
    target.snapshot_cut("vol0", "a");
    inject(&target, "pending", 1_000_000);
    writer.start(8, 1000);
    let started = Instant::now();
    // Each of the eight writers has to come back.
    writer.progress(300);
    let waited = started.elapsed();
    writer.stop();
    inject(&target, "pending", 0);
    slow_down(&target, Duration::ZERO);
    // The answers that never came, come.
    let reset = target.io("EE_slow0", "reset", 0, 0, 0);
    assert_eq!(reset["ok"], true, "{reset}");
    assert_failed(&target, "a");
    assert!(waited < Duration::from_secs(20), "writes waited {waited:?}");
    assert_well(&target, &writer);
    target.stop();
}

/// Two snapshots that both find enough room and then together do not.
#[test]
fn a_full_store_fails_the_snapshot_and_not_the_volume() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    for name in ["m0", "m1"] {
        target.malloc(name, VOLUME_MIB, 512);
    }
    target.aio("s0", &bench.file("store", 128), 512);
    target.store("store0", "s0", CHUNK_KIB);
    let slots = || target.call("presnap_get_stores", json!({}))[0]["slots"].clone();
    let total = slots()["total"].as_u64().expect("a count");
    let off = json!({"policy": "off"});
    target.volume("vol0", "m0", "store0", &off);
    target.volume("vol1", "m1", "store0", &off);
    let mut writer = Writer::fill(&bench, &target, &["vol0"]);
    let mut other = Writer::fill(&bench, &target, &["vol1"]);
    // Snapshots of everything until one more would not fit.
    let mut taken = 0;
    while slots()["free"].as_u64() >= Some(1024) {
        target.snapshot("vol1", &format!("fill{taken}"));
        other.start(1, 0);
        other.stop();
        // Rewrites each chunk.
        for chunk in 0..512 {
            target.io("vol1", "write", chunk * u64::from(CHUNK_KIB) * 1024, 512, 1);
        }
        taken += 1;
    }
    let free = slots()["free"].as_u64().expect("a count");
    assert!((512..1024).contains(&free), "{free} of {total} slots are free");
    let slow = json!({"volume": "vol0", "copy_mbytes_per_sec": 40});
    target.call("presnap_set_policy", slow);
    target.snapshot_cut("vol0", "a");
    writer.start(2, 1000);
    let second = target.try_call("presnap_snapshot_create", json!({"volume": "vol1", "name": "b"}));
    target.call("presnap_set_policy", json!({"volume": "vol0", "copy_mbytes_per_sec": 0}));
    let first = target.snapshot_ended("vol0", "a");
    writer.stop();
    // Which of the two lost is not said, and both may; who did was told why.
    if let Err(error) = second {
        assert_eq!(error.code, -28, "{error}");
    } else {
        assert_eq!(first["state"], "failed", "{first}");
        let reason = first["reason"].as_str().expect("a reason");
        assert!(reason.contains("free slots"), "{reason}");
    }
    target.check_slots();
    for (volume, name) in [("vol0", "a"), ("vol1", "b")] {
        if target.get_snapshot(volume, name).is_some() {
            target.snapshot_delete(volume, name);
        }
    }
    assert_well(&target, &writer);
    target.stop();
}

/// Two snapshots that do not fit together: the second is refused, and the first has what it needs.
///
/// Fails when a create reserves nothing.
#[test]
fn a_create_reserves_the_slots_that_it_may_need() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    target.aio("s0", &bench.file("store", 64), 512);
    let slow = json!({"base_bdev_name": "s0", "name": "slow0", "avg_read_latency": 0,
        "p99_read_latency": 0, "avg_write_latency": 0, "p99_write_latency": 0});
    target.call("bdev_delay_create", slow);
    target.store("store0", "slow0", CHUNK_KIB);
    let slots = || target.call("presnap_get_stores", json!({}))[0]["slots"].clone();
    let count = |name: &str| slots()[name].as_u64().expect("a count");
    let chunk_bytes = u64::from(CHUNK_KIB) << 10;
    for (volume, master) in [("vol0", "m0"), ("vol1", "m1")] {
        target.malloc(master, 64, 512);
        target.volume(volume, master, "store0", &json!({"policy": "off"}));
        // Zeros: from now on it is known which chunks are dirty.
        target.snapshot(volume, "zeros");
    }
    let half_and_more = count("free") * 3 / 5;
    for volume in ["vol0", "vol1"] {
        for chunk in 0..half_and_more {
            let io = target.io(volume, "write", chunk * chunk_bytes, 4096, 0xa1);
            assert_eq!(io["ok"], true, "{io}");
        }
    }
    slow_down(&target, Duration::from_millis(20));
    let first = target.snapshot_cut("vol0", "first");
    assert_eq!(first["state"], "completing", "{first}");
    assert_eq!(first["chunks"]["required"], half_and_more, "what is to be done: {first}");
    let during = slots();
    let second = target.try_call("presnap_snapshot_create", json!({"volume": "vol1", "name": "s"}));
    let error = second.expect_err("it does not fit as well");
    assert_eq!(error.code, -28, "{error}");
    for words in ["reserved", "may need", "zeros", "wait"] {
        assert!(error.message.contains(words), "{error}");
    }
    assert!(during["reserved"].as_u64() > Some(0), "{during}");
    assert!(during["copying"].as_u64() > Some(0), "{during}");
    slow_down(&target, Duration::ZERO);
    let first = target.snapshot_ended("vol0", "first");
    assert_eq!(first["state"], "complete", "{first}");
    assert_eq!((count("reserved"), count("owned")), (0, half_and_more), "{}", slots());
    target.snapshot_delete("vol0", "first");
    assert_eq!(target.snapshot("vol1", "s")["state"], "complete");
    target.check_slots();
    target.stop();
}

/// The first snapshot of a volume that was never written to, on a store with fewer slots than are copied at
/// once.
///
/// Fails when a snapshot without a free slot does not wait for the copies under way, which find zeros.
#[test]
fn zeros_need_no_slots() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.aio("m0", &bench.file("master", 512), 512);
    target.aio("s0", &bench.file("store", 64), 512);
    target.store("store0", "s0", 4096);
    let slots = || target.call("presnap_get_stores", json!({}))[0]["slots"].clone();
    let before = slots();
    assert!(before["total"].as_u64() < Some(16), "nothing would be shown: {before}");
    target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    let snapshot = target.snapshot("vol0", "a");
    assert_eq!(
        (&snapshot["state"], &snapshot["chunks"]["zero"]),
        (&json!("complete"), &json!(128))
    );
    assert_eq!(slots(), before);
    target.stop();
}

/// A volume on a master that can be made to fail, and to be slow.
fn failing_master(bench: &Bench) -> Process {
    let target = bench.agent("target", "0x1");
    target.malloc("m0", VOLUME_MIB, 512);
    target.call(
        "bdev_delay_create",
        json!({"base_bdev_name": "m0", "name": "slow1", "avg_read_latency": 0,
            "p99_read_latency": 0, "avg_write_latency": 0, "p99_write_latency": 0}),
    );
    target.call("bdev_error_create", json!({"base_name": "slow1"}));
    target.aio("s0", &bench.file("store", 256), 512);
    target.store("store0", "s0", CHUNK_KIB);
    target.volume("vol0", "EE_slow1", "store0", &json!({"policy": "off"}));
    target
}

fn slow_master(target: &Process, kind: &str, latency: Duration) {
    for which in ["avg", "p99"] {
        let params = json!({"delay_bdev_name": "slow1", "latency_type": format!("{which}_{kind}"),
            "latency_us": latency.as_micros() as u64});
        target.call("bdev_delay_update_latency", params);
    }
}

fn copy_rate(target: &Process, mbytes_per_sec: u64) {
    let params = json!({"volume": "vol0", "copy_mbytes_per_sec": mbytes_per_sec});
    target.call("presnap_set_policy", params);
}

/// Fails when a copy that could not be read counts as one, or when the reason does not name the master.
#[test]
fn a_master_that_cannot_be_read_fails_the_snapshot_and_no_write() {
    let bench = Bench::new();
    let target = failing_master(&bench);
    let mut writer = Writer::fill(&bench, &target, &["vol0"]);
    writer.start(8, 1000);
    copy_rate(&target, 8);
    target.snapshot_cut("vol0", "a");
    // The load reads nothing, so a copy gets it.
    inject_into(&target, "EE_slow1", "read", "failure", 1);
    let snapshot = assert_failed(&target, "a");
    let reason = snapshot["reason"].as_str().expect("a reason");
    assert!(reason.contains("master"), "names the side: {reason}");
    copy_rate(&target, 0);
    writer.progress(200);
    writer.stop();
    assert_eq!(target.io("vol0", "read", 0, 4096, 0)["ok"], true, "one error, and it is over");
    assert_well(&target, &writer);
    target.stop();
}

/// A write that the master fails is the initiator's to know of; the snapshot that completes meanwhile has no
/// part in it, and the next one has what the master has.
///
/// Fails when the status of a write does not come through, and when a failed write leaves its chunk clean.
#[test]
fn a_write_that_the_master_fails_reaches_the_initiator_and_nothing_else() {
    let bench = Bench::new();
    let target = failing_master(&bench);
    Writer::fill(&bench, &target, &["vol0"]);
    let before = target.dump("vol0");
    copy_rate(&target, 8);
    target.snapshot_cut("vol0", "a");
    let chunk_bytes = u64::from(CHUNK_KIB) << 10;
    let write = |chunk: u64| target.io("vol0", "write", chunk * chunk_bytes, 4096, 0xa1);
    inject_into(&target, "EE_slow1", "write", "failure", 3);
    // At the end, which is not copied yet.
    for chunk in 500..503 {
        let failed = write(chunk);
        assert_eq!(failed["ok"], false, "{failed}");
    }
    let chunks: Vec<u64> = (503..506).collect();
    for chunk in &chunks {
        assert_eq!(write(*chunk)["ok"], true);
    }
    let state = target.get_snapshot("vol0", "a").expect("there");
    assert_eq!(state["state"], "completing", "too late to show anything: {state}");
    copy_rate(&target, 0);
    assert_eq!(target.snapshot_ended("vol0", "a")["state"], "complete");
    assert!(target.dump("vol0@a") == before, "the snapshot has later writes in it");
    let mut expected = before;
    for chunk in chunks {
        expected[(chunk * chunk_bytes) as usize..][..4096].fill(0xa1);
    }
    assert!(target.dump("vol0") == expected, "the volume");
    // Of a failed write nobody knows what the master has of it: its chunk is dirty.
    let next = target.snapshot("vol0", "next");
    assert_eq!(next["chunks"]["required"], 6, "{next}");
    assert!(target.dump("vol0@next") == expected, "the next snapshot is not the volume");
    target.check_slots();
    target.stop();
}

/// Seconds for each read, then for each write: what waits is what has to.
///
/// Fails when a write is not parked while its chunk is read, when a snapshot does not wait for the
/// writes from before its cut, and when a write waits for longer than `parked_us_max`.
#[test]
fn a_master_that_takes_seconds_holds_up_no_more_than_it_must() {
    let bench = Bench::new();
    let target = failing_master(&bench);
    Writer::fill(&bench, &target, &["vol0"]);
    target.snapshot("vol0", "base");
    let chunk_bytes = u64::from(CHUNK_KIB) << 10;
    let params = |chunk: u64, fill: u8| {
        json!({"bdev": "vol0", "op": "write", "offset": chunk * chunk_bytes, "bytes": 8192,
            "fill": fill})
    };
    let write = |chunk: u64, fill: u8| target.call_start("test_io", params(chunk, fill));
    let works = |call: std::thread::JoinHandle<_>| {
        let answer: Result<Value, presnap::rpc::RpcError> = call.join().expect("no panic");
        let result = answer.expect("answered");
        assert_eq!(result["ok"], true, "{result}");
    };
    for chunk in 0..8 {
        works(write(chunk, 0xa1));
    }
    let mut expected = target.dump("vol0");

    slow_master(&target, "read", Duration::from_secs(2));
    target.snapshot_cut("vol0", "reads");
    let started = Instant::now();
    let (waits, passes) = (write(7, 0xb2), write(100, 0xb2));
    works(passes);
    assert!(started.elapsed() < Duration::from_secs(1), "a clean chunk waits for nothing");
    works(waits);
    assert!(started.elapsed() > Duration::from_secs(1), "it was to be preserved");
    assert_eq!(target.snapshot_ended("vol0", "reads")["state"], "complete");
    slow_master(&target, "read", Duration::ZERO);
    assert!(target.dump("vol0@reads") == expected, "the snapshot has later writes in it");
    let mut put = |chunk: u64, fill: u8| {
        expected[(chunk * chunk_bytes) as usize..][..8192].fill(fill);
        expected.clone()
    };
    put(7, 0xb2);
    put(100, 0xb2);

    // One is under way at the cut; the next to the same chunk has to wait for its end, and can.
    slow_master(&target, "write", Duration::from_secs(2));
    let commands = || target.stats()["commands"]["write"].as_u64().expect("a count");
    let submitted = |before: u64| {
        wait_for("the write to be submitted", Duration::from_secs(10), || {
            (commands() > before).then_some(())
        });
    };
    let before = commands();
    let first = write(3, 0xc3);
    submitted(before);
    target.snapshot_cut("vol0", "writes");
    let second = write(3, 0xd4);
    works(first);
    works(second);
    assert_eq!(target.snapshot_ended("vol0", "writes")["state"], "complete");
    let held = target.dump("vol0@writes");
    let whole = put(3, 0xc3);
    assert!(held == whole, "the write that was under way at the cut, and not the one after it");
    put(3, 0xd4);

    // Longer than a write may wait: the snapshot is given up.
    slow_master(&target, "write", Duration::from_secs(8));
    let before = commands();
    let first = write(4, 0xe5);
    submitted(before);
    target.snapshot_cut("vol0", "given-up");
    let started = Instant::now();
    let second = write(4, 0xf6);
    let snapshot = assert_failed(&target, "given-up");
    assert!(started.elapsed() < Duration::from_secs(7), "after {:?}", started.elapsed());
    let reason = snapshot["reason"].as_str().expect("a reason");
    assert!(reason.contains("master"), "what it waited for: {reason}");
    slow_master(&target, "write", Duration::ZERO);
    works(first);
    works(second);
    let volume = put(4, 0xf6);
    assert_eq!(target.snapshot("vol0", "next")["state"], "complete");
    assert!(target.dump("vol0") == volume && target.dump("vol0@next") == volume);
    target.check_slots();
    target.stop();
}
