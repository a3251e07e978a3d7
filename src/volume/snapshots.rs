//! Snapshot bdevs on the app thread: made at the cut or when a store is loaded, gone when the
//! snapshot is deleted or fails.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::export;
use super::snapshot_bdev::{self, SnapshotDevice};
use super::store_host::{KnownVolume, StoreHost};
use super::volume::Unreadable;
use super::world::world;
use crate::engine::records::{SnapshotRecord, SnapshotSeq, SnapshotState, VolumeId};
use crate::gate::{ChunkIndex, Geometry};
use crate::spdk::bdev_module::{self, BdevSpec, ParkedIo, Registration};
use crate::spdk::executor;
use crate::spdk::json::JsonWriter;
use crate::store::SlotMap;

/// Pause before a chunk is looked at again on which commands from before the cut are in flight.
const DRAIN_PAUSE: Duration = Duration::from_micros(50);

/// A snapshot with a bdev.
pub struct SnapshotHost {
    /// Names it to its reactors.
    pub key: u64,
    /// Its store.
    pub store: Rc<StoreHost>,
    /// Its volume's number there.
    pub volume: VolumeId,
    /// Its number there.
    pub seq: SnapshotSeq,
    /// Name of its bdev.
    pub bdev: String,
    device: Arc<SnapshotDevice>,
    registration: RefCell<Option<Rc<Registration<SnapshotDevice>>>>,
}

/// Name of the bdev of a snapshot.
pub fn bdev_name(volume: &str, snapshot: &str) -> String {
    format!("{volume}@{snapshot}")
}

impl SnapshotHost {
    /// The snapshot is complete: reads go to the store from now on.
    pub fn complete(&self, view: SlotMap) {
        let set = self.device.map.set(view);
        assert!(set.is_ok(), "a snapshot completes once");
    }

    /// Reads fail from now on.
    pub fn fail(&self) {
        self.device.failed.store(true, Ordering::Release);
    }

    /// Removes the bdev.
    pub async fn retract(&self) {
        let registration = self.registration.borrow().clone();
        if let Some(registration) = registration {
            export::evict(&self.bdev).await;
            registration.unregister().await;
        }
        world().snapshots.borrow_mut().remove(&self.key);
    }
}

/// Registers the bdev of a snapshot that is readable.
pub fn publish(store: &Rc<StoreHost>, known: &KnownVolume, record: &SnapshotRecord) {
    let volume = known.record.borrow();
    let bdev = bdev_name(&volume.name, &record.name);
    let geometry =
        Geometry::new(volume.chunk_bytes, volume.master.block_bytes, volume.master.block_count);
    let (Ok(geometry), Ok((desc, _))) = (geometry, store.device()) else {
        tracing::error!(bdev, "snapshot without a readable store");
        return;
    };
    let map = OnceLock::new();
    if let Some(view) = known.views.borrow().get(&record.seq) {
        let _ = map.set(view.clone());
    }
    let key = world().next_key();
    let device = Arc::new(SnapshotDevice {
        key,
        geometry,
        store: desc,
        slots: store.layout(),
        damaged: Arc::clone(&store.damaged),
        map,
        failed: AtomicBool::new(false),
    });
    let host = Rc::new(SnapshotHost {
        key,
        store: Rc::clone(store),
        volume: record.volume,
        seq: record.seq,
        bdev: bdev.clone(),
        device: Arc::clone(&device),
        registration: RefCell::new(None),
    });
    // Known before it is registered: whoever opens it may read at once.
    world().snapshots.borrow_mut().insert(key, Rc::clone(&host));
    let spec = BdevSpec {
        name: bdev.clone(),
        product_name: c"presnap snapshot",
        uuid: record.uuid,
        block_bytes: volume.master.block_bytes,
        block_count: volume.master.block_count,
        optimal_io_boundary_blocks: geometry.chunk_lbas() as u32,
        split_on_optimal_io_boundary: true,
        read_only: true,
        ..BdevSpec::default()
    };
    match bdev_module::register(&spec, device) {
        Ok(registration) => {
            *host.registration.borrow_mut() = Some(Rc::new(registration));
            known.hosts.borrow_mut().insert(record.seq, host);
        }
        Err(error) => {
            world().snapshots.borrow_mut().remove(&key);
            tracing::error!(
                bdev,
                %error,
                "snapshot bdev not registered; delete the bdev of that name and load the store again"
            );
        }
    }
}

/// Registers the bdevs of all complete snapshots of a store.
pub fn publish_all(store: &Rc<StoreHost>) {
    for known in store.all_known() {
        let complete: Vec<SnapshotRecord> = known
            .chain
            .borrow()
            .records()
            .filter(|record| record.state == SnapshotState::Complete)
            .cloned()
            .collect();
        for record in &complete {
            publish(store, &known, record);
        }
    }
}

/// Removes the bdevs of all snapshots of a volume.
pub async fn retract_all(known: &KnownVolume) {
    let hosts = std::mem::take(&mut *known.hosts.borrow_mut());
    for host in hosts.into_values() {
        host.retract().await;
    }
}

/// A read of a snapshot that is not complete yet, from a reactor.
pub fn read_completing(
    key: u64,
    chunk: ChunkIndex,
    lba: u64,
    blocks: u64,
    io: ParkedIo<SnapshotDevice>,
) {
    executor::spawn(async move {
        loop {
            let host = world().snapshots.borrow().get(&key).cloned();
            let Some(host) = host else { return snapshot_bdev::finish_read(io, None) };
            if host.device.map.get().is_some() || host.device.failed.load(Ordering::Acquire) {
                return snapshot_bdev::read_again(io);
            }
            let volume = world().attached(&host.store, host.volume);
            let Some(volume) = volume else { return snapshot_bdev::finish_read(io, None) };
            match volume.read_completing(chunk, lba, blocks).await {
                // If it failed meanwhile, the slot may hold another chunk by now.
                Some(Ok(_)) if host.device.failed.load(Ordering::Acquire) => {
                    return snapshot_bdev::finish_read(io, None);
                }
                Some(Ok(data)) => return snapshot_bdev::finish_read(io, Some(data)),
                Some(Err(Unreadable::Damaged)) => return snapshot_bdev::finish_read(io, None),
                Some(Err(Unreadable::Failed(error))) => {
                    tracing::warn!(
                        bdev = host.bdev,
                        chunk = chunk.0,
                        error,
                        "snapshot read failed"
                    );
                    return snapshot_bdev::finish_read(io, None);
                }
                None => executor::sleep(DRAIN_PAUSE).await,
            }
        }
    })
    .detach();
}

/// Calls that bring the snapshot's bdev back, for `save_config`: the one that loads its store. It
/// stands there once more, before the store's first snapshot, because only here the bdev that it is on
/// stands before it; whatever names the snapshot comes later.
pub fn write_config(key: u64, w: &mut JsonWriter) {
    let world = world();
    let snapshots = world.snapshots.borrow();
    let Some(host) = snapshots.get(&key) else { return };
    let first = snapshots.values().find(|other| other.store.key == host.store.key);
    if first.is_some_and(|first| first.key == key) {
        host.store.write_config(w);
    }
}

/// `driver_specific` in `bdev_get_bdevs`.
pub fn dump_info(key: u64, w: &mut JsonWriter) {
    let host = world().snapshots.borrow().get(&key).cloned();
    let Some(host) = host else { return };
    let Some(known) = host.store.known(host.volume) else { return };
    let record = known.chain.borrow().get(host.seq).cloned();
    if let Some(record) = record {
        let object = (world().describe().snapshot)(&host.store, &known, &record);
        w.member("presnap_snapshot", &object);
    }
}
