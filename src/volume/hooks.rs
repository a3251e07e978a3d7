//! What SPDK's bdev layer asks of the module: stores found at start, configuration saved, orderly
//! shutdown.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::json;

use super::control;
use super::predictor;
use super::world::world;
use crate::spdk::app;
use crate::spdk::bdev::{BdevEvent, BdevInfo, Desc};
use crate::spdk::bdev_module::{self, ModuleHooks};
use crate::spdk::executor::{self, LocalFuture};
use crate::spdk::json::JsonWriter;
use crate::spdk::nvmf;
use crate::spdk::stopping;

static HOOKS: ModuleHooks = ModuleHooks {
    init: None,
    fini_start: None,
    config_json: Some(config_json),
    examine_config: Some(examine_config),
    examine_disk: Some(examine_disk),
};

/// Puts the module in place, before the app is run.
pub fn install() {
    bdev_module::set_hooks(&HOOKS);
}

/// The start-up configuration is loaded: from now on what is missing is an error.
pub fn started() {
    let world = world();
    world.started.set(true);
    nvmf::show_write_protection();
    app::on_shutdown(|| Box::pin(shut_down()));
    executor::spawn(async move {
        control::attach_awaited().await;
        // Masters without a volume, because it was refused.
        let awaited: Vec<String> =
            world.awaited.borrow().iter().map(|options| options.base_bdev.clone()).collect();
        let idle: Vec<String> = KEPT.with_borrow(|kept| kept.keys().cloned().collect());
        idle.iter().filter(|bdev| !awaited.contains(bdev)).for_each(|bdev| give_up(bdev));
        for bdev in world.awaited_stores.borrow().keys() {
            tracing::warn!(bdev, "store still waits for its bdev");
        }
        for options in world.awaited.borrow().iter() {
            tracing::warn!(
                volume = options.name,
                base = options.base_bdev,
                store = options.store,
                "volume still waits for its master or its store"
            );
        }
    })
    .detach();
}

/// Masters of the volumes in the start-up configuration.
pub static CONFIGURED_MASTERS: OnceLock<Vec<String>> = OnceLock::new();

thread_local! {
    /// Bdevs that are kept from other modules, by name.
    static KEPT: RefCell<HashMap<String, Desc>> = RefCell::default();
}

/// A bdev has come. What is on a volume, partitions or logical volumes say, is in the same place on its
/// master and its snapshots: SPDK's modules would find it there as well, claim the bdev, and write to it
/// past the volume. They leave alone what is claimed, so these are: a snapshot until
/// [`examine_disk`], a master until its volume takes it.
fn examine_config(info: &BdevInfo) {
    // No volume has an "@" in its name.
    let is_snapshot = info.module_name == super::MODULE_NAME && info.name.contains('@');
    let is_master = !world().started.get()
        && CONFIGURED_MASTERS.get().is_some_and(|masters| masters.contains(&info.name));
    if !is_snapshot && !is_master {
        return;
    }
    let name = info.name.clone();
    let kept = Desc::open(&info.name, false, move |event| {
        if matches!(event, BdevEvent::Remove) {
            give_up(&name);
        }
    });
    match kept.and_then(|desc| desc.claim().map(|()| desc)) {
        Ok(desc) => drop(KEPT.with_borrow_mut(|kept| kept.insert(info.name.clone(), desc))),
        Err(error) => tracing::warn!(bdev = info.name, %error, "not kept from other modules"),
    }
}

/// Whoever comes next may have the bdev.
pub fn give_up(bdev: &str) {
    let kept = KEPT.with_borrow_mut(|kept| kept.remove(bdev));
    drop(kept);
}

/// A bdev has come: if it carries a store, open that; if volumes waited for it, attach them.
#[expect(clippy::unnecessary_wraps, reason = "the type of the hook")]
fn examine_disk(info: &BdevInfo) -> Option<LocalFuture<()>> {
    if info.module_name == super::MODULE_NAME {
        if info.name.contains('@') {
            give_up(&info.name);
        }
        // A volume cannot hold a store, but it can be the master of another.
        return Some(Box::pin(control::attach_awaited()));
    }
    let info = info.clone();
    Some(Box::pin(async move {
        control::examine_store(&info).await;
        control::attach_awaited().await;
    }))
}

/// Calls that open the stores again; those of the volumes follow, each with its bdev.
fn config_json(w: &mut JsonWriter) {
    for store in world().stores.borrow().values() {
        store.write_config(w);
    }
    for (bdev, name) in world().awaited_stores.borrow().iter() {
        let params = match name {
            Some(name) => json!({ "bdev": bdev, "name": name }),
            None => json!({ "bdev": bdev }),
        };
        w.call("presnap_store_load", &params);
    }
    for options in world().awaited.borrow().iter() {
        let (method, params) = (world().describe().volume_call)(options);
        w.call(method, &params);
    }
}

/// How long the shutdown waits for one subsystem, volume or store at most before it goes on without.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(10);

/// Initiators are disconnected, volumes save what a later start may trust, then stores are closed. A
/// volume may be the master of one that came later, so the last goes first.
async fn shut_down() {
    // SPDK of 20.07 keeps a bdev open for ever when two are to leave one subsystem at a time, such as
    // the parts of a split volume.
    for subsystem in nvmf::subsystems() {
        let nqn = subsystem.nqn.clone();
        let ended = executor::spawn(async move { nvmf::destroy(&subsystem.nqn).await });
        if let Some(Err(error)) = in_time(format!("subsystem '{nqn}'"), ended).await {
            tracing::warn!(nqn, %error, "subsystem not removed");
        }
    }
    let volumes: Vec<_> = world().volumes.borrow().values().rev().map(Rc::clone).collect();
    for volume in volumes {
        let what = format!("volume '{}'", volume.name());
        let detached = executor::spawn(async move { volume.detach().await });
        if in_time(what, detached).await.is_none() {
            tracing::error!("it is not saved; its next snapshot compares");
        }
    }
    stopping::step("the predictor's thread is being ended");
    predictor::stop().await;
    let stores: Vec<_> = world().stores.borrow().values().map(Rc::clone).collect();
    for store in stores {
        let what = format!("store '{}'", store.name);
        let closed = executor::spawn(async move { store.close().await });
        if in_time(what, closed).await.is_none() {
            tracing::error!("it is repaired at its next load");
        }
    }
}

/// Waits for the end of one thing, or goes on without.
async fn in_time<T>(what: String, closed: impl Future<Output = T>) -> Option<T> {
    stopping::step(format!("{what} is being closed"));
    let within = stopping::time_for_step(CLOSE_TIME_MAX);
    let done = executor::timeout(within, closed).await;
    if done.is_none() {
        tracing::error!(within_ms = within.as_millis() as u64, "{what} not closed in time");
        stopping::leave_behind(what);
    }
    done
}
