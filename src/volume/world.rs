//! All that is open in this process: stores, volumes, snapshots. On the app thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::OnceLock;

use serde_json::Value;

use super::failure::Failure;
use super::snapshots::SnapshotHost;
use super::store_host::{KnownVolume, StoreHost};
use super::volume::{Volume, VolumeOptions};
use crate::engine::records::{SnapshotRecord, VolumeId};

/// How objects are shown to users; the interface's room knows, this one only asks.
#[derive(Clone, Copy)]
pub struct Describe {
    /// The call that creates a volume: method and parameters.
    pub volume_call: fn(&VolumeOptions) -> (&'static str, Value),
    /// A volume.
    pub volume: fn(&Volume) -> Value,
    /// A snapshot.
    pub snapshot: fn(&StoreHost, &KnownVolume, &SnapshotRecord) -> Value,
}

static DESCRIBE: OnceLock<Describe> = OnceLock::new();

/// Sets how objects are shown, once, before the app is run.
pub fn set_describe(describe: Describe) {
    let set = DESCRIBE.set(describe);
    assert!(set.is_ok(), "set once");
}

/// What is open. Made on first use; each thread but the app thread would see an empty one.
#[derive(Default)]
pub struct World {
    /// Open stores by name.
    pub stores: RefCell<BTreeMap<String, Rc<StoreHost>>>,
    /// Attached volumes by key.
    pub volumes: RefCell<BTreeMap<u64, Rc<Volume>>>,
    /// Snapshots with a bdev, by key.
    pub snapshots: RefCell<BTreeMap<u64, Rc<SnapshotHost>>>,
    /// Volumes of the start-up configuration whose master or store has not come yet.
    pub awaited: RefCell<Vec<VolumeOptions>>,
    /// The start-up configuration was loaded.
    pub started: Cell<bool>,
    keys: Cell<u64>,
}

thread_local! {
    static WORLD: Rc<World> = Rc::default();
}

/// The world.
pub fn world() -> Rc<World> {
    WORLD.with(Rc::clone)
}

impl World {
    /// How objects are shown.
    pub fn describe(&self) -> Describe {
        *DESCRIBE.get().expect("set before the app is run")
    }

    /// A number that was never given out before.
    pub fn next_key(&self) -> u64 {
        self.keys.set(self.keys.get() + 1);
        self.keys.get()
    }

    /// The open store of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn store(&self, name: &str) -> Result<Rc<StoreHost>, Failure> {
        self.stores.borrow().get(name).cloned().ok_or_else(|| Failure::no_store(name))
    }

    /// The open store on this bdev.
    pub fn store_on(&self, bdev: &str) -> Option<Rc<StoreHost>> {
        self.stores.borrow().values().find(|store| store.bdev == bdev).cloned()
    }

    /// The attached volume of this name.
    pub fn volume(&self, name: &str) -> Option<Rc<Volume>> {
        self.volumes.borrow().values().find(|volume| volume.name() == name).cloned()
    }

    /// The attached volume with this key.
    pub fn volume_by_key(&self, key: u64) -> Option<Rc<Volume>> {
        self.volumes.borrow().get(&key).cloned()
    }

    /// The volume of this name that an open store knows, attached or not: the attached one first,
    /// since another store may have brought along one of the same name.
    ///
    /// # Errors
    /// There is none.
    pub fn known_volume(&self, name: &str) -> Result<(Rc<StoreHost>, Rc<KnownVolume>), Failure> {
        if let Some(volume) = self.volume(name) {
            let known = volume.store.known(volume.id);
            return Ok((Rc::clone(&volume.store), known));
        }
        for store in self.stores.borrow().values() {
            if let Some(known) = store.known_by_name(name) {
                return Ok((Rc::clone(store), known));
            }
        }
        Err(Failure::no_volume(name))
    }

    /// The attached volume with this number in `store`.
    pub fn attached(&self, store: &StoreHost, id: VolumeId) -> Option<Rc<Volume>> {
        self.volumes
            .borrow()
            .values()
            .find(|volume| volume.store.key == store.key && volume.id == id)
            .cloned()
    }
}
