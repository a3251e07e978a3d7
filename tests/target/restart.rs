//! Stopping, being killed, and starting again.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cut::{CHUNK_KIB, VOLUME_MIB, Writer};
use crate::harness::{Bench, Process, Subsystem, check_catalog, wait_for};
use crate::lifecycle::staged;

const CHUNK_BYTES: u64 = CHUNK_KIB as u64 * 1024;

/// Volume and store in files, served over NVMe/TCP, and the configuration that brings it all back.
fn durable(bench: &Bench, policy: &Value) -> (Process, Subsystem) {
    let target = bench.target("target", &[]);
    target.aio("m0", &bench.file("master", VOLUME_MIB), 512);
    target.aio("s0", &bench.file("store", 512), 512);
    target.store("store0", "s0", CHUNK_KIB);
    target.volume("vol0", "m0", "store0", policy);
    let subsystem = target.serve_nvmf("vol0", 1);
    (target, subsystem)
}

/// Of each staged chunk what the catalog keeps.
fn chunk_metadata(target: &Process) -> Vec<[Value; 4]> {
    let page = target.call("presnap_get_chunks", json!({"volume": "vol0", "staged_only": true}));
    let names = ["chunk_id", "operation_number", "staging_location", "valid"];
    let of = |chunk: &Value| names.map(|name| chunk[name].clone());
    page["chunks"].as_array().expect("a list").iter().map(of).collect()
}

/// A clean stop keeps snapshots, exports, staged copies and the dirty set (I4).
///
/// Fails when the saved dirty set or a staged copy's block map is lost or not trusted.
#[test]
fn a_clean_restart_brings_everything_back() {
    let bench = Bench::new();
    let (target, subsystem) = durable(&bench, &json!({"policy": "idle", "idle_ms": 500}));
    let agent = bench.agent("agent", "0x2");
    let volume = agent.attach("V", &subsystem, 0);
    Writer::fill(&bench, &agent, &[&volume]);
    target.snapshot("vol0", "a");
    let export = target.export("vol0", "a");
    let a = agent.dump(&agent.attach("S", &export, 0));
    assert!(a == agent.dump(&volume), "the snapshot is not the volume");
    // Three chunks to stage; the volume differs from the snapshot in just those.
    for chunk in [1, 2, 77] {
        assert_eq!(agent.io(&volume, "write", chunk * CHUNK_BYTES + 512, 512, 3)["ok"], true);
    }
    staged(&target, 3);
    let metadata = chunk_metadata(&target);
    let before = target.get_snapshot("vol0", "a");
    let config = target.save_config();
    agent.stop();
    target.stop();

    let target = bench.target("target", &["-c", config.to_str().expect("plain")]);
    assert_eq!(target.get_snapshot("vol0", "a"), before, "another object than before");
    let ids: Vec<_> = metadata.iter().map(|chunk| chunk[0].as_u64()).collect();
    assert_eq!(ids, [Some(1), Some(2), Some(77)], "{metadata:?}");
    assert!(metadata.iter().all(|chunk| chunk[3] == true), "{metadata:?}");
    assert_eq!(chunk_metadata(&target), metadata, "other copies than before");
    let agent = bench.agent("agent", "0x2");
    let volume = agent.attach("V", &subsystem, 0);
    assert!(agent.dump(&agent.attach("S", &export, 0)) == a, "the snapshot changed");
    let snapshot = target.snapshot("vol0", "b");
    assert_eq!(snapshot["chunks"]["required"], 3, "the dirty set is trusted: {snapshot}");
    assert_eq!(snapshot["chunks"]["adopted"], 3, "{snapshot}");
    let b = agent.attach("B", &target.export("vol0", "b"), 0);
    assert!(agent.dump(&b) == agent.dump(&volume), "the second snapshot is not the volume");
    target.check_slots();
    agent.stop();
    target.stop();
}

/// I8: what an interrupted snapshot had recorded of its chunks is gone after the start. Zeros, so that no
/// slot says so.
///
/// Fails when the rows of an interrupted snapshot stay.
#[test]
fn an_interrupted_snapshot_leaves_no_rows() {
    /// Rows in one transaction, of chunks that the engine is told to be done with.
    const ROWS: u64 = 16 * 1024;
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.aio("m0", &bench.file("master", 2048), 512);
    target.aio("s0", &bench.file("store", 128), 512);
    target.store("store0", "s0", 64);
    target.volume("vol0", "m0", "store0", &json!({"policy": "off", "copy_mbytes_per_sec": 400}));
    let config = target.save_config();
    let used = || {
        let stores = target.call("presnap_get_stores", json!({}));
        stores[0]["catalog"]["used"].as_u64().expect("a number")
    };
    // A row has more than 16 bytes.
    let with_rows = used() + ROWS * 16;
    target.snapshot_cut("vol0", "lost");
    wait_for("the first rows to be recorded", Duration::from_mins(1), || {
        let snapshot = target.get_snapshot("vol0", "lost").expect("there");
        assert_eq!(snapshot["state"], "completing", "too fast to show anything");
        // Asked of the catalog's thread, after what it had to do before.
        (snapshot["chunks"]["zero"].as_u64() > Some(ROWS) && used() > with_rows).then_some(())
    });
    target.kill();

    let target = bench.target("target", &["-c", config.to_str().expect("plain")]);
    let lost = target.get_snapshot("vol0", "lost").expect("remembered");
    assert_eq!(lost["state"], "failed", "{lost}");
    target.check_slots();
    target.stop();
    let report = check_catalog(&bench.path("store"));
    assert_eq!((report.snapshots, report.rows), (1, 0), "{report:?}");
}

/// A master that was changed while the target was away is not taken for the one that is known.
#[test]
fn another_master_is_refused_after_a_clean_stop() {
    let bench = Bench::new();
    let (target, subsystem) = durable(&bench, &json!({"policy": "off"}));
    let agent = bench.agent("agent", "0x2");
    let volume = agent.attach("V", &subsystem, 0);
    Writer::fill(&bench, &agent, &[&volume]);
    target.snapshot("vol0", "a");
    agent.stop();
    target.stop();

    let target = bench.target("target", &[]);
    target.aio("m0", &bench.file("other", VOLUME_MIB), 512);
    target.aio("s0", &bench.path("store"), 512);
    target.call("presnap_store_load", json!({"bdev": "s0"}));
    let refused = target.try_call(
        "bdev_presnap_create",
        json!({"name": "vol0", "base_bdev": "m0", "store": "store0"}),
    );
    let error = refused.expect_err("another master");
    assert!(error.message.contains("not the master"), "{error}");
    target.stop();
}
