//! Staging, chains, and commands other than writes.

use std::time::Duration;

use serde_json::json;

use crate::cut::{CHUNK_KIB, VOLUME_MIB, Writer, slow_down, slow_store};
use crate::harness::{Bench, Process, check_catalog, hugepage_files, wait_for};

const CHUNK_BYTES: u64 = CHUNK_KIB as u64 * 1024;

/// Waits until that many staged copies are valid.
pub fn staged(target: &Process, chunks: u64) {
    wait_for(&format!("{chunks} valid staged copies"), Duration::from_secs(30), || {
        let staging = &target.stats()["staging"];
        (staging["valid"] == chunks && staging["slots"] == chunks).then_some(())
    });
}

/// I2, as far as it shows from outside: what is adopted is right, also after refreshes.
///
/// Fails when `Gate::end_copy` ignores the block map, or a refresh copies other blocks than it says.
#[test]
fn staged_copies_are_adopted_and_refreshed() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    target.malloc("m0", VOLUME_MIB, 512);
    target.aio("s0", &bench.file("store", 256), 512);
    target.store("store0", "s0", CHUNK_KIB);
    target.volume("vol0", "m0", "store0", &json!({"policy": "idle", "idle_ms": 20}));
    Writer::fill(&bench, &target, &["vol0"]);
    staged(&target, 512);
    let copied = target.stats()["copy"]["refreshed_bytes"].as_u64().expect("a number");
    // One block in each of two chunks, one of them the last of its chunk.
    assert_eq!(target.io("vol0", "write", 3 * CHUNK_BYTES, 1024, 7)["ok"], true);
    assert_eq!(target.io("vol0", "write", 9 * CHUNK_BYTES - 512, 512, 8)["ok"], true);
    staged(&target, 512);
    let stats = target.stats();
    let refreshed = stats["copy"]["refreshed_bytes"].as_u64().expect("a number") - copied;
    assert_eq!(refreshed, 2 * CHUNK_BYTES / 64, "only the modified blocks are copied: {stats}");
    let volume = target.dump("vol0");
    let snapshot = target.snapshot("vol0", "a");
    assert_eq!(snapshot["chunks"]["adopted"], 512, "{snapshot}");
    assert_eq!(snapshot["chunks"]["required"], 512, "{snapshot}");
    assert!(target.dump("vol0@a") == volume, "adopted copies are not what the volume held");
    target.check_slots();
    target.stop();
}

/// I4 and I8 along a chain, with hand-over to the next in line.
///
/// Fails when a delete frees rows that a later snapshot relies on, or a slot is written again while
/// a snapshot owns it.
#[test]
fn the_other_snapshots_stay_as_they_are_when_one_is_deleted() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x3");
    target.malloc("m0", VOLUME_MIB, 512);
    target.aio("s0", &bench.file("store", 256), 512);
    target.store("store0", "s0", CHUNK_KIB);
    target.volume("vol0", "m0", "store0", &json!({"policy": "idle", "idle_ms": 1}));
    let mut writer = Writer::fill(&bench, &target, &["vol0"]);
    let mut expected = Vec::new();
    let mut take = |target: &Process, writer: &mut Writer<'_>, name: &'static str| {
        // Few enough that snapshots share most chunks.
        writer.start(4, 5000);
        writer.progress(40);
        writer.stop();
        let volume = target.dump("vol0");
        let snapshot = target.snapshot("vol0", name);
        assert_eq!(snapshot["state"], "complete", "{snapshot}");
        expected.push((name, volume));
    };
    for name in ["a", "b", "c", "d", "e"] {
        take(&target, &mut writer, name);
    }
    // Zeros take no slot, nor does their hand-over.
    assert_eq!(target.io("vol0", "write_zeroes", 0, 8 * CHUNK_BYTES, 0)["ok"], true);
    take(&target, &mut writer, "f");
    for gone in ["c", "f", "a", "d"] {
        target.snapshot_delete("vol0", gone);
        expected.retain(|(name, _)| *name != gone);
        for (name, bytes) in &expected {
            let held = target.dump(&format!("vol0@{name}"));
            assert!(held == *bytes, "{name} changed when {gone} was deleted");
        }
        target.check_slots();
        if gone == "f" {
            // What f alone held is needed by the next one.
            let volume = target.dump("vol0");
            target.snapshot("vol0", "g");
            expected.push(("g", volume));
        }
    }
    for (name, _) in expected {
        target.snapshot_delete("vol0", name);
    }
    target.check_slots();
    let slots = &target.call("presnap_get_stores", json!({}))[0]["slots"];
    assert_eq!(slots["owned"], 0, "{slots}");
    target.stop();
    assert_eq!(check_catalog(&bench.path("store")).rows, 0);
}

/// Write zeroes, unmap, flush and reset while the snapshot completes: in the volume, not in the
/// snapshot.
#[test]
fn commands_other_than_writes_stay_out_of_a_completing_snapshot() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    target.malloc("m0", VOLUME_MIB, 512);
    slow_store(&target, &bench);
    target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    Writer::fill(&bench, &target, &["vol0"]);
    let mut expected = target.dump("vol0");
    slow_down(&target, Duration::from_millis(100));
    target.snapshot_cut("vol0", "a");
    let io = |op: &str, offset: u64, bytes: u64| {
        let params =
            json!({"bdev": "vol0", "op": op, "offset": offset, "bytes": bytes, "fill": 0x5A});
        target.call_start("test_io", params)
    };
    let (zeroed, unmapped, written) =
        (300 * CHUNK_BYTES + 4096, 400 * CHUNK_BYTES, 200 * CHUNK_BYTES);
    let commands = [
        io("write_zeroes", zeroed, 3 * CHUNK_BYTES),
        io("unmap", unmapped, 2 * CHUNK_BYTES),
        io("write", written, 4096),
        io("flush", 0, 0),
    ];
    for command in commands {
        let result = command.join().expect("no panic").expect("answered");
        assert_eq!(result["ok"], true, "{result}");
    }
    let during = target.dump("vol0@a");
    // A write that waits when the reset comes is done entirely or not at all; it ends at once.
    let waiting = io("write", 500 * CHUNK_BYTES, 4096);
    let reset = io("reset", 0, 0).join().expect("no panic").expect("answered");
    assert_eq!(reset["ok"], true, "{reset}");
    let waiting = waiting.join().expect("no panic").expect("answered");
    let snapshot = target.get_snapshot("vol0", "a").expect("there");
    assert_eq!(snapshot["state"], "completing", "too late to show anything: {snapshot}");
    slow_down(&target, Duration::ZERO);
    let snapshot = target.snapshot_ended("vol0", "a");
    assert_eq!(snapshot["state"], "complete", "{snapshot}");
    assert!(during == expected, "the snapshot has later commands in it while it completes");
    assert!(target.dump("vol0@a") == expected, "the snapshot has later commands in it");

    let mut set = |at: u64, len: u64, byte: u8| expected[at as usize..][..len as usize].fill(byte);
    set(zeroed, 3 * CHUNK_BYTES, 0);
    set(unmapped, 2 * CHUNK_BYTES, 0);
    set(written, 4096, 0x5A);
    let volume = target.dump("vol0");
    if waiting["ok"] == true {
        set(500 * CHUNK_BYTES, 4096, 0x5A);
    }
    let first = volume.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(first, None, "the volume lacks a command ({waiting})");
    target.stop();
}

/// The files of a target's hugepages lose their names, so that nothing is left of them. Others could not have
/// the memory before another SPDK process starts.
///
/// Fails when they are not removed, when the target is up (for one that is killed) and when it ends (for what
/// it took meanwhile).
#[test]
fn no_files_of_hugepages_are_left() {
    let bench = Bench::new();
    for killed in [false, true] {
        let target = bench.target("target", &[]);
        let pid = target.pid();
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its memory");
        assert!(maps.contains(&format!("spdk_pid{pid}map_")), "no hugepages: {maps}");
        // It may answer a moment before.
        wait_for("the names to go while it runs", Duration::from_secs(10), || {
            hugepage_files(pid).is_empty().then_some(())
        });
        if killed {
            target.kill();
        } else {
            // More than it took at its start.
            target.malloc("m0", 1024, 512);
            assert_ne!(hugepage_files(pid).len(), 0);
            target.call("bdev_malloc_delete", json!({"name": "m0"}));
            target.malloc("m0", 1024, 512);
            target.stop();
        }
        assert_eq!(hugepage_files(pid).len(), 0);
    }
}
