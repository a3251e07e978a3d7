//! Long random histories of the gate on one thread, beside a naive model of it and of the devices.
//!
//! Interleaving is modelled by what the operations leave open: a command lands partly when it
//! enters and partly when it leaves, a copy reads partly when it begins and partly when it ends,
//! and anything may happen in between. Every block has the number of the command that wrote it
//! last, so that a wrong snapshot cannot look right. After every step the gate's view of each
//! chunk must equal the model's, and `self_check` must hold.
#![cfg(not(loom))]

use std::collections::BTreeMap;
use std::sync::Arc;

use presnap::gate::{
    BlockMap, ChunkIndex, ChunkState, CopyEnd, CutPoint, CutRefused, DirtyWalk, Gate, Geometry,
    Initial, Lane, LbaRange, OpenWalk, OperationNumber, Passage, ReadSource,
};
use proptest::prelude::*;

/// Two index words, the second partial; the last chunk partial too.
const CHUNKS: u32 = 67;
const CHUNK_LBAS: u64 = 64;
const VOLUME_LBAS: u64 = CHUNKS as u64 * CHUNK_LBAS - 5;
/// Most operations are on these, so that they meet: around an index word's end and the volume's.
const HOT: [u32; 5] = [0, 1, 63, 64, 66];

type Content = [u64; CHUNK_LBAS as usize];

#[derive(Clone, Debug)]
enum Op {
    Enter { chunk: u32, first: u64, count: u64, lands: u64 },
    Leave(usize),
    BeginCopy { chunk: u32, reads: u64 },
    EndCopy { which: usize, ok: bool },
    Drop(u32),
    MarkDirty(u32),
    Cut,
    Walk(usize),
    Settle(usize),
    Read(u32),
    GiveUp(usize),
    Peek(usize),
    Open { chunks_max: usize, keep: u32 },
    Close(u32),
}

/// The gate's chunk, without bits and epochs packed into a word.
#[allow(clippy::struct_excessive_bools, reason = "as the gate's word has flags")]
#[derive(Clone, Debug)]
struct Chunk {
    epoch: u32,
    dirty: bool,
    count: u32,
    staging: bool,
    staged: bool,
    /// Commands pass it uncounted.
    open: bool,
    map: u64,
    slot: Content,
    /// Slot given to the completing snapshot by a writer.
    adopted: Option<Content>,
    master: Content,
}

struct Command {
    range: LbaRange,
    lands: u64,
    id: u64,
    passage: Passage,
}

struct Copy {
    chunk: u32,
    taken: BlockMap,
    reads: u64,
    slot: Content,
}

struct Snapshot {
    cut: CutPoint,
    expected: Vec<Content>,
    required: Vec<bool>,
    walk: Option<DirtyWalk>,
    taken: Vec<ChunkIndex>,
    waiting: Vec<ChunkIndex>,
    slots: BTreeMap<u32, Content>,
}

struct Model {
    gate: Arc<Gate>,
    lanes: [Lane; 2],
    open_walk: OpenWalk,
    chunks: Vec<Chunk>,
    epoch: u32,
    commands: Vec<Command>,
    copies: Vec<Copy>,
    snapshot: Option<Snapshot>,
    /// What the newest complete snapshot contains, if there is one.
    base: Option<Vec<Content>>,
    last_operation: u64,
    marks: Marks,
}

/// How often the rare branches ran, over all histories.
#[derive(Default, Debug)]
struct Marks {
    parked: u32,
    adopted_by_writer: u32,
    adopted_by_engine: u32,
    preserved: u32,
    outdated: u32,
    lost: u32,
    completed: u32,
    given_up: u32,
    read_master: u32,
    passed: u32,
    waited_for_passed: u32,
}

impl Model {
    fn new(all_dirty: bool) -> Self {
        let initial = if all_dirty { Initial::AllDirty } else { Initial::Clean };
        let geometry = Geometry::new(256 << 10, 4096, VOLUME_LBAS).expect("sizes are in bounds");
        let zero = [0; CHUNK_LBAS as usize];
        let chunk = Chunk {
            epoch: 0,
            dirty: all_dirty,
            count: 0,
            staging: false,
            staged: false,
            open: all_dirty,
            map: 0,
            slot: zero,
            adopted: None,
            master: zero,
        };
        let gate = Arc::new(Gate::new(geometry, initial, OperationNumber(1)).expect("small"));
        if all_dirty {
            gate.open_all();
        }
        Self {
            lanes: [gate.lane(), gate.lane()],
            open_walk: gate.open_walk(),
            gate,
            chunks: vec![chunk; CHUNKS as usize],
            epoch: 1,
            commands: Vec::new(),
            copies: Vec::new(),
            snapshot: None,
            base: (!all_dirty).then(|| vec![zero; CHUNKS as usize]),
            last_operation: 0,
            marks: Marks::default(),
        }
    }

    fn chunk(&mut self, chunk: ChunkIndex) -> &mut Chunk {
        &mut self.chunks[chunk.as_usize()]
    }

    fn is_pending(&self, chunk: ChunkIndex) -> bool {
        let it = &self.chunks[chunk.as_usize()];
        self.snapshot.is_some() && it.dirty && it.epoch < self.epoch
    }

    fn is_valid(&self, chunk: ChunkIndex) -> bool {
        let it = &self.chunks[chunk.as_usize()];
        it.staged && !it.staging && it.count == 0 && it.map == 0
    }

    fn land(&mut self, range: LbaRange, id: u64, which: impl Fn(u64) -> bool) {
        for lba in (range.lba..range.lba + range.count).filter(|&lba| which(lba % CHUNK_LBAS)) {
            let chunk = self.chunk(ChunkIndex((lba / CHUNK_LBAS) as u32));
            chunk.master[(lba % CHUNK_LBAS) as usize] = id;
        }
    }

    fn enter(&mut self, range: LbaRange, lands: u64) {
        let end = |range: LbaRange| range.lba + range.count;
        if self.commands.iter().any(|c| c.range.lba < end(range) && range.lba < end(c.range)) {
            return; // The device may land them in any order; the model could not tell.
        }
        let covered = || self.gate.geometry().chunks(range).map(ChunkIndex);
        let open = covered().all(|chunk| self.chunks[chunk.as_usize()].open);
        let (mut parked, mut passed) = (None, Vec::new());
        for chunk in self.gate.geometry().chunks(range).map(ChunkIndex) {
            if self.is_pending(chunk) && !self.is_valid(chunk) {
                parked = Some(chunk);
                break;
            }
            let adopts = self.is_pending(chunk);
            let epoch = self.epoch;
            let it = self.chunk(chunk);
            if adopts {
                it.staged = false;
                it.adopted = Some(it.slot);
            }
            if !open {
                (it.epoch, it.dirty) = (epoch, true);
            }
            self.marks.adopted_by_writer += u32::from(adopts);
            passed.push(chunk);
        }
        match (self.lanes[lands as usize % 2].enter(range), parked) {
            (Ok(passage), None) => {
                match passage {
                    Passage::Open(_) => {
                        assert!(open);
                        self.marks.passed += 1;
                    }
                    Passage::Counted(epoch) => {
                        assert!(!open && epoch.0 == self.epoch);
                        for chunk in passed {
                            self.chunk(chunk).count += 1;
                        }
                    }
                }
                let id = self.gate.next_operation().0;
                assert!(id > self.last_operation, "strictly increasing");
                self.last_operation = id;
                self.land(range, id, |block| lands >> block & 1 == 1);
                self.commands.push(Command { range, lands, id, passage });
            }
            (Err(chunk), Some(expected)) => {
                assert_eq!(chunk, expected);
                self.marks.parked += 1;
            }
            other => panic!("{other:?}"),
        }
    }

    fn leave(&mut self, which: usize) {
        if self.commands.is_empty() {
            return;
        }
        let Command { range, lands, id, passage } =
            self.commands.swap_remove(which % self.commands.len());
        self.land(range, id, |block| lands >> block & 1 == 0);
        for lba in range.lba..range.lba + range.count {
            let it = self.chunk(ChunkIndex((lba / CHUNK_LBAS) as u32));
            if it.staging || it.staged {
                it.map |= 1 << (lba % CHUNK_LBAS);
            }
        }
        if matches!(passage, Passage::Counted(_)) {
            for chunk in self.gate.geometry().chunks(range).map(ChunkIndex) {
                self.chunk(chunk).count -= 1;
            }
        }
        self.lanes[lands as usize % 2].leave(passage, range);
    }

    /// Commands in flight that passed open chunks: any, and any on `chunk`.
    fn passed_in_flight(&self, chunk: ChunkIndex) -> (bool, bool) {
        let open = |command: &&Command| matches!(command.passage, Passage::Open(_));
        let mut passed = self.commands.iter().filter(open);
        let on_it =
            |command: &Command| self.gate.geometry().chunks(command.range).contains(&chunk.0);
        (passed.clone().next().is_some(), passed.any(on_it))
    }

    fn open(&mut self, chunks_max: usize, keep: u32) {
        let keep = |chunk: ChunkIndex| chunk.0 % 4 == keep;
        self.gate.open_some(&mut self.open_walk, 2, chunks_max, keep);
        for chunk in (0..CHUNKS).map(ChunkIndex) {
            let (is_open, epoch) = (self.gate.is_open(chunk), self.epoch);
            let it = self.chunk(chunk);
            assert!(is_open || !it.open, "open_some closes nothing");
            let may = it.dirty && it.epoch == epoch && !it.staging && !it.staged && !keep(chunk);
            assert!(!is_open || it.open || may, "{chunk}");
            it.open = is_open;
        }
    }

    fn close(&mut self, chunk: ChunkIndex) {
        self.gate.close(chunk);
        self.chunk(chunk).open = false;
    }

    fn begin_copy(&mut self, chunk: ChunkIndex, reads: u64) -> bool {
        let pending = self.is_pending(chunk);
        let (epoch, full) = (self.epoch, self.gate.geometry().full_map(chunk));
        let (some_passed, passed_on_it) = self.passed_in_flight(chunk);
        let taken = self.gate.begin_copy(chunk);
        let it = self.chunk(chunk);
        if taken.is_none() && it.dirty && !it.staging && !it.staged && (it.open || some_passed) {
            self.marks.waited_for_passed += 1;
            return false;
        }
        assert!(taken.is_none() || it.staged || !(it.open || passed_on_it), "{chunk}");
        let expected = if !it.dirty || it.staging || (pending && it.count > 0) {
            None
        } else {
            let taken = if it.staged { BlockMap(it.map) } else { full };
            (it.staging, it.map) = (true, 0);
            it.epoch = if pending { epoch - 1 } else { epoch };
            Some(taken)
        };
        let (slot, master) = (it.slot, it.master);
        assert_eq!(taken, expected);
        let Some(taken) = taken else { return false };
        let mut copy = Copy { chunk: chunk.0, taken, reads, slot };
        copy.read(&master, taken.0 & reads);
        self.copies.push(copy);
        true
    }

    fn end_copy(&mut self, which: usize, ok: bool) {
        if self.copies.is_empty() {
            return;
        }
        let mut copy = self.copies.swap_remove(which % self.copies.len());
        let chunk = ChunkIndex(copy.chunk);
        let pending = self.is_pending(chunk);
        let it = self.chunk(chunk);
        copy.read(&it.master, copy.taken.0 & !copy.reads);
        it.slot = copy.slot;
        if !ok {
            // Whatever was to be copied is broken in the slot now.
            for block in (0..CHUNK_LBAS).filter(|block| copy.taken.0 >> block & 1 == 1) {
                it.slot[block as usize] = u64::MAX;
            }
            if it.staged {
                it.map |= copy.taken.0;
            }
        }
        it.staging = false;
        it.staged = ok || (it.staged && !pending);
        let expected = match it.map {
            _ if !it.staged => CopyEnd::Lost,
            0 => CopyEnd::Valid,
            map => CopyEnd::Outdated { map: BlockMap(map) },
        };
        self.marks.outdated += u32::from(matches!(expected, CopyEnd::Outdated { .. }));
        self.marks.lost += u32::from(expected == CopyEnd::Lost);
        assert_eq!(self.gate.end_copy(chunk, ok, copy.taken), expected);
    }

    fn drop_staged(&mut self, chunk: ChunkIndex) {
        let it = self.chunk(chunk);
        let expected = it.staged && !it.staging;
        if expected {
            it.staged = false;
        }
        assert_eq!(self.gate.drop_staged(chunk), expected);
    }

    fn mark_dirty(&mut self, chunk: ChunkIndex) {
        let (pending, epoch) = (self.is_pending(chunk), self.epoch);
        if !pending {
            let it = self.chunk(chunk);
            (it.epoch, it.dirty) = (epoch, true);
        }
        assert_eq!(self.gate.mark_dirty(chunk), !pending);
    }

    fn cut(&mut self) {
        if self.snapshot.is_some() {
            assert_eq!(self.gate.cut(), Err(CutRefused::Completing));
            return;
        }
        let cut = match self.gate.cut() {
            Err(CutRefused::Draining) => {
                assert!(self.passed_in_flight(ChunkIndex(0)).0);
                return;
            }
            cut => cut.expect("the last snapshot is over and walked"),
        };
        assert_eq!(cut.old_epoch.0, self.epoch);
        assert!(cut.operation.0 >= self.last_operation);
        self.last_operation = cut.operation.0;
        self.epoch += 1;
        self.chunks.iter_mut().for_each(|chunk| chunk.open = false);
        let mut expected: Vec<Content> = self.chunks.iter().map(|chunk| chunk.master).collect();
        for Command { range, id, .. } in &self.commands {
            for lba in range.lba..range.lba + range.count {
                expected[(lba / CHUNK_LBAS) as usize][(lba % CHUNK_LBAS) as usize] = *id;
            }
        }
        self.snapshot = Some(Snapshot {
            walk: Some(self.gate.dirty_walk(cut.old_epoch)),
            cut,
            expected,
            required: self.chunks.iter().map(|chunk| chunk.dirty).collect(),
            taken: Vec::new(),
            waiting: Vec::new(),
            slots: BTreeMap::new(),
        });
    }

    fn walk(&mut self, words: usize) {
        let Some(Snapshot { walk: walk_slot @ Some(_), taken, waiting, .. }) = &mut self.snapshot
        else {
            return;
        };
        let Some(walk) = walk_slot else { return };
        let over = self.gate.take_dirty(walk, words, |chunk| {
            taken.push(chunk);
            waiting.push(chunk);
        });
        if over {
            *walk_slot = None;
        }
        self.complete();
    }

    /// What the engine does with one chunk that waits.
    fn settle(&mut self, which: usize) {
        let Some(snapshot) = &self.snapshot else { return };
        if snapshot.waiting.is_empty() {
            return;
        }
        let which = which % snapshot.waiting.len();
        let chunk = snapshot.waiting[which];
        let required = snapshot.required[chunk.as_usize()];
        let state = self.gate.classify(chunk, snapshot.cut.old_epoch);
        let (pending, valid) = (self.is_pending(chunk), self.is_valid(chunk));
        let (some_passed, passed_on_it) = self.passed_in_flight(chunk);
        let full = self.gate.geometry().full_map(chunk);
        let epoch = self.epoch;
        let it = self.chunk(chunk);
        if state == ChunkState::Draining && it.count == 0 {
            assert!(pending && some_passed && !it.staged && !it.staging);
            self.marks.waited_for_passed += 1;
            return;
        }
        assert!(state == ChunkState::Draining || !(pending && passed_on_it), "{chunk}");
        let expected = match &it.adopted {
            Some(_) => ChunkState::Adopted,
            None if !required && it.epoch == epoch => ChunkState::Resolved,
            None if !required => ChunkState::NotRequired,
            None if it.count > 0 => ChunkState::Draining,
            None if it.staging => ChunkState::Staging,
            None if valid => ChunkState::Adoptable,
            None => {
                let missing = if it.staged { BlockMap(it.map) } else { full };
                ChunkState::Pending { missing }
            }
        };
        assert_eq!(state, expected, "{chunk}");
        if pending && it.count == 0 {
            it.epoch = epoch - 1;
        }
        let slot = match state {
            ChunkState::NotRequired | ChunkState::Resolved => None,
            ChunkState::Adopted => it.adopted,
            ChunkState::Adoptable => {
                assert!(pending);
                let slot = it.slot;
                (it.epoch, it.dirty, it.staged) = (epoch, false, false);
                assert!(if which & 1 == 0 {
                    self.gate.try_adopt(chunk)
                } else {
                    self.gate.resolve(chunk)
                });
                self.marks.adopted_by_engine += 1;
                Some(slot)
            }
            ChunkState::Pending { .. } => {
                assert!(!self.gate.try_adopt(chunk) && !self.gate.resolve(chunk));
                assert!(self.begin_copy(chunk, u64::MAX / 3));
                self.marks.preserved += 1;
                return;
            }
            ChunkState::Draining | ChunkState::Staging => return,
        };
        let snapshot = self.snapshot.as_mut().expect("looked at above");
        snapshot.waiting.swap_remove(which);
        if let Some(slot) = slot {
            assert!(snapshot.slots.insert(chunk.0, slot).is_none(), "{chunk} twice");
        }
        self.complete();
    }

    /// If nothing is left to do: compares the snapshot with what it must contain.
    fn complete(&mut self) {
        let done = |snapshot: &Snapshot| snapshot.walk.is_none() && snapshot.waiting.is_empty();
        let Some(snapshot) = self.snapshot.take_if(|snapshot| done(snapshot)) else { return };
        for chunk in 0..CHUNKS as usize {
            let own = snapshot.slots.get(&(chunk as u32));
            assert_eq!(own.is_some(), snapshot.required[chunk], "chunk {chunk}");
            let content = own.or_else(|| self.base.as_ref().map(|base| &base[chunk]));
            let wanted = &snapshot.expected[chunk];
            assert_eq!(content, Some(wanted), "chunk {chunk}");
        }
        self.base = Some(snapshot.expected);
        self.gate.finish_cut();
        self.chunks.iter_mut().for_each(|chunk| chunk.adopted = None);
        self.marks.completed += 1;
    }

    fn give_up(&mut self, words: usize) {
        let Some(snapshot) = self.snapshot.take() else { return };
        self.gate.finish_cut();
        if let Some(mut walk) = snapshot.walk {
            assert_eq!(self.gate.cut(), Err(CutRefused::WalkUnfinished));
            while !self.gate.carry_over(&mut walk, words) {}
        }
        self.chunks.iter_mut().for_each(|chunk| chunk.adopted = None);
        for chunk in snapshot.taken {
            self.mark_dirty(chunk);
        }
        self.marks.given_up += 1;
    }

    fn read(&mut self, chunk: ChunkIndex) {
        let Some(snapshot) = &self.snapshot else { return };
        let it = &self.chunks[chunk.as_usize()];
        let old = snapshot.cut.old_epoch;
        let data = match self.gate.read_source(chunk, old) {
            ReadSource::Master => {
                assert!(self.gate.still_pending(chunk, old));
                self.marks.read_master += 1;
                Some(&it.master)
            }
            ReadSource::Adopted => it.adopted.as_ref(),
            ReadSource::NotPending => {
                let own = snapshot.slots.get(&chunk.0);
                own.or_else(|| self.base.as_ref().map(|base| &base[chunk.as_usize()]))
            }
            ReadSource::Draining => {
                assert!(it.count > 0 || self.passed_in_flight(chunk).0);
                return;
            }
        };
        assert_eq!(data, Some(&snapshot.expected[chunk.as_usize()]), "{chunk}");
    }

    fn peek(&mut self, words: usize) {
        if self.snapshot.is_some() {
            return;
        }
        let (mut walk, mut found) = (self.gate.dirty_walk(self.gate.epoch()), Vec::new());
        while !self.gate.peek_dirty(&mut walk, words, |chunk| found.push(chunk.0)) {}
        let dirty = (0..CHUNKS).filter(|&chunk| self.chunks[chunk as usize].dirty);
        assert_eq!(found, dirty.collect::<Vec<_>>());
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Enter { chunk, first, count, lands } => {
                let lba = (u64::from(chunk) * CHUNK_LBAS + first).min(VOLUME_LBAS - 1);
                let count = count.min(VOLUME_LBAS - lba);
                self.enter(LbaRange::new(lba, count), lands);
            }
            Op::Leave(which) => self.leave(which),
            Op::BeginCopy { chunk, reads } => {
                self.begin_copy(ChunkIndex(chunk), reads);
            }
            Op::EndCopy { which, ok } => self.end_copy(which, ok),
            Op::Drop(chunk) => self.drop_staged(ChunkIndex(chunk)),
            Op::MarkDirty(chunk) => self.mark_dirty(ChunkIndex(chunk)),
            Op::Cut => self.cut(),
            Op::Walk(words) => self.walk(words),
            Op::Settle(which) => self.settle(which),
            Op::Read(chunk) => self.read(ChunkIndex(chunk)),
            Op::GiveUp(words) => self.give_up(words),
            Op::Peek(words) => self.peek(words),
            Op::Open { chunks_max, keep } => self.open(chunks_max, keep),
            Op::Close(chunk) => self.close(ChunkIndex(chunk)),
        }
        self.check();
    }

    /// The gate and the model agree on everything that can be seen.
    fn check(&self) {
        self.gate.self_check().unwrap_or_else(|broken| panic!("{broken}"));
        assert_eq!(self.gate.is_cut_active(), self.snapshot.is_some());
        for (chunk, it) in (0..CHUNKS).map(ChunkIndex).zip(&self.chunks) {
            let seen = self.gate.view(chunk);
            let expected = (it.epoch, it.count, it.dirty, it.staging, it.staged);
            let view = (seen.epoch.0, seen.in_flight, seen.dirty, seen.staging, seen.staged);
            assert_eq!(view, expected, "{chunk}");
            assert_eq!(self.gate.is_open(chunk), it.open, "{chunk}");
            assert!(seen.map.0 == it.map || !(it.staged || it.staging), "{chunk}");
            assert_eq!(seen.valid(), self.is_valid(chunk));
        }
    }

    /// Everything to its end: all commands leave, all copies end, a last snapshot completes.
    fn finish(&mut self) {
        for round in 0..2 {
            while self.snapshot.is_none() {
                self.apply(&Op::Leave(0));
                self.apply(&Op::Cut);
            }
            while self.snapshot.is_some() {
                self.apply(&Op::Walk(1));
                self.apply(&Op::Leave(0));
                self.apply(&Op::EndCopy { which: 0, ok: true });
                self.apply(&Op::Settle(round));
            }
        }
        while !self.commands.is_empty() {
            self.apply(&Op::Leave(0));
        }
    }
}

impl Copy {
    fn read(&mut self, master: &Content, blocks: u64) {
        for block in (0..CHUNK_LBAS as usize).filter(|block| blocks >> block & 1 == 1) {
            self.slot[block] = master[block];
        }
    }
}

fn chunks() -> impl Strategy<Value = u32> {
    prop_oneof![9 => prop::sample::select(HOT.to_vec()), 1 => 0..CHUNKS]
}

fn op() -> impl Strategy<Value = Op> {
    let enter = (chunks(), 0..CHUNK_LBAS, prop_oneof![9 => 1u64..9, 2 => 9u64..150], any::<u64>());
    let enter =
        enter.prop_map(|(chunk, first, count, lands)| Op::Enter { chunk, first, count, lands });
    prop_oneof![
        12 => enter,
        12 => any::<usize>().prop_map(Op::Leave),
        8 => (chunks(), any::<u64>()).prop_map(|(chunk, reads)| Op::BeginCopy { chunk, reads }),
        10 => (any::<usize>(), prop::bool::weighted(0.8))
            .prop_map(|(which, ok)| Op::EndCopy { which, ok }),
        1 => chunks().prop_map(Op::Drop),
        1 => chunks().prop_map(Op::MarkDirty),
        3 => Just(Op::Cut),
        4 => (1usize..3).prop_map(Op::Walk),
        16 => any::<usize>().prop_map(Op::Settle),
        4 => chunks().prop_map(Op::Read),
        1 => (1usize..3).prop_map(Op::GiveUp),
        1 => (1usize..3).prop_map(Op::Peek),
        4 => (1usize..9, 0u32..5).prop_map(|(chunks_max, keep)| Op::Open { chunks_max, keep }),
        4 => chunks().prop_map(Op::Close),
    ]
}

/// Histories; `GATE_HISTORIES` overrides it for long runs.
fn histories() -> u32 {
    std::env::var("GATE_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(2000)
}

#[test]
fn the_gate_agrees_with_a_naive_model() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: histories(),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let marks = std::cell::RefCell::new(Marks::default());
    let histories = (any::<bool>(), prop::collection::vec(op(), 1..300));
    let result = runner.run(&histories, |(all_dirty, ops)| {
        let mut model = Model::new(all_dirty);
        for op in &ops {
            model.apply(op);
        }
        model.finish();
        let (mut all, one) = (marks.borrow_mut(), &model.marks);
        all.parked += one.parked;
        all.adopted_by_writer += one.adopted_by_writer;
        all.adopted_by_engine += one.adopted_by_engine;
        all.preserved += one.preserved;
        all.outdated += one.outdated;
        all.lost += one.lost;
        all.completed += one.completed;
        all.given_up += one.given_up;
        all.read_master += one.read_master;
        all.passed += one.passed;
        all.waited_for_passed += one.waited_for_passed;
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    let marks = marks.into_inner();
    println!("{marks:?}");
    let Marks { parked, adopted_by_writer, adopted_by_engine, preserved, outdated, .. } = marks;
    let Marks { lost, completed, given_up, read_master, passed, waited_for_passed, .. } = marks;
    for mark in [parked, adopted_by_writer, adopted_by_engine, preserved, outdated] {
        assert!(mark > 0, "a rare branch never ran");
    }
    for mark in [lost, completed, given_up, read_master, passed, waited_for_passed] {
        assert!(mark > 0, "a rare branch never ran");
    }
}
