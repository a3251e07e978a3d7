//! The gate's engine side: cut, walk, copies, adoption. One thread, the volume's.
//!
//! All of it is a load and a compare-and-swap or two, so the engine may call it in any number per
//! poll; what takes time (the walk) comes in slices.

use super::index::chunks_of;
use super::sync::Ordering;
use super::word::{ADOPTED, COPY, DIRTY, DRAINED, STAGED, STAGING};
use super::{BlockMap, ChunkIndex, DirtyWalk, Epoch, Gate, OperationNumber, Passage, Turn};

/// A cut that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutPoint {
    /// The snapshot contains the commands of this epoch and earlier.
    pub old_epoch: Epoch,
    /// Commands that enter from now on are of this epoch.
    pub new_epoch: Epoch,
    /// The snapshot contains exactly the commands numbered below this.
    pub operation: OperationNumber,
    /// The snapshot contains the commands that passed open chunks in this turn and earlier.
    pub old_turn: Turn,
}

impl CutPoint {
    /// Whether the snapshot contains the command that came in by `passage`.
    pub fn contains(&self, passage: Passage) -> bool {
        match passage {
            Passage::Open(turn) => turn <= self.old_turn,
            Passage::Counted(epoch) => epoch <= self.old_epoch,
        }
    }
}

/// Why a cut is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutRefused {
    /// The previous snapshot is completing; wait for [`Gate::finish_cut`].
    #[error("the previous snapshot is still completing")]
    Completing,
    /// The previous cut's dirty index has been neither taken nor carried over to its end.
    #[error("the previous snapshot's dirty chunks are still being walked")]
    WalkUnfinished,
    /// Commands from before the last three cuts, all given up, are still in flight.
    #[error("the master has not ended commands from before the last snapshots")]
    Draining,
    /// 2^32 cuts since the gate was created.
    #[error("no epochs left; unload and load the volume")]
    EpochsExhausted,
}

/// State of a chunk with regard to the snapshot that ended a given epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum ChunkState {
    /// Clean at the cut and since: older snapshots hold it, or its index bit was in vain.
    NotRequired,
    /// Of the new epoch: resolved by the engine before, or clean at the cut and written since.
    Resolved,
    /// Of the new epoch: its first writer gave the staged slot to the snapshot. Commit it.
    Adopted,
    /// Commands of the old epoch are in flight (or, for a moment, backing-out ones), perhaps with a
    /// copy that began before the cut: ask again.
    Draining,
    /// A copy is running, and no command: ask again after [`Gate::end_copy`].
    Staging,
    /// The staged slot is right: [`Gate::try_adopt`].
    Adoptable,
    /// Required, and its slot lacks `missing`: [`Gate::begin_copy`], then [`Gate::resolve`].
    Pending {
        /// Blocks to copy; all that the chunk has when it is not staged.
        missing: BlockMap,
    },
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum CopyEnd {
    /// The slot is right, unless commands now in flight turn it outdated as they leave.
    Valid,
    /// The slot lacks blocks: commands overlapped the copy, or a refresh failed before any cut.
    Outdated {
        /// Blocks to copy again.
        map: BlockMap,
    },
    /// The copy failed, and there was none before or the chunk is pending: the chunk is not staged
    /// (any more), the slot holds nothing of use.
    Lost,
}

/// A chunk's state at one instant, for statistics and `presnap_get_chunks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkView {
    /// Epoch of its last resolution or first modification; 0: not touched since load.
    pub epoch: Epoch,
    /// Modifying commands in flight that are counted on the chunk.
    pub in_flight: u32,
    /// Modified since the last cut, or pending.
    pub dirty: bool,
    /// A copy is running.
    pub staging: bool,
    /// A slot holds a copy, right except for `map`.
    pub staged: bool,
    /// Blocks that the slot lacks, when staged.
    pub map: BlockMap,
}

impl ChunkView {
    /// `ChunkMetadata.valid`: the copy would be adopted if the cut were now.
    pub fn valid(&self) -> bool {
        self.staged && !self.staging && self.in_flight == 0 && self.map.is_empty()
    }
}

impl Gate {
    /// Makes the cut: O(1), microseconds, never waits for commands. From here on pending chunks park their writers.
    ///
    /// # Errors
    /// When the previous snapshot is not finished, or its walk is not over.
    pub fn cut(&self) -> Result<CutPoint, CutRefused> {
        let now = self.clock.now();
        let old_epoch = now.epoch;
        if now.active {
            return Err(CutRefused::Completing);
        }
        // The walk of the previous epoch has emptied the index that the new one will use.
        if self.walked.load(Ordering::Relaxed) + 1 != old_epoch.0 {
            return Err(CutRefused::WalkUnfinished);
        }
        let new_epoch = Epoch(old_epoch.0.checked_add(1).ok_or(CutRefused::EpochsExhausted)?);
        if !self.lanes.can_end_turn() {
            return Err(CutRefused::Draining);
        }
        // In this order: see rule 3 in lane.rs.
        let old_turn = self.lanes.cut(new_epoch);
        let operation = self.clock.cut(old_epoch);
        self.lanes.has_cut();
        let operation = self.with_passed(operation);
        Ok(CutPoint { old_epoch, new_epoch, operation, old_turn })
    }

    /// Ends the completing snapshot, complete or given up: nothing parks any more. Enter all
    /// parked commands again afterwards.
    ///
    /// Complete: call it only when all required chunks are resolved. Given up: chunks that were
    /// still pending are simply dirty again and keep their staged copies; call [`Self::carry_over`]
    /// for the rest of the walk, and [`Self::mark_dirty`] for every chunk that the walk or a parked
    /// command had brought up already. A writer that was on its way in may still adopt a slot for
    /// the snapshot that is no more: the gate, not a table beside it, tells whether a chunk is
    /// staged ([`Self::view`]), and [`Self::begin_copy`] then takes all blocks.
    pub fn finish_cut(&self) {
        self.clock.finish();
    }

    /// A walk over the chunks that became dirty in `epoch`.
    pub fn dirty_walk(&self, epoch: Epoch) -> DirtyWalk {
        DirtyWalk::new(epoch)
    }

    /// Takes the next chunks of the old epoch's dirty index, after a cut, and says whether the
    /// walk is over. Reads at most `words_max` index words, so visits at most 64 times as many
    /// chunks; about a nanosecond per word when they are zero.
    ///
    /// The visited chunks include some that are not required ([`Self::classify`] tells). Every
    /// chunk is visited once: what is taken is no more in the index.
    ///
    /// # Panics
    /// When the walk's epoch is not over.
    pub fn take_dirty(
        &self,
        walk: &mut DirtyWalk,
        words_max: usize,
        mut visit: impl FnMut(ChunkIndex),
    ) -> bool {
        assert!(walk.epoch() < self.epoch(), "take_dirty of an epoch that is not over");
        for (position, word) in self.index.slice(walk, words_max) {
            self.lanes.forget(walk.epoch(), position);
            chunks_of(position, word.swap(0, Ordering::AcqRel)).for_each(&mut visit);
        }
        self.note_walked(walk)
    }

    /// For a given-up snapshot, after [`Self::finish_cut`]: puts the rest of the old epoch's index
    /// into the present one, `words_max` index words at a time, and says whether that was all.
    /// Does not touch the chunks' words: dirty and older is dirty while no cut is active.
    ///
    /// # Panics
    /// While the cut is active.
    pub fn carry_over(&self, walk: &mut DirtyWalk, words_max: usize) -> bool {
        let now = self.clock.now();
        assert!(!now.active, "carry_over before finish_cut");
        for (position, word) in self.index.slice(walk, words_max) {
            self.lanes.forget(walk.epoch(), position);
            self.index.add(now.epoch, position, word.swap(0, Ordering::AcqRel));
        }
        self.note_walked(walk)
    }

    fn note_walked(&self, walk: &DirtyWalk) -> bool {
        let over = self.index.is_over(walk);
        if over {
            self.walked.fetch_max(walk.epoch().0, Ordering::Relaxed);
        }
        over
    }

    /// Visits the dirty chunks of the present epoch without taking them, to persist them on a
    /// clean stop; says whether the walk is over. No cut is active then. Bounds as
    /// [`Self::take_dirty`].
    pub fn peek_dirty(
        &self,
        walk: &mut DirtyWalk,
        words_max: usize,
        mut visit: impl FnMut(ChunkIndex),
    ) -> bool {
        for (position, word) in self.index.slice(walk, words_max) {
            let bits = word.load(Ordering::Acquire);
            chunks_of(position, bits).filter(|&chunk| self.is_dirty(chunk)).for_each(&mut visit);
        }
        self.index.is_over(walk)
    }

    /// Makes `chunk` dirty in the present epoch: restored from the catalog, or the newest snapshot
    /// that held it was deleted or failed. Staged copies stay what they are. Says `false` and does
    /// nothing if the chunk is pending: it belongs to the completing snapshot.
    pub fn mark_dirty(&self, chunk: ChunkIndex) -> bool {
        let now = self.clock.now();
        let word = self.word(chunk);
        let mut seen = word.load();
        loop {
            if seen.is_pending(now) {
                return false;
            }
            if seen.epoch() == now.epoch && seen.has(DIRTY) {
                return true;
            }
            self.index.set(now.epoch, chunk);
            let next = if seen.epoch() < now.epoch { seen.at(now.epoch) } else { seen };
            match word.replace(seen, next.with(DIRTY)) {
                Ok(()) => return true,
                Err(found) => seen = found,
            }
        }
    }

    /// Where `chunk` stands for the snapshot that ended `old_epoch`. `Resolved`, `Adopted` and
    /// `NotRequired` are final for that snapshot; the others change.
    pub fn classify(&self, chunk: ChunkIndex, old_epoch: Epoch) -> ChunkState {
        let now = self.clock.now();
        let word = self.word(chunk);
        let mut seen = word.load();
        loop {
            if seen.epoch() > old_epoch {
                return if seen.has(ADOPTED) { ChunkState::Adopted } else { ChunkState::Resolved };
            }
            if !seen.has(DIRTY) {
                return ChunkState::NotRequired;
            }
            // Of commands that passed while it was open, the chunk knows nothing. It was closed for its
            // copy, if there is one.
            if !seen.is_drained() || (!seen.has(COPY | DRAINED) && !self.lanes.has_drained()) {
                return ChunkState::Draining;
            }
            // The cut was acquired, so all counts of the old side had been seen and are gone.
            let noted = seen.drained(now);
            if !seen.is_pending(now) || seen == noted {
                break;
            }
            match word.replace(seen, noted) {
                Ok(()) => break,
                Err(found) => seen = found,
            }
        }
        if seen.has(STAGING) {
            return ChunkState::Staging;
        }
        if !seen.has(STAGED) {
            return ChunkState::Pending { missing: self.geometry.full_map(chunk) };
        }
        // The map after the word: drained was acquired, so the bits of those that left are here.
        let missing = self.block_map(chunk);
        if missing.is_empty() { ChunkState::Adoptable } else { ChunkState::Pending { missing } }
    }

    /// Hands a pending chunk whose staged slot is right to the snapshot. `true`: the slot is the
    /// snapshot's now, by this call or by a writer that was quicker ([`ChunkState::Adopted`]).
    /// `false`: see [`Self::classify`] for why not. To (new epoch, clean), keeping the count.
    #[must_use]
    pub fn try_adopt(&self, chunk: ChunkIndex) -> bool {
        let now = self.clock.now();
        let word = self.word(chunk);
        let mut seen = word.load();
        loop {
            if now.active && seen.epoch() == now.epoch && seen.has(ADOPTED) {
                return true;
            }
            let right = seen.has(STAGED) && !seen.has(STAGING) && self.block_map(chunk).is_empty();
            if !seen.is_pending(now) || !seen.is_drained() || !right {
                return false;
            }
            match word.replace(seen, seen.at(now.epoch).without(DIRTY | COPY)) {
                Ok(()) => return true,
                Err(found) => seen = found,
            }
        }
    }

    /// Hands a pending chunk that was just preserved to the snapshot. After [`CopyEnd::Valid`] of a
    /// copy that began while the chunk was pending, this is `true`: by this call or, as for
    /// [`Self::try_adopt`], by a writer.
    #[must_use]
    pub fn resolve(&self, chunk: ChunkIndex) -> bool {
        self.try_adopt(chunk)
    }

    /// Begins a copy of `chunk` to its slot (stage, refresh, preserve) and takes the blocks to
    /// copy: the map's if it is staged (perhaps none), else all. Read the master only after this;
    /// end with [`Self::end_copy`], once, whatever becomes of the copy.
    ///
    /// `None`: nothing to copy (clean), a copy is running already, the chunk is pending and commands
    /// are in flight on it, or it is not pending and it is open, or was and the gate is not quiet
    /// ([`Self::close`], [`Self::is_quiet`]). Not after [`Self::classify`] said
    /// [`ChunkState::Pending`].
    pub fn begin_copy(&self, chunk: ChunkIndex) -> Option<BlockMap> {
        let now = self.clock.now();
        let word = self.word(chunk);
        let mut seen = word.load();
        let staged = loop {
            let pending = seen.is_pending(now);
            if !seen.has(DIRTY) || seen.has(STAGING) || (pending && !seen.is_drained()) {
                return None;
            }
            let unseen = !seen.has(STAGED | DRAINED)
                && if pending {
                    !self.lanes.has_drained()
                } else {
                    self.is_open(chunk) || !self.is_quiet()
                };
            if unseen {
                return None;
            }
            let mut next = seen;
            if pending {
                next = seen.drained(now);
            } else if seen.epoch() < now.epoch {
                // Dirty since before a cut that is over: dirty in this epoch. Its bit may be
                // missing (rule 2); what is staged must be walked.
                self.index.set(now.epoch, chunk);
                next = next.at(now.epoch);
            }
            let next = next.with(STAGING);
            match word.replace(seen, next) {
                Ok(()) => break seen.has(STAGED),
                Err(found) => seen = found,
            }
        };
        // After the flag: a command that leaves between the two maps its blocks in vain, since
        // it had landed before the copy reads.
        let taken = BlockMap(self.map(chunk).swap(0, Ordering::AcqRel));
        Some(if staged { taken } else { self.geometry.full_map(chunk) })
    }

    /// Ends the copy of `taken` blocks that [`Self::begin_copy`] began. `ok`: all of them are in
    /// the slot.
    ///
    /// # Panics
    /// When no copy is running.
    pub fn end_copy(&self, chunk: ChunkIndex, ok: bool, taken: BlockMap) -> CopyEnd {
        let now = self.clock.now();
        let word = self.word(chunk);
        let mut seen = word.load();
        assert!(seen.has(STAGING), "{chunk}: a copy ended that had not begun");
        if !ok && seen.has(STAGED) {
            // Before STAGING goes: the slot is never thought right in between.
            self.map(chunk).fetch_or(taken.0, Ordering::AcqRel);
        }
        loop {
            let mut next = seen.without(STAGING);
            if ok {
                next = next.with(STAGED);
            } else if seen.is_pending(now) {
                // A writer that looked at the word before the copy and at the map during it, when
                // it was taken, would adopt a broken slot if the word became again what it saw.
                next = next.without(STAGED);
            }
            match word.replace(seen, next) {
                Ok(()) if !next.has(STAGED) => return CopyEnd::Lost,
                Ok(()) => break,
                Err(found) => seen = found,
            }
        }
        match self.block_map(chunk) {
            BlockMap::EMPTY => CopyEnd::Valid,
            map => CopyEnd::Outdated { map },
        }
    }

    /// Parts `chunk` from its staged slot, which may be freed if it says `true`. `false`: not
    /// staged (a writer may have adopted it), or a copy is running.
    #[must_use]
    pub fn drop_staged(&self, chunk: ChunkIndex) -> bool {
        let word = self.word(chunk);
        let mut seen = word.load();
        loop {
            if !seen.has(STAGED) || seen.has(STAGING) {
                return false;
            }
            match word.replace(seen, seen.without(STAGED)) {
                Ok(()) => return true,
                Err(found) => seen = found,
            }
        }
    }

    /// Whether `chunk` is dirty or pending. Any thread.
    pub fn is_dirty(&self, chunk: ChunkIndex) -> bool {
        self.word(chunk).load().has(DIRTY)
    }

    /// Modifying commands in flight on `chunk`, but for those that passed while it was open. Any
    /// thread.
    pub fn in_flight(&self, chunk: ChunkIndex) -> u32 {
        self.word(chunk).load().in_flight()
    }

    /// All about `chunk` at one instant. Any thread.
    pub fn view(&self, chunk: ChunkIndex) -> ChunkView {
        let word = self.word(chunk).load();
        ChunkView {
            epoch: word.epoch(),
            in_flight: word.in_flight(),
            dirty: word.has(DIRTY),
            staging: word.has(STAGING),
            staged: word.has(STAGED),
            map: self.block_map(chunk),
        }
    }

    /// Bytes that a copy of the chunk would move now: 0 if it has a valid one; `None` if it needs
    /// none: it is clean, or a snapshot is completing and nothing is staged.
    pub fn lacking_bytes(&self, chunk: ChunkIndex) -> Option<u64> {
        let view = self.view(chunk);
        if !view.dirty || self.is_cut_active() {
            return None;
        }
        let blocks = match (view.valid(), view.staged) {
            (true, _) => 0,
            (false, true) => view.map.count(),
            (false, false) => self.geometry().full_map(chunk).count(),
        };
        Some(u64::from(blocks) * u64::from(self.geometry().block_bytes()))
    }

    /// Checks what must hold of every chunk while nobody is inside the gate: copies only of dirty
    /// chunks, no word of the future, and every dirty chunk in the index that will be walked for
    /// it, unless it was taken already. For tests and the simulator: O(chunks).
    ///
    /// # Errors
    /// The first violation, in words.
    pub fn self_check(&self) -> Result<(), String> {
        let now = self.clock.now();
        for chunk in (0..self.geometry.chunk_count()).map(ChunkIndex) {
            let word = self.word(chunk).load();
            let broken = if word.epoch() > now.epoch {
                "is of a later epoch"
            } else if word.has(COPY | ADOPTED | DRAINED) && !word.has(DIRTY) {
                "has a copy but is clean"
            } else if word.has(DRAINED) && word.epoch() == now.epoch {
                "is drained but of this epoch"
            } else if word.has(DIRTY)
                && !now.active
                && self.walked.load(Ordering::Relaxed) + 1 == now.epoch.0
                && !self.index.has(now.epoch, chunk)
            {
                "is dirty but not in the index"
            } else if self.is_open(chunk) && (word.has(COPY) || !word.has(DIRTY)) {
                "is open but clean or has a copy"
            } else {
                continue;
            };
            return Err(format!("{chunk} {broken}: {:?} at {now:?}", self.view(chunk)));
        }
        Ok(())
    }
}
