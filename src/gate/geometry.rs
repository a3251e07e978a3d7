//! Addresses: device blocks (lba), chunks, and the 64 blocks of a chunk's map.
//!
//! Pure arithmetic. A *block* is 1/64 of a chunk (the glossary's word); what the device calls a
//! block is an *lba* here, so that the two cannot be confused.

use std::fmt;
use std::ops::Range;

/// Smallest chunk in bytes: below it the tables outgrow the benefit.
pub const CHUNK_BYTES_MIN: u32 = 64 << 10;
/// Largest chunk in bytes: above it a parked write would wait too long for a whole chunk.
pub const CHUNK_BYTES_MAX: u32 = 4 << 20;
/// Blocks in a chunk, one bit each in its map.
pub const BLOCKS_PER_CHUNK: u32 = u64::BITS;

/// Number of a chunk in its volume, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

impl ChunkIndex {
    /// For indexing tables.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk {}", self.0)
    }
}

/// A range of device blocks of a volume; `count` is never 0 in a command that meets the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LbaRange {
    /// First device block.
    pub lba: u64,
    /// Number of device blocks.
    pub count: u64,
}

impl LbaRange {
    /// The range of `count` device blocks from `lba`.
    pub const fn new(lba: u64, count: u64) -> Self {
        Self { lba, count }
    }
}

/// A set of a chunk's 64 blocks: bit `i` is the bytes `[i, i + 1) * chunk_bytes / 64`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BlockMap(pub u64);

impl BlockMap {
    /// No block.
    pub const EMPTY: Self = Self(0);
    /// Every block.
    pub const ALL: Self = Self(u64::MAX);

    /// Whether no block is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Blocks in the set, 0 to 64.
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Maximal runs of neighbouring blocks, in ascending order: one read and one write each.
    pub const fn runs(self) -> BlockRuns {
        BlockRuns { left: self.0 }
    }
}

impl fmt::Debug for BlockMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockMap({:#018x})", self.0)
    }
}

/// Neighbouring blocks of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// First block, 0 to 63.
    pub first: u32,
    /// Number of blocks, 1 to 64.
    pub count: u32,
}

/// Iterator of [`BlockMap::runs`].
#[derive(Clone, Debug)]
pub struct BlockRuns {
    left: u64,
}

impl Iterator for BlockRuns {
    type Item = BlockRun;

    fn next(&mut self) -> Option<BlockRun> {
        if self.left == 0 {
            return None;
        }
        let first = self.left.trailing_zeros();
        let count = (self.left >> first).trailing_ones();
        self.left &= !run_bits(first, count);
        Some(BlockRun { first, count })
    }
}

/// Bits `first..first + count`, for `count` in 1 to 64.
const fn run_bits(first: u32, count: u32) -> u64 {
    (u64::MAX >> (u64::BITS - count)) << first
}

/// Why a geometry is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Not a power of two from 64 KiB to 4 MiB.
    #[error("chunk size {0} bytes is not a power of two from 64 KiB to 4 MiB")]
    ChunkBytes(u32),
    /// Not a power of two from 512 bytes to 64 KiB.
    #[error("device block size {0} bytes is not a power of two from 512 bytes to 64 KiB")]
    LbaBytes(u32),
    /// Empty, or with 2^32 chunks and more, or with more than 2^64 bytes.
    #[error("a volume of {0} device blocks is empty or has too many chunks; use larger chunks")]
    VolumeLbas(u64),
}

/// Sizes of a volume. All divisions are shifts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    volume_lbas: u64,
    chunk_count: u32,
    /// log2 of the device block's bytes.
    lba_shift: u8,
    /// log2 of the device blocks in a chunk.
    chunk_shift: u8,
    /// log2 of the bytes in a map block.
    block_shift: u8,
}

impl Geometry {
    /// A volume of `volume_lbas` device blocks of `lba_bytes` each, in chunks of `chunk_bytes`.
    /// The last chunk may be partial.
    ///
    /// # Errors
    /// When a size is out of bounds or the volume has 2^32 chunks or more.
    pub fn new(chunk_bytes: u32, lba_bytes: u32, volume_lbas: u64) -> Result<Self, GeometryError> {
        let chunk_in_bounds = (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk_bytes);
        if !chunk_bytes.is_power_of_two() || !chunk_in_bounds {
            return Err(GeometryError::ChunkBytes(chunk_bytes));
        }
        if !lba_bytes.is_power_of_two() || !(512..=CHUNK_BYTES_MIN).contains(&lba_bytes) {
            return Err(GeometryError::LbaBytes(lba_bytes));
        }
        let chunk_shift = chunk_bytes.trailing_zeros() - lba_bytes.trailing_zeros();
        let chunk_count = volume_lbas.div_ceil(1 << chunk_shift);
        let bytes = volume_lbas.checked_mul(u64::from(lba_bytes));
        let (Ok(chunk_count @ 1..), Some(_)) = (u32::try_from(chunk_count), bytes) else {
            return Err(GeometryError::VolumeLbas(volume_lbas));
        };
        Ok(Self {
            volume_lbas,
            chunk_count,
            lba_shift: lba_bytes.trailing_zeros() as u8,
            chunk_shift: chunk_shift as u8,
            block_shift: (chunk_bytes / BLOCKS_PER_CHUNK).trailing_zeros() as u8,
        })
    }

    /// Bytes in a chunk.
    pub const fn chunk_bytes(&self) -> u32 {
        1 << (self.chunk_shift + self.lba_shift)
    }

    /// Bytes in a device block.
    pub const fn lba_bytes(&self) -> u32 {
        1 << self.lba_shift
    }

    /// Bytes in a map block (1/64 chunk).
    pub const fn block_bytes(&self) -> u32 {
        1 << self.block_shift
    }

    /// Device blocks in the volume.
    pub const fn volume_lbas(&self) -> u64 {
        self.volume_lbas
    }

    /// Device blocks in a whole chunk.
    pub const fn chunk_lbas(&self) -> u64 {
        1 << self.chunk_shift
    }

    /// Chunks in the volume; the last may be partial.
    pub const fn chunk_count(&self) -> u32 {
        self.chunk_count
    }

    /// Whether `range` is not empty and inside the volume. The gate's other methods rely on it.
    pub const fn contains(&self, range: LbaRange) -> bool {
        range.count > 0
            && range.lba < self.volume_lbas
            && range.count <= self.volume_lbas - range.lba
    }

    /// The chunk that `lba` lies in.
    pub const fn chunk_of(&self, lba: u64) -> ChunkIndex {
        ChunkIndex((lba >> self.chunk_shift) as u32)
    }

    /// Numbers of the chunks that `range` touches. `range` is inside the volume.
    pub const fn chunks(&self, range: LbaRange) -> Range<u32> {
        // The last chunk's number is below the count of chunks, which is a u32.
        self.chunk_of(range.lba).0..self.chunk_of(range.lba + (range.count - 1)).0 + 1
    }

    /// Blocks of `chunk` that `range` touches, rounded outwards.
    pub const fn blocks(&self, chunk: ChunkIndex, range: LbaRange) -> BlockMap {
        let start = (chunk.0 as u64) << self.chunk_shift;
        // Last rather than end: the end of the address space does not overflow.
        let range_last = range.lba + (range.count - 1);
        let chunk_last = start + (self.chunk_lbas() - 1);
        if range.count == 0 || range_last < start || range.lba > chunk_last {
            return BlockMap::EMPTY;
        }
        let first_lba = range.lba.saturating_sub(start);
        let last_lba = if range_last < chunk_last { range_last } else { chunk_last } - start;
        let first = (first_lba << self.lba_shift) >> self.block_shift;
        let last = (((last_lba + 1) << self.lba_shift) - 1) >> self.block_shift;
        BlockMap(run_bits(first as u32, (last - first) as u32 + 1))
    }

    /// Device blocks of `chunk`, fewer than [`Self::chunk_lbas`] in a partial last chunk.
    pub const fn chunk_range(&self, chunk: ChunkIndex) -> LbaRange {
        let lba = (chunk.0 as u64) << self.chunk_shift;
        let left = self.volume_lbas - lba;
        let whole = self.chunk_lbas();
        LbaRange { lba, count: if left < whole { left } else { whole } }
    }

    /// Blocks that `chunk` has: all 64, fewer in a partial last chunk.
    pub const fn full_map(&self, chunk: ChunkIndex) -> BlockMap {
        self.blocks(chunk, self.chunk_range(chunk))
    }

    /// Device blocks of `run` in `chunk`, rounded outwards to whole device blocks and clipped to
    /// the volume; `None` when nothing is left of it.
    pub const fn run_range(&self, chunk: ChunkIndex, run: BlockRun) -> Option<LbaRange> {
        let whole = self.chunk_range(chunk);
        let first = ((run.first as u64) << self.block_shift) >> self.lba_shift;
        let end_bytes = ((run.first + run.count) as u64) << self.block_shift;
        let end = end_bytes.div_ceil(1 << self.lba_shift);
        let end = if end < whole.count { end } else { whole.count };
        if first >= end {
            return None;
        }
        Some(LbaRange { lba: whole.lba + first, count: end - first })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry() -> impl Strategy<Value = Geometry> {
        (16u32..=22, 9u32..=16, 1u64..3000).prop_map(|(chunk, lba, lbas)| {
            Geometry::new(1 << chunk, 1 << lba, lbas).expect("sizes are in bounds")
        })
    }

    proptest! {
        /// Chunks and blocks of a range against the byte-by-byte definition.
        #[test]
        fn ranges_match_the_definition(g in geometry(), at in any::<u64>(), n in any::<u64>()) {
            let lba = at % g.volume_lbas();
            let range = LbaRange::new(lba, n % (g.volume_lbas() - lba) + 1);
            prop_assert!(g.contains(range));
            let bytes = |lba: u64| lba * u64::from(g.lba_bytes());
            let (from, to) = (bytes(range.lba), bytes(range.lba + range.count));
            let touched: Vec<u32> = g.chunks(range).collect();
            for chunk in 0..g.chunk_count() {
                let base = u64::from(chunk) * u64::from(g.chunk_bytes());
                let mut expected = 0u64;
                for block in 0..64 {
                    let start = base + block * u64::from(g.block_bytes());
                    let end = start + u64::from(g.block_bytes());
                    expected |= u64::from(start < to && from < end) << block;
                }
                prop_assert_eq!(g.blocks(ChunkIndex(chunk), range), BlockMap(expected));
                prop_assert_eq!(touched.contains(&chunk), expected != 0);
            }
        }

        /// The runs of a command's blocks, turned back into device blocks, cover the command and
        /// stay inside the chunk and the volume.
        #[test]
        fn runs_cover_the_range(g in geometry(), at in any::<u64>(), n in any::<u64>()) {
            let lba = at % g.volume_lbas();
            let range = LbaRange::new(lba, n % (g.volume_lbas() - lba) + 1);
            for chunk in g.chunks(range).map(ChunkIndex) {
                let own = g.chunk_range(chunk);
                let covered: Vec<LbaRange> = g.blocks(chunk, range).runs()
                    .filter_map(|run| g.run_range(chunk, run)).collect();
                for lba in own.lba..own.lba + own.count {
                    let wanted = (range.lba..range.lba + range.count).contains(&lba);
                    let has = covered.iter().any(|r| (r.lba..r.lba + r.count).contains(&lba));
                    prop_assert!(has || !wanted);
                }
                for r in covered {
                    prop_assert!(r.lba >= own.lba && r.lba + r.count <= own.lba + own.count);
                }
            }
        }

        #[test]
        fn runs_rebuild_the_map(bits in any::<u64>()) {
            let mut rebuilt = 0u64;
            let mut last_end = None;
            for run in BlockMap(bits).runs() {
                prop_assert!(last_end.is_none_or(|end| end < run.first), "runs are maximal");
                last_end = Some(run.first + run.count);
                rebuilt |= run_bits(run.first, run.count);
            }
            prop_assert_eq!(rebuilt, bits);
        }
    }

    #[test]
    fn the_last_chunk_may_be_partial() {
        let g = Geometry::new(256 << 10, 4096, 65).unwrap();
        assert_eq!(g.chunk_count(), 2);
        assert_eq!(g.full_map(ChunkIndex(0)), BlockMap::ALL);
        assert_eq!(g.full_map(ChunkIndex(1)), BlockMap(1));
        assert_eq!(g.chunk_range(ChunkIndex(1)), LbaRange::new(64, 1));
    }

    #[test]
    fn bad_sizes_are_refused() {
        assert_eq!(Geometry::new(100_000, 512, 1), Err(GeometryError::ChunkBytes(100_000)));
        assert_eq!(Geometry::new(8 << 20, 512, 1), Err(GeometryError::ChunkBytes(8 << 20)));
        assert_eq!(Geometry::new(1 << 16, 520, 1), Err(GeometryError::LbaBytes(520)));
        assert_eq!(Geometry::new(1 << 16, 512, 0), Err(GeometryError::VolumeLbas(0)));
        assert_eq!(Geometry::new(1 << 16, 512, 1 << 60), Err(GeometryError::VolumeLbas(1 << 60)));
        assert!(Geometry::new(256 << 10, 512, 1 << 35).is_ok(), "16 TiB");
    }
}
