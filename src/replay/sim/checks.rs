//! What must hold after every step.

use std::collections::BTreeSet;

use super::world::{World, violated};
use crate::engine::records::SlotIndex;

/// A parked command may wait for as long as the settings say, and then for the next tick and for
/// messages.
const PARKED_SLACK_US: u64 = 60_000;

/// Steps between looks at everything that takes time.
const FULL_CHECK_STEPS: u64 = 8;

impl World {
    pub fn check(&mut self) {
        let Some(node) = &self.node else { return };
        node.engine.self_check();
        if self.statistics.steps.is_multiple_of(FULL_CHECK_STEPS) {
            // A failed snapshot's chunks come back into the index little by little.
            let settled = !matches!(node.engine.phase_name(), "fail" | "redirty" | "deferred");
            if let Err(words) = node.gate.self_check()
                && settled
            {
                violated!("gate: {words}");
            }
            self.check_slots();
        }
        self.check_liveness();
    }

    /// I8: each taken slot has exactly one owner.
    pub fn check_slots(&self) {
        let Some(node) = &self.node else { return };
        node.slots.self_check();
        let promised = u64::from(node.slots.reserved_count());
        if promised != node.engine.reserved_slots() {
            violated!("{promised} slots are reserved, the engine knows of others");
        }
        let mut owned = BTreeSet::new();
        let mut own = |slot: SlotIndex, owner: &str| {
            if !owned.insert(slot) {
                violated!("I8: {slot:?} has two owners, one is {owner}");
            }
            if !node.slots.is_taken(slot) {
                violated!("I8: {slot:?} is free and belongs to {owner}");
            }
        };
        for slot in node.engine.held_slots() {
            own(slot, "the engine");
        }
        for slot in self.oracle.slots(node.under_way) {
            own(slot, "the catalog");
        }
        for slot in &node.freed_in_transit {
            own(*slot, "a deletion under way");
        }
        let taken = node.slots.taken_count() as usize;
        if owned.len() != taken {
            violated!("I8: {taken} slots are taken, {} have an owner", owned.len());
        }
    }

    /// I6: no command waits for a snapshot for longer than the settings allow.
    fn check_liveness(&self) {
        let Some(node) = &self.node else { return };
        let bound = self.swarm.parked_us_max + PARKED_SLACK_US + 40 * self.swarm.message_us_max;
        if let Some(parked) = node.parked.iter().find(|p| self.now - p.since > bound) {
            let waited = self.now - parked.since;
            violated!("I6: {parked:?} waits since {waited} us: {:?}", node.engine);
        }
    }

    /// The real catalog against the oracle.
    pub fn check_catalog(&self, when: &str) {
        let catalog = self.catalog();
        let state = match catalog.load_state(self.volume) {
            Ok(state) => state,
            Err(error) => violated!("catalog cannot be read {when}: {error}"),
        };
        if let Some(difference) = self.oracle.difference(&state, catalog) {
            violated!("catalog {when}: {difference}");
        }
        match catalog.check() {
            Ok(report) if report.is_clean() => {}
            Ok(report) => violated!("catalog {when}: {:?}", report.problems),
            Err(error) => violated!("catalog cannot be checked {when}: {error}"),
        }
    }
}
