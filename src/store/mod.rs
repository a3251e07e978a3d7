//! The store: a device that keeps snapshots, by itself and for another host to find.
//!
//! What lies where is docs/on-disk-format.md. In short: two superblocks, the catalog region with
//! a redb database in it, the slot region. This room is pure: it knows a [`Device`] with blocking
//! calls and leaves the slots' data to whoever has a channel. [`format()`] and [`load`] run on the
//! thread that will own the catalog; [`LoadedStore`] is then taken apart: the catalog goes to
//! [`catalog_thread`], the [`SlotAllocator`] to the engine, the [`SlotMap`]s to the read path.
//!
//! Invariants kept here: I4 (a complete snapshot's rows are only ever handed on), I5 and I7 (at
//! load), I8 ([`Catalog::check`]).

#![forbid(unsafe_code)]

mod bytes;
pub mod catalog;
pub mod catalog_thread;
pub mod damaged;
pub mod device;
pub mod error;
pub mod probe;
mod region;
pub mod scrub;
pub mod sim_device;
pub mod slot_map;
pub mod slots;
pub mod superblock;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use uuid::Uuid;

pub use self::{
    catalog::{
        Catalog, CatalogUsage, CheckReport, LoadedVolume, OPERATION_RESERVE, RowPlace, RowPortion,
        ScrubRow,
    },
    catalog_thread::{CatalogHandle, CatalogThread},
    damaged::{DamagedSlot, DamagedSlots},
    device::{Device, SharedDevice},
    error::{Error, ErrorKind, Result},
    probe::{Probe, probe},
    slot_map::SlotMap,
    slots::SlotAllocator,
    superblock::Superblock,
};
use crate::{
    engine::records::{SlotRef, SnapshotSeq, SnapshotState},
    gate::{ChunkIndex, Geometry, OperationNumber},
};

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string does not fail.
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    line
}

/// Parameters of [`format()`].
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Name of the store, 1 to 64 bytes.
    pub name: String,
    /// Its identity; made anew for each format.
    pub uuid: Uuid,
    /// Slot size in bytes, a power of two from 64 KiB to 4 MiB.
    pub slot_bytes: u32,
    /// Destroy what the device holds.
    pub force: bool,
    /// Wall clock, milliseconds since the Unix epoch.
    pub created_at_unix_ms: u64,
}

/// A store that was loaded, in the parts that go to different owners.
#[derive(Debug)]
pub struct LoadedStore {
    /// Identity and geometry; slot offsets.
    pub superblock: Superblock,
    /// What was repaired at load, for the log.
    pub repaired: Option<String>,
    /// The catalog.
    pub catalog: Catalog,
    /// Slots that rows and staged entries take.
    pub allocator: SlotAllocator,
    /// The volumes, by number.
    pub volumes: Vec<VolumeView>,
    /// Slots that are known to be damaged; the allocator has them marked.
    pub damaged: Vec<DamagedSlot>,
}

/// A volume of a store that was loaded.
#[derive(Debug)]
pub struct VolumeView {
    /// Record, snapshots, saved dirty set and staged chunks.
    pub state: LoadedVolume,
    /// The whole view of each complete snapshot, in chain order.
    pub views: Vec<(SnapshotSeq, SlotMap)>,
}

/// Makes a store on the device and loads it. Nothing is written before all checks have passed;
/// the superblocks come last, so that a power cut leaves the former store, nothing, or the new
/// store.
///
/// # Errors
/// [`Error::Occupied`] without `force` where [`probe()`] finds something, [`Error::TooSmall`],
/// [`Error::Invalid`], [`Error::Device`], [`Error::Catalog`].
pub fn format(device: &SharedDevice, options: &FormatOptions) -> Result<LoadedStore> {
    let superblock = Superblock::plan(
        &**device,
        options.uuid,
        &options.name,
        options.slot_bytes,
        options.created_at_unix_ms,
    )?;
    let found = probe(&**device)?;
    if found != Probe::Nothing && !options.force {
        return Err(Error::Occupied { found: found.to_string() });
    }
    // An older store is gone, durably, before its catalog is overwritten.
    Superblock::wipe(&**device)?;
    if found != Probe::Nothing {
        wipe_signatures(device)?;
    }
    let mut catalog = Catalog::create(SharedDevice::clone(device), &superblock)?;
    catalog.close()?;
    device::flush(&**device)?;
    superblock.write_both(&**device)?;
    load(device)
}

/// Zeros what lies outside of the regions, and the ends where other formats keep second copies.
fn wipe_signatures(device: &SharedDevice) -> Result<()> {
    let end = device.size_bytes();
    let header_end = superblock::layout::HEADER_BYTES;
    device::write_zeros(&**device, 0, header_end)?;
    device::write_zeros(&**device, end.saturating_sub(header_end).max(header_end), end)?;
    device::flush(&**device)
}

/// Loads the store on a device: repairs a damaged superblock copy, opens the catalog, fails
/// snapshots that were interrupted, and builds the maps.
///
/// # Errors
/// [`Error::NotAStore`] saying what is there instead, [`Error::SuperblocksDamaged`],
/// [`Error::Unsupported`], [`Error::Shrunk`], [`Error::CatalogDamaged`] (also where a slot has
/// two owners), [`Error::Device`], [`Error::Catalog`].
pub fn load(device: &SharedDevice) -> Result<LoadedStore> {
    let (superblock, repaired) = match Superblock::load(&**device) {
        Err(Error::NotAStore { .. }) => {
            let found = probe(&**device)?;
            return Err(Error::NotAStore { found: found.to_string() });
        }
        other => other?,
    };
    let catalog = Catalog::open(SharedDevice::clone(device), &superblock)?;
    let mut allocator = SlotAllocator::new(superblock.slot_count);
    let marks = catalog.damaged_marks()?;
    let (mut volumes, mut damaged) = (Vec::new(), Vec::new());
    for record in catalog.volumes()? {
        let state = catalog.load_state(record.id)?;
        let id = record.id;
        let note = |chunk, slot_ref| {
            let SlotRef::Slot { slot, crc32c } = slot_ref else { return };
            // A presnap that knows nothing of marks may have filled the slot anew.
            if let Some(mark) = marks.get(&slot).filter(|mark| mark.crc32c == crc32c) {
                let found_at_unix_ms = mark.found_at_unix_ms;
                damaged.push(DamagedSlot { slot, volume: id, chunk, crc32c, found_at_unix_ms });
            }
        };
        volumes.push(load_volume(&catalog, &superblock, state, &mut allocator, note)?);
    }
    for found in &damaged {
        allocator.damaged().insert(found.slot);
    }
    Ok(LoadedStore { superblock, repaired, catalog, allocator, volumes, damaged })
}

/// Refuses what would stop the process when the volume is attached; gives its number of chunks.
fn check_volume(volume: &LoadedVolume, slot_bytes: u32) -> Result<u32> {
    let record = &volume.record;
    let damaged =
        |what: String| Error::CatalogDamaged { what: format!("volume {:?}: {what}", record.name) };
    let master = &record.master;
    let geometry = Geometry::new(record.chunk_bytes, master.block_bytes, master.block_count)
        .map_err(|error| damaged(error.to_string()))?;
    if record.chunk_bytes != slot_bytes {
        return Err(damaged(format!("chunks of {} bytes", record.chunk_bytes)));
    }
    if record.operation_number >= OperationNumber::MAX {
        return Err(damaged(format!("operation number {}", record.operation_number)));
    }
    let is_behind = |chunk: u64| chunk >= u64::from(geometry.chunk_count());
    let last_of = |&(word, bits): &(u32, u64)| {
        bits.checked_ilog2().map(|bit| u64::from(word) * u64::from(u64::BITS) + u64::from(bit))
    };
    if volume.dirty_words.iter().filter_map(last_of).any(is_behind)
        || volume.staged.iter().any(|staged| is_behind(staged.chunk.0.into()))
    {
        return Err(damaged("dirty or staged chunks behind its end".to_owned()));
    }
    Ok(geometry.chunk_count())
}

fn load_volume(
    catalog: &Catalog,
    superblock: &Superblock,
    state: LoadedVolume,
    allocator: &mut SlotAllocator,
    mut visit: impl FnMut(ChunkIndex, SlotRef),
) -> Result<VolumeView> {
    let chunk_count = check_volume(&state, superblock.slot_bytes)?;
    let two_owners = |slot: u32| Error::CatalogDamaged {
        what: format!("slot {slot} has two owners, or does not exist"),
    };
    let mut complete = state
        .snapshots
        .iter()
        .filter(|snapshot| snapshot.state == SnapshotState::Complete)
        .map(|snapshot| snapshot.seq)
        .peekable();
    let mut view = SlotMap::new(chunk_count);
    let mut views = Vec::new();
    catalog.for_each_row(state.record.id, |seq, chunk, slot_ref| {
        // A view is finished when the next snapshot's rows begin; a snapshot may have no rows.
        while let Some(done) = complete.next_if(|next| *next < seq) {
            views.push((done, view.clone()));
        }
        if complete.peek() != Some(&seq) || chunk.0 >= chunk_count {
            let what = format!("a row of snapshot {} for chunk {}", seq.0, chunk.0);
            return Err(Error::CatalogDamaged { what });
        }
        if let Some(slot) = slot_ref.slot()
            && !allocator.try_take(slot)
        {
            return Err(two_owners(slot.0));
        }
        view.insert(chunk, slot_ref);
        visit(chunk, slot_ref);
        Ok(())
    })?;
    views.extend(complete.map(|seq| (seq, view.clone())));
    for staged in &state.staged {
        if let Some(slot) = staged.slot
            && !allocator.try_take(slot)
        {
            return Err(two_owners(slot.0));
        }
    }
    Ok(VolumeView { state, views })
}
