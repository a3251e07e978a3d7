//! The controller at work: what the engine shows it, and what its threshold does.

use super::controller::{Change, Controller, Finished, Spent};
use super::counters::Counters;
use super::events::{Effect, Micros};
use super::machine::{Engine, Settings};
use super::policy::PolicyKind;
use super::records::SnapshotRecord;

/// What is counted from cut to cut.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spending {
    at_cut: Counters,
    /// What was spent on the snapshot under way.
    on_snapshot: Spent,
}

impl Spending {
    fn since_cut(&self, counters: Counters) -> Spent {
        let since = counters.since(&self.at_cut);
        Spent {
            copied_bytes: since.staged_bytes + since.refreshed_bytes,
            copies: since.staged_copies + since.refreshed_copies,
            no_room: since.staging_refused + since.evicted_copies,
            kept_bytes: 0,
            required_bytes: 0,
        }
    }
}

impl Engine {
    /// The threshold in force, and its last changes, oldest first; `None` if the policy has none.
    pub fn threshold(&self) -> Option<(super::Score, Vec<Change>)> {
        let PolicyKind::Scored { threshold } = self.policy.kind() else { return None };
        let changes = self.controller.iter().flat_map(Controller::changes).copied().collect();
        Some((threshold, changes))
    }

    /// Takes over the aims of `settings`.
    pub(super) fn aim(&mut self, settings: &Settings, now: Micros) {
        let Some(aims) = settings.aims else {
            self.controller = None;
            return;
        };
        let goes_on = self.controller.as_mut().is_some_and(|controller| controller.aim(aims));
        if !goes_on {
            self.controller = Some(Controller::new(aims, now));
        }
    }

    /// The policy of `settings`, with the threshold as it was moved.
    pub(super) fn policy_in_force(&self, settings: &Settings) -> PolicyKind {
        match (settings.policy, &self.controller) {
            (PolicyKind::Scored { .. }, Some(controller)) => {
                PolicyKind::Scored { threshold: controller.threshold() }
            }
            (policy, _) => policy,
        }
    }

    /// A snapshot was cut.
    pub(super) fn spending_cut(&mut self) {
        self.spending.on_snapshot = self.spending.since_cut(self.counters);
        self.spending.at_cut = self.counters;
    }

    /// A snapshot is complete. That of a volume all of which is dirty for want of knowledge says
    /// nothing about predictions.
    pub(super) fn spending_paid_off(&mut self, now: Micros, record: &SnapshotRecord) {
        if !self.exact || self.compare {
            return;
        }
        let chunk_bytes = u64::from(self.gate.geometry().chunk_bytes());
        let Some(controller) = &mut self.controller else { return };
        let spent = Spent {
            kept_bytes: self.counters.adopted_bytes - self.spending.at_cut.adopted_bytes,
            required_bytes: record.chunks.required * chunk_bytes,
            ..self.spending.on_snapshot
        };
        let finished = Finished {
            took_us: record.times.complete_us,
            left_chunks: record.chunks.copied + record.chunks.preserved,
            spent,
        };
        let change = controller.finished(now, &finished);
        self.move_threshold(change);
    }

    /// Scores have come: from time to time it is looked at what copying by them comes to.
    pub(super) fn spending_so_far(&mut self, now: Micros) {
        let due = self.controller.as_ref().is_some_and(|controller| controller.is_due(now));
        if !due || self.snapshot.is_some() {
            return;
        }
        let chunk_bytes = u64::from(self.gate.geometry().chunk_bytes());
        let spent = Spent {
            kept_bytes: self.staged.len() as u64 * chunk_bytes,
            required_bytes: self.gate.dirty_count() * chunk_bytes,
            ..self.spending.since_cut(self.counters)
        };
        let change = self.controller.as_mut().and_then(|controller| controller.look(now, spent));
        self.move_threshold(change);
    }

    fn move_threshold(&mut self, change: Option<Change>) {
        let Some(change) = change else { return };
        self.policy.set_threshold(change.to);
        self.effects.push_back(Effect::Threshold(change));
    }
}
