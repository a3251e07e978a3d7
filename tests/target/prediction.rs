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

/// Names of the threads of a process, sorted.
fn threads(target: &Process) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", target.pid())).expect("it runs");
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let names = tasks.flatten().filter_map(name).map(|name| name.trim().to_owned());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

/// Chunks that rest get a score above the threshold, are staged for it and adopted; one that is
/// written again and again is not.
///
/// Fails when scores do not reach the engine, or are given to other chunks.
#[test]
fn chunks_that_rest_are_staged_by_score_and_adopted() {
    let bench = Bench::new();
    let more = json!({"policy": "rate", "threshold": 0.02});
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
    assert!(number(&cold["score"]) >= 0.02 && number(&hot["score"]) < 0.02, "{cold} {hot}");
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
    let policy = set_policy(&target, &json!({"policy": "rate", "threshold": 0.01}));
    assert_eq!((&policy["policy"], &policy["threshold"]), (&json!("rate"), &json!(0.01)));
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
    assert!(config.contains("\"threshold\":0.01,"), "{config}");

    set_policy(&target, &json!({"policy": "idle", "idle_ms": 20}));
    write(&target, 5, 0x13);
    // Chunk 3 as well: nobody saw it written, but it rests.
    staged(&target, 3);
    // What is written now is found only by who takes the records.
    write(&target, 6, 0x14);
    staged(&target, 4);
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
    let more = json!({"policy": "rate", "threshold": 1.0, "idle_ms": 100});
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

/// The model serves and learns on. It has one thread, off the reactor's core, and starts no other.
///
/// Fails when a crate of the network's spreads work over cores, or the thread stays where it was born.
#[test]
fn the_model_serves_on_one_thread_of_its_own() {
    let bench = Bench::new();
    let target = volume_with(&bench, &json!({"policy": "off"}));
    let without = threads(&target);
    set_policy(&target, &json!({"policy": "lstm"}));
    let predictor = wait_for("samples that came true or not", Duration::from_mins(1), || {
        for chunk in 0..8 {
            write(&target, chunk, 0x41);
        }
        let predictor = target.stats()["predictor"].take();
        (predictor["calibration"][0]["count"].as_u64() > Some(0)).then_some(predictor)
    });
    assert_eq!((&predictor["serving"], &predictor["effort"]), (&json!("lstm"), &json!("full")));
    assert_eq!(predictor["fallback"], Value::Null, "{predictor}");
    let model = &predictor["model"];
    assert_eq!((&model["version"], &model["learned"]), (&json!(1), &json!(false)), "{model}");
    assert!(predictor["tick_last_us"].as_u64() > Some(0), "{predictor}");
    assert_eq!(predictor["threshold"], 0.1);

    let mut with = threads(&target);
    let at = with.iter().position(|name| name == "presnap-predict").expect("a thread");
    with.remove(at);
    assert_eq!(with, without, "more threads than the predictor's");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let path = format!("/proc/{0}/task/{1}/status", target.pid(), predictor_thread(&target));
    let status = fs::read_to_string(path).expect("it runs");
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let allowed = allowed.expect("a list").trim();
    // The reactor is on the first CPU.
    assert!(cpus == 1 || !allowed.starts_with('0'), "it may run on CPUs {allowed}");
    target.stop();
}

/// I6 for the predictor: it may even die. The volume serves on, chunks are staged by rest, and after
/// a while there is another.
///
/// Fails when a dead thread is waited for, or nothing takes its place.
#[test]
fn a_predictor_that_dies_is_followed_by_another() {
    let bench = Bench::new();
    let target = volume_with(&bench, &json!({"policy": "rate", "threshold": 1.0, "idle_ms": 100}));
    wait_for("a tick", Duration::from_secs(20), || {
        (target.stats()["predictor"]["ticks"].as_u64() > Some(0)).then_some(())
    });
    target.call("test_predictor_dies", json!({}));
    wait_for("its end to be noticed", Duration::from_secs(20), || {
        let fallback = target.stats()["predictor"]["fallback"].take();
        fallback.as_str().filter(|text| text.contains("staged by rest")).map(|_| ())
    });
    write(&target, 7, 0x51);
    staged(&target, 1);
    assert_eq!(target.snapshot("vol0", "a")["chunks"]["adopted"], 1);
    write(&target, 8, 0x52);
    wait_for("another", Duration::from_mins(1), || {
        let predictor = target.stats()["predictor"].take();
        let fresh = predictor["last_tick_age_ms"].as_u64() < Some(2_000);
        (fresh && predictor["fallback"].is_null()).then_some(())
    });
    write(&target, 9, 0x53);
    wait_for("it to follow", Duration::from_secs(20), || {
        (target.stats()["predictor"]["active_chunks"].as_u64() > Some(0)).then_some(())
    });
    target.check_slots();
    target.stop();
}

/// Fails when staged copies take more slots than they may, or copying is faster than it may be.
#[test]
fn staging_keeps_to_its_limits() {
    let bench = Bench::new();
    let more = json!({"policy": "idle", "idle_ms": 1, "copy_mbytes_per_sec": 1, "staging_limit_percent": 2});
    let target = volume_with(&bench, &more);
    let store = target.call("presnap_get_stores", json!({}))[0].take();
    let limit = store["slots"]["total"].as_u64().expect("a number") * 2 / 100;
    let chunks = VOLUME_MIB * 1024 * 1024 / CHUNK_BYTES;
    assert!(limit > 4 && limit < chunks / 2, "{limit} of {chunks}: nothing would be shown");
    target.call("presnap_get_stats", json!({"reset": true}));
    let began = std::time::Instant::now();
    let slots_taken = || {
        let stats = target.stats();
        let slots = stats["staging"]["slots"].as_u64().expect("a number");
        assert!(slots <= limit, "{slots} slots of {limit}");
        let copied = |name: &str| stats["copy"][name].as_u64().expect("a number");
        let bytes = copied("staged_bytes") + copied("refreshed_bytes");
        // What the bucket holds at the start comes on top.
        let most = began.elapsed().as_millis() as u64 * (1 << 20) / 1000 + (1 << 20);
        assert!(bytes <= most, "{bytes} bytes, at most {most}");
        slots
    };
    let mut full = false;
    for round in 0..3 {
        for chunk in 0..chunks {
            write(&target, chunk, 0x61 + round);
            if chunk % 16 == 0 {
                slots_taken();
            }
        }
        wait_for("the limit", Duration::from_secs(40), || {
            full |= slots_taken() == limit;
            full.then_some(())
        });
    }
    target.check_slots();
    target.stop();
}
