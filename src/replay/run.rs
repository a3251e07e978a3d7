//! Replay of one trace against the real gate, engine and slot allocator, in virtual time.
//!
//! Devices are modelled ([`super::DeviceSpeed`]): what is simulated is when things happen and which
//! blocks are where, not what is in them. The catalog is not redb here but an answer after
//! [`CATALOG_US`]: transactions are few, and their times are what matters. Of a trace of a day,
//! only the commands cost time, about a microsecond each.
//!
//! The volume starts clean, as after a complete snapshot. Snapshots that are complete keep their
//! slots; the store is large enough.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::devices::{Device, DeviceSpeed};
use super::foreground::ParkedCommand;
use super::report::Report;
use super::schedule::Schedule;
use super::scorer::{ScoredPolicy, Scorer};
use super::trace::{Survey, Trace, TraceError};
use crate::engine::events::{CatalogStep, CopyJob, Event, JobId, Micros};
use crate::engine::records::VolumeId;
use crate::engine::{Counters, Engine, Limits, PolicyKind, Settings};
use crate::gate::{
    ChunkIndex, Gate, Geometry, GeometryError, Initial, Lane, LbaRange, OperationNumber, Passage,
};
use crate::store::SlotAllocator;

/// Device blocks of the modelled volume.
pub(super) const LBA_BYTES: u64 = 512;

/// How long a catalog transaction takes, in microseconds: two flushes and some blocks.
pub(super) const CATALOG_US: u64 = 2_000;

/// Time between the engine's ticks while it has something to do. Ticks that lead to nothing double
/// it, up to the greatest: what it waits for then is its copy limit, which gives for 50 ms at once.
pub(super) const TICK_BUSY_US: u64 = 200;
const TICK_BUSY_US_MAX: u64 = 5_000;

/// Time between the engine's ticks while it has nothing to do but to stage.
const TICK_REST_US: u64 = 20_000;

/// What stages chunks.
pub enum Policy {
    /// Nothing.
    Off,
    /// Chunks that rested so long, in microseconds.
    Idle(u64),
    /// A predictor.
    Scored(ScoredPolicy),
}

/// How to replay.
pub struct ReplayOptions {
    /// Which disk or file of the trace, if it has several.
    pub disk: Option<String>,
    /// Bytes of a chunk.
    pub chunk_bytes: u32,
    /// When snapshots are taken.
    pub schedule: Schedule,
    /// What stages.
    pub policy: Policy,
    /// Limit on staged copies, in chunks.
    pub staging_chunks_max: Option<u64>,
    /// Limit on background copying.
    pub copy_bytes_per_s_max: Option<u64>,
    /// The master's speed.
    pub master: DeviceSpeed,
    /// The store's speed.
    pub store: DeviceSpeed,
}

impl ReplayOptions {
    /// `policy` with snapshots every 10 min and no limits.
    pub fn new(policy: Policy) -> Self {
        Self {
            disk: None,
            chunk_bytes: 256 << 10,
            schedule: Schedule::Every(600_000_000),
            policy,
            staging_chunks_max: None,
            copy_bytes_per_s_max: None,
            master: DeviceSpeed::default(),
            store: DeviceSpeed::default(),
        }
    }
}

/// How far a replay is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Trace time replayed, in microseconds.
    pub done_us: u64,
    /// Trace time in all, in microseconds.
    pub span_us: u64,
}

/// Why a replay was not done.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// No volume can be made for it.
    #[error("{}: no volume for this trace: {source}; use larger chunks", path.display())]
    Geometry {
        /// The trace.
        path: PathBuf,
        /// What is wrong.
        source: GeometryError,
    },
    /// No memory for the table of chunks.
    #[error("{}: {problem}", path.display())]
    Memory {
        /// The trace.
        path: PathBuf,
        /// What is wrong, and the remedy.
        problem: String,
    },
    /// The trace ends before the first snapshot.
    #[error(
        "{}: the trace ends after {span_s} s, before the first snapshot; \
         take them more often (--every)",
        path.display()
    )]
    NoSnapshot {
        /// The trace.
        path: PathBuf,
        /// Its span in seconds.
        span_s: u64,
    },
}

/// Something that happens at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Happening {
    /// A modifying command has landed.
    Landed(Passage, LbaRange),
    /// Commands parked on this chunk may enter again; `None`: all.
    Wake(Option<ChunkIndex>),
    CopyDone(JobId),
    CatalogDone(CatalogStep),
    FlushDone,
    EngineTick,
    MonitorTick,
    /// The next snapshot's time has come.
    Snapshot,
    /// One that was due before can be taken now.
    Due,
}

/// Happenings are ordered by time, then as they were announced.
struct Queued {
    at_us: u64,
    order: u64,
    happening: Happening,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}

/// What is known of the snapshot under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnderWay {
    pub at_us: u64,
    /// Counters when it was asked for.
    pub before: Counters,
}

pub(super) struct World {
    pub now_us: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    order: u64,
    pub gate: Arc<Gate>,
    pub lane: Lane,
    pub engine: Engine,
    pub slots: SlotAllocator,
    pub master: Device,
    pub store: Device,
    pub copies: HashMap<JobId, CopyJob>,
    pub parked: BTreeMap<ChunkIndex, Vec<ParkedCommand>>,
    pub scorer: Option<Scorer>,
    /// Times of the snapshots to come, the next one last.
    pub snapshots_us: Vec<u64>,
    pub snapshot_count: u32,
    pub under_way: Option<UnderWay>,
    /// Time to the next tick while the engine is busy.
    pub tick_us: u64,
    /// A snapshot is due and the one before not complete.
    pub overdue: bool,
    /// Pieces that staging copied since the last cut.
    pub staging_commands: u64,
    /// Counters at the last cut.
    pub counted: Counters,
    pub report: Report,
}

impl World {
    fn new(path: &Path, options: ReplayOptions, survey: &Survey) -> Result<Self, ReplayError> {
        let lbas = survey.end_bytes.div_ceil(LBA_BYTES);
        let geometry = Geometry::new(options.chunk_bytes, LBA_BYTES as u32, lbas)
            .map_err(|source| ReplayError::Geometry { path: path.to_owned(), source })?;
        let gate = Gate::new(geometry, Initial::Clean, OperationNumber(1)).map_err(|error| {
            ReplayError::Memory { path: path.to_owned(), problem: error.to_string() }
        })?;
        let gate = Arc::new(gate);
        let mut snapshots_us = options.schedule.times_us(survey.span_us);
        if snapshots_us.is_empty() {
            let span_s = survey.span_us / 1_000_000;
            return Err(ReplayError::NoSnapshot { path: path.to_owned(), span_s });
        }
        snapshots_us.reverse();
        let mut report = Report {
            trace: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            schedule: options.schedule.to_string(),
            chunk_bytes: u64::from(options.chunk_bytes),
            staging_chunks_max: options.staging_chunks_max,
            copy_bytes_per_s_max: options.copy_bytes_per_s_max,
            ..Report::default()
        };
        let (kind, scorer) = match options.policy {
            Policy::Off => (PolicyKind::Off, None),
            Policy::Idle(rest_us) => (PolicyKind::Idle { rest_us }, None),
            Policy::Scored(policy) => {
                let room_is_short = options.staging_chunks_max.is_some();
                let scorer =
                    Scorer::new(policy, &geometry, options.copy_bytes_per_s_max, room_is_short);
                report.schedule_known = scorer.schedule_known();
                (scorer.policy(), Some(scorer))
            }
        };
        report.policy = match (kind, &scorer) {
            (_, Some(scorer)) => scorer.name(),
            (PolicyKind::Idle { rest_us }, _) => format!("idle {} s", rest_us as f64 / 1e6),
            (_, None) => "off".to_owned(),
        };
        let settings = Settings {
            policy: kind,
            staging_slots_max: options.staging_chunks_max.unwrap_or(u64::MAX),
            copy_bytes_per_s_max: options.copy_bytes_per_s_max,
            ..Settings::default()
        };
        // Every snapshot may require every chunk that was written since the one before.
        let slots = survey.modified_bytes / u64::from(options.chunk_bytes)
            + 2 * survey.modifications
            + u64::from(geometry.chunk_count());
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        let mut engine = Engine::new(gate.clone(), VolumeId(0), settings, false, Micros(0));
        // Opening chunks makes commands cheaper and nothing else; here it takes a quarter of the time.
        engine.set_limits(Limits { open_words_per_tick: 0, ..Limits::default() });
        Ok(Self {
            now_us: 0,
            queue: BinaryHeap::new(),
            order: 0,
            engine,
            lane: gate.lane(),
            gate,
            slots: SlotAllocator::new(slots),
            master: Device::new(options.master),
            store: Device::new(options.store),
            copies: HashMap::new(),
            parked: BTreeMap::new(),
            scorer,
            snapshots_us,
            snapshot_count: 0,
            under_way: None,
            tick_us: TICK_BUSY_US,
            overdue: false,
            staging_commands: 0,
            counted: Counters::default(),
            report,
        })
    }

    /// Lets time begin.
    fn start(&mut self, span_us: u64) {
        self.report.span_us = span_us;
        self.at(0, Happening::EngineTick);
        if let Some(scorer) = &self.scorer {
            let tick_us = scorer.tick_us();
            self.at(tick_us, Happening::MonitorTick);
        }
        let first_us = *self.snapshots_us.last().expect("checked when the world was made");
        self.at(first_us, Happening::Snapshot);
    }

    /// Lets something happen at `at_us`, after all that was to happen then already.
    pub fn at(&mut self, at_us: u64, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Queued { at_us, order: self.order, happening }));
    }

    /// Runs what happens up to `until_us`.
    fn run_until(&mut self, until_us: u64) {
        while let Some(&Reverse(Queued { at_us, happening, .. })) = self.queue.peek()
            && at_us <= until_us
        {
            self.queue.pop();
            self.now_us = at_us;
            self.happen(happening);
        }
        self.now_us = until_us;
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Landed(passage, range) => self.lane.leave(passage, range),
            Happening::Wake(chunk) => self.wake(chunk),
            Happening::CopyDone(job) => self.copy_done(job),
            Happening::CatalogDone(step) => self.catalog_done(step),
            Happening::FlushDone => self.apply(Event::FlushDone(Ok(()))),
            Happening::EngineTick => {
                self.tick_us = (self.tick_us * 2).min(TICK_BUSY_US_MAX);
                self.apply(Event::Tick);
                let busy = self.engine.is_busy() || self.overdue;
                let in_us = if busy { self.tick_us } else { TICK_REST_US };
                self.at(self.now_us + in_us, Happening::EngineTick);
            }
            Happening::MonitorTick => self.monitor_tick(),
            Happening::Snapshot => {
                self.snapshots_us.pop();
                if let Some(&next_us) = self.snapshots_us.last() {
                    self.at(next_us, Happening::Snapshot);
                }
                self.snapshot();
            }
            Happening::Due => self.snapshot(),
        }
    }

    fn monitor_tick(&mut self) {
        let Some(mut scorer) = self.scorer.take() else { return };
        let events = scorer.tick(self.now_us, self.snapshots_us.last().copied(), &self.gate);
        self.at(self.now_us + scorer.tick_us(), Happening::MonitorTick);
        self.scorer = Some(scorer);
        for event in events {
            self.apply(event);
        }
    }
}

/// Replays the trace in `path`; `progress` is called now and then.
///
/// # Errors
/// When the trace cannot be read, or has no snapshot in its span.
pub fn replay(
    path: &Path,
    options: ReplayOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, ReplayError> {
    let mut reports = replay_all(path, vec![options], progress)?;
    Ok(reports.pop().expect("one was asked for"))
}

/// Replays the same disk of the same trace several times side by side, so that they can share predictors
/// ([`super::Companion`]).
///
/// # Errors
/// As [`replay`].
pub fn replay_all(
    path: &Path,
    options: Vec<ReplayOptions>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Report>, ReplayError> {
    let disk = options.first().and_then(|options| options.disk.clone());
    let survey = Survey::of(Trace::open(path, disk.as_deref())?)?;
    let worlds = options.into_iter().map(|options| World::new(path, options, &survey));
    let mut worlds = worlds.collect::<Result<Vec<_>, _>>()?;
    // Nobody is at the end of a window before all are: what they share is of one moment.
    let tick_us = worlds.iter().find_map(|world| Some(world.scorer.as_ref()?.tick_us()));
    let tick_us = tick_us.unwrap_or(u64::MAX);
    for world in &mut worlds {
        world.start(survey.span_us);
    }
    let (mut now_us, mut told_us) = (0, 0);
    let mut go_on = |worlds: &mut [World], until_us: u64| {
        while now_us < until_us {
            let next_us = (now_us / tick_us + 1).saturating_mul(tick_us);
            now_us = next_us.min(until_us);
            for world in &mut *worlds {
                world.run_until(now_us);
            }
        }
        for world in worlds {
            world.run_until(until_us);
        }
    };
    for record in Trace::open(path, disk.as_deref())? {
        let record = record?;
        go_on(&mut worlds, record.time_us);
        for world in &mut worlds {
            world.command(&record);
        }
        if record.time_us >= told_us {
            progress(Progress { done_us: record.time_us, span_us: survey.span_us });
            told_us = record.time_us + survey.span_us / 200 + 1;
        }
    }
    go_on(&mut worlds, survey.span_us);
    // What is under way ends; nothing new begins.
    let mut until_us = survey.span_us;
    while worlds.iter().any(|world| world.under_way.is_some()) {
        until_us += 1_000_000;
        go_on(&mut worlds, until_us);
    }
    progress(Progress { done_us: survey.span_us, span_us: survey.span_us });
    Ok(worlds.into_iter().map(World::finish).collect())
}
