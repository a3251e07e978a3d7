//! What can go wrong in the store room: one type, each value with a kind for programs, a context
//! for people and, where there is one, a remedy.

use std::io;

use crate::engine::records::{Cause, SnapshotSeq, VolumeId};

/// Result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Coarse sort of an [`Error`], for whoever maps it to an errno (`volume/failure.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The device failed a read, write or flush.
    Io,
    /// The device carries no presnap store.
    NotAStore,
    /// The device carries something else, or another store.
    Occupied,
    /// The device or a parameter does not fit.
    Invalid,
    /// What is on the device is damaged.
    Damaged,
    /// A newer presnap wrote what is on the device.
    Unsupported,
    /// A volume or snapshot that is not there.
    NotFound,
    /// A name or number that is taken.
    Exists,
    /// Not in the present state.
    Busy,
    /// The catalog region or the slot region is full.
    Full,
    /// The catalog was closed or its thread is gone.
    Closed,
    /// A defect of presnap.
    Internal,
}

impl ErrorKind {
    /// What the engine is told of it.
    pub fn cause(self) -> Cause {
        if self == ErrorKind::Full { Cause::NoSpace } else { Cause::Other }
    }
}

/// An error of the store room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device failed.
    #[error("{operation} of {length} bytes at byte {offset} of the store device failed")]
    Device {
        /// `read`, `write` or `flush`.
        operation: &'static str,
        /// Byte offset on the device.
        offset: u64,
        /// Length in bytes.
        length: u64,
        /// What the device said.
        #[source]
        source: io::Error,
    },
    /// Not a store.
    #[error(
        "the device holds no presnap store ({found}); create one with presnap_store_create, or \
         name the right device"
    )]
    NotAStore {
        /// What it holds instead.
        found: String,
    },
    /// Something is on the device that formatting would destroy.
    #[error("the device holds {found}; use force to destroy it, or name another device")]
    Occupied {
        /// What it holds.
        found: String,
    },
    /// The device is too small.
    #[error(
        "the device has {size_bytes} bytes; a store with {slot_bytes}-byte slots takes at least \
         {least_bytes}: use a larger device"
    )]
    TooSmall {
        /// Size of the device.
        size_bytes: u64,
        /// Size of a slot.
        slot_bytes: u32,
        /// Smallest device that holds one slot.
        least_bytes: u64,
    },
    /// A parameter that cannot be.
    #[error("{what}")]
    Invalid {
        /// Parameter, value and what would be right.
        what: String,
    },
    /// Both superblocks are damaged.
    #[error(
        "both superblocks are damaged (A: {copy_a}; B: {copy_b}); restore the device from a \
         backup or from its mirror, or format it anew with force, which loses its snapshots"
    )]
    SuperblocksDamaged {
        /// What is wrong with the first copy.
        copy_a: String,
        /// What is wrong with the second copy.
        copy_b: String,
    },
    /// The catalog is damaged.
    #[error(
        "the catalog of the store is damaged ({what}); restore the device from a backup, or \
         format it anew with force, which loses its snapshots"
    )]
    CatalogDamaged {
        /// What was found.
        what: String,
    },
    /// The store was written by a newer presnap.
    #[error("the store has {what}, which this presnap does not know; use a newer presnap")]
    Unsupported {
        /// Version or feature bits.
        what: String,
    },
    /// The device is smaller than the store on it.
    #[error(
        "the device has {size_bytes} bytes, the store on it was made on {expected_bytes}; give \
         the device its former size back"
    )]
    Shrunk {
        /// Size of the device.
        size_bytes: u64,
        /// Size that the superblock names.
        expected_bytes: u64,
    },
    /// A volume that the store does not know.
    #[error("the store knows no volume number {}", .volume.0)]
    NoVolume {
        /// The number asked for.
        volume: VolumeId,
    },
    /// A snapshot that the volume does not have.
    #[error("volume number {} has no snapshot with sequence number {}", .volume.0, .seq.0)]
    NoSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The sequence number asked for.
        seq: SnapshotSeq,
    },
    /// A name or number that is taken.
    #[error("{what} exists already; choose another name")]
    Exists {
        /// What exists.
        what: String,
    },
    /// Not possible in the present state.
    #[error("{operation} is not possible now: {what}")]
    Busy {
        /// What was asked for.
        operation: &'static str,
        /// Why not and what to wait for.
        what: String,
    },
    /// A request that contradicts what the catalog holds: a defect of the caller.
    #[error("the catalog refused {operation}: {what}")]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// What it contradicts.
        what: String,
    },
    /// The catalog region is full.
    #[error(
        "the catalog region ({region_bytes} bytes) is full in {operation}; delete snapshots, or \
         use a larger store"
    )]
    CatalogFull {
        /// What was asked for.
        operation: &'static str,
        /// Size of the region.
        region_bytes: u64,
    },
    /// No free slot.
    #[error("all {slot_count} slots of the store are taken; delete snapshots, or use a larger one")]
    NoFreeSlot {
        /// Slots of the store.
        slot_count: u32,
    },
    /// The catalog's database failed.
    #[error("the catalog failed in {operation}")]
    Catalog {
        /// What was asked for.
        operation: &'static str,
        /// What the database said.
        #[source]
        source: Box<redb::Error>,
    },
    /// The catalog was closed, or its thread ended.
    #[error("the catalog is closed; load the store again")]
    Closed,
    /// The request queue of the catalog thread is full.
    #[error("the catalog has {queued} requests queued; try again when one has completed")]
    QueueFull {
        /// Bound of the queue.
        queued: usize,
    },
    /// The catalog thread panicked while it served a request.
    #[error("the catalog thread panicked ({message}); load the store again and report this")]
    Panicked {
        /// The panic's message.
        message: String,
    },
}

impl Error {
    /// The sort of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Device { .. } => ErrorKind::Io,
            Error::NotAStore { .. } => ErrorKind::NotAStore,
            Error::Occupied { .. } => ErrorKind::Occupied,
            Error::TooSmall { .. } | Error::Invalid { .. } | Error::Shrunk { .. } => {
                ErrorKind::Invalid
            }
            Error::SuperblocksDamaged { .. } | Error::CatalogDamaged { .. } => ErrorKind::Damaged,
            Error::Unsupported { .. } => ErrorKind::Unsupported,
            Error::NoVolume { .. } | Error::NoSnapshot { .. } => ErrorKind::NotFound,
            Error::Exists { .. } => ErrorKind::Exists,
            Error::Busy { .. } | Error::QueueFull { .. } => ErrorKind::Busy,
            Error::CatalogFull { .. } | Error::NoFreeSlot { .. } => ErrorKind::Full,
            Error::Catalog { source, .. } => match **source {
                redb::Error::Corrupted(_) => ErrorKind::Damaged,
                redb::Error::Io(_) | redb::Error::PreviousIo => ErrorKind::Io,
                redb::Error::DatabaseClosed => ErrorKind::Closed,
                _ => ErrorKind::Internal,
            },
            Error::Closed => ErrorKind::Closed,
            Error::Refused { .. } | Error::Panicked { .. } => ErrorKind::Internal,
        }
    }

    /// Wraps an error of redb that arose in `operation`.
    pub(super) fn catalog(operation: &'static str, source: impl Into<redb::Error>) -> Self {
        Error::Catalog { operation, source: Box::new(source.into()) }
    }
}
