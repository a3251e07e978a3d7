//! The world of one history: devices, virtual time, the process that runs (or does not), and the
//! queue of what happens next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use super::disks::{Master, StoreDisk};
use super::foreground::{Command, ParkedCommand};
use super::glue::{CatalogJob, Copying};
use super::marks::{Mark, Marks};
use super::model::Model;
use super::oracle::Oracle;
use super::random::{Random, mix};
use super::readers::Reader;
use super::swarm::Swarm;
use super::views::SnapshotViews;
use crate::engine::events::{JobId, Micros};
use crate::engine::records::{Cause, SlotIndex, SnapshotSeq, VolumeId};
use crate::engine::{Chain, Engine};
use crate::gate::{ChunkIndex, Gate, Geometry, Lane};
use crate::store::sim_device::SimDevice;
use crate::store::{Catalog, LoadedVolume, SlotAllocator};

/// Stops the history: an invariant is broken. The runner catches it and names the seed.
macro_rules! violated {
    ($($arg:tt)+) => { panic!($($arg)+) };
}
pub(super) use violated;

/// Something that happens at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Happening {
    /// A client issues its next command.
    Client(usize),
    /// A part of a command lands, or it completes.
    CommandStep(u32),
    /// The engine's thread learns that a command waits, and since when.
    ParkedMessage(ChunkIndex, Micros),
    /// The command's thread learns that it may try again; `None` is every command.
    WakeMessage(Option<ChunkIndex>),
    Tick,
    CatalogRun,
    CatalogReply,
    CopyStep(JobId),
    FlushRun,
    FlushReply,
    ReaderStep(usize),
    Operator,
    /// The caller of a create has waited long enough.
    CreateTimeout(SnapshotSeq),
    /// The store is loaded.
    Restart,
    /// The volume of an open store is attached: first what is known of it is loaded.
    Attach,
    /// Then it is opened.
    Open,
    /// A snapshot is deleted, whatever state the volume is in.
    Delete,
}

/// Channels of the volume.
pub(super) const LANES: usize = 2;

/// The process: everything that a power cut takes away.
#[allow(clippy::struct_excessive_bools, reason = "each says whether one thing has happened to it")]
pub(super) struct Node {
    pub gate: Arc<Gate>,
    /// Commands take them in turn.
    pub lanes: [Lane; LANES],
    pub engine: Engine,
    pub chain: Chain,
    pub slots: SlotAllocator,
    pub views: SnapshotViews,
    pub catalog: Catalog,
    /// One thread serves these in order; the first may be running.
    pub catalog_queue: VecDeque<CatalogJob>,
    pub copies: BTreeMap<JobId, Copying>,
    /// Number of the last slot write when the flush was submitted, and how it ended.
    pub flush: Option<(u64, Result<(), String>)>,
    pub parked: VecDeque<ParkedCommand>,
    /// Wakes that are on their way: a command that is still parked may have been told.
    pub wakes_under_way: u32,
    /// Snapshots whose deletion is under way.
    pub deleting: Vec<SnapshotSeq>,
    /// Freed by the catalog, not yet by the allocator.
    pub freed_in_transit: Vec<SlotIndex>,
    /// The snapshot that the engine has in hand, from create to end.
    pub under_way: Option<SnapshotSeq>,
    pub draining: bool,
    pub stop_sent: bool,
    pub store_gone: bool,
    /// A transaction's outcome is unknown, and nothing can be read.
    pub catalog_lost: bool,
    /// Why a snapshot of this process failed, the last of them.
    pub last_failure: Option<Cause>,
}

/// A store that is open while its volume is not.
pub(super) struct Detached {
    pub slots: SlotAllocator,
    pub views: SnapshotViews,
    pub chain: Chain,
    pub catalog: Catalog,
    /// What an attach that is under way has loaded.
    pub loaded: Option<LoadedVolume>,
}

/// Counters of a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Happenings.
    pub steps: u64,
    /// Modifying commands acknowledged.
    pub commands: u64,
    /// Snapshots completed.
    pub snapshots_complete: u64,
    /// Snapshots failed.
    pub snapshots_failed: u64,
    /// Chunks of snapshots compared with the model.
    pub chunks_compared: u64,
    /// Whole snapshots compared with the model.
    pub snapshots_compared: u64,
    /// Power cuts, kills, errors and stuck commands.
    pub faults: u64,
}

impl Statistics {
    /// Adds those of another history.
    pub fn add(&mut self, other: &Statistics) {
        self.steps += other.steps;
        self.commands += other.commands;
        self.snapshots_complete += other.snapshots_complete;
        self.snapshots_failed += other.snapshots_failed;
        self.chunks_compared += other.chunks_compared;
        self.snapshots_compared += other.snapshots_compared;
        self.faults += other.faults;
    }
}

type Queued = Reverse<(u64, u64)>;

pub(super) struct World {
    pub random: Random,
    pub swarm: Swarm,
    pub marks: Marks,
    pub statistics: Statistics,
    pub trace: bool,
    /// A number that depends on all that happened and when.
    pub digest: u64,
    /// Microseconds.
    pub now: u64,
    /// By how much the clock of the process jumped ahead of that.
    pub clock_ahead_us: u64,
    queue: BinaryHeap<Queued>,
    happenings: HashMap<u64, (u32, Happening)>,
    order: u64,
    /// Counts processes: what the last one had under way means nothing to the next.
    pub generation: u32,
    pub geometry: Geometry,
    pub master: Master,
    pub store: Arc<StoreDisk>,
    pub volume: VolumeId,
    pub oracle: Oracle,
    /// What the catalog may hold instead, if the last transaction was cut short.
    pub oracle_else: Option<Oracle>,
    pub node: Option<Node>,
    /// The store is open, its volume is not.
    pub detached: Option<Detached>,
    /// A deletion waits until a stop is through.
    pub deletion_waits: bool,
    pub commands: BTreeMap<u32, Command>,
    pub command_count: u32,
    pub commands_left: u64,
    pub operations_left: u64,
    pub readers: Vec<Option<Reader>>,
    pub model: Model,
    pub names: u32,
    /// The end of the history: nothing new begins.
    pub ending: bool,
}

macro_rules! trace {
    ($world:expr, $($arg:tt)+) => {
        if $world.trace {
            println!("{:>9} {}", $world.now, format_args!($($arg)+));
        }
    };
}
pub(super) use trace;

impl World {
    pub fn new(mut random: Random, swarm: Swarm, disk: SimDevice, volume: VolumeId) -> Self {
        let geometry = Geometry::new(1 << 16, swarm.lba_bytes, swarm.volume_lbas)
            .expect("the swarm draws possible sizes");
        let slot_tags = geometry.chunk_lbas() as usize;
        let mut master = Master::new(swarm.volume_lbas);
        // Something was on the master before presnap; not everywhere.
        for lba in 0..swarm.volume_lbas {
            if geometry.chunk_of(lba).0 % 3 != 2 || random.chance(100) {
                master.write(lba, 1_000_000_000 + lba as u32);
            }
        }
        Self {
            store: Arc::new(StoreDisk::new(disk, swarm.flushes_apart, swarm.slot_count, slot_tags)),
            master,
            geometry,
            volume,
            marks: Marks::default(),
            statistics: Statistics::default(),
            trace: false,
            digest: 0,
            now: 0,
            clock_ahead_us: 0,
            queue: BinaryHeap::new(),
            happenings: HashMap::new(),
            order: 0,
            generation: 0,
            oracle: Oracle::default(),
            oracle_else: None,
            node: None,
            detached: None,
            deletion_waits: false,
            commands: BTreeMap::new(),
            command_count: 0,
            commands_left: swarm.commands,
            operations_left: swarm.operations,
            readers: (0..swarm.readers).map(|_| None).collect(),
            model: Model::default(),
            names: 0,
            ending: false,
            random,
            swarm,
        }
    }

    /// What the process takes for the time.
    pub fn micros(&self) -> Micros {
        Micros(self.now + self.clock_ahead_us)
    }

    /// The catalog of the store that is open.
    pub fn catalog(&self) -> &Catalog {
        let running = self.node.as_ref().map(|node| &node.catalog);
        let detached = || self.detached.as_ref().map(|detached| &detached.catalog);
        running.or_else(detached).expect("a store is open")
    }

    pub fn mark(&mut self, mark: Mark) {
        self.marks.hit(mark);
    }

    /// The running process; only called where one runs.
    pub fn node(&mut self) -> &mut Node {
        self.node.as_mut().expect("a process is running")
    }

    /// Lets something happen after `delay_us`, at the earliest after all that happens now.
    pub fn after(&mut self, delay_us: u64, happening: Happening) {
        self.order += 1;
        let at = self.now + delay_us;
        // Of what happens at one moment, any may be first.
        let tie = self.random.number() << 32 | (self.order & 0xffff_ffff);
        self.queue.push(Reverse((at, tie)));
        self.happenings.insert(tie, (self.generation, happening));
    }

    /// A delay of mostly less than `max`, sometimes much more.
    pub fn delay(&mut self, max: u64) -> u64 {
        let max = if self.random.chance(15) { max * 20 } else { max };
        self.random.below(max + 1)
    }

    /// Runs what happens next; false if nothing does.
    pub fn step(&mut self) -> bool {
        let Some(Reverse((at, tie))) = self.queue.pop() else { return false };
        let (generation, happening) = self.happenings.remove(&tie).expect("queued with its time");
        assert!(at >= self.now, "time goes forward");
        if generation != self.generation {
            return true;
        }
        self.now = at;
        self.statistics.steps += 1;
        self.digest = mix(self.digest ^ at ^ tie.rotate_left(17));
        match happening {
            Happening::Client(client) => self.client(client),
            Happening::CommandStep(command) => self.command_step(command),
            Happening::ParkedMessage(chunk, since) => self.parked_message(chunk, since),
            Happening::WakeMessage(chunk) => self.wake_message(chunk),
            Happening::Tick => self.tick(),
            Happening::CatalogRun => self.catalog_run(),
            Happening::CatalogReply => self.catalog_reply(),
            Happening::CopyStep(job) => self.copy_step(job),
            Happening::FlushRun => self.flush_run(),
            Happening::FlushReply => self.flush_reply(),
            Happening::ReaderStep(reader) => self.reader_step(reader),
            Happening::Operator => self.operator(),
            Happening::CreateTimeout(seq) => self.create_timeout(seq),
            Happening::Restart => self.restart(),
            Happening::Attach => self.attach(),
            Happening::Open => self.open(),
            Happening::Delete => self.delete_any_time(),
        }
        self.check();
        true
    }
}
