//! Traces as a monitor sees them.
#![allow(clippy::cast_sign_loss, reason = "times are scaled")]

use super::trace::{TraceKind, TraceRecord};
use crate::monitor::{Access, AccessKind, MonitorOptions};

/// Length of a tick.
pub const TICK_US: u64 = 1_000_000;

/// A trace as a monitor takes it, and the options to watch it with.
pub fn accesses(
    records: &[TraceRecord],
    time_factor: f64,
    chunk_bytes: u32,
) -> (Vec<Access>, MonitorOptions) {
    let end = records.iter().map(|r| r.offset_bytes + r.length_bytes).max().unwrap_or(1);
    let chunks = end.div_ceil(u64::from(chunk_bytes)).min(u64::from(u32::MAX - 1)) as u32;
    let of = |record: &TraceRecord| {
        let kind = match record.kind {
            TraceKind::Read => AccessKind::Read,
            _ => AccessKind::Modify,
        };
        let time_us = (record.time_us as f64 * time_factor) as u64;
        Access::new(record.offset_bytes, record.length_bytes, kind, time_us, chunk_bytes)
    };
    let mut options = MonitorOptions::new(chunks, chunk_bytes);
    options.tick_us = TICK_US;
    (records.iter().map(of).collect(), options)
}
