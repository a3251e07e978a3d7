//! The harness itself, on the shortest way through everything: volume, NVMe/TCP, fio, snapshot,
//! export, stop.

use crate::harness::Bench;

#[test]
fn a_volume_is_served_snapshotted_exported_and_stopped() {
    let bench = Bench::new();
    let target = bench.target("target", &[]);
    target.malloc("m0", 64, 512);
    target.aio("s0", &bench.file("store", 256), 512);
    target.store("store0", "s0", 64);
    target.volume("vol0", "m0", "store0", &serde_json::json!({"policy": "off"}));
    let volume = target.serve_nvmf("vol0", 1);
    let verified = ["--verify=crc32c", "--bs=64k", "--iodepth=8"];
    let job = bench.fio(&volume, &[&["--rw=write", "--do_verify=1"], &verified[..]].concat());
    assert_eq!(job["write"]["total_ios"], 1024, "{job}");
    let snapshot = target.snapshot("vol0", "a");
    assert_eq!(snapshot["state"], "complete", "{snapshot}");
    target.check_slots();
    let export = target.export("vol0", "a");
    let job = bench.fio(&export, &[&["--rw=read"], &verified[..]].concat());
    assert_eq!(job["read"]["total_ios"], 1024, "{job}");
    let agent = bench.agent("agent", "0x2");
    let (volume, snapshot) = (agent.attach("V", &volume, 0), agent.attach("S", &export, 0));
    assert!(agent.dump(&volume) == agent.dump(&snapshot), "the snapshot is not what was written");
    assert_eq!(agent.io(&volume, "write", 65536, 4096, 1)["ok"], true);
    let refused = agent.io(&snapshot, "write", 65536, 4096, 1);
    assert_eq!((&refused["sct"], &refused["sc"]), (&0.into(), &0x20.into()), "{refused}");
    assert!(agent.dump(&volume) != agent.dump(&snapshot), "the snapshot follows the volume");
    agent.stop();
    target.stop();
}
