//! What an operator does to a volume, and what befalls it: snapshots, deletes, settings, stops,
//! power cuts and starts.

use std::sync::Arc;

use uuid::Uuid;

use super::glue::{Origin, crash_mode};
use super::marks::Mark;
use super::swarm::Operation;
use super::views::SnapshotViews;
use super::world::{Happening, Node, World, trace, violated};
use crate::engine::controller::Aims;
use crate::engine::events::Event;
use crate::engine::records::{
    CatalogRequest, SnapshotRecord, SnapshotSeq, SnapshotState, StagedRecord,
};
use crate::engine::{Chain, ChainError, CreatePlan, Engine, PolicyKind, Score, Settings};
use crate::gate::{ChunkIndex, Gate, Initial, OperationNumber};
use crate::store::sim_device::CrashMode;
use crate::store::{Catalog, LoadedStore, LoadedVolume, SharedDevice, SlotAllocator};

/// What a volume starts from.
struct Parts {
    state: LoadedVolume,
    slots: SlotAllocator,
    views: SnapshotViews,
    chain: Chain,
    catalog: Catalog,
}

impl World {
    pub fn operator(&mut self) {
        if self.operations_left == 0 || self.ending {
            return;
        }
        self.operations_left -= 1;
        if !self.node().draining {
            let operation = self.swarm.operation(&mut self.random);
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
        }
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

    fn delete(&mut self) {
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

    fn settings(&self) -> Settings {
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

    // ---- stop, crash, start -------------------------------------------------------------------

    /// Asks the engine to stop once no command is left.
    pub fn drain(&mut self) {
        let quiet = self.commands.is_empty();
        let node = self.node();
        let quiet = quiet && node.parked.is_empty() && node.deleting.is_empty();
        if node.draining && !node.stop_sent && quiet {
            node.stop_sent = true;
            // A clean stop trusts the master to be as it was: its cache is flushed before.
            self.master.flush();
            self.apply(Event::Stop);
        }
    }

    /// The engine has saved what a clean start may trust, or could not.
    pub fn stopped(&mut self, result: &Result<(), String>) {
        trace!(self, "stopped: {result:?}");
        let mut node = self.node.take().expect("a process is running");
        if result.is_ok() {
            self.mark(Mark::CleanRestart);
        }
        if node.under_way.is_some() {
            violated!("stopped with a snapshot under way");
        }
        let store_gone = node.store_gone;
        // A failure that could not be recorded, and its slots, are settled by a load only.
        let unrecorded = |record: &SnapshotRecord| record.state == SnapshotState::Completing;
        let stranded = node.engine.held_slots().len() > node.engine.droppable_slots().len()
            || self.oracle.snapshots.values().any(unrecorded);
        if !store_gone && !stranded && self.random.chance(400) {
            return self.detach(node, result.is_ok());
        }
        // A process may also end without closing its database.
        if self.random.chance(700) && !store_gone {
            let _ = node.catalog.close();
        }
        drop(node);
        self.begin_anew();
        if store_gone {
            let modes = [crash_mode(self), crash_mode(self)];
            self.store = Arc::new(self.store.crash(modes[0], modes[1]));
        }
    }

    /// Only the volume goes; its store stays open, and the volume comes back to it.
    fn detach(&mut self, mut node: Node, stopped: bool) {
        self.mark(Mark::Reattached);
        if !(stopped && self.oracle.clean) {
            // As the volume does: staged copies that were not saved are nobody's.
            for slot in node.engine.droppable_slots() {
                node.slots.release(slot);
            }
        }
        node.copies.clear();
        self.detached = Some(node);
        self.begin_anew();
    }

    /// The volume comes back to a store that was never closed.
    fn reattach(&mut self, node: Node) -> Option<&'static str> {
        let state = node.catalog.load_state(self.volume).expect("no faults are planned");
        if let Some(difference) = self.oracle.difference(&state, &node.catalog) {
            violated!("catalog at a reattach: {difference}");
        }
        let Node { slots, views, chain, catalog, .. } = node;
        // In memory, interrupted snapshots are over: the engine has ended each.
        for expected in self.model.snapshots.values_mut() {
            expected.complete = true;
        }
        self.start(Parts { state, slots, views, chain, catalog })
    }

    /// Power goes, or with `KeepAll` only the process.
    pub fn power_cut(&mut self, mode: Option<CrashMode>) {
        self.statistics.faults += 1;
        self.mark(Mark::PowerCut);
        let completing = self.node.as_ref().is_some_and(|node| node.under_way.is_some());
        if completing {
            self.mark(Mark::PowerCutWhileCompleting);
        }
        if mode.is_none() {
            self.master.crash(&mut self.random);
        }
        let modes = [(); 2].map(|()| mode.unwrap_or_else(|| crash_mode(self)));
        trace!(self, "power cut, {modes:?}");
        let crashed = Arc::new(self.store.crash(modes[0], modes[1]));
        self.store.catalog.stop_at(0);
        self.node = None;
        self.store = crashed;
        self.begin_anew();
    }

    /// Forgets what the process had under way and starts the next one soon.
    fn begin_anew(&mut self) {
        self.generation += 1;
        self.commands.clear();
        self.readers.iter_mut().for_each(|reader| *reader = None);
        let complete = self.oracle_complete();
        // What the last transaction said may or may not be durable: the start decides.
        self.model.snapshots.retain(|seq, expected| expected.complete || complete.contains(seq));
        self.after(1_000, Happening::Restart);
    }

    /// Snapshots that are complete on the device, or may be.
    fn oracle_complete(&self) -> Vec<SnapshotSeq> {
        [Some(&self.oracle), self.oracle_else.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(|oracle| oracle.snapshots.values())
            .filter(|record| record.state == SnapshotState::Complete)
            .map(|record| record.seq)
            .collect()
    }

    pub fn restart(&mut self) {
        let stop = self.plan_catalog_fault_in_load();
        if let Some(node) = self.detached.take() {
            self.store.catalog.heal();
            let cut = self.reattach(node);
            return self.started(cut);
        }
        let device: SharedDevice = self.store.clone();
        let loaded = crate::store::load(&device);
        if self.is_powerless(stop) {
            drop(loaded);
            self.mark(Mark::PowerCutInLoad);
            return self.power_cut(None);
        }
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => violated!("the store cannot be loaded: {error:?}"),
        };
        self.settle_oracle(&loaded);
        let mut loaded = loaded;
        let volume = loaded.volumes.remove(0);
        let chunk_count = self.geometry.chunk_count();
        let cut = self.start(Parts {
            slots: loaded.allocator,
            views: SnapshotViews::new(chunk_count, volume.views),
            chain: Chain::new(volume.state.snapshots.clone(), volume.state.last_seq),
            state: volume.state,
            catalog: loaded.catalog,
        });
        self.started(cut);
    }

    fn started(&mut self, cut: Option<&'static str>) {
        if let Some(cut) = cut {
            trace!(self, "power cut in the start: {cut}");
            self.mark(Mark::PowerCutInLoad);
            return self.power_cut(None);
        }
        self.compare_all("after a start");
        self.check_slots();
        self.after(0, Happening::Tick);
        for client in 0..self.swarm.clients {
            let delay = self.delay(self.swarm.think_us_max);
            self.after(delay, Happening::Client(client));
        }
        for reader in 0..self.readers.len() {
            self.after(0, Happening::ReaderStep(reader));
        }
        let delay = self.delay(self.swarm.operation_us_max);
        self.after(delay, Happening::Operator);
    }

    fn plan_catalog_fault_in_load(&mut self) -> Option<u64> {
        if !self.random.chance(self.swarm.load_cut_per_mille) {
            return None;
        }
        let at = self.store.catalog.operations() + self.random.below(20);
        self.store.catalog.stop_at(at);
        Some(at)
    }

    /// Which of the possible states is on the device, and is it one of them?
    fn settle_oracle(&mut self, loaded: &LoadedStore) {
        let state = &loaded.volumes[0].state;
        let first = self.oracle.clone().interrupted();
        let second = self.oracle_else.take().map(super::oracle::Oracle::interrupted);
        let difference = first.difference(state, &loaded.catalog);
        match (difference, second) {
            (None, _) => self.oracle = first,
            (Some(_), Some(second)) if second.difference(state, &loaded.catalog).is_none() => {
                self.mark(Mark::CommitSurvived);
                self.oracle = second;
            }
            (Some(difference), _) => violated!("catalog after a start: {difference}"),
        }
        let report = loaded.catalog.check().expect("it was just loaded");
        if !report.is_clean() {
            violated!("catalog after a start: {:?}", report.problems);
        }
        let complete = self.oracle_complete();
        self.model.snapshots.retain(|seq, _| complete.contains(seq));
        for expected in self.model.snapshots.values_mut() {
            expected.complete = true;
        }
    }

    /// Sets the volume up as the target does; says if power went meanwhile.
    fn start(&mut self, parts: Parts) -> Option<&'static str> {
        let Parts { state, slots, views, chain, mut catalog } = parts;
        let clean = state.record.clean;
        let compare = !clean && views.newest_complete().is_some();
        let initial = if clean { Initial::Clean } else { Initial::AllDirty };
        let next = OperationNumber(state.record.operation_number.0 + 1);
        let gate = Arc::new(Gate::new(self.geometry, initial, next).expect("small"));
        if !clean {
            gate.open_all();
        }
        let (settings, now) = (self.settings(), self.micros());
        let mut engine = Engine::new(gate.clone(), self.volume, settings, compare, now);
        engine.set_limits(self.swarm.limits);
        for (word, bits) in &state.dirty_words {
            for bit in (0..64).filter(|bit| bits >> bit & 1 == 1) {
                assert!(gate.mark_dirty(ChunkIndex(word * 64 + bit)), "no cut is active");
            }
        }
        self.note_restored(&state.staged);
        for staged in state.staged {
            engine.restore_staged(staged);
        }
        let request = CatalogRequest::OpenVolume { volume: self.volume };
        let stop = self.plan_catalog_fault_in_load();
        let opened = catalog.execute(request.clone());
        let before = self.oracle.clone();
        let expected = self.oracle.execute(&request);
        expected.expect("the oracle opens any volume");
        if self.is_powerless(stop) {
            self.oracle_else = Some(before);
            return Some("open");
        }
        if let Err(error) = opened {
            violated!("the volume cannot be opened: {error}");
        }
        self.node = Some(Node {
            lanes: std::array::from_fn(|_| gate.lane()),
            gate,
            engine,
            chain,
            slots,
            views,
            catalog,
            catalog_queue: std::collections::VecDeque::new(),
            copies: std::collections::BTreeMap::new(),
            flush: None,
            parked: std::collections::VecDeque::new(),
            wakes_under_way: 0,
            deleting: Vec::new(),
            freed_in_transit: Vec::new(),
            under_way: None,
            draining: false,
            stop_sent: false,
            store_gone: false,
            failed_before: false,
        });
        None
    }

    /// I7: staged copies come back from a clean stop only, and are what they were.
    fn note_restored(&mut self, staged: &[StagedRecord]) {
        if staged.is_empty() {
            return;
        }
        // That they are those that the last close has saved was compared with the oracle.
        if !self.oracle.clean {
            violated!("I7: staged copies after an unclean stop: {staged:?}");
        }
        self.mark(Mark::StagedRestored);
        if staged.iter().any(|staged| staged.block_map != 0) {
            self.mark(Mark::OutdatedRestored);
        }
    }
}
