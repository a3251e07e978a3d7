//! Devices that go away under load: a master, a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use presnap::rpc::Errno;
use serde_json::{Value, json};

use crate::harness::{Bench, Process, Subsystem, wait_for};
use crate::initiator::{HOST, Initiator};

const SOON: Duration = Duration::from_secs(20);
/// Blocks of 4 KiB that the load writes, one after the other and again.
const SPAN: u64 = 1024;

/// A host that writes until it is told to stop or gets an error.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<u8>, bool)>,
}

impl Load {
    /// Starts one on a namespace of zeros.
    pub fn start(subsystem: &Subsystem) -> Self {
        // What each 4 KiB hold: the last value acknowledged, 0 if none.
        Self::start_on(subsystem, vec![0; SPAN as usize])
    }

    /// Goes on where another load has ended.
    fn start_on(subsystem: &Subsystem, mut held: Vec<u8>) -> Self {
        let mut host = connect(subsystem);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return (held, true);
                }
                let (at, value) = (number % SPAN, (number / SPAN % 250) as u8 + 1);
                if host.write(at * 8, &[value; 4096]).is_err() {
                    // Written or not.
                    held[at as usize] = 255;
                    return (held, false);
                }
                held[at as usize] = value;
            }
            unreachable!("the loop has no end");
        });
        Self { stop, thread }
    }

    /// What is held, and whether all commands were well.
    pub fn finish(self) -> (Vec<u8>, bool) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}

/// A host that is connected.
pub fn connect(subsystem: &Subsystem) -> Initiator {
    Initiator::connect(subsystem.ports[0], &subsystem.nqn, HOST).expect("connected")
}

/// Asserts that a namespace holds what a load has left.
pub fn check(subsystem: &Subsystem, held: &[u8]) {
    let mut host = connect(subsystem);
    for (at, value) in held.iter().enumerate().filter(|(_, value)| **value != 255) {
        let read = host.read(at as u64 * 8, 8).expect("read");
        assert_eq!(read, [*value; 4096], "4 KiB block {at}");
    }
}

fn bdev(target: &Process, name: &str) -> Option<Value> {
    Some(target.try_call("bdev_get_bdevs", json!({"name": name})).ok()?[0].clone())
}

fn slots(target: &Process) -> Value {
    target.call("presnap_get_stores", json!({}))[0]["slots"].clone()
}

#[test]
fn a_master_that_goes_takes_its_volume_along_and_both_come_back() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    let image = bench.file("m0.img", 32);
    target.aio("m0", &image, 512);
    target.aio("s0", &bench.file("s0.img", 256), 512);
    target.store("st", "s0", 64);
    let policy = json!({"policy": "idle", "idle_ms": 20});
    target.volume("v", "m0", "st", &policy);
    let served = target.serve_nvmf("v", 1);
    connect(&served).write(0, &[0xee; 4096]).expect("written");
    target.snapshot("v", "a");
    let export = target.export("v", "a");
    let load = Load::start(&served);
    wait_for("staged copies", SOON, || (slots(&target)["staged"] != 0).then_some(()));
    target.call("bdev_aio_delete", json!({"name": "m0"}));
    wait_for("the volume goes", SOON, || bdev(&target, "v").is_none().then_some(()));
    let (held, well) = load.finish();
    assert!(!well, "the load saw it go");
    let store = target.call("presnap_get_stores", json!({}))[0].clone();
    assert_eq!(store["volumes"][0]["attached"], false);
    assert_eq!(store["slots"]["staged"], 0, "nobody's any more");
    assert_eq!(connect(&export).read(0, 8).expect("read"), [0xee; 4096], "the snapshot stays");
    target.check_slots();

    target.aio("m0", &image, 512);
    target.volume("v", "m0", "st", &policy);
    let params = json!({"nqn": served.nqn, "namespace": {"bdev_name": "v"}});
    target.call("nvmf_subsystem_add_ns", params);
    check(&served, &held);
    assert_eq!(target.snapshot("v", "b")["state"], "complete");
    assert_eq!(connect(&export).read(0, 8).expect("read"), [0xee; 4096]);
    check(&target.export("v", "b"), &held);
    target.check_slots();
    target.stop();
}

#[test]
fn a_master_that_goes_fails_the_snapshot_under_way() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.malloc("m0", 32, 512);
    target.call(
        "bdev_delay_create",
        json!({"base_bdev_name": "m0", "name": "d0", "avg_read_latency": 100_000,
            "p99_read_latency": 100_000, "avg_write_latency": 1, "p99_write_latency": 1}),
    );
    target.aio("s0", &bench.file("s0.img", 256), 512);
    target.store("st", "s0", 64);
    target.volume("v", "d0", "st", &json!({"policy": "off"}));
    let before = slots(&target);
    target.snapshot_cut("v", "a");
    let asked = target.call_start(
        "presnap_snapshot_create",
        json!({"volume": "v", "name": "a", "uuid": target.get_snapshot("v", "a").unwrap()["uuid"]}),
    );
    let export = target.export("v", "a");
    let mut reader = connect(&export);
    assert_eq!(reader.read(0, 8).expect("read"), [0; 4096]);
    target.call("bdev_delay_delete", json!({"name": "d0"}));
    wait_for("the volume goes", SOON, || bdev(&target, "v").is_none().then_some(()));
    let error = asked.join().expect("no panic").unwrap_err();
    let why = "its master 'd0' was removed";
    assert!(error.message.contains("'a'") && error.message.contains(why), "{error}");
    let snapshot = target.snapshot_ended("v", "a");
    assert_eq!((&snapshot["state"], &snapshot["reason"]), (&json!("failed"), &json!(why)));
    wait_for("its bdev goes", SOON, || bdev(&target, "v@a").is_none().then_some(()));
    assert!(reader.read(0, 8).is_err(), "no more namespace");
    wait_for("its subsystem goes", SOON, || (!exists(&target, &export)).then_some(()));
    assert_eq!(slots(&target), before, "its slots are free");
    target.snapshot_delete("v", "a");
    target.stop();
}

#[test]
fn a_store_that_goes_leaves_the_volume_serving() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.aio("m0", &bench.file("m0.img", 32), 512);
    let image = bench.file("s0.img", 256);
    target.aio("s0", &image, 512);
    target.store("st", "s0", 64);
    let policy = json!({"policy": "idle", "idle_ms": 20, "copy_mbytes_per_sec": 1});
    target.volume("v", "m0", "st", &policy);
    let served = target.serve_nvmf("v", 1);
    let load = Load::start(&served);
    target.snapshot_cut("v", "a");
    target.call("bdev_aio_delete", json!({"name": "s0"}));
    wait_for("the volume says so", SOON, || {
        let volume = bdev(&target, "v").expect("the volume stays");
        (volume["driver_specific"]["presnap"]["state"] == "no_store").then_some(())
    });
    let create = json!({"volume": "v", "name": "b"});
    let error = target.try_call("presnap_snapshot_create", create).unwrap_err();
    assert_eq!(error.code, Errno::NoDev.code(), "{error}");
    assert!(error.message.contains("'v'") && error.message.contains("'st'"), "{error}");
    let (held, well) = load.finish();
    assert!(well, "the load did not notice");
    let load = Load::start_on(&served, held);
    target.aio("s0", &image, 512);
    let params = json!({"bdev": "s0"});
    target.call("presnap_store_load", params);
    let (held, well) = load.finish();
    assert!(well, "nor this");

    // The store is another one now: the volume has to be made again to use it.
    let error = target
        .try_call("presnap_snapshot_create", json!({"volume": "v", "name": "b"}))
        .unwrap_err();
    assert_eq!(error.code, Errno::NoDev.code(), "{error}");
    target.call("bdev_presnap_delete", json!({"name": "v"}));
    target.volume("v", "m0", "st", &json!({"policy": "off"}));
    if let Some(snapshot) = target.get_snapshot("v", "a") {
        assert_eq!(snapshot["state"], "failed", "it could not be completed");
    }
    let params = json!({"nqn": served.nqn, "namespace": {"bdev_name": "v"}});
    target.call("nvmf_subsystem_add_ns", params);
    let (held, well) = Load::start_on(&served, held).finish_after(&target);
    assert!(well);
    assert_eq!(target.snapshot("v", "b")["state"], "complete");
    check(&target.export("v", "b"), &held);
    target.check_slots();
    target.stop();
}

fn exists(target: &Process, subsystem: &Subsystem) -> bool {
    let all = target.call("nvmf_get_subsystems", json!({}));
    all.as_array().expect("a list").iter().any(|other| other["nqn"] == subsystem.nqn)
}

fn state_of(target: &Process, volume: &str) -> Value {
    let volume = bdev(target, volume).expect("the volume stays");
    volume["driver_specific"]["presnap"]["state"].clone()
}

/// Fails when the subsystem of an export stays behind, and when one goes that somebody else made.
#[test]
fn an_export_goes_with_its_store_and_can_be_made_again() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    let image = bench.file("s0.img", 256);
    target.aio("m0", &bench.file("m0.img", 32), 512);
    target.aio("s0", &image, 512);
    target.store("st", "s0", 64);
    let off = json!({"policy": "off"});
    target.volume("v", "m0", "st", &off);
    let served = target.serve_nvmf("v", 1);
    connect(&served).write(0, &[0xee; 4096]).expect("written");
    target.snapshot("v", "a");
    target.snapshot("v", "b");
    let port = bench.port();
    let params = json!({"volume": "v", "name": "a", "trsvcid": port.to_string(),
        "allow_any_host": true});
    let export = || {
        let export = target.try_call("presnap_snapshot_export", params.clone())?;
        let nqn = export["nqn"].as_str().expect("an NQN").to_owned();
        Ok::<_, presnap::rpc::RpcError>(Subsystem { nqn, ports: vec![port] })
    };
    let first = export().expect("exported");
    let others = target.serve_nvmf("v@b", 1);
    let config = target.save_config();
    let mut reader = connect(&first);
    assert_eq!(reader.read(0, 8).expect("read"), [0xee; 4096]);

    target.call("bdev_aio_delete", json!({"name": "s0"}));
    wait_for("the export goes", SOON, || (!exists(&target, &first)).then_some(()));
    assert!(reader.read(0, 8).is_err(), "disconnected");
    assert!(exists(&target, &others), "not presnap's");
    let gone = || {
        let error = export().unwrap_err();
        assert_eq!(error.code, Errno::NoDev.code(), "{error}");
        for words in ["'v@a'", "'st' is gone", "bdev_presnap_delete", "bdev_presnap_create"] {
            assert!(error.message.contains(words), "{words}: {error}");
        }
    };
    gone();
    target.aio("s0", &image, 512);
    target.call("presnap_store_load", json!({"bdev": "s0"}));
    gone();
    target.call("bdev_presnap_delete", json!({"name": "v"}));
    target.volume("v", "m0", "st", &off);
    let again = export().expect("exported again");
    assert_eq!(again.nqn, first.nqn);
    assert_eq!(connect(&again).read(0, 8).expect("read"), [0xee; 4096]);

    // One that somebody took the namespace out of is no obstacle.
    target.call("nvmf_subsystem_remove_ns", json!({"nqn": first.nqn, "nsid": 1}));
    export().expect("exported once more");
    target.stop();
    let target = bench.target("again", &["-c", config.to_str().expect("text")]);
    assert!(exists(&target, &others));
    assert_eq!(connect(&first).read(0, 8).expect("read"), [0xee; 4096], "as it was saved");
    target.stop();
}

/// A device that failed the catalog for good and is well again.
///
/// Fails when nobody looks at whether the catalog is lost, and when a failed store is not loaded anew.
#[test]
fn a_store_that_lost_its_catalog_says_so_and_how_to_go_on() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.aio("m0", &bench.file("m0.img", 32), 512);
    target.aio("s0", &bench.file("s0.img", 256), 512);
    target.call("bdev_error_create", json!({"base_name": "s0"}));
    let inject = |io_type: &str, count: u32| {
        let params = json!({"name": "EE_s0", "io_type": io_type, "error_type": "failure",
            "num": count});
        target.call("bdev_error_inject_error", params);
    };
    target.store("st", "EE_s0", 64);
    let off = json!({"policy": "off"});
    target.volume("v", "m0", "st", &off);
    let served = target.serve_nvmf("v", 1);
    connect(&served).write(0, &[0xee; 4096]).expect("written");
    target.snapshot("v", "a");
    let export = target.export("v", "a");
    let store = || target.call("presnap_get_stores", json!({}))[0].clone();
    let before = store();
    assert_eq!(before["state"], "loaded", "{before}");
    assert_eq!(state_of(&target, "v"), "online");
    let load = Load::start(&served);

    inject("all", 1_000_000);
    let create = |name: &str| {
        target.try_call("presnap_snapshot_create", json!({"volume": "v", "name": name}))
    };
    create("b").unwrap_err();
    inject("all", 0);
    let now = store();
    assert_eq!(now["state"], "failed", "{now}");
    assert!(now["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{now}");
    assert_eq!(now["catalog"], before["catalog"], "what was known last");
    assert_eq!(state_of(&target, "v"), "no_store");
    let refused = |error: presnap::rpc::RpcError, errno: Errno, exported: bool, attached: bool| {
        assert_eq!(error.code, errno.code(), "{error}");
        let said = |words: &str| error.message.contains(words);
        assert!(said("store 'st' has failed") && said("presnap_store_load"), "{error}");
        assert_eq!(said("presnap_snapshot_unexport for 'v@a'"), exported, "{error}");
        assert_eq!(said("bdev_presnap_delete for 'v'"), attached, "{error}");
        assert_eq!(said("bdev_presnap_create for 'v'"), attached, "{error}");
    };
    refused(create("c").unwrap_err(), Errno::NoDev, true, true);
    assert_eq!(connect(&export).read(0, 8).expect("read"), [0xee; 4096], "it is complete");
    let reload = |params: Value| target.try_call("presnap_store_load", params);
    refused(reload(json!({"bdev": "EE_s0"})).unwrap_err(), Errno::Busy, true, true);
    refused(reload(json!({"name": "st"})).unwrap_err(), Errno::Busy, true, true);
    let snapshot = json!({"volume": "v", "name": "a"});
    target.call("presnap_snapshot_unexport", snapshot.clone());
    let error = target.try_call("presnap_snapshot_delete", snapshot).unwrap_err();
    refused(error, Errno::NoDev, false, true);
    assert!(bdev(&target, "v@a").is_some(), "a refused deletion changes nothing");
    let (held, well) = load.finish();
    assert!(well, "the load did not notice");

    target.call("bdev_presnap_delete", json!({"name": "v"}));
    let params = json!({"name": "v", "base_bdev": "m0", "store": "st"});
    let error = target.try_call("bdev_presnap_create", params).unwrap_err();
    refused(error, Errno::NoDev, false, false);
    let loaded = reload(json!({"name": "st"})).expect("loaded anew");
    assert_eq!(loaded[0]["state"], "loaded");
    target.volume("v", "m0", "st", &off);
    assert_eq!(state_of(&target, "v"), "online");
    assert_eq!((&store()["state"], &store()["reason"]), (&json!("loaded"), &Value::Null));
    assert_eq!(create("d").expect("taken")["state"], "complete");
    check(&target.export("v", "d"), &held);
    assert_eq!(connect(&target.export("v", "a")).read(0, 8).expect("read"), [0xee; 4096]);
    target.check_slots();
    target.stop();
}

impl Load {
    /// Lets some writes through first.
    fn finish_after(self, target: &Process) -> (Vec<u8>, bool) {
        let writes = || target.stats()["commands"]["write"].as_u64().expect("a count");
        let before = writes();
        wait_for("some writes", SOON, || (writes() > before + 100).then_some(()));
        self.finish()
    }
}
