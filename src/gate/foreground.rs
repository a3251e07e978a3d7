//! The gate's concurrent side: modifying commands and snapshot readers, on any thread.

use super::clock::Now;
use super::sync::{Ordering, fence};
use super::word::{ADOPTED, COPY, DIRTY, DRAINED, ONE, STAGED, STAGING, Word};
use super::{ChunkIndex, Epoch, Gate, LbaRange, OperationNumber};

/// What [`Gate::enter`] says. Unless `Entered`, nothing is counted and nothing may be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Entry {
    /// Forward the command, and call [`Gate::leave`] with the same range when it has completed,
    /// well or not.
    Entered {
        /// The command's own number.
        operation: OperationNumber,
        /// The side of the cut it is on.
        epoch: Epoch,
    },
    /// `chunk` is pending: park the command, have the engine resolve the chunk, enter again.
    ///
    /// The chunk may be one that the engine did not find on its walk (rule 2 in the module's
    /// text); preserve it like any other. After [`Gate::finish_cut`] enter all parked commands
    /// again, whatever their chunk.
    Parked {
        /// The first pending chunk of the range; others may be pending too.
        chunk: ChunkIndex,
    },
    /// 65535 commands are in flight on `chunk`: enter again when some have left.
    Saturated {
        /// The chunk that takes no more.
        chunk: ChunkIndex,
    },
}

/// Where a reader of a snapshot finds a chunk that the snapshot's own map does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum ReadSource {
    /// On the master: read it there, then ask [`Gate::still_pending`] before using the data.
    Master,
    /// On the master once the commands in flight at the cut have landed: ask again soon.
    Draining,
    /// In its staged slot, which a writer has given to the snapshot on its way in; the engine may
    /// not have entered it in the snapshot's map yet.
    Adopted,
    /// Not pending: resolved meanwhile by the engine (look into the snapshot's map again), or never
    /// required by this snapshot (look into the older ones).
    NotPending,
}

/// Why a chunk does not let a command in.
enum Refusal {
    /// The chunk is already in a later epoch: the caller's is over.
    EpochOver,
    Pending,
    Saturated,
}

impl Gate {
    /// Lets a modifying command into all chunks of `range` or into none, counted on each. Any thread;
    /// never waits: it starts over only when a cut came in between. For what has no [`super::Lane`].
    ///
    /// # Panics
    /// When `range` is empty or not inside the volume.
    pub fn enter(&self, range: LbaRange) -> Entry {
        assert!(self.geometry.contains(range), "{range:?} is not in the volume");
        let chunks = self.geometry.chunks(range);
        'again: loop {
            let now = self.clock.now();
            for index in chunks.clone() {
                let chunk = ChunkIndex(index);
                let Err(refusal) = self.admit(chunk, now) else { continue };
                self.back_out(chunks.start..index);
                return match refusal {
                    Refusal::EpochOver => continue 'again,
                    Refusal::Pending => Entry::Parked { chunk },
                    Refusal::Saturated => Entry::Saturated { chunk },
                };
            }
            // Rule 1. Also for a command of one chunk: its count must be visible to the cut.
            if let Some(operation) = self.clock.take(now.epoch) {
                return Entry::Entered { operation, epoch: now.epoch };
            }
            self.back_out(chunks.clone());
        }
    }

    /// Counts one command in on `chunk` and makes it dirty in the epoch of `now`.
    fn admit(&self, chunk: ChunkIndex, now: Now) -> Result<(), Refusal> {
        let word = self.word(chunk);
        let mut seen = word.load();
        loop {
            if seen.is_saturated() {
                return Err(Refusal::Saturated);
            }
            let next = if seen.epoch() == now.epoch && seen.has(DIRTY) {
                seen
            } else {
                self.take_over(chunk, seen, now)?
            };
            match word.replace(seen, Word(next.0 + ONE)) {
                Ok(()) => return Ok(()),
                Err(found) => seen = found,
            }
        }
    }

    /// The word of a chunk that is to become dirty in the epoch of `now`, from what it is.
    #[cold]
    fn take_over(&self, chunk: ChunkIndex, seen: Word, now: Now) -> Result<Word, Refusal> {
        if seen.epoch() > now.epoch {
            return Err(Refusal::EpochOver);
        }
        let mut next = seen.at(now.epoch).with(DIRTY);
        if seen.is_pending(now) {
            // Adoption on the way in. The word was acquired after the clock, so the counts of all
            // commands of the old side are in it or were taken back, and with them their map bits
            // are visible; nobody adds any now. `replace` fails if the engine is quicker; if the
            // engine has copied meanwhile, the word is the same again only if the slot is right
            // (see `end_copy`).
            let adoptable = seen.is_drained()
                && seen.has(STAGED)
                && !seen.has(STAGING)
                && self.map(chunk).load(Ordering::Acquire) == 0;
            if !adoptable {
                return Err(Refusal::Pending);
            }
            next = next.without(STAGED).with(ADOPTED);
        }
        self.index.set(now.epoch, chunk); // Rule 5: before the word.
        Ok(next)
    }

    /// Takes back the counts of a command that was not forwarded. It changed nothing, so it maps
    /// no blocks.
    #[cold]
    fn back_out(&self, chunks: std::ops::Range<u32>) {
        for index in chunks {
            self.word(ChunkIndex(index)).count_down();
        }
    }

    /// Ends an entered command: it has landed, or failed with unknown effect. Call it after the
    /// device's completion and before acknowledging the command. Any thread.
    ///
    /// # Panics
    /// When no command is in flight on a chunk of `range`.
    pub fn leave(&self, range: LbaRange) {
        for index in self.geometry.chunks(range) {
            let chunk = ChunkIndex(index);
            let word = self.word(chunk);
            let mut seen = word.load();
            loop {
                assert!(!seen.is_idle(), "{chunk}: a command left that had not entered");
                if seen.has(COPY) {
                    // Rule 3: the bits before the count, and again if a copy began meanwhile.
                    self.map_blocks(chunk, range);
                }
                match word.replace(seen, Word(seen.0 - ONE)) {
                    Ok(()) => break,
                    Err(found) => seen = found,
                }
            }
        }
    }

    /// Not inline: it would cost registers in the path without a copy.
    #[inline(never)]
    fn map_blocks(&self, chunk: ChunkIndex, range: LbaRange) {
        let blocks = self.geometry.blocks(chunk, range);
        self.map(chunk).fetch_or(blocks.0, Ordering::AcqRel);
    }

    /// Where to read `chunk` for the snapshot that ended `old_epoch`, when its map does not have
    /// it. Any thread that has learnt of the snapshot from the engine, while it is completing.
    ///
    /// The engine enters a slot in the snapshot's map before [`Gate::try_adopt`] or
    /// [`Gate::resolve`], and keeps the staged slot findable until it has entered it.
    pub fn read_source(&self, chunk: ChunkIndex, old_epoch: Epoch) -> ReadSource {
        let word = self.word(chunk).load();
        if word.epoch() > old_epoch && word.has(ADOPTED) {
            ReadSource::Adopted
        } else if word.epoch() > old_epoch || !word.has(DIRTY) {
            ReadSource::NotPending
        } else if word.is_drained() && (word.has(COPY | DRAINED) || self.lanes.has_drained()) {
            // Acquired: what those that left have written is there to read.
            ReadSource::Master
        } else {
            ReadSource::Draining
        }
    }

    /// Whether data read from the master since [`ReadSource::Master`] is the snapshot's: `chunk`
    /// is still unresolved, so no newer command had been forwarded when the read completed.
    /// If not, drop the data and ask [`Self::read_source`] again. Any thread.
    pub fn still_pending(&self, chunk: ChunkIndex, old_epoch: Epoch) -> bool {
        // The data's loads (or the device's completion) before the word's load: if the data is of
        // a command that came after the resolution, the resolution is seen.
        fence(Ordering::Acquire);
        let word = self.word(chunk).load();
        word.epoch() <= old_epoch && word.has(DIRTY)
    }
}
