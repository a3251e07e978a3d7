//! Traces for fio: read by `replay`'s readers, written as an iolog.
//!
//! A trace's disk is larger than a volume in memory. The pieces of it that the replayed part touches
//! are put side by side, in their order: what is near stays near, and what is never touched is left out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::PerfError;
use super::device::BLOCK_BYTES;
use super::scenario::TraceLoad;
use crate::replay::trace::{Trace, TraceKind, TraceRecord};
use crate::replay::workload::{self, WORKLOADS, WorkloadOptions};

/// Pieces of the trace's disk that are moved as a whole: larger than any chunk that is the default.
const PIECE_BYTES: u64 = 1 << 20;
/// Longer commands are cut, as a host's driver does.
const COMMAND_BYTES_MAX: u64 = 128 << 10;
/// Size of the volume that workloads are made for.
const WORKLOAD_BYTES: u64 = 4 << 30;
/// Records of a made-up workload, at most.
const RECORDS_MAX: usize = 4_000_000;

/// A trace as fio replays it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// When each command is due, in milliseconds from the start.
    pub due_ms: Vec<u64>,
    /// Bytes of the volume that are touched.
    pub touched_bytes: u64,
}

/// Writes what `seconds` of replaying `trace` need to `iolog`, for a volume of `volume_bytes`.
///
/// # Errors
/// When the trace cannot be read, has nothing to replay, or touches more than the volume has.
pub fn convert(
    trace: &TraceLoad,
    seconds: u32,
    volume_bytes: u64,
    iolog: &Path,
) -> Result<Replay, PerfError> {
    let from_us = trace.skip_s * 1_000_000;
    let until_us = from_us + (f64::from(seconds) * 1e6 * trace.speed) as u64;
    let records = records(trace, from_us, until_us)?;
    if records.is_empty() {
        return Err(PerfError::usage("the trace has no records there; change trace.skip_s".into()));
    }
    let mut places: BTreeMap<u64, u64> = BTreeMap::new();
    for record in &records {
        let last = (record.offset_bytes + record.length_bytes - 1) / PIECE_BYTES;
        places.extend((record.offset_bytes / PIECE_BYTES..=last).map(|piece| (piece, 0)));
    }
    let touched_bytes = places.len() as u64 * PIECE_BYTES;
    if touched_bytes > volume_bytes {
        return Err(PerfError::usage(format!(
            "the replayed part of the trace touches {} MiB; make volume_mib as large, or replay less",
            touched_bytes >> 20
        )));
    }
    for (place, new) in places.values_mut().enumerate() {
        *new = place as u64;
    }
    let failed = |error| PerfError::failed(format!("{}: {error}", iolog.display()));
    let mut out = BufWriter::new(File::create(iolog).map_err(failed)?);
    let mut replay = Replay { due_ms: Vec::new(), touched_bytes };
    // The file's name does not matter: fio is told to redirect.
    write!(out, "fio version 3 iolog\n0 volume add\n0 volume open\n").map_err(failed)?;
    let mut due_us = 0;
    for record in &records {
        due_us = ((record.time_us - from_us) as f64 / trace.speed) as u64;
        let place = places[&(record.offset_bytes / PIECE_BYTES)];
        let offset = place * PIECE_BYTES + record.offset_bytes % PIECE_BYTES;
        for (offset, length) in commands(offset, record.length_bytes) {
            let action = match record.kind {
                TraceKind::Read => "read",
                TraceKind::Write => "write",
                TraceKind::Unmap => "trim",
            };
            writeln!(out, "{due_us} volume {action} {offset} {length}").map_err(failed)?;
            replay.due_ms.push(due_us / 1000);
        }
    }
    writeln!(out, "{due_us} volume close").and_then(|()| out.flush()).map_err(failed)?;
    Ok(replay)
}

/// The records from `from_us` to `until_us`.
fn records(trace: &TraceLoad, from_us: u64, until_us: u64) -> Result<Vec<TraceRecord>, PerfError> {
    let inside = |record: &TraceRecord| (from_us..until_us).contains(&record.time_us);
    if let Some(name) = &trace.workload {
        let options = WorkloadOptions {
            seed: trace.seed,
            span_s: until_us.div_ceil(1_000_000),
            volume_bytes: WORKLOAD_BYTES,
            records_max: RECORDS_MAX,
        };
        let records = workload::generate(name, options).ok_or_else(|| {
            PerfError::usage(format!(
                "there is no workload {name:?}; known are {}",
                WORKLOADS.join(", ")
            ))
        })?;
        return Ok(records.into_iter().filter(inside).collect());
    }
    let path = trace.file.as_deref().unwrap_or_default();
    let usage = |error: crate::replay::trace::TraceError| PerfError::usage(error.to_string());
    let mut records = Vec::new();
    for record in Trace::open(Path::new(path), trace.disk.as_deref()).map_err(usage)? {
        let record = record.map_err(usage)?;
        if record.time_us >= until_us {
            break;
        }
        if inside(&record) {
            records.push(record);
        }
    }
    Ok(records)
}

/// A command in pieces that a host would send, widened to whole blocks.
fn commands(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let begin = offset / BLOCK_BYTES * BLOCK_BYTES;
    let end = (offset + length).next_multiple_of(BLOCK_BYTES);
    (begin..end)
        .step_by(COMMAND_BYTES_MAX as usize)
        .map(move |at| (at, COMMAND_BYTES_MAX.min(end - at)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn load(file: &Path) -> TraceLoad {
        TraceLoad {
            file: Some(file.display().to_string()),
            disk: None,
            workload: None,
            seed: 0,
            skip_s: 0,
            speed: 2.0,
        }
    }

    #[test]
    fn touched_pieces_are_put_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("t.csv");
        // A far piece, one near the begin, one command that crosses into the next piece, and one that
        // is too late.
        let text = "time_us,op,offset_bytes,length_bytes\n0,W,1099511627776,512\n\
                    2000000,R,0,8192\n3000000,W,1048064,262144\n90000000,W,0,512\n";
        fs::write(&source, text).unwrap();
        let iolog = folder.path().join("out");
        let replay = convert(&load(&source), 10, 8 << 20, &iolog).unwrap();
        assert_eq!(replay.touched_bytes, 3 << 20);
        assert_eq!(replay.due_ms, [0, 1000, 1500, 1500, 1500]);
        let lines = fs::read_to_string(&iolog).unwrap();
        let expected = "fio version 3 iolog\n0 volume add\n0 volume open\n\
                        0 volume write 2097152 4096\n1000000 volume read 0 8192\n\
                        1500000 volume write 1044480 131072\n1500000 volume write 1175552 131072\n\
                        1500000 volume write 1306624 4096\n1500000 volume close\n";
        assert_eq!(lines, expected);
        let error = convert(&load(&source), 10, 2 << 20, &iolog).unwrap_err();
        assert!(error.to_string().contains("touches 3 MiB"), "{error}");
    }

    #[test]
    fn made_up_workloads_are_replayed_too() {
        let folder = tempfile::tempdir().unwrap();
        let iolog = folder.path().join("out");
        let mut trace = load(Path::new("none"));
        assert!(convert(&trace, 10, 1 << 30, &iolog).is_err());
        trace.file = None;
        trace.workload = Some("database".into());
        let replay = convert(&trace, 60, 4 << 30, &iolog).unwrap();
        assert!(replay.due_ms.len() > 100 && replay.due_ms.is_sorted(), "{}", replay.due_ms.len());
        trace.workload = Some("databse".into());
        let error = convert(&trace, 60, 4 << 30, &iolog).unwrap_err();
        assert!(error.to_string().contains("known are hot-spots"), "{error}");
    }
}
