//! Bdevs of our own: [`BdevDevice`] is what one does, [`BdevIo`] a command to it. And what the module
//! "presnap" does beside them, [`ModuleHooks`].
//!
//! The module itself, its function tables and everything SPDK calls are C (module.c, command.c).

use std::ffi::c_int;
use std::sync::{Mutex, OnceLock};

use spdk_sys as sys;

use super::bdev::BdevInfo;
use super::executor::{self, LocalFuture};
use super::guard;
use super::json::JsonWriter;

mod command;
mod device;

pub use command::{
    BdevIo, OnDone, OnReturn, ParkedIo, SC_WRITE_PROTECTED, SCT_GENERIC, Status, Zcopy,
};
pub use device::{BdevDevice, BdevSpec, IO_STATE_BYTES_MAX, Registration, register};

/// Looks at a new bdev, asynchronously if it is of interest.
pub type ExamineDisk = fn(&BdevInfo) -> Option<LocalFuture<()>>;

/// What the module does beside its devices. All on the app thread.
#[derive(Default)]
pub struct ModuleHooks {
    /// The bdev subsystem starts.
    pub init: Option<fn()>,
    /// The bdev subsystem is about to stop; bdevs are still there.
    pub fini_start: Option<fn()>,
    /// Calls for `save_config`, before those of single bdevs.
    pub config_json: Option<fn(&mut JsonWriter)>,
    /// A bdev has come. Decide now whether to open and claim it; no I/O yet.
    pub examine_config: Option<fn(&BdevInfo)>,
    /// A bdev has come, and I/O is allowed; start of the app waits for the future. `None`: not ours.
    pub examine_disk: Option<ExamineDisk>,
}

static HOOKS: OnceLock<Mutex<&'static ModuleHooks>> = OnceLock::new();

fn hooks() -> &'static ModuleHooks {
    const NONE: &ModuleHooks = &ModuleHooks {
        init: None,
        fini_start: None,
        config_json: None,
        examine_config: None,
        examine_disk: None,
    };
    HOOKS.get().map_or(NONE, |hooks| *hooks.lock().expect("nothing panics with it"))
}

/// Sets the hooks; before [`super::app::run`].
pub fn set_hooks(new: &'static ModuleHooks) {
    let slot = HOOKS.get_or_init(|| Mutex::new(new));
    *slot.lock().expect("nothing panics with it") = new;
}

pub(super) extern "C" fn psr_module_init() -> c_int {
    guard("module init", || {
        if let Some(init) = hooks().init {
            init();
        }
        0
    })
}

pub(super) extern "C" fn psr_module_fini_start() {
    guard("module fini start", || {
        if let Some(fini_start) = hooks().fini_start {
            fini_start();
        }
    });
}

pub(super) extern "C" fn psr_module_fini() {}

pub(super) extern "C" fn psr_module_config_json(w: *mut sys::spdk_json_write_ctx) {
    guard("config_json", || {
        if let Some(config_json) = hooks().config_json {
            config_json(&mut JsonWriter::new(w));
        }
    });
}

pub(super) extern "C" fn psr_examine_config(bdev: *mut sys::spdk_bdev) {
    guard("examine_config", || {
        if let Some(examine) = hooks().examine_config {
            // SAFETY: SPDK examines registered bdevs, on an SPDK thread.
            examine(&unsafe { BdevInfo::from_raw(bdev) });
        }
    });
}

pub(super) extern "C" fn psr_examine_disk(bdev: *mut sys::spdk_bdev) {
    guard("examine_disk", || {
        let future = hooks().examine_disk.and_then(|examine| {
            // SAFETY: SPDK examines registered bdevs, on an SPDK thread.
            examine(&unsafe { BdevInfo::from_raw(bdev) })
        });
        match future {
            // SAFETY: once per call of this function.
            None => unsafe { sys::psc_examine_disk_done() },
            Some(future) => executor::spawn(async move {
                future.await;
                // SAFETY: once per call of this function, on the same thread.
                unsafe { sys::psc_examine_disk_done() };
            })
            .detach(),
        }
    });
}
