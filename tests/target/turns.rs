//! What takes turns: deletions of snapshots, what loads or saves a volume's dirty chunks, and what closes
//! a store. Each test has one of them under way, held up by a slow device, when another comes.
//!
//! What is lost when two do not wait for each other are the chunks that a deletion makes dirty: the next
//! snapshot lacks them, so that is what is looked at, after a start that trusts what was saved.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use presnap::rpc::Errno;
use serde_json::{Value, json};

use crate::cut::{CHUNK_KIB, slow_down, slow_store};
use crate::harness::{Bench, Process, wait_for};
use crate::lifecycle::staged;

const CHUNK_BYTES: u64 = CHUNK_KIB as u64 * 1024;
const VOLUME_MIB: u64 = 16;
/// Chunks that the newest snapshot has and the one before has not.
const CHUNKS: u64 = 8;
const SOON: Duration = Duration::from_secs(20);
/// What each write to the store takes, of which a transaction has several: long enough for whatever is to
/// come meanwhile.
const SLOW: Duration = Duration::from_millis(200);
/// What a read of the master takes, of which an attach has at least one.
const SLOW_READ_US: u64 = 3_000_000;

/// A volume on a master and a store that can be made slow, with snapshot `a` of zeros and `b` of
/// [`CHUNKS`] more.
fn two_snapshots(bench: &Bench, target: &Process) {
    target.aio("m0", &bench.file("master", VOLUME_MIB), 512);
    delay(target, "m0", "slowm");
    slow_store(target, bench);
    attach(target);
    target.snapshot("vol0", "a");
    for chunk in 0..CHUNKS {
        let io = target.io("vol0", "write", chunk * CHUNK_BYTES, CHUNK_BYTES, 0x11);
        assert_eq!(io["ok"], true, "{io}");
    }
    let b = target.snapshot("vol0", "b");
    assert_eq!(b["chunks"]["required"], CHUNKS, "{b}");
}

fn delay(target: &Process, base: &str, name: &str) {
    target.call(
        "bdev_delay_create",
        json!({"base_bdev_name": base, "name": name, "avg_read_latency": 0,
            "p99_read_latency": 0, "avg_write_latency": 0, "p99_write_latency": 0}),
    );
}

fn slow_reads(target: &Process, latency_us: u64) {
    for kind in ["avg_read", "p99_read"] {
        let params = json!({"delay_bdev_name": "slowm", "latency_type": kind,
            "latency_us": latency_us});
        target.call("bdev_delay_update_latency", params);
    }
}

fn attach(target: &Process) {
    target.volume("vol0", "slowm", "store0", &json!({"policy": "off"}));
}

fn bdev(target: &Process, name: &str) -> Option<Value> {
    Some(target.try_call("bdev_get_bdevs", json!({"name": name})).ok()?[0].clone())
}

fn b() -> Value {
    json!({"volume": "vol0", "name": "b"})
}

/// A request that has reached the target, and is not answered yet.
struct Sent(UnixStream);

impl Sent {
    fn new(target: &Process, method: &str, params: &Value) -> Self {
        let mut stream = UnixStream::connect(&target.socket).expect("connected");
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        stream.write_all(request.to_string().as_bytes()).expect("sent");
        // The target looks at its connections in turn: what it answers now comes after that.
        target.call("framework_get_reactors", json!({}));
        Self(stream)
    }

    fn answer(self) -> Value {
        self.0.set_read_timeout(Some(Duration::from_mins(1))).expect("set");
        let mut answers = serde_json::Deserializer::from_reader(self.0).into_iter::<Value>();
        answers.next().expect("an answer").expect("JSON")
    }

    fn works(self) {
        let answer = self.answer();
        assert!(answer["error"].is_null(), "{answer}");
    }
}

/// Starts to delete `b`, whose transaction then takes a while.
fn slow_deletion(target: &Process) -> Sent {
    slow_down(target, SLOW);
    let deletion = Sent::new(target, "presnap_snapshot_delete", &b());
    // The bdev goes first.
    wait_for("b's bdev goes", SOON, || bdev(target, "vol0@b").is_none().then_some(()));
    deletion
}

/// Starts to attach the volume, which then takes a while.
fn slow_attach(target: &Process) -> Sent {
    slow_reads(target, SLOW_READ_US);
    let volume = json!({"name": "vol0", "base_bdev": "slowm", "store": "store0", "policy": "off"});
    let attach = Sent::new(target, "bdev_presnap_create", &volume);
    // What was saved is loaded when the master is claimed, then some of the master is read.
    wait_for("the master is claimed", SOON, || {
        (bdev(target, "slowm")?["claimed"] == true).then_some(())
    });
    attach
}

fn assert_under_way(target: &Process) {
    let b = target.get_snapshot("vol0", "b");
    assert!(b.is_some(), "the deletion was over too soon to show anything");
}

/// The next snapshot has all that the volume has, and no slot is lost.
fn assert_nothing_lost(target: &Process) {
    let volume = target.dump("vol0");
    assert!(volume[..(CHUNKS * CHUNK_BYTES) as usize].iter().all(|&byte| byte == 0x11));
    let c = target.snapshot("vol0", "c");
    assert!(target.dump("vol0@c") == volume, "the next snapshot lacks what only b had: {c}");
    assert_eq!(c["chunks"]["required"], CHUNKS, "{c}");
    assert!(target.dump("vol0@a").iter().all(|&byte| byte == 0), "a changed");
    target.check_slots();
}

/// I7: a deletion is under way when the volume is detached. The dirty chunks are saved after it.
///
/// Fails when the deletion or what saves the dirty chunks does not take turns.
#[test]
fn a_volume_that_is_detached_waits_for_a_deletion() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    two_snapshots(&bench, &target);
    let deletion = slow_deletion(&target);
    let detach = Sent::new(&target, "bdev_presnap_delete", &json!({"name": "vol0"}));
    wait_for("vol0 goes", SOON, || bdev(&target, "vol0").is_none().then_some(()));
    assert_under_way(&target);
    deletion.works();
    detach.works();
    slow_down(&target, Duration::ZERO);
    attach(&target);
    assert_nothing_lost(&target);
    target.stop();
}

/// I7: the same when the target is stopped, and started again.
///
/// Fails when the deletion or what saves the dirty chunks does not take turns.
#[test]
fn a_clean_stop_waits_for_a_deletion() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    two_snapshots(&bench, &target);
    let deletion = slow_deletion(&target);
    assert_under_way(&target);
    target.stop();
    drop(deletion);

    let target = bench.agent("target", "0x1");
    target.aio("m0", &bench.path("master"), 512);
    delay(&target, "m0", "slowm");
    target.aio("s0", &bench.path("store"), 512);
    target.call("presnap_store_load", json!({"bdev": "s0"}));
    attach(&target);
    assert!(target.get_snapshot("vol0", "b").is_none(), "it was deleted");
    assert_nothing_lost(&target);
    target.stop();
}

/// I7: a volume is being attached when a snapshot is to be deleted. Its chunks become dirty in the gate,
/// which has taken over from what was saved.
///
/// Fails when the attach does not take turns. (The deletion waits before it takes its own, too.)
#[test]
fn a_deletion_waits_for_an_attach() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    two_snapshots(&bench, &target);
    target.call("bdev_presnap_delete", json!({"name": "vol0"}));
    let attach = slow_attach(&target);
    let deletion = Sent::new(&target, "presnap_snapshot_delete", &b());
    assert!(bdev(&target, "vol0").is_none(), "attached too soon to show anything");
    attach.works();
    deletion.works();
    slow_reads(&target, 0);
    assert_nothing_lost(&target);
    target.stop();
}

/// A volume is being attached: neither is it attached once more meanwhile, nor is its store closed.
///
/// Fails when an attach does not keep others of its name out (`World::attaching`).
#[test]
fn an_attach_keeps_others_out() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    two_snapshots(&bench, &target);
    target.call("bdev_presnap_delete", json!({"name": "vol0"}));
    target.malloc("m1", VOLUME_MIB, 512);
    let attach = slow_attach(&target);
    let other = json!({"name": "vol0", "base_bdev": "m1", "store": "store0"});
    let refused = |method: &str, params: Value, code: Errno| {
        let error = target.try_call(method, params).expect_err("an attach is under way");
        assert_eq!(error.code, code.code(), "{error}");
    };
    refused("bdev_presnap_create", other, Errno::Exist);
    for method in ["presnap_store_unload", "presnap_store_delete"] {
        refused(method, json!({"name": "store0"}), Errno::Busy);
    }
    refused("bdev_presnap_delete", json!({"name": "vol0"}), Errno::Busy);
    assert!(bdev(&target, "vol0").is_none(), "attached too soon to show anything");
    attach.works();
    slow_reads(&target, 0);
    assert_eq!(bdev(&target, "m1").expect("it stays")["claimed"], false);
    target.snapshot_delete("vol0", "b");
    assert_nothing_lost(&target);
    target.stop();
}

/// A snapshot gets the name of one that is being deleted.
///
/// Fails when a create does not wait for a deletion: it is refused for a name that is as good as free.
#[test]
fn a_snapshot_waits_for_the_deletion_of_another_of_its_name() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    two_snapshots(&bench, &target);
    let deletion = slow_deletion(&target);
    let again = Sent::new(&target, "presnap_snapshot_create", &b());
    assert_under_way(&target);
    deletion.works();
    slow_down(&target, Duration::ZERO);
    again.works();
    let b = target.get_snapshot("vol0", "b").expect("there");
    assert_eq!(b["chunks"]["required"], CHUNKS, "what the first had is dirty again: {b}");
    target.snapshot_delete("vol0", "b");
    assert_nothing_lost(&target);
    target.stop();
}

/// A volume without a bdev is to be forgotten while its last snapshot is being deleted.
///
/// Fails when the deletion or the forgetting does not take turns: it is refused for a snapshot that is as
/// good as gone.
#[test]
fn a_volume_is_forgotten_after_the_deletion_of_its_last_snapshot() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    two_snapshots(&bench, &target);
    target.snapshot_delete("vol0", "a");
    target.call("bdev_presnap_delete", json!({"name": "vol0"}));
    let deletion = slow_deletion(&target);
    let forgotten = Sent::new(&target, "bdev_presnap_delete", &json!({"name": "vol0"}));
    assert_under_way(&target);
    deletion.works();
    forgotten.works();
    slow_down(&target, Duration::ZERO);
    let store = target.call("presnap_get_stores", json!({}))[0].take();
    assert_eq!(store["volumes"], json!([]));
    assert_eq!(store["slots"]["free"], store["slots"]["total"], "{store}");
    target.stop();
}

/// A volume without snapshots is deleted and is being forgotten, when it is created again: it is refused, or
/// what is made would be forgotten under its feet. Then it can be made anew.
///
/// Fails when a deletion does not keep creates of its name out (`World::attaching`) while the store forgets
/// the volume.
#[test]
fn a_volume_is_not_created_while_it_is_forgotten() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    target.aio("m0", &bench.file("master", VOLUME_MIB), 512);
    delay(&target, "m0", "slowm");
    slow_store(&target, &bench);
    attach(&target);
    slow_down(&target, SLOW);
    let deletion = Sent::new(&target, "bdev_presnap_delete", &json!({"name": "vol0"}));
    // Its dirty chunks are saved by then, and the store's work begins.
    wait_for("the master is let go of", SOON, || {
        (bdev(&target, "slowm")?["claimed"] == false).then_some(())
    });
    let volume = json!({"name": "vol0", "base_bdev": "slowm", "store": "store0", "policy": "off"});
    let refused = target.try_call("bdev_presnap_create", volume).expect_err("being forgotten");
    assert_eq!(refused.code, Errno::Exist.code(), "{refused}");
    deletion.works();
    slow_down(&target, Duration::ZERO);
    let store = || target.call("presnap_get_stores", json!({}))[0].take();
    assert_eq!(store()["volumes"], json!([]));
    attach(&target);
    assert_eq!(target.snapshot("vol0", "a")["state"], "complete");
    let store = store();
    assert_eq!(store["volumes"].as_array().map(Vec::len), Some(1), "{store}");
    target.stop();
}

/// A volume's master goes while it is being attached. The volume goes, too, and nothing holds on to the
/// master.
///
/// Fails when the removal is not noticed for want of a volume that it could be told.
#[test]
fn a_master_that_goes_during_an_attach_takes_the_volume_along() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    two_snapshots(&bench, &target);
    target.call("bdev_presnap_delete", json!({"name": "vol0"}));
    let attaching = slow_attach(&target);
    let removal = Sent::new(&target, "bdev_delay_delete", &json!({"name": "slowm"}));
    assert!(bdev(&target, "vol0").is_none(), "attached too soon to show anything");
    attaching.works();
    removal.works();
    for name in ["vol0", "slowm"] {
        wait_for(&format!("{name} is gone"), SOON, || bdev(&target, name).is_none().then_some(()));
    }
    let store = target.call("presnap_get_stores", json!({}))[0].take();
    assert_eq!(store["volumes"][0]["attached"], false, "{store}");

    delay(&target, "m0", "slowm");
    attach(&target);
    target.snapshot_delete("vol0", "b");
    assert_nothing_lost(&target);
    target.stop();
}

/// Somebody makes a bdev of the volume's name while it is being attached, so that it cannot be registered.
/// The slots of its staged copies are free then: they are in memory only since it was opened.
///
/// Fails when they stay taken (I8), and when the master stays claimed.
#[test]
fn a_volume_that_cannot_be_registered_leaves_nothing() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    two_snapshots(&bench, &target);
    let idle = json!({"volume": "vol0", "policy": "idle", "idle_ms": 1});
    target.call("presnap_set_policy", idle);
    for chunk in 0..3 {
        let io = target.io("vol0", "write", chunk * CHUNK_BYTES, 512, 0x11);
        assert_eq!(io["ok"], true, "{io}");
    }
    staged(&target, 3);
    target.call("bdev_presnap_delete", json!({"name": "vol0"}));
    let slots = || target.call("presnap_get_stores", json!({}))[0]["slots"].take();
    let before = slots();
    assert_eq!(before["staged"], 3, "saved at the stop: {before}");
    let attaching = slow_attach(&target);
    target.malloc("vol0", 1, 512);
    let answer = attaching.answer();
    assert_eq!(answer["error"]["code"], Errno::Exist.code(), "{answer}");
    let after = slots();
    assert_eq!(after["staged"], 0, "{after}");
    let of = |slots: &Value, name: &str| slots[name].as_u64().expect("a count");
    assert_eq!(of(&after, "free"), of(&before, "free") + 3, "{after}");
    target.check_slots();

    slow_reads(&target, 0);
    target.call("bdev_malloc_delete", json!({"name": "vol0"}));
    attach(&target);
    target.snapshot_delete("vol0", "b");
    assert_nothing_lost(&target);
    target.stop();
}

/// A snapshot is deleted before it has come to its cut. It is given up, and its asker clears it away; the
/// deletion does not miss it.
///
/// Fails when the deletion looks for a snapshot that is gone by then.
#[test]
fn a_snapshot_is_deleted_before_its_cut() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    two_snapshots(&bench, &target);
    target.snapshot_delete("vol0", "b");
    slow_down(&target, SLOW);
    let c = json!({"volume": "vol0", "name": "c"});
    let create = Sent::new(&target, "presnap_snapshot_create", &c);
    let begun = wait_for("c is begun", SOON, || target.get_snapshot("vol0", "c"));
    let deletion = Sent::new(&target, "presnap_snapshot_delete", &c);
    assert_eq!(begun["state"], "completing", "{begun}");
    assert!(bdev(&target, "vol0@c").is_none(), "cut too soon to show anything");
    let answer = create.answer();
    let message = answer["error"]["message"].as_str().expect("a message");
    assert!(message.contains("deleted while it was being made"), "{message}");
    deletion.works();
    assert!(bdev(&target, "vol0@c").is_none(), "it came to a cut");
    slow_down(&target, Duration::ZERO);
    assert!(target.get_snapshot("vol0", "c").is_none(), "it was deleted");
    assert_nothing_lost(&target);
    target.stop();
}

/// A store is closed while a deletion is under way. No turn is needed: the catalog serves what is queued
/// before it ends.
#[test]
fn a_store_that_is_unloaded_ends_the_deletion_before() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    two_snapshots(&bench, &target);
    target.call("bdev_presnap_delete", json!({"name": "vol0"}));
    let deletion = slow_deletion(&target);
    let unload = Sent::new(&target, "presnap_store_unload", &json!({"name": "store0"}));
    assert_under_way(&target);
    deletion.works();
    unload.works();
    slow_down(&target, Duration::ZERO);
    target.call("presnap_store_load", json!({"bdev": "slow0"}));
    assert!(target.get_snapshot("vol0", "b").is_none(), "it was deleted");
    attach(&target);
    assert_nothing_lost(&target);
    target.stop();
}

/// A store's device goes while a deletion is under way, which fails for it. Nothing holds on to the
/// device, and when it is back the snapshot is there, or is not: as the catalog has it.
///
/// Fails when a deletion that failed brings its snapshot's bdev back although the store is closed.
#[test]
fn a_store_that_goes_takes_a_deletion_along() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    target.aio("m0", &bench.file("master", VOLUME_MIB), 512);
    delay(&target, "m0", "slowm");
    let image = bench.file("store", 256);
    target.aio("s0", &image, 512);
    delay(&target, "s0", "slow0");
    target.call("bdev_error_create", json!({"base_name": "slow0"}));
    target.store("store0", "EE_slow0", CHUNK_KIB);
    attach(&target);
    target.snapshot("vol0", "a");
    for chunk in 0..CHUNKS {
        let io = target.io("vol0", "write", chunk * CHUNK_BYTES, CHUNK_BYTES, 0x11);
        assert_eq!(io["ok"], true, "{io}");
    }
    target.snapshot("vol0", "b");
    let deletion = slow_deletion(&target);
    // The write under way still works, those after it do not.
    let failing =
        json!({"name": "EE_slow0", "io_type": "write", "error_type": "failure", "num": 1_000_000});
    target.call("bdev_error_inject_error", failing);
    assert_under_way(&target);
    let removal = Sent::new(&target, "bdev_aio_delete", &json!({"name": "s0"}));
    let answer = deletion.answer();
    assert!(answer["error"]["message"].is_string(), "{answer}");
    removal.works();
    wait_for("the store is closed", SOON, || {
        let stores = target.call("presnap_get_stores", json!({}));
        (stores == json!([])).then_some(())
    });
    for name in ["vol0@a", "vol0@b", "s0", "slow0", "EE_slow0"] {
        wait_for(&format!("{name} is gone"), SOON, || bdev(&target, name).is_none().then_some(()));
    }
    let io = target.io("vol0", "write", 0, CHUNK_BYTES, 0x11);
    assert_eq!(io["ok"], true, "the volume serves on: {io}");
    let refused = target.try_call("presnap_snapshot_create", b()).unwrap_err();
    assert_eq!(refused.code, Errno::NoDev.code(), "{refused}");

    target.call("bdev_presnap_delete", json!({"name": "vol0"}));
    target.aio("s0", &image, 512);
    // `delay` remembers its bdev, `error` does not.
    target.call("presnap_store_load", json!({"bdev": "slow0"}));
    attach(&target);
    let volume = target.dump("vol0");
    if target.get_snapshot("vol0", "b").is_some() {
        assert!(target.dump("vol0@b") == volume, "b changed");
    }
    target.snapshot("vol0", "c");
    assert!(target.dump("vol0@c") == volume, "the next snapshot is not the volume");
    assert!(target.dump("vol0@a").iter().all(|&byte| byte == 0), "a changed");
    target.check_slots();
    target.stop();
}

/// What each command takes of an opening that is looked at closely.
const OPENING_SLOW: Duration = Duration::from_millis(500);

/// Commands that the store's device has ended, flushes not among them.
fn commands_of(target: &Process, name: &str) -> u64 {
    let stats = target.call("bdev_get_iostat", json!({"name": name}));
    let count = |kind: &str| stats["bdevs"][0][kind].as_u64().expect("a count");
    count("num_read_ops") + count("num_write_ops")
}

/// Opens the store and tells how many commands are ended when the last one before it is open is under way;
/// after it come those that the answer needs.
fn commands_before_last(target: &Process, load: &Value) -> u64 {
    let before = commands_of(target, "slow0");
    let opening = Sent::new(target, "presnap_store_load", load);
    let (mut ended, mut since) = (0, Instant::now());
    loop {
        let now = commands_of(target, "slow0") - before;
        if target.try_call("presnap_get_stores", json!({"name": "store0"})).is_ok() {
            break;
        }
        if now != ended {
            (ended, since) = (now, Instant::now());
        }
    }
    opening.works();
    // Or the last one was ended, and the store's thread had yet to say that it has all it needs.
    if since.elapsed() < OPENING_SLOW / 2 { ended - 1 } else { ended }
}

/// A store's device goes while the last command of its opening is under way, so that opening works. The
/// store is lost all the same, and nothing holds on to the device.
///
/// Fails when the removal is not noticed for want of a store that it could be told.
#[test]
fn a_store_that_goes_as_its_opening_ends_is_lost() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x1");
    target.aio("s0", &bench.file("store", 256), 512);
    delay(&target, "s0", "slow0");
    target.store("store0", "slow0", CHUNK_KIB);
    let (load, unload) = (json!({"bdev": "slow0"}), json!({"name": "store0"}));
    // The second opening is like the third.
    target.call("presnap_store_unload", unload.clone());
    target.call("presnap_store_load", load.clone());
    target.call("presnap_store_unload", unload.clone());
    for kind in ["avg_read", "p99_read", "avg_write", "p99_write"] {
        let params = json!({"delay_bdev_name": "slow0", "latency_type": kind,
            "latency_us": OPENING_SLOW.as_micros() as u64});
        target.call("bdev_delay_update_latency", params);
    }
    let count = commands_before_last(&target, &load);
    target.call("presnap_store_unload", unload);
    let before_last = commands_of(&target, "slow0") + count;
    let opening = Sent::new(&target, "presnap_store_load", &load);
    wait_for("one command is left", Duration::from_mins(1), || {
        let ended = commands_of(&target, "slow0");
        assert!(ended <= before_last, "opened too soon to show anything");
        (ended == before_last).then_some(())
    });
    let removal = Sent::new(&target, "bdev_delay_delete", &json!({"name": "slow0"}));
    let open = target.try_call("presnap_get_stores", json!({"name": "store0"}));
    assert!(open.is_err(), "opened too soon to show anything");
    opening.works();
    removal.works();
    let stores = || target.call("presnap_get_stores", json!({}));
    wait_for("the store is closed", SOON, || (stores() == json!([])).then_some(()));
    assert!(bdev(&target, "slow0").is_none());

    delay(&target, "s0", "slow0");
    target.call("presnap_store_load", load);
    assert_eq!(stores()[0]["state"], "loaded");
    target.stop();
}
