//! What is known of volumes, snapshots and slots: the records that the engine decides on and the
//! catalog keeps.
//!
//! The engine defines these types and the [`CatalogRequest`]s it issues; the store makes them
//! durable. Each request is one transaction: after a crash it happened whole or not at all.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::gate::{ChunkIndex, OperationNumber};

/// Place of one slot in the slot region of a store, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlotIndex(pub u32);

/// Where the content of one chunk is kept in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotRef {
    /// The chunk is all zeros and takes no slot.
    Zero,
    /// The chunk is in `slot`; `crc32c` is the CRC-32C of the chunk's bytes.
    Slot {
        /// The slot that holds the content.
        slot: SlotIndex,
        /// CRC-32C (Castagnoli) of the chunk's bytes, without padding behind the volume's end.
        crc32c: u32,
    },
}

impl SlotRef {
    /// The slot taken, if any.
    pub fn slot(self) -> Option<SlotIndex> {
        match self {
            SlotRef::Zero => None,
            SlotRef::Slot { slot, .. } => Some(slot),
        }
    }
}

/// Number of a volume within its store; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VolumeId(pub u32);

/// Position of a snapshot in its volume's chain, from 1, strictly increasing, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SnapshotSeq(pub u32);

/// How the master of a volume is recognised when it comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterIdentity {
    /// UUID of the base bdev, where its driver gives one that is stable.
    pub uuid: Option<Uuid>,
    /// Logical block size in bytes.
    pub block_bytes: u32,
    /// Size in logical blocks.
    pub block_count: u64,
}

/// A volume that a store knows, attached or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Number within the store.
    pub id: VolumeId,
    /// Name of the volume bdev.
    pub name: String,
    /// UUID of the volume bdev, made when the volume was first created.
    pub uuid: Uuid,
    /// The master it was created on.
    pub master: MasterIdentity,
    /// Bytes per chunk; equals the store's slot size.
    pub chunk_bytes: u32,
    /// Whether the last stop was clean: the saved dirty set and staged entries are to be trusted.
    /// Set to false, durably, before the first command is let in (I7).
    pub clean: bool,
    /// Highest operation number that may have been given out: exact after a clean stop; while the
    /// volume is in use, a bound reserved ahead.
    pub operation_number: OperationNumber,
}

/// State of a snapshot as users see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    /// Readable, still needs the master for its pending chunks.
    Completing,
    /// An independent copy.
    Complete,
    /// Given up; `reason` says why. Holds no slots.
    Failed,
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SnapshotState::Completing => "completing",
            SnapshotState::Complete => "complete",
            SnapshotState::Failed => "failed",
        })
    }
}

/// How the chunks of a snapshot came to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkCounts {
    /// Chunks of the volume.
    pub total: u64,
    /// Chunks that no earlier snapshot held unchanged.
    pub required: u64,
    /// Required chunks taken over from valid staged slots.
    pub adopted: u64,
    /// Required chunks copied after the cut by the background.
    pub copied: u64,
    /// Required chunks copied after the cut because a foreground command waited.
    pub preserved: u64,
    /// Required chunks that were all zeros and took no slot.
    pub zero: u64,
}

/// When a snapshot reached its stages, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTimes {
    /// How long the cut itself took.
    pub cut_us: u64,
    /// From the request to readable.
    pub consistent_us: u64,
    /// From the request to complete; 0 while not complete.
    pub complete_us: u64,
}

/// A snapshot as the catalog keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// The volume it is of.
    pub volume: VolumeId,
    /// Place in the volume's chain.
    pub seq: SnapshotSeq,
    /// Name, unique within the volume.
    pub name: String,
    /// Chosen by the caller or made at create; namespace UUID and NGUID derive from it.
    pub uuid: Uuid,
    /// The snapshot contains exactly the commands with lower operation numbers.
    pub operation_number: OperationNumber,
    /// Wall clock at the request, milliseconds since the Unix epoch.
    pub created_at_unix_ms: u64,
    /// State.
    pub state: SnapshotState,
    /// Why it failed.
    pub reason: Option<String>,
    /// How its chunks came to be.
    pub chunks: ChunkCounts,
    /// When it reached its stages.
    pub times: SnapshotTimes,
    /// Slots this snapshot's own rows take, times the slot size.
    pub bytes_used: u64,
}

impl SnapshotRecord {
    /// A snapshot that is asked for; what it contains and how it fares is to be filled in.
    pub fn asked_for(
        volume: VolumeId,
        seq: SnapshotSeq,
        name: impl Into<String>,
        uuid: Uuid,
        at_unix_ms: u64,
    ) -> Self {
        Self {
            volume,
            seq,
            name: name.into(),
            uuid,
            operation_number: OperationNumber(0),
            created_at_unix_ms: at_unix_ms,
            state: SnapshotState::Completing,
            reason: None,
            chunks: ChunkCounts::default(),
            times: SnapshotTimes::default(),
            bytes_used: 0,
        }
    }
}

/// Map blocks per chunk: one bit each in the chunk's block map.
pub const BLOCKS_PER_CHUNK: usize = 64;

/// CRC-32C of each of a chunk's 64 blocks.
pub type BlockCrcs = [u32; BLOCKS_PER_CHUNK];

/// What the catalog keeps of a staged chunk over a clean stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedRecord {
    /// The chunk that was copied.
    pub chunk: ChunkIndex,
    /// Highest operation number given out when the copy was made.
    pub operation_number: OperationNumber,
    /// Where the copy is; `None` for a chunk that was all zeros.
    pub slot: Option<SlotIndex>,
    /// Blocks modified since the copy was right; 0 means valid.
    pub block_map: u64,
    /// Checksums of the copied blocks.
    pub block_crcs: Box<BlockCrcs>,
}

/// One row of a snapshot: a chunk it required and where its content is.
pub type SnapshotRow = (ChunkIndex, SlotRef);

/// One catalog transaction.
#[derive(Clone, Debug)]
pub enum CatalogRequest {
    /// Marks a volume as in use, before its first command is let in, and drops its saved dirty
    /// set and staged rows (they are in memory from now on).
    OpenVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// Saves what a later clean start may trust.
    CloseVolume {
        /// The volume.
        volume: VolumeId,
        /// Highest operation number given out.
        operation_number: OperationNumber,
        /// Dirty chunks, as 64-bit words of a bitmap: (word index, bits), zero words left out.
        dirty_words: Vec<(u32, u64)>,
        /// Staged chunks.
        staged: Vec<StagedRecord>,
    },
    /// Inserts the record of a snapshot that is about to be cut.
    BeginSnapshot(SnapshotRecord),
    /// Adds rows of a completing snapshot.
    AddRows {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        seq: SnapshotSeq,
        /// The rows.
        rows: Vec<SnapshotRow>,
    },
    /// Adds the last rows and makes the snapshot complete. The slots' data is durable before.
    CompleteSnapshot {
        /// The record with state `Complete`.
        record: SnapshotRecord,
        /// The last rows.
        rows: Vec<SnapshotRow>,
    },
    /// Drops the rows of a snapshot and keeps its record with state `Failed`.
    FailSnapshot(SnapshotRecord),
    /// Deletes a snapshot. Rows that the next complete snapshot of the volume relies on are
    /// handed to it; the others are dropped. Without a next one, the chunks of its rows count as
    /// dirty again (also in the saved dirty set of a cleanly stopped volume).
    DeleteSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        seq: SnapshotSeq,
    },
}

/// Why a snapshot or a catalog transaction failed, for programs. Not kept: only whoever waits for it
/// is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The store has no room, in slots or in the catalog.
    NoSpace,
    /// Anything else.
    Other,
}

/// Why a snapshot or a catalog transaction failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// For programs.
    pub cause: Cause,
    /// For people.
    pub reason: String,
}

impl Trouble {
    /// The same, with what was being done.
    #[must_use]
    pub fn in_doing(self, what: &str) -> Self {
        Self { reason: format!("{what} failed: {}", self.reason), ..self }
    }
}

impl From<String> for Trouble {
    fn from(reason: String) -> Self {
        Self { cause: Cause::Other, reason }
    }
}

impl From<&str> for Trouble {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

/// What a catalog transaction answers once it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogReply {
    /// Done.
    Done,
    /// A snapshot was deleted.
    Deleted {
        /// Slots that nothing refers to any more.
        freed: Vec<SlotIndex>,
        /// Chunks that no remaining snapshot holds in their newest recorded state.
        dirtied: Vec<ChunkIndex>,
        /// Rows that the next snapshot took over.
        handed_over: u64,
    },
}
