//! The gate's atomics, in one place so that `--cfg loom` swaps them for the model checker's.
//!
//! Every ordering in this room is acquire/release. No rule leans on a total order over different
//! atomics (`SeqCst`): the only place where two of them must be ordered, the re-check of the cut,
//! goes through a single read-modify-write on the clock. That is also what lets loom, which treats
//! `SeqCst` accesses as acquire/release, check the real code.

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// A chunk's word and its block map, side by side. The system allocator aligns the table to 16
/// bytes, so that a pair never straddles a cache line.
pub(super) type Pair = [AtomicU64; 2];

/// `count` zeroed pairs, or `None` when memory is short. The pages are the kernel's zero page until
/// first touched: 64 Mi chunks reserve 1 GiB and occupy what their writers reach.
#[cfg(not(loom))]
pub(super) fn zeroed_pairs(count: usize) -> Option<Box<[Pair]>> {
    bytemuck::allocation::try_zeroed_slice_box(count).ok()
}

/// `count` zeroed words, lazily, as [`zeroed_pairs`].
#[cfg(not(loom))]
pub(super) fn zeroed_words(count: usize) -> Option<Box<[AtomicU64]>> {
    bytemuck::allocation::try_zeroed_slice_box(count).ok()
}

/// As above; loom's atomics are not plain words, so each is made by hand.
#[cfg(loom)]
pub(super) fn zeroed_pairs(count: usize) -> Option<Box<[Pair]>> {
    Some((0..count).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect())
}

/// As above; loom's atomics are not plain words, so each is made by hand.
#[cfg(loom)]
pub(super) fn zeroed_words(count: usize) -> Option<Box<[AtomicU64]>> {
    Some((0..count).map(|_| AtomicU64::new(0)).collect())
}
