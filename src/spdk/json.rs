//! Writing into SPDK's JSON streams.

use std::ptr::NonNull;

use serde_json::Value;
use spdk_sys as sys;

/// SPDK's JSON stream, open at some place of its own choosing.
pub struct JsonWriter(NonNull<sys::spdk_json_write_ctx>);

impl JsonWriter {
    /// For the time of one callback from SPDK.
    pub(super) fn new(raw: *mut sys::spdk_json_write_ctx) -> Self {
        Self(NonNull::new(raw).expect("SPDK gives a writer"))
    }

    /// Next value, where SPDK has an array open (`config_json`, `write_config_json`).
    pub fn value(&mut self, value: &Value) {
        let text = value.to_string();
        // SAFETY: the writer is open during the callback that made `self`; pointer and length are of
        // one string, which SPDK copies. Errors show in SPDK's own result.
        unsafe { sys::psc_json_raw(self.0.as_ptr(), text.as_ptr().cast(), text.len()) };
    }

    /// Next member, where SPDK has an object open (`dump_info_json`).
    pub fn member(&mut self, name: &str, value: &Value) {
        // SAFETY: as above.
        unsafe { sys::psc_json_name(self.0.as_ptr(), name.as_ptr().cast(), name.len()) };
        self.value(value);
    }

    /// Next value: `{"method": ..., "params": ...}`, as `save_config` wants it.
    pub fn call(&mut self, method: &str, params: &Value) {
        self.value(&serde_json::json!({ "method": method, "params": params }));
    }
}
