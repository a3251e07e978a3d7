//! The dirty index: one bit per chunk and epoch parity, so that the walk after a cut reads
//! 8 MiB for 64 Mi chunks instead of 1 GiB, in slices, skipping zero words.
//!
//! A bit is set *before* the chunk word turns dirty in its epoch: whoever finds the chunk dirty may
//! rely on the bit being there. So bits may be there in vain (the word's change failed, or the
//! command backed out); the word has the last say and the walk asks it. A bit set in vain by a
//! command that slept through a cut may even show in the index of a later epoch of the same parity.

use super::sync::{AtomicU64, Ordering, zeroed_words};
use super::{ChunkIndex, Epoch};

/// A position in the index of one epoch, for walking it in bounded slices.
#[derive(Clone, Debug)]
pub struct DirtyWalk {
    pub(super) epoch: Epoch,
    next: usize,
}

impl DirtyWalk {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self { epoch, next: 0 }
    }

    /// The epoch whose dirty chunks are walked.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

pub(super) struct DirtyIndex {
    by_parity: [Box<[AtomicU64]>; 2],
}

impl DirtyIndex {
    pub fn new(chunk_count: u32) -> Option<Self> {
        let words = chunk_count.div_ceil(u64::BITS) as usize;
        Some(Self { by_parity: [zeroed_words(words)?, zeroed_words(words)?] })
    }

    fn of(&self, epoch: Epoch) -> &[AtomicU64] {
        &self.by_parity[(epoch.0 & 1) as usize]
    }

    /// Marks all `chunk_count` chunks, before anyone else sees the index.
    pub fn fill(&self, epoch: Epoch, chunk_count: u32) {
        fill(self.of(epoch), chunk_count);
    }

    /// Marks `chunk` in `epoch`. The look first saves the read-modify-write in the common case;
    /// it cannot be fooled by a bit of the last epoch of this parity, whose walk ended before the
    /// cut that began this one.
    pub fn set(&self, epoch: Epoch, chunk: ChunkIndex) {
        let word = &self.of(epoch)[chunk.as_usize() / 64];
        let bit = 1 << (chunk.0 % 64);
        if word.load(Ordering::Acquire) & bit == 0 {
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }

    pub fn has(&self, epoch: Epoch, chunk: ChunkIndex) -> bool {
        let word = &self.of(epoch)[chunk.as_usize() / 64];
        word.load(Ordering::Acquire) >> (chunk.0 % 64) & 1 == 1
    }

    /// Marked chunks of `epoch`.
    pub fn count(&self, epoch: Epoch) -> u64 {
        self.of(epoch).iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// The next `words_max` words of the walk, `(position, word)`, with the zero ones left out.
    pub fn slice<'a>(
        &'a self,
        walk: &mut DirtyWalk,
        words_max: usize,
    ) -> impl Iterator<Item = (usize, &'a AtomicU64)> + use<'a> {
        let words = self.of(walk.epoch);
        let start = walk.next;
        let end = words.len().min(start.saturating_add(words_max));
        walk.next = end;
        let slice = words[start..end].iter().enumerate();
        slice
            .filter(|(_, word)| word.load(Ordering::Acquire) != 0)
            .map(move |(offset, word)| (start + offset, word))
    }

    /// Whether the walk is over.
    pub fn is_over(&self, walk: &DirtyWalk) -> bool {
        walk.next == self.of(walk.epoch).len()
    }

    /// Adds `bits` to the word at `position` of `epoch`.
    pub fn add(&self, epoch: Epoch, position: usize, bits: u64) {
        self.of(epoch)[position].fetch_or(bits, Ordering::AcqRel);
    }
}

/// Sets the bits of `chunk_count` chunks.
pub(super) fn fill(words: &[AtomicU64], chunk_count: u32) {
    for (word, left) in words.iter().zip((1..=chunk_count).rev().step_by(64)) {
        let bits = u64::MAX >> (u64::BITS - left.min(u64::BITS));
        word.store(bits, Ordering::Relaxed);
    }
}

/// Chunks of the set bits of an index word.
pub(super) fn chunks_of(position: usize, mut bits: u64) -> impl Iterator<Item = ChunkIndex> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let bit = bits.trailing_zeros();
        bits &= bits - 1;
        Some(ChunkIndex(position as u32 * 64 + bit))
    })
}
