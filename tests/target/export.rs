//! Exports as a host sees them on the wire, and who may see them.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::harness::{Bench, Process, Subsystem};
use crate::initiator::{BLOCK, HOST, INVALID_HOST, Initiator, WRITE_PROTECTED};

fn connect(subsystem: &Subsystem, host: &str) -> Initiator {
    Initiator::connect(subsystem.ports[0], &subsystem.nqn, host).expect("connected")
}

fn volume(bench: &Bench, target: &Process) -> Subsystem {
    target.aio("m0", &bench.file("m0.img", 16), 512);
    target.aio("s0", &bench.file("s0.img", 128), 512);
    target.store("st", "s0", 64);
    target.volume("v", "m0", "st", &json!({"policy": "off"}));
    target.serve_nvmf("v", 1)
}

#[test]
fn an_export_is_write_protected_on_the_wire() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    let served = volume(&bench, &target);
    let mut writer = connect(&served, HOST);
    writer.write(8, &[0xa1; 4096]).expect("written");
    let snapshot = target.snapshot("v", "a");
    let export = target.export("v", "a");
    writer.write(8, &[0xb2; 4096]).expect("written");

    let mut reader = connect(&export, HOST);
    let namespace = reader.identify(1).expect("identified");
    assert!(namespace.write_protected, "NSATTR bit 0");
    assert_eq!(namespace.blocks, 16 << 11);
    let uuid: uuid::Uuid = snapshot["uuid"].as_str().expect("a UUID").parse().expect("a UUID");
    assert_eq!(&namespace.nguid, uuid.as_bytes(), "the snapshot's own");
    assert!(!writer.identify(1).expect("identified").write_protected, "the volume is not");

    assert_eq!(reader.read(8, 8).expect("read"), [0xa1; 4096], "as it was at the cut");
    let status = |result: Result<(), crate::initiator::Error>| result.unwrap_err().status();
    assert_eq!(status(reader.write(8, &[0xc3; 4096])), Some(WRITE_PROTECTED));
    assert_eq!(status(reader.write(0, &[0xc3; BLOCK])), Some(WRITE_PROTECTED));
    assert_eq!(status(reader.write_zeroes(8, 8)), Some(WRITE_PROTECTED));
    assert_eq!(status(reader.deallocate(8, 8)), Some(WRITE_PROTECTED));
    assert_eq!(reader.read(8, 8).expect("read"), [0xa1; 4096], "nothing has changed");
    assert_eq!(reader.read(0, 1).expect("read"), [0; BLOCK], "nothing has changed");
    assert_eq!(writer.read(8, 8).expect("read"), [0xb2; 4096], "nor in the volume");

    target.call("presnap_snapshot_unexport", json!({"volume": "v", "name": "a"}));
    assert!(reader.read(8, 8).is_err(), "disconnected");
    assert!(Initiator::connect(export.ports[0], &export.nqn, HOST).is_err(), "gone");
    target.stop();
}

#[test]
fn an_export_of_a_completing_snapshot_reads_as_the_cut() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.malloc("m0", 16, 512);
    target.call(
        "bdev_delay_create",
        json!({"base_bdev_name": "m0", "name": "d0", "avg_read_latency": 50_000,
            "p99_read_latency": 50_000, "avg_write_latency": 1, "p99_write_latency": 1}),
    );
    target.aio("s0", &bench.file("s0.img", 128), 512);
    target.store("st", "s0", 64);
    target.volume("v", "d0", "st", &json!({"policy": "off"}));
    let served = target.serve_nvmf("v", 1);
    let mut writer = connect(&served, HOST);
    for lba in [0, 16_384, 32_760] {
        writer.write(lba, &[0xa1; 4096]).expect("written");
    }
    target.snapshot_cut("v", "a");
    let mut reader = connect(&target.export("v", "a"), HOST);
    for lba in [32_760, 16_384, 0] {
        writer.write(lba, &[0xb2; 4096]).expect("written");
        assert_eq!(reader.read(lba, 8).expect("read"), [0xa1; 4096], "at {lba}");
        assert_eq!(writer.read(lba, 8).expect("read"), [0xb2; 4096], "at {lba}");
    }
    assert!(reader.identify(1).expect("identified").write_protected);
    assert_eq!(target.snapshot_ended("v", "a")["state"], "complete");
    for lba in [0, 16_384, 32_760] {
        assert_eq!(reader.read(lba, 8).expect("read"), [0xa1; 4096], "at {lba}, complete");
    }
    target.stop();
}

#[test]
fn only_named_hosts_are_let_in_also_after_a_restart() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    let served = volume(&bench, &target);
    connect(&served, HOST).write(0, &[0xa1; 4096]).expect("written");
    target.snapshot("v", "a");
    let port = bench.port();
    let friend = "nqn.2016-06.io.spdk:friend";
    let params =
        json!({"volume": "v", "name": "a", "trsvcid": port.to_string(), "hosts": [friend]});
    let nqn = target.call("presnap_snapshot_export", params)["nqn"].clone();
    let export = Subsystem { nqn: nqn.as_str().expect("an NQN").to_owned(), ports: vec![port] };
    let check = || {
        let refused = Initiator::connect(port, &export.nqn, HOST).err().expect("refused");
        assert_eq!(refused.status(), Some(INVALID_HOST));
        let mut host = connect(&export, friend);
        assert_eq!(host.read(0, 8).expect("read"), [0xa1; 4096]);
        host.identify(1).expect("identified")
    };
    let before = check();
    assert!(before.write_protected);
    let config = target.save_config();
    let config = config.to_str().expect("text").to_owned();
    target.stop();
    let target = bench.target("again", &["-c", &config]);
    assert_eq!(check(), before, "size, protection and identity are the same");
    target.kill();
    let target = bench.target("again", &["-c", &config]);
    assert_eq!(check(), before, "also after a crash");
    target.stop();
}

#[test]
fn the_socket_is_private_and_taken_once() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    let mode = std::fs::metadata(&target.socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    let refusal = |socket: &std::path::Path| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_presnap"))
            .arg("--socket")
            .arg(socket)
            .args(["serve", "--no-pci", "-s", "256"])
            .output()
            .expect("started");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refusal(&target.socket);
    assert!(said.contains("in use by another process") && said.contains("--socket"), "{said}");
    assert!(!said.contains('\u{1b}'), "no colours: {said}");
    let said = refusal(&target.socket.with_file_name("no-folder").join("presnap.sock"));
    assert!(said.contains("no-folder/presnap.sock cannot be used"), "{said}");
    target.call("presnap_get_stores", json!({}));
    assert!(!target.log().contains('\u{1b}'), "no colours in a log");
    target.stop();
}
