//! The write gate: which commands are on which side of a snapshot's cut, which chunks a snapshot
//! still needs from the master, and which copies of chunks are right.
//!
//! It owns one word and one block map per chunk, the clock of operation numbers and cuts, and the
//! dirty index. No I/O, no allocation after creation, no lock, nothing of SPDK.
//!
//! # Threads
//! - *Foreground* ([`Lane::enter`], [`Lane::leave`]): a lane per thread, concurrently. What follows is
//!   said of commands that are counted on their chunks ([`Gate::enter`], [`Gate::leave`]); most pass
//!   *open* chunks on their lane instead, see `lane.rs` for the rules that make this the same.
//! - *Snapshot readers* ([`Gate::read_source`], [`Gate::still_pending`]): any thread.
//! - *Engine* (everything else that changes something): one thread, the volume's.
//!
//! # Chunk states
//! ```text
//! older epoch, clean      not modified since an older cut; the next writer just takes it over
//! this epoch, clean       handed to the completing snapshot, not modified since
//! this epoch, dirty       modified since the cut (or found so); STAGED: a slot holds a copy that
//!                         is right except for the mapped blocks; STAGING: a copy is running
//! older epoch, dirty      no cut active: as `this epoch, dirty`
//!                         cut active: required and *pending*; writers are parked
//! ```
//!
//! # Rules, and who proves them (`tests/loom_gate.rs`, `tests/gate_model.rs`)
//! 1. A command counts itself in on all its chunks, *then* draws its operation number from the
//!    clock, which tells in the same instruction whether the epoch still holds. If not, it takes
//!    its counts back and starts again. So a cut sees every command on its old side, in all chunks.
//! 2. A backed-out command was never forwarded. What it leaves behind is harmless: a count for a
//!    moment (engine operations keep counts or try again), and a dirty flag or index bit in vain
//!    (a copy too many, of data that equals what older snapshots hold).
//! 3. A leaving command that sees STAGING or STAGED maps its blocks before it counts down, with one
//!    compare-and-swap that fails if a copy begins in between. So a copy either began after the
//!    command had landed, or ends with the command's blocks mapped or the command still counted.
//!    Bits at entry would add nothing: while the command is in flight, its count stops adoption.
//! 4. A copy is adopted only with an empty map and nobody of the old side in flight, and no
//!    new-epoch writer gets past a pending chunk. So an adopted copy is the chunk as it was at the
//!    cut.
//! 5. The index bit is set before the word turns dirty.
#![forbid(unsafe_code)]

mod clock;
mod foreground;
mod geometry;
mod index;
mod keeper;
mod lane;
mod sync;
mod word;

use std::fmt;

pub use foreground::{Entry, ReadSource};
pub use geometry::{
    BLOCKS_PER_CHUNK, BlockMap, BlockRun, BlockRuns, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, ChunkIndex,
    Geometry, GeometryError, LbaRange,
};
pub use index::DirtyWalk;
pub use keeper::{ChunkState, ChunkView, CopyEnd, CutPoint, CutRefused};
pub use lane::{LANES_MAX, Lane, OpenWalk, Passage, Turn};

use clock::Clock;
use index::DirtyIndex;
use lane::Lanes;
use sync::{AtomicU32, AtomicU64, Ordering, Pair};
use word::{DIRTY, WordRef};

/// Number of a cut; commands belong to the epoch they enter in. Starts at 1 when the gate is
/// created; it is not persistent. 0 marks chunks that were not touched since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

/// Strictly increasing number per volume: one per modifying command and one per cut. A snapshot
/// contains exactly the commands numbered below its cut. Gaps are normal. At most 56 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationNumber(pub u64);

impl OperationNumber {
    /// The largest.
    pub const MAX: Self = Self(u64::MAX >> 8);
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.0)
    }
}

impl fmt::Display for OperationNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What is known of the chunks when a gate is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// Nothing: the volume has no snapshot yet, or stopped uncleanly. All chunks are dirty.
    AllDirty,
    /// The dirty chunks are known and will be given to [`Gate::mark_dirty`].
    Clean,
}

/// The table of chunks does not fit into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for the table of {chunk_count} chunks; use larger chunks")]
pub struct GateOutOfMemory {
    /// Chunks in the refused volume.
    pub chunk_count: u32,
}

/// The write gate of one volume. Share it with `Arc`.
pub struct Gate {
    clock: Clock,
    geometry: Geometry,
    chunks: Box<[Pair]>,
    /// Stored word = logical word XOR this.
    mask: u64,
    index: DirtyIndex,
    lanes: Lanes,
    /// Latest epoch whose dirty index has been taken or carried over entirely. Engine only.
    walked: AtomicU32,
}

impl Gate {
    /// A gate for a volume of `geometry`; `next_operation` continues the volume's numbers (the
    /// highest ever given out, plus one).
    ///
    /// Reserves 16.5 bytes per chunk, lazily: the table costs memory where commands
    /// go. Starting all dirty touches the index, 1/8 byte per chunk.
    /// Commands come in by a [`Lane`].
    ///
    /// # Errors
    /// When the address space for the table cannot be had.
    ///
    /// # Panics
    /// When `next_operation` exceeds 56 bits.
    pub fn new(
        geometry: Geometry,
        initial: Initial,
        next_operation: OperationNumber,
    ) -> Result<Self, GateOutOfMemory> {
        let chunk_count = geometry.chunk_count();
        let (Some(chunks), Some(index), Some(lanes)) = (
            sync::zeroed_pairs(chunk_count as usize),
            DirtyIndex::new(chunk_count),
            Lanes::new(chunk_count, Epoch(1)),
        ) else {
            return Err(GateOutOfMemory { chunk_count });
        };
        let mask = match initial {
            Initial::AllDirty => {
                index.fill(Epoch(1), chunk_count);
                DIRTY
            }
            Initial::Clean => 0,
        };
        let clock = Clock::new(next_operation);
        Ok(Self { clock, geometry, chunks, mask, index, lanes, walked: AtomicU32::new(0) })
    }

    /// Sizes of the volume.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Whether nothing was known of the chunks when the gate was created.
    pub fn began_all_dirty(&self) -> bool {
        self.mask != 0
    }

    /// Chunks dirty in the present epoch, or a few more: bits of the dirty index. Any thread;
    /// reads 1/8 byte per chunk.
    pub fn dirty_count(&self) -> u64 {
        self.index.count(self.epoch())
    }

    /// The epoch that commands enter now. Any thread.
    pub fn epoch(&self) -> Epoch {
        self.clock.now().epoch
    }

    /// Whether a snapshot is completing, so that pending chunks park writers. Any thread.
    pub fn is_cut_active(&self) -> bool {
        self.clock.now().active
    }

    /// The number that the next command or cut will get: a copy begun now contains every command
    /// numbered below it that has left. Any thread.
    pub fn next_operation(&self) -> OperationNumber {
        self.with_passed(self.clock.peek())
    }

    /// Blocks of `chunk` that its slot lacks; meaningful only while it is staged. Any thread.
    pub fn block_map(&self, chunk: ChunkIndex) -> BlockMap {
        BlockMap(self.map(chunk).load(Ordering::Acquire))
    }

    fn word(&self, chunk: ChunkIndex) -> WordRef<'_> {
        WordRef { raw: &self.chunks[chunk.as_usize()][0], mask: self.mask }
    }

    fn map(&self, chunk: ChunkIndex) -> &AtomicU64 {
        &self.chunks[chunk.as_usize()][1]
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("geometry", &self.geometry)
            .field("now", &self.clock.now())
            .field("next_operation", &self.clock.peek())
            .finish_non_exhaustive()
    }
}
