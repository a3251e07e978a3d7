//! What goes into the engine and what comes out of it.

use super::controller::Change;
use super::records::{
    BlockCrcs, CatalogReply, CatalogRequest, Cause, SlotIndex, SlotRef, SnapshotRecord, Trouble,
};
use super::scores::Score;
use crate::gate::{BlockMap, ChunkIndex};

/// A moment in microseconds on the clock of whoever drives the engine (monotonic).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(pub u64);

impl Micros {
    /// Microseconds from `earlier` to `self`, 0 if that is later.
    pub fn since(self, earlier: Micros) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Number of one copy job; unique for the life of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// One copy from the master to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyJob {
    /// Comes back in [`Event::CopyDone`].
    pub id: JobId,
    /// The chunk to read from the master.
    pub chunk: ChunkIndex,
    /// The slot to write to. Only `blocks` are read and written.
    pub slot: SlotIndex,
    /// Blocks to copy; all of them for a first copy.
    pub blocks: BlockMap,
    /// Compare with the newest complete snapshot first and report [`Copied::Unchanged`] instead
    /// of writing when the bytes are equal. Only set together with all blocks.
    pub compare: bool,
}

/// What a copy found.
#[derive(Clone, Debug)]
pub enum Copied {
    /// The blocks are in the slot; their checksums are in `block_crcs`, other entries are 0.
    Written {
        /// CRC-32C of each copied block.
        block_crcs: Box<BlockCrcs>,
    },
    /// All blocks were asked for and the whole chunk is zeros; nothing was written.
    Zero,
    /// The newest complete snapshot holds the same bytes; nothing was written.
    Unchanged,
}

/// Which catalog transaction an answer belongs to; one of each kind is under way at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CatalogStep {
    /// [`CatalogRequest::BeginSnapshot`]
    Begin,
    /// [`CatalogRequest::AddRows`]
    Rows,
    /// [`CatalogRequest::CompleteSnapshot`]
    Complete,
    /// [`CatalogRequest::FailSnapshot`]
    Fail,
    /// [`CatalogRequest::CloseVolume`]
    Close,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A snapshot was asked for and the chain agreed; the record is in state `Completing`.
    Create(SnapshotRecord),
    /// A catalog transaction ended.
    CatalogDone {
        /// Which.
        step: CatalogStep,
        /// The catalog's answer, or why it failed.
        result: Result<CatalogReply, Trouble>,
    },
    /// A copy ended.
    CopyDone {
        /// The job.
        job: JobId,
        /// What was copied, or why not (then the slot's content is undefined).
        result: Result<Copied, String>,
    },
    /// The store's write cache was flushed.
    FlushDone(Result<(), String>),
    /// A foreground command waits.
    Parked {
        /// For this chunk.
        chunk: ChunkIndex,
        /// Since when it has been waiting, for other chunks before included.
        since: Micros,
    },
    /// The snapshot under way is to be given up.
    Abort(String),
    /// A snapshot was deleted, or what it holds is damaged: these chunks are dirty again.
    Dirtied(Vec<ChunkIndex>),
    /// A staged copy does not hold any more what was copied. If it is still there, it is dropped, and
    /// the chunk copied again when the policy says so.
    StagedDamaged {
        /// The chunk.
        chunk: ChunkIndex,
        /// Where the copy is.
        slot: SlotIndex,
    },
    /// The store can't be used any more; staging and snapshots are over, the volume serves on.
    StoreGone(String),
    /// What a predictor thinks of chunks now, for [`super::PolicyKind::Scored`]: the probability
    /// that a copy made now is of use. It names the chunks it follows that are dirty and have no
    /// valid copy; it may name others, and should where room for copies is short, since staged
    /// copies give way by their scores. Scores that came before are void.
    Scores(Vec<(ChunkIndex, Score)>),
    /// The chunks that are likely to be written soonest, in that order: where the next snapshot
    /// begins to copy. A few hundred are enough.
    Soonest(Vec<ChunkIndex>),
    /// Time passed.
    Tick,
    /// The volume takes no commands any more; save what a clean start may trust.
    Stop,
}

/// Something to be done by whoever drives the engine, in this order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Run a catalog transaction and answer with [`Event::CatalogDone`].
    Catalog {
        /// Goes back with the answer.
        step: CatalogStep,
        /// The transaction.
        request: CatalogRequest,
    },
    /// Copy and answer with [`Event::CopyDone`].
    Copy(CopyJob),
    /// Make everything written to slots durable and answer with [`Event::FlushDone`].
    FlushStore,
    /// The snapshot under way has this chunk at this place from now on.
    Row(ChunkIndex, SlotRef),
    /// Commands parked on this chunk may enter again.
    Wake(ChunkIndex),
    /// Every parked command may enter again.
    WakeAll,
    /// The cut was made: the snapshot is readable.
    Consistent(SnapshotRecord),
    /// The snapshot is complete, or failed for this cause.
    Ended(SnapshotRecord, Option<Cause>),
    /// The threshold was moved: for the log.
    Threshold(Change),
    /// All is saved (or could not be: the reason); the engine may be dropped.
    Stopped(Result<(), String>),
}

/// Where a reader of the snapshot under way finds a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadSource {
    /// On the master; valid if the chunk is still pending after the read.
    Master,
    /// In the snapshot's rows so far, else in the snapshot before.
    Rows,
    /// Commands from before the cut are still in flight on it: ask again.
    Wait,
}
