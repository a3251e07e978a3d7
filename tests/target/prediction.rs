//! Policies that predict, on the running target.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cut::{CHUNK_KIB, VOLUME_MIB};
use crate::harness::{Bench, Process, wait_for};

const CHUNK_BYTES: u64 = CHUNK_KIB as u64 * 1024;

/// A target with a volume that was just cut, so that only what is written from now on is required.
fn volume_with(bench: &Bench, more: &Value) -> Process {
    let target = bench.agent("target", "0x1");
    target.malloc("m0", VOLUME_MIB, 512);
    target.aio("s0", &bench.file("store", 256), 512);
    target.store("store0", "s0", CHUNK_KIB);
    target.volume("vol0", "m0", "store0", more);
    let snapshot = target.snapshot("vol0", "before");
    assert_eq!(snapshot["state"], "complete", "{snapshot}");
    target
}

fn write(target: &Process, chunk: u64, fill: u8) {
    let result = target.io("vol0", "write", chunk * CHUNK_BYTES, CHUNK_BYTES, fill);
    assert_eq!(result["ok"], true, "{result}");
}

fn set_policy(target: &Process, more: &Value) -> Value {
    let mut params = json!({"volume": "vol0"});
    for (key, value) in more.as_object().expect("an object") {
        params[key] = value.clone();
    }
    target.call("presnap_set_policy", params)
}

fn chunk(target: &Process, chunk: u64) -> Value {
    let params = json!({"volume": "vol0", "start": chunk, "count": 1});
    target.call("presnap_get_chunks", params)["chunks"][0].take()
}

/// Waits until that many staged copies are valid.
fn staged(target: &Process, chunks: u64) {
    wait_for(&format!("{chunks} valid staged copies"), Duration::from_secs(40), || {
        (target.stats()["staging"]["valid"] == chunks).then_some(())
    });
}

/// The predictor's thread of a process.
fn predictor_thread(target: &Process) -> u32 {
    let tasks = format!("/proc/{}/task", target.pid());
    let found = fs::read_dir(&tasks).expect("it runs").flatten().find(|task| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.trim() == "presnap-predict"
    });
    let found = found.expect("the predictor has a thread");
    found.file_name().to_string_lossy().parse().expect("a number")
}

/// A thread that is stopped, alone, until this is dropped.
struct Stopped(Child);

impl Stopped {
    /// By ptrace, since signals stop whole processes; in a program of its own, since who traces is a
    /// thread as well.
    fn new(thread: u32) -> Self {
        let program = format!(
            "import ctypes, sys\n\
             trace = ctypes.CDLL(None, use_errno=True).ptrace\n\
             trace.argtypes = [ctypes.c_long] * 4\n\
             trace.restype = ctypes.c_long\n\
             seize, interrupt = 0x4206, 0x4207\n\
             assert trace(seize, {thread}, 0, 0) == 0, ctypes.get_errno()\n\
             assert trace(interrupt, {thread}, 0, 0) == 0, ctypes.get_errno()\n\
             print('stopped', flush=True)\n\
             sys.stdin.read()\n"
        );
        let mut child = Command::new("python3")
            .args(["-c", &program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let mut said = [0; 7];
        let out = child.stdout.as_mut().expect("piped");
        std::io::Read::read_exact(out, &mut said).expect("the thread can be traced");
        assert_eq!(&said, b"stopped");
        Self(child)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // The thread goes on when its tracer ends.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Chunks that rest get a score above the threshold, are staged for it and adopted; one that is
/// written again and again is not.
///
/// Fails when scores do not reach the engine, or are given to other chunks.
#[test]
fn chunks_that_rest_are_staged_by_score_and_adopted() {
    let bench = Bench::new();
    let more = json!({"policy": "rate", "threshold_percent": 50, "window_ms": 30_000});
    let target = volume_with(&bench, &more);
    for chunk in 10..20 {
        write(&target, chunk, 0x31);
    }
    // Hot, so that a copy would be of no use.
    wait_for("ten staged copies", Duration::from_mins(1), || {
        write(&target, 100, 0x32);
        (target.stats()["staging"]["valid"] == 10).then_some(())
    });
    let stats = target.stats();
    assert_eq!(stats["staging"]["staged"], 10, "the hot chunk was staged: {stats}");
    let predictor = &stats["predictor"];
    assert_eq!((&predictor["serving"], &predictor["fallback"]), (&json!("rate"), &Value::Null));
    assert_eq!(predictor["active_chunks"], 11, "{predictor}");
    let (cold, hot) = (chunk(&target, 10), chunk(&target, 100));
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{cold} {hot}"));
    assert!(number(&cold["score"]) >= 0.5 && number(&hot["score"]) < 0.5, "{cold} {hot}");
    let within = |chunk: &Value| number(&chunk["p_modify"]["within_1_min"]);
    assert!(within(&cold) < within(&hot), "{cold} {hot}");
    assert_eq!((&cold["valid"], &hot["valid"]), (&json!(true), &json!(false)));
    assert_eq!(chunk(&target, 5)["score"], Value::Null);

    let volume = target.dump("vol0");
    let snapshot = target.snapshot("vol0", "a");
    assert_eq!(snapshot["chunks"]["required"], 11, "{snapshot}");
    assert_eq!(snapshot["chunks"]["adopted"], 10, "{snapshot}");
    assert!(target.dump("vol0@a") == volume, "adopted copies are not what the volume held");
    target.check_slots();
    target.stop();
}

/// The policy changes at run time, and is kept in the configuration.
///
/// Fails when the predictor is not told, or the access records stay with the one before.
#[test]
fn the_policy_changes_at_run_time() {
    let bench = Bench::new();
    let target = volume_with(&bench, &json!({"policy": "off"}));
    assert_eq!(target.stats()["predictor"], Value::Null);
    write(&target, 3, 0x11);
    let policy = set_policy(&target, &json!({"policy": "rate", "threshold_percent": 1}));
    assert_eq!((&policy["policy"], &policy["threshold_percent"]), (&json!("rate"), &json!(1)));
    write(&target, 4, 0x12);
    staged(&target, 1);
    assert_eq!(chunk(&target, 4)["valid"], true, "the one that was seen written");

    for name in ["likely", "deadline", "lstm"] {
        set_policy(&target, &json!({"policy": name}));
        wait_for(&format!("{name} to serve"), Duration::from_secs(20), || {
            let predictor = target.stats()["predictor"].take();
            // In a build without the lstm `rate` serves, and says why.
            let fallback = name == "lstm" && predictor["serving"] == "rate";
            assert!(fallback || predictor["fallback"].is_null(), "{predictor}");
            (predictor["serving"] == name || fallback && predictor["fallback"].is_string())
                .then_some(())
        });
    }
    let config = fs::read_to_string(target.save_config()).expect("written");
    assert!(config.contains("\"policy\":\"lstm\""), "{config}");
    assert!(config.contains("\"threshold_percent\":1,"), "{config}");

    set_policy(&target, &json!({"policy": "idle", "idle_ms": 20}));
    write(&target, 5, 0x13);
    // Chunk 3 as well: nobody saw it written, but it rests.
    staged(&target, 3);
    assert_eq!(target.stats()["predictor"], Value::Null);
    target.check_slots();
    target.stop();
}

/// I6 for the predictor: while its thread stands still the volume is written to, snapshots complete,
/// chunks are staged by rest, and users are told; when it goes on, so does prediction.
///
/// Fails when the app thread waits for it, or leaves the records to it for ever.
#[test]
fn a_volume_serves_on_while_the_predictor_stands_still() {
    let bench = Bench::new();
    let more = json!({"policy": "rate", "threshold_percent": 100, "idle_ms": 100});
    let target = volume_with(&bench, &more);
    write(&target, 1, 0x21);
    wait_for("a tick", Duration::from_secs(20), || {
        (target.stats()["predictor"]["active_chunks"] == 1).then_some(())
    });
    let stopped = Stopped::new(predictor_thread(&target));
    for chunk in 0..VOLUME_MIB * 1024 * 1024 / CHUNK_BYTES {
        write(&target, chunk, 0x22);
    }
    let volume = target.dump("vol0");
    assert_eq!(target.snapshot("vol0", "a")["state"], "complete");
    assert!(target.dump("vol0@a") == volume, "the snapshot is not what the volume held");
    wait_for("the stall to be noticed", Duration::from_secs(20), || {
        let fallback = target.stats()["predictor"]["fallback"].take();
        fallback.as_str().filter(|text| text.contains("staged by rest")).map(|_| ())
    });
    write(&target, 7, 0x23);
    staged(&target, 1);
    drop(stopped);
    wait_for("prediction to go on", Duration::from_secs(20), || {
        let predictor = target.stats()["predictor"].take();
        let fresh = predictor["last_tick_age_ms"].as_u64() < Some(2_000);
        (fresh && predictor["fallback"].is_null()).then_some(())
    });
    assert_eq!(target.snapshot("vol0", "b")["state"], "complete");
    target.check_slots();
    target.stop();
}
