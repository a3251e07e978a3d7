//! Lanes: how commands pass *open* chunks with plain stores, no locked instruction.
//!
//! A chunk is open when it is dirty in the present epoch and has no copy, made or being made: then
//! a modifying command changes nothing in its word, and all that anybody may want to know of it is
//! when it has left. So commands on open chunks are not counted per chunk but per lane (one for
//! each channel, used by one thread) and *turn*. The engine ends a turn whenever it needs to know
//! that commands have left, and later asks whether all of that turn have.
//!
//! # Rules
//! 1. A command counts itself in on its lane for the turn it read, *then* looks whether the turn
//!    still holds, *then* looks whether its chunks are open. If not both, it takes its count back.
//! 2. Only the engine opens and closes chunks and ends turns. It closes a chunk, ends the turn,
//!    then waits until all commands of that turn and of those before have left; only then may a
//!    copy of the chunk begin ([`Gate::begin_copy`] sees to it).
//! 3. A cut ends the turn before it moves the clock, and the new epoch begins without open chunks.
//!    So a command that saw the clock moved, or came after one that did, finds the turn over: the
//!    order of acknowledged commands is the snapshot's order too.
//! 4. Chunks of the old epoch that were open count as drained only when the cut's turn is over.
//!
//! Between the count and the look at the turn, and between the end of a turn and the look at the
//! counts, each side needs its store to be visible before its load. The commands' side is free:
//! the engine has all the process's threads pass a barrier (`membarrier(2)`) whenever it ends a
//! turn. This is the scheme of userspace RCU (Desnoyers et al., "User-Level Implementations of
//! Read-Copy Update", IEEE TPDS 23(2), 2012) with the counts split by turn.

use std::fmt;
use std::sync::Arc;

use super::clock::Now;
use super::index::chunks_of;
use super::sync::{
    AtomicBool, AtomicU64, AtomicUsize, Ordering, has_heavy_barrier, heavy_barrier, light_barrier,
    zeroed_words,
};
use super::word::{COPY, DIRTY};
use super::{ChunkIndex, DirtyWalk, Entry, Epoch, Gate, LbaRange, OperationNumber};

/// Lanes of one volume; channels beyond them have their commands counted on the chunks.
#[cfg(not(loom))]
pub const LANES_MAX: usize = 128;
/// As above.
#[cfg(loom)]
pub const LANES_MAX: usize = 2;

/// Turns whose commands may be in flight at once: two of cuts, one of closed chunks, the present
/// one.
const TURNS: usize = 4;

/// Number of a turn. Starts at 1 when the gate is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Turn(pub(super) u64);

impl Turn {
    fn place(self) -> usize {
        (self.0 % TURNS as u64) as usize
    }
}

/// How a command came in; [`Lane::leave`] wants it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// All its chunks were open: counted on the lane for this turn.
    Open(Turn),
    /// Counted on its chunks, in this epoch.
    Counted(Epoch),
}

/// What one lane's thread writes. A pair of cache lines of its own (adjacent-line prefetch).
#[repr(align(128))]
struct Counts {
    taken: AtomicBool,
    /// By turn: commands that came ever, and those that left or took their count back.
    entered: [AtomicU64; TURNS],
    left: [AtomicU64; TURNS],
}

impl Counts {
    fn new() -> Self {
        let zeroes = || std::array::from_fn(|_| AtomicU64::new(0));
        Self { taken: AtomicBool::new(false), entered: zeroes(), left: zeroes() }
    }

    /// Whether all commands of a turn that is over but for them have left. `left` first: whatever
    /// comes between the two loads and takes its count back can only make them differ.
    fn is_idle(&self, place: usize) -> bool {
        // Acquire: what those that left have landed is there to read.
        let left = self.left[place].load(Ordering::Acquire);
        self.entered[place].load(Ordering::Acquire) == left
    }
}

/// Alone on its cache lines: all commands read it, the engine changes it now and then.
#[repr(align(128))]
struct Phase {
    /// `turn << 1 | parity of the epoch`.
    now: AtomicU64,
    /// All commands of this turn and of those before have left.
    over: AtomicU64,
    /// The last turn of the epoch before. Engine only.
    cut: AtomicU64,
    /// The last turn in which a chunk was closed. Engine only.
    closed: AtomicU64,
}

/// The gate's part of it.
pub(super) struct Lanes {
    phase: Phase,
    /// None where the kernel lacks the barrier: all commands are counted on their chunks then.
    counts: Box<[Counts]>,
    /// Those from here on were never taken.
    counts_used: AtomicUsize,
    open: [Open; 2],
}

/// The open chunks of one parity of the epoch: a bit per chunk, and one per word of those whose
/// chunks are all open. For 64 Mi chunks that is 8 MiB, which a processor's own cache does not hold,
/// and 128 KiB, which it does. A bit above is set after those below, and cleared before them.
struct Open {
    chunks: Box<[AtomicU64]>,
    groups: Box<[AtomicU64]>,
}

fn has(words: &[AtomicU64], bit: usize) -> bool {
    words[bit / 64].load(Ordering::Acquire) >> (bit % 64) & 1 == 1
}

impl Open {
    fn new(chunk_count: u32) -> Option<Self> {
        let words = chunk_count.div_ceil(u64::BITS);
        let groups = words.div_ceil(u64::BITS);
        Some(Self { chunks: zeroed_words(words as usize)?, groups: zeroed_words(groups as usize)? })
    }

    #[inline]
    fn has(&self, chunk: u32) -> bool {
        has(&self.groups, chunk as usize / 64) || has(&self.chunks, chunk as usize)
    }

    #[inline]
    fn has_all(&self, chunks: std::ops::Range<u32>) -> bool {
        // Nearly all commands.
        if chunks.start + 1 == chunks.end {
            return self.has(chunks.start);
        }
        self.has_many(chunks)
    }

    /// Group by group where it can: an unmap of 1 TiB covers 4 Mi chunks.
    fn has_many(&self, chunks: std::ops::Range<u32>) -> bool {
        let mut chunk = chunks.start;
        while chunk < chunks.end {
            chunk = if has(&self.groups, chunk as usize / 64) {
                (chunk | 63).saturating_add(1)
            } else if has(&self.chunks, chunk as usize) {
                chunk + 1
            } else {
                return false;
            };
        }
        true
    }

    fn word(&self, position: usize) -> u64 {
        self.chunks[position].load(Ordering::Relaxed)
    }

    /// Engine, as all below.
    fn set(&self, chunk: ChunkIndex) {
        let position = chunk.as_usize() / 64;
        let word = self.word(position) | 1 << (chunk.0 % 64);
        self.chunks[position].store(word, Ordering::Release);
        if word == u64::MAX {
            self.groups[position / 64].fetch_or(1 << (position % 64), Ordering::Release);
        }
    }

    fn clear(&self, position: usize, bits: u64) {
        self.groups[position / 64].fetch_and(!(1 << (position % 64)), Ordering::Release);
        self.chunks[position].store(self.word(position) & !bits, Ordering::Release);
    }

    fn set_all(&self, chunk_count: u32) {
        super::index::fill(&self.chunks, chunk_count);
        super::index::fill(&self.groups, chunk_count / 64);
    }
}

/// Counts on a number that only this thread writes.
fn count(number: &AtomicU64) {
    number.store(number.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
}

impl Lanes {
    pub fn new(chunk_count: u32, epoch: Epoch) -> Option<Self> {
        Some(Self {
            phase: Phase {
                now: AtomicU64::new(1 << 1 | u64::from(epoch.0 & 1)),
                over: AtomicU64::new(0),
                cut: AtomicU64::new(0),
                closed: AtomicU64::new(0),
            },
            counts: (0..if has_heavy_barrier() { LANES_MAX } else { 0 })
                .map(|_| Counts::new())
                .collect(),
            counts_used: AtomicUsize::new(0),
            open: [Open::new(chunk_count)?, Open::new(chunk_count)?],
        })
    }

    fn turn(&self) -> Turn {
        Turn(self.phase.now.load(Ordering::Acquire) >> 1)
    }

    fn used(&self) -> &[Counts] {
        &self.counts[..self.counts_used.load(Ordering::Acquire)]
    }

    /// Commands that have passed open chunks so far.
    pub fn operations(&self) -> u64 {
        let entered = self.used().iter().flat_map(|counts| &counts.entered);
        entered.map(|count| count.load(Ordering::Acquire)).sum()
    }

    fn open(&self, epoch: Epoch) -> &Open {
        &self.open[(epoch.0 & 1) as usize]
    }

    /// Ends the present turn, which becomes `over` when its commands have left; the next one is of
    /// `epoch`. Engine.
    fn end_turn(&self, epoch: Epoch) -> Turn {
        let turn = self.turn();
        self.phase.now.store((turn.0 + 1) << 1 | u64::from(epoch.0 & 1), Ordering::Release);
        turn
    }

    /// Whether one more turn can be ended: the counts of the turn before last but two are free.
    pub fn can_end_turn(&self) -> bool {
        let turn = self.turn();
        self.is_over(Turn((turn.0 + 1).saturating_sub(TURNS as u64)))
    }

    /// Ends the old epoch's last turn, before the clock moves. [`Self::has_cut`] after it.
    pub fn cut(&self, new_epoch: Epoch) -> Turn {
        let turn = self.end_turn(new_epoch);
        self.phase.cut.store(turn.0, Ordering::Relaxed);
        turn
    }

    /// After the clock has moved: from here on the counts of the old turns are complete.
    pub fn has_cut(&self) {
        self.barrier();
    }

    fn barrier(&self) {
        if !self.counts.is_empty() {
            heavy_barrier();
        }
    }

    /// Whether all commands of `turn` and of those before have left. Any thread that learnt from the
    /// engine that the turn was ended.
    fn is_over(&self, turn: Turn) -> bool {
        let (mut over, present) = (self.phase.over.load(Ordering::Acquire), self.turn());
        while over < turn.0 && over + 1 < present.0 {
            let place = Turn(over + 1).place();
            if !self.used().iter().all(|counts| counts.is_idle(place)) {
                return false;
            }
            over += 1;
            self.phase.over.fetch_max(over, Ordering::AcqRel);
        }
        over >= turn.0
    }

    /// Whether the old epoch's commands on chunks without a copy have left. Any thread that learnt of
    /// the cut from the engine.
    pub fn has_drained(&self) -> bool {
        self.is_over(Turn(self.phase.cut.load(Ordering::Relaxed)))
    }

    /// The old epoch's index has been taken, or carried over, at `position`: nothing there stays
    /// open, so that the next epoch of this parity begins without. Engine.
    pub fn forget(&self, old_epoch: Epoch, position: usize) {
        self.open(old_epoch).clear(position, u64::MAX);
    }
}

/// A thread's way through the gate. Not to be shared: its counts are its own.
pub struct Lane {
    gate: Arc<Gate>,
    /// `None`: all lanes were taken, or there are none.
    index: Option<usize>,
    /// One thread at a time.
    _not_sync: std::marker::PhantomData<std::cell::Cell<()>>,
}

impl Lane {
    /// Lets a modifying command into all chunks of `range` or into none. Never waits.
    ///
    /// # Errors
    /// The chunk at which it has to wait; see [`Entry::Parked`] and [`Entry::Saturated`].
    ///
    /// # Panics
    /// When `range` is empty or not inside the volume.
    #[inline]
    pub fn enter(&self, range: LbaRange) -> Result<Passage, ChunkIndex> {
        // In this shape the passage comes in registers; from memory it would cost more than the pass.
        match self.pass(range) {
            Some(turn) => Ok(Passage::Open(turn)),
            None => self.enter_counted(range),
        }
    }

    /// Out of the way of those that pass.
    #[inline(never)]
    fn enter_counted(&self, range: LbaRange) -> Result<Passage, ChunkIndex> {
        match self.gate.enter(range) {
            Entry::Entered { epoch, .. } => Ok(Passage::Counted(epoch)),
            Entry::Parked { chunk } | Entry::Saturated { chunk } => Err(chunk),
        }
    }

    /// Passes if all chunks are open.
    #[inline]
    fn pass(&self, range: LbaRange) -> Option<Turn> {
        assert!(self.gate.geometry.contains(range), "{range:?} is not in the volume");
        let lanes = &self.gate.lanes;
        let counts = &lanes.counts[self.index?];
        let phase = lanes.phase.now.load(Ordering::Acquire);
        let turn = Turn(phase >> 1);
        count(&counts.entered[turn.place()]);
        light_barrier();
        let holds = lanes.phase.now.load(Ordering::Acquire) == phase;
        let open = &lanes.open[(phase & 1) as usize];
        if holds && open.has_all(self.gate.geometry.chunks(range)) {
            return Some(turn);
        }
        count(&counts.left[turn.place()]);
        None
    }

    /// Ends an entered command: it has landed, or failed with unknown effect. Call it after the
    /// device's completion and before acknowledging the command, on the lane where it entered.
    ///
    /// # Panics
    /// When no command is in flight on a chunk of `range`.
    #[inline]
    pub fn leave(&self, passage: Passage, range: LbaRange) {
        match (passage, self.index) {
            (Passage::Open(turn), Some(index)) => {
                count(&self.gate.lanes.counts[index].left[turn.place()]);
            }
            _ => self.gate.leave(range),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let Some(index) = self.index else { return };
        let counts = &self.gate.lanes.counts[index];
        let idle = (0..TURNS).all(|place| counts.is_idle(place));
        // Else its commands are in flight for ever, as it should seem.
        if idle {
            counts.taken.store(false, Ordering::Release);
        }
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("index", &self.index).finish_non_exhaustive()
    }
}

/// A walk over the dirty chunks, again and again, that opens those without a copy.
#[derive(Clone, Debug)]
pub struct OpenWalk {
    walk: DirtyWalk,
}

impl Gate {
    /// A lane for one more thread that submits commands. Any thread.
    pub fn lane(self: &Arc<Self>) -> Lane {
        let take = |counts: &Counts| {
            counts.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let index = self.lanes.counts.iter().position(take);
        if let Some(index) = index {
            self.lanes.counts_used.fetch_max(index + 1, Ordering::AcqRel);
        }
        Lane { gate: Arc::clone(self), index, _not_sync: std::marker::PhantomData }
    }

    /// Whether commands pass `chunk` without being counted on it. Any thread.
    pub fn is_open(&self, chunk: ChunkIndex) -> bool {
        self.lanes.open(self.epoch()).has(chunk.0)
    }

    /// Opens every chunk, for a volume of which nothing is known, before its first command.
    ///
    /// # Panics
    /// When the gate did not begin all dirty, or is in use.
    pub fn open_all(&self) {
        let now = self.clock.now();
        assert!(self.began_all_dirty() && now.epoch == Epoch(1), "open_all of a gate in use");
        self.lanes.open(now.epoch).set_all(self.geometry.chunk_count());
    }

    /// A walk for [`Self::open_some`].
    pub fn open_walk(&self) -> OpenWalk {
        OpenWalk { walk: self.dirty_walk(self.epoch()) }
    }

    /// Opens dirty chunks that have no copy, unless `keep` wants them closed. Looks at no more than
    /// `words_max` index words (a nanosecond each) and `chunks_max` chunks (a cache line each).
    pub fn open_some(
        &self,
        open: &mut OpenWalk,
        words_max: usize,
        chunks_max: usize,
        mut keep: impl FnMut(ChunkIndex) -> bool,
    ) {
        let now = self.clock.now();
        if open.walk.epoch() != now.epoch || self.index.is_over(&open.walk) {
            open.walk = self.dirty_walk(now.epoch);
        }
        let mut looked_at = 0;
        for _ in 0..words_max {
            let Some((position, dirty)) = self.index.slice(&mut open.walk, 1).next() else {
                if self.index.is_over(&open.walk) {
                    return;
                }
                continue;
            };
            let closed = dirty.load(Ordering::Acquire) & !self.lanes.open(now.epoch).word(position);
            for chunk in chunks_of(position, closed).filter(|&chunk| !keep(chunk)) {
                looked_at += 1;
                self.open(chunk, now);
            }
            if looked_at >= chunks_max {
                return;
            }
        }
    }

    fn open(&self, chunk: ChunkIndex, now: Now) {
        let word = self.word(chunk).load();
        if word.epoch() == now.epoch && word.has(DIRTY) && !word.has(COPY) {
            self.lanes.open(now.epoch).set(chunk);
        }
    }

    /// Closes `chunk`, so that a copy of it may begin once [`Self::is_quiet`].
    pub fn close(&self, chunk: ChunkIndex) {
        let epoch = self.epoch();
        if self.lanes.open(epoch).has(chunk.0) {
            self.lanes.open(epoch).clear(chunk.as_usize() / 64, 1 << (chunk.0 % 64));
            self.lanes.phase.closed.store(self.lanes.turn().0, Ordering::Relaxed);
        }
    }

    /// Whether every command has left that passed a chunk closed by now, or that is of an older
    /// epoch. Costs a barrier in all threads (microseconds) the first time after a chunk was
    /// closed, then a look at each lane.
    pub fn is_quiet(&self) -> bool {
        let phase = &self.lanes.phase;
        let closed = phase.closed.load(Ordering::Relaxed);
        let cut = phase.cut.load(Ordering::Relaxed);
        // One turn at a time: a cut must always find room for its own.
        if closed == self.lanes.turn().0 && self.lanes.is_over(Turn(closed - 1)) {
            self.lanes.end_turn(self.epoch());
            self.lanes.barrier();
        }
        self.lanes.is_over(Turn(closed.max(cut)))
    }

    /// Commands that passed open chunks of the volume, and the number the next one gets with them.
    pub(super) fn with_passed(&self, operation: OperationNumber) -> OperationNumber {
        OperationNumber(operation.0 + self.lanes.operations())
    }
}
