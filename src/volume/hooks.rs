//! What SPDK's bdev layer asks of the module: stores found at start, configuration saved, orderly
//! shutdown.

use std::rc::Rc;

use serde_json::json;

use super::control;
use super::store_host::{self, Open, StoreHost};
use super::world::world;
use crate::spdk::app;
use crate::spdk::bdev::BdevInfo;
use crate::spdk::bdev_module::{self, ModuleHooks};
use crate::spdk::executor::LocalFuture;
use crate::spdk::json::JsonWriter;
use crate::spdk::nvmf;

static HOOKS: ModuleHooks = ModuleHooks {
    init: None,
    fini_start: None,
    config_json: Some(config_json),
    examine_config: None,
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
    for options in world.awaited.borrow().iter() {
        tracing::warn!(
            volume = options.name,
            base = options.base_bdev,
            store = options.store,
            "volume still waits for its master or its store"
        );
    }
    app::on_shutdown(|| Box::pin(shut_down()));
}

/// A bdev has come: if it carries a store, open that; if volumes waited for it, attach them.
fn examine_disk(info: &BdevInfo) -> Option<LocalFuture<()>> {
    if info.module_name == super::MODULE_NAME {
        return None;
    }
    let info = info.clone();
    Some(Box::pin(async move {
        let world = world();
        if world.store_on(&info.name).is_none()
            && info.claimed_by.is_none()
            && store_host::carries_store(&info).await
        {
            match StoreHost::open(&info.name, Open::Load).await {
                Ok(store) => tracing::info!(store = store.name, bdev = info.name, "store loaded"),
                Err(failure) => {
                    tracing::warn!(bdev = info.name, %failure, "store found but not loaded");
                }
            }
        }
        control::attach_awaited().await;
    }))
}

/// Calls that open the stores again; those of the volumes follow, each with its bdev.
fn config_json(w: &mut JsonWriter) {
    for store in world().stores.borrow().values() {
        w.call("presnap_store_load", &json!({ "bdev": store.bdev, "name": store.name }));
    }
    for options in world().awaited.borrow().iter() {
        let (method, params) = (world().describe().volume_call)(options);
        w.call(method, &params);
    }
}

/// Volumes save what a later start may trust, then stores are closed.
async fn shut_down() {
    let volumes: Vec<_> = world().volumes.borrow().values().map(Rc::clone).collect();
    for volume in volumes {
        volume.detach().await;
    }
    let stores: Vec<_> = world().stores.borrow().values().map(Rc::clone).collect();
    for store in stores {
        store.close().await;
    }
}
