//! How a volume stages and copies, as users set it.

use crate::engine::controller::Aims;
use crate::engine::{PolicyKind, Score, Settings};

/// Where the threshold begins unless it is set: a copy that lacks at the cut costs as much as nine made in vain.
const THRESHOLD_OF_WORTH: f32 = 0.1;

/// The same where scores do not say what a copy is worth.
const THRESHOLD_OF_OTHERS: f32 = 0.5;

/// When staged copies are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StagingPolicy {
    /// Never.
    Off,
    /// Once a dirty chunk rested for [`Tuning::idle_ms`].
    Idle,
    /// As a predictor says.
    Predicted(PredictorKind),
}

/// Who predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredictorKind {
    /// [`crate::predict::baseline::Deadline`].
    Deadline,
    /// [`crate::predict::baseline::Rate`].
    Rate,
    /// [`crate::predict::baseline::Likely`].
    Likely,
    /// The LSTM with the model that ships with presnap.
    Lstm,
}

impl PredictorKind {
    /// Name as in the interface.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Rate => "rate",
            Self::Likely => "likely",
            Self::Lstm => "lstm",
        }
    }
}

/// How a volume stages and copies, as users set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// When staged copies are made.
    pub policy: StagingPolicy,
    /// Rest before an idle chunk is staged.
    pub idle_ms: u64,
    /// Score from which on a chunk is staged, where a predictor gives scores; `None`: it begins at
    /// [`THRESHOLD_OF_WORTH`] and is moved by what comes of it, or is [`THRESHOLD_OF_OTHERS`].
    pub threshold: Option<Score>,
    /// Time between snapshots, as a predictor is told; 0: it learns that from past ones.
    pub window_ms: u64,
    /// Share of the store's slots for staged copies.
    pub staging_limit_percent: u8,
    /// Aim for request to complete; 0 for none.
    pub snapshot_target_ms: u64,
    /// Limit on background copying in MiB/s; 0 for none.
    pub copy_mbytes_per_sec: u64,
}

impl Tuning {
    /// The predictor asked for.
    pub fn predictor(self) -> Option<PredictorKind> {
        match self.policy {
            StagingPolicy::Predicted(kind) => Some(kind),
            StagingPolicy::Off | StagingPolicy::Idle => None,
        }
    }

    /// Limit on background copying in bytes per second.
    pub fn copy_bytes_per_s_max(self) -> Option<u64> {
        (self.copy_mbytes_per_sec != 0).then_some(self.copy_mbytes_per_sec << 20)
    }

    /// The threshold that is set, or that it begins with.
    fn threshold(self) -> Score {
        let begins = if self.scores_are_worth() { THRESHOLD_OF_WORTH } else { THRESHOLD_OF_OTHERS };
        self.threshold.unwrap_or_else(|| Score::of(begins))
    }

    fn scores_are_worth(self) -> bool {
        matches!(self.predictor(), Some(PredictorKind::Rate | PredictorKind::Lstm))
    }

    /// What the threshold is moved for, unless it is fixed.
    fn aims(self) -> Option<Aims> {
        (self.scores_are_worth() && self.threshold.is_none()).then(|| Aims {
            threshold: self.threshold(),
            complete_us_max: (self.snapshot_target_ms != 0)
                .then_some(self.snapshot_target_ms * 1000),
        })
    }

    /// The engine's settings for a store of so many slots.
    pub fn settings(self, slot_count: u32) -> Settings {
        Settings {
            policy: match self.policy {
                StagingPolicy::Off => PolicyKind::Off,
                StagingPolicy::Idle => self.resting(),
                StagingPolicy::Predicted(_) => PolicyKind::Scored { threshold: self.threshold() },
            },
            staging_slots_max: u64::from(slot_count) * u64::from(self.staging_limit_percent) / 100,
            copy_bytes_per_s_max: self.copy_bytes_per_s_max(),
            aims: self.aims(),
            ..Settings::default()
        }
    }

    /// Staging by rest alone: policy `idle`, and what serves while no predictor answers.
    pub fn resting(self) -> PolicyKind {
        PolicyKind::Idle { rest_us: self.idle_ms * 1000 }
    }
}
