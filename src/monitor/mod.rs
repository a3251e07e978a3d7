//! What happens to each chunk, turned into numbers that a predictor can learn from.
//!
//! [`Monitor::record`] takes every command at a constant price per chunk it touches;
//! [`Monitor::tick`] closes a window of time and gives one row of [`FEATURES`] numbers per *active*
//! chunk, at a price that grows with their number only. A chunk becomes active when it is modified
//! and stays so until it was not accessed for [`MonitorOptions::idle_evict_ticks`], or until room
//! is needed for another and it is the one not accessed for longest.
//!
//! One owner, one thread; no clock of its own; the same records give the same rows.
//!
//! Memory is bounded by [`MonitorOptions::active_chunks_max`]: [`Monitor::memory_bytes`] says how
//! much, 314 MB per million active chunks with the default of six partners each.
#![forbid(unsafe_code)]
#![allow(clippy::cast_precision_loss, reason = "features are approximate by nature")]

mod comodification;
mod features;
mod hash;
mod recency;
#[cfg(test)]
mod tests;

pub use comodification::{PARTNERS, Proposal};
pub use features::{FEATURE_NAMES, FEATURES, HALF_LIVES_S, SCALES};

use comodification::{Comodification, Partner};
use hash::ChunkMap;
use recency::Recency;

/// Chunks that one command is recorded for one by one. A command over more (an unmap of the whole
/// volume) says nothing about what is modified next, and must not push all else out.
pub const SPAN_CHUNKS_MAX: u32 = 4096;

/// Chunks of one window that partners are looked for among, the first ones. Where so many are
/// modified within a second, being modified together says little, and a tick has to end.
const COMODIFIED_MAX: usize = 8192;

/// Place of a chunk in the monitor's table while it is active.
pub(crate) type RowId = u32;

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// Read.
    Read,
    /// Write, write zeroes, unmap, copy or compare-and-write.
    Modify,
}

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// First chunk touched.
    pub chunk_first: u32,
    /// Last chunk touched, inclusive.
    pub chunk_last: u32,
    /// Bytes of the command, over all its chunks.
    pub bytes: u64,
    /// Where the command ends in its last chunk: bytes from that chunk's start, at least 1.
    pub end_bytes: u32,
    /// What it did.
    pub kind: AccessKind,
    /// When it entered, in microseconds on the caller's clock.
    pub time_us: u64,
}

impl Access {
    /// The command over `bytes` bytes (at least 1) from `offset_bytes` of a volume with chunks of
    /// `chunk_bytes`.
    pub fn new(
        offset_bytes: u64,
        bytes: u64,
        kind: AccessKind,
        time_us: u64,
        chunk_bytes: u32,
    ) -> Self {
        let chunk = u64::from(chunk_bytes);
        let last_byte = offset_bytes + bytes.max(1) - 1;
        Self {
            chunk_first: (offset_bytes / chunk) as u32,
            chunk_last: (last_byte / chunk) as u32,
            bytes,
            end_bytes: (last_byte % chunk) as u32 + 1,
            kind,
            time_us,
        }
    }

    /// Where the command starts in its first chunk.
    fn start_bytes(&self, chunk_bytes: u32) -> u32 {
        let before_last = u64::from(self.chunk_last - self.chunk_first) * u64::from(chunk_bytes);
        (before_last + u64::from(self.end_bytes)).saturating_sub(self.bytes) as u32
    }
}

/// Sizes and times of a monitor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MonitorOptions {
    /// Chunks of the volume.
    pub chunk_count: u32,
    /// Bytes of a chunk.
    pub chunk_bytes: u32,
    /// Time between two ticks as planned, in microseconds. Ages and decay follow the real times.
    pub tick_us: u64,
    /// Active chunks at once; more push out those that were not accessed for longest.
    pub active_chunks_max: usize,
    /// An active chunk that was not accessed for this many ticks is forgotten.
    pub idle_evict_ticks: u64,
    /// Chunks modified shortly before or after one another count as modified together if no more
    /// than this many others came between.
    pub comodified_within: usize,
    /// A partner is named by [`Monitor::proposals`] from this share of joint modifications on.
    pub proposal_confidence_min: f32,
}

impl MonitorOptions {
    /// The usual options for a volume.
    pub fn new(chunk_count: u32, chunk_bytes: u32) -> Self {
        Self {
            chunk_count,
            chunk_bytes,
            tick_us: 1_000_000,
            active_chunks_max: 65_536,
            // Two hours: what was not touched for longer has no rate left at any scale.
            idle_evict_ticks: 7_200,
            comodified_within: 8,
            proposal_confidence_min: 0.25,
        }
    }
}

/// A window that was closed: one row per active chunk, the same place in every slice.
#[derive(Clone, Copy, Debug)]
pub struct Tick<'a> {
    /// Windows closed before this one.
    pub index: u64,
    /// The end of the window, in microseconds on the caller's clock.
    pub now_us: u64,
    /// Chunk of each row, in no order that means anything.
    pub rows: &'a [u32],
    /// Row id of each row: stays the same while the chunk is active, below
    /// [`MonitorOptions::active_chunks_max`], given to another chunk afterwards.
    pub slots: &'a [u32],
    /// [`FEATURES`] numbers per row, row by row.
    pub features: &'a [f32],
    /// The row id was given to this chunk in this window: what is kept per row id starts anew.
    pub fresh: &'a [bool],
    /// The chunk was modified in this window: what a prediction made before it is measured by.
    pub modified: &'a [bool],
    /// Microseconds since the chunk was last modified.
    pub age_us: &'a [u64],
    /// Windows with a modification, decayed with each of [`HALF_LIVES_S`].
    pub decayed: &'a [[f32; SCALES]],
    /// Usual bytes of the modifications of one window with any.
    pub window_bytes: &'a [f32],
}

impl Tick<'_> {
    /// Number of active chunks.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no chunk is active.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The features of one row.
    pub fn features_of(&self, row: usize) -> &[f32] {
        &self.features[row * FEATURES..][..FEATURES]
    }
}

/// What was not followed for want of room; each makes predictions worse, none makes them wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MonitorCounters {
    /// Active chunks pushed out by others.
    pub pushed_out: u64,
    /// Active chunks forgotten because they were idle.
    pub idle_evicted: u64,
    /// Commands over more than [`SPAN_CHUNKS_MAX`] chunks, of which only the first were recorded.
    pub spans_cut: u64,
}

/// State of one active chunk.
#[derive(Clone, Copy, Debug)]
struct Row {
    chunk: u32,
    /// Of the window that is open.
    writes: u32,
    reads: u32,
    bytes: u64,
    /// The row id is this chunk's since the window that is open.
    fresh: bool,
    last_modify_us: u64,
    /// The end of the last window with a modification; `None` before the first ended.
    modified_window_us: Option<u64>,
    last_access_tick: u64,
    /// Mean of log2(1 + seconds) between windows with modifications; `None` before the second.
    gap_log2: Option<f32>,
    /// Usual bytes modified in windows with modifications; `None` before the first ended.
    window_bytes: Option<f32>,
    decayed: [f32; SCALES],
    decayed_reads: f32,
    /// Where the last modification ended, as a share of the chunk.
    position: f32,
    /// Where the next one starts if they are sequential, in bytes from the chunk's start.
    expected_start_bytes: u32,
    /// Share of modifications that began where the one before had ended, decayed per command.
    sequential: f32,
    /// Confidence with which partners that were modified point here, decayed over 4 s.
    pointed_at: f32,
    /// The same for the window being closed.
    pointed_now: f32,
    /// Windows with a modification, decayed per such window.
    modifications: f32,
    partners: [Partner; PARTNERS],
}

/// Follows the commands of one volume.
#[derive(Debug)]
pub struct Monitor {
    options: MonitorOptions,
    /// Active chunks.
    index: ChunkMap<RowId>,
    rows: Vec<Row>,
    free: Vec<RowId>,
    recency: Recency,
    comodification: Comodification,
    /// Modifications that partners were learned from.
    learned: u64,
    /// Rows modified in the window that is open, in order of the first modification.
    modified_now: Vec<(RowId, u32)>,
    ticks: u64,
    last_tick_us: u64,
    counters: MonitorCounters,
    out: features::Output,
}

impl Monitor {
    /// A monitor that has seen nothing.
    ///
    /// # Panics
    /// If `options` allow no active chunk or more than fit a row id, or a tick takes no time.
    pub fn new(options: MonitorOptions) -> Self {
        let max = options.active_chunks_max;
        assert!(max > 0 && max < RowId::MAX as usize, "active_chunks_max is {max}");
        assert!(options.tick_us > 0 && options.chunk_bytes > 0, "{options:?}");
        Self {
            options,
            index: ChunkMap::default(),
            rows: Vec::new(),
            free: Vec::new(),
            recency: Recency::default(),
            comodification: Comodification::default(),
            learned: 0,
            modified_now: Vec::new(),
            ticks: 0,
            last_tick_us: 0,
            counters: MonitorCounters::default(),
            out: features::Output::default(),
        }
    }

    /// Options in force.
    pub fn options(&self) -> &MonitorOptions {
        &self.options
    }

    /// What was not followed for want of room.
    pub fn counters(&self) -> MonitorCounters {
        self.counters
    }

    /// Number of active chunks.
    pub fn active_chunks(&self) -> usize {
        self.index.len()
    }

    /// Notes a command. Only modifications make a chunk active: one that is only read is never
    /// required by a snapshot.
    pub fn record(&mut self, access: &Access) {
        let last = access.chunk_last.min(self.options.chunk_count.saturating_sub(1));
        if access.chunk_first > last {
            return; // behind the volume's end, or of no length
        }
        let mut span = last - access.chunk_first + 1;
        if span > SPAN_CHUNKS_MAX {
            self.counters.spans_cut += 1;
            span = SPAN_CHUNKS_MAX;
        }
        for offset in 0..span {
            self.record_chunk(access, access.chunk_first + offset);
        }
    }

    fn record_chunk(&mut self, access: &Access, chunk: u32) {
        let row_id = match (self.index.get(&chunk), access.kind) {
            (Some(&row_id), _) => row_id,
            (None, AccessKind::Read) => return,
            (None, AccessKind::Modify) => self.activate(chunk, access.time_us),
        };
        self.recency.touch(row_id);
        let chunk_bytes = self.options.chunk_bytes;
        let row = &mut self.rows[row_id as usize];
        row.last_access_tick = self.ticks;
        if access.kind == AccessKind::Read {
            row.reads = row.reads.saturating_add(1);
            return;
        }
        if row.writes == 0 && self.modified_now.len() < COMODIFIED_MAX {
            self.modified_now.push((row_id, chunk));
        }
        row.writes = row.writes.saturating_add(1);
        row.last_modify_us = row.last_modify_us.max(access.time_us);
        let end = if chunk == access.chunk_last { access.end_bytes } else { chunk_bytes };
        let start = if chunk == access.chunk_first { access.start_bytes(chunk_bytes) } else { 0 };
        let start = start.min(end.saturating_sub(1));
        row.bytes += u64::from(end - start);
        let sequential = f32::from(u8::from(start == row.expected_start_bytes));
        row.sequential += (sequential - row.sequential) * features::SEQUENTIAL_STEP;
        row.expected_start_bytes = end;
        row.position = end as f32 / chunk_bytes as f32;
    }

    /// Gives `chunk` a row, if need be that of the chunk not accessed for longest.
    fn activate(&mut self, chunk: u32, time_us: u64) -> RowId {
        if self.index.len() >= self.options.active_chunks_max
            && let Some(oldest) = self.recency.oldest()
        {
            self.counters.pushed_out += 1;
            self.evict(oldest);
        }
        let row = Row::new(chunk, time_us, self.ticks);
        let row_id = if let Some(row_id) = self.free.pop() {
            self.rows[row_id as usize] = row;
            row_id
        } else {
            self.rows.push(row);
            (self.rows.len() - 1) as RowId
        };
        self.recency.add(row_id);
        self.index.insert(chunk, row_id);
        row_id
    }

    fn evict(&mut self, row_id: RowId) {
        let row = &mut self.rows[row_id as usize];
        self.index.remove(&row.chunk);
        row.chunk = NO_CHUNK;
        self.recency.remove(row_id);
        self.free.push(row_id);
    }

    /// Closes the window that ends at `now_us`: from it all ages and decay are reckoned.
    pub fn tick(&mut self, now_us: u64) -> Tick<'_> {
        self.evict_idle();
        self.learn_partners();
        self.close_window(now_us);
        let index = self.ticks;
        self.ticks += 1;
        self.last_tick_us = now_us;
        self.out.view(index, now_us)
    }

    /// The window that was closed last, once more.
    ///
    /// # Panics
    /// When none was closed yet.
    pub fn last_tick(&self) -> Tick<'_> {
        self.out.view(self.ticks.checked_sub(1).expect("a window was closed"), self.last_tick_us)
    }

    fn evict_idle(&mut self) {
        while let Some(oldest) = self.recency.oldest() {
            let idle_ticks = self.ticks - self.rows[oldest as usize].last_access_tick;
            if idle_ticks < self.options.idle_evict_ticks {
                return;
            }
            self.counters.idle_evicted += 1;
            self.evict(oldest);
        }
    }

    /// Chunks that are usually modified together with those of the window just closed, and are not
    /// active themselves: most likely first, at most 1024.
    pub fn proposals(&self) -> &[Proposal] {
        self.comodification.proposals()
    }

    /// The partners of an active chunk and the share of its modifications they took part in.
    pub fn partners(&self, chunk: u32) -> Vec<(u32, f32)> {
        let Some(&row_id) = self.index.get(&chunk) else { return Vec::new() };
        let row = &self.rows[row_id as usize];
        let known = row.partners.iter().filter(|partner| partner.hits > 0.0);
        known.map(|partner| (partner.chunk, partner.confidence(row.modifications))).collect()
    }

    /// Bytes of memory taken now; grows with the most chunks that were active at once, up to what
    /// [`MonitorOptions::active_chunks_max`] allows.
    pub fn memory_bytes(&self) -> usize {
        // The table keeps one control byte per place.
        let index = self.index.capacity() * 8 / 7 * (size_of::<(u32, RowId)>() + 1);
        index
            + self.rows.capacity() * size_of::<Row>()
            + self.free.capacity() * size_of::<RowId>()
            + self.modified_now.capacity() * size_of::<(RowId, u32)>()
            + self.recency.memory_bytes()
            + self.comodification.memory_bytes()
            + self.out.memory_bytes()
    }
}

/// Chunk of a row that is nobody's.
const NO_CHUNK: u32 = u32::MAX;

impl Row {
    fn new(chunk: u32, now_us: u64, tick: u64) -> Self {
        Self {
            chunk,
            writes: 0,
            reads: 0,
            bytes: 0,
            fresh: true,
            last_modify_us: now_us,
            modified_window_us: None,
            last_access_tick: tick,
            gap_log2: None,
            window_bytes: None,
            decayed: [0.0; SCALES],
            decayed_reads: 0.0,
            position: 0.0,
            expected_start_bytes: 0,
            sequential: 0.0,
            pointed_at: 0.0,
            pointed_now: 0.0,
            modifications: 0.0,
            partners: [Partner::NONE; PARTNERS],
        }
    }
}
