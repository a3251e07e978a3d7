//! Snapshots of volumes under load: what is in them (I1), and that later writes are not (I3).

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::Load;
use crate::harness::{Bench, Process, wait_for};
use crate::history::{check_cut, history, numbers};

/// Volume of most tests: 512 chunks of 64 KiB.
pub const VOLUME_MIB: u64 = 32;
pub const CHUNK_KIB: u32 = 64;

/// A load by an agent, and the logs of what it wrote.
pub struct Writer<'a> {
    agent: &'a Process,
    bdevs: Vec<String>,
    logs: Vec<PathBuf>,
    bench: &'a Bench,
    /// Each queue on another reactor of the agent.
    pub spread: bool,
    /// Where writes are cut into several commands, in blocks.
    pub boundary: Option<u32>,
}

impl<'a> Writer<'a> {
    /// Writes everything once.
    pub fn fill(bench: &'a Bench, agent: &'a Process, bdevs: &[&str]) -> Self {
        let bdevs = bdevs.iter().map(|&name| name.to_owned()).collect();
        let mut writer =
            Self { agent, bdevs, logs: Vec::new(), bench, spread: false, boundary: None };
        writer.begin(8, 0, true);
        writer.end(true);
        writer
    }

    fn begin(&mut self, queue_depth: usize, pause_us: u64, fill: bool) {
        // Its own file for each load; unique also among the volumes of a test.
        let log = self.bench.path(&format!("writes-{}-{}", self.bdevs[0], self.logs.len()));
        let load = Load {
            name: self.bdevs[0].clone(),
            bdevs: self.bdevs.clone(),
            spread: self.spread,
            queue_depth,
            log: log.clone(),
            seed: 1 + self.logs.len() as u64,
            numbers_from: self.history().len() as u64,
            fill,
            pause_us,
        };
        self.agent.call("test_load_start", serde_json::to_value(load).expect("plain"));
        self.logs.push(log);
    }

    /// Starts random writes on all queues.
    pub fn start(&mut self, queue_depth: usize, pause_us: u64) {
        self.begin(queue_depth, pause_us, false);
    }

    /// Waits until that many more writes were submitted.
    pub fn progress(&self, writes: usize) {
        let before = self.history().len();
        wait_for(&format!("{writes} more writes"), Duration::from_secs(30), || {
            (self.history().len() >= before + writes).then_some(())
        });
    }

    /// Waits for what is under way; every write must have worked.
    pub fn stop(&mut self) -> u64 {
        self.end(false)
    }

    fn end(&mut self, wait: bool) -> u64 {
        let params = json!({"name": self.bdevs[0], "wait": wait});
        let result = self.agent.call("test_load_stop", params);
        assert_eq!(result["failed"], 0, "foreground writes failed: {}", self.agent.log());
        result["written"].as_u64().expect("a number")
    }

    /// All writes so far.
    pub fn history(&self) -> Vec<crate::agent::LogEntry> {
        history(self.logs.iter().map(PathBuf::as_path))
    }

    /// The agent's clock.
    pub fn now_ns(&self) -> u64 {
        self.agent.call("test_now", json!({})).as_u64().expect("a number")
    }
}

/// A snapshot's request as the agent's clock saw it.
pub struct Window {
    pub requested_ns: u64,
    pub replied_ns: u64,
}

/// Takes a snapshot, until it is readable.
pub fn cut(target: &Process, writer: &Writer<'_>, volume: &str, name: &str) -> (Value, Window) {
    let requested_ns = writer.now_ns();
    let snapshot = target.snapshot_cut(volume, name);
    (snapshot, Window { requested_ns, replied_ns: writer.now_ns() })
}

/// Asserts I1 for the bytes of a snapshot.
pub fn assert_cut(name: &str, bytes: &[u8], writer: &Writer<'_>, window: &Window) {
    let (from, to) = (window.requested_ns, window.replied_ns);
    let result = check_cut(&numbers(bytes), &writer.history(), from, to, writer.boundary);
    if let Err(problem) = result {
        panic!("snapshot {name}: {problem}");
    }
}

/// Three snapshots under the writer's load, checked when it is over; `read` gets a snapshot's bytes.
fn three_cuts(target: &Process, writer: &mut Writer<'_>, read: impl Fn(&str) -> Vec<u8>) {
    writer.start(16, 0);
    let mut windows = Vec::new();
    for name in ["a", "b", "c"] {
        writer.progress(500);
        windows.push((name, cut(target, writer, "vol0", name).1));
        let ended = target.snapshot_ended("vol0", name);
        assert_eq!(ended["state"], "complete", "{ended}");
    }
    writer.progress(500);
    writer.stop();
    for (name, window) in &windows {
        assert_cut(name, &read(name), writer, window);
    }
}

/// I1 for commands that span chunks, submitted by two reactors.
///
/// Whole or not at all is exact here; that `Gate::enter` enters again a command that the cut came into
/// is for `tests/gate_model.rs`, for the window is too short to be hit from outside.
#[test]
fn commands_that_span_chunks_are_in_a_snapshot_whole_or_not_at_all() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x3");
    target.malloc("m0", VOLUME_MIB, 512);
    target.aio("s0", &bench.file("store", 256), 512);
    target.store("store0", "s0", CHUNK_KIB);
    target.volume("vol0", "m0", "store0", &json!({"policy": "idle", "idle_ms": 1}));
    let mut writer = Writer::fill(&bench, &target, &["vol0", "vol0"]);
    writer.spread = true;
    three_cuts(&target, &mut writer, |name| target.dump(&format!("vol0@{name}")));
    target.check_slots();
    target.stop();
}

/// I1 over NVMe/TCP, with queues on two reactors of the target that share chunks.
#[test]
fn snapshots_under_nvme_tcp_load_on_two_reactors_are_cuts() {
    let bench = Bench::new();
    let target = bench.target("target", &["-m", "0x3"]);
    target.malloc("m0", VOLUME_MIB, 512);
    target.aio("s0", &bench.file("store", 256), 512);
    target.store("store0", "s0", CHUNK_KIB);
    target.volume("vol0", "m0", "store0", &json!({"policy": "idle", "idle_ms": 1}));
    let subsystem = target.serve_nvmf("vol0", 2);
    let agent = bench.agent("agent", "0x2");
    let queues = [agent.attach("A", &subsystem, 0), agent.attach("B", &subsystem, 1)];
    let mut writer = Writer::fill(&bench, &agent, &[&queues[0], &queues[1]]);
    let stats = target.call("nvmf_get_stats", json!({}));
    let groups = stats["poll_groups"].as_array().expect("a list");
    let busy = groups.iter().filter(|group| group["io_qpairs"].as_u64() > Some(0)).count();
    assert_eq!(busy, 2, "queues on two reactors: {stats}");

    writer.boundary = Some(CHUNK_KIB / 4);
    three_cuts(&target, &mut writer, |name| {
        agent.dump(&agent.attach(name, &target.export("vol0", name), 0))
    });
    let volume = agent.dump(&queues[0]);
    let now = Window { requested_ns: writer.now_ns(), replied_ns: writer.now_ns() };
    assert_cut("(the volume itself)", &volume, &writer, &now);
    target.check_slots();
    agent.stop();
    target.stop();
}

/// Puts a bdev that can be made slow under the store.
pub fn slow_store(target: &Process, bench: &Bench) {
    target.aio("s0", &bench.file("store", 256), 512);
    target.call(
        "bdev_delay_create",
        json!({"base_bdev_name": "s0", "name": "slow0", "avg_read_latency": 0,
            "p99_read_latency": 0, "avg_write_latency": 0, "p99_write_latency": 0}),
    );
    target.store("store0", "slow0", CHUNK_KIB);
}

/// Makes it slow for writes.
pub fn slow_down(target: &Process, latency: Duration) {
    for kind in ["avg_write", "p99_write"] {
        let latency_us = latency.as_micros() as u64;
        let params = json!({"delay_bdev_name": "slow0", "latency_type": kind,
            "latency_us": latency_us});
        target.call("bdev_delay_update_latency", params);
    }
}

/// I1 and I3 while chunks are pending for long: the same bytes are read before, during and after the
/// preserves, under writes to just those chunks.
///
/// Fails when a write goes to the master before its chunk is preserved (I3), and when a read of a
/// pending chunk from the master is not checked afterwards.
#[test]
fn a_completing_snapshot_reads_as_it_does_when_complete() {
    let bench = Bench::new();
    let target = bench.agent("target", "0x3");
    target.malloc("m0", VOLUME_MIB, 512);
    slow_store(&target, &bench);
    target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    let mut writer = Writer::fill(&bench, &target, &["vol0"]);
    writer.start(8, 500);
    writer.progress(200);
    slow_down(&target, Duration::from_millis(100));
    let (_, window) = cut(&target, &writer, "vol0", "a");
    let during = target.dump("vol0@a");
    let snapshot = target.get_snapshot("vol0", "a").expect("there");
    assert_eq!(snapshot["state"], "completing", "read too late to show anything: {snapshot}");
    let half = target.dump("vol0@a");
    let snapshot = target.snapshot_ended("vol0", "a");
    assert_eq!(snapshot["state"], "complete", "{snapshot}");
    slow_down(&target, Duration::ZERO);
    writer.progress(200);
    writer.stop();
    let after = target.dump("vol0@a");
    assert_cut("a", &after, &writer, &window);
    assert!(during == after, "read otherwise at the start of completing");
    assert!(half == after, "read otherwise later in completing");
    assert!(snapshot["chunks"]["preserved"].as_u64() > Some(0), "{snapshot}");
    target.stop();
}

/// Pattern A is there before; B is written at full speed during and after three snapshots. Every
/// block of a snapshot passes fio's verification, and those that B never touched hold A.
#[test]
fn fio_verifies_snapshots_taken_under_its_load() {
    let bench = Bench::new();
    let target = bench.target("target", &["-m", "0x3"]);
    target.malloc("m0", VOLUME_MIB, 512);
    target.aio("s0", &bench.file("store", 256), 512);
    target.store("store0", "s0", CHUNK_KIB);
    target.volume("vol0", "m0", "store0", &json!({"policy": "idle", "idle_ms": 5}));
    let volume = target.serve_nvmf("vol0", 1);
    let pattern_a = "--verify=pattern";
    let a = [pattern_a, "--verify_pattern=0xa5a5a5a5", "--bs=4k", "--iodepth=32"];
    let b = ["--verify=crc32c", "--bs=4k", "--iodepth=32", "--offset=16m", "--size=16m"];
    bench.fio(&volume, &[&["--rw=write", "--do_verify=1"], &a[..]].concat());
    let load = ["--rw=randwrite", "--do_verify=0", "--time_based", "--runtime=6", "--norandommap"];
    let mut fio = bench.fio_start(&volume, &[&load[..], &b[..]].concat());
    wait_for("fio writes", Duration::from_secs(30), || {
        // 8,192 are A's.
        (target.stats()["commands"]["write"].as_u64() > Some(9000)).then_some(())
    });
    for name in ["a", "b", "c"] {
        let snapshot = target.snapshot("vol0", name);
        assert_eq!(snapshot["state"], "complete", "{snapshot}");
        assert!(fio.runs(), "the load ended before the snapshots");
    }
    let job = fio.finish();
    assert!(job["write"]["total_ios"].as_u64() > Some(1000), "{job}");
    for name in ["a", "b", "c"] {
        let export = target.export("vol0", name);
        let size = ["--rw=read", "--size=16m"];
        bench.fio(&export, &[&size[..], &a[..]].concat());
    }
    target.check_slots();
    target.stop();
}
