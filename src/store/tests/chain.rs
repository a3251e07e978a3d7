//! The snapshot chain beside a naive model that keeps the whole view of each snapshot.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const CHUNKS: u32 = 150;

#[derive(Clone, Debug)]
enum Step {
    Begin,
    /// Chunks to add, those that are there already left out; the flag says all zeros.
    AddRows(Vec<(u32, bool)>),
    Complete(Vec<(u32, bool)>),
    Fail,
    /// The n-th snapshot, modulo how many there are.
    Delete(usize),
    Open,
    Close(Vec<(u32, bool)>),
    /// The n-th slot that a snapshot has is damaged, modulo how many there are.
    Damage(usize),
    /// It is in order again.
    Repair(usize),
    /// Power is lost, the store is loaded again.
    Crash,
}

fn chunks() -> impl Strategy<Value = Vec<(u32, bool)>> {
    prop::collection::vec((0..CHUNKS, prop::bool::weighted(0.2)), 0..12)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Begin),
        4 => chunks().prop_map(Step::AddRows),
        6 => chunks().prop_map(Step::Complete),
        1 => Just(Step::Fail),
        4 => any::<usize>().prop_map(Step::Delete),
        1 => Just(Step::Open),
        2 => chunks().prop_map(Step::Close),
        3 => any::<usize>().prop_map(Step::Damage),
        1 => any::<usize>().prop_map(Step::Repair),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..60)
}

type View = BTreeMap<ChunkIndex, SlotRef>;

#[derive(Clone, Debug)]
struct ModelSnapshot {
    state: SnapshotState,
    /// Of a complete one: all chunks. Of a completing one: its own rows.
    view: View,
    /// Of a completing one: what it shows where it has no row.
    base: View,
}

#[derive(Debug, Default)]
struct Model {
    snapshots: BTreeMap<u32, ModelSnapshot>,
    last_seq: u32,
    clean: bool,
    dirty: BTreeSet<ChunkIndex>,
    staged: BTreeMap<ChunkIndex, Option<SlotIndex>>,
    damaged: BTreeSet<SlotIndex>,
}

impl Model {
    fn newest_complete(&self) -> Option<&View> {
        let mut newest = self.snapshots.values().rev();
        newest.find(|s| s.state == SnapshotState::Complete).map(|s| &s.view)
    }

    fn completing(&self) -> Option<u32> {
        let mut all = self.snapshots.iter();
        all.find(|(_, s)| s.state == SnapshotState::Completing).map(|(seq, _)| *seq)
    }

    /// Chunks and slots that any snapshot shows.
    fn shown(&self) -> BTreeMap<SlotIndex, (ChunkIndex, SlotRef)> {
        let shown = self.snapshots.values().flat_map(|s| &s.view);
        shown.filter_map(|(chunk, at)| Some((at.slot()?, (*chunk, *at)))).collect()
    }

    /// Slots that any snapshot shows or a staged chunk has.
    fn slots(&self) -> BTreeSet<SlotIndex> {
        let shown = self.snapshots.values().flat_map(|s| s.view.values());
        shown.filter_map(|at| at.slot()).chain(self.staged.values().copied().flatten()).collect()
    }
}

struct World {
    sim: Arc<SimDevice>,
    store: LoadedStore,
    model: Model,
    volume: VolumeId,
}

impl World {
    fn new() -> Self {
        let sim = device();
        let shared: SharedDevice = sim.clone();
        let mut store = format(&shared, &options(false)).unwrap();
        let volume =
            store.catalog.create_volume(volume_record("vol0", u64::from(CHUNKS))).unwrap().id;
        World { sim, store, model: Model::default(), volume }
    }

    /// New places for chunks that `present` does not have; none where slots run out.
    fn place(&mut self, chunks: &[(u32, bool)], present: &View) -> View {
        let mut rows = View::new();
        for (chunk, zero) in chunks {
            let chunk = ChunkIndex(*chunk);
            if present.contains_key(&chunk) || rows.contains_key(&chunk) {
                continue;
            }
            let at = if *zero {
                SlotRef::Zero
            } else {
                let Ok(slot) = self.store.allocator.allocate() else { continue };
                at_slot(slot.0)
            };
            rows.insert(chunk, at);
        }
        rows
    }

    fn apply(&mut self, step: &Step) {
        let volume = self.volume;
        match step {
            Step::Begin => {
                let seq = self.model.last_seq + 1;
                let record = snapshot_record(volume, seq, SnapshotState::Completing);
                let outcome = self.store.catalog.execute(CatalogRequest::BeginSnapshot(record));
                if self.model.completing().is_some() {
                    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Busy);
                    return;
                }
                outcome.unwrap();
                // Whoever takes a snapshot has opened the volume.
                self.apply(&Step::Open);
                self.model.last_seq = seq;
                let snapshot = ModelSnapshot {
                    state: SnapshotState::Completing,
                    view: View::new(),
                    base: self.model.newest_complete().cloned().unwrap_or_default(),
                };
                self.model.snapshots.insert(seq, snapshot);
            }
            Step::AddRows(chunks) => {
                let Some(seq) = self.model.completing() else { return };
                let present = self.model.snapshots[&seq].view.clone();
                let rows = self.place(chunks, &present);
                let request = CatalogRequest::AddRows {
                    volume,
                    seq: SnapshotSeq(seq),
                    rows: rows.iter().map(|(chunk, at)| (*chunk, *at)).collect(),
                };
                assert_eq!(self.store.catalog.execute(request).unwrap(), CatalogReply::Done);
                self.model.snapshots.get_mut(&seq).unwrap().view.extend(rows);
            }
            Step::Complete(chunks) => self.complete(chunks),
            Step::Fail => {
                let Some(seq) = self.model.completing() else { return };
                let mut record = snapshot_record(volume, seq, SnapshotState::Failed);
                record.reason = Some("copy error".to_owned());
                let reply = self.store.catalog.execute(CatalogRequest::FailSnapshot(record));
                assert_eq!(reply.unwrap(), CatalogReply::Done);
                let snapshot = self.model.snapshots.get_mut(&seq).unwrap();
                snapshot.state = SnapshotState::Failed;
                for slot in std::mem::take(&mut snapshot.view).values().filter_map(|at| at.slot()) {
                    self.store.allocator.release(slot);
                }
            }
            Step::Delete(nth) => {
                let count = self.model.snapshots.len();
                let nth = nth.checked_rem(count).unwrap_or_default();
                let Some(seq) = self.model.snapshots.keys().nth(nth).copied() else { return };
                self.delete(seq);
            }
            Step::Open => {
                self.store.catalog.execute(CatalogRequest::OpenVolume { volume }).unwrap();
                self.model.clean = false;
                self.model.dirty.clear();
                for slot in std::mem::take(&mut self.model.staged).into_values().flatten() {
                    self.store.allocator.release(slot);
                }
            }
            Step::Close(chunks) => self.close(chunks),
            Step::Damage(nth) => self.damage(*nth),
            Step::Repair(nth) => {
                let slots: Vec<SlotIndex> = self.model.damaged.iter().copied().collect();
                if let Some(slot) = nth.checked_rem(slots.len()).map(|nth| slots[nth]) {
                    self.store.catalog.unmark_damaged(slot).unwrap();
                    self.store.allocator.damaged().remove(slot);
                    self.model.damaged.remove(&slot);
                }
            }
            Step::Crash => self.crash(),
        }
    }

    fn damage(&mut self, nth: usize) {
        let shown: Vec<_> = self.model.shown().into_iter().collect();
        let Some((slot, (chunk, at))) = nth.checked_rem(shown.len()).map(|nth| shown[nth]) else {
            return;
        };
        let SlotRef::Slot { crc32c, .. } = at else { panic!("it has a slot") };
        let volume = self.volume;
        let found = DamagedSlot { slot, volume, chunk, crc32c, found_at_unix_ms: 5 };
        // Neither is in any row.
        for other in [
            DamagedSlot { crc32c: !crc32c, ..found },
            DamagedSlot { chunk: ChunkIndex(CHUNKS), ..found },
        ] {
            assert!(!self.store.catalog.mark_damaged(other).unwrap());
        }
        assert!(self.store.catalog.mark_damaged(found).unwrap());
        self.store.allocator.damaged().insert(slot);
        self.model.damaged.insert(slot);
        let newest = self.model.newest_complete().and_then(|view| view.get(&chunk).copied());
        if self.model.clean && newest == Some(at) {
            self.model.dirty.insert(chunk);
        }
    }

    fn complete(&mut self, chunks: &[(u32, bool)]) {
        let Some(seq) = self.model.completing() else { return };
        let mut own = self.model.snapshots[&seq].view.clone();
        let rows = self.place(chunks, &own);
        own.extend(rows.clone());
        let mut record = snapshot_record(self.volume, seq, SnapshotState::Complete);
        let slots = own.values().filter(|at| at.slot().is_some()).count() as u64;
        record.bytes_used = slots * u64::from(SLOT_BYTES);
        let rows = rows.into_iter().collect();
        let reply =
            self.store.catalog.execute(CatalogRequest::CompleteSnapshot { record, rows }).unwrap();
        assert_eq!(reply, CatalogReply::Done);
        let snapshot = self.model.snapshots.get_mut(&seq).unwrap();
        snapshot.state = SnapshotState::Complete;
        snapshot.view = std::mem::take(&mut snapshot.base);
        snapshot.view.extend(own);
    }

    fn delete(&mut self, seq: u32) {
        let request = CatalogRequest::DeleteSnapshot { volume: self.volume, seq: SnapshotSeq(seq) };
        let outcome = self.store.catalog.execute(request);
        let doomed = self.model.snapshots[&seq].clone();
        let complete = doomed.state == SnapshotState::Complete;
        let mut later = self.model.snapshots.range(seq + 1..);
        let has_heir = later.any(|(_, s)| s.state == SnapshotState::Complete);
        let builds_on = complete && !has_heir && self.model.completing().is_some();
        let reply = match outcome {
            Err(error) => {
                assert!(builds_on && error.kind() == ErrorKind::Busy, "{error}");
                return;
            }
            Ok(reply) => reply,
        };
        let CatalogReply::Deleted { freed, dirtied, handed_over } = reply else {
            panic!("a delete is answered as one")
        };
        let newest_before = self.model.newest_complete().cloned().unwrap_or_default();
        let slots_before = self.model.slots();
        self.model.snapshots.remove(&seq);
        // Freed is exactly what nobody shows any more.
        let gone: BTreeSet<_> = slots_before.difference(&self.model.slots()).copied().collect();
        assert_eq!(freed.iter().copied().collect::<BTreeSet<_>>(), gone);
        assert_eq!(freed.len(), gone.len());
        for slot in freed {
            self.store.allocator.release(slot);
        }
        assert!(has_heir && complete || handed_over == 0);
        assert!(!(has_heir && complete) || dirtied.is_empty());
        // Dirty is at least what the newest snapshot left shows differently.
        let newest = self.model.newest_complete().cloned().unwrap_or_default();
        let dirtied: BTreeSet<_> = dirtied.into_iter().collect();
        for chunk in (0..CHUNKS).map(ChunkIndex) {
            if newest_before.get(&chunk) != newest.get(&chunk) {
                assert!(dirtied.contains(&chunk), "{chunk:?} is not dirty");
            }
        }
        if self.model.clean {
            self.model.dirty.extend(dirtied);
        }
    }

    fn close(&mut self, chunks: &[(u32, bool)]) {
        if self.model.completing().is_some() {
            let request = CatalogRequest::CloseVolume {
                volume: self.volume,
                operation_number: OperationNumber(1),
                dirty_words: vec![],
                staged: vec![],
            };
            let error = self.store.catalog.execute(request).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy);
            return;
        }
        self.apply(&Step::Open);
        let placed = self.place(chunks, &View::new());
        self.model.staged = placed.iter().map(|(chunk, at)| (*chunk, at.slot())).collect();
        self.model.dirty = placed.keys().copied().collect();
        self.model.clean = true;
        let mut words: BTreeMap<u32, u64> = BTreeMap::new();
        for chunk in &self.model.dirty {
            *words.entry(chunk.0 / 64).or_default() |= 1 << (chunk.0 % 64);
        }
        let staged = self.model.staged.iter().map(|(chunk, slot)| StagedRecord {
            chunk: *chunk,
            operation_number: OperationNumber(1),
            slot: *slot,
            block_map: 0,
            block_crcs: Box::new([0; 64]),
        });
        let request = CatalogRequest::CloseVolume {
            volume: self.volume,
            operation_number: OperationNumber(1),
            dirty_words: words.into_iter().collect(),
            staged: staged.collect(),
        };
        self.store.catalog.execute(request).unwrap();
    }

    fn crash(&mut self) {
        self.sim = Arc::new(self.sim.crash(CrashMode::LoseAll));
        let shared: SharedDevice = self.sim.clone();
        self.store = load(&shared).unwrap();
        if let Some(seq) = self.model.completing() {
            let snapshot = self.model.snapshots.get_mut(&seq).unwrap();
            let (view, base) = (View::new(), View::new());
            *snapshot = ModelSnapshot { state: SnapshotState::Failed, view, base };
        }
        let [volume] = &self.store.volumes[..] else { panic!("one volume") };
        let expected = self.model.snapshots.iter();
        let expected: Vec<_> = expected
            .filter(|(_, s)| s.state == SnapshotState::Complete)
            .map(|(seq, s)| (SnapshotSeq(*seq), s.view.clone()))
            .collect();
        let views: Vec<_> =
            volume.views.iter().map(|(seq, map)| (*seq, map.iter().collect::<View>())).collect();
        assert_eq!(views, expected);
        assert_eq!(volume.state.last_seq, SnapshotSeq(self.model.last_seq));
        let damaged: BTreeSet<_> = self.store.damaged.iter().map(|found| found.slot).collect();
        let shown = self.model.shown();
        assert_eq!(
            damaged,
            self.model.damaged.iter().filter(|s| shown.contains_key(s)).copied().collect()
        );
    }

    fn self_check(&mut self) {
        let report = self.store.catalog.check().unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
        // What no snapshot shows any more is free, and what is free is not damaged.
        let shown = self.model.shown();
        self.model.damaged.retain(|slot| shown.contains_key(slot));
        assert_eq!(report.damaged, self.model.damaged);
        let marked = |slot: &SlotIndex| self.store.allocator.damaged().contains(*slot);
        let slots = (0..self.store.allocator.slot_count()).map(SlotIndex);
        assert_eq!(slots.filter(marked).collect::<BTreeSet<_>>(), self.model.damaged);
        assert_eq!(report.slots_taken, self.model.slots());
        assert_eq!(self.store.allocator.taken_count() as usize, report.slots_taken.len());
        let state = self.store.catalog.load_state(self.volume).unwrap();
        assert_eq!(state.record.clean, self.model.clean);
        let states: Vec<_> = state.snapshots.iter().map(|s| (s.seq.0, s.state)).collect();
        let expected: Vec<_> =
            self.model.snapshots.iter().map(|(seq, s)| (*seq, s.state)).collect();
        assert_eq!(states, expected);
        let dirty: BTreeSet<_> = state
            .dirty_words
            .iter()
            .flat_map(|(word, bits)| (0..64).map(move |bit| (word * 64 + bit, bits >> bit & 1)))
            .filter_map(|(chunk, bit)| (bit == 1).then_some(ChunkIndex(chunk)))
            .collect();
        assert_eq!(dirty, self.model.dirty);
        let staged: BTreeMap<_, _> = state.staged.iter().map(|s| (s.chunk, s.slot)).collect();
        assert_eq!(staged, self.model.staged);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn agrees_with_whole_views(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
            world.self_check();
        }
        world.crash();
        world.self_check();
    }
}
