//! Volumes made, brought back and deleted.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::stores::load_awaited_stores;
use super::{LOOK_PAUSE, START_CALL_MAX};
use crate::engine::Engine;
use crate::engine::records::{
    CatalogRequest, MasterIdentity, SlotRef, SnapshotState, VolumeId, VolumeRecord,
};
use crate::gate::{ChunkIndex, Gate, Geometry, Initial, OperationNumber};
use crate::spdk::bdev::{self, BdevEvent, BdevInfo, Desc, IoChannel, IoType};
use crate::spdk::bdev_module::{self, BdevSpec};
use crate::spdk::executor;
use crate::store::{self, LoadedVolume, SlotMap};
use crate::volume::MODULE_NAME;
use crate::volume::access::AccessRings;
use crate::volume::copier::{BufferPool, Copier};
use crate::volume::failure::{Failure, Sort};
use crate::volume::hooks;
use crate::volume::store_host::{Exclusive, KnownVolume, StoreHost, Work, check_blocks};
use crate::volume::volume::{self, Volume, VolumeOptions};
use crate::volume::volume_bdev::VolumeDevice;
use crate::volume::world::world;

/// Clean chunks compared with the newest snapshot when a volume comes back: enough to tell another
/// master apart, few enough to be read in a millisecond.
const IDENTITY_CHUNKS: usize = 16;

/// How long a volume of the start-up configuration waits for bdevs that other modules are still
/// looking for (a logical volume, say) before the configuration goes on without it.
const START_WAIT_MAX: Duration = Duration::from_secs(2);

/// Creates a volume, or brings one back that the store knows. While the start-up configuration is
/// being loaded, a volume whose master or store is not there yet is attached when both are.
///
/// # Errors
/// See `bdev_presnap_create` in docs/rpc.md.
pub async fn create_volume(options: VolumeOptions) -> Result<(), Failure> {
    let world = world();
    if world.started.get() {
        return attach(options).await;
    }
    if world.awaited.borrow().iter().any(|other| other.name == options.name) {
        return Err(name_taken(&options.name));
    }
    load_awaited_stores().await;
    // What the next calls of the configuration name should be there when they come.
    let start = std::time::Instant::now();
    while is_missing(&options) {
        let wait_max = if world.has_turns() { START_CALL_MAX } else { START_WAIT_MAX };
        if start.elapsed() > wait_max {
            tracing::info!(
                volume = options.name,
                base = options.base_bdev,
                store = options.store,
                "volume waits for its master and its store"
            );
            world.awaited.borrow_mut().push(options);
            return Ok(());
        }
        executor::sleep(LOOK_PAUSE).await;
    }
    let left = START_CALL_MAX.saturating_sub(start.elapsed());
    executor::timeout(left, executor::spawn(attach(options))).await.unwrap_or(Ok(()))
}

fn is_missing(options: &VolumeOptions) -> bool {
    bdev::find(&options.base_bdev).is_none()
        || !world().stores.borrow().contains_key(&options.store)
}

/// Opens the awaited stores, and attaches the awaited volumes, for which all is there now.
pub async fn attach_awaited() {
    load_awaited_stores().await;
    loop {
        let world = world();
        let ready = {
            let mut awaited = world.awaited.borrow_mut();
            let at = awaited.iter().position(|options| !is_missing(options));
            at.map(|at| awaited.remove(at))
        };
        let Some(options) = ready else { return };
        let name = options.name.clone();
        if let Err(failure) = attach(options).await {
            tracing::error!(volume = name, %failure, "volume not attached");
        }
    }
}

pub(super) fn name_taken(name: &str) -> Failure {
    Failure::new(
        Sort::Exists,
        format!("a bdev named '{name}' exists; choose another name, or delete that bdev"),
    )
}

/// Snapshots are found by the names of volume and snapshot, so no two stores may know a volume of one
/// name.
fn check_no_namesake(name: &str, store: &StoreHost) -> Result<(), Failure> {
    let world = world();
    let stores = world.stores.borrow();
    let other =
        stores.values().find(|other| other.key != store.key && other.known_by_name(name).is_some());
    other.map_or(Ok(()), |other| {
        let what = format!(
            "store '{}' knows a volume '{name}', too; choose another name, name that store, or unload it",
            other.name
        );
        Err(Failure::new(Sort::Exists, what))
    })
}

async fn attach(options: VolumeOptions) -> Result<(), Failure> {
    let world = world();
    if bdev::find(&options.name).is_some() {
        return Err(name_taken(&options.name));
    }
    let store = world.store(&options.store)?;
    let _attaching =
        world.attaching(&options.name, &store).ok_or_else(|| name_taken(&options.name))?;
    if let Some(failure) = store.unusable() {
        return Err(failure);
    }
    let (_, store_channel) = store.device()?;
    let info =
        bdev::find(&options.base_bdev).ok_or_else(|| Failure::no_bdev(&options.base_bdev))?;
    hooks::give_up(&options.base_bdev);
    check_master(&info, &options, &store)?;
    let key = world.next_key();
    // There is no volume yet that the event could go to.
    let removed = Rc::new(Cell::new(false));
    let is_removed = Rc::clone(&removed);
    let on_event = move |event| {
        is_removed.set(is_removed.get() || event == BdevEvent::Remove);
        master_event(key, event);
    };
    let master = Desc::open(&options.base_bdev, true, on_event)
        .map_err(|error| Failure::opening(&options.base_bdev, error))?;
    master.claim().map_err(|error| Failure::opening(&options.base_bdev, error))?;
    let master_channel =
        master.channel().map_err(|error| Failure::opening(&options.base_bdev, error))?;
    let (known, new) = if let Some(known) = store.known_by_name(&options.name) {
        check_known_master(&known, &info)?;
        (known, false)
    } else {
        check_no_namesake(&options.name, &store)?;
        (add_volume(&store, &options, &info).await?, true)
    };
    let id = known.record.borrow().id;
    if world.attached(&store, id).is_some() {
        let what = format!("volume '{}' is still being removed; try again", options.name);
        return Err(Failure::new(Sort::Busy, what));
    }
    let _opening = Exclusive::take(&known, Work::Attach).await;
    let opened =
        open_volume(key, &store, &known, options.clone(), &master, master_channel, &store_channel);
    let result = match opened.await {
        Ok(volume) => publish(&volume, &known, &info).map(|()| {
            let store_gone = store.gone.borrow().clone();
            if let Some(reason) = store_gone {
                volume.store_gone(&reason);
            }
            if removed.get() {
                volume.master_gone();
            }
        }),
        Err(failure) => Err(failure),
    };
    if result.is_err() && new {
        // Nothing half-done stays; if this fails, the volume stays known, without snapshots.
        if let Err(error) = store.forget_volume(id).await {
            let error = store::chain(&error);
            tracing::warn!(volume = options.name, error, "unused volume stays in the catalog");
        }
    }
    result
}

fn check_master(
    info: &BdevInfo,
    options: &VolumeOptions,
    store: &StoreHost,
) -> Result<(), Failure> {
    let name = &info.name;
    let invalid = |message: String| Err(Failure::new(Sort::Invalid, message));
    let slot_bytes = store.superblock.slot_bytes;
    if let Some(kib) = options.chunk_size_kib
        && kib * 1024 != slot_bytes
    {
        return invalid(format!(
            "chunk_size_kib {kib} is not the slot size of store '{}', {} KiB; leave it out, or use \
             another store",
            store.name,
            slot_bytes / 1024
        ));
    }
    if name == &store.bdev {
        return invalid(format!("bdev '{name}' holds store '{}'; a master is another", store.name));
    }
    if info.module_name == MODULE_NAME
        && !world().volumes.borrow().values().any(|v| &v.name() == name)
    {
        return invalid(format!("bdev '{name}' is a read-only snapshot; a master is written to"));
    }
    check_blocks("master", info)?;
    if info.block_bytes != store.superblock.block_bytes {
        return invalid(format!(
            "master '{name}' has blocks of {} bytes and store '{}' of {}; use devices with the \
             same block size",
            info.block_bytes, store.name, store.superblock.block_bytes
        ));
    }
    Ok(())
}

fn identity(info: &BdevInfo) -> MasterIdentity {
    // Most drivers make up a new UUID at each start; what the master holds is looked at instead.
    MasterIdentity { uuid: None, block_bytes: info.block_bytes, block_count: info.block_count }
}

fn stale(known: &KnownVolume, info: &BdevInfo, why: &str) -> Failure {
    Failure::new(
        Sort::Stale,
        format!(
            "bdev '{}' is not the master that the store knows for volume '{}': {why}; name the \
             master it was created on, or choose a new volume name",
            info.name,
            known.name()
        ),
    )
}

fn check_known_master(known: &KnownVolume, info: &BdevInfo) -> Result<(), Failure> {
    let record = known.record.borrow();
    if record.master != identity(info) {
        let was = &record.master;
        let why = format!(
            "that one has {} blocks of {} bytes, this one {} of {}",
            was.block_count, was.block_bytes, info.block_count, info.block_bytes
        );
        return Err(stale(known, info, &why));
    }
    Ok(())
}

async fn add_volume(
    store: &StoreHost,
    options: &VolumeOptions,
    info: &BdevInfo,
) -> Result<Rc<KnownVolume>, Failure> {
    let name = &options.name;
    // Stable over restarts, and another one if the volume is deleted and made again elsewhere.
    let uuid = Uuid::new_v5(&store.superblock.uuid, name.as_bytes());
    let record = VolumeRecord {
        id: VolumeId(0),
        name: name.clone(),
        uuid,
        master: identity(info),
        chunk_bytes: store.superblock.slot_bytes,
        clean: false,
        operation_number: OperationNumber(0),
    };
    store.create_volume(record).await.map_err(|error| store.failure(&error))
}

async fn open_volume(
    key: u64,
    store: &Rc<StoreHost>,
    known: &Rc<KnownVolume>,
    options: VolumeOptions,
    master: &Desc,
    master_channel: IoChannel,
    store_channel: &IoChannel,
) -> Result<Rc<Volume>, Failure> {
    let of_store = |error: store::Error| store.failure(&error);
    let id = known.record.borrow().id;
    let loaded =
        store.with_catalog(move |catalog| catalog.load_state(id)).await.map_err(of_store)?;
    let unsettled = loaded.snapshots.iter().find(|record| match record.state {
        SnapshotState::Completing => true,
        SnapshotState::Complete => !known.views.borrow().contains_key(&record.seq),
        SnapshotState::Failed => false,
    });
    if let Some(record) = unsettled {
        let what = format!(
            "what became of snapshot '{}' of volume '{}' could not be recorded; unload store '{}' and \
             load it again",
            record.name,
            known.name(),
            store.name
        );
        return Err(Failure::new(Sort::Stale, what));
    }
    let info = master.info();
    let geometry = Geometry::new(loaded.record.chunk_bytes, info.block_bytes, info.block_count)
        .map_err(|error| {
            Failure::new(Sort::Invalid, format!("master '{}': {error}", options.base_bdev))
        })?;
    let view = known.newest_view();
    let clean = loaded.record.clean;
    if let (true, Some(view)) = (clean, &view) {
        let copier = Copier {
            geometry: &geometry,
            master: &master_channel,
            store: store_channel,
            slots: store.layout(),
            pool: &BufferPool::default(),
        };
        check_content(&copier, &loaded, view).await.map_err(|why| stale(known, &info, &why))?;
    }
    let initial = if clean { Initial::Clean } else { Initial::AllDirty };
    let next = OperationNumber(loaded.record.operation_number.0 + 1);
    let gate = Gate::new(geometry, initial, next).map_err(|error| {
        Failure::new(Sort::NoMemory, format!("volume '{}': {error}", options.name))
    })?;
    if clean {
        for (word, bits) in &loaded.dirty_words {
            for bit in (0..64).filter(|bit| bits >> bit & 1 == 1) {
                gate.mark_dirty(ChunkIndex(word * 64 + bit));
            }
        }
    }
    if !clean {
        gate.open_all();
    }
    let gate = Arc::new(gate);
    // From here on the saved state is in memory only.
    store.execute(CatalogRequest::OpenVolume { volume: id }).await.map_err(of_store)?;
    known.record.borrow_mut().clean = false;
    known.saved_staged_slots.set(0);
    let settings = options.tuning.settings(store.superblock.slot_count);
    let compare = !clean && view.is_some();
    let mut engine = Engine::new(Arc::clone(&gate), id, settings, compare, volume::now());
    for staged in loaded.staged {
        engine.restore_staged(staged);
    }
    let io_types = IoType::ALL
        .iter()
        .filter(|io_type| info.supports(**io_type))
        .fold(0, |set, io_type| set | 1 << (*io_type as u32));
    let device = Arc::new(VolumeDevice {
        key,
        gate,
        master: master.clone(),
        io_types,
        rings: Arc::new(AccessRings::default()),
    });
    Ok(Volume::new(Rc::clone(store), Rc::clone(known), device, options, master_channel, engine))
}

/// Compares chunks that were clean at the last stop with the newest snapshot.
async fn check_content(
    copier: &Copier<'_>,
    loaded: &LoadedVolume,
    view: &SlotMap,
) -> Result<(), String> {
    let dirty = |chunk: ChunkIndex| {
        loaded
            .dirty_words
            .iter()
            .any(|(word, bits)| *word == chunk.0 / 64 && bits >> (chunk.0 % 64) & 1 == 1)
    };
    let step = (view.chunk_count() as usize / IDENTITY_CHUNKS).max(1);
    // Chunks that hold something say more than zeros.
    let clean = || view.iter().filter(|(chunk, _)| !dirty(*chunk));
    let mut sample: Vec<(ChunkIndex, SlotRef)> = clean()
        .filter(|(_, entry)| entry.slot().is_some())
        .step_by(step)
        .take(IDENTITY_CHUNKS)
        .collect();
    if sample.is_empty() {
        sample = clean().step_by(step).take(IDENTITY_CHUNKS).collect();
    }
    for (chunk, expected) in sample {
        if !copier.master_holds(chunk, expected).await? {
            return Err(format!(
                "its chunk {} differs from the newest snapshot, although nothing wrote to it",
                chunk.0
            ));
        }
    }
    Ok(())
}

fn publish(volume: &Rc<Volume>, known: &KnownVolume, info: &BdevInfo) -> Result<(), Failure> {
    let record = known.record.borrow();
    let geometry = volume.device.gate.geometry();
    let spec = BdevSpec {
        name: record.name.clone(),
        product_name: c"presnap volume",
        uuid: record.uuid,
        block_bytes: info.block_bytes,
        block_count: info.block_count,
        // Users that split at chunk borders keep a command in one chunk; the gate does not need it.
        optimal_io_boundary_blocks: match info.optimal_io_boundary_blocks {
            0 => geometry.chunk_lbas() as u32,
            below => below,
        },
        write_unit_blocks: info.write_unit_blocks,
        compare_and_write_blocks: u16::try_from(info.compare_and_write_blocks).unwrap_or(u16::MAX),
        write_cache: info.write_cache,
        ..BdevSpec::default()
    };
    world().volumes.borrow_mut().insert(volume.key, Rc::clone(volume));
    match bdev_module::register(&spec, Arc::clone(&volume.device)) {
        Ok(registration) => {
            volume.publish(registration);
            Ok(())
        }
        Err(error) => {
            world().volumes.borrow_mut().remove(&volume.key);
            // Its staged copies are in memory only since it was opened.
            let mut slots = volume.store.slots.borrow_mut();
            for slot in volume.with_engine(Engine::droppable_slots) {
                slots.release(slot);
            }
            let message = format!("volume '{}' cannot be registered: {error}", record.name);
            Err(Failure::new(Sort::Exists, message))
        }
    }
}

fn master_event(key: u64, event: BdevEvent) {
    let volume = world().volume_by_key(key);
    match (event, volume) {
        (BdevEvent::Remove, Some(volume)) => volume.master_gone(),
        (BdevEvent::Resize, Some(volume)) => tracing::warn!(
            volume = volume.name(),
            "the master's size changed; the volume keeps its size until it is made again"
        ),
        _ => {}
    }
}

/// Removes a volume's bdev. Its snapshots stay in the store; without any, the store forgets it.
///
/// # Errors
/// See `bdev_presnap_delete` in docs/rpc.md.
pub async fn delete_volume(name: &str) -> Result<(), Failure> {
    let world = world();
    {
        let mut awaited = world.awaited.borrow_mut();
        if let Some(at) = awaited.iter().position(|options| options.name == name) {
            let options = awaited.remove(at);
            hooks::give_up(&options.base_bdev);
            return Ok(());
        }
    }
    let Some(volume) = world.volume(name) else { return forget_volume(name).await };
    let (store, known, id) = (Rc::clone(&volume.store), Rc::clone(&volume.known), volume.id);
    volume.detach().await;
    drop(volume);
    // Somebody may be creating it again by now.
    let Some(_not_attached) = world.attaching(name, &store) else { return Ok(()) };
    if world.attached(&store, id).is_none()
        && known.chain.borrow().is_empty()
        && store.gone.borrow().is_none()
        && let Err(error) = store.forget_volume(id).await
    {
        let error = store::chain(&error);
        tracing::warn!(volume = name, error, "volume without snapshots stays in the catalog");
    }
    Ok(())
}

/// Has the store forget a volume that has no bdev: its master was removed, or its snapshots were
/// deleted after it.
async fn forget_volume(name: &str) -> Result<(), Failure> {
    let (store, known) = world().known_volume(name)?;
    let _not_attached = world().attaching(name, &store).ok_or_else(|| {
        Failure::new(Sort::Busy, format!("volume '{name}' is being created; try again"))
    })?;
    let _undisturbed = Exclusive::take(&known, Work::Forget).await;
    let snapshots = known.chain.borrow().len();
    if snapshots > 0 {
        return Err(Failure::new(
            Sort::NotFound,
            format!(
                "volume '{name}' has no bdev any more; store '{}' forgets it when its snapshots \
                 ({snapshots}) are deleted and it is deleted once more",
                store.name
            ),
        ));
    }
    let id = known.record.borrow().id;
    store.forget_volume(id).await.map_err(|error| store.failure(&error))
}
