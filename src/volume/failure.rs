//! Why a control operation was refused or failed: a sort and a sentence for people.

use std::fmt;

use super::world::world;
use crate::engine::ChainError;
use crate::engine::records::Cause;
use crate::spdk::error::Errno;
use crate::store;

/// Sort of a [`Failure`]; each is one errno of the JSON-RPC interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Refused to destroy what is there (EPERM).
    Refused,
    /// No such store, volume or snapshot (ENOENT).
    NotFound,
    /// The device failed (EIO).
    Io,
    /// Memory is short (ENOMEM).
    NoMemory,
    /// In use (EBUSY).
    Busy,
    /// The name or UUID is taken (EEXIST).
    Exists,
    /// No such device, or it is gone (ENODEV).
    NoDevice,
    /// Does not fit (EINVAL).
    Invalid,
    /// No space left (ENOSPC).
    NoSpace,
    /// What is on the device is damaged (EBADMSG).
    Damaged,
    /// A newer presnap wrote it, or SPDK was built without it (ENOTSUP).
    NotSupported,
    /// The deadline passed (ETIMEDOUT).
    TimedOut,
    /// The master is not the one that the store knows (ESTALE).
    Stale,
}

impl Sort {
    /// That of a snapshot that failed for this cause.
    pub fn of_snapshot(cause: Cause) -> Self {
        match cause {
            Cause::NoSpace => Sort::NoSpace,
            Cause::Other => Sort::Io,
        }
    }
}

/// Why a control operation was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Sort.
    pub sort: Sort,
    /// Names the object, the cause and the remedy.
    pub message: String,
}

impl Failure {
    /// A failure of this sort.
    pub fn new(sort: Sort, message: impl Into<String>) -> Self {
        Self { sort, message: message.into() }
    }

    /// The same as one of another sort.
    #[must_use]
    pub fn of_sort(self, sort: Sort) -> Self {
        Self { sort, ..self }
    }

    /// What the store room said of store `name`.
    pub fn of_store(name: &str, error: &store::Error) -> Self {
        use store::ErrorKind as Kind;
        let sort = match error.kind() {
            Kind::NotAStore | Kind::NotFound => Sort::NotFound,
            Kind::Occupied => Sort::Refused,
            Kind::Invalid => Sort::Invalid,
            Kind::Damaged => Sort::Damaged,
            Kind::Unsupported => Sort::NotSupported,
            Kind::Exists => Sort::Exists,
            Kind::Busy => Sort::Busy,
            Kind::Full => Sort::NoSpace,
            Kind::Closed => Sort::NoDevice,
            // Io, and what a later version may add.
            _ => Sort::Io,
        };
        let sort =
            if matches!(error, store::Error::TooSmall { .. }) { Sort::NoSpace } else { sort };
        Self::new(sort, format!("{name}: {}", store::chain(error)))
    }

    /// What SPDK said when bdev `name` was opened.
    pub fn opening(name: &str, error: Errno) -> Self {
        match error {
            Errno::NODEV => Self::no_bdev(name),
            Errno::PERM | Errno::BUSY => Self::new(
                Sort::Busy,
                format!(
                    "bdev '{name}' is in use: {}; delete what uses it, or name another bdev",
                    world().user_of(name)
                ),
            ),
            other => Self::new(Sort::Io, format!("bdev '{name}' cannot be opened: {other}")),
        }
    }

    /// There is no such bdev.
    pub fn no_bdev(name: &str) -> Self {
        Self::new(
            Sort::NoDevice,
            format!("there is no bdev '{name}'; create it first, bdev_get_bdevs lists those there"),
        )
    }

    /// There is no such store.
    pub fn no_store(name: &str) -> Self {
        Self::new(
            Sort::NotFound,
            format!("there is no store '{name}'; load it with presnap_store_load"),
        )
    }

    /// There is no such volume.
    pub fn no_volume(name: &str) -> Self {
        Self::new(
            Sort::NotFound,
            format!("there is no volume '{name}'; presnap_get_stores lists the volumes of stores"),
        )
    }

    /// What the chain of `volume` said.
    pub fn of_chain(volume: &str, error: &ChainError) -> Self {
        let sort = match error {
            ChainError::Busy { .. } | ChainError::Needed { .. } => Sort::Busy,
            ChainError::NameTaken { .. } | ChainError::UuidTaken { .. } => Sort::Exists,
            ChainError::NotFound { .. } => Sort::NotFound,
        };
        Self::new(sort, format!("volume '{volume}': {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when the sort is taken from anything but the cause.
    #[test]
    fn a_snapshot_that_found_no_room_has_no_space() {
        let full = store::Error::CatalogFull { operation: "adding rows", region_bytes: 1 << 20 };
        assert_eq!(Sort::of_snapshot(full.kind().cause()), Sort::NoSpace);
        assert_eq!(Sort::of_snapshot(store::Error::Closed.kind().cause()), Sort::Io);
    }
}
