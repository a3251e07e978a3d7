//! A store's copies against their checksums: what is damaged is found, named and never read as right;
//! what is not stays readable. What a test breaks it breaks in the store's file, behind the target's back.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use presnap::rpc::Errno;
use presnap::store::superblock::layout;
use serde_json::{Value, json};

use crate::cut::{CHUNK_KIB, VOLUME_MIB, Writer};
use crate::harness::{Bench, Process, check_catalog, wait_for};
use crate::initiator::{HOST, Initiator};

const CHUNK_BYTES: u64 = CHUNK_KIB as u64 * 1024;
/// "Unrecovered Read Error" (media).
const UNRECOVERED_READ: (u8, u8) = (2, 0x81);
const SOON: Duration = Duration::from_secs(20);

/// A store in a file, and a volume with a master in another.
struct Bed {
    bench: Bench,
    target: Process,
    store: PathBuf,
    master: PathBuf,
}

impl Bed {
    fn new() -> Self {
        Self::with_store(256)
    }

    fn with_store(mib: u64) -> Self {
        let bench = Bench::new();
        let (store, master) = (bench.file("store", mib), bench.file("master", VOLUME_MIB));
        let target = bench.agent("target", "0x1");
        target.aio("m0", &master, 512);
        target.aio("s0", &store, 512);
        target.store("store0", "s0", CHUNK_KIB);
        target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
        Self { bench, target, store, master }
    }

    /// Starts the target anew.
    fn restart(self) -> Self {
        let Self { bench, target, store, master } = self;
        target.stop();
        check_catalog(&store);
        let target = bench.agent("target", "0x1");
        target.aio("m0", &master, 512);
        target.aio("s0", &store, 512);
        target.call("presnap_store_load", json!({"bdev": "s0"}));
        Self { bench, target, store, master }
    }

    /// Fills chunks with `fill`, one more for each.
    fn write(&self, chunks: std::ops::Range<u64>, fill: u8) {
        for (chunk, fill) in chunks.zip(fill..) {
            let at = chunk * CHUNK_BYTES;
            let written = self.target.io("vol0", "write", at, CHUNK_BYTES, fill);
            assert_eq!(written["ok"], true, "{written}");
        }
    }

    /// The store's file, and where its slots begin.
    fn slots(&self) -> (File, u64) {
        let store = File::options().read(true).write(true).open(&self.store).expect("the store");
        let mut offset = [0; 8];
        store.read_exact_at(&mut offset, layout::AT_SLOTS_OFFSET as u64).expect("a superblock");
        (store, u64::from_le_bytes(offset))
    }

    /// The slots that hold nothing but `fill`.
    fn slots_of(&self, fill: u8) -> Vec<u64> {
        let (store, begin) = self.slots();
        let end = store.metadata().expect("its size").len();
        let mut bytes = vec![0; CHUNK_BYTES as usize];
        let is_it = |slot: &u64| {
            store.read_exact_at(&mut bytes, begin + slot * CHUNK_BYTES).expect("a slot");
            bytes.iter().all(|byte| *byte == fill)
        };
        (0..(end - begin) / CHUNK_BYTES).filter(is_it).collect()
    }

    /// Writes to a slot, past the target.
    fn poke(&self, slot: u64, within: u64, bytes: &[u8]) {
        let (store, begin) = self.slots();
        store.write_all_at(bytes, begin + slot * CHUNK_BYTES + within).expect("written");
        store.sync_all().expect("on the disk");
    }

    /// Flips one bit of the slot that holds nothing but `fill`, and says which it is.
    fn damage(&self, fill: u8) -> u64 {
        let [slot] = self.slots_of(fill)[..] else { panic!("one slot holds {fill}") };
        self.poke(slot, 12_345, &[fill ^ 0x10]);
        slot
    }

    fn try_scrub(&self, more: &Value) -> Result<Value, presnap::rpc::RpcError> {
        let mut params = json!({"name": "store0"});
        for (key, value) in more.as_object().expect("an object") {
            params[key] = value.clone();
        }
        self.target.try_call("presnap_store_scrub", params)
    }

    /// A whole scrub, as fast as can be: found, repaired, staged copies dropped, damaged now.
    fn scrub(&self) -> [u64; 4] {
        let scrub = self.try_scrub(&json!({"mbytes_per_sec": 0, "wait": true})).expect("scrubbed");
        assert_eq!(scrub["state"], "done", "{scrub}");
        counts(&scrub)
    }

    fn status(&self) -> Value {
        self.try_scrub(&json!({"action": "status"})).expect("a status")
    }

    /// Lines of the log that say so of a slot.
    fn log_lines(&self, words: &str) -> usize {
        self.target.log().lines().filter(|line| line.contains(words)).count()
    }

    /// First byte of a chunk of a snapshot, or the status, over NVMe/TCP.
    fn read(&self, snapshot: &str, chunk: u64) -> Result<u8, (u8, u8)> {
        let export = self.target.export("vol0", snapshot);
        let read = Initiator::connect(export.ports[0], &export.nqn, HOST)
            .and_then(|mut host| host.read(chunk * CHUNK_BYTES / 512, 8))
            .map(|data| data[0])
            .map_err(|error| error.status().expect("a status"));
        let name = json!({"volume": "vol0", "name": snapshot});
        self.target.call("presnap_snapshot_unexport", name);
        read
    }
}

fn counts(scrub: &Value) -> [u64; 4] {
    ["found", "repaired", "staged_dropped", "damaged"]
        .map(|name| scrub[name].as_u64().expect("a count"))
}

/// Slot, chunk and snapshots of what is damaged.
fn damaged(scrub: &Value) -> Vec<(u64, u64, Value)> {
    let slots = scrub["damaged_slots"].as_array().expect("a list");
    let number = |slot: &Value, name: &str| slot[name].as_u64().expect("a number");
    slots
        .iter()
        .map(|slot| {
            let chunk = number(slot, "chunk_id");
            assert_eq!(slot["volume"], "vol0");
            assert_eq!(number(slot, "lba"), chunk * CHUNK_BYTES / 512);
            assert_eq!(number(slot, "blocks"), CHUNK_BYTES / 512);
            assert_eq!(number(slot, "offset"), chunk * CHUNK_BYTES);
            assert_eq!(number(slot, "bytes"), CHUNK_BYTES);
            (number(slot, "slot"), chunk, slot["snapshots"].clone())
        })
        .collect()
}

/// I4, where the device breaks it: never wrong data.
///
/// Fails when the read path does not ask, when the mark is not kept, when a freed slot keeps it, and
/// when each scrub finds the same slot anew.
#[test]
fn a_damaged_slot_is_found_named_and_never_read() {
    let bed = Bed::new();
    bed.write(0..8, 100);
    bed.target.snapshot("vol0", "a");
    bed.write(3..4, 203);
    bed.target.snapshot("vol0", "b");
    // Changed since: nothing to write them anew from.
    bed.write(3..6, 223);
    assert_eq!(bed.status()["state"], "none");
    assert_eq!(bed.scrub(), [0, 0, 0, 0]);

    let (only_a, both) = (bed.damage(103), bed.damage(105));
    let expected = |first: Value| {
        let mut expected = vec![(only_a, 3, json!(["a"])), (both, 5, first)];
        expected.sort_by_key(|(slot, ..)| *slot);
        expected
    };
    assert_eq!(bed.scrub(), [2, 0, 0, 2]);
    assert_eq!(damaged(&bed.status()), expected(json!(["a", "b"])));
    let store = bed.target.call("presnap_get_stores", json!({}))[0].clone();
    assert_eq!((&store["damaged_slots"], &store["scrub"]), (&json!(2), &json!("done")));
    for (snapshot, chunk, read) in [
        ("a", 2, Ok(102)),
        ("a", 3, Err(UNRECOVERED_READ)),
        ("a", 4, Ok(104)),
        ("a", 5, Err(UNRECOVERED_READ)),
        ("a", 6, Ok(106)),
        ("b", 3, Ok(203)),
        ("b", 5, Err(UNRECOVERED_READ)),
        ("b", 9, Ok(0)),
    ] {
        assert_eq!(bed.read(snapshot, chunk), read, "chunk {chunk} of {snapshot}");
    }
    // Nothing new, and nothing said again.
    assert_eq!(bed.scrub(), [0, 0, 0, 2]);
    assert_eq!(bed.log_lines("a slot is damaged"), 2, "{}", bed.target.log());

    let bed = bed.restart();
    assert_eq!(damaged(&bed.status()), expected(json!(["a", "b"])));
    assert_eq!(bed.read("b", 5), Err(UNRECOVERED_READ));
    assert_eq!(bed.read("b", 6), Ok(106));
    // The one that both have goes over to b, the other is free.
    bed.target.snapshot_delete("vol0", "a");
    assert_eq!(damaged(&bed.status()), [(both, 5, json!(["b"]))]);
    let bed = bed.restart();
    assert_eq!(damaged(&bed.status()), [(both, 5, json!(["b"]))]);
    bed.target.snapshot_delete("vol0", "b");
    assert_eq!(damaged(&bed.status()), []);

    // The slots are used again, and what is in them is right.
    let bed = bed.restart();
    bed.target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    bed.target.snapshot("vol0", "c");
    assert_eq!(bed.scrub(), [0, 0, 0, 0]);
    assert!(bed.target.dump("vol0@c") == bed.target.dump("vol0"), "the snapshot is the volume");
    bed.target.check_slots();
    bed.target.stop();
}

/// What the master still has is written anew; what it does not have any more is copied for the next
/// snapshot, which would have taken the damaged slot over.
///
/// Fails when either is left out.
#[test]
fn a_damaged_slot_is_written_anew_or_not_taken_over() {
    let bed = Bed::new();
    bed.write(0..8, 100);
    bed.target.snapshot("vol0", "a");
    bed.damage(104);
    assert_eq!(bed.scrub(), [1, 1, 0, 0]);
    assert_eq!(bed.read("a", 4), Ok(104));
    assert_eq!(bed.slots_of(104).len(), 1, "the bytes are back");
    assert!(bed.target.dump("vol0@a") == bed.target.dump("vol0"));

    // The master changes without the volume's knowing: as a lost write would.
    let slot = bed.damage(105);
    let master = File::options().write(true).open(&bed.master).expect("the master");
    master.write_all_at(&[77; 512], 5 * CHUNK_BYTES).expect("written");
    master.sync_all().expect("on the disk");
    assert_eq!(bed.scrub(), [1, 0, 0, 1]);
    let snapshot = bed.target.snapshot("vol0", "b");
    assert_eq!(snapshot["chunks"]["copied"], 1, "{snapshot}");
    assert_eq!(damaged(&bed.status()), [(slot, 5, json!(["a"]))]);
    assert_eq!(bed.read("b", 5), Ok(77));
    assert_eq!(bed.read("a", 5), Err(UNRECOVERED_READ));

    // Somebody puts the bytes back, from a mirror say.
    bed.target.snapshot_delete("vol0", "b");
    bed.poke(slot, 0, &vec![105; CHUNK_BYTES as usize]);
    assert_eq!(bed.scrub(), [0, 1, 0, 0]);
    assert_eq!(bed.read("a", 5), Ok(105));
    bed.target.check_slots();
    let bed = bed.restart();
    assert_eq!(bed.status()["damaged"], 0);
    bed.target.stop();
}

/// The same with the volume detached: the next snapshot does not take over what is damaged.
#[test]
fn what_is_damaged_while_the_volume_is_detached_is_copied_again() {
    let bed = Bed::new();
    bed.write(0..8, 100);
    bed.target.snapshot("vol0", "a");
    bed.target.call("bdev_presnap_delete", json!({"name": "vol0"}));
    let slot = bed.damage(104);
    assert_eq!(bed.scrub(), [1, 0, 0, 1]);
    bed.target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    let snapshot = bed.target.snapshot("vol0", "b");
    assert_eq!(snapshot["chunks"]["copied"], 1, "{snapshot}");
    assert_eq!(damaged(&bed.status()), [(slot, 4, json!(["a"]))]);
    assert!(bed.target.dump("vol0@b") == bed.target.dump("vol0"));
    bed.target.check_slots();
    bed.target.stop();
}

/// Staged copies: dropped and made again, also those that a clean stop has saved.
///
/// Fails when they stay, for then a snapshot adopts them.
#[test]
fn a_damaged_staged_copy_is_never_adopted() {
    let bed = Bed::new();
    let valid = |count: u64| {
        wait_for("all copies to be right", SOON, || {
            (bed.target.stats()["staging"]["valid"] == count).then_some(())
        });
    };
    bed.target
        .call("presnap_set_policy", json!({"volume": "vol0", "policy": "idle", "idle_ms": 1}));
    bed.write(0..8, 100);
    // All chunks were dirty to begin with; those of zeros take no slot.
    valid(8);
    bed.damage(102);
    assert_eq!(bed.scrub(), [0, 0, 1, 0]);
    valid(8);
    bed.target.snapshot("vol0", "a");
    let volume = bed.target.dump("vol0");
    assert!(bed.target.dump("vol0@a") == volume, "a damaged copy was adopted");

    bed.write(0..8, 150);
    valid(8);
    bed.target.call("bdev_presnap_delete", json!({"name": "vol0"}));
    bed.damage(153);
    assert_eq!(bed.scrub(), [0, 0, 1, 0]);
    bed.target.check_slots();
    bed.target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    let snapshot = bed.target.snapshot("vol0", "b");
    assert_eq!(snapshot["chunks"]["adopted"], 7, "{snapshot}");
    let volume = bed.target.dump("vol0");
    assert!(bed.target.dump("vol0@b") == volume, "a damaged copy was adopted");
    assert_eq!(bed.scrub(), [0, 0, 0, 0]);
    bed.target.check_slots();
    bed.target.stop();
}

/// Fails when reads are not held back, when a second scrub starts, and when a stop does not end it.
#[test]
fn a_scrub_keeps_its_rate_and_can_be_stopped() {
    let bed = Bed::new();
    let chunks = VOLUME_MIB * 1024 / u64::from(CHUNK_KIB);
    for chunk in 0..chunks {
        bed.write(chunk..chunk + 1, 1 + (chunk % 200) as u8);
    }
    bed.target.snapshot("vol0", "a");
    let started = Instant::now();
    let scrub = bed.try_scrub(&json!({"mbytes_per_sec": 16, "wait": true})).expect("scrubbed");
    let took = started.elapsed();
    assert_eq!((&scrub["state"], &scrub["bytes_read"]), (&json!("done"), &json!(VOLUME_MIB << 20)));
    // 32 MiB at 16 MiB/s; the last piece is not waited for, and one may come early.
    assert!(took >= Duration::from_millis(1900), "32 MiB in {took:?}");

    let slow = json!({"mbytes_per_sec": 1});
    let scrub = bed.try_scrub(&slow).expect("started");
    assert_eq!((&scrub["state"], &scrub["slots"]), (&json!("running"), &json!(chunks)));
    wait_for("some progress", SOON, || {
        (bed.status()["progress"]["percent"].as_u64() > Some(0)).then_some(())
    });
    let left = bed.status()["progress"]["left_ms"].as_u64().expect("a rate is known");
    assert!((10_000..60_000).contains(&left), "{left} ms left of 32 s");
    let busy = bed.try_scrub(&slow).expect_err("one at a time");
    assert_eq!(busy.code, Errno::Busy.code());
    let words = ["store 'store0'", "already", "% of 512 slots", "stop it first"];
    assert!(words.iter().all(|word| busy.message.contains(word)), "{busy}");
    let scrub = bed.try_scrub(&json!({"action": "stop"})).expect("stopped");
    assert_eq!(scrub["state"], "stopped", "{scrub}");
    let (read, ms) = (scrub["bytes_read"].as_u64(), scrub["took_ms"].as_u64());
    let (read, ms) = (read.expect("a count"), ms.expect("a time"));
    let allowed = (ms + 20) * (1 << 20) / 1000 + CHUNK_BYTES;
    assert!(read <= allowed, "{read} bytes in {ms} ms at 1 MiB/s");
    // Nothing to stop is no error.
    assert_eq!(bed.try_scrub(&json!({"action": "stop"})).expect("stopped")["state"], "stopped");

    // With its store, its device and its target it ends, and holds none of them up.
    bed.try_scrub(&slow).expect("started");
    bed.target.call("bdev_presnap_delete", json!({"name": "vol0"}));
    let started = Instant::now();
    bed.target.call("presnap_store_unload", json!({"name": "store0"}));
    assert!(started.elapsed() < Duration::from_secs(3), "unloading took {:?}", started.elapsed());
    bed.try_scrub(&slow).expect_err("no such store");
    bed.target.call("presnap_store_load", json!({"bdev": "s0"}));
    assert_eq!(bed.status()["state"], "none");
    bed.try_scrub(&slow).expect("started");
    bed.target.call("bdev_aio_delete", json!({"name": "s0"}));
    wait_for("the store to be gone", SOON, || {
        bed.target.call("presnap_get_stores", json!({})).as_array()?.is_empty().then_some(())
    });
    assert_eq!(bed.log_lines("scrub failed"), 1, "{}", bed.target.log());
    assert_eq!(bed.log_lines("a slot is damaged"), 0, "{}", bed.target.log());
    bed.target.aio("s0", &bed.store, 512);
    wait_for("the store to be there", SOON, || bed.try_scrub(&slow).ok());
    let started = Instant::now();
    bed.target.stop();
    assert!(started.elapsed() < Duration::from_secs(8), "stopping took {:?}", started.elapsed());
}

/// A slot on which reads fail is damaged; a device on which all of them do is not.
#[test]
fn an_unreadable_slot_is_damaged_and_an_unreadable_device_is_not() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    target.malloc("m0", VOLUME_MIB, 512);
    let store = bench.file("store", 256);
    target.aio("s0", &store, 512);
    target.call("bdev_error_create", json!({"base_name": "s0"}));
    target.store("store0", "EE_s0", CHUNK_KIB);
    target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    let bed = Bed { bench: bench.clone(), target, store, master: bench.path("none") };
    bed.write(0..8, 100);
    bed.target.snapshot("vol0", "a");
    bed.write(0..8, 150);
    let inject = |count: u64| {
        let params = json!({"name": "EE_s0", "io_type": "read", "error_type": "failure",
            "num": count});
        bed.target.call("bdev_error_inject_error", params);
    };
    let quick = json!({"mbytes_per_sec": 0, "wait": true});
    inject(1_000_000);
    let scrub = bed.try_scrub(&quick).expect("an answer");
    assert_eq!(scrub["state"], "failed", "{scrub}");
    assert!(scrub["reason"].as_str().expect("why").contains("'EE_s0' cannot be read"), "{scrub}");
    assert_eq!(counts(&scrub), [0, 0, 0, 0]);
    inject(0);
    // Both reads of the first slot.
    inject(2);
    let scrub = bed.try_scrub(&quick).expect("an answer");
    assert_eq!((&scrub["state"], counts(&scrub)), (&json!("done"), [1, 0, 0, 1]), "{scrub}");
    let chunk = damaged(&scrub)[0].1;
    assert_eq!(bed.read("a", chunk), Err(UNRECOVERED_READ));
    // It was the way to the device.
    assert_eq!(bed.scrub(), [0, 1, 0, 0]);
    assert_eq!(bed.read("a", chunk), Ok(100 + chunk as u8));
    bed.target.stop();
}

/// What a slow scrub read of the catalog may be out of date when it comes to the slot: the snapshot is
/// deleted, the slot is another's, the staged copy was refreshed.
///
/// Fails when a slot that looks damaged is not looked for once more in the snapshots, and a staged copy
/// not in the engine.
#[test]
fn what_changes_while_it_is_scrubbed_is_not_damaged() {
    // Room for two snapshots of everything and a little more, so that slots are used again.
    let bed = Bed::with_store(90);
    let fill = |fill: u8| {
        for part in 0..32 {
            let written = bed.target.io("vol0", "write", part << 20, 1 << 20, fill);
            assert_eq!(written["ok"], true, "{written}");
        }
    };
    fill(1);
    bed.target.snapshot("vol0", "a");
    fill(2);
    bed.target.snapshot("vol0", "b");
    fill(3);
    let slow = json!({"mbytes_per_sec": 8});
    bed.try_scrub(&slow).expect("started");
    wait_for("the first slots", SOON, || (bed.status()["bytes_read"] != 0).then_some(()));
    bed.target.snapshot_delete("vol0", "a");
    bed.target.snapshot("vol0", "c");
    assert_eq!(bed.status()["state"], "running", "too late to show anything");
    let scrub = bed.try_scrub(&json!({"action": "status", "wait": true})).expect("scrubbed");
    assert_eq!((&scrub["state"], counts(&scrub)), (&json!("done"), [0, 0, 0, 0]), "{scrub}");

    for snapshot in ["b", "c"] {
        bed.target.snapshot_delete("vol0", snapshot);
    }
    let idle = json!({"volume": "vol0", "policy": "idle", "idle_ms": 1});
    bed.target.call("presnap_set_policy", idle);
    wait_for("all to be staged", SOON, || {
        (bed.target.stats()["staging"]["valid"] == 512).then_some(())
    });
    bed.try_scrub(&json!({"mbytes_per_sec": 4})).expect("started");
    let before = bed.target.stats()["staging"]["refreshed"].as_u64().expect("a count");
    for number in 0_u64.. {
        if bed.status()["state"] != "running" {
            break;
        }
        // All chunks in turn, each a block.
        for chunk in 0..512 {
            let (at, value) = (chunk * CHUNK_BYTES, (number % 200) as u8);
            bed.target.io("vol0", "write", at, 4096, value);
        }
    }
    let refreshed = bed.target.stats()["staging"]["refreshed"].as_u64().expect("a count") - before;
    assert!(refreshed > 100, "{refreshed} copies were refreshed meanwhile");
    assert_eq!(counts(&bed.status()), [0, 0, 0, 0], "{}", bed.status());
    bed.target.check_slots();
    bed.target.stop();
}

/// Snapshots come and go, copies are staged, refreshed, adopted and freed, and nothing is damaged.
#[test]
fn a_scrub_under_load_finds_no_damage() {
    let bed = Bed::new();
    let idle = json!({"volume": "vol0", "policy": "idle", "idle_ms": 1});
    bed.target.call("presnap_set_policy", idle);
    let mut writer = Writer::fill(&bed.bench, &bed.target, &["vol0"]);
    writer.start(8, 300);
    bed.target.snapshot("vol0", "s0");
    let (mut scrubs, mut bytes) = (0, 0);
    for round in 1..40 {
        let scrubbing = bed.target.call_start(
            "presnap_store_scrub",
            json!({"name": "store0", "mbytes_per_sec": 0, "wait": true}),
        );
        writer.progress(50);
        bed.target.snapshot("vol0", &format!("s{round}"));
        bed.target.snapshot_delete("vol0", &format!("s{}", round - 1));
        let scrub = scrubbing.join().expect("no panic").expect("scrubbed");
        assert_eq!((&scrub["state"], counts(&scrub)), (&json!("done"), [0, 0, 0, 0]), "{scrub}");
        (scrubs, bytes) = (scrubs + 1, bytes + scrub["bytes_read"].as_u64().expect("a count"));
    }
    writer.stop();
    eprintln!("{scrubs} scrubs read {} MiB", bytes >> 20);
    assert!(bytes > 100 << 20, "{scrubs} scrubs read {bytes} bytes");
    assert_eq!(bed.scrub(), [0, 0, 0, 0]);
    bed.target.check_slots();
    bed.target.stop();
}
