//! A simulator of a volume: the real gate, engine, chain, catalog (redb) and slot allocator on
//! simulated devices, in virtual time, on one thread, all of it chosen by a seed.
//!
//! One *history* is one volume's life: clients write, zero and unmap chunks through the gate;
//! snapshots are taken, read while they complete, deleted, given up; copies, flushes and catalog
//! transactions take their time, overtake each other and fail; power goes at any moment, also
//! between any two operations of a catalog transaction or of a load; the volume is stopped and
//! started again. After every step invariants are checked, and every snapshot is compared with a
//! model that knows each block's content at the cut ([`model`]); the catalog is compared with a
//! plain one ([`oracle`]).
//!
//! A violation is a panic, of the simulator or of the code under test; [`run`] catches it and the
//! seed tells it again: `presnap-sim --seed N --trace`.
//!
//! What one thread cannot show is checked elsewhere: threads inside the gate by loom.

mod checks;
mod disks;
mod foreground;
mod glue;
mod marks;
mod model;
mod operator;
mod oracle;
mod readers;
mod starts;
mod swarm;
mod views;
mod world;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use uuid::Uuid;

use crate::engine::records::{Cause, MasterIdentity, SnapshotState, VolumeId, VolumeRecord};
use crate::gate::OperationNumber;
use crate::store::sim_device::{CrashMode, SimDevice};
use crate::store::{FormatOptions, SharedDevice};

use super::random;
pub use marks::{Mark, Marks};
use random::Random;
use swarm::Swarm;
pub use world::Statistics;
use world::{Happening, World, violated};

/// Virtual time in which everything must have settled once nothing new begins.
const SETTLE_US: u64 = 120_000_000;
/// Steps after which a history is taken for one that never ends.
const STEPS_MAX: u64 = 2_000_000;

/// What a history showed.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Marks met.
    pub marks: Marks,
    /// Counters.
    pub statistics: Statistics,
    /// Depends on all that happened and when: equal only for equal histories.
    pub digest: u64,
}

impl Report {
    /// Adds the marks and counters of other histories.
    pub fn add(&mut self, other: &Report) {
        self.marks.add(&other.marks);
        self.statistics.add(&other.statistics);
    }
}

/// A broken invariant.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The seed of its history.
    pub seed: u64,
    /// What was found, and where in the code.
    pub words: String,
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    static FORMATTED: RefCell<HashMap<(u32, u32), SimDevice>> = RefCell::new(HashMap::new());
}

/// Panics of a history are its result, not news for the terminal.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.get() {
                let words = info.payload_as_str().unwrap_or("a panic without words");
                let place = info.location().map(ToString::to_string).unwrap_or_default();
                LAST_PANIC.set(format!("{words} (at {place})"));
            } else {
                usual(info);
            }
        }));
    });
}

/// Runs the history of `seed`; with `trace` it tells each step on standard output.
///
/// # Errors
/// The first violation.
pub fn run(seed: u64, trace: bool) -> Result<Report, Violation> {
    catch_panics();
    let mut random = Random::new(seed);
    let swarm = Swarm::draw(&mut random);
    if trace {
        println!("{swarm:#?}");
    }
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let (disk, volume) = new_volume(&swarm);
        let mut world = World::new(random, swarm, disk, volume);
        world.trace = trace;
        world.live();
        Report { marks: world.marks, statistics: world.statistics, digest: world.digest }
    }));
    QUIET.set(false);
    result.map_err(|_| Violation { seed, words: LAST_PANIC.take() })
}

/// A formatted store device with a volume in its catalog.
fn new_volume(swarm: &Swarm) -> (SimDevice, VolumeId) {
    let key = (swarm.slot_count, swarm.store_block_bytes);
    let fork = FORMATTED.with_borrow_mut(|formatted| {
        formatted.entry(key).or_insert_with(|| format(key.0, key.1)).fork()
    });
    let device = Arc::new(fork);
    let shared: SharedDevice = device.clone();
    let mut loaded = crate::store::load(&shared).expect("a fresh store can be loaded");
    let record = VolumeRecord {
        id: VolumeId(0),
        name: "v".to_owned(),
        uuid: Uuid::from_u128(1),
        master: MasterIdentity {
            uuid: None,
            block_bytes: swarm.lba_bytes,
            block_count: swarm.volume_lbas,
        },
        chunk_bytes: 1 << 16,
        clean: false,
        operation_number: OperationNumber(0),
    };
    let volume = loaded.catalog.create_volume(record).expect("a volume can be created").id;
    loaded.catalog.close().expect("no faults yet");
    (device.crash(CrashMode::KeepAll), volume)
}

fn format(slot_count: u32, block_bytes: u32) -> SimDevice {
    const HEAD_BYTES: u64 = 17 << 20;
    let size = HEAD_BYTES + u64::from(slot_count) * (1 << 16);
    let device = Arc::new(SimDevice::new(block_bytes, size));
    let shared: SharedDevice = device.clone();
    let options = FormatOptions {
        name: "sim".to_owned(),
        uuid: Uuid::from_u128(7),
        slot_bytes: 1 << 16,
        force: false,
        created_at_unix_ms: 0,
    };
    let mut loaded = crate::store::format(&shared, &options).expect("an empty device");
    assert_eq!(loaded.superblock.slot_count, slot_count, "as planned");
    loaded.catalog.close().expect("no faults yet");
    device.crash(CrashMode::KeepAll)
}

impl World {
    /// The whole history.
    fn live(&mut self) {
        self.after(0, Happening::Restart);
        self.until("the history to end", u64::MAX, |world| {
            world.commands_left == 0 && world.operations_left == 0
        });
        self.ending = true;
        self.swarm.calm();
        self.settle("its work");
        if self.random.chance(500) {
            self.node().draining = true;
        } else {
            self.power_cut(None);
        }
        let generation = self.generation;
        self.until("a restart", SETTLE_US, |world| {
            world.node.as_ref().is_some_and(|node| !node.draining) && world.generation >= generation
        });
        self.settle("the restart");
        self.last_snapshot();
    }

    /// A snapshot of what is left: the dirty set must have survived, or the comparison with the
    /// newest snapshot find what changed.
    fn last_snapshot(&mut self) {
        // Room for all of it, whatever was there before.
        self.create_last();
        self.settle("the last snapshot");
        let node = self.node();
        let record = node.chain.records().next_back().expect("it was created").clone();
        let full = node.last_failure == Some(Cause::NoSpace);
        if record.state != SnapshotState::Complete && !full {
            violated!("the last snapshot, without faults: {record:?}");
        }
        self.compare_all("at the end");
    }

    /// Runs until nothing is under way any more.
    fn settle(&mut self, what: &str) {
        self.until(what, SETTLE_US, |world| {
            let commands = world.commands.is_empty();
            world.node.as_ref().is_some_and(|node| {
                commands
                    && !node.engine.is_busy()
                    && node.catalog_queue.is_empty()
                    && node.copies.is_empty()
                    && node.flush.is_none()
                    && !node.draining
            })
        });
        self.check_slots();
        if !self.node().store_gone && !self.node().catalog_lost {
            self.check_catalog("at rest");
        }
        self.compare_all("at rest");
    }

    fn until(&mut self, what: &str, time_us: u64, done: impl Fn(&World) -> bool) {
        let deadline = self.now.saturating_add(time_us);
        while !done(self) {
            if !self.step() {
                violated!("nothing happens any more while waiting for {what}");
            }
            if self.now > deadline || self.statistics.steps > STEPS_MAX {
                let engine = self.node.as_ref().map(|node| format!("{:?}", node.engine));
                violated!("waiting for {what} takes too long: {engine:?}");
            }
        }
    }
}
