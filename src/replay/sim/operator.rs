//! What an operator does to a volume: snapshots, deletes, settings. Stops, power cuts and starts are in
//! [`super::starts`].

use uuid::Uuid;

use super::glue::Origin;
use super::marks::Mark;
use super::swarm::Operation;
use super::world::{Happening, World, trace, violated};
use crate::engine::controller::Aims;
use crate::engine::events::Event;
use crate::engine::records::{CatalogRequest, SnapshotRecord, SnapshotSeq};
use crate::engine::{ChainError, Content, CreatePlan, PolicyKind, Score, Settings, StagedChunk};
use crate::store::sim_device::CrashMode;

impl World {
    pub fn operator(&mut self) {
        if self.operations_left == 0 || self.ending {
            return;
        }
        self.operations_left -= 1;
        let operation = self.swarm.operation(&mut self.random);
        // Nothing stands between a volume that is being removed and a deletion.
        if !self.node().draining || operation == Operation::Delete {
            trace!(self, "operation {operation:?}");
            self.operate(operation);
        }
        if self.node.is_some() {
            let delay = self.delay(self.swarm.operation_us_max);
            self.after(delay, Happening::Operator);
        }
    }

    fn operate(&mut self, operation: Operation) {
        match operation {
            Operation::Create => self.create(),
            Operation::RepeatCreate => self.repeat_create(),
            Operation::Delete => self.delete(),
            Operation::Abort => self.abort(),
            Operation::Settings => self.change_settings(),
            Operation::Stop => {
                let completing = self.node().under_way.is_some();
                if completing {
                    self.mark(Mark::StopWhileCompleting);
                }
                self.node().draining = true;
                // Some stop in an orderly manner, some take the snapshot under way with them.
                self.after(0, Happening::Tick);
            }
            Operation::PowerCut => self.power_cut(None),
            Operation::Kill => {
                self.mark(Mark::ProcessKilled);
                self.power_cut(Some(CrashMode::KeepAll));
            }
            Operation::StoreGone => {
                if !self.node().store_gone {
                    self.store_gone();
                }
            }
            Operation::RecordsLost => {
                let now = self.micros();
                self.node().engine.records_lost(now);
            }
            Operation::Scrub => self.damage_staged(),
            Operation::ClockJump => self.jump(),
        }
    }

    /// The process stood still for seconds, as in a virtual machine that was moved: all that it waits for
    /// takes as long as before, but its clock says that much more time has passed.
    fn jump(&mut self) {
        self.clock_ahead_us += self.random.between(1_000_000, 20_000_000);
        self.statistics.faults += 1;
        self.mark(Mark::ClockJumped);
    }

    /// A staged copy rots, and a scrub finds it: no snapshot may adopt it from then on.
    fn damage_staged(&mut self) {
        let slot_of = |staged: StagedChunk| match staged.content {
            Content::Slot(slot) => Some((staged.chunk, slot)),
            Content::Zero | Content::Unchanged => None,
        };
        let mut copies: Vec<_> = self.node().engine.staged_chunks().filter_map(slot_of).collect();
        if copies.is_empty() {
            return;
        }
        copies.sort_unstable();
        let at = self.random.below(copies.len() as u64) as usize;
        let (chunk, slot) = copies[at];
        self.store.damage_slot(slot);
        self.mark(Mark::StagedDamaged);
        self.apply(Event::StagedDamaged { chunk, slot });
    }

    // ---- snapshots ----------------------------------------------------------------------------

    /// The last snapshot of a history.
    pub fn create_last(&mut self) {
        self.swarm.copy_bytes_per_s_max = None;
        let (settings, now) = (self.settings(), self.micros());
        self.node().engine.set_settings(settings, now);
        let next = self.next_seq();
        let record = self.record(SnapshotSeq(next), "last", None);
        self.begin(record);
    }

    fn create(&mut self) {
        self.names += 1;
        let name = format!("s{}", self.names);
        let uuid = self.random.chance(500).then(|| Uuid::from_u128(u128::from(self.names)));
        self.create_named(&name, uuid);
    }

    fn create_named(&mut self, name: &str, uuid: Option<Uuid>) {
        match self.node().chain.plan_create(name, uuid) {
            Ok(CreatePlan::New(seq)) => {
                let record = self.record(seq, name, uuid);
                self.begin(record);
            }
            Ok(CreatePlan::Existing(_)) => self.mark(Mark::CreateRepeated),
            Ok(CreatePlan::Retry(seq)) => {
                if self.node().deleting.contains(&seq) {
                    return;
                }
                self.mark(Mark::CreateRetried);
                let next = SnapshotSeq(self.next_seq());
                let record = Box::new(self.record(next, name, uuid));
                self.queue_delete(seq, Some(record));
            }
            Err(ChainError::Busy { .. }) => self.mark(Mark::CreateBusy),
            Err(error) => violated!("create of {name}: {error}"),
        }
    }

    fn next_seq(&mut self) -> u32 {
        let newest = self.node().chain.records().next_back().map_or(0, |record| record.seq.0);
        newest.max(self.oracle.last_seq) + 1
    }

    fn record(&mut self, seq: SnapshotSeq, name: &str, uuid: Option<Uuid>) -> SnapshotRecord {
        let uuid = uuid.unwrap_or_else(|| Uuid::from_u128(u128::from(self.random.number())));
        SnapshotRecord::asked_for(self.volume, seq, name, uuid, self.now)
    }

    /// Hands a create to the engine.
    pub fn begin(&mut self, mut record: SnapshotRecord) {
        // A create that had to wait for a deletion asks again: others may have come first.
        match self.node().chain.plan_create(&record.name, Some(record.uuid)) {
            Ok(CreatePlan::New(seq)) => record.seq = seq,
            _ => return,
        }
        if self.node().engine.progress().is_some() {
            self.mark(Mark::CreateDeferred);
        }
        let seq = record.seq;
        let node = self.node();
        node.chain.put(record.clone());
        assert!(node.under_way.is_none(), "the chain admits one at a time");
        node.under_way = Some(seq);
        // Refused or not: what is written before the cut may always make it short.
        let _ = node.engine.reserve(&mut node.slots);
        self.apply(Event::Create(record));
        if self.random.chance(200) && !self.ending {
            let delay = self.random.below(self.swarm.operation_us_max * 2);
            self.after(delay, Happening::CreateTimeout(seq));
        }
    }

    fn repeat_create(&mut self) {
        let records: Vec<_> = self.node().chain.records().cloned().collect();
        if records.is_empty() {
            return;
        }
        let at = self.random.below(records.len() as u64) as usize;
        let (name, uuid) = (records[at].name.clone(), records[at].uuid);
        self.create_named(&name, Some(uuid));
    }

    pub fn create_timeout(&mut self, seq: SnapshotSeq) {
        if self.node().under_way == Some(seq) {
            self.abort();
        }
    }

    fn abort(&mut self) {
        let phase = self.node().engine.phase_name();
        let mark = match phase {
            "begin" => Mark::AbortInBegin,
            "copy" => Mark::AbortInCopy,
            "flush" => Mark::AbortInFlush,
            "commit" => Mark::AbortInCommit,
            "deferred" => Mark::AbortDeferred,
            _ => return,
        };
        self.mark(mark);
        self.apply(Event::Abort("given up by the operator".into()));
    }

    pub fn delete(&mut self) {
        if self.node().stop_sent {
            self.mark(Mark::DeleteMetStop);
            self.deletion_waits = true;
            return;
        }
        let records: Vec<_> = self.node().chain.records().cloned().collect();
        if records.is_empty() {
            return;
        }
        let at = self.random.below(records.len() as u64) as usize;
        let node = self.node();
        match node.chain.plan_delete(&records[at].name) {
            Ok(seq) => {
                if node.deleting.contains(&seq) {
                    return;
                }
                // Exports are closed before a snapshot is deleted.
                if self.readers.iter().flatten().any(|reader| reader.seq == seq) {
                    return;
                }
                if at > 0 && at + 1 < records.len() {
                    self.mark(Mark::DeleteMiddle);
                }
                self.queue_delete(seq, None);
            }
            Err(ChainError::Needed { .. }) => self.mark(Mark::DeleteRefused),
            Err(ChainError::Busy { .. }) => {}
            Err(error) => violated!("delete: {error}"),
        }
    }

    fn queue_delete(&mut self, seq: SnapshotSeq, then: Option<Box<SnapshotRecord>>) {
        let volume = self.volume;
        self.node().deleting.push(seq);
        self.queue(Origin::Delete(seq, then), CatalogRequest::DeleteSnapshot { volume, seq });
    }

    // ---- settings -----------------------------------------------------------------------------

    pub fn settings(&self) -> Settings {
        Settings {
            policy: self.swarm.policy,
            staging_slots_max: self.swarm.staging_slots_max,
            copy_bytes_per_s_max: self.swarm.copy_bytes_per_s_max,
            aims: match self.swarm.policy {
                PolicyKind::Scored { threshold } => {
                    Some(Aims { threshold, complete_us_max: Some(1) })
                }
                PolicyKind::Off | PolicyKind::Idle { .. } => None,
            },
            parked_us_max: self.swarm.parked_us_max,
        }
    }

    fn change_settings(&mut self) {
        self.mark(Mark::PolicyChanged);
        self.swarm.policy = match self.random.below(4) {
            0 => PolicyKind::Off,
            1 => PolicyKind::Scored { threshold: Score(self.random.pick(&[0, 30_000])) },
            _ => PolicyKind::Idle { rest_us: self.random.pick(&[0, 500, 5_000]) },
        };
        self.swarm.staging_slots_max = self.random.pick(&[0, 1, 4, u64::MAX]);
        self.swarm.copy_bytes_per_s_max =
            self.random.chance(300).then(|| self.random.pick(&[8 << 20, 64 << 20]));
        let (settings, now) = (self.settings(), self.micros());
        self.node().engine.set_settings(settings, now);
    }
}
