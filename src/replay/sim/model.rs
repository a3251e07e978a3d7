//! What each snapshot must contain, byte for byte (tag for tag).

use std::collections::BTreeMap;

use super::disks::Tag;
use super::world::{World, trace, violated};
use crate::engine::crc::CrcCombiner;
use crate::engine::records::{
    BLOCKS_PER_CHUNK, BlockCrcs, SlotRef, SnapshotRecord, SnapshotSeq, SnapshotState,
};
use crate::gate::{ChunkIndex, Epoch, OperationNumber};
use crate::store::SlotMap;

use super::random::mix;

/// A snapshot that was cut.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub tags: Vec<Tag>,
    /// The epoch that its cut ended, and in which process.
    pub old_epoch: Epoch,
    pub generation: u32,
    pub operation: OperationNumber,
    pub complete: bool,
}

/// All snapshots that may be read.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub snapshots: BTreeMap<SnapshotSeq, Expected>,
}

impl World {
    /// Commands of the old epoch that are in flight have not landed yet: `landed` adds them.
    pub fn model_cut(&mut self, record: &SnapshotRecord) {
        let node = self.node.as_ref().expect("a process is running");
        let old_epoch = Epoch(node.gate.epoch().0 - 1);
        for command in self.commands.values().filter(|c| c.passage.is_some()) {
            // I1: in flight at the cut is before it.
            if command.epoch > old_epoch || command.operation >= record.operation_number {
                violated!("I1: {command:?} entered before {record:?} and is not before it");
            }
        }
        let expected = Expected {
            tags: self.master.content(),
            old_epoch,
            generation: self.generation,
            operation: record.operation_number,
            complete: false,
        };
        self.model.snapshots.insert(record.seq, expected);
    }

    /// A device block of the master takes a command's content.
    pub fn landed(&mut self, lba: u64, tag: Tag, epoch: Epoch, operation: OperationNumber) {
        let chunk = self.geometry.chunk_of(lba);
        let node = self.node.as_ref().expect("a process is running");
        for (seq, expected) in &mut self.model.snapshots {
            if expected.generation != self.generation {
                continue;
            }
            let before = epoch <= expected.old_epoch;
            if before != (operation < expected.operation) {
                violated!("I1: {epoch} and operation {operation} disagree about {seq:?}");
            }
            if before {
                if expected.complete {
                    violated!("I1: {seq:?} completed before {operation} had landed on {chunk}");
                }
                expected.tags[lba as usize] = tag;
            } else if !expected.complete
                && node.gate.is_cut_active()
                && node.gate.still_pending(chunk, expected.old_epoch)
            {
                violated!("I3: operation {operation} overwrites pending {chunk} of {seq:?}");
            }
        }
        self.master.write(lba, tag);
    }

    /// Checksums of a chunk's blocks; any function that depends on all content will do.
    pub fn block_sum(&self, chunk: ChunkIndex, block: usize, tag_of: impl Fn(u64) -> Tag) -> u32 {
        let (lba_bytes, block_bytes) = (self.geometry.lba_bytes(), self.geometry.block_bytes());
        let first = block as u64 * u64::from(block_bytes) / u64::from(lba_bytes);
        let end = ((block as u64 + 1) * u64::from(block_bytes)).div_ceil(u64::from(lba_bytes));
        let end = end.min(self.geometry.chunk_range(chunk).count);
        let mut sum = 0;
        for lba in first..end {
            let part = if lba_bytes > block_bytes { block as u64 } else { 0 };
            sum = mix(sum ^ mix(u64::from(tag_of(lba)) << 8 | part));
        }
        if first < end { sum as u32 } else { 0 }
    }

    /// Checksum of a chunk as it must be in its row.
    fn chunk_sum(&self, chunk: ChunkIndex, tag_of: impl Fn(u64) -> Tag) -> u32 {
        let mut sums: BlockCrcs = [0; BLOCKS_PER_CHUNK];
        for (block, sum) in sums.iter_mut().enumerate() {
            *sum = self.block_sum(chunk, block, &tag_of);
        }
        let bytes = self.geometry.chunk_range(chunk).count * u64::from(self.geometry.lba_bytes());
        thread_local! {
            static COMBINER: CrcCombiner = CrcCombiner::new((1 << 16) / 64);
        }
        COMBINER.with(|combiner| combiner.combine(&sums, bytes as u32))
    }

    /// Compares one chunk, as read, with the model.
    pub fn compare_chunk(
        &mut self,
        seq: SnapshotSeq,
        chunk: ChunkIndex,
        tag_of: impl Fn(u64) -> Tag,
        how: &str,
    ) {
        let expected = &self.model.snapshots[&seq].tags;
        let range = self.geometry.chunk_range(chunk);
        for lba in 0..range.count {
            let (read, right) = (tag_of(lba), expected[(range.lba + lba) as usize]);
            if read != right {
                violated!("{seq:?} {chunk} block {lba}: {read} ({how}), expected {right}");
            }
        }
        self.statistics.chunks_compared += 1;
    }

    /// Compares a whole complete snapshot with the model, as its map shows it.
    pub fn compare_snapshot(&mut self, seq: SnapshotSeq, view: &SlotMap, when: &str) {
        trace!(self, "compare {seq:?} {when}");
        let store = self.store.clone();
        for chunk in (0..self.geometry.chunk_count()).map(ChunkIndex) {
            match view.get(chunk) {
                None => violated!("{seq:?} has no place for {chunk}, {when}"),
                Some(SlotRef::Zero) => self.compare_chunk(seq, chunk, |_| 0, when),
                Some(SlotRef::Slot { slot, crc32c }) => {
                    let tags = store.slot(slot);
                    self.compare_chunk(seq, chunk, |lba| tags[lba as usize], when);
                    let sum = self.chunk_sum(chunk, |lba| tags[lba as usize]);
                    if sum != crc32c {
                        violated!("{seq:?} {chunk}: checksum {crc32c:#x}, not {sum:#x}, {when}");
                    }
                }
            }
        }
        self.statistics.snapshots_compared += 1;
    }

    /// Compares all complete snapshots.
    pub fn compare_all(&mut self, when: &str) {
        let node = self.node.as_ref().expect("a process is running");
        let views: Vec<_> = node.views.complete().map(|(seq, map)| (seq, map.clone())).collect();
        for record in node.chain.records() {
            let shown = views.iter().any(|(seq, _)| *seq == record.seq);
            if (record.state == SnapshotState::Complete) != shown {
                violated!("{record:?} and its view disagree, {when}");
            }
        }
        for (seq, view) in views {
            if !self.model.snapshots.contains_key(&seq) {
                violated!("{seq:?} is complete and was never cut, {when}");
            }
            self.compare_snapshot(seq, &view, when);
        }
    }
}
