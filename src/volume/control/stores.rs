//! Stores made, found, opened, closed and deleted.

use std::rc::Rc;

use uuid::Uuid;

use super::START_CALL_MAX;
use super::volumes::attach_awaited;
use crate::spdk::bdev::{self, BdevInfo};
use crate::spdk::executor;
use crate::store::{self, FormatOptions, Superblock};
use crate::volume::export;
use crate::volume::failure::{Failure, Sort};
use crate::volume::stats::unix_ms;
use crate::volume::store_device::StoreDevice;
use crate::volume::store_host::{self, Open, StoreHost};
use crate::volume::world::world;

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
        let store = world.store(name)?;
        if !store.has_failed() {
            return Ok(Some(store));
        }
        return load_store_on(&store.bdev, Some(name)).await.map(Some);
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
    if let Some(failed) = world.store_on(bdev).filter(|store| store.has_failed()) {
        // A volume that is attached has gone on without it, and nothing has recorded what became dirty
        // since: it has to be made again.
        let refused = |failure: Failure| failed.unusable().unwrap_or(failure).of_sort(Sort::Busy);
        check_unused(&failed).map_err(refused)?;
        failed.close().await;
    }
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
pub(super) async fn load_awaited_stores() {
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
    let device = StoreDevice::new(key, channel);
    store.close().await;
    let (sender, receiver) = executor::oneshot();
    let wiper = crate::spdk::thread::spawn_os_thread("presnap-wipe", None, move || {
        sender.send(Superblock::wipe(&device));
    });
    let result = match wiper {
        Ok(_) => receiver.await.unwrap_or(Err(store::Error::Closed)),
        Err(_) => Err(store::Error::Closed),
    };
    StoreDevice::disconnect(key);
    result.map_err(|error| store.failure(&error))
}
