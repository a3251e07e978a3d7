//! Volumes above and below SPDK's other virtual bdevs: the data path is alive, snapshots are right.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Bench, Process, Subsystem, spdk_folder, wait_for};
use crate::initiator::{HOST, Initiator};

fn connect(target: &Process, bdev: &str) -> Initiator {
    let served = target.serve_nvmf(bdev, 1);
    Initiator::connect(served.ports[0], &served.nqn, HOST).expect("connected")
}

/// Writes through `top`, takes a snapshot of `volume`, writes again: the snapshot has the first, and
/// `top` the second.
fn exercise(target: &Process, top: &str, volume: &str) {
    exercise_at(target, top, volume, 0);
}

/// The same for a `top` that begins at a block of `volume`.
fn exercise_at(target: &Process, top: &str, volume: &str, begin: u64) {
    let name = top.replace('/', "-");
    let mut writer = connect(target, top);
    for lba in [0, 1000, 16_376] {
        writer.write(lba, &[0xa1; 4096]).expect("written");
    }
    target.snapshot(volume, &name);
    let export = target.export(volume, &name);
    for lba in [0, 1000, 16_376] {
        writer.write(lba, &[0xb2; 4096]).expect("written");
    }
    let mut reader = Initiator::connect(export.ports[0], &export.nqn, HOST).expect("connected");
    for lba in [0, 1000, 16_376] {
        assert_eq!(reader.read(begin + lba, 8).expect("read"), [0xa1; 4096], "{top} at {lba}");
        assert_eq!(writer.read(lba, 8).expect("read"), [0xb2; 4096], "{top} at {lba}");
    }
    writer.deallocate(0, 8).expect("deallocated");
    writer.write_zeroes(1000, 8).expect("zeroes written");
    assert_eq!(writer.read(1000, 8).expect("read"), [0; 4096], "{top}");
    assert_eq!(reader.read(begin, 8).expect("read"), [0xa1; 4096], "{top}");
    assert_eq!(reader.read(begin + 1000, 8).expect("read"), [0xa1; 4096], "{top}");
}

#[test]
fn volumes_work_on_top_of_other_layers() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    for name in ["m0", "m1", "m2", "m3", "m4", "m5"] {
        target.malloc(name, 32, 512);
    }
    target.aio("s0", &bench.file("s0.img", 512), 512);
    target.store("st", "s0", 64);
    target.call("bdev_split_create", json!({"base_bdev": "m0", "split_count": 2}));
    target.call(
        "bdev_raid_create",
        json!({"name": "r0", "raid_level": "0", "strip_size_kb": 64, "base_bdevs": ["m1", "m2"]}),
    );
    target.call("bdev_lvol_create_lvstore", json!({"bdev_name": "m3", "lvs_name": "lvs"}));
    target
        .call("bdev_lvol_create", json!({"lvol_name": "l0", "size": 16 << 20, "lvs_name": "lvs"}));
    target.call(
        "bdev_delay_create",
        json!({"base_bdev_name": "m4", "name": "d0", "avg_read_latency": 100,
            "p99_read_latency": 200, "avg_write_latency": 100, "p99_write_latency": 200}),
    );
    // Not served itself: the NVMe-oF target would claim it.
    target.volume("below", "m5", "st", &json!({"policy": "idle", "idle_ms": 10}));
    for (volume, base) in
        [("vs", "m0p1"), ("vr", "r0"), ("vl", "lvs/l0"), ("vd", "d0"), ("vv", "below")]
    {
        target.volume(volume, base, "st", &json!({"policy": "idle", "idle_ms": 10}));
        exercise(&target, volume, volume);
    }
    assert_eq!(target.snapshot("below", "s")["state"], "complete");
    target.check_slots();
    target.stop();
}

#[test]
fn other_layers_work_on_top_of_volumes() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.aio("s0", &bench.file("s0.img", 512), 512);
    target.store("st", "s0", 64);
    for name in ["v0", "v1", "v2", "v3"] {
        let master = format!("m-{name}");
        target.malloc(&master, 32, 512);
        target.volume(name, &master, "st", &json!({"policy": "idle", "idle_ms": 10}));
    }
    target.call("bdev_split_create", json!({"base_bdev": "v0", "split_count": 2}));
    target.call("bdev_passthru_create", json!({"base_bdev_name": "v1", "name": "p1"}));
    target.call("bdev_lvol_create_lvstore", json!({"bdev_name": "v2", "lvs_name": "lvs"}));
    target
        .call("bdev_lvol_create", json!({"lvol_name": "l2", "size": 16 << 20, "lvs_name": "lvs"}));
    target.call("bdev_set_qos_limit", json!({"name": "v3", "rw_ios_per_sec": 1000}));
    for (top, volume) in [("v0p0", "v0"), ("p1", "v1"), ("v3", "v3")] {
        exercise(&target, top, volume);
    }
    // Where a logical volume is in its volume is its own affair. Nobody looks for it in the snapshots.
    let mut host = connect(&target, "lvs/l2");
    host.write(0, &[0xa1; 4096]).expect("written");
    let before = target.snapshot("v2", "before");
    host.write(0, &[0xb2; 4096]).expect("written");
    assert_eq!(host.read(0, 8).expect("read"), [0xb2; 4096]);
    let after = target.snapshot("v2", "after");
    assert_eq!((&before["state"], &after["state"]), (&json!("complete"), &json!("complete")));
    assert!(after["chunks"]["required"].as_u64() >= Some(1), "{after}");
    target.export("v2", "after");
    let stores = target.call("bdev_lvol_get_lvstores", json!({}));
    assert_eq!(stores.as_array().map(Vec::len), Some(1), "{stores}");

    target.check_slots();
    target.stop();
}

/// What fio gets of 4 KiB random writes, per second.
fn writes_per_s(bench: &Bench, served: &Subsystem) -> f64 {
    let options = ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--time_based", "--runtime=3"];
    bench.fio(served, &options)["write"]["iops"].as_f64().expect("a rate")
}

#[test]
fn a_rate_limit_on_a_volume_holds_also_while_a_snapshot_completes() {
    const LIMIT_PER_S: u32 = 2000;
    let limit = f64::from(LIMIT_PER_S);
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.malloc("m0", 64, 4096);
    target.aio("s0", &bench.file("s0.img", 512), 4096);
    target.store("st", "s0", 64);
    // So that the snapshot takes longer than the load.
    target.volume(
        "v0",
        "m0",
        "st",
        &json!({"policy": "idle", "idle_ms": 10, "copy_mbytes_per_sec": 10}),
    );
    let served = target.serve_nvmf("v0", 1);
    assert!(writes_per_s(&bench, &served) > 1.5 * limit, "too slow to tell");
    target.call("bdev_set_qos_limit", json!({"name": "v0", "rw_ios_per_sec": LIMIT_PER_S}));
    let limited = writes_per_s(&bench, &served);
    assert!((0.4 * limit..1.25 * limit).contains(&limited), "{limited} per second");
    target.snapshot_cut("v0", "s");
    let limited = writes_per_s(&bench, &served);
    assert!((0.4 * limit..1.25 * limit).contains(&limited), "{limited} per second");
    target.call("presnap_set_policy", json!({"volume": "v0", "copy_mbytes_per_sec": 0}));
    assert_eq!(target.snapshot_ended("v0", "s")["state"], "complete");
    target.call("bdev_set_qos_limit", json!({"name": "v0", "rw_ios_per_sec": 0}));
    assert!(writes_per_s(&bench, &served) > 1.5 * limit, "the limit stays");
    target.check_slots();
    target.stop();
}

/// CRC-32 as in a partition table (IEEE 802.3).
fn crc32(bytes: &[u8]) -> [u8; 4] {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    });
    (!crc).to_le_bytes()
}

/// A partition table for a disk of so many blocks of 512 bytes: one partition, of the type that SPDK
/// takes for its own. UEFI 2.10, chapter 5.
fn partition_table(blocks: u64, first: u64, last: u64) -> Vec<u8> {
    let mut table = vec![0; 34 * 512];
    let mut put = |at: usize, bytes: &[u8]| table[at..at + bytes.len()].copy_from_slice(bytes);
    // The protective MBR.
    put(446 + 4, &[0xee]);
    put(446 + 8, &1_u32.to_le_bytes());
    put(446 + 12, &(blocks as u32 - 1).to_le_bytes());
    put(510, &[0x55, 0xaa]);
    // The one entry.
    let uuid = |text: &str| Uuid::parse_str(text).expect("a UUID").to_bytes_le();
    put(1024, &uuid("7c5222bd-8f5d-4087-9c00-bf9843c7b58c"));
    put(1024 + 16, &uuid("6f9619ff-8b86-4d01-b42d-00cf4fc964ff"));
    put(1024 + 32, &first.to_le_bytes());
    put(1024 + 40, &last.to_le_bytes());
    let entries = crc32(&table[1024..]);
    let mut put = |at: usize, bytes: &[u8]| table[at..at + bytes.len()].copy_from_slice(bytes);
    put(512, b"EFI PART\0\0\x01\0\x5c\0\0\0");
    for (at, value) in [(24, 1), (32, blocks - 1), (40, 34), (48, blocks - 34), (72, 2)] {
        put(512 + at, &value.to_le_bytes());
    }
    put(512 + 56, &uuid("0b9e3c1e-5d57-4c4e-8d0f-7f0f8e6f0a11"));
    put(512 + 80, &128_u32.to_le_bytes());
    put(512 + 84, &128_u32.to_le_bytes());
    put(512 + 88, &entries);
    let header = crc32(&table[512..512 + 92]);
    table[512 + 16..512 + 20].copy_from_slice(&header);
    table
}

#[test]
fn partitions_of_a_volume_are_found_and_work() {
    const PARTITION: u64 = 2048;
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.malloc("m0", 32, 512);
    target.aio("s0", &bench.file("s0.img", 256), 512);
    target.store("st", "s0", 64);
    target.volume("v0", "m0", "st", &json!({"policy": "idle", "idle_ms": 10}));
    let mut host = connect(&target, "v0");
    for (index, piece) in partition_table(65_536, PARTITION, 65_000).chunks(4096).enumerate() {
        host.write(index as u64 * 8, piece).expect("written");
    }
    assert_eq!(target.snapshot("v0", "table")["state"], "complete");
    drop(host);
    // SPDK looks for partitions when a bdev comes.
    target.call("bdev_presnap_delete", json!({"name": "v0"}));
    target.volume("v0", "m0", "st", &json!({"policy": "idle", "idle_ms": 10}));
    // Not of snapshots, which are found with the same table.
    assert!(target.try_call("bdev_get_bdevs", json!({"name": "v0@tablep1"})).is_err());
    wait_for("the partition", Duration::from_secs(10), || {
        target.try_call("bdev_get_bdevs", json!({"name": "v0p1"})).ok()
    });
    exercise_at(&target, "v0p1", "v0", PARTITION);
    target.check_slots();
    target.stop();
}

#[test]
fn every_method_works_from_rpc_py() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.malloc("m0", 16, 512);
    target.aio("s0", &bench.file("s0.img", 128), 512);
    let port = bench.port().to_string();
    let scripts = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let run = |line: &str| -> Value {
        let output = Command::new("python3")
            .arg(spdk_folder().join("scripts/rpc.py"))
            .arg("-s")
            .arg(&target.socket)
            .args(["--plugin", "presnap_rpc"])
            .args(line.split(' '))
            .env("PYTHONPATH", &scripts)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .output()
            .expect("python3");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{line}: {error}");
        serde_json::from_str(&said).unwrap_or_else(|_| json!(said.trim()))
    };
    let mut used = std::collections::BTreeSet::new();
    for (line, pointer, wanted) in [
        ("presnap_store_create st s0 --slot-size-kib 64 --force", "/name", json!("st")),
        ("presnap_get_stores st", "/0/slot_size_kib", json!(64)),
        ("presnap_store_scrub st --wait", "/state", json!("done")),
        ("bdev_presnap_create v --base-bdev m0 --store st --policy off", "", json!("v")),
        ("presnap_set_policy v --policy idle --idle-ms 50", "/idle_ms", json!(50)),
        ("presnap_snapshot_create v a --wait complete", "/state", json!("complete")),
        ("presnap_get_snapshots v a", "/0/name", json!("a")),
        ("presnap_get_stats v --reset", "/volumes/0/volume", json!("v")),
        ("presnap_get_chunks v --count 2", "/next", json!(2)),
        (
            &format!("presnap_snapshot_export v a --trsvcid {port} --hosts nqn.2016-06.io.spdk:h"),
            "/hosts/0",
            json!("nqn.2016-06.io.spdk:h"),
        ),
        ("presnap_snapshot_unexport v a", "", json!(true)),
        ("presnap_snapshot_delete v a", "", json!(true)),
        ("bdev_presnap_delete v", "", json!(true)),
        ("presnap_store_unload st", "/0/state", json!("unloaded")),
        ("presnap_store_load s0", "/0/name", json!("st")),
        ("presnap_store_delete st", "/0/state", json!("deleted")),
    ] {
        let answer = run(line);
        let found = answer.pointer(pointer).unwrap_or(&Value::Null);
        let found = if found == "True" { &json!(true) } else { found };
        assert_eq!(found, &wanted, "{line}: {answer}");
        used.insert(line.split(' ').next().unwrap_or_default().to_owned());
    }
    for method in presnap::rpc::METHODS {
        assert!(used.contains(method.name), "{} was not tried", method.name);
    }
    target.stop();
}
