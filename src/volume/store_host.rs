//! An open store: its device, its catalog's thread, its slots, and the volumes it knows.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::json;

use super::copier::{BufferPool, SlotLayout};
use super::export;
use super::failure::{Failure, Sort};
use super::scrub::{self, Scrub};
use super::snapshots::{self, SnapshotHost};
use super::store_device::StoreDevice;
use super::volume::Volume;
use super::world::{World, world};
use crate::engine::Chain;
use crate::engine::records::{
    CatalogReply, CatalogRequest, SlotIndex, SnapshotSeq, VolumeId, VolumeRecord,
};
use crate::spdk::bdev::{self, BdevEvent, BdevInfo, Desc, IoChannel, IoType};
use crate::spdk::dma::DmaBuf;
use crate::spdk::executor::{self, oneshot};
use crate::spdk::json::JsonWriter;
use crate::spdk::thread::spawn_os_thread;
use crate::store::{
    self, Catalog, CatalogHandle, CatalogThread, CatalogUsage, DamagedSlot, DamagedSlots,
    FormatOptions, LoadedStore, SharedDevice, SlotAllocator, SlotMap, Superblock,
};

/// SPDK's modules whose bdevs write their caches to the medium at a flush, or have nothing that outlives
/// the process. Those stacked on others pass a flush on, but SPDK's NVMe bdev then ends it by itself.
const FLUSHING_MODULES: [&str; 3] = ["aio", "malloc", "nvme"];
/// How long to wait before a full catalog queue is tried again.
const QUEUE_RETRY: std::time::Duration = std::time::Duration::from_millis(1);
/// Why a store is lost whose bdev has gone.
const REMOVED: &str = "its device was removed";
/// Pause between two looks at whether one's turn has come.
const EXCLUSIVE_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// A volume that a store knows, attached or not.
pub struct KnownVolume {
    /// Its record in the catalog.
    pub record: RefCell<VolumeRecord>,
    /// Its snapshots.
    pub chain: RefCell<Chain>,
    /// Where each complete snapshot has each chunk.
    pub views: RefCell<BTreeMap<SnapshotSeq, SlotMap>>,
    /// The same for the snapshot under way, as far as it is.
    pub completing: RefCell<Option<SlotMap>>,
    /// Bdevs of its snapshots.
    pub hosts: RefCell<BTreeMap<SnapshotSeq, Rc<SnapshotHost>>>,
    /// Slots of staged copies that were saved at the last clean stop, while it is detached.
    pub saved_staged_slots: Cell<u64>,
    /// What has the volume to itself now, if anything ([`Exclusive`]).
    pub busy_with: Cell<Option<Work>>,
}

/// What must not happen to a volume while another of these does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A snapshot of it is being deleted.
    Deletion,
    /// Its dirty chunks are being loaded.
    Attach,
    /// Its dirty chunks are being saved.
    Stop,
    /// Its store is forgetting it.
    Forget,
    /// A slot of its snapshots may be damaged, and is looked at.
    Scrub,
}

impl Work {
    /// For people: what goes on with the volume.
    pub fn words(self) -> &'static str {
        match self {
            Work::Deletion => "a snapshot of it is being deleted",
            Work::Attach => "it is being attached",
            Work::Stop => "it is being stopped",
            Work::Forget => "its store is forgetting it",
            Work::Scrub => "a slot of its snapshots may be damaged, and is looked at",
        }
    }
}

/// Keeps deletions away from one another and from what loads or saves the volume's dirty chunks: a
/// deletion makes chunks dirty, in the catalog or in the gate, and must not do so in between. What a
/// scrub finds damaged does the same, and must not be freed meanwhile.
pub struct Exclusive(Rc<KnownVolume>);

impl Exclusive {
    /// Waits for those before.
    pub async fn take(known: &Rc<KnownVolume>, work: Work) -> Self {
        while known.busy_with.get().is_some() {
            executor::sleep(EXCLUSIVE_PAUSE).await;
        }
        known.busy_with.set(Some(work));
        Self(Rc::clone(known))
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.0.busy_with.set(None);
    }
}

impl KnownVolume {
    /// Its name.
    pub fn name(&self) -> String {
        self.record.borrow().name.clone()
    }

    /// Map of the newest complete snapshot, if there is one.
    pub fn newest_view(&self) -> Option<SlotMap> {
        let chain = self.chain.borrow();
        let newest = chain.newest_complete()?;
        self.views.borrow().get(&newest.seq).cloned()
    }

    /// Chunks of the volume.
    pub fn chunk_count(&self) -> u32 {
        let record = self.record.borrow();
        let chunk_blocks = u64::from(record.chunk_bytes / record.master.block_bytes);
        record.master.block_count.div_ceil(chunk_blocks) as u32
    }
}

/// An open store.
pub struct StoreHost {
    /// Names it to the catalog thread's device.
    pub key: u64,
    /// Its name.
    pub name: String,
    /// The bdev it is on.
    pub bdev: String,
    /// Identity and geometry.
    pub superblock: Superblock,
    /// Free and taken slots.
    pub slots: RefCell<SlotAllocator>,
    /// Buffers for copies.
    pub pool: BufferPool,
    /// Which slots are damaged, for whoever reads them.
    pub damaged: Arc<DamagedSlots>,
    /// What is known of the damaged slots of snapshots.
    pub found_damaged: RefCell<BTreeMap<SlotIndex, DamagedSlot>>,
    /// The scrub under way, or the last one.
    pub scrub: RefCell<Option<Rc<Scrub>>>,
    /// Why it cannot be used any more: its device is gone, or its catalog is lost.
    pub gone: RefCell<Option<String>>,
    /// It is its device that is gone.
    removed: Cell<bool>,
    /// How full the catalog was when it could be asked last.
    last_usage: Cell<Option<CatalogUsage>>,
    device: RefCell<Option<(Desc, IoChannel)>>,
    catalog: CatalogHandle,
    thread: RefCell<Option<CatalogThread>>,
    known: RefCell<BTreeMap<VolumeId, Rc<KnownVolume>>>,
    flushes: bool,
}

/// What to do with the bdev.
pub enum Open {
    /// Make a store on it.
    Format(FormatOptions),
    /// Load the store that is on it.
    Load,
}

/// CPUs for catalog threads, as `presnap serve` was told.
pub static CATALOG_CPUS: std::sync::OnceLock<Vec<u32>> = std::sync::OnceLock::new();

impl StoreHost {
    /// Opens the store on a bdev. Nothing stays open on failure.
    ///
    /// # Errors
    /// No such bdev, in use, not suitable, or what the store room says.
    pub async fn open(bdev: &str, how: Open) -> Result<Rc<Self>, Failure> {
        let info = bdev::find(bdev).ok_or_else(|| Failure::no_bdev(bdev))?;
        check_store_bdev(&info)?;
        if info.write_cache && !FLUSHING_MODULES.contains(&info.module_name.as_str()) {
            tracing::warn!(
                bdev,
                module = info.module_name,
                "the store's bdev has a volatile write cache that flushes may not reach: after a power cut \
                 complete snapshots may be damaged; see \"What the store's device must do\" in docs/operating.md"
            );
        }
        let world = world();
        let key = world.next_key();
        // There is no store in the world yet that the event could go to.
        let removed = Rc::new(Cell::new(false));
        let is_removed = Rc::clone(&removed);
        let on_event = move |event| {
            is_removed.set(is_removed.get() || event == BdevEvent::Remove);
            device_event(key, event);
        };
        let desc =
            Desc::open(bdev, true, on_event).map_err(|error| Failure::opening(bdev, error))?;
        desc.claim().map_err(|error| Failure::opening(bdev, error))?;
        let channel = desc.channel().map_err(|error| Failure::opening(bdev, error))?;
        let device: SharedDevice = Arc::new(StoreDevice::new(key, channel.clone()));
        let opened = Self::load(bdev, device, how).await;
        let (loaded, thread) = match opened {
            Ok(opened) => opened,
            Err(failure) => {
                StoreDevice::disconnect(key);
                return Err(failure);
            }
        };
        if let Some(repaired) = &loaded.repaired {
            tracing::warn!(
                store = loaded.superblock.name,
                bdev,
                repaired,
                "store repaired at load"
            );
        }
        let host = Rc::new(Self {
            key,
            name: loaded.superblock.name.clone(),
            bdev: bdev.to_owned(),
            superblock: loaded.superblock,
            damaged: Arc::clone(loaded.allocator.damaged()),
            slots: RefCell::new(loaded.allocator),
            pool: BufferPool::default(),
            found_damaged: RefCell::new(
                loaded.damaged.into_iter().map(|found| (found.slot, found)).collect(),
            ),
            scrub: RefCell::new(None),
            gone: RefCell::new(None),
            removed: Cell::new(false),
            last_usage: Cell::new(None),
            device: RefCell::new(Some((desc, channel))),
            catalog: thread.handle(),
            thread: RefCell::new(Some(thread)),
            known: RefCell::default(),
            flushes: info.supports(IoType::Flush),
        });
        for volume in loaded.volumes {
            let last_seq = volume.state.last_seq;
            let staged = volume.state.staged.iter().filter(|staged| staged.slot.is_some()).count();
            let known = host.add_known(
                volume.state.record,
                Chain::new(volume.state.snapshots, last_seq),
                volume.views.into_iter().collect(),
            );
            known.saved_staged_slots.set(staged as u64);
        }
        if world.stores.borrow().contains_key(&host.name) {
            let failure = Failure::new(
                Sort::Exists,
                format!(
                    "another open store is named '{}'; unload that one before the one on '{bdev}'",
                    host.name
                ),
            );
            host.close().await;
            return Err(failure);
        }
        let damaged = host.found_damaged.borrow().len();
        if damaged > 0 {
            tracing::warn!(
                store = host.name,
                damaged,
                "slots of the store are damaged; presnap store scrub --action status names them"
            );
        }
        world.stores.borrow_mut().insert(host.name.clone(), Rc::clone(&host));
        snapshots::publish_all(&host);
        if removed.get() {
            // Later: it takes its turn after whoever opens the store.
            let lost = Rc::clone(&host);
            executor::spawn(async move { lost.lose(REMOVED).await }).detach();
        }
        Ok(host)
    }

    async fn load(
        bdev: &str,
        device: SharedDevice,
        how: Open,
    ) -> Result<(Loaded, CatalogThread), Failure> {
        let (sender, receiver) = oneshot();
        let started = spawn_os_thread("presnap-load", catalog_cpus(), move || {
            let result = match how {
                Open::Format(options) => store::format(&device, &options),
                Open::Load => store::load(&device),
            };
            sender.send(result);
        });
        let thread_failure = |error: &dyn std::fmt::Display| {
            Failure::new(Sort::NoMemory, format!("bdev '{bdev}': no thread for its store: {error}"))
        };
        started.map_err(|error| thread_failure(&error))?;
        let loaded: LoadedStore = receiver
            .await
            .map_err(|error| thread_failure(&error))?
            .map_err(|error| Failure::of_store(&format!("bdev '{bdev}'"), &error))?;
        let LoadedStore { superblock, repaired, catalog, allocator, volumes, damaged } = loaded;
        let name = format!("presnap-{}", superblock.name);
        let thread =
            CatalogThread::start(catalog, |body| spawn_os_thread(&name, catalog_cpus(), body))
                .map_err(|error| thread_failure(&error))?;
        Ok((Loaded { superblock, repaired, allocator, volumes, damaged }, thread))
    }

    fn add_known(
        &self,
        record: VolumeRecord,
        chain: Chain,
        views: BTreeMap<SnapshotSeq, SlotMap>,
    ) -> Rc<KnownVolume> {
        let id = record.id;
        let known = Rc::new(KnownVolume {
            record: RefCell::new(record),
            chain: RefCell::new(chain),
            views: RefCell::new(views),
            completing: RefCell::new(None),
            hosts: RefCell::default(),
            saved_staged_slots: Cell::new(0),
            busy_with: Cell::new(None),
        });
        self.known.borrow_mut().insert(id, Rc::clone(&known));
        known
    }

    /// The call that loads the store again.
    pub fn write_config(&self, w: &mut JsonWriter) {
        w.call("presnap_store_load", &json!({ "bdev": self.bdev, "name": self.name }));
    }

    /// Where the slots are.
    pub fn layout(&self) -> SlotLayout {
        let block_bytes = u64::from(self.superblock.block_bytes);
        SlotLayout {
            offset_blocks: self.superblock.slot_offset(SlotIndex(0)) / block_bytes,
            slot_blocks: u64::from(self.superblock.slot_bytes) / block_bytes,
        }
    }

    /// The device, and a channel of the app thread to it.
    ///
    /// # Errors
    /// The store is gone.
    pub fn device(&self) -> Result<(Desc, IoChannel), Failure> {
        self.device.borrow().clone().ok_or_else(|| {
            self.unusable().unwrap_or_else(|| {
                let what = format!("store '{}' was unloaded; load it again", self.name);
                Failure::new(Sort::NoDevice, what)
            })
        })
    }

    /// What its catalog said, for people.
    pub fn failure(&self, error: &store::Error) -> Failure {
        if let Some(failure) = self.unusable() {
            return failure;
        }
        Failure::of_store(&format!("store '{}'", self.name), error)
    }

    /// It is closed, or will be: nothing new may be made of it.
    pub fn is_closing(&self) -> bool {
        self.gone.borrow().is_some() || self.thread.borrow().is_none()
    }

    /// Its device is there, but its catalog is lost: only a load helps.
    pub fn has_failed(&self) -> bool {
        self.gone.borrow().is_some() && !self.removed.get()
    }

    /// Why nothing new can be made of it, if so, and the way back.
    pub fn unusable(&self) -> Option<Failure> {
        let reason = self.gone.borrow().clone()?;
        let name = &self.name;
        let volumes: Vec<String> =
            self.attached().iter().map(|volume| format!("'{}'", volume.name())).collect();
        let volumes = volumes.join(", ");
        let message = if self.has_failed() {
            let mut steps = Vec::new();
            let exported = self.exported_snapshots();
            if !exported.is_empty() {
                steps.push(format!("presnap_snapshot_unexport for {}", exported.join(", ")));
            }
            if !volumes.is_empty() {
                steps.push(format!("bdev_presnap_delete for {volumes} (data and snapshots stay)"));
            }
            steps.push(format!("presnap_store_load for bdev '{}'", self.bdev));
            if !volumes.is_empty() {
                steps.push(format!("bdev_presnap_create for {volumes}"));
            }
            format!(
                "store '{name}' has failed: {reason}; when its device is well: {}",
                steps.join(", then ")
            )
        } else if volumes.is_empty() {
            format!("store '{name}' is gone: {reason}; bring its device back and load it")
        } else {
            format!(
                "store '{name}' is gone: {reason}; bring its device back (presnap_store_load for its bdev, \
                 where it is not loaded by itself), then bdev_presnap_delete and bdev_presnap_create for \
                 {volumes}"
            )
        };
        Some(Failure::new(Sort::NoDevice, message))
    }

    /// Its volumes that have a bdev.
    fn attached(&self) -> Vec<Rc<Volume>> {
        let world = world();
        let volumes = world.volumes.borrow();
        volumes.values().filter(|volume| volume.store.key == self.key).cloned().collect()
    }

    fn exported_snapshots(&self) -> Vec<String> {
        let mut exported = Vec::new();
        for known in self.all_known() {
            for host in known.hosts.borrow().values() {
                if export::find(&host.bdev).is_some() {
                    exported.push(format!("'{}'", host.bdev));
                }
            }
        }
        exported
    }

    /// The volume with this number.
    pub fn known(&self, id: VolumeId) -> Option<Rc<KnownVolume>> {
        self.known.borrow().get(&id).cloned()
    }

    /// The volume of this name.
    pub fn known_by_name(&self, name: &str) -> Option<Rc<KnownVolume>> {
        self.known.borrow().values().find(|known| known.record.borrow().name == name).cloned()
    }

    /// All volumes it knows.
    pub fn all_known(&self) -> Vec<Rc<KnownVolume>> {
        self.known.borrow().values().cloned().collect()
    }

    /// Makes everything written to slots durable.
    ///
    /// # Errors
    /// What the device says.
    pub async fn flush(&self) -> Result<(), String> {
        if !self.flushes {
            return Ok(()); // no volatile cache
        }
        let (_, channel) = self.device().map_err(|failure| failure.message)?;
        channel.flush().await.map_err(|error| error.to_string())
    }

    // ---- catalog ------------------------------------------------------------------------------

    /// Runs one transaction.
    ///
    /// # Errors
    /// What the catalog says; nothing has changed then.
    pub async fn execute(&self, request: CatalogRequest) -> Result<CatalogReply, store::Error> {
        let result = self.ask(request).await;
        self.look_at(&result);
        result
    }

    async fn ask(&self, request: CatalogRequest) -> Result<CatalogReply, store::Error> {
        let (sender, receiver) = oneshot();
        let mut next = (request, Box::new(move |result| sender.send(result)) as _);
        loop {
            match self.catalog.submit(next.0, next.1) {
                Ok(()) => break,
                Err(not_taken) => match not_taken.error {
                    store::Error::QueueFull { .. } => {
                        next = (not_taken.request, not_taken.completion);
                        executor::sleep(QUEUE_RETRY).await;
                    }
                    error => return Err(error),
                },
            }
        }
        receiver.await.unwrap_or(Err(store::Error::Closed))
    }

    /// Runs other work with the catalog, on its thread.
    ///
    /// # Errors
    /// What `work` says, or the catalog is closed.
    pub async fn with_catalog<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Catalog) -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, store::Error> {
        let (sender, receiver) = oneshot();
        self.catalog.run(Box::new(move |catalog| sender.send(catalog.and_then(work))))?;
        let result = receiver.await.unwrap_or(Err(store::Error::Closed));
        self.look_at(&result);
        result
    }

    /// If a request failed because the catalog is lost, so is the store, although its device is there:
    /// volumes serve on without it, complete snapshots stay readable, and the next load decides.
    fn look_at<T>(&self, result: &Result<T, store::Error>) {
        let (Err(_), Some(reason)) = (result, self.catalog.lost()) else { return };
        if self.is_closing() {
            return;
        }
        *self.gone.borrow_mut() = Some(reason.to_owned());
        tracing::error!(
            store = self.name,
            bdev = self.bdev,
            reason,
            "store failed; volumes serve on; see presnap_get_stores for the way back"
        );
        let (attached, reason) = (self.attached(), reason.to_owned());
        // Later: whoever asked may be one of them.
        executor::spawn(async move {
            for volume in attached {
                volume.store_gone(&reason);
            }
        })
        .detach();
    }

    /// How full the catalog is, or was when it could be asked last.
    pub async fn usage(&self) -> Option<CatalogUsage> {
        if let Ok(usage) = self.with_catalog(|catalog| catalog.usage()).await {
            self.last_usage.set(Some(usage));
        }
        self.last_usage.get()
    }

    /// Adds a volume to the catalog.
    ///
    /// # Errors
    /// What the catalog says.
    pub async fn create_volume(
        &self,
        record: VolumeRecord,
    ) -> Result<Rc<KnownVolume>, store::Error> {
        let record = self.with_catalog(move |catalog| catalog.create_volume(record)).await?;
        Ok(self.add_known(record, Chain::default(), BTreeMap::new()))
    }

    /// Forgets a volume that has no snapshots.
    ///
    /// # Errors
    /// What the catalog says.
    pub async fn forget_volume(&self, id: VolumeId) -> Result<(), store::Error> {
        let freed = self.with_catalog(move |catalog| catalog.forget_volume(id)).await?;
        let mut slots = self.slots.borrow_mut();
        for slot in freed {
            slots.release(slot);
        }
        self.known.borrow_mut().remove(&id);
        Ok(())
    }

    // ---- closing ------------------------------------------------------------------------------

    /// Closes the store: snapshot bdevs go, the catalog is closed, the device is let go of.
    pub async fn close(&self) {
        // First of all, for it says that the store is closing.
        let thread = self.thread.borrow_mut().take();
        // It may be in the middle of a transaction.
        scrub::end(self, "the store was closed").await;
        for known in self.all_known() {
            snapshots::retract_all(&known).await;
        }
        if let Some(thread) = thread {
            // Stopping waits for the thread, which may be waiting for this one.
            let (sender, receiver) = oneshot();
            let stopper = spawn_os_thread("presnap-close", None, move || {
                sender.send(thread.stop());
            });
            if stopper.is_ok() {
                match receiver.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(
                        store = self.name,
                        error = store::chain(&error),
                        "catalog not closed cleanly; it is repaired at the next load"
                    ),
                    Err(error) => tracing::warn!(store = self.name, %error, "catalog not closed"),
                }
            }
        }
        StoreDevice::disconnect(self.key);
        let device = self.device.borrow_mut().take();
        drop(device);
        let world = world();
        let mut stores = world.stores.borrow_mut();
        if stores.get(&self.name).is_some_and(|open| open.key == self.key) {
            stores.remove(&self.name);
        }
    }

    /// The device is gone: nothing of the store can be used, volumes serve on.
    async fn lose(&self, reason: &str) {
        if self.removed.replace(true) {
            return;
        }
        let had_failed = self.gone.borrow_mut().replace(reason.to_owned()).is_some();
        tracing::error!(
            store = self.name,
            bdev = self.bdev,
            reason,
            "store lost; volumes serve on"
        );
        let world = world();
        if !had_failed {
            for volume in self.attached() {
                volume.store_gone(reason);
            }
        }
        for known in self.all_known() {
            for host in known.hosts.borrow().values() {
                host.fail();
            }
        }
        let _turn = world.turn(&self.bdev).await;
        self.close().await;
    }
}

struct Loaded {
    superblock: Superblock,
    repaired: Option<String>,
    allocator: SlotAllocator,
    volumes: Vec<store::VolumeView>,
    damaged: Vec<DamagedSlot>,
}

fn catalog_cpus() -> Option<&'static [u32]> {
    CATALOG_CPUS.get().map(Vec::as_slice).filter(|cpus| !cpus.is_empty())
}

fn device_event(key: u64, event: BdevEvent) {
    if event != BdevEvent::Remove {
        return;
    }
    let world = world();
    let host = world.stores.borrow().values().find(|store| store.key == key).cloned();
    executor::spawn(async move {
        match host {
            Some(host) => host.lose(REMOVED).await,
            // Still being opened: its requests fail from now on, and opening with them.
            None => StoreDevice::disconnect(key),
        }
    })
    .detach();
}

fn check_store_bdev(info: &BdevInfo) -> Result<(), Failure> {
    let name = &info.name;
    if info.module_name == crate::volume::MODULE_NAME {
        return Err(Failure::new(
            Sort::Invalid,
            format!(
                "bdev '{name}' is a volume or snapshot of presnap; a store needs a device of its own"
            ),
        ));
    }
    check_blocks("store's bdev", info)
}

/// What a store's bdev and a master (`role`) have in common: plain blocks.
///
/// # Errors
/// It has metadata, or is zoned.
pub fn check_blocks(role: &str, info: &BdevInfo) -> Result<(), Failure> {
    let (name, md_bytes) = (&info.name, info.md_bytes);
    let complaint = if md_bytes != 0 || info.dif_type != 0 {
        format!("{role} '{name}' has {md_bytes} bytes of metadata per block; format it without")
    } else if info.zoned {
        format!("{role} '{name}' is zoned; use one that is not")
    } else {
        return Ok(());
    };
    Err(Failure::new(Sort::Invalid, complaint))
}

/// Whether the bdev carries a store, by a look at its superblocks.
pub async fn carries_store(info: &BdevInfo) -> bool {
    let Ok(desc) = Desc::open(&info.name, false, |_| {}) else { return false };
    let Ok(channel) = desc.channel() else { return false };
    let block_bytes = u64::from(info.block_bytes);
    for copy in store::superblock::COPIES {
        let (at, len) = (copy.offset(), store::superblock::layout::SUPERBLOCK_BYTES as u64);
        if at % block_bytes != 0 || len % block_bytes != 0 || at + len > info.bytes() {
            continue;
        }
        let Ok(buf) = DmaBuf::zeroed(len as usize, 4096) else { return false };
        let (buf, read) = channel.read(buf, at / block_bytes, len / block_bytes).await;
        let bytes = store::superblock::Unverified::<Superblock>::new(buf.to_vec());
        if read.is_ok() && bytes.has_magic() {
            return true;
        }
    }
    false
}

/// The open store that the two optional names mean.
///
/// # Errors
/// None is open by that name, or they disagree.
pub fn find(
    world: &World,
    name: Option<&str>,
    bdev: Option<&str>,
) -> Result<Rc<StoreHost>, Failure> {
    let found = match (name, bdev) {
        (Some(name), _) => Some(world.store(name)?),
        (None, Some(bdev)) => world.store_on(bdev),
        (None, None) => None,
    };
    let found = found.ok_or_else(|| {
        Failure::new(
            Sort::NotFound,
            format!(
                "no open store is on bdev '{}'; presnap_get_stores lists them",
                bdev.unwrap_or("")
            ),
        )
    })?;
    match bdev {
        Some(bdev) if found.bdev != bdev => Err(Failure::new(
            Sort::NotFound,
            format!("store '{}' is on bdev '{}', not on '{bdev}'", found.name, found.bdev),
        )),
        _ => Ok(found),
    }
}
