//! Which dirty chunks are worth a copy before anyone asks for a snapshot.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::events::Micros;
use super::scores::{Score, Scores};
use crate::gate::ChunkIndex;

/// How staging decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// Stage nothing.
    Off,
    /// Stage a dirty chunk once it was not written for this long.
    Idle {
        /// Time without a write, in microseconds.
        rest_us: u64,
    },
    /// Stage what a predictor scores at least so high ([`super::events::Event::Scores`]), the
    /// highest score first.
    Scored {
        /// The score.
        threshold: Score,
    },
}

/// Spreads chunk numbers over a map: one multiplication, since each write pays for it. Whoever picks
/// chunks so that they collide slows nothing but the staging of a volume that is theirs to write.
#[derive(Default)]
struct ChunkHasher(u64);

impl Hasher for ChunkHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // The map takes its place from the low bits, and the best ones are the high ones.
        self.0.rotate_left(32)
    }
}

/// Follows the writes of one volume and names chunks that are due.
///
/// Memory: one heap entry and one map entry for each chunk written and not yet named, about
/// 48 bytes; chunks that are named are forgotten until they are written again.
#[derive(Debug)]
pub struct Policy {
    kind: PolicyKind,
    last_write: HashMap<ChunkIndex, Micros, BuildHasherDefault<ChunkHasher>>,
    due: BinaryHeap<Reverse<(Micros, ChunkIndex)>>,
    scores: Scores,
}

impl Policy {
    /// A policy that has seen nothing yet.
    pub fn new(kind: PolicyKind) -> Self {
        Self {
            kind,
            last_write: HashMap::default(),
            due: BinaryHeap::new(),
            scores: Scores::default(),
        }
    }

    /// The decision rule in force.
    pub fn kind(&self) -> PolicyKind {
        self.kind
    }

    /// Moves the threshold, from the next scores on.
    pub(super) fn set_threshold(&mut self, threshold: Score) {
        if matches!(self.kind, PolicyKind::Scored { .. }) {
            self.kind = PolicyKind::Scored { threshold };
        }
    }

    /// A modifying command touched `chunk`.
    pub fn observe(&mut self, chunk: ChunkIndex, now: Micros) {
        let rest_us = match self.kind {
            PolicyKind::Off => return,
            PolicyKind::Idle { rest_us } => rest_us,
            PolicyKind::Scored { .. } => {
                self.last_write.insert(chunk, now);
                return;
            }
        };
        // One heap entry per chunk: a chunk that is written again is put back when its entry
        // comes up, not on each write.
        if self.last_write.insert(chunk, now).is_none() {
            self.due.push(Reverse((Micros(now.0 + rest_us), chunk)));
        }
    }

    /// When `chunk` was last seen written; `None` if that was not seen or it was named since.
    pub fn last_write(&self, chunk: ChunkIndex) -> Option<Micros> {
        self.last_write.get(&chunk).copied()
    }

    /// Takes the scores of now; those before are void. `is_staged` tells what could be given up.
    pub(super) fn take_scores(
        &mut self,
        scores: Vec<(ChunkIndex, Score)>,
        is_staged: impl Fn(ChunkIndex) -> bool,
    ) {
        if let PolicyKind::Scored { threshold } = self.kind {
            self.last_write.clear();
            self.scores = Scores::new(scores, threshold, is_staged);
        }
    }

    /// Whether `chunk` is judged by this policy, so that no sweep need bring it up.
    pub(super) fn follows(&self, chunk: ChunkIndex) -> bool {
        self.last_write.contains_key(&chunk) || self.scores.of(chunk).is_some()
    }

    /// A staged chunk that is worth so much less than `chunk` that its slot is better used for that.
    pub(super) fn victim(&mut self, chunk: ChunkIndex) -> Option<ChunkIndex> {
        self.scores.victim(chunk)
    }

    /// The next chunk worth a copy now, if any; it is not named again until it is written again, or
    /// scored again.
    pub fn next_due(&mut self, now: Micros) -> Option<ChunkIndex> {
        let rest_us = match self.kind {
            PolicyKind::Off => return None,
            PolicyKind::Idle { rest_us } => rest_us,
            PolicyKind::Scored { .. } => {
                // Written since it was scored: it has to be judged anew.
                let last_write = &self.last_write;
                return self.scores.next(|chunk| !last_write.contains_key(&chunk));
            }
        };
        loop {
            let Reverse((due, chunk)) = *self.due.peek()?;
            if due > now {
                return None;
            }
            self.due.pop();
            let last = self.last_write.get(&chunk).copied()?;
            let due = Micros(last.0 + rest_us);
            if due > now {
                self.due.push(Reverse((due, chunk)));
            } else {
                self.last_write.remove(&chunk);
                return Some(chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_names_a_chunk_once_it_rested() {
        let mut policy = Policy::new(PolicyKind::Idle { rest_us: 100 });
        policy.observe(ChunkIndex(1), Micros(0));
        policy.observe(ChunkIndex(2), Micros(10));
        policy.observe(ChunkIndex(1), Micros(60));
        assert_eq!(policy.next_due(Micros(100)), None);
        assert_eq!(policy.next_due(Micros(110)), Some(ChunkIndex(2)));
        assert_eq!(policy.next_due(Micros(110)), None);
        assert_eq!(policy.next_due(Micros(160)), Some(ChunkIndex(1)));
        assert_eq!(policy.next_due(Micros(10_000)), None);
        policy.observe(ChunkIndex(1), Micros(10_000));
        assert_eq!(policy.next_due(Micros(10_100)), Some(ChunkIndex(1)));
    }

    #[test]
    fn off_names_nothing_and_keeps_nothing() {
        let mut policy = Policy::new(PolicyKind::Off);
        policy.observe(ChunkIndex(1), Micros(0));
        assert_eq!(policy.next_due(Micros(1_000_000)), None);
        assert!(policy.last_write.is_empty());
    }
}
