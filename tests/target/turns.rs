//! Deletions, removals and attaches of one volume take turns: a deletion makes chunks dirty, in the
//! catalog or in the gate, and must not do so while these are saved or loaded. Whatever comes first, the
//! next snapshot has what the deleted one alone held.

use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cut::{CHUNK_KIB, VOLUME_MIB, slow_down, slow_store};
use crate::harness::{Bench, Process, wait_for};

const CHUNK_BYTES: u64 = CHUNK_KIB as u64 * 1024;
/// Long enough for a call to come in between two transactions of the catalog.
const WRITE_TIME: Duration = Duration::from_millis(100);

type Call = JoinHandle<Result<Value, presnap::rpc::RpcError>>;

fn write(target: &Process, chunk: u64, fill: u8) {
    let result = target.io("vol0", "write", chunk * CHUNK_BYTES, CHUNK_BYTES, fill);
    assert_eq!(result["ok"], true, "{result}");
}

/// A volume that is as its newest snapshot `b`, which alone holds some chunks as they are; on a store
/// whose writes can be slow. Gives what the volume holds.
fn volume_with_two_snapshots(bench: &Bench) -> (Process, Vec<u8>) {
    let target = bench.agent("target", "0x1");
    target.malloc("m0", VOLUME_MIB, 512);
    slow_store(&target, bench);
    target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    for (name, fill) in [("a", 0x11), ("b", 0x22)] {
        for chunk in 10..20 {
            write(&target, chunk, fill);
        }
        assert_eq!(target.snapshot("vol0", name)["state"], "complete");
    }
    let content = target.dump("vol0");
    (target, content)
}

fn bdev_is_there(target: &Process, name: &str) -> bool {
    target.try_call("bdev_get_bdevs", json!({"name": name})).is_ok()
}

/// A bdev goes before what it stood for is gone from the catalog.
fn wait_until_gone(target: &Process, bdev: &str) {
    wait_for(&format!("{bdev} to go"), Duration::from_secs(20), || {
        (!bdev_is_there(target, bdev)).then_some(())
    });
}

fn delete_b(target: &Process) -> Call {
    target.call_start("presnap_snapshot_delete", json!({"volume": "vol0", "name": "b"}))
}

fn ended_well(call: Call) {
    call.join().expect("no panic").expect("done");
}

/// The next snapshot has what `b` held.
fn assert_nothing_lost(target: Process, content: &[u8]) {
    let snapshot = target.snapshot("vol0", "c");
    assert_eq!(snapshot["state"], "complete", "{snapshot}");
    assert_eq!(snapshot["chunks"]["required"], 10, "those of b: {snapshot}");
    assert!(target.dump("vol0@c") == content, "the snapshot is not what the volume holds");
    target.check_slots();
    target.stop();
}

/// Fails when a removal does not wait for a deletion that is under way.
#[test]
fn a_removal_that_meets_a_deletion_loses_no_dirty_chunk() {
    let bench = Bench::new();
    let (target, content) = volume_with_two_snapshots(&bench);
    slow_down(&target, WRITE_TIME);
    let deletion = delete_b(&target);
    wait_until_gone(&target, "vol0@b");
    target.call("bdev_presnap_delete", json!({"name": "vol0"}));
    slow_down(&target, Duration::ZERO);
    ended_well(deletion);
    target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    assert_nothing_lost(target, &content);
}

/// Fails when a deletion does not wait for a removal that is under way.
#[test]
fn a_deletion_that_meets_a_removal_loses_no_dirty_chunk() {
    let bench = Bench::new();
    let (target, content) = volume_with_two_snapshots(&bench);
    slow_down(&target, WRITE_TIME);
    let removal = target.call_start("bdev_presnap_delete", json!({"name": "vol0"}));
    wait_until_gone(&target, "vol0");
    let deletion = delete_b(&target);
    ended_well(removal);
    slow_down(&target, Duration::ZERO);
    ended_well(deletion);
    target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    assert_nothing_lost(target, &content);
}

/// Fails when a deletion does not wait for an attach that is under way: it then comes between the
/// loading of the saved dirty chunks and their removal from the catalog.
#[test]
fn a_deletion_that_meets_an_attach_loses_no_dirty_chunk() {
    let bench = Bench::new();
    let (target, content) = volume_with_two_snapshots(&bench);
    // Another volume's deletion keeps the catalog busy, so that what comes then waits in order.
    target.malloc("m1", VOLUME_MIB, 512);
    target.volume("vol1", "m1", "store0", &json!({"policy": "off"}));
    target.snapshot("vol1", "x");
    target.call("bdev_presnap_delete", json!({"name": "vol0"}));
    slow_down(&target, WRITE_TIME);
    let busy = target.call_start("presnap_snapshot_delete", json!({"volume": "vol1", "name": "x"}));
    wait_until_gone(&target, "vol1@x");
    let attach = target.call_start(
        "bdev_presnap_create",
        json!({"name": "vol0", "base_bdev": "m0", "store": "store0", "policy": "off"}),
    );
    wait_for("the attach to claim its master", Duration::from_secs(20), || {
        let bdevs = target.call("bdev_get_bdevs", json!({"name": "m0"}));
        (bdevs[0]["claimed"] == true).then_some(())
    });
    let deletion = delete_b(&target);
    ended_well(attach);
    slow_down(&target, Duration::ZERO);
    ended_well(deletion);
    ended_well(busy);
    assert_nothing_lost(target, &content);
}
