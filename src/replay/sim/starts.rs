//! What befalls a volume: stops, power cuts, starts; and what happens to it while it is detached from a
//! store that stays open.
//!
//! Deletions, attaching and clean stops take turns, as `Exclusive` sees to it in the volume room: a
//! deletion makes chunks dirty, in the catalog or in the gate, and not while these are saved or loaded.

use std::sync::Arc;

use super::glue::crash_mode;
use super::marks::Mark;
use super::views::SnapshotViews;
use super::world::{Detached, Happening, Node, World, trace, violated};
use crate::engine::events::Event;
use crate::engine::records::{
    CatalogReply, CatalogRequest, SnapshotRecord, SnapshotSeq, SnapshotState, StagedRecord,
};
use crate::engine::{Chain, Engine};
use crate::gate::{ChunkIndex, Gate, Initial, OperationNumber};
use crate::store::sim_device::CrashMode;
use crate::store::{ErrorKind, LoadedStore, SharedDevice};

/// Within this time one attaches a volume whose store is open, and may delete its snapshots.
const DETACHED_US: u64 = 2_000;

/// Time between two looks at whether a deletion's turn has come.
const TURN_US: u64 = 100;

impl World {
    /// Asks the engine to stop once no command is left.
    pub fn drain(&mut self) {
        let quiet = self.commands.is_empty();
        let node = self.node();
        let quiet = quiet && node.parked.is_empty() && node.deleting.is_empty();
        if node.draining && !node.stop_sent && quiet {
            node.stop_sent = true;
            // A clean stop trusts the master to be as it was: its cache is flushed before.
            self.master.flush();
            if self.swarm.deletes() && self.random.chance(400) {
                let delay = self.random.below(self.swarm.copy_us_max + 1);
                self.after(delay, Happening::Delete);
            }
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
        // A catalog that is lost serves nothing any more, as a store that is gone.
        let lost = node.store_gone || node.catalog_lost;
        let store_gone = node.store_gone;
        // A failure that could not be recorded, and its slots, are settled by a load only.
        let unrecorded = |record: &SnapshotRecord| record.state == SnapshotState::Completing;
        let stranded = node.engine.held_slots().len() > node.engine.droppable_slots().len()
            || self.oracle.snapshots.values().any(unrecorded);
        if !lost && !stranded && self.random.chance(400) {
            return self.detach(node, result.is_ok());
        }
        // A process may also end without closing its database.
        if self.random.chance(700) && !store_gone {
            let _ = node.catalog.close();
        }
        drop(node);
        self.begin_anew(Happening::Restart);
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
        let Node { slots, views, chain, catalog, .. } = node;
        self.detached = Some(Detached { slots, views, chain, catalog, loaded: None });
        self.begin_anew(Happening::Attach);
        // In memory, interrupted snapshots are over: the engine has ended each.
        for expected in self.model.snapshots.values_mut() {
            expected.complete = true;
        }
        if std::mem::take(&mut self.deletion_waits) {
            self.after(0, Happening::Delete);
        }
        self.detached_for_a_while();
    }

    /// Somebody may delete a snapshot while nobody has attached the volume yet, or just does.
    fn detached_for_a_while(&mut self) {
        if self.swarm.deletes() && self.random.chance(500) {
            let delay = self.random.below(DETACHED_US);
            self.after(delay, Happening::Delete);
        }
    }

    /// A deletion that the operator of a running volume did not ask for, or that had to wait.
    pub fn delete_any_time(&mut self) {
        if self.ending {
            return;
        }
        if self.node.is_some() {
            return self.delete();
        }
        match &self.detached {
            Some(Detached { loaded: Some(_), .. }) => {
                self.mark(Mark::DeleteMetAttach);
                self.after(TURN_US, Happening::Delete);
            }
            Some(_) => self.delete_detached(),
            None => {}
        }
    }

    fn delete_detached(&mut self) {
        let chain = &self.detached.as_ref().expect("the store is open").chain;
        if chain.is_empty() {
            return;
        }
        let newest = chain.len() - 1;
        let at = self.random.below(chain.len() as u64) as usize;
        // It is the newest whose chunks become dirty.
        let at = if self.random.chance(500) { newest } else { at };
        let record = chain.records().nth(at).expect("below the number of records");
        let Ok(seq) = chain.plan_delete(&record.name) else { return };
        let request = CatalogRequest::DeleteSnapshot { volume: self.volume, seq };
        let stop = self.plan_catalog_fault(self.swarm.catalog_cut_per_mille);
        let detached = self.detached.as_mut().expect("the store is open");
        let result = detached.catalog.execute(request.clone());
        trace!(self, "deletion of {seq:?} while detached: {result:?}");
        let powerless = self.is_powerless(stop);
        self.judge_transaction(&request, &result, powerless);
        if powerless {
            self.mark(Mark::PowerCutInCatalog);
            return self.power_cut(None);
        }
        let (freed, dirtied) = match result {
            Ok(CatalogReply::Deleted { freed, dirtied, .. }) => (freed, dirtied),
            // It failed before it was recorded.
            Err(error) if error.kind() == ErrorKind::NotFound => (Vec::new(), Vec::new()),
            _ => return,
        };
        self.mark(Mark::DeleteDetached);
        if self.oracle.clean && !dirtied.is_empty() {
            self.mark(Mark::DirtiedDetached);
        }
        let detached = self.detached.as_mut().expect("the store is open");
        detached.chain.remove(seq);
        detached.views.deleted(seq);
        for slot in freed {
            detached.slots.release(slot);
        }
        self.model.snapshots.remove(&seq);
    }

    /// An attach begins: what is known of the volume is loaded. Its turn lasts until the volume is open.
    pub fn attach(&mut self) {
        let detached = self.detached.as_mut().expect("the store is open");
        let Ok(state) = detached.catalog.load_state(self.volume) else {
            // The catalog was lost: the store is loaded again.
            self.detached = None;
            return self.begin_anew(Happening::Restart);
        };
        if let Some(difference) = self.oracle.difference(&state, &detached.catalog) {
            violated!("catalog at an attach: {difference}");
        }
        detached.loaded = Some(state);
        let delay = self.random.below(self.swarm.catalog_us_max / 4 + 1);
        self.after(delay, Happening::Open);
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
        self.detached = None;
        self.store = crashed;
        self.begin_anew(Happening::Restart);
    }

    /// Forgets what the process had under way; the next one starts soon.
    fn begin_anew(&mut self, start: Happening) {
        self.generation += 1;
        self.deletion_waits = false;
        self.commands.clear();
        self.readers.iter_mut().for_each(|reader| *reader = None);
        let complete = self.oracle_complete();
        // What the last transaction said may or may not be durable: the start decides.
        self.model.snapshots.retain(|seq, expected| expected.complete || complete.contains(seq));
        self.after(1_000, start);
    }

    /// Snapshots that are complete on the device, or may be.
    pub fn oracle_complete(&self) -> Vec<SnapshotSeq> {
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
        self.detached = Some(Detached {
            slots: loaded.allocator,
            views: SnapshotViews::new(chunk_count, volume.views),
            chain: Chain::new(volume.state.snapshots.clone(), volume.state.last_seq),
            catalog: loaded.catalog,
            loaded: None,
        });
        let delay = self.random.below(DETACHED_US / 2);
        self.after(delay, Happening::Attach);
        self.detached_for_a_while();
    }

    fn started(&mut self) {
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

    /// Sets the volume up as the target does, and opens it.
    pub fn open(&mut self) {
        let detached = self.detached.take().expect("an attach is under way");
        let Detached { slots, views, chain, mut catalog, loaded } = detached;
        let state = loaded.expect("loaded when the attach began");
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
            trace!(self, "power cut in the open");
            self.mark(Mark::PowerCutInLoad);
            return self.power_cut(None);
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
            catalog_lost: false,
            last_failure: None,
        });
        self.started();
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
