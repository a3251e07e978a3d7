//! What users ask for: stores, volumes and snapshots made, opened and deleted. On the app thread.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::MODULE_NAME;
use super::access::AccessRings;
use super::copier::{BufferPool, Copier};
use super::export;
use super::failure::{Failure, Sort};
use super::snapshots;
use super::stats::unix_ms;
use super::store_host::{self, Exclusive, KnownVolume, Open, StoreHost};
use super::volume::{self, Volume, VolumeOptions, WaitFor};
use super::volume_bdev::VolumeDevice;
use super::world::world;
use crate::engine::events::Event;
use crate::engine::records::{
    CatalogReply, CatalogRequest, ChunkCounts, MasterIdentity, SlotRef, SnapshotRecord,
    SnapshotState, SnapshotTimes, VolumeId, VolumeRecord,
};
use crate::engine::{ChainError, CreatePlan, Engine, Shortage};
use crate::gate::{ChunkIndex, Gate, Geometry, Initial, OperationNumber};
use crate::spdk::bdev::{self, BdevEvent, BdevInfo, Desc, IoChannel, IoType};
use crate::spdk::bdev_module::{self, BdevSpec};
use crate::spdk::executor;
use crate::store::{self, FormatOptions, LoadedVolume, SlotMap, Superblock};

/// Clean chunks compared with the newest snapshot when a volume comes back: enough to tell another
/// master apart, few enough to be read in a millisecond.
const IDENTITY_CHUNKS: usize = 16;

/// How long an operation waits for a deletion under way before it gives up.
const DELETION_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a call of the start-up configuration may take: SPDK's loader gives up after 10 s, and the
/// target with it. What takes longer goes on by itself.
const START_CALL_MAX: Duration = Duration::from_secs(8);

/// How long a volume of the start-up configuration waits for bdevs that other modules are still
/// looking for (a logical volume, say) before the configuration goes on without it.
const START_WAIT_MAX: Duration = Duration::from_secs(2);

/// Pause between two looks at a deletion under way.
const DELETION_PAUSE: Duration = Duration::from_millis(1);

// ---- stores -------------------------------------------------------------------------------------

/// Formats a bdev as a store and opens it.
///
/// # Errors
/// See `presnap_store_create` in docs/rpc.md.
pub async fn create_store(
    name: &str,
    bdev: &str,
    slot_size_kib: u32,
    force: bool,
) -> Result<Rc<StoreHost>, Failure> {
    let world = world();
    let turn = world.turn(bdev).await;
    if force
        && !world.started.get()
        && let Some(old) = world.store_on(bdev)
    {
        // A configuration that formats at each start: the store of the last one was loaded when its
        // bdev came, before anyone could say that it is to go.
        check_unused(&old)?;
        old.close().await;
    }
    if world.stores.borrow().contains_key(name) {
        return Err(Failure::new(
            Sort::Exists,
            format!("a store named '{name}' is open; choose another name, or delete that store"),
        ));
    }
    let options = FormatOptions {
        name: name.to_owned(),
        uuid: Uuid::new_v4(),
        slot_bytes: slot_size_kib * 1024,
        force,
        created_at_unix_ms: unix_ms(),
    };
    let store = StoreHost::open(bdev, Open::Format(options)).await?;
    drop(turn);
    attach_awaited().await;
    Ok(store)
}

/// Opens the store on a bdev, if it is not open. While the start-up configuration is being loaded, a
/// store whose bdev is not there yet is opened when it comes, and `None` is the answer.
///
/// SPDK saves the calls of modules before those of bdevs, so that in a saved configuration this call
/// stands before the one that brings the bdev.
///
/// # Errors
/// See `presnap_store_load` in docs/rpc.md.
pub async fn load_store(
    name: Option<&str>,
    bdev: Option<&str>,
) -> Result<Option<Rc<StoreHost>>, Failure> {
    let world = world();
    let Some(bdev) = bdev else {
        let name = name.ok_or_else(|| Failure::new(Sort::Invalid, "name a store or a bdev"))?;
        return world.store(name).map(Some);
    };
    if world.started.get() {
        let store = load_store_on(bdev, name).await?;
        attach_awaited().await;
        return Ok(Some(store));
    }
    if bdev::find(bdev).is_none() {
        tracing::info!(bdev, "store waits for its bdev");
        world.awaited_stores.borrow_mut().insert(bdev.to_owned(), name.map(str::to_owned));
        return Ok(None);
    }
    let (bdev, name) = (bdev.to_owned(), name.map(str::to_owned));
    let task = executor::spawn(async move {
        let store = load_store_on(&bdev, name.as_deref()).await?;
        attach_awaited().await;
        Ok(Some(store))
    });
    // It goes on if that takes longer.
    executor::timeout(START_CALL_MAX, task).await.unwrap_or(Ok(None))
}

async fn load_store_on(bdev: &str, name: Option<&str>) -> Result<Rc<StoreHost>, Failure> {
    let world = world();
    let turn = world.turn(bdev).await;
    let (store, opened) = match world.store_on(bdev) {
        Some(store) => (store, false),
        None => (StoreHost::open(bdev, Open::Load).await?, true),
    };
    if let Some(name) = name
        && store.name != name
    {
        if opened {
            store.close().await;
        }
        return Err(Failure::new(
            Sort::NotFound,
            format!(
                "the store on bdev '{bdev}' is named '{}', not '{name}'; name that one, or another \
                 bdev",
                store.name
            ),
        ));
    }
    drop(turn);
    Ok(store)
}

/// A bdev has come, or none will come by itself any more: opens the store on it, if there is one.
pub async fn examine_store(info: &BdevInfo) {
    let world = world();
    let turn = world.turn(&info.name).await;
    // It may have been opened, or gone away, while this waited for its turn.
    let free = bdev::find(&info.name).is_some_and(|info| info.claimed_by.is_none())
        && world.store_on(&info.name).is_none();
    if free && store_host::carries_store(info).await {
        match StoreHost::open(&info.name, Open::Load).await {
            Ok(store) => tracing::info!(store = store.name, bdev = info.name, "store loaded"),
            Err(failure) => {
                tracing::warn!(bdev = info.name, %failure, "store found but not loaded");
            }
        }
    }
    drop(turn);
}

/// Opens the awaited stores whose bdev is there now: with `bdev_auto_examine` off, SPDK shows the
/// module no bdev.
async fn load_awaited_stores() {
    let world = world();
    loop {
        let ready = {
            let mut awaited = world.awaited_stores.borrow_mut();
            let bdev = awaited.keys().find(|bdev| bdev::find(bdev).is_some()).cloned();
            bdev.and_then(|bdev| awaited.remove_entry(&bdev))
        };
        let Some((bdev, name)) = ready else { return };
        if let Err(failure) = load_store_on(&bdev, name.as_deref()).await {
            tracing::error!(bdev, %failure, "store of the configuration not loaded");
        }
    }
}

fn check_unused(store: &StoreHost) -> Result<(), Failure> {
    let world = world();
    if world.stores.borrow().get(&store.name).is_none_or(|open| open.key != store.key) {
        return Err(Failure::no_store(&store.name)); // closed while this waited for its turn
    }
    if let Some(volume) = world.attaching_from(store) {
        return Err(Failure::new(
            Sort::Busy,
            format!(
                "volume '{volume}' of store '{}' is being created; delete that bdev first",
                store.name
            ),
        ));
    }
    let volumes = world.volumes.borrow();
    if let Some(volume) = volumes.values().find(|volume| volume.store.key == store.key) {
        return Err(Failure::new(
            Sort::Busy,
            format!(
                "store '{}' is used by volume '{}'; delete that bdev first (its data and \
                 snapshots stay)",
                store.name,
                volume.name()
            ),
        ));
    }
    for known in store.all_known() {
        for host in known.hosts.borrow().values() {
            if let Some(export) = export::find(&host.bdev) {
                return Err(Failure::new(
                    Sort::Busy,
                    format!(
                        "snapshot '{}' of store '{}' is exported in '{}'; unexport it first",
                        host.bdev, store.name, export.nqn
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Closes a store that nothing uses.
///
/// # Errors
/// See `presnap_store_unload` in docs/rpc.md.
pub async fn unload_store(store: &Rc<StoreHost>) -> Result<(), Failure> {
    let _turn = world().turn(&store.bdev).await;
    check_unused(store)?;
    store.close().await;
    Ok(())
}

/// Closes a store that nothing uses and makes its device forget it.
///
/// # Errors
/// See `presnap_store_delete` in docs/rpc.md.
pub async fn delete_store(store: &Rc<StoreHost>) -> Result<(), Failure> {
    let _turn = world().turn(&store.bdev).await;
    check_unused(store)?;
    let (_, channel) = store.device()?;
    let key = world().next_key();
    let device = super::store_device::StoreDevice::new(key, channel);
    store.close().await;
    let name = store.name.clone();
    let (sender, receiver) = executor::oneshot();
    let wiper = crate::spdk::thread::spawn_os_thread("presnap-wipe", None, move || {
        sender.send(Superblock::wipe(&device));
    });
    let result = match wiper {
        Ok(_) => receiver.await.unwrap_or(Err(store::Error::Closed)),
        Err(_) => Err(store::Error::Closed),
    };
    super::store_device::StoreDevice::disconnect(key);
    result.map_err(|error| Failure::of_store(&format!("store '{name}'"), &error))
}

// ---- volumes ------------------------------------------------------------------------------------

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
        executor::sleep(DELETION_PAUSE).await;
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

fn name_taken(name: &str) -> Failure {
    Failure::new(
        Sort::Exists,
        format!("a bdev named '{name}' exists; choose another name, or delete that bdev"),
    )
}

async fn attach(options: VolumeOptions) -> Result<(), Failure> {
    let world = world();
    if bdev::find(&options.name).is_some() {
        return Err(name_taken(&options.name));
    }
    let store = world.store(&options.store)?;
    let _attaching =
        world.attaching(&options.name, &store).ok_or_else(|| name_taken(&options.name))?;
    let (_, store_channel) = store.device()?;
    let info =
        bdev::find(&options.base_bdev).ok_or_else(|| Failure::no_bdev(&options.base_bdev))?;
    super::hooks::give_up(&options.base_bdev);
    check_master(&info, &options, &store)?;
    let key = world.next_key();
    let master = Desc::open(&options.base_bdev, true, move |event| master_event(key, event))
        .map_err(|error| Failure::opening(&options.base_bdev, error))?;
    master.claim().map_err(|error| Failure::opening(&options.base_bdev, error))?;
    let master_channel =
        master.channel().map_err(|error| Failure::opening(&options.base_bdev, error))?;
    let (known, new) = match store.known_by_name(&options.name) {
        Some(known) => {
            check_known_master(&known, &info)?;
            (known, false)
        }
        None => (add_volume(&store, &options, &info).await?, true),
    };
    let id = known.record.borrow().id;
    if world.attached(&store, id).is_some() {
        let what = format!("volume '{}' is still being removed; try again", options.name);
        return Err(Failure::new(Sort::Busy, what));
    }
    let _opening = Exclusive::take(&known).await;
    let opened =
        open_volume(key, &store, &known, options.clone(), &master, master_channel, &store_channel);
    let result = match opened.await {
        Ok(volume) => publish(&volume, &known, &info),
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
    if info.md_bytes != 0 || info.dif_type != 0 {
        return invalid(format!(
            "master '{name}' has {} bytes of metadata per block; format it without",
            info.md_bytes
        ));
    }
    if info.zoned {
        return invalid(format!("master '{name}' is zoned; use one that is not"));
    }
    if info.block_bytes > slot_bytes {
        return invalid(format!(
            "chunks of {slot_bytes} bytes are smaller than a block of master '{name}' ({} bytes)",
            info.block_bytes
        ));
    }
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
    store
        .create_volume(record)
        .await
        .map_err(|error| Failure::of_store(&format!("store '{}'", store.name), &error))
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
    let of_store =
        |error: store::Error| Failure::of_store(&format!("store '{}'", store.name), &error);
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
    Ok(Volume::new(id, Rc::clone(store), device, options, master_channel, engine))
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
            super::hooks::give_up(&options.base_bdev);
            return Ok(());
        }
    }
    let volume = world.volume(name).ok_or_else(|| Failure::no_volume(name))?;
    let (store, known, id) = (Rc::clone(&volume.store), volume.known(), volume.id);
    volume.detach().await;
    drop(volume);
    if known.chain.borrow().is_empty()
        && store.gone.borrow().is_none()
        && let Err(error) = store.forget_volume(id).await
    {
        let error = store::chain(&error);
        tracing::warn!(volume = name, error, "volume without snapshots stays in the catalog");
    }
    Ok(())
}

// ---- snapshots ----------------------------------------------------------------------------------

/// Takes a snapshot and waits until it is as far as asked for.
///
/// # Errors
/// See `presnap_snapshot_create` in docs/rpc.md.
pub async fn create_snapshot(
    volume_name: &str,
    name: &str,
    uuid: Option<Uuid>,
    wait: WaitFor,
    timeout: Option<Duration>,
) -> Result<(Rc<StoreHost>, Rc<KnownVolume>, SnapshotRecord), Failure> {
    let volume = world().volume(volume_name).ok_or_else(|| Failure::no_volume(volume_name))?;
    if let Some(failure) = volume::no_store(&volume) {
        return Err(failure);
    }
    let known = volume.known();
    wait_for_deletion(&known).await?;
    let plan = known.chain.borrow().plan_create(name, uuid);
    let seq = match plan {
        Ok(CreatePlan::Existing(seq)) => seq,
        Ok(CreatePlan::New(seq)) => {
            begin(&volume, seq, name, uuid)?;
            seq
        }
        Ok(CreatePlan::Retry(seq)) => {
            drop_record(&volume.store, &known, seq).await?;
            let plan = known.chain.borrow().plan_create(name, uuid);
            match plan {
                Ok(CreatePlan::New(seq)) => {
                    begin(&volume, seq, name, uuid)?;
                    seq
                }
                Ok(CreatePlan::Existing(seq) | CreatePlan::Retry(seq)) => seq,
                Err(error) => return Err(Failure::of_chain(volume_name, &error)),
            }
        }
        Err(error) => return Err(busy_with_progress(&volume, volume_name, &error)),
    };
    let watch = volume.watch(seq, wait);
    let reached = match timeout {
        Some(timeout) => executor::timeout(timeout, watch).await,
        None => Some(watch.await),
    };
    let Some(reached) = reached else {
        volume.abort_snapshot("it was not ready within timeout_ms");
        let ended = volume.watch(seq, WaitFor::Complete).await;
        if ended.is_some_and(|record| record.state == SnapshotState::Complete) {
            // It was being committed when the time was up, and that was quicker.
            let record = known.chain.borrow().get(seq).cloned();
            return record
                .map(|record| (Rc::clone(&volume.store), known, record))
                .ok_or_else(|| gone_meanwhile(volume_name, name));
        }
        drop_record(&volume.store, &known, seq).await?;
        let ms = timeout.map_or(0, |timeout| timeout.as_millis());
        return Err(Failure::new(
            Sort::TimedOut,
            format!(
                "snapshot '{name}' of volume '{volume_name}' was not ready within {ms} ms and was \
                 given up; nothing of it stays, ask again with a longer timeout_ms"
            ),
        ));
    };
    let record = reached.ok_or_else(|| gone_meanwhile(volume_name, name))?;
    if record.state == SnapshotState::Failed {
        let reason = record.reason.clone().unwrap_or_default();
        if record.times.consistent_us == 0 {
            // It never came to a cut: nothing of it is worth keeping.
            drop_record(&volume.store, &known, seq).await?;
        }
        let sort = if reason.contains("free slots") { Sort::NoSpace } else { Sort::Io };
        return Err(Failure::new(
            sort,
            format!("snapshot '{name}' of volume '{volume_name}' failed: {reason}"),
        ));
    }
    Ok((Rc::clone(&volume.store), known, record))
}

fn gone_meanwhile(volume: &str, name: &str) -> Failure {
    Failure::new(
        Sort::NotFound,
        format!("snapshot '{name}' of volume '{volume}' was deleted while it was being made"),
    )
}

fn busy_with_progress(volume: &Volume, name: &str, error: &ChainError) -> Failure {
    let mut failure = Failure::of_chain(name, error);
    if let (ChainError::Busy { .. }, Some(record)) = (error, volume.snapshot_so_far()) {
        let chunks = record.chunks;
        let done = chunks.adopted + chunks.copied + chunks.preserved + chunks.zero;
        let required = chunks.required.max(done);
        failure.message =
            format!("{} ({done} of {required} required chunks done so far)", failure.message);
    }
    failure
}

fn begin(
    volume: &Rc<Volume>,
    seq: crate::engine::records::SnapshotSeq,
    name: &str,
    uuid: Option<Uuid>,
) -> Result<(), Failure> {
    let bdev = snapshots::bdev_name(&volume.name(), name);
    if bdev::find(&bdev).is_some() {
        return Err(name_taken(&bdev));
    }
    if let Err(shortage) = volume.reserve_slots() {
        return Err(no_space(volume, shortage));
    }
    volume.begin_snapshot(SnapshotRecord {
        volume: volume.id,
        seq,
        name: name.to_owned(),
        uuid: uuid.unwrap_or_else(Uuid::new_v4),
        operation_number: OperationNumber(0),
        created_at_unix_ms: unix_ms(),
        state: SnapshotState::Completing,
        reason: None,
        chunks: ChunkCounts::default(),
        times: SnapshotTimes::default(),
        bytes_used: 0,
    });
    Ok(())
}

fn no_space(volume: &Volume, shortage: Shortage) -> Failure {
    let (store, Shortage { needed, free }) = (&volume.store, shortage);
    let reserved = match store.slots.borrow().reserved_count() {
        0 => String::new(),
        reserved => format!(" (and {reserved} reserved for snapshots that are completing)"),
    };
    let wait = if reserved.is_empty() { "" } else { "wait for those, " };
    Failure::new(
        Sort::NoSpace,
        format!(
            "store '{}' has {free} free slots{reserved}, and a snapshot of volume '{}' may need \
             {needed}, one for each dirty chunk without a copy, also for those that turn out to be \
             zeros; {wait}delete snapshots, or use a larger store",
            store.name,
            volume.name()
        ),
    )
}

async fn wait_for_deletion(known: &KnownVolume) -> Result<(), Failure> {
    let started = std::time::Instant::now();
    while known.deleting.get() {
        if started.elapsed() > DELETION_WAIT_MAX {
            return Err(Failure::new(
                Sort::Busy,
                format!(
                    "a snapshot of volume '{}' is being deleted for more than {} s; try again",
                    known.name(),
                    DELETION_WAIT_MAX.as_secs()
                ),
            ));
        }
        executor::sleep(DELETION_PAUSE).await;
    }
    Ok(())
}

/// Deletes a snapshot; one that is completing is given up first.
///
/// # Errors
/// See `presnap_snapshot_delete` in docs/rpc.md.
pub async fn delete_snapshot(volume_name: &str, name: &str) -> Result<(), Failure> {
    let (store, known) = world().known_volume(volume_name)?;
    wait_for_deletion(&known).await?;
    // Before a completing one is given up, and once more after that took its time.
    check_not_exported(volume_name, name)?;
    let completing = known.chain.borrow().completing().filter(|r| r.name == name).map(|r| r.seq);
    if let Some(seq) = completing {
        let id = known.record.borrow().id;
        if let Some(volume) = world().attached(&store, id) {
            volume.abort_snapshot("it was deleted while it was being made");
            volume.watch(seq, WaitFor::Complete).await;
            wait_for_deletion(&known).await?;
        }
    }
    check_not_exported(volume_name, name)?;
    let seq = known
        .chain
        .borrow()
        .plan_delete(name)
        .map_err(|error| Failure::of_chain(volume_name, &error))?;
    drop_record(&store, &known, seq).await?;
    if let Some(volume) = world().volume(volume_name) {
        volume.counters.borrow_mut().deleted += 1;
    }
    Ok(())
}

fn check_not_exported(volume: &str, name: &str) -> Result<(), Failure> {
    let bdev = snapshots::bdev_name(volume, name);
    match export::find(&bdev) {
        None => Ok(()),
        Some(export) => Err(Failure::new(
            Sort::Busy,
            format!("snapshot '{bdev}' is exported in '{}'; unexport it first", export.nqn),
        )),
    }
}

/// Deletes a snapshot that is complete or failed.
async fn drop_record(
    store: &Rc<StoreHost>,
    known: &Rc<KnownVolume>,
    seq: crate::engine::records::SnapshotSeq,
) -> Result<(), Failure> {
    let _deleting = Exclusive::take(known).await;
    drop_record_now(store, known, seq).await
}

async fn drop_record_now(
    store: &Rc<StoreHost>,
    known: &Rc<KnownVolume>,
    seq: crate::engine::records::SnapshotSeq,
) -> Result<(), Failure> {
    let Some(record) = known.chain.borrow().get(seq).cloned() else { return Ok(()) };
    let id = record.volume;
    let host = known.hosts.borrow_mut().remove(&seq);
    let had_bdev = host.is_some();
    if let Some(host) = host {
        host.retract().await;
    }
    let request = CatalogRequest::DeleteSnapshot { volume: id, seq };
    let reply = match store.execute(request).await {
        Ok(reply) => reply,
        // A failed snapshot that could not even be recorded.
        Err(store::Error::NoSnapshot { .. }) if record.state == SnapshotState::Failed => {
            CatalogReply::Done
        }
        Err(error) => {
            if had_bdev {
                snapshots::publish(store, known, &record);
            }
            return Err(Failure::of_store(&format!("store '{}'", store.name), &error));
        }
    };
    known.chain.borrow_mut().remove(seq);
    known.views.borrow_mut().remove(&seq);
    if let CatalogReply::Deleted { freed, dirtied, .. } = reply {
        {
            let mut slots = store.slots.borrow_mut();
            for slot in freed {
                slots.release(slot);
            }
        }
        if let Some(volume) = world().attached(store, id) {
            volume.drive(Event::Dirtied(dirtied));
        }
        // The heir uses more now.
        let records = store.with_catalog(move |catalog| catalog.snapshots(id)).await;
        let mut chain = known.chain.borrow_mut();
        for record in records.unwrap_or_default() {
            if chain.get(record.seq).is_some_and(|r| r.state == SnapshotState::Complete) {
                chain.put(record);
            }
        }
    }
    Ok(())
}
