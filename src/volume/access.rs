//! Access records: what the monitor learns of each command, at the price of four plain stores.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use crossbeam::utils::CachePadded;

use crate::gate::LbaRange;

/// Records per channel. At 500,000 commands a second and a drain every millisecond a tenth of
/// this is used; the rest is for a late drain. 4096 records of 24 bytes are 96 KiB a channel.
pub const RING_RECORDS: usize = 4096;

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// Read.
    Read,
    /// Write, write zeroes, unmap, copy or compare-and-write.
    Modify,
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord {
    /// First block.
    pub lba: u64,
    /// Blocks; longer commands are recorded as `u32::MAX`.
    pub blocks: u32,
    /// What it did.
    pub kind: AccessKind,
    /// When it came, in ticks of [`crate::spdk::clock`].
    pub ticks: u64,
}

/// Kinds of commands that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum CommandKind {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Write zeroes.
    WriteZeroes,
    /// Unmap.
    Unmap,
    /// Flush.
    Flush,
    /// Reset.
    Reset,
    /// Compare and compare-and-write.
    Compare,
    /// Any other.
    Other,
}

const COMMAND_KINDS: usize = 8;

/// Commands of a volume or of one of its channels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commands {
    /// By [`CommandKind`].
    pub commands: [u64; COMMAND_KINDS],
    /// Blocks by [`CommandKind`].
    pub blocks: [u64; COMMAND_KINDS],
    /// Commands of any kind that ended with an error.
    pub failed: u64,
    /// Commands that were timed, a part of all.
    pub timed: u64,
    /// What these took, in ticks.
    pub timed_ticks: u64,
}

impl Commands {
    fn each(&mut self, other: &Commands, apply: fn(u64, u64) -> u64) {
        for (to, from) in self.commands.iter_mut().zip(other.commands) {
            *to = apply(*to, from);
        }
        for (to, from) in self.blocks.iter_mut().zip(other.blocks) {
            *to = apply(*to, from);
        }
        self.failed = apply(self.failed, other.failed);
        self.timed = apply(self.timed, other.timed);
        self.timed_ticks = apply(self.timed_ticks, other.timed_ticks);
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(mut self, earlier: &Commands) -> Self {
        self.each(earlier, u64::saturating_sub);
        self
    }
}

/// The ring of one channel: filled by its thread, drained by the app thread or the predictor's.
///
/// One thread fills it and one at a time drains it (see [`AccessRings::drain`]), so positions are
/// stored, never compared and swapped. They count on; a place is a position modulo the size.
pub struct AccessRing {
    records: Box<[[AtomicU64; 3]]>,
    filled: CachePadded<AtomicU64>,
    drained: CachePadded<AtomicU64>,
    lost: AtomicU64,
    commands: [AtomicU64; COMMAND_KINDS],
    blocks: [AtomicU64; COMMAND_KINDS],
    failed: AtomicU64,
    timed: AtomicU64,
    timed_ticks: AtomicU64,
}

/// Adds to a counter that only this thread writes: no bus lock needed.
#[inline]
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

impl AccessRing {
    fn new() -> Self {
        Self {
            records: bytemuck::allocation::zeroed_slice_box(RING_RECORDS),
            filled: CachePadded::default(),
            drained: CachePadded::default(),
            lost: AtomicU64::new(0),
            commands: Default::default(),
            blocks: Default::default(),
            failed: AtomicU64::new(0),
            timed: AtomicU64::new(0),
            timed_ticks: AtomicU64::new(0),
        }
    }

    /// Adds a record unless the ring is full. On the channel's thread.
    #[inline]
    fn push(&self, record: AccessRecord) -> bool {
        let filled = self.filled.load(Ordering::Relaxed);
        if filled - self.drained.load(Ordering::Acquire) == RING_RECORDS as u64 {
            return false;
        }
        let [lba, ticks, rest] = &self.records[filled as usize % RING_RECORDS];
        lba.store(record.lba, Ordering::Relaxed);
        ticks.store(record.ticks, Ordering::Relaxed);
        let modify = u64::from(record.kind == AccessKind::Modify);
        rest.store(u64::from(record.blocks) << 1 | modify, Ordering::Relaxed);
        self.filled.store(filled + 1, Ordering::Release);
        true
    }

    /// Takes what is in the ring now and says how much that was. On the draining thread.
    fn drain(&self, mut take: impl FnMut(AccessRecord)) -> u64 {
        let filled = self.filled.load(Ordering::Acquire);
        let drained = self.drained.load(Ordering::Relaxed);
        for position in drained..filled {
            let [lba, ticks, rest] = &self.records[position as usize % RING_RECORDS];
            let rest = rest.load(Ordering::Relaxed);
            take(AccessRecord {
                lba: lba.load(Ordering::Relaxed),
                blocks: (rest >> 1) as u32,
                kind: if rest & 1 == 1 { AccessKind::Modify } else { AccessKind::Read },
                ticks: ticks.load(Ordering::Relaxed),
            });
        }
        self.drained.store(filled, Ordering::Release);
        filled - drained
    }

    fn is_empty(&self) -> bool {
        self.filled.load(Ordering::Acquire) == self.drained.load(Ordering::Relaxed)
    }

    /// Counts a command. On the channel's thread.
    #[inline]
    pub fn count(&self, kind: CommandKind, blocks: u64) {
        add(&self.commands[kind as usize], 1);
        add(&self.blocks[kind as usize], blocks);
    }

    /// Counts a command that failed. On the channel's thread.
    #[inline]
    pub fn count_failure(&self) {
        add(&self.failed, 1);
    }

    /// Notes what a command took. On the channel's thread.
    #[inline]
    pub fn time(&self, ticks: u64) {
        add(&self.timed, 1);
        add(&self.timed_ticks, ticks);
    }

    fn commands(&self) -> Commands {
        let mut sum = Commands {
            failed: self.failed.load(Ordering::Relaxed),
            timed: self.timed.load(Ordering::Relaxed),
            timed_ticks: self.timed_ticks.load(Ordering::Relaxed),
            ..Commands::default()
        };
        for (to, from) in sum.commands.iter_mut().zip(&self.commands) {
            *to = from.load(Ordering::Relaxed);
        }
        for (to, from) in sum.blocks.iter_mut().zip(&self.blocks) {
            *to = from.load(Ordering::Relaxed);
        }
        sum
    }
}

/// What draining the rings found, besides the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Records lost since the last time.
    pub lost: u64,
    /// Most records in one ring, of [`RING_RECORDS`].
    pub most: u64,
}

/// All rings of a volume.
#[derive(Default)]
pub struct AccessRings {
    rings: Mutex<Vec<Arc<AccessRing>>>,
    /// Commands of channels that are closed.
    closed: Mutex<Commands>,
    /// Held by whoever drains.
    draining: Mutex<()>,
    recording: AtomicBool,
}

impl AccessRings {
    /// Switches recording on or off; rings are not even looked at while it is off.
    pub fn set_recording(&self, on: bool) {
        self.recording.store(on, Ordering::Relaxed);
    }

    /// A ring for a new channel.
    pub fn add(&self) -> Arc<AccessRing> {
        let ring = Arc::new(AccessRing::new());
        self.rings.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&ring));
        ring
    }

    /// Notes a command. Never waits: when the ring is full, the record is lost and counted.
    #[inline]
    pub fn record(&self, ring: &AccessRing, range: LbaRange, kind: AccessKind, ticks: u64) {
        if !self.recording.load(Ordering::Relaxed) {
            return;
        }
        let blocks = u32::try_from(range.count).unwrap_or(u32::MAX);
        if !ring.push(AccessRecord { lba: range.lba, blocks, kind, ticks }) {
            ring.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes what the rings hold. Rings of closed channels go once they are empty. Takes nothing
    /// while another thread drains.
    pub fn drain(&self, mut take: impl FnMut(AccessRecord)) -> Drained {
        let _draining = match self.draining.try_lock() {
            Ok(draining) => draining,
            Err(TryLockError::Poisoned(draining)) => draining.into_inner(),
            Err(TryLockError::WouldBlock) => return Drained::default(),
        };
        // Not under the lock of the list: a reactor that opens a channel must not wait for this.
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut found = Drained::default();
        let mut ended = false;
        for ring in rings {
            // What is in it now, not what is added meanwhile: a drain ends.
            found.most = found.most.max(ring.drain(&mut take));
            found.lost += ring.lost.swap(0, Ordering::Relaxed);
            ended |= Arc::strong_count(&ring) <= 2;
        }
        if ended {
            self.rings.lock().unwrap_or_else(PoisonError::into_inner).retain(|ring| {
                let open = Arc::strong_count(ring) > 1 || !ring.is_empty();
                if !open {
                    let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
                    closed.each(&ring.commands(), u64::wrapping_add);
                }
                open
            });
        }
        found
    }

    /// Commands of all channels, open and closed.
    pub fn commands(&self) -> Commands {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = *self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        for ring in rings.iter() {
            sum.each(&ring.commands(), u64::wrapping_add);
        }
        sum
    }
}
