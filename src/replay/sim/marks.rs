//! Marks: proof that the rare branches ran.

macro_rules! marks {
    ($($name:ident $words:literal,)+) => {
        /// Something rare that a history should meet now and then.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the words are in `Mark::words`")]
        pub enum Mark { $($name,)+ }

        impl Mark {
            /// All marks.
            pub const ALL: &[Mark] = &[$(Mark::$name,)+];

            /// What happened.
            pub fn words(self) -> &'static str {
                match self { $(Mark::$name => $words,)+ }
            }
        }
    };
}

marks! {
    AdoptedInline "a writer adopted a staged copy on its way in",
    AdoptedByEngine "a complete snapshot has adopted chunks",
    Preserved "a complete snapshot has chunks preserved for writers",
    ZeroRow "a complete snapshot has zero chunks",
    RefreshedCopy "a copy refreshed only some blocks",
    RefreshAfterCut "a pending chunk was completed by a refresh",
    CopyOverlapped "a copy ended outdated",
    StagingAcrossCut "a staging copy was under way at the cut",
    Parked "a command was parked",
    PassedOpen "a command passed open chunks on its lane",
    ParkedTwice "a command was parked on a second chunk",
    ParkedLate "a command was parked when its snapshot was over",
    DrainingAtCut "commands were in flight on a chunk at the cut",
    ReadMaster "a snapshot reader read the master",
    ReadRaced "a snapshot reader's master read was overtaken",
    ReadWaited "a snapshot reader waited for draining commands",
    ReadRows "a snapshot reader read a slot of the completing snapshot",
    ReadComplete "a snapshot reader read a complete snapshot",
    RowsTransaction "rows were recorded before the end",
    CreateRepeated "a create was repeated and got the same snapshot",
    CreateRetried "a failed create was repeated with its uuid",
    CreateBusy "a create met a completing snapshot",
    CreateDeferred "a create came while a failed one was cleared away",
    AbortInBegin "given up before the cut",
    AbortInCopy "given up while copying",
    AbortInFlush "given up while flushing",
    AbortInCommit "an abort came after the last transaction was sent",
    AbortDeferred "a deferred create was given up",
    FailedOnDeadline "given up because a writer waited too long",
    FailedOnMaster "given up because the master had not ended a command",
    FailedOnSpace "given up because the store was full",
    FailedOnCopy "given up because of a copy error",
    FailedOnFlush "given up because of a flush error",
    FailedOnCatalog "given up because of a catalog error",
    FailNotRecorded "a failure could not be recorded",
    CompleteAfterFailure "a snapshot completed after a failed one",
    DeleteHandedOver "a delete handed rows to the next snapshot",
    DeleteNewest "a delete made chunks dirty again",
    DeleteMiddle "a snapshot between two others was deleted",
    DeleteMetStop "a delete came while a clean stop was recorded, and waited",
    DeleteMetAttach "a delete came while the volume was attached, and waited",
    DeleteDetached "a snapshot of a detached volume was deleted",
    DirtiedDetached "a delete made chunks of a cleanly detached volume dirty",
    DeleteRefused "a delete met a snapshot that builds on its",
    Unchanged "a copy was found unchanged after an unclean stop",
    StaleCompare "a compare raced the deletion of what it compared with",
    StagingRefused "staging met its limit or a full store",
    StagingSwitchedOff "staging errors switched staging off",
    GaveWay "a staged copy gave way to one that is worth more",
    CleanedUp "a staged copy in which nothing was right was given up",
    StagedDamaged "a scrub found a staged copy damaged",
    PolicyChanged "policy or limits were changed",
    CleanRestart "a clean stop and a restart",
    Reattached "a volume was detached from an open store and came back",
    StagedRestored "staged copies came back after a clean stop",
    OutdatedRestored "an outdated staged copy came back after a clean stop",
    StopWhileCompleting "a stop met a completing snapshot",
    PowerCut "power was cut",
    PowerCutInCatalog "power was cut inside a catalog transaction",
    PowerCutInLoad "power was cut while the store was loaded",
    PowerCutInClose "power was cut while a clean stop was recorded",
    PowerCutWhileCompleting "power was cut while a snapshot was completing",
    CommitSurvived "a transaction survived the power cut in it",
    ProcessKilled "the process was killed, devices kept power",
    StoreGone "the store went away",
    StoreGoneWhileCompleting "the store went away while a snapshot was completing",
    CatalogErrorHealed "the catalog went on after a device error",
    CatalogLost "a transaction's outcome stayed unknown",
    ClockJumped "the clock jumped by seconds",
    SlowCommand "a command took longer than a writer may wait",
}

/// How often each mark was met.
#[derive(Clone, Debug)]
pub struct Marks {
    counts: Vec<u64>,
}

impl Default for Marks {
    fn default() -> Self {
        Self { counts: vec![0; Mark::ALL.len()] }
    }
}

impl Marks {
    /// Meets a mark.
    pub fn hit(&mut self, mark: Mark) {
        self.counts[mark as usize] += 1;
    }

    /// Adds those of another history.
    pub fn add(&mut self, other: &Marks) {
        for (to, from) in self.counts.iter_mut().zip(&other.counts) {
            *to += from;
        }
    }

    /// Each mark with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Mark, u64)> + '_ {
        Mark::ALL.iter().copied().zip(self.counts.iter().copied())
    }

    /// Marks met at least once.
    pub fn met(&self) -> usize {
        self.counts.iter().filter(|count| **count > 0).count()
    }
}
