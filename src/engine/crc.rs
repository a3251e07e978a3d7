//! CRC-32C of blocks and chunks.
//!
//! A chunk's checksum is the CRC-32C of its bytes. It is combined from the checksums of its blocks,
//! so that a refresh of some blocks needs no second look at the others: appending `n` zero bytes
//! to a message is a linear operator on its checksum, and
//! `crc(a ++ b) = shift(len(b), crc(a)) ^ crc(b)`.

use super::records::{BLOCKS_PER_CHUNK, BlockCrcs};

/// The Castagnoli polynomial, bit-reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// CRC-32C of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// CRC-32C of a message that begins with one of CRC-32C `crc` and goes on with `bytes`; 0 is that of
/// none.
#[inline]
pub fn append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// `a * b` modulo the polynomial; bit 31 is the coefficient of x^0.
fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 1u32 << 31;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 != 0 { (b >> 1) ^ POLYNOMIAL } else { b >> 1 };
        bit >>= 1;
    }
    product
}

/// x^(8 * `length`) modulo the polynomial: the operator that appends `length` zero bytes.
fn zeros_operator(mut length: u64) -> u32 {
    let mut operator = 1u32 << 31;
    // x^8: one byte.
    let mut square = 1u32 << 23;
    while length != 0 {
        if length & 1 != 0 {
            operator = multiply(operator, square);
        }
        square = multiply(square, square);
        length >>= 1;
    }
    operator
}

/// CRC-32C of `a ++ b` from the checksums of both and the length of `b` in bytes.
///
/// Any length; some hundred nanoseconds. [`CrcCombiner`] is the fast way for one block length.
pub fn combine(crc_a: u32, crc_b: u32, length_b: u64) -> u32 {
    multiply(zeros_operator(length_b), crc_a) ^ crc_b
}

/// Combines checksums of blocks of one length into their chunk's checksum.
#[derive(Clone)]
pub struct CrcCombiner {
    block_bytes: u32,
    /// `tables[i][v]`: effect of byte `i` of a checksum having value `v`, after the shift.
    tables: Box<[[u32; 256]; 4]>,
}

impl std::fmt::Debug for CrcCombiner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CrcCombiner")
            .field("block_bytes", &self.block_bytes)
            .finish_non_exhaustive()
    }
}

impl CrcCombiner {
    /// A combiner for blocks of `block_bytes` bytes. Takes some ten microseconds: make one per
    /// volume.
    pub fn new(block_bytes: u32) -> Self {
        assert!(block_bytes > 0, "blocks are not empty");
        let operator = zeros_operator(u64::from(block_bytes));
        let mut tables = Box::new([[0; 256]; 4]);
        for (index, table) in tables.iter_mut().enumerate() {
            for (value, entry) in (0u32..).zip(table.iter_mut()) {
                *entry = multiply(operator, value << (8 * index));
            }
        }
        CrcCombiner { block_bytes, tables }
    }

    /// Block length in bytes.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    #[inline]
    fn shift(&self, crc: u32) -> u32 {
        let [b0, b1, b2, b3] = crc.to_le_bytes();
        self.tables[0][usize::from(b0)]
            ^ self.tables[1][usize::from(b1)]
            ^ self.tables[2][usize::from(b2)]
            ^ self.tables[3][usize::from(b3)]
    }

    /// The checksum of the first `valid_bytes` bytes of a chunk from its blocks' checksums.
    ///
    /// In the last chunk of a volume `valid_bytes` is less than a chunk: the last block that holds
    /// valid bytes carries the checksum of those only, later blocks are not looked at.
    pub fn combine(&self, block_crcs: &BlockCrcs, valid_bytes: u32) -> u32 {
        let full_blocks = (valid_bytes / self.block_bytes) as usize;
        let tail_bytes = valid_bytes % self.block_bytes;
        assert!(
            full_blocks + usize::from(tail_bytes != 0) <= BLOCKS_PER_CHUNK,
            "a chunk has {BLOCKS_PER_CHUNK} blocks of {} bytes, not {valid_bytes} bytes",
            self.block_bytes
        );
        let mut crc = 0;
        for block_crc in &block_crcs[..full_blocks] {
            crc = self.shift(crc) ^ block_crc;
        }
        if tail_bytes != 0 {
            crc = combine(crc, block_crcs[full_blocks], u64::from(tail_bytes));
        }
        crc
    }

    /// Checksums of the blocks of `chunk`, which may be shorter than a chunk; blocks behind its
    /// end get 0.
    pub fn block_crcs(&self, chunk: &[u8]) -> Box<BlockCrcs> {
        let mut crcs = Box::new([0; BLOCKS_PER_CHUNK]);
        let blocks = chunk.chunks(self.block_bytes as usize);
        assert!(blocks.len() <= BLOCKS_PER_CHUNK, "longer than a chunk");
        for (block, crc) in blocks.zip(crcs.iter_mut()) {
            *crc = crc32c(block);
        }
        crcs
    }
}

/// Whether all of `bytes` are zero.
#[inline]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Lines are folded without a branch inside, which the compiler turns into vector code; a
    // branch per line ends early on ordinary data.
    const LINE_BYTES: usize = 128;
    let mut lines = bytes.chunks_exact(LINE_BYTES);
    lines.by_ref().all(|line| line.iter().fold(0, |folded, byte| folded | byte) == 0)
        && lines.remainder().iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_answer() {
        // RFC 3720 B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn combines_like_bytes_for_every_block_length_and_tail() {
        for block_bytes in [512u32, 1024, 4096, 65536] {
            let combiner = CrcCombiner::new(block_bytes);
            let chunk: Vec<u8> = (0..block_bytes * 64)
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
                .collect();
            for valid in [0, 1, 511, 512, block_bytes - 1, block_bytes, block_bytes * 17 + 512]
                .into_iter()
                .chain([block_bytes * 64 - 1, block_bytes * 64])
            {
                let bytes = &chunk[..valid as usize];
                let crcs = combiner.block_crcs(bytes);
                assert_eq!(combiner.combine(&crcs, valid), crc32c(bytes), "{block_bytes} {valid}");
            }
        }
    }

    #[test]
    fn zero_is_told_from_one_bit_anywhere() {
        for length in [0usize, 1, 127, 128, 129, 4096, 4097] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for index in 0..length {
                bytes[index] = 0x10;
                assert!(!is_zero(&bytes));
                bytes[index] = 0;
            }
        }
    }

    proptest! {
        #[test]
        fn combine_is_concatenation(
            a in prop::collection::vec(any::<u8>(), 0..200),
            b in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let both: Vec<u8> = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(combine(crc32c(&a), crc32c(&b), b.len() as u64), crc32c(&both));
            prop_assert_eq!(append(append(0, &a), &b), crc32c(&both));
        }
    }
}
