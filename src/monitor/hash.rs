//! Hash tables by chunk number.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A table by chunk number, the same in each run.
pub(super) type ChunkMap<V> = HashMap<u32, V, BuildHasherDefault<ChunkHasher>>;

/// One multiplication, folded: chunk numbers are small and mostly consecutive, and the standard
/// hasher would take half the time of a tick to hash them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ChunkHasher(u64);

impl Hasher for ChunkHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        // 2^64 divided by the golden ratio: consecutive numbers end up far apart.
        let product =
            u128::from(self.0 ^ u64::from(number) ^ 0xa5a5_a5a5_0000_0000) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
