//! Readers of snapshots, complete and completing: each reads one chunk piece by piece, while the
//! world goes on, and compares what it got with the model.

use super::disks::Tag;
use super::marks::Mark;
use super::random::mix;
use super::world::{Happening, World, trace, violated};
use crate::engine::events::ReadSource;
use crate::engine::records::{SlotRef, SnapshotSeq, SnapshotState};
use crate::gate::ChunkIndex;

/// Where a reader reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Master,
    Place(SlotRef),
}

/// A reader at work.
#[derive(Debug)]
pub(super) struct Reader {
    pub seq: SnapshotSeq,
    chunk: ChunkIndex,
    source: Option<Source>,
    parts: u64,
    done: u64,
    tags: Vec<Option<Tag>>,
}

const PAUSE_US: u64 = 3_000;

impl World {
    pub fn reader_step(&mut self, index: usize) {
        if self.ending {
            self.readers[index] = None;
            return;
        }
        let reader = self.readers[index].take().or_else(|| self.new_reader());
        let Some(reader) = reader else {
            return self.after(PAUSE_US, Happening::ReaderStep(index));
        };
        self.readers[index] = self.read(reader);
        let idle = self.readers[index].is_none();
        let delay = self.random.below(if idle { PAUSE_US } else { self.swarm.copy_us_max } + 1);
        self.after(delay, Happening::ReaderStep(index));
    }

    fn new_reader(&mut self) -> Option<Reader> {
        let node = self.node.as_ref()?;
        let deleting = &node.deleting;
        let readable: Vec<SnapshotSeq> =
            self.model.snapshots.keys().copied().filter(|seq| !deleting.contains(seq)).collect();
        if readable.is_empty() {
            return None;
        }
        let newest = *readable.last().expect("not empty");
        let seq = if self.random.chance(500) { newest } else { self.random.pick(&readable) };
        let chunk = ChunkIndex(self.random.below(u64::from(self.geometry.chunk_count())) as u32);
        let parts = self.random.between(1, 3);
        let tags = vec![None; self.geometry.chunk_range(chunk).count as usize];
        Some(Reader { seq, chunk, source: None, parts, done: 0, tags })
    }

    /// One step of `reader`; `None` when it is through.
    fn read(&mut self, mut reader: Reader) -> Option<Reader> {
        let (seq, chunk) = (reader.seq, reader.chunk);
        let state = self.node().chain.get(seq).map(|record| record.state);
        let failing = self
            .node()
            .engine
            .progress()
            .is_some_and(|record| record.seq == seq && record.state == SnapshotState::Failed);
        if failing || !matches!(state, Some(SnapshotState::Completing | SnapshotState::Complete)) {
            return None; // its reads end with an error from now on
        }
        let Some(source) = reader.source else {
            reader.source = Some(self.source(seq, chunk)?);
            return Some(reader);
        };
        let first = self.geometry.chunk_range(chunk).lba;
        for (lba, tag) in (0u64..).zip(&mut reader.tags) {
            if mix(lba ^ u64::from(chunk.0) << 32) % reader.parts == reader.done {
                *tag = Some(match source {
                    Source::Master => self.master.read(first + lba),
                    Source::Place(SlotRef::Zero) => 0,
                    Source::Place(SlotRef::Slot { slot, .. }) => self.store.read_slot(slot, lba),
                });
            }
        }
        reader.done += 1;
        if reader.done < reader.parts {
            return Some(reader);
        }
        if source == Source::Master {
            let old_epoch = self.model.snapshots[&seq].old_epoch;
            let node = self.node();
            if !node.gate.still_pending(chunk, old_epoch) {
                self.mark(Mark::ReadRaced);
                return Some(Reader { source: None, done: 0, ..reader });
            }
        }
        trace!(self, "reader has read {chunk} of {seq:?} from {source:?}");
        let in_flight = self.commands.values().any(|command| {
            command.passage.is_some()
                && command.epoch <= self.model.snapshots[&seq].old_epoch
                && self.model.snapshots[&seq].generation == self.generation
                && self.geometry.chunks(command.range).contains(&chunk.0)
        });
        if in_flight {
            violated!("{chunk} of {seq:?} was read while commands of its epoch are in flight");
        }
        let tags = reader.tags;
        let how = format!("read from {source:?}");
        self.compare_chunk(seq, chunk, |lba| tags[lba as usize].expect("all was read"), &how);
        None
    }

    /// Where the chunk is, as the volume finds out; `None` while it has to wait.
    fn source(&mut self, seq: SnapshotSeq, chunk: ChunkIndex) -> Option<Source> {
        let completing = self.node().under_way == Some(seq);
        if completing {
            let source = self.node().engine.read_source(chunk);
            self.effects();
            match source? {
                ReadSource::Wait => {
                    self.mark(Mark::ReadWaited);
                    return None;
                }
                ReadSource::Master => {
                    self.mark(Mark::ReadMaster);
                    return Some(Source::Master);
                }
                ReadSource::Rows => self.mark(Mark::ReadRows),
            }
        } else {
            self.mark(Mark::ReadComplete);
        }
        let view = self.node().views.get(seq).expect("it is readable");
        match view.get(chunk) {
            Some(slot_ref) => Some(Source::Place(slot_ref)),
            None => violated!("{seq:?} has no place for {chunk}"),
        }
    }
}
