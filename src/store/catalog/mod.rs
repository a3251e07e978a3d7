//! The catalog: what must survive a stop, in a redb database on the store device.
//!
//! Synchronous, and owned by one OS thread (see [`super::catalog_thread`]). Each call is one
//! transaction with [`redb::Durability::Immediate`]: after a power cut at any moment it happened
//! whole or not at all. A device error makes redb's database unusable; the catalog then opens it
//! anew, finds out by its transaction counter whether the commit had happened, and goes on.

mod check;
mod codec;
mod damaged_slots;
mod requests;

use std::{
    ops::RangeInclusive,
    sync::{Arc, OnceLock},
};

use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable,
    WriteTransaction,
};
use uuid::Uuid;

use self::codec::{
    DIRTY, META, META_NEXT_VOLUME, META_SCHEMA, META_STORE, META_TRANSACTION, ROWS, SCHEMA_VERSION,
    SNAPSHOTS, STAGED, VOLUMES, VolumeRow,
};
use super::{
    device::SharedDevice,
    error::{Error, Result},
    region::{Region, layout::PAGE_BYTES},
    superblock::Superblock,
};
use crate::{
    engine::records::{
        CatalogReply, CatalogRequest, SlotIndex, SlotRef, SnapshotRecord, SnapshotSeq,
        StagedRecord, VolumeId, VolumeRecord,
    },
    gate::ChunkIndex,
};

pub use self::{
    check::CheckReport,
    damaged_slots::{RowPlace, RowPortion, ScrubRow},
};

/// Memory that redb may use for pages, in bytes. The catalog of a store with 64 Ki slots fits.
const CACHE_BYTES: usize = 64 << 20;

/// Operation numbers reserved when a volume is opened. 2^40 commands are 12 days at one million
/// per second; each snapshot moves the bound on. 2^16 unclean stops use up the gate's 56 bits.
pub const OPERATION_RESERVE: u64 = 1 << 40;

/// Part of the catalog region that only transactions which free room may use: 1/8. Deleting a
/// snapshot copies pages before it frees any.
const RESERVE_DIVISOR: u64 = 8;

/// What a request does to the size of the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// Adds at most so many bytes.
    Grows(u64),
    /// Frees room in the end.
    Shrinks,
}

/// All that the catalog keeps of one volume, except the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedVolume {
    /// The volume.
    pub record: VolumeRecord,
    /// Highest sequence number ever given to one of its snapshots, deleted ones included; 0 if
    /// there never was one.
    pub last_seq: SnapshotSeq,
    /// Its snapshots, by sequence number.
    pub snapshots: Vec<SnapshotRecord>,
    /// Saved dirty set as (word index, bits); empty unless the record is `clean`.
    pub dirty_words: Vec<(u32, u64)>,
    /// Saved staged chunks, by chunk; empty unless the record is `clean`.
    pub staged: Vec<StagedRecord>,
}

/// Size of the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogUsage {
    /// Bytes of the region.
    pub region_bytes: u64,
    /// Bytes of the region that the file takes at present.
    pub file_bytes: u64,
    /// Bytes of pages in use.
    pub used_bytes: u64,
    /// Transactions since the store was created.
    pub transactions: u64,
}

/// Why a catalog serves nothing any more until its store is loaded again; empty while it does.
pub type LostMark = Arc<OnceLock<String>>;

/// The catalog of one store.
#[derive(Debug)]
pub struct Catalog {
    region: Arc<Region>,
    /// `None` after a failure that reopening did not cure, and after [`Catalog::close`].
    database: Option<Database>,
    store: Uuid,
    slot_bytes: u32,
    slot_count: u32,
    closed: bool,
    lost: LostMark,
}

/// How one attempt at a transaction ended without success.
enum Failure<T> {
    /// The request was refused or the catalog is full; nothing is wrong with the database.
    Refused(Error),
    /// redb failed before the commit.
    Lost(Error),
    /// redb failed in the commit of this transaction number: it may have happened.
    Uncertain(Error, u64, T),
}

fn table_error(operation: &'static str) -> impl Fn(redb::TableError) -> Error {
    move |source| Error::catalog(operation, source)
}

fn storage_error(operation: &'static str) -> impl Fn(redb::StorageError) -> Error {
    move |source| Error::catalog(operation, source)
}

fn damaged(what: String) -> Error {
    Error::CatalogDamaged { what }
}

impl Catalog {
    /// Writes an empty catalog into the region that the superblock names. Whatever is there is
    /// lost; durable on return.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Catalog`].
    pub fn create(device: SharedDevice, superblock: &Superblock) -> Result<Self> {
        let (offset, size) = (superblock.catalog_offset, superblock.catalog_bytes);
        let region = Region::create(device, offset, size)?;
        let mut catalog = Self::new(region, superblock);
        catalog.reopen()?;
        let store = superblock.uuid;
        catalog.transact("create", Room::Grows(0), |tx| {
            const OPERATION: &str = "create";
            let mut meta = tx.open_table(META).map_err(table_error(OPERATION))?;
            let (high, low) = store.as_u64_pair();
            let entries = [
                (META_SCHEMA, SCHEMA_VERSION),
                (META_NEXT_VOLUME, 1),
                (META_STORE[0], high),
                (META_STORE[1], low),
            ];
            for (key, value) in entries {
                meta.insert(key, value).map_err(storage_error(OPERATION))?;
            }
            tx.open_table(VOLUMES).map_err(table_error(OPERATION))?;
            tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
            tx.open_table(ROWS).map_err(table_error(OPERATION))?;
            tx.open_table(STAGED).map_err(table_error(OPERATION))?;
            tx.open_table(DIRTY).map_err(table_error(OPERATION))?;
            Ok(())
        })?;
        Ok(catalog)
    }

    /// Opens the catalog. Snapshots that were completing when the store stopped become `failed`
    /// and lose their rows (I5).
    ///
    /// # Errors
    /// [`Error::CatalogDamaged`] where it is not this store's or cannot be read,
    /// [`Error::Unsupported`] for tables of a newer presnap, [`Error::Device`],
    /// [`Error::Catalog`].
    pub fn open(device: SharedDevice, superblock: &Superblock) -> Result<Self> {
        let mut catalog = Self::open_as_left(device, superblock)?;
        catalog.fail_interrupted()?;
        Ok(catalog)
    }

    /// Opens the catalog and leaves snapshots that were completing as they are.
    pub(super) fn open_as_left(device: SharedDevice, superblock: &Superblock) -> Result<Self> {
        let (offset, size) = (superblock.catalog_offset, superblock.catalog_bytes);
        let region = Region::open(device, offset, size)?;
        if region.length_bytes() == 0 {
            return Err(damaged("the catalog is empty".to_owned()));
        }
        let mut catalog = Self::new(region, superblock);
        catalog.reopen()?;
        catalog.check_identity()?;
        Ok(catalog)
    }

    fn new(region: Arc<Region>, superblock: &Superblock) -> Self {
        Catalog {
            region,
            database: None,
            store: superblock.uuid,
            slot_bytes: superblock.slot_bytes,
            slot_count: superblock.slot_count,
            closed: false,
            lost: LostMark::default(),
        }
    }

    fn check_identity(&self) -> Result<()> {
        const OPERATION: &str = "open";
        let tx = self.begin_read(OPERATION)?;
        let meta = tx.open_table(META).map_err(table_error(OPERATION))?;
        let value = |key: &str| -> Result<u64> {
            let entry = meta.get(key).map_err(storage_error(OPERATION))?;
            Ok(entry.map_or(0, |value| value.value()))
        };
        let schema = value(META_SCHEMA)?;
        if schema > SCHEMA_VERSION {
            return Err(Error::Unsupported { what: format!("catalog schema {schema}") });
        }
        if schema != SCHEMA_VERSION {
            return Err(damaged(format!("catalog schema {schema}")));
        }
        let store = Uuid::from_u64_pair(value(META_STORE[0])?, value(META_STORE[1])?);
        if store != self.store {
            return Err(damaged(format!("it belongs to store {store}, not {}", self.store)));
        }
        Ok(())
    }

    /// Opens the database anew, after a failure or for the first time.
    fn reopen(&mut self) -> Result<()> {
        const OPERATION: &str = "open";
        // The old handle goes first: it writes a last time when it is dropped, if it still can.
        self.database = None;
        self.region.take_overflow();
        let open = |region: &Arc<Region>| {
            let mut builder = Builder::new();
            builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
            builder.create_with_backend(region.backend())
        };
        let opened = match open(&self.region) {
            Err(_) if self.region.take_overflow() && self.can_extend() => {
                self.region.extend_to_max()?;
                open(&self.region)
            }
            opened => opened,
        };
        let database = opened.map_err(|source| match redb::Error::from(source) {
            redb::Error::Corrupted(what) => damaged(what),
            redb::Error::Io(source) if source.kind() == std::io::ErrorKind::InvalidData => {
                damaged(source.to_string())
            }
            source => Error::catalog(OPERATION, source),
        })?;
        self.database = Some(database);
        Ok(())
    }

    fn can_extend(&self) -> bool {
        self.region.length_bytes() < self.region.length_bytes_max()
    }

    fn full(&self, operation: &'static str) -> Error {
        Error::CatalogFull { operation, region_bytes: self.region.size_bytes() }
    }

    fn begin_read(&self, operation: &'static str) -> Result<ReadTransaction> {
        let database = self.database.as_ref().ok_or(Error::Closed)?;
        database.begin_read().map_err(|source| Error::catalog(operation, source))
    }

    /// Runs `body` in a transaction and makes it durable. `body` may run twice.
    fn transact<T>(
        &mut self,
        operation: &'static str,
        room: Room,
        body: impl Fn(&WriteTransaction) -> Result<T>,
    ) -> Result<T> {
        if self.closed {
            return Err(Error::Closed);
        }
        if self.database.is_none() {
            // An earlier failure; the device may be back.
            self.reopen()?;
        }
        let mut retried = false;
        loop {
            let error = match self.attempt(operation, room, &body) {
                Ok(value) => return Ok(value),
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Lost(error)) => {
                    let overflow = self.region.take_overflow();
                    if overflow && self.can_extend() && !retried {
                        retried = true;
                        self.database = None;
                        self.region.extend_to_max()?;
                        self.reopen()?;
                        continue;
                    }
                    self.reopen_quietly();
                    if overflow { self.full(operation) } else { error }
                }
                Err(Failure::Uncertain(error, number, value)) => {
                    self.reopen_quietly();
                    match self.transaction_number() {
                        Ok(found) if found == number => return Ok(value),
                        Ok(_) => error,
                        // It may have happened or not, and whoever asked will act as if not. A later
                        // transaction must not find out otherwise: only a load may.
                        Err(_) => {
                            self.lose(&super::chain(&error));
                            error
                        }
                    }
                }
            };
            return Err(error);
        }
    }

    /// Reopening that fails leaves no database; the next transaction tries again.
    fn reopen_quietly(&mut self) {
        if let Err(error) = self.reopen() {
            tracing::error!(error = %super::chain(&error), "the catalog could not be reopened");
        }
    }

    fn transaction_number(&self) -> Result<u64> {
        const OPERATION: &str = "read the transaction number";
        let tx = self.begin_read(OPERATION)?;
        let meta = tx.open_table(META).map_err(table_error(OPERATION))?;
        let entry = meta.get(META_TRANSACTION).map_err(storage_error(OPERATION))?;
        Ok(entry.map_or(0, |value| value.value()))
    }

    fn attempt<T>(
        &self,
        operation: &'static str,
        room: Room,
        body: impl Fn(&WriteTransaction) -> Result<T>,
    ) -> Result<T, Failure<T>> {
        let lost = |error| Failure::Lost(error);
        let database = self.database.as_ref().ok_or(Failure::Refused(Error::Closed))?;
        let mut tx =
            database.begin_write().map_err(|source| lost(Error::catalog(operation, source)))?;
        tx.set_two_phase_commit(true);
        tx.set_durability(Durability::Immediate)
            .map_err(|source| lost(Error::catalog(operation, source)))?;
        let prepared = self.check_room(&tx, operation, room).and_then(|()| {
            let value = body(&tx)?;
            let number = next_transaction_number(&tx, operation)?;
            Ok((value, number))
        });
        let (value, number) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                let aborted = tx.abort().map_err(storage_error(operation));
                return Err(match (error, aborted) {
                    (error @ Error::Catalog { .. }, _) | (_, Err(error)) => lost(error),
                    (error, Ok(())) => Failure::Refused(error),
                });
            }
        };
        match tx.commit() {
            Ok(()) => Ok(value),
            Err(source) => {
                let error = Error::catalog(operation, source);
                if self.region.take_overflow() {
                    // Room is asked for before anything is written to the header.
                    Err(lost(self.full_again(error)))
                } else {
                    Err(Failure::Uncertain(error, number, value))
                }
            }
        }
    }

    /// Keeps the overflow mark that was just taken.
    fn full_again(&self, error: Error) -> Error {
        self.region.mark_overflow();
        error
    }

    /// Leaves the reserve to transactions that free room.
    fn check_room(&self, tx: &WriteTransaction, operation: &'static str, room: Room) -> Result<()> {
        let Room::Grows(bytes) = room else { return Ok(()) };
        let max = self.region.length_bytes_max();
        let limit = max - max / RESERVE_DIVISOR;
        if self.region.length_bytes() + bytes <= limit {
            return Ok(());
        }
        // Counting walks the trees, so it is done only where the file is long.
        let stats = tx.stats().map_err(storage_error(operation))?;
        if stats.allocated_pages() * PAGE_BYTES + bytes > limit {
            return Err(self.full(operation));
        }
        Ok(())
    }

    /// Serves one request of the engine.
    ///
    /// # Errors
    /// [`Error::NoVolume`], [`Error::NoSnapshot`], [`Error::Exists`], [`Error::Busy`],
    /// [`Error::Refused`] for a request that contradicts the catalog, [`Error::CatalogFull`],
    /// [`Error::Device`], [`Error::Catalog`]. In each case nothing has changed.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "who asks has no use for the rows any more, and may be another thread"
    )]
    pub fn execute(&mut self, request: CatalogRequest) -> Result<CatalogReply> {
        self.execute_request(&request)
    }

    /// Adds a volume and returns its record with the number that it got.
    ///
    /// # Errors
    /// [`Error::Exists`] for a name that is taken, [`Error::Invalid`] for a chunk size that is
    /// not the slot size, and as [`Catalog::execute`].
    pub fn create_volume(&mut self, record: VolumeRecord) -> Result<VolumeRecord> {
        self.add_volume(record)
    }

    /// Forgets a volume that has no snapshots and returns the slots of its saved staged chunks.
    ///
    /// # Errors
    /// [`Error::Busy`] while it has snapshots, [`Error::NoVolume`], and as [`Catalog::execute`].
    pub fn forget_volume(&mut self, volume: VolumeId) -> Result<Vec<SlotIndex>> {
        self.remove_volume(volume)
    }

    /// All volumes, by number.
    ///
    /// # Errors
    /// [`Error::CatalogDamaged`], [`Error::Catalog`].
    pub fn volumes(&self) -> Result<Vec<VolumeRecord>> {
        const OPERATION: &str = "list volumes";
        let tx = self.begin_read(OPERATION)?;
        let rows = requests::volume_rows(&tx, OPERATION)?;
        Ok(rows.into_iter().map(|row| row.record).collect())
    }

    /// The snapshots of a volume in chain order.
    ///
    /// # Errors
    /// [`Error::CatalogDamaged`], [`Error::Catalog`].
    pub fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotRecord>> {
        const OPERATION: &str = "list snapshots";
        let tx = self.begin_read(OPERATION)?;
        let table = tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
        requests::snapshots_of(&table, volume, OPERATION)
    }

    /// All that is kept of a volume, except the rows.
    ///
    /// # Errors
    /// [`Error::NoVolume`], [`Error::CatalogDamaged`], [`Error::Catalog`].
    pub fn load_state(&self, volume: VolumeId) -> Result<LoadedVolume> {
        const OPERATION: &str = "load a volume";
        let tx = self.begin_read(OPERATION)?;
        let volumes = tx.open_table(VOLUMES).map_err(table_error(OPERATION))?;
        let VolumeRow { record, last_seq } = requests::volume_row(&volumes, volume, OPERATION)?;
        let snapshots = tx.open_table(SNAPSHOTS).map_err(table_error(OPERATION))?;
        let dirty = tx.open_table(DIRTY).map_err(table_error(OPERATION))?;
        let staged = tx.open_table(STAGED).map_err(table_error(OPERATION))?;
        Ok(LoadedVolume {
            record,
            last_seq,
            snapshots: requests::snapshots_of(&snapshots, volume, OPERATION)?,
            dirty_words: requests::dirty_of(&dirty, volume, OPERATION)?,
            staged: requests::staged_of(&staged, volume, OPERATION)?,
        })
    }

    /// Calls `visit` for each row of a volume, in chain order and by chunk within a snapshot, with
    /// bounded memory. Stops at the first error that `visit` returns.
    ///
    /// # Errors
    /// [`Error::Catalog`], or what `visit` returned.
    pub fn for_each_row(
        &self,
        volume: VolumeId,
        mut visit: impl FnMut(SnapshotSeq, ChunkIndex, SlotRef) -> Result<()>,
    ) -> Result<()> {
        const OPERATION: &str = "read rows";
        let tx = self.begin_read(OPERATION)?;
        let table = tx.open_table(ROWS).map_err(table_error(OPERATION))?;
        let range = requests::rows_of_volume(volume);
        let rows = table.range::<&codec::RowKey>(&range.0..=&range.1);
        for entry in rows.map_err(storage_error(OPERATION))? {
            let (key, value) = entry.map_err(storage_error(OPERATION))?;
            let (_, seq, chunk) = codec::row_of(key.value());
            visit(seq, chunk, codec::decode_slot_ref(*value.value()))?;
        }
        Ok(())
    }

    /// The rows of one snapshot with chunks in `chunks`, at most `limit` of them.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn rows(
        &self,
        volume: VolumeId,
        seq: SnapshotSeq,
        chunks: RangeInclusive<ChunkIndex>,
        limit: usize,
    ) -> Result<Vec<(ChunkIndex, SlotRef)>> {
        const OPERATION: &str = "read rows";
        let tx = self.begin_read(OPERATION)?;
        let table = tx.open_table(ROWS).map_err(table_error(OPERATION))?;
        let first = codec::row_key(volume, seq, *chunks.start());
        let last = codec::row_key(volume, seq, *chunks.end());
        let range = table.range::<&codec::RowKey>(&first..=&last);
        range
            .map_err(storage_error(OPERATION))?
            .take(limit)
            .map(|entry| {
                let (key, value) = entry.map_err(storage_error(OPERATION))?;
                let (_, _, chunk) = codec::row_of(key.value());
                Ok((chunk, codec::decode_slot_ref(*value.value())))
            })
            .collect()
    }

    /// How full the catalog is. Walks all of it: not for every request.
    ///
    /// # Errors
    /// [`Error::Catalog`], [`Error::Closed`].
    pub fn usage(&self) -> Result<CatalogUsage> {
        const OPERATION: &str = "measure the catalog";
        let database = self.database.as_ref().ok_or(Error::Closed)?;
        let tx = database.begin_write().map_err(|source| Error::catalog(OPERATION, source))?;
        let stats = tx.stats().map_err(storage_error(OPERATION))?;
        tx.abort().map_err(storage_error(OPERATION))?;
        Ok(CatalogUsage {
            region_bytes: self.region.size_bytes(),
            file_bytes: self.region.length_bytes(),
            used_bytes: stats.allocated_pages() * PAGE_BYTES,
            transactions: self.transaction_number()?,
        })
    }

    /// Lets go of the device without another write: for a catalog that panicked, whose memory may
    /// contradict itself. The next open repairs what is on the device.
    pub(super) fn abandon(mut self) {
        self.lose("its catalog was given up");
    }

    /// Set before the request is answered that the catalog was lost with.
    pub(super) fn lost_mark(&self) -> LostMark {
        LostMark::clone(&self.lost)
    }

    /// Tries to get the database back that an earlier failure took, as the next transaction would: for
    /// what only reads.
    pub(super) fn revive(&mut self) {
        if self.database.is_none() && !self.closed {
            self.reopen_quietly();
        }
    }

    fn lose(&mut self, why: &str) {
        // The first reason counts.
        let _ = self.lost.set(why.to_owned());
        self.closed = true;
        self.region.cut_off();
        self.database = None;
    }

    /// Closes the database in order, so that the next open needs no repair. The catalog serves
    /// nothing afterwards; closing again does nothing.
    ///
    /// # Errors
    /// [`Error::Catalog`]: the store is intact all the same, the next open repairs it.
    pub fn close(&mut self) -> Result<()> {
        self.closed = true;
        let Some(database) = self.database.take() else { return Ok(()) };
        database.close().map_err(|source| Error::catalog("close", source))
    }
}

/// Bytes of a volume's value, for the test that compares them with the document.
#[cfg(test)]
pub(super) fn volume_bytes(record: &VolumeRecord, last_seq: SnapshotSeq) -> Vec<u8> {
    codec::encode_volume(&VolumeRow { record: record.clone(), last_seq })
}

/// Bytes of a snapshot's value, likewise.
#[cfg(test)]
pub(super) fn snapshot_bytes(record: &SnapshotRecord) -> Vec<u8> {
    codec::encode_snapshot(record)
}

/// Bytes of a staged chunk's value, likewise.
#[cfg(test)]
pub(super) fn staged_bytes(staged: &StagedRecord) -> Vec<u8> {
    codec::encode_staged(staged).to_vec()
}

/// Bytes of what is noted of a damaged slot, likewise.
#[cfg(test)]
pub(super) fn damaged_bytes(found_at_unix_ms: u64, crc32c: u32) -> Vec<u8> {
    codec::encode_damaged(codec::DamagedMark { found_at_unix_ms, crc32c }).to_vec()
}

fn next_transaction_number(tx: &WriteTransaction, operation: &'static str) -> Result<u64> {
    let mut meta = tx.open_table(META).map_err(table_error(operation))?;
    let entry = meta.get(META_TRANSACTION).map_err(storage_error(operation))?;
    let number = entry.map_or(0, |value| value.value()) + 1;
    meta.insert(META_TRANSACTION, number).map_err(storage_error(operation))?;
    Ok(number)
}
