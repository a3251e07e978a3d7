//! The snapshots of one volume, oldest first, and what may be done to them.

use std::collections::BTreeMap;

use thiserror::Error;
use uuid::Uuid;

use super::records::{SnapshotRecord, SnapshotSeq, SnapshotState};

/// Why a create or delete was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChainError {
    /// Another snapshot of the volume is completing.
    #[error("snapshot '{name}' of the volume is still completing; wait for it or delete it")]
    Busy {
        /// The one under way.
        name: String,
    },
    /// The name is in use, with another UUID or none given.
    #[error(
        "snapshot '{name}' exists with UUID {uuid} ({state}); choose another name, or repeat the create with that UUID to get this one (anew, if it has failed)"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// UUID of the one that has it.
        uuid: Uuid,
        /// Its state.
        state: SnapshotState,
    },
    /// The UUID is in use under another name.
    #[error("UUID {uuid} belongs to snapshot '{name}'; choose another UUID")]
    UuidTaken {
        /// The one that has it.
        name: String,
        /// The UUID.
        uuid: Uuid,
    },
    /// No such snapshot.
    #[error("there is no snapshot '{name}'; presnap_get_snapshots lists those that exist")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// The newest complete snapshot is what a completing one builds on.
    #[error("snapshot '{completing}' is completing and builds on '{name}'; wait for it")]
    Needed {
        /// The one to be deleted.
        name: String,
        /// The one under way.
        completing: String,
    },
}

/// What a create request leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreatePlan {
    /// A new snapshot with this number.
    New(SnapshotSeq),
    /// The request was made before: this is its snapshot.
    Existing(SnapshotSeq),
    /// The request was made before and failed: drop that record, then try again.
    Retry(SnapshotSeq),
}

/// The snapshots of one volume.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    records: BTreeMap<SnapshotSeq, SnapshotRecord>,
    last_seq: u32,
}

impl Chain {
    /// The chain that the catalog holds; `last_seq` is the highest number ever given out.
    pub fn new(records: impl IntoIterator<Item = SnapshotRecord>, last_seq: SnapshotSeq) -> Self {
        let records: BTreeMap<_, _> = records.into_iter().map(|r| (r.seq, r)).collect();
        let last = records.keys().next_back().map_or(0, |seq| seq.0);
        Self { records, last_seq: last.max(last_seq.0) }
    }

    /// All records, oldest first.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &SnapshotRecord> {
        self.records.values()
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The record with this number.
    pub fn get(&self, seq: SnapshotSeq) -> Option<&SnapshotRecord> {
        self.records.get(&seq)
    }

    /// The record of this name.
    ///
    /// # Errors
    /// [`ChainError::NotFound`].
    pub fn by_name(&self, name: &str) -> Result<&SnapshotRecord, ChainError> {
        self.records
            .values()
            .find(|r| r.name == name)
            .ok_or_else(|| ChainError::NotFound { name: name.to_owned() })
    }

    /// The snapshot that is completing, if any.
    pub fn completing(&self) -> Option<&SnapshotRecord> {
        // It is always the newest one.
        self.records.values().next_back().filter(|r| r.state == SnapshotState::Completing)
    }

    /// The newest complete snapshot: what the dirty set of the volume is counted from.
    pub fn newest_complete(&self) -> Option<&SnapshotRecord> {
        self.records.values().rev().find(|r| r.state == SnapshotState::Complete)
    }

    /// Decides what a create request leads to. Repeating a request with the same name and UUID
    /// names the same snapshot.
    ///
    /// # Errors
    /// Name or UUID in use by another, or a snapshot is completing.
    pub fn plan_create(&self, name: &str, uuid: Option<Uuid>) -> Result<CreatePlan, ChainError> {
        for record in self.records.values() {
            match (record.name == name, uuid == Some(record.uuid)) {
                (true, true) if record.state == SnapshotState::Failed => {
                    return Ok(CreatePlan::Retry(record.seq));
                }
                (true, true) => return Ok(CreatePlan::Existing(record.seq)),
                (true, false) => {
                    return Err(ChainError::NameTaken {
                        name: name.to_owned(),
                        uuid: record.uuid,
                        state: record.state,
                    });
                }
                (false, true) => {
                    return Err(ChainError::UuidTaken {
                        name: record.name.clone(),
                        uuid: record.uuid,
                    });
                }
                (false, false) => {}
            }
        }
        match self.completing() {
            Some(record) => Err(ChainError::Busy { name: record.name.clone() }),
            None => Ok(CreatePlan::New(SnapshotSeq(self.last_seq + 1))),
        }
    }

    /// Decides whether a snapshot may be deleted. One that is completing may not (it is given up
    /// first), nor may the one that a completing snapshot builds on.
    ///
    /// # Errors
    /// No such snapshot, or needed by one that is completing.
    pub fn plan_delete(&self, name: &str) -> Result<SnapshotSeq, ChainError> {
        let record = self.by_name(name)?;
        if record.state == SnapshotState::Completing {
            return Err(ChainError::Busy { name: name.to_owned() });
        }
        let newest = self.newest_complete().is_some_and(|newest| newest.seq == record.seq);
        match self.completing() {
            Some(completing) if newest => Err(ChainError::Needed {
                name: name.to_owned(),
                completing: completing.name.clone(),
            }),
            _ => Ok(record.seq),
        }
    }

    /// Adds or replaces a record.
    pub fn put(&mut self, record: SnapshotRecord) {
        self.last_seq = self.last_seq.max(record.seq.0);
        self.records.insert(record.seq, record);
    }

    /// Takes a record out. Its number is not used again.
    pub fn remove(&mut self, seq: SnapshotSeq) -> Option<SnapshotRecord> {
        self.records.remove(&seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::records::VolumeId;

    fn record(seq: u32, name: &str, state: SnapshotState) -> SnapshotRecord {
        let uuid = Uuid::from_u128(u128::from(seq));
        let asked_for = SnapshotRecord::asked_for(VolumeId(1), SnapshotSeq(seq), name, uuid, 0);
        SnapshotRecord { state, ..asked_for }
    }

    #[test]
    fn create_is_idempotent_by_name_and_uuid() {
        let chain = Chain::new([record(3, "a", SnapshotState::Complete)], SnapshotSeq(0));
        let uuid = |n: u128| Some(Uuid::from_u128(n));
        assert_eq!(chain.plan_create("b", None), Ok(CreatePlan::New(SnapshotSeq(4))));
        assert_eq!(chain.plan_create("a", uuid(3)), Ok(CreatePlan::Existing(SnapshotSeq(3))));
        assert!(matches!(chain.plan_create("a", None), Err(ChainError::NameTaken { .. })));
        assert!(matches!(chain.plan_create("a", uuid(9)), Err(ChainError::NameTaken { .. })));
        assert!(matches!(chain.plan_create("b", uuid(3)), Err(ChainError::UuidTaken { .. })));
        let failed = Chain::new([record(3, "a", SnapshotState::Failed)], SnapshotSeq(0));
        assert_eq!(failed.plan_create("a", uuid(3)), Ok(CreatePlan::Retry(SnapshotSeq(3))));
    }

    #[test]
    fn one_completes_at_a_time_and_its_base_stays() {
        let chain = Chain::new(
            [
                record(1, "a", SnapshotState::Complete),
                record(2, "b", SnapshotState::Complete),
                record(3, "c", SnapshotState::Completing),
            ],
            SnapshotSeq(0),
        );
        assert!(matches!(chain.plan_create("d", None), Err(ChainError::Busy { .. })));
        assert_eq!(
            chain.plan_create("c", Some(Uuid::from_u128(3))),
            Ok(CreatePlan::Existing(SnapshotSeq(3)))
        );
        assert_eq!(chain.plan_delete("a"), Ok(SnapshotSeq(1)));
        assert!(matches!(chain.plan_delete("b"), Err(ChainError::Needed { .. })));
        assert!(matches!(chain.plan_delete("c"), Err(ChainError::Busy { .. })));
        assert!(matches!(chain.plan_delete("x"), Err(ChainError::NotFound { .. })));
    }

    #[test]
    fn numbers_are_not_used_twice() {
        let mut chain = Chain::new([record(7, "a", SnapshotState::Complete)], SnapshotSeq(0));
        chain.remove(SnapshotSeq(7));
        assert_eq!(chain.plan_create("b", None), Ok(CreatePlan::New(SnapshotSeq(8))));
    }
}
