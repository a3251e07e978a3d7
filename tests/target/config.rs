//! Configurations: saved and loaded again, and those in configs/.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Bench, Process, Subsystem, wait_for};
use crate::initiator::{HOST, Initiator};

/// Time for volumes that came by examination.
const COME_MAX: Duration = Duration::from_secs(20);

/// What a restart has to bring back. UUIDs of bdevs below presnap are made up anew by their modules.
fn state(target: &Process) -> Value {
    let bdevs: Vec<Value> = target
        .call("bdev_get_bdevs", json!({}))
        .as_array()
        .expect("a list")
        .iter()
        .map(|bdev| {
            let ours = bdev["product_name"].as_str().is_some_and(|name| name.contains("presnap"));
            let uuid = if ours { bdev["uuid"].clone() } else { Value::Null };
            let policy = &bdev["driver_specific"]["presnap"]["policy"];
            json!([bdev["name"], uuid, bdev["claimed"], bdev["assigned_rate_limits"], policy])
        })
        .collect();
    let mut bdevs = bdevs;
    bdevs.sort_by_key(|bdev| bdev[0].to_string());
    let mut stores = target.call("presnap_get_stores", json!({}));
    for store in stores.as_array_mut().expect("a list") {
        store["catalog"] = Value::Null;
    }
    // SPDK lists the hosts of a subsystem last one first, hence the other way round after a restart.
    let mut subsystems = target.call("nvmf_get_subsystems", json!({}));
    for subsystem in subsystems.as_array_mut().expect("a list") {
        let hosts = subsystem["hosts"].as_array_mut().expect("a list");
        hosts.sort_by_key(|host| host["nqn"].to_string());
    }
    json!({
        "bdevs": bdevs,
        "stores": stores,
        "snapshots": target.call("presnap_get_snapshots", json!({})),
        "subsystems": subsystems,
    })
}

fn same(target: &Process, wanted: &Value, what: &str) {
    for (key, wanted) in wanted.as_object().expect("an object") {
        let found = state(target)[key].clone();
        assert_eq!(&found, wanted, "{what}: {key}");
    }
}

/// Two stores; volumes on a file, on a volume, and one that is not attached; with limits and exports.
fn fill(bench: &Bench, target: &Process) -> (Subsystem, u16) {
    for (name, mib) in [("m0", 32), ("m1", 32), ("s0", 256), ("s1", 256)] {
        target.aio(name, &bench.file(&format!("{name}.img"), mib), 512);
    }
    target.store("st", "s0", 128);
    target.store("zz", "s1", 64);
    target.volume("v", "m0", "st", &json!({"copy_mbytes_per_sec": 700}));
    target.volume("w", "v", "zz", &json!({"policy": "off"}));
    target.volume("away", "m1", "zz", &json!({}));
    target.call("bdev_set_qos_limit", json!({"name": "w", "rw_ios_per_sec": 20_000}));
    target.call("presnap_set_policy", json!({"volume": "v", "policy": "off", "idle_ms": 77}));
    for (volume, name) in [("v", "a"), ("w", "b"), ("away", "c")] {
        target.snapshot(volume, name);
    }
    let served = target.serve_nvmf("w", 1);
    let port = bench.port();
    for (volume, name) in [("v", "a"), ("w", "b"), ("away", "c")] {
        let params = json!({"volume": volume, "name": name, "trsvcid": port.to_string(),
            "hosts": [HOST, format!("{HOST}-of-{volume}")]});
        target.call("presnap_snapshot_export", params);
    }
    // Its snapshot stays readable, and nothing of the configuration but its store brings it back.
    target.call("bdev_presnap_delete", json!({"name": "away"}));
    (served, port)
}

#[test]
fn a_saved_configuration_brings_everything_back() {
    let bench = Bench::new();
    let target = bench.target("first", &[]);
    let (served, _) = fill(&bench, &target);
    let mut host = Initiator::connect(served.ports[0], &served.nqn, HOST).expect("connected");
    host.write(64, &[0x5a; 4096]).expect("written");
    let wanted = state(&target);
    let config = target.save_config();
    let by_command = Command::new(env!("CARGO_BIN_EXE_presnap"))
        .arg("--socket")
        .arg(&target.socket)
        .args(["rpc", "save_config"])
        .output()
        .expect("run");
    assert!(by_command.status.success());
    let by_command: Value = serde_json::from_slice(&by_command.stdout).expect("JSON");
    let text = std::fs::read_to_string(&config).expect("written");
    let (saved, config_bytes): (Value, _) =
        (serde_json::from_str(&text).expect("JSON"), text.len());
    assert_eq!(by_command, saved, "presnap rpc save_config");
    target.stop();

    let option = config.to_str().expect("text").to_owned();
    let target = bench.target("clean", &["-c", &option]);
    same(&target, &wanted, "after a stop");
    let mut host = Initiator::connect(served.ports[0], &served.nqn, HOST).expect("connected");
    assert_eq!(host.read(64, 8).expect("read"), [0x5a; 4096]);
    let again = target.snapshot("v", "a2");
    assert_eq!(again["chunks"]["required"], 1, "the stop saved what was dirty");
    target.snapshot_delete("v", "a2");
    target.kill();

    let target = bench.target("crash", &["-c", &option]);
    for key in ["snapshots", "subsystems"] {
        assert_eq!(state(&target)[key], wanted[key], "after a kill");
    }
    let saved_again = std::fs::read_to_string(target.save_config()).expect("written");
    assert_eq!(saved_again.len(), config_bytes, "saved again, it is as long as it was");
    target.stop();

    // Without examination, the calls alone do it.
    let mut quiet = saved;
    for subsystem in quiet["subsystems"].as_array_mut().expect("a list") {
        for call in subsystem["config"].as_array_mut().into_iter().flatten() {
            if call["method"] == "bdev_set_options" {
                call["params"]["bdev_auto_examine"] = json!(false);
            }
        }
    }
    let path = bench.path("quiet.json");
    std::fs::write(&path, quiet.to_string()).expect("written");
    let target = bench.target("quiet", &["-c", path.to_str().expect("text")]);
    for key in ["stores", "snapshots", "subsystems"] {
        assert_eq!(state(&target)[key], wanted[key], "without examination");
    }
    target.stop();
}

#[test]
fn what_a_configuration_lacks_is_awaited_and_saved_again() {
    let bench = Bench::new();
    let first = bench.target("first", &[]);
    for (name, mib) in [("m0", 32), ("s0", 256)] {
        first.aio(name, &bench.file(&format!("{name}.img"), mib), 512);
    }
    first.store("st", "s0", 128);
    first.volume("v", "m0", "st", &json!({"policy": "off"}));
    first.snapshot("v", "a");
    first.stop();
    let load = json!({"bdev": "s0", "name": "st"});
    let create = json!({"name": "v", "base_bdev": "m0", "store": "st"});
    let config = json!({"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "presnap_store_load", "params": load},
        {"method": "bdev_presnap_create", "params": create}]}]});
    let path = bench.path("early.json");
    std::fs::write(&path, config.to_string()).expect("written");
    let target = bench.target("early", &["-c", path.to_str().expect("text")]);
    assert_eq!(target.call("presnap_get_stores", json!({})), json!([]));
    let saved = std::fs::read_to_string(target.save_config()).expect("written");
    for method in ["presnap_store_load", "bdev_presnap_create"] {
        assert!(saved.contains(method), "{method} is forgotten: {saved}");
    }
    // Now that the target runs, what is missing is an error.
    let error = target.try_call("presnap_store_load", load).unwrap_err();
    assert_eq!(error.code, -19, "{error}");
    target.aio("m0", &bench.path("m0.img"), 512);
    target.aio("s0", &bench.path("s0.img"), 512);
    wait_for("the volume is there", COME_MAX, || {
        target.try_call("bdev_get_bdevs", json!({"name": "v"})).ok()
    });
    assert_eq!(target.get_snapshot("v", "a").expect("there")["state"], "complete");
    target.stop();
}

const VOLUME_NQN: &str = "nqn.2016-06.io.spdk:presnap:vol0";

/// A configuration of configs/, with each call's parameters changed by `adapt`.
fn example(bench: &Bench, name: &str, mut adapt: impl FnMut(&str, &mut Value)) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
    let text = std::fs::read_to_string(path).expect("an example");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    for subsystem in config["subsystems"].as_array_mut().expect("a list") {
        for call in subsystem["config"].as_array_mut().expect("a list") {
            let method = call["method"].as_str().expect("a name").to_owned();
            adapt(&method, &mut call["params"]);
        }
    }
    let path = bench.path(name);
    std::fs::write(&path, config.to_string()).expect("written");
    path.to_str().expect("text").to_owned()
}

/// What is on a volume is on its master as well, at the same place. At a start the master comes first.
///
/// Fails when SPDK's lvol module gets to see the master before the volume has it.
#[test]
fn logical_volumes_on_a_volume_come_back_on_the_volume() {
    let bench = Bench::new();
    let (master, store) = (bench.file("master.img", 64), bench.file("store.img", 256));
    let target = bench.target("target", &[]);
    target.aio("m0", &master, 512);
    target.aio("s0", &store, 512);
    target.store("st", "s0", 64);
    target.volume("v0", "m0", "st", &json!({}));
    target.call("bdev_lvol_create_lvstore", json!({"bdev_name": "v0", "lvs_name": "lvs"}));
    let lvol = json!({"lvol_name": "l0", "size": 16 << 20, "lvs_name": "lvs"});
    target.call("bdev_lvol_create", lvol);
    let mut snapshot = 0;
    let config = target.save_config().display().to_string();
    target.stop();
    for how in ["stop", "kill", "stop"] {
        let target = bench.target("target", &["-c", &config]);
        wait_for("the logical volume", Duration::from_secs(10), || {
            target.try_call("bdev_get_bdevs", json!({"name": "lvs/l0"})).ok()
        });
        let stores = target.call("bdev_lvol_get_lvstores", json!({}));
        assert_eq!(stores[0]["base_bdev"], "v0", "{stores}");
        snapshot += 1;
        assert_eq!(target.snapshot("v0", &format!("s{snapshot}"))["state"], "complete");
        target.check_slots();
        if how == "kill" { target.kill() } else { target.stop() }
    }
}

/// The volume of an example is there, reachable at `port`, and takes snapshots.
fn check_example(target: &Process, port: u16, blocks: u64) {
    let found = target.call("bdev_get_bdevs", json!({"name": "vol0"}));
    assert_eq!(found[0]["driver_specific"]["presnap"]["state"], "online");
    let mut host = Initiator::connect(port, VOLUME_NQN, HOST).expect("connected");
    assert_eq!(host.identify(1).expect("identified").blocks, blocks);
    assert_eq!(target.snapshot("vol0", "a")["state"], "complete");
}

fn listen_at(port: u16) -> impl Fn(&str, &mut Value) {
    move |method, params| {
        if method == "nvmf_subsystem_add_listener" {
            params["listen_address"]["trsvcid"] = json!(port.to_string());
        }
    }
}

#[test]
fn the_examples_with_files_work() {
    let bench = Bench::new();
    let port = bench.port();
    let listen = listen_at(port);
    for (name, mib) in [("master.img", 32), ("store.img", 256)] {
        bench.file(name, mib);
    }
    // The store is made once, as configs/README.md says.
    let maker = bench.target("maker", &[]);
    maker.aio("Store0", &bench.path("store.img"), 4096);
    maker.store("store0", "Store0", 256);
    maker.stop();
    // The demo formats its store anew, also over the one of the start before.
    for (name, blocks) in [("files.json", 32 << 8), ("demo.json", 32_768), ("demo.json", 32_768)] {
        let config = example(&bench, name, |method, params| {
            listen(method, params);
            if method == "bdev_aio_create" {
                let file = params["filename"].as_str().and_then(|file| file.rsplit('/').next());
                params["filename"] = json!(bench.path(file.expect("a file")));
            }
        });
        let target = bench.target(name, &["-c", &config]);
        check_example(&target, port, blocks);
        target.stop();
    }
}

#[test]
fn the_example_with_remote_devices_works() {
    let bench = Bench::new();
    let far = bench.target("far", &["-m", "0x2"]);
    far.aio("master0", &bench.file("master.img", 32), 4096);
    far.aio("store0", &bench.file("store.img", 256), 4096);
    far.store("store0", "store0", 256);
    far.call("presnap_store_unload", json!({"name": "store0"}));
    let (master, store) = (far.serve_nvmf("master0", 1), far.serve_nvmf("store0", 1));
    let port = bench.port();
    let listen = listen_at(port);
    let config = example(&bench, "remote.json", |method, params| {
        listen(method, params);
        if method == "bdev_nvme_attach_controller" {
            let remote = [&master, &store].into_iter().find(|r| params["subnqn"] == r.nqn.as_str());
            params["traddr"] = json!("127.0.0.1");
            params["trsvcid"] = json!(remote.expect("one of the two").ports[0].to_string());
        }
    });
    let target = bench.target("near", &["-c", &config]);
    check_example(&target, port, 32 << 8);
    target.stop();
    far.stop();
}

#[test]
fn the_example_with_local_devices_says_which_it_lacks() {
    let bench = Bench::new();
    let config = example(&bench, "nvme.json", |_, _| {});
    let output = Command::new(env!("CARGO_BIN_EXE_presnap"))
        .arg("--socket")
        .arg(bench.path("nvme.sock"))
        .args(["serve", "--no-pci", "--num-trace-entries", "0", "-s", "512", "-c", &config])
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("0000:01:00.0"), "{said}");
    assert!(
        said.trim_end().lines().last().is_some_and(|line| line.starts_with("error: ")),
        "{said}"
    );
}

/// What `presnap serve` says instead of starting.
fn refused(options: &[&str]) -> String {
    let mut serve = std::process::Command::new(env!("CARGO_BIN_EXE_presnap"));
    let output = serve.args(["serve", "--no-pci", "-s", "64"]).args(options).output();
    let output = output.expect("started");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.trim_end().lines().count(), 1, "one line: {said}");
    said
}

#[test]
fn a_configuration_that_is_cut_off_is_named_with_the_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cut.json");
    std::fs::write(&path, "{ // SPDK takes comments\n \"subsystems\": [").expect("written");
    let path = path.to_str().expect("text");
    let said = refused(&["-c", path]);
    for words in [path, "line 2 column 16", "save_config"] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn cores_that_are_not_there_are_named() {
    let said = refused(&["--cores", "0,1022-1023"]);
    for words in ["1022, 1023;", "this machine has 0", "--cores"] {
        assert!(said.contains(words), "{words}: {said}");
    }
}
