//! The chunk word: `epoch:32 | in flight:16 | flags:16`, moved only by compare-and-swap.
//!
//! The stored form is the logical word XOR a mask that is constant per gate, so that the zero page
//! means either "epoch 0, clean" or "epoch 0, dirty" (see [`super::Initial`]) without touching it.

use super::sync::{AtomicU64, Ordering};
use super::{Epoch, clock::Now};

/// Modified since the last cut.
pub(super) const DIRTY: u64 = 1 << 0;
/// A copy (stage, refresh or preserve) is running.
pub(super) const STAGING: u64 = 1 << 1;
/// A slot holds a copy, right except for the blocks in the map.
pub(super) const STAGED: u64 = 1 << 2;
/// The first writer of this word's epoch gave the chunk's slot to the snapshot on its way in. Gone
/// with the word's epoch.
pub(super) const ADOPTED: u64 = 1 << 3;
/// The old side's commands have left this pending chunk: the engine saw it idle after the cut.
/// Counts that show later are of commands that slept through the cut and will back out. Gone with
/// the word's epoch, so never on a chunk of the present one.
pub(super) const DRAINED: u64 = 1 << 4;
/// Flags that mean "a leaving command must say which blocks it changed".
pub(super) const COPY: u64 = STAGING | STAGED;

const COUNT_SHIFT: u32 = 16;
const EPOCH_SHIFT: u32 = 32;
/// One command in flight.
pub(super) const ONE: u64 = 1 << COUNT_SHIFT;
const COUNT_MASK: u64 = 0xffff << COUNT_SHIFT;
const EPOCH_MASK: u64 = 0xffff_ffff << EPOCH_SHIFT;

/// A logical chunk word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Word(pub u64);

impl Word {
    pub fn epoch(self) -> Epoch {
        Epoch((self.0 >> EPOCH_SHIFT) as u32)
    }

    pub fn in_flight(self) -> u32 {
        ((self.0 & COUNT_MASK) >> COUNT_SHIFT) as u32
    }

    pub fn is_idle(self) -> bool {
        self.0 & COUNT_MASK == 0
    }

    /// Of a pending chunk: nothing that belongs to the snapshot is in flight.
    pub fn is_drained(self) -> bool {
        self.is_idle() || self.has(DRAINED)
    }

    pub fn is_saturated(self) -> bool {
        self.0 & COUNT_MASK == COUNT_MASK
    }

    /// Whether any of `flags` is set.
    pub fn has(self, flags: u64) -> bool {
        self.0 & flags != 0
    }

    pub fn with(self, flags: u64) -> Self {
        Self(self.0 | flags)
    }

    pub fn without(self, flags: u64) -> Self {
        Self(self.0 & !flags)
    }

    /// Moved to `epoch`, without what was said of the word's own.
    pub fn at(self, epoch: Epoch) -> Self {
        let kept = self.without(EPOCH_MASK | ADOPTED | DRAINED);
        kept.with(u64::from(epoch.0) << EPOCH_SHIFT)
    }

    /// A pending chunk that has drained, noted. It moves to the epoch that the snapshot ended,
    /// whatever older one it was: a writer of that epoch that slept through the cut does not move
    /// it any more, and one that is still about to adopt for an earlier snapshot, a given-up one,
    /// finds it not older than its own.
    pub fn drained(self, now: Now) -> Self {
        self.at(Epoch(now.epoch.0 - 1)).with(DRAINED)
    }

    /// Required by the completing snapshot and not yet in its hands.
    pub fn is_pending(self, now: Now) -> bool {
        now.active && self.epoch() < now.epoch && self.has(DIRTY)
    }
}

/// An atomic chunk word together with the gate's storage mask.
#[derive(Clone, Copy)]
pub(super) struct WordRef<'a> {
    pub raw: &'a AtomicU64,
    pub mask: u64,
}

impl WordRef<'_> {
    pub fn load(self) -> Word {
        Word(self.raw.load(Ordering::Acquire) ^ self.mask)
    }

    /// Replaces `from` by `to`, or tells what is there. Acquires and releases: whoever takes a
    /// word over sees everything done before by those that gave it up.
    pub fn replace(self, from: Word, to: Word) -> Result<(), Word> {
        self.raw
            .compare_exchange_weak(
                from.0 ^ self.mask,
                to.0 ^ self.mask,
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .map(|_| ())
            .map_err(|found| Word(found ^ self.mask))
    }

    /// Takes back one count of a command that was never forwarded.
    pub fn count_down(self) {
        let before = self.raw.fetch_sub(ONE, Ordering::Release);
        assert!(before & COUNT_MASK != 0, "a count is taken back only by who made it");
    }
}
