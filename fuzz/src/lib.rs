//! What the fuzz targets share.

pub mod entries;

use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;

/// A panic that is caught is no finding: presnap catches those of its database when it reads a damaged store.
/// libFuzzer's hook would end the process before. Each place is told once.
pub fn prepare() {
    let told = Mutex::new(BTreeSet::new());
    panic::set_hook(Box::new(move |panic| {
        let Some(place) = panic.location().map(ToString::to_string) else { return };
        let is_new = told.lock().is_ok_and(|mut told| told.insert(place.clone()));
        if is_new {
            eprintln!("panicked at {place}");
        }
    }));
}

/// Runs one input; a panic that comes out is a finding.
pub fn check(entry: fn(&[u8]), data: &[u8]) {
    if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| entry(data))) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        eprintln!("panic: {}", text.unwrap_or("of another type"));
        std::process::abort();
    }
}
