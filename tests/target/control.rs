//! Bad input and bad timing on the control path: each is refused with its code, the object's name
//! and a remedy, and leaves nothing behind.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use presnap::rpc::Errno;
use presnap::store::superblock::layout;
use serde_json::{Value, json};

use crate::harness::{Bench, Process, wait_for};

/// Everything that a refused request could leave behind.
fn state(target: &Process) -> Value {
    let bdevs: Vec<Value> = target
        .call("bdev_get_bdevs", json!({}))
        .as_array()
        .expect("a list")
        .iter()
        .map(|bdev| json!([bdev["name"], bdev["claimed"]]))
        .collect();
    let mut stores = target.call("presnap_get_stores", json!({}));
    for store in stores.as_array_mut().expect("a list") {
        // The database's file may grow by a transaction that was undone.
        store["catalog"] = Value::Null;
    }
    json!({
        "bdevs": bdevs,
        "stores": stores,
        "snapshots": target.call("presnap_get_snapshots", json!({})),
        "subsystems": target.call("nvmf_get_subsystems", json!({})),
    })
}

/// Asserts that a request is refused with this code and a message that has all these words, and
/// that nothing has changed.
fn refused(target: &Process, method: &str, params: &Value, code: Errno, words: &[&str]) {
    let before = state(target);
    let shown = format!("{method} {params}");
    let Err(error) = target.try_call(method, params.clone()) else {
        panic!("{shown} was not refused");
    };
    assert_eq!(error.code, code.code(), "{shown}: {error}");
    for word in words {
        assert!(error.message.contains(word), "{shown}: {word:?} is not in: {error}");
    }
    assert!(!error.message.contains('\n'), "{shown}: {error}");
    assert_eq!(state(target), before, "{shown} left something behind");
}

/// Parameters with some of them changed.
fn with(base: &Value, more: &Value) -> Value {
    let mut params = base.clone();
    for (key, value) in more.as_object().expect("an object") {
        params[key] = value.clone();
    }
    params
}

fn null(target: &Process, name: &str, blocks: u64, block_size: u32, more: &Value) {
    let params = json!({"name": name, "num_blocks": blocks, "block_size": block_size});
    target.call("bdev_null_create", with(&params, more));
}

#[test]
fn bad_stores_and_volumes_are_refused_and_leave_nothing() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.malloc("m0", 32, 512);
    target.malloc("m4k", 32, 4096);
    target.malloc("huge", 32, 128 << 10);
    null(&target, "tiny", 2048, 512, &json!({}));
    null(&target, "dif", 1 << 20, 520, &json!({"md_size": 8, "dif_type": 1}));
    null(&target, "md", 1 << 20, 520, &json!({"md_size": 8}));
    target.aio("s0", &bench.file("s0.img", 256), 512);
    target.aio("s1", &bench.file("s1.img", 256), 512);

    let create = "presnap_store_create";
    let store = json!({"name": "st", "bdev": "s0"});
    for (more, code, words) in [
        (json!({"bdev": "nix"}), Errno::NoDev, ["'nix'", "create it first"]),
        (json!({"slot_size_kib": 100}), Errno::Inval, ["100", "power of two"]),
        (json!({"slot_size_kib": 32}), Errno::Inval, ["32", "from 64"]),
        (json!({"bdev": "tiny"}), Errno::NoSpc, ["'tiny'", "larger device"]),
        (json!({"bdev": "dif"}), Errno::Inval, ["'dif'", "format it without"]),
        (json!({"bdev": "md"}), Errno::Inval, ["'md'", "format it without"]),
        (json!({"name": "a/b"}), Errno::Inval, ["a/b", "not allowed"]),
        (json!({"more": 1}), Errno::Inval, ["\"more\"", "it takes name"]),
        (json!({"name": 3}), Errno::Inval, ["\"name\"", "string"]),
    ] {
        refused(&target, create, &with(&store, &more), code, &words);
    }
    refused(&target, create, &json!({"bdev": "s0"}), Errno::Inval, &["\"name\"", "missing"]);
    target.store("st", "s0", 128);
    refused(&target, create, &with(&store, &json!({"bdev": "s1"})), Errno::Exist, &["'st'"]);
    let force = json!({"name": "st2", "force": true});
    refused(&target, create, &with(&store, &force), Errno::Busy, &["'s0'", "store 'st'"]);
    let load = "presnap_store_load";
    refused(&target, load, &json!({"bdev": "s1"}), Errno::NoEnt, &["'s1'", "presnap_store_create"]);
    refused(&target, load, &json!({"bdev": "nix"}), Errno::NoDev, &["'nix'"]);
    refused(&target, load, &json!({"name": "nix"}), Errno::NoEnt, &["'nix'"]);
    let other = json!({"bdev": "s0", "name": "other"});
    refused(&target, load, &other, Errno::NoEnt, &["'st'", "'other'"]);
    refused(&target, load, &json!({}), Errno::Inval, &["bdev, name"]);
    for method in ["presnap_store_unload", "presnap_store_delete"] {
        refused(&target, method, &json!({"name": "nix"}), Errno::NoEnt, &["'nix'"]);
    }

    let create = "bdev_presnap_create";
    let volume = json!({"name": "v", "base_bdev": "m0", "store": "st"});
    for (more, code, words) in [
        (json!({"base_bdev": "nix"}), Errno::NoDev, ["'nix'", "create it first"]),
        (json!({"store": "nix"}), Errno::NoEnt, ["'nix'", "load it"]),
        (json!({"name": "m4k"}), Errno::Exist, ["'m4k'", "another name"]),
        (json!({"chunk_size_kib": 100}), Errno::Inval, ["100", "power of two"]),
        (json!({"chunk_size_kib": 256}), Errno::Inval, ["slot size of store 'st'", "128"]),
        (json!({"base_bdev": "m4k"}), Errno::Inval, ["'m4k'", "same block size"]),
        // One block of it is as large as a chunk.
        (json!({"base_bdev": "huge"}), Errno::Inval, ["'huge'", "same block size"]),
        (json!({"base_bdev": "dif"}), Errno::Inval, ["'dif'", "format it without"]),
        (json!({"base_bdev": "md"}), Errno::Inval, ["'md'", "format it without"]),
        (json!({"base_bdev": "s0"}), Errno::Inval, ["'s0'", "holds store 'st'"]),
        (json!({"policy": "best"}), Errno::Inval, ["best", "off, idle"]),
        (json!({"name": "v@x"}), Errno::Inval, ["v@x", "not allowed"]),
    ] {
        refused(&target, create, &with(&volume, &more), code, &words);
    }
    target.volume("v", "m0", "st", &json!({"policy": "off"}));
    refused(&target, create, &volume, Errno::Exist, &["'v'"]);
    let second = with(&volume, &json!({"name": "v2"}));
    refused(&target, create, &second, Errno::Busy, &["'m0'", "volume 'v'"]);
    for method in ["presnap_store_unload", "presnap_store_delete"] {
        refused(&target, method, &json!({"name": "st"}), Errno::Busy, &["'st'", "'v'"]);
    }
    refused(&target, "bdev_presnap_delete", &json!({"name": "m0"}), Errno::NoEnt, &["'m0'"]);
    target.call("bdev_presnap_delete", json!({"name": "v"}));
    refused(&target, "bdev_presnap_delete", &json!({"name": "v"}), Errno::NoEnt, &["'v'"]);

    // Its snapshots are found by its name, so it is one volume's, loaded stores taken together.
    target.volume("v", "m0", "st", &json!({"policy": "off"}));
    target.call("presnap_snapshot_create", json!({"volume": "v", "name": "kept"}));
    target.call("bdev_presnap_delete", json!({"name": "v"}));
    target.store("st2", "s1", 128);
    let namesake = with(&volume, &json!({"store": "st2"}));
    refused(&target, create, &namesake, Errno::Exist, &["'st'", "'v'", "another name"]);
    target.volume("v", "m0", "st", &json!({"policy": "off"}));
    target.snapshot_delete("v", "kept");
    target.stop();
}

#[test]
fn bad_snapshots_and_exports_are_refused_and_leave_nothing() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.malloc("m0", 32, 512);
    target.aio("s0", &bench.file("s0.img", 256), 512);
    target.store("st", "s0", 128);
    target.volume("v", "m0", "st", &json!({"policy": "off"}));
    target.snapshot("v", "a");

    let create = "presnap_snapshot_create";
    refused(&target, create, &json!({"volume": "nix", "name": "b"}), Errno::NoEnt, &["'nix'"]);
    refused(&target, create, &json!({"volume": "v", "name": "a"}), Errno::Exist, &["'a'"]);
    let of_snapshot = json!({"volume": "v@a", "name": "b"});
    refused(&target, create, &of_snapshot, Errno::Inval, &["v@a", "not allowed"]);
    target.malloc("v@taken", 1, 512);
    let taken = json!({"volume": "v", "name": "taken"});
    refused(&target, create, &taken, Errno::Exist, &["'v@taken'", "another name"]);
    target.call("bdev_malloc_delete", json!({"name": "v@taken"}));
    let uuid = json!({"volume": "v", "name": "b", "uuid": "x"});
    refused(&target, create, &uuid, Errno::Inval, &["uuid", "must be a UUID"]);

    let export = "presnap_snapshot_export";
    let params = json!({"volume": "v", "name": "a", "allow_any_host": true, "trsvcid": "1"});
    let port = bench.port().to_string();
    let params = with(&params, &json!({"trsvcid": port}));
    for (more, code, words) in [
        (json!({"name": "nix"}), Errno::NoEnt, ["'nix'", "presnap_get_snapshots"]),
        (json!({"volume": "nix"}), Errno::NoEnt, ["'nix'", "presnap_get_stores"]),
        (json!({"allow_any_host": false}), Errno::Inval, ["v@a", "hosts"]),
        (json!({"hosts": ["nqn.2016-06.io.spdk:h"]}), Errno::Inval, ["v@a", "not both"]),
        (json!({"hosts": []}), Errno::Inval, ["hosts", "empty"]),
        (json!({"trtype": "NIX"}), Errno::NotSup, ["NIX", "'v@a'"]),
        (json!({"traddr": "192.0.2.1"}), Errno::Inval, ["192.0.2.1", "'v@a'"]),
        (json!({"traddr": "nonsense"}), Errno::Inval, ["nonsense", "'v@a'"]),
        (json!({"trsvcid": "99999"}), Errno::Inval, ["99999", "'v@a'"]),
        (json!({"nqn": "nonsense"}), Errno::Inval, ["nonsense", "must be an NQN"]),
    ] {
        refused(&target, export, &with(&params, &more), code, &words);
    }
    target.call(export, params.clone());
    let again = target.call(export, params.clone());
    assert_eq!(
        again["address"]["trsvcid"],
        port.as_str(),
        "a repetition answers with what is there"
    );
    for more in [
        json!({"nqn": "nqn.2016-06.io.spdk:other"}),
        json!({"hosts": ["nqn.2016-06.io.spdk:h"], "allow_any_host": false}),
        json!({"trsvcid": bench.port().to_string()}),
    ] {
        refused(&target, export, &with(&params, &more), Errno::Exist, &["'v@a'", "unexport"]);
    }
    let snapshot = json!({"volume": "v", "name": "a"});
    refused(&target, "presnap_snapshot_delete", &snapshot, Errno::Busy, &["'v@a'", "unexport"]);
    target.call("bdev_presnap_delete", json!({"name": "v"}));
    for method in ["presnap_store_unload", "presnap_store_delete"] {
        refused(&target, method, &json!({"name": "st"}), Errno::Busy, &["'v@a'", "unexport"]);
    }
    let unexport = "presnap_snapshot_unexport";
    target.call(unexport, snapshot.clone());
    refused(&target, unexport, &snapshot, Errno::NoEnt, &["'v@a'", "not exported"]);
    target.call("presnap_snapshot_delete", snapshot.clone());
    refused(&target, "presnap_snapshot_delete", &snapshot, Errno::NoEnt, &["'a'"]);
    refused(&target, export, &params, Errno::NoEnt, &["'a'"]);

    // Requests that are none.
    for (text, code) in [
        (r#"{"jsonrpc":"2.0","id":1,"method":"presnap_get_stores","params":[1]}"#, -22),
        (r#"{"jsonrpc":"2.0","id":1,"method":"presnap_nix"}"#, -32601),
        (r#"{"jsonrpc":"2.0","id":1,"method":"presnap_get_stores","params":1}"#, -32600),
    ] {
        let answer = raw(&target.socket, text);
        assert_eq!(answer["error"]["code"], code, "{text}: {answer}");
    }
    let mut stream = UnixStream::connect(&target.socket).expect("connected");
    stream.write_all(br#"{"jsonrpc":"2.0",,, "#).expect("sent");
    assert_eq!(state(&target)["snapshots"], json!([]), "it goes on after garbage");
    target.stop();
}

/// What is answered to a text, which may be no request.
fn raw(socket: &Path, text: &str) -> Value {
    let mut stream = UnixStream::connect(socket).expect("connected");
    stream.write_all(text.as_bytes()).expect("sent");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    serde_json::Deserializer::from_reader(stream)
        .into_iter()
        .next()
        .expect("an answer")
        .expect("JSON")
}

/// Changes one copy of a superblock, and its checksum with it if asked for.
fn patch(file: &Path, copy_at: u64, at: usize, bytes: &[u8], checksum: bool) {
    let file = File::options().read(true).write(true).open(file).expect("the device's file");
    let mut block = vec![0; layout::SUPERBLOCK_BYTES];
    file.read_exact_at(&mut block, copy_at).expect("read");
    block[at..at + bytes.len()].copy_from_slice(bytes);
    if checksum {
        let sum = crc32c::crc32c(&block[..layout::AT_CHECKSUM]);
        block[layout::AT_CHECKSUM..][..4].copy_from_slice(&sum.to_le_bytes());
    }
    file.write_all_at(&block, copy_at).expect("written");
    file.sync_all().expect("synced");
}

/// What it is, which copies, where, what is put there, with a right checksum or not, what comes of it.
type Damage<'a> = (&'a str, &'a [u64], usize, &'a [u8], bool, Result<(), (Errno, &'static str)>);

#[test]
fn damaged_foreign_and_newer_stores_are_told_apart() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    let image = bench.file("s0.img", 256);
    target.aio("s0", &image, 512);
    target.store("st", "s0", 128);
    target.malloc("m0", 32, 512);
    target.volume("v", "m0", "st", &json!({"policy": "off"}));
    target.snapshot("v", "a");
    target.call("bdev_presnap_delete", json!({"name": "v"}));
    target.call("presnap_store_unload", json!({"name": "st"}));
    target.call("bdev_aio_delete", json!({"name": "s0"}));
    let mut good = vec![0; 1 << 20];
    File::open(&image).expect("open").read_exact_at(&mut good, 0).expect("read");
    let both = [layout::COPY_A_OFFSET, layout::COPY_B_OFFSET];
    let restore = || {
        let file = File::options().write(true).open(&image).expect("open");
        file.write_all_at(&good, 0).expect("written");
    };
    let newer = (layout::VERSION + 1).to_le_bytes();
    let cases: [Damage<'_>; 6] = [
        ("copy A damaged", &both[..1], 200, b"x", false, Ok(())),
        ("copy B damaged", &both[1..], 200, b"x", false, Ok(())),
        ("both damaged", &both, 200, b"x", false, Err((Errno::BadMsg, "superblocks are damaged"))),
        ("newer", &both, layout::AT_VERSION, &newer, true, Err((Errno::NotSup, "version 2"))),
        (
            "newer features",
            &both,
            layout::AT_FEATURES_INCOMPAT,
            &[4],
            true,
            Err((Errno::NotSup, "newer presnap")),
        ),
        ("foreign", &both, layout::AT_MAGIC, b"foreign!", true, Err((Errno::NoEnt, "no presnap"))),
    ];
    for (what, copies, at, bytes, checksum, expected) in cases {
        for copy in copies {
            patch(&image, *copy, at, bytes, checksum);
        }
        target.aio("s0", &image, 512);
        match (target.try_call("presnap_store_load", json!({"bdev": "s0"})), expected) {
            (Ok(store), Ok(())) => {
                assert_eq!(store[0]["name"], "st", "{what}");
                let snapshot = target.get_snapshot("v", "a").expect("still there");
                assert_eq!(snapshot["state"], "complete", "{what}");
                target.call("presnap_store_unload", json!({"name": "st"}));
            }
            (Err(error), Err((code, word))) => {
                assert_eq!(error.code, code.code(), "{what}: {error}");
                assert!(error.message.contains("'s0'"), "{what}: {error}");
                assert!(error.message.contains(word), "{what}: {error}");
                let left = state(&target);
                assert_eq!(left["stores"], json!([]), "{what}");
                assert_eq!(left["bdevs"], json!([["m0", false], ["s0", false]]), "{what}");
                if code != Errno::NoEnt {
                    // What cannot be loaded is not overwritten either.
                    let create = json!({"name": "st", "bdev": "s0"});
                    let error = target.try_call("presnap_store_create", create).unwrap_err();
                    assert_eq!(error.code, Errno::Perm.code(), "{what}: {error}");
                }
            }
            (result, _) => panic!("{what}: {result:?}"),
        }
        target.call("bdev_aio_delete", json!({"name": "s0"}));
        restore();
    }
    target.aio("s0", &image, 512);
    target.call("presnap_store_load", json!({"bdev": "s0"}));
    assert!(target.get_snapshot("v", "a").is_some());
    target.stop();
}

#[test]
fn another_master_is_refused_and_the_right_one_goes_on() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    let files = [("m0", 32), ("other", 32), ("larger", 33), ("s0", 256)];
    for (name, mib) in files {
        let image = bench.file(&format!("{name}.img"), mib);
        let file = File::options().write(true).open(&image).expect("open");
        if name != "s0" {
            file.write_all_at(&vec![name.len() as u8; (mib << 20) as usize], 0).expect("written");
        }
        target.aio(name, &image, 512);
    }
    target.store("st", "s0", 128);
    target.volume("v", "m0", "st", &json!({"policy": "off"}));
    target.snapshot("v", "a");
    target.call("bdev_presnap_delete", json!({"name": "v"}));
    let volume = json!({"name": "v", "base_bdev": "m0", "store": "st"});
    for base in ["other", "larger"] {
        let params = with(&volume, &json!({"base_bdev": base}));
        let quoted = format!("'{base}'");
        let words = [quoted.as_str(), "'v'", "name the master it was created on"];
        refused(&target, "bdev_presnap_create", &params, Errno::Stale, &words);
    }
    target.call("bdev_presnap_create", volume);
    let next = target.snapshot("v", "b");
    assert_eq!(next["chunks"]["required"], 0, "nothing was written, and that is still known");

    // Without a bdev it stays for its snapshots' sake, and then its name is free again.
    let volume = json!({"name": "v"});
    target.call("bdev_presnap_delete", volume.clone());
    for name in ["a", "b"] {
        refused(&target, "bdev_presnap_delete", &volume, Errno::NoEnt, &["'v'", "snapshots"]);
        target.call("presnap_snapshot_delete", json!({"volume": "v", "name": name}));
    }
    target.call("bdev_presnap_delete", volume.clone());
    assert_eq!(target.call("presnap_get_stores", json!({}))[0]["volumes"], json!([]));
    refused(&target, "bdev_presnap_delete", &volume, Errno::NoEnt, &["'v'", "no volume"]);
    target.volume("v", "larger", "st", &json!({}));
    target.check_slots();
    target.stop();
}

/// A volume whose first snapshot takes a while: each read of the master takes `read_us`.
fn slow_volume(bench: &Bench, target: &Process, read_us: u64) {
    target.malloc("m0", 32, 512);
    target.call(
        "bdev_delay_create",
        json!({"base_bdev_name": "m0", "name": "d0", "avg_read_latency": read_us,
            "p99_read_latency": read_us, "avg_write_latency": 1, "p99_write_latency": 1}),
    );
    target.aio("s0", &bench.file("s0.img", 256), 512);
    target.store("st", "s0", 128);
    target.volume("v", "d0", "st", &json!({"policy": "off"}));
}

#[test]
fn a_completing_snapshot_keeps_others_out_and_itself_together() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    slow_volume(&bench, &target, 50_000);
    let slots = target.call("presnap_get_stores", json!({}))[0]["slots"].clone();
    let uuid = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
    let create = "presnap_snapshot_create";
    let first = json!({"volume": "v", "name": "s", "uuid": uuid});
    target.call(create, with(&first, &json!({"wait": "consistent"})));

    let error = target.try_call(create, json!({"volume": "v", "name": "t"})).unwrap_err();
    assert_eq!(error.code, Errno::Busy.code(), "{error}");
    assert!(error.message.contains("of 256 required chunks done"), "{error}");
    let now = target.get_snapshot("v", "s").expect("there");
    assert_eq!(now["state"], "completing");
    let percent = now["progress"]["percent"].as_u64().expect("a number");
    assert!(percent < 100, "{now}");

    // An export keeps it, completing or not.
    let export = target.export("v", "s");
    let snapshot = json!({"volume": "v", "name": "s"});
    let error = target.try_call("presnap_snapshot_delete", snapshot.clone()).unwrap_err();
    assert_eq!(error.code, Errno::Busy.code(), "{error}");
    // Asked for again, it is waited for.
    let again = target.call(create, first.clone());
    assert_eq!((&again["uuid"], &again["state"]), (&json!(uuid), &json!("complete")));
    assert_eq!(again["export"]["nqn"], export.nqn.as_str());
    assert_eq!(again["chunks"]["required"], 256);
    target.call("presnap_snapshot_unexport", snapshot.clone());
    target.call("presnap_snapshot_delete", snapshot.clone());

    // The deadline passes: nothing stays, and the same request works later.
    let late = with(&first, &json!({"timeout_ms": 100}));
    refused(&target, create, &late, Errno::TimedOut, &["'s'", "'v'", "longer timeout_ms"]);
    assert_eq!(target.call("presnap_get_stores", json!({}))[0]["slots"], slots);

    // That of a repeated request passes: who asked first still waits, and gets it.
    let asked = target.call_start(create, first.clone());
    wait_for("the snapshot is begun", Duration::from_secs(20), || target.get_snapshot("v", "s"));
    let error = target.try_call(create, late).unwrap_err();
    assert_eq!(error.code, Errno::TimedOut.code(), "{error}");
    assert!(error.message.contains("'s'") && error.message.contains("goes on"), "{error}");
    let now = target.get_snapshot("v", "s").expect("it stays");
    assert_eq!(now["state"], "completing", "too late to show anything: {now}");
    let waited_for = asked.join().expect("no panic").expect("who asked first waits on");
    assert_eq!(waited_for["state"], "complete");
    target.call("presnap_snapshot_delete", snapshot.clone());

    // The asker goes away: the snapshot does not.
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": create, "params": first});
    let mut stream = UnixStream::connect(&target.socket).expect("connected");
    stream.write_all(request.to_string().as_bytes()).expect("sent");
    wait_for("the snapshot is begun", Duration::from_secs(20), || target.get_snapshot("v", "s"));
    drop(stream);
    assert_eq!(target.snapshot_ended("v", "s")["state"], "complete");

    // Deleted while completing: given up, and its asker is told.
    target.call("presnap_snapshot_delete", snapshot.clone());
    let asked = target.call_start(create, first);
    wait_for("the snapshot is begun", Duration::from_secs(20), || target.get_snapshot("v", "s"));
    target.call("presnap_snapshot_delete", snapshot);
    let error = asked.join().expect("no panic").unwrap_err();
    assert!(error.message.contains("deleted while it was being made"), "{error}");
    assert!(target.get_snapshot("v", "s").is_none());
    target.stop();
}

#[test]
fn shutdown_with_a_completing_snapshot_is_orderly_and_short() {
    let bench = Bench::new();
    for (name, interrupt) in [("term", "TERM"), ("int", "INT")] {
        let target = bench.target(name, &[]);
        slow_volume(&bench, &target, 200_000);
        let volume = target.serve_nvmf("v", 1);
        let mut host = crate::initiator::Initiator::connect(
            volume.ports[0],
            &volume.nqn,
            crate::initiator::HOST,
        )
        .expect("connected");
        host.write(0, &[7; 4096]).expect("written");
        let asked =
            target.call_start("presnap_snapshot_create", json!({"volume": "v", "name": "s"}));
        wait_for("it is readable", Duration::from_secs(20), || {
            target.get_snapshot("v", "s").filter(|snapshot| snapshot["times"]["consistent_us"] != 0)
        });
        let began = Instant::now();
        target.stop_by(interrupt);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        let error = asked.join().expect("no panic").unwrap_err();
        assert!(error.message.contains("stopped before it was complete"), "{error}");
        assert!(host.read(0, 1).is_err(), "disconnected");
    }
}

#[test]
fn requests_at_the_same_time_get_one_result() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.malloc("m0", 32, 512);
    target.malloc("m1", 32, 512);
    let image = bench.file("s0.img", 256);
    target.aio("s0", &image, 512);
    let both = |method: &str, one: Value, other: Value| {
        let calls = [target.call_start(method, one), target.call_start(method, other)];
        let results = calls.map(|call| call.join().expect("no panic"));
        let worked = results.iter().filter(|result| result.is_ok()).count();
        (worked, results)
    };
    let store = json!({"name": "st", "bdev": "s0", "slot_size_kib": 128});
    let (worked, results) = both("presnap_store_create", store.clone(), store);
    assert_eq!(worked, 1, "{results:?}");
    for _ in 0..5 {
        let volume = json!({"name": "v", "base_bdev": "m0", "store": "st"});
        let other = with(&volume, &json!({"base_bdev": "m1"}));
        let (worked, results) = both("bdev_presnap_create", volume, other);
        assert_eq!(worked, 1, "{results:?}");
        let snapshot = json!({"volume": "v", "name": "s"});
        let (worked, results) = both("presnap_snapshot_create", snapshot.clone(), snapshot.clone());
        assert_eq!(worked, 1, "{results:?}");
        let (worked, results) = both("presnap_snapshot_delete", snapshot.clone(), snapshot);
        assert_eq!(worked, 1, "{results:?}");
        let volume = json!({"name": "v"});
        let (worked, results) = both("bdev_presnap_delete", volume.clone(), volume);
        assert!(worked >= 1, "{results:?}");
        let unload = json!({"name": "st"});
        let (worked, results) = both("presnap_store_unload", unload.clone(), unload);
        assert_eq!(worked, 1, "{results:?}");
        target.call("bdev_aio_delete", json!({"name": "s0"}));
        // The examination and the request meet.
        target.aio("s0", &image, 512);
        let load = json!({"bdev": "s0", "name": "st"});
        let (worked, results) = both("presnap_store_load", load.clone(), load);
        assert_eq!(worked, 2, "{results:?}");
    }
    target.check_slots();
    target.stop();
}
