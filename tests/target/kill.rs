//! `kill -9` at any moment, again and again on the same files: under load and while snapshots are taken,
//! read and deleted, in a clean stop, in the start after another kill.
//!
//! `PRESNAP_KILLS` is how often (10), `PRESNAP_SEED` repeats the choices of a run. What was under way at
//! the moment of a kill does not come again exactly; the same choices often enough do.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use presnap::rpc::Errno;
use serde_json::{Value, json};

use crate::agent::{BLOCK_BYTES, Load, LogEntry, Random, read_log};
use crate::cut::CHUNK_KIB;
use crate::harness::{Bench, Process, Subsystem, check_catalog};
use crate::history::{check_cut, check_survivors, numbers};
use crate::initiator::{BLOCK, HOST, Initiator};

/// 128 chunks: the most of them are written to in each life.
const VOLUME_MIB: u64 = 8;
const CHUNK_BLOCKS: usize = CHUNK_KIB as usize * 1024 / BLOCK_BYTES;
/// A life under load lasts up to this.
const LIFE_MAX: Duration = Duration::from_secs(1);
/// More snapshots are deleted first.
const SNAPSHOTS_MAX: usize = 6;
/// Bytes of a read, all that NVMe/TCP takes as one command here.
const READ_BYTES: usize = 128 << 10;
const QUEUES: usize = 2;

/// What was heard of a snapshot, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Heard {
    /// Nothing yet.
    Asked,
    Consistent,
    Complete,
}

/// A snapshot that is there, or may be.
#[derive(Debug)]
struct Taken {
    heard: Heard,
    /// Request and reply, by the clock of the agent of that life; none if it was taken without a load.
    window: Option<(u64, u64)>,
    /// Number of the life that it was asked for in.
    life: u32,
    /// What it held when it was read.
    held: Option<Vec<u64>>,
    /// Somebody has asked to delete it, and heard nothing.
    deleting: bool,
}

/// How often what was met.
#[derive(Debug, Default)]
struct Counts {
    kills: u32,
    kills_under_load: u32,
    kills_in_starts: u32,
    kills_in_stops: u32,
    clean_stops: u32,
    writes: u64,
    /// Snapshots asked for, those whose fate was open at a kill, and what that became.
    asked: u32,
    open: u32,
    open_complete: u32,
    open_failed: u32,
    open_absent: u32,
    /// Ended as failed while the target lived.
    failed_alive: u32,
    deleted: u32,
    /// Comparisons of a whole snapshot with what it must contain, or with what it was.
    compared: u32,
    compared_completing: u32,
    volumes_compared: u32,
}

/// Everything that outlives a kill.
struct Bed {
    bench: Bench,
    random: Random,
    counts: Counts,
    config: PathBuf,
    served: Subsystem,
    export_port: u16,
    snapshots: BTreeMap<String, Taken>,
    /// Exported as the configuration says.
    kept: Vec<(String, Subsystem)>,
    /// What each block of the volume held when the last life's load began.
    base: Vec<u64>,
    /// Number of the last write before that.
    from: u64,
    /// The load since.
    log: Option<PathBuf>,
    life: u32,
    start_took: Duration,
    stop_took: Duration,
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T>
where
    T::Err: Display,
{
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// All of a namespace; `None` if the connection ended.
fn read_all(subsystem: &Subsystem) -> Option<Vec<u64>> {
    let mut host = Initiator::connect(subsystem.ports[0], &subsystem.nqn, HOST).ok()?;
    let mut bytes = Vec::with_capacity((VOLUME_MIB as usize) << 20);
    while bytes.len() < (VOLUME_MIB as usize) << 20 {
        bytes.extend(host.read((bytes.len() / BLOCK) as u64, READ_BYTES / BLOCK).ok()?);
    }
    Some(numbers(&bytes))
}

impl Bed {
    fn new(seed: u64) -> (Self, Process) {
        let bench = Bench::new();
        let target = bench.target("target", &[]);
        target.aio("m0", &bench.file("master", VOLUME_MIB), 512);
        target.aio("s0", &bench.file("store", 256), 512);
        target.store("store0", "s0", CHUNK_KIB);
        target.volume("vol0", "m0", "store0", &json!({"policy": "idle", "idle_ms": 5}));
        let served = target.serve_nvmf("vol0", QUEUES);
        let bed = Self {
            random: Random(seed),
            counts: Counts::default(),
            config: target.save_config(),
            served,
            export_port: bench.port(),
            snapshots: BTreeMap::new(),
            kept: Vec::new(),
            base: vec![0; (VOLUME_MIB as usize) << 20 >> 12],
            from: 0,
            log: None,
            life: 0,
            start_took: Duration::from_secs(1),
            stop_took: Duration::from_millis(300),
            bench,
        };
        (bed, target)
    }

    fn random_duration(&mut self, below: Duration) -> Duration {
        Duration::from_micros(self.random.below(below.as_micros() as u64))
    }

    fn start(&mut self) -> Process {
        let config = self.config.to_str().expect("plain").to_owned();
        let started = Instant::now();
        let target = self.bench.target("target", &["-c", &config]);
        self.start_took = started.elapsed();
        target
    }

    /// Kills starts, up to twice.
    fn kill_starts(&mut self) {
        let config = self.config.to_str().expect("plain").to_owned();
        for _ in 0..=self.random.below(2) {
            // What takes most of a start, and is of no interest, is SPDK's own beginning.
            let after = self.start_took / 2 + self.random_duration(self.start_took * 3 / 5);
            self.bench.target_killed("target", &["-c", &config], after);
            self.counts.kills += 1;
            self.counts.kills_in_starts += 1;
        }
    }

    fn load_start(&mut self, agent: &Process, fill: bool) {
        let log = self.bench.path(&format!("writes-{}", self.life));
        let load = Load {
            name: "load".into(),
            bdevs: (0..QUEUES).map(|queue| format!("V{queue}n1")).collect(),
            spread: false,
            queue_depth: 1 + self.random.below(8) as usize,
            log: log.clone(),
            seed: 1 + self.random.below(1 << 30),
            numbers_from: self.from,
            fill,
            pause_us: [0, 200, 1000, 5000][self.random.below(4) as usize],
        };
        agent.call("test_load_start", serde_json::to_value(load).expect("plain"));
        self.log = Some(log);
    }

    fn agent(&self) -> Process {
        let agent = self.bench.agent("agent", "0x2");
        for queue in 0..QUEUES {
            agent.attach(&format!("V{queue}"), &self.served, queue);
        }
        agent
    }

    /// The writes of the last load, numbered from 1.
    fn entries(&self) -> Vec<LogEntry> {
        let mut entries = self.log.as_deref().map(read_log).unwrap_or_default();
        for (index, entry) in entries.iter_mut().enumerate() {
            entry.number -= self.from;
            assert_eq!(entry.number, index as u64 + 1, "a log in order");
        }
        entries
    }

    /// The same of what blocks hold: 0 is what they held before the load.
    fn relative(&self, what: &str, numbers: &[u64]) -> Vec<u64> {
        let blocks = numbers.iter().zip(&self.base).enumerate();
        let relative = blocks.map(|(block, (&number, &base))| {
            assert!(
                number > self.from || number == base,
                "{what}: block {block} holds write {number}, neither {base} nor a newer one"
            );
            number.saturating_sub(self.from)
        });
        relative.collect()
    }

    /// A snapshot of the last life against what was written in it.
    fn check_snapshot(&self, name: &str, taken: &Taken, held: &[u64], entries: &[LogEntry]) {
        let what = format!("snapshot {name} of life {}", taken.life);
        let Some((from, to)) = taken.window else {
            assert!(held == self.base, "{what} is not what the volume was");
            return;
        };
        let relative = self.relative(&what, held);
        let boundary = Some(CHUNK_BLOCKS as u32);
        if let Err(problem) = check_cut(&relative, entries, from, to, boundary) {
            panic!("{what}, {:?}: {problem} (numbers from {})", taken.heard, self.from);
        }
    }

    /// What the last life's end left, and what its load had written.
    fn check_after(&mut self, target: &Process, killed: bool) {
        target.check_slots();
        let entries = self.entries();
        self.counts.writes += entries.len() as u64;
        let listed = target.call("presnap_get_snapshots", json!({}));
        let mut listed: BTreeMap<String, Value> = listed
            .as_array()
            .expect("a list")
            .iter()
            .map(|snapshot| {
                (snapshot["name"].as_str().expect("a name").to_owned(), snapshot.clone())
            })
            .collect();
        for (name, mut taken) in std::mem::take(&mut self.snapshots) {
            let open = killed && taken.heard < Heard::Complete && !taken.deleting;
            self.counts.open += u32::from(open);
            let Some(now) = listed.remove(&name) else {
                assert!(taken.deleting || taken.heard == Heard::Asked, "{name} is lost: {taken:?}");
                self.counts.open_absent += u32::from(open);
                continue;
            };
            if now["state"] == "complete" {
                self.counts.open_complete += u32::from(open);
                let held = self.read(target, &name).expect("nobody kills");
                if let Some(before) = &taken.held {
                    assert!(*before == held, "{name} changed: {now}");
                }
                if taken.life == self.life {
                    self.check_snapshot(&name, &taken, &held, &entries);
                }
                self.counts.compared += 1;
                (taken.heard, taken.held, taken.deleting) = (Heard::Complete, Some(held), false);
                self.snapshots.insert(name, taken);
            } else {
                assert_eq!(now["state"], "failed", "{now}");
                assert!(taken.heard < Heard::Complete, "was complete: {now}");
                assert!(now["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{now}");
                assert!(now["bytes_used"] == 0, "keeps slots: {now}");
                if let Some(held) = &taken.held {
                    // What was read of it was right all the same.
                    self.check_snapshot(&name, &taken, held, &entries);
                    self.counts.compared += 1;
                }
                self.counts.open_failed += u32::from(open);
                target.snapshot_delete("vol0", &name);
            }
        }
        assert!(listed.is_empty(), "deleted, and there: {listed:?}");

        let volume = read_all(&self.served).expect("nobody kills");
        check_survivors(&self.relative("the volume", &volume), &entries);
        self.counts.volumes_compared += 1;
        self.from += entries.len() as u64;
        self.base = volume;
        if let Some(log) = self.log.take() {
            std::fs::remove_file(log).expect("removed");
        }
        target.check_slots();
    }

    /// Reads a snapshot by way of its export, or of one made for that; `None` when killed meanwhile or
    /// refused.
    fn read(&self, target: &Process, name: &str) -> Option<Vec<u64>> {
        if let Some((_, export)) = self.kept.iter().find(|(kept, _)| kept == name) {
            return read_all(export);
        }
        let held = self.export(target, name).and_then(|export| read_all(&export));
        let params = json!({"volume": "vol0", "name": name});
        target.call_until_killed("presnap_snapshot_unexport", &params)?.ok()?;
        held
    }

    fn export(&self, target: &Process, name: &str) -> Option<Subsystem> {
        let params = json!({"volume": "vol0", "name": name, "allow_any_host": true,
            "trsvcid": self.export_port.to_string()});
        let answer = target.call_until_killed("presnap_snapshot_export", &params)?.ok()?;
        let nqn = answer["nqn"].as_str().expect("an NQN").to_owned();
        Some(Subsystem { nqn, ports: vec![self.export_port] })
    }

    /// The next snapshot, without a load: it is the volume, and if a start after a kill knows nothing it
    /// has what differs from the newest complete one.
    fn quiet_snapshot(&mut self, target: &Process, killed: bool) {
        let name = format!("q{}", self.life);
        let newest = target.call("presnap_get_snapshots", json!({"volume": "vol0"}));
        let newest = newest.as_array().and_then(|all| all.last()).map(|last| last["name"].clone());
        let snapshot = target.snapshot("vol0", &name);
        assert_eq!(snapshot["state"], "complete", "{snapshot}");
        self.counts.asked += 1;
        if let (true, Some(newest)) = (killed, newest) {
            let before = self.snapshots[newest.as_str().expect("a name")].held.as_ref();
            let before = before.expect("read").chunks(CHUNK_BLOCKS);
            let differ = before.zip(self.base.chunks(CHUNK_BLOCKS)).filter(|(a, b)| a != b).count();
            assert_eq!(snapshot["chunks"]["required"], differ, "of all dirty: {snapshot}");
        }
        let held = self.read(target, &name).expect("nobody kills");
        assert!(held == self.base, "the next snapshot is not the volume");
        self.counts.compared += 1;
        let taken = Taken {
            heard: Heard::Complete,
            window: None,
            life: self.life,
            held: Some(held),
            deleting: false,
        };
        self.snapshots.insert(name, taken);
        target.check_slots();
    }

    /// Other exports than before, and the configuration with them.
    fn keep_others(&mut self, target: &Process) {
        for (name, _) in std::mem::take(&mut self.kept) {
            let params = json!({"volume": "vol0", "name": name});
            target.call("presnap_snapshot_unexport", params);
        }
        if let Some(name) = self.any_snapshot(|taken| taken.heard == Heard::Complete) {
            let export = self.export(target, &name).expect("nobody kills");
            self.kept.push((name, export));
        }
        self.config = target.save_config();
    }

    fn any_snapshot(&mut self, fits: impl Fn(&Taken) -> bool) -> Option<String> {
        let fitting = self.snapshots.iter().filter(|(_, taken)| fits(taken));
        let names: Vec<&String> = fitting.map(|(name, _)| name).collect();
        let at = self.random.below(names.len().max(1) as u64) as usize;
        names.get(at).map(|name| (*name).clone())
    }

    /// Takes a snapshot; `None` when killed.
    fn take(&mut self, life: &Life, wait: &str) -> Option<()> {
        self.counts.asked += 1;
        let name = format!("s{}", self.counts.asked);
        let taken = Taken {
            heard: Heard::Asked,
            window: Some((life.now()?, u64::MAX)),
            life: self.life,
            held: None,
            deleting: false,
        };
        self.snapshots.insert(name.clone(), taken);
        let params = json!({"volume": "vol0", "name": name, "wait": wait});
        let answer = life.target.call_until_killed("presnap_snapshot_create", &params)?;
        let replied = life.now()?;
        match answer {
            Ok(snapshot) => {
                let taken = self.snapshots.get_mut(&name).expect("just put");
                taken.window = taken.window.map(|(from, _)| (from, replied));
                taken.heard = match snapshot["state"].as_str() {
                    Some("complete") => Heard::Complete,
                    Some("completing") if wait == "consistent" => Heard::Consistent,
                    _ => panic!("{snapshot}"),
                };
            }
            Err(error) => {
                let another = error.code == Errno::Busy.code();
                assert!(another, "{name}: {error}");
                self.snapshots.remove(&name);
                self.counts.asked -= 1;
            }
        }
        Some(())
    }

    fn delete(&mut self, life: &Life) -> Option<()> {
        let Some(name) = self.any_snapshot(|_| true) else { return Some(()) };
        self.snapshots.get_mut(&name).expect("just found").deleting = true;
        let params = json!({"volume": "vol0", "name": name});
        let answer = life.target.call_until_killed("presnap_snapshot_delete", &params)?;
        let exported = self.kept.iter().any(|(kept, _)| *kept == name);
        match answer {
            Ok(_) => {
                assert!(!exported, "{name} is exported");
                self.snapshots.remove(&name);
                self.counts.deleted += 1;
            }
            Err(error) => {
                let completing = self.snapshots.values().any(|other| other.heard < Heard::Complete);
                let busy = error.code == Errno::Busy.code();
                assert!(busy && (exported || completing), "{name}: {error}");
                self.snapshots.get_mut(&name).expect("still there").deleting = false;
            }
        }
        Some(())
    }

    /// Reads a snapshot in whatever state it is in, and hears of its state.
    fn look(&mut self, life: &Life) -> Option<()> {
        let open = self.any_snapshot(|taken| taken.heard < Heard::Complete);
        let any = self.any_snapshot(|_| true);
        let Some(name) = open.or(any) else { return Some(()) };
        let state = |life: &Life| {
            let params = json!({"volume": "vol0", "name": name});
            let snapshots = life.get("presnap_get_snapshots", &params)?;
            Some(snapshots[0]["state"].as_str().expect("a state").to_owned())
        };
        let before = state(life)?;
        let held = self.read(&life.target, &name)?;
        let after = state(life)?;
        let taken = self.snapshots.get_mut(&name).expect("just found");
        if let Some(earlier) = &taken.held {
            assert!(*earlier == held, "{name} changed; {before}, then {after}");
        }
        self.counts.compared += 1;
        self.counts.compared_completing += u32::from(before == "completing");
        taken.held = Some(held);
        taken.heard = taken.heard.max(match after.as_str() {
            "complete" => Heard::Complete,
            "completing" => Heard::Consistent,
            // Given up in time, which a busy machine may bring about.
            _ => {
                self.counts.failed_alive += 1;
                return Some(());
            }
        });
        Some(())
    }

    fn set_policy(&mut self, life: &Life, policy: &str, mbytes_per_sec: u64) -> Option<()> {
        let params = json!({"volume": "vol0", "policy": policy, "idle_ms": 1 + self.random.below(50),
            "copy_mbytes_per_sec": mbytes_per_sec});
        life.get("presnap_set_policy", &params).map(drop)
    }

    /// One thing that somebody may do to a target; `None` when killed, or when nothing came of it.
    fn act(&mut self, life: &Life) -> Option<()> {
        if self.snapshots.len() >= SNAPSHOTS_MAX {
            return self.delete(life);
        }
        match self.random.below(10) {
            0..=3 => self.take(life, "consistent"),
            4 => self.take(life, "complete"),
            5..=6 => self.delete(life),
            7..=8 => self.look(life),
            _ => {
                let policy = ["idle", "idle", "rate", "off"][self.random.below(4) as usize];
                let rate = [0, 4, 20][self.random.below(3) as usize];
                self.set_policy(life, policy, rate)
            }
        }
    }

    /// Writes everything once.
    fn fill(&mut self, target: &Process) {
        let agent = self.agent();
        self.load_start(&agent, true);
        let result = agent.call("test_load_stop", json!({"name": "load", "wait": true}));
        assert_eq!(result["failed"], 0, "{result}");
        agent.stop();
        self.check_after(target, false);
    }

    /// One life of the target, and its end: whether that was a kill.
    fn live(&mut self, target: Process) -> bool {
        self.life += 1;
        let life = Life { target, agent: self.agent() };
        self.load_start(&life.agent, false);
        if self.life % 2 == 1 {
            // A snapshot that is under way when it ends, unless what was written before it is little.
            self.set_policy(&life, "off", 4).expect("nobody kills");
            self.take(&life, "consistent").expect("nobody kills");
        }
        let after = self.random_duration(LIFE_MAX);
        let killed = match self.life % 5 {
            3 => self.end_by_killed_stop(life, after),
            4 => self.end_by_stop(life, after),
            _ => {
                let killer = life.target.kill_after(after);
                while !killer.is_finished() {
                    self.act(&life);
                }
                life.target.kill();
                self.counts.kills_under_load += 1;
                true
            }
        };
        self.counts.kills += u32::from(killed);
        killed
    }

    fn act_for(&mut self, life: &Life, time: Duration) {
        let started = Instant::now();
        while started.elapsed() < time {
            self.act(life);
        }
    }

    fn end_by_killed_stop(&mut self, life: Life, after: Duration) -> bool {
        self.act_for(&life, after);
        let into_it = self.random_duration(self.stop_took);
        let ended = life.target.stop_then_kill(into_it);
        drop(life.agent);
        self.counts.kills_in_stops += u32::from(!ended);
        self.counts.clean_stops += u32::from(ended);
        !ended
    }

    fn end_by_stop(&mut self, life: Life, after: Duration) -> bool {
        self.act_for(&life, after);
        let result = life.agent.call("test_load_stop", json!({"name": "load"}));
        assert_eq!(result["failed"], 0, "{result}");
        life.agent.stop();
        let started = Instant::now();
        life.target.stop();
        self.stop_took = started.elapsed();
        let report = check_catalog(&self.bench.path("store"));
        let complete = self.snapshots.values().filter(|taken| taken.heard == Heard::Complete);
        let counts = complete.count() as u64..=self.snapshots.len() as u64;
        assert!(counts.contains(&report.snapshots), "{report:?}");
        self.counts.clean_stops += 1;
        false
    }
}

/// I1, I4, I5, I7 and I8 across kills: see `Bed::check_after` for what must hold after each.
///
/// Fails when an interrupted snapshot is complete after the start, and when a start takes the stop before for a
/// clean one.
#[test]
fn kills_cost_at_most_the_snapshot_under_way() {
    let kills = variable("PRESNAP_KILLS").unwrap_or(10);
    let seed = variable("PRESNAP_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        now.as_nanos() as u64
    });
    eprintln!("PRESNAP_SEED={seed} makes the same choices");
    let (mut bed, mut target) = Bed::new(seed | 1);
    bed.fill(&target);
    while bed.counts.kills < kills {
        let mut killed = bed.live(target);
        if bed.life % 4 == 2 {
            bed.kill_starts();
            killed = true;
        }
        target = bed.start();
        bed.check_after(&target, killed);
        let begin = json!({"volume": "vol0", "policy": "idle", "copy_mbytes_per_sec": 0});
        target.call("presnap_set_policy", begin);
        if bed.random.below(2) == 0 {
            bed.quiet_snapshot(&target, killed);
        }
        bed.keep_others(&target);
    }
    let params = json!({"name": "store0", "mbytes_per_sec": 0, "wait": true});
    let scrub = target.call("presnap_store_scrub", params);
    assert_eq!((&scrub["state"], &scrub["found"]), (&json!("done"), &json!(0)), "{scrub}");
    target.stop();
    let report = check_catalog(&bed.bench.path("store"));
    assert_eq!(report.snapshots as usize, bed.snapshots.len(), "{report:?}");
    eprintln!("{:#?}", bed.counts);
}

/// A target and its load.
struct Life {
    target: Process,
    agent: Process,
}

impl Life {
    /// The clock of the load. The agent is no part of this, should its initiator not survive its target's end.
    fn now(&self) -> Option<u64> {
        self.agent.call_until_killed("test_now", &json!({}))?.ok()?.as_u64()
    }

    fn get(&self, method: &str, params: &Value) -> Option<Value> {
        let answer = self.target.call_until_killed(method, params)?;
        Some(answer.unwrap_or_else(|error| panic!("{method} {params}: {error}")))
    }
}
