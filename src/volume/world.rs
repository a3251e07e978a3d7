//! All that is open in this process: stores, volumes, snapshots. On the app thread.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use super::failure::Failure;
use super::snapshots::SnapshotHost;
use super::store_host::{KnownVolume, StoreHost};
use super::volume::{Volume, VolumeOptions};
use crate::engine::records::{SnapshotRecord, VolumeId};
use crate::spdk::executor;

/// Pause between two looks at whether a bdev is free to be opened or closed as a store.
const TURN_PAUSE: Duration = Duration::from_millis(1);

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
    /// Stores of the start-up configuration whose bdev has not come yet: bdev and name.
    pub awaited_stores: RefCell<BTreeMap<String, Option<String>>>,
    /// Bdevs on which a store is being looked for, made, opened or closed.
    turns: RefCell<BTreeSet<String>>,
    /// Volumes that are being attached: name and key of the store.
    attaching: RefCell<Vec<(String, u64)>>,
    /// The start-up configuration was loaded.
    pub started: Cell<bool>,
    keys: Cell<u64>,
}

/// The right to open or close the store on a bdev; given back when dropped.
pub struct Turn(String);

impl Drop for Turn {
    fn drop(&mut self) {
        world().turns.borrow_mut().remove(&self.0);
    }
}

/// The right to attach the volume of a name; given back when dropped.
pub struct Attaching(String);

impl Drop for Attaching {
    fn drop(&mut self) {
        world().attaching.borrow_mut().retain(|(name, _)| *name != self.0);
    }
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

    /// Waits until nobody else looks for, makes, opens or closes a store on this bdev.
    ///
    /// A bdev that has come is examined while its creator's next request may be here already; without
    /// turns that request would find the bdev claimed by ourselves.
    pub async fn turn(&self, bdev: &str) -> Turn {
        while !self.turns.borrow_mut().insert(bdev.to_owned()) {
            executor::sleep(TURN_PAUSE).await;
        }
        Turn(bdev.to_owned())
    }

    /// Whether a store is being looked for, made, opened or closed anywhere.
    pub fn has_turns(&self) -> bool {
        !self.turns.borrow().is_empty()
    }

    /// The right to attach a volume of this name from the store, unless someone else has it.
    pub fn attaching(&self, name: &str, store: &StoreHost) -> Option<Attaching> {
        let mut attaching = self.attaching.borrow_mut();
        if attaching.iter().any(|(other, _)| other == name) {
            return None;
        }
        attaching.push((name.to_owned(), store.key));
        Some(Attaching(name.to_owned()))
    }

    /// A volume that is being attached from this store.
    pub fn attaching_from(&self, store: &StoreHost) -> Option<String> {
        let attaching = self.attaching.borrow();
        attaching.iter().find(|(_, key)| *key == store.key).map(|(name, _)| name.clone())
    }

    /// What has this bdev, for people.
    pub fn user_of(&self, bdev: &str) -> String {
        if let Some(store) = self.store_on(bdev) {
            return format!("it holds store '{}'", store.name);
        }
        let volumes = self.volumes.borrow();
        if let Some(volume) = volumes.values().find(|volume| volume.options().base_bdev == bdev) {
            return format!("it is the master of volume '{}'", volume.name());
        }
        match crate::spdk::bdev::find(bdev).and_then(|info| info.claimed_by) {
            Some(module) => format!("module '{module}' has claimed it"),
            None => "something has it open".to_owned(),
        }
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
            return Ok((Rc::clone(&volume.store), Rc::clone(&volume.known)));
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
