//! The gate's atomics, in one place so that `--cfg loom` swaps them for the model checker's.
//!
//! Every access in this room is acquire/release. Where a store must be visible before a load of
//! something else, there is either a read-modify-write of one atomic (the clock) or, in the lanes,
//! a pair of barriers: free for commands, a system call for the engine. loom, which treats `SeqCst`
//! accesses as acquire/release but fences as what they are, gets a fence on both sides.

#[cfg(not(loom))]
use rustix::thread::MembarrierCommand;

#[cfg(loom)]
pub(super) use loom::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(not(loom))]
pub(super) use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

/// On the side that must cost nothing: keeps the compiler from moving loads above stores. The other
/// side's [`heavy_barrier`] makes the processor do the same.
#[inline]
pub(super) fn light_barrier() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
    #[cfg(not(loom))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
}

/// Whether this kernel has [`heavy_barrier`]; to be asked once before the first.
pub(super) fn has_heavy_barrier() -> bool {
    #[cfg(loom)]
    return true;
    #[cfg(not(loom))]
    rustix::thread::membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
}

/// A full barrier in every thread of the process (`membarrier(2)`): microseconds.
///
/// # Panics
/// Where [`has_heavy_barrier`] was not asked or said no.
pub(super) fn heavy_barrier() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
    #[cfg(not(loom))]
    rustix::thread::membarrier(MembarrierCommand::PrivateExpedited)
        .expect("this process is registered for it");
}

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
