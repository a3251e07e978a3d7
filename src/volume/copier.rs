//! Copies between master and store, on the app thread.

use std::cell::RefCell;

use crate::engine::crc::{crc32c, is_zero};
use crate::engine::events::{Copied, CopyJob};
use crate::engine::records::{BLOCKS_PER_CHUNK, BlockCrcs, SlotIndex, SlotRef};
use crate::gate::{ChunkIndex, Geometry};
use crate::spdk::bdev::{IoChannel, Part};
use crate::spdk::dma::DmaBuf;

/// Buffers kept for the next copy; more are given back at once.
const SPARE_BUFFERS_MAX: usize = 24;

/// Alignment of copy buffers, for devices that want pages.
const BUFFER_ALIGN: usize = 4096;

/// DMA buffers of one chunk each.
#[derive(Default)]
pub struct BufferPool(RefCell<Vec<DmaBuf>>);

impl BufferPool {
    /// A buffer of `len` bytes with undefined content.
    ///
    /// # Errors
    /// No hugepage memory left.
    pub fn take(&self, len: usize) -> Result<DmaBuf, String> {
        let mut spare = self.0.borrow_mut();
        if let Some(at) = spare.iter().position(|buf| buf.len() == len) {
            return Ok(spare.swap_remove(at));
        }
        DmaBuf::zeroed(len, BUFFER_ALIGN)
            .map_err(|error| format!("no {len} bytes of DMA memory for a copy: {error}"))
    }

    /// Gives a buffer back.
    pub fn give(&self, buf: DmaBuf) {
        let mut spare = self.0.borrow_mut();
        if spare.len() < SPARE_BUFFERS_MAX {
            spare.push(buf);
        }
    }
}

/// Where slots are in a store.
#[derive(Clone, Copy, Debug)]
pub struct SlotLayout {
    /// Where slot 0 begins, in blocks of the store.
    pub offset_blocks: u64,
    /// Blocks per slot.
    pub slot_blocks: u64,
}

impl SlotLayout {
    /// Where in the store block `within` of a slot is.
    pub fn block_at(self, slot: SlotIndex, within: u64) -> u64 {
        self.offset_blocks + u64::from(slot.0) * self.slot_blocks + within
    }
}

/// What a copy needs besides its job.
pub struct Copier<'a> {
    /// Sizes of the volume.
    pub geometry: &'a Geometry,
    /// Where to read from.
    pub master: &'a IoChannel,
    /// Where to write to.
    pub store: &'a IoChannel,
    /// Where the slots are.
    pub slots: SlotLayout,
    /// Buffers.
    pub pool: &'a BufferPool,
}

impl Copier<'_> {
    /// Does a copy. `compare` is where the newest complete snapshot has the chunk, for a job that
    /// asks for it.
    ///
    /// # Errors
    /// What failed, naming the side; the slot's content is undefined then.
    pub async fn copy(&self, job: CopyJob, compare: Option<SlotRef>) -> Result<Copied, String> {
        let buf = self.pool.take(self.geometry.chunk_bytes() as usize)?;
        let mut spare = None;
        let (buf, result) = self.copy_through(buf, &mut spare, job, compare).await;
        self.pool.give(buf);
        if let Some(buf) = spare {
            self.pool.give(buf);
        }
        result
    }

    async fn copy_through(
        &self,
        buf: DmaBuf,
        spare: &mut Option<DmaBuf>,
        job: CopyJob,
        compare: Option<SlotRef>,
    ) -> (DmaBuf, Result<Copied, String>) {
        let parts = self.parts(job.chunk, job);
        let (buf, read) = self.master.read_parts(buf, &parts).await;
        if let Err(error) = read {
            return (buf, Err(format!("reading the master: {error}")));
        }
        let whole = job.blocks == self.geometry.full_map(job.chunk);
        let chunk_bytes = self.chunk_bytes(job.chunk);
        if whole && is_zero(&buf[..chunk_bytes]) {
            let unchanged = job.compare && compare == Some(SlotRef::Zero);
            return (buf, Ok(if unchanged { Copied::Unchanged } else { Copied::Zero }));
        }
        if let (true, Some(SlotRef::Slot { slot, crc32c: expected })) = (job.compare, compare)
            && crc32c(&buf[..chunk_bytes]) == expected
        {
            // Equal checksums are a strong hint; the bytes decide.
            match self.slot_equals(slot, job.chunk, &buf[..chunk_bytes], spare).await {
                Ok(true) => return (buf, Ok(Copied::Unchanged)),
                Ok(false) => {}
                Err(error) => return (buf, Err(error)),
            }
        }
        let block_crcs = self.block_crcs(job, &buf[..chunk_bytes]);
        let chunk_lba = self.geometry.chunk_range(job.chunk).lba;
        let to_slot: Vec<Part> = parts
            .iter()
            .map(|part| Part {
                offset_blocks: self.slots.block_at(job.slot, part.offset_blocks - chunk_lba),
                ..*part
            })
            .collect();
        let (buf, written) = self.store.write_parts(buf, &to_slot).await;
        let result = match written {
            Ok(()) => Ok(Copied::Written { block_crcs }),
            Err(error) => Err(format!("writing to the store: {error}")),
        };
        (buf, result)
    }

    /// Whether the master's chunk has the content that a snapshot map says.
    ///
    /// # Errors
    /// The master cannot be read.
    pub async fn master_holds(&self, chunk: ChunkIndex, expected: SlotRef) -> Result<bool, String> {
        let buf = self.pool.take(self.geometry.chunk_bytes() as usize)?;
        let range = self.geometry.chunk_range(chunk);
        let (buf, read) = self.master.read(buf, range.lba, range.count).await;
        let bytes = &buf[..self.chunk_bytes(chunk)];
        let holds = match expected {
            SlotRef::Zero => is_zero(bytes),
            SlotRef::Slot { crc32c: expected, .. } => crc32c(bytes) == expected,
        };
        self.pool.give(buf);
        read.map(|()| holds).map_err(|error| format!("reading the master: {error}"))
    }

    /// Copies the chunk to a slot that is to hold bytes of this checksum, if the master has them and
    /// they are `unchanged` once they are read.
    ///
    /// # Errors
    /// What failed, naming the side.
    pub async fn rewrite(
        &self,
        chunk: ChunkIndex,
        slot: SlotIndex,
        crc32c_expected: u32,
        unchanged: impl Fn() -> bool,
    ) -> Result<bool, String> {
        let buf = self.pool.take(self.geometry.chunk_bytes() as usize)?;
        let range = self.geometry.chunk_range(chunk);
        let (buf, read) = self.master.read(buf, range.lba, range.count).await;
        let same = read.is_ok()
            && crc32c(&buf[..self.chunk_bytes(chunk)]) == crc32c_expected
            && unchanged();
        let (buf, written) = if same {
            self.store.write(buf, self.slots.block_at(slot, 0), range.count).await
        } else {
            (buf, Ok(()))
        };
        self.pool.give(buf);
        read.map_err(|error| format!("reading the master: {error}"))?;
        written.map_err(|error| format!("writing to the store: {error}"))?;
        Ok(same)
    }

    fn chunk_bytes(&self, chunk: ChunkIndex) -> usize {
        (self.geometry.chunk_range(chunk).count * u64::from(self.geometry.lba_bytes())) as usize
    }

    fn parts(&self, chunk: ChunkIndex, job: CopyJob) -> Vec<Part> {
        let chunk_lba = self.geometry.chunk_range(chunk).lba;
        let lba_bytes = u64::from(self.geometry.lba_bytes());
        job.blocks
            .runs()
            .filter_map(|run| self.geometry.run_range(chunk, run))
            .map(|range| Part {
                buf_offset: ((range.lba - chunk_lba) * lba_bytes) as usize,
                offset_blocks: range.lba,
                num_blocks: range.count,
            })
            .collect()
    }

    fn block_crcs(&self, job: CopyJob, chunk: &[u8]) -> Box<BlockCrcs> {
        let mut crcs = Box::new([0; BLOCKS_PER_CHUNK]);
        let blocks = chunk.chunks(self.geometry.block_bytes() as usize);
        for (index, (block, crc)) in blocks.zip(crcs.iter_mut()).enumerate() {
            if job.blocks.0 >> index & 1 == 1 {
                *crc = crc32c(block);
            }
        }
        crcs
    }

    async fn slot_equals(
        &self,
        slot: SlotIndex,
        chunk: ChunkIndex,
        bytes: &[u8],
        spare: &mut Option<DmaBuf>,
    ) -> Result<bool, String> {
        let buf = match spare.take() {
            Some(buf) => buf,
            None => self.pool.take(self.geometry.chunk_bytes() as usize)?,
        };
        let blocks = self.geometry.chunk_range(chunk).count;
        let (buf, read) = self.store.read(buf, self.slots.block_at(slot, 0), blocks).await;
        let equal = read.is_ok() && buf[..bytes.len()] == *bytes;
        *spare = Some(buf);
        match read {
            Ok(()) => Ok(equal),
            Err(error) => Err(format!("reading the store: {error}")),
        }
    }
}
