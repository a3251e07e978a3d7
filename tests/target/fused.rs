//! Fused compare-and-write over NVMe/TCP: the one command that reads and modifies.

use std::time::Duration;

use serde_json::json;

use crate::cut::{slow_down, slow_store};
use crate::harness::{Bench, Process};
use crate::initiator::{BLOCK, COMPARE_FAILURE, HOST, Initiator};

/// One block: SPDK's bdevs do no longer ones.
const A: [u8; BLOCK] = [0xa1; BLOCK];
const B: [u8; BLOCK] = [0xb2; BLOCK];
const C: [u8; BLOCK] = [0xc3; BLOCK];

fn connect(target: &Process, bdev: &str) -> Initiator {
    let served = target.serve_nvmf(bdev, 1);
    Initiator::connect(served.ports[0], &served.nqn, HOST).expect("connected")
}

/// Equal: written. Different: refused, nothing written. A chunk that a snapshot still needs: the
/// snapshot keeps what was there.
fn exercise(target: &Process, volume: &str) {
    let mut host = connect(target, volume);
    host.write(8, &A).expect("written");
    host.compare_and_write(8, &A, &B).expect("equal");
    assert_eq!(host.read(8, 1).expect("read"), B);
    let refused = host.compare_and_write(8, &A, &C).expect_err("different by now");
    assert_eq!(refused.status(), Some(COMPARE_FAILURE), "{refused:?}");
    assert_eq!(host.read(8, 1).expect("read"), B);

    let before = target.stats()["parked"]["commands"].as_u64();
    slow_down(target, Duration::from_millis(200));
    target.snapshot_cut(volume, "s");
    host.compare_and_write(8, &B, &C).expect("equal");
    slow_down(target, Duration::ZERO);
    let stats = target.stats();
    assert!(stats["parked"]["commands"].as_u64() > before, "it did not wait: {stats}");
    let snapshot = target.snapshot_ended(volume, "s");
    assert_eq!(snapshot["state"], "complete", "{snapshot}");
    assert_eq!(host.read(8, 1).expect("read"), C);
    let export = target.export(volume, "s");
    let mut reader = Initiator::connect(export.ports[0], &export.nqn, HOST).expect("connected");
    assert_eq!(reader.read(8, 1).expect("read"), B);
    reader.compare_and_write(8, &B, &A).expect_err("a snapshot is never written");
    assert_eq!(reader.read(8, 1).expect("read"), B);
    // The commands of later epochs count, too: nothing of the gate is left behind.
    let next = target.snapshot(volume, "next");
    assert_eq!(next["chunks"]["required"], 1, "{next}");
}

/// On a master without the command: SPDK's bdev layer makes it of a read and a write.
///
/// Fails when a compare-and-write that the bdev layer composes passes the gate by.
#[test]
fn compare_and_write_that_the_bdev_layer_composes() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.malloc("m0", 16, 512);
    slow_store(&target, &bench);
    target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    exercise(&target, "vol0");
    assert_eq!(target.stats()["commands"]["compare"], 0, "{}", target.stats());
    target.check_slots();
    target.stop();
}

/// On a master that has it, a namespace of another target. The volume forwards it whole with an SPDK
/// whose NVMe bdev ends such a command once only, else the bdev layer composes it.
///
/// Fails (the target ends) when it is forwarded with SPDK 20.07.
#[test]
fn compare_and_write_on_a_master_that_does_it() {
    let bench = Bench::new();
    let below = bench.target("below", &[]);
    below.malloc("m0", 16, 512);
    let served = below.serve_nvmf("m0", 1);
    let target = bench.target("target", &["-m", "0x2"]);
    let master = target.attach("Nvme0", &served, 0);
    slow_store(&target, &bench);
    target.volume("vol0", &master, "store0", &json!({"policy": "off"}));
    exercise(&target, "vol0");
    target.check_slots();
    target.stop();
    below.stop();
}
