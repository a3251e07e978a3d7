//! Operation numbers and the cut, in one atomic.
//!
//! `clock = operation:56 | epoch modulo 128:7 | active:1`. Taking an operation number is one
//! `fetch_add`, and the same instruction tells which side of the cut the command is on. A cut is
//! one `fetch_add` too. So operation numbers and cuts have one total order: a snapshot contains
//! exactly the commands whose operation number is below its own, and there is no window in which
//! a command has a number but no side. (With two atomics, a new-epoch command could draw a number
//! below the cut's.)
//!
//! 56 bits last 228 years at ten million commands a second. The full epoch is kept beside and
//! lags the clock by at most one while `cut` runs; readers complete it from the clock's 7 bits.

use super::sync::{AtomicU32, AtomicU64, Ordering};
use super::{Epoch, OperationNumber};

const ACTIVE: u64 = 1;
const EPOCH_SHIFT: u32 = 1;
const EPOCH_LOW: u32 = 0x7f;
const OPERATION_SHIFT: u32 = 8;
const ONE: u64 = 1 << OPERATION_SHIFT;
const LOW_MASK: u64 = ONE - 1;
const _: () = assert!(OperationNumber::MAX.0 == u64::MAX >> OPERATION_SHIFT);

/// Where the volume stands: the epoch that commands enter now, and whether the snapshot that was
/// cut when it began is still completing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Now {
    pub epoch: Epoch,
    pub active: bool,
}

/// Alone on its pair of cache lines (adjacent-line prefetch): every writer of the volume adds to
/// it, and nothing else should suffer from that.
#[repr(align(128))]
pub(super) struct Clock {
    clock: AtomicU64,
    epoch: AtomicU32,
}

/// The 7 bits of `clock` that tell how far its epoch is ahead of `epoch`, modulo 128.
fn ahead(clock: u64, epoch: u32) -> u32 {
    ((clock >> EPOCH_SHIFT) as u32).wrapping_sub(epoch) & EPOCH_LOW
}

impl Clock {
    pub fn new(next: OperationNumber) -> Self {
        assert!(next.0 <= OperationNumber::MAX.0, "operation number {} exceeds 56 bits", next.0);
        Self {
            clock: AtomicU64::new(next.0 << OPERATION_SHIFT | 1 << EPOCH_SHIFT),
            epoch: AtomicU32::new(1),
        }
    }

    /// The present epoch. Loading the clock first bounds the lag: an acquired clock of epoch E
    /// makes at least E - 1 visible beside it. If cuts came in between, `epoch` is ahead of the
    /// clock value read and the difference shows as 126 and less; read again.
    pub fn now(&self) -> Now {
        loop {
            let clock = self.clock.load(Ordering::Acquire);
            let epoch = self.epoch.load(Ordering::Acquire);
            let ahead = ahead(clock, epoch);
            if ahead <= 1 {
                return Now { epoch: Epoch(epoch + ahead), active: clock & ACTIVE != 0 };
            }
        }
    }

    /// Draws the operation number of a command that has counted itself in on all its chunks for
    /// `epoch`, or `None` if the epoch has passed. This is the instant at which a command enters.
    ///
    /// Release: a cut ordered after it sees the command's counts, dirty flags and index bits.
    /// Acquire: ordered after a cut, it sees the cut and is refused.
    pub fn take(&self, epoch: Epoch) -> Option<OperationNumber> {
        let clock = self.clock.fetch_add(ONE, Ordering::AcqRel);
        // The second test excludes 128 cuts since `epoch` was read; same cache line, no cost.
        let beside = self.epoch.load(Ordering::Relaxed);
        let same = ahead(clock, epoch.0) == 0 && epoch.0.wrapping_sub(beside) <= 1;
        same.then_some(OperationNumber(clock >> OPERATION_SHIFT))
    }

    /// The number that the next command will draw.
    pub fn peek(&self) -> OperationNumber {
        OperationNumber(self.clock.load(Ordering::Acquire) >> OPERATION_SHIFT)
    }

    /// Ends `old`, begins the next epoch as active, and draws the cut's own number. One thread.
    pub fn cut(&self, old: Epoch) -> OperationNumber {
        let low = |epoch: u32| u64::from(epoch & EPOCH_LOW) << EPOCH_SHIFT;
        // Only this thread changes the low bits, so that their change is a known addend.
        let add = ONE + (low(old.0 + 1) | ACTIVE) - low(old.0);
        let clock = self.clock.fetch_add(add, Ordering::AcqRel);
        debug_assert_eq!(clock & LOW_MASK, low(old.0), "cut without finishing the last one");
        self.epoch.store(old.0 + 1, Ordering::Release);
        OperationNumber(clock >> OPERATION_SHIFT)
    }

    /// The snapshot needs nothing of the master any more, or is given up.
    pub fn finish(&self) {
        self.clock.fetch_and(!ACTIVE, Ordering::AcqRel);
    }
}
