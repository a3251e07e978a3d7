//! Foreground commands of a replay: through the gate to the master, or parked.

use super::run::{Happening, LBA_BYTES, World};
use super::trace::{TraceKind, TraceRecord};
use crate::engine::events::{Event, Micros};
use crate::gate::{ChunkIndex, LbaRange};

/// How long it takes to tell another thread something, in microseconds.
const MESSAGE_US: u64 = 10;

/// A command that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct ParkedCommand {
    range: LbaRange,
    since_us: u64,
}

impl World {
    /// A command comes in.
    pub fn command(&mut self, record: &TraceRecord) {
        if let Some(scorer) = &mut self.scorer {
            scorer.record(record);
        }
        if record.kind == TraceKind::Read {
            let _ = self.master.read(self.now_us, record.length_bytes);
            return;
        }
        self.report.modifications += 1;
        self.report.modified_bytes += record.length_bytes;
        let first = record.offset_bytes / LBA_BYTES;
        let end = (record.offset_bytes + record.length_bytes).div_ceil(LBA_BYTES);
        let range = LbaRange::new(first, end - first);
        self.enter(ParkedCommand { range, since_us: self.now_us });
    }

    fn enter(&mut self, command: ParkedCommand) {
        let range = command.range;
        match self.lane.enter(range) {
            Ok(passage) => {
                let waited_us = self.now_us - command.since_us;
                if waited_us > 0 {
                    self.report.parked.commands += 1;
                    self.report.parked.wait_us += waited_us;
                    let max = &mut self.report.parked.wait_us_max;
                    *max = waited_us.max(*max);
                }
                for chunk in self.gate.geometry().chunks(range) {
                    self.engine.observe_write(ChunkIndex(chunk), Micros(self.now_us));
                }
                let landed_us = self.master.write(self.now_us, range.count * LBA_BYTES);
                self.at(landed_us, Happening::Landed(passage, range));
            }
            Err(chunk) => {
                self.parked.entry(chunk).or_default().push(command);
                self.apply(Event::Parked { chunk, since: Micros(command.since_us) });
            }
        }
    }

    /// Parked commands are told a little later.
    pub fn wake_soon(&mut self, chunk: Option<ChunkIndex>) {
        self.at(self.now_us + MESSAGE_US, Happening::Wake(chunk));
    }

    pub fn wake(&mut self, chunk: Option<ChunkIndex>) {
        let woken = match chunk {
            Some(chunk) => self.parked.remove(&chunk).unwrap_or_default(),
            None => std::mem::take(&mut self.parked).into_values().flatten().collect(),
        };
        for command in woken {
            self.enter(command);
        }
    }
}
