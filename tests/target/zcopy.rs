//! Zero copy: buffers of the master's that a volume's users write into, and the gate.
//!
//! With SPDK 20.07 a malloc bdev lends its own memory. For an AIO bdev, and hence for a volume on one,
//! the bdev layer makes a buffer, a read and a write of it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use presnap::spdk::bdev::Desc;
use presnap::spdk::error::IoError;
use presnap::spdk::executor;
use presnap::spdk::rpc::{self, RpcError};
use presnap::spdk::thread::{self, Thread};
use presnap::spdk::zcopy::ZcopyBuf;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::agent::outcome;
use crate::cut::{CHUNK_KIB, slow_down, slow_store};
use crate::harness::{Bench, Process, wait_for};

// ---- the agent's part ---------------------------------------------------------------------------

#[derive(Deserialize)]
struct Phase {
    /// Names the zero copy from its start to its end.
    name: String,
    /// Where: the app thread, or the thread that NVMe-oF has on this reactor.
    #[serde(default)]
    reactor: Option<usize>,
    #[serde(default)]
    bdev: String,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    fill: u8,
    #[serde(default)]
    populate: bool,
    #[serde(default)]
    commit: bool,
}

thread_local! {
    static OPEN: RefCell<HashMap<String, ZcopyBuf>> = RefCell::default();
}

/// More methods of the agent.
pub fn register() {
    rpc::register("test_zcopy_start", |params| async { start(rpc::params(params)?).await });
    rpc::register("test_zcopy_put", |params| async { put(rpc::params(params)?).await });
    rpc::register("test_zcopy_end", |params| async { end(rpc::params(params)?).await });
}

async fn thread_of(phase: &Phase) -> Thread {
    let Some(reactor) = phase.reactor else { return Thread::app() };
    let all = thread::all().await;
    let mut groups = all.into_iter().filter(|thread| thread.name().contains("poll_group"));
    groups.nth(reactor).expect("a reactor")
}

/// The answer is `{ok, error, sct, sc, filled}`: the byte that the buffer is full of, if it is.
async fn start(phase: Phase) -> Result<Value, RpcError> {
    let desc = Desc::open(&phase.bdev, true, |_| {})
        .map_err(|error| RpcError::errno(error, phase.bdev.clone()))?;
    let thread = thread_of(&phase).await;
    let started = executor::spawn_on(thread, move || async move {
        let block_bytes = u64::from(desc.block_bytes());
        let (at, count) = (phase.offset / block_bytes, phase.bytes / block_bytes);
        let channel = desc.channel().expect("a channel");
        let buf = channel.zcopy(at, count, phase.populate).await?;
        let bytes = buf.to_vec();
        assert_eq!(bytes.len() as u64, phase.bytes, "length of the buffer");
        OPEN.with_borrow_mut(|open| open.insert(phase.name, buf));
        let all_same = bytes.iter().all(|&byte| byte == bytes[0]);
        Ok::<_, IoError>(all_same.then_some(bytes[0]))
    });
    let started = started.await.expect("the thread stays");
    let mut answer = outcome(started.map(|_| ()));
    answer["filled"] = json!(started.ok().flatten());
    Ok(answer)
}

/// Fills a part of the buffer.
async fn put(phase: Phase) -> Result<Value, RpcError> {
    let thread = thread_of(&phase).await;
    let done = executor::spawn_on(thread, move || async move {
        OPEN.with_borrow_mut(|open| {
            let buf = open.get_mut(&phase.name).expect("started");
            buf.write(phase.offset as usize, &vec![phase.fill; phase.bytes as usize]);
        });
    });
    done.await.expect("the thread stays");
    Ok(Value::Bool(true))
}

async fn end(phase: Phase) -> Result<Value, RpcError> {
    let thread = thread_of(&phase).await;
    let ended = executor::spawn_on(thread, move || async move {
        let buf = OPEN.with_borrow_mut(|open| open.remove(&phase.name)).expect("started");
        buf.end(phase.commit).await
    });
    Ok(outcome(ended.await.expect("the thread stays")))
}

// ---- tests --------------------------------------------------------------------------------------

const CHUNK: u64 = (CHUNK_KIB as u64) << 10;
/// Few chunks, so that copying them all to a slow store takes seconds only.
const MASTER_MIB: u64 = 2;

/// Slow enough that what waits for the store can be told from what does not.
const SLOW: Duration = Duration::from_millis(1500);

/// A zero copy of 8 KiB.
struct Zcopy<'a> {
    target: &'a Process,
    name: &'a str,
    reactor: Option<usize>,
}

const BYTES: u64 = 8192;

impl<'a> Zcopy<'a> {
    fn new(target: &'a Process, name: &'a str) -> Self {
        Self { target, name, reactor: None }
    }

    fn start_params(&self, bdev: &str, offset: u64, populate: bool) -> Value {
        json!({"name": self.name, "reactor": self.reactor, "bdev": bdev, "offset": offset,
            "bytes": BYTES, "populate": populate})
    }

    /// The byte that the buffer is full of.
    fn start(&self, bdev: &str, offset: u64, populate: bool) -> Value {
        let params = self.start_params(bdev, offset, populate);
        let answer = self.target.call("test_zcopy_start", params);
        assert_eq!(answer["ok"], true, "start of {}: {answer}", self.name);
        answer["filled"].clone()
    }

    fn put(&self, at: u64, bytes: u64, fill: u8) {
        let params = json!({"name": self.name, "reactor": self.reactor, "offset": at,
            "bytes": bytes, "fill": fill});
        self.target.call("test_zcopy_put", params);
    }

    fn end(&self, commit: bool) {
        let params = json!({"name": self.name, "reactor": self.reactor, "commit": commit});
        let answer = self.target.call("test_zcopy_end", params);
        assert_eq!(answer["ok"], true, "end of {}: {answer}", self.name);
    }
}

/// A volume full of 0xa1 on a malloc or an AIO bdev.
fn target(bench: &Bench, cores: &str, lends: bool) -> Process {
    let target = bench.agent("target", cores);
    if lends {
        target.malloc("m0", MASTER_MIB, 512);
    } else {
        target.aio("m0", &bench.file("master", MASTER_MIB), 512);
    }
    slow_store(&target, bench);
    target.volume("vol0", "m0", "store0", &json!({"policy": "off"}));
    let written = target.io("vol0", "write", 0, MASTER_MIB << 20, 0xa1);
    assert_eq!(written["ok"], true, "{written}");
    target
}

/// Asserts that a bdev is full of 0xa1 but for what is named: offset, length and byte.
#[track_caller]
fn assert_bytes(target: &Process, bdev: &str, others: &[(u64, u64, u8)]) {
    let mut wanted = vec![0xa1; (MASTER_MIB << 20) as usize];
    for &(at, len, byte) in others {
        wanted[at as usize..(at + len) as usize].fill(byte);
    }
    let found = target.dump(bdev);
    let different = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted);
    assert_eq!(different, None, "{bdev} differs from that byte on");
    assert_eq!(found.len(), wanted.len());
}

fn assert_complete(target: &Process, name: &str) {
    let snapshot = target.snapshot_ended("vol0", name);
    assert_eq!(snapshot["state"], "complete", "{snapshot}");
}

fn parked(target: &Process) -> u64 {
    target.stats()["parked"]["waiting"].as_u64().expect("a number")
}

#[test]
fn zero_copies_write_and_read() {
    for lends in [true, false] {
        let bench = Bench::new();
        let target = target(&bench, "0x1", lends);
        // Across a border of chunks.
        let at = CHUNK - 4096;
        let write = Zcopy::new(&target, "write");
        write.start("vol0", at, false);
        write.put(0, BYTES, 0xb2);
        write.end(true);
        assert_bytes(&target, "vol0", &[(at, BYTES, 0xb2)]);
        // Read; what is done to the buffer does not matter without commit, and with it it does.
        let read = Zcopy::new(&target, "read");
        for commit in [false, true] {
            assert_eq!(read.start("vol0", at, true), 0xb2);
            read.put(0, 4096, 0xc3);
            assert_bytes(&target, "vol0", &[(at, BYTES, 0xb2)]);
            read.end(commit);
        }
        let changed = [(at, BYTES, 0xb2), (at, 4096, 0xc3)];
        assert_bytes(&target, "vol0", &changed);
        let commands = target.stats()["commands"].clone();
        assert_eq!(commands["other"], 0, "{commands}");
        assert_complete(&target, target.snapshot("vol0", "s")["name"].as_str().expect("a name"));
        assert_bytes(&target, "vol0@s", &changed);
        // Of a snapshot, reads only.
        let snapshot = Zcopy::new(&target, "snapshot");
        let params = snapshot.start_params("vol0@s", at, false);
        if target.call("test_zcopy_start", params)["ok"] == true {
            snapshot.put(0, BYTES, 0xd4);
            let params = json!({"name": "snapshot", "commit": true});
            let answer = target.call("test_zcopy_end", params);
            assert_eq!(answer["ok"], false, "a snapshot was written: {answer}");
        }
        assert_bytes(&target, "vol0@s", &changed);
        target.check_slots();
        target.stop();
    }
}

/// I1. Fails when a zero copy that is lent the master's buffer passes the gate by, and when it leaves
/// before its end.
#[test]
fn a_snapshot_has_an_open_zero_copy_whole() {
    let bench = Bench::new();
    let target = target(&bench, "0x1", true);
    let write = Zcopy::new(&target, "write");
    write.start("vol0", CHUNK - 4096, false);
    write.put(0, 6144, 0xb2);
    target.snapshot_cut("vol0", "s");
    // Chunks of the same turn that the zero copy is not on do not wait for it...
    let elsewhere = target.io("vol0", "write", 4 * CHUNK, 4096, 0xd4);
    assert_eq!(elsewhere["ok"], true, "{elsewhere}");
    // ... but newer writes to its chunks do, and so does the snapshot.
    let params =
        json!({"bdev": "vol0", "op": "write", "offset": CHUNK, "bytes": 4096, "fill": 0xc3});
    let newer = target.call_start("test_io", params);
    wait_for("a parked write", SLOW, || (parked(&target) == 1).then_some(()));
    // Nothing else is left for the snapshot to do.
    let others = (MASTER_MIB << 20) / CHUNK - 2;
    let snapshot = wait_for("all other chunks to be settled", 20 * SLOW, || {
        let snapshot = target.get_snapshot("vol0", "s").expect("there");
        let ways = ["adopted", "copied", "preserved", "zero"];
        let settled = ways.iter().filter_map(|way| snapshot["chunks"][way].as_u64()).sum::<u64>();
        (settled == others).then_some(snapshot)
    });
    assert_eq!(snapshot["state"], "completing", "without the zero copy's end: {snapshot}");
    assert_eq!(parked(&target), 1, "the newer write passed");
    write.put(6144, BYTES - 6144, 0xb2);
    write.end(true);
    assert_eq!(newer.join().expect("joined").expect("answered")["ok"], true);
    assert_complete(&target, "s");
    let older = (CHUNK - 4096, BYTES, 0xb2);
    assert_bytes(&target, "vol0@s", &[older]);
    assert_bytes(&target, "vol0", &[older, (CHUNK, 4096, 0xc3), (4 * CHUNK, 4096, 0xd4)]);
    // Nothing of it is left in the gate, and the chunks count as changed.
    let next = target.snapshot("vol0", "next");
    assert_eq!((&next["state"], &next["chunks"]["required"]), (&json!("complete"), &json!(2)));
    target.check_slots();
    target.stop();
}

/// A failed snapshot's bdev is gone only when its last reader has let go of it; until then its name is
/// taken, and a deletion does not say otherwise.
///
/// Fails when the deletion does not wait for the bdev of a snapshot that has failed.
#[test]
fn the_name_of_a_failed_snapshot_is_free_once_it_is_deleted() {
    let bench = Bench::new();
    let target = target(&bench, "0x1", true);
    slow_down(&target, SLOW / 3);
    target.snapshot_cut("vol0", "s");
    let read = Zcopy::new(&target, "read");
    assert_eq!(read.start("vol0@s", 0, true), 0xa1);
    let snapshot = json!({"volume": "vol0", "name": "s"});
    let deleting = target.call_start("presnap_snapshot_delete", snapshot.clone());
    wait_for("the snapshot to have failed", 20 * SLOW, || {
        let there = target.get_snapshot("vol0", "s");
        there.is_none_or(|snapshot| snapshot["state"] == "failed").then_some(())
    });
    slow_down(&target, Duration::ZERO);
    // Answered, in whatever way, when that is recorded; a create before it would wait for the one that failed.
    let late = json!({"bdev": "vol0@s", "op": "read", "offset": 0, "bytes": 4096, "fill": 0});
    let late = target.try_call("test_io", late);
    assert!(!late.as_ref().is_ok_and(|answer| answer["ok"] == true), "{late:?}");
    let again = target.call_start("presnap_snapshot_create", snapshot);
    for _ in 0..100 {
        assert!(!deleting.is_finished() && !again.is_finished(), "its bdev is open");
        target.stats();
    }
    read.end(false);
    assert_eq!(deleting.join().expect("joined").expect("answered"), true);
    let again = again.join().expect("joined").expect("answered");
    assert_eq!(again["state"], "complete", "{again}");
    assert_bytes(&target, "vol0@s", &[]);
    target.check_slots();
    target.stop();
}

/// I1 and I6 where the bdev layer has the buffer: nothing is written before the end.
#[test]
fn a_snapshot_does_not_wait_for_what_is_written_at_the_end() {
    let bench = Bench::new();
    let target = target(&bench, "0x1", false);
    let write = Zcopy::new(&target, "write");
    write.start("vol0", CHUNK - 4096, false);
    write.put(0, BYTES, 0xb2);
    let snapshot = target.snapshot("vol0", "s");
    assert_eq!(snapshot["state"], "complete", "{snapshot}");
    write.end(true);
    assert_bytes(&target, "vol0@s", &[]);
    assert_bytes(&target, "vol0", &[(CHUNK - 4096, BYTES, 0xb2)]);
    target.check_slots();
    target.stop();
}

/// I3 and I6. Fails when zero copies that read wait at the gate, and when one that is committed, or one
/// to be written, does not.
#[test]
fn zero_copies_of_pending_chunks() {
    let bench = Bench::new();
    let target = target(&bench, "0x1", true);
    slow_down(&target, SLOW);
    target.snapshot_cut("vol0", "s");
    let started = Instant::now();
    let read = Zcopy::new(&target, "read");
    assert_eq!(read.start("vol0", 0, true), 0xa1);
    let took = started.elapsed();
    assert!(took < SLOW / 2, "a read took {took:?}");
    assert_eq!(parked(&target), 0, "a read waits");
    read.put(0, BYTES, 0xb2);
    assert_bytes(&target, "vol0@s", &[]);
    let params = json!({"name": "read", "commit": true});
    let committing = target.call_start("test_zcopy_end", params);
    let write = Zcopy::new(&target, "write");
    let params = write.start_params("vol0", 20 * CHUNK, false);
    let starting = target.call_start("test_zcopy_start", params);
    wait_for("two to be parked", SLOW, || (parked(&target) == 2).then_some(()));
    slow_down(&target, Duration::ZERO);
    assert_eq!(committing.join().expect("joined").expect("answered")["ok"], true);
    assert_eq!(starting.join().expect("joined").expect("answered")["ok"], true);
    write.put(0, BYTES, 0xc3);
    // Aborted are those that are parked, not those that are open.
    assert_eq!(target.io("vol0", "reset", 0, 0, 0)["ok"], true);
    write.end(true);
    assert_complete(&target, "s");
    assert_bytes(&target, "vol0@s", &[]);
    assert_bytes(&target, "vol0", &[(0, BYTES, 0xb2), (20 * CHUNK, BYTES, 0xc3)]);
    assert_eq!(target.snapshot("vol0", "next")["chunks"]["required"], 2);
    target.check_slots();
    target.stop();
}

/// SPDK's partitions start a second zero copy instead of ending the first.
///
/// Fails (the snapshot waits for ever) when the volume offers them any.
#[test]
fn zero_copies_of_a_partition_of_a_volume() {
    let bench = Bench::new();
    let target = target(&bench, "0x1", true);
    target.call("bdev_split_create", json!({"base_bdev": "vol0", "split_count": 2}));
    let write = Zcopy::new(&target, "write");
    write.start("vol0p1", 0, false);
    write.put(0, BYTES, 0xb2);
    write.end(true);
    let half = MASTER_MIB << 19;
    assert_bytes(&target, "vol0", &[(half, BYTES, 0xb2)]);
    for name in ["s", "next"] {
        target.snapshot_cut("vol0", name);
        assert_complete(&target, name);
    }
    target.check_slots();
    target.stop();
}

/// A rate limit moves a volume's commands to one thread, and back when it is lifted: ends come on
/// another thread than starts.
#[test]
fn a_rate_limit_comes_and_goes_while_zero_copies_are_open() {
    let bench = Bench::new();
    let target = target(&bench, "0x3", true);
    let limit = |per_s: u32| {
        target.call("bdev_set_qos_limit", json!({"name": "vol0", "rw_ios_per_sec": per_s}));
    };
    // The limit's thread will be one that has a channel.
    let hold = Zcopy { target: &target, name: "hold", reactor: Some(0) };
    hold.start("vol0", 0, true);
    let write = Zcopy { target: &target, name: "write", reactor: Some(1) };
    for (per_s, fill) in [(1000, 0xb2), (0, 0xc3)] {
        write.start("vol0", CHUNK, false);
        write.put(0, BYTES, fill);
        limit(per_s);
        write.end(true);
        assert_bytes(&target, "vol0", &[(CHUNK, BYTES, fill)]);
        let name = fill.to_string();
        target.snapshot_cut("vol0", &name);
        assert_complete(&target, &name);
        assert_bytes(&target, &format!("vol0@{name}"), &[(CHUNK, BYTES, fill)]);
    }
    hold.end(false);
    target.check_slots();
    target.stop();
}
